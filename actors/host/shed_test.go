package host_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// retryAfter is when the command's error says to come again.
func retryAfter(t *testing.T, c *command) time.Duration {
	t.Helper()
	_, err := c.state()
	var e *kverr.Error
	if !errors.As(err, &e) {
		t.Fatalf("released with %v", err)
	}
	return time.Duration(e.RetryAfterMS) * time.Millisecond
}

// TestShed: what a log that does not keep up cannot write in MaxWait is refused at once; a caller who waits less is refused sooner; and once it
// keeps up nothing is.
func TestShed(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	// The log takes 100 KiB a second: an effect has 100 bytes, with the name.
	name := strings.Repeat("x", 100-17)
	write := func(n int) []*command {
		var all []*command
		for range n {
			all = append(all, b.do(a, &command{op: add, name: name, n: 1}))
		}
		return all
	}
	land := func(took time.Duration) {
		b.clock.advance(took)
		b.engine.Drain()
	}
	write(1)
	land(5 * time.Millisecond)
	write(1)
	write(3000) // behind it
	land(5 * time.Millisecond)
	write(3000)
	land(1505 * time.Millisecond) // 300,000 bytes at 200,000 a second
	land(1505 * time.Millisecond)

	write(1)
	waiting := write(990) // with that one 99,100 bytes
	b.waits(waiting...)
	hurried := b.do(a, &command{op: add, name: name, n: 1, till: b.clock.source().Now().Add(400 * time.Millisecond).UnixMilli()})
	b.left(kverr.Overloaded, hurried)
	b.waits(write(9)...)
	refused := write(1)[0]
	b.left(kverr.Overloaded, refused)
	if wait := retryAfter(t, refused); wait < 200*time.Millisecond || wait > 300*time.Millisecond {
		t.Errorf("told to come again after %v: half of what waits is written in 250 ms", wait)
	}
	land(5 * time.Millisecond)
	land(500 * time.Millisecond)
	b.left(0, waiting...)
	for range 20 {
		write(1)
		land(5 * time.Millisecond)
	}
	write(1)
	b.waits(write(5000)...)
}

// TestLanded: what an append held that is written does not count against whoever comes next, nor does how long it took, even before the next one is begun.
func TestLanded(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	name := strings.Repeat("x", 100-17)
	write := func(n int, then func()) {
		for i := range n {
			c := &command{op: add, name: name, n: 1}
			if i == 0 {
				c.then = then
			}
			b.do(a, c)
		}
	}
	land := func(took time.Duration) {
		b.clock.advance(took)
		b.engine.Drain()
	}
	for range 2 {
		write(1, nil)
		land(5 * time.Millisecond)
	}
	var next *command
	comes := func() { next = b.do(a, &command{op: add, name: name, n: 1}) }
	write(1, nil)
	write(3000, nil)
	land(5 * time.Millisecond)
	write(3000, nil)
	land(1505 * time.Millisecond)
	land(1505 * time.Millisecond) // 200 KB a second: 100 KB may wait
	write(1, nil)
	write(980, comes)
	land(5 * time.Millisecond)
	land(4 * time.Second) // longer than Patience
	if next == nil {
		t.Fatal("nobody came")
	}
	b.waits(next) // for its own append
	land(5 * time.Millisecond)
	b.left(0, next)
}

// TestLate: what nobody waits for any more is not begun, when it comes and when it queues; what came with it goes on.
func TestLate(t *testing.T) {
	b := newBench(t, memlog.Config{})
	b.cfg.MaxBody = 1 << 10
	a := b.open()
	now := b.clock.source().Now()
	late := &command{op: add, name: "a", n: 1, till: now.UnixMilli()}
	next := &command{op: add, name: "b", n: 1, till: now.Add(time.Second).UnixMilli()}
	if err := a.Do(late, next); err != nil {
		t.Fatal(err)
	}
	b.left(kverr.DeadlineExceeded, late)
	b.engine.Drain()
	b.left(0, next)

	b.do(a, &command{op: add, name: "first", n: 1})
	b.do(a, &command{op: add, name: strings.Repeat("f", 200), n: 1})
	for range 9 {
		b.do(a, &command{op: add, name: strings.Repeat("f", 200), n: 1})
	}
	queued := b.do(a, &command{op: add, name: "c", n: 1, size: 100, till: now.Add(time.Second).UnixMilli()})
	behind := b.do(a, &command{op: add, name: "d", n: 1, size: 100})
	b.waits(queued, behind)
	b.clock.advance(2 * time.Second)
	for b.engine.Drain() > 0 {
	}
	b.left(kverr.DeadlineExceeded, queued)
	b.left(0, behind)
	if n := number(a.Latest().Tree, "c"); n != 0 {
		t.Errorf("c is %d: it was begun", n)
	}
}

