package memhost

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"kvstore/actors/fanout"
	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// hub is who watches a shard in one epoch of it.
type hub struct {
	host    *Host
	id      string
	actor   *shardActor
	watched atomic.Bool

	fresh   atomic.Pointer[host.State] // the last that was published and that the machine has not seen
	running atomic.Bool                // a goroutine takes it

	mu      sync.Mutex
	machine *fanout.Hub  // of feeds whose users are follows; nil before the first watch; guarded by mu, as is all below
	over    *kverr.Error // the epoch has ended
	beating bool         // the timer runs, or its check
}

// glance is how many revisions whoever publishes looks through himself for what concerns somebody: fewer than a goroutine costs.
const glance = 64

// published is told of each durable state, in order, by whoever made it so: it must cost next to nothing.
func (h *hub) published(s *host.State) {
	if !h.watched.Load() || h.glanced(s) {
		return
	}
	h.fresh.Store(s)
	if h.running.CompareAndSwap(false, true) {
		go h.run()
	}
}

// glanced shows the machine a state that brings little, if nobody else is at it. It waits for nobody: most changes concern no watch.
func (h *hub) glanced(s *host.State) bool {
	if !h.mu.TryLock() {
		return false
	}
	defer h.mu.Unlock()
	if h.machine == nil {
		return true
	}
	if s.Revision > h.machine.View().Revision()+glance {
		return false
	}
	var concerned []*fanout.Feed
	h.advanceTo(s, func(f *fanout.Feed) { concerned = append(concerned, f) })
	if len(concerned) > 0 {
		go func() {
			for _, f := range concerned {
				h.wake(f)
			}
		}()
	}
	return true
}

func (h *hub) run() {
	for {
		if s := h.fresh.Swap(nil); s != nil {
			h.mu.Lock()
			h.advance(s)
			h.mu.Unlock()
			continue
		}
		h.running.Store(false)
		if h.fresh.Load() == nil || !h.running.CompareAndSwap(false, true) {
			return
		}
	}
}

// advance shows the machine a state, and has the turn of those come whom it concerns. Mutex held.
func (h *hub) advance(s *host.State) { h.advanceTo(s, h.wake) }

// advanceTo shows the machine a state, unless it has seen a later one. Mutex held.
func (h *hub) advanceTo(s *host.State, ready func(*fanout.Feed)) {
	if h.machine == nil || s.Revision <= h.machine.View().Revision() {
		return
	}
	h.machine.Advance(h.actor.viewOf(s), ready)
}

// wake has a feed's turn come.
func (h *hub) wake(feed *fanout.Feed) { feed.User.(*follow).tell() }

var errManyFeeds = &kverr.Error{Kind: kverr.Exhausted, Op: "watch", Message: "the host has too many watches", RetryAfterMS: 1000}

// add adds a follow, from a state on at least.
func (h *hub) add(f *follow, start fanout.Start, s *host.State) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		return host.ErrOver
	}
	if h.host.feeds.Add(1) > maxFeeds {
		h.host.feeds.Add(-1)
		return errManyFeeds
	}
	if h.machine == nil {
		h.machine = fanout.NewHub(h.actor.viewOf(s))
	}
	h.watched.Store(true)
	if !h.beating {
		h.beating = true
		h.beat()
	}
	h.advance(h.actor.Latest()) // whatever is published from now on is told
	at := start.From
	if start.Now {
		at = fanout.Cursor{Revision: s.Revision}
	}
	f.hub, f.feed.Watch, f.feed.User = h, f.of.watch, f
	h.machine.Add(&f.feed, at)
	return nil
}

// remove takes a follow out; the hub may be nil.
func (h *hub) remove(f *follow) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !f.feed.In() {
		return
	}
	h.machine.Remove(&f.feed)
	if h.host.feeds.Add(-1) == 0 {
		h.host.fills.forget(nil)
	}
	if h.machine.Feeds() == 0 && h.over == nil {
		h.machine = nil // it would keep an old state
		h.watched.Store(false)
	}
}

// look tells where the first of some follows stands, with the state that its next step goes by, and which of them stand there too; those that have left
// are among neither.
func (h *hub) look(run []*follow) (view shard.View, at fanout.Cursor, same, others []*follow, over *kverr.Error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	same = run[:0]
	for _, f := range run {
		if !f.feed.In() {
			continue
		}
		cursor := h.machine.Cursor(&f.feed)
		switch {
		case len(same) == 0:
			view, at = h.machine.View(), cursor
			same = append(same, f)
		case h.over == nil && cursor.Equal(at):
			same = append(same, f)
		default:
			others = append(others, f)
		}
	}
	return view, at, same, others, h.over
}

// took takes note of a step, and returns those that have more to ask for.
func (h *hub) took(follows []*follow, b *fanout.Batch) (more []*follow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range follows {
		if f.feed.In() && (h.machine.Took(&f.feed, b) || h.over != nil) {
			more = append(more, f)
		}
	}
	return more
}

// place tells follows that have nothing to ask for their place, if their watchers do not know it, and how far behind that is.
func (h *hub) place(follows []*follow) (told *fanout.Told, behind uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		return nil, 0
	}
	for _, f := range follows {
		if !f.feed.In() {
			continue
		}
		n := h.machine.Place(&f.feed)
		if n == 0 {
			continue
		}
		behind = max(behind, n)
		if told == nil {
			told = &fanout.Told{Shard: f.shard, Epoch: h.actor.epoch, Batch: fanout.Batch{Cursor: fanout.Cursor{Revision: h.machine.View().Revision()}}}
		}
		told.Watches = append(told.Watches, f.of.id)
	}
	return told, behind
}

// close ends all watches of the epoch.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		return
	}
	h.over = &kverr.Error{Kind: kverr.Moved, Op: "watch", Message: "the shard is not served here any more"}
	if h.machine != nil {
		h.machine.Each(func(f *fanout.Feed) { f.User.(*follow).hurry() })
	}
}

// busy tells that somebody watches.
func (h *hub) busy() bool { return h.watched.Load() }

// beat sets the timer. Mutex held.
func (h *hub) beat() {
	h.host.cfg.Actor.Clock.AfterFunc(hubPace, h.check)
}

// check makes sure that the shard has no other owner.
func (h *hub) check() {
	ctx, cancel := context.WithTimeout(h.host.ctx, hubPace)
	s, err := h.actor.Durable(ctx)
	cancel()
	if errors.Is(err, host.ErrOver) {
		h.close()
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil || h.machine == nil {
		h.beating = false
		return
	}
	if err == nil { // otherwise nothing is known
		h.advance(s)
	}
	h.beat()
}
