package disklog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// segment is one file of the log.
type segment struct {
	number uint64
	name   string
	file   vfs.File
	size   int64
	header segmentHeader // what its first write puts at its start; the committer's

	// Guarded by Engine.mu.
	used    int64 // bytes of log in it
	records int   // how many were ever placed in it
	live    int   // how many of them are still needed
	readers int   // reads under way; it is not removed before they are done
}

const (
	segmentsDir   = "segments"
	segmentSuffix = ".log"
	unfinished    = "next.tmp" // a segment that is being made
	spareSegment  = "spare"    // a segment that is no longer needed, to be made into another
)

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && n > 0
}

// segment returns a segment of the log. The caller holds mu.
func (e *Engine) segment(number uint64) *segment {
	i, ok := slices.BinarySearchFunc(e.segments, number, func(s *segment, n uint64) int {
		switch {
		case s.number < n:
			return -1
		case s.number > n:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return e.segments[i]
}

// place says that a record of s is in seg, and perhaps no longer where it was. The caller holds mu.
func (e *Engine) place(s *shardLog, seq uint64, seg *segment, off uint32) {
	if before := s.index.put(seq, seg.number, off); before != 0 {
		e.dropLive(before, 1)
	}
	seg.records++
	seg.live++
}

// trim forgets the records of s below a seq, but never the last. The caller holds mu.
func (e *Engine) trim(s *shardLog, below uint64) {
	if below = min(below, s.pos.last); below > s.kept {
		s.kept = below
		s.index.dropBelow(below, e.dropLive)
	}
}

// dropLive says that n records of a segment are not needed any more. The caller holds mu.
func (e *Engine) dropLive(number uint64, n int) {
	if seg := e.segment(number); seg != nil {
		seg.live -= n
	}
}

// firstLive returns the number of the oldest segment that is needed, never that of one behind the newest. The caller
// holds mu.
func (e *Engine) firstLive() uint64 {
	for _, seg := range e.segments {
		if seg.live > 0 {
			return seg.number
		}
	}
	return e.segments[len(e.segments)-1].number
}

// preparer makes the next segment while the current one fills: a file of its final name and size whose every block was
// written with zeros and synced, so that a later sync of data in it has no file system metadata to write. Beginning the segment is
// then a write like any other.
type preparer struct {
	e      *Engine
	demand chan demand   // capacity 1
	result chan prepared // capacity 1
	quit   chan struct{}
	spare  atomic.Bool // a spare segment of full size is there

	// The committer's, through take.
	waiting bool   // a demand has no result yet
	next    uint64 // number of the segment to come; set by recovery
}

type demand struct {
	number uint64
	size   int64 // at least
}

type prepared struct {
	seg *segment
	err error
}

func (p *preparer) start(e *Engine) {
	p.e = e
	p.demand = make(chan demand, 1)
	p.result = make(chan prepared, 1)
	p.quit = make(chan struct{})
	go func() {
		defer close(p.quit)
		for d := range p.demand {
			seg, err := p.prepare(d)
			p.result <- prepared{seg, err}
		}
	}()
	p.ask(0)
}

// stop ends the goroutine. The segment that it has ready stays for the next Open.
func (p *preparer) stop() {
	close(p.demand)
	<-p.quit
	select {
	case r := <-p.result:
		if r.err == nil {
			_ = r.seg.file.Close() // zeros, synced
		}
	default:
	}
}

func (p *preparer) ask(size int64) {
	p.demand <- demand{p.next, size}
	p.waiting = true
}

// take returns the next segment, of at least size bytes, and has the one after it made. Only the committer calls it.
func (p *preparer) take(size int64) (*segment, error) {
	early := p.waiting // the demand is from before: its failure may be of the past
	for {
		if !p.waiting {
			p.ask(size)
		}
		r := <-p.result
		p.waiting = false
		switch {
		case r.err != nil && !early:
			return nil, r.err
		case r.err == nil && r.seg.size < size:
			if err := p.discard(r.seg); err != nil {
				return nil, err
			}
		case r.err == nil:
			p.next++
			p.ask(0)
			return r.seg, nil
		}
		early = false
	}
}

func (p *preparer) discard(seg *segment) error {
	return errors.Join(seg.file.Close(), p.e.fs.Remove(seg.name))
}

// prepare makes a segment. Its file gets its name only when it is complete.
func (p *preparer) prepare(d demand) (seg *segment, err error) {
	e := p.e
	size := e.cfg.SegmentBytes
	if d.number < 16 {
		size = min(size, firstSegment<<(d.number-1))
	}
	size = max(size, (d.size+4095)&^4095)
	temporary := e.path(segmentsDir, unfinished)
	if size == e.cfg.SegmentBytes && p.spare.Load() {
		// Renamed before the next spare may take its name.
		if err := e.fs.Rename(e.path(segmentsDir, spareSegment), temporary); err != nil {
			return nil, err
		}
		p.spare.Store(false)
	} else if err := e.space.take(size, segmentShare); err != nil {
		return nil, err
	}
	f, err := e.fs.Open(temporary, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, noSpace(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = e.fs.Remove(temporary)
			err = noSpace(err)
		}
	}()
	if err := f.Allocate(size); err != nil {
		return nil, err
	}
	if err := writeZeros(f, 0, size); err != nil {
		return nil, err
	}
	name := e.path(segmentsDir, segmentName(d.number))
	if err := e.fs.Rename(temporary, name); err != nil {
		return nil, err
	}
	if err := e.fs.SyncDir(e.path(segmentsDir)); err != nil {
		temporary = name
		return nil, err
	}
	return &segment{
		number: d.number, name: name, file: f, size: size,
		header: segmentHeader{id: e.id, number: d.number, size: uint64(size)},
	}, nil
}

// writeZeros writes and syncs zeros from offset from up to to.
func writeZeros(f vfs.File, from, to int64) error {
	const piece, syncEvery = 1 << 20, 8 << 20
	zeros := make([]byte, min(piece, to-from))
	unsynced := int64(0)
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from, unsynced = from+int64(n), unsynced+int64(n)
		if unsynced >= syncEvery && from < to { // a queue of 64 MiB would stand before the committer's syncs
			if err := f.Datasync(); err != nil {
				return err
			}
			unsynced = 0
		}
	}
	return f.Datasync()
}

// noSpace marks a full disk or an exhausted quota as driver.ErrNoSpace. It is for operations before the record or
// object in question exists.
func noSpace(err error) error {
	if errors.Is(err, driver.ErrNoSpace) || (!errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT)) {
		return err
	}
	return fmt.Errorf("%w: %w", driver.ErrNoSpace, err)
}

// remove removes a segment that nothing needs, or keeps its file for the preparer.
func (p *preparer) remove(seg *segment) error {
	e := p.e
	_ = seg.file.Close() // nothing in it matters any more
	if seg.size == e.cfg.SegmentBytes && !p.spare.Load() && !e.space.low() {
		if err := e.fs.Rename(seg.name, e.path(segmentsDir, spareSegment)); err != nil {
			return err
		}
		// Synced before it is overwritten, or a crash could leave zeros under the old name.
		if err := e.fs.SyncDir(e.path(segmentsDir)); err != nil {
			return err
		}
		p.spare.Store(true)
		return nil
	}
	if err := e.fs.Remove(seg.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return e.fs.SyncDir(e.path(segmentsDir))
}
