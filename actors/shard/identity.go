package shard

import (
	"encoding/binary"
	"fmt"

	"kvstore/components/kverr"
)

// Remembered outcomes (D11). The slot is the last part of an identity's key, not the first: a client counts up, so what it writes next to each
// other in time lies next to each other in the tree, and costs a put little. A split of a shard, which is rare, scans the table.
//
// An identity's item is
//
//	flags, not_after, revision, then by type:
//	  put, delete   nothing: version and the rest follow from flags and revision
//	  failed        kind of the error, version
//	  txn           number of operations, two bits for each: put, existed
//	  txn failed    (index*2 + 1 when it was an operation's, version) for each failure
//	  pin, delete   number of blocks, two bits for each: present, leased
//	  of blocks
//
// and is kept until not_after, which is on shard time, so that a try that finds no item and comes later is refused.
const (
	outcomePut          = 1
	outcomeDelete       = 2
	outcomeFailed       = 3
	outcomeTxn          = 4
	outcomeTxnFailed    = 5
	outcomePin          = 6
	outcomeDeleteBlocks = 7
	outcomeTypes        = 0x0f // mask of flags
	outcomeBit          = 0x10 // put, delete, failed: the key existed; txn, pin, delete of blocks: something changed
)

const (
	// sweepPerOutcome is how many remembered outcomes a body looks at for each that it adds. With 3 the table holds at most
	// 1.5 times what must be held, plus what came while nothing was due.
	sweepPerOutcome = 3
	// idleSweep is how many a Sweep effect looks at, sweepPauseMS the least time between two of them, sweepDelayMS how long after an
	// outcome's time was over a shard waits with them for writes to pay for it: a quiet one wakes once a minute, as long as there are any.
	idleSweep    = 1024
	sweepPauseMS = 50
	sweepDelayMS = 60_000
	maxSweep     = 1 << 16 // of one effect, in replay
)

// given tells whether there is an identity at all.
func (id *Identity) given() bool { return id.Client != [16]byte{} }

func appendOutcome(b []byte, typ byte, bit bool, notAfterMS int64, revision uint64) []byte {
	if bit {
		typ |= outcomeBit
	}
	b = append(b, typ)
	b = binary.AppendUvarint(b, uint64(notAfterMS))
	return binary.AppendUvarint(b, revision)
}

func appendFailure(b []byte, kind kverr.Kind, version uint64) []byte {
	return binary.AppendUvarint(append(b, byte(kind)), version)
}

func appendTxnFailures(b []byte, failures []TxnFailure) []byte {
	for _, f := range failures {
		at := uint64(f.Condition) << 1
		if f.Op >= 0 {
			at = uint64(f.Op)<<1 | 1
		}
		b = binary.AppendUvarint(b, at)
		b = binary.AppendUvarint(b, f.Version)
	}
	return b
}

func appendTxnWrites(b []byte, ops []TxnOp, writes []WriteResult) []byte {
	b = binary.AppendUvarint(b, uint64(len(writes)))
	var bits byte
	for i := range writes {
		if ops[i].Put != nil {
			bits |= 1 << (i % 4 * 2)
		}
		if writes[i].Existed {
			bits |= 2 << (i % 4 * 2)
		}
		if i%4 == 3 || i == len(writes)-1 {
			b = append(b, bits)
			bits = 0
		}
	}
	return b
}

func appendBlocks(b []byte, blocks []BlockOutcome) []byte {
	b = binary.AppendUvarint(b, uint64(len(blocks)))
	var bits byte
	for i := range blocks {
		if blocks[i].Present {
			bits |= 1 << (i % 4 * 2)
		}
		if blocks[i].Leased {
			bits |= 2 << (i % 4 * 2)
		}
		if i%4 == 3 || i == len(blocks)-1 {
			b = append(b, bits)
			bits = 0
		}
	}
	return b
}

// recall fills the result with a remembered outcome; revision is what it depended on. It is false when the outcome is one of
// another operation.
func (c *Command) recall(item []byte) (revision uint64, ok bool) {
	r := reader{b: item}
	flags := r.byte()
	r.uvarint() // not_after
	revision = r.uvarint()
	bit := flags&outcomeBit != 0
	res := Result{Duplicate: true}
	switch typ := flags & outcomeTypes; {
	case typ == outcomePut && c.Op == OpPut:
		res.Write = WriteResult{Version: revision, Existed: bit}
		res.Revision = revision
	case typ == outcomeDelete && c.Op == OpDelete:
		if bit {
			res.Write = WriteResult{Version: revision, Existed: true}
			res.Revision = revision
		}
	case typ == outcomeFailed && (c.Op == OpPut || c.Op == OpDelete):
		kind := kverr.Kind(r.byte())
		res.Err = conditionFailed(kind, r.uvarint())
	case typ == outcomeTxn && c.Op == OpTxn:
		res.Committed = true
		if bit {
			res.Revision = revision
		}
		n := r.uvarint()
		if n > uint64(len(r.b))*4 {
			return 0, false
		}
		res.Writes = make([]WriteResult, n)
		for i := range res.Writes {
			bits := r.b[i/4] >> (i % 4 * 2)
			w := &res.Writes[i]
			w.Existed = bits&2 != 0
			if bits&3 != 0 {
				w.Version = revision
			}
		}
	case typ == outcomeTxnFailed && c.Op == OpTxn:
		for len(r.b) > 0 && !r.bad {
			at := r.uvarint()
			f := TxnFailure{Condition: int(at >> 1), Op: -1}
			if at&1 != 0 {
				f.Condition, f.Op = -1, int(at>>1)
			}
			f.Version = r.uvarint()
			res.Failures = append(res.Failures, f)
		}
	case typ == outcomePin && c.Op == OpPin, typ == outcomeDeleteBlocks && c.Op == OpDeleteBlocks:
		if bit {
			res.Revision = revision
		}
		n := r.uvarint()
		if n != uint64(len(c.Prompt.Blocks)) || n > uint64(len(r.b))*4 {
			return 0, false
		}
		res.Blocks = make([]BlockOutcome, n)
		for i := range res.Blocks {
			bits := r.b[i/4] >> (i % 4 * 2)
			res.Blocks[i].Present, res.Blocks[i].Leased = bits&1 != 0, bits&2 != 0
		}
	default:
		return 0, false
	}
	c.Result = res
	return revision, !r.bad
}

