package shard

import (
	"bytes"
	"fmt"

	"kvstore/components/kverr"
)

// maxTTLMS keeps expiry times within the six bytes of the expiry index.
const maxTTLMS = 1 << 46

// current is the entry that a write meets. An entry whose time is over is expired first, even if Tick has not come to it.
// dep is the revision that the answer depends on: the last write of the key, or the last removal when there is none.
func (m *Machine) current(ns NamespaceID, key []byte) (e Entry, exists bool, dep uint64) {
	m.key = appendDataKey(m.key[:0], ns, key)
	item, ok := m.tree.Get(m.key)
	if !ok || !e.decode(item) {
		if planted(bugAbsenceNotGated) {
			return Entry{}, false, 0
		}
		return Entry{}, false, m.removedAt
	}
	if e.ExpiresMS != 0 && e.ExpiresMS <= m.now {
		m.emitExpire(ns, key)
		return Entry{}, false, m.removedAt
	}
	return e, true, e.Version
}

// check holds a precondition against the entry: the kind of the failure, 0 when it holds.
func (p *Precondition) check(e *Entry, exists bool) kverr.Kind {
	switch p.Check {
	case CheckNone:
		return 0
	case CheckVersion:
		if exists && e.Version == p.Version {
			return 0
		}
		return kverr.VersionMismatch
	case CheckPresent:
		if exists {
			return 0
		}
		return kverr.VersionMismatch
	case CheckAbsent:
		if !exists {
			return 0
		}
		return kverr.AlreadyExists
	}
	return 0
}

// fault is what is wrong with a precondition; nil when nothing is.
func (p *Precondition) fault() *kverr.Error {
	if p.Check > CheckPresent {
		return invalid("precondition", fmt.Sprintf("precondition %d is not known to this release", p.Check))
	}
	return nil
}

func conditionFailed(k kverr.Kind, version uint64) *kverr.Error {
	e := &kverr.Error{Kind: k, Op: "write", Field: "precondition", CurrentVersion: version}
	switch {
	case k == kverr.AlreadyExists:
		e.Message = fmt.Sprintf("the key exists with version %d", version)
	case version == 0:
		e.Message = "the key does not exist"
	default:
		e.Message = fmt.Sprintf("the key has version %d", version)
	}
	return e
}

// fault is what is wrong with a put's arguments; nil when nothing is.
func (p *Put) fault() *kverr.Error {
	if p.TTLMS < 0 || p.TTLMS > maxTTLMS {
		return invalid("ttl_ms", fmt.Sprintf("%d is not a time to live: 0 to %d", p.TTLMS, int64(maxTTLMS)))
	}
	return p.If.fault()
}

func (m *Machine) stepPut(c *Command) {
	p := &c.Put
	if m.answered(c, p.Slot) {
		return
	}
	if err := p.fault(); err != nil {
		m.fail(c, err, 0)
		return
	}
	if m.refuseDropped(c) {
		return
	}
	old, exists, dep := m.current(c.Namespace, p.Key)
	if kind := p.If.check(&old, exists); kind != 0 {
		m.failWrite(c, p.Slot, kind, old.Version, dep)
		return
	}
	if m.full() {
		m.fail(c, m.exhausted(), 0)
		return
	}
	revision := m.newRevision()
	m.emitPut(revision, c.Namespace, p, &old, exists)
	if c.ID.given() {
		m.payload = appendOutcome(m.payload[:0], outcomePut, exists, c.ID.NotAfterMS, revision)
		m.remember(revision, p.Slot, &c.ID)
	}
	c.Result.Write = WriteResult{Version: revision, Existed: exists}
	c.Result.Revision = revision
	m.reply(c, revision)
}

func (m *Machine) emitPut(revision uint64, ns NamespaceID, p *Put, old *Entry, exists bool) {
	e := putEffect{
		namespace: ns, key: p.Key, value: p.Value, created: m.now, updated: m.now,
		contentType: p.ContentType, encoding: p.Encoding, metadata: p.Metadata, tags: p.Tags,
	}
	if exists {
		e.created = old.CreatedMS
	}
	switch {
	case p.KeepTTL && exists:
		e.expires = old.ExpiresMS
	case p.TTLMS > 0:
		e.expires = m.now + p.TTLMS
	}
	m.payload = e.append(m.payload[:0])
	m.log(revision, kindPut, m.payload)
	m.applyPut(revision, &e)
}

