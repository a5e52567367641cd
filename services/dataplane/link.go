package dataplane

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// link is the one stream to a host, with its connection. It is opened once and does not come back when it breaks: a new one does.
//
// Callers encode into the last frame under mu. One goroutine sends: it takes the first frame whenever gRPC has taken the one before, so
// frames grow while it is busy. One goroutine receives and hands outcomes over. One looks now and then whether the host is still there.
type link struct {
	client  *Client
	address string
	ready   chan struct{} // closed when it is up or has failed
	err     *kverr.Error  // then: why it failed; nil when it is up

	ctx     context.Context
	cancel  context.CancelCauseFunc
	conn    *grpc.ClientConn
	api     dataplanev1.ShardServiceClient
	session []byte

	wake  chan struct{} // room for one: there is work for send
	heard atomic.Int64  // when a frame came last, nanoseconds since the Unix epoch

	mu       sync.Mutex
	up       bool       // guarded by mu, as is all below: calls are taken
	leaving  bool       // the host is closing: the stream ends when nothing is due
	frames   []outFrame // to send; the last is open for more
	made     uint64     // frames begun
	sent     uint64     // seq of the last frame handed to gRPC
	waiting  bool       // send waits for wake
	slots    []slot     // by id of the call
	spare    []uint32   // ids that no call has
	calls    int        // under way
	bytes    int        // size of them together
	targets  int        // made; each may become a route
	routes   uint32     // named, in the order in which their names go out
	busyFrom int64      // when calls went from 0 to 1
	pings    uint64
}

type outFrame struct {
	buffer
	seq uint64
}

// slot is a call under way.
type slot struct {
	call  *call
	size  int
	frame uint64 // that it went out with
	since int64  // when it was handed over, nanoseconds since the Unix epoch
}

// target is where calls to a shard go.
type target struct {
	way     way
	link    *link // nil: calls go by Invoke
	epoch   uint64
	address string
	named   bool   // the link has a number for it; guarded by link.mu, as is number
	number  uint32 // of the route on the link
}

// way is a link, or Invoke.
type way interface {
	// submit takes calls. What it does not take, because it cannot any more, it returns.
	submit(t *target, calls callList) callList
}

// link returns the link to an address, opening it if need be.
func (c *Client) link(ctx context.Context, address string) (*link, *kverr.Error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	l := c.links[address]
	if l == nil {
		l = &link{client: c, address: address, ready: make(chan struct{}), wake: make(chan struct{}, 1)}
		l.ctx, l.cancel = context.WithCancelCause(c.ctx)
		c.links[address] = l
		c.wait.Add(1)
		go func() {
			defer c.wait.Done()
			l.run()
		}()
	}
	c.mu.Unlock()
	select {
	case <-l.ready:
		return l, l.err
	case <-ctx.Done():
		return nil, kverr.Wrap(kverr.Unavailable, "connect to the host", ctx.Err())
	}
}

// run opens the link and serves it until it breaks.
func (l *link) run() {
	defer l.cancel(nil)
	stream, err := l.open()
	if tell := l.client.cfg.Events.Connected; tell != nil {
		tell(err)
	}
	if err != nil {
		l.gone()
		l.err = &kverr.Error{Kind: kverr.Unavailable, Op: "connect to the host", Message: "the host cannot be reached now", RetryAfterMS: 100, Err: err}
		close(l.ready)
		if l.conn != nil {
			_ = l.conn.Close()
		}
		return
	}
	l.heard.Store(time.Now().UnixNano())
	l.mu.Lock()
	l.up = true
	l.mu.Unlock()
	close(l.ready)
	var parts sync.WaitGroup
	parts.Go(func() {
		err := l.receive(stream)
		l.cancel(err)
	})
	parts.Go(l.watch)
	if err := l.send(stream); err != nil && !errors.Is(err, io.EOF) { // at io.EOF receive has the reason
		l.cancel(err)
	}
	parts.Wait()
	if tell := l.client.cfg.Events.Broke; tell != nil {
		tell()
	}
	l.gone()
	l.down(context.Cause(l.ctx))
	_ = l.conn.Close()
}

