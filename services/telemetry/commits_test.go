package telemetry

import (
	"testing"
	"time"

	"kvstore/actors/host"
	"kvstore/components/wal"
)

// TestCommitsAreInTheRightBuckets: each outcome is counted, and only what was written has a time and a size; a bound is within.
func TestCommitsAreInTheRightBuckets(t *testing.T) {
	c := newCommits()
	c.count(host.Committed{Outcome: wal.Written, Took: time.Millisecond, Commands: 2, Bytes: 257, Waiting: 0})
	c.count(host.Committed{Outcome: wal.Written, Took: time.Hour, Commands: 20_000, Bytes: 1, Waiting: 1})
	for _, o := range []wal.Outcome{wal.NotWritten, wal.Lost, wal.Unknown} {
		c.count(host.Committed{Outcome: o, Took: time.Second, Commands: 1, Bytes: 1, Waiting: 1})
	}
	all := gathered(t, c)
	outcomes := map[string]float64{}
	for _, m := range all["kvstore_commits_total"].Metric {
		outcomes[m.Label[0].GetValue()] = m.Counter.GetValue()
	}
	if len(outcomes) != 4 || outcomes["written"] != 2 || outcomes["not_written"] != 1 || outcomes["lost"] != 1 || outcomes["unknown"] != 1 {
		t.Errorf("outcomes: %v", outcomes)
	}
	for name, want := range map[string]struct {
		sum   float64
		upTo  float64
		below uint64 // at most upTo
		less  uint64 // in the buckets before
	}{
		"kvstore_commit_duration_seconds": {3600.001, 0.001, 1, 0},
		"kvstore_commit_commands":         {20_002, 2, 1, 0},
		"kvstore_commit_bytes":            {258, 1024, 2, 1},
		"kvstore_commit_waiting_commands": {1, 0, 1, 0},
	} {
		h := all[name].Metric[0].Histogram
		if h.GetSampleCount() != 2 || h.GetSampleSum() != want.sum {
			t.Errorf("%s: %d of %v, want 2 of %v", name, h.GetSampleCount(), h.GetSampleSum(), want.sum)
		}
		var less uint64
		for _, b := range h.Bucket {
			if b.GetUpperBound() == want.upTo {
				if b.GetCumulativeCount() != want.below || less != want.less {
					t.Errorf("%s: %d up to %v, %d before; want %+v", name, b.GetCumulativeCount(), want.upTo, less, want)
				}
				break
			}
			less = b.GetCumulativeCount()
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.count(host.Committed{Commands: 1}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
