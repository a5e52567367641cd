package values

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

const (
	forgetBatch     = 256              // objects that one OpForget names
	deleteTimeout   = 30 * time.Second // of one deletion
	sparseThreshold = 0.5              // objects with less live than this part are compacted
)

// deleteOrphans deletes objects that nothing names, in the background. Mutex held.
func (s *Store) deleteOrphans() {
	if s.deleting || s.closed || len(s.orphans) == 0 {
		return
	}
	s.deleting = true
	s.background.Go(func() {
		for {
			s.mu.Lock()
			if len(s.orphans) == 0 || s.closed {
				s.deleting = false
				s.mu.Unlock()
				return
			}
			id := s.orphans[len(s.orphans)-1]
			s.orphans = s.orphans[:len(s.orphans)-1]
			s.mu.Unlock()
			// When it fails the next epoch's sweep takes the object.
			_ = s.delete(s.ctx, id)
		}
	})
}

// mayExist has an object deleted that may exist although its write failed: nobody names it. None is none. Mutex held.
func (s *Store) mayExist(id wal.ObjectID) {
	if id != (wal.ObjectID{}) {
		s.orphans = append(s.orphans, shard.ObjectID(id))
		s.deleteOrphans()
	}
}

func (s *Store) delete(ctx context.Context, id shard.ObjectID) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return s.log.DeleteObject(ctx, wal.ObjectID(id))
}

// Collected says what a Collect did.
type Collected struct {
	Deleted int // dead objects
	Moved   int // values copied out of sparse objects
	Bytes   int64
}

// Collect deletes the objects that are dead in v, the state at seq, if the log released seq: the records that dropped them
// are checkpointed and nobody reads them any more. Then it copies values out of objects that are mostly dead, at most
// moveBytes of them, so that those die too. It is called after each checkpoint, with the state that was checkpointed.
func (s *Store) Collect(ctx context.Context, v shard.View, seq uint64, moveBytes int64) (Collected, error) {
	var done Collected
	if s.log.ReleasedSeq() < seq {
		return done, nil
	}
	s.mu.Lock()
	s.written = 0
	for id, o := range s.objects {
		if o.left == 0 && !o.unknown && o.seq <= seq {
			delete(s.objects, id) // every reference is in v, or was dropped: no later state can name it anew
		}
	}
	s.mu.Unlock()

	var gone []shard.ObjectID
	for id := range shard.DeadObjects(v) {
		if s.unsettled(id) {
			continue
		}
		if err := s.delete(ctx, id); err != nil {
			return done, errors.Join(err, s.forget(ctx, gone))
		}
		done.Deleted++
		if gone = append(gone, id); len(gone) == forgetBatch {
			if err := s.forget(ctx, gone); err != nil {
				return done, err
			}
			gone = nil
		}
	}
	if err := s.forget(ctx, gone); err != nil {
		return done, err
	}
	err := s.compact(ctx, v, moveBytes, &done)
	return done, err
}

// unsettled tells whether references to an object may be on their way to the state.
func (s *Store) unsettled(id shard.ObjectID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[id] != nil
}

// forget tells the machine that objects are deleted. When that fails they are deleted once more after the next checkpoint.
func (s *Store) forget(ctx context.Context, ids []shard.ObjectID) error {
	if len(ids) == 0 {
		return nil
	}
	return s.do(ctx, &shard.Command{Op: shard.OpForget, Forget: ids})
}

// do runs commands and waits for all of them. The first error is returned.
func (s *Store) do(ctx context.Context, cmds ...*shard.Command) error {
	released := make(chan error, len(cmds))
	for _, c := range cmds {
		c.Done = func(c *shard.Command, err error) {
			if err == nil && c.Result.Err != nil {
				err = c.Result.Err
			}
			released <- err
		}
	}
	taken := s.Track(cmds)
	if err := s.host.Do(taken...); err != nil {
		s.dropRefs(taken)
		return err
	}
	var first error
	for range cmds {
		select {
		case err := <-released:
			if first == nil {
				first = err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return first
}

func (s *Store) dropRefs(cmds []*shard.Command) {
	for _, c := range cmds {
		for f := range c.Refs {
			s.Drop(*f)
		}
	}
}

// compact copies the live values of sparse objects into new ones, sparsest first.
func (s *Store) compact(ctx context.Context, v shard.View, budget int64, done *Collected) error {
	var sparse []shard.SparseObject
	for o := range shard.SparseObjects(v, sparseThreshold) {
		if !s.unsettled(o.ID) {
			sparse = append(sparse, o)
		}
	}
	slices.SortFunc(sparse, func(a, b shard.SparseObject) int { return compare(part(a), part(b)) })
	for _, o := range sparse {
		if done.Bytes+o.Live > budget {
			return nil
		}
		if err := s.move(ctx, v, o, done); err != nil {
			return err
		}
	}
	return nil
}

func part(o shard.SparseObject) float64 { return float64(o.Live) / float64(max(o.TotalBytes, 1)) }

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// move copies the values of one object, a few MiB at a time. A damaged value stays where it is: whoever reads it finds out.
func (s *Store) move(ctx context.Context, v shard.View, o shard.SparseObject, done *Collected) error {
	var from []shard.Resident
	var copies [][]byte
	bytes := 0
	flush := func() error {
		if len(from) == 0 {
			return nil
		}
		to, err := s.Put(ctx, copies...)
		if err != nil {
			return err
		}
		cmds := make([]*shard.Command, len(from))
		for i, r := range from {
			cmds[i] = &shard.Command{Op: shard.OpRelocate, Relocate: &shard.Relocate{Key: r.Key, From: r.Ref, To: to[i]}}
		}
		done.Moved += len(from)
		done.Bytes += int64(bytes)
		from, copies, bytes = nil, nil, 0
		return s.do(ctx, cmds...)
	}
	for r := range shard.Residents(v, o.ID) {
		p := make([]byte, r.Ref.Length)
		err := s.Read(ctx, r.Ref, 0, p)
		if err != nil && (errors.Is(err, kverr.DataLoss) || errors.Is(err, kverr.NotFound)) || err == nil && xxh3.Hash(p) != r.Ref.Checksum {
			continue
		}
		if err != nil {
			return err
		}
		from, copies = append(from, r), append(copies, p)
		if bytes += len(p); bytes >= s.cfg.ObjectBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// Sweep deletes what earlier epochs left behind, given the state as it was restored. It is called once after activation.
func (s *Store) Sweep(ctx context.Context, v shard.View) (wal.SweepStats, error) {
	return s.log.Sweep(ctx, func(id wal.ObjectID) bool { return shard.KnowsObject(v, shard.ObjectID(id)) })
}
