package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// NewBlock is a block to be written. Its bytes are Data, or Size bytes of Reader for one that need not be in memory.
type NewBlock struct {
	BlockRef
	Parent []byte // id of the block before it in its chain; empty for the first
	Data   []byte

	Reader io.Reader // used when Data is nil
	Size   int64     // of Reader
}

// WriteOptions are the optional parts of a write.
type WriteOptions struct {
	TTL time.Duration // of all blocks; 0 = the namespace's default
}

// WriteOutcome is what became of one block.
type WriteOutcome struct {
	Stored bool  // false without Err: it was there already, which is a success
	Err    error // nil: it is stored durably, now or before
}

// Write stores blocks in one call; outcome i belongs to blocks[i]. The first writer of a block wins. The call is
// repeated after a lost connection (a block stored by the first try then is there already), and for blocks that could not be
// stored just then, unless one of the readers is no io.Seeker. Memory use is a few chunks beyond the blocks given.
func (p *Prompt) Write(ctx context.Context, blocks []NewBlock, o *WriteOptions) (_ []WriteOutcome, failed error) {
	const op = "write blocks"
	if len(blocks) == 0 {
		return nil, nil
	}
	ctx, span := p.c.begin(ctx, op, p.c.keyspace, p.c.namespace)
	defer func() { tracing.End(span, failed) }()
	var rewinds []func() error
	canRepeat := true
	for i, b := range blocks {
		if b.Data == nil && b.Reader != nil {
			if b.Size < 0 {
				return nil, invalid(op, "block %d has size %d", i, b.Size)
			}
			rw := rewinder(b.Reader)
			canRepeat = canRepeat && rw != nil
			rewinds = append(rewinds, rw)
		}
	}
	a := attempts{effect: writes, single: !canRepeat}
	var out []WriteOutcome // of earlier tries; blocks that failed in a way that passes are written again
	left := blocks
	at := make([]int, len(blocks)) // where left's are in blocks
	for i := range at {
		at[i] = i
	}
	for {
		tried, err := p.write(ctx, left, o)
		if err == nil {
			if out == nil {
				out = make([]WriteOutcome, len(blocks))
			}
			var again []int
			for i, o := range tried {
				out[at[i]] = o
				var e *kverr.Error
				if errors.As(o.Err, &e) && passes(e) {
					again, err = append(again, at[i]), e
				}
			}
			if err == nil {
				return out, nil
			}
			at, left = again, nil
			for _, i := range at {
				left = append(left, blocks[i])
			}
		}
		final := a.next(ctx, p.c.core, err)
		if final != nil && out != nil {
			return out, nil
		}
		if final != nil {
			return nil, withOp(final, op)
		}
		for _, rw := range rewinds {
			if err := rw(); err != nil {
				return nil, &kverr.Error{Kind: kverr.OutcomeUnknown, Op: op, Message: "cannot rewind a reader", Err: err}
			}
		}
	}
}

// write is one try of Write.
func (p *Prompt) write(ctx context.Context, blocks []NewBlock, o *WriteOptions) ([]WriteOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a try that fails on our side must not look complete to the server
	stream, err := p.c.pick().bulkPrompt.Write(ctx)
	if err != nil {
		return nil, fromRPC(err, writes)
	}
	head := &kvstorev1.WriteRequest_Head{Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope}
	if o != nil {
		head.TtlMs = toMS(o.TTL)
	}
	w := blockWriter{stream: stream}
	w.msg.Head = head
	for i := range blocks {
		if err = w.block(&blocks[i]); err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // after io.EOF CloseAndRecv tells why
		return nil, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return nil, endedEarly(err, writes)
	}
	if err := sameLength("write blocks", len(blocks), len(resp.Results)); err != nil {
		return nil, err
	}
	p.c.clock.learn(resp.Header)
	out := make([]WriteOutcome, len(blocks))
	for i, r := range resp.Results {
		out[i] = WriteOutcome{Stored: r.GetStored(), Err: fromItem(r.GetError())}
	}
	return out, nil
}

// blockWriter sends blocks with one message that is used again and again.
type blockWriter struct {
	stream kvstorev1.PromptCacheService_WriteClient
	msg    kvstorev1.WriteRequest
	header kvstorev1.WriteRequest_Header
	ref    kvstorev1.BlockRef
	buf    []byte // for chunks of readers
}

// block sends one block; io.EOF means that the server has ended the stream.
func (w *blockWriter) block(b *NewBlock) error {
	w.ref.Id, w.ref.Rank, w.ref.Group, w.ref.Depth = b.ID, b.Rank, b.Group, b.Depth
	w.header.Block, w.header.Parent, w.header.Size, w.header.Checksum = &w.ref, b.Parent, int64(len(b.Data)), 0
	w.msg.Header = &w.header
	if b.Data == nil && b.Reader != nil {
		return w.fromReader(b)
	}
	w.header.Checksum = xxh3.Hash(b.Data)
	for rest := b.Data; ; {
		n := min(len(rest), chunkBytes)
		if err := w.send(rest[:n]); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

func (w *blockWriter) fromReader(b *NewBlock) error {
	w.header.Size = b.Size
	if w.buf == nil {
		w.buf = make([]byte, chunkBytes)
	}
	for left := b.Size; ; {
		c := w.buf[:min(left, chunkBytes)]
		if _, err := io.ReadFull(b.Reader, c); err != nil {
			return &kverr.Error{Kind: kverr.InvalidArgument, Message: "reading a block failed", Err: err}
		}
		if err := w.send(c); err != nil {
			return err
		}
		if left -= int64(len(c)); left <= 0 {
			return nil
		}
	}
}

func (w *blockWriter) send(chunk []byte) error {
	w.msg.Chunk = chunk
	err := w.stream.Send(&w.msg)
	w.msg.Head, w.msg.Header = nil, nil
	if err != nil && !errors.Is(err, io.EOF) {
		return fromRPC(err, writes)
	}
	return err
}
