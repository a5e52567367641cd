package shard

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/promptcache"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// promptRig drives a machine as a host does: steps, Ready, then the append succeeds (commit), is known to have failed (roll
// back), or the owner dies and another one takes over from the log.
type promptRig struct {
	t       testing.TB
	seed    uint64
	m       *Machine
	replica *Machine // replays every durable body
	durable *btree.Tree
	now     int64
}

func newPromptRig(t testing.TB, seed uint64) *promptRig {
	r := &promptRig{t: t, seed: seed, m: New(Config{HistoryBytes: 1 << 20}), replica: New(Config{HistoryBytes: 1 << 20}), durable: new(btree.Tree), now: 1_700_000_000_000}
	r.m.Tick(r.now)
	return r
}

func (r *promptRig) step(c *Command) *Command {
	c.Done = func(*Command, error) {}
	r.m.Step(c)
	return c
}

func (r *promptRig) advance(ms int64) {
	r.now += ms
	r.m.Tick(r.now)
}

// commit takes what is ready and makes it durable.
func (r *promptRig) commit() {
	ready := r.m.Ready()
	for _, g := range ready.Replies {
		if g.Dep > ready.Head {
			r.t.Fatalf("seed %d: a reply depends on revision %d, the head is %d", r.seed, g.Dep, ready.Head)
		}
	}
	r.durable = r.m.Tree().Clone()
	if len(ready.Body) == 0 {
		return
	}
	if err := r.replica.Replay(ready.Body, ready.TimeMS); err != nil {
		r.t.Fatalf("seed %d: replay: %v", r.seed, err)
	}
	if diff := treeDiff(r.durable, r.replica.Tree()); diff != "" {
		r.t.Fatalf("seed %d: a replay of the same bodies holds another tree: %s", r.seed, diff)
	}
}

func (r *promptRig) rollBack() {
	r.m.Ready()
	r.m.Restore(r.durable.Clone())
	r.m.Tick(r.now)
}

func (r *promptRig) takeOver() {
	r.m = New(Config{HistoryBytes: 1 << 20})
	r.m.Restore(r.durable.Clone())
	r.m.Tick(r.now)
}

func treeDiff(a, b *btree.Tree) string {
	for c := range a.Diff(b) {
		return fmt.Sprintf("key %x: %x, deleted %v", c.Key, c.Value, c.Deleted)
	}
	return ""
}

func (r *promptRig) view() View { return NewView(r.m.Tree()) }

// recount holds the accounts in the tree and the order against the blocks that are there.
func (r *promptRig) recount(ns NamespaceID) (blocks int) {
	r.t.Helper()
	r.commit()
	type sums struct{ blocks, bytes int64 }
	want := map[ScopeID]sums{}
	from := appendSpaceKey(nil, prefixBlock, ns)
	var bytes int64
	sp := r.m.space(ns)
	for typed, item := range r.m.Tree().Ascend(from, rangeEnd(from)) {
		_, scope, _, ok := splitBlockKey(typed)
		var b Block
		if !ok || !b.decode(item) {
			r.t.Fatalf("seed %d: item %x is damaged", r.seed, typed)
		}
		s := want[scope]
		s.blocks++
		s.bytes += b.Size
		want[scope] = s
		bytes += b.Size
		blocks++
		if sp.order.Get(typed) == nil {
			r.t.Fatalf("seed %d: block %x is not in the order", r.seed, typed)
		}
	}
	if sp.order.Len() != blocks || sp.bytes != bytes {
		r.t.Fatalf("seed %d: the order has %d blocks of %d bytes, the tree %d of %d", r.seed, sp.order.Len(), sp.bytes, blocks, bytes)
	}
	scopes, _ := r.view().Scopes(ns, nil, 1000)
	for _, u := range scopes {
		if want[u.Scope] != (sums{u.Blocks, u.Bytes}) || promptcache.ScopeOf(u.Fields) != u.Scope {
			r.t.Fatalf("seed %d: scope %x has %d blocks of %d bytes, want %v", r.seed, u.Scope, u.Blocks, u.Bytes, want[u.Scope])
		}
		delete(want, u.Scope)
	}
	if len(want) > 0 {
		r.t.Fatalf("seed %d: scopes without an account: %v", r.seed, want)
	}
	return blocks
}

func testScope(i int) (ScopeID, []byte) {
	fields, err := promptcache.Canonical(map[string]string{"model": fmt.Sprint("m", i)})
	if err != nil {
		panic(err)
	}
	return promptcache.ScopeOf(fields), fields
}

