package shard

import (
	"encoding/binary"
	"unsafe"
)

// Entry is a key with its value and what is known about it. Everything in it is a view into the tree.
type Entry struct {
	Key         []byte
	Value       Value
	Version     uint64 // revision of the last write
	CreatedMS   int64
	UpdatedMS   int64
	ExpiresMS   int64 // 0 = never
	ContentType string
	Encoding    string

	metadata, tags []byte // packed pairs
	item           []byte // all of it, as it is stored
	leftOut        int64  // length of an inline value that was not sent
}

// Size is the length of the value, wherever it is.
func (e *Entry) Size() int64 {
	if e.Value.Ref.Object != (ObjectID{}) {
		return e.Value.Ref.Length
	}
	return int64(len(e.Value.Inline)) + e.leftOut
}

// Metadata decodes the user metadata, sorted by name; nil when there is none.
func (e *Entry) Metadata() []Pair { return unpackPairs(e.metadata) }

// Tags decodes the tags, sorted by name; nil when there are none.
func (e *Entry) Tags() []Pair { return unpackPairs(e.tags) }

// An entry's item: flags, version, created, then as the flags say: updated - created, expires, content type, encoding,
// metadata, tags; then the reference or, to the end, the value.
const (
	entryUpdated = 1 << iota
	entryExpires
	entryContentType
	entryEncoding
	entryMetadata
	entryTags
	entryRef
)

func (e *Entry) decode(item []byte) bool {
	e.item = item
	r := reader{b: item}
	flags := r.byte()
	e.Version = r.uvarint()
	e.CreatedMS = int64(r.uvarint())
	e.UpdatedMS = e.CreatedMS
	if flags&^entryRef != 0 {
		if flags&entryUpdated != 0 {
			e.UpdatedMS += int64(r.uvarint())
		}
		if flags&entryExpires != 0 {
			e.ExpiresMS = int64(r.uvarint())
		}
		if flags&entryContentType != 0 {
			e.ContentType = view(r.bytes())
		}
		if flags&entryEncoding != 0 {
			e.Encoding = view(r.bytes())
		}
		if flags&entryMetadata != 0 {
			e.metadata = r.bytes()
		}
		if flags&entryTags != 0 {
			e.tags = r.bytes()
		}
	}
	if flags&entryRef != 0 {
		e.Value.Ref = r.ref()
	} else {
		e.Value.Inline = r.b
	}
	return !r.bad
}

func appendRef(b []byte, f *Ref) []byte {
	b = binary.AppendUvarint(b, f.Object.Epoch)
	b = binary.AppendUvarint(b, f.Object.Counter)
	b = binary.AppendUvarint(b, uint64(f.ObjectBytes))
	b = binary.AppendUvarint(b, uint64(f.Offset))
	b = binary.AppendUvarint(b, uint64(f.Length))
	return binary.BigEndian.AppendUint64(b, f.Checksum)
}

func (r *reader) ref() (f Ref) {
	f.Object.Epoch = r.uvarint()
	f.Object.Counter = r.uvarint()
	f.ObjectBytes = int64(r.uvarint())
	f.Offset = int64(r.uvarint())
	f.Length = int64(r.uvarint())
	f.Checksum = r.uint64()
	return f
}

// Packed pairs: name and value, each with its length, to the end.
func packedPairs(pairs []Pair) (n int) {
	for i := range pairs {
		n += uvarintLen(uint64(len(pairs[i].Name))) + len(pairs[i].Name) + uvarintLen(uint64(len(pairs[i].Value))) + len(pairs[i].Value)
	}
	return n
}

func appendPairs(b []byte, pairs []Pair) []byte {
	b = binary.AppendUvarint(b, uint64(packedPairs(pairs)))
	for i := range pairs {
		b = appendString(b, pairs[i].Name)
		b = appendString(b, pairs[i].Value)
	}
	return b
}

func unpackPairs(packed []byte) []Pair {
	var pairs []Pair
	for r := (reader{b: packed}); len(r.b) > 0; {
		p := Pair{Name: view(r.bytes()), Value: view(r.bytes())}
		if r.bad {
			break
		}
		pairs = append(pairs, p)
	}
	return pairs
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// view is b as a string without a copy. Items of a tree never change, so the string does not either.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
