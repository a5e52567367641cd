package disklog

import (
	"context"
	"errors"

	"kvstore/components/wal/driver"
)

// cleaner is the goroutine that removes old segments. The log is a queue: only the oldest segment can go, when nothing in
// it is needed and a durable snapshot frame says so. So that a cold shard does not hold up the queue, the records still needed of the
// oldest segment are copied to the end of the log when less than half of the log is needed: the log is never
// longer than twice what is needed and a few segments, and copying costs at most as much as was written.
type cleaner struct {
	e    *Engine
	wake chan struct{} // capacity 1
	quit chan struct{} // closed when the goroutine has ended
}

func (c *cleaner) start(e *Engine) {
	c.e = e
	c.wake = make(chan struct{}, 1)
	c.quit = make(chan struct{})
	go c.run()
}

func (c *cleaner) stop() { <-c.quit }

func (c *cleaner) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cleaner) run() {
	defer close(c.quit)
	for {
		select {
		case <-c.e.closed:
			return
		case <-c.wake:
			if err := c.clean(); err != nil && !errors.Is(err, driver.ErrClosed) {
				c.e.cfg.Warn(err)
			}
		}
	}
}

// clean does what can be done now.
func (c *cleaner) clean() error {
	e := c.e
	for !e.isClosed() {
		low := e.space.low()
		e.mu.Lock()
		first := e.firstLive()
		dead := 0
		for dead < len(e.segments) && e.segments[dead].number < first {
			dead++
		}
		stale := e.deadBelow < first
		var used, live int64
		for _, seg := range e.segments {
			used += seg.used
			if seg.records > 0 {
				live += seg.used * int64(seg.live) / int64(seg.records)
			}
		}
		crowded := len(e.segments)-dead > minLogSegments && 2*live < used
		oldest := e.segments[dead]
		e.mu.Unlock()

		if stale && (dead > 1 || (dead > 0 && low)) {
			if err := e.wait(context.Background(), request{kind: reqSnapshot}); err != nil {
				return err
			}
		}
		if removed, err := c.removeDead(); err != nil || removed {
			if err != nil {
				return err
			}
			continue
		}
		if !crowded {
			return nil
		}
		if err := c.copyOut(oldest); err != nil {
			return err
		}
	}
	return nil
}

// removeDead removes the oldest segment if it may go.
func (c *cleaner) removeDead() (removed bool, err error) {
	e := c.e
	e.mu.Lock()
	seg := e.segments[0]
	if seg.number >= e.deadBelow || seg.readers > 0 {
		e.mu.Unlock()
		return false, nil
	}
	e.segments = e.segments[1:]
	e.mu.Unlock()
	return true, e.preparer.remove(seg)
}

// copyOut appends what is needed of a segment to the log again.
func (c *cleaner) copyOut(seg *segment) error {
	e := c.e
	type part struct {
		log   *shardLog
		first uint64
		offs  []uint32
	}
	var parts []part
	e.mu.Lock()
	seg.readers++
	for _, s := range e.shards {
		for _, x := range s.index.extents {
			if x.segment == seg.number {
				parts = append(parts, part{s, x.first, x.offs}) // what offs holds now is not written to again
			}
		}
	}
	e.mu.Unlock()
	defer e.release(seg)

	var reqs []request
	size := 0
	for _, p := range parts {
		for i, off := range p.offs {
			f, err := e.readFrame(seg, p.log.name, p.first+uint64(i), off)
			if err != nil {
				if errors.Is(err, driver.ErrCorrupt) {
					e.forget(p.log, p.first+uint64(i), seg, err)
					continue
				}
				return err
			}
			reqs = append(reqs, request{kind: reqCopy, shard: p.log.name, log: p.log, frameEpoch: f.epoch, seq: f.seq, data: f.data})
			if size += len(f.data); size >= copyChunk {
				if err := c.write(reqs); err != nil {
					return err
				}
				reqs, size = reqs[:0], 0
			}
		}
	}
	if err := c.write(reqs); err != nil {
		return err
	}
	return e.wait(context.Background(), request{kind: reqSnapshot})
}

// write has records copied and waits for the last of them.
func (c *cleaner) write(reqs []request) error {
	results := make(chan error, len(reqs))
	for _, r := range reqs {
		r.done = func(err error) { results <- err }
		c.e.committer.submit(r)
	}
	var first error
	for range reqs {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// forget takes a record that turned out to be damaged out of the index: reading it is ErrCorrupt from now on, and it
// holds up nothing.
func (e *Engine) forget(s *shardLog, seq uint64, seg *segment, cause error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if number, _, ok := s.index.find(seq); ok && number == seg.number {
		s.index.cut(seq)
		seg.live--
		s.hurt = cause
	}
	e.cfg.Warn(cause)
}
