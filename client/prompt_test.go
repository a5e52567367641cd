package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/client/clienttest"
	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

func newPrompt(t *testing.T) (*client.Prompt, *clienttest.Server, *client.Client) {
	t.Helper()
	srv := clienttest.Start(t)
	c := srv.Dial(t, client.Config{Namespace: "prompts", BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond})
	_, err := c.CreateNamespace(t.Context(), &kvstorev1.Namespace{
		Name: "prompts", Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.Prompt(client.Scope{"model": "m"}), srv, c
}

func refs(ids ...string) (out []client.BlockRef) {
	for i, id := range ids {
		out = append(out, client.BlockRef{ID: []byte(id), Depth: uint32(i)})
	}
	return out
}

// blockData differs between blocks and spans several chunks.
func blockData(i int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "block %d ", i), 1+i*20_000)
}

func writeChain(t *testing.T, p *client.Prompt, n int) (ids []string) {
	t.Helper()
	var blocks []client.NewBlock
	for i := range n {
		ids = append(ids, fmt.Sprintf("b%d", i))
		b := client.NewBlock{BlockRef: client.BlockRef{ID: []byte(ids[i]), Depth: uint32(i)}, Data: blockData(i)}
		if i > 0 {
			b.Parent = []byte(ids[i-1])
		}
		blocks = append(blocks, b)
	}
	outs, err := p.Write(t.Context(), blocks, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range outs {
		if !o.Stored || o.Err != nil {
			t.Fatalf("block %d: %+v", i, o)
		}
	}
	return ids
}

func TestPromptLookup(t *testing.T) {
	p, srv, _ := newPrompt(t)
	ids := writeChain(t, p, 3)
	f := must[client.Found](t)(p.Lookup(t.Context(), refs("b0", "b1", "hole", "b2"), nil))
	if f.Count != 2 || len(f.Blocks) != 2 || f.Blocks[1].Index != 1 || f.Blocks[1].Size != int64(len(blockData(1))) || f.Lease != nil {
		t.Errorf("prefix: %+v", f)
	}
	f = must[client.Found](t)(p.Lookup(t.Context(), refs("b0", "b1", "hole", "b2"), &client.LookupOptions{All: true, Lease: time.Second}))
	if f.Count != 3 || f.Blocks[2].Index != 3 || len(f.Lease) == 0 || f.Expires.IsZero() {
		t.Errorf("all: %+v", f)
	}
	dels := must[[]client.BlockDeletion](t)(p.Delete(t.Context(), refs("b0", "gone")))
	if !slices.Equal(dels, []client.BlockDeletion{client.BlockLeased, client.BlockAbsent}) {
		t.Errorf("delete under a lease: %v", dels)
	}
	if _, leased, err := p.Clear(t.Context()); err != nil || leased != 3 {
		t.Errorf("clear under a lease: %d leased, %v", leased, err)
	}
	for range 2 { // the second time it is over, which is no error
		if err := p.Release(t.Context(), f.Lease); err != nil {
			t.Error(err)
		}
	}
	if err := p.Release(t.Context(), nil); err != nil || srv.Leased() != 0 {
		t.Errorf("%d leases, %v", srv.Leased(), err)
	}
	if n := must[int](t)(p.Touch(t.Context(), refs(append(ids, "gone")...))); n != 3 {
		t.Errorf("touched %d", n)
	}
	pinned := must[[]bool](t)(p.Pin(t.Context(), refs("b1", "gone"), time.Hour))
	if !slices.Equal(pinned, []bool{true, false}) {
		t.Errorf("pinned %v", pinned)
	}
	if _, err := p.Pin(t.Context(), refs("b1"), -time.Second); !errors.Is(err, client.ErrInvalidArgument) {
		t.Errorf("pin into the past: %v", err)
	}
	var listed []string
	for b, err := range p.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, string(b.ID))
		if pinned := string(b.ID) == "b1"; pinned == b.PinnedUntil.IsZero() {
			t.Errorf("%s pinned until %v", b.ID, b.PinnedUntil)
		}
		if b.ID[1] != '0' && string(b.Parent) != fmt.Sprintf("b%d", b.Depth-1) {
			t.Errorf("%s: parent %q, depth %d", b.ID, b.Parent, b.Depth)
		}
	}
	if slices.Sort(listed); !slices.Equal(listed, ids) {
		t.Errorf("listed %v", listed)
	}
	u := must[client.Usage](t)(p.Usage(t.Context()))
	if u.Total.Blocks != 3 || len(u.Scopes) != 1 || u.Scopes[0].Scope["model"] != "m" || u.Total.Bytes != u.Scopes[0].Bytes {
		t.Errorf("usage %+v", u)
	}
	for s, err := range p.Scopes(t.Context()) {
		if err != nil || s["model"] != "m" {
			t.Errorf("scope %v, %v", s, err)
		}
	}
	if deleted, _, err := p.ClearNamespace(t.Context()); err != nil || deleted != 3 {
		t.Errorf("cleared %d, %v", deleted, err)
	}
}

