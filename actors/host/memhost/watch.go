package memhost

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"kvstore/actors/fanout"
	"kvstore/actors/host"
	"kvstore/components/kverr"
)

// Bounds of watches.
const (
	// maxFeeds is how many shards the watchers of a host follow together; one more is refused with Exhausted.
	maxFeeds = 1 << 20
	// watchBytes is how much one batch of a watch carries, a transaction or a long value apart.
	watchBytes = 64 << 10
	// hubPace is how often a shard that is watched makes sure that it has no other owner: so long its watchers may hear nothing of what
	// another owner does.
	hubPace = 5 * time.Second
	// A watcher whom nothing concerned is told of his place after placeAfter, and sooner, down to placeSoonest, when a shard changes so fast that its history
	// would be half gone by then: he could not go on from it after a crash.
	placeAfter   = 20 * time.Second
	placeSoonest = 2 * time.Second
	// followers is how many shards of one watch are opened at once.
	followers = 8
	// alike is how many watches one step looks at that may be told the same.
	alike = 256
	// unlimited is the credit of a watch whose user takes one batch after the other.
	unlimited = 1 << 62
)

// watching is watches of shards of this host, told by one goroutine. add, grant, follow and remove may be called at any time; next by one goroutine at a
// time.
type watching struct {
	host *Host
	ctx  context.Context // ends with close
	end  context.CancelFunc
	wake chan struct{} // a token: something is ready

	places chan struct{}  // a token: places are to be told
	pause  time.Duration  // before they are, the next time; next's
	stop   func() bool    // of that timer; next's, and close's
	due    []*fanout.Told // places; next's
	run    []*follow      // of a step; next's
	joins  sync.WaitGroup // goroutines that open shards

	mu     sync.Mutex
	ready  []*follow // guarded by mu, as is all below
	all    map[uint64]*watcher
	closed bool
}

// watcher is one watch.
type watcher struct {
	id    uint64
	watch *fanout.Watch

	credit  int64     // guarded by watching.mu, as is all below
	held    []*follow // whose turn has come, but there is no credit
	follows []*follow // one for each shard, in the order of their ids
	opening *opening  // shards that are to be opened; nil: none
}

// opening is the shards of a watch that are to be opened, and those who do.
type opening struct {
	ctx     context.Context // ends with the watch
	end     context.CancelFunc
	left    []joining
	joiners int // goroutines, at most followers
}

// joining is a shard that is to be opened.
type joining struct {
	f     *follow
	start fanout.Start
}

// follow is one shard of a watch.
type follow struct {
	w     *watching
	of    *watcher
	shard string

	queue  bool  // it is in ready or held, see queued; guarded by w.mu, as is all below
	since  int64 // when its turn came, of what is not told, in nanoseconds since the Unix epoch; 0 = all is told
	urgent bool  // its turn comes without credit: the epoch is over
	opened bool  // what follows is set, and does not change
	gone   bool  // nothing more is told of it

	hub  *hub
	feed fanout.Feed
	err  *kverr.Error // it could not be opened
}

// newWatching makes one without watches. It must be closed.
func (h *Host) newWatching() *watching {
	x := &watching{host: h, wake: make(chan struct{}, 1), all: make(map[uint64]*watcher)}
	x.ctx, x.end = context.WithCancel(h.ctx)
	x.places, x.pause = make(chan struct{}, 1), placeAfter/2+rand.N(placeAfter/2) // not all at once
	x.rest()
	return x
}

// rest sets the timer of telling places.
func (w *watching) rest() {
	w.stop = w.host.cfg.Actor.Clock.AfterFunc(w.pause, func() { poke(w.places) })
}

// add begins a watch that follows no shard yet.
func (w *watching) add(id uint64, watch *fanout.Watch, credit int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.all[id] = &watcher{id: id, watch: watch, credit: credit}
}

