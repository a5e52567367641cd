package btree

import (
	"bytes"
	"iter"
	"strings"
)

// Change is one difference between two trees.
type Change struct {
	Key   []byte
	Value []byte // nil when Deleted
	// Deleted: the key is in the old tree alone.
	Deleted bool
}

// Diff yields, in key order, what turns old into t; a nil old is an empty tree. Shared nodes are skipped. A key that was
// written but has the value that it had is no change. Neither tree may be written meanwhile.
//
// The cost is O(changes x height) for trees of one history: a node is opened only when the other tree does not have the
// very same node there.
func (t *Tree) Diff(old *Tree) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		var was, is cursor
		if old != nil {
			was.start(old)
		} else {
			was.start(&Tree{})
		}
		is.start(t)
		diff(&was, &is, yield)
	}
}

func diff(was, is *cursor, yield func(Change) bool) {
	for !was.done && !is.done {
		a, b := &was.now, &is.now
		if a.same(b) {
			was.skip()
			is.skip()
			continue
		}
		// What stands first in one tree alone is a change, so the node that it is in is not opened in vain.
		switch c := strings.Compare(a.key(), b.key()); {
		case c < 0 && a.node != nil:
			was.open()
		case c < 0:
			if !yield(removed(a.first)) {
				return
			}
			was.skip()
		case c > 0 && b.node != nil:
			is.open()
		case c > 0:
			if !yield(written(b.first)) {
				return
			}
			is.skip()
		case a.height > b.height:
			was.open()
		case a.height < b.height:
			is.open()
		case a.node != nil:
			was.open()
			is.open()
		default:
			if !bytes.Equal(a.first.valueBytes(), b.first.valueBytes()) && !yield(written(b.first)) {
				return
			}
			was.skip()
			is.skip()
		}
	}
	for ; !was.done; was.next() {
		if was.now.node == nil && !yield(removed(was.now.first)) {
			return
		}
	}
	for ; !is.done; is.next() {
		if is.now.node == nil && !yield(written(is.now.first)) {
			return
		}
	}
}

func removed(it item) Change { return Change{Key: it.keyBytes(), Deleted: true} }
func written(it item) Change { return Change{Key: it.keyBytes(), Value: it.valueBytes()} }

// entry is what a cursor stands before: an item, or a node that has not been opened.
type entry struct {
	node   *node // nil when it is an item
	first  item  // the item, or the first one in the node once key was called
	height int   // of the node above the leaves, -1 for an item
}

// same reports whether two entries are one node or one item.
func (e *entry) same(other *entry) bool {
	if e.node != nil || other.node != nil {
		return e.node == other.node
	}
	return e.first == other.first
}

// key is the item's key or the first one in the node. It is looked up late: for a shared node never.
func (e *entry) key() string {
	if e.first == (item{}) {
		e.first = e.node.first()
	}
	return e.first.key()
}

// cursor walks a tree in order, and decides at each node whether to open it or to skip it.
type cursor struct {
	stack  [maxHeight + 1]frame
	depth  int
	height int // of the tree
	now    entry
	done   bool
	opened int // nodes, for tests
}

type frame struct {
	n    *node
	next int // what of n follows the current entry
}

func (c *cursor) start(t *Tree) {
	c.height = t.height
	c.now = entry{node: t.root, height: t.height}
	c.done = t.root == nil
}

// open enters the current node: the cursor stands before its first child or item.
func (c *cursor) open() {
	c.opened++
	c.stack[c.depth] = frame{n: c.now.node}
	c.depth++
	c.skip()
}

// next opens a node and skips an item.
func (c *cursor) next() {
	if c.now.node != nil {
		c.open()
	} else {
		c.skip()
	}
}

// skip goes behind the current entry, whatever is in it.
func (c *cursor) skip() {
	for ; c.depth > 0; c.depth-- {
		f := &c.stack[c.depth-1]
		i := f.next
		f.next++
		if f.n.kids == nil && i < f.n.n {
			c.now = entry{first: f.n.items[i], height: -1}
			return
		}
		if f.n.kids != nil && i <= f.n.n {
			c.now = entry{node: f.n.kids[i], height: c.height - c.depth}
			return
		}
	}
	c.done = true
}
