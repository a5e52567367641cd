// Package catalog is the directory as frontends and hosts of other processes have it: Server answers for the host that owns the
// directory (DirectoryService), Client keeps a current copy of it and takes requests to the owner, wherever that is. Local is the same
// for one process, without a network. Local and Client satisfy frontend.Directory.
//
// It decides nothing: package directory does, and package keeper runs it.
//
//	catalog.NewServer(keeper, catalog.ServerConfig{}).Register(grpcServer)   // on every host of shards
//
//	dir, err := catalog.NewClient(locator, catalog.ClientConfig{TLS: cfg})   // in every frontend
//	go dir.Run(ctx)
//	front, err := frontend.New(frontend.Config{}, shards, dir)
//
// DESIGN.md in actors/directory has what is promised, and how it is kept.
package catalog

import (
	"context"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/frontend"
)

var _ frontend.Directory = Local{}

// Local is the directory of this process.
type Local struct{ Keeper *keeper.Keeper }

// Revision is that of the last durable state; see Keeper.Revision for how old it may be.
func (l Local) Revision(ctx context.Context) (uint64, error) { return l.Keeper.Revision(ctx) }

// Snapshot returns every keyspace that can be used.
func (l Local) Snapshot(ctx context.Context) (*frontend.Snapshot, error) {
	c, err := l.Keeper.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	return snapshotOf(c), nil
}

// CreateKeyspace makes a keyspace with its shards.
func (l Local) CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error) {
	return l.Keeper.CreateKeyspace(ctx, ks)
}

// DeleteKeyspace removes a keyspace, its namespaces, its shards and all that they hold.
func (l Local) DeleteKeyspace(ctx context.Context, name string) error {
	return l.Keeper.DeleteKeyspace(ctx, name, "")
}

// CreateNamespace makes a namespace.
func (l Local) CreateNamespace(ctx context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error) {
	return l.Keeper.CreateNamespace(ctx, ns, keeper.Request{})
}

// UpdateNamespace changes the fields that mask names.
func (l Local) UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error) {
	return l.Keeper.UpdateNamespace(ctx, ns, mask, keeper.Request{})
}

// DeleteNamespace removes a namespace and all that it holds.
func (l Local) DeleteNamespace(ctx context.Context, keyspace, name string) error {
	return l.Keeper.DeleteNamespace(ctx, keyspace, name, keeper.Request{})
}

// snapshotOf returns every keyspace that can be used. One whose shards are still being made, or whose making was cut off and will
// be finished, is not there yet.
func snapshotOf(c *directory.Catalog) *frontend.Snapshot {
	s := &frontend.Snapshot{Revision: c.Revision}
	for _, ks := range c.Keyspaces {
		if !ks.Ready {
			continue
		}
		r := frontend.KeyspaceRecord{Keyspace: ks.Proto(), Map: ks.Map}
		for _, ns := range ks.Namespaces {
			r.Namespaces = append(r.Namespaces, ns.Proto())
		}
		s.Keyspaces = append(s.Keyspaces, r)
	}
	return s
}

// AcceptLoss lets a shard be opened whose store has lost records.
func (l Local) AcceptLoss(ctx context.Context, shardID string) (directory.Mark, error) {
	return l.Keeper.AcceptLoss(ctx, shardID)
}
