// Package wal is the durable log of every actor: numbered records, checkpoints, packed values, and the ownership of one
// shard by one writer at a time (DESIGN D3, D6, D7, D13).
//
// Callers use two concrete types. A Store is an engine with everything that engines share; a Log is one ownership (epoch)
// of one shard. What differs between disk, memory and the clouds is behind driver.Engine. The package knows nothing of
// what a record's body says; it is not a state machine and it starts no goroutine that outlives a call.
//
//	store, err := wal.NewStore(engine, wal.Config{})
//	l, err := store.Open(ctx, "a1b2-0", wal.OpenOptions{Address: "10.0.0.7:9085"})
//	err = l.Restore(ctx, machine, nil)        // checkpoint, then records up to the fence
//	l.Append(body, timeMS, func(seq uint64, err error) { ... })
//
// DESIGN.md beside this file has the formats, the order of activation and the reasons.
package wal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kvstore/components/btree"
	"kvstore/components/wal/driver"
)

// Errors of a Store and a Log; test with errors.Is. Errors of the engine (package driver) pass through wrapped. Damage is a
// *kverr.Error of kind DataLoss around driver.ErrCorrupt.
var (
	// ErrExists: Create found a shard of that name.
	ErrExists = errors.New("shard exists")
	// ErrFenced: another epoch owns the shard. The Log is over.
	ErrFenced = driver.ErrFenced
	// ErrEpochOver: the Log can write no more in its epoch, because the outcome of an append is unknown, or because it
	// yielded or was closed. The shard must be opened anew; what the store holds then is the truth.
	ErrEpochOver = errors.New("epoch is over")
	// ErrUnsupported: stored data has a format, codec or key that this release does not know. It names it.
	ErrUnsupported = errors.New("stored in a way that this release cannot read")
)

// Outcome says what became of an append, a write of the manifest or an object.
type Outcome uint8

// Outcomes.
const (
	// Written: it is durable.
	Written Outcome = iota
	// NotWritten: nothing was written, the same epoch may go on. The next append takes the same seq.
	NotWritten
	// Lost: nothing was written and the epoch is over (fenced, yielded, closed).
	Lost
	// Unknown: it may be durable now or become so later. The epoch is over.
	Unknown
)

// String returns the outcome's name.
func (o Outcome) String() string {
	switch o {
	case Written:
		return "written"
	case NotWritten:
		return "not written"
	case Lost:
		return "lost"
	}
	return "unknown"
}

// overError is the error of an append that came after the epoch ended: nothing of it was written.
type overError struct{ cause error }

func (e *overError) Error() string   { return fmt.Sprintf("%v: %v", ErrEpochOver, e.cause) }
func (e *overError) Unwrap() []error { return []error{ErrEpochOver, e.cause} }

// OutcomeOf classifies the error that Append gave to done.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return Written // apart from the rest, which allocates
	}
	return outcomeOfFailure(err)
}

func outcomeOfFailure(err error) Outcome {
	var notLeader *driver.NotLeaderError
	var over *overError
	switch {
	case errors.As(err, &over), errors.Is(err, driver.ErrFenced):
		return Lost
	case errors.Is(err, ErrEpochOver):
		return Unknown
	case errors.Is(err, driver.ErrNoSpace), errors.Is(err, driver.ErrRefused), errors.Is(err, driver.ErrClosed), errors.As(err, &notLeader):
		return NotWritten
	}
	return Unknown
}

// Config tunes a Store. The zero value is ready.
type Config struct {
	// BlockBytes is the size from which a block of a checkpoint run is closed, in bytes. Default 32 KiB, 1 KiB to 1 MiB.
	BlockBytes int
	// FanIn is how many checkpoint runs of about one size gather before they are merged into one. More means fewer bytes
	// written and more objects to read at activation. Default 16, 2 to 64.
	FanIn int
	// YieldTimeout is how long activation waits for the holder to yield. Default 200 ms.
	YieldTimeout time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.BlockBytes == 0 {
		c.BlockBytes = 32 << 10
	}
	if c.FanIn == 0 {
		c.FanIn = 16
	}
	if c.YieldTimeout == 0 {
		c.YieldTimeout = 200 * time.Millisecond
	}
}

