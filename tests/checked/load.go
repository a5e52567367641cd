package checked

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
)

// Config says who works, and against what. Endpoints are required.
type Config struct {
	// Endpoints are those of equal frontends. Clients begin with different ones and move on when one is down.
	Endpoints []string
	// Clients is how many work at once; every second one uses unary calls, the others the pipeline. Default 32.
	Clients int
	// Seed decides what they do, though not when.
	Seed uint64
	// Pace is the mean pause of a client between two operations. Default none.
	Pace time.Duration
	// RetryFor is how long a client repeats a call before it gives up, which is a failure. Default a minute.
	RetryFor time.Duration
	// Watchers are the kinds of watchers; default Kinds. Each is one watcher.
	Watchers []Kind
	// WatchEndpoints are where watchers go, when not where the others go: through proxies that cut them off. They share four clients then.
	WatchEndpoints []string
	// Others is what the keys of others begin with, who write to the same namespace meanwhile: watchers see them, and what they know of them is not
	// compared with what is there. Empty: there are none.
	Others string
}

// Load is clients that work, and check what they see. Its methods are called one at a time.
type Load struct {
	cfg      Config
	clients  []*client.Client
	owners   []*owner
	prompts  []*promptOwner
	sharing  []*registerClient
	watch    *watching
	shared   *shared
	acks     atomic.Int64
	tallies  []tally
	stop     chan struct{}
	failed   chan error // at most one of each worker
	workers  sync.WaitGroup
	outcomes []error // of workers that Failed has told of
}

// tally counts what was acknowledged, by verb. One goroutine owns it; acks is everybody's.
type tally struct {
	acks    *atomic.Int64
	seen    map[string]int
	journal *journal
	began   *time.Time // when what is acknowledged next was asked for, at the latest
}

// begins notes that something is asked for.
func (t tally) begins() { *t.began = time.Now() }

// changed notes a change that was acknowledged. Version 0: it was not told.
func (t tally) changed(kind client.EventType, key string, version uint64) {
	t.journal.done(kind, key, version, *t.began)
}

func (t tally) ack(verb string) {
	t.seen[verb]++
	t.acks.Add(1)
}

// Dial connects the clients. The store must answer.
func Dial(ctx context.Context, cfg Config) (*Load, error) {
	if cfg.Clients == 0 {
		cfg.Clients = 32
	}
	l := &Load{cfg: cfg, shared: newShared(time.Now(), 0)}
	if err := l.dial(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Load) dial(ctx context.Context) error {
	for i := range l.cfg.Clients {
		c, err := l.client(ctx, l.cfg.Endpoints, i, i/2%2 == 1)
		if err != nil {
			return err
		}
		l.clients = append(l.clients, c)
	}
	if err := createPromptNamespace(ctx, l.clients[0]); err != nil {
		return err
	}
	var err error
	if l.watch, err = l.newWatching(ctx); err != nil {
		return err
	}
	for i, c := range l.clients {
		l.owners = append(l.owners, newOwner(i, c, l.cfg.Seed, l.newTally(l.watch.keys)))
		if i%4 == 0 {
			l.prompts = append(l.prompts, newPromptOwner(i, c, l.cfg.Seed, l.newTally(l.watch.blocks)))
		}
		if i%3 == 0 {
			l.sharing = append(l.sharing, newRegisterClient(i, c, l.cfg.Seed, l.newTally(l.watch.keys)))
		}
	}
	return nil
}

// client is the i-th of some that begin with different endpoints.
func (l *Load) client(ctx context.Context, endpoints []string, i int, unary bool) (*client.Client, error) {
	n := i % max(1, len(endpoints))
	return client.Dial(ctx, client.Config{
		Endpoints: slices.Concat(endpoints[n:], endpoints[:n]), Unary: unary, BackoffMax: 100 * time.Millisecond, RetryFor: l.cfg.RetryFor,
	})
}

func (l *Load) newTally(j *journal) tally {
	t := tally{acks: &l.acks, seen: map[string]int{}, journal: j, began: new(time.Time)}
	l.tallies = append(l.tallies, t)
	return t
}

// Close ends watches and connections.
func (l *Load) Close() {
	if l.watch != nil {
		l.watch.close()
	}
	for _, c := range l.clients {
		_ = c.Close()
	}
}

// Work begins to work, until Rest. Watchers begin with the first Work, whose ctx is theirs, and go on until Close.
func (l *Load) Work(ctx context.Context) {
	l.watch.start(ctx)
	l.stop = make(chan struct{})
	l.failed = make(chan error, len(l.owners)+len(l.prompts)+len(l.sharing))
	l.outcomes = nil
	for _, w := range l.owners {
		l.run(ctx, fmt.Sprint("client ", w.id), w.r, w.step)
	}
	for _, w := range l.prompts {
		l.run(ctx, fmt.Sprint("prompt client ", w.id), w.r, w.step)
	}
	s := l.shared
	for _, w := range l.sharing {
		l.run(ctx, fmt.Sprint("register client ", w.id), w.r, func(ctx context.Context) error { return w.step(ctx, s) })
	}
}

// run repeats step until Rest; the one under way is finished first, however often it must be repeated.
func (l *Load) run(ctx context.Context, who string, r *rand.Rand, step func(context.Context) error) {
	l.workers.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			if err := step(ctx); err != nil {
				l.failed <- fmt.Errorf("%s: %w", who, err)
				return
			}
			if l.cfg.Pace > 0 {
				select {
				case <-l.stop:
					return
				case <-time.After(time.Duration(r.Int64N(int64(2 * l.cfg.Pace)))):
				}
			}
		}
	})
}

// Acks is how many operations were acknowledged so far.
func (l *Load) Acks() int64 { return l.acks.Load() }

// Failed tells what a client has found wrong; nil while that is nothing.
func (l *Load) Failed() error {
	select {
	case err := <-l.failed:
		l.outcomes = append(l.outcomes, err)
	case err := <-l.watch.wrong:
		l.outcomes = append(l.outcomes, err)
	default:
	}
	return errors.Join(l.outcomes...)
}

// Rest lets every client finish what it does, and tells what they have found wrong.
func (l *Load) Rest() error {
	close(l.stop)
	l.workers.Wait()
	close(l.failed)
	for err := range l.failed {
		l.outcomes = append(l.outcomes, err)
	}
	for {
		select {
		case err := <-l.watch.wrong:
			l.outcomes = append(l.outcomes, err)
			continue
		default:
		}
		return errors.Join(l.outcomes...)
	}
}

// Verify reads everything and judges it, while nobody works. Registers and counters are other ones afterwards.
func (l *Load) Verify(ctx context.Context) error {
	var mu sync.Mutex // guards errs
	var errs []error
	var all sync.WaitGroup
	check := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("verify: %w", err))
			}
		})
	}
	for _, w := range l.owners {
		check(w.verify)
	}
	for _, w := range l.prompts {
		check(w.verify)
	}
	check(l.watch.verify)
	check(func(ctx context.Context) error { return l.shared.verify(ctx, l.sharing[0]) })
	all.Wait()
	l.shared = newShared(l.shared.began, l.shared.generation+1)
	for _, w := range l.sharing {
		clear(w.seen)
	}
	return errors.Join(errs...)
}

// Seen is how many operations of each verb were acknowledged, and what watchers were told. Nobody works meanwhile.
func (l *Load) Seen() map[string]int {
	total := map[string]int{}
	for _, t := range l.tallies {
		for verb, n := range t.seen {
			total[verb] += n
		}
	}
	for _, told := range l.Told() {
		for kind, n := range told {
			total["watch "+kind] += n
		}
	}
	return total
}
