package wal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/components/btree"
	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Log is one ownership of one shard. Append has one caller at a time; everything else is safe for any number of
// goroutines, also beside Append.
type Log struct {
	engine driver.Engine
	cfg    Config
	shard  string
	epoch  driver.Epoch
	clock  func() time.Time
	seen   *seen // how far this process has seen the shard come

	// Fixed by Open.
	ackAfter  time.Time
	tookOver  bool
	fenceSeq  uint64
	meta      []byte
	prefix    []byte      // recordPrefix of every record after the fence
	completed func(error) // l.complete, bound once

	mu         sync.Mutex // guards the fields down to the blank line
	seq        uint64     // last durable record
	restored   bool       // Restore has succeeded
	inFlight   bool       // an append is with the engine
	flightSize int64      // its bytes
	flightDone func(uint64, error)
	busy       int           // appends whose done has not returned
	idle       chan struct{} // closed when busy falls to 0; nil when nobody waits
	over       error         // why the epoch is over
	leaseUntil time.Time
	appended   int64 // bytes of records since the checkpoint that Open found, replayed ones included
	covered    int64 // of them, bytes below the newest checkpoint

	manifestMu sync.Mutex // guards current, held across reads and swaps of the manifest
	current    *stored    // newest known; nil when it must be read

	checkpointSeq atomic.Uint64 // of the newest known manifest
	releasedSeq   atomic.Uint64
	lastObject    atomic.Uint64 // counter of value objects
	lastRun       atomic.Uint64 // counter of checkpoint runs

	checkpointing chan struct{} // holds one token; whoever has it owns the fields below
	base          *btree.Tree   // what the runs up to baseSeq add up to
	baseSeq       uint64
	pending       *pendingCheckpoint
	doomed        []string // run objects that no manifest names, to be deleted
}

func newLog(s *Store, shard string, epoch driver.Epoch, clock func() time.Time) *Log {
	l := &Log{
		engine: s.engine, cfg: s.cfg, shard: shard, epoch: epoch, clock: clock, seen: s.marks.of(shard),
		prefix:        recordPrefix(shard, epoch, epoch.Counter),
		checkpointing: make(chan struct{}, 1),
	}
	l.completed = l.complete
	l.checkpointing <- struct{}{}
	return l
}

// Shard returns the shard's name.
func (l *Log) Shard() string { return l.shard }

// Epoch returns the epoch that this Log owns.
func (l *Log) Epoch() driver.Epoch { return l.epoch }

// Meta returns what the creator of the shard gave; not to be changed.
func (l *Log) Meta() []byte { return l.meta }

// AckAfter is the earliest moment, on the clock of OpenOptions, at which anything may be acknowledged and linearizable reads
// may be served: an earlier holder that did not yield may still serve until then. The zero time means at once.
func (l *Log) AckAfter() time.Time { return l.ackAfter }

// TookOver tells that the shard had a holder who had not given it up when this epoch took it: one that crashed, was cut off, or yielded while
// it was still waiting for the lease of another such. Moves in good order, sleep and a first opening are not that.
func (l *Log) TookOver() bool { return l.tookOver }

// Seq returns the number of the last durable record.
func (l *Log) Seq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Err returns why the epoch is over, nil while it is not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// end ends the epoch unless it is over, and returns err.
func (l *Log) end(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over == nil {
		l.over = err
	}
	return err
}

// Close ends the epoch here without telling the store. It waits for nothing. A successor must wait for the lease.
func (l *Log) Close() { _ = l.end(fmt.Errorf("shard %s: %w: closed", l.shard, ErrEpochOver)) }

// Append makes body durable as one record and then calls done once, with the record's seq, from another goroutine;
// never from inside Append. One append may be outstanding: the next may be made from inside done. OutcomeOf(err) says
// what became of it. body is copied before Append returns. timeMS is shard time in milliseconds since the Unix epoch.
func (l *Log) Append(body []byte, timeMS int64, done func(seq uint64, err error)) {
	l.mu.Lock()
	if l.over != nil {
		err := &overError{cause: l.over}
		l.mu.Unlock()
		go done(0, err)
		return
	}
	if !l.restored || l.inFlight {
		l.mu.Unlock()
		panic("wal: append before Restore, or while another one is outstanding")
	}
	seq := l.seq + 1
	frame := driver.Frame{Epoch: l.epoch.Counter, Seq: seq, Data: encodeRecord(l.prefix, seq, timeMS, body)}
	l.inFlight, l.flightDone, l.flightSize = true, done, int64(len(frame.Data))
	l.busy++
	l.mu.Unlock()
	l.engine.Append(l.shard, l.epoch, frame, l.completed)
}

