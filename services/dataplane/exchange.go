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
	"google.golang.org/grpc/mem"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/vtcodec"
)

// exchange is one stream of calls on its host. One goroutine reads: it takes a frame apart and hands its calls to shards, one visit for each
// shard and frame. Outcomes come back on the shards' goroutines and are pushed on done; the handler's goroutine writes them, all that are
// there in one frame. Calls that may wait, for a disk or for a shard that is being opened, are made by workers. Whatever became of
// a call, it comes to done exactly once.
type exchange struct {
	server  *Server
	session *session
	ctx     context.Context
	workers workers

	readEnd chan error // room for one: how the reader ended

	done    atomic.Pointer[job] // newest first; the writer takes all at once
	wake    chan struct{}       // room for one: done was empty and is not any more, there is a ping, or the reader has ended
	room    chan struct{}       // room for one: the writer answered something
	calls   atomic.Int64        // outstanding
	size    atomic.Int64        // bytes of frames that are not answered, and of what calls asked for
	ends    atomic.Bool         // the reader has ended: when calls is 0 all is said
	ping    atomic.Uint64       // to be answered; 0 = none
	closing atomic.Bool         // calls are refused

	taken  []*job   // reader; calls of the frame at hand
	routes []*route // reader
	order  []*route // reader; those that the frame at hand visits
}

// route is a shard that calls of the stream name, with the visit of the frame at hand.
type route struct {
	shard   string
	epoch   uint64
	cmds    []*shard.Command
	queries []*shard.Query
	stores  []*job
	wait    int64 // longest time that a caller of the visit waits, milliseconds; 0 = not told
	visited bool  // by the frame at hand
}

// request is a frame received, kept until its last call is answered.
type request struct {
	buf  mem.Buffer
	left int // calls not answered; the writer's
}

// job is one call, from decoding to its outcome on the wire. It comes from a pool.
type job struct {
	cmd   shard.Command
	query shard.Query

	id      uint32
	kind    uint8  // field of Call.what
	number  uint32 // of the route
	wait    int64  // how long the caller waits, milliseconds; 0 = not told
	err     *kverr.Error
	route   *route
	values  [][]byte    // put_values
	refs    []shard.Ref // put_values: the outcome; drop_values
	ref     shard.Ref   // read_part
	offset  int64       // read_part
	part    *[]byte     // read_part: the outcome, of the pool
	held    int64       // bytes counted beside the frame
	request *request
	x       *exchange
	next    *job
}

var jobs = sync.Pool{New: func() any {
	j := new(job)
	j.cmd.Done = func(_ *shard.Command, err error) {
		if err != nil {
			j.err = kverr.From(err)
		}
		j.x.finish(j)
	}
	j.query.Done = func(_ *shard.Query, err error) {
		if err != nil {
			j.err = kverr.From(err)
		}
		j.x.finish(j)
	}
	return j
}}

func (j *job) free() {
	switch j.kind {
	case callCommand:
		j.cmd = shard.Command{Done: j.cmd.Done}
	case callQuery:
		j.query = shard.Query{Done: j.query.Done}
	default:
		if j.part != nil {
			vtcodec.Pool.Put(j.part)
		}
		j.values, j.refs, j.ref, j.offset, j.part = nil, nil, shard.Ref{}, 0, nil
	}
	j.id, j.kind, j.number, j.wait, j.err, j.route, j.held, j.request, j.x, j.next = 0, 0, 0, 0, nil, nil, 0, nil, nil, nil
	jobs.Put(j)
}

