package host_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// TestOrder: nothing is released or visible before the append is done, and at its release a change is visible.
func TestOrder(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	c := b.do(a, &command{op: add, name: "a", n: 3})
	b.waits(c)
	if n := number(a.Latest().Tree, "a"); n != 0 {
		t.Fatalf("visible before it is durable: %d", n)
	}
	b.engine.Drain()
	b.left(0, c)
	if c.value != 3 || c.seen != 3 {
		t.Fatalf("value %d, seen at release %d; both must be 3", c.value, c.seen)
	}
}

// TestGate: every kind of outcome waits for exactly what it depended on.
func TestGate(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	b.do(a, &command{op: add, name: "old", n: 5})
	b.engine.Drain()

	flying := b.do(a, &command{op: add, name: "a", n: 1})
	// While that append is in flight:
	hit := b.do(a, &command{op: get, name: "old"})
	miss := b.do(a, &command{op: get, name: "none"})
	failed := b.do(a, &command{op: addAbove, name: "old", n: 9})
	b.left(0, hit, miss, failed)
	if hit.value != 5 || miss.value != 0 || failed.ok {
		t.Fatalf("hit %d, miss %d, condition held: %v", hit.value, miss.value, failed.ok)
	}
	read := b.do(a, &command{op: get, name: "a"})
	condition := b.do(a, &command{op: addAbove, name: "a", n: 2})
	next := b.do(a, &command{op: add, name: "b", n: 1})
	readNext := b.do(a, &command{op: get, name: "b"})
	b.waits(flying, read, condition, next, readNext)

	b.engine.Drain() // completes the first append; it begins the second
	b.left(0, flying, read, condition)
	if read.value != 1 || condition.ok {
		t.Fatalf("read %d, condition held: %v", read.value, condition.ok)
	}
	b.waits(next, readNext)
	b.engine.Drain()
	b.left(0, next, readNext)
}

// TestGroupCommit: what gathers during an append is one record, and no append waits for more to gather.
func TestGroupCommit(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	seq := a.Latest().Seq
	first := b.do(a, &command{op: add, name: "a", n: 1})
	var rest []*command
	for range 100 {
		rest = append(rest, b.do(a, &command{op: add, name: "a", n: 1}))
	}
	b.engine.Drain()
	b.left(0, first)
	b.waits(rest...)
	if got := a.Latest().Seq - seq; got != 1 {
		t.Fatalf("%d records, want 1", got)
	}
	b.engine.Drain()
	b.left(0, rest...)
	if got := a.Latest().Seq - seq; got != 2 {
		t.Fatalf("%d records, want 2", got)
	}
	if n := number(a.Latest().Tree, "a"); n != 101 {
		t.Fatalf("a is %d, want 101", n)
	}
	if b.engine.Drain() != 0 {
		t.Fatal("an append without effects")
	}
}

// TestNotWritten: an append that is known to have written nothing rolls back in the same epoch; reads go on, writes come back.
func TestNotWritten(t *testing.T) {
	for _, test := range []struct {
		err  error
		kind kverr.Kind
	}{{driver.ErrNoSpace, kverr.NoSpace}, {driver.ErrRefused, kverr.Unavailable}} {
		t.Run(test.kind.String(), func(t *testing.T) {
			b := newBench(t, memlog.Config{})
			a := b.open()
			b.do(a, &command{op: add, name: "a", n: 5})
			b.engine.Drain()
			before := *a.Latest()

			full := b.faults.Add(fault.Rule{Verb: fault.Append, Times: -1, Err: test.err, Freeze: true})
			flying := b.do(a, &command{op: add, name: "a", n: 1})
			behind := b.do(a, &command{op: add, name: "a", n: 1})
			read := b.do(a, &command{op: get, name: "a"})
			full.Thaw()
			settle(b, a)
			b.left(test.kind, flying, behind, read)
			if why := a.ReadOnly(); why == nil || why.Kind != test.kind {
				t.Fatalf("ReadOnly: %v", why)
			}
			hit := b.do(a, &command{op: get, name: "a"})
			b.left(0, hit)
			if hit.value != 5 || *a.Latest() != before {
				t.Fatalf("a is %d after the roll back, want 5", hit.value)
			}
			epoch := a.Log().Epoch()

			b.clock.advance(host.HeldFor)
			if a.ReadOnly() == nil {
				t.Fatal("the refusal is forgotten too early")
			}
			b.clock.advance(time.Second)
			if why := a.ReadOnly(); why != nil {
				t.Fatalf("after HeldFor without a write: ReadOnly: %v", why)
			}
			still := b.do(a, &command{op: add, name: "a", n: 1})
			settle(b, a)
			b.left(test.kind, still)
			if why := a.ReadOnly(); why == nil || why.Kind != test.kind {
				t.Fatalf("a write that was refused again: ReadOnly: %v", why)
			}

			full.Remove()
			again := b.do(a, &command{op: add, name: "a", n: 1})
			settle(b, a)
			b.left(0, again)
			if again.value != 6 || a.ReadOnly() != nil || a.Err() != nil || a.Log().Epoch() != epoch {
				t.Fatalf("value %d, readonly %v, over %v", again.value, a.ReadOnly(), a.Err())
			}
			a2 := b.open()
			if n := number(a2.Latest().Tree, "a"); n != 6 {
				t.Fatalf("reopened: a is %d, want 6", n)
			}
		})
	}
}