// Validate returns every fault of the configuration, joined.
func (c *Config) Validate() error {
	var faults []error
	if c.BlockBytes < 1<<10 || c.BlockBytes > 1<<20 {
		faults = append(faults, fmt.Errorf("BlockBytes is %d: must be 1024 to 1048576", c.BlockBytes))
	}
	if c.FanIn < 2 || c.FanIn > 64 {
		faults = append(faults, fmt.Errorf("FanIn is %d: must be 2 to 64", c.FanIn))
	}
	if c.YieldTimeout < 0 {
		faults = append(faults, fmt.Errorf("YieldTimeout is %v: must not be negative", c.YieldTimeout))
	}
	return errors.Join(faults...)
}

// Store is an engine with what all engines share. It is safe for any number of goroutines. Of its own it holds how far it has seen each
// shard come (Mark): a store that goes back behind that while this process lives is not served.
type Store struct {
	engine driver.Engine
	cfg    Config
	marks  marks
}

// NewStore wraps an engine. The engine stays the caller's to close, after every Log of it is done.
func NewStore(engine driver.Engine, cfg Config) (*Store, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Store{engine: engine, cfg: cfg, marks: marks{all: map[string]*seen{}}}, nil
}

// Engine returns the engine.
func (s *Store) Engine() driver.Engine { return s.engine }

// Holder is what a shard's manifest says of its owner. It may be out of date when it is read: only the fence decides.
type Holder struct {
	Epoch   driver.Epoch // Counter 0: the shard was never opened
	Address string
	Yielded bool // the holder has stopped for good
}

// OpenOptions are the options of Open.
type OpenOptions struct {
	// Address is where this holder is reached; empty in one process. It is stored in the manifest.
	Address string
	// Yield asks the holder to stop (it then calls Log.Yield) and returns when it has, or cannot be asked. It is called only
	// if the engine has a lease term and the holder has not yielded, with a context of Config.YieldTimeout. What it achieved is read
	// from the manifest. An error ends Open before anything is written: the holder is to be left alone. nil asks nobody.
	Yield func(ctx context.Context, h Holder) error
	// Mark is what others remember of the shard's log, the directory say. They then also decide whether a shard without a manifest is
	// lost, or was never made or removed. nil: nobody but this process does.
	Mark *Mark
	// Clock tells the time, with a monotonic reading as time.Now has. nil is time.Now.
	Clock func() time.Time
}

// Replayer takes a shard's stored state: first the checkpoint as one tree, then the bodies of the records after it.
// host.Machine is one.
type Replayer interface {
	Restore(t *btree.Tree)
	Replay(body []byte, timeMS int64) error
}

// Progress is how far a Restore has come. Totals are those of the checkpoint; how many records follow is known only
// as they are read.
type Progress struct {
	CheckpointBytes, CheckpointBytesTotal int64 // bytes of run objects read
	CheckpointItems, CheckpointItemsTotal int64 // items merged; newer runs may hide older items
	Records                               int64 // records replayed
	RecordBytes                           int64
	LastSeq                               uint64 // the fence, where replay ends
}

// Snapshot is a durable state of a shard to be checkpointed.
type Snapshot struct {
	Tree *btree.Tree // not written to any more
	Seq  uint64      // the record after which the tree is as it is
}

// CheckpointStats says what a checkpoint did.
type CheckpointStats struct {
	Seq          uint64        // the checkpoint's seq now
	Changed      int64         // items that did not come from merged runs: distinct keys that changed; all items when Full
	Items        int64         // items in the run that was written
	BytesWritten int64         // length of the run that was written; 0 when nothing had changed
	BytesRead    int64         // bytes of runs that were merged into it
	Merged       int           // runs that it replaces
	Full         bool          // it holds the whole state
	Runs         int           // runs of the checkpoint now
	TotalBytes   int64         // bytes of all runs now
	Took         time.Duration // from the start of the call
	// Cleanup is what failed after the checkpoint was published: trimming the log or deleting replaced runs. The next checkpoint
	// tries again.
	Cleanup error
}

// ObjectID names a packed-value object: the epoch that wrote it and a counter. It is never reused. The zero value is none.
type ObjectID struct{ Epoch, Counter uint64 }

// SweepStats says what a sweep removed.
type SweepStats struct {
	Runs   int // checkpoint runs that the manifest does not name
	Values int // value objects that the state does not know
	Bytes  int64
}
