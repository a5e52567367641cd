package resp

import (
	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
)

// multi is what was queued since MULTI.
type multi struct {
	steps  []step
	bytes  int
	failed bool // EXEC will do nothing
}

// watched is a key as it was when WATCH came.
type watched struct {
	key      []byte
	version  uint64 // 0 = it was not there
	keyspace string
	db       int
}

// maxWatches is how many keys a connection may watch.
const maxWatches = key.MaxTransactionOps / 2

func (c *conn) queue(cmd *command, args [][]byte) {
	m := c.multi
	size := 0
	for _, a := range args {
		size += len(a)
	}
	switch {
	case cmd.apart:
		m.failed = true
		c.say("ERR Command not allowed inside a transaction")
		return
	case len(m.steps) == key.MaxTransactionOps || m.bytes+size > key.MaxTransaction:
		m.failed = true
		c.say(c.fault(kverr.TooBig("transaction", m.bytes+size, key.MaxTransaction, "bytes, or it has too many requests")))
		return
	}
	m.bytes += size
	copied := make([][]byte, len(args))
	room := make([]byte, 0, size)
	for i, a := range args {
		room = append(room, a...)
		copied[i] = room[len(room)-len(a):]
	}
	m.steps = append(m.steps, step{cmd: cmd, args: copied})
	c.batch.static = appendStatus(c.batch.static, "QUEUED")
	c.batch.said()
	c.at = counted{} // EXEC is counted
}

func (c *conn) dropMulti() {
	c.multi = nil
	c.watches = nil
}

func runMulti(c *conn, b []byte, _ [][]byte) []byte {
	if c.multi != nil {
		return appendError(b, "ERR MULTI calls can not be nested")
	}
	c.multi = &multi{}
	return append(b, "+OK\r\n"...)
}

func runDiscard(c *conn, b []byte, _ [][]byte) []byte {
	if c.multi == nil {
		return appendError(b, "ERR DISCARD without MULTI")
	}
	c.dropMulti()
	return append(b, "+OK\r\n"...)
}

func runExec(c *conn, b []byte, _ [][]byte) []byte {
	m, watches := c.multi, c.watches
	if m == nil {
		return appendError(b, "ERR EXEC without MULTI")
	}
	c.dropMulti()
	if m.failed {
		return appendError(b, errExecAbort)
	}
	for _, w := range watches {
		if w.keyspace != c.keyspace || w.db != c.db {
			return appendError(b, errCrossSlot)
		}
	}
	var keyed, write bool
	costs := 0 // as outside MULTI: what is not on keys costs nothing, or counts itself
	for i := range m.steps {
		s := &m.steps[i]
		if s.cmd.parse == nil {
			continue
		}
		if s.text = s.cmd.parse(s.cmd, s.args, &s.in, c.s.face.Now()); s.text == "" {
			s.text = c.check(&s.in)
		}
		if s.text != "" {
			s.in = intent{}
			continue
		}
		keyed, write = true, write || s.in.writes()
		costs += s.in.costs()
	}
	ns, err := c.namespace(write)
	if err != nil && (keyed || len(watches) > 0) {
		return appendError(b, c.fault(err))
	}
	if err == nil {
		if err := c.s.face.Spend(c.ctx, ns, max(1, costs)); err != nil {
			return appendError(b, c.fault(err))
		}
	}
	reply, broken, err := c.transact(ns, m.steps, watches)
	switch {
	case err != nil:
		return appendError(b, c.fault(err))
	case broken:
		return appendNullArray(b, c.version)
	}
	return append(appendArray(b, len(m.steps)), reply...)
}

func runWatch(c *conn, b []byte, args [][]byte) []byte {
	if c.multi != nil {
		return appendError(b, "ERR WATCH inside MULTI is not allowed")
	}
	if n := len(c.watches) + len(args) - 1; n > maxWatches {
		return appendError(b, c.fault(kverr.TooBig("keys", n, maxWatches, "watched keys")))
	}
	ns, err := c.namespace(false)
	if err == nil {
		err = c.s.face.Spend(c.ctx, ns, len(args)-1)
	}
	if err != nil {
		return appendError(b, c.fault(err))
	}
	for _, k := range args[1:] {
		if err := c.s.face.CheckKey(k); err != nil {
			return appendError(b, c.fault(err))
		}
		_, sh := ns.Slot(k)
		q := &shard.Query{Op: shard.QueryGet, Namespace: ns.ID, Key: append([]byte(nil), k...)}
		if err := c.ask(sh, q); err != nil {
			return appendError(b, c.fault(err))
		}
		w := watched{key: q.Key, keyspace: c.keyspace, db: c.db}
		if q.Answer.Found {
			w.version = q.Answer.Entry.Version
		}
		c.watches = append(c.watches, w)
	}
	return append(b, "+OK\r\n"...)
}

func runUnwatch(c *conn, b []byte, _ [][]byte) []byte {
	c.watches = nil
	return append(b, "+OK\r\n"...)
}
