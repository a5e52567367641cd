package btree

import (
	"encoding/binary"
	"unsafe"
)

// item is a key and its value in one allocation that is never changed: uvarint(len(key)), key, value. A separator of an
// inner node is an item without a value.
type item string

// pack copies key and value into an item.
func pack(key, value []byte) item {
	var head [binary.MaxVarintLen64]byte
	h := binary.PutUvarint(head[:], uint64(len(key)))
	buf := make([]byte, h+len(key)+len(value))
	copy(buf, head[:h])
	copy(buf[h:], key)
	copy(buf[h+len(key):], value)
	return item(view(buf))
}

// key is a view of the item's key.
func (it item) key() string {
	if n := int(it[0]); n < 0x80 {
		return string(it[1 : 1+n])
	}
	return it.longKey()
}

func (it item) longKey() string {
	n, h := binary.Uvarint(bytesOf(string(it)))
	return string(it[h : h+int(n)])
}

// keyBytes and valueBytes are views without capacity to append into.
func (it item) keyBytes() []byte { return bytesOf(it.key()) }

func (it item) valueBytes() []byte {
	if n := int(it[0]); n < 0x80 {
		return bytesOf(string(it[1+n:]))
	}
	n, h := binary.Uvarint(bytesOf(string(it)))
	return bytesOf(string(it[h+int(n):]))
}

// size is what Bytes counts for the item.
func (it item) size() int64 {
	h := 1
	if it[0] >= 0x80 {
		_, h = binary.Uvarint(bytesOf(string(it)))
	}
	return int64(len(it)-h) + ItemOverhead
}

// same reports whether two items are one allocation, and therefore equal.
func (it item) same(other item) bool {
	return len(it) == len(other) && unsafe.StringData(string(it)) == unsafe.StringData(string(other))
}

// view is b as a string without a copy; b must not change while the string is used.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf is s as bytes without a copy, which must not be changed; never nil.
func bytesOf(s string) []byte {
	if len(s) == 0 {
		return []byte{}
	}
	return unsafe.Slice(unsafe.StringData(s), len(s))
}

// separator is the shortest key that is > left and <= right, given left < right.
func separator(left, right string) item {
	i := 0
	for i < len(left) && left[i] == right[i] {
		i++
	}
	return pack(bytesOf(right[:i+1]), nil)
}
