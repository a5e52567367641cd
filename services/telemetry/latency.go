package telemetry

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvstore/components/kverr"
)

// bounds are the upper bounds of latencies. Those of rpcBounds are among them.
var bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 75 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 7500 * time.Millisecond, 10 * time.Second,
}

// rpcBounds are those that OpenTelemetry advises for calls, in seconds.
var rpcBounds = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// latency is a histogram of times. Unlike Prometheus's own it counts many requests that took as long at once, as the operations of a batch
// do, and one histogram shows as metrics of two names.
type latency struct {
	sum     atomic.Int64 // nanoseconds
	buckets [len(bounds) + 1]atomic.Uint64
}

func (l *latency) observe(n int, took time.Duration) {
	i := 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	l.buckets[i].Add(uint64(n))
	l.sum.Add(int64(took) * int64(n))
}

// any tells whether something was observed.
func (l *latency) any() bool {
	for i := range l.buckets {
		if l.buckets[i].Load() > 0 {
			return true
		}
	}
	return false
}

// counts is what a latency held at a moment.
type counts struct {
	sum     time.Duration
	buckets [len(bounds) + 1]uint64
}

func (c *counts) add(l *latency) {
	c.sum += time.Duration(l.sum.Load())
	for i := range l.buckets {
		c.buckets[i] += l.buckets[i].Load()
	}
}

// metric shows the counts with those of bounds that are in only, in seconds; with all when it is nil.
func (c *counts) metric(d *prometheus.Desc, only []float64, labels ...string) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(bounds))
	var n uint64
	for i, b := range bounds {
		n += c.buckets[i]
		if only == nil {
			cumulative[b.Seconds()] = n
			continue
		}
		for _, o := range only {
			if o == b.Seconds() {
				cumulative[o] = n
			}
		}
	}
	n += c.buckets[len(bounds)]
	return prometheus.MustNewConstHistogram(d, n, c.sum.Seconds(), cumulative, labels...)
}

// outcomes are the latencies of one operation, apart for each outcome that there has been.
type outcomes struct {
	ok     latency
	failed [maxKinds]atomic.Pointer[latency]
}

// maxKinds bounds the kinds of errors that are told apart; a number beyond it, from a newer release, counts as unknown.
const maxKinds = 32

// Done implements frontend.Counter.
func (o *outcomes) Done(n int, took time.Duration) { o.ok.observe(n, took) }

// Failed implements frontend.Counter.
func (o *outcomes) Failed(n int, took time.Duration, kind kverr.Kind) {
	if kind >= maxKinds {
		kind = kverr.Unknown
	}
	l := o.failed[kind].Load()
	if l == nil { // once for each kind
		o.failed[kind].CompareAndSwap(nil, new(latency))
		l = o.failed[kind].Load()
	}
	l.observe(n, took)
}

// each calls fn for every outcome that there has been; kind is nothing when ok.
func (o *outcomes) each(fn func(ok bool, kind kverr.Kind, l *latency)) {
	if o.ok.any() {
		fn(true, 0, &o.ok)
	}
	for k := range o.failed {
		if l := o.failed[k].Load(); l != nil {
			fn(false, kverr.Kind(k), l)
		}
	}
}
