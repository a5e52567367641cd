package shard

import (
	"encoding/binary"
	"iter"
)

// EventKind is the kind of a change. Values are stored: append only.
type EventKind uint8

// Kinds of changes.
const (
	EventPut            EventKind = 1 // a key has a new value
	EventDelete         EventKind = 2 // a key was removed
	EventExpire         EventKind = 3 // a key's time was over
	EventDrop           EventKind = 4 // a part of the namespace up to and with Key is gone: the namespace is being dropped
	EventBlockStored    EventKind = 5 // prompt cache: Key is as package promptcache defines
	EventBlockRemoved   EventKind = 6
	EventScopeChanged   EventKind = 7
	eventKinds                    = 8
	eventCreated                  = 1 << 4 // flag beside the kind
	eventRef                      = 1 << 5
	eventAttached                 = 1 << 6
	eventBefore                   = 1 << 7
	eventKindMask                 = 1<<4 - 1
	maxChunkBytes                 = 64 << 10
	maxChunkChanges               = 1000
	changeOverhead                = 16 // accounted per change besides its bytes
	historyItemOverhead           = 64 // accounted per chunk besides its bytes
)

// Event is one change of the bounded history. Everything in it is a view into the tree.
//
// A value that lies apart from its key is named but not kept: the history is no reference, and its object may be gone.
type Event struct {
	Kind      EventKind
	Namespace NamespaceID
	Key       []byte
	Revision  uint64 // the version, for EventPut
	Previous  uint64 // version of the key before; 0 = there was none
	Created   bool   // EventPut: the key did not exist
	Value     Value  // EventPut, EventBlockStored
	Attached  []byte // what the prompt cache adds (size, parent)

	before    []byte // the value that Previous had, when the history did not have it any more; see View.Before
	hasBefore bool
}

// chunk is the history of the body that is being gathered: packed events, whose revisions end at last.
type chunk struct {
	packed  []byte
	changes int64
	last    uint64
}

func (h *chunk) reset() { *h = chunk{packed: h.packed[:0]} }

// record adds an event to the history. A chunk that is full ends at a revision's end, so that a revision is never cut.
func (m *Machine) record(e *Event) {
	h := &m.pending
	if (len(h.packed) >= maxChunkBytes || h.changes >= m.cfg.chunkChanges) && e.Revision != h.last {
		m.flushChunk()
	}
	flags := byte(e.Kind)
	if e.Created {
		flags |= eventCreated
	}
	ref := e.Value.Ref.Object != (ObjectID{})
	if ref {
		flags |= eventRef
	}
	if len(e.Attached) > 0 {
		flags |= eventAttached
	}
	if e.hasBefore {
		flags |= eventBefore
	}
	b := append(h.packed, flags)
	b = binary.AppendUvarint(b, e.Revision)
	b = binary.AppendUvarint(b, e.Previous)
	b = binary.AppendUvarint(b, uint64(e.Namespace))
	b = append(binary.AppendUvarint(b, uint64(len(e.Key))), e.Key...)
	if ref {
		b = appendRef(b, &e.Value.Ref)
	} else {
		b = append(binary.AppendUvarint(b, uint64(len(e.Value.Inline))), e.Value.Inline...)
	}
	if len(e.Attached) > 0 {
		b = append(binary.AppendUvarint(b, uint64(len(e.Attached))), e.Attached...)
	}
	if e.hasBefore {
		b = append(binary.AppendUvarint(b, uint64(len(e.before))), e.before...)
	}
	h.packed = b
	h.changes++
	h.last = e.Revision
}

func (e *Event) decode(r *reader) bool {
	flags := r.byte()
	*e = Event{
		Kind: EventKind(flags & eventKindMask), Created: flags&eventCreated != 0,
		Revision: r.uvarint(), Previous: r.uvarint(), Namespace: NamespaceID(r.uvarint()), Key: r.bytes(),
	}
	if flags&eventRef != 0 {
		e.Value.Ref = r.ref()
	} else {
		e.Value.Inline = r.bytes()
	}
	if flags&eventAttached != 0 {
		e.Attached = r.bytes()
	}
	if e.hasBefore = flags&eventBefore != 0; e.hasBefore {
		e.before = r.bytes()
	}
	return !r.bad
}

