package frontend

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	"kvstore/components/vtcodec"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Bounds of one Pipeline stream. At one of them the reader stops, and gRPC's flow control holds the client back.
const (
	maxOutstandingOps   = 4096
	maxOutstandingBytes = 32 << 20 // frames whose operations are not answered yet
	maxValueBytes       = 32 << 20 // values that lie apart, read and not sent yet; one alone may be more
	maxSideJobs         = 16       // goroutines that store values apart from keys, and as many that read them
	maxResultBytes      = 512 << 10
)

// pipeline is one Pipeline stream. One goroutine reads: it decodes a frame and hands gets and writes to shards, one visit per
// shard and frame. Outcomes come back on the shards' goroutines and are pushed on done; the handler's goroutine writes them, all
// that are ready in one frame. Whatever became of an operation, it comes to done exactly once.
type pipeline struct {
	server *Server
	ctx    context.Context
	stream grpc.BidiStreamingServer[kvv1.PipelineRequest, kvv1.PipelineResponse]

	readEnd chan error // room for one: how the reader ended

	done atomic.Pointer[operation] // newest first; the writer takes all at once
	wake chan struct{}             // room for one: done was empty and is not any more, or the reader has ended
	room chan struct{}             // room for one: the writer answered something
	ops  atomic.Int64              // outstanding operations; stopped: no more are taken
	size atomic.Int64              // outstanding bytes
	ends atomic.Bool               // the reader has ended: when ops is 0 all is said
	jobs chan struct{}             // values being stored

	fetches fetches // gets whose values lie apart

	head   frameHead         // reader
	came   int64             // reader; when the frame at hand came, in milliseconds since the Unix epoch
	now    int64             // reader; likewise, once there was room for it
	deny   *kverr.Error      // reader; why what is no get in the frame at hand is refused; nil = it is not
	visits map[*Shard]*visit // reader; reused from frame to frame
	order  []*visit          // reader; visits of the frame at hand
	spans  []trace.Span      // reader; of those of its operations that are followed
}

// visit gathers the operations of a frame for one shard.
type visit struct {
	shard *Shard
	gets  []*shard.Query
	cmds  []*shard.Command
	big   []*operation // puts whose values go apart
}

// inbound is a frame received, kept until its last operation is answered.
type inbound struct {
	buf   mem.Buffer
	began time.Duration // when it came, by Server.since
	left  int           // operations not answered; the writer's
}

// operation is one operation of a stream, from decoding to its result on the wire. It comes from a pool.
type operation struct {
	cmd    shard.Command
	query  shard.Query // of a get
	ns     *Namespace  // of a get
	shard  *Shard      // of a get
	req    request
	err    *kverr.Error
	entry  kvv1.Entry // of a get
	value  mem.Buffer // that entry.Value lies in, when it was read for it
	held   int64      // bytes of value counted in fetches
	frame  *inbound
	stream *pipeline
	next   *operation
	item   *kvv1.Error // err, once it is encoded
	span   trace.Span  // nil: nobody follows
	length int         // of the encoded result
}

var operations = sync.Pool{New: func() any {
	o := new(operation)
	o.cmd.Done = func(_ *shard.Command, err error) {
		if err != nil {
			o.err = kverr.From(err)
		} else {
			o.err = o.cmd.Result.Err
		}
		o.stream.finish(o)
	}
	o.query.Done = func(_ *shard.Query, err error) { o.stream.got(o, err) }
	return o
}}

func (o *operation) free() {
	if o.value != nil {
		o.value.Free()
	}
	if o.req.verb == verbGet { // also one that was refused before it had an Op
		o.query = shard.Query{Done: o.query.Done}
		resetEntry(&o.entry)
	}
	o.cmd = shard.Command{Done: o.cmd.Done}
	o.ns, o.shard = nil, nil
	o.req, o.err, o.item, o.value, o.held, o.frame, o.stream, o.next = request{}, nil, nil, nil, 0, nil, nil, nil
	operations.Put(o)
}