func newExchange(ctx context.Context, s *Server, ses *session) *exchange {
	return &exchange{
		server: s, session: ses, ctx: ctx, readEnd: make(chan error, 1), wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
}

// poke wakes whoever waits on a channel with room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// finish takes a call that has its outcome. It runs on the path of every other command of the shard: it pushes and, if the writer
// may sleep, wakes it.
func (x *exchange) finish(j *job) {
	for {
		old := x.done.Load()
		j.next = old
		if x.done.CompareAndSwap(old, j) {
			if old == nil {
				poke(x.wake)
			}
			return
		}
	}
}

// read takes frames until the client has no more. An error ends the stream.
func (x *exchange) read(stream grpc.ServerStream) error {
	for {
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := x.accept(f.buf); err != nil {
			return err
		}
	}
}

// accept takes one frame apart and sends its calls on their way.
func (x *exchange) accept(buf mem.Buffer) error {
	b := buf.ReadOnlyData()
	weight := int64(len(b))
	in := &request{buf: buf}
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		switch p.number {
		case fieldRoutes:
			if err := x.addRoute(p.bytes); err != nil {
				return err
			}
		case fieldCalls:
			j := jobs.Get().(*job)
			j.x, j.request = x, in
			j.decode(p.bytes)
			weight += j.held
			x.taken = append(x.taken, j)
		case fieldPing:
			x.ping.Store(p.value)
			poke(x.wake)
		}
	}
	if len(b) > 0 {
		return kverr.Invalid("frame", "is not an ExchangeRequest")
	}
	in.left = len(x.taken)
	if in.left == 0 {
		buf.Free()
		return nil
	}
	if err := x.waitForRoom(int64(in.left), weight); err != nil {
		return err
	}
	for _, j := range x.taken {
		x.call(j)
	}
	clear(x.taken)
	x.taken = x.taken[:0]
	x.visit()
	return nil
}

func (x *exchange) addRoute(b []byte) error {
	r := &route{}
	number := uint64(0)
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		switch p.number {
		case 1:
			number = p.value
		case 2:
			r.shard = string(p.bytes)
		case 3:
			r.epoch = p.value
		}
	}
	switch {
	case len(b) > 0:
		return kverr.Invalid("routes", "is malformed")
	case number != uint64(len(x.routes)):
		return kverr.Invalid("routes", "number %d comes after %d routes", number, len(x.routes))
	case number >= maxRoutes:
		return kverr.TooBig("routes", int64(number+1), int64(maxRoutes), "routes")
	}
	x.routes = append(x.routes, r)
	return nil
}

// waitForRoom counts calls and bytes as outstanding, once there is room for them. What is outstanding waits for shards and for the
// writer, never for the reader.
func (x *exchange) waitForRoom(calls, bytes int64) error {
	for {
		now, size := x.calls.Load(), x.size.Load()
		if now == 0 || now+calls <= maxServerCalls && size+bytes <= maxServerBytes {
			x.calls.Add(calls)
			x.size.Add(bytes)
			return nil
		}
		select {
		case <-x.room:
		case <-x.ctx.Done():
			return kverr.From(x.ctx.Err())
		}
	}
}

// call adds one call to the visit of its shard.
func (x *exchange) call(j *job) {
	switch {
	case j.err != nil:
	case uint64(j.number) >= uint64(len(x.routes)):
		j.err = kverr.Invalid("route", "is %d, there are %d", j.number, len(x.routes))
	case x.closing.Load():
		j.err = errMoved
	}
	if j.err != nil {
		x.finish(j)
		return
	}
	r := x.routes[j.number]
	j.route = r
	if !r.visited {
		r.visited, r.wait = true, 0
		x.order = append(x.order, r)
	}
	r.wait = max(r.wait, j.wait)
	switch j.kind {
	case callCommand:
		if j.wait > 0 {
			j.cmd.UntilMS = time.Now().UnixMilli() + j.wait
		}
		r.cmds = append(r.cmds, &j.cmd)
	case callQuery:
		if long(&j.query) {
			x.workers.do(func() { x.read1(j) })
			return
		}
		r.queries = append(r.queries, &j.query)
	case callPutValues:
		r.stores = append(r.stores, j)
	case callReadPart:
		x.workers.do(func() { x.readPart(j) })
	case callDropValues:
		x.session.drop(r.shard, j.refs)
		x.finish(j)
	}
}

