package shard

import (
	"bytes"
	"encoding/binary"
)

// Items of the prompt cache in the tree (see keys.go):
//
//	80 namespace scope:16 id 00 00 rank:4 group:4    block (promptblock.go); in the id every 00 is 00 01, so that blocks are
//	                                                 in order of (id, rank, group)
//	81 namespace scope:16                            scope: blocks, bytes, canonical form; there while it has blocks
//	83 expires:6 typed key                           empty: expiry index of blocks
//	84                                               lease horizon (promptlease.go)
const (
	prefixBlock       = 0x80
	prefixScope       = 0x81
	prefixBlockExpiry = 0x83
	prefixHorizon     = 0x84
)

var horizonKey = []byte{prefixHorizon}

func appendSpaceKey(b []byte, prefix byte, ns NamespaceID) []byte {
	return binary.AppendUvarint(append(b, prefix), uint64(ns))
}

func appendScopeKey(b []byte, prefix byte, ns NamespaceID, scope *ScopeID) []byte {
	return append(appendSpaceKey(b, prefix, ns), scope[:]...)
}

func appendBlockKey(b []byte, ns NamespaceID, scope *ScopeID, k *BlockKey) []byte {
	b = appendScopeKey(b, prefixBlock, ns, scope)
	id := k.ID
	for {
		i := bytes.IndexByte(id, 0)
		if i < 0 {
			break
		}
		b = append(append(b, id[:i]...), 0, 1)
		id = id[i+1:]
	}
	b = append(append(b, id...), 0, 0)
	r, g := k.Rank, k.Group
	return append(b, byte(r>>24), byte(r>>16), byte(r>>8), byte(r), byte(g>>24), byte(g>>16), byte(g>>8), byte(g))
}

// splitBlockKey takes a typed key of a block apart. The id is a view unless it has a zero byte.
func splitBlockKey(typed []byte) (ns NamespaceID, scope ScopeID, k BlockKey, ok bool) {
	if len(typed) < 2 || typed[0] != prefixBlock {
		return ns, scope, k, false
	}
	id, n := binary.Uvarint(typed[1:])
	if n <= 0 || id > 1<<32-1 {
		return ns, scope, k, false
	}
	b := typed[1+n:]
	if len(b) < len(scope)+2+8 {
		return ns, scope, k, false
	}
	ns = NamespaceID(id)
	copy(scope[:], b)
	b = b[len(scope):]
	end := len(b) - 10
	if b[end] != 0 || b[end+1] != 0 {
		return ns, scope, k, false
	}
	k.ID = b[:end:end]
	if bytes.IndexByte(k.ID, 0) >= 0 {
		k.ID = bytes.ReplaceAll(k.ID, []byte{0, 1}, []byte{0})
	}
	k.Rank = binary.BigEndian.Uint32(b[end+2:])
	k.Group = binary.BigEndian.Uint32(b[end+6:])
	return ns, scope, k, true
}

func appendBlockExpiryKey(b []byte, expiresMS int64, typed []byte) []byte {
	b = appendExpiryKey(b, expiresMS, typed)
	b[len(b)-len(typed)-7] = prefixBlockExpiry
	return b
}

// end is the end of the range of keys that begin with p; see appendEnd. The scope may end in 0xff.
func rangeEnd(p []byte) []byte {
	e := bytes.Clone(p)
	for i := len(e) - 1; i >= 0; i-- {
		if e[i]++; e[i] != 0 {
			return e[:i+1]
		}
	}
	return nil
}
