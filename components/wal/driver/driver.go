// Package driver is what a log engine implements (DESIGN D6). Callers use the concrete types of package wal, which hold
// everything that engines share: record headers, sealing, checkpoints, packed values, activation.
//
// An engine stores, for any number of shards, a log of numbered records, immutable objects, and one manifest that
// changes by compare-and-set. It knows nothing of what is in them. Every engine passes package waltest.
package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors of engines; test with errors.Is. An error of Append that is neither ErrFenced, ErrNoSpace, ErrRefused nor a
// *NotLeaderError leaves the outcome unknown: the record may be durable now, or appear later.
var (
	// ErrNotExist: no such manifest, record or object.
	ErrNotExist = errors.New("does not exist")
	// ErrConflict: the compare-and-set found another manifest.
	ErrConflict = errors.New("manifest changed")
	// ErrFenced: a higher epoch owns the log. Nothing was written.
	ErrFenced = errors.New("fenced by a higher epoch")
	// ErrNoSpace: the engine is at its free-space reserve or the store is full. Nothing was written.
	ErrNoSpace = errors.New("no space left")
	// ErrRefused: the engine could not take the request and knows that nothing was written.
	ErrRefused = errors.New("refused, nothing written")
	// ErrCorrupt: stored bytes are not what was written.
	ErrCorrupt = errors.New("stored data is damaged")
	// ErrClosed: the engine is closed. Nothing was written.
	ErrClosed = errors.New("engine is closed")
)

// NotLeaderError says that another node must be asked. Nothing was written.
type NotLeaderError struct {
	// Hint is where the leader may be; empty when unknown.
	Hint string
}

func (e *NotLeaderError) Error() string { return fmt.Sprintf("not the leader (hint %q)", e.Hint) }

// Epoch names one ownership of one shard. Counters order epochs; the writer id tells apart two that both believe they
// hold the same counter.
type Epoch struct {
	Counter uint64   // from 1 on
	Writer  [16]byte // random
}

// Tag identifies one state of a manifest for compare-and-set; "" means that there is none.
type Tag string

// Frame is one stored record: seq and epoch are what the engine compares, Data is opaque to it.
type Frame struct {
	Epoch uint64 // counter of the epoch that appended it
	Seq   uint64 // position, from 1 on without holes
	Data  []byte // the caller does not change it before done is called; readers may keep it
}

// Engine is a store of many shards. All methods may be called from many goroutines, also for one shard. A shard name
// has 1 to 64 of a-z, 0-9, '-', '.', and does not begin with a dot; an object name has 1 to 128 of a-z, 0-9, '-', '/', with no
// empty path element. Other names are refused (CheckShard, CheckObject). Package waltest shows each rule below as a test.
type Engine interface {
	// Name is the engine's kind: "memory", "disk", "redis", "azblob".
	Name() string

	// Term is the lease term of shards on this engine (D3): what a successor waits for when the holder has not yielded.
	// 0 means that the engine itself excludes a second process, so that leases never lapse.
	Term() time.Duration

	// Manifest returns a shard's manifest and its tag, ErrNotExist when the shard was never created. It is
	// linearizable with SwapManifest.
	Manifest(ctx context.Context, shard string) ([]byte, Tag, error)

	// SwapManifest durably replaces the manifest if its tag is still old ("" = if there is none) and returns the new tag;
	// ErrConflict otherwise. A lost reply is settled by reading back.
	SwapManifest(ctx context.Context, shard string, old Tag, data []byte) (Tag, error)

	// Fence durably appends the record that record returns as the first one of epoch e, and returns its seq: the number
	// after the last record. record gets that number and the epoch counter of the last record (0 for an empty log whose
	// records were never trimmed). From its return on no append of a lower epoch can become visible, ever. Repeating it for
	// the same epoch returns the same seq. ErrFenced when a higher epoch, or the same counter by another writer, was there.
	// ErrNotExist when the shard has no manifest. When record returns nil, nothing is written and the error is ErrRefused: the caller saw that the log is not the one that it expects.
	Fence(ctx context.Context, shard string, e Epoch, record func(seq, previousEpoch uint64) []byte) (uint64, error)

	// Append makes one record durable and then calls done, exactly once, from a goroutine of the engine or of another
	// caller, never from inside Append itself. Seq must be one more than that of the last record, and e the epoch of the
	// last fence: ErrFenced otherwise, also for a shard that does not exist, and with it ErrCorrupt if e is that epoch and records before seq
	// are missing, which an engine that can lose acknowledged records tells. The caller has one append outstanding per shard. The engine may make appends of many
	// shards durable with one sync.
	Append(shard string, e Epoch, f Frame, done func(error))

	// Read calls fn for every record from seq from on, in order, up to the last one at the time of the call (fences
	// included); none when from is beyond it. ErrNotExist when from was trimmed; ErrCorrupt when a record that was acknowledged is damaged or missing.
	// A torn record at the end, never acknowledged, is not there at all. fn may call the engine; its error ends Read and is returned.
	Read(ctx context.Context, shard string, from uint64, fn func(Frame) error) error

	// Trim forgets records below seq, at the engine's leisure. The last record is never forgotten. ErrFenced when e is not the
	// epoch of the last fence.
	Trim(ctx context.Context, shard string, e Epoch, below uint64) error

	// PutObject durably stores all of r under a name that was never used before; ErrRefused when an object of that name
	// exists. size is what r will give, -1 when unknown: a reader that fails or gives another length leaves no object. After any
	// other error the object may or may not exist, but never a part of it.
	PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error

	// GetObject fills p from offset off of an object; ErrNotExist, or ErrCorrupt when the object is too short.
	GetObject(ctx context.Context, shard, name string, off int64, p []byte) error

	// DeleteObject removes an object. An absent one is a success. A crash soon after may bring the object back: a sweep of
	// older epochs' names finds it then.
	DeleteObject(ctx context.Context, shard, name string) error

	// ListObjects calls fn for every object whose name begins with prefix, in any order, with its length. fn may call the
	// engine; objects that come or go meanwhile may be listed or not. An error of fn ends it and is returned.
	ListObjects(ctx context.Context, shard, prefix string, fn func(name string, size int64) error) error

	// RemoveShard removes manifest, log and objects of a shard for good.
	RemoveShard(ctx context.Context, shard string) error

	// Space tells how many bytes are free and below how many writes stop; zeros when the engine has no such thing.
	Space() (free, reserve int64)

	// Close stops the engine after outstanding appends are done.
	Close() error
}