// settle drains the engine until the actor has nothing in flight, however the fault engine hands completions over.
func settle(b *bench, a *host.Actor[*command]) {
	b.t.Helper()
	done := make(chan error, 1)
	go func() { done <- a.Flush(b.t.Context()) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				b.t.Fatal(err)
			}
			return
		default:
			b.engine.Drain()
		}
	}
}

// TestUnknown: an append whose outcome is unknown ends the epoch. What it carried is unknown, what came later was not applied, and the
// truth is what a new epoch finds.
func TestUnknown(t *testing.T) {
	for _, landed := range []bool{false, true} {
		b := newBench(t, memlog.Config{})
		var over []*kverr.Error
		b.hooks.Over = func(why *kverr.Error) { over = append(over, why) }
		a := b.open()
		b.do(a, &command{op: add, name: "a", n: 5})
		b.engine.Drain()

		lost := b.faults.Add(fault.Rule{Verb: fault.Append, Err: io.ErrUnexpectedEOF, After: landed, Freeze: true})
		flying := b.do(a, &command{op: add, name: "a", n: 1})
		read := b.do(a, &command{op: get, name: "a"})
		behind := b.do(a, &command{op: add, name: "b", n: 1})
		lost.Thaw()
		settle(b, a)
		b.left(kverr.OutcomeUnknown, flying, read)
		b.left(kverr.Unavailable, behind)
		if a.Err() == nil || len(over) != 1 {
			t.Fatalf("over: %v, told %d times", a.Err(), len(over))
		}
		late := &command{op: get, name: "a"}
		if err := a.Do(late); !errors.Is(err, host.ErrOver) {
			t.Fatalf("Do after the end: %v", err)
		}
		if _, err := a.Durable(t.Context()); !errors.Is(err, host.ErrOver) {
			t.Fatalf("Durable after the end: %v", err)
		}
		b.waits(late)
		if err := a.End(t.Context(), false); err != nil {
			t.Fatal(err)
		}

		a = b.open()
		want := int64(5)
		if landed {
			want = 6
		}
		if n := number(a.Latest().Tree, "a"); n != want {
			t.Fatalf("landed %v: a is %d, want %d", landed, n, want)
		}
		if n := number(a.Latest().Tree, "b"); n != 0 {
			t.Fatalf("b is %d, was told to be not applied", n)
		}
	}
}

// TestFenced: an owner that was fenced releases everything as moved and is over.
func TestFenced(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	b.do(a, &command{op: add, name: "a", n: 5})
	b.engine.Drain()
	b2 := b.open() // takes the shard over
	flying := b.do(a, &command{op: add, name: "a", n: 1})
	behind := b.do(a, &command{op: add, name: "a", n: 1})
	settle(b, a)
	b.left(kverr.Moved, flying, behind)
	if a.Err() == nil || a.Err().Kind != kverr.Moved {
		t.Fatalf("over: %v", a.Err())
	}
	c := b.do(b2, &command{op: add, name: "a", n: 1})
	b.engine.Drain()
	b.left(0, c)
	if c.value != 6 {
		t.Fatalf("a is %d, want 6", c.value)
	}
}

// TestAckAfter: a successor may append at once but says nothing before the earlier holder's lease is over; then everything
// leaves without another command.
func TestAckAfter(t *testing.T) {
	b := newBench(t, memlog.Config{Term: 10 * time.Second})
	b.open()
	a := b.open()
	write := b.do(a, &command{op: add, name: "a", n: 1})
	settleAppends(b)
	read := b.do(a, &command{op: get, name: "a"})
	b.waits(write, read)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Durable(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a linearizable read before AckAfter: %v", err)
	}
	b.clock.advance(9 * time.Second)
	b.waits(write, read)
	b.clock.advance(time.Second)
	await(t, write, read)
	b.left(0, write, read)
}