// follow begins to follow shards, each opened if need be. A batch tells when each has begun, or why it cannot be. A shard that is followed is
// left as it is.
func (w *watching) follow(id uint64, starts ...fanout.Start) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.all[id]
	if x == nil {
		return
	}
	x.follows = slices.Grow(x.follows, len(starts))
	fresh := make([]follow, len(starts)) // one piece of memory
	for i, s := range starts {
		at, there := x.follow(s.Shard)
		if there {
			continue
		}
		f := &fresh[i]
		f.w, f.of, f.shard = w, x, s.Shard
		x.follows = slices.Insert(x.follows, at, f)
		if x.opening == nil {
			x.opening = new(opening)
			x.opening.ctx, x.opening.end = context.WithCancel(w.ctx)
		}
		x.opening.left = append(x.opening.left, joining{f, s})
		if x.opening.joiners < followers {
			x.opening.joiners++
			o := x.opening
			w.joins.Go(func() { w.join(x, o) })
		}
	}
}

// follow is where that of a shard is, or would be.
func (x *watcher) follow(shard string) (at int, there bool) {
	return slices.BinarySearchFunc(x.follows, shard, func(f *follow, shard string) int { return strings.Compare(f.shard, shard) })
}

// join opens the shards of a watch that are to be opened, one after the other.
func (w *watching) join(x *watcher, o *opening) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(o.left) > 0 {
		j := o.left[0]
		o.left = o.left[1:]
		w.mu.Unlock()
		w.host.join(o.ctx, j.f, j.start)
		w.mu.Lock()
		j.f.opened = true
		if j.f.gone {
			w.mu.Unlock()
			j.f.hub.remove(j.f)
			w.mu.Lock()
		}
		j.f.enqueue()
	}
	if o.joiners--; o.joiners == 0 {
		o.end()
		x.opening = nil
	}
}

// grant lets a watch be told more.
func (w *watching) grant(id uint64, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.all[id]
	if x == nil {
		return
	}
	x.credit += bytes
	if x.credit > 0 && len(x.held) > 0 {
		w.ready = append(w.ready, x.held...)
		x.unhold()
		poke(w.wake)
	}
}

// remove ends a watch.
func (w *watching) remove(id uint64) {
	w.mu.Lock()
	x := w.all[id]
	delete(w.all, id)
	left := w.leave(x)
	w.mu.Unlock()
	for _, f := range left {
		f.hub.remove(f)
	}
}

// leave has nothing more told of a watch, and returns what its hubs are to remove. Mutex held; the watch may be nil.
func (w *watching) leave(x *watcher) (left []*follow) {
	if x == nil {
		return nil
	}
	if x.opening != nil {
		x.opening.end()
		x.opening.left = nil
	}
	for _, f := range x.follows {
		f.gone = true
		f.queued(false)
		if f.opened {
			left = append(left, f)
		}
	}
	x.unhold()
	return left
}

// close ends all watches.
func (w *watching) close() {
	w.end()
	w.stop()
	w.mu.Lock()
	w.closed = true
	var left []*follow
	for _, x := range w.all {
		left = append(left, w.leave(x)...)
	}
	w.all, w.ready = nil, nil
	w.mu.Unlock()
	for _, f := range left {
		f.hub.remove(f)
	}
	w.joins.Wait() // soon: the context has ended
}

// next waits until there is something to tell. It fails when ctx ends or the host is closed.
func (w *watching) next(ctx context.Context) (*fanout.Told, error) {
	for {
		select { // also while there is always something to tell
		case <-w.places:
			w.remind()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		default:
		}
		if len(w.due) > 0 {
			told := w.due[0]
			w.due = w.due[1:]
			return told, nil
		}
		told, more := w.step(ctx)
		if told != nil {
			return told, nil
		}
		if more {
			continue
		}
		select {
		case <-w.wake:
		case <-w.places:
			w.remind()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-w.ctx.Done():
			return nil, context.Cause(w.ctx)
		}
	}
}

// remind has watchers told of their places whom nothing has concerned since they were told last: all of a shard together.
func (w *watching) remind() {
	byHub := make(map[*hub][]*follow)
	w.mu.Lock()
	for _, x := range w.all {
		for _, f := range x.follows {
			if f.opened && f.hub != nil {
				byHub[f.hub] = append(byHub[f.hub], f)
			}
		}
	}
	w.mu.Unlock()
	most := uint64(0)
	for h, follows := range byHub {
		told, behind := h.place(follows)
		if told != nil {
			w.due = append(w.due, told)
		}
		most = max(most, behind)
	}
	half := max(1, uint64(w.host.cfg.Shard.HistoryChanges)/2)
	w.pause = placeAfter
	if most > half {
		w.pause = max(placeSoonest, placeAfter*time.Duration(half)/time.Duration(most))
	}
	w.rest()
}

