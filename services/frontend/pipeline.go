package frontend

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/vtcodec"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Bounds of one Pipeline stream. At one of them the reader stops, and gRPC's flow control holds the client back.
const (
	maxOutstandingOps   = 4096
	maxOutstandingBytes = 32 << 20 // frames whose operations are not answered yet, and values read for them
	maxSideJobs         = 16       // goroutines that store or read values apart from keys
	maxResultBytes      = 512 << 10
)

// pipeline is one Pipeline stream. One goroutine reads: it decodes a frame, answers gets from views and hands writes to
// shards, one visit per shard and frame. Outcomes come back on the shards' goroutines and are pushed on done; the
// handler's goroutine writes them, all that are ready in one frame. Whatever became of an operation, it comes to done exactly
// once.
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
	jobs chan struct{}             // side jobs under way

	head   frameHead             // reader
	views  map[*Shard]shard.View // reader; of the frame at hand
	visits map[*Shard]*visit     // reader; reused from frame to frame
	order  []*visit              // reader; visits of the frame at hand
}

// visit gathers the writes of a frame for one shard.
type visit struct {
	shard *Shard
	cmds  []*shard.Command
	big   []*operation // puts whose values go apart
}

// inbound is a frame received, kept until its last operation is answered.
type inbound struct {
	buf  mem.Buffer
	left int // operations not answered; the writer's
}

// operation is one operation of a stream, from decoding to its result on the wire. It comes from a pool.
type operation struct {
	cmd    shard.Command
	req    request
	err    *kverr.Error
	entry  kvv1.Entry // of a get
	value  mem.Buffer // that entry.Value lies in, when it was read for it
	held   int64      // bytes of value counted as outstanding
	frame  *inbound
	stream *pipeline
	next   *operation
	item   *kvv1.Error // err, once it is encoded
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
	return o
}}

func (o *operation) free() {
	if o.value != nil {
		o.value.Free()
	}
	done := o.cmd.Done
	o.cmd = shard.Command{Done: done}
	o.req, o.err, o.item, o.value, o.held, o.frame, o.stream, o.next = request{}, nil, nil, nil, 0, nil, nil, nil
	resetEntry(&o.entry)
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
		views: make(map[*Shard]shard.View), visits: make(map[*Shard]*visit),
	}
	go func() {
		err := p.read()
		p.readEnd <- err
		p.ends.Store(true)
		if err != nil {
			cancel()
		}
		poke(p.wake)
	}()
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
	if err := p.waitForRoom(int64(n), int64(len(b))); err != nil {
		return err
	}
	in := &inbound{buf: buf, left: n}
	ns, fault := p.server.namespace(p.ctx, p.head.keyspace, p.head.namespace, kvv1.NamespaceKind_NAMESPACE_KIND_KV)
	var id shard.Identity
	if fault == nil && len(p.head.client) > 0 {
		id, fault = p.server.identity("identity_", p.head.client, 0, p.head.notAfterMS)
	}
	clear(p.views)
	for i, encoded := range p.head.ops {
		o := operations.Get().(*operation)
		o.frame, o.stream = in, p
		if err := parseOp(encoded, &o.req, &o.cmd); err != nil {
			return kverr.Invalid("ops", "operation %d is malformed", i)
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
	if len(v.cmds) == 0 && len(v.big) == 0 {
		p.order = append(p.order, v)
	}
	return v
}

// sendVisits hands the writes of the frame to their shards.
func (p *pipeline) sendVisits() {
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

// get answers a get from the shard's view as of the frame's arrival. A value that lies apart is read on the side.
func (p *pipeline) get(o *operation, ns *Namespace) *kverr.Error {
	wanted := o.cmd.Put.Key
	if err := checkKey("get.key", wanted); err != nil {
		return err
	}
	sh := ns.ShardOf(wanted)
	view, ok := p.views[sh]
	if !ok {
		var err error
		if view, err = p.server.shards.View(p.ctx, sh.ID); err != nil {
			return kverr.From(err)
		}
		p.views[sh] = view
	}
	e, found, lost := view.Get(ns.ID, wanted)
	if lost != nil {
		return lost
	}
	if !found {
		return errKeyAbsent
	}
	if o.req.metadataOnly || !apart(&e.Value) {
		fillEntry(&o.entry, &e)
		if !o.req.metadataOnly {
			o.entry.Value = e.Value.Inline
		}
		p.finish(o)
		return nil
	}
	n := e.Value.Ref.Length
	if n > maxReplyBytes-maxEntryOverhead {
		return errUseGetStream
	}
	if err := p.waitForRoom(0, n); err != nil {
		return kverr.From(err)
	}
	o.held = n
	if err := p.side(func() { p.getApart(o, ns, sh) }); err != nil {
		return kverr.From(err)
	}
	return nil
}

// getApart reads the value of a get.
func (p *pipeline) getApart(o *operation, ns *Namespace, sh *Shard) {
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
	e, value, found, _, err := p.server.find(p.ctx, ns, sh, o.cmd.Put.Key, alloc)
	switch {
	case err != nil:
		o.err = err
	case !found:
		o.err = errKeyAbsent
	default:
		fillEntry(&o.entry, &e)
		o.entry.Value = value
	}
	p.finish(o)
}