func TestPromptWrongNamespace(t *testing.T) {
	_, _, c := newPrompt(t)
	p := c.In("", "default").Prompt(client.Scope{"a": "b"})
	_, err := p.Lookup(t.Context(), refs("x"), nil)
	wantKind(t, err, kverr.WrongKind)
	_, err = p.Write(t.Context(), []client.NewBlock{{BlockRef: refs("x")[0], Data: []byte("y")}}, nil)
	wantKind(t, err, kverr.WrongKind)
	for _, err := range p.Read(t.Context(), refs("x"), nil) {
		wantKind(t, err, kverr.WrongKind)
	}
	for _, err := range p.List(t.Context()) {
		wantKind(t, err, kverr.WrongKind)
	}
}

// collect reads blocks into a map; a miss is nil.
func collect(t *testing.T, p *client.Prompt, list []client.BlockRef, o *client.ReadOptions) (order []int, got map[int][]byte) {
	t.Helper()
	got = map[int][]byte{}
	for b, err := range p.Read(t.Context(), list, o) {
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, b.Index)
		if b.Miss != (b.Data == nil) {
			t.Errorf("block %d: miss %v with %d bytes", b.Index, b.Miss, len(b.Data))
		}
		got[b.Index] = slices.Clone(b.Data)
	}
	return order, got
}

func TestPromptRead(t *testing.T) {
	p, _, _ := newPrompt(t)
	ids := writeChain(t, p, 6)
	order, got := collect(t, p, refs(ids...), nil)
	if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5}) {
		t.Errorf("order %v", order)
	}
	for i, b := range got {
		if !bytes.Equal(b, blockData(i)) {
			t.Errorf("block %d: %d bytes, want %d", i, len(b), len(blockData(i)))
		}
	}
	list := refs("b5", "no", "b1", "b0")
	if order, got = collect(t, p, list, nil); !slices.Equal(order, []int{0, 1}) || got[1] != nil {
		t.Errorf("stops at a miss: %v", order)
	}
	order, got = collect(t, p, list, &client.ReadOptions{SkipMisses: true})
	if !slices.Equal(order, []int{0, 1, 2, 3}) || got[1] != nil || !bytes.Equal(got[2], blockData(1)) {
		t.Errorf("skips a miss: %v", order)
	}
	own := map[int][]byte{}
	for b, err := range p.Read(t.Context(), refs("b2", "b3"), &client.ReadOptions{Buffer: func(i int, size int64) []byte {
		own[i] = make([]byte, size)
		return own[i]
	}}) {
		if err != nil || &b.Data[0] != &own[b.Index][0] {
			t.Errorf("not into the given memory: %v", err)
		}
	}
	if !bytes.Equal(own[0], blockData(2)) || !bytes.Equal(own[1], blockData(3)) { // the first is left alone by the second
		t.Error("blocks in the caller's memory")
	}
	for _, err := range p.Read(t.Context(), refs("b2"), &client.ReadOptions{Buffer: func(int, int64) []byte { return nil }}) {
		wantKind(t, err, kverr.InvalidArgument)
	}
	for range p.Read(t.Context(), refs(ids...), nil) {
		break
	}
	if order, _ = collect(t, p, nil, nil); order != nil {
		t.Errorf("nothing asked, %v read", order)
	}
}

func TestPromptDamageIsAMiss(t *testing.T) {
	p, srv, _ := newPrompt(t)
	ids := writeChain(t, p, 3)
	srv.Damage()
	order, got := collect(t, p, refs(ids...), &client.ReadOptions{SkipMisses: true})
	if len(order) != 3 || got[0] != nil || got[1] != nil || got[2] != nil {
		t.Errorf("damaged blocks were released: %v", order)
	}
}

