package dataplane

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// valueCall is a call whose caller waits, and may give up: after that nothing of the caller's is touched.
type valueCall struct {
	done chan *kverr.Error // room for one

	mu     sync.Mutex
	gone   bool        // the caller gave up; guarded by mu, as is all below
	values [][]byte    // put_values
	refs   []shard.Ref // put_values: the outcome
	ref    shard.Ref   // read_part
	off    int64       // read_part
	p      []byte      // read_part: where the part goes
}

func (v *valueCall) finish(err *kverr.Error) { v.done <- err }

// append encodes the call, unless its caller has gone.
func (v *valueCall) append(w *buffer, kind uint8) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return false
	}
	if kind == callPutValues {
		for _, value := range v.values {
			w.bytes(1, value)
		}
		return true
	}
	w.b = shard.AppendRefs(w.b, 1, []shard.Ref{v.ref})
	w.number(2, uint64(v.off))
	w.number(3, uint64(len(v.p)))
	return true
}

// takeRefs takes the references of values. If nobody waits for them they are given back.
func (v *valueCall) takeRefs(b []byte, r *shardRoute) bool {
	refs, ok := decodeRefs(b, 1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !ok || len(refs) != len(v.values) {
		return false
	}
	if v.refs = refs; v.gone {
		r.client.DropValues(r.id, refs...)
	}
	return true
}

func (v *valueCall) takePart(b []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(b) != len(v.p) {
		return false
	}
	if !v.gone {
		copy(v.p, b)
	}
	return true
}

// ask sends the call and waits for its outcome.
func (c *Client) ask(ctx context.Context, shardID string, kind uint8, size int, v *valueCall) *kverr.Error {
	v.done = make(chan *kverr.Error, 1)
	k := newCall()
	k.kind, k.value, k.size = kind, v, size
	k.deadline, k.until = c.times(ctx)
	var one callList
	one.add(k)
	c.route(shardID).send(one)
	select {
	case err := <-v.done:
		return err
	case <-ctx.Done():
	}
	v.mu.Lock()
	v.gone = true
	refs := v.refs
	v.mu.Unlock()
	if len(refs) > 0 {
		c.DropValues(shardID, refs...) // they came at the last moment
	}
	return kverr.From(ctx.Err())
}

// PutValues stores values apart from keys in one object.
func (c *Client) PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error) {
	total := 0
	lengths := make([]int64, len(values))
	for i, v := range values {
		total += len(v)
		lengths[i] = int64(len(v))
	}
	if total > maxInline {
		readers := func() io.Reader {
			all := make([]io.Reader, len(values))
			for i, v := range values {
				all[i] = bytes.NewReader(v)
			}
			return io.MultiReader(all...)
		}
		return c.writeValues(ctx, shardID, &dataplanev1.WriteValuesRequest_Head{Lengths: lengths}, readers, true)
	}
	v := &valueCall{values: values}
	if err := c.ask(ctx, shardID, callPutValues, total+16*len(values), v); err != nil {
		return nil, err
	}
	return v.refs, nil
}

// WriteValue stores one value of exactly size bytes from a stream, as an object of its own.
func (c *Client) WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error) {
	refs, err := c.writeValues(ctx, shardID, &dataplanev1.WriteValuesRequest_Head{Lengths: []int64{size}, OwnObject: true}, func() io.Reader { return r }, false)
	if err != nil {
		return shard.Ref{}, err
	}
	return refs[0], nil
}

// DropValues gives up refs that no command will name. Those of a stream that is over went with it.
func (c *Client) DropValues(shardID string, refs ...shard.Ref) {
	r := c.route(shardID)
	t := r.target.Load()
	if t == nil || len(refs) == 0 {
		return
	}
	k := newCall()
	k.kind, k.refs, k.size, k.route = callDropValues, refs, 96*len(refs), r
	var one callList
	one.add(k)
	t.way.submit(t, one)
}

// ReadValue fills p from offset off of the value.
func (c *Client) ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error {
	if len(p) <= maxInline {
		return c.readPart(ctx, shardID, ref, off, p)
	}
	return c.retry(ctx, shardID, func(t *target) (bool, *kverr.Error) {
		if t.link != nil {
			return true, t.link.readValue(ctx, t, shardID, ref, off, p)
		}
		for len(p) > 0 {
			n := min(len(p), maxInline)
			if err := c.readPart(ctx, shardID, ref, off, p[:n]); err != nil {
				return false, kverr.From(err)
			}
			off += int64(n)
			p = p[n:]
		}
		return false, nil
	})
}