// open connects and greets.
func (l *link) open() (grpc.ClientStream, error) {
	var err error
	if l.conn, err = grpc.NewClient("passthrough:///"+l.address, dialOptions(l.client.cfg.TLS)...); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(l.client.cfg.OpenTimeout, func() { l.cancel(context.DeadlineExceeded) })
	l.api = dataplanev1.NewShardServiceClient(l.conn)
	stream, err := l.api.Exchange(l.ctx)
	if err != nil {
		return nil, err
	}
	var w buffer
	at := w.begin(fieldHello)
	w.number(1, protocolVersion)
	w.end(at)
	hello := w.take()
	if err := stream.SendMsg(&hello); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var f frame
	if err := stream.RecvMsg(&f); err != nil {
		return nil, err
	}
	defer f.buf.Free()
	p, _, ok := nextPart(f.buf.ReadOnlyData())
	if !ok || p.number != fieldWelcome {
		return nil, errors.New("the host did not welcome")
	}
	if p, _, ok = nextPart(p.bytes); !ok || p.number != 1 {
		return nil, errors.New("the host named no session")
	}
	l.session = append([]byte(nil), p.bytes...)
	if !timer.Stop() {
		return nil, context.Cause(l.ctx)
	}
	return stream, nil
}

// gone makes the client open another link to the address when it needs one.
func (l *link) gone() {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	if l.client.links[l.address] == l {
		delete(l.client.links, l.address)
	}
}

// target makes the link the place of a shard, or tells that it is not up any more.
func (l *link) target(epoch uint64) (*target, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up && l.targets >= maxRoutes {
		l.leave()
	}
	if !l.up {
		return nil, false
	}
	l.targets++
	return &target{way: l, link: l, address: l.address, epoch: epoch}, true
}

// leave takes no more calls and ends the stream when nothing is due. Mutex held.
func (l *link) leave() {
	l.up, l.leaving = false, true
	poke(l.wake)
}

var errCrowded = &kverr.Error{Kind: kverr.Overloaded, Op: "reach the shard", Message: "too much is under way to the shard's host", RetryAfterMS: 50}

// submit takes calls to a shard.
func (l *link) submit(t *target, calls callList) callList {
	var refused, awaiting, late callList
	now := time.Now()
	nano := now.UnixNano()
	l.mu.Lock()
	if !l.up {
		l.mu.Unlock()
		return calls
	}
	for k := calls.first; k != nil; {
		next := k.next
		switch {
		case k.kind == callAwait:
			awaiting.add(k)
		case k.late(nano): // it was long in finding the shard
			late.add(k)
		case l.calls > 0 && (l.calls >= maxCalls || l.bytes+k.size > maxBytes):
			refused.add(k)
		default:
			l.add(t, k, now)
		}
		k = next
	}
	if l.waiting && len(l.frames) > 0 {
		l.waiting = false
		poke(l.wake)
	}
	l.mu.Unlock()
	refused.release(errCrowded)
	awaiting.release(nil)
	late.release(errLate)
	return callList{}
}

// add encodes a call into the open frame. Mutex held.
func (l *link) add(t *target, k *call, now time.Time) {
	w := l.frame()
	if !t.named {
		t.named, t.number = true, l.routes
		l.routes++
		at := w.begin(fieldRoutes)
		w.number(1, uint64(t.number))
		w.text(2, k.route.id)
		w.number(3, t.epoch)
		w.end(at)
	}
	var id uint32
	if n := len(l.spare); n > 0 {
		id, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		id = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	k.target = t
	if !k.append(&w.buffer, id, t.number, now) || k.kind == callDropValues { // nothing comes back
		l.spare = append(l.spare, id)
		k.free()
		return
	}
	if l.calls == 0 {
		l.busyFrom = now.UnixNano()
	}
	l.slots[id] = slot{call: k, size: k.size, frame: w.seq, since: now.UnixNano()}
	l.calls++
	l.bytes += k.size
}

// frame is the frame that is open for more. Mutex held.
func (l *link) frame() *outFrame {
	if n := len(l.frames); n > 0 && len(l.frames[n-1].b) < maxFrame {
		return &l.frames[n-1]
	}
	l.made++
	l.frames = append(l.frames, outFrame{seq: l.made})
	f := &l.frames[len(l.frames)-1]
	f.grow(4 << 10)
	return f
}

// send hands frames to the stream until ctx ends, the stream breaks, or the host is left.
func (l *link) send(stream grpc.ClientStream) error {
	for {
		l.mu.Lock()
		for len(l.frames) == 0 {
			if l.leaving && l.calls == 0 {
				l.mu.Unlock()
				return stream.CloseSend()
			}
			l.waiting = true
			l.mu.Unlock()
			select {
			case <-l.wake:
			case <-l.ctx.Done():
				return nil
			}
			// Let the callers that are about to run add theirs: outcomes wake many at once, and the first of them has woken us.
			runtime.Gosched()
			l.mu.Lock()
		}
		f := l.frames[0]
		copy(l.frames, l.frames[1:])
		l.frames[len(l.frames)-1] = outFrame{}
		l.frames = l.frames[:len(l.frames)-1]
		l.sent = f.seq
		l.mu.Unlock()
		out := f.take()
		if err := stream.SendMsg(&out); err != nil {
			return err
		}
	}
}

// received is an outcome in a frame at hand.
type received struct {
	call  *call
	field uint8
	bytes []byte
}

// receive hands outcomes over until the stream ends.
func (l *link) receive(stream grpc.ClientStream) error {
	var list []received
	var keep arena
	for {
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			return err
		}
		l.heard.Store(time.Now().UnixNano())
		var err error
		list, err = l.take(f.buf.ReadOnlyData(), list[:0])
		deliver(list, &keep)
		clear(list)
		poison(f.buf)
		f.buf.Free()
		if err != nil {
			return err
		}
	}
}

