package memhost

import (
	"context"
	"errors"
	"time"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// condition is what a slot that is not active waits for.
type condition struct {
	name   string       // of Status.State
	reason *kverr.Error // why; nil when all is well
	until  time.Time    // calls fail with reason until then; zero = they try
	peace  time.Time    // another host's shard until then, unless that one yields
}

var asleep = &condition{name: StateAsleep}

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
		return nil, errClosed
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

var errClosed = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the host is closed", RetryAfterMS: 1000}

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
// does not undo what others wait for.
func (h *Host) activate(ctx context.Context, s *slot) (*live, error) {
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	if l := s.live.Load(); l != nil {
		if l.Err() == nil {
			s.give()
			return l, nil
		}
		h.bury(s, l)
	}
	if c := s.state.Load(); h.cfg.Actor.Clock.Now().Before(c.until) {
		s.give()
		return nil, c.reason
	}
	if !h.enter() {
		s.give()
		return nil, errClosed
	}
	type opened struct {
		l   *live
		err error
	}
	result := make(chan opened, 1)
	go func() {
		defer h.background.Done()
		defer s.give()
		l, err := h.open(s)
		result <- opened{l, err}
	}()
	select {
	case r := <-result:
		return r.l, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
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
	select {
	case h.activations <- struct{}{}:
		defer func() { <-h.activations }()
	case <-h.ctx.Done():
		return nil, errClosed
	}
	before := s.state.Load()
	if err := h.keepPeace(s, before); err != nil {
		return nil, err
	}
	activating := &condition{name: StateActivating}
	s.state.Store(activating)
	began := h.cfg.Actor.Clock.Now()
	l, err := h.openLive(s)
	if err != nil {
		h.failed(s, err)
		return nil, err
	}
	s.live.Store(l)
	s.used.Store(true)
	s.state.CompareAndSwap(activating, asleep) // unless it is over by now
	if l.shard != nil {
		h.sweep(s, l)
	}
	if f := h.cfg.Events.Activated; f != nil {
		f(s.id, l.epoch, h.cfg.Actor.Clock.Now().Sub(began))
	}
	return l, nil
}

func (h *Host) openLive(s *slot) (*live, error) {
	l := &live{}
	hooks := host.Hooks{
		Wake:          func(ms int64) { h.timers.set(&s.wish, ms) },
		CheckpointDue: func() { h.checkpoints.due(s) },
		Grown:         func(delta int64) { h.memory.Add(delta) },
		Over:          func(why *kverr.Error) { h.over(s, l, why) },
	}
	if h.cfg.MemoryBudget > 0 {
		limit := h.cfg.MemoryBudget - h.cfg.MemoryReserve
		hooks.Starved = func() bool { return h.memory.Load() >= limit }
	}
	if f := h.cfg.Events.Jumped; f != nil {
		hooks.Jumped = func(by time.Duration) { f(s.id, by) }
	}
	opts := host.OpenOptions{Log: wal.OpenOptions{Address: h.cfg.Address}}
	opts.Log.Yield = func(ctx context.Context, holder wal.Holder) { h.cfg.Peers.yield(ctx, h, s.id, holder) }
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
	return l, nil
}

// keepPeace refuses to take back a shard that was lost a short while ago, unless its holder has yielded (D3).
func (h *Host) keepPeace(s *slot, c *condition) error {
	if !h.cfg.Actor.Clock.Now().Before(c.peace) {
		return nil
	}
	holder, err := h.store.Holder(h.ctx, s.id)
	if err != nil {
		return err
	}
	if holder.Yielded {
		return nil
	}
	return c.reason
}

// failed remembers why an activation failed, so that calls fail fast for a while.
func (h *Host) failed(s *slot, err error) {
	why := asKind(err)
	c := &condition{name: StateFailed, reason: why, until: h.cfg.Actor.Clock.Now().Add(failPause)}
	if errors.Is(err, driver.ErrFenced) {
		// Another host was quicker.
		c = &condition{name: StateAsleep, reason: why, peace: h.cfg.Actor.Clock.Now().Add(h.cfg.Peace)}
	}
	s.state.Store(c)
	if errors.Is(err, driver.ErrNotExist) {
		h.forget(s) // nobody is kept waiting, and nothing is kept of a shard that does not exist
		return
	}
	if f := h.cfg.Events.Failed; f != nil {
		f(s.id, "activate", err)
	}
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

// due runs when a shard's wake-up has come: an active one ticks, one that sleeps is opened for it.
func (h *Host) due(s *slot) {
	if l := s.live.Load(); l != nil && l.Err() == nil {
		l.Tick()
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
