package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// eventually waits until what holds.
func eventually(t *testing.T, what func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		<-tick.C
	}
}

// bytesUnder adds up the files of a directory; files may come and go meanwhile.
func bytesUnder(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

func makePromptSpace(t *testing.T, conn *grpc.ClientConn, ns *kvv1.Namespace) {
	t.Helper()
	ns.Kind = kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT
	if _, err := kvv1.NewAdminServiceClient(conn).CreateNamespace(within(t), &kvv1.CreateNamespaceRequest{Namespace: ns}); err != nil {
		t.Fatal(err)
	}
}

// TestAbandonedStreams: streams that clients leave half-way, sending or reading, leave nothing behind: no goroutine, no bytes on
// disk, no key.
func TestAbandonedStreams(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, conn, _ := run(t, Config{Engine: EngineDisk, DataDir: dir, MaxValueBytes: 64 << 20})
	makePromptSpace(t, conn, &kvv1.Namespace{Name: "prompts"})
	kv, prompts := kvv1.NewKVServiceClient(conn), kvv1.NewPromptCacheServiceClient(conn)
	ctx := within(t)
	const chunk, size = 1 << 20, 32 << 20
	half := make([]byte, chunk)
	scope := &kvv1.Scope{Fields: map[string]string{"model": "m"}}

	// One whole value and one whole block, to be read slowly.
	put, err := kv.PutStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	write, err := prompts.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sendPut := func(s kvv1.KVService_PutStreamClient, key string, chunks int) {
		_ = s.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: []byte(key)}, Size: size}}})
		for range chunks {
			_ = s.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Chunk{Chunk: half}})
		}
	}
	sendWrite := func(s kvv1.PromptCacheService_WriteClient, id string, chunks int) {
		_ = s.Send(&kvv1.WriteRequest{Head: &kvv1.WriteRequest_Head{Namespace: "prompts", Scope: scope},
			Header: &kvv1.WriteRequest_Header{Block: &kvv1.BlockRef{Id: []byte(id)}, Size: size}})
		for range chunks {
			_ = s.Send(&kvv1.WriteRequest{Chunk: half})
		}
	}
	sendPut(put, "whole", size/chunk)
	if _, err := put.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	sendWrite(write, "whole", size/chunk)
	if _, err := write.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}

	before, stored := runtime.NumGoroutine(), bytesUnder(dir)
	for i := range 12 {
		gone, leave := context.WithCancel(ctx)
		put, err := kv.PutStream(gone)
		if err != nil {
			t.Fatal(err)
		}
		sendPut(put, fmt.Sprint("half", i), 3)
		write, err := prompts.Write(gone)
		if err != nil {
			t.Fatal(err)
		}
		sendWrite(write, fmt.Sprint("half", i), 3)
		get, err := kv.GetStream(gone, &kvv1.GetStreamRequest{Key: []byte("whole")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := get.Recv(); err != nil {
			t.Fatal(err)
		}
		read, err := prompts.Read(gone, &kvv1.ReadRequest{Namespace: "prompts", Scope: scope, Blocks: []*kvv1.BlockRef{{Id: []byte("whole")}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read.Recv(); err != nil {
			t.Fatal(err)
		}
		pipe, err := kv.Pipeline(gone)
		if err != nil {
			t.Fatal(err)
		}
		op := &kvv1.PipelineRequest_Op{Id: 1, Op: &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: []byte("whole")}}}
		if err := pipe.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{op}}); err != nil {
			t.Fatal(err)
		}
		leave()
	}
	eventually(t, func() error {
		if now := runtime.NumGoroutine(); now > before {
			return fmt.Errorf("%d goroutines before, %d after", before, now)
		}
		return nil
	})
	eventually(t, func() error {
		if now := bytesUnder(dir); now > stored+chunk {
			return fmt.Errorf("%d bytes in the data directory before, %d after", stored, now)
		}
		return nil
	})
	list, err := kv.List(ctx, &kvv1.ListRequest{CountOnly: true})
	if err != nil || list.Count != 1 {
		t.Errorf("keys: %v, %v", list, err)
	}
	use, err := prompts.Usage(ctx, &kvv1.UsageRequest{Namespace: "prompts"})
	if err != nil || use.Total.Blocks != 1 {
		t.Errorf("blocks: %v, %v", use, err)
	}
}