// complete takes the engine's answer to the outstanding append.
func (l *Log) complete(err error) {
	l.mu.Lock()
	seq, done := l.seq+1, l.flightDone
	l.inFlight, l.flightDone = false, nil
	switch OutcomeOf(err) {
	case Written:
		l.seq = seq
		l.appended += l.flightSize
		l.seen.raise(l.epoch.Counter, seq)
	case NotWritten:
		err = fmt.Errorf("append record %d of shard %s: %w", seq, l.shard, err)
	case Lost:
		err = fmt.Errorf("append record %d of shard %s: %w", seq, l.shard, err)
		l.over = errors.Join(l.over, err)
	case Unknown:
		err = fmt.Errorf("%w: append record %d of shard %s: outcome unknown: %w", ErrEpochOver, seq, l.shard, err)
		l.over = errors.Join(l.over, err)
	}
	l.mu.Unlock()
	done(seq, err)
	l.mu.Lock()
	if l.busy--; l.busy == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
	l.mu.Unlock()
}

// SinceCheckpoint returns how many records, and about how many bytes of them, a Restore would have to replay now.
func (l *Log) SinceCheckpoint() (records uint64, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq - min(l.seq, l.checkpointSeq.Load()), l.appended - l.covered
}

// CheckpointSeq returns the seq that the checkpoint in the manifest covers.
func (l *Log) CheckpointSeq() uint64 { return l.checkpointSeq.Load() }

// ReleasedSeq returns the highest seq up to which nobody reads records any more: checkpointed, and below every pin. A value
// object dies only when the record that dropped its last reference is at or below it (D7). Pins that expire are
// noticed when the manifest changes next.
func (l *Log) ReleasedSeq() uint64 { return l.releasedSeq.Load() }

// never is a moment that does not come.
const never = 100 * 365 * 24 * time.Hour

// Confirm renews the lease: it proves with the engine that this epoch still owns the shard, and returns until when linearizable
// reads may be served from memory without asking again (and not before AckAfter). With an engine that has no term it
// returns at once a time that never comes. ErrFenced when another epoch owns the shard.
func (l *Log) Confirm(ctx context.Context) (until time.Time, err error) {
	sent := l.clock()
	if err := l.Err(); err != nil {
		return time.Time{}, err
	}
	if l.engine.Term() > 0 {
		s, err := readManifest(ctx, l.engine, l.shard)
		switch {
		case errors.Is(err, driver.ErrNotExist):
			return time.Time{}, l.end(fmt.Errorf("shard %s: %w: its manifest is gone: it was removed, or the store has lost it", l.shard, ErrFenced))
		case err != nil:
			return time.Time{}, err
		}
		if err := l.owns(s); err != nil {
			return time.Time{}, err
		}
	}
	return l.confirmed(sent), nil
}

// confirmed notes that a question sent then found our epoch in the manifest. Only such a read counts, never an append: an
// append may land between a successor's swap of the manifest and its fence, and the successor counts from its swap.
func (l *Log) confirmed(sent time.Time) time.Time {
	lease := never
	if term := l.engine.Term(); term > 0 {
		lease = term / 10 * 9
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := sent.Add(lease); until.After(l.leaseUntil) {
		l.leaseUntil = until
	}
	return l.leaseUntil
}

// LeaseUntil returns until when the lease runs, by the confirmations so far. Open's is the first.
func (l *Log) LeaseUntil() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaseUntil
}

// Yield gives the shard up so that a successor need not wait: it takes no more appends, waits for the outstanding one to be
// done, and marks the manifest. The caller serves no more reads before it calls Yield. It may also be called after the epoch
// ended for an unknown outcome. Before AckAfter the manifest is not marked, because the mark would speak for the earlier holder too:
// a successor then waits. The Log is over, also after an error.
func (l *Log) Yield(ctx context.Context) error {
	l.mu.Lock()
	if l.over == nil {
		l.over = fmt.Errorf("shard %s: %w: yielded", l.shard, ErrEpochOver)
	}
	if l.busy > 0 && l.idle == nil {
		l.idle = make(chan struct{})
	}
	idle := l.idle
	l.mu.Unlock()
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			return fmt.Errorf("yield shard %s: an append is not done: %w", l.shard, ctx.Err())
		}
	}
	if l.clock().Before(l.ackAfter) {
		return nil
	}
	err := l.change(ctx, func(m *dataplanev1.Manifest) error {
		m.Yielded = true
		return nil
	})
	if err == nil {
		return nil
	}
	if s, readErr := readManifest(ctx, l.engine, l.shard); readErr == nil && s.epoch() == l.epoch && s.manifest.Yielded {
		return nil // the reply was lost, or it had yielded before
	}
	return fmt.Errorf("yield shard %s: %w", l.shard, err)
}
