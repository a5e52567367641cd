package client

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// pipe is the Pipeline stream of one connection, opened when first used and again after it broke.
//
// Callers encode their operation into the last frame under mu and wait for their own signal. One goroutine, run, opens
// streams and sends: it takes the first frame whenever the stream has taken the one before, so frames grow while it is
// busy. One goroutine per stream, receive, decodes replies into the waiting calls. When the stream breaks, every
// outstanding call fails with errLost and its caller, who still has the value, enqueues it again under the same
// identity; only while there is a stream is anything queued, so that nothing old leaves late.
type pipe struct {
	co  *core
	kv  kvstorev1.KVServiceClient
	ctx context.Context // ends at close
	end context.CancelFunc
	wg  sync.WaitGroup

	free chan uint32   // slots that no operation holds: the bound on what is outstanding
	wake chan struct{} // capacity 1: there is work for run

	mu      sync.Mutex      // guards the following
	closed  bool            // by close
	up      bool            // there is a stream
	opening *opening        // somebody wants a stream, and there is none yet
	frames  []*requestFrame // to send; the last is open for more
	spare   []*requestFrame // sent, to be used again
	waiting bool            // run waits for wake
	slots   []slot
}

// opening is one attempt to open the stream.
type opening struct {
	done chan struct{} // closed when it has ended
	err  error         // then: why it failed; nil when it did not
}

// slot holds one outstanding operation. Its id on the wire is gen<<32 | index, so that a late or repeated reply meets
// no other operation.
type slot struct {
	gen  uint32
	busy bool  // the index is not in free
	call *call // nil while busy: its caller gave up, the reply is still due
}

// Bounds on what is kept for its buffers.
const (
	spareFrames     = 4
	spareFrameBytes = 2 * frameBytes
)

func newPipe(co *core, kv kvstorev1.KVServiceClient) *pipe {
	n := co.cfg.MaxOutstanding
	p := &pipe{co: co, kv: kv, free: make(chan uint32, n), wake: make(chan struct{}, 1), slots: make([]slot, n)}
	for i := range n {
		p.slots[i].gen = 1
		p.free <- uint32(i)
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.wg.Go(p.run)
	return p
}

// close ends the stream, fails what is outstanding and waits for the goroutines.
func (p *pipe) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
	p.wg.Wait()
}

var errClosed = &kverr.Error{Kind: kverr.Unavailable, Message: "not sent", Err: ErrClosed}

// do sends the operation and waits for its outcome, repeating it as attempts allow. The outcome is in c.
func (p *pipe) do(ctx context.Context, c *call) error {
	if p.co.tracer == nil {
		return p.tries(ctx, c)
	}
	span := c.follow(ctx, p.co)
	err := p.tries(ctx, c)
	tracing.End(span, err)
	return err
}

// tries is do, whoever follows.
func (p *pipe) tries(ctx context.Context, c *call) error {
	if c.write {
		c.op.IdentityOp = p.co.lastOp.Add(1)
	}
	a := attempts{effect: reads}
	if c.write {
		a.effect = writes
	}
	for {
		err := p.once(ctx, c)
		if err == nil {
			return nil
		}
		if err := a.next(ctx, p.co, err); err != nil {
			return err
		}
	}
}

// once is one try.
func (p *pipe) once(ctx context.Context, c *call) error {
	idx, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	if err := p.enqueue(ctx, c, idx); err != nil {
		p.free <- idx
		return err
	}
	done := ctx.Done()
	if done == nil {
		<-c.done
		return c.failure
	}
	select {
	case <-c.done:
		return c.failure
	case <-done:
	}
	if p.abandon(idx, c) {
		return fromContext(ctx, c.write)
	}
	<-c.done // the outcome is just being handed over
	return c.failure
}

// acquire takes a slot, waiting for one while MaxOutstanding operations are under way.
func (p *pipe) acquire(ctx context.Context) (uint32, error) {
	select {
	case idx := <-p.free:
		return idx, nil
	default:
	}
	select {
	case idx := <-p.free:
		return idx, nil
	case <-ctx.Done():
		return 0, fromContext(ctx, false)
	case <-p.ctx.Done():
		return 0, errClosed
	}
}

