package memhost

import (
	"context"
	"sync"
	"time"

	"kvstore/components/wal"
)

// Peers is the way to the other hosts that share an engine. What they answer is a hint: only a shard's manifest and log decide.
type Peers interface {
	// Yield asks a shard's holder to give it up, and returns when it has answered or cannot be asked: for how long it is to be left
	// alone (Host.Waits), or 0.
	Yield(ctx context.Context, shardID string, holder wal.Holder) time.Duration
	// Serves asks a shard's holder whether it still serves the shard in that epoch. An error says that it could not be asked, which
	// is not the same as that nobody is there.
	Serves(ctx context.Context, shardID string, holder wal.Holder) (Serving, error)
}

// Serving is what a host says of a shard.
type Serving struct {
	Serves bool // it is the owner, as far as it knows
	Placed bool // and it may open it again; see Placement
}

// LocalPeers are the hosts of one process, which find each other by address. The zero value is ready.
type LocalPeers struct {
	mu    sync.RWMutex
	hosts map[string]*Host // guarded by mu
}

var _ Peers = (*LocalPeers)(nil)

// Join makes a host known by its address, in place of an earlier one. One that is closed may stay: it serves nothing.
func (p *LocalPeers) Join(h *Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts == nil {
		p.hosts = make(map[string]*Host)
	}
	p.hosts[h.cfg.Address] = h
}

func (p *LocalPeers) host(address string) *Host {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.hosts[address]
}

// Yield is for Peers.
func (p *LocalPeers) Yield(ctx context.Context, shardID string, holder wal.Holder) time.Duration {
	h := p.host(holder.Address)
	if h == nil {
		return 0
	}
	wait := h.Waits(shardID, holder.Epoch)
	if wait == 0 {
		h.Yield(ctx, shardID, holder.Epoch)
	}
	return wait
}

// Serves is for Peers.
func (p *LocalPeers) Serves(_ context.Context, shardID string, holder wal.Holder) (Serving, error) {
	if h := p.host(holder.Address); h != nil {
		return h.Serves(shardID, holder.Epoch), nil
	}
	return Serving{}, nil
}
