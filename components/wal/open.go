package wal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// fenceTries bounds how often a fence is placed again after its reply was lost. Repeating it is safe (driver.Engine.Fence).
const fenceTries = 3

// Create makes a shard that has no manifest yet; ErrExists when there is one. meta is opaque and comes back from Log.Meta.
// Only whoever decides which shards exist calls it; activation never does.
func (s *Store) Create(ctx context.Context, shard string, meta []byte) error {
	m := &dataplanev1.Manifest{Format: manifestFormat, Shard: shard, Meta: meta}
	data, err := m.MarshalVT()
	if err != nil {
		return fmt.Errorf("create shard %s: %w", shard, err)
	}
	_, err = s.engine.SwapManifest(ctx, shard, "", data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, driver.ErrConflict):
		return fmt.Errorf("create shard %s: %w", shard, ErrExists)
	}
	if stored, _, readErr := s.engine.Manifest(ctx, shard); readErr == nil && bytes.Equal(stored, data) {
		return nil // the reply was lost
	}
	return fmt.Errorf("create shard %s: %w", shard, err)
}

// Remove removes a shard's manifest, log and objects for good. Nobody may have it open.
func (s *Store) Remove(ctx context.Context, shard string) error {
	if err := s.engine.RemoveShard(ctx, shard); err != nil {
		return fmt.Errorf("remove shard %s: %w", shard, err)
	}
	s.marks.forget(shard)
	return nil
}

// Holder reads who owns a shard now; driver.ErrNotExist when it was never created.
func (s *Store) Holder(ctx context.Context, shard string) (Holder, error) {
	current, err := readManifest(ctx, s.engine, shard)
	if err != nil {
		return Holder{}, err
	}
	return current.holder(), nil
}

