package main

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
)

// fill makes the bytes that belong to a block's number: cheap to make again when a block is verified, and different for
// every number, so that a wrong block cannot pass for another. wyrand, eight bytes a step.
func fill(b []byte, id uint64) {
	state := id*0x9e3779b97f4a7c15 + 0x1234567
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, wyrand(&state))
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], wyrand(&state))
		copy(b, last[:])
	}
}

func wyrand(state *uint64) uint64 {
	*state += 0xa0761d6478bd642f
	hi, lo := bits.Mul64(*state, *state^0xe7037ed1a0b428db)
	return hi ^ lo
}

// same tells whether b is what fill makes for id, without making it all first.
func same(b []byte, id uint64) bool {
	state := id*0x9e3779b97f4a7c15 + 0x1234567
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != wyrand(&state) {
			return false
		}
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], wyrand(&state))
		return string(b) == string(last[:len(b)])
	}
	return true
}

// content reads the bytes of fill for big blocks that should not be in memory as a whole.
type content struct {
	id    uint64
	size  int64
	at    int64
	state uint64
	word  [8]byte // the current eight bytes
}

func newContent(id uint64, size int64) *content {
	c := &content{id: id, size: size}
	c.rewind()
	return c
}

func (c *content) rewind() {
	c.at, c.state = 0, c.id*0x9e3779b97f4a7c15+0x1234567
}

// Read reads the next bytes.
func (c *content) Read(p []byte) (int, error) {
	if c.at >= c.size {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && c.at < c.size {
		if c.at%8 == 0 {
			if len(p)-n >= 8 && c.size-c.at >= 8 {
				binary.LittleEndian.PutUint64(p[n:], wyrand(&c.state))
				n, c.at = n+8, c.at+8
				continue
			}
			binary.LittleEndian.PutUint64(c.word[:], wyrand(&c.state))
		}
		m := copy(p[n:], c.word[c.at%8:min(8, c.at%8+c.size-c.at)])
		n, c.at = n+m, c.at+int64(m)
	}
	return n, nil
}

// Seek only goes back to the start, which is all that a repeated write needs, or tells where it is.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch {
	case offset == 0 && whence == io.SeekCurrent:
		return c.at, nil
	case offset == 0 && whence == io.SeekStart:
		c.rewind()
		return 0, nil
	}
	return 0, errors.New("only to the start")
}
