package memhost

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/actors/fanout"
	"kvstore/actors/host"
	"kvstore/actors/shard"
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
)

// watching is one watch of shards of this host. follow may be called at any time; next by one goroutine at a time.
type watching struct {
	host  *Host
	watch *fanout.Watch
	ctx   context.Context // ends with close
	end   context.CancelFunc
	opens chan struct{} // tokens: shards being opened
	wake  chan struct{} // a token: something is ready

	places chan struct{} // a token: places are to be told
	pause  time.Duration // before they are, the next time; next's
	stop   func() bool   // of that timer; next's, and close's

	mu     sync.Mutex
	ready  []*follow // guarded by mu, as is all below
	all    map[string]*follow
	closed bool
}

// follow is one shard of a watch.
type follow struct {
	w     *watching
	shard string
	open  chan struct{} // closed when hub, feed and err are set
	queue bool          // it is in ready; guarded by w.mu, as is gone
	gone  bool          // nothing more is told of it

	hub  *hub
	feed *fanout.Feed
	err  *kverr.Error // it could not be opened
}

// newWatching makes a watch that follows no shard yet. It must be closed.
func (h *Host) newWatching(w *fanout.Watch) *watching {
	x := &watching{host: h, watch: w, opens: make(chan struct{}, followers), wake: make(chan struct{}, 1), all: make(map[string]*follow)}
	x.ctx, x.end = context.WithCancel(h.ctx)
	x.places, x.pause = make(chan struct{}, 1), placeAfter/2+rand.N(placeAfter/2) // not all watches at once
	x.rest()
	return x
}

// rest sets the timer of telling places.
func (w *watching) rest() {
	w.stop = w.host.cfg.Actor.Clock.AfterFunc(w.pause, func() { poke(w.places) })
}

// remind has the turn come of each shard whose place the watcher does not know.
func (w *watching) remind() {
	w.mu.Lock()
	follows := slices.Collect(maps.Values(w.all))
	w.mu.Unlock()
	most := uint64(0)
	for _, f := range follows {
		select {
		case <-f.open:
			behind := f.hub.place(f)
			most = max(most, behind)
			if behind > 0 {
				f.tell()
			}
		default:
		}
	}
	half := max(1, uint64(w.host.cfg.Shard.HistoryChanges)/2)
	w.pause = placeAfter
	if most > half {
		w.pause = max(placeSoonest, placeAfter*time.Duration(half)/time.Duration(most))
	}
	w.rest()
}

// follow begins to follow shards, each opened if need be. A batch tells when each has begun, or why it cannot be. A shard that is followed is
// left as it is.
func (w *watching) follow(starts ...fanout.Start) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	for _, s := range starts {
		if w.all[s.Shard] != nil {
			continue
		}
		f := &follow{w: w, shard: s.Shard, open: make(chan struct{})}
		w.all[s.Shard] = f
		go func() {
			w.opens <- struct{}{}
			defer func() { <-w.opens }()
			w.host.join(w.ctx, f, s)
			close(f.open)
			f.tell()
		}()
	}
}

// next waits until there is something to tell, and begins to follow what comes by starts. It fails when ctx ends or the host is closed.
func (w *watching) next(ctx context.Context, starts <-chan []fanout.Start) (*fanout.Told, error) {
	for {
		select { // also while there is always something to tell
		case more := <-starts:
			w.follow(more...)
		case <-w.places:
			w.remind()
		default:
		}
		w.mu.Lock()
		if len(w.ready) > 0 {
			f := w.ready[0]
			w.ready[0] = nil
			w.ready = w.ready[1:]
			f.queue = false
			w.mu.Unlock()
			told := f.next(ctx)
			if told.Err != nil {
				w.leave(f)
			} else if told.More {
				f.tell()
			}
			return told, nil
		}
		w.mu.Unlock()
		select {
		case <-w.wake:
		case more := <-starts:
			w.follow(more...)
		case <-w.places:
			w.remind()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-w.ctx.Done():
			return nil, context.Cause(w.ctx)
		}
	}
}

// close ends the watch.
func (w *watching) close() {
	w.end()
	w.stop()
	w.mu.Lock()
	w.closed = true
	all := w.all
	w.all, w.ready = nil, nil
	w.mu.Unlock()
	for _, f := range all {
		<-f.open // soon: the context has ended
		f.hub.remove(f)
	}
}

// leave forgets a shard that is over.
func (w *watching) leave(f *follow) {
	w.mu.Lock()
	delete(w.all, f.shard)
	f.gone = true
	w.ready = slices.DeleteFunc(w.ready, func(other *follow) bool { return other == f })
	w.mu.Unlock()
	f.hub.remove(f)
}

// tell has the follow's turn come.
func (f *follow) tell() {
	w := f.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.queue || f.gone || w.closed {
		return
	}
	f.queue = true
	w.ready = append(w.ready, f)
	poke(w.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// next takes the next step of a shard.
func (f *follow) next(ctx context.Context) *fanout.Told {
	told := &fanout.Told{Shard: f.shard}
	if f.err != nil {
		told.Err = f.err
		return told
	}
	h := f.hub
	told.Epoch = h.actor.epoch
	h.mu.Lock()
	view, at, over := h.machine.View(), h.machine.Cursor(f.feed), h.over
	h.mu.Unlock()
	if over != nil {
		told.Cursor, told.Err = at, over
		return told
	}
	told.Batch = f.w.watch.Next(view, at, fanout.Budget{Bytes: watchBytes})
	h.actor.fill(ctx, told.Events)
	if told.Err == nil {
		h.mu.Lock()
		told.More = h.machine.Took(f.feed, &told.Batch) || h.over != nil
		h.mu.Unlock()
	}
	return told
}

// fill reads the values that lie apart from their keys. One that cannot be read stays a reference: the state has another one by now, or the next
// reader of the key is told that it is damaged.
func (a *shardActor) fill(ctx context.Context, events []fanout.Event) {
	for i := range events {
		for _, v := range []*shard.Value{&events[i].Value, &events[i].Before} {
			if v.Ref.Object == (shard.ObjectID{}) || v.Ref.Length > fanout.MaxValue {
				continue
			}
			value := make([]byte, v.Ref.Length)
			if err := a.values.Read(ctx, v.Ref, 0, value); err == nil && xxh3.Hash(value) == v.Ref.Checksum {
				*v = shard.Value{Inline: value}
			}
		}
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
	x := h.newWatching(w)
	defer x.close()
	for {
		told, err := x.next(ctx, starts)
		if err == nil {
			err = send(told)
		}
		if err != nil {
			return err
		}
	}
}

// Watch is Follow for a frontend of the same process: of what passes by itself, such as a shard that changes hands, send is told nothing, and the
// watch ends when one of the shards cannot be followed any more. See frontend.Shards.
func (h *Host) Watch(ctx context.Context, w *fanout.Watch, starts []fanout.Start, send func(*fanout.Told) error) error {
	x := h.newWatching(w)
	defer x.close()
	route := fanout.NewRoute(starts)
	x.follow(starts...)
	for {
		told, err := x.next(ctx, nil)
		if err != nil {
			return asKind(err)
		}
		again, pauseMS, err := route.Take(told)
		switch {
		case err != nil:
			return err
		case again != nil:
			start := *again
			h.cfg.Actor.Clock.AfterFunc(time.Duration(pauseMS)*time.Millisecond, func() { x.follow(start) })
			continue
		}
		if err := send(told); err != nil {
			return err
		}
	}
}
