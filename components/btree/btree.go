// Package btree is an ordered copy-on-write map from byte strings to byte strings: the memory of every shard (DESIGN D7).
//
// A clone costs O(1); a write to a tree that shares nodes with a clone copies the nodes on its path, once. A clone that is no
// longer written to may be read from any number of goroutines while the tree that it came from goes on.
// Diff walks two trees that share history in time that grows with their difference, so a checkpoint costs what changed.
package btree

import "iter"

// Tree is the map. The zero value is empty and ready. One goroutine writes a Tree; see Clone for readers.
type Tree struct{ unfinished struct{} }

// Clone returns a tree with the same content, in O(1). Neither sees later writes of the other.
func (t *Tree) Clone() *Tree { panic("contract") }

// Len is the number of keys.
func (t *Tree) Len() int { panic("contract") }

// Bytes is an estimate of the memory that the tree's items take, keys, values and per-item overhead, kept exact under
// Set and Delete.
func (t *Tree) Bytes() int64 { panic("contract") }

// Get returns the value of key; the caller must not change it. It is a view into the item (no copy).
func (t *Tree) Get(key []byte) (value []byte, ok bool) { panic("contract") }

// Set stores a copy of key and value (one allocation for both), and returns the value that was there before.
func (t *Tree) Set(key, value []byte) (old []byte, existed bool) { panic("contract") }

// Delete removes key and returns the value that was there.
func (t *Tree) Delete(key []byte) (old []byte, existed bool) { panic("contract") }

// Ascend yields items with from <= key < to in order; a nil to means no end. The tree must not be written meanwhile
// (iterate a clone to write while iterating).
func (t *Tree) Ascend(from, to []byte) iter.Seq2[[]byte, []byte] { panic("contract") }

// Descend yields items with from <= key < to in descending order; a nil to means from the end.
func (t *Tree) Descend(from, to []byte) iter.Seq2[[]byte, []byte] { panic("contract") }

// Change is one difference between two trees.
type Change struct {
	Key   []byte
	Value []byte // nil when Deleted
	// Deleted: the key is in the old tree alone.
	Deleted bool
}

// Diff yields, in key order, what turns old into t; a nil old is an empty tree. Shared nodes are skipped.
func (t *Tree) Diff(old *Tree) iter.Seq[Change] { panic("contract") }

// Builder makes a tree from items in ascending order of keys, with full nodes, in linear time.
type Builder struct{ unfinished struct{} }

// Add appends an item; its key must be greater than the one before.
func (b *Builder) Add(key, value []byte) { panic("contract") }

// Tree ends the build.
func (b *Builder) Tree() *Tree { panic("contract") }