// answered answers a command whose identity is known already, or that may not be executed. The key of the identity stays in
// m.idKey for remember.
func (m *Machine) answered(c *Command, slot uint16) bool {
	if !c.ID.given() {
		return false
	}
	m.idKey = appendIdentityKey(m.idKey[:0], slot, &c.ID)
	if item, ok := m.tree.Get(m.idKey); ok {
		if revision, ok := c.recall(item); ok {
			if planted(bugDuplicateNotGated) {
				revision = 0
			}
			m.reply(c, revision)
		} else {
			m.fail(c, invalid("identity", "the identity was used for another operation"), 0)
		}
		return true
	}
	switch ahead := c.ID.NotAfterMS - m.now; {
	case slot > maxSlot:
		m.fail(c, invalid("slot", fmt.Sprintf("%d is not a slot: 0 to %d", slot, maxSlot)), 0)
		return true
	case ahead < 0:
		m.fail(c, &kverr.Error{
			Kind: kverr.Expired, Op: "write", Field: "not_after_ms",
			Message: fmt.Sprintf("came %d ms after its not_after and was not executed; an earlier try may have been", -ahead),
		}, 0)
		return true
	case ahead > maxNotAfterAheadMS:
		m.fail(c, invalid("not_after_ms", fmt.Sprintf("%d ms ahead of server time, at most %d are allowed", ahead, maxNotAfterAheadMS)), 0)
		return true
	}
	return false
}

// remember logs and keeps the outcome that was packed into m.payload, under the key that answered left in m.idKey.
func (m *Machine) remember(revision uint64, slot uint16, id *Identity) {
	m.aside = append(m.aside[:0], m.payload...)
	e := rememberEffect{slot: slot, id: *id, outcome: m.aside}
	m.payload = e.append(m.payload[:0])
	if !planted(bugOutcomeNotLogged) {
		m.log(revision, kindRemember, m.payload)
	}
	m.keep(e.outcome)
}

func (m *Machine) applyRemember(e *rememberEffect) {
	m.idKey = appendIdentityKey(m.idKey[:0], e.slot, &e.id)
	m.keep(e.outcome)
}

// keep stores an outcome under m.idKey.
func (m *Machine) keep(outcome []byte) {
	if _, existed := m.tree.Set(m.idKey, outcome); !existed {
		m.meta.identities++
	}
	m.remembered++
	at := outcomeNotAfter(outcome)
	d := &m.meta
	if d.identities == 1 || at < d.sweepFromMS {
		d.sweepFromMS = at
	}
	if len(d.cursor) > 0 && (d.passMinMS == 0 || at < d.passMinMS) {
		d.passMinMS = at
	}
}

func outcomeNotAfter(item []byte) int64 {
	r := reader{b: item}
	r.byte()
	return int64(r.uvarint())
}

// sweep looks at up to limit remembered outcomes, going on where the last one ended, and forgets those whose time was over at
// timeMS. It runs when a body is sealed, and everything that it goes by (cursor, bounds) is in the meta item, so that a replay does
// just the same. No index by time is kept: it would cost as much memory as the outcomes.
func (m *Machine) sweep(limit int, timeMS int64) {
	d := &m.meta
	if limit == 0 || d.identities == 0 || d.sweepFromMS >= timeMS {
		return
	}
	if planted(bugSweepEarly) {
		timeMS += 60_000
	}
	from := d.cursor
	if len(from) == 0 {
		from = []byte{prefixIdentity}
		d.passMinMS = 0
	}
	looked, ended := 0, true
	m.due = m.due[:0]
	for key, item := range m.tree.Ascend(from, []byte{prefixIdentity + 1}) {
		if looked == limit {
			d.cursor = append(d.cursor[:0], key...)
			ended = false
			break
		}
		looked++
		if at := outcomeNotAfter(item); at < timeMS {
			m.due = append(m.due, key)
		} else if d.passMinMS == 0 || at < d.passMinMS {
			d.passMinMS = at
		}
	}
	for _, key := range m.due {
		m.tree.Delete(key)
	}
	d.identities -= int64(len(m.due))
	clear(m.due)
	if ended {
		d.cursor = d.cursor[:0]
		d.sweepFromMS, d.passMinMS = d.passMinMS, 0
	}
}

// wakeSweep is when sweepIdle has something to do; 0 = never. While writes keep up nothing is overdue for as long as sweepDelayMS, and no Sweep is
// logged; where outcomes are kept for long, one pass a sweepDelayMS is helped to its end.
func (m *Machine) wakeSweep() int64 {
	if m.meta.identities == 0 {
		return 0
	}
	return max(m.sweepAt, m.meta.sweepFromMS+sweepDelayMS)
}

// sweepIdle lets a shard that remembers little that is new forget what is old, in small steps, by effects: without an effect there
// is no body to seal.
func (m *Machine) sweepIdle() {
	if at := m.wakeSweep(); at == 0 || at > m.now {
		return
	}
	m.sweepAt = m.now + sweepPauseMS
	m.payload = appendUintField(m.payload[:0], 1, idleSweep)
	m.log(m.newRevision(), kindSweep, m.payload)
	m.sweepAsked += idleSweep
}
