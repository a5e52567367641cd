package resp

import (
	"errors"
	"syscall"
	"time"

	"kvstore/components/kverr"
)

// maxAway is how many requests of all connections may be away at once: whoever brings their outcomes, one goroutine for all that became durable
// together, writes so many replies before it goes on, some 10 us each.
const maxAway = 64

// Who answers a batch, as batch.turn has it: a number of the batch, and in its last bits one of these.
const (
	here     = iota // the connection's goroutine
	away            // whoever brings the last outcome
	answered        // somebody else does, or has
	turns    = 4
)

// writer writes to a connection what goes at once.
type writer struct {
	raw   syscall.RawConn
	bytes []byte
	n     int
	err   error
	once  func(fd uintptr) bool // w.write, bound once
}

// newWriter is nil for connections that cannot write without waiting: those with TLS, or of a kind that is not known.
func newWriter(conn any) *writer {
	sc, ok := conn.(syscall.Conn)
	if !ok || !canWriteOnce {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	w := &writer{raw: raw}
	w.once = w.write
	return w
}

func (w *writer) write(fd uintptr) bool {
	w.n, w.err = writeOnce(fd, w.bytes)
	return true
}

// try writes as much as there is room for.
func (w *writer) try(b []byte) (n int, err error) {
	w.bytes, w.n, w.err = b, 0, nil
	err = w.raw.Write(w.once)
	w.bytes = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

// leave sends a batch on its way that is one short write, for whoever brings its outcome to answer: that saves waking this goroutine, which
// can read meanwhile. It is false when the batch is not such a one, or its outcome is there: finish it.
func (c *conn) leave() bool {
	b := c.batch
	if b.count != 1 || len(b.requests) != 1 || c.writer == nil || c.closing || c.r.half() || c.r.reserved > 0 {
		return false
	}
	switch b.requests[0].intent.verb {
	case verbSet, verbDelete, verbAdd, verbExpire: // their answers wait for nothing
	default:
		return false
	}
	if b.parts[0].long(c) {
		return false
	}
	if c.s.away.Add(1) > maxAway {
		c.s.away.Add(-1)
		return false
	}
	c.forgetSpace()
	c.waiting.Store(0)
	b.sent.Store(int64(c.s.since()))
	turn := (b.turn.Load()/turns + 1) * turns
	b.turn.Store(turn + away)
	c.left.Store(b)
	b.send(c)
	if b.left.Add(-1) > 0 || !b.turn.CompareAndSwap(turn+away, turn+here) {
		return true
	}
	b.came()
	c.s.away.Add(-1)
	return false
}

// over makes the caller the one who answers a batch that is away, if nobody was before. A batch that another one follows meanwhile is not taken for it.
func (b *batch) over(turn uint64) bool {
	return turn%turns == away && b.turn.CompareAndSwap(turn, turn-away+answered)
}

// complete is called once all outcomes are there.
func (b *batch) complete() {
	if b.over(b.turn.Load()) {
		b.conn.answerAway(b)
		return
	}
	b.done <- struct{}{}
}

// answerAway answers a batch that is away, for the goroutine that has left it.
func (c *conn) answerAway(b *batch) {
	c.s.away.Add(-1)
	c.reply(b, &b.requests[0], c.s.since())
	n, err := c.writer.try(c.out)
	switch {
	case n == len(c.out):
		c.out = c.out[:0]
	case err == nil || errors.Is(err, errNoRoom): // who reads nothing holds up nobody else
		c.out = append(c.out[:0], c.out[n:]...)
		go func() {
			c.closing = !c.flush()
			b.replied <- struct{}{}
		}()
		return
	default:
		c.closing = true
	}
	b.replied <- struct{}{}
}

// giveUpAway tells the caller whose request is away that it takes too long.
func (c *conn) giveUpAway() {
	b := c.left.Load()
	if b == nil {
		return
	}
	turn := b.turn.Load()
	if sent := time.Duration(b.sent.Load()); c.s.since()-sent < c.s.cfg.OpTimeout || !b.over(turn) {
		return
	}
	b.lost = true
	b.requests[0].late = c.late()
	c.answerAway(b)
}

// late is what is told of requests that take too long.
func (c *conn) late() *kverr.Error {
	return &kverr.Error{Kind: kverr.DeadlineExceeded, Message: "it took longer than " + c.s.cfg.OpTimeout.String()}
}

// rejoin has the connection's goroutine take up the batch that it has left. It is false when the connection is over.
func (c *conn) rejoin() bool {
	b := c.batch
	if turn := b.turn.Load(); turn%turns == away && b.turn.CompareAndSwap(turn, turn-away+here) { // it is still under way: as any other
		c.s.away.Add(-1)
		ok := b.await(c)
		if ok {
			b.came()
			ok = c.finish()
		} else {
			ok = c.gaveUp()
		}
		if !ok || !c.flush() {
			return false
		}
	} else if <-b.replied; b.lost {
		c.batch = newBatch(c)
		c.r.abandon()
	} else {
		b.came()
		b.reset()
	}
	c.r.keep()
	return !c.closing
}
