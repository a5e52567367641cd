package shard

import (
	"container/heap"
	"fmt"

	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/promptcache"
)

// Bounds of leases.
const (
	MaxLeaseMS      = key.MaxLeaseMS // longest lease (D10)
	maxLeases       = 1 << 16        // leases of a shard at one time; beyond it a Lookup with a lease is Exhausted
	maxLeasedBlocks = 1 << 20        // blocks that they hold together, counted once a lease
	horizonAheadMS  = 2 * MaxLeaseMS
	horizonNearMS   = horizonAheadMS * 3 / 4
)

// leases are volatile. So that a new owner knows whether its predecessor may have granted any, the tree has a horizon: a
// shard time after which no lease that was ever granted ends. It is moved ahead by a minute at a time, so that a Lookup waits for a
// record of its own at most when leases begin to be used; later the horizon rides along.
type leases struct {
	byID   map[[16]byte]*lease
	line   leaseHeap
	blocks int

	horizons [2]horizon // the one before, and the last: leases that end before the first need not wait for the second
	started  bool       // the machine serves: what is restored from now on is a roll-back
	quietMS  int64      // until then nothing may be evicted or deleted: leases of the owner before may hold it
}

type horizon struct {
	untilMS  int64
	revision uint64 // that makes it durable; 0 = it is
}

type lease struct {
	id        [16]byte
	ns        NamespaceID
	expiresMS int64
	space     *promptSpace
	items     []*promptcache.Item
	pos       int
}

// startPrompt is called before the first command: what the machine holds now is what its predecessor left.
func (m *Machine) startPrompt() {
	l := &m.prompt.leases
	if l.started {
		return
	}
	l.started = true
	h := m.readHorizon()
	l.horizons = [2]horizon{{}, {untilMS: h}}
	// No lease was granted after the last record that ends later than the horizon which that record knew. The second
	// MaxLeaseMS is for a predecessor whose clock was behind.
	if h > m.meta.timeMS && m.now < h+MaxLeaseMS {
		l.quietMS = m.now + MaxLeaseMS
	}
}

func (m *Machine) readHorizon() int64 {
	item, ok := m.tree.Get(horizonKey)
	if !ok {
		return 0
	}
	r := reader{b: item}
	return int64(r.uvarint())
}

// quiet tells whether leases of an earlier owner may still run.
func (m *Machine) quiet() bool { return m.now < m.prompt.leases.quietMS }

// restoreLeases is for a roll-back: leases stay, the horizon is what is durable.
func (m *Machine) restoreLeases() {
	if l := &m.prompt.leases; l.started {
		l.horizons = [2]horizon{{}, {untilMS: m.readHorizon()}}
	}
}

// coverLease makes the horizon reach untilMS and returns the revision that the lease depends on.
func (m *Machine) coverLease(untilMS int64) uint64 {
	l := &m.prompt.leases
	for _, h := range l.horizons {
		if untilMS <= h.untilMS {
			return h.revision
		}
	}
	return m.moveHorizon()
}

func (m *Machine) moveHorizon() uint64 {
	l := &m.prompt.leases
	h := horizon{untilMS: m.now + horizonAheadMS, revision: m.newRevision()}
	l.horizons[0], l.horizons[1] = l.horizons[1], h
	m.prompt.payload = appendUintField(m.prompt.payload[:0], 1, uint64(h.untilMS))
	m.log(h.revision, kindLeaseHorizon, m.prompt.payload)
	m.applyHorizon(h.untilMS)
	return h.revision
}

// rideHorizon moves the horizon ahead with a body that is written anyway, while leases are in use.
func (m *Machine) rideHorizon() {
	l := &m.prompt.leases
	if len(l.line) > 0 && l.horizons[1].untilMS-m.now < horizonNearMS {
		m.moveHorizon()
	}
}

// grant leases blocks to id until a time; a lease of that id goes on with more blocks.
func (m *Machine) grant(ns NamespaceID, sp *promptSpace, id [16]byte, expiresMS int64, items []*promptcache.Item) {
	ls := &m.prompt.leases
	l := ls.byID[id]
	if l != nil && l.ns != ns {
		ls.end(l)
		l = nil
	}
	if l == nil {
		l = &lease{id: id, ns: ns, expiresMS: expiresMS, space: sp}
		if ls.byID == nil {
			ls.byID = make(map[[16]byte]*lease)
		}
		ls.byID[id] = l
		heap.Push(&ls.line, l)
	} else if expiresMS > l.expiresMS {
		l.expiresMS = expiresMS
		heap.Fix(&ls.line, l.pos)
	}
	for _, it := range items {
		it.Leases++
		sp.order.Hold(it)
	}
	l.items = append(l.items, items...)
	ls.blocks += len(items)
}

// room tells why no more may be leased; nil when it may.
func (l *leases) room(id [16]byte, blocks int) *kverr.Error {
	e := &kverr.Error{Kind: kverr.Exhausted, Op: "lease", Field: "lease_ms", RetryAfterMS: MaxLeaseMS / 10}
	if _, known := l.byID[id]; !known && len(l.byID) >= maxLeases {
		e.Message = fmt.Sprintf("the shard has %d leases, the most it grants at one time", maxLeases)
		return e
	}
	if l.blocks+blocks > maxLeasedBlocks {
		e.Message = fmt.Sprintf("leases hold %d blocks of the shard and may hold %d", l.blocks, maxLeasedBlocks)
		return e
	}
	return nil
}

// end gives up a lease.
func (l *leases) end(x *lease) {
	heap.Remove(&l.line, x.pos)
	delete(l.byID, x.id)
	l.blocks -= len(x.items)
	for _, it := range x.items {
		it.Leases--
		x.space.order.Unhold(it)
	}
	x.items = nil
}

// endDue gives up the leases whose time is over.
func (l *leases) endDue(nowMS int64) {
	for len(l.line) > 0 && l.line[0].expiresMS <= nowMS {
		l.end(l.line[0])
	}
}

// reattach moves the leases of a namespace to blocks that were loaded anew; blocks that are gone leave their lease.
func (l *leases) reattach(ns NamespaceID, sp *promptSpace) {
	for _, x := range l.line {
		if x.ns != ns || x.space == sp {
			continue
		}
		kept := x.items[:0]
		for _, it := range x.items {
			if now := sp.order.Get([]byte(it.Key)); now != nil {
				now.Leases++
				sp.order.Hold(now)
				kept = append(kept, now)
			}
		}
		clear(x.items[len(kept):])
		l.blocks -= len(x.items) - len(kept)
		x.items, x.space = kept, sp
	}
}

type leaseHeap []*lease

func (h leaseHeap) Len() int           { return len(h) }
func (h leaseHeap) Less(i, j int) bool { return h[i].expiresMS < h[j].expiresMS }
func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

// Push is for package heap.
func (h *leaseHeap) Push(x any) {
	l := x.(*lease)
	l.pos = len(*h)
	*h = append(*h, l)
}

// Pop is for package heap.
func (h *leaseHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return l
}
