package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/tests/testenv"
)

// probePace is the pause between two writes of a probe. A pause that is measured may be longer than the true one by so much.
const probePace = 40 * time.Millisecond

// probes write a key of each shard over and over, and remember when that was acknowledged.
type probes struct {
	began   time.Time
	all     []*probe // by number of shard
	cancel  context.CancelFunc
	running sync.WaitGroup
	clients []*client.Client
}

// probe is that of one shard.
type probe struct {
	shardID string
	key     string
	c       *client.Client

	mu     sync.Mutex
	acks   []time.Duration // since began, in order, from the one before the last forget on; guarded by mu, as is failed
	failed error
}

// startProbes starts one for each shard, spread over the frontends. They stop with the test.
func startProbes(ctx context.Context, t *testing.T, c *testenv.Cluster, o *owners) *probes {
	t.Helper()
	p := &probes{began: time.Now()}
	ctx, p.cancel = context.WithCancel(ctx)
	t.Cleanup(p.stop)
	endpoints := c.Endpoints()
	for i := range endpoints {
		cl, err := client.Dial(ctx, client.Config{Endpoints: append(append([]string{}, endpoints[i:]...), endpoints[:i]...), BackoffMax: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		p.clients = append(p.clients, cl)
	}
	for i, id := range o.shards {
		pr := &probe{shardID: id, key: o.keyOn(i, 0, "probe"), c: p.clients[i%len(p.clients)]}
		p.all = append(p.all, pr)
		p.running.Go(func() { pr.run(ctx, p.began) })
	}
	p.steady(ctx, t, 3)
	return p
}

func (p *probes) stop() {
	p.cancel()
	p.running.Wait()
	for _, c := range p.clients {
		c.Close()
	}
}

func (p *probe) run(ctx context.Context, began time.Time) {
	version := uint64(0)
	for n := 0; ctx.Err() == nil; n++ {
		res, err := p.c.Put(ctx, p.key, fmt.Appendf(nil, "%s %d", p.shardID, n), nil)
		if ctx.Err() != nil {
			return
		}
		if err == nil && res.Version <= version {
			err = fmt.Errorf("version %d after %d", res.Version, version)
		}
		version = res.Version
		p.mu.Lock()
		p.acks = append(p.acks, time.Since(began))
		if p.failed == nil && err != nil {
			p.failed = fmt.Errorf("put %s (shard %s): %w", p.key, p.shardID, err)
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(probePace):
		}
	}
}

// forget drops what was remembered but for the last acknowledgement of each shard, and returns the time.
func (p *probes) forget() time.Duration {
	for _, pr := range p.all {
		pr.mu.Lock()
		if n := len(pr.acks); n > 1 {
			pr.acks = append(pr.acks[:0], pr.acks[n-1])
		}
		pr.mu.Unlock()
	}
	return time.Since(p.began)
}

// err is what probes were told that they should not have been: a client that repeats its calls sees no error.
func (p *probes) err() error {
	var errs []error
	for _, pr := range p.all {
		pr.mu.Lock()
		errs = append(errs, pr.failed)
		pr.mu.Unlock()
	}
	return errors.Join(errs...)
}

// steady waits until every shard has taken n writes more.
func (p *probes) steady(ctx context.Context, t testing.TB, n int) {
	t.Helper()
	goals := make([]int, len(p.all))
	for i, pr := range p.all {
		pr.mu.Lock()
		goals[i] = len(pr.acks) + n
		pr.mu.Unlock()
	}
	for i, pr := range p.all {
		await(ctx, t, "writes to shard "+pr.shardID, func() bool {
			pr.mu.Lock()
			defer pr.mu.Unlock()
			return len(pr.acks) >= goals[i]
		})
	}
}

// pauses is the longest time without an acknowledgement that each shard had since a moment.
func (p *probes) pauses(since time.Duration) []time.Duration {
	all := make([]time.Duration, len(p.all))
	for i, pr := range p.all {
		pr.mu.Lock()
		last := since
		for _, at := range pr.acks {
			if at > since {
				all[i] = max(all[i], at-last)
				last = at
			}
		}
		pr.mu.Unlock()
	}
	return all
}
