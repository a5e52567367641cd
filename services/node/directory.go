package node

import (
	"context"

	"kvstore/actors/directory/keeper"
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