// take takes the follow whose turn it is out of the queue, with those behind it that want to know the same of the same shard.
func (w *watching) take() []*follow {
	w.mu.Lock()
	defer w.mu.Unlock()
	run := w.run[:0]
	for len(w.ready) > 0 && len(run) < alike {
		f := w.ready[0]
		first := f
		if len(run) > 0 {
			first = run[0]
		}
		if f.gone || f.of.credit <= 0 && !f.urgent && f.err == nil {
			if !f.gone {
				f.of.held = append(f.of.held, f) // it is still queued
				w.host.held.Add(1)
			}
		} else {
			if f != first && (f.hub != first.hub || f.err != nil || first.err != nil || !f.of.watch.Same(first.of.watch)) {
				break
			}
			f.queued(false)
			run = append(run, f)
		}
		w.ready[0] = nil
		w.ready = w.ready[1:]
	}
	w.run = run
	return run
}

// step takes the next step of the shard whose turn it is, for all watches alike. More: there was something to do, but nobody is to be told of it.
func (w *watching) step(ctx context.Context) (told *fanout.Told, more bool) {
	run := w.take()
	if len(run) == 0 {
		return nil, false
	}
	told = &fanout.Told{Shard: run[0].shard}
	if err := run[0].err; err != nil {
		told.Err = err
		return w.over(run[0], told), true
	}
	h := run[0].hub
	told.Epoch = h.actor.epoch
	view, at, same, others, over := h.look(run)
	w.again(others)
	switch {
	case len(same) == 0: // they have left
		return nil, true
	case over != nil:
		told.Cursor, told.Err = at, over
		return w.over(same[0], told), true
	}
	told.Batch = same[0].of.watch.Next(view, at, fanout.Budget{Bytes: watchBytes})
	h.actor.fill(ctx, told.Events)
	if told.Err != nil {
		w.again(same[1:]) // they will be told the same
		return w.over(same[0], told), true
	}
	w.lag(same, &told.Batch)
	w.again(h.took(same, &told.Batch))
	cost := told.Cost()
	told.Watches = make([]uint64, len(same))
	w.mu.Lock()
	for i, f := range same {
		told.Watches[i] = f.of.id
		f.of.credit -= cost
	}
	w.mu.Unlock()
	return told, true
}

// lag tells how late the watches of a step are told.
func (w *watching) lag(same []*follow, b *fanout.Batch) {
	tell := w.host.cfg.Events.Told
	w.mu.Lock()
	oldest := same[0].since
	for _, f := range same {
		f.since = 0
	}
	w.mu.Unlock()
	if tell != nil && len(b.Events) > 0 && oldest != 0 {
		tell(len(same), time.Duration(w.host.cfg.Actor.Clock.Now().UnixNano()-oldest))
	}
}

// again has the turn of follows come again, soon.
func (w *watching) again(follows []*follow) {
	if len(follows) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range follows {
		f.enqueue()
	}
}

// over forgets a shard that is over. It is nil when nobody is to be told.
func (w *watching) over(f *follow, told *fanout.Told) *fanout.Told {
	w.mu.Lock()
	left := f.gone
	if !left {
		f.of.follows = slices.DeleteFunc(f.of.follows, func(x *follow) bool { return x == f })
		f.gone = true
		f.queued(false)
	}
	w.mu.Unlock()
	f.hub.remove(f)
	if left {
		return nil
	}
	told.Watches = []uint64{f.of.id}
	return told
}

// tell has the follow's turn come, for what was seen just now.
func (f *follow) tell() {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.since == 0 {
		f.since = f.w.host.cfg.Actor.Clock.Now().UnixNano()
	}
	f.enqueue()
}

// enqueue is tell with the mutex held.
func (f *follow) enqueue() {
	if f.queue || f.gone || f.w.closed {
		return
	}
	f.queued(true)
	f.w.ready = append(f.w.ready, f)
	if len(f.w.ready) == 1 {
		poke(f.w.wake)
	}
}

