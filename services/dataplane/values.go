package dataplane

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// maxValue bounds one value of a stream of its own: the largest block with the table behind it.
const maxValue = key.MaxBlockConfig + 1<<20

// maxPacked bounds the values that WriteValues packs into one object, which it holds in memory.
const maxPacked = key.MaxValue + 1<<20

// WriteValues stores values that are too long for an Exchange. It answers the head before the chunks come, so that whoever sends
// them can still go elsewhere when the shard has moved.
func (s *Server) WriteValues(stream grpc.BidiStreamingServer[dataplanev1.WriteValuesRequest, dataplanev1.WriteValuesResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	head := first.GetHead()
	ses, total, failure := s.admit(head)
	if failure == nil {
		if err := stream.Send(&dataplanev1.WriteValuesResponse{}); err != nil {
			return err
		}
		var refs []shard.Ref
		in := &chunks{stream: stream, left: total}
		if refs, failure = s.storeChunks(stream.Context(), head, in); failure == nil {
			failure = ses.hold(head.Shard, refs)
		}
		if in.err != nil {
			return in.err
		}
		if failure == nil {
			return s.handOver(stream, ses, head.Shard, refs)
		}
	}
	return stream.Send(&dataplanev1.WriteValuesResponse{Failure: failureOf(failure)})
}

// admit checks a head and finds its session.
func (s *Server) admit(head *dataplanev1.WriteValuesRequest_Head) (ses *session, total int64, _ *kverr.Error) {
	if head == nil {
		return nil, 0, kverr.Invalid("head", "is missing; the first message must be the head")
	}
	most := int64(maxPacked)
	if head.OwnObject {
		most = maxValue
	}
	for _, n := range head.Lengths {
		if n < 0 || n > most || total+n > most {
			return nil, 0, kverr.TooBig("lengths", total+max(n, 0), most, "bytes")
		}
		total += n
	}
	if len(head.Lengths) == 0 || head.OwnObject && len(head.Lengths) != 1 {
		return nil, 0, kverr.Invalid("lengths", "has %d values; it must be at least one, exactly one with own_object", len(head.Lengths))
	}
	if ses = s.sessionOf(head.Session); ses == nil {
		return nil, 0, errSessionOver
	}
	if s.stale(&route{shard: head.Shard, epoch: head.Epoch}) {
		return nil, 0, errMoved
	}
	if epoch, _ := s.host.Epoch(head.Shard); epoch == 0 {
		// It may have to be opened; the host says no before bytes are sent for nothing.
		ctx, cancel := s.patient(s.ctx, 0)
		defer cancel()
		if err := s.open(ctx, head.Shard); err != nil {
			return nil, 0, err
		}
	}
	return ses, total, nil
}

// open waits until a shard is served here.
func (s *Server) open(ctx context.Context, shardID string) *kverr.Error {
	done := make(chan error, 1)
	q := &shard.Query{Op: shard.QueryScope, Prompt: &shard.BlockQuery{}, Done: func(_ *shard.Query, err error) { done <- err }}
	s.host.Read(ctx, shardID, q)
	select {
	case err := <-done:
		return kverr.From(err)
	case <-ctx.Done():
		return kverr.From(ctx.Err())
	}
}

// storeChunks stores what comes. Values that are packed with those of others are in memory first.
func (s *Server) storeChunks(ctx context.Context, head *dataplanev1.WriteValuesRequest_Head, in *chunks) ([]shard.Ref, *kverr.Error) {
	if head.OwnObject {
		ref, err := s.host.WriteValue(ctx, head.Shard, head.Lengths[0], in)
		if err != nil {
			return nil, kverr.From(err)
		}
		return []shard.Ref{ref}, nil
	}
	values := make([][]byte, len(head.Lengths))
	for i, n := range head.Lengths {
		values[i] = make([]byte, n)
		if _, err := io.ReadFull(in, values[i]); err != nil {
			return nil, kverr.From(err)
		}
	}
	refs, err := s.host.PutValues(ctx, head.Shard, values...)
	return refs, kverr.From(err)
}

// handOver sends references and waits until the client has them. If it has not, nobody will name them.
func (s *Server) handOver(stream grpc.BidiStreamingServer[dataplanev1.WriteValuesRequest, dataplanev1.WriteValuesResponse], ses *session, shardID string, refs []shard.Ref) error {
	resp := &dataplanev1.WriteValuesResponse{Refs: protoRefs(refs)}
	err := stream.Send(resp)
	if err == nil {
		if _, err = stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = kverr.Invalid("chunk", "brings more bytes than lengths tells")
		}
	}
	ses.drop(shardID, refs)
	return err
}

