package client

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/zeebo/xxh3"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// chunkBytes is the size of the pieces in which values travel; the server's limit is 1 MiB.
const chunkBytes = 256 << 10

func newBytesReader(b []byte) io.Reader { return bytes.NewReader(b) }

// ValueReader reads one value as it comes from the server. Close it.
type ValueReader struct {
	// Entry is everything about the key but its value.
	Entry Entry

	stream kvstorev1.KVService_GetStreamClient
	cancel context.CancelFunc
	chunk  []byte // received, not yet read
	left   int64  // bytes of the value still to be received
	sum    *xxh3.Hasher
	err    error // how reading ended
}

// GetStream opens a value of any size for reading; ErrNotFound when the key is absent. Memory use is a few chunks.
// Errors while reading are returned by Read, among them ErrDataLoss when the value does not match its checksum; a
// reader that has not returned io.EOF has not brought the whole value. ctx ends the reading too.
func (c *Client) GetStream(ctx context.Context, key string) (*ValueReader, error) {
	req := &kvstorev1.GetStreamRequest{Keyspace: c.keyspace, Namespace: c.namespace, Key: []byte(key)}
	var r *ValueReader
	ctx, span := c.begin(ctx, "get stream", c.keyspace, c.namespace) // until the value comes
	err := c.retry(ctx, reads, "get", func() error {
		sctx, cancel := context.WithCancel(ctx)
		stream, err := c.pick().bulkKV.GetStream(sctx, req)
		if err == nil {
			var first *kvstorev1.GetStreamResponse
			if first, err = stream.Recv(); err == nil {
				c.clock.learn(first.Header)
				e := fromEntry(first.GetEntry())
				e.Key = key
				r = &ValueReader{Entry: e, stream: stream, cancel: cancel, left: e.Size}
				if e.Checksum != 0 {
					r.sum = xxh3.New()
				}
				return nil
			}
		}
		cancel()
		return endedEarly(err, reads)
	})
	tracing.End(span, err)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Read reads the next bytes of the value.
func (r *ValueReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if r.err == nil {
			r.err = r.fetch()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// fetch receives the next chunk, or tells how the value ended.
func (r *ValueReader) fetch() error {
	if r.left == 0 {
		if r.sum != nil && r.sum.Sum64() != r.Entry.Checksum {
			return &kverr.Error{Kind: kverr.DataLoss, Op: "get", Message: "the value does not match its checksum"}
		}
		return io.EOF
	}
	m, err := r.stream.Recv()
	if err != nil {
		return withOp(endedEarly(err, reads), "get")
	}
	r.chunk = m.GetChunk()
	if r.left -= int64(len(r.chunk)); r.left < 0 {
		return &kverr.Error{Kind: kverr.Unknown, Op: "get", Message: "the server sent more bytes than the value has"}
	}
	if r.sum != nil {
		_, _ = r.sum.Write(r.chunk) // never fails
	}
	return nil
}

// Close ends the reading. It always succeeds.
func (r *ValueReader) Close() error {
	r.cancel()
	return nil
}

// endedEarly is fromRPC for a stream that had more to bring: its orderly end is an error too.
func endedEarly(err error, eff effect) error {
	if errors.Is(err, io.EOF) {
		return &kverr.Error{Kind: kverr.Unknown, Message: "the server ended the stream early", Err: io.ErrUnexpectedEOF}
	}
	return fromRPC(err, eff)
}

// PutStream stores a value of exactly size bytes from r; memory use is a few chunks. It is repeated after a lost
// connection only when r is an io.Seeker, from where r stood at first; otherwise it fails with ErrOutcomeUnknown then.
// A reader that ends early or fails stores nothing.
func (c *Client) PutStream(ctx context.Context, key string, r io.Reader, size int64, o *PutOptions) (_ PutResult, err error) {
	const op = "put stream"
	ctx, span := c.begin(ctx, op, c.keyspace, c.namespace)
	defer func() { tracing.End(span, err) }()
	if size < 0 {
		return PutResult{}, invalid(op, "size is %d", size)
	}
	head := &kvstorev1.PutStreamRequest_Head{
		Keyspace: c.keyspace, Namespace: c.namespace, Put: o.proto(key, nil), Size: size, Identity: c.identity(),
	}
	rewind := rewinder(r)
	var res PutResult
	tries := 0
	a := attempts{effect: writes, single: rewind == nil}
	for {
		if tries > 0 {
			if err := rewind(); err != nil {
				return PutResult{}, &kverr.Error{Kind: kverr.OutcomeUnknown, Op: op, Message: "cannot rewind the reader", Err: err}
			}
		}
		tries++
		err := c.putStream(ctx, head, r, &res)
		if err == nil {
			return res, nil
		}
		if err := a.next(ctx, c.core, err); err != nil {
			return PutResult{}, withOp(err, op)
		}
	}
}

// rewinder returns how to bring r back to where it stands now; nil when it cannot.
func rewinder(r io.Reader) func() error {
	s, ok := r.(io.Seeker)
	if !ok {
		return nil
	}
	at, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil
	}
	return func() error {
		_, err := s.Seek(at, io.SeekStart)
		return err
	}
}

// putStream is one try of PutStream.
func (c *Client) putStream(ctx context.Context, head *kvstorev1.PutStreamRequest_Head, r io.Reader, res *PutResult) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a try that fails on our side must not look complete to the server
	stream, err := c.pick().bulkKV.PutStream(ctx)
	if err != nil {
		return fromRPC(err, writes)
	}
	err = stream.Send(&kvstorev1.PutStreamRequest{Part: &kvstorev1.PutStreamRequest_Head_{Head: head}})
	buf := make([]byte, min(head.Size, chunkBytes))
	for left := head.Size; left > 0 && err == nil; {
		p := buf[:min(left, chunkBytes)]
		if _, rerr := io.ReadFull(r, p); rerr != nil {
			return &kverr.Error{Kind: kverr.InvalidArgument, Message: "reading the value failed; nothing is stored", Err: rerr}
		}
		left -= int64(len(p))
		err = stream.Send(&kvstorev1.PutStreamRequest{Part: &kvstorev1.PutStreamRequest_Chunk{Chunk: p}})
	}
	if err != nil && !errors.Is(err, io.EOF) { // after io.EOF CloseAndRecv tells why
		return fromRPC(err, writes)
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return endedEarly(err, writes)
	}
	c.clock.learn(resp.Header)
	*res = fromPut(resp.Result)
	return nil
}