func blockPut(id string, depth uint32, size int) BlockPut {
	return BlockPut{Block: BlockKey{ID: []byte(id), Depth: depth}, Value: Value{Inline: bytes.Repeat([]byte{id[0]}, size)}, Size: int64(size), Checksum: uint64(size)}
}

func index(scope int, capacity Capacity, puts ...BlockPut) *Command {
	id, fields := testScope(scope)
	return &Command{Op: OpIndex, Namespace: 1, Prompt: &PromptArgs{Scope: id, ScopeFields: fields, Index: puts, Capacity: capacity}}
}

func onBlocks(op Op, scope int, ids ...string) *Command {
	id, fields := testScope(scope)
	c := &Command{Op: op, Namespace: 1, Prompt: &PromptArgs{Scope: id, ScopeFields: fields}}
	for i, s := range ids {
		c.Prompt.Blocks = append(c.Prompt.Blocks, BlockKey{ID: []byte(s), Depth: uint32(i)})
	}
	return c
}

func lookup(scope int, lease byte, leaseMS int64, ids ...string) *Command {
	c := onBlocks(OpLookup, scope, ids...)
	c.Prompt.Lease, c.Prompt.LeaseMS = [16]byte{lease}, leaseMS
	return c
}

func stored(c *Command) (s string) {
	for _, b := range c.Result.Blocks {
		switch {
		case b.Stored:
			s += "s"
		case b.Refused:
			s += "r"
		case b.Leased:
			s += "l"
		case b.Present:
			s += "p"
		default:
			s += "-"
		}
	}
	return s
}

