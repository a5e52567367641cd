package frontend

import (
	"bytes"
	"fmt"
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestPromptRepeated: a Delete or Pin whose answer was lost gets the first answer when it comes again, and undoes nothing that
// happened in between. The blocks are on all shards.
func TestPromptRepeated(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	ctx := testContext(t)
	var ids []string
	for i := range 40 {
		ids = append(ids, fmt.Sprint("b", i))
	}
	p.writeIDs(testModel, 100, ids[:30]...)
	identity := func(op uint64) *kvv1.WriteIdentity {
		return &kvv1.WriteIdentity{Client: bytes.Repeat([]byte{7}, 16), Op: op, NotAfterMs: r.Server.now() + 60_000}
	}

	del := &kvv1.PromptCacheServiceDeleteRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs(ids...), Identity: identity(1)}
	first, err := p.Delete(ctx, del)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range first.Outcomes {
		want := kvv1.DeleteOutcome_DELETE_OUTCOME_DELETED
		if i >= 30 {
			want = kvv1.DeleteOutcome_DELETE_OUTCOME_ABSENT
		}
		if o != want {
			t.Fatalf("block %d: %v, want %v", i, o, want)
		}
	}
	p.writeIDs(testModel, 100, ids[0], ids[35])
	again, err := p.Delete(ctx, del)
	if err != nil || fmt.Sprint(again.Outcomes) != fmt.Sprint(first.Outcomes) {
		t.Fatalf("the repeated delete: %v %v, first %v", again, err, first.Outcomes)
	}
	if !bytes.Equal(again.Header.GetToken(), first.Header.GetToken()) {
		t.Errorf("revisions of the repeated delete: %v, first %v", again.Header, first.Header)
	}
	if found, _ := p.lookup(testModel, kvv1.LookupMode_LOOKUP_MODE_ALL, 0, ids[0], ids[35]); found != "xx" {
		t.Errorf("what was stored since is gone: %s", found)
	}

	pin := &kvv1.PinRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs(ids...), UntilMs: r.Server.now() + 50_000, Identity: identity(2)}
	pinned, err := p.Pin(ctx, pin)
	if err != nil || pinned.Count != 2 {
		t.Fatalf("pin: %v %v", pinned, err)
	}
	if _, err := p.Pin(ctx, &kvv1.PinRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs(ids[0])}); err != nil {
		t.Fatal(err)
	}
	p.writeIDs(testModel, 100, ids[1])
	repeated, err := p.Pin(ctx, pin)
	if err != nil || repeated.Count != 2 || !bytes.Equal(repeated.Bitmap, pinned.Bitmap) {
		t.Fatalf("the repeated pin: %v %v, first %v", repeated, err, pinned)
	}
	_, resp := p.lookup(testModel, kvv1.LookupMode_LOOKUP_MODE_ALL, 0, ids[0], ids[1])
	for _, b := range resp.Blocks {
		if b.PinnedUntilMs != 0 {
			t.Errorf("the repeated pin pinned block %d", b.Index)
		}
	}

	_, err = p.Pin(ctx, &kvv1.PinRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs(ids...), Identity: identity(1)})
	wantKind(t, "the identity of another request", err, kverr.InvalidArgument)
}

// TestPromptPartsOfARequest: the commands of one request have identities of their own, the same each time.
func TestPromptPartsOfARequest(t *testing.T) {
	r := newRig(t, Config{}, nil)
	sc, err := r.Server.promptScope(testContext(t), "", promptSpace, testModel)
	if err != nil {
		t.Fatal(err)
	}
	var keys []shard.BlockKey
	for i := range 100 {
		keys = append(keys, shard.BlockKey{ID: fmt.Append(nil, i)})
	}
	parts := func() map[uint32]int {
		seen := map[uint32]int{}
		for n, c := range sc.group(shard.OpPin, keys, func(c *shard.Command) { c.ID.Op = 5 }).byNum {
			if c.ID.Op != 5 || !bytes.Equal(c.Prompt.Blocks[0].ID, keys[c.ID.Index].ID) {
				t.Errorf("shard %d: identity %+v, first block %s", n, c.ID, c.Prompt.Blocks[0].ID)
			}
			seen[c.ID.Index] = n
		}
		return seen
	}
	if first, again := parts(), parts(); len(first) != 4 || fmt.Sprint(first) != fmt.Sprint(again) {
		t.Errorf("parts by index: %v, then %v", first, again)
	}
}