// TestPromptReadGoesOn: a stream that breaks between blocks is taken up where it was; nothing is yielded twice.
func TestPromptReadGoesOn(t *testing.T) {
	p, srv, _ := newPrompt(t)
	ids := writeChain(t, p, 6)
	var n atomic.Int64
	srv.Faults.Before(func(m string) error {
		if m == "Read" && n.Add(1)%3 == 0 { // every third block
			return errBroken
		}
		return nil
	})
	order, got := collect(t, p, refs(ids...), nil)
	if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5}) {
		t.Errorf("order %v", order)
	}
	for i, b := range got {
		if !bytes.Equal(b, blockData(i)) {
			t.Errorf("block %d is wrong", i)
		}
	}
	srv.Faults.Before(func(m string) error { return errBroken })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, err := range p.Read(ctx, refs(ids...), nil) {
		if k := kverr.KindOf(err); k != kverr.Unavailable && k != kverr.DeadlineExceeded {
			t.Errorf("error %v", err)
		}
	}
}

func TestPromptWrite(t *testing.T) {
	p, srv, _ := newPrompt(t)
	big := blockData(30)
	blocks := []client.NewBlock{
		{BlockRef: client.BlockRef{ID: []byte("r")}, Reader: bytes.NewReader(big), Size: int64(len(big))},
		{BlockRef: client.BlockRef{ID: []byte("e")}, Data: []byte{}},
		{BlockRef: client.BlockRef{ID: []byte("e"), Rank: 1}, Data: []byte("rank 1")},
		{BlockRef: client.BlockRef{ID: []byte("r")}, Data: []byte("too late")},
	}
	outs := must[[]client.WriteOutcome](t)(p.Write(t.Context(), blocks, &client.WriteOptions{TTL: time.Hour}))
	for i, stored := range []bool{true, true, true, false} {
		if outs[i].Err != nil || outs[i].Stored != stored {
			t.Errorf("block %d: %+v", i, outs[i])
		}
	}
	_, got := collect(t, p, []client.BlockRef{blocks[0].BlockRef, blocks[1].BlockRef, blocks[2].BlockRef}, nil)
	if !bytes.Equal(got[0], big) || len(got[1]) != 0 || string(got[2]) != "rank 1" {
		t.Error("read back something else")
	}
	if outs, err := p.Write(t.Context(), nil, nil); outs != nil || err != nil {
		t.Errorf("nothing to write: %v, %v", outs, err)
	}

	// A repetition finds what the first try stored.
	srv.Faults.After(firstN(1, errBroken))
	again := client.NewBlock{BlockRef: client.BlockRef{ID: []byte("again")}, Reader: strings.NewReader("abc"), Size: 3}
	if outs := must[[]client.WriteOutcome](t)(p.Write(t.Context(), []client.NewBlock{again}, nil)); outs[0].Err != nil {
		t.Errorf("repeated: %+v", outs)
	}
	// What cannot be rewound is not repeated.
	srv.Faults.After(firstN(1, errBroken))
	once := client.NewBlock{BlockRef: client.BlockRef{ID: []byte("once")}, Reader: io.MultiReader(strings.NewReader("abc")), Size: 3}
	_, err := p.Write(t.Context(), []client.NewBlock{once}, nil)
	wantKind(t, err, kverr.OutcomeUnknown)

	short := client.NewBlock{BlockRef: client.BlockRef{ID: []byte("short")}, Reader: strings.NewReader("abc"), Size: 4}
	_, err = p.Write(t.Context(), []client.NewBlock{short}, nil)
	wantKind(t, err, kverr.InvalidArgument)
	negative := client.NewBlock{BlockRef: client.BlockRef{ID: []byte("n")}, Reader: strings.NewReader(""), Size: -1}
	_, err = p.Write(t.Context(), []client.NewBlock{negative}, nil)
	wantKind(t, err, kverr.InvalidArgument)
	if f := must[client.Found](t)(p.Lookup(t.Context(), refs("short", "n"), &client.LookupOptions{All: true})); f.Count != 0 {
		t.Errorf("half a block was stored: %+v", f)
	}
}
