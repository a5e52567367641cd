package checked

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"kvstore/client"
)

// Kinds are the kinds of watchers that a Load has when its Config names none. watcher.run has all that they do by themselves.
func Kinds() []Kind {
	return []Kind{
		{Name: "namespace, ALL", WatchOptions: client.WatchOptions{All: true}},
		{Name: "namespace, LATEST"},
		{Name: "prefix, ALL, with the value before", WatchOptions: client.WatchOptions{All: true, Prefix: "w0", PrevValue: true}},
		{Name: "prefix, LATEST, keys only", WatchOptions: client.WatchOptions{Prefix: "{", KeysOnly: true}},
		{Name: "namespace, LATEST, slow", Slow: 20 * time.Millisecond},
	}
}

// EveryKind are all kinds that there are, for whoever checks watches and not what they watch.
func EveryKind() []Kind {
	return append(Kinds(),
		Kind{Name: "namespace, ALL, keys only", WatchOptions: client.WatchOptions{All: true, KeysOnly: true}},
		Kind{Name: "namespace, ALL, from now", WatchOptions: client.WatchOptions{All: true, KeysOnly: true}, Now: true},
		Kind{Name: "namespace, LATEST, from now", WatchOptions: client.WatchOptions{KeysOnly: true}, Now: true},
		Kind{Name: "namespace, ALL, asleep while its changes go", WatchOptions: client.WatchOptions{All: true, KeysOnly: true}, Sleeps: true},
		Kind{Name: "namespace, LATEST, asleep while its changes go", WatchOptions: client.WatchOptions{KeysOnly: true}, Sleeps: true},
		Kind{Name: "key, ALL, with the value before", WatchOptions: client.WatchOptions{All: true, Key: "w01/k01", PrevValue: true}},
		Kind{Name: "key, LATEST", WatchOptions: client.WatchOptions{Key: "w02/ttl"}},
		Kind{Name: "key, ALL, from now", WatchOptions: client.WatchOptions{All: true, Key: "{w03-g1}/2"}, Now: true},
		Kind{Name: "all blocks, ALL", WatchOptions: client.WatchOptions{All: true}, Blocks: true},
		Kind{Name: "all blocks, LATEST", Blocks: true},
		Kind{Name: "all blocks, ALL, from now", WatchOptions: client.WatchOptions{All: true}, Blocks: true, Now: true},
		Kind{Name: "blocks of a scope, ALL", WatchOptions: client.WatchOptions{All: true, Scope: ownScope(0)}, Blocks: true},
		Kind{Name: "blocks of a scope, LATEST, slow", WatchOptions: client.WatchOptions{Scope: ownScope(4)}, Blocks: true, Slow: 20 * time.Millisecond},
	)
}

// watcher watches, and holds what he is told against the rules. Now and then he leaves, and goes on from his token with another client.
type watcher struct {
	*Account
	clients []*client.Client
	r       *rand.Rand
	stays   bool // the witness
	o       client.WatchOptions

	sleeping sync.Mutex // held while he is to be away
	turn     sync.Mutex
	leave    context.CancelFunc // ends the watch under way; guarded by turn
}

func newWatcher(k Kind, clients []*client.Client, seed uint64) *watcher {
	w := &watcher{Account: newAccount(k), clients: clients, r: rand.New(rand.NewPCG(seed, 1_000_000)), o: k.WatchOptions}
	if k.Blocks {
		w.clients = nil
		for _, c := range clients {
			w.clients = append(w.clients, c.In("", PromptNamespace))
		}
	}
	w.anew()
	return w
}

// anew has him ask for what is there, or for what happens from now on.
func (w *watcher) anew() { w.o.State, w.o.Token = !w.kind.Now, nil }

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		w.sleeping.Lock()
		watching, leave := context.WithCancel(ctx)
		w.turn.Lock()
		w.leave = leave
		w.turn.Unlock()
		w.sleeping.Unlock()
		err, wrong := w.watch(watching, w.clients[w.r.IntN(len(w.clients))])
		away := watching.Err() != nil
		leave()
		switch {
		case wrong != nil:
			return fmt.Errorf("watcher of %s: %w", w.kind.Name, wrong)
		case err == nil, away:
		case errors.Is(err, client.ErrCompacted) && w.o.All && w.o.Token != nil && !w.stays:
			w.Count("COMPACTED")
			w.anew()
		default:
			return fmt.Errorf("watcher of %s: %w", w.kind.Name, err)
		}
	}
	return nil
}

// sleep has him leave, until wake. He may take the batch that he is about to be told.
func (w *watcher) sleep() {
	w.sleeping.Lock()
	w.turn.Lock()
	defer w.turn.Unlock()
	if w.leave != nil {
		w.leave()
	}
}

func (w *watcher) wake() { w.sleeping.Unlock() }

// watch is one watch; it ends when the watcher has had enough, with an error, or with something wrong.
func (w *watcher) watch(ctx context.Context, c *client.Client) (err, wrong error) {
	if w.o.Token == nil {
		w.Asked()
	} else {
		w.Count("resumed")
	}
	most := 400
	if w.kind.Key != "" || w.kind.Blocks { // they are told less
		most = 30
	}
	batches := 1 + w.r.IntN(most)
	for b, err := range c.Watch(ctx, &w.o) {
		if err != nil {
			return err, nil
		}
		if b.Resync {
			w.o.State, w.o.Token = true, nil
		}
		if err := w.Take(&b); err != nil {
			return nil, err
		}
		if b.Token != nil {
			w.o.State, w.o.Token = false, b.Token
		}
		if batches--; batches <= 0 && w.o.Token != nil && !w.stays {
			return nil, nil
		}
		if w.kind.Slow > 0 {
			select {
			case <-time.After(w.kind.Slow):
			case <-ctx.Done():
			}
		}
	}
	return nil, nil
}
