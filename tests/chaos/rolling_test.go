package chaos

import (
	"slices"
	"testing"
	"time"

	"kvstore/tests/checked"
	"kvstore/tests/testenv"
)

// cleanMove is how long a shard may be away, at p99, when its host gives it up in good order.
const cleanMove = 300 * time.Millisecond

// TestCleanMove tells a host to stop, and starts it again: its shards move away, and back, in less than cleanMove. That writes to shards which
// stay where they are have pauses, too, on a machine that is short of time, is allowed for, and a host that is disturbed all the same is
// followed by the next.
func TestCleanMove(t *testing.T) {
	c := newCluster(t, testenv.ClusterConfig{Shards: 24})
	a := &arena{t: t, c: c, owners: newOwners(t.Context(), t, c)}
	a.probes = startProbes(t.Context(), t, c, a.owners)
	a.settle(t.Context())
	clean := func(what string, h *testenv.Node, f func()) bool {
		moved, stayed := a.pausesOf(f)
		took, noise := percentile(moved, 99), percentile(stayed, 99)-probePace
		t.Logf("%s %s: %d shards moved, away for %v; the others for %v", h.Name, what, len(moved), inOrder(moved), inOrder(stayed))
		return len(moved) > 0 && took <= testenv.AtMost(cleanMove)+noise
	}
	met := false
	for _, h := range c.Hosts {
		away := clean("was told to stop", h, func() {
			if err := h.Stop(); err != nil {
				t.Errorf("%s did not end well: %v", h.Name, err)
			}
			a.probes.steady(t.Context(), t, 2)
		})
		back := clean("was there again", h, func() {
			h.Start(t)
			a.whole(t.Context())
			a.settle(t.Context())
		})
		if met = away && back; met {
			break
		}
	}
	if !met {
		t.Errorf("no host could leave and come back with its shards away for at most %v at p99", testenv.AtMost(cleanMove))
	}
	if err := a.probes.err(); err != nil {
		t.Errorf("a client that repeats its calls: %v", err)
	}
}

// TestRollingRestart stops every process of a cluster in good order and starts it again, one after the other, as an upgrade does. Clients that
// repeat their calls see no error and lose nothing.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testenv.ClusterConfig{Shards: 24})
	a := &arena{t: t, c: c, owners: newOwners(t.Context(), t, c)}
	load, err := checked.Dial(t.Context(), checked.Config{Endpoints: c.Endpoints(), Seed: uint64(time.Now().UnixNano()), Clients: 12, Pace: 50 * time.Millisecond, Others: "probe/"})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Close()
	a.probes = startProbes(t.Context(), t, c, a.owners)
	load.Work(t.Context())
	steps := []*testenv.Process{c.Placement.Process}
	for _, n := range append(c.Hosts, c.Frontends...) {
		steps = append(steps, n.Process, n.Sidecar.Process)
	}
	began := time.Now()
	for _, p := range steps {
		at := time.Now()
		moved, stayed := a.pausesOf(func() {
			if err := p.Stop(); err != nil {
				t.Errorf("%s did not end well: %v", p.Name, err)
			}
			p.Start(t)
			a.whole(t.Context())
			a.probes.steady(t.Context(), t, 1)
		})
		t.Logf("%s: %d shards moved, away for %s; the others for %s; whole after %v", p.Name, len(moved), spread(moved), spread(stayed), time.Since(at).Round(time.Millisecond))
	}
	took := time.Since(began)
	if err := load.Rest(); err != nil {
		t.Errorf("a client that repeats its calls: %v", err)
	}
	if err := load.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.probes.err(); err != nil {
		t.Errorf("a client that repeats its calls: %v", err)
	}
	t.Logf("%d processes were restarted in %v, under %d operations of checked clients", len(steps), took.Round(time.Millisecond), load.Acks())
}

// pausesOf measures how long writes are away while f runs: to shards that change their owner meanwhile, and to the others.
func (a *arena) pausesOf(f func()) (moved, stayed []time.Duration) {
	a.t.Helper()
	before := a.owners.all(a.t.Context(), a.t)
	at := a.probes.forget()
	f()
	after := a.owners.all(a.t.Context(), a.t)
	for i, pause := range a.probes.pauses(at) {
		if before[i].Epoch != after[i].Epoch {
			moved = append(moved, pause)
		} else {
			stayed = append(stayed, pause)
		}
	}
	return moved, stayed
}

// inOrder is times by length.
func inOrder(all []time.Duration) (texts []string) {
	for _, d := range slices.Sorted(slices.Values(all)) {
		texts = append(texts, short(d))
	}
	return texts
}
