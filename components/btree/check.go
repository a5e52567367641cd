package btree

import "fmt"

// checkPath panics when a node on the way to k breaks an invariant.
func (t *Tree) checkPath(k string) {
	lo, hi := bound{open: true}, bound{open: true}
	n := t.root
	for height := t.height; n != nil; height-- {
		if err := n.check(height, n == t.root, lo, hi); err != nil {
			panic(fmt.Sprintf("btree: after a write of key %q: %v", k, err))
		}
		if n.kids == nil {
			return
		}
		i := n.childOf(k)
		lo, hi = n.bounds(i, lo, hi)
		n = n.kids[i]
	}
}

// check returns the first broken invariant of the tree.
func (t *Tree) check() error {
	items, bytes := 0, int64(0)
	var walk func(n *node, height int, lo, hi bound) error
	walk = func(n *node, height int, lo, hi bound) error {
		if err := n.check(height, n == t.root, lo, hi); err != nil {
			return err
		}
		if n.kids == nil {
			items += n.n
			for _, it := range n.items[:n.n] {
				bytes += it.size()
			}
			return nil
		}
		for i, child := range n.kids[:n.n+1] {
			l, h := n.bounds(i, lo, hi)
			if err := walk(child, height-1, l, h); err != nil {
				return err
			}
		}
		return nil
	}
	if t.root != nil {
		if err := walk(t.root, t.height, open, open); err != nil {
			return err
		}
	}
	if items != t.len || bytes != t.bytes {
		return fmt.Errorf("%d items of %d bytes, counted as %d of %d", items, bytes, t.len, t.bytes)
	}
	return nil
}

// bounds returns between which keys those below child i of n must be, given those of n.
func (n *node) bounds(i int, lo, hi bound) (bound, bound) {
	if i > 0 {
		lo = bound{key: n.items[i-1].key()}
	}
	if i < n.n {
		hi = bound{key: n.items[i].key()}
	}
	return lo, hi
}

// check returns the first invariant that n alone breaks.
func (n *node) check(height int, root bool, lo, hi bound) error {
	switch {
	case n.owner == nil:
		return fmt.Errorf("node without an owner at height %d", height)
	case (n.kids == nil) != (height == 0):
		return fmt.Errorf("leaf: %v, at height %d", n.kids == nil, height)
	case n.n < 1 || n.n > maxItems:
		return fmt.Errorf("%d items in a node at height %d, root: %v", n.n, height, root)
	}
	for i, it := range n.items {
		switch {
		case i >= n.n:
			if it != (item{}) {
				return fmt.Errorf("unused slot %d of %d holds an item", i, n.n)
			}
		case i > 0 && n.items[i-1].key() >= it.key():
			return fmt.Errorf("keys %q and %q are out of order", n.items[i-1].key(), it.key())
		case common(it.key(), n.items[0].key(), n.prefix) != n.prefix, headOf(it.key(), n.prefix) != n.heads[i]:
			return fmt.Errorf("key %q has head %08x behind a prefix of %d", it.key(), n.heads[i], n.prefix)
		case !lo.open && it.key() < lo.key, !hi.open && it.key() >= hi.key:
			return fmt.Errorf("key %q is outside of %q..%q (open: %v, %v)", it.key(), lo.key, hi.key, lo.open, hi.open)
		}
	}
	if n.kids != nil {
		for i, child := range n.kids {
			if (child != nil) != (i <= n.n) {
				return fmt.Errorf("child %d of %d is there: %v", i, n.n+1, child != nil)
			}
		}
	}
	return nil
}
