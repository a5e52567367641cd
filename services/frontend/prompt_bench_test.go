package frontend

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/zeebo/xxh3"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// BenchmarkPromptRequest is one request of a replay, over gRPC in memory: look up 24 blocks of 16 KiB, read the 9 that are
// there, write the 15 that are not.
func BenchmarkPromptRequest(b *testing.B) {
	r := newRig(b, Config{}, nil)
	p := kvv1.NewPromptCacheServiceClient(r.Conn)
	ctx := b.Context()
	content := contentOf("x", 16<<10)
	sum := xxh3.Hash(content)
	write := func(blocks []*kvv1.BlockRef) error {
		stream, err := p.Write(ctx)
		if err != nil {
			return err
		}
		head := &kvv1.WriteRequest_Head{Namespace: promptSpace, Scope: testModel}
		for _, ref := range blocks {
			if err := stream.Send(&kvv1.WriteRequest{Head: head, Header: &kvv1.WriteRequest_Header{Block: ref, Size: int64(len(content)), Checksum: sum}, Chunk: content}); err != nil {
				return err
			}
			head = nil
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	const shared = 9
	var prefix []*kvv1.BlockRef
	for i := range shared {
		prefix = append(prefix, &kvv1.BlockRef{Id: fmt.Appendf(nil, "shared-%025d", i)})
	}
	if err := write(prefix); err != nil {
		b.Fatal(err)
	}
	var next atomic.Int64
	b.SetBytes(int64(24 * len(content)))
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n := next.Add(1)
			blocks := append([]*kvv1.BlockRef(nil), prefix...)
			for i := range 15 {
				blocks = append(blocks, &kvv1.BlockRef{Id: fmt.Appendf(nil, "%016d-%015d", n, i)})
			}
			found, err := p.Lookup(ctx, &kvv1.LookupRequest{Namespace: promptSpace, Scope: testModel, Blocks: blocks})
			if err != nil || found.Count != shared {
				b.Errorf("lookup: %v %v", found, err)
				return
			}
			stream, err := p.Read(ctx, &kvv1.ReadRequest{Namespace: promptSpace, Scope: testModel, Blocks: blocks[:found.Count]})
			if err != nil {
				b.Error(err)
				return
			}
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil || m.End != kvv1.BlockStatus_BLOCK_STATUS_OK || xxh3.Hash(m.Chunk) != m.Header.Checksum {
					b.Errorf("read: %v", err)
					return
				}
			}
			if err := write(blocks[found.Count:]); err != nil {
				b.Errorf("write: %v", err)
				return
			}
		}
	})
}
