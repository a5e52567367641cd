package shard

import (
	"fmt"
	"slices"
	"strconv"

	"kvstore/components/kverr"
)

// fault is what is wrong with an edit's arguments; nil when nothing is.
func (d *Edit) fault(id *Identity) *kverr.Error {
	switch {
	case id.given():
		return invalid("identity", "an edit has none")
	case d.Kind == EditNone || d.Kind > EditExpire:
		return invalid("kind", fmt.Sprintf("edit %d is not known to this release", d.Kind))
	case d.When > whenAll:
		return invalid("when", fmt.Sprintf("condition %d is not known to this release", d.When))
	case d.TTLMS < 0 || d.TTLMS > maxTTLMS:
		return invalid("ttl_ms", fmt.Sprintf("%d is not a time to live: 0 to %d", d.TTLMS, int64(maxTTLMS)))
	case d.ExpiresMS < 0 || d.ExpiresMS >= 1<<48:
		return invalid("expires_ms", fmt.Sprintf("%d is not a time: 0 to %d", d.ExpiresMS, int64(1<<48-1)))
	}
	return nil
}

// grows tells whether an edit may make the state larger: not one that takes an expiry away.
func (d *Edit) grows() bool { return d.Kind != EditExpire || d.ExpiresMS != 0 }

func (m *Machine) stepEdit(c *Command) {
	d := c.Edit
	if d == nil {
		m.fail(c, invalid("edit", "an edit has no arguments"), 0)
		return
	}
	if err := d.fault(&c.ID); err != nil {
		m.fail(c, err, 0)
		return
	}
	if m.refuseDropped(c) {
		return
	}
	old, exists, dep := m.current(c.Namespace, d.Key)
	c.Result.Write.Existed = exists
	if d.Kind == EditExpire {
		m.editExpiry(c, &old, exists, dep)
		return
	}
	value, number, err := d.value(&old)
	if err != nil {
		m.fail(c, err, dep)
		return
	}
	c.Result.Number = number
	if exists && d.Kind == EditAppend && len(d.Bytes) == 0 {
		m.reply(c, dep)
		return
	}
	put := putEffect{value: Value{Inline: value}, expires: old.ExpiresMS}
	if !exists && d.TTLMS > 0 {
		put.expires = m.now + d.TTLMS
	}
	m.edit(c, &old, exists, &put)
}

// value is the value that an edit makes, and the number that it answers.
func (d *Edit) value(old *Entry) (value []byte, number int64, err *kverr.Error) {
	apart := old.Value.Ref.Object != (ObjectID{})
	if d.Kind == EditAppend {
		n := old.Size() + int64(len(d.Bytes))
		if apart || n > d.MaxBytes {
			return nil, 0, &kverr.Error{Kind: kverr.ValueTooLarge, Op: "write", Field: "value", CurrentVersion: old.Version,
				Message: "the value would be stored apart from its key: read it, and put it on condition of its version"}
		}
		return slices.Concat(old.Value.Inline, d.Bytes), n, nil
	}
	if old.Version != 0 {
		var good bool
		if number, good = decimal(old.Value.Inline); !good || apart {
			return nil, 0, &kverr.Error{Kind: kverr.InvalidArgument, Op: "write", Field: "value", Message: "the value is not a decimal number of 64 bits"}
		}
	}
	sum := number + d.Delta
	if (d.Delta > 0) != (sum > number) && d.Delta != 0 {
		return nil, 0, &kverr.Error{Kind: kverr.InvalidArgument, Op: "write", Field: "delta", Message: "the sum does not fit 64 bits"}
	}
	return strconv.AppendInt(nil, sum, 10), sum, nil
}

// decimal reads a number as it is written by Append: no sign but a minus, no zeros before it, nothing around it.
func decimal(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(view(b), 10, 64)
	if err != nil {
		return 0, false
	}
	var room [20]byte
	return n, string(strconv.AppendInt(room[:0], n, 10)) == view(b)
}

// editExpiry does EditExpire.
func (m *Machine) editExpiry(c *Command, old *Entry, exists bool, dep uint64) {
	d := c.Edit
	if !exists || !d.When.holds(old.ExpiresMS, d.ExpiresMS) || old.ExpiresMS == d.ExpiresMS && d.ExpiresMS == 0 {
		m.reply(c, dep)
		return
	}
	c.Result.Number = 1
	if d.ExpiresMS != 0 && d.ExpiresMS <= m.now {
		revision := m.newRevision()
		m.emitRemove(revision, kindDelete, c.Namespace, d.Key)
		c.Result.Write.Version, c.Result.Revision = revision, revision
		m.reply(c, revision)
		return
	}
	m.edit(c, old, true, &putEffect{value: old.Value, expires: d.ExpiresMS})
}

// holds tells whether an expiry may take the place of another; 0 = never.
func (w EditWhen) holds(old, next int64) bool {
	later := old != 0 && (next == 0 || next > old)
	earlier := next != 0 && (old == 0 || next < old)
	return (w&WhenNone == 0 || old == 0) && (w&WhenSome == 0 || old != 0) && (w&WhenLater == 0 || later) && (w&WhenEarlier == 0 || earlier)
}

// edit logs and applies what became of an entry; put has its value and expiry, the rest stays.
func (m *Machine) edit(c *Command, old *Entry, exists bool, put *putEffect) {
	if c.Edit.grows() && m.full() {
		m.fail(c, m.exhausted(), 0)
		return
	}
	put.namespace, put.key, put.created, put.updated = c.Namespace, c.Edit.Key, m.now, m.now
	if exists {
		put.created = old.CreatedMS
		put.contentType, put.encoding, put.metadata, put.tags = old.ContentType, old.Encoding, old.Metadata(), old.Tags()
	}
	revision := m.newRevision()
	m.payload = put.append(m.payload[:0])
	m.log(revision, kindPut, m.payload)
	m.applyPut(revision, put)
	c.Result.Write.Version, c.Result.Revision = revision, revision
	m.reply(c, revision)
}
