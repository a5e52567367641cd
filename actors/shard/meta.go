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
	lastIdentityMS int64  // latest not_after of them
	cursor         []byte // where the sweep of remembered outcomes goes on: a whole key, empty = at the first
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
	d.lastIdentityMS = int64(r.uvarint())
	d.cursor = append([]byte(nil), r.b...)
}

func (d *meta) append(b []byte) []byte {
	b = binary.AppendUvarint(b, d.revision)
	b = binary.AppendUvarint(b, uint64(d.timeMS))
	b = binary.AppendUvarint(b, d.compacted)
	b = binary.AppendUvarint(b, uint64(d.historyBytes))
	b = binary.AppendUvarint(b, uint64(d.historyChanges))
	b = binary.AppendUvarint(b, uint64(d.identities))
	b = binary.AppendUvarint(b, uint64(d.lastIdentityMS))
	return append(b, d.cursor...)
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
