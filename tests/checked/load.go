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
	watchers []*watcher
	leave    context.CancelFunc // of the watchers; nil before they began
	watching sync.WaitGroup
	wrong    chan error // at most one of each watcher
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
	acks *atomic.Int64
	seen map[string]int
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
	for i := range cfg.Clients {
		n := i % max(1, len(cfg.Endpoints))
		c, err := client.Dial(ctx, client.Config{
			Endpoints: slices.Concat(cfg.Endpoints[n:], cfg.Endpoints[:n]), Unary: i/2%2 == 1,
			BackoffMax: 100 * time.Millisecond, RetryFor: cfg.RetryFor,
		})
		if err != nil {
			l.Close()
			return nil, err
		}
		l.clients = append(l.clients, c)
		l.owners = append(l.owners, newOwner(i, c, cfg.Seed, l.newTally()))
		if i%4 == 0 {
			l.prompts = append(l.prompts, newPromptOwner(i, c, cfg.Seed, l.newTally()))
		}
		if i%3 == 0 {
			l.sharing = append(l.sharing, newRegisterClient(i, c, cfg.Seed, l.newTally()))
		}
	}
	l.watchers = newWatchers(l.clients, cfg.Seed, cfg.Others)
	l.wrong = make(chan error, len(l.watchers))
	if err := createPromptNamespace(ctx, l.clients[0]); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Load) newTally() tally {
	t := tally{acks: &l.acks, seen: map[string]int{}}
	l.tallies = append(l.tallies, t)
	return t
}

// Close ends watches and connections.
func (l *Load) Close() {
	if l.leave != nil {
		l.leave()
		l.watching.Wait()
	}
	for _, c := range l.clients {
		_ = c.Close()
	}
}

// Work begins to work, until Rest. Watchers begin with the first Work and go on until Close.
func (l *Load) Work(ctx context.Context) {
	if l.leave == nil {
		var watching context.Context
		watching, l.leave = context.WithCancel(ctx)
		for _, w := range l.watchers {
			l.watching.Go(func() {
				if err := w.run(watching); err != nil {
					l.wrong <- err
				}
			})
		}
	}
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
	case err := <-l.wrong:
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
		case err := <-l.wrong:
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
	for _, w := range l.watchers {
		check(w.verify)
	}
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
	for _, w := range l.watchers {
		w.mu.Lock()
		for kind, n := range w.told {
			total["watch "+kind] += n
		}
		w.mu.Unlock()
	}
	return total
}
