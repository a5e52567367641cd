package overload

import (
	"context"
	"os"
	"testing"
	"time"

	"kvstore/tests/badnet"
	"kvstore/tests/testenv"
)

// What is promised.
const (
	goodShare  = 0.9                   // of the best rate that goes on
	shedWithin = 10 * time.Millisecond // all but a hundredth of what is refused
	backWithin = 2 * time.Second       // until it is as fast as before, at half of what it can do
	mayCost    = 64 << 20              // bytes of memory, with a memory budget of as many
	lineDelay  = 5 * time.Millisecond
	lineRate   = 1 << 20 // bytes a second: what bounds the engine, whatever the machine is
)

// TestOverload: a server whose engine, a Redis behind a slow line, is offered twice what it can do goes on doing that, refuses the rest at once and at little
// cost, and is as fast as before soon after. KVSTORE_OVERLOAD is for how long, such as 1m.
func TestOverload(t *testing.T) {
	lasts, err := time.ParseDuration(os.Getenv("KVSTORE_OVERLOAD"))
	if err != nil {
		t.Skip("KVSTORE_OVERLOAD says for how long too much is offered: make overload sets it")
	}
	bin := testenv.Bin(t, "overload")
	redis := testenv.NewRedis(t)
	line := badnet.NewSlow(t, redis.Addr, badnet.SlowConfig{Delay: lineDelay, Rate: lineRate})
	srv := testenv.NewOnRedis(t, bin, &testenv.Redis{Addr: line.Addr()}, "-memory-budget", "67108864")
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

	most := make(chan int64)
	ended, end := context.WithCancel(ctx)
	go func() {
		peak := int64(0)
		for ended.Err() == nil {
			peak = max(peak, srv.Resident(t))
			pause(ended, 100*time.Millisecond)
		}
		most <- peak
	}()
	over := l.open(ctx, t, lasts, 2*best)
	end()
	peak := <-most
	rate := over.rate(time.Second, lasts)
	t.Logf("twice that offered for %v: %5.0f/s, %.2f of the best: %v", lasts, rate, rate/best, over)
	t.Logf("memory: %.1f MiB before, %.1f MiB at most", float64(before)/(1<<20), float64(peak)/(1<<20))
	back := l.open(ctx, t, 6*time.Second, best/2)
	t.Logf("half of it offered again: %v", back)

	if offered := float64(over.sent) / lasts.Seconds(); offered < 1.9*best {
		t.Errorf("the load was not what it should be: %.0f/s of %.0f/s were offered", offered, 2*best)
	}
	if rate < goodShare*best {
		t.Errorf("%.0f/s of %.0f/s went on, must be at least %.2f of it", rate, best, goodShare)
	}
	if len(over.shed) == 0 {
		t.Errorf("nothing was refused: the rest waits somewhere")
	}
	if p99, most := quantile(over.shed, 0.99), testenv.AtMost(shedWithin); p99 > most {
		t.Errorf("refusals took %v (p99), must take at most %v", p99, most)
	}
	if over.unknown > 0 {
		t.Errorf("%d refusals did not tell when to come again", over.unknown)
	}
	if len(over.down) > 0 || len(over.other) > 0 {
		t.Errorf("%d unavailable, others %v: too much is RESOURCE_EXHAUSTED and nothing else", len(over.down), over.other)
	}
	if cost := peak - before; cost > mayCost {
		t.Errorf("it cost %.1f MiB of memory, may cost %.1f", float64(cost)/(1<<20), float64(mayCost)/(1<<20))
	}
	slow := 3*quantile(calm.done, 0.99) + 20*time.Millisecond
	const window = 250 * time.Millisecond
	at := time.Duration(-1)
	for from := time.Duration(0); from < 5*time.Second; from += window {
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