// long tells the queries that are too long for the reader: a scan, or many look-ups.
func long(q *shard.Query) bool {
	switch q.Op {
	case shard.QueryGet, shard.QueryScope:
		return false
	case shard.QueryHas, shard.QueryBlocks:
		return len(q.Prompt.Blocks) > 256
	}
	return true
}

// visit hands the calls of the frame to their shards: queries first.
func (x *exchange) visit() {
	for _, r := range x.order {
		epoch, leased := x.server.host.Epoch(r.shard)
		switch {
		case epoch != 0 && epoch < r.epoch:
			x.refuse(r, errMoved)
		case epoch != 0 && (leased || len(r.queries) == 0):
			x.begin(x.ctx, r.shard, r.queries, r.cmds)
		default: // it may have to be opened, or its engine asked, for which the reader does not wait
			x.later(r)
		}
		if len(r.stores) > 0 {
			stores := r.stores
			r.stores = nil
			x.workers.do(func() { x.store(r.shard, stores) })
		}
		clear(r.queries)
		clear(r.cmds)
		r.queries, r.cmds, r.visited = r.queries[:0], r.cmds[:0], false
	}
	x.order = x.order[:0]
}

func (x *exchange) begin(ctx context.Context, shardID string, queries []*shard.Query, cmds []*shard.Command) {
	if len(queries) > 0 {
		x.server.host.Read(ctx, shardID, queries...)
	}
	cmds = x.let(shardID, cmds)
	if len(cmds) > 0 {
		x.server.host.Do(ctx, shardID, cmds...)
	}
}

// let refuses commands that name references which are not theirs to name, and returns the others.
func (x *exchange) let(shardID string, cmds []*shard.Command) []*shard.Command {
	out := cmds[:0]
	for _, c := range cmds {
		if !c.NamesRefs() || x.session.let(shardID, c) {
			out = append(out, c)
			continue
		}
		c.Release(errNotHeld)
	}
	return out
}

func (x *exchange) refuse(r *route, err *kverr.Error) {
	for _, q := range r.queries {
		q.Release(err)
	}
	for _, c := range r.cmds {
		c.Release(err)
	}
	for _, j := range r.stores {
		j.err = err
		x.finish(j)
	}
	r.stores = nil
}

// later makes a visit on a goroutine of its own.
func (x *exchange) later(r *route) {
	if len(r.queries) == 0 && len(r.cmds) == 0 {
		return
	}
	shardID, wait := r.shard, r.wait
	queries, cmds := append([]*shard.Query(nil), r.queries...), append([]*shard.Command(nil), r.cmds...)
	x.workers.do(func() {
		ctx, cancel := x.server.patient(x.ctx, wait)
		defer cancel()
		x.begin(ctx, shardID, queries, cmds)
	})
}

// read1 answers a long query.
func (x *exchange) read1(j *job) {
	ctx, cancel := x.server.patient(x.ctx, 0)
	defer cancel()
	if x.server.stale(j.route) {
		j.query.Release(errMoved)
		return
	}
	x.server.host.Read(ctx, j.route.shard, &j.query)
}

// store stores the values of several calls in one object.
func (x *exchange) store(shardID string, stores []*job) {
	var values [][]byte
	for _, j := range stores {
		values = append(values, j.values...)
	}
	// Not bound to the stream, whose frame must stay until the values are written or given up.
	ctx, cancel := x.server.patient(context.WithoutCancel(x.ctx), 0)
	refs, err := x.server.host.PutValues(ctx, shardID, values...)
	cancel()
	var failure *kverr.Error
	if err != nil {
		failure = kverr.From(err)
	} else {
		failure = x.session.hold(shardID, refs)
	}
	for _, j := range stores {
		if j.err = failure; failure == nil {
			n := len(j.values)
			j.refs, refs = refs[:n:n], refs[n:]
		}
		x.finish(j)
	}
}

