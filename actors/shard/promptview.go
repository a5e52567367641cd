package shard

import "bytes"

// Block finds a block. It does not allocate.
func (v View) Block(ns NamespaceID, scope ScopeID, k BlockKey) (b Block, ok bool) {
	var room [keyRoom]byte
	item, ok := v.tree.Get(appendBlockKey(room[:0], ns, &scope, &k))
	if !ok || !b.decode(item) {
		return Block{}, false
	}
	b.ID, b.Rank, b.Group = k.ID, k.Rank, k.Group
	return b, true
}

// Blocks lists up to limit blocks of a scope in order of (id, rank, group). after is the typed key of the last one seen, nil at the
// beginning; next is the one to go on after, nil at the end. What is typed is the same on all shards, so pages of many
// shards are merged by it.
func (v View) Blocks(ns NamespaceID, scope ScopeID, after []byte, limit int) (blocks []Block, typed [][]byte, more bool) {
	from := appendScopeKey(nil, prefixBlock, ns, &scope)
	to := rangeEnd(from)
	if bytes.Compare(after, from) > 0 { // never before the scope's own: whoever made after does not choose what is listed
		from = append(append([]byte(nil), after...), 0)
	}
	for key, item := range v.tree.Ascend(from, to) {
		if len(blocks) == limit {
			return blocks, typed, true
		}
		var b Block
		_, _, k, ok := splitBlockKey(key)
		if !ok || !b.decode(item) {
			continue
		}
		b.ID, b.Rank, b.Group = k.ID, k.Rank, k.Group
		blocks, typed = append(blocks, b), append(typed, key)
	}
	return blocks, typed, false
}

// BlockEvents lists up to limit blocks of a namespace as the events that store them, in the order of their keys: those that begin with prefix, after one
// key, nil at the beginning.
func (v View) BlockEvents(ns NamespaceID, prefix, after []byte, limit int) (events []Event, more bool) {
	head := appendSpaceKey(nil, prefixBlock, ns)
	from := append(bytes.Clone(head), prefix...)
	to := rangeEnd(from)
	if bytes.Compare(after, prefix) >= 0 && after != nil {
		from = append(append(bytes.Clone(head), after...), 0)
	}
	for typed, item := range v.tree.Ascend(from, to) {
		if len(events) == limit {
			return events, true
		}
		var b Block
		if !b.decode(item) {
			continue
		}
		events = append(events, Event{
			Kind: EventBlockStored, Namespace: ns, Key: typed[len(head):], Revision: b.Revision, Created: true, Attached: b.appendAttached(nil, 0),
		})
	}
	return events, false
}

// ScopeUsage is a scope with what its blocks take.
type ScopeUsage struct {
	Scope         ScopeID
	Fields        []byte // canonical form (package promptcache)
	Blocks, Bytes int64
}

// Scope finds a scope that has blocks.
func (v View) Scope(ns NamespaceID, scope ScopeID) (u ScopeUsage, ok bool) {
	var room [keyRoom]byte
	item, ok := v.tree.Get(appendScopeKey(room[:0], prefixScope, ns, &scope))
	var s scopeUse
	if !ok || !s.decode(item) {
		return u, false
	}
	return ScopeUsage{Scope: scope, Fields: s.fields, Blocks: s.blocks, Bytes: s.bytes}, true
}

// Scopes lists up to limit scopes that have blocks, in order of their ids, after a scope (nil at the beginning).
func (v View) Scopes(ns NamespaceID, after *ScopeID, limit int) (scopes []ScopeUsage, more bool) {
	from := appendSpaceKey(nil, prefixScope, ns)
	to := rangeEnd(from)
	prefix := len(from)
	if after != nil {
		from = append(append(from, after[:]...), 0)
	}
	for key, item := range v.tree.Ascend(from, to) {
		if len(scopes) == limit {
			return scopes, true
		}
		var s scopeUse
		u := ScopeUsage{}
		if len(key) != prefix+len(u.Scope) || !s.decode(item) {
			continue
		}
		copy(u.Scope[:], key[prefix:])
		u.Fields, u.Blocks, u.Bytes = s.fields, s.blocks, s.bytes
		scopes = append(scopes, u)
	}
	return scopes, false
}

// HasScope tells whether the scope has blocks, under this canonical form: blocks under another form are not its blocks.
func (v View) HasScope(ns NamespaceID, scope ScopeID, canonical []byte) bool {
	u, ok := v.Scope(ns, scope)
	return ok && string(u.Fields) == string(canonical)
}
