package shard

import (
	"encoding/binary"
	"fmt"

	"kvstore/components/promptcache"
)

// Block is a stored block of the prompt cache. Everything in it is a view into the tree.
type Block struct {
	ID            []byte
	Rank, Group   uint32
	Depth         uint32
	Parent        []byte // id of the block before it; empty for the first of a chain
	Value         Value  // Ref.Length may be more than Size: what follows the bytes is the frontend's
	Size          int64  // bytes of the block
	Checksum      uint64 // xxh3-64
	Revision      uint64 // that stored it: what watches are told as its version
	CreatedMS     int64
	TouchedMS     int64 // last use, as far as it is durable
	ExpiresMS     int64 // 0 = never
	PinnedUntilMS int64 // 0 = not pinned

	use  promptcache.Use
	item []byte // all of it, as it is stored
}

// A block's item: flags, revision, created, touched - created, clock and count of its use, depth, size, checksum:8, then as the
// flags say expires, pinned, parent; then the reference or, to the end, the bytes.
const (
	blockExpires = 1 << iota
	blockPinned
	blockParent
	blockRef
)

func (b *Block) append(p []byte) []byte {
	var flags byte
	if b.ExpiresMS != 0 {
		flags |= blockExpires
	}
	if b.PinnedUntilMS != 0 {
		flags |= blockPinned
	}
	if len(b.Parent) > 0 {
		flags |= blockParent
	}
	ref := b.Value.Ref.Object != (ObjectID{})
	if ref {
		flags |= blockRef
	}
	p = append(p, flags)
	p = binary.AppendUvarint(p, b.Revision)
	p = binary.AppendUvarint(p, uint64(b.CreatedMS))
	p = binary.AppendUvarint(p, uint64(max(0, b.TouchedMS-b.CreatedMS)))
	p = binary.AppendUvarint(p, b.use.Clock)
	p = binary.AppendUvarint(p, uint64(b.use.Count))
	p = binary.AppendUvarint(p, uint64(b.Depth))
	p = binary.AppendUvarint(p, uint64(b.Size))
	p = binary.BigEndian.AppendUint64(p, b.Checksum)
	if b.ExpiresMS != 0 {
		p = binary.AppendUvarint(p, uint64(b.ExpiresMS))
	}
	if b.PinnedUntilMS != 0 {
		p = binary.AppendUvarint(p, uint64(b.PinnedUntilMS))
	}
	if len(b.Parent) > 0 {
		p = append(binary.AppendUvarint(p, uint64(len(b.Parent))), b.Parent...)
	}
	if ref {
		return appendRef(p, &b.Value.Ref)
	}
	return append(p, b.Value.Inline...)
}

// decode reads an item; it leaves the name alone.
func (b *Block) decode(item []byte) bool {
	b.item = item
	r := reader{b: item}
	flags := r.byte()
	b.Revision = r.uvarint()
	b.CreatedMS = int64(r.uvarint())
	b.TouchedMS = b.CreatedMS + int64(r.uvarint())
	b.use.Clock = r.uvarint()
	b.use.Count = uint32(r.uvarint())
	b.Depth = uint32(r.uvarint())
	b.Size = int64(r.uvarint())
	b.Checksum = r.uint64()
	if flags&blockExpires != 0 {
		b.ExpiresMS = int64(r.uvarint())
	}
	if flags&blockPinned != 0 {
		b.PinnedUntilMS = int64(r.uvarint())
	}
	if flags&blockParent != 0 {
		b.Parent = r.bytes()
	}
	if flags&blockRef != 0 {
		b.Value.Ref = r.ref()
	} else {
		b.Value.Inline = r.b
	}
	return !r.bad
}

// Effects of the prompt cache (proto/kvstore/dataplane/v1/effects.proto).
const (
	kindBlockStored  kind = 32
	kindBlockRemoved kind = 33
	kindBlockTouched kind = 34
	kindBlockPinned  kind = 35
	kindLeaseHorizon kind = 36
)

