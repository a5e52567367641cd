package resp

import (
	"bytes"
	"io"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/services/frontend"
)

// begins takes a request about keys.
func (c *conn) begins(cmd *command, args [][]byte) {
	var in intent
	text := cmd.parse(cmd, args, &in, c.s.face.Now())
	nothing := false
	if text == "" {
		if ns, err := c.namespace(in.writes()); err != nil {
			text = c.fault(err)
		} else if text = c.check(&in); text == "" && !c.big.there { // of a long value streamValue has counted it
			if err := c.s.face.Spend(c.ctx, ns, in.costs()); err != nil {
				if nothing = !in.writes() && c.missFor(err); !nothing {
					text = c.fault(err)
				}
			}
		}
	}
	switch {
	case nothing:
		c.batch.static = c.appendNothing(c.batch.static, &in)
		c.batch.said()
		c.carry(0)
	case text != "":
		c.say(text)
	case in.slow() || in.verb == verbMSet && c.together(in.keys, 2):
		if c.finish() {
			c.atomically(cmd, &in)
			c.at.count(c.s.since(), c.failed)
		}
	case c.claim(in.keys, in.step, in.use()):
		if ns, err := c.namespace(in.writes()); err != nil { // claim may have begun another batch
			c.say(c.fault(err))
		} else {
			c.plan(cmd, &in, ns)
		}
	default:
		c.closing = true
	}
}

// together tells whether several keys lie in one partition, so that they can be written as one.
func (c *conn) together(list [][]byte, step int) bool {
	for i := step; i < len(list); i += step {
		if !bytes.Equal(c.space.Partition(list[0]), c.space.Partition(list[i])) {
			return false
		}
	}
	return len(list) > step
}

// check is what is wrong with the keys and values of a request.
func (c *conn) check(in *intent) (text string) {
	most := c.s.face.MaxValueBytes()
	for i := 0; i < len(in.keys); i += in.step {
		if err := c.s.face.CheckKey(in.keys[i]); err != nil {
			return c.fault(err)
		}
		if in.verb == verbMSet {
			if n := int64(len(in.keys[i+1])); n > most {
				return c.fault(kverr.TooBig("value", n, most, "bytes"))
			}
		}
	}
	if n := int64(len(in.value)); n > most {
		return c.fault(kverr.TooBig("value", n, most, "bytes"))
	}
	if c.big.there {
		if c.big.err != nil {
			return c.fault(c.big.err)
		}
		in.apart = &c.big
	}
	return ""
}

// plan makes the parts of a request.
func (c *conn) plan(cmd *command, in *intent, ns *frontend.Namespace) {
	b := c.batch
	if in.verb == verbAppend {
		in.keys = append([][]byte(nil), in.keys...) // the list is the reader's, and it may be looked at again
	}
	q := b.add(cmd, in)
	c.carry(0)
	for i := 0; i < len(in.keys); i += in.step {
		key := in.keys[i]
		p, slot := b.part(q, ns, key)
		if !in.writes() {
			p.query.Op, p.query.Namespace, p.query.Key = shard.QueryGet, ns.ID, key
			continue
		}
		p.cmd.Namespace = ns.ID
		switch in.verb {
		case verbMSet:
			p.cmd.Op = shard.OpPut
			p.cmd.Put = shard.Put{Key: key, Value: shard.Value{Inline: in.keys[i+1]}, TTLMS: ns.DefaultTTLMS, Slot: slot}
		case verbSet:
			c.planSet(in, ns, p, slot)
		case verbDelete:
			p.cmd.Op, p.cmd.Delete = shard.OpDelete, shard.Delete{Key: key, Slot: slot}
		default:
			p.edit = shard.Edit{Key: key, Slot: slot, TTLMS: ns.DefaultTTLMS}
			switch in.verb {
			case verbAdd:
				p.edit.Kind, p.edit.Delta = shard.EditAdd, in.delta
			case verbAppend:
				p.edit.Kind, p.edit.Bytes, p.edit.MaxBytes = shard.EditAppend, in.value, int64(c.s.face.InlineLimit())
			case verbExpire:
				p.edit.Kind, p.edit.ExpiresMS, p.edit.When = shard.EditExpire, in.at, in.on
			}
			p.cmd.Op, p.cmd.Edit = shard.OpEdit, &p.edit
		}
	}
}