func TestPromptScript(t *testing.T) {
	r := newPromptRig(t, 0)
	four := Capacity{Blocks: 4}
	is := func(what string, c *Command, want string) {
		t.Helper()
		r.step(c)
		if c.Result.Err != nil {
			t.Fatalf("%s: %v", what, c.Result.Err)
		}
		if got := stored(c); got != want {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
		r.recount(1)
	}
	is("new blocks", index(0, four, blockPut("a", 0, 10), blockPut("b", 1, 10), blockPut("b", 1, 10)), "ssp")
	is("the first writer wins", index(0, four, blockPut("b", 1, 11), blockPut("c", 2, 10)), "ps")
	is("another scope", lookup(1, 0, 0, "a"), "-")
	is("found", lookup(0, 0, 0, "a", "b", "c", "d"), "ppp-")
	is("the fourth fits", index(0, four, blockPut("d", 3, 10)), "s")
	is("lease two", lookup(0, 7, 20_000, "c", "d"), "pp")
	pin := onBlocks(OpPin, 0, "a", "nothing")
	pin.Prompt.UntilMS = r.now + 60_000
	is("pin", pin, "p-")
	is("one may go", index(0, four, blockPut("e", 0, 10), blockPut("f", 1, 10)), "sr")
	is("b went", lookup(0, 0, 0, "a", "b", "c", "d", "e"), "p-ppp")
	is("leased blocks stay", onBlocks(OpDeleteBlocks, 0, "c", "e", "x"), "lp-")
	is("e is gone, and its room free", index(0, four, blockPut("g", 0, 10)), "s")
	release := onBlocks(OpRelease, 0)
	release.Prompt.Lease = [16]byte{7}
	is("release", release, "")
	is("release again", release, "")
	is("c and d may go", index(0, four, blockPut("h", 0, 10), blockPut("i", 1, 10), blockPut("j", 2, 10), blockPut("k", 3, 10)), "sssr")
	is("a is pinned", lookup(0, 0, 0, "a"), "p")
	r.advance(60_000)
	is("the pin is over", index(0, four, blockPut("l", 0, 10), blockPut("m", 0, 10), blockPut("n", 0, 10), blockPut("o", 0, 10)), "ssss")
	is("a went", lookup(0, 0, 0, "a", "h"), "--")
	unindex := onBlocks(OpUnindex, 0, "l", "m")
	unindex.Prompt.Damaged = []Ref{{Object: ObjectID{1, 1}}, {}}
	is("only what still is there is forgotten", unindex, "-p")
	touch := onBlocks(OpTouch, 0)
	is("nothing to touch", touch, "")
	if touch.Result.Damaged != 1 || touch.Result.Evicted == 0 {
		t.Errorf("counters: %+v", touch.Result)
	}
	is("two scopes", index(1, Capacity{}, blockPut("a", 0, 5)), "s")
	cleared := onBlocks(OpClear, 0)
	is("clear", cleared, "")
	if cleared.Result.Deleted != 3 || cleared.Result.More {
		t.Errorf("clear: %+v", cleared.Result)
	}
	if scopes, _ := r.view().Scopes(1, nil, 10); len(scopes) != 1 {
		t.Errorf("scopes after the clear: %v", scopes)
	}
}

func TestPromptExpiry(t *testing.T) {
	r := newPromptRig(t, 0)
	put := blockPut("a", 0, 10)
	put.TTLMS = 1000
	leased, pinned := put, put
	leased.Block.ID, pinned.Block.ID = []byte("leased"), []byte("pinned")
	r.step(index(0, Capacity{}, put, leased, pinned))
	r.step(lookup(0, 1, 5000, "leased"))
	pin := onBlocks(OpPin, 0, "pinned")
	pin.Prompt.UntilMS = r.now + 9000
	r.step(pin)
	present := func() string { return stored(r.step(onBlocks(OpTouch, 0, "a", "leased", "pinned"))) }
	for _, s := range []struct {
		ms   int64
		want string
	}{{999, "ppp"}, {1, "-pp"}, {3999, "-pp"}, {1000 + heldRetryMS, "--p"}, {4000, "---"}} {
		r.advance(s.ms)
		if got := present(); got != s.want {
			t.Fatalf("at +%d: %s, want %s", s.ms, got, s.want)
		}
		r.recount(1)
		if wake := r.m.WakeMS(); wake != 0 && wake <= r.now {
			t.Fatalf("the machine asks to be woken at %d, now is %d", wake, r.now)
		}
	}
}

// TestPromptTakeOver: a new owner does without leases at once if there were none, and keeps its hands off for one lease term
// if there may have been.
func TestPromptTakeOver(t *testing.T) {
	for _, withLease := range []bool{false, true} {
		r := newPromptRig(t, 0)
		capacity := Capacity{Blocks: 10}
		for i := range 10 {
			r.step(index(0, capacity, blockPut(fmt.Sprint("b", i), 0, 1)))
		}
		if withLease {
			r.step(lookup(0, 1, MaxLeaseMS, "b3"))
		}
		r.commit()
		r.takeOver()
		got := stored(r.step(index(0, capacity, blockPut("x", 0, 1), blockPut("y", 0, 1)))) + stored(r.step(onBlocks(OpDeleteBlocks, 0, "b3")))
		r.recount(1)
		want := "ssp"
		if withLease {
			want = "srl" // a tenth over capacity, then no more; nothing is deleted
		}
		if got != want {
			t.Fatalf("lease %v: %s after the change of owner, want %s", withLease, got, want)
		}
		r.advance(MaxLeaseMS)
		got = stored(r.step(index(0, capacity, blockPut("z", 0, 1)))) + stored(r.step(onBlocks(OpDeleteBlocks, 0, "b9")))
		if got != "sp" && got != "s-" {
			t.Fatalf("lease %v: %s after a lease term", withLease, got)
		}
		if n := r.recount(1); n > 10 {
			t.Fatalf("lease %v: %d blocks after a lease term, the capacity is 10", withLease, n)
		}
	}
}

// TestPromptUsesSurvive: uses ride along with the next record, so that a new owner evicts in the same order; they make no
// record of their own, and a lookup depends on nothing that is not durable.
func TestPromptUsesSurvive(t *testing.T) {
	r := newPromptRig(t, 0)
	capacity := Capacity{Blocks: 6}
	for i := range 6 {
		r.step(index(0, capacity, blockPut(fmt.Sprint("b", i), 0, 1)))
	}
	r.commit()
	head := r.m.Ready().Head
	c := r.step(lookup(0, 0, 0, "b0", "b1", "b2"))
	ready := r.m.Ready()
	if len(ready.Body) != 0 || ready.Replies[0].Dep > head || stored(c) != "ppp" {
		t.Fatalf("a lookup made a record of %d bytes, depends on %d (durable: %d)", len(ready.Body), ready.Replies[0].Dep, head)
	}
	r.step(index(0, Capacity{}, blockPut("new", 0, 1)))
	r.commit()
	r.takeOver()
	r.step(index(0, Capacity{Blocks: 4}, blockPut("newer", 0, 1)))
	if got := stored(r.step(onBlocks(OpTouch, 0, "b0", "b1", "b2", "b3", "b4", "b5"))); got != "p p p---" && got != "ppp---" && got != "-pp---" {
		t.Fatalf("blocks used again went before others: %s", got)
	}
}

// TestPromptHorizon: the first lease leaves only once the record that announces leases is durable; the next ones need no record.
func TestPromptHorizon(t *testing.T) {
	r := newPromptRig(t, 0)
	r.step(index(0, Capacity{}, blockPut("a", 0, 1)))
	r.commit()
	head := r.m.Ready().Head
	r.step(lookup(0, 1, 10_000, "a"))
	if ready := r.m.Ready(); ready.Replies[0].Dep != head+1 || ready.Head != head+1 || len(ready.Body) == 0 {
		t.Fatalf("the first lease depends on %d, head %d, before %d", ready.Replies[0].Dep, ready.Head, head)
	}
	r.advance(20_000)
	r.step(lookup(0, 2, MaxLeaseMS, "a"))
	if ready := r.m.Ready(); ready.Replies[0].Dep != head+1 || len(ready.Body) != 0 {
		t.Fatalf("a later lease depends on %d and made a record of %d bytes", ready.Replies[0].Dep, len(ready.Body))
	}
}

func TestPromptBadArguments(t *testing.T) {
	long := string(bytes.Repeat([]byte("x"), promptcache.MaxIDBytes+1))
	for name, c := range map[string]*Command{
		"no arguments":    {Op: OpLookup, Namespace: 1},
		"no id":           onBlocks(OpLookup, 0, ""),
		"long id":         onBlocks(OpLookup, 0, long),
		"long lease":      lookup(0, 1, MaxLeaseMS+1, "a"),
		"negative lease":  lookup(0, 1, -1, "a"),
		"size":            index(0, Capacity{}, BlockPut{Block: BlockKey{ID: []byte("a")}, Size: 1}),
		"negative ttl":    index(0, Capacity{}, BlockPut{Block: BlockKey{ID: []byte("a")}, TTLMS: -1}),
		"long parent":     index(0, Capacity{}, BlockPut{Block: BlockKey{ID: []byte("a")}, Parent: []byte(long)}),
		"capacity":        index(0, Capacity{Blocks: -1}, blockPut("a", 0, 1)),
		"no reference":    onBlocks(OpUnindex, 0, "a"),
		"long index id":   index(0, Capacity{}, blockPut(long, 0, 1)),
		"until when":      {Op: OpPin, Namespace: 1, Prompt: &PromptArgs{UntilMS: -1}},
		"after its time":  {Op: OpPin, Namespace: 1, ID: Identity{Client: [16]byte{1}, NotAfterMS: 1}, Prompt: &PromptArgs{}},
		"negative blocks": index(0, Capacity{Bytes: -1}, blockPut("a", 0, 1)),
	} {
		r := newPromptRig(t, 0)
		r.step(c)
		if e := c.Result.Err; e == nil || e.Message == "" || e.Field == "" {
			t.Errorf("%s: %v, want an error that names the field", name, e)
		}
		if ready := r.m.Ready(); len(ready.Body) > 0 || len(ready.Replies) != 1 {
			t.Errorf("%s: a record of %d bytes and %d replies", name, len(ready.Body), len(ready.Replies))
		}
	}
}

// TestPromptSmallerCapacity: a capacity that was made smaller is reached in bounded steps, and no step makes it worse.
func TestPromptSmallerCapacity(t *testing.T) {
	r := newPromptRig(t, 0)
	for i := range 300 {
		var puts []BlockPut
		for j := range 10 {
			puts = append(puts, blockPut(fmt.Sprint("b", i*10+j), uint32(j), 3))
		}
		r.step(index(0, Capacity{}, puts...))
	}
	before := r.recount(1)
	for n := 0; before > 500; n++ {
		if n > 3 {
			t.Fatalf("%d blocks after %d steps", before, n)
		}
		r.step(index(0, Capacity{Blocks: 500}, blockPut(fmt.Sprint("x", n), 0, 3), blockPut(fmt.Sprint("y", n), 0, 3)))
		now := r.recount(1)
		if now > before || before-now > maxEvictions {
			t.Fatalf("step %d: from %d to %d blocks", n, before, now)
		}
		before = now
	}
	// By bytes: a large block takes the place of many small ones.
	c := r.step(index(0, Capacity{Bytes: 1500}, blockPut("large", 0, 900)))
	if stored(c) != "s" || r.m.space(1).bytes > 1500 {
		t.Fatalf("%s, %d bytes", stored(c), r.m.space(1).bytes)
	}
	if c := r.step(index(0, Capacity{Bytes: 1500}, blockPut("larger than all", 0, 1501))); stored(c) != "r" || r.m.space(1).bytes == 0 {
		t.Fatalf("a block that can never fit: %s, %d bytes left", stored(c), r.m.space(1).bytes)
	}
}

// TestPromptScopeCollision: under one scope id there is one scope.
func TestPromptScopeCollision(t *testing.T) {
	r := newPromptRig(t, 0)
	r.step(index(0, Capacity{}, blockPut("a", 0, 1)))
	_, other := testScope(1)
	for _, c := range []*Command{onBlocks(OpLookup, 0, "a"), onBlocks(OpDeleteBlocks, 0, "a"), onBlocks(OpPin, 0, "a")} {
		c.Prompt.ScopeFields = other
		if got := stored(r.step(c)); got != "-" {
			t.Errorf("operation %d found %q under another scope's form", c.Op, got)
		}
	}
	c := index(0, Capacity{}, blockPut("b", 0, 1))
	c.Prompt.ScopeFields = other
	if r.step(c); c.Result.Err == nil || c.Result.Err.Kind != kverr.InvalidArgument {
		t.Errorf("a block was stored under another scope's form: %v", c.Result.Err)
	}
	r.recount(1)
}

func TestPromptLeaseBounds(t *testing.T) {
	l := leases{blocks: maxLeasedBlocks - 1}
	if err := l.room([16]byte{1}, 1); err != nil {
		t.Error(err)
	}
	err := l.room([16]byte{1}, 2)
	var e *kverr.Error
	if !errors.As(error(err), &e) || e.Kind != kverr.Exhausted || e.RetryAfterMS == 0 {
		t.Errorf("too many leased blocks: %v", err)
	}
	l.byID = make(map[[16]byte]*lease)
	for i := range maxLeases {
		l.byID[[16]byte{byte(i), byte(i >> 8), byte(i >> 16)}] = nil
	}
	if err := l.room([16]byte{0xff, 0xff, 0xff}, 1); err == nil || err.Kind != kverr.Exhausted {
		t.Errorf("too many leases: %v", err)
	}
	if err := l.room([16]byte{1}, 1); err != nil {
		t.Errorf("a known lease goes on: %v", err)
	}
}

// promptModel is the naive half: a map, and what users were told about leases.
type promptModel struct {
	blocks map[string]modelBlock // by scope and id
}

type modelBlock struct {
	size            int64
	pinned, expires int64
}

type told struct {
	id      [16]byte
	expires int64
	keys    []string
}

func (m promptModel) clone() promptModel { return promptModel{maps.Clone(m.blocks)} }

func promptKeyOf(scope int, id string) string { return fmt.Sprint(scope, "/", id) }

// TestPromptModel holds the machine against a plain model under random commands, roll-backs and changes of owner. What is
// evicted is the machine's choice, but never what is leased (as far as a user was told), pinned, or named by the command.
func TestPromptModel(t *testing.T) {
	seeds, steps := uint64(20), 1200
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		runPromptModel(t, seed, steps)
	}
}