// storedEffect is Effect.BlockStored. The block's name is in its typed key.
type storedEffect struct {
	key    []byte // typed
	fields []byte // canonical form of the scope, with its first block
	block  Block
}

func (e *storedEffect) append(b []byte) []byte {
	k := &e.block
	b = appendBytesField(b, 1, e.key)
	b = appendBytesField(b, 2, e.fields)
	b = appendUintField(b, 3, uint64(k.Depth))
	b = appendBytesField(b, 4, k.Parent)
	if k.Value.Ref.Object == (ObjectID{}) {
		b = appendBytesField(b, 5, k.Value.Inline)
	} else {
		b = appendRefField(b, 6, &k.Value.Ref)
	}
	b = appendUintField(b, 7, uint64(k.Size))
	b = appendFixed64Field(b, 8, k.Checksum)
	b = appendUintField(b, 9, uint64(k.CreatedMS))
	b = appendUintField(b, 10, uint64(k.ExpiresMS))
	b = appendUintField(b, 11, k.use.Clock)
	return appendUintField(b, 12, uint64(k.use.Count))
}

func (e *storedEffect) decode(payload []byte) bool {
	*e = storedEffect{}
	k := &e.block
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.key = f.bytes
		case 2:
			e.fields = f.bytes
		case 3:
			k.Depth = uint32(f.value)
		case 4:
			k.Parent = f.bytes
		case 5:
			k.Value.Inline = f.bytes
		case 6:
			if !decodeRef(f.bytes, &k.Value.Ref) {
				return false
			}
		case 7:
			k.Size = int64(f.value)
		case 8:
			k.Checksum = f.value
		case 9:
			k.CreatedMS = int64(f.value)
		case 10:
			k.ExpiresMS = int64(f.value)
		case 11:
			k.use.Clock = f.value
		case 12:
			k.use.Count = uint32(f.value)
		default:
			return false
		}
	}
	k.TouchedMS = k.CreatedMS
	_, _, _, ok := splitBlockKey(e.key)
	return ok && !r.bad && k.Size >= 0 && k.CreatedMS >= 0 && k.ExpiresMS >= 0 && k.ExpiresMS < 1<<48
}

// Why a block was removed. Values are stored: append only.
const (
	removedDeleted = 1
	removedEvicted = 2
	removedExpired = 3
	removedDamaged = 4
	removedCleared = 5
)

// markEffect is Effect.BlockRemoved, BlockTouched and BlockPinned: a typed key and up to three numbers.
type markEffect struct {
	key     []byte
	a, b, c uint64 // removed: why; touched: time, clock, count; pinned: until, expires
}

func (e *markEffect) append(b []byte) []byte {
	b = appendBytesField(b, 1, e.key)
	b = appendUintField(b, 2, e.a)
	b = appendUintField(b, 3, e.b)
	return appendUintField(b, 4, e.c)
}

func (e *markEffect) decode(payload []byte) bool {
	*e = markEffect{}
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.key = f.bytes
		case 2:
			e.a = f.value
		case 3:
			e.b = f.value
		case 4:
			e.c = f.value
		default:
			return false
		}
	}
	_, _, _, ok := splitBlockKey(e.key)
	return ok && !r.bad
}

// applyPrompt replays an effect of the prompt cache.
func (m *Machine) applyPrompt(revision uint64, k kind, payload []byte) error {
	var good bool
	switch k {
	case kindBlockStored:
		var e storedEffect
		if good = e.decode(payload); good {
			m.applyStored(revision, &e)
		}
	case kindBlockRemoved, kindBlockTouched, kindBlockPinned:
		var e markEffect
		if good = e.decode(payload); !good {
			break
		}
		switch k {
		case kindBlockRemoved:
			m.applyRemoved(revision, &e)
		case kindBlockTouched:
			m.applyTouched(&e)
		default:
			good = e.b < 1<<48
			if good {
				m.applyPinned(revision, &e)
			}
		}
	case kindLeaseHorizon:
		r := reader{b: payload}
		f, _ := r.next()
		if good = !r.bad && f.number == 1; good {
			m.applyHorizon(int64(f.value))
		}
	default:
		return fmt.Errorf("replay: prompt %v at revision %d is not known to this release", k, revision)
	}
	if !good {
		return fmt.Errorf("replay: prompt %v at revision %d is damaged", k, revision)
	}
	return nil
}

