package wal

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Mark is what somebody who is not the store remembers of a shard's log, so that a store which has lost acknowledged records is not
// served (DESIGN D6): the highest record that was known to be durable. Marks are ordered by epoch and then by seq, and only ever
// rise.
type Mark struct {
	Shard string
	Epoch uint64 // counter of the epoch that wrote the record; 0 = none is remembered
	Seq   uint64

	// Made: the shard was made and not removed, so its manifest must be there.
	Made bool
	// Accepted: an operator has accepted the loss of what the log lacks up to Epoch and Seq. The shard is then opened under an epoch above
	// Epoch, whatever the manifest says, so that names and numbers of the epochs that were lost are not used twice.
	Accepted bool
}

// Above tells whether the mark is higher than another one of the shard.
func (m Mark) Above(other Mark) bool {
	return m.Epoch > other.Epoch || m.Epoch == other.Epoch && m.Seq > other.Seq
}

// Behind tells whether a log whose last record is seq of epoch lacks records that the mark says were there, and nobody has
// accepted that. Both must have come as far: seqs go on counting from epoch to epoch.
func (m Mark) Behind(epoch, seq uint64) bool {
	return !m.Accepted && (epoch < m.Epoch || seq < m.Seq)
}

// Missing tells whether a shard without a manifest was lost, and not just never made, and nobody has accepted that.
func (m Mark) Missing() bool { return !m.Accepted && (m.Made || m.Epoch > 0) }

// marks is what a process has seen of the shards that it opened.
type marks struct {
	mu  sync.Mutex // guards all
	all map[string]*seen
}

// seen is the highest record of one shard that a process knows to be durable.
type seen struct {
	mu   sync.Mutex // guards mark
	mark Mark
}

// of returns the place of a shard, made if need be.
func (m *marks) of(shard string) *seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.all[shard]
	if s == nil {
		s = &seen{mark: Mark{Shard: shard}}
		m.all[shard] = s
	}
	return s
}

func (m *marks) forget(shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, shard)
}

func (s *seen) get() Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark
}

// raise notes that a record is durable. Owners of earlier epochs that hear of theirs late change nothing.
func (s *seen) raise(epoch, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := (Mark{Shard: s.mark.Shard, Epoch: epoch, Seq: seq, Made: true}); now.Above(s.mark) {
		s.mark = now
	}
}

// Mark returns the highest record of a shard that this process knows to be durable, for whoever remembers it; Epoch is 0 when the
// shard was not opened here.
func (s *Store) Mark(shard string) Mark { return s.marks.of(shard).get() }

// AcceptLoss lets a shard be opened here although the store has lost records that this process has seen, as an operator decides. What
// others remember is theirs to accept (OpenOptions.Mark).
func (s *Store) AcceptLoss(shard string) {
	m := s.marks.of(shard)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark.Accepted = m.mark.Epoch > 0
}

// demand returns what a shard that is opened must have: the higher one of what others remember and what this process has seen. An
// accepted loss covers what this process saw of the same epochs.
func (s *Store) demand(shard string, remembered *Mark) Mark {
	here := s.Mark(shard)
	if remembered != nil && (!here.Above(*remembered) || remembered.Accepted && here.Epoch <= remembered.Epoch) {
		return *remembered
	}
	return here
}

// errSeen ends a read.
var errSeen = errors.New("seen")

// missing returns the loss of a shard that has no manifest, and is not known to be gone for a reason; otherwise err. Others know better
// than this process, which may have seen a shard that was removed since.
func (s *Store) missing(shard string, remembered *Mark, err error) error {
	m := s.Mark(shard)
	if remembered != nil {
		m = *remembered
	}
	if !errors.Is(err, driver.ErrNotExist) || !m.Missing() {
		return err
	}
	return damagedShard("open the shard", shard, "the store does not know it any more; it had come to record %d of epoch %d: its data is lost. %s", m.Seq, m.Epoch, wayOut(shard))
}

func wayOut(shard string) string {
	return "Nothing was written. Put back a copy of the store that holds it, or accept the loss (kvctl accept-loss " + shard + ")"
}

// check holds a shard's log against what is remembered of it, before anything is written: the record of the mark must be there, of its
// epoch, or below the checkpoint.
func (s *Store) check(ctx context.Context, shard string, m *dataplanev1.Manifest, mark Mark) error {
	if mark.Epoch == 0 || mark.Accepted {
		return nil
	}
	lost := func(format string, args ...any) error {
		return damagedShard("open the shard", shard, "record %d of epoch %d was durable, and %s: the store has lost acknowledged records. %s",
			mark.Seq, mark.Epoch, fmt.Sprintf(format, args...), wayOut(shard))
	}
	if m.Epoch < mark.Epoch {
		return lost("the manifest knows no epoch after %d", m.Epoch)
	}
	if mark.Seq <= m.CheckpointSeq {
		if m.CheckpointEpoch < mark.Epoch {
			return lost("the checkpoint covers record %d of epoch %d", m.CheckpointSeq, m.CheckpointEpoch)
		}
		return nil
	}
	epoch, found, err := epochOf(ctx, s.engine, shard, mark.Seq)
	switch {
	case errors.Is(err, driver.ErrCorrupt):
		return nil // restoring tells what is wrong
	case errors.Is(err, driver.ErrNotExist):
		return lost("it was trimmed, although the checkpoint ends at record %d", m.CheckpointSeq)
	case err != nil:
		return fmt.Errorf("open shard %s: %w", shard, err)
	case !found:
		return lost("the log ends before it")
	case epoch != mark.Epoch:
		return lost("the record is of epoch %d now", epoch)
	}
	return nil
}

// epochOf reads which epoch wrote a record; found is false when the log ends before it.
func epochOf(ctx context.Context, engine driver.Engine, shard string, seq uint64) (epoch uint64, found bool, err error) {
	err = engine.Read(ctx, shard, seq, func(f driver.Frame) error {
		epoch, found = f.Epoch, true
		return errSeen
	})
	if errors.Is(err, errSeen) {
		err = nil
	}
	return epoch, found, err
}