func runPromptModel(t *testing.T, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	r := newPromptRig(t, seed)
	model := promptModel{map[string]modelBlock{}}
	durable := model.clone()
	var leasesTold, leasesPending []told
	capacity := Capacity{Blocks: 20}
	tries := promptTries{r: r, rnd: rnd}
	quietUntil := int64(0) // the machine may be quiet until then
	leasedKey := func(key string) bool {
		return slices.ContainsFunc(leasesTold, func(l told) bool { return l.expires > r.now && slices.Contains(l.keys, key) }) ||
			slices.ContainsFunc(leasesPending, func(l told) bool { return l.expires > r.now && slices.Contains(l.keys, key) })
	}
	scan := func() map[string]bool {
		got := map[string]bool{}
		for s := range 3 {
			id, _ := testScope(s)
			blocks, _, _ := NewView(r.m.Tree()).Blocks(1, id, nil, 10_000)
			for _, b := range blocks {
				got[promptKeyOf(s, string(b.ID))] = true
			}
		}
		return got
	}
	randomIDs := func() (ids []string) {
		for range 1 + rnd.IntN(5) {
			ids = append(ids, fmt.Sprintf("b\x00%d", rnd.IntN(16)))
		}
		return ids
	}
	for n := range steps {
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d step %d: %s", seed, n, fmt.Sprintf(format, args...))
		}
		scope := rnd.IntN(3)
		ids := randomIDs()
		touchedExpiry := false
		switch op := rnd.IntN(20); {
		case op < 6:
			var puts []BlockPut
			for i, id := range ids {
				p := blockPut(id, uint32(i), 1+rnd.IntN(5))
				if rnd.IntN(4) == 0 {
					p.TTLMS = 1 + rnd.Int64N(40_000)
				}
				puts = append(puts, p)
			}
			evictedBefore := r.m.prompt.statsOf(1).evicted
			c := r.step(index(scope, capacity, puts...))
			if c.Result.Err != nil {
				fail("index: %v", c.Result.Err)
			}
			now := scan()
			own := map[string]bool{}
			for i, p := range puts {
				key := promptKeyOf(scope, string(p.Block.ID))
				o := c.Result.Blocks[i]
				_, was := model.blocks[key]
				if !own[key] && o.Present != was {
					fail("index of %q: present %v, the model says %v", key, o.Present, was)
				}
				if (o.Present || o.Stored) != now[key] {
					fail("index of %q: %+v, there %v", key, o, now[key])
				}
				if o.Stored {
					b := modelBlock{size: p.Size}
					if p.TTLMS > 0 {
						b.expires = r.now + p.TTLMS
					}
					model.blocks[key] = b
					own[key] = true
				}
				if o.Present {
					own[key] = true
				}
			}
			gone := int64(0)
			for key, b := range model.blocks {
				if now[key] {
					continue
				}
				gone++
				switch {
				case own[key]:
					fail("the command evicted its own block %q", key)
				case leasedKey(key):
					fail("leased block %q was evicted", key)
				case b.pinned > r.now:
					fail("pinned block %q was evicted", key)
				}
				delete(model.blocks, key)
			}
			if gone != r.m.prompt.statsOf(1).evicted-evictedBefore {
				fail("%d blocks went, %d were counted", gone, r.m.prompt.statsOf(1).evicted-evictedBefore)
			}
			if len(now) > int(capacity.Blocks)+2 || len(now) > int(capacity.Blocks) && r.now >= quietUntil && c.Result.Revision != 0 && stored(c) != "" && bytes.ContainsRune([]byte(stored(c)), 's') {
				fail("%d blocks, capacity %d, quiet for %d ms", len(now), capacity.Blocks, quietUntil-r.now)
			}
		case op < 10:
			lease := [16]byte{byte(rnd.IntN(4) + 1)}
			ms := rnd.Int64N(MaxLeaseMS + 1)
			c := r.step(lookup(scope, lease[0], ms, ids...))
			var keys []string
			for i, id := range ids {
				key := promptKeyOf(scope, id)
				b, was := model.blocks[key]
				if o := c.Result.Blocks[i]; o.Present != was || was && (o.Size != b.size || o.PinnedUntilMS > r.now != (b.pinned > r.now)) {
					fail("lookup of %q: %+v, the model says %v %+v", key, o, was, b)
				}
				if was {
					keys = append(keys, key)
				}
			}
			if ms > 0 && len(keys) > 0 {
				if c.Result.LeaseExpiresMS != r.now+ms {
					fail("the lease ends at %d, want %d", c.Result.LeaseExpiresMS, r.now+ms)
				}
				leasesPending = append(leasesPending, told{lease, r.now + ms, keys})
			}
		case op < 11:
			c := onBlocks(OpRelease, scope)
			c.Prompt.Lease = [16]byte{byte(rnd.IntN(4) + 1)}
			r.step(c)
			mine := func(l told) bool { return l.id == c.Prompt.Lease }
			leasesTold, leasesPending = slices.DeleteFunc(leasesTold, mine), slices.DeleteFunc(leasesPending, mine)
		case op < 12:
			c := onBlocks(OpPin, scope, ids...)
			if rnd.IntN(3) > 0 {
				c.Prompt.UntilMS = r.now + rnd.Int64N(50_000) + 1
			}
			tries.first(c)
			for i, id := range ids {
				key := promptKeyOf(scope, id)
				b, was := model.blocks[key]
				if c.Result.Blocks[i].Present != was {
					fail("pin of %q: %+v, the model says %v", key, c.Result.Blocks[i], was)
				}
				if was {
					b.pinned = c.Prompt.UntilMS
					if b.expires != 0 {
						b.expires = max(b.expires, b.pinned)
					}
					model.blocks[key] = b
				}
			}
		case op < 14:
			c := tries.first(onBlocks(OpDeleteBlocks, scope, ids...))
			for i, id := range ids {
				key := promptKeyOf(scope, id)
				_, was := model.blocks[key]
				o := c.Result.Blocks[i]
				if o.Present != was || leasedKey(key) && was && !o.Leased {
					fail("delete of %q: %+v, the model says %v, leased %v", key, o, was, leasedKey(key))
				}
				if o.Present && !o.Leased {
					delete(model.blocks, key)
				}
			}
		case op < 15:
			if rnd.IntN(6) > 0 {
				break
			}
			c := r.step(onBlocks(OpClear, scope))
			now := scan()
			for key := range model.blocks {
				if !now[key] {
					if leasedKey(key) {
						fail("leased block %q was cleared", key)
					}
					delete(model.blocks, key)
					c.Result.Deleted--
				}
			}
			if c.Result.Deleted != 0 {
				fail("clear counted %d blocks too many", c.Result.Deleted)
			}
		case op < 17:
			r.advance(rnd.Int64N(8000))
			touchedExpiry = true
		case op < 18:
			r.commit()
			tries.commit()
			durable = model.clone()
			leasesTold, leasesPending = append(leasesTold, leasesPending...), nil
		case op < 19:
			if rnd.IntN(3) > 0 {
				break
			}
			r.rollBack()
			tries.rollBack()
			model, leasesPending = durable.clone(), nil
			touchedExpiry = true
		default:
			if rnd.IntN(3) > 0 {
				break
			}
			r.now += rnd.Int64N(20_000)
			r.takeOver()
			tries.rollBack()
			model, leasesPending = durable.clone(), nil
			quietUntil = r.now + MaxLeaseMS
			touchedExpiry = true
		}
		if n%16 == 0 {
			r.recount(1)
			tries.commit()
			durable = model.clone()
			leasesTold, leasesPending = append(leasesTold, leasesPending...), nil
		}
		if err := tries.again(); err != nil {
			fail("%v", err)
		}
		now := scan()
		for key, b := range model.blocks {
			if now[key] {
				continue
			}
			if !touchedExpiry || b.expires == 0 || b.expires > r.now {
				fail("block %q is gone (%+v, now %d)", key, b, r.now)
			}
			if leasedKey(key) {
				fail("leased block %q expired", key)
			}
			delete(model.blocks, key)
		}
		for key := range now {
			if _, ok := model.blocks[key]; !ok {
				fail("block %q is there, the model does not have it", key)
			}
		}
	}
	if tries.judged < steps/10 {
		t.Fatalf("seed %d: only %d repeated commands were judged", seed, tries.judged)
	}
}

