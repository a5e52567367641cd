package frontend

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// GetStream reads a value of any size with a few chunks in memory. A value of up to chunkBytes is verified before its
// first byte leaves. A longer one is read twice: once to verify it, once to send it, verified again on the way, so that even
// a byte that turned between the two ends the stream with DATA_LOSS instead of OK.
func (k *kvService) GetStream(req *kvv1.GetStreamRequest, stream grpc.ServerStreamingServer[kvv1.GetStreamResponse]) error {
	ctx := stream.Context()
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return err
	}
	if err := checkKey("key", req.Key); err != nil {
		return err
	}
	sh := ns.ShardOf(req.Key)
	g := &valueReader{server: k.Server, stream: stream, sh: sh}
	var tried shard.Ref
	for range maxRereads {
		f, lost := k.lookUp(ctx, ns, sh, req.Key)
		if lost != nil {
			return lost
		}
		if !f.ok {
			return statusKeyAbsent
		}
		value := &f.entry.Value
		if err != nil && (err.Kind != kverr.DataLoss || value.Ref == tried) {
			return err
		}
		if !apart(value) {
			return g.send(&f, func() error { return g.sendChunks(value.Inline) })
		}
		tried = value.Ref
		if err = g.verify(tried); err == nil {
			return g.send(&f, func() error { return g.sendApart(ns, req.Key, tried) })
		}
	}
	return err
}

// valueReader is one GetStream on its way.
type valueReader struct {
	server *Server
	stream grpc.ServerStreamingServer[kvv1.GetStreamResponse]
	sh     *Shard
	buf    []byte // one chunk; after verify it holds the whole value when that fits
}

// verify reads the whole value once.
func (g *valueReader) verify(ref shard.Ref) *kverr.Error {
	return g.each(ref, func([]byte) error { return nil })
}

// each calls fn for every chunk, then verifies the checksum over all of them.
func (g *valueReader) each(ref shard.Ref, fn func(chunk []byte) error) *kverr.Error {
	if g.buf == nil {
		g.buf = make([]byte, min(ref.Length, chunkBytes))
	}
	if int64(cap(g.buf)) < min(ref.Length, chunkBytes) {
		g.buf = make([]byte, chunkBytes)
	}
	h := xxh3.New()
	for off := int64(0); off < ref.Length; {
		chunk := g.buf[:min(ref.Length-off, chunkBytes)]
		if err := g.server.shards.ReadValue(g.stream.Context(), g.sh.ID, ref, off, chunk); err != nil {
			return lostValue(err)
		}
		_, _ = h.Write(chunk) // never fails
		if err := fn(chunk); err != nil {
			return kverr.From(err)
		}
		off += int64(len(chunk))
	}
	if h.Sum64() != ref.Checksum {
		return errDamaged
	}
	return nil
}

// send sends the entry without its value, then the value.
func (g *valueReader) send(f *found, value func() error) error {
	r := &getReply{}
	fillEntry(&r.entry, &f.entry)
	g.server.fillHeader(&r.header, r.token[:0], g.sh, f.revision)
	if err := g.stream.Send(&kvv1.GetStreamResponse{Header: &r.header, Part: &kvv1.GetStreamResponse_Entry{Entry: &r.entry}}); err != nil {
		return err
	}
	return value()
}

func (g *valueReader) sendChunks(b []byte) error {
	for len(b) > 0 {
		chunk := b[:min(len(b), chunkBytes)]
		b = b[len(chunk):]
		if err := g.stream.Send(&kvv1.GetStreamResponse{Part: &kvv1.GetStreamResponse_Chunk{Chunk: chunk}}); err != nil {
			return err
		}
	}
	return nil
}

// sendApart sends a value that was verified.
func (g *valueReader) sendApart(ns *Namespace, k []byte, ref shard.Ref) error {
	if ref.Length <= chunkBytes {
		return g.sendChunks(g.buf[:ref.Length]) // still there from verify
	}
	err := g.each(ref, g.sendChunks)
	switch {
	case err == nil:
		return nil
	case err.Kind == kverr.DataLoss && g.rewritten(ns, k, ref):
		return kverr.Busy(kverr.Unavailable, time.Millisecond, "the key was written while its old value was sent; read it again")
	}
	return err
}

// rewritten tells whether a key no longer has the value that was being read.
func (g *valueReader) rewritten(ns *Namespace, k []byte, ref shard.Ref) bool {
	f, err := g.server.lookUp(g.stream.Context(), ns, g.sh, k)
	return err == nil && (!f.ok || f.entry.Value.Ref != ref)
}

