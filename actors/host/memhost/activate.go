package memhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// condition is what a slot that is not active waits for.
type condition struct {
	name   string       // of Status.State
	reason *kverr.Error // why; nil when all is well
	until  time.Time    // calls fail with reason until then; zero = they try
	peace  time.Time    // another host's shard until then, unless that one yields
	absent bool         // there was no such shard: reason is for those who do not wait, others look again
	shown  time.Time    // with StateFailed: Status tells of it until then

	holder       wal.Holder // with peace: whom the manifest named when it was last read; zero before
	holderPlaced bool       // what holder said of itself then
}

var asleep = &condition{name: StateAsleep}

// errSilent is what callers are told while one of them tries to open a shard whose engine has not answered for long.
var errSilent = &kverr.Error{Kind: kverr.Unavailable, Op: "open the shard", Message: "the log engine does not answer", RetryAfterMS: 500}

// failPause is how long a shard whose activation failed is not tried again.
const failPause = 500 * time.Millisecond

// use returns the shard's live parts, activating it if need be.
func (h *Host) use(ctx context.Context, shardID string) (*live, error) {
	if v, ok := h.slots.Load(shardID); ok {
		s := v.(*slot)
		if l := s.live.Load(); l != nil && l.Err() == nil {
			s.touch()
			return l, nil
		}
		return h.activate(ctx, s)
	}
	if !h.placed(shardID) {
		return nil, errElsewhere // without a place for every shard that anybody asks for
	}
	s, err := h.slot(shardID)
	if err != nil {
		return nil, err
	}
	return h.activate(ctx, s)
}

// touch notes that the slot is used.
func (s *slot) touch() {
	if !s.used.Load() {
		s.used.Store(true)
	}
}

// useNext is use after an actor took nothing: it may be draining, to sleep or to be given up. Whoever has the turn is waited for.
func (h *Host) useNext(ctx context.Context, shardID string) (*live, error) {
	s, err := h.slot(shardID)
	if err != nil {
		return nil, err
	}
	s.used.Store(true)
	return h.activate(ctx, s)
}

// slot returns a shard's place, making it if need be.
func (h *Host) slot(shardID string) (*slot, error) {
	if v, ok := h.slots.Load(shardID); ok {
		return v.(*slot), nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, h.closedReason()
	}
	if v, ok := h.slots.Load(shardID); ok {
		return v.(*slot), nil
	}
	if h.count >= maxShards {
		return nil, &kverr.Error{Kind: kverr.Exhausted, Op: "open the shard", Message: "the host has too many shards", RetryAfterMS: 1000}
	}
	s := &slot{id: shardID, host: h, turn: make(chan struct{}, 1)}
	s.wish = wish{slot: s, index: -1}
	s.state.Store(asleep)
	h.slots.Store(shardID, s)
	h.count++
	return s, nil
}

// forget gives the place of a shard that does not exist back. The turn is held.
func (h *Host) forget(s *slot) {
	if s.open != nil {
		return // it is registered
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.slots.CompareAndDelete(s.id, s) {
		h.count--
	}
}

// take waits for the right to change the slot's state.
func (s *slot) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *slot) give() { <-s.turn }