func (m *Machine) stepDelete(c *Command) {
	d := &c.Delete
	if m.answered(c, d.Slot) {
		return
	}
	if err := d.If.fault(); err != nil {
		m.fail(c, err, 0)
		return
	}
	if m.refuseDropped(c) {
		return
	}
	old, exists, dep := m.current(c.Namespace, d.Key)
	if kind := d.If.check(&old, exists); kind != 0 {
		m.failWrite(c, d.Slot, kind, old.Version, dep)
		return
	}
	if planted(bugBudgetStopsDeletes) && m.full() {
		m.fail(c, m.exhausted(), 0)
		return
	}
	if !exists && (!c.ID.given() || m.overfull()) {
		if c.ID.given() {
			m.fail(c, m.exhausted(), 0)
			return
		}
		m.reply(c, dep)
		return
	}
	revision := m.newRevision()
	if exists {
		m.emitRemove(revision, kindDelete, c.Namespace, d.Key)
		c.Result.Write = WriteResult{Version: revision, Existed: true}
		c.Result.Revision = revision
	}
	if c.ID.given() {
		m.payload = appendOutcome(m.payload[:0], outcomeDelete, exists, c.ID.NotAfterMS, revision)
		m.remember(revision, d.Slot, &c.ID)
	}
	m.reply(c, revision)
}

func (m *Machine) emitExpire(ns NamespaceID, key []byte) {
	m.emitRemove(m.newRevision(), kindExpire, ns, key)
}

func (m *Machine) emitRemove(revision uint64, k kind, ns NamespaceID, key []byte) {
	e := removeEffect{namespace: ns, key: key}
	m.payload = e.append(m.payload[:0])
	m.log(revision, k, m.payload)
	m.applyRemove(revision, k, &e)
}

// failWrite answers a failed precondition; with an identity it is remembered, and then leaves once that is durable.
func (m *Machine) failWrite(c *Command, slot uint16, kind kverr.Kind, version, dep uint64) {
	if c.ID.given() && !planted(bugFailureForgotten) {
		if m.overfull() {
			m.fail(c, m.exhausted(), 0)
			return
		}
		dep = m.newRevision()
		m.payload = appendOutcome(m.payload[:0], outcomeFailed, version != 0, c.ID.NotAfterMS, dep)
		m.payload = appendFailure(m.payload, kind, version)
		m.remember(dep, slot, &c.ID)
	}
	m.fail(c, conditionFailed(kind, version), dep)
}

// txnKey is what a transaction's operation meets.
type txnKey struct {
	old    Entry
	exists bool
}

func (m *Machine) stepTxn(c *Command) {
	t := c.Txn
	if t == nil {
		m.fail(c, invalid("transaction", "a transaction has no arguments"), 0)
		return
	}
	if m.answered(c, t.Slot) {
		return
	}
	grows, err := t.fault()
	if err != nil {
		m.fail(c, err, 0)
		return
	}
	if m.refuseDropped(c) {
		return
	}
	found, dep, changes := m.checkTxn(c)
	if len(c.Result.Failures) > 0 {
		if planted(bugFirstFailureOnly) {
			c.Result.Failures = c.Result.Failures[:1]
		}
		if c.ID.given() {
			if m.overfull() {
				m.fail(c, m.exhausted(), 0)
				return
			}
			dep = m.newRevision()
			m.payload = appendOutcome(m.payload[:0], outcomeTxnFailed, false, c.ID.NotAfterMS, dep)
			m.payload = appendTxnFailures(m.payload, c.Result.Failures)
			m.remember(dep, t.Slot, &c.ID)
		}
		m.reply(c, dep)
		return
	}
	if (grows && m.full()) || (!changes && c.ID.given() && m.overfull()) {
		m.fail(c, m.exhausted(), 0)
		return
	}
	c.Result.Committed = true
	c.Result.Writes = make([]WriteResult, len(t.Ops))
	if !changes && !c.ID.given() {
		m.reply(c, dep)
		return
	}
	revision := m.newRevision()
	for i := range t.Ops {
		w := &c.Result.Writes[i]
		w.Existed = found[i].exists
		if p := t.Ops[i].Put; p != nil {
			m.emitPut(revision, c.Namespace, p, &found[i].old, found[i].exists)
			w.Version = revision
		} else if found[i].exists {
			m.emitRemove(revision, kindDelete, c.Namespace, t.Ops[i].Delete.Key)
			w.Version = revision
		}
	}
	if changes {
		c.Result.Revision = revision
	}
	if c.ID.given() {
		m.payload = appendOutcome(m.payload[:0], outcomeTxn, changes, c.ID.NotAfterMS, revision)
		m.payload = appendTxnWrites(m.payload, t.Ops, c.Result.Writes)
		m.remember(revision, t.Slot, &c.ID)
	}
	m.reply(c, revision)
}

