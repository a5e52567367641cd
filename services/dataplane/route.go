package dataplane

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/components/kverr"
)

// shardRoute is what the client knows of a shard's place. Calls go to its target; while there is none they are parked, and one goroutine
// looks for the place: it asks the Locator, connects, and sends what gathered.
type shardRoute struct {
	client *Client
	id     string
	target atomic.Pointer[target] // nil: not known, or not any more
	fails  atomic.Int32           // in a row: how often the place was not the right one, or not found
	since  atomic.Int64           // when the place was looked for first since an outcome came from it, nanoseconds since the Unix epoch; 0 = it is not

	mu      sync.Mutex
	parked  callList // guarded by mu, as is all below
	calls   int      // of parked
	bytes   int      // of parked
	seeking bool     // a goroutine looks for the place
	looked  int64    // when the last one that did ended, nanoseconds since the Unix epoch; 0 = there was none
	last    *target  // that was found last
}

// send sends calls to the shard, or parks them.
func (r *shardRoute) send(calls callList) {
	for k := calls.first; k != nil; k = k.next {
		k.route = r
	}
	if t := r.target.Load(); t != nil {
		if calls = t.way.submit(t, calls); !calls.empty() {
			r.lose(t)
		}
	}
	if !calls.empty() {
		r.park(calls)
	}
}

// lose forgets a place that was not the right one.
func (r *shardRoute) lose(t *target) {
	if t != nil && r.target.CompareAndSwap(t, nil) {
		r.fails.Add(1)
	}
}

// works notes that the place is the right one.
func (r *shardRoute) works() {
	if r.fails.Load() != 0 {
		r.fails.Store(0)
	}
	if r.since.Load() != 0 {
		r.since.Store(0)
	}
}

// again parks a call that came back without its outcome.
func (r *shardRoute) again(k *call) {
	if k.follow != nil {
		k.follow.again(k.target)
	}
	if tell := r.client.cfg.Events.Again; tell != nil {
		tell()
	}
	r.lose(k.target)
	var calls callList
	calls.add(k)
	r.park(calls)
}

// errUnserved is what calls get at once while another looks for the place, which has been looked for in vain for as long as any call waits.
var errUnserved = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "no host serves the shard now", RetryAfterMS: 500}

var errManyParked = &kverr.Error{Kind: kverr.Overloaded, Op: "reach the shard", Message: "too many calls wait for the shard to be found", RetryAfterMS: 100}

// park keeps calls until the shard's place is found.
func (r *shardRoute) park(calls callList) {
	var refused, unserved callList
	now := time.Now().UnixNano()
	r.mu.Lock()
	if !r.seeking && now-r.looked > int64(r.client.cfg.Budget) { // nobody has looked for so long that what was found says nothing
		r.since.Store(now)
	}
	r.since.CompareAndSwap(0, now)
	broken := now-r.since.Load() > int64(r.client.cfg.Budget)
	for k := calls.first; k != nil; {
		next := k.next
		if broken && r.calls > 0 && !k.maybe {
			unserved.add(k)
		} else if r.calls > 0 && (r.calls >= maxCalls || r.bytes+k.size > maxBytes) {
			refused.add(k)
		} else {
			r.calls++
			r.bytes += k.size
			r.parked.add(k)
		}
		k = next
	}
	begin := !r.seeking && r.client.enter()
	closed := !r.seeking && !begin
	if closed {
		refused.join(r.takeAll())
	}
	r.seeking = r.seeking || begin
	r.mu.Unlock()
	if begin {
		go func() {
			defer r.client.wait.Done()
			r.seek()
		}()
	}
	unserved.release(errUnserved)
	if closed {
		refused.release(errClosed)
	} else {
		refused.release(errManyParked)
	}
}

// takeAll takes what is parked. Mutex held.
func (r *shardRoute) takeAll() callList {
	all := r.parked
	r.parked, r.calls, r.bytes = callList{}, 0, 0
	return all
}

