package disklog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// recovery rebuilds what Engine knows of its shards from the segments, oldest first.
//
// Every segment begins with a snapshot of all positions, so what damage cost is known exactly as soon as a snapshot or a
// record follows it: a seq up to pos.last without a place in the index. Only behind the last snapshot can a loss stay
// unknown; then every shard that nothing vouches for is doubted, and takes no writes.
type recovery struct {
	e       *Engine
	seg     *segment // the one being read
	settled bool     // a snapshot was read
	doubt   error    // acknowledged frames that cannot be named were lost, and no snapshot has followed
}

// found is a segment file before it is read.
type found struct {
	number   uint64
	file     vfs.File
	size     int64
	header   segmentHeader
	readable bool // header is good, and of this file
	blank    bool // the first sector is zeros
}

func (e *Engine) recover() error {
	files, err := e.findSegments()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files { // those that became segments are nil
			if f.file != nil {
				_ = f.file.Close()
			}
		}
	}()
	c := &e.committer
	c.number = 1
	e.preparer.next = 1
	if len(files) == 0 {
		names, err := e.fs.ReadDir(e.path(shardsDir))
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("%w: there are shards, and no log segments", driver.ErrCorrupt)
		}
		return err
	}
	r := &recovery{e: e}
	var buf []byte
	var s scanner
	for i := range files {
		f := &files[i]
		s.mode = scanTail
		limit := f.size
		if i+1 < len(files) {
			s.mode = scanUnbounded
			if next := &files[i+1]; next.readable && next.number == f.number+1 {
				s.mode, limit = scanBounded, int64(next.header.prevEnd)
			}
		}
		r.begin(f)
		if s.mode == scanBounded && limit == 0 {
			continue // its first write failed, and the next segment took its place
		}
		if !f.readable {
			r.note(fmt.Errorf("%w: %s: unreadable segment header", driver.ErrCorrupt, r.seg.name))
		} else if s.next != 0 && f.header.firstBatch > s.next {
			r.gap(0, fmt.Sprintf("batches %d to %d are missing before it", s.next, f.header.firstBatch-1))
			s.next, s.chained = 0, false
		}
		if f.readable && s.next == 0 {
			s.next = f.header.firstBatch
		}
		if buf, err = readSegment(f.file, buf, min(limit, f.size)); err != nil {
			return fmt.Errorf("reading %s: %w", r.seg.name, err)
		}
		s.buf, s.salt = buf, salt(e.id, f.number)
		s.frame, s.lost, s.gap = r.frame, r.lost, r.gap
		s.lastBatch, s.torn, s.damaged = 0, false, false
		s.scan()
		if !f.readable && !s.damaged && s.lastBatch == 0 {
			r.gap(0, "nothing of it can be read")
			s.damaged = true
		}
		r.seg.used = int64(s.end)
		if s.mode == scanBounded && limit > f.size || s.mode != scanBounded && f.readable && f.header.size != uint64(f.size) {
			r.gap(int(f.size), fmt.Sprintf("the file ends here, %d bytes too early", max(limit, int64(f.header.size))-f.size))
			s.damaged = true
		}
		if s.mode != scanTail {
			continue
		}
		damaged := s.damaged || !f.readable
		if err := r.settleTail(buf, &s, damaged); err != nil {
			return fmt.Errorf("making the end of %s durable: %w", r.seg.name, err)
		}
		c.seg, c.off, c.salt, c.roll = r.seg, s.end, s.salt, damaged
	}
	c.number, c.chain = max(s.next, 1), s.chain
	e.preparer.next = files[len(files)-1].number + 1
	for i := range files {
		files[i].file = nil
	}
	r.noteHoles()
	return r.doubtUnknown()
}

// noteHoles notes the shards that miss records of which nothing else was seen, not even damage: a file may be gone.
func (r *recovery) noteHoles() {
	for _, s := range r.e.shards {
		next := s.kept
		for _, x := range s.index.extents {
			if x.first != next {
				break
			}
			next = x.end()
		}
		if next <= s.pos.last && s.hurt == nil {
			s.hurt = fmt.Errorf("%w: records of %s from %d on are missing, a segment may have been removed", driver.ErrCorrupt, s.name, next)
			r.note(s.hurt)
		}
	}
}

