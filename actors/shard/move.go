package shard

import (
	"slices"
)

// stepRelocate names another place for a value that was copied. When the item does not have its value at From any more,
// nothing changes and Result.Revision is 0: the copy is an orphan.
func (m *Machine) stepRelocate(c *Command) {
	r := c.Relocate
	switch {
	case r == nil || len(r.Key) == 0:
		m.fail(c, invalid("relocate", "a relocation names no item"), 0)
		return
	case r.From.Object.Epoch == 0 || r.To.Object.Epoch == 0:
		m.fail(c, invalid("relocate", "a relocation is from an object to an object"), 0)
		return
	case r.From.Length != r.To.Length || r.From.Checksum != r.To.Checksum:
		m.fail(c, invalid("relocate", "length and checksum of a value do not change by copying it"), 0)
		return
	}
	item, ok := m.tree.Get(r.Key)
	if !ok {
		m.reply(c, m.removedAt)
		return
	}
	if at, ok := refOf(r.Key, item); !ok || at != r.From {
		m.reply(c, m.meta.revision)
		return
	}
	revision := m.newRevision()
	e := relocateEffect{key: r.Key, from: r.From, to: r.To}
	m.payload = e.append(m.payload[:0])
	m.log(revision, kindRelocate, m.payload)
	m.applyRelocate(&e)
	c.Result.Revision = revision
	m.reply(c, revision)
}

// applyRelocate keeps version and times: the value is the same. History names the old place still.
func (m *Machine) applyRelocate(e *relocateEffect) {
	item, ok := m.tree.Get(e.key)
	if !ok {
		return
	}
	at, ok := refOf(e.key, item)
	if !ok || at != e.from {
		return
	}
	if e.key[0] == prefixData {
		// The reference is the end of an entry's item.
		m.aside = appendRef(m.aside[:0], &e.from)
		m.item = append(m.item[:0], item[:len(item)-len(m.aside)]...)
		m.item = appendRef(m.item, &e.to)
		m.tree.Set(e.key, m.item)
	} else if !m.applyRelocatePrompt(e.key, e.from, e.to) {
		return
	}
	m.hold(&e.to, e.key)
	m.letGo(&e.from)
}

// refOf finds where the value of an item is; false when it is not apart.
func refOf(typed, item []byte) (Ref, bool) {
	if len(typed) > 0 && typed[0] == prefixData {
		var e Entry
		ok := e.decode(item)
		return e.Value.Ref, ok && e.Value.Ref.Object != (ObjectID{})
	}
	return promptRef(typed, item)
}

// stepForget drops the accounts of objects that were deleted from the engine. Objects that are unknown or have live values are
// left alone.
func (m *Machine) stepForget(c *Command) {
	var gone []ObjectID
	var room [17]byte
	for _, id := range c.Forget {
		if _, dead := m.tree.Get(appendObjectKey(room[:0], prefixDead, id)); dead && !slices.Contains(gone, id) {
			gone = append(gone, id)
		}
	}
	if len(gone) == 0 {
		m.reply(c, m.meta.revision)
		return
	}
	revision := m.newRevision()
	m.payload = appendForget(m.payload[:0], gone)
	m.log(revision, kindForget, m.payload)
	for _, id := range gone {
		m.applyForget(id)
	}
	c.Result.Revision = revision
	m.reply(c, revision)
}

func (m *Machine) applyForget(id ObjectID) {
	var room [17]byte
	key := appendObjectKey(room[:0], prefixDead, id)
	if _, dead := m.tree.Delete(key); dead {
		key[0] = prefixObject
		m.tree.Delete(key)
	}
}

// stepDrop removes at most Config.DropBudget items of a namespace; the first step also closes it for writes, for good. The caller repeats it while Result.More is set.
func (m *Machine) stepDrop(c *Command) {
	budget := m.cfg.DropBudget
	from := appendDataKey(nil, c.Namespace, nil)
	n, more := 0, false
	var through []byte
	for key := range m.tree.Ascend(from, appendEnd(nil, from)) {
		if n == budget {
			more = true
			break
		}
		n++
		_, through, _ = splitDataKey(key)
	}
	if n > 0 || !m.isDropped(c.Namespace) {
		revision := m.newRevision()
		e := removeEffect{namespace: c.Namespace, key: through}
		m.payload = e.append(m.payload[:0])
		m.log(revision, kindDrop, m.payload)
		m.applyDrop(revision, &e)
		c.Result.Revision = revision
	}
	c.Result.Deleted = int64(n)
	if !more {
		removed, left := m.dropPrompt(c.Namespace, max(1, budget-n))
		c.Result.Deleted += int64(removed)
		more = left
	}
	c.Result.More = more
	m.reply(c, m.meta.revision)
}

// applyDrop removes the entries of a namespace up to and with a key, which is empty when there are none, and notes it as dropped. Its
// history is one event: watchers of a namespace that is dropped do not want one for each key.
func (m *Machine) applyDrop(revision uint64, e *removeEffect) {
	m.applyDropped(e.namespace)
	from := appendDataKey(nil, e.namespace, nil)
	to := append(appendDataKey(nil, e.namespace, e.key), 0)
	var keys [][]byte
	for key := range m.tree.Ascend(from, to) {
		keys = append(keys, key)
	}
	for _, key := range keys {
		m.removeEntry(e.namespace, len(key)-len(from), key)
	}
	m.removedAt = revision
	m.record(&Event{Kind: EventDrop, Namespace: e.namespace, Key: e.key, Revision: revision})
}
