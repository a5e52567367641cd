package resp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"

	"kvstore/actors/shard"
	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/services/frontend"
)

// where is what logs call a request that came this way.
const where = "RESP"

// conn is one connection, with one goroutine: it takes all requests that are there, sends them on their way together (see batch), waits, writes all
// replies, and begins anew; a write that is alone it leaves to others to answer (see away.go). So the replies are in order, a connection's memory is
// bounded, and who does not read is not read from.
type conn struct {
	s       *Server
	raw     net.Conn
	id      int64
	began   time.Time
	ctx     context.Context
	r       reader
	out     []byte
	batch   *batch
	left    atomic.Pointer[batch] // the last batch that was left to others
	writer  *writer               // nil: none is
	timer   *time.Timer
	version int  // of the protocol
	in      bool // it is known who this is, or need not be
	closing bool // after the replies

	keyspace, name, lib, libVersion string
	db                              int

	space     *frontend.Namespace // of the batch at hand, once it was asked for
	spaceErr  *kverr.Error
	asked     bool // for space
	writeErr  *kverr.Error
	askedMore bool // for writeErr

	multi   *multi // between MULTI and EXEC
	watches []watched
	big     bigArgument

	arrived time.Duration // when what is in the buffer came, by Server.since
	at      counted       // the request at hand
	kind    kverr.Kind    // of the last error of ours that was put into words for it
	failed  kverr.Kind    // why its reply, which answer or atomically makes, tells an error; 0 = it tells none

	waiting atomic.Int64 // since when nothing moves that must, in nanoseconds since the Unix epoch; 0 = it may rest
}

// bigArgument is the value of a SET that went straight into an object, while the rest of the request comes.
type bigArgument struct {
	there bool
	shard *frontend.Shard
	ref   shard.Ref
	err   *kverr.Error
}

func newConn(s *Server, raw net.Conn) *conn {
	c := &conn{s: s, raw: raw, id: s.ids.Add(1), began: time.Now(), version: 2, in: s.face.Open()}
	c.ctx = peer.NewContext(s.ctx, &peer.Peer{Addr: raw.RemoteAddr()})
	c.batch, c.writer = newBatch(c), newWriter(raw)
	c.r = reader{conn: raw, length: -1, budget: &s.budget, stranger: !c.in}
	c.waiting.Store(c.began.UnixNano())
	return c
}

// stop ends the connection once it has answered what it has taken.
func (c *conn) stop() { _ = c.raw.SetReadDeadline(time.Now()) }

// stalled tells whether nothing has moved for too long.
func (c *conn) stalled(now time.Time) bool {
	since := c.waiting.Load()
	return since != 0 && now.UnixNano()-since > int64(c.s.cfg.StallTimeout)
}

func (c *conn) serve() {
	defer func() {
		c.dropBig()
		c.dropMulti()
		c.r.close()
		_ = c.raw.Close()
	}()
	if t, ok := c.raw.(*tls.Conn); ok {
		if err := t.HandshakeContext(c.ctx); err != nil {
			c.s.cfg.Refused(c.raw.RemoteAddr().String(), authn.ExplainServer(err))
			return
		}
	}
	if c.in {
		c.waiting.Store(0)
	}
	for c.takeAll() {
		left := c.leave()
		if !left && !c.answerAll() {
			return
		}
		err := c.r.read()
		if left && !c.rejoin() || err != nil {
			return
		}
		c.arrived = c.s.since()
	}
}

// answerAll answers all requests that were begun. It is false when the connection is over.
func (c *conn) answerAll() bool {
	if !c.finish() {
		return false
	}
	c.r.keep() // before the replies leave: who has his knows that his room is free again
	if !c.flush() || c.closing || c.s.stopping() {
		return false
	}
	if c.in {
		if c.r.half() {
			c.waiting.Store(time.Now().UnixNano())
		} else {
			c.waiting.Store(0)
		}
	}
	// Whoever can run runs before this goroutine looks for the next request, which on a busy machine is there by then, so that nothing sleeps and is
	// woken for it. On an idle one it is no delay.
	runtime.Gosched()
	return true
}