// readPart reads a part of a value.
func (x *exchange) readPart(j *job) {
	ctx, cancel := x.server.patient(x.ctx, 0)
	defer cancel()
	if x.server.stale(j.route) {
		j.err = errMoved
	} else {
		j.part = vtcodec.Pool.Get(int(j.held))
		if err := x.server.host.ReadValue(ctx, j.route.shard, j.ref, j.offset, *j.part); err != nil {
			j.err = kverr.From(err)
		}
	}
	x.finish(j)
}

// write sends outcomes until the reader has ended and every call is answered.
func (x *exchange) write(stream grpc.ServerStream) error {
	var ready *job // oldest first
	stopping := x.server.stopping
	for {
		if ready == nil {
			ready = inOrder(x.done.Swap(nil))
		}
		closes := false
		if ready == nil && x.ping.Load() == 0 {
			if x.ends.Load() && x.calls.Load() == 0 {
				return <-x.readEnd
			}
			select {
			case <-x.wake:
				// Let what is about to have its outcome have it: one append releases many commands, and the first of them has woken
				// us.
				runtime.Gosched()
				continue
			case <-stopping:
				stopping, closes = nil, true
				x.closing.Store(true)
			case <-x.ctx.Done():
				return x.canceled()
			}
		}
		out, last := x.encode(ready, x.ping.Swap(0), closes)
		if last != nil {
			ready = x.retire(ready, last)
		}
		if err := stream.SendMsg(&out); err != nil {
			return err
		}
	}
}

// canceled is why the stream's context ended: the reader's reason when it had one.
func (x *exchange) canceled() error {
	select {
	case err := <-x.readEnd:
		if err != nil {
			return err
		}
	default:
	}
	return kverr.From(x.ctx.Err())
}

// inOrder turns a list around.
func inOrder(j *job) *job {
	var out *job
	for j != nil {
		next := j.next
		j.next = out
		j, out = next, j
	}
	return out
}

// encode makes a frame of the calls from first on, as many as fit; last is the last of them.
func (x *exchange) encode(first *job, pong uint64, closes bool) (out frame, last *job) {
	var w buffer
	for j := first; j != nil && (last == nil || len(w.b) < maxFrame); j = j.next {
		last = j
		j.append(&w, maxOutcome)
	}
	w.number(fieldPong, pong)
	if closes {
		w.number(fieldClosing, 1)
	}
	return w.take(), last
}

// retire frees the calls from first to last and returns what comes after.
func (x *exchange) retire(first, last *job) *job {
	var calls, bytes int64
	for j := first; ; {
		next, end := j.next, j == last
		calls++
		bytes += j.held
		if j.request.left--; j.request.left == 0 {
			bytes += int64(j.request.buf.Len())
			poison(j.request.buf)
			j.request.buf.Free()
		}
		j.free()
		if end {
			x.size.Add(-bytes)
			x.calls.Add(-calls)
			poke(x.room)
			return next
		}
		j = next
	}
}

// workers make calls that wait, at most maxWorkers at a time. How many wait for one is bounded by what the stream may have outstanding.
type workers struct {
	mu      sync.Mutex
	waiting []func() // guarded by mu
	busy    int      // guarded by mu
	over    bool     // guarded by mu
	all     sync.WaitGroup
}

func (w *workers) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return // the stream is over: nobody waits for the outcome
	}
	if w.busy >= maxWorkers {
		w.waiting = append(w.waiting, f)
		return
	}
	w.busy++
	w.all.Go(func() { w.run(f) })
}

func (w *workers) run(f func()) {
	for f != nil {
		f()
		f = nil
		w.mu.Lock()
		if len(w.waiting) > 0 && !w.over {
			f = w.waiting[0]
			w.waiting[0], w.waiting = nil, w.waiting[1:]
		} else {
			w.busy--
		}
		w.mu.Unlock()
	}
}

// close forgets what waits and waits for what is under way.
func (w *workers) close() {
	w.mu.Lock()
	w.over, w.waiting = true, nil
	w.mu.Unlock()
	w.all.Wait()
}
