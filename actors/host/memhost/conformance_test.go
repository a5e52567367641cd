package memhost_test

import (
	"sync"
	"testing"

	"kvstore/actors/host/hosttest"
	"kvstore/actors/host/memhost"
)

func TestConformance(t *testing.T) {
	var all sync.Map // *wal.Store -> *memhost.LocalPeers
	hosttest.Run(t, func(t testing.TB, o hosttest.Options) hosttest.Host {
		cfg := memhost.Config{
			Address: o.Address, IdleAfter: o.IdleAfter, MemoryBudget: o.MemoryBudget, Actor: o.Actor, Shard: o.Shard, Values: o.Values,
			CheckpointValueBytes: o.CheckpointValueBytes,
		}
		if o.Reachable {
			peers, _ := all.LoadOrStore(o.Store, new(memhost.LocalPeers))
			cfg.Peers = peers.(*memhost.LocalPeers)
		}
		h, err := memhost.New(o.Store, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if o.Reachable {
			cfg.Peers.(*memhost.LocalPeers).Join(h)
		}
		return h
	})
}
