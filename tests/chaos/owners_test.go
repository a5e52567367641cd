package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/actors/host/daprhost"
	"kvstore/client"
	"kvstore/components/kverr"
	"kvstore/tests/checked"
	"kvstore/tests/testenv"
)

// TestTwoOwners makes two hosts at once believe for a minute that a shard is theirs, in three ways side by side, each with a shard and a host of its
// own, and asks all of them all the time. At any time one writes; the others say MOVED; when the cause is gone all are as before, by
// themselves. Clients of the frontends go on with no error and lose nothing.
func TestTwoOwners(t *testing.T) {
	t.Parallel()
	d := newDispute(t, testenv.Bin(t, "chaos-ci"))
	load, err := checked.Dial(t.Context(), checked.Config{Endpoints: d.c.Endpoints(), Seed: uint64(time.Now().UnixNano()), Clients: 12, Pace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Close()
	load.Work(t.Context())

	d.begin()
	d.outlast(time.Minute)
	d.thaw()
	if err := d.verdict(); err != nil {
		t.Fatal(err)
	}
	d.tell()
	for _, w := range d.ways {
		w.losersSayMoved(t)
	}

	d.end()
	d.recovered()
	if err := d.verdict(); err != nil {
		t.Fatal(err)
	}
	d.rest()
	if err := errors.Join(load.Rest(), load.Verify(t.Context())); err != nil {
		t.Fatalf("clients of the frontends: %v", err)
	}
	t.Logf("clients of the frontends: %v", load.Seen())
}

// TestTwoOwnersUnfenced is TestTwoOwners, shorter, with a store whose log takes records from whomever (-tags nofence): the judge must see two
// writers. Otherwise TestTwoOwners could not fail.
func TestTwoOwnersUnfenced(t *testing.T) {
	t.Parallel()
	d := newDispute(t, filepath.Join(testenv.Bin(t, "chaos-ci"), "nofence"))
	d.begin()
	d.outlast(5 * time.Second)
	d.thaw()
	err := d.verdict()
	d.tell()
	if err == nil || !strings.Contains(err.Error(), "two writers at once") {
		t.Fatalf("without the fence nobody noticed that two hosts write: %v", err)
	}
	t.Logf("without the fence:\n%v", err)
}

// dispute is a cluster with a host for each way, and one that nothing happens to.
type dispute struct {
	t       *testing.T
	c       *testenv.Cluster
	owners  *owners
	apart   *testenv.Placement // another placement service, which knows one host
	toPlace []*testenv.Line    // from the daprd of each host to placement
	toData  []*testenv.Line    // from everybody else to the data plane of each host
	ways    []*way
	began   time.Time // of the dispute
	rest    func()    // nobody asks hosts directly any more
}

// way is how two hosts come to believe that a shard is theirs.
type way struct {
	name      string
	number    int // of the host that has the shard at first, from 0
	victim    *testenv.Node
	shardID   string
	claimants []*claimant
	from, to  time.Duration // of the dispute, since claimants began
	thawed    time.Duration // when its host went on, if that stood still
}

// The ways, by the number of the host.
const (
	stale  = iota // its daprd follows another placement service, whose table has no other host
	cut           // its daprd does not reach placement, nor anybody its data plane, and neither notices; it reaches Redis, and clients on its side reach it
	frozen        // it stands still, and its daprd with it, as on a machine that is paused
)

// newDispute starts the cluster, and clients on all sides: some ask each host directly, some the daprd of the host that will be apart.
func newDispute(t *testing.T, bin string) *dispute {
	t.Helper()
	d := &dispute{t: t}
	d.c = testenv.NewCluster(t, bin, testenv.ClusterConfig{
		Hosts: 4, Shards: 32,
		PlacementOf: func(_ int, address string) string {
			d.toPlace = append(d.toPlace, testenv.NewLine(t, address))
			return d.toPlace[len(d.toPlace)-1].Addr
		},
		DataOf: func(_ int, address string) string {
			d.toData = append(d.toData, testenv.NewLine(t, address))
			return d.toData[len(d.toData)-1].Addr
		},
	})
	d.apart = testenv.NewPlacement(t, nil)
	d.owners = newOwners(t.Context(), t, d.c)
	await(t.Context(), t, "every host has shards", func() bool {
		for _, h := range d.c.Hosts {
			if d.shardOf(h) < 0 {
				return false
			}
		}
		return true
	})
	d.owners.settled(t.Context(), t, nil) // hosts that came one after the other may still give shards to each other
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	d.rest = func() {
		cancel()
		asking.Wait()
	}
	t.Cleanup(d.rest)
	began := time.Now()
	for i, name := range []string{stale: "a table of its own", cut: "cut from placement and its peers", frozen: "frozen"} {
		victim := d.c.Hosts[i]
		n := d.shardOf(victim)
		w := &way{name: name, number: i, victim: victim, shardID: d.owners.shards[n]}
		tag := d.owners.keyOn(n, 0, "claim")
		for k, h := range d.c.Hosts {
			claimants := 1
			if k == i {
				claimants = 3 // so that some are about to write when it is frozen
			}
			for m := range claimants {
				cl := &claimant{host: k + 1, name: fmt.Sprintf("%d.%d", k+1, m), address: h.Data, shardID: w.shardID, tag: tag, began: began}
				w.claimants = append(w.claimants, cl)
				asking.Go(func() { cl.run(ctx, t) })
			}
		}
		for _, by := range []*testenv.Sidecar{victim.Sidecar, d.c.Frontends[0].Sidecar} {
			asking.Go(func() { locateOn(ctx, t, by, w.shardID) })
		}
		d.ways = append(d.ways, w)
	}
	for _, w := range d.ways {
		w.await(t, "its host writes the shard", func(all []told) bool {
			return slices.ContainsFunc(all, func(o told) bool { return o.host == w.number+1 && o.write && o.done() })
		})
	}
	return d
}

// shardOf is the number of a shard that a host holds; -1: it holds none.
func (d *dispute) shardOf(h *testenv.Node) int {
	for i, holder := range d.owners.all(d.t.Context(), d.t) {
		if holder.Address == h.Known && !holder.Yielded {
			return i
		}
	}
	return -1
}

// locateOn asks a daprd where a shard is, again and again: whoever comes anew is led by its table, and so has the shard opened there.
func locateOn(ctx context.Context, t *testing.T, by *testenv.Sidecar, shardID string) {
	link, err := daprhost.Dial(daprhost.SidecarConfig{Address: by.GRPC})
	if err != nil {
		t.Error(err)
		return
	}
	defer link.Close()
	l, err := daprhost.NewLocator(link, daprhost.LocatorConfig{Budget: time.Second})
	if err != nil {
		t.Error(err)
		return
	}
	for ctx.Err() == nil {
		_, _ = l.Locate(ctx, shardID)
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// begin parts the hosts, and waits until each shard is written by a second one.
func (d *dispute) begin() {
	t := d.t
	t.Helper()
	d.began = time.Now()
	for _, w := range d.ways {
		w.from = w.now()
	}
	d.toPlace[stale].LeadTo(d.apart.Addr)
	d.toPlace[cut].Cut()
	d.toData[cut].Cut()
	for _, p := range []*testenv.Process{d.ways[frozen].victim.Process, d.ways[frozen].victim.Sidecar.Process} {
		if err := p.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range d.ways {
		w.await(t, "another host writes the shard", func(all []told) bool {
			return slices.ContainsFunc(all, func(o told) bool { return o.host != w.number+1 && o.write && o.done() })
		})
		t.Logf("%s: another host wrote the shard of host %d %v after", w.name, w.number+1, time.Since(d.began).Round(time.Millisecond))
	}
}

// outlast lets the dispute last for so long.
func (d *dispute) outlast(window time.Duration) {
	select {
	case <-time.After(time.Until(d.began.Add(window))):
	case <-d.t.Context().Done():
	}
}

// thaw lets the host that stands still go on, while others have its shard, and waits until it has answered those who asked it before.
func (d *dispute) thaw() {
	d.t.Helper()
	w := d.ways[frozen]
	w.thawed = w.now()
	for _, p := range []*testenv.Process{w.victim.Process, w.victim.Sidecar.Process} {
		if err := p.Resume(); err != nil {
			d.t.Fatal(err)
		}
	}
	w.await(d.t, "the host that stood still answers", func(all []told) bool {
		n := 0
		for _, o := range all {
			if o.host == w.number+1 && o.end > w.thawed {
				n++
			}
		}
		return n >= 10
	})
	for _, w := range d.ways {
		w.to = w.now()
	}
}

// end takes the causes away.
func (d *dispute) end() {
	d.toPlace[stale].LeadTo(d.c.Placement.Addr)
	d.toPlace[cut].Mend()
	d.toData[cut].Mend()
}

// recovered waits until every host is routed to and has shards, and clients write all of them.
func (d *dispute) recovered() {
	t := d.t
	t.Helper()
	began := time.Now()
	d.c.Await(t.Context(), t)
	t.Logf("every host is routed to again %v after", time.Since(began).Round(time.Millisecond))
	await(t.Context(), t, "every host has shards", func() bool {
		return !slices.ContainsFunc(d.c.Hosts, func(h *testenv.Node) bool { return d.shardOf(h) < 0 })
	})
	t.Logf("every host has shards again %v after", time.Since(began).Round(time.Millisecond))
	cl, err := client.Dial(t.Context(), client.Config{Endpoints: d.c.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range d.owners.shards {
		if _, err := cl.Put(t.Context(), d.owners.keyOn(i, 0, "after"), []byte("all"), nil); err != nil {
			t.Errorf("shard %d: %v", i, err)
		}
	}
	t.Logf("every shard is written %v after", time.Since(began).Round(time.Millisecond))
}

// verdict tells which rules were broken: one writer at a time, no stale read, no log that two wrote at once, no acknowledged write that is not
// there.
func (d *dispute) verdict() error {
	var errs []error
	for _, w := range d.ways {
		wrong := judge(w.heard())
		epochs, err := chain(d.t.Context(), d.owners.store.Engine(), w.shardID)
		d.t.Logf("%s: log of shard %s, records by epoch: %v", w.name, w.shardID, epochs)
		if err := errors.Join(wrong, err); err != nil {
			errs = append(errs, fmt.Errorf("%s, shard %s: %w", w.name, w.shardID, err))
			continue
		}
		if err := d.there(w); err != nil {
			errs = append(errs, fmt.Errorf("%s, shard %s: %w", w.name, w.shardID, err))
		}
	}
	return errors.Join(errs...)
}

// there reads every acknowledged write of a shard back.
func (d *dispute) there(w *way) error {
	cl, err := client.Dial(d.t.Context(), client.Config{Endpoints: d.c.Endpoints()})
	if err != nil {
		return err
	}
	defer cl.Close()
	writes := slices.DeleteFunc(w.heard(), func(o told) bool { return !o.write || !o.done() })
	for some := range slices.Chunk(writes, 500) {
		var keys []string
		for _, o := range some {
			keys = append(keys, o.key)
		}
		got, err := cl.BatchGet(d.t.Context(), keys, nil)
		if err != nil {
			return err
		}
		for i, g := range got {
			if o := some[i]; g.Err != nil || string(g.Value) != o.key || g.Version != o.revision {
				return fmt.Errorf("lost: host %d acknowledged %s as revision %d; it reads %q, version %d, error %w", o.host, o.key, o.revision, g.Value, g.Version, g.Err)
			}
		}
	}
	d.t.Logf("%s: %d acknowledged writes are there", w.name, len(writes))
	return nil
}

// tell logs who had each shard, and what hosts said.
func (d *dispute) tell() {
	for _, w := range d.ways {
		all := w.heard()
		var b strings.Builder
		for _, te := range tenures(all) {
			fmt.Fprintf(&b, "host %d from %v to %v, %d writes; ", te.host, (te.from - w.from).Round(time.Millisecond), (te.to - w.from).Round(time.Millisecond), te.writes)
		}
		said := map[string]int{}
		for _, o := range all {
			if o.begin >= w.from {
				what := "done"
				if !o.done() {
					what = o.kind.String()
				}
				said[fmt.Sprintf("host %d %s", o.host, what)]++
			}
		}
		d.t.Logf("%s, shard of host %d: %ssince then: %v; sidecar started %d times", w.name, w.number+1, b.String(), said, w.victim.Sidecar.Starts())
	}
}

func (w *way) now() time.Duration { return time.Since(w.claimants[0].began) }

// heard is what all hosts said of the shard.
func (w *way) heard() (all []told) {
	for _, c := range w.claimants {
		all = append(all, c.heard()...)
	}
	return all
}

// await waits until what was heard is as cond wants it.
func (w *way) await(t *testing.T, what string, cond func([]told) bool) {
	t.Helper()
	await(t.Context(), t, w.name+", shard "+w.shardID+": "+what, func() bool { return cond(w.heard()) })
}

// wakeTime is how long a host that stood still may take to learn from its log what has become of its shard. Until then it finds that an append which was
// under way has had no answer for a minute, and refuses what comes behind it.
const wakeTime = time.Second

// losersSayMoved holds that whoever is asked for the shard while another host has it says that it has moved, and nothing else; and that the host
// which had it at first was asked.
func (w *way) losersSayMoved(t *testing.T) {
	t.Helper()
	all, asked := w.heard(), 0
	for _, te := range tenures(all) {
		for _, o := range all {
			if o.host == te.host || o.begin < max(te.from, w.from) || o.end > min(te.to, w.to) {
				continue
			}
			waking := w.number == frozen && o.host == frozen+1 && o.end < w.thawed+wakeTime
			switch {
			case o.kind == kverr.Moved, o.kind == kverr.Fenced, waking && o.kind == kverr.Unavailable:
			default:
				t.Errorf("%s: while host %d had the shard, at %v, host %d said %v after %v: %s", w.name, te.host, o.begin-w.from, o.host, o.kind, o.end-o.begin, o.why)
			}
			if o.host == w.number+1 {
				asked++
			}
		}
	}
	if asked == 0 && w.number != frozen { // that one says it after it has thawed, when the dispute is over
		t.Errorf("%s: host %d was never asked for the shard while another had it", w.name, w.number+1)
	}
}
