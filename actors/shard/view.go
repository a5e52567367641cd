package shard

import (
	"fmt"

	"kvstore/components/btree"
	"kvstore/components/kverr"
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

// Get finds a key; ok is false when it is absent. The entry and all that hangs on it are views into the tree: not to be changed,
// valid for ever. An entry that cannot be decoded is there and lost: DataLoss.
func (v View) Get(ns NamespaceID, key []byte) (e Entry, ok bool, err *kverr.Error) {
	var room [keyRoom]byte
	item, ok := v.tree.Get(appendDataKey(room[:0], ns, key))
	if !ok {
		return Entry{}, false, nil
	}
	if !e.decode(item) {
		return Entry{}, true, errUndecodable(key, item)
	}
	e.Key = key
	return e, true, nil
}

// errUndecodable is DataLoss of one entry.
func errUndecodable(key, item []byte) *kverr.Error {
	return &kverr.Error{Kind: kverr.DataLoss, Op: "read", Message: fmt.Sprintf("the %d bytes stored for key %q cannot be decoded", len(item), key)}
}