func (c *conn) planSet(in *intent, ns *frontend.Namespace, p *part, slot uint16) {
	cond := shard.Precondition{Check: in.when}
	if in.at != 0 && in.at <= c.s.face.Now() { // it is over already
		p.cmd.Op, p.cmd.Delete = shard.OpDelete, shard.Delete{Key: in.key(), If: cond, Slot: slot}
		return
	}
	p.cmd.Op = shard.OpPut
	p.cmd.Put = shard.Put{Key: in.key(), Value: shard.Value{Inline: in.value}, If: cond, Slot: slot, KeepTTL: in.keep, TTLMS: c.ttlOf(in, ns)}
	if in.apart != nil {
		p.cmd.Put.Value = shard.Value{Ref: in.apart.ref}
		c.big = bigArgument{} // the command has it now
	}
}

// ttlOf is the time to live that a SET gives.
func (c *conn) ttlOf(in *intent, ns *frontend.Namespace) int64 {
	switch {
	case in.ttl != 0:
		return in.ttl
	case in.at != 0:
		return max(in.at-c.s.face.Now(), 1)
	}
	return ns.DefaultTTLMS
}

// answer makes the reply of a request whose parts are there. It is false when the connection is over.
func (c *conn) answer(b *batch, q *pending) bool {
	c.out = append(c.out, b.static[q.from:q.to]...)
	if q.cmd == nil {
		return true
	}
	in := &q.intent
	if q.late != nil {
		if in.writes() || !c.missFor(q.late) {
			c.fails(q.late.Kind, c.fault(q.late))
		} else {
			c.out = c.appendNothing(c.out, in)
		}
		return true
	}
	parts := b.parts[q.first : q.first+q.parts]
	switch in.verb {
	case verbMGet:
		c.out = appendArray(c.out, len(parts))
		for _, p := range parts {
			if !c.answerValue(p) || !c.room() {
				return false
			}
		}
		return true
	case verbGet:
		return c.answerValue(parts[0])
	}
	var count int64
	for _, p := range parts {
		if p.err != nil && (in.writes() || !c.missFor(p.err)) {
			return c.answerFault(q, p)
		}
		if p.query.Op == shard.QueryNone && p.cmd.Result.Write.Existed || p.query.Answer.Found {
			count++
		}
	}
	p := parts[0]
	switch in.verb {
	case verbSet:
		if in.number {
			c.out = appendInt(c.out, 1)
		} else {
			c.out = append(c.out, "+OK\r\n"...)
		}
	case verbMSet:
		c.out = append(c.out, "+OK\r\n"...)
	case verbExists, verbDelete:
		c.out = appendInt(c.out, count)
	case verbStrlen:
		c.out = appendInt(c.out, p.query.Answer.Entry.Size())
	case verbType:
		c.out = appendType(c.out, p.query.Answer.Found)
	case verbTTL:
		c.out = c.appendTTL(c.out, in, p.query.Answer.Found, p.query.Answer.Entry.ExpiresMS)
	default:
		c.out = appendInt(c.out, p.cmd.Result.Number)
	}
	return true
}

// appendNothing answers a read as if none of its keys were there.
func (c *conn) appendNothing(b []byte, in *intent) []byte {
	switch in.verb {
	case verbGet:
		return appendNull(b, c.version)
	case verbMGet:
		b = appendArray(b, len(in.keys))
		for range in.keys {
			b = appendNull(b, c.version)
		}
		return b
	case verbType:
		return appendType(b, false)
	case verbTTL:
		return c.appendTTL(b, in, false, 0)
	}
	return appendInt(b, 0) // EXISTS, STRLEN
}

