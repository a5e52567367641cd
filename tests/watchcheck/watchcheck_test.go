package watchcheck

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"kvstore/tests/badnet"
	"kvstore/tests/checked"
	"kvstore/tests/testenv"
)

// TestWatches breaks watches in all ways until KVSTORE_WATCH_EVENTS events were told and judged, on an embedded store, and on a cluster.
func TestWatches(t *testing.T) {
	bin := testenv.Bin(t, "watch-check")
	events, err := strconv.Atoi(os.Getenv("KVSTORE_WATCH_EVENTS"))
	if err != nil {
		t.Fatalf("KVSTORE_WATCH_EVENTS: %v", err)
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVSTORE_WATCH_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KVSTORE_WATCH_SEED=%d", seed)
	r := &report{events: events, seed: seed}
	t.Run("embedded", func(t *testing.T) { r.add(run(t, embedded(t, bin), bin, events, seed)) })
	t.Run("cluster", func(t *testing.T) { r.add(run(t, cluster(t, bin), bin, events, seed)) })
	if path := os.Getenv("KVSTORE_WATCH_REPORT"); path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(r.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// store is what is watched.
type store struct {
	name      string
	endpoints []string
	proxies   []*badnet.Proxy // before them
	rest      []*badnet.Proxy // before their REST doors
	blows     []blow
}

// blow is harm that is done; do returns once the store serves again.
type blow struct {
	name string
	do   func(ctx context.Context, r *rand.Rand) error
}

// embedded is one process on a disk.
func embedded(t *testing.T, bin string) *store {
	srv := testenv.New(t, bin, "-checkpoint-bytes", "4194304")
	srv.Start(t)
	srv.Ready(t.Context(), t)
	s := &store{name: "Embedded: one kvstored, 4 shards on disk", endpoints: []string{srv.Addr}}
	s.blows = []blow{{"kill -9 of the store", func(ctx context.Context, _ *rand.Rand) error {
		srv.Kill()
		srv.Start(t)
		srv.Ready(ctx, t)
		return nil
	}}}
	for i := range 2 {
		s.proxies = append(s.proxies, badnet.New(t, srv.Addr, badnet.Config{Seed: uint64(i)}))
	}
	s.rest = append(s.rest, badnet.New(t, srv.REST, badnet.Config{Seed: 2}))
	return s
}

// cluster is the processes of make up, with fewer shards.
func cluster(t *testing.T, bin string) *store {
	c := testenv.NewCluster(t, bin, testenv.ClusterConfig{Shards: 16})
	s := &store{name: "Cluster: 3 hosts of 16 shards and 2 frontends with daprd, placement, one Redis", endpoints: c.Endpoints()}
	crash := func(pick func(r *rand.Rand) *testenv.Process) func(context.Context, *rand.Rand) error {
		return func(ctx context.Context, r *rand.Rand) error {
			p := pick(r)
			starts := p.Starts()
			p.Crash()
			for p.Starts() == starts {
				if !wait(ctx, 10*time.Millisecond) {
					return context.Cause(ctx)
				}
			}
			c.Await(ctx, t)
			return nil
		}
	}
	s.blows = []blow{
		{"kill -9 of a host of shards", crash(func(r *rand.Rand) *testenv.Process { return c.Hosts[r.IntN(len(c.Hosts))].Process })},
		{"kill -9 of a frontend", crash(func(r *rand.Rand) *testenv.Process { return c.Frontends[r.IntN(len(c.Frontends))].Process })},
		{"kill -9 of a daprd of a host", crash(func(r *rand.Rand) *testenv.Process { return c.Hosts[r.IntN(len(c.Hosts))].Sidecar.Process })},
	}
	for i, e := range s.endpoints {
		s.proxies = append(s.proxies, badnet.New(t, e, badnet.Config{Seed: uint64(i)}))
	}
	for i, n := range c.Frontends {
		s.rest = append(s.rest, badnet.New(t, n.REST, badnet.Config{Seed: uint64(len(s.proxies) + i)}))
	}
	return s
}

// wait waits; it is false when ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

const compaction = "changes that a watcher has missed are gone"

// run breaks watches of a store until so many events were judged, each blow fell, and the client that is a process was killed.
func run(t *testing.T, s *store, bin string, events int, seed uint64) outcome {
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute+time.Duration(events)*4*time.Millisecond, fmt.Errorf("%d events take too long", events))
	defer cancel()
	r := rand.New(rand.NewPCG(seed, 0))
	o := outcome{store: s.name, done: map[string]int{}}
	var through []string
	for _, p := range s.proxies {
		through = append(through, p.Addr())
	}
	began := time.Now()
	l, err := checked.Dial(ctx, checked.Config{Endpoints: s.endpoints, WatchEndpoints: through, Watchers: checked.EveryKind(), Clients: 16, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	blows := append([]blow{{compaction, func(ctx context.Context, _ *rand.Rand) error { return l.Compact(ctx) }}}, s.blows...)

	p := newProcess(t, bin, through, l)
	outsiders := newOutsiders(t, s, l, seed)
	outside := make(chan error, 1+len(outsiders))
	var beside sync.WaitGroup
	defer beside.Wait()
	breaking, end := context.WithCancel(ctx)
	defer end()
	cuts := make(chan int, 1)
	beside.Go(func() { cuts <- s.cut(breaking, p, rand.New(rand.NewPCG(seed, 1))) })
	beside.Go(func() { tell(breaking, t, l) })

	fail := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s (KVSTORE_WATCH_SEED=%d): %v", what, seed, err)
		}
	}
	await := func(events int) {
		t.Helper()
		for l.Events() < events {
			fail("while clients work", l.Failed())
			select {
			case err := <-outside:
				fail("a watcher without package client", err)
			default:
			}
			if !wait(ctx, 50*time.Millisecond) {
				fail("waiting", context.Cause(ctx))
			}
		}
	}
	l.Work(ctx)
	beside.Go(func() { outside <- p.run(breaking) })
	for _, o := range outsiders {
		beside.Go(func() { outside <- o.run(breaking) })
	}
	step := min(max(1000, events/200), 5000)
	for {
		r.Shuffle(len(blows), func(i, j int) { blows[i], blows[j] = blows[j], blows[i] })
		for _, b := range blows {
			await(l.Events() + step)
			fail(b.name, b.do(ctx, r))
			o.done[b.name]++
		}
		await(l.Events() + step)
		fail("rest", l.Rest())
		fail("judgement", l.Verify(ctx))
		if o.verified++; l.Events() >= events && p.killed() > 0 {
			break
		}
		l.Work(ctx)
	}
	end()
	o.done["connections of watchers cut"] = <-cuts
	o.done["kill -9 of a watching client"] = p.killed()
	o.told, o.acks, o.took = l.Told(), l.Acks(), time.Since(began)
	t.Logf("\n%s", &o)
	for _, miss := range o.missing(events >= 1_000_000) {
		t.Error(miss)
	}
	return o
}

// cut cuts off watchers, and kills the client that is a process of its own, now and then, until ctx ends. It tells how many connections it has cut.
func (s *store) cut(ctx context.Context, p *process, r *rand.Rand) (cuts int) {
	for n := 0; wait(ctx, 100*time.Millisecond+time.Duration(r.Int64N(int64(1500*time.Millisecond)))); n++ {
		all := slices.Concat(s.proxies, s.rest)
		cuts += all[r.IntN(len(all))].Cut() / 2 // each is two here
		if n%3 == 2 {
			p.kill()
		}
	}
	return cuts
}

// tell tells how many events were told, each few seconds.
func tell(ctx context.Context, t *testing.T, l *checked.Load) {
	const pace = 3 * time.Second
	for before := 0; wait(ctx, pace); {
		n := l.Events()
		t.Logf("%s: %d events, %.0f/s", time.Now().Format("15:04:05"), n, float64(n-before)/pace.Seconds())
		before = n
	}
}
