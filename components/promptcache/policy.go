package promptcache

// This file is the eviction policy: the whole of it. A better one replaces Policy and Use and nothing else; Order (order.go)
// keeps blocks sorted by Policy.Rank, and the shard persists Use with each block.
//
// The policy is least recently used, first the deepest among equals, with three additions that need no tuning because they
// are measured in lifetimes (how long a block stays that is never used again, which is as many stores as there are blocks):
//
//   - a block that was used again stays longer, by a quarter of a lifetime for each use (at most maxUses);
//   - the shallow blocks of a chain stay up to half a lifetime longer, since the deep ones are no use without them;
//   - the cache remembers the names of blocks that it evicted, twice as many as it holds. Where many uses find such a ghost
//     the cache is small for its load: then recency means little, and repeated use earns up to four lifetimes more a use.
//
// All arithmetic is on integers: the order is a function of what happened.

// Use is what the policy knows of a stored block.
type Use struct {
	Clock uint64 // the policy's clock at the last use
	Count uint32 // uses, the store included
}

const (
	maxUses    = 5  // further uses earn nothing more
	unit       = 64 // fixed point: one lifetime
	baseWeight = unit / 4
	thrash     = 4 * unit
	depthBonus = unit / 2
	depthHalf  = 32 // depth at which half of the bonus is left
	ghostRatio = 2
	minWindow  = 32
)

// Policy ranks blocks. The zero value is ready.
type Policy struct {
	clock  uint64 // stores so far
	stamp  uint64 // clock when the command began: its blocks are equals
	size   int64  // blocks when the command began: a lifetime
	weight int64  // what one repeated use earns
	hits   int64  // recent uses that found their block
	misses int64  // recent uses that found a ghost
	ghosts ghosts
}

// Begin starts a command: all that it touches and stores is of one age. n blocks are stored.
func (p *Policy) Begin(n int) { p.stamp, p.size = p.clock, int64(n) }

// Stored is the use of a new block.
func (p *Policy) Stored(name uint64) Use {
	u := Use{Clock: p.stamp, Count: 1}
	p.clock++
	if uses, ok := p.ghosts.take(name); ok {
		u.Count = min(uses+1, maxUses)
		p.observe(0, 1)
	}
	return u
}

// Touched is the use of a block that was used again.
func (p *Policy) Touched(u Use) Use {
	p.observe(1, 0)
	return Use{Clock: p.stamp, Count: min(u.Count+1, maxUses)}
}

// Evicted tells of a block that had to go; n blocks were stored.
func (p *Policy) Evicted(name uint64, u Use, n int) { p.ghosts.add(name, u.Count, ghostRatio*n) }

// Restored tells of a block that was there before: the clock goes on where it was.
func (p *Policy) Restored(u Use) { p.clock = max(p.clock, u.Clock) }

// Rank says when a block goes: the smallest first. It holds until the next use of the block.
func (p *Policy) Rank(u Use, depth uint32) int64 {
	again := int64(min(max(u.Count, 1), maxUses)) - 1
	w := max(p.weight, baseWeight)
	bonus := w*again + depthBonus*depthHalf/(depthHalf+int64(depth))
	return int64(u.Clock)*unit + bonus*p.size
}

// observe keeps the share of uses that found a ghost, over a window of half the blocks, and sets the weight.
func (p *Policy) observe(hits, misses int64) {
	p.hits += hits
	p.misses += misses
	if p.hits+p.misses > max(p.size/2, minWindow) {
		p.hits /= 2
		p.misses /= 2
	}
	all := p.hits + p.misses + 1
	p.weight = baseWeight + thrash*p.misses*p.misses/(all*all)
}

// ghosts is a bounded first-in-first-out set of names with their uses.
type ghosts struct {
	uses  map[uint64]ghost
	queue []ghostName // from head on
	head  int
	seq   uint64
}

type ghost struct {
	seq  uint64
	uses uint32
}

type ghostName struct{ name, seq uint64 }

func (g *ghosts) take(name uint64) (uses uint32, ok bool) {
	e, ok := g.uses[name]
	if ok {
		delete(g.uses, name)
	}
	return e.uses, ok
}

func (g *ghosts) add(name uint64, uses uint32, limit int) {
	if g.uses == nil {
		g.uses = make(map[uint64]ghost)
	}
	g.seq++
	g.uses[name] = ghost{seq: g.seq, uses: uses}
	g.queue = append(g.queue, ghostName{name: name, seq: g.seq})
	// The queue may name ghosts that were taken: they leave with their turn, and the bound is on the queue.
	for len(g.queue)-g.head > max(limit, 1) {
		old := g.queue[g.head]
		g.head++
		if e, ok := g.uses[old.name]; ok && e.seq == old.seq {
			delete(g.uses, old.name)
		}
	}
	if g.head > len(g.queue)/2 && g.head > 1024 {
		g.queue = append(g.queue[:0], g.queue[g.head:]...)
		g.head = 0
	}
}
