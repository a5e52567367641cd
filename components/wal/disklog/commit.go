package disklog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"runtime"
	"slices"
	"sync"

	"kvstore/components/wal/driver"
)

// requestKind says what is asked of the committer.
type requestKind uint8

const (
	reqAppend   requestKind = iota
	reqFence                // the next record is the first one of epoch
	reqTrim                 // forget records below seq
	reqRemove               // forget the shard
	reqCopy                 // write a record again, into the newest segment
	reqSnapshot             // write the position of every shard
)

type request struct {
	kind       requestKind
	shard      string
	epoch      driver.Epoch
	frameEpoch uint64
	seq        uint64
	data       []byte
	record     func(seq, previousEpoch uint64) []byte // reqFence: makes data
	fenced     *uint64                                // reqFence: result
	log        *shardLog                              // reqCopy: whose record it is; not that of a later shard of the same name
	done       func(error)
	err        error // the outcome, kept until done is called
	placed     bool  // the outcome is that of the batch
}

// placement is one frame of the batch at hand.
type placement struct {
	kind  frameKind
	log   *shardLog
	epoch uint64
	seq   uint64
	off   uint32 // in the segment
}

// committer is the one goroutine that writes the log. It takes all that is waiting, writes it as one batch with one write
// and one sync, and then answers, in order. There is never more than one unsynced batch, on which recovery rests.
type committer struct {
	e    *Engine
	wake chan struct{} // capacity 1
	quit chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards queue and stopped
	queue   []request  // bounded by the callers: each shard has one append outstanding
	stopped bool

	// The rest is the goroutine's own; recovery sets it before there is one.
	taken   []request // the other half of the queue's double buffer
	seg     *segment  // where batches go
	off     int       // where in it; 0 = it has no header yet
	number  uint64    // of the next batch
	chain   uint32    // checksum of the last one
	salt    uint32    // of seg
	roll    bool      // seg takes no more batches: it is damaged, or a write to it failed
	failed  error     // the outcome of the last write is unknown, and no batch has been written since
	dead    error     // nothing can be written any more
	round   uint64    // counts batches built, also those that failed
	buf     []byte    // the batch at hand, with room for its header in front
	places  []placement
	bodyOff int    // where in buf the first frame is
	snap    uint64 // the batch holds a snapshot, and segments below this were dead when it was taken; 0 = none
}

func (c *committer) init(e *Engine) {
	c.e = e
	c.wake = make(chan struct{}, 1)
	c.quit = make(chan struct{})
}

func (c *committer) start() { go c.run() }

// stop lets what is waiting be written, marks the end of the log, and waits for the goroutine.
func (c *committer) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.signal()
	<-c.quit
}

func (c *committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// submit queues r. Its done is called from another goroutine, always.
func (c *committer) submit(r request) {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		go r.done(driver.ErrClosed)
		return
	}
	c.queue = append(c.queue, r)
	first := len(c.queue) == 1
	c.mu.Unlock()
	if first {
		c.signal()
	}
}

func (c *committer) run() {
	defer close(c.quit)
	for {
		// Whoever can run runs first, so that what it appends is in this batch: no delay on an idle machine, fewer and wider
		// batches on a busy one.
		runtime.Gosched()
		c.mu.Lock()
		c.queue, c.taken = c.taken[:0], c.queue
		stopped := c.stopped
		c.mu.Unlock()
		switch {
		case len(c.taken) > 0:
			c.commit(c.taken)
			clear(c.taken)
		case stopped:
			c.commit([]request{{kind: reqSnapshot, done: func(error) {}}})
			return
		default:
			<-c.wake
		}
	}
}

// commit writes requests in as few batches as their size allows and answers each after its batch.
func (c *committer) commit(reqs []request) {
	short := c.e.space.shortage()
	var rollErr error // a segment could not be had; not tried again for each of reqs
	for len(reqs) > 0 {
		c.begin()
		n := 0
		for n < len(reqs) {
			r := &reqs[n]
			fits, err := c.add(r, short)
			if !fits && len(c.places) == 0 && c.snap == 0 { // not even alone: a new segment
				if rollErr == nil {
					rollErr = c.nextSegment(r)
				}
				if rollErr == nil {
					c.begin()
					continue
				}
				fits, err = true, rollErr
			}
			if !fits {
				break
			}
			r.err, r.placed = err, err == nil
			n++
		}
		err := c.flush()
		for i := range reqs[:n] {
			if r := &reqs[i]; r.placed && err != nil {
				r.err = err
			}
			reqs[i].done(reqs[i].err)
		}
		reqs = reqs[n:]
	}
}

