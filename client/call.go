package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// call is one operation on its way through a pipe. Its caller owns it; from the moment it is enqueued until done is
// signalled or pipe.abandon has succeeded, the pipe may write its outcome.
type call struct {
	keyspace  string
	namespace string
	write     bool
	notAfter  int64  // server milliseconds, once its first frame has fixed it
	slot      uint64 // id of the operation under way

	op  kvstorev1.PipelineRequest_Op // points at one of the following
	put struct {
		kvstorev1.PipelineRequest_Op_Put
		op kvstorev1.PutOp
	}
	get struct {
		kvstorev1.PipelineRequest_Op_Get
		op kvstorev1.GetOp
	}
	del struct {
		kvstorev1.PipelineRequest_Op_Delete
		op kvstorev1.DeleteOp
	}
	key []byte // the operation's key, kept for its capacity

	done    chan struct{} // capacity 1: the outcome is in
	putOut  PutResult
	getOut  Entry
	delOut  DeleteResult
	failure error
}

var calls = sync.Pool{New: func() any {
	c := &call{done: make(chan struct{}, 1)}
	c.put.Put, c.get.Get, c.del.Delete = &c.put.op, &c.get.op, &c.del.op
	return c
}}

// newCall takes a call from the pool. Give it back with free.
func (c *Client) newCall(key string) *call {
	cl := calls.Get().(*call)
	cl.keyspace, cl.namespace = c.keyspace, c.namespace
	cl.key = append(cl.key[:0], key...)
	return cl
}

// free gives the call back; nobody may use it any more.
func (c *call) free() {
	c.put.op.Value, c.put.op.Metadata, c.put.op.Tags, c.put.op.Precondition = nil, nil, nil, nil
	c.put.op.ContentType, c.put.op.Encoding, c.put.op.TtlMs, c.put.op.KeepTtl = "", "", 0, false
	c.get.op.MetadataOnly = false
	c.del.op.Precondition = nil
	c.write, c.notAfter, c.slot, c.op.Op, c.op.IdentityOp, c.op.Traceparent, c.op.TimeoutMs = false, 0, 0, nil, 0, "", 0
	c.putOut, c.getOut, c.delOut, c.failure = PutResult{}, Entry{}, DeleteResult{}, nil
	calls.Put(c)
}

// limit tells the server for how long the caller waits: what it cannot begin in that time it leaves.
func (c *call) limit(ctx context.Context) {
	c.op.TimeoutMs = 0
	if deadline, ok := ctx.Deadline(); ok {
		c.op.TimeoutMs = max(1, (time.Until(deadline) + time.Millisecond - 1).Milliseconds())
	}
}

// finish decodes the outcome and signals the caller.
func (c *call) finish(r rawResult) {
	c.failure = c.decode(r)
	c.done <- struct{}{}
}

// fail signals the caller that there is no outcome.
func (c *call) fail(err error) {
	c.failure = err
	c.done <- struct{}{}
}

func (c *call) decode(r rawResult) error {
	want := protowire.Number(resultError)
	switch c.op.Op.(type) {
	case *kvstorev1.PipelineRequest_Op_Put:
		want = resultPut
	case *kvstorev1.PipelineRequest_Op_Get:
		want = resultGet
	case *kvstorev1.PipelineRequest_Op_Delete:
		want = resultDelete
	}
	var err error
	switch {
	case r.field == resultError:
		var item kvstorev1.Error
		if err = item.UnmarshalVT(r.body); err == nil {
			return fromItem(&item)
		}
	case r.field != want:
		err = errFrame
	case r.field == resultPut:
		c.putOut, err = decodePut(r.body)
	case r.field == resultDelete:
		c.delOut, err = decodeDelete(r.body)
	case r.field == resultGet:
		c.getOut, err = decodeEntry(r.body)
	}
	if err != nil {
		return &kverr.Error{Kind: kverr.Unknown, Message: "the server's reply makes no sense", Err: err}
	}
	return nil
}

func decodePut(b []byte) (out PutResult, err error) {
	err = eachField(b, func(tag uint64, v uint64, _ []byte) {
		switch tag {
		case 1<<3 | varint:
			out.Version = v
		case 2<<3 | varint:
			out.Created = v != 0
		}
	})
	return out, err
}

func decodeDelete(b []byte) (out DeleteResult, err error) {
	err = eachField(b, func(tag uint64, v uint64, _ []byte) {
		switch tag {
		case 1<<3 | varint:
			out.Deleted = v != 0
		case 2<<3 | varint:
			out.Revision = v
		}
	})
	return out, err
}

// decodeEntry decodes an Entry but for its key, which the caller knows; one with metadata or tags goes through the
// generated code. The value is a copy.
func decodeEntry(b []byte) (out Entry, err error) {
	maps := false
	err = eachField(b, func(tag uint64, v uint64, body []byte) {
		switch tag {
		case 2<<3 | lenType:
			out.Value = append([]byte{}, body...)
		case 3<<3 | varint:
			out.Version = v
		case 4<<3 | varint:
			out.Created = fromMS(int64(v))
		case 5<<3 | varint:
			out.Updated = fromMS(int64(v))
		case 6<<3 | varint:
			out.Expires = fromMS(int64(v))
		case 7<<3 | lenType:
			out.ContentType = string(body)
		case 8<<3 | lenType:
			out.Encoding = string(body)
		case 9<<3 | lenType, 10<<3 | lenType:
			maps = true
		case 11<<3 | varint:
			out.Size = int64(v)
		case 12<<3 | fixed64:
			out.Checksum = v
		}
	})
	if err != nil || !maps {
		return out, err
	}
	var e kvstorev1.Entry
	if err := e.UnmarshalVT(b); err != nil {
		return Entry{}, err
	}
	e.Key = nil
	return fromEntry(&e), nil
}
