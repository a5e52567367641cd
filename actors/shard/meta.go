package shard

import (
	"encoding/binary"

	"kvstore/components/btree"
)

// meta is the item under metaKey. It is written once per body, when the body is sealed.
type meta struct {
	revision       uint64 // of the last effect
	timeMS         int64  // shard time of the last body
	compacted      uint64 // history up to this revision is gone
	historyBytes   int64
	historyChanges int64
	identities     int64  // remembered outcomes
	sweepFromMS    int64  // nothing remembered has a not_after before; 0 = unknown
	passMinMS      int64  // least not_after that the pass of the sweep has left behind it, or that came meanwhile; 0 = none
	cursor         []byte // where the pass goes on: a whole key; empty = no pass is under way
}

func (d *meta) load(t *btree.Tree) {
	*d = meta{}
	if t == nil {
		return
	}
	item, ok := t.Get(metaKey)
	if !ok {
		return
	}
	r := reader{b: item}
	d.revision = r.uvarint()
	d.timeMS = int64(r.uvarint())
	d.compacted = r.uvarint()
	d.historyBytes = int64(r.uvarint())
	d.historyChanges = int64(r.uvarint())
	d.identities = int64(r.uvarint())
	d.sweepFromMS = int64(r.uvarint())
	d.passMinMS = int64(r.uvarint())
	d.cursor = append([]byte(nil), r.b...)
}

func (d *meta) append(b []byte) []byte {
	b = binary.AppendUvarint(b, d.revision)
	b = binary.AppendUvarint(b, uint64(d.timeMS))
	b = binary.AppendUvarint(b, d.compacted)
	b = binary.AppendUvarint(b, uint64(d.historyBytes))
	b = binary.AppendUvarint(b, uint64(d.historyChanges))
	b = binary.AppendUvarint(b, uint64(d.identities))
	b = binary.AppendUvarint(b, uint64(d.sweepFromMS))
	b = binary.AppendUvarint(b, uint64(d.passMinMS))
	return append(b, d.cursor...)
}

// counters are what a namespace's entries take.
type counters struct {
	items, bytes int64 // bytes: keys and values, wherever they are
	changed      bool  // since the last sealed body
}

func (n *counters) decode(item []byte) {
	r := reader{b: item}
	n.items, n.bytes = int64(r.uvarint()), int64(r.uvarint())
}

// count accounts for an entry that came (items 1), went (-1) or changed (0).
func (m *Machine) count(ns NamespaceID, items, bytes int64) {
	n := m.counters[ns]
	if n == nil {
		n = new(counters)
		m.key2 = appendCountersKey(m.key2[:0], ns)
		if item, ok := m.tree.Get(m.key2); ok {
			n.decode(item)
		}
		m.counters[ns] = n
	}
	n.items += items
	n.bytes += bytes
	if !n.changed {
		n.changed = true
		m.sealing = append(m.sealing, ns)
	}
}

func (m *Machine) sealCounters() {
	for _, ns := range m.sealing {
		n := m.counters[ns]
		n.changed = false
		m.key = appendCountersKey(m.key[:0], ns)
		if n.items == 0 {
			m.tree.Delete(m.key)
			delete(m.counters, ns)
			continue
		}
		m.item = binary.AppendUvarint(binary.AppendUvarint(m.item[:0], uint64(n.items)), uint64(n.bytes))
		m.tree.Set(m.key, m.item)
	}
	m.sealing = m.sealing[:0]
}

// reader takes packed items apart. After a fault bad is set and everything reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// bytes reads a length and so many bytes, as a view.
func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}