// begin starts an empty batch.
func (c *committer) begin() {
	c.round++
	c.places = c.places[:0]
	c.snap = 0
	if cap(c.buf) > 2*maxBatch {
		c.buf = nil
	}
	c.bodyOff = batchHeaderSize
	if c.off == 0 {
		c.bodyOff += segmentHeaderSize
	}
	c.buf = slices.Grow(c.buf[:0], c.bodyOff)[:c.bodyOff]
	clear(c.buf)
	if c.seg != nil && c.off == 0 && !c.roll {
		c.addSnapshot() // every segment begins with one; nextSegment saw to the room
	}
}

// position returns where a shard stands after the batch at hand.
func (c *committer) position(s *shardLog) *position {
	if s.round != c.round {
		s.next, s.round = s.pos, c.round
	}
	return &s.next
}

// room reports whether n more bytes of frames go into the batch at hand. A place for a snapshot is left free, so that
// on a full disk the segment can still take the one that lets others be removed; asked for that, all may be used.
func (c *committer) room(n int, all bool) bool {
	if c.dead != nil {
		return true // add will say so
	}
	if c.roll || c.seg == nil {
		return false
	}
	if len(c.places) > 0 && len(c.buf)-c.bodyOff+n > maxBatch {
		return false
	}
	need := align(len(c.buf)+n, batchAlign) // buf holds the headers
	if !all {
		need += c.snapshotSize()
	}
	return c.off+need <= int(c.seg.size)
}

// add puts a request into the batch, or says why not. fits is false when it must go into another batch. Short is why appends are refused; nil: they are not.
func (c *committer) add(r *request, short error) (fits bool, err error) {
	if c.dead != nil {
		return true, c.dead
	}
	switch r.kind {
	case reqSnapshot:
		if c.snap > 0 {
			return true, nil
		}
		// It must be the first frame of its batch: it says how things were before the batch, and recovery believes it
		// over everything in front of it.
		if len(c.places) > 0 || !c.room(c.snapshotSize(), true) {
			return false, nil
		}
		c.addSnapshot()
		return true, nil
	case reqRemove:
		s := c.e.shards[r.shard]
		if s == nil {
			return true, nil
		}
		if len(c.places) > 0 || !c.room(frameSize(kindRemove, len(r.shard), 0), true) {
			return false, nil // a batch of its own, so that a batch has one log for a name
		}
		c.put(kindRemove, s, 0, 0, nil, nil)
		return true, nil
	case reqCopy:
		if c.e.shards[r.shard] != r.log {
			return true, nil
		}
		if c.removing() || !c.room(frameSize(kindCopy, len(r.shard), len(r.data)), false) {
			return false, nil
		}
		c.put(kindCopy, r.log, r.frameEpoch, r.seq, nil, r.data)
		return true, nil
	case reqFence:
		return c.addFence(r)
	case reqTrim:
		return c.addTrim(r)
	default:
		return c.addAppend(r, short)
	}
}

func (c *committer) removing() bool { return len(c.places) > 0 && c.places[0].kind == kindRemove }

func (c *committer) addAppend(r *request, short error) (fits bool, err error) {
	if c.removing() {
		return false, nil
	}
	s := c.e.shards[r.shard]
	if s == nil {
		if err := driver.CheckShard(r.shard); err != nil {
			return true, err
		}
		return true, fmt.Errorf("appending to %s, which was never fenced: %w", r.shard, driver.ErrFenced)
	}
	p := c.position(s)
	switch {
	case r.epoch != p.fence || r.frameEpoch != r.epoch.Counter:
		return true, fmt.Errorf("appending to %s in epoch %d, it is at %d: %w", r.shard, r.epoch.Counter, p.fence.Counter, driver.ErrFenced)
	case r.seq != p.last+1:
		return true, fmt.Errorf("appending record %d to %s, it is at %d: %w", r.seq, r.shard, p.last, driver.ErrFenced)
	case s.doubt != nil:
		return true, fmt.Errorf("%w: %w", driver.ErrRefused, s.doubt)
	case len(r.data) > maxRecord:
		return true, fmt.Errorf("%w: a record of %d bytes, at most %d", driver.ErrRefused, len(r.data), maxRecord)
	case short != nil:
		return true, fmt.Errorf("appending to %s: %w", r.shard, short)
	}
	if !c.room(frameSize(kindRecord, len(r.shard), len(r.data)), false) {
		return false, nil
	}
	c.put(kindRecord, s, r.frameEpoch, r.seq, nil, r.data)
	p.last, p.lastEpoch = r.seq, r.frameEpoch
	return true, nil
}

