package hosttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/waltest/fault"
)

// watcher follows the shard at a host and keeps what it is told.
type watcher struct {
	c      *cluster
	mu     sync.Mutex
	told   []*fanout.Told // guarded by mu
	cancel context.CancelFunc
	ended  chan error
}

func (c *cluster) watch(h Host, w *fanout.Watch, start fanout.Start) *watcher {
	x := &watcher{c: c, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, x.cancel = context.WithCancel(c.t.Context())
	starts := make(chan []fanout.Start, 1)
	start.Shard = one
	starts <- []fanout.Start{start}
	go func() {
		x.ended <- h.Follow(ctx, w, starts, func(t *fanout.Told) error {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.told = append(x.told, t)
			return nil
		})
	}()
	synctest.Wait()
	return x
}

// end leaves.
func (x *watcher) end() {
	x.cancel()
	if err := <-x.ended; !errors.Is(err, context.Canceled) {
		x.c.t.Errorf("a watch that its watcher left ended with %v", err)
	}
}

// events are the changes told so far, as text.
func (x *watcher) events() (all []string) {
	for _, t := range x.all() {
		for _, e := range t.Events {
			all = append(all, fmt.Sprintf("%s=%s", e.Key, e.Value.Inline))
		}
	}
	return all
}

func (x *watcher) want(events ...string) {
	x.c.t.Helper()
	if got := x.events(); !slices.Equal(got, events) {
		x.c.t.Fatalf("told %q, want %q; in the end %+v", got, events, x.last())
	}
}

// last is what was told last.
func (x *watcher) last() *fanout.Told {
	x.c.t.Helper()
	all := x.all()
	if len(all) == 0 {
		x.c.t.Fatal("nothing was told")
	}
	return all[len(all)-1]
}

// all is everything that was told, once there is nothing to do.
func (x *watcher) all() []*fanout.Told {
	synctest.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.told)
}

func everything() *fanout.Watch { return &fanout.Watch{Namespace: ns, Prefix: true, Mode: fanout.All} }

// testWatch: changes are told once they are durable, to whom they concern; a shard that is watched does not sleep, and costs the engine nothing
// but to stay its owner's; when nobody watches it any more it sleeps.
func testWatch(c *cluster) {
	h := c.host(Options{IdleAfter: time.Minute})
	c.must(h, put("a", "0"))
	all := c.watch(h, everything(), fanout.Start{Now: true})
	state := c.watch(h, &fanout.Watch{Namespace: ns, Key: []byte("a")}, fanout.Start{From: fanout.Anew()})
	other := c.watch(h, &fanout.Watch{Namespace: ns + 1, Prefix: true}, fanout.Start{Now: true})
	if first := all.last(); first.Err != nil || first.Cursor.Revision != 1 || first.Epoch == 0 || len(first.Events) > 0 {
		c.t.Fatalf("a watch begins with %+v", first)
	}
	state.want("a=0")
	if !state.last().Synced {
		c.t.Fatalf("%+v: not synced", state.last())
	}
	stuck := c.fault.Add(fault.Rule{Verb: fault.Append, Times: -1, Freeze: true})
	p := c.start(h, put("a", "1"))[0]
	all.want()
	stuck.Thaw()
	stuck.Remove()
	if err := p.wait(); err != nil {
		c.t.Fatal(err)
	}
	c.must(h, put("b", "2"))
	all.want("a=1", "b=2")
	state.want("a=0", "a=1")
	other.want()

	activations := c.fault.Add(fault.Rule{Verb: fault.Fence, Nth: 1 << 30})
	time.Sleep(time.Hour)
	c.must(h, put("a", "3"))
	all.want("a=1", "b=2", "a=3")
	if n := activations.Seen(); n != 0 {
		c.t.Fatalf("slept %d times while it was watched", n)
	}
	all.end()
	state.end()
	other.end()
	time.Sleep(10 * time.Minute)
	c.must(h, put("a", "4"))
	if n := activations.Seen(); n != 1 {
		c.t.Fatalf("%d activations after nobody watched, want 1", n)
	}
}

// testWatchMove: a shard that changes hands is told as moved, with where its watcher is; where it is served then he misses nothing and
// is told nothing twice.
func testWatchMove(c *cluster) {
	hosts := []Host{c.host(Options{Address: "a", Reachable: true}), c.host(Options{Address: "b", Reachable: true})}
	at := fanout.Start{From: fanout.Cursor{}}
	var got, want []string
	for i := range 6 {
		h, next := hosts[i%2], hosts[(i+1)%2]
		x := c.watch(h, everything(), at)
		for j := range 3 {
			v := fmt.Sprint(i, ".", j)
			c.must(h, put("k", v))
			want = append(want, "k="+v)
		}
		v := fmt.Sprint(i, " elsewhere")
		c.must(next, put("k", v)) // it asks for the shard
		want = append(want, "k="+v)
		moved := x.last()
		if moved.Err == nil || moved.Err.Kind != kverr.Moved {
			c.t.Fatalf("the shard has moved, the watcher is told %+v", moved)
		}
		got = append(got, x.events()...)
		at.From = moved.Cursor
		x.end()
		time.Sleep(31 * time.Second) // peace
	}
	x := c.watch(hosts[0], everything(), at)
	got = append(got, x.events()...)
	if !slices.Equal(got, want) {
		c.t.Fatalf("told %q, want %q", got, want)
	}
}

// testWatchFenced: a host that was fenced without being told finds out by itself, and tells its watchers.
func testWatchFenced(c *cluster) {
	a, b := c.host(Options{Address: "a"}), c.host(Options{Address: "b"})
	c.must(a, put("k", "1"))
	x := c.watch(a, everything(), fanout.Start{Now: true})
	c.must(b, put("k", "2"))
	time.Sleep(2 * term)
	moved := x.last()
	if moved.Err == nil || moved.Err.Kind != kverr.Moved {
		c.t.Fatalf("the shard is another host's, the watcher is told %+v", moved)
	}
	y := c.watch(b, everything(), fanout.Start{From: moved.Cursor})
	y.want("k=2")
}

// testWatchPlace: a watcher whom nothing concerns is told how far he has come before the history has gone past it.
func testWatchPlace(c *cluster) {
	h := c.host(Options{Shard: shard.Config{HistoryChanges: 2000}})
	c.must(h, put("k", "")) // a runtime may have to be asked where the shard is before it serves it
	x := c.watch(h, &fanout.Watch{Namespace: ns, Key: []byte("quiet"), Mode: fanout.All}, fanout.Start{Now: true})
	rounds := 20
	if testing.Short() {
		rounds = 6 // under the race detector: other rounds are not other races
	}
	for i := range rounds * 1000 {
		if c.must(h, put("k", fmt.Sprint(i))); i%1000 == 0 {
			time.Sleep(6 * time.Second)
		}
	}
	time.Sleep(time.Minute)
	c.must(h, put("quiet", "not any more"))
	x.want("quiet=not any more")
	x.end()
	for _, t := range x.all() {
		if t.Err != nil || t.Resync {
			c.t.Fatalf("told %+v", t)
		}
	}
	if n := len(x.all()); n < rounds/2 || n > 3*rounds {
		c.t.Fatalf("told %d times of its place", n)
	}
}
