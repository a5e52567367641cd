package redislog

import (
	"context"
	"fmt"
	"sync"
	"time"

	"kvstore/components/wal/driver"
)

// space knows how much memory the server has left. It is asked at most once in a while, beside writes, never by them.
type space struct {
	mu            sync.Mutex // guards all below
	free, reserve int64      // reserve 0: the server has no limit, or does not tell
	asked         time.Time  // when it was asked last
	asking        bool
	spent         int64 // bytes that were written from here since then
	before        int64 // those of them that were when it was asked for what is coming
	suspected     bool  // the server refused a write for lack of memory since it was asked last
}

// spaceEvery is how old what is known may become while there is enough, spaceSoon while there is not. What is written from here is counted meanwhile; what
// others write is not, so the server is asked again, after spaceAtOnce at the earliest, when from here a spaceShare of what there was is used up: up to so
// many processes that write as fast as this one do not get beyond the reserve together.
const (
	spaceEvery  = time.Second
	spaceSoon   = 100 * time.Millisecond
	spaceAtOnce = 5 * time.Millisecond
	spaceShare  = 8
)

const maxReserve = 256 << 20

// reserveOf is the reserve for a limit, both in bytes.
func (c *Config) reserveOf(maxmemory int64) int64 {
	switch {
	case maxmemory <= 0 || c.Reserve < 0:
		return 0
	case c.Reserve > 0:
		return min(c.Reserve, maxmemory)
	}
	return min(maxmemory/16, maxReserve)
}

// set takes over what the server told.
func (s *space) set(free, reserve int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free, s.reserve, s.asked, s.asking, s.suspected = free, reserve, time.Now(), false, false
	s.spent, s.before = s.spent-s.before, 0
}

// suspect notes that the server has less memory than was thought.
func (s *space) suspect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspected = true
}

// room takes so many bytes for what is going to be written, or returns ErrNoSpace when that would go into the server's reserve; and it sees to it that what
// is known is not old.
func (e *Engine) room(bytes int64) error {
	s := &e.space
	s.mu.Lock()
	low := s.reserve > 0 && s.free-s.spent-bytes < s.reserve
	if !low {
		s.spent += bytes
	}
	age := spaceEvery
	switch {
	case low || s.suspected:
		age = spaceSoon
	case s.reserve > 0 && s.spent > (s.free-s.reserve)/spaceShare:
		age = spaceAtOnce
	}
	ask := !s.asking && time.Since(s.asked) > age
	if ask {
		s.asking, s.before = true, s.spent
	}
	free, reserve := s.free-s.spent, s.reserve
	s.mu.Unlock()
	if ask {
		e.askSpace()
	}
	if low {
		return fmt.Errorf("%w: %d bytes below maxmemory are left, the reserve is %d", driver.ErrNoSpace, max(0, free), reserve)
	}
	return nil
}

// askSpace asks the server in the background.
func (e *Engine) askSpace() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.work.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Timeout)
		defer cancel()
		free, reserve, err := e.measure(ctx)
		if err != nil { // nothing new is known: the server itself refuses what does not fit
			e.space.mu.Lock()
			free, reserve = e.space.free, e.space.reserve
			e.space.mu.Unlock()
		}
		e.space.set(free, reserve)
	})
}

// measure asks every master and returns what the one with the least has.
func (e *Engine) measure(ctx context.Context) (free, reserve int64, err error) {
	infos, err := e.infos(ctx, "memory")
	if err != nil {
		return 0, 0, err
	}
	for _, info := range infos {
		limit := info.number("maxmemory")
		r := e.cfg.reserveOf(limit)
		if r == 0 {
			continue
		}
		f := max(0, limit-(info.number("used_memory")-info.number("mem_not_counted_for_evict")))
		if reserve == 0 || f-r < free-reserve {
			free, reserve = f, r
		}
	}
	return free, reserve, nil
}

// Space implements driver.Engine: what is left of maxmemory, of the master that has the least. Zeros when there is no limit, or the server does not
// tell.
func (e *Engine) Space() (free, reserve int64) {
	_ = e.room(0)
	s := &e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserve == 0 {
		return s.free, 0
	}
	return max(0, s.free-s.spent), s.reserve
}
