package frontend

import (
	"context"
	"io"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
	"kvstore/components/ring"
	"kvstore/components/wal"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Shards is the way from a frontend to shards, wherever they live. In one process it is *memhost.Host itself; between
// processes it is the data plane. Errors are *kverr.Error.
type Shards interface {
	// Do hands commands to one shard, in order, under one visit. Every command is released exactly once, possibly before Do
	// returns; a failure to reach the shard releases them with an error.
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)

	// Read asks one shard, linearizably: everything acknowledged before the call is in the answers. Those of one call may be from
	// several states. Every query is answered exactly once, possibly before Read returns; a failure to reach the
	// shard is told by each.
	Read(ctx context.Context, shardID string, queries ...*shard.Query)

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

	// Follower makes one for the watches of a client, which must be closed; its Next fails when ctx ends. What passes by itself, such as a shard that
	// changes hands, it does not tell.
	Follower(ctx context.Context) (fanout.Follower, error)
}

// Directory is the way to what keyspaces and namespaces there are. Errors are *kverr.Error. Messages that it returns belong to
// nobody: they are never changed.
type Directory interface {
	// Revision is that of a durable state of the directory in which is everything that this Directory was asked for and has
	// acknowledged. Of what others asked for it may be behind, by a time that the implementation tells: shards refuse what is routed by
	// a state that is too old. It is asked for every request, so it is cheap.
	Revision(ctx context.Context) (uint64, error)

	// Snapshot returns everything there is.
	Snapshot(ctx context.Context) (*Snapshot, error)

	// CreateKeyspace makes a keyspace with its shards, all of them, before it returns. The argument is validated; no number of shards
	// means as many as the directory is configured for.
	CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error)

	// DeleteKeyspace removes a keyspace, its namespaces, its shards and all that they hold.
	DeleteKeyspace(ctx context.Context, name string) error

	// CreateNamespace makes a namespace. The argument is validated.
	CreateNamespace(ctx context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error)

	// UpdateNamespace changes the fields that mask names. The argument is validated; a version in it, when not 0, must be the
	// current one.
	UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error)

	// DeleteNamespace removes a namespace and all that it holds.
	DeleteNamespace(ctx context.Context, keyspace, name string) error

	// AcceptLoss lets a shard be opened whose store has lost acknowledged records, and returns what is known to have been there. Of a
	// shard that serves nothing is accepted.
	AcceptLoss(ctx context.Context, shardID string) (wal.Mark, error)
}

// DirectoryCopy is a Directory that goes by a copy, and can tell how current it is.
type DirectoryCopy interface {
	Directory
	// CopyStatus tells how current the copy is.
	CopyStatus() *kvv1.StatusResponse_Directory
}

// Snapshot is a state of the directory.
type Snapshot struct {
	Revision  uint64
	Keyspaces []KeyspaceRecord // by name
}

// KeyspaceRecord is a keyspace with all that it has.
type KeyspaceRecord struct {
	Keyspace   *kvv1.Keyspace
	Map        *ring.Map
	Namespaces []*kvv1.Namespace // by name
}