// The apply functions change the tree and look at nothing but the tree and the effect.

func (m *Machine) applyStored(revision uint64, e *storedEffect) {
	p := &m.prompt
	ns, scope, _, _ := splitBlockKey(e.key)
	if item, exists := m.tree.Get(e.key); exists {
		m.dropBlock(ns, scope, e.key, item)
	}
	b := &e.block
	b.Revision = revision
	p.item = b.append(p.item[:0])
	m.tree.Set(e.key, p.item)
	u := m.scopeUse(ns, scope)
	if u.blocks == 0 {
		u.fields = append([]byte(nil), e.fields...)
		m.record(&Event{Kind: EventScopeChanged, Namespace: ns, Key: scope[:], Revision: revision, Created: true, Attached: u.fields})
	}
	u.blocks++
	u.bytes += b.Size
	m.count(ns, 1, b.Size)
	m.scheduleBlock(b.ExpiresMS, e.key)
	if b.Value.Ref.Object != (ObjectID{}) {
		m.hold(&b.Value.Ref, e.key)
	}
	m.recordBlock(EventBlockStored, revision, ns, e.key, b, 0)
}

func (m *Machine) applyRemoved(revision uint64, e *markEffect) {
	m.removedAt = revision
	item, exists := m.tree.Get(e.key)
	if !exists {
		return
	}
	ns, scope, _, _ := splitBlockKey(e.key)
	b := m.dropBlock(ns, scope, e.key, item)
	m.recordBlock(EventBlockRemoved, revision, ns, e.key, &b, e.a)
	if u := m.scopeUse(ns, scope); u.blocks == 0 {
		m.record(&Event{Kind: EventScopeChanged, Namespace: ns, Key: scope[:], Revision: revision, Attached: u.fields})
	}
}

// dropBlock takes a block out of the tree, with all that hangs on it.
func (m *Machine) dropBlock(ns NamespaceID, scope ScopeID, typed, item []byte) (b Block) {
	b.decode(item)
	m.tree.Delete(typed)
	u := m.scopeUse(ns, scope)
	u.blocks--
	u.bytes -= b.Size
	m.count(ns, -1, -b.Size)
	m.unscheduleBlock(b.ExpiresMS, typed)
	if b.Value.Ref.Object != (ObjectID{}) {
		m.letGo(&b.Value.Ref)
	}
	return b
}

// recordBlock puts a stored or removed block into the change history: the key is its typed key without the prefix and the
// namespace; attached are size, depth, why it was removed (0 for stored) and the parent.
func (m *Machine) recordBlock(k EventKind, revision uint64, ns NamespaceID, typed []byte, b *Block, why uint64) {
	p := &m.prompt
	p.attached = b.appendAttached(p.attached[:0], why)
	m.record(&Event{
		Kind: k, Namespace: ns, Key: typed[1+uvarintLen(uint64(ns)):], Revision: revision, Created: k == EventBlockStored,
		Attached: p.attached,
	})
}

func (b *Block) appendAttached(a []byte, why uint64) []byte {
	a = binary.AppendUvarint(a, uint64(b.Size))
	a = binary.AppendUvarint(a, uint64(b.Depth))
	a = binary.AppendUvarint(a, why)
	return append(a, b.Parent...)
}

func (m *Machine) applyTouched(e *markEffect) {
	m.changeBlock(e.key, func(b *Block) {
		b.TouchedMS, b.use = int64(e.a), promptcache.Use{Clock: e.b, Count: uint32(e.c)}
	})
}

