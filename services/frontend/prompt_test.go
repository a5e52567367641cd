package frontend

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

const promptSpace = "prompts"

var testModel = &kvv1.Scope{Fields: map[string]string{"model": "m", "cache_salt": "s1"}}

// prompts is a client of the prompt cache for tests.
type prompts struct {
	kvv1.PromptCacheServiceClient
	t  *testing.T
	ns string
}

func newPrompts(t *testing.T, r *rig) *prompts {
	return &prompts{kvv1.NewPromptCacheServiceClient(r.Conn), t, promptSpace}
}

func refs(ids ...string) (out []*kvv1.BlockRef) {
	for _, id := range ids {
		out = append(out, &kvv1.BlockRef{Id: []byte(id)})
	}
	return out
}

// contentOf is what tests store under an id.
func contentOf(id string, size int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], xxh3.HashString(id))
	binary.LittleEndian.PutUint64(seed[8:], uint64(size))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails; a loop over bytes is what takes most of a test under the race detector
	return b
}

type testBlock struct {
	id    string
	bytes []byte
}

// write stores blocks in chunks of so many bytes and returns a letter for each result: s stored, e exists, or the error's reason.
func (p *prompts) write(scope *kvv1.Scope, chunk int, blocks ...testBlock) (letters []string) {
	p.t.Helper()
	stream, err := p.Write(testContext(p.t))
	if err != nil {
		p.t.Fatal(err)
	}
	head := &kvv1.WriteRequest_Head{Namespace: p.ns, Scope: scope}
	send := func(m *kvv1.WriteRequest) {
		m.Head, head = head, nil
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			p.t.Fatal(err)
		}
	}
	for i, b := range blocks {
		h := &kvv1.WriteRequest_Header{Block: &kvv1.BlockRef{Id: []byte(b.id), Depth: uint32(i)}, Size: int64(len(b.bytes)), Checksum: xxh3.Hash(b.bytes), Parent: []byte("p")}
		rest := b.bytes
		for first := true; first || len(rest) > 0; first = false {
			n := min(len(rest), chunk)
			m := &kvv1.WriteRequest{Chunk: rest[:n]}
			if first {
				m.Header = h
			}
			send(m)
			rest = rest[n:]
		}
	}
	if head != nil {
		send(&kvv1.WriteRequest{})
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		p.t.Fatalf("write: %v", err)
	}
	for _, r := range resp.Results {
		switch o := r.Outcome.(type) {
		case *kvv1.WriteResponse_Result_Stored:
			letters = append(letters, map[bool]string{true: "s", false: "e"}[o.Stored])
		case *kvv1.WriteResponse_Result_Error:
			letters = append(letters, o.Error.Reason)
		}
	}
	return letters
}

func (p *prompts) writeIDs(scope *kvv1.Scope, size int, ids ...string) []string {
	p.t.Helper()
	var blocks []testBlock
	for _, id := range ids {
		blocks = append(blocks, testBlock{id, contentOf(id, size)})
	}
	return p.write(scope, chunkBytes, blocks...)
}

type readBlock struct {
	bytes []byte
	ok    bool
}

// read reads blocks and holds the stream to its form: header, chunks, end, in order; only whole and right blocks end with OK.
func (p *prompts) read(scope *kvv1.Scope, miss kvv1.OnMiss, ids ...string) (blocks []readBlock) {
	p.t.Helper()
	stream, err := p.Read(testContext(p.t), &kvv1.ReadRequest{Namespace: p.ns, Scope: scope, Blocks: refs(ids...), OnMiss: miss})
	if err != nil {
		p.t.Fatal(err)
	}
	var header *kvv1.ReadResponse_Header
	var data []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if header != nil {
				p.t.Fatal("the stream ended within a block")
			}
			return blocks
		}
		if err != nil {
			p.t.Fatalf("read: %v", err)
		}
		if int(m.Index) != len(blocks) || len(m.Chunk) > chunkBytes {
			p.t.Fatalf("message for block %d with %d bytes, want block %d", m.Index, len(m.Chunk), len(blocks))
		}
		if m.Header != nil {
			if header != nil {
				p.t.Fatal("two headers")
			}
			header = m.Header
		}
		data = append(data, m.Chunk...)
		switch m.End {
		case kvv1.BlockStatus_BLOCK_STATUS_OK:
			if header == nil || int64(len(data)) != header.Size || xxh3.Hash(data) != header.Checksum {
				p.t.Fatalf("block %d ended with OK and %d bytes: %v", m.Index, len(data), header)
			}
			blocks = append(blocks, readBlock{data, true})
		case kvv1.BlockStatus_BLOCK_STATUS_MISS:
			blocks = append(blocks, readBlock{})
		default:
			continue
		}
		header, data = nil, nil
	}
}