// TestLostBeforeAckAfter: an owner that ends before it may tell anything has durable writes of which nobody was told. They are
// there for the next owner, so they may not be called not applied.
func TestLostBeforeAckAfter(t *testing.T) {
	end := map[string]func(t *testing.T, b *bench, a *host.Actor[*command]){
		"end": func(t *testing.T, _ *bench, a *host.Actor[*command]) {
			if err := a.End(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		},
		"fenced": func(t *testing.T, b *bench, a *host.Actor[*command]) {
			b.open()
			if err := a.Confirm(t.Context()); !errors.Is(err, host.ErrOver) {
				t.Fatalf("Confirm: %v", err)
			}
		},
		"end in flight": func(t *testing.T, b *bench, a *host.Actor[*command]) {
			flying := b.do(a, &command{op: add, name: "a", n: 1})
			if err := a.End(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			settleAppends(b)
			b.left(kverr.OutcomeUnknown, flying)
		},
	}
	for name, end := range end {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, memlog.Config{Term: 10 * time.Second})
			b.open()
			a := b.open()
			write := b.do(a, &command{op: add, name: "a", n: 1})
			settleAppends(b)
			read := b.do(a, &command{op: get, name: "a"})
			b.waits(write, read)
			end(t, b, a)
			await(t, write, read) // a confirmation that finds the loss releases on its own goroutine
			b.left(kverr.OutcomeUnknown, write)
			b.left(kverr.Moved, read)
		})
	}
}

// settleAppends completes appends until none follows.
func settleAppends(b *bench) {
	for b.engine.Drain() > 0 {
	}
}

// await waits for commands that leave on other goroutines.
func await(t testing.TB, cs ...*command) {
	t.Helper()
	for _, c := range cs {
		deadline := time.Now().Add(10 * time.Second)
		for {
			if n, _ := c.state(); n > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was not released", c.name)
			}
		}
	}
}

// TestLease: inside the lease outcomes that change nothing leave at once and no engine is asked; outside they leave only after the
// epoch was confirmed, also when the engine takes longer than a term to answer.
func TestLease(t *testing.T) {
	b := newBench(t, memlog.Config{Term: 10 * time.Second})
	a := b.open()
	b.do(a, &command{op: add, name: "a", n: 5})
	b.engine.Drain()
	asked := b.faults.Add(fault.Rule{Verb: fault.Manifest, Nth: 1, Times: -1})
	hit := b.do(a, &command{op: get, name: "a"})
	b.left(0, hit)
	if _, err := a.Durable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if asked.Hits() != 0 {
		t.Fatalf("the engine was asked %d times inside the lease", asked.Hits())
	}
	asked.Remove()

	b.clock.advance(9 * time.Second) // 90 % of the term
	frozen := b.faults.Add(fault.Rule{Verb: fault.Manifest, Freeze: true})
	confirms := b.faults.Add(fault.Rule{Verb: fault.Manifest, Nth: 1 << 30})
	late := b.do(a, &command{op: get, name: "a"})
	<-frozen.Hit()
	b.waits(late)
	b.clock.advance(time.Minute) // the answer comes long after the lease that it gives
	frozen.Thaw()
	await(t, late)
	b.left(0, late)
	if n := confirms.Seen(); n != 1 {
		t.Fatalf("%d confirmations, want 1: it began after the command was stepped, so it is enough", n)
	}
	if _, err := a.Durable(t.Context()); err != nil { // confirms once more
		t.Fatal(err)
	}
}

// TestLeaseLost: a holder that cannot show that it owns the shard tells nothing and then stops.
func TestLeaseLost(t *testing.T) {
	b := newBench(t, memlog.Config{Term: 10 * time.Second})
	a := b.open()
	b.do(a, &command{op: add, name: "a", n: 5})
	b.engine.Drain()
	b.open() // somebody else
	hit := b.do(a, &command{op: get, name: "a"})
	b.left(0, hit) // inside the lease that is right: the other one acknowledges nothing yet
	b.clock.advance(9 * time.Second)
	late := b.do(a, &command{op: get, name: "a"})
	await(t, late)
	b.left(kverr.Moved, late)
	if _, err := a.Durable(t.Context()); !errors.Is(err, host.ErrOver) {
		t.Fatalf("Durable of a holder that was fenced: %v", err)
	}
}

