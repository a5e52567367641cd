package resp

import (
	"bytes"
	"math"
	"slices"
	"strconv"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/services/frontend"
)

// maxAttempts bounds how often requests that read and write as one are done anew because others wrote the same keys meanwhile.
const maxAttempts = 256

var errContention = &kverr.Error{Kind: kverr.Unavailable, RetryAfterMS: 1,
	Message: "others wrote the same keys each of the 256 times that this was tried; nothing was done"}

// cell is a key of a transaction as its requests see it.
type cell struct {
	key     []byte
	slot    uint16
	was     shard.Entry
	found   bool // before
	seen    bool // its state went into a reply, so it must still be so at the commit
	exists  bool // now
	value   []byte
	expires int64
	fresh   bool // the expiry is that of the namespace: it is counted from the commit on
	kept    bool // the expiry is the one that was there
	bare    bool // SET: what else the entry had is gone
	written bool
}

// transaction is requests that are done as one, on the condition that what they have seen is still so.
type transaction struct {
	c       *conn
	ns      *frontend.Namespace
	shard   *frontend.Shard
	cells   []*cell
	index   map[string]*cell
	version int // of the protocol
	now     int64
}

// atomically does one request that must see what is there before it writes, and answers it.
func (c *conn) atomically(cmd *command, in *intent) {
	ns, err := c.namespace(in.writes())
	if err != nil {
		c.fails(err.Kind, c.fault(err))
		return
	}
	reply, _, err := c.transact(ns, []step{{cmd: cmd, in: *in}}, nil)
	if err != nil {
		c.fails(err.Kind, c.fault(err))
		return
	}
	c.failed = c.outcome(reply, 0)
	c.out = append(c.out, reply...)
}

// step is one request of a transaction: one about keys, or one whose reply is made.
type step struct {
	cmd  *command
	in   intent
	args [][]byte // of one that is not about keys
	text string   // why it fails, told when it is done
	said []byte   // its reply, if it is about keys; the others are done once these are committed
}

// transact does requests as one. Broken tells that a watched key was written. Replies are one after the other.
func (c *conn) transact(ns *frontend.Namespace, steps []step, watches []watched) (reply []byte, broken bool, err *kverr.Error) {
	t := &transaction{c: c, ns: ns, version: c.version}
	if err := t.place(steps, watches); err != nil {
		return nil, false, err
	}
	for range maxAttempts {
		if err := t.try(steps); err != nil {
			return nil, false, err
		}
		again, broken, err := t.commit(watches)
		if err != nil || broken {
			return nil, broken, err
		}
		if !again {
			return c.replies(steps), false, nil
		}
		if c.s.ctx.Err() != nil {
			return nil, false, errLate
		}
	}
	return nil, false, errContention
}

// replies are those of a transaction that was committed.
func (c *conn) replies(steps []step) (reply []byte) {
	for i := range steps {
		s := &steps[i]
		switch {
		case s.text != "":
			reply = appendError(reply, s.text)
		case s.cmd.says != nil:
			reply = s.cmd.says(c, reply, s.args)
		case s.cmd.run != nil:
			reply = s.cmd.run(c, reply, s.args)
		default:
			reply = append(reply, s.said...)
		}
	}
	return reply
}

// place finds the keys and the shard of all of them.
func (t *transaction) place(steps []step, watches []watched) *kverr.Error {
	t.index = make(map[string]*cell)
	var first []byte
	same := func(k []byte) *kverr.Error {
		if first == nil {
			first = t.ns.Partition(k)
		}
		if !bytes.Equal(first, t.ns.Partition(k)) {
			return &kverr.Error{Kind: kverr.CrossPartition}
		}
		return nil
	}
	for _, w := range watches {
		if err := same(w.key); err != nil {
			return err
		}
	}
	for i := range steps {
		in := &steps[i].in
		for j := 0; j < len(in.keys); j += in.step {
			k := in.keys[j]
			if err := same(k); err != nil {
				return err
			}
			if t.index[string(k)] == nil {
				x := &cell{key: k}
				x.slot, t.shard = t.ns.Slot(k)
				t.index[string(k)] = x
				t.cells = append(t.cells, x)
			}
		}
	}
	if len(watches) > 0 {
		_, t.shard = t.ns.Slot(watches[0].key)
	}
	if n := len(t.cells) + len(watches); n > key.MaxTransactionOps/2 {
		return kverr.TooBig("keys", n, key.MaxTransactionOps/2, "keys of a transaction")
	}
	return nil
}

