package shard

import (
	"fmt"

	"kvstore/components/kverr"
	"kvstore/components/promptcache"
)

// The prompt cache's half of the machine: blocks named by (scope, id, rank, group), stored once and never changed. PROMPT.md
// beside this file says how uses, leases and capacity work.

// stepPrompt takes a prompt command.
func (m *Machine) stepPrompt(c *Command) {
	m.startPrompt()
	if err := c.promptFault(); err != nil {
		m.fail(c, err, 0)
		return
	}
	switch {
	case c.Op == OpRelease, c.Op == OpUnindex: // they only ever take away
	case (c.Op == OpPin || c.Op == OpDeleteBlocks) && m.isDropped(c.Namespace) && m.answered(c, c.blockSlot()):
		return
	case m.refuseDropped(c):
		return
	}
	switch c.Op {
	case OpLookup:
		m.stepLookup(c)
	case OpTouch:
		m.stepTouch(c)
	case OpIndex:
		m.stepIndex(c)
	case OpRelease:
		if l := m.prompt.leases.byID[c.Prompt.Lease]; l != nil && l.ns == c.Namespace {
			m.prompt.leases.end(l)
		}
		m.reply(c, 0)
	case OpPin:
		m.stepPin(c)
	case OpDeleteBlocks:
		m.stepDeleteBlocks(c)
	case OpClear:
		m.stepClear(c)
	case OpUnindex:
		m.stepUnindex(c)
	}
}

// promptFault is what is wrong with a prompt command's arguments; nil when nothing is.
func (c *Command) promptFault() *kverr.Error {
	p := c.Prompt
	for i := range p.Blocks {
		if err := p.Blocks[i].fault("blocks", i); err != nil {
			return err
		}
	}
	for i := range p.Index {
		b := &p.Index[i]
		if err := b.Block.fault("index", i); err != nil {
			return err
		}
		switch {
		case len(b.Parent) > promptcache.MaxIDBytes:
			return tooLarge("parent", fmt.Sprintf("block %d: a parent of %d bytes; at most %d", i, len(b.Parent), promptcache.MaxIDBytes))
		case b.Size < 0 || b.Size > b.Value.size():
			return invalid("size", fmt.Sprintf("block %d: size %d of a value of %d bytes", i, b.Size, b.Value.size()))
		case b.TTLMS < 0 || b.TTLMS > maxBlockTTLMS:
			return invalid("ttl_ms", fmt.Sprintf("%d is not a time to live: 0 to %d", b.TTLMS, int64(maxBlockTTLMS)))
		}
	}
	switch {
	case p.Capacity.Blocks < 0 || p.Capacity.Bytes < 0:
		return invalid("capacity", "a capacity is not negative")
	case p.LeaseMS < 0 || p.LeaseMS > MaxLeaseMS:
		return invalid("lease_ms", fmt.Sprintf("%d is not a lease: 0 to %d", p.LeaseMS, MaxLeaseMS))
	case p.UntilMS < 0 || p.UntilMS > maxBlockTTLMS:
		return invalid("until_ms", fmt.Sprintf("%d is not a time: 0 to %d", p.UntilMS, int64(maxBlockTTLMS)))
	case c.Op == OpUnindex && len(p.Damaged) != len(p.Blocks):
		return invalid("damaged", "there must be one reference for each block")
	}
	return nil
}

// maxBlockTTLMS keeps times within the six bytes of the expiry index.
const maxBlockTTLMS = 1 << 46

func (k *BlockKey) fault(field string, i int) *kverr.Error {
	switch {
	case len(k.ID) == 0:
		return invalid(field, fmt.Sprintf("block %d has no id", i))
	case len(k.ID) > promptcache.MaxIDBytes:
		return tooLarge(field, fmt.Sprintf("block %d: an id of %d bytes; at most %d", i, len(k.ID), promptcache.MaxIDBytes))
	}
	return nil
}

func tooLarge(field, message string) *kverr.Error {
	return &kverr.Error{Kind: kverr.TooLarge, Op: "step", Field: field, Message: message}
}

// found is a block as a command meets it.
type found struct {
	item *promptcache.Item // nil when it is not there
	b    Block
}

// find looks a block up; dep is what the answer depends on. The typed key is in m.prompt.typed afterwards.
func (m *Machine) find(sp *promptSpace, c *Command, k *BlockKey) (f found, dep uint64) {
	p := &m.prompt
	p.typed = appendBlockKey(p.typed[:0], c.Namespace, &c.Prompt.Scope, k)
	item, ok := m.tree.Get(p.typed)
	if !ok || !f.b.decode(item) {
		return found{}, m.removedAt
	}
	f.item = sp.order.Get(p.typed)
	return f, max(f.b.Revision, m.pinnedAt)
}

// foreign tells whether the command's scope is another than the one stored under its id: a collision of hashes, in which
// nothing may be found and nothing stored.
func (m *Machine) foreign(c *Command) bool {
	if len(c.Prompt.ScopeFields) == 0 {
		return false
	}
	u := m.readScope(c.Namespace, &c.Prompt.Scope)
	return u.blocks > 0 && string(u.fields) != string(c.Prompt.ScopeFields)
}

