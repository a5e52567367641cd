package shard

import (
	"bytes"
	"math"

	"kvstore/components/kverr"
)

// maxEvictions bounds how many blocks one command pushes out beyond the room that its own blocks need: a capacity that was
// made smaller, or exceeded after a change of owner, is reached step by step.
const maxEvictions = 1000

// stepIndex is OpIndex: the first writer wins, a block that is there is used. Evictions are effects of the same command.
func (m *Machine) stepIndex(c *Command) {
	a, p := c.Prompt, &m.prompt
	if m.foreign(c) {
		m.fail(c, &kverr.Error{Kind: kverr.InvalidArgument, Op: "index", Field: "scope",
			Message: "another scope has the same id; change a field"}, m.meta.revision)
		return
	}
	sp := m.space(c.Namespace)
	c.Result.Blocks = make([]BlockOutcome, len(a.Index))
	sp.order.Begin()
	p.own = p.own[:0]
	var dep uint64
	// What the command names does not make room for what it brings.
	for i := range a.Index {
		f, d := m.find(sp, c, &a.Index[i].Block)
		dep = max(dep, d)
		if f.item == nil {
			continue
		}
		c.Result.Blocks[i].fill(&f.b)
		sp.touch(f.item, m.now)
		sp.order.Hold(f.item)
		p.own = append(p.own, f.item)
	}
	full, spare := false, maxEvictions
	for i := range a.Index {
		o := &c.Result.Blocks[i]
		if o.Present {
			continue
		}
		b := &a.Index[i]
		p.typed = appendBlockKey(p.typed[:0], c.Namespace, &a.Scope, &b.Block)
		if sp.order.Get(p.typed) != nil {
			o.Present = true // twice in one command
			o.Size, o.Checksum = b.Size, b.Checksum
			continue
		}
		if full = full || m.full(); full {
			o.Refused = true
			continue
		}
		if !m.makeRoom(c, sp, b.Size, &spare) {
			o.Refused = true
			continue
		}
		m.begin(c)
		e := storedEffect{key: p.typed, block: Block{
			Depth: b.Block.Depth, Parent: b.Parent, Value: b.Value, Size: b.Size, Checksum: b.Checksum,
			CreatedMS: m.now, TouchedMS: m.now,
		}}
		if b.TTLMS > 0 {
			e.block.ExpiresMS = m.now + b.TTLMS
		}
		if u := m.readScope(c.Namespace, &a.Scope); u.blocks == 0 {
			e.fields = a.ScopeFields
		}
		it := sp.order.Store(p.typed, b.Block.Depth, b.Size)
		it.AtMS = m.now
		sp.bytes += b.Size
		sp.order.Hold(it)
		p.own = append(p.own, it)
		e.block.use = it.Use
		p.payload = e.append(p.payload[:0])
		m.log(c.Result.Revision, kindBlockStored, p.payload)
		m.applyStored(c.Result.Revision, &e)
		o.Stored = true
		o.Value, o.Size, o.Checksum = b.Value, b.Size, b.Checksum
	}
	for _, it := range p.own {
		sp.order.Unhold(it)
	}
	clear(p.own)
	c.Result.Evicted = p.statsOf(c.Namespace).evicted
	m.reply(c, max(dep, c.Result.Revision))
}

// makeRoom evicts until a new block of so many bytes fits into the capacity, and tells whether it may be stored. Evictions
// beyond the room that the block takes count against spare; when that is used up, a block is stored in place of others.
func (m *Machine) makeRoom(c *Command, sp *promptSpace, size int64, spare *int) bool {
	p, limit := &m.prompt, c.Prompt.Capacity
	if limit.Blocks == 0 {
		limit.Blocks = math.MaxInt64 / 2
	}
	if limit.Bytes == 0 {
		limit.Bytes = math.MaxInt64 / 2
	}
	if size > limit.Bytes {
		return false
	}
	fits := func(l Capacity) bool {
		return int64(sp.order.Len()) < l.Blocks && sp.bytes <= l.Bytes-size
	}
	if m.quiet() {
		// Nothing may go; for the time of a lease the capacity may be exceeded by a tenth.
		return fits(Capacity{Blocks: limit.Blocks + max(1, limit.Blocks/10), Bytes: limit.Bytes + limit.Bytes/10})
	}
	freed, n := int64(0), 0
	for !fits(limit) {
		if n > 0 && freed >= size {
			if *spare == 0 {
				break
			}
			*spare--
		}
		it := sp.order.First()
		if it == nil {
			return false
		}
		m.begin(c)
		m.remove(c.Result.Revision, []byte(it.Key), removedEvicted)
		freed += it.Bytes
		n++
		sp.forget(it, true)
		p.statsOf(c.Namespace).evicted++
		m.cfg.Evicted(it.Bytes)
	}
	return true
}

// BlockEvent is what the attached bytes of EventBlockStored and EventBlockRemoved say.
type BlockEvent struct {
	Scope       ScopeID
	ID          []byte
	Rank, Group uint32
	Depth       uint32
	Size        int64
	Parent      []byte
	// Reason of a removal: 1 deleted, 2 evicted, 3 expired, 4 damaged, 5 cleared.
	Reason uint8
}

// Block decodes a block's event.
func (e *Event) Block() (b BlockEvent, ok bool) {
	if e.Kind != EventBlockStored && e.Kind != EventBlockRemoved {
		return b, false
	}
	_, scope, k, ok := splitBlockKey(append(appendSpaceKey(nil, prefixBlock, e.Namespace), bytes.Clone(e.Key)...))
	if !ok {
		return b, false
	}
	r := reader{b: e.Attached}
	b = BlockEvent{Scope: scope, ID: k.ID, Rank: k.Rank, Group: k.Group, Size: int64(r.uvarint()), Depth: uint32(r.uvarint()), Reason: uint8(r.uvarint())}
	b.Parent = r.b
	return b, !r.bad
}