// try reads what is there and does the requests on it.
func (t *transaction) try(steps []step) (err *kverr.Error) {
	queries := make([]*shard.Query, len(t.cells))
	for i, x := range t.cells {
		queries[i] = &shard.Query{Op: shard.QueryGet, Namespace: t.ns.ID, Key: x.key}
	}
	if len(queries) > 0 {
		if err := t.c.ask(t.shard, queries...); err != nil {
			return err
		}
	}
	room := int64(key.MaxTransaction)
	for i, x := range t.cells {
		a := &queries[i].Answer
		*x = cell{key: x.key, slot: x.slot}
		if !a.Found {
			continue
		}
		x.was, x.found, x.exists, x.expires, x.kept = a.Entry, true, true, a.Entry.ExpiresMS, true
		if x.value = a.Entry.Value.Inline; !t.needs(steps, x) || !frontend.Apart(&a.Entry.Value) {
			continue
		}
		if room -= a.Entry.Value.Ref.Length; room < 0 && len(t.cells) > 1 || a.Entry.Value.Ref.Length > key.MaxValue {
			return kverr.TooBig("values", key.MaxTransaction-room, int64(key.MaxTransaction), "bytes of a transaction together")
		}
		e, value, found, err := t.c.s.face.Fetch(t.c.ctx, t.ns, t.shard, x.key, a, func(n int) []byte { return make([]byte, n) })
		if err != nil {
			return err
		}
		if x.was, x.found, x.exists, x.value, x.expires = e, found, found, value, e.ExpiresMS; !found {
			*x = cell{key: x.key, slot: x.slot}
		}
	}
	t.now = t.c.s.face.Now()
	for i := range steps {
		s := &steps[i]
		if s.text != "" || s.cmd.parse == nil {
			continue
		}
		if s.said, err = t.do(nil, &s.in); err != nil {
			return err
		}
	}
	return nil
}

// needs tells whether the bytes of a value are needed: not for one that is only overwritten, removed or measured.
func (t *transaction) needs(steps []step, x *cell) bool {
	for i := range steps {
		in := &steps[i].in
		switch in.verb {
		case verbExists, verbStrlen, verbTTL, verbType, verbDelete, verbMSet:
			continue
		case verbSet:
			if !in.old {
				continue
			}
		}
		for j := 0; j < len(in.keys); j += in.step {
			if bytes.Equal(in.keys[j], x.key) {
				return true
			}
		}
	}
	return false
}

// see is a key whose state goes into a reply.
func (t *transaction) see(k []byte) *cell {
	x := t.index[string(k)]
	x.seen = x.seen || !x.written // what this transaction wrote is no one else's
	return x
}

// size is the length of the value.
func (x *cell) size() int64 {
	if !x.written && frontend.Apart(&x.was.Value) {
		return x.was.Value.Ref.Length
	}
	return int64(len(x.value))
}

// set writes a value; keep: the expiry stays.
func (t *transaction) set(x *cell, value []byte, keep bool) {
	if !keep || !x.exists {
		x.expires, x.kept, x.fresh, x.bare = 0, false, t.ns.DefaultTTLMS != 0, true
	}
	x.exists, x.written, x.value = true, true, value
}

func (x *cell) remove() {
	x.seen = x.seen || !x.written
	x.exists, x.written, x.value = false, true, nil
}

// do does one request about keys.
func (t *transaction) do(b []byte, in *intent) ([]byte, *kverr.Error) {
	switch in.verb {
	case verbMGet:
		b = appendArray(b, len(in.keys))
		for _, k := range in.keys {
			b = t.appendValue(b, t.see(k))
		}
		return b, nil
	case verbMSet:
		for i := 0; i < len(in.keys); i += 2 {
			t.set(t.index[string(in.keys[i])], in.keys[i+1], false)
		}
		return append(b, "+OK\r\n"...), nil
	case verbExists, verbDelete:
		n := int64(0)
		for _, k := range in.keys {
			if x := t.see(k); x.exists {
				n++
				if in.verb == verbDelete {
					x.remove()
				}
			}
		}
		return appendInt(b, n), nil
	case verbSet:
		return t.doSet(b, in), nil
	}
	x := t.see(in.key())
	switch in.verb {
	case verbGet:
		return t.appendValue(b, x), nil
	case verbStrlen:
		if !x.exists {
			return appendInt(b, 0), nil
		}
		return appendInt(b, x.size()), nil
	case verbType:
		return appendType(b, x.exists), nil
	case verbTTL:
		expires := x.expires
		if x.fresh {
			expires = t.now + t.ns.DefaultTTLMS
		}
		return t.c.appendTTL(b, in, x.exists, expires), nil
	case verbGetDelete:
		if b = t.appendValue(b, x); x.exists {
			x.remove()
		}
		return b, nil
	case verbAdd:
		return t.doAdd(b, in, x), nil
	case verbAppend:
		n := int64(len(x.value) + len(in.value))
		if !x.exists {
			n = int64(len(in.value))
		}
		if n > t.c.s.face.MaxValueBytes() {
			return appendError(b, errTooLong), nil
		}
		t.set(x, slices.Concat(x.value, in.value), true)
		return appendInt(b, n), nil
	case verbExpire:
		return t.doExpire(b, in, x), nil
	}
	return b, kverr.New(kverr.Unimplemented, "RESP", "request %d", in.verb)
}

func (t *transaction) appendValue(b []byte, x *cell) []byte {
	if !x.exists {
		return appendNull(b, t.version)
	}
	return appendBulk(b, x.value)
}

