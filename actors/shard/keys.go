package shard

import (
	"encoding/binary"
	"math/bits"
)

// State layout. All durable state of a shard is one tree; the first byte of a key says what the item is. Integers inside keys
// are big endian where order matters. A namespace is a uvarint: its bytes are prefix-free, so that a namespace is a range.
//
//	01                                    meta: revision, shard time, history bounds, sweep cursor (meta.go)
//	02 namespace                          counters of a namespace (meta.go)
//	03 block:4                            bits of the namespaces block*1024 and on that are dropped (dropped.go)
//	10 namespace key                      entry of a key (entry.go)
//	20 expires:6 typed key                empty: expiry index; the typed key begins with 10
//	30 client:16 op index slot:2          remembered outcome of a write (identity.go); op and index are ordered integers
//	40 revision:8                         chunk of the change history up to that revision (history.go)
//	50 epoch:8 counter:8                  value object: total and live bytes (object.go)
//	51 epoch:8 counter:8                  empty: the object has no live bytes
//	52 epoch:8 counter:8 offset:8         typed key of the item whose value lies there
//	80 .. 9f                              prompt cache (promptkeys.go)
//
// Numbers are stored: they are only ever appended.
const (
	prefixMeta      = 0x01
	prefixCounters  = 0x02
	prefixDropped   = 0x03
	prefixData      = 0x10
	prefixExpiry    = 0x20
	prefixIdentity  = 0x30
	prefixHistory   = 0x40
	prefixObject    = 0x50
	prefixDead      = 0x51
	prefixResident  = 0x52
	prefixPromptMin = 0x80 // first prefix of the prompt cache
	prefixPromptMax = 0x9f // last prefix of the prompt cache
)

// keyRoom is how long a key may be to be built on the stack; longer ones cost an allocation.
const keyRoom = 128

var metaKey = []byte{prefixMeta}

func appendCountersKey(b []byte, ns NamespaceID) []byte {
	return binary.AppendUvarint(append(b, prefixCounters), uint64(ns))
}

func appendDataKey(b []byte, ns NamespaceID, key []byte) []byte {
	b = append(b, prefixData)
	b = binary.AppendUvarint(b, uint64(ns))
	return append(b, key...)
}

// splitDataKey takes a data key apart; the key is a view.
func splitDataKey(k []byte) (ns NamespaceID, key []byte, ok bool) {
	if len(k) < 2 || k[0] != prefixData {
		return 0, nil, false
	}
	id, n := binary.Uvarint(k[1:])
	if n <= 0 || id > 1<<32-1 {
		return 0, nil, false
	}
	return NamespaceID(id), k[1+n:], true
}

func appendExpiryKey(b []byte, expiresMS int64, typed []byte) []byte {
	e := uint64(expiresMS)
	b = append(b, prefixExpiry, byte(e>>40), byte(e>>32), byte(e>>24), byte(e>>16), byte(e>>8), byte(e))
	return append(b, typed...)
}

// splitExpiryKey takes an expiry key apart; the typed key is a view.
func splitExpiryKey(k []byte) (expiresMS int64, typed []byte) {
	e := uint64(k[1])<<40 | uint64(k[2])<<32 | uint64(k[3])<<24 | uint64(k[4])<<16 | uint64(k[5])<<8 | uint64(k[6])
	return int64(e), k[7:]
}

func appendIdentityKey(b []byte, slot uint16, id *Identity) []byte {
	b = append(append(b, prefixIdentity), id.Client[:]...)
	b = appendOrdered(b, id.Op)
	b = appendOrdered(b, uint64(id.Index))
	return append(b, byte(slot>>8), byte(slot))
}

// appendOrdered appends an integer so that byte order is its order: how many bytes, then those, big endian.
func appendOrdered(b []byte, v uint64) []byte {
	n := (bits.Len64(v) + 7) / 8
	b = append(b, byte(n))
	for n--; n >= 0; n-- {
		b = append(b, byte(v>>(8*n)))
	}
	return b
}

func appendHistoryKey(b []byte, revision uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, prefixHistory), revision)
}

func appendObjectKey(b []byte, prefix byte, id ObjectID) []byte {
	b = binary.BigEndian.AppendUint64(append(b, prefix), id.Epoch)
	return binary.BigEndian.AppendUint64(b, id.Counter)
}

func appendResidentKey(b []byte, id ObjectID, offset int64) []byte {
	return binary.BigEndian.AppendUint64(appendObjectKey(b, prefixResident, id), uint64(offset))
}

// splitObjectKey reads the id of an object, dead or resident key.
func splitObjectKey(k []byte) ObjectID {
	return ObjectID{Epoch: binary.BigEndian.Uint64(k[1:]), Counter: binary.BigEndian.Uint64(k[9:])}
}

// appendEnd appends the end of the range of keys that begin with p. The last byte of p must not be 0xff.
func appendEnd(b, p []byte) []byte {
	b = append(b, p...)
	b[len(b)-1]++
	return b
}