// takeAll begins all requests that are in the buffer. It is false when the connection is over.
func (c *conn) takeAll() bool {
	for !c.closing {
		what, err := c.r.next(c.in && c.multi == nil)
		if err != nil {
			if c.finish() {
				c.out = appendError(c.out, "ERR "+err.Error())
				c.flush()
				c.linger()
			}
			return false
		}
		switch what {
		case incomplete:
			return true
		case bigValue:
			if !c.finish() || !c.flush() || !c.streamValue() {
				return false
			}
			continue
		}
		if len(c.r.args) > 0 {
			c.begin(c.r.args)
			c.dropBig()
		}
		if c.batch.full() && (!c.finish() || !c.flush()) {
			return false
		}
	}
	return true
}

// linger lets the last reply arrive: closing with bytes unread would reset the connection, and the client might lose it.
func (c *conn) linger() {
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.raw.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, io.LimitReader(c.raw, 4<<20))
	}
}

// flush writes what there is.
func (c *conn) flush() bool {
	if len(c.out) == 0 {
		return true
	}
	resting := c.waiting.Load()
	c.waiting.Store(time.Now().UnixNano())
	_, err := c.raw.Write(c.out)
	c.waiting.Store(resting)
	if cap(c.out) > 4*usualBuffer {
		c.out = nil
	}
	c.out = c.out[:0]
	return err == nil
}

// room writes when there is much to write.
func (c *conn) room() bool { return len(c.out) < usualBuffer || c.flush() }

// begin takes one request.
func (c *conn) begin(args [][]byte) {
	c.s.served.Add(1)
	cmd := lookUp(args[0])
	c.arrive(cmd)
	var text string
	switch {
	case cmd == nil && speaksHTTP(args[0]):
		c.s.cfg.Refused(c.raw.RemoteAddr().String(), "it speaks HTTP: perhaps a browser that a page has sent here")
		c.closing = true // what follows, a body say, would be taken for requests
		return
	case cmd == nil:
		text = errUnknownCommand(args)
		if !c.in {
			text = errNoAuth
		}
	case !cmd.fits(len(args)) && c.r.dropped == nil:
		text = errArity(cmd.name)
	case !c.in && !cmd.strangers:
		text = errNoAuth
	case c.r.dropped != nil:
		text = c.fault(c.r.dropped)
	}
	switch {
	case text != "":
		if c.multi != nil {
			c.multi.failed = true
		}
		c.say(text)
	case c.multi != nil && !cmd.ends:
		c.queue(cmd, args)
	case cmd.parse != nil:
		c.begins(cmd, args)
	case cmd.says != nil:
		at := len(c.batch.static)
		c.batch.static = cmd.says(c, c.batch.static, args)
		c.batch.said()
		c.carry(c.outcome(c.batch.static, at))
	case c.finish():
		at := len(c.out)
		c.out = cmd.run(c, c.out, args)
		c.at.count(c.s.since(), c.outcome(c.out, at))
		if !c.room() {
			c.closing = true
		}
	}
}

// speaksHTTP tells that a request is a line of HTTP: every request of that has a line that begins so before its body. Pages in a browser can send
// such to a door on its machine (cross-protocol scripting); Redis closes these connections, too.
func speaksHTTP(name []byte) bool {
	return bytes.EqualFold(name, []byte("post")) || bytes.EqualFold(name, []byte("host:"))
}

// say answers with an error, in its turn.
func (c *conn) say(text string) {
	kind := c.kind
	if kind == 0 {
		kind = kverr.InvalidArgument
	}
	c.batch.static = appendError(c.batch.static, text)
	c.batch.said()
	c.carry(kind)
}

// fault is an error of ours as the caller is told.
func (c *conn) fault(err *kverr.Error) string {
	c.kind = err.Kind
	return faultText(c.s.face.Item(where, err))
}

