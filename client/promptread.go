package client

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/zeebo/xxh3"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// ReadOptions are the optional parts of a read.
type ReadOptions struct {
	// SkipMisses goes on after a missing block; otherwise the walk ends with it.
	SkipMisses bool
	// Buffer, when set, gives the memory that block index of the list is read into: exactly size bytes, which the caller
	// owns. A wrong length ends the walk with an error. When the block turns out to be damaged the memory has been
	// written to nevertheless. Without Buffer all blocks are read into one buffer, used again and again.
	Buffer func(index int, size int64) []byte
}

// ReadBlock is one block of a read.
type ReadBlock struct {
	Index int    // in the list asked for
	Data  []byte // nil for a miss; without ReadOptions.Buffer valid only until the next turn of the loop
	Miss  bool   // not stored, or found damaged on the way
}

// maxBlockBytes bounds what a reply may make the client allocate for one block: the highest configurable limit.
const maxBlockBytes = 512 << 20

// Read brings blocks in the order asked. A block is yielded only when all its bytes have come and match their length
// and checksum; anything else is a miss. After an error the walk ends; a walk that ends without one has yielded every
// block, or a miss as its last without SkipMisses. Leaving the loop early cancels the call.
//
//	for b, err := range p.Read(ctx, refs, nil) {
//		if err != nil { return err }
//		if !b.Miss { engine.Load(b.Index, b.Data) }
//	}
func (p *Prompt) Read(ctx context.Context, refs []BlockRef, o *ReadOptions) iter.Seq2[ReadBlock, error] {
	return func(yield func(ReadBlock, error) bool) {
		if o == nil {
			o = &ReadOptions{}
		}
		ctx, span := p.c.begin(ctx, "read blocks", p.c.keyspace, p.c.namespace)
		var failed error
		defer func() { tracing.End(span, failed) }()
		r := blockReader{o: o}
		next := 0 // first block not yet yielded: where a repetition starts
		a := attempts{effect: reads}
		for next < len(refs) {
			before := next
			err := p.read(ctx, refs, &next, &r, yield)
			if err == nil {
				return
			}
			if next > before {
				a = attempts{effect: reads} // it got on
			}
			if err := a.next(ctx, p.c.core, err); err != nil {
				failed = err
				yield(ReadBlock{}, withOp(err, "read blocks"))
				return
			}
		}
	}
}

// read is one try, from refs[*next] on. It returns nil when the walk is over.
func (p *Prompt) read(
	ctx context.Context, refs []BlockRef, next *int, r *blockReader, yield func(ReadBlock, error) bool,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &kvstorev1.ReadRequest{
		Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope, Blocks: protoRefs(refs[*next:]),
		OnMiss: kvstorev1.OnMiss_ON_MISS_STOP,
	}
	first := *next
	if r.o.SkipMisses {
		req.OnMiss = kvstorev1.OnMiss_ON_MISS_SKIP
	}
	if first > 0 {
		keepDepths(req.Blocks, first)
	}
	stream, err := p.c.pick().bulkPrompt.Read(ctx, req)
	if err != nil {
		return fromRPC(err, reads)
	}
	for *next < len(refs) {
		r.begin(*next, *next-first)
		for !r.ended {
			if err := stream.RecvMsg(r); err != nil {
				if r.fault != nil {
					return r.fault
				}
				return endedEarly(err, reads)
			}
		}
		b := ReadBlock{Index: *next, Data: r.data, Miss: r.miss}
		*next++
		if !yield(b, nil) || b.Miss && !r.o.SkipMisses {
			return nil
		}
	}
	_ = stream.RecvMsg(r) // takes the status, so that the stream ends in order; every block is there, however it does
	return nil
}

// keepDepths gives references their place in the whole list as depth, when none has one.
func keepDepths(refs []*kvstorev1.BlockRef, first int) {
	if slices.ContainsFunc(refs, func(r *kvstorev1.BlockRef) bool { return r.Depth != 0 }) {
		return
	}
	for i, r := range refs {
		r.Depth = uint32(first + i)
	}
}

// blockReader receives the messages of one block after the other. It is what the codec is given, and copies chunks from
// gRPC's buffer to where they belong without a ReadResponse in between; FuzzBlockReader holds it to that.
type blockReader struct {
	o       *ReadOptions
	scratch []byte // the buffer without ReadOptions.Buffer

	index int    // of the block in the caller's list
	wire  uint32 // its index in this try's list
	open  bool   // its header has come
	sum   uint64 // its checksum
	buf   []byte // its memory
	n     int    // bytes that have come
	ended bool
	miss  bool
	data  []byte // ended and not missed: the block
	fault error  // the caller's or the server's, not the connection's
}

func (r *blockReader) begin(index, wire int) {
	*r = blockReader{o: r.o, scratch: r.scratch, index: index, wire: uint32(wire)}
}

// UnmarshalVT takes one ReadResponse.
func (r *blockReader) UnmarshalVT(b []byte) error {
	var index, status uint64
	var header, chunk []byte
	err := eachField(b, func(tag uint64, v uint64, body []byte) {
		switch tag {
		case 1<<3 | varint:
			index = v
		case 2<<3 | lenType:
			header = body
		case 3<<3 | lenType:
			chunk = body
		case 4<<3 | varint:
			status = v
		}
	})
	if err == nil {
		err = r.take(uint32(index), header, chunk, kvstorev1.BlockStatus(status))
	}
	if err != nil && r.fault == nil {
		r.fault = &kverr.Error{Kind: kverr.Unknown, Message: "the server's reply makes no sense", Err: err}
	}
	return err
}

func (r *blockReader) take(index uint32, header, chunk []byte, status kvstorev1.BlockStatus) error {
	switch {
	case index != r.wire || r.ended:
		return errors.New("a block out of turn")
	case header != nil && r.open:
		return errors.New("a second header")
	case header != nil:
		if err := r.start(header); err != nil {
			return err
		}
	}
	if len(chunk) > 0 {
		if !r.open || len(chunk) > len(r.buf)-r.n {
			return errors.New("more bytes than the header told")
		}
		r.n += copy(r.buf[r.n:], chunk)
	}
	switch status {
	case kvstorev1.BlockStatus_BLOCK_STATUS_UNSPECIFIED:
	case kvstorev1.BlockStatus_BLOCK_STATUS_OK:
		r.ended = true
		r.miss = !r.open || r.n != len(r.buf) || xxh3.Hash(r.buf) != r.sum
		if !r.miss {
			r.data = r.buf
		}
	default:
		r.ended, r.miss = true, true
	}
	return nil
}

// start takes the header of the block.
func (r *blockReader) start(b []byte) error {
	var size int64
	err := eachField(b, func(tag uint64, v uint64, _ []byte) {
		switch tag {
		case 1<<3 | varint:
			size = int64(v)
		case 2<<3 | fixed64:
			r.sum = v
		}
	})
	if err != nil {
		return err
	}
	if size < 0 || size > maxBlockBytes {
		return errors.New("a block of impossible size")
	}
	r.open = true
	if r.o.Buffer != nil {
		if r.buf = r.o.Buffer(r.index, size); int64(len(r.buf)) != size {
			r.fault = invalid("read blocks", "the buffer for block %d has %d bytes, want %d", r.index, len(r.buf), size)
			return r.fault
		}
		return nil
	}
	if int64(cap(r.scratch)) < size {
		r.scratch = make([]byte, size)
	}
	r.buf = r.scratch[:size]
	return nil
}