// deliver hands outcomes over, and sends calls once more that did not have theirs.
func deliver(list []received, keep *arena) {
	var again callList
	for i := range list {
		r := &list[i]
		route, last := r.call.route, again.last
		r.call.outcome(r.field, r.bytes, keep, &again)
		if again.last == last {
			route.works()
		}
	}
	resend(again)
}

// take finds the calls of the outcomes in a frame, whose ids are free from then on.
func (l *link) take(b []byte, list []received) ([]received, error) {
	now := time.Now().UnixNano()
	exchanged := l.client.cfg.Events.Exchanged
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		switch p.number {
		case fieldOutcomes:
			id, field, body, ok := splitOutcome(p.bytes)
			if !ok || uint64(id) >= uint64(len(l.slots)) || l.slots[id].call == nil {
				return list, kverr.New(kverr.Unknown, "read outcomes", "the host answered what was not asked")
			}
			s := &l.slots[id]
			list = append(list, received{s.call, field, body})
			if exchanged != nil {
				exchanged(time.Duration(now - s.since))
			}
			l.calls--
			l.bytes -= s.size
			*s = slot{}
			l.spare = append(l.spare, id)
		case fieldClosing:
			l.leave()
			l.gone()
		}
	}
	if len(b) > 0 {
		return list, kverr.New(kverr.Unknown, "read outcomes", "the host sent what is no ExchangeResponse")
	}
	if l.leaving && l.calls == 0 {
		poke(l.wake)
	}
	return list, nil
}

// splitOutcome takes an outcome apart.
func splitOutcome(b []byte) (id uint32, field uint8, body []byte, ok bool) {
	for {
		p, rest, more := nextPart(b)
		if !more {
			break
		}
		b = rest
		switch {
		case p.number == outcomeID:
			id = uint32(p.value)
		case p.number >= outcomeFailure && p.number <= outcomePart:
			field, body = uint8(p.number), p.bytes
		}
	}
	return id, field, body, len(b) == 0
}

var errSilent = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the host", Message: "the host is silent", RetryAfterMS: 100}

// watch gives a host up that says nothing while calls are due. A host that only waits for its log answers pings.
func (l *link) watch() {
	silence := l.client.cfg.Silence
	tick := time.NewTicker(silence / 6)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
		l.mu.Lock()
		if l.calls > 0 {
			quiet := time.Since(time.Unix(0, max(l.heard.Load(), l.busyFrom)))
			switch {
			case quiet > silence:
				l.cancel(errSilent)
			case quiet > silence/3:
				l.pings++
				l.frame().number(fieldPing, l.pings)
				poke(l.wake)
			}
		}
		l.mu.Unlock()
	}
}

// down takes back everything under way.
func (l *link) down(cause error) {
	why := &kverr.Error{Kind: kverr.Unavailable, Op: "reach the host", Message: "the connection to the host broke", RetryAfterMS: 100, Err: cause}
	l.mu.Lock()
	l.up = false
	for i := range l.frames {
		l.frames[i].free()
	}
	l.frames = nil
	slots, sent := l.slots, l.sent
	l.slots, l.calls, l.bytes = nil, 0, 0
	l.mu.Unlock()
	var again callList
	for i := range slots {
		if k := slots[i].call; k != nil {
			k.lost(slots[i].frame <= sent, why, &again)
		}
	}
	resend(again)
}

// resend sends calls once more that came back, each by the way that its shard has then.
func resend(calls callList) {
	for k := calls.first; k != nil; {
		next := k.next
		k.route.again(k)
		k = next
	}
}