// replaces notes what a key had before, which is gone with the change itself. A version that the history has is found there, so the value of
// a key that is written often is not kept twice. A value that lies apart from its key is not kept.
func (m *Machine) replaces(e *Event, old *Entry) {
	e.Previous = old.Version
	if old.Version > 0 && old.Version <= m.meta.compacted && old.Value.Ref.Object == (ObjectID{}) {
		e.before, e.hasBefore = old.Value.Inline, true
	}
}

// flushChunk writes what has gathered as one item: number of changes, then the events.
func (m *Machine) flushChunk() {
	h := &m.pending
	if h.changes == 0 {
		return
	}
	m.key = appendHistoryKey(m.key[:0], h.last)
	m.item = append(binary.AppendUvarint(m.item[:0], uint64(h.changes)), h.packed...)
	m.tree.Set(m.key, m.item)
	m.meta.historyBytes += chunkCost(len(m.item), h.changes)
	m.meta.historyChanges += h.changes
	h.reset()
	if cap(h.packed) > 4*maxChunkBytes {
		h.packed, m.item = nil, nil // a large transaction's room is not kept
	}
}

func chunkCost(itemBytes int, changes int64) int64 {
	return int64(itemBytes) + historyItemOverhead + changes*changeOverhead
}

// sealHistory writes the body's history and drops the oldest chunks beyond the bounds. A body adds few chunks, so it drops few.
func (m *Machine) sealHistory() {
	m.flushChunk()
	for m.meta.historyBytes > m.cfg.HistoryBytes || m.meta.historyChanges > m.cfg.HistoryChanges {
		found := false
		for key, item := range m.tree.Ascend([]byte{prefixHistory}, []byte{prefixHistory + 1}) {
			r := reader{b: item}
			changes := int64(r.uvarint())
			m.meta.historyBytes -= chunkCost(len(item), changes)
			m.meta.historyChanges -= changes
			if !planted(bugHistoryHole) {
				m.meta.compacted = binary.BigEndian.Uint64(key[1:])
			}
			m.key = append(m.key[:0], key...)
			found = true
			break
		}
		if !found {
			m.meta.historyBytes, m.meta.historyChanges = 0, 0
			return
		}
		m.tree.Delete(m.key)
	}
}

// OldestRevision is the first revision that Changes can begin after: history up to it is gone.
func (v View) OldestRevision() uint64 { return v.meta.compacted }

// Changes yields the changes with revisions over after, oldest first; ok is false when some of them are no longer kept. An event is the same one each time:
// who keeps it copies it.
func (v View) Changes(after uint64) (changes iter.Seq[*Event], ok bool) {
	if after < v.meta.compacted {
		return nil, false
	}
	return func(yield func(*Event) bool) {
		from, e := appendHistoryKey(nil, after+1), new(Event)
		for _, item := range v.tree.Ascend(from, []byte{prefixHistory + 1}) {
			r := reader{b: item}
			r.uvarint()
			for len(r.b) > 0 {
				if !e.decode(&r) {
					return
				}
				if e.Revision > after && !yield(e) {
					return
				}
			}
		}
	}, true
}

// Before is the value that a key had before a change: that of version e.Previous. It is not known, and ok is false, when there was none,
// when it lay apart from its key and another value has replaced it since, or when the history no longer goes back that far, which it does for
// whoever follows the changes as they come.
func (v View) Before(e *Event) (value Value, ok bool) {
	switch {
	case e.Previous == 0:
		return Value{}, false
	case e.hasBefore:
		return Value{Inline: e.before}, true
	case e.Previous <= v.meta.compacted:
		return Value{}, false
	}
	changes, _ := v.Changes(e.Previous - 1)
	for c := range changes {
		if c.Revision > e.Previous {
			break
		}
		if c.Kind == EventPut && c.Namespace == e.Namespace && string(c.Key) == string(e.Key) {
			return c.Value, true
		}
	}
	return Value{}, false
}