// resetEntry empties an entry field by field: a protobuf message must not be copied.
func resetEntry(e *kvv1.Entry) {
	e.Key, e.Value, e.Metadata, e.Tags = nil, nil, nil, nil
	e.ContentType, e.Encoding = "", ""
}

func (k *kvService) Pipeline(stream grpc.BidiStreamingServer[kvv1.PipelineRequest, kvv1.PipelineResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	p := &pipeline{
		server: k.Server, ctx: ctx, stream: stream,
		readEnd: make(chan error, 1), wake: make(chan struct{}, 1), room: make(chan struct{}, 1), jobs: make(chan struct{}, maxSideJobs),
		visits: make(map[*Shard]*visit),
	}
	p.fetches.room = make(chan struct{}, 1)
	go func() {
		err := p.read()
		p.readEnd <- err
		p.ends.Store(true)
		if err != nil && !errors.Is(err, kverr.Unauthenticated) {
			cancel()
		}
		poke(p.wake)
	}()
	k.pipelines.Add(1)
	defer p.end()
	// When the handler returns first, the stream's context ends and with it the reader.
	return p.write()
}

// poke wakes whoever waits on a channel with room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// finish takes an operation that has its outcome. It runs on the path of every other command of the shard: it pushes and, if
// the writer may sleep, wakes it.
func (p *pipeline) finish(o *operation) {
	for {
		old := p.done.Load()
		o.next = old
		if p.done.CompareAndSwap(old, o) {
			if old == nil {
				poke(p.wake)
			}
			return
		}
	}
}

// read takes frames until the client has no more. An error ends the stream.
func (p *pipeline) read() error {
	for {
		var f frame
		if err := p.stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := p.accept(f.buf); err != nil {
			return err
		}
	}
}

// accept takes one frame apart and sends its operations on their way.
func (p *pipeline) accept(buf mem.Buffer) error {
	b := buf.ReadOnlyData()
	if len(b) > key.MaxPipelineMessage {
		return kverr.TooBig("frame", len(b), key.MaxPipelineMessage, "bytes")
	}
	if err := p.head.parse(b); err != nil {
		return kverr.Invalid("frame", "is not a PipelineRequest")
	}
	n := len(p.head.ops)
	switch {
	case n > key.MaxPipelineOps:
		return kverr.TooBig("ops", n, key.MaxPipelineOps, "operations")
	case n == 0:
		buf.Free()
		return nil
	}
	p.came = time.Now().UnixMilli()
	if err := p.waitForRoom(int64(n), int64(len(b))); err != nil {
		return err
	}
	p.now = time.Now().UnixMilli()
	in := &inbound{buf: buf, began: p.server.since(), left: n}
	ns, fault := p.server.keyNamespace(p.ctx, p.head.keyspace, p.head.namespace)
	if fault != nil && fault.Kind == kverr.Unauthenticated {
		// The stream came with a token that is good no more. It ends once all that was taken before is answered; nothing of this frame
		// was applied, and the client may come again with another token.
		p.answered(int64(n))
		p.size.Add(-int64(len(b)))
		return fault
	}
	if fault == nil {
		p.server.owe(p.ctx, ns, n-1)
	}
	p.deny = p.server.mayWrite(p.ctx, p.head.keyspace)
	var id shard.Identity
	if fault == nil && len(p.head.client) > 0 {
		id, fault = p.server.identity("identity_", p.head.client, 0, p.head.notAfterMS)
	}
	for i, encoded := range p.head.ops {
		o := operations.Get().(*operation)
		o.frame, o.stream = in, p
		if err := parseOp(encoded, &o.req, &o.cmd); err != nil {
			fault := kverr.Invalid("ops", "operation %d is malformed", i)
			for _, s := range p.spans { // no shard is visited, and perhaps nobody answers any more
				tracing.End(s, fault)
			}
			return fault
		}
		if p.server.cfg.Tracer != nil {
			p.follow(o)
		}
		fault := fault
		if fault == nil {
			fault = p.begin(o, ns, id)
		}
		if fault != nil {
			o.err = fault
			p.finish(o)
		}
	}
	clear(p.spans)
	p.spans = p.spans[:0]
	p.sendVisits()
	return nil
}

// stopped is the count of outstanding operations of a stream that takes no more because the server stops.
const stopped = -1 << 40

var errStopping = &kverr.Error{Kind: kverr.Unavailable, Message: "the server is stopping", RetryAfterMS: 100}

// waitForRoom counts operations and bytes as outstanding, once there is room for them.
func (p *pipeline) waitForRoom(ops, bytes int64) error {
	for {
		now, size := p.ops.Load(), p.size.Load()
		switch {
		case now < 0:
			return errStopping
		case now+ops <= maxOutstandingOps && (size == 0 || size+bytes <= maxOutstandingBytes):
			if p.ops.CompareAndSwap(now, now+ops) {
				p.server.operations.Add(ops)
				p.size.Add(bytes)
				return nil
			}
			continue
		}
		select {
		case <-p.room:
		case <-p.ctx.Done():
			return kverr.From(p.ctx.Err())
		}
	}
}

// answered counts operations as outstanding no more.
func (p *pipeline) answered(n int64) {
	if p.ops.Add(-n) >= 0 { // otherwise end has taken them off
		p.server.operations.Add(-n)
	}
}

// end takes off what nobody will answer any more, and lets nothing more in. The writer calls it.
func (p *pipeline) end() {
	p.server.operations.Add(-max(0, p.ops.Swap(stopped)))
	p.server.pipelines.Add(-1)
}

// begin validates an operation and sends it on its way: unless it returns an error, the operation is no longer the
// caller's.
func (p *pipeline) begin(o *operation, ns *Namespace, id shard.Identity) *kverr.Error {
	c := &o.cmd
	c.Namespace = ns.ID
	if o.req.identityOp != 0 {
		if id.Client == [16]byte{} {
			return kverr.Invalid("identity_client", "is empty, but an operation has an identity_op")
		}
		c.ID = id
		c.ID.Op = o.req.identityOp
	}
	if p.deny != nil && o.req.verb != verbGet {
		p.server.refusals.note(p.ctx, kvv1.KVService_Pipeline_FullMethodName, p.deny)
		return p.deny
	}
	if err := p.limit(o); err != nil {
		return err
	}
	switch o.req.verb {
	case verbGet:
		return p.get(o, ns)
	case verbPut:
		c.Op = shard.OpPut
		if err := p.server.checkPutWithValue(&c.Put); err != nil {
			return within("put", err)
		}
		ns.applyDefaults(&c.Put)
		v := p.visit(ns.place(&c.Put))
		if len(c.Put.Value.Inline) > p.server.cfg.InlineLimit {
			v.big = append(v.big, o)
		} else {
			v.cmds = append(v.cmds, c)
		}
	case verbDelete:
		c.Op = shard.OpDelete
		if err := checkDelete(&c.Delete); err != nil {
			return within("delete", err)
		}
		v := p.visit(ns.placeDelete(&c.Delete))
		v.cmds = append(v.cmds, c)
	default:
		return kverr.Invalid("op", "is not set; an operation is a put, a get or a delete")
	}
	return nil
}

// maxTimeoutMS is some thirty years: more makes no difference.
const maxTimeoutMS = 1 << 40

// errLate is of what nobody waits for any more when it could be begun.
var errLate = &kverr.Error{Kind: kverr.DeadlineExceeded, Op: "pipeline", Message: "the deadline passed before it was begun; it was not applied"}

// limit has an operation not begun when its caller has stopped waiting, if he tells when: here, where it may have waited for room, and wherever it goes.
func (p *pipeline) limit(o *operation) *kverr.Error {
	t := o.req.timeoutMS
	switch {
	case t == 0:
		return nil
	case t < 0:
		return kverr.Invalid("timeout_ms", "is %d, must be at least 0", t)
	}
	until := p.came + min(t, maxTimeoutMS)
	if p.now >= until {
		return errLate
	}
	o.cmd.UntilMS = until
	if o.req.verb == verbGet {
		o.query.UntilMS = until
	}
	return nil
}

// late tells whether whoever waits for an operation has stopped.
func (o *operation) late() bool {
	until := o.cmd.UntilMS
	return until != 0 && time.Now().UnixMilli() >= until
}

// visit is the visit of the frame at hand to a shard.
func (p *pipeline) visit(sh *Shard) *visit {
	v := p.visits[sh]
	if v == nil {
		if len(p.visits) >= 4096 { // a stream that has seen many keyspaces come and go
			clear(p.visits)
		}
		v = &visit{shard: sh}
		p.visits[sh] = v
	}
	if len(v.gets) == 0 && len(v.cmds) == 0 && len(v.big) == 0 {
		p.order = append(p.order, v)
	}
	return v
}

// sendVisits hands the operations of the frame to their shards: gets first, which do not see the frame's writes.
func (p *pipeline) sendVisits() {
	for _, v := range p.order {
		if len(v.gets) > 0 {
			p.server.shards.Read(p.ctx, v.shard.ID, v.gets...)
			clear(v.gets)
			v.gets = v.gets[:0]
		}
	}
	for _, v := range p.order {
		if len(v.big) > 0 {
			p.sendBig(v.shard, v.big)
			v.big = nil
		}
		if len(v.cmds) > 0 {
			p.server.shards.Do(p.ctx, v.shard.ID, v.cmds...)
			clear(v.cmds)
			v.cmds = v.cmds[:0]
		}
	}
	p.order = p.order[:0]
}

// side runs f in a goroutine of its own, as soon as there is room for one more.
func (p *pipeline) side(f func()) error {
	select {
	case p.jobs <- struct{}{}:
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
	go func() {
		defer func() { <-p.jobs }()
		f()
	}()
	return nil
}

// sendBig stores the values of puts in one object, then hands the puts to the shard.
func (p *pipeline) sendBig(sh *Shard, ops []*operation) {
	err := p.side(func() {
		ops := slices.DeleteFunc(ops, func(o *operation) bool { // it may have taken a while
			late := o.late()
			if late {
				o.err = errLate
				p.finish(o)
			}
			return late
		})
		if len(ops) == 0 {
			return
		}
		puts := make([]*shard.Put, len(ops))
		cmds := make([]*shard.Command, len(ops))
		for i, o := range ops {
			puts[i], cmds[i] = &o.cmd.Put, &o.cmd
		}
		if err := p.server.storeApart(p.ctx, sh.ID, puts); err != nil {
			p.fail(ops, err)
			return
		}
		p.server.shards.Do(p.ctx, sh.ID, cmds...)
	})
	if err != nil {
		p.fail(ops, kverr.From(err))
	}
}

func (p *pipeline) fail(ops []*operation, err *kverr.Error) {
	for _, o := range ops {
		o.err = err
		p.finish(o)
	}
}

// get adds a get to the visit of its shard.
func (p *pipeline) get(o *operation, ns *Namespace) *kverr.Error {
	q := &o.query
	q.Key = o.cmd.Put.Key
	if err := checkKey("get.key", q.Key); err != nil {
		return err
	}
	q.Op, q.Namespace = shard.QueryGet, ns.ID
	o.ns, o.shard = ns, ns.ShardOf(q.Key)
	v := p.visit(o.shard)
	v.gets = append(v.gets, q)
	return nil
}

// got takes the answer of a get. A value that lies apart is read on the side.
func (p *pipeline) got(o *operation, err error) {
	a := &o.query.Answer
	value := &a.Entry.Value
	switch {
	case err != nil:
		o.err = kverr.From(err)
	case a.Err != nil:
		o.err = a.Err
	case !a.Found:
		o.err = errKeyAbsent
	case o.req.metadataOnly:
		fillEntry(&o.entry, &a.Entry)
	case !apart(value):
		fillEntry(&o.entry, &a.Entry)
		o.entry.Value = value.Inline
	case value.Ref.Length > maxReplyBytes-maxEntryOverhead:
		o.err = errUseGetStream
	default:
		p.fetches.add(p, o)
		return
	}
	p.finish(o)
}

// fetches are the gets of a stream whose values lie apart: some are being read, the others wait.
type fetches struct {
	mu      sync.Mutex
	waiting []*operation  // guarded by mu
	workers int           // guarded by mu
	bytes   int64         // of values read and not sent; guarded by mu
	room    chan struct{} // room for one: bytes went down
}

// add reads the value of a get as soon as a goroutine is free for it.
func (f *fetches) add(p *pipeline, o *operation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, o)
	if f.workers < maxSideJobs {
		f.workers++
		go f.work(p)
	}
}

func (f *fetches) work(p *pipeline) {
	for {
		f.mu.Lock()
		if len(f.waiting) == 0 {
			f.workers--
			f.mu.Unlock()
			return
		}
		o := f.waiting[0]
		f.waiting[0], f.waiting = nil, f.waiting[1:]
		f.mu.Unlock()
		if err := f.take(p.ctx, o); err != nil {
			o.err = err
			p.finish(o)
			continue
		}
		if o.late() {
			o.err = errLate
			p.finish(o)
			continue
		}
		p.fetch(o)
	}
}

// take waits until there is room for an operation's value. Only values that wait for the writer are in the way, so it comes.
func (f *fetches) take(ctx context.Context, o *operation) *kverr.Error {
	n := o.query.Answer.Entry.Value.Ref.Length
	for {
		f.mu.Lock()
		if f.bytes == 0 || f.bytes+n <= maxValueBytes {
			f.bytes += n
			o.held = n
			more := f.bytes < maxValueBytes
			f.mu.Unlock()
			if more {
				poke(f.room) // for another who waits
			}
			return nil
		}
		f.mu.Unlock()
		select {
		case <-f.room:
		case <-ctx.Done():
			return gaveUp(ctx)
		}
	}
}

// grown counts what a value that was rewritten meanwhile takes more.
func (f *fetches) grown(o *operation, n int64) {
	f.mu.Lock()
	f.bytes += n - o.held
	f.mu.Unlock()
	o.held = n
}

// give takes back the room of values that were sent.
func (f *fetches) give(n int64) {
	f.mu.Lock()
	f.bytes -= n
	f.mu.Unlock()
	poke(f.room)
}

// fetch reads the value of a get that was found.
func (p *pipeline) fetch(o *operation) {
	alloc := func(n int) []byte {
		if o.value != nil {
			o.value.Free()
			o.value = nil
		}
		if n > maxReplyBytes-maxEntryOverhead {
			return nil
		}
		buf := vtcodec.Pool.Get(n)
		o.value = mem.NewBuffer(buf, vtcodec.Pool)
		return *buf
	}
	a := &o.query.Answer
	f, value, err := p.server.fetch(p.ctx, o.ns, o.shard, o.query.Key, found{entry: a.Entry, ok: true, revision: a.Revision}, alloc)
	switch {
	case err != nil:
		o.err = err
	case !f.ok:
		o.err = errKeyAbsent
	default:
		fillEntry(&o.entry, &f.entry)
		o.entry.Value = value
		if n := int64(len(value)); n > o.held {
			p.fetches.grown(o, n)
		}
	}
	p.finish(o)
}
