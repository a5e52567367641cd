package disklog

import (
	"fmt"
	"hash/crc32"
)

// scanMode says what is known of the place where a segment's log ends.
type scanMode uint8

const (
	// scanBounded: the next segment says where. All before is acknowledged, so anything unreadable is damage.
	scanBounded scanMode = iota
	// scanUnbounded: a later segment exists but does not say. All is acknowledged; zeros are the end.
	scanUnbounded
	// scanTail: the newest segment. The last batch may be torn.
	scanTail
)

// scanner reads the batches of one segment. It is pure: what it finds goes to the three functions, in the order of
// the log.
type scanner struct {
	buf  []byte // the segment up to where the scan may read
	salt uint32
	mode scanMode

	next    uint64 // number of the batch to come, 0 = not known
	chain   uint32 // checksum of the batch before, if chained
	chained bool

	frame func(f frame, off int)       // a good frame
	lost  func(f frame, off int)       // a frame whose header is good and whose data is damaged
	gap   func(off int, reason string) // acknowledged frames that cannot be named were here

	end       int  // after scan: where the next batch would go
	lastBatch int  // offset of the last good batch, 0 = none
	torn      bool // bytes behind end are what is left of a batch that was never acknowledged
	damaged   bool // something was lost, or gap was called
}

// scan reads from the end of the segment header on.
//
// Telling a torn batch from a damaged one rests on three facts. A batch is written only after the one before was
// synced, so an unreadable batch with a readable one of a higher number behind it, here or in a later segment, was
// acknowledged. Its place held zeros before, and a disk writes whole sectors, so a batch that is unreadable because part of it
// never arrived has more all-zero sectors than it was written with. A batch header lies within one sector, so it is whole or zero.
func (s *scanner) scan() {
	pos := segmentHeaderSize
	for pos+batchHeaderSize <= len(s.buf) {
		h, ok := decodeBatchHeader(s.buf[pos:], s.salt)
		size := batchHeaderSize + int(h.length)
		ok = ok && h.length%batchAlign == 0 && size <= len(s.buf)-pos && (s.next == 0 || h.number >= s.next)
		if !ok {
			zero := isZero(s.buf[pos : pos+batchHeaderSize])
			later := s.findBatch(pos + batchAlign)
			if zero && later < 0 && s.mode != scanBounded {
				s.torn = s.mode == scanTail && !isZero(s.buf[pos:])
				s.end = pos
				return
			}
			s.report(pos, "unreadable batch header")
			if later < 0 {
				s.end = len(s.buf)
				s.next++ // the batch that was here had this number
				s.chained = false
				return
			}
			pos, s.next, s.chained = later, 0, false
			continue
		}
		if s.next != 0 && h.number != s.next {
			s.report(pos, fmt.Sprintf("batches %d to %d are missing", s.next, h.number-1))
		} else if s.chained && h.chain != s.chain {
			s.report(pos, fmt.Sprintf("batch %d does not follow the batch before it", h.number))
		}
		payload := s.buf[pos+batchHeaderSize : pos+size]
		good := crc32.Update(s.salt, castagnoli, payload) == h.crc
		s.next, s.chain, s.chained = h.number+1, h.crc, true
		if !good && s.mode == scanTail && zeroPieces(s.buf[pos:pos+size], pos) > h.zeros && s.findBatch(pos+size) < 0 {
			s.torn, s.end = true, pos
			s.next, s.chain = h.number, h.chain
			return
		}
		s.frames(payload, pos+batchHeaderSize)
		if good {
			s.lastBatch = pos
		} else {
			s.damaged = true
		}
		pos += size
	}
	s.end = pos
}

// frames hands on the frames of one batch.
func (s *scanner) frames(b []byte, off int) {
	for len(b) >= frameHeaderSize {
		f, size, intact := decodeFrame(b, s.salt)
		if size == 0 {
			s.report(off, "unreadable frame header")
			return
		}
		if intact {
			s.frame(f, off)
		} else {
			s.damaged = true
			s.lost(f, off)
		}
		b, off = b[size:], off+size
	}
}

func (s *scanner) report(off int, reason string) {
	s.damaged = true
	s.gap(off, reason)
}

// findBatch returns the first offset from pos on where a batch begins that was written after the expected one; -1 if
// there is none. Behind a damaged header the expected batch itself cannot be found, so any later one counts.
func (s *scanner) findBatch(pos int) int {
	for pos = align(pos, batchAlign); pos+batchHeaderSize <= len(s.buf); pos += batchAlign {
		if [4]byte(s.buf[pos:]) != batchMagic {
			continue
		}
		if h, ok := decodeBatchHeader(s.buf[pos:], s.salt); ok && h.number >= s.next && batchHeaderSize+int(h.length) <= len(s.buf)-pos {
			return pos
		}
	}
	return -1
}
