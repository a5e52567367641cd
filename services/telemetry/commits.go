package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"kvstore/actors/host"
	"kvstore/components/wal"
)

// commitOutcomes are the outcomes of an append, as labels.
var commitOutcomes = [...]string{wal.Written: "written", wal.NotWritten: "not_written", wal.Lost: "lost", wal.Unknown: "unknown"}

// commits counts the appends of all shards. Every one tells four distributions at once, so they share a lock, which costs half of what
// four of Prometheus's histograms do. It is their collector.
type commits struct {
	total *prometheus.Desc

	mu                             sync.Mutex
	counts                         [len(commitOutcomes)]uint64 // guarded by mu
	took, commands, bytes, waiting distribution                // guarded by mu
}

// distribution is a histogram without a lock.
type distribution struct {
	desc    *prometheus.Desc
	bounds  []float64 // rising
	buckets []uint64  // one more than bounds
	sum     float64
}

func newDistribution(name, help string, bounds []float64) distribution {
	return distribution{desc: prometheus.NewDesc(name, help, nil, nil), bounds: bounds, buckets: make([]uint64, len(bounds)+1)}
}

func (d *distribution) observe(v float64) {
	i := 0
	for i < len(d.bounds) && v > d.bounds[i] {
		i++
	}
	d.buckets[i]++
	d.sum += v
}

func (d *distribution) metric() prometheus.Metric {
	cumulative := make(map[float64]uint64, len(d.bounds))
	var n uint64
	for i, b := range d.bounds {
		n += d.buckets[i]
		cumulative[b] = n
	}
	return prometheus.MustNewConstHistogram(d.desc, n+d.buckets[len(d.bounds)], d.sum, cumulative)
}

func newCommits() *commits {
	return &commits{
		total:    prometheus.NewDesc("kvstore_commits_total", "Appends to the logs of shards, by outcome.", []string{"outcome"}, nil),
		took:     newDistribution("kvstore_commit_duration_seconds", "Time of an append that was written, until it is durable.", commitBuckets),
		commands: newDistribution("kvstore_commit_commands", "Commands that one append makes durable together.", widthBuckets),
		bytes:    newDistribution("kvstore_commit_bytes", "Bytes of one append.", sizeBuckets),
		waiting: newDistribution("kvstore_commit_waiting_commands", "Commands of a shard without an outcome when an append ends: its queue.",
			append([]float64{0}, widthBuckets...)),
	}
}

// count counts an append.
func (c *commits) count(of host.Committed) {
	took := of.Took.Seconds()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[of.Outcome]++
	if of.Outcome == wal.Written {
		c.took.observe(took)
		c.commands.observe(float64(of.Commands))
		c.bytes.observe(float64(of.Bytes))
		c.waiting.observe(float64(of.Waiting))
	}
}

func (c *commits) all() []*distribution {
	return []*distribution{&c.took, &c.commands, &c.bytes, &c.waiting}
}

// Describe implements prometheus.Collector.
func (c *commits) Describe(out chan<- *prometheus.Desc) {
	out <- c.total
	for _, d := range c.all() {
		out <- d.desc
	}
}

// Collect implements prometheus.Collector.
func (c *commits) Collect(out chan<- prometheus.Metric) {
	for _, m := range c.metrics() {
		out <- m
	}
}

// metrics are those of a moment. The lock is not held while somebody takes them.
func (c *commits) metrics() (all []prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for o, n := range c.counts {
		all = append(all, prometheus.MustNewConstMetric(c.total, prometheus.CounterValue, float64(n), commitOutcomes[o]))
	}
	for _, d := range c.all() {
		all = append(all, d.metric())
	}
	return all
}
