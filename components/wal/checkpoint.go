package wal

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"kvstore/components/btree"
	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

type manifestRun = dataplanev1.Manifest_Run

// maxDoomed bounds the list of runs that could not be deleted yet; a later epoch sweeps what is beyond it.
const maxDoomed = 1024

// pendingCheckpoint is a checkpoint whose run is stored, but of which it is not known whether the manifest names it: the reply
// to the swap was lost, and the swap may even happen later. Nothing else is done to the manifest's runs before that is
// settled, by swapping the same once more.
type pendingCheckpoint struct {
	snap     Snapshot
	run      *manifestRun // nil when nothing had to be stored
	full     bool
	appended int64 // Log.appended when the checkpoint began
}

// Checkpoint stores snap so that the log up to it can be trimmed, at a cost that grows with what changed. Appends go on
// meanwhile. One runs at a time; a second call waits. After an error the checkpoint is the one before or this one, never
// something between, and the next call settles which.
//
// Each checkpoint writes one run: what changed since the one before, merged with as many of the newest runs as have gathered
// (DESIGN.md, tiers), or the whole state when the newer runs have grown as large as the oldest.
func (l *Log) Checkpoint(ctx context.Context, snap Snapshot) (CheckpointStats, error) {
	start := l.clock()
	select {
	case <-l.checkpointing:
	case <-ctx.Done():
		return CheckpointStats{}, ctx.Err()
	}
	defer func() { l.checkpointing <- struct{}{} }()
	stats, err := l.checkpoint(ctx, snap)
	stats.Took = l.clock().Sub(start)
	if err != nil {
		return stats, fmt.Errorf("checkpoint shard %s at record %d: %w", l.shard, snap.Seq, err)
	}
	return stats, nil
}

// checkpoint does the work of Checkpoint for the holder of the token.
func (l *Log) checkpoint(ctx context.Context, snap Snapshot) (stats CheckpointStats, err error) {
	l.mu.Lock()
	over, restored, durable, appended := l.over, l.restored, l.seq, l.appended
	l.mu.Unlock()
	if over != nil {
		return stats, over
	}
	if !restored || snap.Seq > durable || snap.Seq < l.fenceSeq {
		panic(fmt.Sprintf("wal: checkpoint of record %d: restored %v, fence at %d, durable up to %d", snap.Seq, restored, l.fenceSeq, durable))
	}
	if l.pending != nil {
		if err := l.publish(ctx); err != nil {
			return stats, err
		}
	}
	if snap.Seq <= l.baseSeq {
		return l.fill(stats), nil
	}
	if err := l.stillHas(ctx, snap.Seq); err != nil {
		return stats, err
	}
	run, stats, err := l.writeRun(ctx, snap)
	if err != nil {
		return stats, err
	}
	l.pending = &pendingCheckpoint{snap: snap, run: run, full: stats.Full, appended: appended}
	if err := l.publish(ctx); err != nil {
		return stats, err
	}
	stats.Cleanup = l.cleanUp(ctx)
	return l.fill(stats), nil
}

// stillHas requires that the log has the record that a checkpoint is of. An engine that can go back in time (a Redis that failed over)
// may have lost it since it was acknowledged; a checkpoint beyond the log's end would leave a shard that no epoch can follow on.
func (l *Log) stillHas(ctx context.Context, seq uint64) error {
	if l.engine.Term() == 0 {
		return nil
	}
	epoch, found, err := epochOf(ctx, l.engine, l.shard, seq)
	switch {
	case errors.Is(err, driver.ErrNotExist), err == nil && found && epoch > l.epoch.Counter:
		return l.end(fmt.Errorf("shard %s: %w", l.shard, ErrFenced)) // a successor trims
	case err != nil:
		return err
	case !found || epoch != l.epoch.Counter:
		return l.end(damagedShard("checkpoint the shard", l.shard, "record %d of epoch %d was durable and is not in the log any more: the store has lost acknowledged records", seq, l.epoch.Counter))
	}
	return nil
}

