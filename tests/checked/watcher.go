package checked

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"kvstore/client"
)

// watcher puts together what a watch tells, and holds each change against the one before: none of a key is missing, comes twice or out of order; a
// transaction comes whole; in the end he knows what is there. Now and then he leaves, and goes on from his token with another client.
type watcher struct {
	id      int
	clients []*client.Client
	r       *rand.Rand
	o       client.WatchOptions
	slow    time.Duration // pause after each batch
	others  string        // Config.Others

	mu    sync.Mutex
	known map[string]uint64 // versions, by key; guarded by mu, as is all below
	whole bool              // known is everything: the state was told
	told  map[string]int    // by kind of event, and what else is worth counting
}

// watchers of a load: every kind of watch that there is.
func newWatchers(clients []*client.Client, seed uint64, others string) (all []*watcher) {
	for i, o := range []client.WatchOptions{
		{All: true}, {}, {All: true, Prefix: "w0", PrevValue: true}, {Prefix: "{", KeysOnly: true}, {},
	} {
		w := &watcher{id: i, clients: clients, r: rand.New(rand.NewPCG(seed, 1_000_000+uint64(i))), o: o, others: others, told: map[string]int{}}
		w.o.State = true
		if i == 4 {
			w.slow = 20 * time.Millisecond
		}
		all = append(all, w)
	}
	return all
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.watch(ctx, w.clients[w.r.IntN(len(w.clients))])
		switch {
		case ctx.Err() != nil, err == nil:
		case errors.Is(err, client.ErrCompacted) && w.o.All && w.o.Token != nil:
			w.mu.Lock()
			w.told["COMPACTED"]++
			w.o.State, w.o.Token = true, nil
			w.mu.Unlock()
		default:
			return fmt.Errorf("watcher %d: %w", w.id, err)
		}
	}
	return nil
}

// watch is one watch; it ends when the watcher has had enough.
func (w *watcher) watch(ctx context.Context, c *client.Client) error {
	batches := 1 + w.r.IntN(400)
	for b, err := range c.Watch(ctx, &w.o) {
		if err != nil {
			return err
		}
		if err := w.take(&b); err != nil {
			return err
		}
		if batches--; batches <= 0 && w.o.Token != nil {
			return nil
		}
		if w.slow > 0 {
			select {
			case <-time.After(w.slow):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (w *watcher) take(b *client.WatchBatch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b.Resync || w.known == nil || w.o.State && !w.whole && len(b.Events) == 0 && b.Started {
		w.known, w.whole = map[string]uint64{}, false
	}
	if b.Resync {
		w.told["RESYNC"]++
		w.o.State, w.o.Token = true, nil
	}
	for i := range b.Events {
		if err := w.event(&b.Events[i]); err != nil {
			return err
		}
	}
	if w.whole {
		if err := w.groups(b); err != nil {
			return err
		}
	}
	w.whole = w.whole || b.Synced
	if b.Token != nil {
		w.o.State, w.o.Token = false, b.Token
	}
	return nil
}

// event holds a change against what is known of its key.
func (w *watcher) event(e *client.Event) error {
	w.told[e.Type.String()]++
	if !strings.HasPrefix(e.Key, w.o.Prefix) {
		return fmt.Errorf("told of %q", e.Key)
	}
	last := w.known[e.Key]
	switch {
	case e.Initial && last != 0:
		return fmt.Errorf("%q is there twice, with versions %d and %d", e.Key, last, e.Version)
	case e.Initial:
	case e.PrevVersion != last:
		return fmt.Errorf("%v %q to %d: version %d was before it, known is %d: something is missing, or comes twice", e.Type, e.Key, e.Version, e.PrevVersion, last)
	case e.Version <= last:
		return fmt.Errorf("%v %q to %d after %d", e.Type, e.Key, e.Version, last)
	case e.Created != (e.Type == client.EventPut && last == 0):
		return fmt.Errorf("%v %q to %d: created is %v, known was version %d", e.Type, e.Key, e.Version, e.Created, last)
	}
	if e.Type != client.EventPut {
		delete(w.known, e.Key)
		return nil
	}
	if !w.o.KeysOnly && !e.ValueLeftOut && int64(len(e.Value)) != e.Size {
		return fmt.Errorf("%q at %d comes with %d of %d bytes", e.Key, e.Version, len(e.Value), e.Size)
	}
	w.known[e.Key] = e.Version
	return nil
}

// groups are written by transactions alone: after each batch all keys of one have the same version, or none is there.
func (w *watcher) groups(b *client.WatchBatch) error {
	for i := range b.Events {
		key := b.Events[i].Key
		group, _, ok := strings.Cut(key, "}/")
		if !ok || !strings.Contains(group, "-g") {
			continue
		}
		for m := range 4 {
			if other := fmt.Sprintf("%s}/%d", group, m); w.known[other] != w.known[key] {
				return fmt.Errorf("half of a transaction: %q has version %d, %q has %d", key, w.known[key], other, w.known[other])
			}
		}
	}
	return nil
}

// verify waits until the watcher knows what is there, while nobody writes.
func (w *watcher) verify(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		there := map[string]uint64{}
		for e, err := range w.clients[0].List(ctx, &client.ListOptions{Prefix: w.o.Prefix, KeysOnly: true, PageSize: 1000}) {
			if err != nil {
				return fmt.Errorf("watcher %d: list: %w", w.id, err)
			}
			there[e.Key] = e.Version
		}
		wrong := w.differs(there)
		if wrong == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("watcher %d (%+v), a minute after the last write: %s", w.id, w.o, wrong)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// foreign tells whether a key is written by others, also now.
func (w *watcher) foreign(key string) bool { return w.others != "" && strings.HasPrefix(key, w.others) }

func (w *watcher) differs(there map[string]uint64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.whole {
		return "the state has not been told"
	}
	for k, v := range there {
		if w.known[k] != v && !w.foreign(k) {
			return fmt.Sprintf("%q has version %d, known is %d", k, v, w.known[k])
		}
	}
	for k, v := range w.known {
		if there[k] == 0 && !w.foreign(k) {
			return fmt.Sprintf("%q is not there, known is %d", k, v)
		}
	}
	return ""
}
