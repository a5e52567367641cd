package hosttest

import (
	"context"
	"io"
	"testing/synctest"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest/fault"
)

// testDurable: at its release a write is visible, and it is there after a restart, with and without a checkpoint.
func testDurable(c *cluster) {
	h := c.host(Options{})
	for round, checkpoint := range []bool{false, true, false} {
		for i := range 50 {
			k := key(round*50 + i)
			c.must(h, put(k, k))
			c.is(h, k, k)
		}
		c.must(h, remove(key(round*50)))
		h = c.restart(h, Options{}, checkpoint)
		for i := range (round + 1) * 50 {
			want := key(i)
			if i%50 == 0 {
				want = ""
			}
			c.is(h, key(i), want)
		}
	}
}

// testGroupCommit: one append is in flight; what gathers meanwhile is one more, and nothing is released before its own.
func testGroupCommit(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("a", "1"))
	appends := c.fault.Add(fault.Rule{Verb: fault.Append, Nth: 1 << 30})
	frozen := c.fault.Add(fault.Rule{Verb: fault.Append, Freeze: true})
	first := c.start(h, put("a", "2"))[0]
	<-frozen.Hit()
	var rest []*pending
	for i := range 200 {
		rest = append(rest, c.start(h, put(key(i), "x"))...)
	}
	failed := put("a", "3")
	failed.Put.If = shard.Precondition{Check: shard.CheckAbsent}
	rest = append(rest, c.start(h, failed)...)
	synctest.Wait()
	for _, p := range append(rest, first) {
		if p.left() {
			c.t.Fatalf("released before its append: %v", p.err)
		}
	}
	c.is(h, "a", "1")
	frozen.Thaw()
	for i, p := range append(rest, first) {
		if err := p.wait(); i == 200 {
			c.kind(err, kverr.AlreadyExists)
		} else if err != nil {
			c.t.Fatal(err)
		}
	}
	if n := appends.Seen(); n != 2 {
		c.t.Fatalf("%d appends, want 2", n)
	}
}

// testClose: commands under way are finished, later ones are refused.
func testClose(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("a", "1"))
	frozen := c.fault.Add(fault.Rule{Verb: fault.Append, Freeze: true})
	p := c.start(h, put("a", "2"))[0]
	closed := make(chan error, 1)
	go func() { closed <- h.Close(context.Background(), true) }()
	synctest.Wait()
	select {
	case err := <-closed:
		c.t.Fatalf("closed with an append in flight: %v", err)
	default:
	}
	frozen.Thaw()
	if err := p.wait(); err != nil {
		c.t.Fatal(err)
	}
	if err := <-closed; err != nil {
		c.t.Fatal(err)
	}
	c.kind(c.do(h, put("a", "3")), kverr.Unavailable)
	_, err := h.View(c.t.Context(), one)
	c.kind(err, kverr.Unavailable)
	h = c.host(Options{})
	c.is(h, "a", "2")
}

// testUnknown: a write whose append got no answer is unknown; the shard goes on by itself and shows what became of it.
func testUnknown(c *cluster) {
	h := c.host(Options{})
	for i, landed := range []bool{false, true} {
		c.must(h, put("a", "old"))
		c.fault.Add(fault.Rule{Verb: fault.Append, Err: io.ErrUnexpectedEOF, After: landed})
		c.kind(c.do(h, put("a", "new")), kverr.OutcomeUnknown)
		c.is(h, "a", []string{"old", "new"}[i])
		c.must(h, put("b", "1"))
	}
}

// testNoSpace: without space reads go on and writes are refused as not applied; with space they are back at once.
func testNoSpace(c *cluster) {
	h := c.host(Options{})
	c.must(h, put("a", "1"))
	full := c.fault.Add(fault.Rule{Verb: fault.Append | fault.Put | fault.Swap | fault.Fence, Times: -1, Err: driver.ErrNoSpace})
	for range 3 {
		c.kind(c.do(h, put("a", "2")), kverr.NoSpace)
		c.kind(c.do(h, remove("a")), kverr.NoSpace)
		c.is(h, "a", "1")
	}
	_, err := h.PutValues(c.t.Context(), one, make([]byte, 5000))
	c.kind(err, kverr.NoSpace)
	full.Remove()
	c.must(h, put("a", "3"))
	c.is(h, "a", "3")
	h = c.restart(h, Options{}, false)
	c.is(h, "a", "3")
}

