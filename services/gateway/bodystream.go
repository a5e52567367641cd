package gateway

import (
	"context"
	"io"

	"google.golang.org/grpc"

	"kvstore/components/key"
)

// bodyStream is the client's end of a call that takes a stream (grpc.ClientStreamingServer): its first message is made of a request's headers, the
// others of the chunks of its body.
type bodyStream[Req, Resp any] struct {
	grpc.ServerStream
	q     *request
	first *Req                       // until it is given
	left  int64                      // of the body; what first holds is not
	fill  func(m *Req, chunk []byte) // puts a chunk into a message
	msg   Req
	buf   *[]byte
	resp  *Resp
}

// Context implements grpc.ServerStream.
func (b *bodyStream[Req, Resp]) Context() context.Context { return b.q.ctx }

// Recv implements grpc.ClientStreamingServer. The chunk of all messages but the first is good until the next call.
func (b *bodyStream[Req, Resp]) Recv() (*Req, error) {
	if m := b.first; m != nil {
		b.first = nil
		return m, nil
	}
	if b.left == 0 {
		return nil, io.EOF
	}
	if b.buf == nil {
		b.buf = chunks.Get().(*[]byte)
	}
	chunk := (*b.buf)[:min(b.left, key.MaxChunk)]
	n, err := b.q.readFull(chunk)
	b.left -= int64(n)
	if err != nil {
		return nil, bodyFault(err, b.left)
	}
	b.fill(&b.msg, chunk)
	return &b.msg, nil
}

// SendAndClose implements grpc.ClientStreamingServer.
func (b *bodyStream[Req, Resp]) SendAndClose(resp *Resp) error {
	b.resp = resp
	return nil
}

// free gives the memory of chunks back.
func (b *bodyStream[Req, Resp]) free() {
	if b.buf != nil {
		chunks.Put(b.buf)
	}
}
