package btree

import (
	"encoding/binary"
	"unsafe"
)

// item is a key and its value in one allocation that is never changed: uvarint(len(key)), uvarint(len(value)), key, value. The
// zero item is none. A separator of an inner node is an item without a value.
//
// It is one pointer and not a string: a place in a node costs 8 bytes less so, and nodes are what a write after a clone
// copies.
type item struct{ p *byte }

// pack copies key and value into an item.
func pack(key, value []byte) item {
	var head [2 * binary.MaxVarintLen64]byte
	h := binary.PutUvarint(head[:], uint64(len(key)))
	h += binary.PutUvarint(head[h:], uint64(len(value)))
	buf := make([]byte, h+len(key)+len(value))
	copy(buf, head[:h])
	copy(buf[h:], key)
	copy(buf[h+len(key):], value)
	return item{unsafe.SliceData(buf)}
}

// at is the address of the item's byte i, which must be inside.
func (it item) at(i int) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(it.p), i)) }

// layout returns the lengths of key and value, and where the key begins.
func (it item) layout() (key, value, begin int) {
	key, begin = it.uvarint(0)
	value, begin = it.uvarint(begin)
	return key, value, begin
}

// uvarint reads a length at byte i, and returns what is behind it.
func (it item) uvarint(i int) (n, next int) {
	for shift := 0; ; shift += 7 {
		b := *it.at(i)
		i++
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return n, i
		}
	}
}

// key is a view of the item's key.
func (it item) key() string {
	n, begin := int(*it.p), 2
	if n >= 0x80 || *it.at(1) >= 0x80 { // a length takes more than one byte
		n, _, begin = it.layout()
	}
	if n == 0 {
		return "" // what follows the lengths may be another allocation
	}
	return unsafe.String(it.at(begin), n)
}

// keyBytes and valueBytes are views without capacity to append into, and never nil.
func (it item) keyBytes() []byte { return bytesOf(it.key()) }

func (it item) valueBytes() []byte {
	key, value, begin := it.layout()
	if value == 0 {
		return []byte{} // what follows the key may be another allocation
	}
	return unsafe.Slice(it.at(begin+key), value)
}

// size is what Bytes counts for the item.
func (it item) size() int64 {
	key, value, _ := it.layout()
	return int64(key+value) + ItemOverhead
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

// common is how many bytes a and b begin with alike, at most limit.
func common(a, b string, limit int) int {
	limit = min(limit, len(a), len(b))
	for i := range limit {
		if a[i] != b[i] {
			return i
		}
	}
	return limit
}

// separator is the shortest key that is > left and <= right, given left < right.
func separator(left, right string) item {
	return pack(bytesOf(right[:common(left, right, len(left))+1]), nil)
}

// headOf is the 4 bytes of k from position at on, padded with zeros, as a number: of two keys that are alike before at, the
// one with the smaller head is smaller; with equal heads the keys themselves must be compared.
func headOf(k string, at int) uint32 {
	if len(k) >= at+4 {
		return uint32(k[at])<<24 | uint32(k[at+1])<<16 | uint32(k[at+2])<<8 | uint32(k[at+3])
	}
	var head uint32
	for i := at; i < len(k); i++ {
		head |= uint32(k[i]) << (24 - 8*(i-at))
	}
	return head
}
