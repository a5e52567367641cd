package disklog

import (
	"slices"
	"sort"
)

// extent is a run of records of one shard with consecutive seqs in one segment: 4 bytes for a record.
type extent struct {
	segment uint64
	first   uint64   // seq of offs[0]
	offs    []uint32 // where in the segment each frame begins
}

func (x *extent) end() uint64 { return x.first + uint64(len(x.offs)) }

// index finds a shard's records. Extents are sorted by seq and do not overlap; seqs that none covers are not stored.
// Segments do not grow with seqs, because records are copied out of old segments.
type index struct{ extents []extent }

// search returns the first extent that ends after seq.
func (x *index) search(seq uint64) int {
	if n := len(x.extents); n > 0 && x.extents[n-1].end() <= seq {
		return n
	}
	return sort.Search(len(x.extents), func(i int) bool { return x.extents[i].end() > seq })
}

// find returns where a record is.
func (x *index) find(seq uint64) (segment uint64, off uint32, ok bool) {
	i := x.search(seq)
	if i == len(x.extents) || x.extents[i].first > seq {
		return 0, 0, false
	}
	e := &x.extents[i]
	return e.segment, e.offs[seq-e.first], true
}

// cut forgets one record and returns the segment that had it, 0 if none had. i is the place of an extent that would
// begin with it.
func (x *index) cut(seq uint64) (before uint64, i int) {
	i = x.search(seq)
	if i == len(x.extents) || x.extents[i].first > seq {
		return 0, i
	}
	e := x.extents[i]
	k := int(seq - e.first)
	left := extent{e.segment, e.first, e.offs[:k:k]} // appending to it must not write into right
	right := extent{e.segment, seq + 1, e.offs[k+1:]}
	switch {
	case k == 0 && len(right.offs) == 0:
		x.extents = slices.Delete(x.extents, i, i+1)
		return e.segment, i
	case k == 0:
		x.extents[i] = right
		return e.segment, i
	}
	x.extents[i] = left
	if len(right.offs) > 0 {
		x.extents = slices.Insert(x.extents, i+1, right)
	}
	return e.segment, i + 1
}

// put stores where a record is and returns the segment that had it before, 0 if none had.
func (x *index) put(seq, segment uint64, off uint32) (before uint64) {
	before, i := x.cut(seq)
	if i > 0 {
		if e := &x.extents[i-1]; e.segment == segment && e.end() == seq {
			e.offs = append(e.offs, off)
			return before
		}
	}
	x.extents = slices.Insert(x.extents, i, extent{segment, seq, []uint32{off}})
	return before
}

// dropBelow forgets the records below seq and tells how many of them were in which segment.
func (x *index) dropBelow(seq uint64, dropped func(segment uint64, n int)) {
	whole := x.search(seq)
	for _, e := range x.extents[:whole] {
		dropped(e.segment, len(e.offs))
	}
	x.extents = slices.Delete(x.extents, 0, whole)
	if len(x.extents) > 0 && x.extents[0].first < seq {
		e := &x.extents[0]
		n := int(seq - e.first)
		dropped(e.segment, n)
		e.offs, e.first = e.offs[n:], seq
	}
}