// activate opens a shard, once for all who wait for it. The opening itself is not bound to ctx, so that one impatient caller
// does not undo what others wait for. After one that failed because the engine did not answer, only whoever comes first waits for the next:
// the others fail at once.
func (h *Host) activate(ctx context.Context, s *slot) (*live, error) {
	if why := s.broken.Load(); why != nil {
		select {
		case s.turn <- struct{}{}:
		default:
			return nil, why
		}
	} else if err := s.take(ctx); err != nil {
		return nil, err
	}
	if l := s.live.Load(); l != nil && l.Err() == nil {
		s.give()
		return l, nil
	}
	if c := s.state.Load(); !c.absent && h.cfg.Actor.Clock.Now().Before(c.until) {
		s.give()
		return nil, c.reason
	}
	if !h.placed(s.id) {
		s.give()
		return nil, errElsewhere
	}
	result := h.begin(s)
	if result == nil {
		s.give()
		return nil, h.closedReason()
	}
	select {
	case r := <-result:
		return r.l, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// opened is what became of an activation.
type opened struct {
	l   *live
	err error
}

// begin opens a slot in the background and gives its turn, which is held, when that is over. It returns nil, and keeps the turn, when
// the host is closed.
func (h *Host) begin(s *slot) <-chan opened {
	if !h.enter() {
		return nil
	}
	result := make(chan opened, 1)
	go func() {
		defer h.background.Done()
		defer s.give()
		if l := s.live.Load(); l != nil {
			h.bury(s, l)
		}
		l, err := h.open(s)
		result <- opened{l, err}
	}()
	return result
}

// enter registers a goroutine, unless the host is closed.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.background.Add(1)
	return true
}

// open makes a slot active. Its turn is held.
func (h *Host) open(s *slot) (*live, error) {
	// Both may ask another host, so they come before it takes one of the activations.
	doubt, err := h.keepPeace(s, s.state.Load())
	if err != nil {
		return nil, err
	}
	patience := markTimeout
	if doubt > 0 {
		patience = min(max(doubt/4, leastDoubt), mostDoubt)
	}
	mark, err := h.remembered(s, patience)
	if err != nil {
		if doubt > 0 && kverr.KindOf(err) == kverr.Unavailable {
			return nil, h.leave(s)
		}
		h.failed(s, err)
		return nil, err
	}
	select {
	case h.activations <- struct{}{}:
		defer func() { <-h.activations }()
	case <-h.ctx.Done():
		return nil, h.closedReason()
	}
	if !h.placed(s.id) {
		return nil, errElsewhere // it was when this began; the host that it is placed on now would have to take it from us
	}
	activating := &condition{name: StateActivating}
	s.state.Store(activating)
	began := h.cfg.Actor.Clock.Now()
	l, err := h.openLive(s, mark)
	var waits *waitsError
	if errors.As(err, &waits) {
		why := &kverr.Error{Kind: kverr.Moved, Op: "open the shard", Message: "the shard has another owner", Err: waits}
		s.state.Store(&condition{name: StateAsleep, reason: why, peace: began.Add(waits.wait), holder: waits.holder})
		s.broken.Store(nil)
		s.damage.Store(nil)
		return nil, why
	}
	if err != nil {
		h.failed(s, err)
		if why := asKind(err); why.Kind == kverr.DataLoss {
			h.reports.note(s) // others are to know what this host has seen,
			if s.damage.Swap(why) == nil {
				h.reports.due() // and at once: it may be the only one
			}
		}
		return nil, err
	}
	s.live.Store(l)
	s.broken.Store(nil)
	s.damage.Store(nil)
	s.used.Store(true)
	s.state.CompareAndSwap(activating, asleep) // unless it is over by now
	if l.shard != nil {
		h.sweep(s, l)
	}
	if f := h.cfg.Events.Activated; f != nil {
		f(s.id, Activation{Epoch: l.epoch, Took: h.cfg.Actor.Clock.Now().Sub(began), TookOver: l.Log().TookOver()})
	}
	return l, nil
}

func (h *Host) openLive(s *slot, mark *wal.Mark) (*live, error) {
	l := &live{}
	hooks := host.Hooks{
		Published:     func(*host.State) { h.reports.note(s) },
		Wake:          func(ms int64) { h.timers.set(&s.wish, ms) },
		CheckpointDue: func() { h.checkpoints.due(s) },
		Grown:         func(delta int64) { h.memory.Add(delta) },
		Over:          func(why *kverr.Error) { h.over(s, l, why) },
	}
	if h.cfg.MemoryBudget > 0 {
		limit := h.cfg.MemoryBudget - h.cfg.MemoryReserve
		hooks.Starved = func() bool { return h.memory.Load() >= limit }
	}
	hooks.Queue = h.queue
	hooks.Committed = func(c host.Committed) {
		if c.Outcome == wal.Unknown && c.Took > h.cfg.Actor.Patience {
			s.broken.Store(errSilent)
		}
		if f := h.cfg.Events.Committed; f != nil {
			f(c)
		}
	}
	if f := h.cfg.Events.Jumped; f != nil {
		hooks.Jumped = func(by time.Duration) { f(s.id, by) }
	}
	opts := host.OpenOptions{Log: h.logOptions(s.id)}
	opts.Log.Mark = mark
	opts.Progress = func(p wal.Progress) {
		l.checkpointBytes.Store(p.CheckpointBytesTotal)
		if f := h.cfg.Events.Activating; f != nil {
			f(s.id, p)
		}
	}
	open := s.open
	if open == nil {
		open = h.openShard
	}
	resident, err := open(h.ctx, host.Opening{Store: h.store, ID: s.id, Config: h.cfg.Actor, Hooks: hooks, Options: opts})
	if err != nil {
		return nil, err
	}
	l.Resident, l.epoch = resident, resident.Log().Epoch().Counter
	l.shard, _ = resident.(*shardActor)
	h.reports.note(s)
	return l, nil
}

// queue takes room in the queue of all actors, or gives it back.
func (h *Host) queue(bytes int) bool {
	if n := h.queued.Add(int64(bytes)); bytes > 0 && n > h.cfg.MaxQueuedBytes {
		h.queued.Add(int64(-bytes))
		return false
	}
	return true
}

// logOptions are what this host opens a log with.
func (h *Host) logOptions(id string) wal.OpenOptions {
	return wal.OpenOptions{Address: h.cfg.Address, Yield: func(ctx context.Context, holder wal.Holder) error {
		// A host does not ask itself: what it held it has given up before.
		if h.cfg.Peers != nil && holder.Address != h.cfg.Address {
			if wait := h.cfg.Peers.Yield(ctx, id, holder); wait > 0 {
				return &waitsError{holder: holder, wait: wait}
			}
		}
		return nil
	}}
}

// waitsError ends an activation: the shard's holder has just taken it over, see Host.Waits.
type waitsError struct {
	holder wal.Holder
	wait   time.Duration
}

func (e *waitsError) Error() string {
	return fmt.Sprintf("host %s has just taken the shard over, and is left alone for another %v", e.holder.Address, e.wait)
}

// over runs when an actor's ownership ended by itself. The slot is freed by the next use, or by Close.
func (h *Host) over(s *slot, l *live, why *kverr.Error) {
	c := asleep
	if why.Kind == kverr.Moved {
		c = &condition{name: StateAsleep, reason: why, peace: h.cfg.Actor.Clock.Now().Add(h.cfg.Peace)}
	}
	s.state.Store(c)
	if f := h.cfg.Events.Over; f != nil {
		f(s.id, why)
	}
	if !h.enter() {
		return
	}
	go func() {
		defer h.background.Done()
		if s.take(h.ctx) != nil {
			return
		}
		defer s.give()
		h.bury(s, l)
	}()
}

// bury frees what an actor that is over holds. The turn is held.
func (h *Host) bury(s *slot, l *live) {
	if !s.live.CompareAndSwap(l, nil) {
		return
	}
	s.lost = l.epoch
	// Unless another host has it: tell the store that this epoch serves nothing any more, so that the next need not wait for
	// its lease. An error costs that wait.
	ctx, cancel := context.WithTimeout(h.ctx, buryTimeout)
	defer cancel()
	_ = l.End(ctx, l.Err().Kind != kverr.Moved)
}

// buryTimeout bounds the yield of an epoch that ended by itself.
const buryTimeout = 2 * time.Second

func (h *Host) tellFailed(s *slot, l *live, what string, err error) {
	if f := h.cfg.Events.Failed; f != nil && l.Err() == nil && h.ctx.Err() == nil {
		f(s.id, what, err)
	}
}

// due runs when a shard's wake-up has come: an active one ticks, one that sleeps is opened for it, here or where it is placed.
func (h *Host) due(s *slot) {
	if l := s.live.Load(); l != nil && l.Err() == nil {
		l.Tick()
		return
	}
	if !h.placed(s.id) {
		h.cfg.Placement.Wake(s.id)
		return
	}
	if !h.enter() {
		return
	}
	go func() {
		defer h.background.Done()
		l, err := h.activate(h.ctx, s)
		switch {
		case err == nil:
			l.Tick()
		case h.ctx.Err() == nil && asKind(err).Kind != kverr.Moved:
			h.timers.set(&s.wish, h.cfg.Actor.Clock.Now().Add(failPause).UnixMilli())
		}
	}()
}