// lookup returns a letter for each reference: x there, - not.
func (p *prompts) lookup(scope *kvv1.Scope, mode kvv1.LookupMode, leaseMS int64, ids ...string) (string, *kvv1.LookupResponse) {
	p.t.Helper()
	resp, err := p.Lookup(testContext(p.t), &kvv1.LookupRequest{Namespace: p.ns, Scope: scope, Blocks: refs(ids...), Mode: mode, LeaseMs: leaseMS})
	if err != nil {
		p.t.Fatalf("lookup: %v", err)
	}
	s := ""
	n := 0
	for i := range ids {
		if resp.Bitmap[i/8]>>(i%8)&1 == 0 {
			s += "-"
			continue
		}
		s += "x"
		if int(resp.Blocks[n].Index) != i {
			p.t.Fatalf("block info %d is of reference %d, want %d", n, resp.Blocks[n].Index, i)
		}
		n++
	}
	if int(resp.Count) != n || len(resp.Blocks) != n {
		p.t.Fatalf("count %d, %d infos, %d bits", resp.Count, len(resp.Blocks), n)
	}
	return s, resp
}

func TestPromptRoundTrip(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	sizes := []int{0, 1, 1024, 1025, 16 << 10, 1 << 20, 1<<20 + 1, 3 << 20, 5<<20 + 77}
	for _, chunk := range []int{chunkBytes, 100_003} {
		scope := &kvv1.Scope{Fields: map[string]string{"chunk": fmt.Sprint(chunk)}}
		var blocks []testBlock
		var ids []string
		for i, size := range sizes {
			id := strings.Repeat(string(rune('a'+i)), []int{1, 8, 32, 36, 128}[i%5])
			ids = append(ids, id)
			blocks = append(blocks, testBlock{id, contentOf(id, size)})
		}
		if got := p.write(scope, chunk, blocks...); strings.Join(got, "") != strings.Repeat("s", len(sizes)) {
			t.Fatalf("first write: %v", got)
		}
		if got := p.write(scope, chunk, blocks...); strings.Join(got, "") != strings.Repeat("e", len(sizes)) {
			t.Fatalf("second write: %v", got)
		}
		found, info := p.lookup(scope, kvv1.LookupMode_LOOKUP_MODE_PREFIX, 0, ids...)
		if found != strings.Repeat("x", len(ids)) {
			t.Fatalf("lookup: %s", found)
		}
		for i, b := range p.read(scope, kvv1.OnMiss_ON_MISS_STOP, ids...) {
			if !b.ok || !bytes.Equal(b.bytes, blocks[i].bytes) {
				t.Errorf("block %d of %d bytes: ok %v, %d bytes", i, sizes[i], b.ok, len(b.bytes))
			}
			wantTier := tierStore
			if sizes[i] <= 1024 {
				wantTier = tierMemory
			}
			if n := info.Blocks[i]; n.Size != int64(sizes[i]) || n.Checksum != xxh3.Hash(blocks[i].bytes) || n.Tier != wantTier {
				t.Errorf("info of block %d: %v", i, n)
			}
		}
	}
}