// findSegments opens the segment files, oldest first, and removes what never became part of the log.
func (e *Engine) findSegments() (files []found, err error) {
	names, err := e.fs.ReadDir(e.path(segmentsDir))
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		number, ok := parseSegmentName(n.Name)
		if !ok {
			if n.Name == unfinished || n.Name == spareSegment {
				if err := e.fs.Remove(e.path(segmentsDir, n.Name)); err != nil {
					return files, err
				}
			}
			continue
		}
		f, err := e.fs.Open(e.path(segmentsDir, n.Name), os.O_RDWR)
		if err != nil {
			return files, err
		}
		files = append(files, found{number: number, file: f})
	}
	slices.SortFunc(files, func(a, b found) int { return cmp.Compare(a.number, b.number) })
	for i := range files {
		f := &files[i]
		if f.size, err = f.file.Size(); err != nil {
			return files, err
		}
		head, err := readSegment(f.file, nil, min(f.size, segmentHeaderSize))
		if err != nil {
			return files, err
		}
		f.blank = isZero(head) && f.size >= minSegment // it got its name only after its length was durable
		f.header, f.readable = decodeSegmentHeader(head)
		f.readable = f.readable && f.header.id == e.id && f.header.number == f.number
	}
	// The newest may have been made ahead of its use, or its first write, header and all, may be torn.
	for len(files) > 0 {
		f := &files[len(files)-1]
		if !f.blank {
			break
		}
		used, err := e.writtenTwice(f)
		if err != nil {
			return files, err
		}
		if used {
			break
		}
		if err := errors.Join(f.file.Close(), e.fs.Remove(e.path(segmentsDir, segmentName(f.number)))); err != nil {
			return files, err
		}
		files = files[:len(files)-1]
		if err := e.fs.SyncDir(e.path(segmentsDir)); err != nil {
			return files, err
		}
	}
	return files, nil
}

// writtenTwice reports whether a segment with a blank header got a second batch, so that the first write, with the
// header, was acknowledged.
func (e *Engine) writtenTwice(f *found) (bool, error) {
	buf, err := readSegment(f.file, nil, f.size)
	if err != nil {
		return false, err
	}
	s := scanner{buf: buf, salt: salt(e.id, f.number)}
	return s.findBatch(segmentHeaderSize+batchAlign) >= 0, nil
}

// readSegment reads the first n bytes of a file into buf. What cannot be read becomes a pattern that passes no check
// and is not zero.
func readSegment(f vfs.File, buf []byte, n int64) ([]byte, error) {
	const block = 4096
	buf = slices.Grow(buf[:0], int(n))[:n]
	if _, err := f.ReadAt(buf, 0); err == nil || n == 0 {
		return buf, nil
	} else if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("file became shorter: %w", err)
	}
	for off := int64(0); off < n; off += block {
		b := buf[off:min(off+block, n)]
		if _, err := f.ReadAt(b, off); err != nil {
			for i := range b {
				b[i] = 0xEE
			}
		}
	}
	return buf, nil
}

func (r *recovery) begin(f *found) {
	r.seg = &segment{
		number: f.number, name: r.e.path(segmentsDir, segmentName(f.number)), file: f.file, size: f.size, header: f.header,
	}
	r.e.segments = append(r.e.segments, r.seg)
}

// settleTail makes the newest segment durable as it was read. The last batch may be in the page cache only, and if a sync
// failed before, the kernel may believe it clean: it is written again. What is left of a torn batch is wiped.
func (r *recovery) settleTail(buf []byte, s *scanner, damaged bool) error {
	if f := r.seg.file; !damaged {
		if _, err := f.WriteAt(buf[:segmentHeaderSize], 0); err != nil {
			return err
		}
	}
	if s.lastBatch > 0 {
		h, _ := decodeBatchHeader(buf[s.lastBatch:], s.salt)
		end := s.lastBatch + batchHeaderSize + int(h.length)
		if _, err := r.seg.file.WriteAt(buf[s.lastBatch:end], int64(s.lastBatch)); err != nil {
			return err
		}
	}
	if s.torn {
		end := len(buf)
		for end > s.end && buf[end-1] == 0 {
			end--
		}
		return writeZeros(r.seg.file, int64(s.end), int64(end))
	}
	return r.seg.file.Datasync()
}

func (r *recovery) note(err error) { r.e.damage = append(r.e.damage, err) }

// gap: acknowledged frames were lost, and it is not known of which shards.
func (r *recovery) gap(off int, reason string) {
	err := fmt.Errorf("%w: %s at offset %d: %s", driver.ErrCorrupt, r.seg.name, off, reason)
	r.note(err)
	r.doubt = err
	for _, s := range r.e.shards {
		s.doubt, s.hurt = err, cmp.Or(s.hurt, err)
	}
}

