package shard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"kvstore/components/kverr"
)

// promptTries gives some commands of the random prompt model an identity, steps copies of them later on, and holds the answers
// against the first ones.
type promptTries struct {
	r       *promptRig
	rnd     *rand.Rand
	op      uint64
	durable []promptTry
	pending []promptTry // answered; not durable yet
	judged  int
}

type promptTry struct {
	c   *Command
	dep uint64
}

// first steps a command for the first time.
func (t *promptTries) first(c *Command) *Command {
	if t.rnd.IntN(3) == 0 {
		return t.r.step(c)
	}
	t.op++
	c.ID = Identity{Client: [16]byte{byte(t.op % 3), 1}, Op: t.op, Index: uint32(t.rnd.IntN(3)), NotAfterMS: t.r.now + t.rnd.Int64N(60_000)}
	t.r.step(c)
	if c.Result.Err == nil {
		t.pending = append(t.pending, promptTry{c, t.lastDep()})
	}
	return c
}

func (t *promptTries) lastDep() uint64 { return t.r.m.replies[len(t.r.m.replies)-1].Dep }

func (t *promptTries) commit() {
	t.durable = append(t.durable, t.pending...)
	t.pending = t.pending[:0]
	t.durable = t.durable[max(0, len(t.durable)-32):]
}

// rollBack: what was not durable never happened, and nobody was told.
func (t *promptTries) rollBack() { t.pending = t.pending[:0] }

// again repeats one of the commands: it gets the first answer, waits for the same revision and changes nothing. After its time
// it may be refused instead.
func (t *promptTries) again() error {
	known := slices.Concat(t.durable, t.pending)
	if len(known) == 0 {
		return nil
	}
	first := known[t.rnd.IntN(len(known))]
	c := &Command{Op: first.c.Op, Namespace: first.c.Namespace, ID: first.c.ID, Prompt: first.c.Prompt}
	pending, revision := t.r.m.Pending(), t.r.m.meta.revision
	t.r.step(c)
	if t.r.m.Pending() != pending || t.r.m.meta.revision != revision {
		return fmt.Errorf("a repeated operation %d made effects", c.Op)
	}
	if err := c.Result.Err; err != nil {
		if err.Kind == kverr.Expired && t.r.now > c.ID.NotAfterMS {
			return nil
		}
		return fmt.Errorf("repeated operation %d: %w", c.Op, err)
	}
	if got, want := stored(c), stored(first.c); got != want || !c.Result.Duplicate || c.Result.Revision != first.c.Result.Revision {
		return fmt.Errorf("repeated operation %d: %s at revision %d (duplicate: %v), the first answer was %s at %d", c.Op, got,
			c.Result.Revision, c.Result.Duplicate, want, first.c.Result.Revision)
	}
	if dep := t.lastDep(); dep != first.dep {
		return fmt.Errorf("repeated operation %d depends on revision %d, the first try on %d", c.Op, dep, first.dep)
	}
	t.judged++
	return nil
}