// Open takes the shard over under a new epoch (D3): the holder before is asked to yield, the manifest names us, a fence
// in the log refuses the holder's appends from then on. The Log must be restored before its first append, and
// nothing may be acknowledged before AckAfter. driver.ErrNotExist when the shard was never created; ErrFenced when another
// was quicker; DataLoss when the log is behind what the manifest knows, or the store behind what is remembered of it.
func (s *Store) Open(ctx context.Context, shard string, opts OpenOptions) (*Log, error) {
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	mark := s.demand(shard, opts.Mark)
	before, err := readManifest(ctx, s.engine, shard)
	if err != nil {
		return nil, s.missing(shard, opts.Mark, err)
	}
	if s.engine.Term() > 0 && before.manifest.Epoch > 0 && !before.manifest.Yielded && opts.Yield != nil {
		asking, cancel := context.WithTimeout(ctx, s.cfg.YieldTimeout)
		err := opts.Yield(asking, before.holder())
		cancel()
		if err != nil {
			return nil, err
		}
		if before, err = readManifest(ctx, s.engine, shard); err != nil {
			return nil, s.missing(shard, opts.Mark, err)
		}
	}
	if err := s.check(ctx, shard, before.manifest, mark); err != nil {
		return nil, err
	}
	l, before, err := s.take(ctx, shard, before, mark, opts)
	if err != nil {
		return nil, err
	}
	if err := l.fence(ctx, before, mark); err != nil {
		return nil, err
	}
	if err := l.reread(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// take makes the manifest name a new epoch. It returns the manifest that it replaced, which may be newer than before.
func (s *Store) take(ctx context.Context, shard string, before *stored, mark Mark, opts OpenOptions) (*Log, *stored, error) {
	contended := before.manifest.Epoch
	epoch := driver.Epoch{Counter: max(contended, mark.Epoch) + 1}
	rand.Read(epoch.Writer[:])
	for range swapTries {
		next, err := decodeManifest(shard, before.data) // a copy
		if err != nil {
			return nil, nil, err
		}
		next.Epoch, next.Writer = epoch.Counter, epoch.Writer[:]
		next.Address, next.Yielded = opts.Address, false
		data, err := next.MarshalVT()
		if err != nil {
			return nil, nil, fmt.Errorf("open shard %s: %w", shard, err)
		}
		tag, err := s.engine.SwapManifest(ctx, shard, before.tag, data)
		if err != nil {
			now, readErr := readManifest(ctx, s.engine, shard)
			switch {
			case readErr != nil:
				return nil, nil, fmt.Errorf("open shard %s: %w", shard, errors.Join(err, readErr))
			case bytes.Equal(now.data, data): // the reply was lost
				tag = now.tag
			case now.manifest.Epoch != contended:
				return nil, nil, fmt.Errorf("open shard %s: %w: epoch %d was quicker", shard, ErrFenced, now.manifest.Epoch)
			case errors.Is(err, driver.ErrConflict): // the holder checkpointed or yielded
				before = now
				continue
			default:
				return nil, nil, fmt.Errorf("open shard %s: %w", shard, err)
			}
		}
		// Our epoch is visible from here on, so the holder confirmed its own for the last time before now: a full term from now
		// outlasts its lease, whatever its clock says.
		l := newLog(s, shard, epoch, opts.Clock)
		l.tookOver = contended > 0 && !before.manifest.Yielded
		if term := s.engine.Term(); term > 0 && l.tookOver {
			l.ackAfter = l.clock().Add(term)
		}
		l.meta = next.Meta
		l.adopt(&stored{manifest: next, data: data, tag: tag})
		return l, before, nil
	}
	return nil, nil, fmt.Errorf("open shard %s: %w, %d times", shard, driver.ErrConflict, swapTries)
}

// fence places the record that opens the epoch, unless the log is behind what the manifest knows, or the mark.
func (l *Log) fence(ctx context.Context, before *stored, mark Mark) error {
	m := before.manifest
	var behind error
	place := func(seq, previousEpoch uint64) []byte {
		behind = nil
		if seq <= m.CheckpointSeq || previousEpoch < m.CheckpointEpoch {
			behind = damagedShard("open the shard", l.shard, "the log ends at record %d of epoch %d, but the checkpoint covers record %d of epoch %d: "+
				"the store has lost acknowledged records. Nothing was written. Put back a copy of the store that holds them, or restore a backup",
				seq-1, previousEpoch, m.CheckpointSeq, m.CheckpointEpoch)
			return nil
		}
		if mark.Behind(previousEpoch, seq-1) {
			behind = damagedShard("open the shard", l.shard, "the log ends at record %d of epoch %d, but record %d of epoch %d was durable: "+
				"the store has lost acknowledged records. %s", seq-1, previousEpoch, mark.Seq, mark.Epoch, wayOut(l.shard))
			return nil
		}
		return encodeFence(l.shard, l.epoch, previousEpoch, seq)
	}
	for try := 1; ; try++ {
		seq, err := l.engine.Fence(ctx, l.shard, l.epoch, place)
		switch {
		case err == nil:
			l.fenceSeq, l.seq = seq, seq
			l.seen.raise(l.epoch.Counter, seq)
			return nil
		case behind != nil:
			return behind
		case errors.Is(err, driver.ErrFenced):
			return l.fencedAtOpen(ctx, err)
		case OutcomeOf(err) != Unknown || try == fenceTries || ctx.Err() != nil:
			return fmt.Errorf("open shard %s: fence: %w", l.shard, err)
		}
	}
}

// fencedAtOpen tells a successor that was quicker from a manifest that has gone back: a fence comes after the manifest
// that names its epoch, so a log fenced by an epoch that the manifest does not know has outlived a newer manifest.
func (l *Log) fencedAtOpen(ctx context.Context, cause error) error {
	if err := l.reread(ctx); err != nil {
		return err
	}
	return damagedShard("open the shard", l.shard, "the log was fenced by an epoch of at least %d that the manifest does not know (%v): "+
		"the store has lost newer manifests. Put back a copy of the store that holds them, or restore a backup", l.epoch.Counter, cause)
}

// reread requires that the manifest still names our epoch, which also is the first confirmation of the lease.
func (l *Log) reread(ctx context.Context) error {
	sent := l.clock()
	s, err := readManifest(ctx, l.engine, l.shard)
	if err != nil {
		return err
	}
	if err := l.owns(s); err != nil {
		return err
	}
	l.manifestMu.Lock()
	l.adopt(s)
	l.manifestMu.Unlock()
	l.confirmed(sent)
	return nil
}