// TestQueueOfAll: the runtime's room for commands that queue is taken and given back, also when the actor ends.
func TestQueueOfAll(t *testing.T) {
	b := newBench(t, memlog.Config{})
	b.cfg.MaxBody = 1 << 10
	room := 1000
	b.hooks.Queue = func(bytes int) bool {
		if bytes > room {
			return false
		}
		room -= bytes
		return true
	}
	a := b.open()
	fill := func() []*command {
		var all []*command
		for range 20 {
			all = append(all, b.do(a, &command{op: add, name: strings.Repeat("f", 200), n: 1, size: 300}))
		}
		return all
	}
	all := fill()
	if room != 100 {
		t.Fatalf("room for %d bytes is left, want 100", room)
	}
	b.left(kverr.Overloaded, all[len(all)-1])
	for b.engine.Drain() > 0 {
	}
	if room != 1000 {
		t.Fatalf("room for %d bytes is left when nothing queues", room)
	}
	b.left(0, all[0])
	fill()
	ended := make(chan error, 1)
	go func() { ended <- a.End(t.Context(), false) }()
	for b.engine.Drain() > 0 || len(ended) == 0 {
		runtime.Gosched()
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if room != 1000 {
		t.Fatalf("room for %d bytes is left after the end", room)
	}
}

// TestStuck: while an append has no answer for longer than Patience, commands fail at once; when it has succeeded all is well again.
func TestStuck(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	flying := b.do(a, &command{op: add, name: "a", n: 1})
	b.clock.advance(host.DefaultPatience)
	behind := b.do(a, &command{op: add, name: "a", n: 1})
	b.waits(flying, behind)
	b.clock.advance(time.Millisecond)
	refused := b.do(a, &command{op: add, name: "a", n: 1})
	b.left(kverr.Unavailable, refused)
	if retryAfter(t, refused) == 0 {
		t.Error("not told when to come again")
	}
	b.waits(flying, behind)
	b.engine.Drain()
	b.left(0, flying)
	again := b.do(a, &command{op: add, name: "a", n: 1})
	for b.engine.Drain() > 0 {
	}
	b.left(0, behind, again)
	if again.value != 3 {
		t.Errorf("a is %d, want 3", again.value)
	}
}

// TestSilent: after an append that took longer than Patience and wrote nothing, whoever comes first waits for the next, and the others fail at once.
func TestSilent(t *testing.T) {
	b := newBench(t, memlog.Config{})
	a := b.open()
	refused := b.faults.Add(fault.Rule{Verb: fault.Append, Times: 1, Err: driver.ErrRefused, Freeze: true})
	first := b.do(a, &command{op: add, name: "a", n: 1})
	<-refused.Hit()
	b.clock.advance(host.DefaultPatience + time.Millisecond)
	refused.Thaw()
	settle(b, a)
	b.left(kverr.Unavailable, first)

	probe := b.do(a, &command{op: add, name: "a", n: 1})
	beside := b.do(a, &command{op: add, name: "a", n: 1})
	b.waits(probe)
	b.left(kverr.Unavailable, beside)
	b.engine.Drain()
	b.left(0, probe)
	last, behind := b.do(a, &command{op: add, name: "a", n: 1}), b.do(a, &command{op: add, name: "a", n: 1})
	b.waits(last, behind)
}

// TestDoubted: when the engine does not confirm the lease, one reader waits for the next try, and the others fail at once, until it does.
func TestDoubted(t *testing.T) {
	const term = time.Second
	b := newBench(t, memlog.Config{Term: term})
	a := b.open()
	b.clock.advance(2 * term) // no lease, and nobody before to wait for
	silent := b.faults.Add(fault.Rule{Verb: fault.Manifest, Freeze: true, Times: -1})
	first := make(chan error, 1)
	go func() {
		_, err := a.Durable(t.Context())
		first <- err
	}()
	<-silent.Hit()
	if _, err := a.Recent(t.Context()); err != nil {
		t.Errorf("a reader who need not know it all: %v", err)
	}
	b.clock.advance(host.DefaultPatience + time.Millisecond)
	if _, err := a.Durable(t.Context()); !errors.Is(err, kverr.Unavailable) {
		t.Errorf("a reader that comes after Patience: %v", err)
	}
	if _, err := a.Recent(t.Context()); !errors.Is(err, kverr.Unavailable) {
		t.Errorf("a reader who need not know it all, after that: %v", err)
	}
	silent.Remove()
	if err := <-first; err != nil {
		t.Errorf("the reader that waited: %v", err)
	}

	broken := b.faults.Add(fault.Rule{Verb: fault.Manifest, Err: errors.New("no answer"), Times: -1})
	b.clock.advance(2 * term)
	if _, err := a.Durable(t.Context()); !errors.Is(err, kverr.Unavailable) {
		t.Errorf("a reader whose confirmation fails: %v", err)
	}
	broken.Remove()
	silent = b.faults.Add(fault.Rule{Verb: fault.Manifest, Freeze: true, Times: -1})
	go func() {
		_, err := a.Durable(t.Context())
		first <- err
	}()
	<-silent.Hit()
	if _, err := a.Durable(t.Context()); !errors.Is(err, kverr.Unavailable) {
		t.Errorf("a reader beside the one that tries again: %v", err)
	}
	silent.Remove()
	if err := <-first; err != nil {
		t.Errorf("the reader that tried again: %v", err)
	}
	if _, err := a.Durable(t.Context()); err != nil {
		t.Errorf("a reader when all is well: %v", err)
	}
}
