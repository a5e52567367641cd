package host

import (
	"slices"
	"testing"
	"time"
)

// TestPace: what may wait for a log, after some appends.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	type landing struct {
		bytes int
		took  time.Duration
	}
	fast := landing{300, 5 * ms}
	for _, test := range []struct {
		name  string
		after []landing
		limit int
		wait  time.Duration // for 1 MiB
	}{
		{"nothing is known", nil, 0, 0},
		{"the log keeps up", []landing{fast, fast, {20 << 10, 20 * ms}}, 0, 0},
		{"one append stalls", []landing{fast, fast, {300, 5 * time.Second}}, 0, 0},
		{"one large append", []landing{fast, {1 << 20, 1005 * ms}}, 0, 0},
		{"two large ones in a row: 1 MiB/s", []landing{fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}}, 1 << 19, 1005 * ms},
		{"both together count", []landing{fast, {3 << 20, 1005 * ms}, {1 << 20, 1005 * ms}}, 1 << 20, 505 * ms},
		{"a quarter of the target is not long", []landing{fast, {1 << 20, 129 * ms}, {1 << 20, 129 * ms}}, 0, 0},
		{"a log that is slow for little: 64 KiB always wait", []landing{fast, {1 << 10, 500 * ms}, {1 << 10, 500 * ms}}, 64 << 10, 0},
		{"what it takes for nothing is no sign", []landing{{300, 600 * ms}, {300, 600 * ms}, {300, 600 * ms}, {300, 600 * ms}, {100 << 10, 610 * ms}}, 0, 0},
		{"nor what is added to that", []landing{{300, 600 * ms}, {300, 605 * ms}, {300, 600 * ms}, {300, 601 * ms}, {1 << 20, 1600 * ms}, {1 << 20, 1600 * ms}}, 1258343, 1600 * ms},
		{"a stall among the small ones is forgotten", []landing{{300, 2 * time.Second}, fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}}, 1 << 19, 1005 * ms},
		{"a short one of little says nothing", []landing{fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}, fast}, 1 << 19, 1005 * ms},
		{"nor does it part two long ones", []landing{fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}, fast, {1 << 20, 2005 * ms}}, 349525, 1505 * ms},
		{"one of much lets half as much more wait", []landing{fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}, {1 << 20, 5 * ms}}, 3 << 18, 672 * ms},
		{"a log that is farther away for good", slices.Concat([]landing{fast}, slices.Repeat([]landing{{300, 300 * ms}}, 400)), 0, 0},
		{"it keeps up again", []landing{fast, {1 << 20, 1005 * ms}, {1 << 20, 1005 * ms}, fast, fast, fast, fast, fast, fast, fast, fast}, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pace{target: 500 * ms}
			for _, l := range test.after {
				p.landed(l.bytes, l.took)
			}
			if got := p.limit(); got != test.limit {
				t.Errorf("limit %d, want %d", got, test.limit)
			}
			if got := p.wait(1 << 20); test.wait != 0 && got.Round(ms) != test.wait {
				t.Errorf("1 MiB waits %v, want %v", got, test.wait)
			}
		})
	}
}

// TestPaceHolds: a log that is offered twice what it takes is never idle, and what waits for it is bounded by the target, whatever it takes for
// nothing; when less comes nothing is refused any more.
func TestPaceHolds(t *testing.T) {
	const target = 500 * time.Millisecond
	for _, log := range []struct {
		base time.Duration
		rate float64 // bytes a second
	}{{5 * time.Millisecond, 1 << 20}, {time.Millisecond, 50 << 20}, {400 * time.Millisecond, 4 << 20}} {
		p := pace{target: target}
		var now, ends time.Duration // of the append in flight
		flight, pending := 0.0, 0.0
		written, refused := 0.0, 0.0
		run := func(until time.Duration, offered float64) (longest time.Duration) {
			written, refused = 0, 0
			const step = time.Millisecond
			for ; now < until; now += step {
				came := offered * step.Seconds()
				if limit := p.limit(); limit > 0 && flight+pending >= float64(limit) {
					refused += came
				} else {
					pending += came
				}
				if now < ends {
					continue
				}
				if flight > 0 {
					took := log.base + time.Duration(flight/log.rate*float64(time.Second))
					p.landed(int(flight), took)
					written += flight
				}
				flight, pending = pending, 0
				took := log.base + time.Duration(flight/log.rate*float64(time.Second))
				ends = now + took
				longest = max(longest, took)
			}
			return longest
		}
		run(2*time.Second, log.rate/10)
		run(12*time.Second, 2*log.rate) // it learns
		longest := run(42*time.Second, 2*log.rate)
		best := log.rate * 30
		if log.base > target/2 {
			best *= 0.5 // most of the time goes by for nothing
		}
		if written < 0.9*best {
			t.Errorf("%+v: %.0f of %.0f bytes written", log, written, best)
		}
		if longest > 3*target/2+2*log.base {
			t.Errorf("%+v: an append took %v", log, longest)
		}
		run(46*time.Second, best/30/2) // what waits is written
		if run(60*time.Second, best/30/2); refused > 0 {
			t.Errorf("%+v: %.0f bytes refused at half of what it takes", log, refused)
		}
	}
}

// TestPaceShares: the same for shards that share a line: each sees what the others wait for as its own, and learns of it no other time than the least.
func TestPaceShares(t *testing.T) {
	const (
		target = 500 * time.Millisecond
		base   = 10 * time.Millisecond
		rate   = 1 << 20
		step   = time.Millisecond
	)
	type actor struct {
		pace            pace
		flight, pending float64
		began, ends     time.Duration
	}
	actors := make([]actor, 4)
	for i := range actors {
		actors[i].pace.target = target
	}
	var now, free time.Duration // when the line has carried what is on it
	run := func(until time.Duration, offered float64) (longest time.Duration, written float64) {
		for ; now < until; now += step {
			for i := range actors {
				a := &actors[i]
				if limit := a.pace.limit(); limit == 0 || a.flight+a.pending < float64(limit) {
					a.pending += offered / float64(len(actors)) * step.Seconds()
				}
				if a.flight > 0 && now >= a.ends {
					a.pace.landed(int(a.flight), a.ends-a.began)
					longest = max(longest, a.ends-a.began)
					written += a.flight
					a.flight = 0
				}
				if a.flight == 0 && a.pending >= 1 {
					a.flight, a.pending, a.began = a.pending, 0, now
					free = max(free, now) + time.Duration(a.flight/rate*float64(time.Second))
					a.ends = free + base
				}
			}
		}
		return longest, written
	}
	run(2*time.Second, rate/4)
	run(10*time.Second, 2*rate) // they learn
	longest, written := run(70*time.Second, 2*rate)
	if longest > 3*target/2 {
		t.Errorf("an append took %v", longest)
	}
	if best := 60.0 * rate; written < 0.95*best {
		t.Errorf("%.0f of %.0f bytes written", written, best)
	}
}
