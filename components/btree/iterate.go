package btree

import "iter"

// Ascend yields items with from <= key < to in order; a nil from means from the beginning, a nil to means no end. The tree must not be written meanwhile
// (iterate a clone to write while iterating). Keys and values are views that the caller must not change; they stay valid.
func (t *Tree) Ascend(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		if t.root != nil {
			t.root.ascend(lower(from), upper(to), yield)
		}
	}
}

// Descend yields items with from <= key < to in descending order; a nil to means from the end. Otherwise as Ascend.
func (t *Tree) Descend(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		if t.root != nil {
			t.root.descend(lower(from), upper(to), yield)
		}
	}
}

// AscendPrefix yields the items whose keys begin with prefix, in order.
func (t *Tree) AscendPrefix(prefix []byte) iter.Seq2[[]byte, []byte] {
	return t.Ascend(prefix, PrefixEnd(prefix))
}

// First returns the first item with from <= key < to; a nil to means no end.
func (t *Tree) First(from, to []byte) (key, value []byte, ok bool) {
	for k, v := range t.Ascend(from, to) {
		return k, v, true
	}
	return nil, nil, false
}

// Last returns the last item with from <= key < to; a nil to means no end.
func (t *Tree) Last(from, to []byte) (key, value []byte, ok bool) {
	for k, v := range t.Descend(from, to) {
		return k, v, true
	}
	return nil, nil, false
}

// PrefixEnd returns the smallest key that is greater than every key that begins with prefix, for the end of a range; nil
// (no end) when there is none: the prefix is empty or all 0xff.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := append([]byte(nil), prefix[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}

// bound is one end of a range; open means that it leaves nothing out.
type bound struct {
	key  string
	open bool
}

func lower(from []byte) bound { return bound{view(from), len(from) == 0} }
func upper(to []byte) bound   { return bound{view(to), to == nil} }

var open = bound{open: true}

// span returns the items [lo, hi) of a leaf that are in range, or the children [lo, hi] of an inner node that may hold
// such.
func (n *node) span(from, to bound) (lo, hi int) {
	hi = n.n
	if !from.open {
		lo, _ = n.search(from.key)
		if n.kids != nil {
			lo = n.childOf(from.key)
		}
	}
	if !to.open {
		hi, _ = n.search(to.key)
	}
	return lo, hi
}

func (n *node) ascend(from, to bound, yield func(key, value []byte) bool) bool {
	lo, hi := n.span(from, to)
	if n.kids == nil {
		for i := lo; i < hi; i++ {
			if !yield(n.items[i].keyBytes(), n.items[i].valueBytes()) {
				return false
			}
		}
		return true
	}
	for i := lo; i <= hi; i++ {
		f, t := open, open
		if i == lo {
			f = from
		}
		if i == hi {
			t = to
		}
		if !n.kids[i].ascend(f, t, yield) {
			return false
		}
	}
	return true
}

func (n *node) descend(from, to bound, yield func(key, value []byte) bool) bool {
	lo, hi := n.span(from, to)
	if n.kids == nil {
		for i := hi - 1; i >= lo; i-- {
			if !yield(n.items[i].keyBytes(), n.items[i].valueBytes()) {
				return false
			}
		}
		return true
	}
	for i := hi; i >= lo; i-- {
		f, t := open, open
		if i == lo {
			f = from
		}
		if i == hi {
			t = to
		}
		if !n.kids[i].descend(f, t, yield) {
			return false
		}
	}
	return true
}