func (m *Machine) applyPinned(revision uint64, e *markEffect) {
	m.pinnedAt = revision
	m.changeBlock(e.key, func(b *Block) {
		b.PinnedUntilMS = int64(e.a)
		if expires := int64(e.b); expires != b.ExpiresMS {
			m.unscheduleBlock(b.ExpiresMS, e.key)
			m.scheduleBlock(expires, e.key)
			b.ExpiresMS = expires
		}
	})
}

func (m *Machine) changeBlock(typed []byte, change func(*Block)) bool {
	item, ok := m.tree.Get(typed)
	if !ok {
		return false
	}
	var b Block
	if !b.decode(item) {
		return false
	}
	change(&b)
	p := &m.prompt
	p.item = b.append(p.item[:0])
	m.tree.Set(typed, p.item)
	return true
}

func (m *Machine) applyHorizon(untilMS int64) {
	m.prompt.item = binary.AppendUvarint(m.prompt.item[:0], uint64(untilMS))
	m.tree.Set(horizonKey, m.prompt.item)
}

// applyRelocatePrompt names another place for the value of a block, and changes nothing else: the caller accounts for the
// objects. done is false when the block does not have its value at from any more.
func (m *Machine) applyRelocatePrompt(key []byte, from, to Ref) (done bool) {
	item, ok := m.tree.Get(key)
	var b Block
	if !ok || !b.decode(item) || b.Value.Ref != from {
		return false
	}
	return m.changeBlock(key, func(b *Block) { b.Value.Ref = to })
}

// promptRef finds where the value of a block's item is.
func promptRef(typed, item []byte) (Ref, bool) {
	var b Block
	if len(typed) == 0 || typed[0] != prefixBlock || !b.decode(item) {
		return Ref{}, false
	}
	return b.Value.Ref, b.Value.Ref.Object != (ObjectID{})
}

// scopeKey names a scope of the shard.
type scopeKey struct {
	ns    NamespaceID
	scope ScopeID
}

// scopeUse is the account of a scope, kept per body and written when the body is sealed.
type scopeUse struct {
	blocks, bytes int64
	fields        []byte
}

func (u *scopeUse) decode(item []byte) bool {
	r := reader{b: item}
	u.blocks, u.bytes = int64(r.uvarint()), int64(r.uvarint())
	u.fields = r.b
	return !r.bad
}

// readScope is the account of a scope as of now; the zero value when it has no blocks.
func (m *Machine) readScope(ns NamespaceID, scope *ScopeID) (u scopeUse) {
	if u := m.prompt.scopes[scopeKey{ns, *scope}]; u != nil {
		return *u
	}
	var room [keyRoom]byte
	if item, ok := m.tree.Get(appendScopeKey(room[:0], prefixScope, ns, scope)); ok {
		u.decode(item)
	}
	return u
}

// scopeUse is the account of a scope that the body changes.
func (m *Machine) scopeUse(ns NamespaceID, scope ScopeID) *scopeUse {
	p := &m.prompt
	k := scopeKey{ns, scope}
	if u := p.scopes[k]; u != nil {
		return u
	}
	u := new(scopeUse)
	p.key = appendScopeKey(p.key[:0], prefixScope, ns, &scope)
	if item, ok := m.tree.Get(p.key); ok {
		u.decode(item)
	}
	if p.scopes == nil {
		p.scopes = make(map[scopeKey]*scopeUse)
	}
	p.scopes[k] = u
	return u
}

// sealPrompt writes the accounts of the scopes that the body changed. Their order does not matter: one item each.
func (m *Machine) sealPrompt() {
	p := &m.prompt
	for k, u := range p.scopes {
		p.key = appendScopeKey(p.key[:0], prefixScope, k.ns, &k.scope)
		if u.blocks == 0 {
			m.tree.Delete(p.key)
			continue
		}
		p.item = binary.AppendUvarint(p.item[:0], uint64(u.blocks))
		p.item = binary.AppendUvarint(p.item, uint64(u.bytes))
		p.item = append(p.item, u.fields...)
		m.tree.Set(p.key, p.item)
	}
	clear(p.scopes)
}
