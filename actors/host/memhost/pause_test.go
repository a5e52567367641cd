package memhost

import (
	"slices"
	"testing"
	"time"

	"kvstore/components/wal"
	"kvstore/components/wal/disklog"
)

// BenchmarkCheckpointPause is how long writers wait while checkpoints run: one shard of 1M keys on a disk, a caller that puts 64 keys
// at a time, a checkpoint every 8 MiB of log. It reports the 99.9th percentile and the longest of the calls that met a checkpoint, and of
// those that met none, which is what the disk and the machine do by themselves.
func BenchmarkCheckpointPause(b *testing.B) {
	const keys, batch = 1_000_000, 64
	engine, err := disklog.Open(b.TempDir(), disklog.Config{})
	if err != nil {
		b.Fatal(err)
	}
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		b.Fatal(err)
	}
	var cfg Config
	cfg.Actor.CheckpointBytes = 8 << 20
	h, err := New(store, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = h.Close(b.Context(), false)
		_ = engine.Close()
	})
	if err := h.Create(b.Context(), benchShard, nil); err != nil {
		b.Fatal(err)
	}
	p := newPutter(1000, 0)
	p.keys = keys
	for range keys / 1000 * 2 {
		p.run(b, h)
	}
	p = newPutter(batch, 0)
	p.keys = keys
	var with, without []time.Duration
	b.ResetTimer()
	for b.Loop() {
		before := h.checkpoints.busy()
		began := time.Now()
		p.run(b, h)
		took := time.Since(began)
		if before || h.checkpoints.busy() {
			with = append(with, took)
		} else {
			without = append(without, took)
		}
	}
	b.StopTimer()
	report := func(name string, d []time.Duration) {
		if len(d) == 0 {
			return
		}
		slices.Sort(d)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		b.ReportMetric(ms(d[len(d)/2]), name+"-p50-ms")
		b.ReportMetric(ms(d[len(d)*999/1000]), name+"-p99.9-ms")
		b.ReportMetric(ms(d[len(d)-1]), name+"-max-ms")
		b.ReportMetric(float64(len(d)), name+"-calls")
	}
	report("checkpoint", with)
	report("none", without)
}

// busy tells whether a checkpoint runs.
func (c *checkpoints) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}
