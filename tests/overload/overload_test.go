package overload

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"kvstore/tests/badnet"
	"kvstore/tests/testenv"
)

// What is promised.
const (
	goodShare  = 0.9                   // of the best rate that goes on
	busyShare  = 0.7                   // likewise, where other tests run at the same time
	shedWithin = 10 * time.Millisecond // all but a hundredth of what is refused
	backWithin = 2 * time.Second       // until it is as fast as before, at half of what it can do
	memoryHas  = 64 << 20              // bytes: the memory budget, which all that is alive must fit in
	processMay = 4 * memoryHas         // what the process may have, with what is to be collected
	lineDelay  = 5 * time.Millisecond
	lineRate   = 1 << 20 // bytes a second: what bounds the engine, whatever the machine is
)

// TestOverload: a server whose engine, a Redis behind a slow line, is offered twice what it can do goes on doing that, refuses the rest at once and at little
// cost, and is as fast as before soon after. KVSTORE_OVERLOAD is for how long, such as 1m.
func TestOverload(t *testing.T) {
	text := os.Getenv("KVSTORE_OVERLOAD")
	if text == "" {
		t.Skip("KVSTORE_OVERLOAD says for how long too much is offered: make overload sets it")
	}
	lasts, err := time.ParseDuration(text)
	if err != nil || lasts < 2*time.Second {
		t.Fatalf("KVSTORE_OVERLOAD is %q: it must be a time of at least 2s, such as 1m (%v)", text, err)
	}
	bin := testenv.Bin(t, "overload")
	redis := testenv.NewRedis(t)
	line := badnet.NewSlow(t, redis.Addr, badnet.SlowConfig{Delay: lineDelay, Rate: lineRate})
	srv := testenv.NewOnRedis(t, bin, &testenv.Redis{Addr: line.Addr()}, "-memory-budget", strconv.Itoa(memoryHas))
	srv.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), lasts+3*time.Minute)
	defer cancel()
	srv.Ready(ctx, t)
	l := connect(ctx, t, srv.Addr)

	best := 0.0
	for _, under := range []int{256, 1024} {
		o := l.closed(ctx, t, 3*time.Second, under)
		rate := o.rate(time.Second, 3*time.Second)
		t.Logf("%4d under way: %5.0f/s: %v", under, rate, o)
		best = max(best, rate)
	}
	l.settle(ctx, t)
	calm := l.open(ctx, t, 2*time.Second, best/2)
	t.Logf("half of that offered: %v", calm)
	before := srv.Resident(t)

	type memory struct{ process, alive int64 }
	most := make(chan memory)
	ended, end := context.WithCancel(ctx)
	go func() {
		var m memory
		for i := 0; ended.Err() == nil; i++ {
			m.process = max(m.process, srv.Resident(t))
			if i%50 == 25 { // each costs a collection
				m.alive = max(m.alive, srv.Heap(t))
			}
			pause(ended, 100*time.Millisecond)
		}
		most <- m
	}()
	base := make(chan time.Duration)
	go func() { base <- control(ended, t, srv.Addr) }()
	over := l.open(ctx, t, lasts, 2*best)
	end()
	idle := <-base
	had := <-most
	rate := over.rate(time.Second, lasts)
	t.Logf("twice that offered for %v: %5.0f/s, %.2f of the best: %v", lasts, rate, rate/best, over)
	t.Logf("calls that cost nothing took %v meanwhile (p99)", idle.Round(time.Microsecond))
	t.Logf("memory: the process had %.1f MiB before, and %.1f MiB at most; %.1f MiB at most were alive", float64(before)/(1<<20), float64(had.process)/(1<<20), float64(had.alive)/(1<<20))
	back := l.open(ctx, t, 5*time.Second, best/2)
	t.Logf("half of it offered again: %v", back)

	if offered := float64(over.sent) / lasts.Seconds(); offered < 1.9*best {
		t.Errorf("the load was not what it should be: %.0f/s of %.0f/s were offered", offered, 2*best)
	}
	share := goodShare
	if testenv.AtMost(1) > 1 {
		share = busyShare
	}
	if rate < share*best {
		t.Errorf("%.0f/s of %.0f/s went on, must be at least %.2f of it", rate, best, share)
	}
	if len(over.shed) == 0 {
		t.Errorf("nothing was refused: the rest waits somewhere")
	}
	if p99, most := quantile(over.shed, 0.99), testenv.AtMost(shedWithin)+3*idle; p99 > most {
		t.Errorf("refusals took %v (p99), must take at most %v", p99, most)
	}
	if over.unknown > 0 && testenv.AtMost(1) == 1 { // likewise: of what was in an append without an answer nothing is known
		t.Errorf("%d refusals did not tell when to come again", over.unknown)
	}
	// A machine that is busy with other tests may hold an append up for longer than a host waits before it says that the engine does not answer.
	if len(over.down) > 0 && testenv.AtMost(1) == 1 || len(over.other) > 0 {
		t.Errorf("%d unavailable, others %v: too much is RESOURCE_EXHAUSTED and nothing else", len(over.down), over.other)
	}
	if had.alive > memoryHas || had.alive == 0 || had.process > processMay {
		t.Errorf("%d MiB were alive, may be %d; the process had %d MiB, may have %d", had.alive>>20, memoryHas>>20, had.process>>20, processMay>>20)
	}
	slow := 3*quantile(calm.done, 0.99) + 20*time.Millisecond
	const window = 250 * time.Millisecond
	at := time.Duration(-1)
	for from := time.Duration(0); from < 4500*time.Millisecond; from += window {
		done := during(back.done, from, from+window)
		if len(done) > 0 && quantile(done, 0.99) <= slow && len(during(back.shed, from, from+window)) == 0 {
			at = from
			break
		}
	}
	t.Logf("as before (p99 at most %v) %v after the load fell", slow.Round(time.Millisecond), at)
	if most := testenv.AtMost(backWithin); at < 0 || at > most {
		t.Errorf("it was not as fast as before within %v", most)
	}
}

// settle waits until all is answered.
func (l *load) settle(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, s := range l.streams {
		for s.outstanding() > 0 {
			select {
			case <-s.answers:
			case <-ctx.Done():
				t.Fatalf("%d operations are not answered", s.outstanding())
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