func appendType(b []byte, found bool) []byte {
	if found {
		return appendStatus(b, "string")
	}
	return appendStatus(b, "none")
}

func (c *conn) appendTTL(b []byte, in *intent, found bool, expires int64) []byte {
	switch {
	case !found:
		return appendInt(b, -2)
	case expires == 0:
		return appendInt(b, -1)
	case in.moment:
		return appendInt(b, (expires+in.unit/2)/in.unit)
	}
	return appendInt(b, (max(expires-c.s.face.Now(), 0)+in.unit/2)/in.unit)
}

// answerFault answers a request of which a part failed.
func (c *conn) answerFault(q *pending, p *part) bool {
	in := &q.intent
	switch {
	case in.verb == verbSet && in.when != 0 && (p.err.Kind == kverr.AlreadyExists || p.err.Kind == kverr.VersionMismatch):
		if in.number {
			c.out = appendInt(c.out, 0)
		} else {
			c.out = appendNull(c.out, c.version)
		}
		return true
	case in.verb == verbAdd && p.err.Kind == kverr.InvalidArgument:
		c.fails(p.err.Kind, addFault(p.err))
		return true
	case in.verb == verbAppend && p.err.Kind == kverr.ValueTooLarge:
		c.atomically(q.cmd, in)
		return !c.closing
	}
	c.fails(p.err.Kind, c.fault(p.err))
	return true
}

func addFault(err *kverr.Error) string {
	if err.Field == "delta" {
		return errOverflow
	}
	return errNotInteger
}

// answerValue answers the value that a part asked for.
func (c *conn) answerValue(p *part) bool {
	a := &p.query.Answer
	switch {
	case p.err != nil:
		c.noValue(p.err)
		return true
	case !a.Found:
		c.out = appendNull(c.out, c.version)
		return true
	case !frontend.Apart(&a.Entry.Value):
		c.out = appendBulk(c.out, a.Entry.Value.Inline)
		return true
	}
	return c.answerApart(p)
}

// answerApart answers a value that lies apart. A short one is verified before a byte of it leaves. A long one is read twice, once to verify it and
// once to send it, verified again on the way: a byte that turned in between ends the connection before the reply is whole.
func (c *conn) answerApart(p *part) bool {
	var long *kverr.Error
	alloc := func(n int) []byte {
		if n > streamAt {
			return nil
		}
		return make([]byte, n)
	}
	a := &p.query.Answer
	for range 16 { // times that the key is written meanwhile
		if a.Entry.Value.Ref.Length <= streamAt {
			e, value, found, err := c.s.face.Fetch(c.ctx, c.space, p.shard, p.query.Key, a, alloc)
			switch {
			case err != nil && err.Kind == kverr.ValueTooLarge:
				a.Entry = e
				continue
			case err != nil:
				c.noValue(err)
			case !found:
				c.out = appendNull(c.out, c.version)
			default:
				c.out = appendBulk(c.out, value)
			}
			return true
		}
		ref := a.Entry.Value.Ref
		if long = c.readThrough(p.shard, ref, func([]byte) bool { return true }); long == nil {
			c.out = appendHead(c.out, '$', int(ref.Length))
			ok := true
			err := c.readThrough(p.shard, ref, func(chunk []byte) bool {
				if ok = c.flush(); ok {
					c.out = append(c.out, chunk...)
				}
				return ok
			})
			c.out = append(c.out, "\r\n"...)
			return ok && err == nil
		}
		if long.Kind != kverr.DataLoss {
			break
		}
		again := c.look(p.shard, p.query.Key)
		switch {
		case again.Err != nil:
			long = again.Err
		case !again.Found:
			c.out = appendNull(c.out, c.version)
			return true
		case !frontend.Apart(&again.Entry.Value):
			c.out = appendBulk(c.out, again.Entry.Value.Inline)
			return true
		case again.Entry.Value.Ref != ref:
			*a = *again
			continue
		}
		break
	}
	c.noValue(long)
	return true
}

