package shard

import (
	"bytes"
	"encoding/binary"

	"kvstore/components/btree"
	"kvstore/components/kverr"
)

// ListQuery selects keys of a namespace, in byte order. Bounds that are empty leave that side open.
type ListQuery struct {
	Prefix   []byte // keys that begin with it
	Start    []byte // first key
	End      []byte // first key that is not included
	After    []byte // only keys greater than this one: the last key of the page before
	Limit    int    // most entries of a page; 0 = 1,000
	MaxBytes int64  // most bytes of keys and what is stored beside them of a page, the first entry apart; 0 = no bound
	KeysOnly bool   // values are not wanted, nor counted
}

// DefaultListLimit is the page size when a query names none.
const DefaultListLimit = 1000

// bounds is the range of typed keys that the query selects.
func (q *ListQuery) bounds(ns NamespaceID) (from, to []byte) {
	head := appendDataKey(nil, ns, nil)
	low := q.Start
	if bytes.Compare(q.Prefix, low) > 0 {
		low = q.Prefix
	}
	from = append(append(make([]byte, 0, len(head)+len(low)+1), head...), low...)
	if len(q.After) > 0 && bytes.Compare(q.After, low) >= 0 {
		from = append(append(from[:len(head)], q.After...), 0)
	}
	to = btree.PrefixEnd(append(append(make([]byte, 0, len(head)+len(q.Prefix)), head...), q.Prefix...))
	if len(q.End) > 0 {
		if end := append(append(make([]byte, 0, len(head)+len(q.End)), head...), q.End...); bytes.Compare(end, to) < 0 {
			to = end
		}
	}
	return from, to
}

// List finds one page; more tells whether there are further keys. The cost is that of the page. An entry that cannot be decoded is
// DataLoss, with the page up to it.
func (v View) List(ns NamespaceID, q ListQuery) (page []Entry, more bool, err *kverr.Error) {
	limit := q.Limit
	if limit <= 0 {
		limit = DefaultListLimit
	}
	from, to := q.bounds(ns)
	var size int64
	for typed, item := range v.tree.Ascend(from, to) {
		if len(page) == limit {
			return page, true, nil
		}
		var e Entry
		_, key, _ := splitDataKey(typed)
		if !e.decode(item) {
			return page, true, errUndecodable(key, item)
		}
		e.Key = key
		size += int64(len(key) + len(item))
		if q.KeysOnly {
			size -= int64(len(e.Value.Inline))
		}
		if q.MaxBytes > 0 && size > q.MaxBytes && len(page) > 0 {
			return page, true, nil
		}
		page = append(page, e)
	}
	return page, false, nil
}

// Count is how many keys the query selects; Limit, MaxBytes and KeysOnly do not matter. For a whole namespace it is kept; for
// a part of it the cost is the number of keys counted.
func (v View) Count(ns NamespaceID, q ListQuery) int64 {
	if len(q.Prefix)+len(q.Start)+len(q.End)+len(q.After) == 0 {
		items, _ := v.Usage(ns)
		return items
	}
	var n int64
	from, to := q.bounds(ns)
	for range v.tree.Ascend(from, to) {
		n++
	}
	return n
}

// Usage is what the entries of a namespace take: their number, and the bytes of keys and values, wherever they are.
func (v View) Usage(ns NamespaceID) (items, bytes int64) {
	var room [1 + binary.MaxVarintLen32]byte
	item, ok := v.tree.Get(appendCountersKey(room[:0], ns))
	if !ok {
		return 0, 0
	}
	var n counters
	n.decode(item)
	return n.items, n.bytes
}