// TestPromptEffectsOnTheWire: the effects written by hand are those of effects.proto.
func TestPromptEffectsOnTheWire(t *testing.T) {
	r := newPromptRig(t, 0)
	ref := blockPut("ref", 3, 0)
	ref.Value = Value{Ref: Ref{Object: ObjectID{Epoch: 5, Counter: 6}, ObjectBytes: 100, Offset: 7, Length: 20, Checksum: 9}}
	ref.Size, ref.Checksum, ref.Parent, ref.TTLMS = 12, 77, []byte("parent"), 5000
	r.step(index(0, Capacity{}, blockPut("a", 0, 3), ref))
	r.step(lookup(0, 1, 1000, "a"))
	pin := onBlocks(OpPin, 0, "ref")
	pin.Prompt.UntilMS = r.now + 9000
	r.step(pin)
	r.step(onBlocks(OpDeleteBlocks, 0, "ref"))
	var body dataplanev1.EffectBody
	if err := proto.Unmarshal(r.m.Ready().Body, &body); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range body.Effects {
		if len(e.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("revision %d has fields that effects.proto does not know", e.Revision)
		}
		switch k := e.Kind.(type) {
		case *dataplanev1.Effect_BlockStored_:
			b := k.BlockStored
			if b.Size == 12 && (b.Ref.GetOffset() != 7 || b.Checksum != 77 || b.Depth != 3 || string(b.Parent) != "parent" || b.ExpiresMs != r.now+5000) {
				t.Errorf("stored: %v", b)
			}
			got = append(got, "stored")
		case *dataplanev1.Effect_BlockRemoved_:
			got = append(got, fmt.Sprint("removed ", k.BlockRemoved.Reason))
		case *dataplanev1.Effect_BlockTouched_:
			if k.BlockTouched.TouchedMs != r.now || k.BlockTouched.UseCount != 2 {
				t.Errorf("touched: %v", k.BlockTouched)
			}
			got = append(got, "touched")
		case *dataplanev1.Effect_BlockPinned_:
			if k.BlockPinned.UntilMs != r.now+9000 || k.BlockPinned.ExpiresMs != r.now+9000 {
				t.Errorf("pinned: %v", k.BlockPinned)
			}
			got = append(got, "pinned")
		case *dataplanev1.Effect_LeaseHorizon_:
			got = append(got, fmt.Sprint("horizon ", k.LeaseHorizon.UntilMs-r.now))
		}
	}
	want := []string{"stored", "stored", "horizon 60000", "pinned", "removed 1", "touched"}
	if !slices.Equal(got, want) {
		t.Errorf("effects %q, want %q", got, want)
	}
}