func TestPromptHoles(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	p.writeIDs(testModel, 2000, "a", "b", "d", "e")
	for _, c := range []struct {
		mode kvv1.LookupMode
		want string
	}{{kvv1.LookupMode_LOOKUP_MODE_UNSPECIFIED, "xx---"}, {kvv1.LookupMode_LOOKUP_MODE_PREFIX, "xx---"}, {kvv1.LookupMode_LOOKUP_MODE_ALL, "xx-xx"}} {
		if got, _ := p.lookup(testModel, c.mode, 0, "a", "b", "c", "d", "e"); got != c.want {
			t.Errorf("mode %v: %s, want %s", c.mode, got, c.want)
		}
	}
	if got, resp := p.lookup(&kvv1.Scope{Fields: map[string]string{"model": "m"}}, kvv1.LookupMode_LOOKUP_MODE_ALL, 1000, "a"); got != "-" || len(resp.Lease) > 0 {
		t.Errorf("another scope: %s, lease %x", got, resp.Lease)
	}
	count := func(blocks []readBlock) (s string) {
		for _, b := range blocks {
			s += map[bool]string{true: "o", false: "m"}[b.ok]
		}
		return s
	}
	if got := count(p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "e", "c", "a")); got != "om" {
		t.Errorf("STOP: %s", got)
	}
	if got := count(p.read(testModel, kvv1.OnMiss_ON_MISS_SKIP, "e", "c", "a")); got != "omo" {
		t.Errorf("SKIP: %s", got)
	}
	// The same id of another rank or group is another block.
	other := []*kvv1.BlockRef{{Id: []byte("a"), Rank: 1}, {Id: []byte("a"), Group: 1}, {Id: []byte("a")}}
	resp, err := p.Lookup(testContext(t), &kvv1.LookupRequest{Namespace: promptSpace, Scope: testModel, Blocks: other, Mode: kvv1.LookupMode_LOOKUP_MODE_ALL})
	if err != nil || resp.Bitmap[0] != 4 {
		t.Errorf("ranks and groups: %v %v", resp, err)
	}
}

func TestPromptFirstWriterWins(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	p.write(testModel, chunkBytes, testBlock{"a", []byte("first")}, testBlock{"a", []byte("second")})
	if got := p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "a"); string(got[0].bytes) != "first" {
		t.Errorf("the block has %q", got[0].bytes)
	}
	// Many at once: one stores, the others find it, and all read the same bytes.
	const writers = 8
	letters := make([]string, writers)
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			letters[i] = p.write(testModel, chunkBytes, testBlock{"b", contentOf(fmt.Sprint("w", i), 20_000)})[0]
		})
	}
	all.Wait()
	slices.Sort(letters)
	if got := strings.Join(letters, ""); got != strings.Repeat("e", writers-1)+"s" {
		t.Errorf("%d writers of one block: %s", writers, got)
	}
	if got := p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "b"); !got[0].ok {
		t.Error("the block is a miss")
	}
}

// TestPromptDamage: whatever is wrong with a stored block, it is a counted miss and the next write stores it anew.
func TestPromptDamage(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	p := newPrompts(t, r)
	damaged := int64(0)
	for _, size := range []int{5000, 1 << 20, 3<<20 + 5} {
		table := int64(size)
		for name, spoil := range map[string]func(ref shard.Ref, off int64, b []byte) error{
			"flipped bit":    func(_ shard.Ref, _ int64, b []byte) error { b[len(b)/2] ^= 4; return nil },
			"gone":           func(shard.Ref, int64, []byte) error { return kverr.New(kverr.NotFound, "", "gone") },
			"truncated":      func(shard.Ref, int64, []byte) error { return kverr.New(kverr.DataLoss, "", "short") },
			"swapped object": func(_ shard.Ref, _ int64, b []byte) error { copy(b, contentOf("other", len(b))); return nil },
			"end of the block": func(_ shard.Ref, off int64, b []byte) error {
				if off < table && off+int64(len(b)) == int64(size) {
					b[len(b)-1] ^= 1
				}
				return nil
			},
		} {
			scope := &kvv1.Scope{Fields: map[string]string{"case": name, "size": fmt.Sprint(size)}}
			p.writeIDs(scope, size, "a", "bad", "c")
			good := true
			s.set(func(ref shard.Ref, off int64, b []byte) error {
				if good {
					return nil
				}
				return spoil(ref, off, b)
			})
			good = false
			got := p.read(scope, kvv1.OnMiss_ON_MISS_STOP, "bad", "c")
			s.set(nil)
			damaged++
			if len(got) != 1 || got[0].ok {
				t.Errorf("%s of %d bytes: %d blocks, first ok %v", name, size, len(got), got[0].ok)
			}
			if found, _ := p.lookup(scope, kvv1.LookupMode_LOOKUP_MODE_ALL, 0, "a", "bad", "c"); found != "x-x" {
				t.Errorf("%s of %d bytes: %s after the read", name, size, found)
			}
			if again := p.writeIDs(scope, size, "a", "bad", "c"); strings.Join(again, "") != "ese" {
				t.Errorf("%s of %d bytes: written again: %v", name, size, again)
			}
			if got := p.read(scope, kvv1.OnMiss_ON_MISS_STOP, "a", "bad", "c"); len(got) != 3 || !got[1].ok {
				t.Errorf("%s of %d bytes: not readable after it was stored anew", name, size)
			}
		}
	}
	u, err := p.Usage(testContext(t), &kvv1.UsageRequest{Namespace: promptSpace})
	if err != nil || u.DamagedBlocks != damaged {
		t.Errorf("%d damaged blocks are counted, want %d (%v)", u.GetDamagedBlocks(), damaged, err)
	}
}