// lost: a frame is damaged, and its header says which.
func (r *recovery) lost(f frame, off int) {
	err := fmt.Errorf("%w: %s at offset %d: record %d of %s is damaged", driver.ErrCorrupt, r.seg.name, off, f.seq, f.shard)
	switch f.kind {
	case kindRecord, kindFence:
		r.note(err)
		s := r.advance(f)
		s.hurt = err
	case kindCopy:
		r.note(err)
		if s := r.e.shards[string(f.shard)]; s != nil {
			s.hurt = err
		}
	case kindSnapshot:
		if r.settled { // everything before was read, or is in doubt already
			r.note(fmt.Errorf("%w: %s at offset %d: a snapshot is damaged", driver.ErrCorrupt, r.seg.name, off))
		} else {
			r.gap(off, "the first snapshot is damaged")
		}
	}
}

func (r *recovery) frame(f frame, off int) {
	e := r.e
	switch f.kind {
	case kindRecord, kindFence:
		s := r.advance(f)
		e.place(s, f.seq, r.seg, uint32(off))
	case kindCopy:
		s := e.shards[string(f.shard)]
		if s != nil && f.seq >= s.kept {
			if f.seq > s.pos.last { // the original was lost
				s.pos.last, s.pos.lastEpoch = f.seq, f.epoch
			}
			e.place(s, f.seq, r.seg, uint32(off))
		}
	case kindRemove:
		if s := e.shards[string(f.shard)]; s != nil {
			r.drop(s)
		}
	case kindTrim:
		if s := e.shards[string(f.shard)]; s != nil {
			e.trim(s, f.seq)
		}
	case kindSnapshot:
		entries, err := decodeEntries(f.data)
		if err != nil {
			r.gap(off, err.Error())
			return
		}
		r.snapshot(entries)
	default:
		r.gap(off, fmt.Sprintf("a frame of unknown kind %d", f.kind))
	}
}

// advance moves a shard on to the record in f. Seqs that were skipped are lost.
func (r *recovery) advance(f frame) *shardLog {
	s := r.e.shards[string(f.shard)]
	if s == nil {
		s = &shardLog{name: string(f.shard), kept: 1, hurt: r.doubt}
		r.e.shards[s.name] = s
	}
	if f.seq <= s.pos.last {
		return s
	}
	s.pos.last, s.pos.lastEpoch = f.seq, f.epoch
	switch {
	case f.kind == kindFence:
		s.pos.fence = driver.Epoch{Counter: f.epoch, Writer: f.writer}
		s.pos.fenceSeq = f.seq
	case f.epoch != s.pos.fence.Counter: // its fence was lost; nobody can be of this epoch any more
		s.pos.fence = driver.Epoch{Counter: f.epoch}
		s.pos.fenceSeq = 0
	}
	s.doubt = nil // this record was the last but those that follow
	return s
}

// snapshot takes over positions: what it says is how things were, whatever could be read before it.
func (r *recovery) snapshot(entries []entry) {
	e := r.e
	listed := make(map[*shardLog]bool, len(entries))
	for _, n := range entries {
		s := e.shards[n.shard]
		if s == nil {
			s = &shardLog{name: n.shard, kept: 1, hurt: r.doubt}
			e.shards[n.shard] = s
		}
		listed[s] = true
		s.pos = n.pos
		e.trim(s, n.kept)
		s.doubt = nil
		if n.doubted {
			s.doubt = fmt.Errorf("%w: records behind %d of %s may have been lost before", driver.ErrCorrupt, n.pos.last, n.shard)
		}
	}
	for _, s := range e.shards {
		if !listed[s] {
			r.drop(s)
		}
	}
	r.settled, r.doubt = true, nil
}

func (r *recovery) drop(s *shardLog) {
	for _, x := range s.index.extents {
		r.e.dropLive(x.segment, len(x.offs))
	}
	delete(r.e.shards, s.name)
}

// doubtUnknown: if frames were lost at the end, the whole log of a shard may have been among them.
func (r *recovery) doubtUnknown() error {
	if r.doubt == nil {
		return nil
	}
	names, err := r.e.fs.ReadDir(r.e.path(shardsDir))
	if err != nil {
		return err
	}
	for _, n := range names {
		if r.e.shards[n.Name] == nil {
			r.e.shards[n.Name] = &shardLog{name: n.Name, kept: 1, doubt: r.doubt, hurt: r.doubt}
		}
	}
	return nil
}
