package wal

import (
	"context"
	"io"
	"time"

	"kvstore/components/wal/driver"
)

// Create makes a shard that has no manifest yet; ErrExists when there is one. meta is opaque and comes back from Log.Meta.
// Only whoever decides which shards exist calls it; activation never does.
func (s *Store) Create(ctx context.Context, shard string, meta []byte) error { panic("being built") }

// Remove removes a shard's manifest, log and objects for good. Nobody may have it open.
func (s *Store) Remove(ctx context.Context, shard string) error { panic("being built") }

// Holder reads who owns a shard now; driver.ErrNotExist when it was never created.
func (s *Store) Holder(ctx context.Context, shard string) (Holder, error) { panic("being built") }

// Open takes the shard over under a new epoch (D3): the holder before is asked to yield, the manifest names us, a fence
// in the log refuses the holder's appends from then on. The Log must be restored before its first append, and
// nothing may be acknowledged before AckAfter. driver.ErrNotExist when the shard was never created; ErrFenced when another
// was quicker; DataLoss when the log is behind what the manifest knows.
func (s *Store) Open(ctx context.Context, shard string, opts OpenOptions) (*Log, error) {
	panic("being built")
}

// Log is one ownership of one shard. Append has one caller at a time; everything else is safe for any number of
// goroutines, also beside Append.
type Log struct{ pending struct{} }

// Shard returns the shard's name.
func (l *Log) Shard() string { panic("being built") }

// Epoch returns the epoch that this Log owns.
func (l *Log) Epoch() driver.Epoch { panic("being built") }

// Meta returns what the creator of the shard gave; not to be changed.
func (l *Log) Meta() []byte { panic("being built") }

// AckAfter is the earliest moment, on the clock of OpenOptions, at which anything may be acknowledged and linearizable reads
// may be served: an earlier holder that did not yield may still serve until then. The zero time means at once.
func (l *Log) AckAfter() time.Time { panic("being built") }

// Seq returns the number of the last durable record.
func (l *Log) Seq() uint64 { panic("being built") }

// Restore reads the state back into r: the checkpoint as one tree, then every record up to the fence, verified. It is called
// once, before the first Append. progress may be nil; it is called now and then from the calling goroutine.
func (l *Log) Restore(ctx context.Context, r Replayer, progress func(Progress)) error {
	panic("being built")
}

// Append makes body durable as one record and then calls done once, with the record's seq, from another goroutine;
// never from inside Append. One append may be outstanding: the next may be made from inside done. OutcomeOf(err) says
// what became of it. body is copied before Append returns.
func (l *Log) Append(body []byte, timeMS int64, done func(seq uint64, err error)) {
	panic("being built")
}

// Confirm renews the lease: it proves with the engine that this epoch still owns the shard, and returns until when linearizable
// reads may be served from memory without asking again. With an engine that has no term it returns at once a time that
// never comes. ErrFenced when another epoch owns the shard.
func (l *Log) Confirm(ctx context.Context) (until time.Time, err error) { panic("being built") }

// LeaseUntil returns what the last successful Confirm returned.
func (l *Log) LeaseUntil() time.Time { panic("being built") }

// Yield gives the shard up so that a successor need not wait: it takes no more appends, waits for the outstanding one to be
// done, and marks the manifest. The caller serves no more reads before it calls Yield. The Log is over, also after an error.
func (l *Log) Yield(ctx context.Context) error { panic("being built") }

// Close ends the epoch here without telling the store. It waits for nothing. A successor must wait for the lease.
func (l *Log) Close() { panic("being built") }

// Err returns why the epoch is over, nil while it is not.
func (l *Log) Err() error { panic("being built") }

// SinceCheckpoint returns how many records, and how many bytes of them, a Restore would have to replay now.
func (l *Log) SinceCheckpoint() (records uint64, bytes int64) { panic("being built") }

// CheckpointSeq returns the seq that the checkpoint in the manifest covers.
func (l *Log) CheckpointSeq() uint64 { panic("being built") }

// ReleasedSeq returns the highest seq up to which nobody reads records any more: checkpointed, and below every pin. A value
// object dies only when the record that dropped its last reference is at or below it (D7).
func (l *Log) ReleasedSeq() uint64 { panic("being built") }

// Checkpoint stores snap so that the log up to it can be trimmed, at a cost that grows with what changed. Appends go on
// meanwhile. One runs at a time; a second call waits. A failure leaves the checkpoint before as it was.
func (l *Log) Checkpoint(ctx context.Context, snap Snapshot) (CheckpointStats, error) {
	panic("being built")
}

// PackValues stores values one behind the other in one new object and returns its id and length and where each begins.
// After an error the object may exist; nobody knows its name and a later epoch sweeps it.
func (l *Log) PackValues(ctx context.Context, values [][]byte) (id ObjectID, size int64, offsets []int64, err error) {
	panic("being built")
}

// StreamValue stores all of r as one new object. size is what r gives, -1 when unknown.
func (l *Log) StreamValue(ctx context.Context, size int64, r io.Reader) (ObjectID, error) {
	panic("being built")
}

// ReadValue fills p from offset off of an object; driver.ErrNotExist when it is gone, driver.ErrCorrupt when it is too short.
// The bytes are not verified here: the reference to them holds a checksum.
func (l *Log) ReadValue(ctx context.Context, id ObjectID, off int64, p []byte) error {
	panic("being built")
}

// DeleteObject removes a value object; an absent one is a success. See ReleasedSeq for when it may be called.
func (l *Log) DeleteObject(ctx context.Context, id ObjectID) error { panic("being built") }

// Sweep removes what earlier epochs left behind when they were cut off: checkpoint runs that the manifest does not name, and value
// objects for which live says no. Objects of this epoch are never touched, so live is asked for older ones only; it must
// know the restored state and must not become false later while the object is used.
func (l *Log) Sweep(ctx context.Context, live func(ObjectID) bool) (SweepStats, error) {
	panic("being built")
}
