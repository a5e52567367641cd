package shard

import (
	"encoding/binary"
	"fmt"
)

// kind is the field number of an effect in dataplane.v1.Effect: stored, only ever appended.
type kind int

const (
	kindPut      kind = 2
	kindDelete   kind = 3
	kindExpire   kind = 4
	kindRemember kind = 5
	kindRelocate kind = 6
	kindForget   kind = 7
	kindDrop     kind = 8
	kindSweep    kind = 9

	kindPromptMin kind = 32
	kindPromptMax kind = 63
)

// kindNames are for messages; the types without code are designed but not built.
var kindNames = map[kind]string{
	kindPut: "PUT", kindDelete: "DELETE", kindExpire: "EXPIRE", kindRemember: "REMEMBER", kindRelocate: "RELOCATE",
	kindForget: "FORGET", kindDrop: "DROP", kindSweep: "SWEEP",
	kindBlockStored: "BLOCK_STORED", kindBlockRemoved: "BLOCK_REMOVED", kindBlockTouched: "BLOCK_TOUCHED",
	kindBlockPinned: "BLOCK_PINNED", kindLeaseHorizon: "LEASE_HORIZON",
	16: "PREPARE", 17: "DECIDE", 18: "SPLIT", 19: "SESSION", 20: "CONFIG",
}

func (k kind) String() string {
	if name := kindNames[k]; name != "" {
		return name
	}
	return fmt.Sprintf("effect type %d", int(k))
}

// Tags of protobuf's wire format.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
)

// log appends an effect to the body: EffectBody.effects{revision, kind{payload}}. The payload is copied.
func (m *Machine) log(revision uint64, k kind, payload []byte) {
	if m.body == nil {
		m.body = make([]byte, 0, max(m.lastBody, 512))
	}
	m.body = appendEffect(m.body, revision, k, payload)
}

func appendEffect(b []byte, revision uint64, k kind, payload []byte) []byte {
	n := 1 + uvarintLen(revision) + uvarintLen(uint64(k)<<3) + uvarintLen(uint64(len(payload))) + len(payload)
	b = append(b, 1<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(n))
	b = append(b, 1<<3|wireVarint)
	b = binary.AppendUvarint(b, revision)
	b = binary.AppendUvarint(b, uint64(k)<<3|wireBytes)
	return append(binary.AppendUvarint(b, uint64(len(payload))), payload...)
}

// Fields of a payload. Zero values are left out, as proto3 does.

func appendUintField(b []byte, number int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number<<3|wireVarint)), v)
}

func appendBytesField[B []byte | string](b []byte, number int, v B) []byte {
	if len(v) == 0 {
		return b
	}
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(number<<3|wireBytes)), uint64(len(v)))
	return append(b, v...)
}

// appendLengthTag begins a bytes field whose n bytes the caller appends.
func appendLengthTag(b []byte, number, n int) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number<<3|wireBytes)), uint64(n))
}

func appendFixed64Field(b []byte, number int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.LittleEndian.AppendUint64(binary.AppendUvarint(b, uint64(number<<3|wireFixed64)), v)
}

// field is one field of a message: bytes when its wire type is wireBytes, number otherwise.
type field struct {
	number int
	wire   int
	value  uint64
	bytes  []byte
}

// next takes the next field off r. It is false at the end and after a fault (r.bad).
func (r *reader) next() (f field, ok bool) {
	if len(r.b) == 0 || r.bad {
		return f, false
	}
	tag := r.uvarint()
	f.number, f.wire = int(tag>>3), int(tag&7)
	switch {
	case f.number == 0 || tag > 1<<32-1:
		r.bad = true
	case f.wire == wireVarint:
		f.value = r.uvarint()
	case f.wire == wireBytes:
		f.bytes = r.bytes()
	case f.wire == wireFixed64:
		if len(r.b) < 8 {
			r.bad = true
			break
		}
		f.value = binary.LittleEndian.Uint64(r.b)
		r.b = r.b[8:]
	default:
		r.bad = true
	}
	return f, !r.bad
}