func (o *BlockOutcome) fill(b *Block) {
	o.Present = true
	o.Value, o.Size, o.Checksum, o.PinnedUntilMS = b.Value, b.Size, b.Checksum, b.PinnedUntilMS
}

// use is Lookup and Touch: it fills in the outcomes, notes the uses and returns what the outcome depends on.
func (m *Machine) use(c *Command, sp *promptSpace) (dep uint64) {
	p := &m.prompt
	p.own = p.own[:0]
	c.Result.Blocks = make([]BlockOutcome, len(c.Prompt.Blocks))
	if m.foreign(c) {
		return m.meta.revision
	}
	sp.order.Begin()
	for i := range c.Prompt.Blocks {
		f, d := m.find(sp, c, &c.Prompt.Blocks[i])
		dep = max(dep, d)
		if f.item == nil {
			continue
		}
		c.Result.Blocks[i].fill(&f.b)
		sp.touch(f.item, m.now)
		p.own = append(p.own, f.item)
	}
	return dep
}

func (m *Machine) stepTouch(c *Command) {
	dep := m.use(c, m.space(c.Namespace))
	s := m.prompt.statsOf(c.Namespace)
	c.Result.Evicted, c.Result.Damaged = s.evicted, s.damaged
	m.reply(c, dep)
}

func (m *Machine) stepLookup(c *Command) {
	a, p := c.Prompt, &m.prompt
	sp := m.space(c.Namespace)
	if a.LeaseMS > 0 {
		if err := p.leases.room(a.Lease, len(a.Blocks)); err != nil {
			m.fail(c, err, 0)
			return
		}
	}
	dep := m.use(c, sp)
	if a.LeaseMS > 0 && len(p.own) > 0 {
		c.Result.LeaseExpiresMS = m.now + a.LeaseMS
		dep = max(dep, m.coverLease(c.Result.LeaseExpiresMS))
		m.grant(c.Namespace, sp, a.Lease, c.Result.LeaseExpiresMS, p.own)
	}
	clear(p.own)
	m.reply(c, dep)
}

// blockSlot is the slot that the outcome of a command on blocks is remembered with: that of its first block.
func (c *Command) blockSlot() uint16 {
	if len(c.Prompt.Blocks) == 0 {
		return 0
	}
	return c.Prompt.Blocks[0].Slot
}

// replyBlocks answers OpPin and OpDeleteBlocks; with an identity the outcome is remembered, and then leaves once that is durable.
func (m *Machine) replyBlocks(c *Command, typ byte, dep uint64) {
	if c.ID.given() {
		changed := c.Result.Revision != 0
		switch {
		case changed:
			dep = c.Result.Revision
		case m.overfull():
			m.fail(c, m.exhausted(), 0)
			return
		default:
			dep = m.newRevision()
		}
		m.payload = appendOutcome(m.payload[:0], typ, changed, c.ID.NotAfterMS, dep)
		m.payload = appendBlocks(m.payload, c.Result.Blocks)
		m.remember(dep, c.blockSlot(), &c.ID)
	}
	m.reply(c, dep)
}

func (m *Machine) stepPin(c *Command) {
	if m.answered(c, c.blockSlot()) {
		return
	}
	if c.ID.given() && m.overfull() { // a pin makes room for nothing, and what it remembers takes some
		m.fail(c, m.exhausted(), 0)
		return
	}
	p := &m.prompt
	sp := m.space(c.Namespace)
	c.Result.Blocks = make([]BlockOutcome, len(c.Prompt.Blocks))
	if m.foreign(c) {
		m.replyBlocks(c, outcomePin, m.meta.revision)
		return
	}
	until := c.Prompt.UntilMS
	if until <= m.now {
		until = 0
	}
	var dep uint64
	for i := range c.Prompt.Blocks {
		f, d := m.find(sp, c, &c.Prompt.Blocks[i])
		dep = max(dep, d)
		if f.item == nil {
			continue
		}
		if f.b.PinnedUntilMS != until {
			// A pin outlives the block's time to live.
			expires := f.b.ExpiresMS
			if expires != 0 && expires < until {
				expires = until
			}
			m.begin(c)
			dep = c.Result.Revision
			e := markEffect{key: p.typed, a: uint64(until), b: uint64(expires)}
			p.payload = e.append(p.payload[:0])
			m.log(c.Result.Revision, kindBlockPinned, p.payload)
			m.applyPinned(c.Result.Revision, &e)
			f.b.PinnedUntilMS = until
			sp.pin(f.item, until)
		}
		c.Result.Blocks[i].fill(&f.b)
	}
	m.replyBlocks(c, outcomePin, dep)
}

// begin gives the command its revision, once.
func (m *Machine) begin(c *Command) {
	if c.Result.Revision == 0 {
		c.Result.Revision = m.newRevision()
	}
}

