package shard

import (
	"encoding/binary"
)

// The apply functions change the tree. A step calls them right after it has logged the effect, a replay after it has decoded
// it; they look at nothing but the tree and the effect.

// appendItem packs an entry (see Entry.decode).
func (e *putEffect) appendItem(b []byte, version uint64) []byte {
	ref := e.value.Ref.Object != (ObjectID{})
	var flags byte
	if e.updated != e.created {
		flags |= entryUpdated
	}
	if e.expires != 0 {
		flags |= entryExpires
	}
	if e.contentType != "" {
		flags |= entryContentType
	}
	if e.encoding != "" {
		flags |= entryEncoding
	}
	if len(e.metadata) > 0 {
		flags |= entryMetadata
	}
	if len(e.tags) > 0 {
		flags |= entryTags
	}
	if ref {
		flags |= entryRef
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, version)
	b = binary.AppendUvarint(b, uint64(e.created))
	if flags&entryUpdated != 0 {
		b = binary.AppendUvarint(b, uint64(e.updated-e.created))
	}
	if flags&entryExpires != 0 {
		b = binary.AppendUvarint(b, uint64(e.expires))
	}
	if flags&entryContentType != 0 {
		b = appendString(b, e.contentType)
	}
	if flags&entryEncoding != 0 {
		b = appendString(b, e.encoding)
	}
	if flags&entryMetadata != 0 {
		b = appendPairs(b, e.metadata)
	}
	if flags&entryTags != 0 {
		b = appendPairs(b, e.tags)
	}
	if ref {
		return appendRef(b, &e.value.Ref)
	}
	return append(b, e.value.Inline...)
}

func (v *Value) size() int64 {
	if v.Ref.Object != (ObjectID{}) {
		return v.Ref.Length
	}
	return int64(len(v.Inline))
}

func (m *Machine) applyPut(revision uint64, e *putEffect) {
	m.key = appendDataKey(m.key[:0], e.namespace, e.key)
	m.item = e.appendItem(m.item[:0], revision)
	item, existed := m.tree.Set(m.key, m.item)
	var old Entry
	if existed {
		old.decode(item)
		m.count(e.namespace, 0, e.value.size()-old.Size())
	} else {
		m.count(e.namespace, 1, int64(len(e.key))+e.value.size())
	}
	if e.expires != old.ExpiresMS {
		if !planted(bugOldExpiryStays) {
			m.unscheduled(old.ExpiresMS, m.key)
		}
		m.scheduled(e.expires, m.key)
	}
	if e.value.Ref != old.Value.Ref {
		// Hold first: an object that both values lie in does not die in between.
		if e.value.Ref.Object != (ObjectID{}) {
			m.hold(&e.value.Ref, m.key)
		}
		if old.Value.Ref.Object != (ObjectID{}) {
			m.letGo(&old.Value.Ref)
		}
	}
	event := Event{Kind: EventPut, Namespace: e.namespace, Key: e.key, Revision: revision, Created: !existed, Value: e.value}
	m.replaces(&event, &old)
	m.record(&event)
}

func (m *Machine) applyRemove(revision uint64, k kind, e *removeEffect) {
	m.key = appendDataKey(m.key[:0], e.namespace, e.key)
	old, existed := m.removeEntry(e.namespace, len(e.key), m.key)
	if planted(bugExpiredValueHeld) && k == kindExpire && old.Value.Ref.Object.Epoch != 0 {
		m.hold(&old.Value.Ref, m.key)
	}
	m.removedAt = revision
	if !existed {
		return
	}
	event := Event{Kind: EventDelete, Namespace: e.namespace, Key: e.key, Revision: revision}
	if k == kindExpire {
		event.Kind = EventExpire
	}
	m.replaces(&event, &old)
	m.record(&event)
}

// removeEntry takes an entry out, with all that hangs on it. The typed key must not be in m.key2 or m.aside.
func (m *Machine) removeEntry(ns NamespaceID, keyLen int, typed []byte) (old Entry, existed bool) {
	item, existed := m.tree.Delete(typed)
	if !existed {
		return old, false
	}
	old.decode(item)
	m.count(ns, -1, -int64(keyLen)-old.Size())
	m.unscheduled(old.ExpiresMS, typed)
	if old.Value.Ref.Object != (ObjectID{}) {
		m.letGo(&old.Value.Ref)
	}
	return old, true
}
