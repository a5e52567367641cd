package frontend

import (
	"context"
	"encoding/binary"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// A block longer than chunkBytes is stored with a table behind its bytes: the xxh3-64 of each chunkBytes of it, 8 bytes
// little endian each, so that a chunk can be verified before it is sent without reading the block twice.
const tableEntry = 8

// tableBytes is the length of the table of a block; 0 when it has none.
func tableBytes(size int64) int64 {
	if size <= chunkBytes {
		return 0
	}
	return (size + chunkBytes - 1) / chunkBytes * tableEntry
}

// Read sends blocks in the order asked. What is not there, gone meanwhile, or damaged is a miss.
func (p *promptService) Read(req *kvv1.ReadRequest, stream grpc.ServerStreamingServer[kvv1.ReadResponse]) error {
	ctx := stream.Context()
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return err
	}
	keys, err := checkRefs(req.Blocks)
	if err != nil {
		return err
	}
	skip := req.OnMiss == kvv1.OnMiss_ON_MISS_SKIP
	if !skip && req.OnMiss != kvv1.OnMiss_ON_MISS_UNSPECIFIED && req.OnMiss != kvv1.OnMiss_ON_MISS_STOP {
		return kverr.Invalid("on_miss", "%d is not a way; there are STOP and SKIP", req.OnMiss)
	}
	r := &blockReader{service: p, stream: stream, scope: &sc, keys: keys, stop: !skip}
	for i := range keys {
		there, err := r.send(ctx, i)
		if err != nil {
			return err
		}
		if there {
			p.reads.add(1, 0)
			continue
		}
		p.reads.add(0, 1)
		if err := r.message(uint32(i), nil, nil, kvv1.BlockStatus_BLOCK_STATUS_MISS); err != nil {
			return err
		}
		if !skip {
			return nil
		}
	}
	return nil
}

// blockReader is one Read on its way.
type blockReader struct {
	service *promptService
	stream  grpc.ServerStreamingServer[kvv1.ReadResponse]
	scope   *promptScope
	keys    []shard.BlockKey
	stop    bool   // at the first miss
	found   *asked // blocks from position from on
	from    int
	buf     []byte // one chunk, used again
	reply   kvv1.ReadResponse
	header  kvv1.ReadResponse_Header
}

// message sends one message; the codec has copied chunk when it returns.
func (r *blockReader) message(index uint32, header *kvv1.ReadResponse_Header, chunk []byte, end kvv1.BlockStatus) error {
	r.reply.Index, r.reply.Header, r.reply.Chunk, r.reply.End = index, header, chunk, end
	return r.stream.Send(&r.reply)
}

// send sends a block, or tells that it is not there. Errors end the stream. A block that was evicted or moved since the
// view was taken is looked up anew; one that is damaged where it should be is forgotten, so that the next Write stores it.
func (r *blockReader) send(ctx context.Context, i int) (there bool, err error) {
	k := &r.keys[i]
	b, ok, ferr := r.find(ctx, i)
	sh := r.scope.owner(k)
	for range maxRereads {
		if ferr != nil {
			return false, ferr
		}
		if !ok {
			return false, nil
		}
		sent, damaged, err := r.sendBlock(ctx, uint32(i), sh, b)
		if err != nil || !damaged {
			return err == nil, err
		}
		// Whether it is damaged or was only taken away shows when it is looked up anew. If part of it left, the end says MISS.
		bad := b.Value.Ref
		if b, ok, ferr = r.service.findOne(ctx, r.scope, k); ferr == nil && ok && b.Value.Ref == bad {
			r.unindex(ctx, sh, k, bad)
			return false, nil
		}
		if sent {
			return false, nil
		}
	}
	return false, nil
}

// readAhead is how many blocks a Read looks up at once. Short ones come with their bytes.
const readAhead = 64

// find is what was found of the block at a position, looking up those that follow it too.
func (r *blockReader) find(ctx context.Context, i int) (*shard.Block, bool, *kverr.Error) {
	if r.found == nil || i >= r.from+readAhead {
		var err *kverr.Error
		r.from = i
		if r.found, err = r.service.ask(ctx, r.scope, shard.QueryBlocks, r.keys[i:min(i+readAhead, len(r.keys))], r.stop); err != nil {
			return nil, false, err
		}
	}
	return r.found.find(i - r.from)
}

// sendBlock sends a block, each chunk verified before it leaves. When it is damaged or gone, sent tells whether bytes left
// already.
func (r *blockReader) sendBlock(ctx context.Context, index uint32, sh *Shard, b *shard.Block) (sent, damaged bool, err error) {
	r.header.Size, r.header.Checksum = b.Size, b.Checksum
	if b.Size <= chunkBytes {
		data := b.Value.Inline
		if apart(&b.Value) {
			data = r.room(b.Size)
			if damaged, err := r.readValue(ctx, sh, b, 0, data); damaged || err != nil {
				return false, damaged, err
			}
		}
		if int64(len(data)) != b.Size || xxh3.Hash(data) != b.Checksum {
			return false, true, nil
		}
		err = r.message(index, &r.header, data, kvv1.BlockStatus_BLOCK_STATUS_OK)
		return err == nil, false, err
	}
	if b.Value.Ref.Length != b.Size+tableBytes(b.Size) {
		return false, true, nil
	}
	table := make([]byte, tableBytes(b.Size))
	if damaged, err := r.readValue(ctx, sh, b, b.Size, table); damaged || err != nil {
		return false, damaged, err
	}
	whole := xxh3.New()
	for off := int64(0); off < b.Size; off += chunkBytes {
		chunk := r.room(min(chunkBytes, b.Size-off))
		if damaged, err := r.readValue(ctx, sh, b, off, chunk); damaged || err != nil {
			return off > 0, damaged, err
		}
		if xxh3.Hash(chunk) != binary.LittleEndian.Uint64(table[off/chunkBytes*tableEntry:]) {
			return off > 0, true, nil
		}
		_, _ = whole.Write(chunk)
		var header *kvv1.ReadResponse_Header
		if off == 0 {
			header = &r.header
		}
		end := kvv1.BlockStatus_BLOCK_STATUS_UNSPECIFIED
		if off+chunkBytes >= b.Size {
			if whole.Sum64() != b.Checksum {
				return off > 0, true, nil
			}
			end = kvv1.BlockStatus_BLOCK_STATUS_OK
		}
		if err := r.message(index, header, chunk, end); err != nil {
			return true, false, err
		}
	}
	return true, false, nil
}

// readValue reads a part of a block's value. Only what says that the object is not there or not right is damage; anything
// else, such as a shard that cannot be reached, is an error.
func (r *blockReader) readValue(ctx context.Context, sh *Shard, b *shard.Block, off int64, p []byte) (damaged bool, err error) {
	rerr := r.service.shards.ReadValue(ctx, sh.ID, b.Value.Ref, off, p)
	if rerr == nil {
		return false, nil
	}
	e := kverr.From(rerr)
	if e.Kind == kverr.NotFound || e.Kind == kverr.DataLoss {
		return true, nil
	}
	return false, e
}

func (r *blockReader) room(n int64) []byte {
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	return r.buf[:n]
}

// unindex durably forgets a damaged block. If that fails the next reader does it.
func (r *blockReader) unindex(ctx context.Context, sh *Shard, k *shard.BlockKey, at shard.Ref) {
	c := r.scope.command(shard.OpUnindex, sh)
	c.Prompt.Blocks, c.Prompt.Damaged = []shard.BlockKey{*k}, []shard.Ref{at}
	_ = r.service.doAll(ctx, map[string][]*shard.Command{sh.ID: {c}})
}
