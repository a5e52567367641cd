package frontend

import (
	"context"
	"io"

	"kvstore/actors/shard"
)

// Shards is the way from a frontend to shards, wherever they live. In one process it is *memhost.Host itself; between
// processes it is the data plane. Errors are *kverr.Error.
type Shards interface {
	// Do hands commands to one shard, in order, under one visit. Every command is released exactly once, possibly before Do
	// returns; a failure to reach the shard releases them with an error.
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)

	// View returns the shard's last durable state for linearizable reads: everything acknowledged so far is in it. It is
	// immutable.
	View(ctx context.Context, shardID string) (shard.View, error)

	// PutValues stores values apart from keys, packed with those of concurrent callers into one object, before the commands
	// that will name them (D7). The caller must hand every ref to a command of Do or to DropValues.
	PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error)

	// WriteValue stores one value of exactly size bytes from a stream, as an object of its own, with memory use of a few
	// chunks.
	WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error)

	// DropValues gives up refs that no command will name.
	DropValues(shardID string, refs ...shard.Ref)

	// ReadValue fills p from offset off of the value (not of its object). Verifying the checksum is the caller's part.
	ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error
}
