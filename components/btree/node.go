package btree

import (
	"bytes"
	"unsafe"
)

const (
	// maxItems makes a node fill an allocation of 416 bytes. DESIGN.md has what other sizes cost.
	maxItems = 32
	// minItems is where a node is merged with a neighbour or takes from it. It is well under half of maxItems, and a merge
	// leaves room, so that writes at a boundary do not split and merge in turns.
	minItems = maxItems / 4
	maxMerge = maxItems * 3 / 4
)

// kids are the children of an inner node.
type kids [maxItems + 1]*node

// node is a leaf (kids is nil; items are the tree's items) or an inner node (items are separators, keys only: the keys below
// kids[i] are >= items[i-1] and < items[i]). Inner nodes have at least two children; leaves that are not the root have
// at least one item.
//
// A node may be changed only by the tree whose owner token it bears; all others share it unchanged. Slots past the last are
// zero, so that nothing dropped is kept in memory.
//
// All keys of a node begin with the same prefix bytes (or more), and heads holds the 4 bytes behind them: a search compares heads, which
// are here, and follows a pointer to an item, which is likely a cache miss, only for those that tie.
type node struct {
	owner  *owner
	kids   *kids
	n      int // items
	prefix int
	heads  [maxItems]uint32
	items  [maxItems]item
}

func newLeaf(o *owner, it item) *node {
	n := &node{owner: o}
	n.insertItem(0, it)
	return n
}

// mutable returns n, or a copy that o owns.
func (n *node) mutable(o *owner) *node {
	if n.owner == o {
		return n
	}
	c := &node{owner: o, n: n.n, prefix: n.prefix}
	copy(c.heads[:n.n], n.heads[:n.n])
	copy(c.items[:n.n], n.items[:n.n])
	if n.kids != nil {
		c.kids = new(kids)
		copy(c.kids[:n.n+1], n.kids[:n.n+1])
	}
	return c
}

