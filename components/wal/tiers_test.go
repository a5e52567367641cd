package wal

import (
	"math"
	"testing"
)

// tierModel predicts what checkpoints write when perCheckpoint updates hit n equally likely keys of itemBytes between two of
// them: the same planning as Checkpoint's, on sizes alone.
type tierModel struct {
	n, itemBytes float64
	runs         []*manifestRun
	updates      []float64 // behind each run
	written      float64   // bytes
	changed      float64   // distinct keys per checkpoint, summed
	mostRuns     int
}

func (m *tierModel) distinct(updates float64) float64 { return m.n * -math.Expm1(-updates/m.n) }

func (m *tierModel) checkpoint(updates float64) {
	m.changed += m.distinct(updates)
	if fullIsDue(m.runs, int64(m.n*m.itemBytes*2)) {
		bytes := m.n * m.itemBytes
		m.runs, m.updates = []*manifestRun{{Bytes: int64(bytes)}}, []float64{0}
		m.written += bytes
		return
	}
	k := mergeWith(m.runs, 16)
	sum := updates
	for _, u := range m.updates[len(m.updates)-k:] {
		sum += u
	}
	bytes := m.distinct(sum) * m.itemBytes
	m.runs = append(m.runs[:len(m.runs)-k], &manifestRun{Bytes: int64(bytes)})
	m.updates = append(m.updates[:len(m.updates)-k], sum)
	m.written += bytes
	m.mostRuns = max(m.mostRuns, len(m.runs))
}

// TestCheckpointBytesGrowSlowly: from 10k to 10M keys, what checkpoints write per distinct key that changed grows at most
// fourfold, for several amounts of change between two checkpoints.
func TestCheckpointBytesGrowSlowly(t *testing.T) {
	const itemBytes = 100
	for _, updates := range []float64{3_000, 10_000, 30_000, 100_000, 300_000} {
		var smallest float64
		for _, n := range []float64{10e3, 100e3, 1e6, 10e6} {
			m := &tierModel{n: n, itemBytes: itemBytes}
			m.checkpoint(0) // the state is there
			m.written, m.changed = 0, 0
			for m.changed < 4*n || m.changed < 4*updates {
				m.checkpoint(updates)
			}
			cost := m.written / m.changed / itemBytes
			if n == 10e3 {
				smallest = cost
			}
			t.Logf("%7.0f updates a checkpoint, %8.0f keys: each changed key is written %.2f times (%.2fx of 10k keys), up to %d runs", updates, n, cost, cost/smallest, m.mostRuns)
			if cost > 4*smallest {
				t.Errorf("%.0f updates, %.0f keys: %.2f writes of each changed key, %.2f with 10k keys", updates, n, cost, smallest)
			}
			if m.mostRuns > 100 {
				t.Errorf("%d runs", m.mostRuns)
			}
		}
	}
}

func TestRunsAreBounded(t *testing.T) {
	// the newest run is always below the tier of the one before it, so that tiers never fill up
	runs := []*manifestRun{{Bytes: 1 << 40}}
	for i := range 10_000 {
		size := int64(1 << 10)
		if i%2 == 0 {
			size = 1 << 20
		}
		k := mergeWith(runs, 64)
		for _, r := range runs[len(runs)-k:] {
			size += r.Bytes
		}
		runs = append(runs[:len(runs)-k], &manifestRun{Bytes: size})
		if len(runs) > maxRuns+1 {
			t.Fatalf("%d runs after %d checkpoints", len(runs), i+1)
		}
	}
}

func TestTiers(t *testing.T) {
	sized := func(kib ...int64) []*manifestRun {
		runs := []*manifestRun{{Bytes: 1 << 40}}
		for _, k := range kib {
			runs = append(runs, &manifestRun{Bytes: k << 10})
		}
		return runs
	}
	for _, c := range []struct {
		runs []*manifestRun
		want int
	}{
		{nil, 0},
		{sized(), 0},
		{sized(1, 1), 0},
		{sized(1, 1, 1), 3},                      // with the new one four of a tier
		{sized(5, 1, 1, 1), 3},                   // and one run of the next tier comes out
		{sized(5, 5, 1, 1, 1), 3},                // which makes three there
		{sized(5, 5, 5, 1, 1, 1), 6},             // or four
		{sized(5, 5, 5, 1, 1), 0},                // the newer ones must have come together first
		{sized(5, 5, 5), 3},                      // nothing is below
		{sized(20, 20, 20, 5, 5, 5, 1, 1, 1), 9}, // through all tiers
		{sized(1, 5), 0},                         // a small run behind a large one waits for its tier
		{sized(1, 1, 5), 3},                      // and goes along
	} {
		if got := mergeWith(c.runs, 4); got != c.want {
			t.Errorf("mergeWith(%v) = %d, want %d", c.runs, got, c.want)
		}
	}
}
