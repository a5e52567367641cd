package wal

import (
	"context"
	"errors"
	"fmt"

	"kvstore/components/btree"
	"kvstore/components/wal/driver"
)

const (
	// progressItems and progressRecords are how often progress is told.
	progressItems   = 1 << 15
	progressRecords = 1 << 10
	// readAhead is how many records are read and decoded before they are replayed.
	readAhead = 64
)

// Restore reads the state back into r: the checkpoint as one tree, then every record up to the fence, verified. It is called
// once, before the first Append. progress may be nil; it is called now and then from the calling goroutine. Errors are
// those of r, of the engine, ErrUnsupported, or DataLoss: then what is stored is not what was acknowledged.
func (l *Log) Restore(ctx context.Context, r Replayer, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	l.manifestMu.Lock()
	err := l.refresh(ctx)
	if err != nil {
		l.manifestMu.Unlock()
		return err
	}
	m := l.current.manifest // never written to after it was adopted
	l.manifestMu.Unlock()

	p := Progress{LastSeq: l.fenceSeq}
	for _, run := range m.Runs {
		p.CheckpointBytesTotal += run.Bytes
		p.CheckpointItemsTotal += run.Items
	}
	tree, err := l.loadRuns(ctx, m.Runs, &p, progress)
	if err != nil {
		return fmt.Errorf("restore shard %s: %w", l.shard, err)
	}
	base := tree.Clone()
	r.Restore(tree)
	if err := l.replay(ctx, r, m.CheckpointSeq, m.CheckpointEpoch, &p, progress); err != nil {
		return fmt.Errorf("restore shard %s: %w", l.shard, err)
	}
	progress(p)

	select {
	case <-l.checkpointing:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.base, l.baseSeq = base, m.CheckpointSeq
	l.checkpointing <- struct{}{}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appended = p.RecordBytes
	l.restored = true
	return l.over
}

// loadRuns merges the checkpoint's runs into one tree.
func (l *Log) loadRuns(ctx context.Context, runs []*manifestRun, p *Progress, progress func(Progress)) (*btree.Tree, error) {
	next, closeRuns := l.openRuns(ctx, runs, func(n int64) { p.CheckpointBytes += n })
	defer closeRuns()
	var b btree.Builder
	for {
		it, ok, err := next()
		if err != nil {
			return nil, err
		}
		if !ok {
			return b.Tree(), nil
		}
		if !it.removed {
			b.Add(it.key, it.value)
		}
		if p.CheckpointItems++; p.CheckpointItems%progressItems == 0 {
			progress(*p)
		}
	}
}

// openRuns returns the merge of runs, which are given oldest first, and what closes them.
func (l *Log) openRuns(ctx context.Context, runs []*manifestRun, onRead func(int64), newer ...cursor) (cursor, func()) {
	cursors := newer
	readers := make([]*runReader, 0, len(runs))
	for i := len(runs) - 1; i >= 0; i-- {
		r := openRun(ctx, l.engine, l.shard, runs[i], onRead)
		readers = append(readers, r)
		cursors = append(cursors, r.next)
	}
	return merge(cursors...), func() {
		for _, r := range readers {
			r.close()
		}
	}
}

// read is a record on its way from the log to the replay.
type read struct {
	record
	size int
	err  error
}

// replay gives r the records after the checkpoint up to the fence. Reading and decoding run ahead of it.
func (l *Log) replay(ctx context.Context, r Replayer, seq, epoch uint64, p *Progress, progress func(Progress)) error {
	ctx, cancel := context.WithCancel(ctx)
	records := make(chan read, readAhead)
	go func() {
		defer close(records)
		if err := l.readRecords(ctx, seq, epoch, records); err != nil {
			select {
			case records <- read{err: err}:
			case <-ctx.Done():
			}
		}
	}()
	defer func() {
		cancel()
		for range records { // until the reader has ended
		}
	}()
	for rec := range records {
		if rec.err != nil {
			return rec.err
		}
		if !rec.fence {
			if err := r.Replay(rec.body, rec.timeMS); err != nil {
				return fmt.Errorf("replay record %d: %w", rec.seq, err)
			}
		}
		p.RecordBytes += int64(rec.size)
		if p.Records++; p.Records%progressRecords == 0 {
			progress(*p)
		}
	}
	return ctx.Err()
}

// errAtFence ends reading.
var errAtFence = errors.New("at the fence")

// readRecords sends the records after seq up to the fence, each checked against the one before it: numbers without holes,
// epochs that ascend and name their predecessor, and begin with a fence.
func (l *Log) readRecords(ctx context.Context, seq, epoch uint64, records chan<- read) error {
	last := record{epoch: driver.Epoch{Counter: epoch}, seq: seq}
	known := false // last's writer is known
	err := l.engine.Read(ctx, l.shard, seq+1, func(f driver.Frame) error {
		rec, err := decodeRecord(l.shard, f.Data)
		if err != nil {
			return err
		}
		if fault := follows(last, known, rec, f); fault != "" {
			return damagedShard("read the log", l.shard, "record %d of epoch %d: %s", rec.seq, rec.epoch.Counter, fault)
		}
		if (rec.seq == l.fenceSeq) != (rec.epoch == l.epoch) {
			return damagedShard("read the log", l.shard, "record %d is of epoch %d by writer %x; our fence is record %d", rec.seq, rec.epoch.Counter, rec.epoch.Writer, l.fenceSeq)
		}
		last, known = rec, true
		last.body = nil
		select {
		case records <- read{record: rec, size: len(f.Data)}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if rec.seq == l.fenceSeq {
			return errAtFence
		}
		return nil
	})
	switch {
	case errors.Is(err, errAtFence):
		return nil
	case errors.Is(err, driver.ErrNotExist), errors.Is(err, driver.ErrCorrupt) && !isDamage(err):
		return damagedShard("read the log", l.shard, "the checkpoint covers record %d, the records after it up to %d are needed: %v", seq, l.fenceSeq, err)
	case err != nil:
		return err
	}
	return damagedShard("read the log", l.shard, "it ends after record %d, our fence is record %d", last.seq, l.fenceSeq)
}

// follows says why rec cannot come after last; empty when it can.
func follows(last record, known bool, rec record, f driver.Frame) string {
	switch {
	case rec.seq != f.Seq || rec.epoch.Counter != f.Epoch:
		return fmt.Sprintf("it was stored as record %d of epoch %d", f.Seq, f.Epoch)
	case rec.seq != last.seq+1:
		return fmt.Sprintf("it comes after record %d", last.seq)
	case rec.previousEpoch != last.epoch.Counter:
		return fmt.Sprintf("it follows epoch %d and says that it follows epoch %d", last.epoch.Counter, rec.previousEpoch)
	case rec.epoch.Counter < last.epoch.Counter:
		return fmt.Sprintf("it follows epoch %d", last.epoch.Counter)
	case rec.fence != (rec.epoch.Counter > last.epoch.Counter):
		return "a fence stands where an epoch begins, and only there"
	case known && !rec.fence && rec.epoch.Writer != last.epoch.Writer:
		return "another writer began that epoch"
	}
	return ""
}
