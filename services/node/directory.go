package node

import (
	"context"

	"kvstore/actors/directory/keeper"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/frontend"
)

var _ frontend.Directory = directoryOf{}

// directoryOf is the directory of this process as a frontend wants it.
type directoryOf struct{ *keeper.Keeper }

// Snapshot returns every keyspace that can be used. One whose shards are still being made, or whose making a crash cut off and
// the keeper will finish, is not there yet.
func (d directoryOf) Snapshot(ctx context.Context) (*frontend.Snapshot, error) {
	catalog, err := d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	s := &frontend.Snapshot{Revision: catalog.Revision}
	for _, ks := range catalog.Keyspaces {
		if !ks.Ready {
			continue
		}
		r := frontend.KeyspaceRecord{Keyspace: ks.Proto(), Map: ks.Map}
		for _, ns := range ks.Namespaces {
			r.Namespaces = append(r.Namespaces, ns.Proto())
		}
		s.Keyspaces = append(s.Keyspaces, r)
	}
	return s, nil
}

// DeleteKeyspace removes a keyspace, its namespaces, its shards and all that they hold.
func (d directoryOf) DeleteKeyspace(ctx context.Context, name string) error {
	return d.Keeper.DeleteKeyspace(ctx, name, "")
}

// CreateNamespace makes a namespace.
func (d directoryOf) CreateNamespace(ctx context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error) {
	return d.Keeper.CreateNamespace(ctx, ns, keeper.Request{})
}

// UpdateNamespace changes the fields that mask names.
func (d directoryOf) UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error) {
	return d.Keeper.UpdateNamespace(ctx, ns, mask, keeper.Request{})
}

// DeleteNamespace removes a namespace and all that it holds.
func (d directoryOf) DeleteNamespace(ctx context.Context, keyspace, name string) error {
	return d.Keeper.DeleteNamespace(ctx, keyspace, name, keeper.Request{})
}