// chunks reads the bytes of a WriteValues.
type chunks struct {
	stream grpc.BidiStreamingServer[dataplanev1.WriteValuesRequest, dataplanev1.WriteValuesResponse]
	rest   []byte
	left   int64 // bytes still to come, rest included
	err    error // why they do not: the stream is broken
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	for len(c.rest) == 0 {
		m, err := c.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			c.err = kverr.Invalid("chunk", "is missing: the stream ended %d bytes before all had come", c.left)
		case err != nil:
			c.err = err
		case m.GetHead() != nil || int64(len(m.GetChunk())) > c.left:
			c.err = kverr.Invalid("chunk", "brings more bytes than lengths tells")
		}
		if c.err != nil {
			return 0, c.err
		}
		c.rest = m.GetChunk()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	c.left -= int64(n)
	return n, nil
}

// ReadValue sends a part of a value in chunks.
func (s *Server) ReadValue(req *dataplanev1.ReadValueRequest, stream grpc.ServerStreamingServer[dataplanev1.ReadValueResponse]) error {
	ref, length := refOf(req.GetPart().GetRef()), req.GetPart().GetLength()
	off := req.GetPart().GetOffset()
	switch {
	case ref.Object == (shard.ObjectID{}) || off < 0 || length < 0 || off > ref.Length || length > ref.Length-off:
		return kverr.Invalid("part", "is not a part of a value")
	case s.stale(&route{shard: req.Shard, epoch: req.Epoch}):
		return stream.Send(&dataplanev1.ReadValueResponse{Failure: failureOf(errMoved)})
	}
	buf := make([]byte, min(length, maxInline))
	for length > 0 {
		chunk := buf[:min(length, maxInline)]
		if err := s.host.ReadValue(stream.Context(), req.Shard, ref, off, chunk); err != nil {
			return stream.Send(&dataplanev1.ReadValueResponse{Failure: failureOf(kverr.From(err))})
		}
		if err := stream.Send(&dataplanev1.ReadValueResponse{Chunk: chunk}); err != nil {
			return err
		}
		off += int64(len(chunk))
		length -= int64(len(chunk))
	}
	return nil
}

func failureOf(e *kverr.Error) *dataplanev1.Failure {
	f := new(dataplanev1.Failure)
	if err := f.UnmarshalVT(shard.AppendFailure(nil, e)); err != nil {
		panic("dataplane: " + err.Error()) // both are of this release
	}
	return f
}

func failureFrom(f *dataplanev1.Failure) *kverr.Error {
	b, err := f.MarshalVT()
	if err != nil {
		return kverr.From(err)
	}
	e, err := shard.DecodeFailure(b)
	if err != nil {
		return kverr.From(err)
	}
	return e
}

func protoRefs(refs []shard.Ref) []*dataplanev1.Effect_Ref {
	out := make([]*dataplanev1.Effect_Ref, len(refs))
	for i := range refs {
		out[i] = protoRef(refs[i])
	}
	return out
}

func protoRef(r shard.Ref) *dataplanev1.Effect_Ref {
	return &dataplanev1.Effect_Ref{
		Epoch: r.Object.Epoch, Counter: r.Object.Counter, ObjectBytes: r.ObjectBytes, Offset: r.Offset, Length: r.Length, Checksum: r.Checksum,
	}
}

func refOf(r *dataplanev1.Effect_Ref) shard.Ref {
	return shard.Ref{
		Object: shard.ObjectID{Epoch: r.GetEpoch(), Counter: r.GetCounter()}, ObjectBytes: r.GetObjectBytes(), Offset: r.GetOffset(), Length: r.GetLength(),
		Checksum: r.GetChecksum(),
	}
}
