package promptcache

import (
	"container/heap"

	"github.com/zeebo/xxh3"
)

// Order holds the blocks of one cache in the order in which they would be evicted. Held blocks (leased, pinned) are known but
// not in line. Every operation costs O(log n). It is for one goroutine; the zero value is ready.
type Order struct {
	policy Policy
	items  map[string]*Item
	line   line
}

// Item is a block in an Order.
type Item struct {
	Key   string // as the caller names it
	Depth uint32
	Bytes int64
	Use   Use

	// What follows is the caller's: Order neither reads nor writes it.

	AtMS     int64 // time of the last use
	PinnedMS int64 // pinned until then; 0 = not pinned
	Leases   int32 // leases that hold it
	Changed  bool  // Use and AtMS are not stored yet

	rank  int64
	holds int32
	pos   int32 // in line, -1 when held
}

// Len is the number of blocks, held ones included.
func (o *Order) Len() int { return len(o.items) }

// Waiting is the number of blocks that may be evicted.
func (o *Order) Waiting() int { return len(o.line) }

// Begin starts a command: all that it touches and stores is of one age.
func (o *Order) Begin() { o.policy.Begin(len(o.items)) }

// Get finds a block; nil when it is not there.
func (o *Order) Get(key []byte) *Item { return o.items[string(key)] }

// Restore adds a block of an earlier life. After the last one call Sort.
func (o *Order) Restore(key []byte, depth uint32, bytes int64, u Use) *Item {
	it := o.add(key, depth, bytes)
	it.Use = u
	it.pos = int32(len(o.line))
	o.line = append(o.line, it)
	o.policy.Restored(u)
	return it
}

// Sort ends a sequence of Restore, in linear time.
func (o *Order) Sort() {
	o.policy.Begin(len(o.items))
	for _, it := range o.line {
		it.rank = o.policy.Rank(it.Use, it.Depth)
	}
	heap.Init(&o.line)
}

// Store adds a new block.
func (o *Order) Store(key []byte, depth uint32, bytes int64) *Item {
	it := o.add(key, depth, bytes)
	it.Use = o.policy.Stored(xxh3.Hash(key))
	it.rank = o.policy.Rank(it.Use, depth)
	heap.Push(&o.line, it)
	return it
}

func (o *Order) add(key []byte, depth uint32, bytes int64) *Item {
	if o.items == nil {
		o.items = make(map[string]*Item)
	}
	it := &Item{Key: string(key), Depth: depth, Bytes: bytes}
	o.items[it.Key] = it
	return it
}

// Touch notes a use.
func (o *Order) Touch(it *Item) {
	it.Use = o.policy.Touched(it.Use)
	it.rank = o.policy.Rank(it.Use, it.Depth)
	if it.pos >= 0 {
		heap.Fix(&o.line, int(it.pos))
	}
}

// SetUse gives a block the use that it is known to have had.
func (o *Order) SetUse(it *Item, u Use) {
	it.Use = u
	o.policy.Restored(u)
	it.rank = o.policy.Rank(u, it.Depth)
	if it.pos >= 0 {
		heap.Fix(&o.line, int(it.pos))
	}
}

// Hold takes a block out of line until as many calls of Unhold.
func (o *Order) Hold(it *Item) {
	it.holds++
	if it.pos >= 0 {
		heap.Remove(&o.line, int(it.pos))
		it.pos = -1
	}
}

// Unhold takes one hold back.
func (o *Order) Unhold(it *Item) {
	it.holds--
	if it.holds == 0 && o.items[it.Key] == it {
		heap.Push(&o.line, it)
	}
}

// Held tells whether something holds the block.
func (it *Item) Held() bool { return it.holds > 0 }

// First is the block to evict next; nil when none may be.
func (o *Order) First() *Item {
	if len(o.line) == 0 {
		return nil
	}
	return o.line[0]
}

// Evict removes a block that had to go for others.
func (o *Order) Evict(it *Item) {
	n := len(o.items)
	o.Remove(it)
	o.policy.Evicted(xxh3.HashString(it.Key), it.Use, n)
}

// Remove removes a block.
func (o *Order) Remove(it *Item) {
	if it.pos >= 0 {
		heap.Remove(&o.line, int(it.pos))
		it.pos = -1
	}
	delete(o.items, it.Key)
}

// line is a heap of what may be evicted: lowest rank first, then the deepest, then by key.
type line []*Item

func (l line) Len() int { return len(l) }
func (l line) Less(i, j int) bool {
	a, b := l[i], l[j]
	if a.rank != b.rank {
		return a.rank < b.rank
	}
	if a.Depth != b.Depth {
		return a.Depth > b.Depth
	}
	return a.Key < b.Key
}

func (l line) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].pos, l[j].pos = int32(i), int32(j)
}

// Push is for package heap.
func (l *line) Push(x any) {
	it := x.(*Item)
	it.pos = int32(len(*l))
	*l = append(*l, it)
}

// Pop is for package heap.
func (l *line) Pop() any {
	old := *l
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*l = old[:len(old)-1]
	it.pos = -1
	return it
}