// remove takes a block out, by an effect; the order's item may be nil.
func (m *Machine) remove(revision uint64, typed []byte, why uint64) {
	p := &m.prompt
	e := markEffect{key: typed, a: why}
	p.payload = e.append(p.payload[:0])
	m.log(revision, kindBlockRemoved, p.payload)
	m.applyRemoved(revision, &e)
}

func (m *Machine) stepDeleteBlocks(c *Command) {
	if m.answered(c, c.blockSlot()) {
		return
	}
	p := &m.prompt
	sp := m.space(c.Namespace)
	c.Result.Blocks = make([]BlockOutcome, len(c.Prompt.Blocks))
	if m.foreign(c) {
		m.replyBlocks(c, outcomeDeleteBlocks, m.meta.revision)
		return
	}
	var dep uint64
	for i := range c.Prompt.Blocks {
		f, d := m.find(sp, c, &c.Prompt.Blocks[i])
		dep = max(dep, d)
		if f.item == nil {
			continue
		}
		c.Result.Blocks[i].Present = true
		if f.item.Leases > 0 || m.quiet() {
			c.Result.Blocks[i].Leased = true
			continue
		}
		m.begin(c)
		dep = c.Result.Revision
		m.remove(dep, p.typed, removedDeleted)
		sp.forget(f.item, false)
	}
	m.replyBlocks(c, outcomeDeleteBlocks, dep)
}

func (m *Machine) stepUnindex(c *Command) {
	p := &m.prompt
	sp := m.space(c.Namespace)
	c.Result.Blocks = make([]BlockOutcome, len(c.Prompt.Blocks))
	var dep uint64
	for i := range c.Prompt.Blocks {
		f, d := m.find(sp, c, &c.Prompt.Blocks[i])
		dep = max(dep, d)
		if f.item == nil || f.b.Value.Ref != c.Prompt.Damaged[i] {
			continue
		}
		c.Result.Blocks[i].Present = true
		m.begin(c)
		dep = c.Result.Revision
		m.remove(dep, p.typed, removedDamaged)
		sp.forget(f.item, false)
		p.statsOf(c.Namespace).damaged++
		m.cfg.Damaged()
	}
	m.reply(c, dep)
}

func (m *Machine) stepClear(c *Command) {
	p, a := &m.prompt, c.Prompt
	sp := m.space(c.Namespace)
	from := appendSpaceKey(nil, prefixBlock, c.Namespace)
	if !a.AllScopes {
		if m.foreign(c) {
			m.reply(c, m.meta.revision)
			return
		}
		from = appendScopeKey(nil, prefixBlock, c.Namespace, &a.Scope)
	}
	to := rangeEnd(from)
	if len(a.After) > 0 {
		from = append(append([]byte(nil), a.After...), 0)
	}
	p.due = p.due[:0]
	for typed := range m.tree.Ascend(from, to) {
		if len(p.due) == m.cfg.DropBudget {
			c.Result.More = true
			c.Result.Next = p.due[len(p.due)-1]
			break
		}
		p.due = append(p.due, typed)
	}
	dep := m.removedAt
	for _, typed := range p.due {
		it := sp.order.Get(typed)
		if it != nil && (it.Leases > 0 || m.quiet()) {
			c.Result.Leased++
			continue
		}
		m.begin(c)
		dep = c.Result.Revision
		m.remove(dep, typed, removedCleared)
		if it != nil {
			sp.forget(it, false)
		}
		c.Result.Deleted++
	}
	clear(p.due)
	m.reply(c, dep)
}

// dropPrompt removes up to budget blocks of a namespace that is being dropped; neither leases nor pins hold it.
func (m *Machine) dropPrompt(ns NamespaceID, budget int) (removed int, more bool) {
	p := &m.prompt
	p.due = p.due[:0]
	from := appendSpaceKey(nil, prefixBlock, ns)
	for typed := range m.tree.Ascend(from, rangeEnd(from)) {
		if len(p.due) >= budget {
			more = true
			break
		}
		p.due = append(p.due, typed)
	}
	if len(p.due) == 0 {
		return 0, more
	}
	revision := m.newRevision()
	m.removeAll(revision, removedDeleted)
	return len(p.due), more
}

// removeAll removes the blocks of p.due at one revision.
func (m *Machine) removeAll(revision, why uint64) {
	p := &m.prompt
	for _, typed := range p.due {
		m.remove(revision, typed, why)
		ns, _, _, _ := splitBlockKey(typed)
		if sp := p.spaces[ns]; sp != nil {
			if it := sp.order.Get(typed); it != nil {
				sp.forget(it, false)
			}
		}
	}
}

// restorePrompt takes what belonged to the tree before.
func (m *Machine) restorePrompt() {
	p := &m.prompt
	clear(p.scopes)
	if p.rolled == nil {
		p.rolled = p.spaces
	} else {
		for ns, sp := range p.spaces {
			p.rolled[ns] = sp
		}
	}
	p.spaces, p.loaded = nil, nil
	p.nextExpiry, p.retryAtMS = unknownExpiry, 0
	m.restoreLeases()
}