func (t *transaction) doSet(b []byte, in *intent) []byte {
	x := t.index[string(in.key())]
	if in.old {
		b = t.appendValue(b, t.see(in.key()))
	}
	if in.when != 0 {
		t.see(in.key())
	}
	if in.when == shard.CheckAbsent && x.exists || in.when == shard.CheckPresent && !x.exists {
		switch {
		case in.old:
			return b
		case in.number:
			return appendInt(b, 0)
		}
		return appendNull(b, t.version)
	}
	t.set(x, in.value, in.keep)
	x.bare = true // SET replaces all but, if asked, the expiry
	switch {
	case in.ttl != 0:
		x.expires, x.fresh, x.kept = t.now+in.ttl, false, false
	case in.at != 0:
		if x.expires, x.fresh, x.kept = in.at, false, false; in.at <= t.now {
			x.remove()
		}
	}
	switch {
	case in.old:
		return b
	case in.number:
		return appendInt(b, 1)
	}
	return append(b, "+OK\r\n"...)
}

func (t *transaction) doAdd(b []byte, in *intent, x *cell) []byte {
	var n int64
	if x.exists {
		var ok bool
		if n, ok = integer(x.value); !ok {
			return appendError(b, errNotInteger)
		}
	}
	if in.delta > 0 && n > math.MaxInt64-in.delta || in.delta < 0 && n < math.MinInt64-in.delta {
		return appendError(b, errOverflow)
	}
	t.set(x, strconv.AppendInt(nil, n+in.delta, 10), true)
	return appendInt(b, n+in.delta)
}

func (t *transaction) doExpire(b []byte, in *intent, x *cell) []byte {
	old := x.expires
	later := old != 0 && (in.at == 0 || in.at > old)
	earlier := in.at != 0 && (old == 0 || in.at < old)
	on := in.on
	if !x.exists || on&shard.WhenNone != 0 && old != 0 || on&shard.WhenSome != 0 && old == 0 || on&shard.WhenLater != 0 && !later ||
		on&shard.WhenEarlier != 0 && !earlier {
		return appendInt(b, 0)
	}
	if in.at != 0 && in.at <= t.now {
		x.remove()
		return appendInt(b, 1)
	}
	x.expires, x.fresh, x.kept, x.written = in.at, false, false, true
	return appendInt(b, 1)
}

// commit writes what was written, on the condition that what was seen is still so, and that watched keys are as they were.
func (t *transaction) commit(watches []watched) (again, broken bool, err *kverr.Error) {
	txn := &shard.Txn{}
	for i := range watches {
		txn.Conditions = append(txn.Conditions, shard.Condition{Key: watches[i].key, If: unchanged(watches[i].version)})
	}
	var puts []*shard.Put
	for _, x := range t.cells {
		txn.Slot = x.slot
		if x.seen {
			version := uint64(0)
			if x.found {
				version = x.was.Version
			}
			txn.Conditions = append(txn.Conditions, shard.Condition{Key: x.key, If: unchanged(version)})
		}
		switch {
		case !x.written:
		case !x.exists:
			txn.Ops = append(txn.Ops, shard.TxnOp{Delete: &shard.Delete{Key: x.key, Slot: x.slot}})
		default:
			put := t.put(x)
			puts = append(puts, put)
			txn.Ops = append(txn.Ops, shard.TxnOp{Put: put})
		}
	}
	if len(txn.Conditions)+len(txn.Ops) == 0 {
		return false, false, nil
	}
	size := 0
	for _, p := range puts {
		size += len(p.Key) + len(p.Value.Inline)
	}
	if size > key.MaxTransaction && len(puts) > 1 {
		return false, false, kverr.TooBig("values", size, key.MaxTransaction, "bytes of a transaction together")
	}
	if err := t.c.s.face.StoreApart(t.c.ctx, t.shard, puts...); err != nil {
		return false, false, err
	}
	cmd := &shard.Command{Op: shard.OpTxn, Namespace: t.ns.ID, Txn: txn}
	if err := t.c.tell(t.shard, cmd); err != nil {
		return false, false, err
	}
	for _, f := range cmd.Result.Failures {
		if f.Condition >= 0 && f.Condition < len(watches) {
			return false, true, nil
		}
	}
	return !cmd.Result.Committed, false, nil
}

// put is what a key becomes.
func (t *transaction) put(x *cell) *shard.Put {
	p := &shard.Put{Key: x.key, Slot: x.slot, Value: shard.Value{Inline: x.value}}
	if !x.bare && x.found {
		p.ContentType, p.Encoding, p.Metadata, p.Tags = x.was.ContentType, x.was.Encoding, x.was.Metadata(), x.was.Tags()
	}
	switch {
	case x.kept:
		p.KeepTTL = true
	case x.fresh:
		p.TTLMS = t.ns.DefaultTTLMS
	case x.expires != 0:
		p.TTLMS = max(x.expires-t.now, 1)
	}
	return p
}

func unchanged(version uint64) shard.Precondition {
	if version == 0 {
		return shard.Precondition{Check: shard.CheckAbsent}
	}
	return shard.Precondition{Check: shard.CheckVersion, Version: version}
}