// addFence places a fence. It may use the reserve: without it a full disk could not even be read after a restart.
func (c *committer) addFence(r *request) (fits bool, err error) {
	if c.removing() {
		return false, nil
	}
	s := c.e.shards[r.shard]
	if s == nil {
		s = &shardLog{name: r.shard, kept: 1}
		c.e.mu.Lock()
		c.e.shards[r.shard] = s // empty until the batch is durable
		c.e.mu.Unlock()
	}
	p := c.position(s)
	switch {
	case s.doubt != nil:
		return true, s.doubt
	case r.epoch.Counter == 0:
		return true, fmt.Errorf("%w: epochs count from 1", driver.ErrRefused)
	case r.epoch == p.fence && p.fenceSeq > 0:
		*r.fenced = p.fenceSeq
		return true, nil
	case r.epoch.Counter <= p.fence.Counter:
		return true, fmt.Errorf("fencing %s for epoch %d, it is at %d: %w", r.shard, r.epoch.Counter, p.fence.Counter, driver.ErrFenced)
	}
	if r.data == nil || r.seq != p.last+1 {
		r.seq = p.last + 1
		if r.data = r.record(r.seq, p.lastEpoch); r.data == nil {
			return true, fmt.Errorf("fencing %s at %d: withdrawn: %w", r.shard, r.seq, driver.ErrRefused)
		}
	}
	if len(r.data) > maxRecord {
		return true, fmt.Errorf("%w: a fence record of %d bytes, at most %d", driver.ErrRefused, len(r.data), maxRecord)
	}
	if !c.room(frameSize(kindFence, len(r.shard), len(r.data)), false) {
		return false, nil
	}
	c.put(kindFence, s, r.epoch.Counter, r.seq, &r.epoch.Writer, r.data)
	*p = position{last: r.seq, lastEpoch: r.epoch.Counter, fence: r.epoch, fenceSeq: r.seq}
	*r.fenced = r.seq
	return true, nil
}

func (c *committer) addTrim(r *request) (fits bool, err error) {
	if c.removing() {
		return false, nil
	}
	s := c.e.shards[r.shard]
	if s == nil || c.position(s).fence != r.epoch {
		return true, fmt.Errorf("trimming %s in epoch %d: %w", r.shard, r.epoch.Counter, driver.ErrFenced)
	}
	if !c.room(frameSize(kindTrim, len(r.shard), 0), true) {
		return false, nil
	}
	c.put(kindTrim, s, 0, r.seq, nil, nil)
	return true, nil
}

func (c *committer) put(kind frameKind, s *shardLog, epoch, seq uint64, writer *[16]byte, data []byte) {
	off := c.off + len(c.buf)
	c.places = append(c.places, placement{kind: kind, log: s, epoch: epoch, seq: seq, off: uint32(off)})
	c.buf = appendFrame(c.buf, c.salt, kind, s.name, epoch, seq, writer, data)
}

// snapshotSize is the most that a batch with nothing but a snapshot takes.
func (c *committer) snapshotSize() int {
	const longest = 64 // a shard's name
	return align(batchHeaderSize+frameHeaderSize+len(c.e.shards)*(entrySize+longest)+frameAlign, batchAlign)
}