// testMemory: at the host's budget puts are refused, deletes pass and make room.
func testMemory(c *cluster) {
	h := c.host(Options{MemoryBudget: 1 << 20, Shard: shard.Config{HistoryBytes: 1 << 10}})
	value := string(make([]byte, 1000))
	n := 0
	for ; ; n++ {
		if err := c.do(h, put(key(n), value)); err != nil {
			c.kind(err, kverr.Exhausted)
			break
		}
		if n > 2000 {
			c.t.Fatal("2 MB fit into 1 MiB")
		}
	}
	if n < 500 {
		c.t.Fatalf("only %d kB fit into 1 MiB", n)
	}
	for i := range 100 {
		c.must(h, remove(key(i)))
	}
	c.must(h, put("again", value))
}

// testCheckpoint: a checkpoint that takes long stops no write, and a restart replays only what came after it.
func testCheckpoint(c *cluster) {
	h := c.host(Options{Actor: host.Config{CheckpointRecords: 20}})
	frozen := c.fault.Add(fault.Rule{Verb: fault.Put, Freeze: true})
	for i := range 20 {
		c.must(h, put(key(i), "x"))
	}
	<-frozen.Hit()
	for i := range 200 {
		c.must(h, put(key(i), "y"))
	}
	c.must(h, remove(key(7)))
	frozen.Thaw()
	synctest.Wait()
	if err := h.Close(c.t.Context(), false); err != nil {
		c.t.Fatal(err)
	}
	read := c.fault.Add(fault.Rule{Verb: fault.Read, Nth: 1 << 30})
	got := c.fault.Add(fault.Rule{Verb: fault.Get, Nth: 1 << 30})
	h = c.host(Options{})
	for i := range 200 {
		if i != 7 {
			c.is(h, key(i), "y")
		}
	}
	c.is(h, key(7), "")
	if got.Seen() == 0 || read.Seen() == 0 {
		c.t.Fatalf("opened with %d reads of checkpoints and %d of the log", got.Seen(), read.Seen())
	}
}

// testSleep: a shard that is not used costs nothing, and is there at the next use.
func testSleep(c *cluster) {
	h := c.host(Options{IdleAfter: time.Minute})
	c.must(h, put("a", "1"))
	activations := c.fault.Add(fault.Rule{Verb: fault.Fence, Nth: 1 << 30})
	for range 10 { // in use: it does not sleep
		time.Sleep(40 * time.Second)
		c.is(h, "a", "1")
	}
	if n := activations.Seen(); n != 0 {
		c.t.Fatalf("slept %d times while in use", n)
	}
	all := c.fault.Add(fault.Rule{Verb: fault.Any, Nth: 1 << 30})
	time.Sleep(3 * time.Minute)
	before := all.Seen()
	time.Sleep(24 * time.Hour)
	if n := all.Seen() - before; n != 0 {
		c.t.Fatalf("%d calls of the engine while asleep", n)
	}
	c.is(h, "a", "1")
	if n := activations.Seen(); n != 1 {
		c.t.Fatalf("%d activations, want 1", n)
	}
	c.must(h, put("a", "2"))
}

// testExpiry: what expires is gone once its record is durable, awake or asleep, and a shard that sleeps wakes for it.
func testExpiry(c *cluster) {
	h := c.host(Options{IdleAfter: time.Minute})
	short, long := put("short", "x"), put("long", "x")
	short.Put.TTLMS, long.Put.TTLMS = 10_000, 3_600_000
	c.must(h, short)
	c.must(h, long)
	time.Sleep(9 * time.Second)
	c.is(h, "short", "x")
	time.Sleep(2 * time.Second)
	synctest.Wait()
	c.is(h, "short", "")
	c.is(h, "long", "x")

	time.Sleep(30 * time.Minute) // falls asleep
	fences := c.fault.Add(fault.Rule{Verb: fault.Fence, Nth: 1 << 30})
	appends := c.fault.Add(fault.Rule{Verb: fault.Append, Nth: 1 << 30})
	time.Sleep(20 * time.Minute)
	if fences.Seen() != 0 {
		c.t.Fatal("woke too early")
	}
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	if fences.Seen() != 1 || appends.Seen() == 0 {
		c.t.Fatalf("%d activations and %d appends at the expiry; want 1 and some", fences.Seen(), appends.Seen())
	}
	c.is(h, "long", "")
}

// testNoShard: a shard that was not created is not found, however often it is asked for.
func testNoShard(c *cluster) {
	h := c.host(Options{})
	for range 3 {
		_, err := h.View(c.t.Context(), "none-0")
		c.kind(err, kverr.NotFound)
		cmd := put("a", "1")
		released := make(chan error, 1)
		cmd.Done = func(_ *shard.Command, err error) { released <- err }
		h.Do(c.t.Context(), "none-0", cmd)
		c.kind(<-released, kverr.NotFound)
	}
}
