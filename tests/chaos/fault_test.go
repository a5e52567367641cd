package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"kvstore/components/wal"
	"kvstore/tests/checked"
	"kvstore/tests/testenv"
)

// fault is a kind of harm.
type fault struct {
	name   string
	role   role
	times  int           // in a full run
	frozen time.Duration // the process is stopped where it is for so long; 0: it is killed
	target time.Duration // how long writes to a shard that moves may be away, at p99; 0: not promised
}

// faults are those of the full run.
var faults = []fault{
	{name: "kill -9 of a shard host", role: host, times: 30, target: 2 * time.Second},
	{name: "kill -9 of a daprd of a shard host", role: sidecar, times: 30, target: 2 * time.Second},
	{name: "kill -9 of placement", role: placement, times: 10},
	{name: "kill -9 of a frontend", role: frontend, times: 10},
	{name: "SIGSTOP of a shard host for 20 s", role: host, times: 10, frozen: 20 * time.Second},
}

// blow is a fault and whom it meets.
type blow struct {
	fault  *fault
	victim *testenv.Process
}

// schedule shuffles tenths of ten parts of all faults. Each kind comes at least once. KVSTORE_CHAOS_ONLY is a part of the names of those that
// come; empty: all.
func schedule(c *testenv.Cluster, tenths int, r *rand.Rand) []blow {
	var all []blow
	for i := range faults {
		f := &faults[i]
		if !strings.Contains(f.name, os.Getenv("KVSTORE_CHAOS_ONLY")) {
			continue
		}
		ps := processes(c, f.role)
		for range max(1, f.times*tenths/10) {
			all = append(all, blow{f, ps[r.IntN(len(ps))]})
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// effect is what a blow did to writes.
type effect struct {
	blow
	moved  []time.Duration // how long each shard that changed its owner was away, since the blow
	stayed []time.Duration // and each of the others
	whole  time.Duration   // until everything was as before
}

// arena is a cluster with load on it.
type arena struct {
	t      *testing.T
	c      *testenv.Cluster
	owners *owners
	probes *probes
	load   *checked.Load
	seed   uint64
}

// newArena puts load on a cluster. The load works when newArena returns.
func newArena(ctx context.Context, t *testing.T, c *testenv.Cluster, seed uint64) *arena {
	t.Helper()
	a := &arena{t: t, c: c, owners: newOwners(ctx, t, c), seed: seed}
	var err error
	a.load, err = checked.Dial(ctx, checked.Config{Endpoints: c.Endpoints(), Seed: seed, Clients: 24, Pace: 20 * time.Millisecond, Others: "probe/"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.load.Close)
	a.probes = startProbes(ctx, t, c, a.owners)
	a.load.Work(ctx)
	return a
}

// strike does harm and waits until the cluster is whole again.
func (a *arena) strike(ctx context.Context, b blow) effect {
	t := a.t
	t.Helper()
	before := a.owners.all(ctx, t)
	starts := b.victim.Starts()
	at := a.probes.forget()
	if b.fault.frozen > 0 {
		if err := b.victim.Pause(); err != nil {
			t.Fatalf("SIGSTOP of %s: %v", b.victim.Name, err)
		}
		select {
		case <-time.After(b.fault.frozen):
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		if err := b.victim.Resume(); err != nil {
			t.Fatalf("SIGCONT of %s: %v", b.victim.Name, err)
		}
	} else {
		b.victim.Crash()
		await(ctx, t, b.victim.Name+" is started again", func() bool { return b.victim.Starts() > starts })
	}
	a.whole(ctx)
	after := a.settle(ctx)
	e := effect{blow: b, whole: time.Since(a.probes.began) - at}
	for i, pause := range a.probes.pauses(at) {
		if before[i].Epoch != after[i].Epoch {
			e.moved = append(e.moved, pause)
		} else {
			e.stayed = append(e.stayed, pause)
		}
	}
	if err := a.probes.err(); err != nil {
		t.Errorf("%s (%s): %v", b.fault.name, b.victim.Name, err)
	}
	return e
}

// whole waits until every process serves and every host has shards.
func (a *arena) whole(ctx context.Context) {
	a.t.Helper()
	a.c.Await(ctx, a.t)
	await(ctx, a.t, "every host has shards", func() bool {
		has := map[string]bool{}
		for _, h := range a.owners.all(ctx, a.t) {
			has[h.Address] = true
		}
		return len(has) == len(a.c.Hosts)
	})
}

// settle waits until no shard changes its owner any more and all are written, and returns who holds them.
func (a *arena) settle(ctx context.Context) []wal.Holder {
	a.t.Helper()
	return a.owners.settled(ctx, a.t, func() { a.probes.steady(ctx, a.t, 1) })
}

// check stops the load, judges all that it has seen, and lets it go on.
func (a *arena) check(ctx context.Context, after string) {
	a.t.Helper()
	if err := a.load.Rest(); err != nil {
		a.t.Fatalf("after %s (seed %d): %v", after, a.seed, err)
	}
	if err := a.load.Verify(ctx); err != nil {
		a.t.Fatalf("after %s (seed %d): %v", after, a.seed, err)
	}
	a.load.Work(ctx)
}

func (b blow) String() string { return fmt.Sprintf("%s (%s)", b.fault.name, b.victim.Name) }
