package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/daprhost"
	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
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

// statusTimeout bounds what one part of a cluster may take to tell its status.
const statusTimeout = 2 * time.Second

// clusterStatus asks every host that serves a shard. Shards that cannot be found, or whose host does not answer, are told as such.
func clusterStatus(ctx context.Context, dir *catalog.Client, locator *daprhost.Locator, hosts *connections) (*kvv1.StatusResponse, error) {
	snapshot, err := dir.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	ids := shardsOf(snapshot)
	where := make([]string, len(ids)) // address of each, or why there is none
	lost := make([]string, len(ids))
	eachOf(len(ids), func(i int) {
		asking, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if loc, err := locator.Locate(asking, ids[i]); err != nil {
			lost[i] = err.Error()
		} else {
			where[i] = loc.Address
		}
	})
	addresses := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(where))), func(a string) bool { return a == "" })
	told := make([]*kvv1.StatusResponse, len(addresses))
	silent := make([]error, len(addresses))
	eachOf(len(addresses), func(i int) {
		asking, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		conn, err := hosts.dial(addresses[i])
		if err == nil {
			var r *dataplanev1.StatusResponse
			if r, err = dataplanev1.NewShardServiceClient(conn).Status(asking, &dataplanev1.StatusRequest{}); err == nil {
				told[i] = r.GetStatus()
			}
		}
		silent[i] = err
	})
	for i, at := range where {
		if n := slices.Index(addresses, at); n >= 0 && silent[n] != nil {
			lost[i] = fmt.Sprintf("host %s does not answer: %v", at, silent[n])
		}
	}
	return merged(ids, lost, told), nil
}

// merged makes one status of what each host told; nil is one that told nothing. lost are the reasons why shards were not found, by their place in ids.
func merged(ids, lost []string, told []*kvv1.StatusResponse) *kvv1.StatusResponse {
	resp := &kvv1.StatusResponse{}
	known := make(map[string]*kvv1.StatusResponse_Shard)
	for _, r := range told {
		if r == nil {
			continue
		}
		if resp.Engine == "" || r.FreeBytes < resp.FreeBytes {
			resp.Engine, resp.FreeBytes, resp.ReserveBytes = r.Engine, r.FreeBytes, r.ReserveBytes
		}
		for _, s := range r.Shards {
			// A host that lost a shard knows of it, too: who serves it counts, else who tries to.
			old := known[s.Id]
			if old == nil || s.Epoch > old.Epoch || s.Epoch == old.Epoch && old.State == memhost.StateAsleep {
				known[s.Id] = s
			}
		}
	}
	for i, id := range ids {
		s := known[id]
		if s == nil || s.State == memhost.StateAsleep && lost[i] != "" { // to those who do not serve it it sleeps
			s = &kvv1.StatusResponse_Shard{Id: id, State: memhost.StateFailed, Reason: lost[i]}
		}
		resp.Shards = append(resp.Shards, s)
	}
	return resp
}

// eachOf calls f for 0 to n-1, some at once.
func eachOf(n int, f func(i int)) {
	var wait sync.WaitGroup
	next := make(chan int)
	for range min(n, 8) {
		wait.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wait.Wait()
}

// shardsOf lists the shards of all keyspaces.
func shardsOf(s *frontend.Snapshot) []string {
	var ids []string
	for _, ks := range s.Keyspaces {
		for n := range ks.Map.Shards() {
			ids = append(ids, ks.Map.ShardID(n))
		}
	}
	return ids
}
