package key

import (
	"bytes"
	"encoding/binary"

	"kvstore/components/kverr"
)

// Rule says which part of a key, its partition key, decides the slot: keys with one partition key are on one shard and can
// share a transaction. It is fixed for the life of a namespace. The zero value is HashTag.
type Rule struct {
	kind     ruleKind
	elements int
}

type ruleKind uint8

const (
	hashTag ruleKind = iota
	pathElements
	wholeNamespace
)

// HashTag is the rule that takes what is between the first non-empty pair of braces, else the whole key:
// "{user7}/cart" and "{user7}/name" are together.
func HashTag() Rule { return Rule{} }

// PathElements is the rule that takes the first n elements of a path, 1 to MaxPathElements. Elements end at '/'; a '/' at the
// beginning belongs to the first one. A key with fewer elements is taken whole: for n = 2, "/a/b", "/a/b/" and
// "/a/b/c" are together, "/a" is apart.
func PathElements(n int) (Rule, error) {
	if n < 1 || n > MaxPathElements {
		return Rule{}, kverr.Invalid("partition.path_elements", "is %d; it must be 1 to %d", n, MaxPathElements)
	}
	return Rule{pathElements, n}, nil
}

// WholeNamespace is the rule that keeps a namespace in one slot.
func WholeNamespace() Rule { return Rule{kind: wholeNamespace} }

// Elements is the n of PathElements, 0 for the other rules.
func (r Rule) Elements() int { return r.elements }

// Whole reports the rule WholeNamespace.
func (r Rule) Whole() bool { return r.kind == wholeNamespace }

// Partition returns the partition key of k: a part of k, not a copy.
func (r Rule) Partition(k []byte) []byte {
	switch r.kind {
	case pathElements:
		return firstElements(k, r.elements)
	case wholeNamespace:
		return nil
	}
	return tagOf(k)
}

// tagOf returns what is in the first non-empty pair of braces, else k. A pair is a '{' and the next '}' behind it.
func tagOf(k []byte) []byte {
	for rest := k; ; {
		open := bytes.IndexByte(rest, '{')
		if open < 0 {
			return k
		}
		rest = rest[open+1:]
		n := bytes.IndexByte(rest, '}')
		if n < 0 {
			return k
		}
		if n > 0 {
			return rest[:n:n]
		}
		rest = rest[1:]
	}
}

func firstElements(k []byte, n int) []byte {
	for i := 1; i < len(k); i++ {
		if k[i] == '/' {
			if n--; n == 0 {
				return k[:i:i]
			}
		}
	}
	return k
}

// AppendBlock appends the partition key of a prompt block to dst: scope, rank and group as little-endian uint32, id. All but
// the id have a fixed length, so different blocks have different partition keys.
func AppendBlock(dst []byte, scope [16]byte, id []byte, rank, group uint32) []byte {
	dst = append(dst, scope[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, rank)
	dst = binary.LittleEndian.AppendUint32(dst, group)
	return append(dst, id...)
}

// MaxBlockPartition is the longest that AppendBlock appends.
const MaxBlockPartition = 16 + 4 + 4 + MaxBlockID
