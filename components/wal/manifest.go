package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// manifestFormat is the version of the manifest format that this release writes and reads.
const manifestFormat = 1

// swapTries bounds how often a change of a manifest is tried again after a conflict. Conflicts come from activations, and an
// activation ends our epoch, so more than a few in a row are not to be expected.
const swapTries = 8

// stored is a manifest as it was read.
type stored struct {
	manifest *dataplanev1.Manifest
	data     []byte
	tag      driver.Tag
}

func (s *stored) epoch() driver.Epoch {
	e := driver.Epoch{Counter: s.manifest.Epoch}
	copy(e.Writer[:], s.manifest.Writer)
	return e
}

func (s *stored) holder() Holder {
	return Holder{Epoch: s.epoch(), Address: s.manifest.Address, Yielded: s.manifest.Yielded}
}

// readManifest reads and checks a shard's manifest.
func readManifest(ctx context.Context, engine driver.Engine, shard string) (*stored, error) {
	data, tag, err := engine.Manifest(ctx, shard)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of shard %s: %w", shard, err)
	}
	m, err := decodeManifest(shard, data)
	if err != nil {
		return nil, err
	}
	return &stored{manifest: m, data: data, tag: tag}, nil
}

// decodeManifest decodes a manifest and checks what every use of it relies on.
func decodeManifest(shard string, data []byte) (*dataplanev1.Manifest, error) {
	const op = "read a manifest"
	m := &dataplanev1.Manifest{}
	if err := m.UnmarshalVT(data); err != nil {
		return nil, damaged(op, "the manifest of shard %s cannot be decoded: %v", shard, err)
	}
	if m.Format != manifestFormat {
		return nil, fmt.Errorf("manifest of shard %s: %w: manifest format %d, known is %d", shard, ErrUnsupported, m.Format, manifestFormat)
	}
	if m.Shard != shard {
		return nil, damaged(op, "the manifest of shard %s says that it is that of %q", shard, m.Shard)
	}
	if m.Epoch > 0 && len(m.Writer) != 16 {
		return nil, damaged(op, "the manifest of shard %s has a writer id of %d bytes", shard, len(m.Writer))
	}
	var covered uint64
	for i, run := range m.Runs {
		if run == nil || run.AfterSeq < covered || run.Seq < run.AfterSeq || run.Seq > m.CheckpointSeq || run.Bytes <= 0 || i == 0 && run.AfterSeq != 0 {
			return nil, damaged(op, "the manifest of shard %s has runs that do not follow each other", shard)
		}
		covered = run.Seq
	}
	return m, nil
}

// change replaces the manifest by what edit makes of it, as long as it names our epoch. edit may be called several times,
// each time with a fresh copy of the newest manifest. Every failure leaves l.current nil, so that the next change reads first.
//
// Of a swap whose reply was lost the manifest itself tells. If it did not happen until then it may happen still, but
// only as long as nothing else changes the manifest; so the caller must be able to live with both, and edit must
// be right for a manifest that has the change already.
func (l *Log) change(ctx context.Context, edit func(m *dataplanev1.Manifest) error) error {
	l.manifestMu.Lock()
	defer l.manifestMu.Unlock()
	for range swapTries {
		if err := l.refresh(ctx); err != nil {
			return err
		}
		next, err := decodeManifest(l.shard, l.current.data) // a copy
		if err != nil {
			return err
		}
		if err := edit(next); err != nil {
			return err
		}
		data, err := next.MarshalVT()
		if err != nil {
			return fmt.Errorf("encode the manifest of shard %s: %w", l.shard, err)
		}
		tag, err := l.engine.SwapManifest(ctx, l.shard, l.current.tag, data)
		if err == nil {
			l.adopt(&stored{manifest: next, data: data, tag: tag})
			return nil
		}
		l.current = nil
		err = fmt.Errorf("change the manifest of shard %s: %w", l.shard, err)
		if refreshErr := l.refresh(ctx); refreshErr != nil {
			return errors.Join(err, refreshErr)
		}
		if bytes.Equal(l.current.data, data) {
			return nil
		}
		if !errors.Is(err, driver.ErrConflict) {
			l.current = nil
			return err
		}
	}
	return fmt.Errorf("change the manifest of shard %s: %w, %d times", l.shard, driver.ErrConflict, swapTries)
}

// refresh makes l.current the manifest if it is not known, and ends the epoch when it is not ours any more. The caller holds
// manifestMu.
func (l *Log) refresh(ctx context.Context) error {
	if l.current != nil {
		return nil
	}
	s, err := readManifest(ctx, l.engine, l.shard)
	if err != nil {
		return err
	}
	if err := l.owns(s); err != nil {
		return err
	}
	l.adopt(s)
	return nil
}

// owns ends the epoch and returns why when the manifest does not name it as the holder.
func (l *Log) owns(s *stored) error {
	if s.epoch() != l.epoch {
		return l.end(fmt.Errorf("shard %s: %w: the manifest names epoch %d, not our %d", l.shard, ErrFenced, s.manifest.Epoch, l.epoch.Counter))
	}
	if s.manifest.Yielded {
		return l.end(fmt.Errorf("shard %s: %w: epoch %d has yielded", l.shard, ErrEpochOver, l.epoch.Counter))
	}
	return nil
}

// adopt takes over what a manifest says of the checkpoint. The caller holds manifestMu.
func (l *Log) adopt(s *stored) {
	l.current = s
	released := s.manifest.CheckpointSeq
	now := l.clock().UnixMilli()
	for _, pin := range s.manifest.Pins {
		if pin.ExpiresMs > now && pin.Seq > 0 {
			released = min(released, pin.Seq-1)
		}
	}
	l.checkpointSeq.Store(s.manifest.CheckpointSeq)
	l.releasedSeq.Store(released)
}