// TestPromptUnreachableIsNoMiss: a shard that cannot be reached is an error of the call; the block stays.
func TestPromptUnreachableIsNoMiss(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	p := newPrompts(t, r)
	p.writeIDs(testModel, 5000, "a")
	s.set(func(shard.Ref, int64, []byte) error { return kverr.New(kverr.Unavailable, "", "not now") })
	stream, err := p.Read(testContext(t), &kvv1.ReadRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs("a")})
	if err == nil {
		_, err = stream.Recv()
	}
	wantKind(t, "read", err, kverr.Unavailable)
	s.set(nil)
	if got := p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "a"); !got[0].ok {
		t.Error("the block is gone")
	}
}

func TestPromptLeasesAndPins(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	ctx := testContext(t)
	ids := []string{"a", "b", "c", "d"}
	p.writeIDs(testModel, 100, ids...)
	_, lease := p.lookup(testModel, kvv1.LookupMode_LOOKUP_MODE_PREFIX, 20_000, "a", "b", "nothing")
	if len(lease.Lease) == 0 || lease.LeaseExpiresMs < lease.Header.ServerTimeMs+15_000 {
		t.Fatalf("lease %x until %d, now %d", lease.Lease, lease.LeaseExpiresMs, lease.Header.ServerTimeMs)
	}
	remove := func(ids ...string) string {
		resp, err := p.Delete(ctx, &kvv1.PromptCacheServiceDeleteRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs(ids...)})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(resp.Outcomes)
	}
	pin, err := p.Pin(ctx, &kvv1.PinRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs("c", "nothing", "d"), UntilMs: lease.Header.ServerTimeMs + 60_000})
	if err != nil || pin.Count != 2 || pin.Bitmap[0] != 5 {
		t.Fatalf("pin: %v %v", pin, err)
	}
	if _, resp := p.lookup(testModel, kvv1.LookupMode_LOOKUP_MODE_ALL, 0, "c", "a"); resp.Blocks[0].PinnedUntilMs != lease.Header.ServerTimeMs+60_000 || resp.Blocks[1].PinnedUntilMs != 0 {
		t.Errorf("pins in the lookup: %v", resp.Blocks)
	}
	if got := remove("a", "nothing", "c"); got != "[DELETE_OUTCOME_LEASED DELETE_OUTCOME_ABSENT DELETE_OUTCOME_DELETED]" {
		t.Errorf("delete: %s", got)
	}
	cleared, err := p.Clear(ctx, &kvv1.ClearRequest{Namespace: promptSpace, Scope: testModel})
	if err != nil || cleared.Deleted != 1 || cleared.Leased != 2 {
		t.Errorf("clear: %v %v", cleared, err)
	}
	for _, token := range [][]byte{lease.Lease, lease.Lease, nil} { // also again, and with none
		if _, err := p.Release(ctx, &kvv1.ReleaseRequest{Namespace: promptSpace, Lease: token}); err != nil {
			t.Errorf("release of %x: %v", token, err)
		}
	}
	_, err = p.Release(ctx, &kvv1.ReleaseRequest{Namespace: promptSpace, Lease: []byte("nonsense")})
	wantKind(t, "no lease at all", err, kverr.InvalidArgument)
	if got := remove("a", "b"); got != "[DELETE_OUTCOME_DELETED DELETE_OUTCOME_DELETED]" {
		t.Errorf("delete after the release: %s", got)
	}
}

