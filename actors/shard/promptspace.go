package shard

import (
	"container/heap"

	"kvstore/components/promptcache"
)

// promptState is what the machine keeps in memory alone for the prompt cache, and room that is used again.
type promptState struct {
	scopes map[scopeKey]*scopeUse // accounts that this body changed
	spaces map[NamespaceID]*promptSpace
	loaded []*promptSpace               // the same, in order of loading
	rolled map[NamespaceID]*promptSpace // as they were before a roll-back, until the namespace is loaded anew
	stats  map[NamespaceID]*promptStats
	leases leases

	nextExpiry int64 // first expiry of a block; 0 = none, unknownExpiry = look
	retryAtMS  int64 // blocks that are due are held: look again then; 0 = none are

	// Room: typed is for steps; the others are for what a step calls.
	typed, key, item, attached, payload []byte
	own                                 []*promptcache.Item
	due                                 [][]byte
}

// promptStats count since the machine was made; a roll-back does not take them back.
type promptStats struct{ evicted, damaged int64 }

// promptSpace is the order of use of one namespace. It is loaded by the first prompt command of the namespace after the tree
// was replaced, with one scan.
type promptSpace struct {
	order promptcache.Order
	bytes int64
	pins  pinHeap
	// touched are the blocks with uses that are not durable yet, in order of the first such use; from head on.
	touched []*promptcache.Item
	head    int
}

const (
	// maxTouched bounds how many blocks wait for their use to be stored; a use beyond it counts, but is forgotten by a restart.
	maxTouched = 1 << 16
	// maxRiding bounds how many uses ride along with one record.
	maxRiding = 256
)

func (p *promptState) statsOf(ns NamespaceID) *promptStats {
	s := p.stats[ns]
	if s == nil {
		if p.stats == nil {
			p.stats = make(map[NamespaceID]*promptStats)
		}
		s = new(promptStats)
		p.stats[ns] = s
	}
	return s
}

// space is the order of a namespace's blocks, in step with the tree.
func (m *Machine) space(ns NamespaceID) *promptSpace {
	p := &m.prompt
	if sp := p.spaces[ns]; sp != nil {
		return sp
	}
	old := p.rolled[ns]
	delete(p.rolled, ns)
	sp := new(promptSpace)
	from := appendSpaceKey(nil, prefixBlock, ns)
	type held struct {
		it    *promptcache.Item
		until int64
	}
	var pinned []held
	for typed, item := range m.tree.Ascend(from, rangeEnd(from)) {
		var b Block
		if !b.decode(item) {
			continue
		}
		it := sp.order.Restore(typed, b.Depth, b.Size, b.use)
		it.AtMS = b.TouchedMS
		sp.bytes += b.Size
		if b.PinnedUntilMS > m.now {
			pinned = append(pinned, held{it, b.PinnedUntilMS})
		}
	}
	sp.order.Sort()
	if old != nil {
		// A roll-back: uses that only memory knew go on.
		for _, was := range old.touched[old.head:] { // those before head are in the tree or rolled back with it
			if it := sp.order.Get([]byte(was.Key)); it != nil && was.Changed {
				sp.order.SetUse(it, was.Use)
				sp.noteUse(it, was.AtMS)
			}
		}
	}
	for _, h := range pinned {
		sp.pin(h.it, h.until)
	}
	p.leases.reattach(ns, sp)
	if p.spaces == nil {
		p.spaces = make(map[NamespaceID]*promptSpace)
	}
	p.spaces[ns] = sp
	p.loaded = append(p.loaded, sp)
	return sp
}

// touch notes a use of a block.
func (sp *promptSpace) touch(it *promptcache.Item, nowMS int64) {
	sp.order.Touch(it)
	sp.noteUse(it, nowMS)
}

func (sp *promptSpace) noteUse(it *promptcache.Item, nowMS int64) {
	it.AtMS = nowMS
	if !it.Changed && len(sp.touched)-sp.head < maxTouched {
		it.Changed = true
		sp.touched = append(sp.touched, it)
	}
}

// ridePrompt adds what only memory knows to a body that is going to be written anyway: the first uses that wait, and a lease
// horizon that comes near. Neither ever makes a record of its own.
func (m *Machine) ridePrompt() {
	p := &m.prompt
	m.rideHorizon()
	room := maxRiding
	for _, sp := range p.loaded {
		for room > 0 && sp.head < len(sp.touched) {
			it := sp.touched[sp.head]
			sp.touched[sp.head] = nil
			sp.head++
			it.Changed = false
			p.typed = append(p.typed[:0], it.Key...)
			if sp.order.Get(p.typed) != it {
				continue
			}
			room--
			e := markEffect{key: p.typed, a: uint64(it.AtMS), b: it.Use.Clock, c: uint64(it.Use.Count)}
			p.payload = e.append(p.payload[:0])
			m.log(m.meta.revision, kindBlockTouched, p.payload)
			m.applyTouched(&e)
		}
		if sp.head == len(sp.touched) {
			sp.touched, sp.head = sp.touched[:0], 0
		} else if sp.head > len(sp.touched)/2 && sp.head > 1024 {
			n := copy(sp.touched, sp.touched[sp.head:])
			clear(sp.touched[n:])
			sp.touched, sp.head = sp.touched[:n], 0
		}
	}
}

// pinned blocks in order of the time that their pins end; entries whose block has another pin by now are skipped.
type pinHeap []pinned

type pinned struct {
	untilMS int64
	it      *promptcache.Item
}

func (h pinHeap) Len() int           { return len(h) }
func (h pinHeap) Less(i, j int) bool { return h[i].untilMS < h[j].untilMS }
func (h pinHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for package heap.
func (h *pinHeap) Push(x any) { *h = append(*h, x.(pinned)) }

// Pop is for package heap.
func (h *pinHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = pinned{}
	*h = old[:len(old)-1]
	return x
}

// pin keeps a block from eviction until a time; 0 = no more.
func (sp *promptSpace) pin(it *promptcache.Item, untilMS int64) {
	if it.PinnedMS == untilMS {
		return
	}
	if it.PinnedMS == 0 {
		sp.order.Hold(it)
	}
	it.PinnedMS = untilMS
	if untilMS == 0 {
		sp.order.Unhold(it)
		return
	}
	// Pins that were moved leave entries behind; they are thrown out when they are the most.
	if len(sp.pins) > 64 && len(sp.pins) > 2*(sp.order.Len()-sp.order.Waiting()) {
		live := sp.pins[:0]
		for _, e := range sp.pins {
			if e.it.PinnedMS == e.untilMS {
				live = append(live, e)
			}
		}
		clear(sp.pins[len(live):])
		sp.pins = live
		heap.Init(&sp.pins)
	}
	heap.Push(&sp.pins, pinned{untilMS, it})
}

// endPins lets go of blocks whose pins are over.
func (sp *promptSpace) endPins(nowMS int64) {
	for len(sp.pins) > 0 && sp.pins[0].untilMS <= nowMS {
		e := heap.Pop(&sp.pins).(pinned)
		if e.it.PinnedMS == e.untilMS {
			e.it.PinnedMS = 0
			sp.order.Unhold(e.it)
		}
	}
}

// forget takes a block that left the tree out of the order.
func (sp *promptSpace) forget(it *promptcache.Item, evicted bool) {
	sp.bytes -= it.Bytes
	it.PinnedMS = 0
	if evicted {
		sp.order.Evict(it)
		return
	}
	sp.order.Remove(it)
}
