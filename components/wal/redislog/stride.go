package redislog

import (
	"context"
	"time"

	"kvstore/components/wal/driver"
)

// Bounds of parts of checkpoints.
const (
	// leastPart is what a part may always have.
	leastPart = 16 << 10
	// inTheWay is how long a part may take beyond what one takes for nothing. What takes longer is in the way of appends.
	inTheWay = 50 * time.Millisecond
	// strideForgets is after how long without parts nothing is known of the line any more.
	strideForgets = 10 * time.Second
)

// stride says in which parts checkpoints go to Redis. It is a pure machine.
//
// Appends have connections of their own, but not a line of their own: what several shards write of their checkpoints at once, window chunks each, lies in
// front of them, for seconds where the line carries a megabyte a second. So parts begin small and one after the other, of all shards together, and
// grow while they are quick; once whole chunks are quick, they go side by side. On a slow line a part is what passes in no more than inTheWay, so that appends do
// not notice; or a third of what appends have on their way themselves, a quarter of a line that they fill, since a checkpoint must end for the log to become shorter.
type stride struct {
	fast     bool          // chunks go side by side
	most     int           // bytes of a part that was quick, or may be; 0 = nothing is known
	quickest time.Duration // that any part took
	last     time.Time     // when a part was taken last
}

// next is how many bytes the next part may have, when appends have so many on their way; alone tells that it must be the only one.
func (s *stride) next(appends int, now time.Time) (size int, alone bool) {
	if s.most == 0 || now.Sub(s.last) > strideForgets {
		s.fast, s.most, s.quickest = false, leastPart, 0
	}
	s.last = now
	if s.fast {
		return chunkBytes, false
	}
	return min(max(s.most, appends/3), chunkBytes), true
}

// took tells how long a part was on its way.
func (s *stride) took(d time.Duration) {
	if s.quickest == 0 || d < s.quickest {
		s.quickest = d
	}
	switch beyond := d - s.quickest; {
	case beyond > inTheWay:
		s.fast, s.most = false, max(leastPart, min(s.most, chunkBytes)/2)
	case beyond < inTheWay/4:
		s.fast = s.fast || s.most == chunkBytes
		s.most = min(2*s.most, chunkBytes)
	}
}

// nextPart waits until a part of a checkpoint may go, and tells how many bytes it may have. Release is called when it has gone.
func (e *Engine) nextPart(ctx context.Context) (size int, release func(), err error) {
	select {
	case e.alone <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	case <-e.closing:
		return 0, nil, driver.ErrClosed
	}
	release = func() { <-e.alone }
	e.strideMu.Lock()
	size, alone := e.stride.next(int(e.under.Load()), time.Now())
	e.strideMu.Unlock()
	if !alone {
		release()
		release = func() {}
	}
	return size, release, nil
}

func (e *Engine) partTook(d time.Duration) {
	e.strideMu.Lock()
	defer e.strideMu.Unlock()
	e.stride.took(d)
}