// TestConfirmFails: an engine that does not answer makes reads unavailable, and nothing that was remembered is denied.
func TestConfirmFails(t *testing.T) {
	b := newBench(t, memlog.Config{Term: 10 * time.Second})
	a := b.open()
	b.clock.advance(10 * time.Second)
	down := b.faults.Add(fault.Rule{Verb: fault.Manifest, Times: -1, Err: io.ErrUnexpectedEOF})
	if _, err := a.Durable(t.Context()); err == nil || kverr.KindOf(err) != kverr.Unavailable {
		t.Fatalf("Durable: %v", err)
	}
	late := b.do(a, &command{op: get, name: "a"})
	await(t, late)
	b.left(kverr.OutcomeUnknown, late)
	down.Remove()
	if _, err := a.Durable(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestBounds: a body that is full makes commands queue in order; a queue that is full refuses them.
func TestBounds(t *testing.T) {
	b := newBench(t, memlog.Config{})
	b.cfg.MaxBody, b.cfg.MaxQueuedBytes, b.cfg.MaxCommands = 1024, 500, 1000
	a := b.open()
	flying := b.do(a, &command{op: add, name: "a", n: 1})
	var stepped []*command
	for range 1024/18 + 1 { // an effect of "a" takes 18 bytes
		stepped = append(stepped, b.do(a, &command{op: add, name: "a", n: 1, size: 100}))
	}
	var queued []*command
	for range 5 {
		queued = append(queued, b.do(a, &command{op: add, name: "a", n: 1, size: 100}))
	}
	refused := b.do(a, &command{op: add, name: "a", n: 1, size: 100})
	b.left(kverr.Overloaded, refused)
	b.waits(flying)
	b.waits(stepped...)
	b.waits(queued...)
	b.engine.Drain()
	b.left(0, flying)
	b.waits(stepped...)
	b.engine.Drain()
	b.left(0, stepped...)
	b.waits(queued...)
	b.engine.Drain()
	b.left(0, queued...)
	for i, c := range append(stepped, queued...) {
		if c.value != int64(i)+2 {
			t.Fatalf("command %d came to %d: not in order", i, c.value)
		}
	}

	// Bounded in number, too; the rest of a call is refused with the first, so that order is kept.
	var many []*command
	for range 1200 {
		many = append(many, &command{op: get, name: "a"})
	}
	b.do(a, &command{op: add, name: "a", n: 1})
	if err := a.Do(many...); err != nil {
		t.Fatal(err)
	}
	refusedFrom := 0
	for i, c := range many {
		if _, err := c.state(); err != nil && refusedFrom == 0 {
			refusedFrom = i
		} else if err == nil && refusedFrom != 0 {
			t.Fatalf("command %d passed after %d was refused", i, refusedFrom)
		}
	}
	if refusedFrom == 0 || refusedFrom > 1000 {
		t.Fatalf("refused from %d on, bound is 1000", refusedFrom)
	}
}

// TestStarved: at the memory budget commands that grow the state are refused, in the middle of others that pass.
func TestStarved(t *testing.T) {
	b := newBench(t, memlog.Config{})
	var bytes int64
	starved := true
	b.hooks.Grown = func(delta int64) { bytes += delta }
	b.hooks.Starved = func() bool { return starved }
	a := b.open()
	grow, shrink := &command{op: add, name: "a", n: 1, grow: true}, &command{op: add, name: "b", n: 1}
	if err := a.Do(grow, shrink); err != nil {
		t.Fatal(err)
	}
	b.engine.Drain()
	b.left(kverr.Exhausted, grow)
	b.left(0, shrink)
	if bytes != a.Latest().Tree.Bytes() || bytes == 0 {
		t.Fatalf("told of %d bytes, the tree has %d", bytes, a.Latest().Tree.Bytes())
	}
	starved = false
	b.do(a, grow2())
	b.engine.Drain()
	if err := a.End(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if bytes != 0 {
		t.Fatalf("%d bytes are left after the end", bytes)
	}
}

func grow2() *command { return &command{op: add, name: "cc", n: 1, grow: true} }

// TestWake: the runtime learns when the machine wants a tick, again after each, and a tick's effects are durable like others.
func TestWake(t *testing.T) {
	b := newBench(t, memlog.Config{})
	var wish int64
	b.hooks.Wake = func(ms int64) { wish = ms }
	a := b.open()
	at := b.clock.now.UnixMilli() + 5000
	b.do(a, &command{op: add, name: "a", n: 7})
	b.do(a, &command{op: expireAt, name: "a", n: at})
	b.do(a, &command{op: expireAt, name: "b", n: at + 1000})
	settleAppends(b)
	if wish != at {
		t.Fatalf("wish %d, want %d", wish, at)
	}
	wish = 0
	a.Tick() // too early: nothing happens, and the wish, which the runtime has forgotten, is told again
	if wish != at || number(a.Latest().Tree, "a") != 7 {
		t.Fatalf("wish %d, a %d", wish, number(a.Latest().Tree, "a"))
	}
	b.clock.advance(5 * time.Second)
	a.Tick()
	if n := number(a.Latest().Tree, "a"); n != 7 {
		t.Fatal("gone before its record is durable")
	}
	settleAppends(b)
	if n := number(a.Latest().Tree, "a"); n != 0 || wish != at+1000 {
		t.Fatalf("a %d, wish %d; want 0 and %d", n, wish, at+1000)
	}
}

// TestDrain: Drain waits for what was taken and takes no more; Resume goes on.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, memlog.Config{})
		a := b.open()
		c := b.do(a, &command{op: add, name: "a", n: 1})
		done := make(chan error, 1)
		go func() { done <- a.Drain(t.Context()) }()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("drained with an append in flight")
		default:
		}
		if err := a.Do(&command{op: get, name: "a"}); !errors.Is(err, host.ErrOver) {
			t.Fatalf("Do while draining: %v", err)
		}
		b.engine.Drain()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.left(0, c)
		if !a.Resume() {
			t.Fatal("not resumed")
		}
		c = b.do(a, &command{op: add, name: "a", n: 1})
		b.engine.Drain()
		b.left(0, c)
	})
}