func TestBlockKeys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	type name struct {
		k     BlockKey
		typed []byte
	}
	var names []name
	for range 2000 {
		id := make([]byte, 1+rnd.IntN(4))
		for i := range id {
			id[i] = byte(rnd.IntN(3)) * 0x7f
		}
		k := BlockKey{ID: id, Rank: rnd.Uint32N(3) * 0x7fffff, Group: rnd.Uint32N(2)}
		scope := ScopeID{1, 0, 0xff}
		typed := appendBlockKey(nil, 300, &scope, &k)
		ns, s, got, ok := splitBlockKey(typed)
		if !ok || ns != 300 || s != scope || !bytes.Equal(got.ID, id) || got.Rank != k.Rank || got.Group != k.Group {
			t.Fatalf("%+v reads as %+v", k, got)
		}
		names = append(names, name{k, typed})
	}
	slices.SortFunc(names, func(a, b name) int { return bytes.Compare(a.typed, b.typed) })
	for i := range names[1:] {
		a, b := names[i].k, names[i+1].k
		if cmp.Or(bytes.Compare(a.ID, b.ID), cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Group, b.Group)) > 0 {
			t.Fatalf("%+v is before %+v", a, b)
		}
	}
}

// FuzzPromptReplay: whatever a body holds, replay does not panic.
func FuzzPromptReplay(f *testing.F) {
	r := newPromptRig(f, 0)
	r.step(index(0, Capacity{}, blockPut("a", 0, 3), blockPut("b", 1, 3)))
	r.step(onBlocks(OpDeleteBlocks, 0, "b"))
	f.Add(r.m.Ready().Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		m := New(Config{})
		if m.Replay(body, 1) == nil {
			v := NewView(m.Tree())
			scopes, _ := v.Scopes(1, nil, 100)
			for _, s := range scopes {
				v.Blocks(1, s.Scope, nil, 100)
			}
		}
	})
}