// seek finds the shard's place until nothing is parked.
func (r *shardRoute) seek() {
	var why *kverr.Error // why it was not found last
	for {
		t := r.target.Load()
		if t == nil {
			if !r.pause(why) {
				r.over(errClosed)
				return
			}
			if r.expire(why) {
				return
			}
			var final bool
			if t, final, why = r.find(); t == nil {
				if final {
					r.over(why)
					return
				}
				r.fails.Add(1)
				continue
			}
			r.target.Store(t)
		}
		r.mu.Lock()
		calls := r.takeAll()
		if calls.empty() {
			r.seeking, r.looked = false, time.Now().UnixNano()
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if calls = t.way.submit(t, calls); !calls.empty() {
			r.lose(t)
			r.putBack(calls)
		}
	}
}

// putBack parks calls that were parked before, ahead of what came since.
func (r *shardRoute) putBack(calls callList) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := calls.first; k != nil; k = k.next {
		r.calls++
		r.bytes += k.size
	}
	calls.join(r.parked)
	r.parked = calls
}

// over ends the search and all that waits for it.
func (r *shardRoute) over(why *kverr.Error) {
	r.mu.Lock()
	calls := r.takeAll()
	r.seeking, r.looked = false, time.Now().UnixNano()
	r.mu.Unlock()
	if why.Kind == kverr.NotFound {
		r.client.forget(r) // before the callers know: who asks again starts afresh
	}
	calls.release(why)
}

// expire releases the calls whose time is over, and tells that none is left.
func (r *shardRoute) expire(why *kverr.Error) (ended bool) {
	now := time.Now().UnixNano()
	var late, unserved callList
	r.mu.Lock()
	all := r.takeAll()
	for k := all.first; k != nil; {
		next := k.next
		if k.late(now) {
			late.add(k)
		} else if k.until <= now {
			unserved.add(k)
		} else {
			r.calls++
			r.bytes += k.size
			r.parked.add(k)
		}
		k = next
	}
	if ended = r.parked.empty(); ended {
		r.seeking, r.looked = false, now
	}
	r.mu.Unlock()
	err := &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "no host serves the shard now", RetryAfterMS: 100}
	if why != nil {
		err.Err = why
	}
	late.release(errLate)
	unserved.release(err)
	return ended
}

// Pauses between two looks for a shard's place.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 256 * time.Millisecond
)

// pause waits before the next look: not at all before the first, then longer each time, and as long as whoever was asked said. It is false
// when the client is closed.
func (r *shardRoute) pause(why *kverr.Error) bool {
	fails := r.fails.Load()
	if fails == 0 {
		return r.client.ctx.Err() == nil
	}
	wait := min(firstPause<<min(fails-1, 10), lastPause)
	if why != nil {
		wait = max(wait, min(time.Duration(why.RetryAfterMS)*time.Millisecond, lastPause))
	}
	wait = wait/2 + rand.N(wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.client.ctx.Done():
		return false
	}
}

// find asks where the shard is and connects. Final tells that there is no use in asking again.
func (r *shardRoute) find() (t *target, final bool, why *kverr.Error) {
	c := r.client
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.LocateTimeout)
	began := time.Now()
	at, err := c.cfg.Locator.Locate(ctx, r.id)
	cancel()
	var e *kverr.Error
	if err != nil {
		e = kverr.From(err)
	}
	if tell := c.cfg.Events.Located; tell != nil {
		tell(time.Since(began), e)
	}
	if e != nil {
		return nil, finalKind(e.Kind), e
	}
	if o := c.outageOf(at.Address); o != nil {
		return r.byInvoke(at), false, nil
	}
	ctx, cancel = context.WithTimeout(c.ctx, c.cfg.OpenTimeout)
	defer cancel()
	l, why := c.link(ctx, at.Address)
	if why != nil {
		if c.noteOutage(at.Address) {
			return r.byInvoke(at), false, nil
		}
		return nil, false, why
	}
	c.noteReached(at.Address)
	if last := r.last; last != nil && last.link == l && last.epoch == at.Epoch {
		return last, false, nil // its number is known to the host
	}
	t, ok := l.target(at.Epoch)
	if !ok {
		return nil, false, errLeft
	}
	r.last = t
	return t, false, nil
}

var errLeft = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the shard's host is leaving", RetryAfterMS: 10}

// finalKind tells the answers of a Locator that will not change soon.
func finalKind(k kverr.Kind) bool {
	switch k {
	case kverr.Unavailable, kverr.Moved, kverr.Fenced, kverr.DeadlineExceeded, kverr.Canceled, kverr.Unknown, kverr.OutcomeUnknown, kverr.Exhausted, kverr.Overloaded:
		return false
	}
	return true
}