// namespace is where the requests of the batch at hand live.
func (c *conn) namespace(write bool) (*frontend.Namespace, *kverr.Error) {
	if !c.asked {
		c.asked = true
		c.space, c.spaceErr = c.s.face.Namespace(c.ctx, c.keyspace, c.s.cfg.Databases[c.db])
	}
	if c.spaceErr != nil {
		if c.spaceErr.Kind == kverr.Unauthenticated { // the token is good no more: he may come with another
			c.in = false
			c.r.stranger = true
		}
		return nil, c.spaceErr
	}
	if write {
		if !c.askedMore {
			c.askedMore = true
			c.writeErr = c.s.face.MayWrite(c.ctx, where, c.keyspace)
		}
		if c.writeErr != nil {
			return nil, c.writeErr
		}
	}
	return c.space, nil
}

// forgetSpace has namespace ask again, for the next batch.
func (c *conn) forgetSpace() { c.asked, c.askedMore, c.space = false, false, nil }

// finish sends what was begun on its way, waits, and makes the replies. It is false when the connection is over.
func (c *conn) finish() bool {
	b := c.batch
	if len(b.requests) > 0 {
		if b.count > 0 {
			b.send(c)
			if !b.wait(c) {
				return c.gaveUp()
			}
		}
		now := c.s.since()
		for i := range b.requests {
			if !c.reply(b, &b.requests[i], now) {
				return false
			}
			if !c.room() {
				return false
			}
		}
		b.reset()
	}
	c.forgetSpace()
	return true
}

// reply makes the reply of a request whose parts are there, and counts it. It is false when the connection is over.
func (c *conn) reply(b *batch, q *pending, now time.Duration) bool {
	at, kind, failed := c.at, c.kind, c.failed
	c.at, c.kind, c.failed = q.counted, 0, q.kind // calls that answer makes are this request's
	ok := c.answer(b, q)
	q.count(now, c.failed)
	c.at, c.kind, c.failed = at, kind, failed
	return ok
}

// gaveUp answers a batch of which not all came back in time: what is still on its way is left alone, with all that it looks at.
func (c *conn) gaveUp() bool {
	b := c.batch
	late := c.late()
	if c.s.ctx.Err() != nil {
		return false
	}
	c.batch = newBatch(c)
	c.r.abandon()
	now := c.s.since()
	for i := range b.requests {
		q := &b.requests[i]
		for _, p := range b.parts[q.first : q.first+q.parts] {
			if !p.done.Load() {
				q.late = late
			}
		}
		if !c.reply(b, q, now) || !c.room() {
			return false
		}
	}
	c.forgetSpace()
	return true
}

// streamValue takes the long value of a SET, which comes next, into an object; what is wrong with it is told when the request is whole.
func (c *conn) streamValue() bool {
	key := c.r.argumentAt(1)
	size := int64(c.r.length)
	in := &valueSource{c: c, left: size}
	c.big = bigArgument{there: true}
	ns, err := c.namespace(true)
	if err == nil {
		err = c.s.face.CheckKey(key)
	}
	if most := c.s.face.MaxValueBytes(); err == nil && size > most {
		err = kverr.TooBig("value", size, most, "bytes")
	}
	if err == nil {
		err = c.s.face.Spend(c.ctx, ns, 1) // before it costs anything; begins does not count it again
	}
	if err == nil {
		_, c.big.shard = ns.Slot(key)
		c.big.ref, err = c.s.face.WriteValue(c.ctx, c.big.shard, size, in)
	}
	c.big.err = err
	if in.err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return false
	}
	in.left = 2
	if _, err := io.Copy(io.Discard, in); err != nil {
		return false
	}
	c.r.streamed()
	return true
}

// valueSource reads a long value off the connection.
type valueSource struct {
	c    *conn
	left int64
	err  error // of the connection
}

// Read reads at most what is left.
func (v *valueSource) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, io.EOF
	}
	v.c.waiting.Store(time.Now().UnixNano())
	n, err := v.c.r.take(p[:min(int64(len(p)), v.left)])
	v.c.waiting.Store(0)
	v.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	v.err = err
	return n, err
}

// dropBig gives up the object of a long value that no command has named.
func (c *conn) dropBig() {
	if c.big.there && c.big.err == nil && c.big.shard != nil {
		c.s.face.Shards().DropValues(c.big.shard.ID, c.big.ref)
	}
	c.big = bigArgument{}
}