// addSnapshot puts the durable position of every shard into the batch, in front of all else.
func (c *committer) addSnapshot() {
	e := c.e
	var data []byte
	e.mu.Lock()
	c.snap = e.firstLive()
	for _, s := range e.shards {
		if s.pos.last > 0 || s.doubt != nil {
			data = appendEntry(data, entry{shard: s.name, pos: s.pos, kept: s.kept, doubted: s.doubt != nil})
		}
	}
	e.mu.Unlock()
	c.buf = appendFrame(c.buf, c.salt, kindSnapshot, "", 0, 0, nil, data)
}

// nextSegment makes a new segment the current one, big enough for r.
func (c *committer) nextSegment(r *request) error {
	need := segmentHeaderSize + 2*c.snapshotSize() + batchHeaderSize + frameSize(kindFence, len(r.shard), len(r.data)) + batchAlign
	seg, err := c.e.preparer.take(int64(need))
	if err != nil {
		if errors.Is(err, driver.ErrNoSpace) {
			return fmt.Errorf("beginning a log segment: %w", err)
		}
		return fmt.Errorf("%w: beginning a log segment: %w", driver.ErrRefused, err)
	}
	if c.seg != nil {
		seg.header.prevEnd = uint64(c.off)
	}
	seg.header.firstBatch, seg.header.prevChain = c.number, c.chain
	c.e.mu.Lock()
	c.e.segments = append(c.e.segments, seg)
	c.e.mu.Unlock()
	c.seg, c.off, c.roll = seg, 0, false
	c.salt = salt(c.e.id, seg.number)
	return nil
}

// flush writes the batch, syncs it and makes it visible. An error means that its outcome is unknown.
//
// After a failed write or sync the segment is never written again: what the kernel still shows of the batch may not be on the disk, and
// a second sync would say nothing about it. The next batch goes to a new segment, under the number of the failed one, and that segment's
// header says where the log ended here, which makes the failed batch void, whatever became of it. If that fails too, the engine
// writes no more until it is opened again.
func (c *committer) flush() error {
	if len(c.places) == 0 && c.snap == 0 {
		return nil
	}
	crc := c.seal()
	_, err := c.seg.file.WriteAt(c.buf, int64(c.off))
	if err == nil {
		err = c.seg.file.Datasync()
	}
	if err != nil {
		err = fmt.Errorf("writing log segment %s at %d, outcome unknown: %w", c.seg.name, c.off, err)
		c.e.cfg.Warn(err)
		if c.failed != nil {
			c.dead = fmt.Errorf("%w: the log failed and must be opened again: %w", driver.ErrRefused, errors.Join(c.failed, err))
		}
		c.failed, c.roll = err, true
		return err
	}
	c.failed = nil
	c.off += len(c.buf)
	c.number, c.chain = c.number+1, crc
	c.publish()
	return nil
}

// seal fills in the headers of the batch at hand and returns its checksum.
func (c *committer) seal() (crc uint32) {
	for len(c.buf[c.bodyOff:])%batchAlign != 0 {
		c.buf = append(c.buf, 0)
	}
	body := c.buf[c.bodyOff:]
	h := batchHeader{number: c.number, length: uint32(len(body)), chain: c.chain, crc: crc32.Update(c.salt, castagnoli, body)}
	start := c.bodyOff - batchHeaderSize
	batch := c.buf[start:]
	copy(batch, batchMagic[:]) // the first piece is not zero
	h.zeros = zeroPieces(batch, c.off+start)
	h.encode(batch, c.salt)
	if c.off == 0 {
		c.seg.header.encode(c.buf)
	}
	return h.crc
}

// publish makes the durable batch visible.
func (c *committer) publish() {
	e := c.e
	trimmed := false
	e.mu.Lock()
	c.seg.used = int64(c.off)
	for i := range c.places {
		p := &c.places[i]
		s := p.log
		switch p.kind {
		case kindRecord, kindFence:
			s.pos = s.next
			e.place(s, p.seq, c.seg, p.off)
		case kindCopy:
			if s.kept <= p.seq {
				e.place(s, p.seq, c.seg, p.off)
			}
		case kindTrim:
			e.trim(s, p.seq)
			trimmed = true
		case kindRemove:
			s.index.dropBelow(math.MaxUint64, e.dropLive)
			delete(e.shards, s.name)
		}
	}
	if c.snap > 0 {
		e.deadBelow = c.snap
	}
	e.mu.Unlock()
	if trimmed || c.snap > 0 {
		e.cleaner.poke()
	}
}