// search returns the position of the first item >= k, and whether it is equal. n has at least one item.
func (n *node) search(k string) (i int, found bool) {
	head := headOf(k, n.prefix)
	lo, hi := 0, n.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if n.heads[mid] < head {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	// That is right if k begins as the items do. Any item tells; the one at lo will be needed.
	some := n.items[min(lo, n.n-1)].key()
	if p := n.prefix; len(k) < p || k[:p] != some[:p] {
		if k < some {
			return 0, false
		}
		return n.n, false
	}
	for hi = lo; hi < n.n && n.heads[hi] == head; hi++ {
	}
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		c := compare(n.items[mid].key(), k)
		if c == 0 {
			return mid, true
		}
		if c < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, false
}

// compare is strings.Compare, whose arguments escape, by bytes.Compare, whose do not: a key to look up may be on the stack.
func compare(a, b string) int {
	return bytes.Compare(unsafe.Slice(unsafe.StringData(a), len(a)), unsafe.Slice(unsafe.StringData(b), len(b)))
}

// childOf returns the index of the child that k belongs to.
func (n *node) childOf(k string) int {
	i, found := n.search(k)
	if found {
		return i + 1
	}
	return i
}

// first returns the smallest item at or below n.
func (n *node) first() item {
	for n.kids != nil {
		n = n.kids[0]
	}
	return n.items[0]
}

// insertItem puts it at i of a node that is not full.
func (n *node) insertItem(i int, it item) {
	k := it.key()
	prefix := len(k)
	if n.n > 0 {
		prefix = common(k, n.items[min(i, n.n-1)].key(), n.prefix)
	}
	copy(n.heads[i+1:n.n+1], n.heads[i:n.n])
	copy(n.items[i+1:n.n+1], n.items[i:n.n])
	n.items[i] = it
	n.n++
	if prefix == n.prefix {
		n.heads[i] = headOf(k, prefix)
	} else {
		n.setPrefix(prefix)
	}
}

func (n *node) removeItem(i int) {
	copy(n.heads[i:n.n-1], n.heads[i+1:n.n])
	copy(n.items[i:n.n-1], n.items[i+1:n.n])
	n.n--
	n.items[n.n] = item{}
}

// setPrefix makes heads those behind the given prefix, which all keys have.
func (n *node) setPrefix(prefix int) {
	n.prefix = prefix
	for i, it := range n.items[:n.n] {
		n.heads[i] = headOf(it.key(), prefix)
	}
}

// findPrefix takes the longest prefix that all keys have; heads were those behind prefix was, -1 when they are not set.
func (n *node) findPrefix(was int) {
	if n.n == 0 {
		n.prefix = 0
		return
	}
	first := n.items[0].key()
	n.prefix = common(first, n.items[n.n-1].key(), len(first))
	if n.prefix != was {
		n.setPrefix(n.prefix)
	}
}

// insertChild puts sep at i and right behind it.
func (n *node) insertChild(i int, sep item, right *node) {
	copy(n.kids[i+2:n.n+2], n.kids[i+1:n.n+1])
	n.kids[i+1] = right
	n.insertItem(i, sep)
}

// splitLeaf inserts it at i of a full leaf, and returns the new right neighbour and the separator before it. An item behind
// the last one starts the new leaf alone, so that keys written in order leave full leaves behind.
func (n *node) splitLeaf(i int, it item) (sep item, right *node) {
	if i == n.n {
		return separator(n.items[n.n-1].key(), it.key()), newLeaf(n.owner, it)
	}
	right = &node{owner: n.owner}
	n.moveTail(right, maxItems/2)
	if i <= n.n {
		n.insertItem(i, it)
	} else {
		right.insertItem(i-n.n, it)
	}
	return separator(n.items[n.n-1].key(), right.items[0].key()), right
}

// moveTail moves the items from position at on to the empty node right.
func (n *node) moveTail(right *node, at int) {
	right.n = copy(right.items[:], n.items[at:n.n])
	copy(right.heads[:], n.heads[at:n.n])
	right.findPrefix(n.prefix)
	clear(n.items[at:n.n])
	n.n = at
	n.findPrefix(n.prefix)
}

// splitInner inserts sep at i and child behind it into a full inner node, and returns the new right neighbour and the
// separator before it.
func (n *node) splitInner(i int, sep item, child *node) (up item, right *node) {
	right = &node{owner: n.owner, kids: new(kids)}
	at := maxItems / 2
	if i == n.n { // keys written in order: keep the left node full
		at = maxItems - 1
	}
	// The separator at position at moves up; what is behind it moves right.
	up = n.items[at]
	copy(right.kids[:], n.kids[at+1:n.n+1])
	clear(n.kids[at+1 : n.n+1])
	n.moveTail(right, at+1)
	n.removeItem(at)
	if i <= at {
		n.insertChild(i, sep, child)
	} else {
		right.insertChild(i-at-1, sep, child)
	}
	return up, right
}

// rebalance merges the child i, which has become small, with a neighbour, or shares their content evenly. n and its child i
// belong to o.
func (n *node) rebalance(i int, o *owner) {
	l := max(i-1, 0)
	left := n.kids[l].mutable(o)
	right := n.kids[l+1]
	n.kids[l] = left
	inner := left.kids != nil

	total := left.n + right.n
	if inner {
		total++ // the separator between them comes down
	}
	if total <= maxMerge {
		if inner {
			copy(left.kids[left.n+1:], right.kids[:right.n+1])
			left.items[left.n] = n.items[l]
			left.n++
		}
		copy(left.items[left.n:], right.items[:right.n])
		left.n += right.n
		left.findPrefix(-1)
		copy(n.kids[l+1:], n.kids[l+2:n.n+1])
		n.kids[n.n] = nil
		n.removeItem(l)
		return
	}

	right = right.mutable(o)
	n.kids[l+1] = right
	var items [2*maxItems + 1]item
	at := copy(items[:], left.items[:left.n])
	if inner {
		items[at] = n.items[l]
		at++
	}
	copy(items[at:], right.items[:right.n])
	half := total / 2
	if inner {
		var all [2*maxItems + 2]*node
		at := copy(all[:], left.kids[:left.n+1])
		copy(all[at:], right.kids[:right.n+1])
		n.replaceItem(l, items[half])
		left.fill(items[:half], all[:half+1])
		right.fill(items[half+1:total], all[half+1:total+1])
		return
	}
	left.fill(items[:half], nil)
	right.fill(items[half:total], nil)
	n.replaceItem(l, separator(left.items[half-1].key(), right.items[0].key()))
}

// replaceItem puts another separator at i.
func (n *node) replaceItem(i int, it item) {
	n.removeItem(i)
	n.insertItem(i, it)
}

// fill replaces the content of n.
func (n *node) fill(items []item, children []*node) {
	n.n = copy(n.items[:], items)
	clear(n.items[n.n:])
	n.findPrefix(-1)
	if n.kids != nil {
		clear(n.kids[copy(n.kids[:], children):])
	}
}