// TestEndInFlight: an end during an append lets it finish: what is durable is acknowledged, what was not sent is not.
func TestEndInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, memlog.Config{})
		a := b.open()
		flying := b.do(a, &command{op: add, name: "a", n: 1})
		behind := b.do(a, &command{op: add, name: "a", n: 1})
		done := make(chan error, 1)
		go func() { done <- a.End(t.Context(), true) }()
		synctest.Wait()
		b.waits(flying, behind)
		b.engine.Drain()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.left(0, flying)
		b.left(kverr.Moved, behind)
		if b.engine.Drain() != 0 {
			t.Fatal("an append after the end")
		}
	})
}

// TestCheckpoint: a checkpoint holds the durable state, not the machine's, and writes go on during it.
func TestCheckpoint(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	for range 10 {
		b.do(a, &command{op: add, name: "a", n: 1})
		b.engine.Drain()
	}
	frozen := b.faults.Add(fault.Rule{Verb: fault.Put, Freeze: true})
	type result struct {
		seq uint64
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := a.Checkpoint(t.Context())
		done <- result{s.Seq, err}
	}()
	<-frozen.Hit()
	seq := a.Latest().Seq
	c := b.do(a, &command{op: add, name: "a", n: 1})
	b.engine.Drain()
	b.left(0, c)
	frozen.Thaw()
	if r := <-done; r.err != nil || r.seq != seq {
		t.Fatalf("checkpoint at %d, %v; want %d", r.seq, r.err, seq)
	}
	if records, _ := a.Log().SinceCheckpoint(); records != 1 {
		t.Fatalf("%d records since the checkpoint, want 1", records)
	}
	a = b.open()
	if n := number(a.Latest().Tree, "a"); n != 11 {
		t.Fatalf("reopened: a is %d, want 11", n)
	}
}

// TestFencedInFlight: the holder learns of its successor from the manifest while an append is in flight, which lands before the
// successor's fence. What it wrote is there, so nobody may be told that it is not.
func TestFencedInFlight(t *testing.T) {
	b := newBench(t, memlog.Config{Term: 10 * time.Second})
	a := b.open()
	flying := b.do(a, &command{op: add, name: "a", n: 5})
	behind := b.do(a, &command{op: add, name: "a", n: 1})

	fence := b.faults.Add(fault.Rule{Verb: fault.Fence, Freeze: true})
	opened := make(chan *host.Actor[*command])
	go func() {
		a, err := host.Open(context.Background(), b.store, "s", newCounter(), b.cfg, b.hooks, host.OpenOptions{})
		if err != nil {
			t.Error(err)
		}
		opened <- a
	}()
	<-fence.Hit() // the manifest names the successor
	if err := a.Confirm(t.Context()); !errors.Is(err, host.ErrOver) {
		t.Fatalf("Confirm: %v", err)
	}
	if err := a.Do(&command{op: get, name: "a"}); !errors.Is(err, host.ErrOver) {
		t.Fatalf("Do: %v", err)
	}
	settleAppends(b)
	fence.Thaw()
	b2 := <-opened
	if n := number(b2.Latest().Tree, "a"); n != 5 {
		t.Fatalf("the successor has %d, want 5", n)
	}
	b.left(0, flying)
	b.left(kverr.Moved, behind)
}
