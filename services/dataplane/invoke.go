package dataplane

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"kvstore/actors/host"
	"kvstore/components/kverr"
)

// Bounds of calls by Invoke. Dapr's own limit on messages is 4 MiB unless told otherwise, and passing it costs a host all its actors.
const (
	maxInvoke       = 1 << 20 // bytes of a request
	maxInvokeAnswer = 3 << 20
	maxInvokeCalls  = 1000
	maxInvokes      = 4 // at once for one shard
)

// outage is a host whose data plane could not be reached.
type outage struct {
	times int       // in a row
	until time.Time // calls go by Invoke until then; zero: they do not
}

// outageTimes is how often a host cannot be reached in a row before its calls go by Invoke.
const outageTimes = 2

// outageOf returns the outage of an address while calls go by Invoke.
func (c *Client) outageOf(address string) *outage {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.unreachable[address]; o != nil && time.Now().Before(o.until) {
		return o
	}
	return nil
}

// noteOutage notes that a host that is said to serve could not be reached, and tells whether its calls go by Invoke from now on.
func (c *Client) noteOutage(address string) bool {
	if c.cfg.Invoker == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.unreachable[address]
	if o == nil {
		o = &outage{}
		c.unreachable[address] = o
	}
	if o.times++; o.times < outageTimes {
		return false
	}
	o.until = time.Now().Add(c.cfg.Detour)
	return true
}

func (c *Client) noteReached(address string) {
	if c.cfg.Invoker == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.unreachable, address)
}

// byInvoke is a place that calls reach by Invoke, for a while.
func (r *shardRoute) byInvoke(at host.Location) *target {
	w := &invokeWay{client: r.client, route: r, until: time.Now().Add(r.client.cfg.Detour)}
	return &target{way: w, address: at.Address, epoch: at.Epoch}
}

// invokeWay sends the calls of one shard by Invoke: those that gather while maxInvokes are under way go together.
type invokeWay struct {
	client *Client
	route  *shardRoute
	until  time.Time

	mu      sync.Mutex
	waiting callList // guarded by mu, as is all below
	calls   int
	bytes   int
	busy    int
}

// submit takes calls.
func (w *invokeWay) submit(t *target, calls callList) callList {
	if time.Now().After(w.until) {
		return calls
	}
	var refused, awaiting, late callList
	now := time.Now().UnixNano()
	w.mu.Lock()
	for k := calls.first; k != nil; {
		next := k.next
		switch k.target = t; {
		case k.kind == callAwait:
			awaiting.add(k)
		case k.late(now):
			late.add(k)
		case w.calls > 0 && (w.calls >= maxCalls || w.bytes+k.size > maxBytes):
			refused.add(k)
		default:
			w.waiting.add(k)
			w.calls++
			w.bytes += k.size
		}
		k = next
	}
	var more callList
	for !w.waiting.empty() && w.busy < maxInvokes && w.client.enter() {
		w.busy++
		batch := w.next()
		go func() {
			defer w.client.wait.Done()
			w.run(t, batch)
		}()
	}
	if w.busy == 0 { // the client is closed
		more, w.waiting, w.calls, w.bytes = w.waiting, callList{}, 0, 0
	}
	w.mu.Unlock()
	refused.release(errCrowded)
	more.release(errClosed)
	awaiting.release(nil)
	late.release(errLate)
	return callList{}
}

// next takes the calls of one request. Mutex held.
func (w *invokeWay) next() (batch callList) {
	bytes := 0
	for n := 0; w.waiting.first != nil && n < maxInvokeCalls; n++ {
		k := w.waiting.first
		if n > 0 && bytes+k.size > maxInvoke*3/4 {
			break
		}
		if w.waiting.first = k.next; k.next == nil {
			w.waiting.last = nil
		}
		bytes += k.size
		w.calls--
		w.bytes -= k.size
		batch.add(k)
	}
	return batch
}

func (w *invokeWay) run(t *target, batch callList) {
	for !batch.empty() {
		w.invoke(t, batch)
		w.mu.Lock()
		if batch = w.next(); batch.empty() {
			w.busy--
		}
		w.mu.Unlock()
	}
}

// invoke sends one request and hands its outcomes over.
func (w *invokeWay) invoke(t *target, batch callList) {
	var b buffer
	at := b.begin(fieldRoutes)
	b.number(1, 0)
	b.text(2, w.route.id)
	b.number(3, t.epoch)
	b.end(at)
	now := time.Now()
	var slots []*call
	for k := batch.first; k != nil; {
		next := k.next
		from := len(b.b)
		switch {
		case !k.append(&b, uint32(len(slots)), 0, now) || k.kind == callDropValues:
			k.free()
		case len(b.b) > maxInvoke:
			b.b = b.b[:from]
			k.release(errNeedsPort(t))
		default:
			slots = append(slots, k)
		}
		k = next
	}
	if len(b.b) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(w.client.ctx, w.client.cfg.Budget)
	answer, err := w.client.cfg.Invoker.Invoke(ctx, w.route.id, MethodExchange, b.b)
	cancel()
	list := make([]received, 0, len(slots))
	if err == nil {
		list, err = takeInvoked(answer, slots, list)
	}
	var keep arena
	deliver(list, &keep)
	refused := err != nil && kverr.KindOf(err).NotApplied()
	why := &kverr.Error{Kind: kverr.Unavailable, Op: "reach the host", Message: "the call by Dapr failed", RetryAfterMS: 100, Err: err}
	var again callList
	for _, k := range slots {
		switch {
		case k == nil:
		case refused && finalKind(kverr.KindOf(err)):
			k.release(kverr.From(err))
		default:
			k.lost(!refused, why, &again)
		}
	}
	resend(again)
}

// takeInvoked finds the calls of the outcomes in an answer and takes them out of slots.
func takeInvoked(b []byte, slots []*call, list []received) ([]received, error) {
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		if p.number != fieldOutcomes {
			continue
		}
		id, field, body, ok := splitOutcome(p.bytes)
		if !ok || uint64(id) >= uint64(len(slots)) || slots[id] == nil {
			return list, kverr.New(kverr.Unknown, "read outcomes", "the host answered what was not asked")
		}
		list = append(list, received{slots[id], field, body})
		slots[id] = nil
	}
	if len(b) > 0 {
		return list, kverr.New(kverr.Unknown, "read outcomes", "the host sent what is no ExchangeResponse")
	}
	return list, nil
}

func errNeedsPort(t *target) *kverr.Error {
	return kverr.Busy(kverr.Unavailable, time.Second, "the request is too long to go by Dapr, and the data plane of host %s cannot be reached", t.address)
}

// Invoke answers the calls of one request that came by Dapr, as Exchange does: it is the actor's method MethodExchange. References that it
// hands out live for ServerConfig.Keep. An error says that the request is none.
func (s *Server) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x := newExchange(ctx, s, s.invoked)
	// The payload must stay until all that is begun is answered, also when the caller goes: so it is copied, and left to the garbage
	// collector.
	if err := x.accept(mem.SliceBuffer(append([]byte(nil), payload...))); err != nil {
		return nil, err
	}
	var w buffer
	for x.calls.Load() > 0 {
		ready := inOrder(x.done.Swap(nil))
		if ready == nil {
			select {
			case <-x.wake:
			case <-ctx.Done():
				return nil, kverr.From(ctx.Err())
			}
			continue
		}
		last := ready
		for j := ready; j != nil; j = j.next {
			last = j
			j.append(&w, maxInvokeAnswer-len(w.b))
		}
		x.retire(ready, last)
	}
	return w.b, nil
}