func TestPromptListAndUsage(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	ctx := testContext(t)
	var want []string
	for i := range 45 {
		want = append(want, fmt.Sprintf("id\x00%02d", i))
	}
	p.writeIDs(testModel, 10, want...)
	for i := range 12 {
		p.writeIDs(&kvv1.Scope{Fields: map[string]string{"model": fmt.Sprint(i), "cache_salt": fmt.Sprint("t", i%2)}}, 2000, "a", "b")
	}
	var got []string
	for token := []byte(nil); ; {
		resp, err := p.List(ctx, &kvv1.PromptCacheServiceListRequest{Namespace: promptSpace, Scope: testModel, PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Blocks) > 7 {
			t.Fatalf("a page of %d blocks", len(resp.Blocks))
		}
		for i, b := range resp.Blocks {
			got = append(got, string(b.Block.Id))
			if b.Size != 10 || b.CreatedMs == 0 || b.TouchedMs < b.CreatedMs || string(b.Parent) != "p" || b.Checksum != xxh3.Hash(contentOf(string(b.Block.Id), 10)) {
				t.Errorf("block %d: %v", i, b)
			}
		}
		if token = resp.NextPageToken; len(token) == 0 {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q", got)
	}
	scopes := map[string]bool{}
	for token := []byte(nil); ; {
		resp, err := p.List(ctx, &kvv1.PromptCacheServiceListRequest{Namespace: promptSpace, PageSize: 5, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.Scopes {
			name := fmt.Sprint(s.Fields)
			if scopes[name] {
				t.Errorf("scope %s twice", name)
			}
			scopes[name] = true
		}
		if token = resp.NextPageToken; len(token) == 0 {
			break
		}
		_, err = p.List(ctx, &kvv1.PromptCacheServiceListRequest{Namespace: promptSpace, Scope: testModel, PageToken: token})
		wantKind(t, "a token of another listing", err, kverr.InvalidArgument)
	}
	if len(scopes) != 13 {
		t.Errorf("%d scopes, want 13", len(scopes))
	}
	u, err := p.Usage(ctx, &kvv1.UsageRequest{Namespace: promptSpace})
	if err != nil {
		t.Fatal(err)
	}
	salts := map[string][2]int64{}
	for _, row := range u.Salts {
		salts[row.Scope.Fields["cache_salt"]] = [2]int64{row.Blocks, row.Bytes}
	}
	if u.Total.Blocks != 45+24 || u.Total.Bytes != 450+48_000 || len(u.Scopes) != 13 ||
		salts["s1"] != [2]int64{45, 450} || salts["t0"] != [2]int64{12, 24_000} || salts["t1"] != [2]int64{12, 24_000} {
		t.Errorf("usage: total %v, %d scopes, salts %v", u.Total, len(u.Scopes), salts)
	}
	one, err := p.Usage(ctx, &kvv1.UsageRequest{Namespace: promptSpace, Scope: testModel})
	if err != nil || one.Total.Blocks != 45 || len(one.Scopes) != 1 {
		t.Errorf("usage of one scope: %v %v", one, err)
	}
	cleared, err := p.Clear(ctx, &kvv1.ClearRequest{Namespace: promptSpace, AllScopes: true})
	if err != nil || cleared.Deleted != 69 {
		t.Errorf("clear: %v %v", cleared, err)
	}
	if u, err = p.Usage(ctx, &kvv1.UsageRequest{Namespace: promptSpace}); err != nil || u.Total.Blocks != 0 || len(u.Scopes) != 0 {
		t.Errorf("usage after the clear: %v %v", u, err)
	}
}

func TestPromptCapacity(t *testing.T) {
	r := newRig(t, Config{}, nil)
	_, err := r.Dir.CreateNamespace(testContext(t), &kvv1.Namespace{Keyspace: DefaultName, Name: "small", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT, CapacityBlocks: 40})
	if err != nil {
		t.Fatal(err)
	}
	p := newPrompts(t, r)
	p.ns = "small"
	var pinned []string
	for i := range 8 {
		pinned = append(pinned, fmt.Sprint("pinned", i))
	}
	p.writeIDs(testModel, 100, pinned...)
	ctx := testContext(t)
	if _, err := p.Pin(ctx, &kvv1.PinRequest{Namespace: "small", Scope: testModel, Blocks: refs(pinned...), UntilMs: r.Server.now() + 100_000}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		p.writeIDs(testModel, 100, fmt.Sprint("block", i))
	}
	u, err := p.Usage(ctx, &kvv1.UsageRequest{Namespace: "small"})
	if err != nil || u.Total.Blocks > 40 || u.Total.Blocks < 30 || u.EvictedBlocks != 208-u.Total.Blocks || u.CapacityBlocks != 40 {
		t.Errorf("usage: %v %v", u, err)
	}
	if got, _ := p.lookup(testModel, kvv1.LookupMode_LOOKUP_MODE_ALL, 0, pinned...); got != "xxxxxxxx" {
		t.Errorf("pinned blocks: %s", got)
	}
	// More than the capacity in one call: what fits is stored, the rest is told.
	var ids []string
	for i := range 100 {
		ids = append(ids, fmt.Sprint("flood", i))
	}
	got := strings.Join(p.writeIDs(testModel, 100, ids...), "")
	if n := strings.Count(got, "s"); n == 0 || strings.Count(got, "RESOURCE_EXHAUSTED") == 0 {
		t.Errorf("flood: %s", got)
	}
}

func TestPromptLimits(t *testing.T) {
	r := newRig(t, Config{MaxBlockBytes: 2 << 20}, nil)
	p := newPrompts(t, r)
	ctx := testContext(t)
	long := strings.Repeat("x", key.MaxBlockID+1)
	many := make([]*kvv1.BlockRef, key.MaxLookup+1)
	for i := range many {
		many[i] = &kvv1.BlockRef{Id: []byte("a")}
	}
	fields := map[string]string{}
	for i := range 33 {
		fields[fmt.Sprint(i)] = "x"
	}
	lookup := func(req *kvv1.LookupRequest) error {
		if req.Namespace == "" {
			req.Namespace = promptSpace
		}
		_, err := p.Lookup(ctx, req)
		return err
	}
	write := func(msgs ...*kvv1.WriteRequest) error {
		stream, err := p.Write(ctx)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if err := stream.Send(m); err != nil {
				break
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	head := func() *kvv1.WriteRequest_Head {
		return &kvv1.WriteRequest_Head{Namespace: promptSpace, Scope: testModel}
	}
	header := func(size int64) *kvv1.WriteRequest_Header {
		return &kvv1.WriteRequest_Header{Block: &kvv1.BlockRef{Id: []byte("a")}, Size: size}
	}
	pin := func(req *kvv1.PinRequest) error {
		req.Namespace, req.Scope, req.Blocks = promptSpace, testModel, refs("a")
		_, err := p.Pin(ctx, req)
		return err
	}
	list := func(req *kvv1.PromptCacheServiceListRequest) error {
		req.Namespace = promptSpace
		_, err := p.List(ctx, req)
		return err
	}
	clearOf := func(req *kvv1.ClearRequest) error { _, err := p.Clear(ctx, req); return err }
	read := func(req *kvv1.ReadRequest) error {
		stream, err := p.Read(ctx, req)
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for _, c := range []struct {
		name  string
		err   error
		kind  kverr.Kind
		field string
	}{
		{"wrong kind", lookup(&kvv1.LookupRequest{Namespace: DefaultName}), kverr.WrongKind, ""},
		{"no namespace", lookup(&kvv1.LookupRequest{Namespace: "nowhere"}), kverr.NotFound, ""},
		{"references", lookup(&kvv1.LookupRequest{Blocks: many}), kverr.TooLarge, "blocks"},
		{"empty id", lookup(&kvv1.LookupRequest{Blocks: refs("")}), kverr.InvalidArgument, "blocks.id"},
		{"long id", lookup(&kvv1.LookupRequest{Blocks: refs(long)}), kverr.TooLarge, "blocks.id"},
		{"scope fields", lookup(&kvv1.LookupRequest{Scope: &kvv1.Scope{Fields: fields}}), kverr.TooLarge, "scope.fields"},
		{"scope bytes", lookup(&kvv1.LookupRequest{Scope: &kvv1.Scope{Fields: map[string]string{"x": strings.Repeat("x", 4096)}}}), kverr.TooLarge, "scope.fields"},
		{"lease", lookup(&kvv1.LookupRequest{LeaseMs: 30_001}), kverr.InvalidArgument, "lease_ms"},
		{"negative lease", lookup(&kvv1.LookupRequest{LeaseMs: -1}), kverr.InvalidArgument, "lease_ms"},
		{"mode", lookup(&kvv1.LookupRequest{Mode: 9}), kverr.InvalidArgument, "mode"},
		{"on_miss", read(&kvv1.ReadRequest{Namespace: promptSpace, OnMiss: 9}), kverr.InvalidArgument, "on_miss"},
		{"pin", pin(&kvv1.PinRequest{UntilMs: -1}), kverr.InvalidArgument, "until_ms"},
		{"identity", pin(&kvv1.PinRequest{Identity: &kvv1.WriteIdentity{}}), kverr.InvalidArgument, "identity.client"},
		{"page", list(&kvv1.PromptCacheServiceListRequest{PageSize: 1001}), kverr.InvalidArgument, "page_size"},
		{"page token", list(&kvv1.PromptCacheServiceListRequest{PageToken: []byte("x")}), kverr.InvalidArgument, "page_token"},
		{"clear nothing", clearOf(&kvv1.ClearRequest{Namespace: promptSpace}), kverr.InvalidArgument, "scope"},
		{"clear both", clearOf(&kvv1.ClearRequest{Namespace: promptSpace, Scope: testModel, AllScopes: true}), kverr.InvalidArgument, "scope"},
		{"no head", write(&kvv1.WriteRequest{Header: header(1)}), kverr.InvalidArgument, "head"},
		{"nothing", write(), kverr.InvalidArgument, "head"},
		{"two heads", write(&kvv1.WriteRequest{Head: head()}, &kvv1.WriteRequest{Head: head()}), kverr.InvalidArgument, "head"},
		{"ttl", write(&kvv1.WriteRequest{Head: &kvv1.WriteRequest_Head{Namespace: promptSpace, TtlMs: -1}}), kverr.InvalidArgument, "head.ttl_ms"},
		{"chunk first", write(&kvv1.WriteRequest{Head: head(), Chunk: []byte("x")}), kverr.InvalidArgument, "chunk"},
		{"too large", write(&kvv1.WriteRequest{Head: head(), Header: header(2<<20 + 1)}), kverr.TooLarge, "header.size"},
		{"negative size", write(&kvv1.WriteRequest{Head: head(), Header: header(-1)}), kverr.InvalidArgument, "header.size"},
		{"chunk size", write(&kvv1.WriteRequest{Head: head(), Header: header(2 << 20), Chunk: make([]byte, chunkBytes+1)}), kverr.TooLarge, "chunk"},
		{"too many bytes", write(&kvv1.WriteRequest{Head: head(), Header: header(1), Chunk: []byte("xy")}), kverr.InvalidArgument, "chunk"},
		{"more bytes later", write(&kvv1.WriteRequest{Head: head(), Header: header(1), Chunk: []byte("x")}, &kvv1.WriteRequest{Chunk: []byte("x")}), kverr.InvalidArgument, "chunk"},
		{"too few bytes", write(&kvv1.WriteRequest{Head: head(), Header: header(2), Chunk: []byte("x")}), kverr.InvalidArgument, "chunk"},
		{"too few bytes of a large one", write(&kvv1.WriteRequest{Head: head(), Header: header(2 << 20), Chunk: []byte("x")}), kverr.InvalidArgument, "chunk"},
		{"header within", write(&kvv1.WriteRequest{Head: head(), Header: header(2), Chunk: []byte("x")}, &kvv1.WriteRequest{Header: header(1)}), kverr.InvalidArgument, "header"},
		{"block id", write(&kvv1.WriteRequest{Head: head(), Header: &kvv1.WriteRequest_Header{}}), kverr.InvalidArgument, "header.block.id"},
		{"parent", write(&kvv1.WriteRequest{Head: head(), Header: &kvv1.WriteRequest_Header{Block: refs("a")[0], Parent: []byte(long)}}), kverr.TooLarge, "header.parent"},
	} {
		e := wantKind(t, c.name, c.err, c.kind)
		if e != nil && c.field != "" && e.Field != c.field {
			t.Errorf("%s: names field %q, want %q (%v)", c.name, e.Field, c.field, e)
		}
	}
	if u, err := p.Usage(ctx, &kvv1.UsageRequest{Namespace: promptSpace}); err != nil || u.Total.Blocks != 0 {
		t.Errorf("bad writes stored something: %v %v", u, err)
	}
	// The longest list that is allowed, and the largest block.
	if err := lookup(&kvv1.LookupRequest{Blocks: many[1:]}); err != nil {
		t.Error(err)
	}
	if got := p.writeIDs(testModel, 2<<20, "largest"); got[0] != "s" {
		t.Error(got)
	}
	// A wrong checksum is that block's fault alone, small or large.
	for _, size := range []int64{3, 2 << 20} {
		stream, err := p.Write(ctx)
		if err != nil {
			t.Fatal(err)
		}
		h := header(size)
		h.Checksum = 1
		for m, sent := (&kvv1.WriteRequest{Head: head(), Header: h}), int64(0); sent < size; m = new(kvv1.WriteRequest) {
			m.Chunk = make([]byte, min(size-sent, chunkBytes))
			sent += int64(len(m.Chunk))
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.Send(&kvv1.WriteRequest{Header: &kvv1.WriteRequest_Header{Block: refs(fmt.Sprint("good", size))[0], Size: 1}, Chunk: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.CloseAndRecv()
		if err != nil || len(resp.Results) != 2 || resp.Results[0].GetError().GetField() != "header.checksum" || !resp.Results[1].GetStored() {
			t.Errorf("wrong checksum of %d bytes: %v %v", size, resp, err)
		}
	}
}

// TestPromptMemory writes and reads a block of many chunks and counts what is held meanwhile by what is read at once.
func TestPromptChunksAreRead(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	p := newPrompts(t, r)
	p.writeIDs(testModel, 9<<20, "big")
	var mu sync.Mutex
	largest := 0
	s.set(func(_ shard.Ref, _ int64, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		largest = max(largest, len(b))
		return nil
	})
	if got := p.read(testModel, kvv1.OnMiss_ON_MISS_STOP, "big"); !got[0].ok || largest > chunkBytes {
		t.Errorf("ok %v, %d bytes at once", got[0].ok, largest)
	}
}

// TestPromptTTL: blocks expire as the head says.
func TestPromptTTL(t *testing.T) {
	r := newRig(t, Config{}, nil)
	p := newPrompts(t, r)
	ctx := testContext(t)
	stream, err := p.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&kvv1.WriteRequest{
		Head:   &kvv1.WriteRequest_Head{Namespace: promptSpace, Scope: testModel, TtlMs: 3_600_000},
		Header: &kvv1.WriteRequest_Header{Block: refs("a")[0], Size: 1}, Chunk: []byte("x"),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	resp, err := p.List(ctx, &kvv1.PromptCacheServiceListRequest{Namespace: promptSpace, Scope: testModel})
	if err != nil || len(resp.Blocks) != 1 || resp.Blocks[0].ExpiresMs != resp.Blocks[0].CreatedMs+3_600_000 {
		t.Errorf("%v %v", resp, err)
	}
}

// storeCounter counts the values that are stored apart.
type storeCounter struct {
	Shards
	values atomic.Int64
}

func (s *storeCounter) PutValues(ctx context.Context, id string, values ...[]byte) ([]shard.Ref, error) {
	s.values.Add(int64(len(values)))
	return s.Shards.PutValues(ctx, id, values...)
}

func (s *storeCounter) WriteValue(ctx context.Context, id string, size int64, r io.Reader) (shard.Ref, error) {
	s.values.Add(1)
	return s.Shards.WriteValue(ctx, id, size, r)
}

// TestPromptStoresOnce: the bytes of a block that is there are not stored again, be it small or large.
func TestPromptStoresOnce(t *testing.T) {
	s := &storeCounter{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	p := newPrompts(t, r)
	blocks := []testBlock{{"a", contentOf("a", 5000)}, {"b", contentOf("b", 2<<20)}, {"c", contentOf("c", 100)}}
	for range 3 {
		p.write(testModel, chunkBytes, blocks...)
	}
	if n := s.values.Load(); n != 2 {
		t.Errorf("%d values were stored apart, want 2", n)
	}
}

// TestPromptNoWrongByteLeaves: a chunk is verified before it is sent, so what came before a MISS is right, and nothing else came.
func TestPromptNoWrongByteLeaves(t *testing.T) {
	s := &spoiler{}
	r := newRig(t, Config{}, func(under Shards) Shards { s.Shards = under; return s })
	p := newPrompts(t, r)
	want := contentOf("a", 3<<20)
	p.write(testModel, chunkBytes, testBlock{"a", want})
	s.set(func(_ shard.Ref, off int64, b []byte) error {
		if off == chunkBytes {
			b[7] ^= 1
		}
		return nil
	})
	stream, err := p.Read(testContext(t), &kvv1.ReadRequest{Namespace: promptSpace, Scope: testModel, Blocks: refs("a")})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Chunk...)
		if m.End == kvv1.BlockStatus_BLOCK_STATUS_OK {
			t.Fatal("a damaged block ended with OK")
		}
		if m.End == kvv1.BlockStatus_BLOCK_STATUS_MISS {
			break
		}
	}
	if !bytes.Equal(got, want[:chunkBytes]) {
		t.Errorf("%d bytes left before the miss, right as far as %v", len(got), bytes.HasPrefix(want, got))
	}
}
