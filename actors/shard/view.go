package shard

import "kvstore/components/btree"

// View is an immutable durable state of a shard, safe for any number of goroutines: what reads are answered from. A key is
// visible until its expiry record is durable, whatever the clock says (D12).
type View struct{ tree *btree.Tree }

// NewView wraps a tree that is no longer written to.
func NewView(t *btree.Tree) View { return View{tree: t} }
