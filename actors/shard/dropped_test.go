package shard

import (
	"testing"

	"kvstore/components/kverr"
)

// TestPromptDropped: of a namespace that is dropped nothing is found, stored, pinned or leased any more, through a new owner too; a
// pin that was applied before is told so, and a lease can be given back.
func TestPromptDropped(t *testing.T) {
	r := newPromptRig(t, 0)
	r.step(index(0, Capacity{}, blockPut("a", 0, 1), blockPut("b", 1, 1)))
	r.step(lookup(0, 7, 1000, "a"))
	pin := func() *Command {
		c := onBlocks(OpPin, 0, "a")
		c.ID, c.Prompt.UntilMS = Identity{Client: [16]byte{1}, Op: 1, NotAfterMS: r.now + 60_000}, r.now+1000
		return r.step(c)
	}
	if c := pin(); c.Result.Err != nil || !c.Result.Blocks[0].Present {
		t.Fatal(c.Result)
	}
	r.commit()
	if c := r.step(&Command{Op: OpDropNamespace, Namespace: 1}); c.Result.Err != nil || c.Result.Deleted != 2 || c.Result.More {
		t.Fatal(c.Result)
	}
	r.commit()
	for range 2 {
		for _, c := range []*Command{
			index(0, Capacity{}, blockPut("c", 0, 1)), lookup(0, 1, 1000, "a"), onBlocks(OpTouch, 0, "a"), onBlocks(OpPin, 0, "a"),
			onBlocks(OpDeleteBlocks, 0, "a"), onBlocks(OpClear, 0),
		} {
			if r.step(c); c.Result.Err == nil || c.Result.Err.Kind != kverr.NotFound {
				t.Errorf("operation %d: %+v", c.Op, c.Result)
			}
		}
		if c := pin(); c.Result.Err != nil || !c.Result.Duplicate || !c.Result.Blocks[0].Present {
			t.Errorf("the pin again: %+v", c.Result)
		}
		if c := r.step(&Command{Op: OpRelease, Namespace: 1, Prompt: &PromptArgs{Lease: [16]byte{7}}}); c.Result.Err != nil {
			t.Errorf("release: %v", c.Result.Err)
		}
		r.commit()
		if n := r.recount(1); n != 0 {
			t.Errorf("%d blocks are left", n)
		}
		r.takeOver()
	}
}