// TestPromptOverTheWire writes, finds, reads and keeps blocks with ids of every length that engines use, on every engine.
func TestPromptOverTheWire(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		_, conn, stop := run(t, cfg)
		makePromptSpace(t, conn, &kvv1.Namespace{Name: "prompts", CapacityBlocks: 64})
		p := kvv1.NewPromptCacheServiceClient(conn)
		ctx := within(t)
		scope := &kvv1.Scope{Fields: map[string]string{"model": "m"}}
		uuid := []byte("0190163d-8694-739b-aea5-966c26f8ad91")
		refs := []*kvv1.BlockRef{
			{Id: []byte{0}}, {Id: uuid}, {Id: bytes.Repeat([]byte{0xff}, 128)},
			{Id: []byte{0}, Rank: 7}, {Id: uuid, Group: 3}, {Id: bytes.Repeat([]byte{0xff}, 127)}, // near to the others
		}
		data := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, 100+i*700) } // small and big ones
		write := func(refs []*kvv1.BlockRef) []*kvv1.WriteResponse_Result {
			t.Helper()
			s, err := p.Write(ctx)
			if err != nil {
				t.Fatal(err)
			}
			head := &kvv1.WriteRequest_Head{Namespace: "prompts", Scope: scope}
			for i, r := range refs {
				b := data(i)
				if err := s.Send(&kvv1.WriteRequest{Head: head, Header: &kvv1.WriteRequest_Header{Block: r, Size: int64(len(b))}, Chunk: b}); err != nil {
					break
				}
				head = nil
			}
			resp, err := s.CloseAndRecv()
			if err != nil {
				t.Fatal(err)
			}
			return resp.Results
		}
		for i, r := range write(refs) {
			if !r.GetStored() {
				t.Errorf("block %d: %v", i, r)
			}
		}
		hole := append([]*kvv1.BlockRef{refs[0], {Id: []byte("not there")}}, refs[1:]...)
		find := func(p kvv1.PromptCacheServiceClient) (prefix, all *kvv1.LookupResponse) {
			t.Helper()
			var err error
			if prefix, err = p.Lookup(ctx, &kvv1.LookupRequest{Namespace: "prompts", Scope: scope, Blocks: hole}); err != nil {
				t.Fatal(err)
			}
			all, err = p.Lookup(ctx, &kvv1.LookupRequest{Namespace: "prompts", Scope: scope, Blocks: hole, Mode: kvv1.LookupMode_LOOKUP_MODE_ALL, LeaseMs: 30_000})
			if err != nil {
				t.Fatal(err)
			}
			if prefix.Count != 1 || !bytes.Equal(prefix.Bitmap, []byte{1}) || all.Count != 6 || !bytes.Equal(all.Bitmap, []byte{0x7d}) {
				t.Errorf("prefix %d %x, all %d %x", prefix.Count, prefix.Bitmap, all.Count, all.Bitmap)
			}
			return prefix, all
		}
		read := func(p kvv1.PromptCacheServiceClient) {
			t.Helper()
			s, err := p.Read(ctx, &kvv1.ReadRequest{Namespace: "prompts", Scope: scope, Blocks: refs})
			if err != nil {
				t.Fatal(err)
			}
			for i := range refs {
				m, err := s.Recv()
				if err != nil || m.End != kvv1.BlockStatus_BLOCK_STATUS_OK || !bytes.Equal(m.Chunk, data(i)) {
					t.Fatalf("block %d: %v, %v", i, m.GetEnd(), err)
				}
			}
			if m, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("after the last block: %v, %v", m, err)
			}
		}
		_, all := find(p)
		read(p)

		// Leased blocks outlive a flood of five times the capacity, and deletes.
		for n := range 5 {
			var flood []*kvv1.BlockRef
			for i := range 64 {
				flood = append(flood, &kvv1.BlockRef{Id: fmt.Appendf(nil, "flood %d %d", n, i)})
			}
			write(flood)
		}
		find(p)
		read(p)
		del, err := p.Delete(ctx, &kvv1.PromptCacheServiceDeleteRequest{Namespace: "prompts", Scope: scope, Blocks: refs})
		if err != nil || strings.Count(fmt.Sprint(del.Outcomes), "LEASED") != 6 {
			t.Errorf("delete of leased blocks: %v, %v", del, err)
		}
		if _, err := p.Release(ctx, &kvv1.ReleaseRequest{Namespace: "prompts", Lease: all.Lease}); err != nil {
			t.Errorf("release: %v", err)
		}
		if _, err := p.Release(ctx, &kvv1.ReleaseRequest{Namespace: "prompts", Lease: all.Lease}); err != nil {
			t.Errorf("release again: %v", err)
		}
		if _, err := p.Lookup(ctx, &kvv1.LookupRequest{Namespace: "prompts", Scope: scope, Blocks: []*kvv1.BlockRef{{Id: make([]byte, 129)}}}); kverr.KindOf(err) != kverr.TooLarge {
			t.Errorf("an id of 129 bytes: %v", err)
		}
		if cfg.Engine != EngineDisk {
			return
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		_, conn, _ = run(t, cfg)
		p = kvv1.NewPromptCacheServiceClient(conn)
		find(p)
		read(p)
		// The leases of before the restart are unknown now.
		if _, err := p.Release(ctx, &kvv1.ReleaseRequest{Namespace: "prompts", Lease: all.Lease}); err != nil {
			t.Errorf("release of a lease of before the restart: %v", err)
		}
	})
}
