package memhost

import (
	"context"
	"sync"

	"kvstore/components/wal"
)

// Peers is where the hosts of one process find each other by address, so that one can ask another to yield a shard. The
// zero value is ready.
type Peers struct {
	mu    sync.RWMutex
	hosts map[string]*Host // guarded by mu
}

func (p *Peers) join(address string, h *Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts == nil {
		p.hosts = make(map[string]*Host)
	}
	p.hosts[address] = h
}

func (p *Peers) leave(address string, h *Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts[address] == h {
		delete(p.hosts, address)
	}
}

// yield asks a shard's holder to give it up. The manifest tells whether it did. A host does not ask itself: what it held it has
// given up before.
func (p *Peers) yield(ctx context.Context, asking *Host, shardID string, holder wal.Holder) {
	if p == nil {
		return
	}
	p.mu.RLock()
	h := p.hosts[holder.Address]
	p.mu.RUnlock()
	if h != nil && h != asking {
		h.Yield(ctx, shardID, holder.Epoch)
	}
}