// publish makes the manifest name the pending checkpoint, which then is the base of the next one.
func (l *Log) publish(ctx context.Context) error {
	p := l.pending
	var dropped []string
	err := l.change(ctx, func(m *dataplanev1.Manifest) error {
		if m.CheckpointSeq == p.snap.Seq {
			return nil // it happened already
		}
		if m.CheckpointSeq != l.baseSeq {
			return l.end(damagedShard("checkpoint the shard", l.shard, "the manifest's checkpoint is at record %d, this owner left it at %d", m.CheckpointSeq, l.baseSeq))
		}
		kept := m.Runs
		if p.full {
			kept = nil
		} else if p.run != nil {
			kept = slices.DeleteFunc(m.Runs, func(old *manifestRun) bool { return old.AfterSeq >= p.run.AfterSeq })
		}
		dropped = replaced(l.current.manifest.Runs, len(kept))
		if p.run != nil {
			kept = append(kept, p.run)
		}
		m.Runs, m.CheckpointSeq, m.CheckpointEpoch = kept, p.snap.Seq, l.epoch.Counter
		return nil
	})
	if err != nil {
		return err
	}
	l.doom(dropped...)
	l.base, l.baseSeq, l.pending = p.snap.Tree, p.snap.Seq, nil
	l.mu.Lock()
	l.covered = p.appended
	l.mu.Unlock()
	return nil
}

// replaced returns the names of the runs after the first kept ones.
func replaced(runs []*manifestRun, kept int) []string {
	var names []string
	for _, run := range runs[kept:] {
		names = append(names, run.Name)
	}
	return names
}

// fill completes stats by what the manifest says now.
func (l *Log) fill(stats CheckpointStats) CheckpointStats {
	stats.Seq = l.baseSeq
	l.manifestMu.Lock()
	defer l.manifestMu.Unlock()
	if l.current != nil {
		stats.Runs = len(l.current.manifest.Runs)
		for _, run := range l.current.manifest.Runs {
			stats.TotalBytes += run.Bytes
		}
	}
	return stats
}

// writeRun stores the run that takes the checkpoint to snap; nil when nothing has to be stored.
func (l *Log) writeRun(ctx context.Context, snap Snapshot) (*manifestRun, CheckpointStats, error) {
	var stats CheckpointStats
	l.manifestMu.Lock()
	err := l.refresh(ctx)
	var runs []*manifestRun
	if err == nil {
		runs = l.current.manifest.Runs // never written to after it was adopted
	}
	l.manifestMu.Unlock()
	if err != nil {
		return nil, stats, err
	}
	afterSeq, base := l.baseSeq, l.base
	if stats.Full = fullIsDue(runs, snap.Tree.Bytes()); stats.Full {
		afterSeq, base = 0, nil
		stats.Merged = len(runs)
	}
	changes, stop := pull(snap.Tree.Diff(base))
	defer stop()
	first, ok, _ := changes()
	if !ok {
		return nil, stats, nil // nothing has changed, or there is nothing at all
	}
	next := counting(first, changes, &stats.Changed)
	if !stats.Full {
		if stats.Merged = mergeWith(runs, l.cfg.FanIn); stats.Merged > 0 {
			merging := runs[len(runs)-stats.Merged:]
			var closeRuns func()
			next, closeRuns = l.openRuns(ctx, merging, func(n int64) { stats.BytesRead += n }, next)
			defer closeRuns()
			afterSeq = merging[0].AfterSeq
		}
	}
	name := fmt.Sprintf("%s%x-%x", driver.CheckpointPrefix, l.epoch.Counter, l.lastRun.Add(1))
	w := newRunWriter(l.shard, name, afterSeq, snap.Seq, l.cfg.BlockBytes, resting(next))
	if err := l.engine.PutObject(ctx, l.shard, name, -1, w); err != nil {
		l.doom(name)
		return nil, stats, err
	}
	if !w.finished() {
		l.doom(name)
		return nil, stats, fmt.Errorf("the engine took %d bytes of object %s and left the rest", w.bytes, name)
	}
	stats.Items, stats.BytesWritten = w.items, w.bytes
	return &manifestRun{Name: name, AfterSeq: afterSeq, Seq: snap.Seq, Items: w.items, Bytes: w.bytes}, stats, nil
}