// noValue answers for a value that was not to be had.
func (c *conn) noValue(err *kverr.Error) {
	if c.missFor(err) {
		c.out = appendNull(c.out, c.version)
	} else {
		c.fails(err.Kind, c.fault(err))
	}
}

// missFor tells whether a read that failed is answered as if nothing were there: in a namespace of kind cache, where clients compute anew what they do
// not find and some cannot stand an error (LMCache's adapter loses its place in the stream for good). It is counted, and logged as the error would be.
// What the caller did wrong stays an error.
func (c *conn) missFor(err *kverr.Error) bool {
	if !c.space.MissesForErrors() {
		return false
	}
	switch err.Kind {
	case kverr.Unauthenticated, kverr.PermissionDenied, kverr.InvalidArgument, kverr.TooLarge, kverr.WrongKind:
		return false
	}
	_ = c.fault(err)
	c.s.missed.Add(1)
	return true
}

// readThrough reads a value in chunks and verifies it; more tells whether to go on.
func (c *conn) readThrough(sh *frontend.Shard, ref shard.Ref, more func([]byte) bool) *kverr.Error {
	buf := make([]byte, min(ref.Length, streamAt))
	sum := xxh3.New()
	for off := int64(0); off < ref.Length; {
		chunk := buf[:min(int64(len(buf)), ref.Length-off)]
		if err := c.s.face.Shards().ReadValue(c.ctx, sh.ID, ref, off, chunk); err != nil {
			e := kverr.From(err)
			if e.Kind == kverr.NotFound {
				e = &kverr.Error{Kind: kverr.DataLoss, Op: "read value", Message: "the value's object is gone", Err: err}
			}
			return e
		}
		_, _ = sum.Write(chunk)
		off += int64(len(chunk))
		if off == ref.Length && sum.Sum64() != ref.Checksum {
			return &kverr.Error{Kind: kverr.DataLoss, Op: "read value", Message: "the stored value does not match its checksum"}
		}
		if !more(chunk) {
			return kverr.From(io.ErrClosedPipe)
		}
	}
	return nil
}

// look asks for one key again.
func (c *conn) look(sh *frontend.Shard, key []byte) *shard.Answer {
	q := &shard.Query{Op: shard.QueryGet, Namespace: c.space.ID, Key: key}
	if err := c.ask(sh, q); err != nil {
		return &shard.Answer{Err: err}
	}
	return &q.Answer
}

// ask asks one shard and waits.
func (c *conn) ask(sh *frontend.Shard, queries ...*shard.Query) *kverr.Error {
	b := newBatch(c)
	parts := make([]part, len(queries))
	b.left.Add(int32(len(queries)))
	for i, q := range queries {
		p := &parts[i]
		p.batch = b
		p.query.Op = q.Op
		q.Done = func(q *shard.Query, err error) {
			p.query.Answer.Err = q.Answer.Err
			p.finish(err)
		}
	}
	c.s.face.Shards().Read(c.calls(), sh.ID, queries...)
	if !b.wait(c) {
		return errLate
	}
	for i := range parts {
		if parts[i].err != nil {
			return parts[i].err
		}
	}
	return nil
}

// tell hands one command to a shard and waits.
func (c *conn) tell(sh *frontend.Shard, cmd *shard.Command) *kverr.Error {
	b := newBatch(c)
	p := &part{batch: b}
	b.left.Add(1)
	cmd.Done = func(cmd *shard.Command, err error) {
		p.cmd.Result.Err = cmd.Result.Err
		p.finish(err)
	}
	c.s.face.Shards().Do(c.calls(), sh.ID, cmd)
	if !b.wait(c) {
		return errLate
	}
	return p.err
}

var errLate = &kverr.Error{Kind: kverr.DeadlineExceeded, Message: "it took too long"}
