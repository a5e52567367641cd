package shard

import (
	"encoding/binary"

	"kvstore/components/kverr"
)

// A namespace that is dropped stays dropped: its id never means another (the directory gives out each once), so whoever still
// writes to it goes by a catalog that is old, and what it wrote would be seen by nobody and removed by nothing. The first step of
// the drop therefore notes the id, for good, and writes are refused from then on. A bit for each keeps that small: a million
// dropped namespaces take 140 KB.
const (
	droppedBits  = 1024 // namespaces of one item
	droppedBytes = droppedBits / 8
)

// droppedBlock is an item's value.
type droppedBlock [droppedBytes]byte

func appendDroppedKey(b []byte, block uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, prefixDropped), block)
}

func droppedAt(ns NamespaceID) (block uint32, at int, bit byte) {
	n := uint32(ns)
	return n / droppedBits, int(n % droppedBits / 8), 1 << (n % 8)
}

// isDropped tells whether a namespace was dropped, if only in part.
func (m *Machine) isDropped(ns NamespaceID) bool {
	if len(m.dropped) == 0 {
		return false
	}
	block, at, bit := droppedAt(ns)
	b := m.dropped[block]
	return b != nil && b[at]&bit != 0
}

// applyDropped notes a namespace as dropped.
func (m *Machine) applyDropped(ns NamespaceID) {
	block, at, bit := droppedAt(ns)
	b := m.dropped[block]
	if b == nil {
		b = new(droppedBlock)
		m.dropped[block] = b
	}
	if b[at]&bit != 0 {
		return
	}
	b[at] |= bit
	m.tree.Set(appendDroppedKey(nil, block), b[:])
}

func (m *Machine) restoreDropped() {
	m.dropped = make(map[uint32]*droppedBlock)
	if planted(bugDropForgotten) {
		return
	}
	for k, item := range m.tree.Ascend([]byte{prefixDropped}, []byte{prefixDropped + 1}) {
		b := new(droppedBlock)
		copy(b[:], item)
		m.dropped[binary.BigEndian.Uint32(k[1:])] = b
	}
}

// refuseDropped answers a command on a namespace that was dropped; false when it was not.
func (m *Machine) refuseDropped(c *Command) bool {
	if !m.isDropped(c.Namespace) {
		return false
	}
	m.fail(c, &kverr.Error{Kind: kverr.NotFound, Op: "write", Field: "namespace", Message: "the namespace was removed"}, m.meta.revision)
	return true
}
