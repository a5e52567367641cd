// Package btree is an ordered copy-on-write map from byte strings to byte strings: the memory of every shard (DESIGN D7).
//
// A clone costs O(1); a write to a tree that shares nodes with a clone copies the nodes on its path, once. A clone that is no
// longer written to may be read from any number of goroutines while the tree that it came from goes on.
// Diff walks two trees that share history in time that grows with their difference, so a checkpoint costs what changed.
//
// It is a B+tree: items are in leaves only, each packed with its key into one allocation that never changes, so what Get and
// the iterators return stays valid and unchanged for ever, whatever is written later. Inner nodes hold separators of their
// own, as short as they can be. DESIGN.md beside this file has the layout and its cost.
//
// It is not a store: nothing here is durable, and nothing is locked.
package btree

// ItemOverhead is what Bytes counts for an item besides its key and value: its place in a leaf at the usual fill, its share
// of the inner nodes, the packed length and the allocator's rounding. See DESIGN.md for the measurement.
const ItemOverhead = 40

// Tree is the map. The zero value is empty and ready. One goroutine writes a Tree; see Clone for readers. A Tree must not be
// copied by assignment: use Clone.
type Tree struct {
	_      noCopy
	root   *node  // nil when empty
	height int    // levels below the root; 0 when the root is a leaf
	owner  *owner // of the nodes that the tree may change; nil when it owns none
	len    int
	bytes  int64
}

// noCopy makes go vet report trees copied by assignment.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// owner is a token of the right to change nodes. A tree takes a new one at its first write after a Clone, so no two trees
// ever hold the same. It is not of size zero: each has an address of its own.
type owner struct{ _ byte }

// Clone returns a tree with the same content, in O(1). Neither sees later writes of the other.
//
// It may be called from many goroutines at once on a tree that is no longer written to; on a tree that is, only by its
// writer.
func (t *Tree) Clone() *Tree {
	if t.owner != nil { // a tree that owns no nodes is not touched: it may be read by others just now
		t.owner = nil
	}
	return &Tree{root: t.root, height: t.height, len: t.len, bytes: t.bytes}
}

// Len is the number of keys.
func (t *Tree) Len() int { return t.len }

// Bytes is an estimate of the memory that the tree's items take: the lengths of keys and values, and ItemOverhead for each.
// It is the same for the same content, whatever the history.
func (t *Tree) Bytes() int64 { return t.bytes }

// Get returns the value of key; the caller must not change it. It is a view into the item (no copy).
func (t *Tree) Get(key []byte) (value []byte, ok bool) {
	n := t.root
	if n == nil {
		return nil, false
	}
	k := view(key)
	for n.kids != nil {
		n = n.kids[n.childOf(k)]
	}
	i, found := n.search(k)
	if !found {
		return nil, false
	}
	return n.items[i].valueBytes(), true
}

// Set stores a copy of key and value (one allocation for both), and returns the value that was there before. A nil value is
// stored as an empty one.
func (t *Tree) Set(key, value []byte) (old []byte, existed bool) {
	it := pack(key, value)
	k := it.key()
	t.own()
	if t.root == nil {
		t.root = newLeaf(t.owner, it)
		t.count(1, it.size())
		return nil, false
	}

	var path path
	t.root = t.root.mutable(t.owner)
	n := t.root
	for level := t.height; level > 0; level-- {
		i := n.childOf(k)
		path[level] = step{n, i}
		child := n.kids[i].mutable(t.owner)
		n.kids[i] = child
		n = child
	}

	i, found := n.search(k)
	if found {
		was := n.items[i]
		n.items[i] = it
		t.count(0, it.size()-was.size())
		return was.valueBytes(), true
	}
	t.count(1, it.size())
	if n.n < maxItems {
		n.insertItem(i, it)
	} else {
		sep, right := n.splitLeaf(i, it)
		t.insertChild(&path, sep, right)
	}
	if invariants {
		t.checkPath(k)
	}
	return nil, false
}

// insertChild adds right, whose keys are all >= sep, after the child that the path went through at level 1, and splits upwards
// while nodes are full.
func (t *Tree) insertChild(p *path, sep item, right *node) {
	for level := 1; level <= t.height; level++ {
		parent, i := p[level].n, p[level].i
		if parent.n < maxItems {
			parent.insertChild(i, sep, right)
			return
		}
		sep, right = parent.splitInner(i, sep, right)
	}
	root := newLeaf(t.owner, sep)
	root.kids = new(kids)
	root.kids[0], root.kids[1] = t.root, right
	t.root = root
	t.height++
}

// Delete removes key and returns the value that was there. It copies nothing when the key is absent.
func (t *Tree) Delete(key []byte) (old []byte, existed bool) {
	n := t.root
	if n == nil {
		return nil, false
	}
	k := view(key)
	var path path
	for level := t.height; level > 0; level-- {
		i := n.childOf(k)
		path[level] = step{n, i}
		n = n.kids[i]
	}
	i, found := n.search(k)
	if !found {
		return nil, false
	}

	t.own()
	t.root = t.root.mutable(t.owner)
	n = t.root
	for level := t.height; level > 0; level-- {
		path[level].n = n
		child := n.kids[path[level].i].mutable(t.owner)
		n.kids[path[level].i] = child
		n = child
	}
	was := n.items[i]
	n.removeItem(i)
	t.count(-1, -was.size())

	for level := 1; level <= t.height && n.n < minItems; level++ {
		parent := path[level].n
		parent.rebalance(path[level].i, t.owner)
		n = parent
	}
	switch {
	case t.root.n > 0:
	case t.root.kids == nil:
		t.root = nil
	default: // one child is left
		t.root = t.root.kids[0]
		t.height--
	}
	if invariants {
		t.checkPath(k)
	}
	return was.valueBytes(), true
}

// own gives the tree a token, under which it may change nodes.
func (t *Tree) own() {
	if t.owner == nil {
		t.owner = new(owner)
	}
}

func (t *Tree) count(items int, bytes int64) {
	t.len += items
	t.bytes += bytes
}

// maxHeight is far above what fits in memory: a level is added only when a root of maxItems separators splits, and splits
// leave nodes at least half full on the left.
const maxHeight = 16

// path is the way from the root to a leaf: path[level] is the node at that level and the child taken in it.
type path [maxHeight]step

type step struct {
	n *node
	i int
}
