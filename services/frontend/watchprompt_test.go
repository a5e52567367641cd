package frontend

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// blockEvents is what a watch of blocks tells, as text: of what it is about, by block.
func blockEvents(events []*kvv1.WatchEvent) []string {
	var all []string
	for _, e := range events {
		b := e.Block
		s := fmt.Sprintf("%s %s/%s %d", strings.TrimPrefix(e.Type.String(), "WATCH_EVENT_TYPE_"), b.GetScope().GetFields()["model"], b.GetBlock().GetId(), e.Size)
		if b.GetRemoval() != 0 {
			s += " " + strings.TrimPrefix(b.Removal.String(), "WATCH_REMOVAL_")
		}
		if e.Created {
			s += " created"
		}
		if e.Initial {
			s += " initial"
		}
		if len(b.GetParent()) > 0 {
			s += " after " + string(b.Parent)
		}
		all = append(all, s)
	}
	slices.Sort(all) // over shards there is no order
	return all
}

func wantBlocks(t *testing.T, got []*kvv1.WatchEvent, want ...string) {
	t.Helper()
	slices.Sort(want)
	if d := blockEvents(got); !slices.Equal(d, want) {
		t.Fatalf("told\n\t%s\nwant\n\t%s", strings.Join(d, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// writeFor stores a block that is gone after ttl milliseconds.
func (p *prompts) writeFor(ctx context.Context, scope *kvv1.Scope, id string, ttlMS int64) {
	p.t.Helper()
	stream, err := p.Write(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := stream.Send(&kvv1.WriteRequest{
		Head:   &kvv1.WriteRequest_Head{Namespace: p.ns, Scope: scope, TtlMs: ttlMS},
		Header: &kvv1.WriteRequest_Header{Block: refs(id)[0], Size: 1}, Chunk: []byte("x"),
	}); err != nil {
		p.t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		p.t.Fatal(err)
	}
}

// TestWatchPrompts: blocks that are stored and removed, with scope, parent, size and why; of all scopes or one; what is there first; from a token.
func TestWatchPrompts(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	p := newPrompts(t, r)
	other := &kvv1.Scope{Fields: map[string]string{"model": "other"}}
	p.writeIDs(testModel, 100, "a", "b")
	all := r.watch(ctx, t, &kvv1.WatchRequest{
		Namespace: promptSpace, From: &kvv1.WatchRequest_InitialState{InitialState: true}, Mode: kvv1.WatchMode_WATCH_MODE_ALL,
	})
	one := r.watch(ctx, t, &kvv1.WatchRequest{Namespace: promptSpace, Target: &kvv1.WatchRequest_Scope{Scope: other}})
	wantBlocks(t, all.until(kvv1.WatchControl_WATCH_CONTROL_SYNCED), "STORED m/a 100 created initial after p", "STORED m/b 100 created initial after p")
	wantBlocks(t, one.until(kvv1.WatchControl_WATCH_CONTROL_STARTED))

	p.writeIDs(other, 5000, "a")
	wantBlocks(t, all.take(1), "STORED other/a 5000 created after p")
	got := one.take(1)
	wantBlocks(t, got, "STORED other/a 5000 created after p")
	if b := got[0].Block; len(b.ScopeId) != 16 || !strings.HasPrefix(string(got[0].Key), string(b.ScopeId)) || b.Block.Depth != 0 {
		t.Errorf("%v", got[0])
	}
	p.writeIDs(other, 5000, "a") // it is there: nothing happens
	if _, err := p.Delete(ctx, &kvv1.PromptCacheServiceDeleteRequest{Namespace: promptSpace, Scope: other, Blocks: refs("a")}); err != nil {
		t.Fatal(err)
	}
	wantBlocks(t, all.take(1), "REMOVED other/a 5000 DELETED after p")
	wantBlocks(t, one.take(1), "REMOVED other/a 5000 DELETED after p")

	// Nobody watches while this happens.
	token := all.token
	if _, err := p.Clear(ctx, &kvv1.ClearRequest{Namespace: promptSpace, Scope: testModel}); err != nil {
		t.Fatal(err)
	}
	p.writeFor(ctx, other, "short", 1)
	again := r.watch(ctx, t, &kvv1.WatchRequest{
		Namespace: promptSpace, From: &kvv1.WatchRequest_Token{Token: token}, Mode: kvv1.WatchMode_WATCH_MODE_ALL,
	})
	wantBlocks(t, again.take(4), "REMOVED m/a 100 CLEARED after p", "REMOVED m/b 100 CLEARED after p",
		"STORED other/short 1 created", "REMOVED other/short 1 EXPIRED")

	// In mode LATEST what came and went is not told, and what was there and is there again is no new block.
	p.writeIDs(testModel, 10, "x")
	seen := r.watch(ctx, t, &kvv1.WatchRequest{Namespace: promptSpace, From: &kvv1.WatchRequest_InitialState{InitialState: true}})
	wantBlocks(t, seen.until(kvv1.WatchControl_WATCH_CONTROL_SYNCED), "STORED m/x 10 created initial after p")
	for range 3 {
		if _, err := p.Clear(ctx, &kvv1.ClearRequest{Namespace: promptSpace, AllScopes: true}); err != nil {
			t.Fatal(err)
		}
		p.writeIDs(testModel, 10, "x", "y")
	}
	if _, err := p.Delete(ctx, &kvv1.PromptCacheServiceDeleteRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs("y")}); err != nil {
		t.Fatal(err)
	}
	late := r.watch(ctx, t, &kvv1.WatchRequest{Namespace: promptSpace, From: &kvv1.WatchRequest_Token{Token: seen.token}})
	stored := late.take(1)
	wantBlocks(t, stored, "STORED m/x 10 after p")

	// A pin is no change that is told, so what is there has the version that was told when it was stored.
	if _, err := p.Pin(ctx, &kvv1.PinRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs("x"), UntilMs: r.Server.now() + 60_000}); err != nil {
		t.Fatal(err)
	}
	pinned := r.watch(ctx, t, &kvv1.WatchRequest{Namespace: promptSpace, From: &kvv1.WatchRequest_InitialState{InitialState: true}})
	got = pinned.until(kvv1.WatchControl_WATCH_CONTROL_SYNCED)
	wantBlocks(t, got, "STORED m/x 10 created initial after p")
	if got[0].Version != stored[0].Version {
		t.Errorf("a pinned block is told with version %d, it was stored with %d", got[0].Version, stored[0].Version)
	}
}

// TestWatchEvictions: blocks that had to go for others are told as evicted.
func TestWatchEvictions(t *testing.T) {
	r, ctx := newRig(t, Config{}, nil), testContext(t)
	if _, err := r.Dir.CreateNamespace(ctx, &kvv1.Namespace{
		Keyspace: DefaultName, Name: "tiny", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT, CapacityBlocks: 8,
	}); err != nil {
		t.Fatal(err)
	}
	p := newPrompts(t, r)
	p.ns = "tiny"
	w := r.watch(ctx, t, &kvv1.WatchRequest{Namespace: "tiny", Mode: kvv1.WatchMode_WATCH_MODE_ALL})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	for i := range 40 {
		p.writeIDs(testModel, 100, fmt.Sprint("block", i))
	}
	u, err := p.Usage(ctx, &kvv1.UsageRequest{Namespace: "tiny"})
	if err != nil || u.EvictedBlocks == 0 {
		t.Fatal(u, err)
	}
	there, evicted := map[string]bool{}, int64(0)
	for _, e := range w.take(40 + int(u.EvictedBlocks)) {
		k := string(e.Key)
		if stored := e.Type == kvv1.WatchEventType_WATCH_EVENT_TYPE_STORED; stored == there[k] {
			t.Fatalf("%v, it was there: %v", e, there[k])
		}
		there[k] = !there[k]
		if e.Block.Removal == kvv1.WatchRemoval_WATCH_REMOVAL_EVICTED {
			evicted++
		}
	}
	if evicted != u.EvictedBlocks {
		t.Errorf("%d blocks were evicted, %d are told", u.EvictedBlocks, evicted)
	}
}
