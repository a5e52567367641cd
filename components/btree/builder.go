package btree

// Builder makes a tree from items in ascending order of keys, with full nodes, in linear time. The zero value is ready.
type Builder struct {
	tree   Tree
	levels []building // from the leaf up
}

// building is the last node of a level, still being filled.
type building struct {
	node *node
	low  item // the separator before node; none for the first of its level
}

// Add appends an item; its key must be greater than the one before: Add panics otherwise, for the tree would lose keys.
func (b *Builder) Add(key, value []byte) {
	it := pack(key, value)
	b.tree.own()
	b.tree.count(1, it.size())
	if len(b.levels) == 0 {
		b.levels = append(b.levels, building{node: newLeaf(b.tree.owner, it)})
		return
	}
	leaf := b.levels[0].node
	before := leaf.items[leaf.n-1].key()
	if it.key() <= before {
		panic("btree: Builder.Add: keys are not in ascending order")
	}
	if leaf.n < maxItems {
		leaf.insertItem(leaf.n, it)
		return
	}
	b.close(0)
	b.levels[0] = building{newLeaf(b.tree.owner, it), separator(before, it.key())}
}

// close hands the node of a level to its parent.
func (b *Builder) close(level int) {
	done := b.levels[level]
	if len(b.levels) == level+1 {
		parent := &node{owner: b.tree.owner, kids: new(kids)}
		parent.kids[0] = done.node
		b.levels = append(b.levels, building{node: parent})
		return
	}
	parent := b.levels[level+1].node
	if parent.n < maxItems {
		parent.insertItem(parent.n, done.low)
		parent.kids[parent.n] = done.node
		return
	}
	b.close(level + 1)
	parent = &node{owner: b.tree.owner, kids: new(kids)}
	parent.kids[0] = done.node
	b.levels[level+1] = building{parent, done.low}
}

// Tree ends the build. The Builder is empty again afterwards.
func (b *Builder) Tree() *Tree {
	for level := 0; level < len(b.levels)-1; level++ {
		if l := &b.levels[level]; l.node.n == 0 {
			// An inner node with one child takes another from the full node before it, which its parent has already.
			parent := b.levels[level+1].node
			left := parent.kids[parent.n]
			l.node.kids[1] = l.node.kids[0]
			l.node.kids[0] = left.kids[left.n]
			l.node.insertItem(0, l.low)
			l.low = left.items[left.n-1]
			left.kids[left.n] = nil
			left.removeItem(left.n - 1)
		}
		b.close(level)
	}
	t := &Tree{owner: b.tree.owner, len: b.tree.len, bytes: b.tree.bytes}
	if top := len(b.levels) - 1; top >= 0 {
		t.root = b.levels[top].node
		t.height = top
	}
	*b = Builder{}
	return t
}