// TestPromptIdentities: a repeated Pin or Delete gets the first answer, whatever happened to the blocks in between.
func TestPromptIdentities(t *testing.T) {
	r := newPromptRig(t, 0)
	identified := func(op Op, n uint64, ids ...string) *Command {
		c := onBlocks(op, 0, ids...)
		c.ID = Identity{Client: [16]byte{1}, Op: n, NotAfterMS: 1_700_000_060_000}
		return c
	}
	is := func(what string, c *Command, want string, duplicate bool) *Command {
		t.Helper()
		r.step(c)
		if c.Result.Err != nil || stored(c) != want || c.Result.Duplicate != duplicate {
			t.Fatalf("%s: %q, duplicate %v, %v; want %q, %v", what, stored(c), c.Result.Duplicate, c.Result.Err, want, duplicate)
		}
		return c
	}
	write := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			r.step(index(0, Capacity{}, blockPut(id, 0, 3)))
		}
	}
	write("a", "b", "c", "d", "e")
	is("lease", lookup(0, 1, 20_000, "b"), "p", false)
	r.commit()

	first := is("delete", identified(OpDeleteBlocks, 1, "a", "b", "x", "c", "d"), "pl-pp", false)
	write("a")
	again := is("the same, in flight", identified(OpDeleteBlocks, 1, "a", "b", "x", "c", "d"), "pl-pp", true)
	if first.Result.Revision == 0 || again.Result.Revision != first.Result.Revision {
		t.Fatalf("revision %d, then %d", first.Result.Revision, again.Result.Revision)
	}
	replies := r.m.Replies(nil)
	if replies[0].Dep != first.Result.Revision || replies[2].Dep != replies[0].Dep {
		t.Fatalf("the first try depends on %d, the repeated one on %d; the delete is revision %d", replies[0].Dep, replies[2].Dep, first.Result.Revision)
	}
	r.commit()
	r.takeOver() // within a lease term: the new owner itself would answer LEASED
	is("the same, at the next owner", identified(OpDeleteBlocks, 1, "a", "b", "x", "c", "d"), "pl-pp", true)
	is("what was written since stays", lookup(0, 0, 0, "a", "b", "x", "c", "d"), "pp---", false)

	// What changed nothing is remembered too, and leaves with the record that says so.
	nothing := is("delete of nothing", identified(OpDeleteBlocks, 2, "x"), "-", false)
	if replies := r.m.Replies(nil); replies[len(replies)-1].Dep != r.m.meta.revision || r.m.Pending() == 0 || nothing.Result.Revision != 0 {
		t.Fatalf("a delete of nothing depends on %d of %d, revision %d", replies[len(replies)-1].Dep, r.m.meta.revision, nothing.Result.Revision)
	}
	write("x")
	is("delete of nothing again", identified(OpDeleteBlocks, 2, "x"), "-", true)

	// A late repetition of a pin does not undo what came after.
	pin := identified(OpPin, 3, "a", "e", "c")
	pin.Prompt.UntilMS = r.now + 50_000
	is("pin", pin, "pp-", false)
	is("unpin", onBlocks(OpPin, 0, "a", "e"), "pp", false)
	is("pin again", pin, "pp-", true)
	if c := is("look", lookup(0, 0, 0, "a"), "p", false); c.Result.Blocks[0].PinnedUntilMS != 0 {
		t.Fatal("a repeated pin undid the unpin after it")
	}

	// Identities differ by index, and one serves one operation on one list.
	other := identified(OpDeleteBlocks, 2, "x")
	other.ID.Index = 7
	r.advance(MaxLeaseMS)
	is("another part of the request", other, "p", false)
	slot := identified(OpDeleteBlocks, 2, "x")
	slot.Prompt.Blocks[0].Slot = 5
	is("the same in another slot", slot, "-", false)
	for what, c := range map[string]*Command{
		"another operation": identified(OpPin, 2, "x"),
		"another list":      identified(OpDeleteBlocks, 2, "x", "a"),
		"a key's delete":    {Op: OpDelete, Namespace: 1, ID: other.ID, Delete: Delete{Key: []byte("k")}},
		"a slot too high": func() *Command {
			c := identified(OpPin, 9, "x")
			c.Prompt.Blocks[0].Slot = maxSlot + 1
			return c
		}(),
		"a time far ahead": func() *Command {
			c := identified(OpPin, 9, "x")
			c.ID.NotAfterMS = r.now + maxNotAfterAheadMS + 1
			return c
		}(),
	} {
		if r.step(c); c.Result.Err == nil || c.Result.Err.Kind != kverr.InvalidArgument {
			t.Errorf("%s: %v, want an invalid argument", what, c.Result.Err)
		}
	}
	_, form := testScope(1)
	foreign := identified(OpDeleteBlocks, 4, "a")
	foreign.Prompt.ScopeFields = form
	is("another scope's form", foreign, "-", false)
	is("and again", foreign, "-", true)
	r.recount(1)

	// Outcomes are forgotten after their time, and what comes later is refused.
	held := r.m.meta.identities
	r.advance(1_700_000_060_001 + sweepDelayMS - r.now)
	r.recount(1)
	if held == 0 || r.m.meta.identities != 0 {
		t.Fatalf("%d outcomes were remembered, %d still are", held, r.m.meta.identities)
	}
	late := r.step(identified(OpDeleteBlocks, 1, "a", "b", "x", "c", "d"))
	if late.Result.Err == nil || late.Result.Err.Kind != kverr.Expired {
		t.Fatalf("after its time: %v, want expired", late.Result.Err)
	}
	if is("nothing happened", lookup(0, 0, 0, "a"), "p", false); r.recount(1) == 0 {
		t.Fatal("no blocks are left")
	}
}

// TestPromptIdentitiesAtTheBudget: at the budget a delete that makes room passes; remembering that nothing happened, and
// pins, which make none, are refused before they are done.
func TestPromptIdentitiesAtTheBudget(t *testing.T) {
	r := newPromptRig(t, 0)
	for i := range 20 {
		r.step(index(0, Capacity{}, blockPut(fmt.Sprint("b", i), 0, 500)))
	}
	r.commit()
	r.m.cfg.MemoryBudget = r.m.tree.Bytes() / 2
	identified := func(op Op, n uint64, id string) *Command {
		c := onBlocks(op, 0, id)
		c.ID = Identity{Client: [16]byte{1}, Op: n, NotAfterMS: r.now + 1000}
		c.Prompt.UntilMS = r.now + 1000
		return r.step(c)
	}
	if c := identified(OpDeleteBlocks, 1, "b1"); c.Result.Err != nil || stored(c) != "p" {
		t.Errorf("delete: %q, %v", stored(c), c.Result.Err)
	}
	for what, c := range map[string]*Command{"delete of nothing": identified(OpDeleteBlocks, 2, "x"), "pin": identified(OpPin, 3, "b2")} {
		if c.Result.Err == nil || c.Result.Err.Kind != kverr.Exhausted || c.Result.Blocks != nil {
			t.Errorf("%s: %+v, want exhausted", what, c.Result)
		}
	}
	if c := r.step(lookup(0, 0, 0, "b2")); c.Result.Blocks[0].PinnedUntilMS != 0 {
		t.Error("a refused pin pins")
	}
	if c := identified(OpDeleteBlocks, 1, "b1"); !c.Result.Duplicate || stored(c) != "p" {
		t.Errorf("repeated delete: %+v", c.Result)
	}
	r.recount(1)
}
