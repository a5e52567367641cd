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
	suspected     bool // the server refused a write for lack of memory since it was asked last
}

// spaceEvery is how old what is known may become while there is enough, spaceSoon while there is not.
const (
	spaceEvery = time.Second
	spaceSoon  = 100 * time.Millisecond
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
}

// suspect notes that the server has less memory than was thought.
func (s *space) suspect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspected = true
}

// room returns ErrNoSpace when the server is at its reserve, and sees to it that what is known is not old.
func (e *Engine) room() error {
	s := &e.space
	s.mu.Lock()
	low := s.reserve > 0 && s.free < s.reserve
	age := spaceEvery
	if low || s.suspected {
		age = spaceSoon
	}
	ask := !s.asking && time.Since(s.asked) > age
	s.asking = s.asking || ask
	free, reserve := s.free, s.reserve
	s.mu.Unlock()
	if ask {
		e.askSpace()
	}
	if low {
		return fmt.Errorf("%w: %d bytes below maxmemory are left, the reserve is %d", driver.ErrNoSpace, free, reserve)
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
	_ = e.room()
	e.space.mu.Lock()
	defer e.space.mu.Unlock()
	return e.space.free, e.space.reserve
}