// checkTxn finds all keys and holds all conditions against the state before the transaction. Failures go into the result.
func (m *Machine) checkTxn(c *Command) (found []txnKey, dep uint64, changes bool) {
	t := c.Txn
	for i := range t.Conditions {
		e, exists, d := m.current(c.Namespace, t.Conditions[i].Key)
		dep = max(dep, d)
		if t.Conditions[i].If.check(&e, exists) != 0 {
			c.Result.Failures = append(c.Result.Failures, TxnFailure{Condition: i, Op: -1, Version: e.Version})
		}
	}
	found = make([]txnKey, len(t.Ops))
	for i := range t.Ops {
		key, cond := t.Ops[i].target()
		e, exists, d := m.current(c.Namespace, key)
		dep = max(dep, d)
		found[i] = txnKey{e, exists}
		changes = changes || exists || t.Ops[i].Put != nil
		if planted(bugTxnChecksAsItGoes) && i > 0 {
			exists = exists || t.Ops[i-1].Put != nil
		}
		if cond.check(&e, exists) != 0 {
			c.Result.Failures = append(c.Result.Failures, TxnFailure{Condition: -1, Op: i, Version: e.Version})
		}
	}
	return found, dep, changes
}

func (o *TxnOp) target() ([]byte, *Precondition) {
	if o.Put != nil {
		return o.Put.Key, &o.Put.If
	}
	return o.Delete.Key, &o.Delete.If
}

// fault is what is wrong with a transaction's arguments; grows tells whether it puts. No key may be named by two
// operations: which of them comes first would matter, and a key changes at most once per revision.
func (t *Txn) fault() (grows bool, err *kverr.Error) {
	for i := range t.Conditions {
		if err := t.Conditions[i].If.fault(); err != nil {
			return false, err
		}
	}
	for i := range t.Ops {
		op := &t.Ops[i]
		switch {
		case (op.Put == nil) == (op.Delete == nil):
			err = invalid(fmt.Sprintf("ops[%d]", i), "must be one of put and delete")
		case op.Put != nil:
			err = op.Put.fault()
			grows = true
		default:
			err = op.Delete.If.fault()
		}
		if err != nil {
			return false, err
		}
	}
	if i, twice := t.repeats(); twice {
		return false, invalid(fmt.Sprintf("ops[%d]", i), "has the key of an earlier operation; a transaction writes each key once")
	}
	return grows, nil
}

// repeats finds an operation whose key an earlier one has.
func (t *Txn) repeats() (op int, twice bool) {
	const few = 8
	if len(t.Ops) <= few {
		for i := range t.Ops {
			a, _ := t.Ops[i].target()
			for j := range i {
				if b, _ := t.Ops[j].target(); bytes.Equal(a, b) {
					return i, true
				}
			}
		}
		return 0, false
	}
	seen := make(map[string]struct{}, len(t.Ops))
	for i := range t.Ops {
		key, _ := t.Ops[i].target()
		if _, twice := seen[view(key)]; twice {
			return i, true
		}
		seen[view(key)] = struct{}{}
	}
	return 0, false
}
