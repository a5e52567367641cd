// Package promptcache holds what clients and shards of the prompt cache must agree on, and the order in which blocks leave it.
// It is pure: the canonical form of a scope and its id, the slot of a block, the documented chain of block ids for callers
// that bring tokens alone, and the eviction policy (policy.go). DESIGN.md beside it has the formats, testdata/golden.json has
// vectors for other languages.
//
// It stores nothing and knows no protocol: package shard keeps blocks, package frontend speaks gRPC.
//
//	canonical, err := promptcache.Canonical(map[string]string{"model": "llama-3-8b", "cache_salt": "tenant-7"})
//	chain := promptcache.NewChain(canonical, 16)
//	ids := chain.IDs(tokens) // one id of 32 bytes for each full block of 16 tokens
package promptcache

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/ring"
)

// Limits of names.
const (
	MaxIDBytes     = key.MaxBlockID // longest block id; the shortest has 1 byte
	MaxScopeFields = 32             // most fields of a scope
	MaxScopeBytes  = 4096           // most bytes of names and values of a scope together
)

// ScopeID is the id of a scope: xxh3-128 of its canonical form, high half first, each half big endian.
type ScopeID = [16]byte

const canonicalVersion = 1

// Canonical returns the canonical form of a scope: the byte 01, then for every field with a value, in byte order of the
// names, length and bytes of the name, length and bytes of the value; lengths are uvarints. A field with an empty value is
// the same as none, so equal scopes have equal forms and different scopes different ones. The error is a *kverr.Error that
// names the field of the request, the value and the limit.
func Canonical(fields map[string]string) ([]byte, error) {
	names := make([]string, 0, len(fields))
	total := 0
	for name, value := range fields {
		if value == "" {
			continue
		}
		if name == "" {
			return nil, invalid("scope.fields", "a field has no name (value %.64q); names have at least 1 byte", value)
		}
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, invalid("scope.fields", "field %.64q is not UTF-8", name)
		}
		names = append(names, name)
		total += len(name) + len(value)
	}
	if len(names) > MaxScopeFields {
		return nil, tooLarge("scope.fields", "a scope of %d fields; at most %d", len(names), MaxScopeFields)
	}
	if total > MaxScopeBytes {
		return nil, tooLarge("scope.fields", "a scope of %d bytes; at most %d for all names and values", total, MaxScopeBytes)
	}
	slices.Sort(names)
	b := make([]byte, 0, 1+total+3*2*len(names))
	b = append(b, canonicalVersion)
	for _, name := range names {
		b = appendString(b, name)
		b = appendString(b, fields[name])
	}
	return b, nil
}

// ScopeOf is the id of a scope with that canonical form.
func ScopeOf(canonical []byte) ScopeID { return xxh3.Hash128(canonical).Bytes() }

// Fields reads a canonical form back. It refuses whatever Canonical does not write.
func Fields(canonical []byte) (map[string]string, error) {
	if len(canonical) == 0 || canonical[0] != canonicalVersion {
		return nil, fmt.Errorf("scope: canonical form of an unknown version")
	}
	fields := make(map[string]string)
	for rest := canonical[1:]; len(rest) > 0; {
		var name, value string
		var ok bool
		if name, rest, ok = cutString(rest); ok {
			value, rest, ok = cutString(rest)
		}
		if !ok {
			return nil, fmt.Errorf("scope: canonical form is cut short")
		}
		fields[name] = value
	}
	again, err := Canonical(fields)
	if err != nil {
		return nil, fmt.Errorf("scope: %w", err)
	}
	if string(again) != string(canonical) {
		return nil, fmt.Errorf("scope: form is not canonical")
	}
	return maps.Clone(fields), nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)-used) {
		return "", nil, false
	}
	b = b[used:]
	return string(b[:n]), b[n:], true
}

// Slot is the slot of a block: that of the partition key which key.AppendBlock makes of its name. The shard that owns the slot
// has the block. It allocates nothing for ids of up to MaxIDBytes.
func Slot(namespace string, scope ScopeID, id []byte, rank, group uint32) uint16 {
	var room [key.MaxBlockPartition]byte
	return ring.Slot(namespace, key.AppendBlock(room[:0], scope, id, rank, group))
}

// Checksum is the checksum of a block's bytes: xxh3-64 without a seed.
func Checksum(p []byte) uint64 { return xxh3.Hash(p) }

func invalid(field, format string, args ...any) error {
	return &kverr.Error{Kind: kverr.InvalidArgument, Op: "check scope", Field: field, Message: fmt.Sprintf(format, args...)}
}

func tooLarge(field, format string, args ...any) error {
	return &kverr.Error{Kind: kverr.TooLarge, Op: "check scope", Field: field, Message: fmt.Sprintf(format, args...)}
}