// doom notes runs to be deleted that no manifest names.
func (l *Log) doom(names ...string) {
	l.doomed = append(l.doomed, names...)
	if extra := len(l.doomed) - maxDoomed; extra > 0 {
		l.doomed = slices.Delete(l.doomed, 0, extra)
	}
}

// cleanUp trims the log and deletes replaced runs. What fails is tried again after the next checkpoint.
func (l *Log) cleanUp(ctx context.Context) error {
	var faults []error
	if err := l.engine.Trim(ctx, l.shard, l.epoch, l.releasedSeq.Load()+1); err != nil {
		if errors.Is(err, driver.ErrFenced) {
			_ = l.end(fmt.Errorf("trim the log of shard %s: %w", l.shard, err))
		}
		faults = append(faults, fmt.Errorf("trim the log: %w", err))
	}
	l.doomed = slices.DeleteFunc(l.doomed, func(name string) bool {
		err := l.engine.DeleteObject(ctx, l.shard, name)
		if err != nil {
			faults = append(faults, fmt.Errorf("delete a replaced run: %w", err))
		}
		return err == nil
	})
	return errors.Join(faults...)
}

// pull turns the differences of two trees into a cursor.
func pull(changes iter.Seq[btree.Change]) (cursor, func()) {
	next, stop := iter.Pull(changes)
	return func() (item, bool, error) {
		c, ok := next()
		return item{key: c.Key, value: c.Value, removed: c.Deleted}, ok, nil
	}, stop
}

// counting gives first and then what rest gives, and counts.
func counting(first item, rest cursor, n *int64) cursor {
	begun := false
	return func() (item, bool, error) {
		if !begun {
			begun = true
			*n++
			return first, true, nil
		}
		it, ok, err := rest()
		if ok {
			*n++
		}
		return it, ok, err
	}
}

// How a checkpoint leaves the processors to those who wait for a commit: it looks at the time every restItems items and, after
// restAfter, sleeps for restFor. A goroutine that never stops keeps its processor from looking for what waits at another, that of a collection say; each of the
// four or five turns that a commit takes could wait so for the scheduler's 10 ms (BenchmarkCheckpointPause). To yield is not enough: with nothing else
// in the processor's own queue the checkpoint is taken again at once.
const (
	restItems = 32
	restAfter = time.Millisecond
	restFor   = 20 * time.Microsecond
)

// resting gives what next gives, with rests.
func resting(next cursor) cursor {
	n, began := 0, time.Now()
	return func() (item, bool, error) {
		if n++; n%restItems == 0 && time.Since(began) > restAfter {
			time.Sleep(restFor)
			began = time.Now()
		}
		return next()
	}
}

// fullIsDue tells whether the whole state is to be written: there is no run yet, or the runs after the oldest have grown as
// large as it, or as large as the state is now (after many removals).
func fullIsDue(runs []*manifestRun, stateBytes int64) bool {
	if len(runs) == 0 {
		return true
	}
	var newer int64
	for _, run := range runs[1:] {
		newer += run.Bytes
	}
	return newer >= min(runs[0].Bytes, stateBytes)
}

// maxRuns bounds the runs after the oldest, whatever their sizes are: at it they become one.
const maxRuns = 128

// mergeWith returns how many of the newest runs the next run is to be merged with. Runs are in tiers by size, each tier fanIn
// times the one below. When the newest runs are fanIn-1 of one tier, they and the new run become one run of about the next
// tier, which in turn counts there; so each byte is written about once per tier. The oldest run is never among them: see
// fullIsDue.
func mergeWith(runs []*manifestRun, fanIn int) int {
	if len(runs) == 0 {
		return 0
	}
	runs = runs[1:]
	if len(runs) >= maxRuns {
		return len(runs)
	}
	n := 0
	for t := 0; n < len(runs); t++ {
		k := 0
		for n+k < len(runs) && tier(runs[len(runs)-1-n-k].Bytes, fanIn) <= t {
			k++
		}
		if k+1 >= fanIn {
			n += k
		} else if k > 0 {
			break
		}
	}
	return n
}

// tier is the power of fanIn in the size of a run, in KiB.
func tier(bytes int64, fanIn int) int {
	t := 0
	for size := bytes >> 10; size >= int64(fanIn); size /= int64(fanIn) {
		t++
	}
	return t
}
