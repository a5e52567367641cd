package node

import (
	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// statusOf tells how the engine and the shards of a host are (AdminService.Status).
func statusOf(store *wal.Store, h *memhost.Host) *kvv1.StatusResponse {
	resp := &kvv1.StatusResponse{Engine: store.Engine().Name()}
	resp.FreeBytes, resp.ReserveBytes = store.Engine().Space()
	for _, s := range h.Status() {
		if s.ID == keeper.ShardID {
			continue // it belongs to no keyspace; /readyz tells when something is wrong with it
		}
		p := &kvv1.StatusResponse_Shard{
			Id: s.ID, State: s.State, Epoch: s.Epoch, Revision: s.Revision, Seq: s.Seq, Entries: s.Entries,
			MemoryBytes: s.MemoryBytes, LogBytes: s.LogBytes, CheckpointBytes: s.CheckpointBytes, ValueBytes: s.ValueBytes,
		}
		if s.Reason != nil {
			p.Reason = s.Reason.Error()
		}
		resp.Shards = append(resp.Shards, p)
	}
	return resp
}