func filled(n int, capacity Capacity) *promptRig {
	r := newPromptRig(nil, 0)
	for i := 0; i < n; i += 20 {
		var puts []BlockPut
		for d := range 20 {
			puts = append(puts, blockPut(fmt.Sprintf("x%031d", i+d), uint32(d), 40))
		}
		r.step(index(0, capacity, puts...))
		if i%1000 == 0 {
			r.m.Ready()
		}
	}
	r.m.Ready()
	return r
}

func BenchmarkLookup24(b *testing.B) {
	r := filled(100_000, Capacity{})
	c := onBlocks(OpLookup, 0)
	c.Done = func(*Command, error) {}
	keys := make([][]byte, 24)
	for i := range keys {
		keys[i] = make([]byte, 32)
		c.Prompt.Blocks = append(c.Prompt.Blocks, BlockKey{ID: keys[i], Depth: uint32(i)})
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := range keys {
			keys[i] = fmt.Appendf(keys[i][:0], "x%031d", (n*7919+i)%100_000)
		}
		r.m.Step(c)
		r.m.Ready()
		n++
	}
	if !c.Result.Blocks[0].Present {
		b.Fatal("nothing was found")
	}
}

func BenchmarkIndex15WithEviction(b *testing.B) {
	capacity := Capacity{Blocks: 100_000}
	r := filled(100_000, capacity)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		puts := make([]BlockPut, 15)
		for d := range puts {
			puts[d] = blockPut(fmt.Sprintf("y%031d", n*15+d), uint32(d), 40)
		}
		c := index(0, capacity, puts...)
		r.step(c)
		r.m.Ready()
		n++
	}
}

func BenchmarkViewBlock(b *testing.B) {
	r := filled(100_000, Capacity{})
	v := NewView(r.m.Tree().Clone())
	scope, _ := testScope(0)
	k := BlockKey{ID: fmt.Appendf(nil, "x%031d", 4711)}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := v.Block(1, scope, k); !ok {
			b.Fatal("not found")
		}
	}
}