// enqueue puts the operation into slot idx and into a frame, once there is a stream.
func (p *pipe) enqueue(ctx context.Context, c *call, idx uint32) error {
	c.limit(ctx)
	p.mu.Lock()
	for !p.up {
		if p.closed {
			p.mu.Unlock()
			return errClosed
		}
		o := p.opening
		if o == nil {
			o = &opening{done: make(chan struct{})}
			p.opening = o
			p.poke()
		}
		p.mu.Unlock()
		select {
		case <-o.done:
			if o.err != nil {
				return o.err
			}
		case <-ctx.Done():
			return fromContext(ctx, false)
		case <-p.ctx.Done():
			return errClosed
		}
		c.limit(ctx)
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	s := &p.slots[idx]
	c.op.Id = uint64(s.gen)<<32 | uint64(idx)
	f := p.frameFor(c)
	if err := f.add(&c.op); err != nil {
		return &kverr.Error{Kind: kverr.InvalidArgument, Message: "cannot be encoded", Err: err}
	}
	if c.write {
		c.notAfter = f.notAfter
	}
	s.busy, s.call = true, c
	if p.waiting {
		p.waiting = false
		p.poke()
	}
	return nil
}

// poke wakes run; mu is held or not.
func (p *pipe) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// frameFor returns the frame that c joins; mu is held.
func (p *pipe) frameFor(c *call) *requestFrame {
	if n := len(p.frames); n > 0 && p.frames[n-1].fits(c) {
		return p.frames[n-1]
	}
	var f *requestFrame
	if n := len(p.spare); n > 0 {
		f, p.spare = p.spare[n-1], p.spare[:n-1]
	} else {
		f = new(requestFrame)
	}
	f.keyspace, f.namespace, f.client, f.traced = c.keyspace, c.namespace, p.co.id, p.co.tracer != nil
	f.ops, f.body = 0, f.body[:0]
	f.again, f.notAfter = c.notAfter != 0, c.notAfter
	if !f.again {
		f.notAfter = p.co.notAfter()
	}
	p.frames = append(p.frames, f)
	return f
}

// recycle keeps a frame's buffer for the next; mu is held.
func (p *pipe) recycle(f *requestFrame) {
	if len(p.spare) < spareFrames && cap(f.body) <= spareFrameBytes {
		p.spare = append(p.spare, f)
	}
}

// abandon takes c out of slot idx, so that its caller may go; false when its outcome is on the way already. The slot
// stays taken until the reply comes: the server is still busy with the operation.
func (p *pipe) abandon(idx uint32, c *call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := &p.slots[idx]; s.call == c {
		s.call = nil
		return true
	}
	return false
}

// run opens a stream when somebody wants one, and serves it until it breaks.
func (p *pipe) run() {
	for {
		select {
		case <-p.wake:
		case <-p.ctx.Done():
			return
		}
		p.mu.Lock()
		o := p.opening
		p.mu.Unlock()
		if o != nil {
			p.serve(o)
		}
	}
}

func (p *pipe) serve(o *opening) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	stream, err := p.kv.Pipeline(ctx)
	p.mu.Lock()
	p.opening = nil
	p.up = err == nil
	if err != nil {
		o.err = fromRPC(err, reads)
	}
	close(o.done)
	p.mu.Unlock()
	if err != nil {
		return
	}
	var received sync.WaitGroup
	received.Go(func() {
		err = p.receive(stream)
		cancel()
	})
	if sendErr := p.send(ctx, stream); sendErr != nil && !errors.Is(sendErr, io.EOF) {
		cancel() // not io.EOF, for which receive gets the reason: the stream is of no use any more
	}
	received.Wait()
	p.down(p.lost(err))
}

// lost is what calls get that were under way when the stream ended with err. They may have been applied, whatever the
// server says of the stream.
func (p *pipe) lost(err error) error {
	if p.ctx.Err() != nil {
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Message: "no reply before the end", Err: ErrClosed}
	}
	var e *kverr.Error
	if !errors.As(fromRPC(err, writes), &e) {
		return errLost // io.EOF: the server ended the stream in order
	}
	switch e.Kind {
	case kverr.Unavailable, kverr.OutcomeUnknown, kverr.Canceled, kverr.DeadlineExceeded:
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Message: errLost.Message, Err: err}
	}
	return e
}

// down fails everything under way.
func (p *pipe) down(err error) {
	p.mu.Lock()
	p.up = false
	for _, f := range p.frames {
		p.recycle(f)
	}
	p.frames = p.frames[:0]
	var orphans []*call
	var freed []uint32
	for i := range p.slots {
		if s := &p.slots[i]; s.busy {
			if s.call != nil {
				orphans = append(orphans, s.call)
			}
			*s = slot{gen: s.gen + 1}
			freed = append(freed, uint32(i))
		}
	}
	p.mu.Unlock()
	for _, c := range orphans {
		c.fail(err)
	}
	for _, idx := range freed {
		p.free <- idx
	}
}

// send hands frames to the stream until ctx ends or the stream breaks.
func (p *pipe) send(ctx context.Context, stream grpc.ClientStream) error {
	for {
		p.mu.Lock()
		for len(p.frames) == 0 {
			p.waiting = true
			p.mu.Unlock()
			select {
			case <-p.wake:
			case <-ctx.Done():
				return nil
			}
			// Let the callers that are about to run enqueue too: a reply frame wakes many, and the first of them has
			// woken us. Without this frames hold one operation or two (DESIGN.md).
			runtime.Gosched()
			p.mu.Lock()
		}
		f := p.frames[0]
		p.frames = slices.Delete(p.frames, 0, 1)
		p.mu.Unlock()
		if err := stream.SendMsg(f); err != nil {
			return err
		}
		p.mu.Lock()
		p.recycle(f)
		p.mu.Unlock()
	}
}

// receive hands replies to their callers until the stream ends.
func (p *pipe) receive(stream grpc.ClientStream) error {
	var f replyFrame
	var due []*call
	for {
		if err := stream.RecvMsg(&f); err != nil {
			return err
		}
		if f.serverMS > 0 {
			p.co.clock.learnMS(f.serverMS)
		}
		due = p.take(&f, due[:0])
		for i, c := range due {
			if c != nil {
				c.finish(f.results[i])
			}
		}
		clear(due)
	}
}

// take empties the slots of the results in f; calls[i] waits for f.results[i], or is nil.
func (p *pipe) take(f *replyFrame, calls []*call) []*call {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range f.results {
		idx, gen := uint32(r.id), uint32(r.id>>32)
		if uint64(idx) >= uint64(len(p.slots)) || !p.slots[idx].busy || p.slots[idx].gen != gen {
			calls = append(calls, nil) // repeated, or never asked for
			continue
		}
		calls = append(calls, p.slots[idx].call)
		p.slots[idx] = slot{gen: gen + 1}
		p.free <- idx // never blocks: it has room for all slots
	}
	return calls
}
