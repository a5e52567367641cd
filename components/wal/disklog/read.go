package disklog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"kvstore/components/wal/driver"
)

const (
	readChunk = 512       // records looked up at a time
	readGap   = 16 << 10  // frames nearer than this are read with one call
	readSpan  = 256 << 10 // and so much at most
	readTail  = 4 << 10   // read behind the beginning of the last of them
)

// location is where a record is.
type location struct {
	seq uint64
	seg *segment
	off uint32
}

// Read implements driver.Engine.
func (e *Engine) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) error {
	e.mu.Lock()
	s := e.shards[shard]
	if s == nil {
		e.mu.Unlock()
		return nil
	}
	last, doubt := s.pos.last, s.doubt
	e.mu.Unlock()
	for from <= last {
		if err := ctx.Err(); err != nil {
			return err
		}
		where, err := e.locate(s, from, last)
		if err != nil {
			return err
		}
		err = e.readAll(shard, where, fn)
		for _, l := range where {
			e.release(l.seg)
		}
		if err != nil {
			return err
		}
		from += uint64(len(where))
	}
	return doubt
}

// locate returns where the next records from seq on are, and pins their segments.
func (e *Engine) locate(s *shardLog, seq, last uint64) ([]location, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed() {
		return nil, driver.ErrClosed
	}
	if seq < s.kept {
		return nil, fmt.Errorf("record %d of %s, the oldest is %d: %w", seq, s.name, s.kept, driver.ErrNotExist)
	}
	var out []location
	for i := s.index.search(seq); i < len(s.index.extents) && len(out) < readChunk && seq <= last; i++ {
		x := &s.index.extents[i]
		if x.first > seq {
			break
		}
		seg := e.segment(x.segment)
		for seq < x.end() && seq <= last && len(out) < readChunk {
			out = append(out, location{seq, seg, x.offs[seq-x.first]})
			seg.readers++
			seq++
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if s.hurt != nil {
		return nil, fmt.Errorf("record %d of %s: %w", seq, s.name, s.hurt)
	}
	return nil, fmt.Errorf("record %d of %s is missing: %w", seq, s.name, driver.ErrCorrupt)
}

// release unpins a segment.
func (e *Engine) release(seg *segment) {
	e.mu.Lock()
	seg.readers--
	waiting := seg.readers == 0 && seg.number < e.deadBelow
	e.mu.Unlock()
	if waiting {
		e.cleaner.poke()
	}
}

// readAll hands records to fn. Records near each other are read together.
func (e *Engine) readAll(shard string, where []location, fn func(driver.Frame) error) error {
	var window []byte
	for i := 0; i < len(where); {
		first := where[i]
		n := i + 1
		for n < len(where) && where[n].seg == first.seg && where[n].off > where[n-1].off &&
			where[n].off-where[n-1].off <= readGap && where[n].off-first.off <= readSpan {
			n++
		}
		span := int64(where[n-1].off-first.off) + readTail
		span = min(span, first.seg.size-int64(first.off))
		if int64(cap(window)) < span {
			window = make([]byte, max(span, readSpan/4))
		}
		window = window[:span]
		if _, err := first.seg.file.ReadAt(window, int64(first.off)); err != nil {
			return damagedRead(first.seg, first.off, err)
		}
		for ; i < n; i++ {
			l := where[i]
			f, size, intact := decodeFrame(window[l.off-first.off:], salt(e.id, l.seg.number))
			if size == 0 || !intact {
				// It may be longer than the window.
				whole, err := e.readFrame(l.seg, shard, l.seq, l.off)
				if err != nil {
					return err
				}
				f = whole
			} else {
				if string(f.shard) != shard || f.seq != l.seq {
					return misplaced(l.seg, l.off, shard, l.seq)
				}
				f.data = bytes.Clone(f.data)
			}
			if err := fn(driver.Frame{Epoch: f.epoch, Seq: f.seq, Data: f.data}); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFrame reads one record of any size.
func (e *Engine) readFrame(seg *segment, shard string, seq uint64, off uint32) (frame, error) {
	var head [frameHeaderSize]byte
	if _, err := seg.file.ReadAt(head[:], int64(off)); err != nil {
		return frame{}, damagedRead(seg, off, err)
	}
	dataLen := int64(uint32(head[0]) | uint32(head[1])<<8 | uint32(head[2])<<16 | uint32(head[3])<<24)
	size := frameHeaderSize + int64(head[13]) + fenceExtra + dataLen
	size = min(size, seg.size-int64(off))
	buf := make([]byte, size)
	if _, err := seg.file.ReadAt(buf, int64(off)); err != nil {
		return frame{}, damagedRead(seg, off, err)
	}
	f, n, intact := decodeFrame(buf, salt(e.id, seg.number))
	switch {
	case n == 0 || !intact:
		return frame{}, fmt.Errorf("%w: record %d of %s: %s at offset %d: wrong checksum", driver.ErrCorrupt, seq, shard, seg.name, off)
	case string(f.shard) != shard || f.seq != seq:
		return frame{}, misplaced(seg, off, shard, seq)
	}
	return f, nil
}

func misplaced(seg *segment, off uint32, shard string, seq uint64) error {
	return fmt.Errorf("%w: record %d of %s: %s at offset %d holds another", driver.ErrCorrupt, seq, shard, seg.name, off)
}

func damagedRead(seg *segment, off uint32, err error) error {
	if errors.Is(err, fs.ErrClosed) { // Close came in between
		return driver.ErrClosed
	}
	return fmt.Errorf("%w: reading %s at offset %d: %w", driver.ErrCorrupt, seg.name, off, err)
}