// hurry has the follow's turn come though its watch has no credit: its hub is over, and would be kept for it.
func (f *follow) hurry() {
	w := f.w
	w.mu.Lock()
	defer w.mu.Unlock()
	f.urgent = true
	if i := slices.Index(f.of.held, f); i >= 0 {
		f.of.held = slices.Delete(f.of.held, i, i+1)
		w.host.held.Add(-1)
		f.queued(false)
	}
	f.enqueue()
}

// queued notes whether the follow is in ready or held. Mutex held.
func (f *follow) queued(is bool) {
	if f.queue == is {
		return
	}
	f.queue = is
	if is {
		f.w.host.untold.Add(1)
	} else {
		f.w.host.untold.Add(-1)
	}
}

// unhold forgets what is held, which is elsewhere now. Mutex held.
func (x *watcher) unhold() {
	if len(x.held) > 0 {
		x.held[0].w.host.held.Add(-int64(len(x.held)))
		x.held = nil
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// join opens the shard and makes the follow one of its hub's.
func (h *Host) join(ctx context.Context, f *follow, start fanout.Start) {
	a, err := h.shard(ctx, start.Shard)
	for range tries {
		if err != nil {
			f.err = asKind(err)
			return
		}
		s, derr := a.Durable(ctx)
		if derr == nil {
			derr = a.hub.add(f, start, s)
		}
		if derr == nil {
			return
		}
		if !errors.Is(derr, host.ErrOver) {
			f.err = asKind(derr)
			return
		}
		a, err = h.shardNext(ctx, start.Shard)
	}
	f.err = errUnsteady
}

// Follow follows the shards that come by starts, as they are served here, until ctx ends or send fails. Send is told when each has begun, and, by
// Told.Err, why one is over; the others go on. While send runs nothing is read for it.
func (h *Host) Follow(ctx context.Context, w *fanout.Watch, starts <-chan []fanout.Start, send func(*fanout.Told) error) error {
	x := h.newWatching()
	defer x.close()
	x.add(0, w, unlimited)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case more := <-starts:
				x.follow(0, more...)
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		told, err := x.next(ctx)
		if err == nil {
			err = send(told)
		}
		if err != nil {
			return err
		}
	}
}

// follower is a fanout.Follower for a frontend of the same process.
type follower struct {
	*watching
	until  context.Context // of its user
	mu     sync.Mutex
	routes map[uint64]*fanout.Route // guarded by mu
}

// Follower follows shards for a frontend of the same process; see frontend.Shards.
func (h *Host) Follower(ctx context.Context) (fanout.Follower, error) {
	return &follower{watching: h.newWatching(), until: ctx, routes: make(map[uint64]*fanout.Route)}, nil
}

// Add implements fanout.Follower.
func (f *follower) Add(id uint64, w *fanout.Watch, credit int64, starts []fanout.Start) {
	f.mu.Lock()
	f.routes[id] = fanout.NewRoute(starts)
	f.mu.Unlock()
	f.add(id, w, credit)
	f.follow(id, starts...)
}

// Grant implements fanout.Follower.
func (f *follower) Grant(id uint64, bytes int64) { f.grant(id, bytes) }

// Remove implements fanout.Follower.
func (f *follower) Remove(id uint64) {
	f.mu.Lock()
	delete(f.routes, id)
	f.mu.Unlock()
	f.remove(id)
}

// Close implements fanout.Follower.
func (f *follower) Close() { f.close() }

// Next implements fanout.Follower.
func (f *follower) Next() (*fanout.Told, error) {
	for {
		told, err := f.next(f.until)
		if err != nil {
			return nil, asKind(err)
		}
		if f.routed(told) {
			return told, nil
		}
	}
}

// routed takes note of how far watches have come; it is false when a watch of a shard goes on by itself.
func (f *follower) routed(told *fanout.Told) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range told.Watches {
		r := f.routes[id]
		if r == nil {
			continue
		}
		again, pauseMS, err := r.Take(told)
		if err == nil && again != nil { // then it is of this watch alone
			start := *again
			f.host.cfg.Actor.Clock.AfterFunc(time.Duration(pauseMS)*time.Millisecond, func() { f.follow(id, start) })
			return false
		}
	}
	return true
}