// PutStream stores a value of any size with a few chunks in memory. The commit names the value only once size and
// checksum were found right.
func (k *kvService) PutStream(stream grpc.ClientStreamingServer[kvv1.PutStreamRequest, kvv1.PutStreamResponse]) error {
	ctx := stream.Context()
	first, rerr := stream.Recv()
	if rerr != nil {
		if errors.Is(rerr, io.EOF) {
			return kverr.Invalid("head", "is missing; the first message must be the head")
		}
		return rerr
	}
	head := first.GetHead()
	if head == nil {
		return kverr.Invalid("head", "is missing; the first message must be the head")
	}
	ns, err := k.keyNamespace(ctx, head.Keyspace, head.Namespace)
	if err != nil {
		return err
	}
	id, err := k.identityOf(head.Identity)
	if err != nil {
		return within("head", err)
	}
	put := putOf(head.Put)
	if err := k.checkPutStream(&put, head.Size); err != nil {
		return within("head", err)
	}
	ns.applyDefaults(&put)
	sh := ns.place(&put)
	if put.Value, err = k.receiveValue(stream, sh, head.Size, head.Checksum); err != nil {
		return err
	}
	result, revision, sh, err := k.put(ctx, ns, put, id)
	if err != nil {
		return err
	}
	r := &putReply{}
	r.result.Version, r.result.Created = result.Version, !result.Existed
	k.fillHeader(&r.header, r.token[:0], sh, revision)
	return stream.SendAndClose(&kvv1.PutStreamResponse{Header: &r.header, Result: &r.result})
}

func (k *kvService) checkPutStream(put *shard.Put, size int64) *kverr.Error {
	if n := len(put.Value.Inline); n > 0 {
		return kverr.Invalid("put.value", "has %d bytes; in a PutStream the value comes in chunks", n)
	}
	switch {
	case size < 0:
		return kverr.Invalid("size", "is %d, must not be negative", size)
	case size > k.cfg.MaxValueBytes:
		return kverr.TooBig("size", size, k.cfg.MaxValueBytes, "bytes")
	}
	return within("put", checkPut(put))
}

// receiveValue takes the value from the stream: short ones into memory, longer ones straight into an object.
func (k *kvService) receiveValue(stream grpc.ClientStreamingServer[kvv1.PutStreamRequest, kvv1.PutStreamResponse], sh *Shard, size int64, checksum uint64) (shard.Value, *kverr.Error) {
	in := &chunkReader{stream: stream, left: size}
	if size <= chunkBytes {
		value := make([]byte, size)
		if _, err := io.ReadFull(in, value); err != nil {
			return shard.Value{}, in.fault(err)
		}
		if err := in.end(); err != nil {
			return shard.Value{}, err
		}
		if sum := xxh3.Hash(value); checksum != 0 && sum != checksum {
			return shard.Value{}, wrongChecksum(checksum, sum)
		}
		return shard.Value{Inline: value}, nil
	}
	ref, err := k.shards.WriteValue(stream.Context(), sh.ID, size, in)
	if err != nil {
		return shard.Value{}, in.fault(err)
	}
	fault := in.end()
	if fault == nil && checksum != 0 && ref.Checksum != checksum {
		fault = wrongChecksum(checksum, ref.Checksum)
	}
	if fault != nil {
		k.shards.DropValues(sh.ID, ref)
		return shard.Value{}, fault
	}
	return shard.Value{Ref: ref}, nil
}

func wrongChecksum(want, got uint64) *kverr.Error {
	return kverr.Invalid("head.checksum", "is %016x, but the bytes received have %016x", want, got)
}

// chunkReader reads the chunks of a PutStream. It ends with io.EOF after exactly the bytes that the head told of.
type chunkReader struct {
	stream grpc.ClientStreamingServer[kvv1.PutStreamRequest, kvv1.PutStreamResponse]
	rest   []byte // of the chunk received last
	left   int64  // bytes still to come, rest included
	err    *kverr.Error
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for len(r.rest) == 0 {
		if err := r.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.left -= int64(n)
	return n, nil
}

// receive takes the next chunk.
func (r *chunkReader) receive() error {
	msg, err := r.stream.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			r.err = kverr.Invalid("chunk", "is missing: the stream ended %d bytes before head.size", r.left)
			return r.err
		}
		r.err = kverr.From(err)
		return r.err
	}
	part, ok := msg.Part.(*kvv1.PutStreamRequest_Chunk)
	switch {
	case !ok:
		r.err = kverr.Invalid("part", "is not a chunk; after the head only chunks may come")
	case len(part.Chunk) > chunkBytes:
		r.err = kverr.TooBig("chunk", len(part.Chunk), chunkBytes, "bytes")
	case int64(len(part.Chunk)) > r.left:
		r.err = kverr.Invalid("chunk", "brings more bytes than head.size: %d too many", int64(len(part.Chunk))-r.left)
	default:
		r.rest = part.Chunk
		return nil
	}
	return r.err
}

// end checks that nothing comes after the value.
func (r *chunkReader) end() *kverr.Error {
	for {
		msg, err := r.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return kverr.From(err)
		case len(msg.GetChunk()) > 0 || msg.GetHead() != nil:
			return kverr.Invalid("chunk", "brings more bytes than head.size")
		}
	}
}

// fault is why reading failed: the client's fault when there was one, otherwise err.
func (r *chunkReader) fault(err error) *kverr.Error {
	if r.err != nil {
		return r.err
	}
	return kverr.From(fmt.Errorf("receive value: %w", err))
}