func (c *Client) readPart(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error {
	if err := c.ask(ctx, shardID, callReadPart, 128+len(p), &valueCall{ref: ref, off: off, p: p}); err != nil {
		return err
	}
	return nil
}

// retry does something where a shard is, as often as it has moved or the connection broke meanwhile, within the caller's time and
// the budget. Do tells whether it may be done again.
func (c *Client) retry(ctx context.Context, shardID string, do func(*target) (again bool, err *kverr.Error)) error {
	_, until := c.times(ctx)
	r := c.route(shardID)
	for {
		t := r.target.Load()
		if t == nil {
			if err := c.ask(ctx, shardID, callAwait, 0, &valueCall{}); err != nil {
				return err
			}
			if t = r.target.Load(); t == nil {
				continue // it has gone again, and the next look for it takes its time
			}
		}
		again, err := do(t)
		if err == nil {
			r.works()
			return nil
		}
		if ctx.Err() != nil {
			return kverr.From(ctx.Err())
		}
		if err.Kind != kverr.Moved && err.Kind != kverr.Fenced && err.Kind != kverr.Unavailable {
			return err
		}
		r.lose(t)
		if !again || time.Now().UnixNano() >= until {
			return &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the connection to the shard's host broke; try again", RetryAfterMS: 100, Err: err}
		}
	}
}

// errBroken stands for a stream that ended without an answer.
var errBroken = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the host", Message: "the connection to the host broke", RetryAfterMS: 100}

// broken makes errBroken of what gRPC says of a stream, unless the host refused the request itself.
func broken(err error) *kverr.Error {
	switch e := kverr.From(err); e.Kind {
	case kverr.InvalidArgument, kverr.TooLarge, kverr.Unimplemented, kverr.PermissionDenied, kverr.Unauthenticated:
		return e
	}
	return errBroken
}

func (l *link) readValue(ctx context.Context, t *target, shardID string, ref shard.Ref, off int64, p []byte) *kverr.Error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.api.ReadValue(ctx, &dataplanev1.ReadValueRequest{
		Shard: shardID, Epoch: t.epoch, Part: &dataplanev1.ReadPart{Ref: protoRef(ref), Offset: off, Length: int64(len(p))},
	})
	if err != nil {
		return broken(err)
	}
	for len(p) > 0 {
		m, err := stream.Recv()
		switch {
		case err != nil:
			return broken(err)
		case m.Failure != nil:
			return failureFrom(m.Failure)
		case len(m.Chunk) > len(p):
			return kverr.New(kverr.Unknown, "read value", "the host sent more than was asked for")
		}
		p = p[copy(p, m.Chunk):]
	}
	return nil
}

// writeValues stores values by a stream of their own. The bytes of a reader that cannot be had again are not read before the host
// has agreed.
func (c *Client) writeValues(ctx context.Context, shardID string, head *dataplanev1.WriteValuesRequest_Head, open func() io.Reader, repeatable bool) (refs []shard.Ref, err error) {
	err = c.retry(ctx, shardID, func(t *target) (bool, *kverr.Error) {
		if t.link == nil {
			return false, errNeedsPort(t)
		}
		head.Session, head.Shard, head.Epoch = t.link.session, shardID, t.epoch
		var begun bool
		var failure *kverr.Error
		refs, begun, failure = t.link.writeValues(ctx, head, open)
		return repeatable || !begun, failure
	})
	return refs, err
}

// writeValues writes once. Begun tells that bytes were read.
func (l *link) writeValues(ctx context.Context, head *dataplanev1.WriteValuesRequest_Head, open func() io.Reader) (refs []shard.Ref, begun bool, _ *kverr.Error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.api.WriteValues(ctx)
	if err != nil {
		return nil, false, broken(err)
	}
	if err := stream.Send(&dataplanev1.WriteValuesRequest{Part: &dataplanev1.WriteValuesRequest_Head_{Head: head}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, false, broken(err)
	}
	first, err := stream.Recv()
	switch {
	case err != nil:
		return nil, false, broken(err)
	case first.Failure != nil:
		return nil, false, failureFrom(first.Failure)
	}
	var left int64
	for _, n := range head.Lengths {
		left += n
	}
	in := open()
	buf := make([]byte, min(left, maxInline))
	for left > 0 {
		chunk := buf[:min(left, maxInline)]
		if _, err := io.ReadFull(in, chunk); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, true, kverr.New(kverr.InvalidArgument, "write value", "the bytes ended before the %d that were told of", head.Lengths[0])
			}
			return nil, true, kverr.From(err)
		}
		left -= int64(len(chunk))
		if err := stream.Send(&dataplanev1.WriteValuesRequest{Part: &dataplanev1.WriteValuesRequest_Chunk{Chunk: chunk}}); err != nil {
			break // the answer says why
		}
	}
	answer, err := stream.Recv()
	switch {
	case err != nil:
		return nil, true, broken(err)
	case answer.Failure != nil:
		return nil, true, failureFrom(answer.Failure)
	case len(answer.Refs) != len(head.Lengths):
		return nil, true, kverr.New(kverr.Unknown, "write values", "the host told of %d values, not %d", len(answer.Refs), len(head.Lengths))
	}
	for _, r := range answer.Refs {
		refs = append(refs, refOf(r))
	}
	// Tell the host that they have come, and wait until it knows.
	if err = stream.CloseSend(); err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		l.client.DropValues(head.Shard, refs...)
		return nil, true, broken(err)
	}
	return refs, true, nil
}
