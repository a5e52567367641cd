package disklog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"kvstore/components/wal/driver"
)

// Sizes of the format, in bytes. DESIGN.md has the layouts.
const (
	sectorSize        = 512 // what a disk writes whole or not at all
	segmentHeaderSize = sectorSize
	batchHeaderSize   = 32
	batchAlign        = 32 // divides sectorSize, so that no batch header crosses a sector
	frameHeaderSize   = 32
	frameAlign        = 8
	fenceExtra        = 16 // a fence frame carries the writer id between name and data
)

var (
	segmentMagic = [8]byte{'K', 'V', 'S', 'E', 'G', 0, 0, 1} // the last byte is the format version
	batchMagic   = [4]byte{'K', 'V', 'B', 1}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// frameKind says what a frame is. Numbers are stored: they are only ever appended.
type frameKind uint8

const (
	kindRecord   frameKind = 1 // the next record of a shard
	kindFence    frameKind = 2 // the next record of a shard, the first of its epoch
	kindCopy     frameKind = 3 // a record again, carried out of an old segment
	kindSnapshot frameKind = 4 // the position of every shard
	kindRemove   frameKind = 5 // a shard is gone, with all its records so far
	kindTrim     frameKind = 6 // a shard's records below seq are forgotten
)

// frame is one decoded frame. Name and data alias the buffer that they were decoded from.
type frame struct {
	kind   frameKind
	shard  []byte
	epoch  uint64
	seq    uint64
	writer [16]byte
	data   []byte
}

// salt is mixed into every checksum of a segment, so that bytes of another segment or another directory never pass.
func salt(id [16]byte, segment uint64) uint32 {
	var b [24]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint64(b[16:], segment)
	return crc32.Checksum(b[:], castagnoli)
}

func align(n, to int) int { return (n + to - 1) &^ (to - 1) }

// segmentHeader is the first sector of a segment. It is written together with the segment's first batch.
type segmentHeader struct {
	id         [16]byte // the data directory's
	number     uint64
	size       uint64 // length of the file
	firstBatch uint64 // number of the batch at offset segmentHeaderSize
	prevEnd    uint64 // where the log ended in the segment before; what lies there beyond is void
	prevChain  uint32 // checksum of the batch before firstBatch
}

func (h *segmentHeader) encode(b []byte) {
	clear(b[:segmentHeaderSize])
	copy(b, segmentMagic[:])
	copy(b[8:], h.id[:])
	binary.LittleEndian.PutUint64(b[24:], h.number)
	binary.LittleEndian.PutUint64(b[32:], h.size)
	binary.LittleEndian.PutUint64(b[40:], h.firstBatch)
	binary.LittleEndian.PutUint64(b[48:], h.prevEnd)
	binary.LittleEndian.PutUint32(b[56:], h.prevChain)
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

// decodeSegmentHeader says whether b begins with a header that was written whole.
func decodeSegmentHeader(b []byte) (h segmentHeader, ok bool) {
	if len(b) < segmentHeaderSize || [8]byte(b[:8]) != segmentMagic ||
		binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return h, false
	}
	copy(h.id[:], b[8:])
	h.number = binary.LittleEndian.Uint64(b[24:])
	h.size = binary.LittleEndian.Uint64(b[32:])
	h.firstBatch = binary.LittleEndian.Uint64(b[40:])
	h.prevEnd = binary.LittleEndian.Uint64(b[48:])
	h.prevChain = binary.LittleEndian.Uint32(b[56:])
	return h, true
}

// batchHeader precedes the frames that one write and one sync made durable.
type batchHeader struct {
	number uint64
	length uint32 // bytes of frames, padding included; a multiple of batchAlign
	crc    uint32 // of those bytes
	zeros  uint32 // pieces of the batch, cut at sector borders, that hold zeros only
	chain  uint32 // crc of the batch before
}

func (h *batchHeader) encode(b []byte, salt uint32) {
	copy(b, batchMagic[:])
	binary.LittleEndian.PutUint64(b[8:], h.number)
	binary.LittleEndian.PutUint32(b[16:], h.length)
	binary.LittleEndian.PutUint32(b[20:], h.crc)
	binary.LittleEndian.PutUint32(b[24:], h.zeros)
	binary.LittleEndian.PutUint32(b[28:], h.chain)
	binary.LittleEndian.PutUint32(b[4:], crc32.Update(salt, castagnoli, b[8:batchHeaderSize]))
}

func decodeBatchHeader(b []byte, salt uint32) (h batchHeader, ok bool) {
	if len(b) < batchHeaderSize || [4]byte(b[:4]) != batchMagic ||
		binary.LittleEndian.Uint32(b[4:]) != crc32.Update(salt, castagnoli, b[8:batchHeaderSize]) {
		return h, false
	}
	h.number = binary.LittleEndian.Uint64(b[8:])
	h.length = binary.LittleEndian.Uint32(b[16:])
	h.crc = binary.LittleEndian.Uint32(b[20:])
	h.zeros = binary.LittleEndian.Uint32(b[24:])
	h.chain = binary.LittleEndian.Uint32(b[28:])
	return h, true
}

// zeroPieces counts the pieces of b, which begins at offset off of its file, that hold zeros only. Before a batch is
// written its place holds zeros, so a sector that never reached the disk shows as one more such piece.
func zeroPieces(b []byte, off int) uint32 {
	var n uint32
	for len(b) > 0 {
		size := min(sectorSize-off%sectorSize, len(b))
		if isZero(b[:size]) {
			n++
		}
		b, off = b[size:], off+size
	}
	return n
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// frameSize is the number of bytes that a frame takes in a batch.
func frameSize(kind frameKind, nameLen, dataLen int) int {
	n := frameHeaderSize + nameLen + dataLen
	if kind == kindFence {
		n += fenceExtra
	}
	return align(n, frameAlign)
}

// appendFrame encodes a frame behind b, whose length is a multiple of frameAlign.
func appendFrame(b []byte, salt uint32, kind frameKind, shard string, epoch, seq uint64, writer *[16]byte, data []byte) []byte {
	start := len(b)
	var h [frameHeaderSize]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(len(data)))
	binary.LittleEndian.PutUint32(h[8:], crc32.Checksum(data, castagnoli))
	h[12] = byte(kind)
	h[13] = byte(len(shard))
	binary.LittleEndian.PutUint64(h[16:], epoch)
	binary.LittleEndian.PutUint64(h[24:], seq)
	b = append(b, h[:]...)
	b = append(b, shard...)
	if kind == kindFence {
		b = append(b, writer[:]...)
	}
	head := b[start:]
	binary.LittleEndian.PutUint32(head[4:], frameCRC(head, salt))
	b = append(b, data...)
	for len(b)%frameAlign != 0 {
		b = append(b, 0)
	}
	return b
}

// frameCRC is the checksum of a frame's header, name and writer id; the data's own checksum is part of the header.
func frameCRC(head []byte, salt uint32) uint32 {
	return crc32.Update(crc32.Update(salt, castagnoli, head[:4]), castagnoli, head[8:])
}

// decodeFrame decodes the frame at the start of b. size is 0 when its header is not to be trusted, so that what follows
// cannot be found either; intact is false when the header is good and the data is not.
func decodeFrame(b []byte, salt uint32) (f frame, size int, intact bool) {
	if len(b) < frameHeaderSize {
		return f, 0, false
	}
	dataLen, nameLen := int(binary.LittleEndian.Uint32(b)), int(b[13])
	f.kind = frameKind(b[12])
	headLen := frameHeaderSize + nameLen
	if f.kind == kindFence {
		headLen += fenceExtra
	}
	if headLen > len(b) || dataLen > len(b)-headLen || binary.LittleEndian.Uint32(b[4:]) != frameCRC(b[:headLen], salt) {
		return f, 0, false
	}
	f.shard = b[frameHeaderSize : frameHeaderSize+nameLen]
	if f.kind == kindFence {
		copy(f.writer[:], b[frameHeaderSize+nameLen:])
	}
	f.epoch = binary.LittleEndian.Uint64(b[16:])
	f.seq = binary.LittleEndian.Uint64(b[24:])
	f.data = b[headLen : headLen+dataLen : headLen+dataLen]
	size = min(align(headLen+dataLen, frameAlign), len(b))
	return f, size, binary.LittleEndian.Uint32(b[8:]) == crc32.Checksum(f.data, castagnoli)
}

// position is where a shard's log stands.
type position struct {
	last      uint64       // seq of the last record, 0 = none
	lastEpoch uint64       // counter of the epoch that appended it
	fence     driver.Epoch // the last fence
	fenceSeq  uint64
}

// entry is one shard in a snapshot frame.
type entry struct {
	shard   string
	pos     position
	kept    uint64 // records below are forgotten
	doubted bool   // records at the end may be missing, see shardLog.doubt
}

const entrySize = 1 + 1 + 8*5 + 16 // without the name

func appendEntry(b []byte, e entry) []byte {
	var flags byte
	if e.doubted {
		flags |= 1
	}
	b = append(b, flags, byte(len(e.shard)))
	b = append(b, e.shard...)
	for _, v := range []uint64{e.kept, e.pos.last, e.pos.lastEpoch, e.pos.fence.Counter, e.pos.fenceSeq} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, e.pos.fence.Writer[:]...)
}

func decodeEntries(b []byte) ([]entry, error) {
	var out []entry
	for len(b) > 0 {
		if len(b) < entrySize || len(b) < entrySize+int(b[1]) {
			return nil, fmt.Errorf("snapshot frame ends inside an entry")
		}
		e := entry{doubted: b[0]&1 != 0, shard: string(b[2 : 2+int(b[1])])}
		b = b[2+int(b[1]):]
		for _, v := range []*uint64{&e.kept, &e.pos.last, &e.pos.lastEpoch, &e.pos.fence.Counter, &e.pos.fenceSeq} {
			*v = binary.LittleEndian.Uint64(b)
			b = b[8:]
		}
		copy(e.pos.fence.Writer[:], b)
		b = b[16:]
		out = append(out, e)
	}
	return out, nil
}
