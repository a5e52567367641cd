package shard

import (
	"kvstore/components/btree"
)

// View is an immutable durable state of a shard, safe for any number of goroutines: what reads are answered from. A key is
// visible until its expiry record is durable, whatever the clock says (D12).
type View struct {
	tree *btree.Tree
	meta meta
}

// NewView wraps a tree that is no longer written to, as it was when a Ready was taken.
func NewView(t *btree.Tree) View {
	v := View{tree: t}
	v.meta.load(t)
	return v
}

// Revision is the shard's revision: nothing newer is in the view.
func (v View) Revision() uint64 { return v.meta.revision }

// TimeMS is shard time in milliseconds since the Unix epoch.
func (v View) TimeMS() int64 { return v.meta.timeMS }

// Get finds a key. The entry and all that hangs on it are views into the tree: not to be changed, valid for ever.
func (v View) Get(ns NamespaceID, key []byte) (Entry, bool) {
	var room [keyRoom]byte
	item, ok := v.tree.Get(appendDataKey(room[:0], ns, key))
	if !ok {
		return Entry{}, false
	}
	var e Entry
	if !e.decode(item) {
		return Entry{}, false
	}
	e.Key = key
	return e, true
}
