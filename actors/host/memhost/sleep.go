package memhost

import (
	"context"
	"errors"
	"sync"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
)

// idler puts shards to sleep that were not used between two of its rounds, which are IdleAfter apart.
type idler struct {
	host *Host
	mu   sync.Mutex
	stop func() bool // of the timer; guarded by mu
	over bool        // guarded by mu
}

func (i *idler) start() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over || i.host.cfg.IdleAfter == 0 {
		return
	}
	i.stop = i.host.cfg.Actor.Clock.AfterFunc(i.host.cfg.IdleAfter, i.round)
}

func (i *idler) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.over = true
	if i.stop != nil {
		i.stop()
	}
}

func (i *idler) round() {
	h := i.host
	if !h.enter() {
		return
	}
	defer h.background.Done()
	h.slots.Range(func(_, v any) bool {
		s := v.(*slot)
		if l := s.live.Load(); l != nil && !s.used.Swap(false) && !l.Busy() {
			if err := h.sleep(h.ctx, s, false); err != nil {
				h.tellFailed(s, l, "sleep", err)
			}
		}
		return h.ctx.Err() == nil
	})
	i.start()
}

// sleepPatience bounds how long going to sleep waits for commands under way.
const sleepPatience = 10 * time.Second

// sleep checkpoints a shard and gives its memory back; a use meanwhile waits and then wakes it. Always: also when it was used
// again.
func (h *Host) sleep(ctx context.Context, s *slot, always bool) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	l := s.live.Load()
	if l == nil || l.Err() != nil || !always && s.used.Load() {
		return nil
	}
	// Checkpoint while commands still pass, so that what is left for afterwards is little.
	if err := h.checkpoint(ctx, s, l); err != nil {
		return err
	}
	if !always && s.used.Load() {
		return nil
	}
	if err := h.stop(ctx, s, l, true); err != nil {
		return err
	}
	if f := h.cfg.Events.Slept; f != nil {
		f(s.id)
	}
	return nil
}

// stop ends a live shard in good order: finish, yield, keep its wake-up. The turn is held.
func (h *Host) stop(ctx context.Context, s *slot, l *live, patient bool) error {
	ctx, cancel := context.WithTimeout(ctx, sleepPatience)
	defer cancel()
	if err := l.Drain(ctx); err != nil && patient {
		l.Resume()
		return err
	}
	wake := l.WakeMS()
	s.live.Store(nil)
	s.state.Store(asleep)
	err := l.End(ctx, true)
	h.timers.set(&s.wish, wake)
	return err
}

// Waits tells how long this host, which took a shard over a short while ago from an owner whose lease may have run, is to be left alone: 0 when it is not, or
// does not serve the shard. Until it may answer, another host that took the shard would have to wait a full term anew, and callers with it. For a term
// after that callers get through what they have waited with, before the shard is away a second time. One that leaves gives a shard up at any time.
func (h *Host) Waits(shardID string, epoch driver.Epoch) time.Duration {
	v, ok := h.slots.Load(shardID)
	if !ok || h.ctx.Err() != nil || h.leaving() {
		return 0
	}
	s := v.(*slot)
	if s.state.Load().name == StateActivating { // asked before live, which is set first
		return h.store.Engine().Term()
	}
	l := s.live.Load()
	if l == nil || l.Err() != nil || l.Log().Epoch() != epoch || l.Log().AckAfter().IsZero() {
		return 0
	}
	return max(0, l.Log().AckAfter().Add(h.store.Engine().Term()).Sub(h.cfg.Actor.Clock.Now()))
}

// leaving tells whether the host is being closed.
func (h *Host) leaving() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// Yield gives a shard up for a host that asks in the name of the engine's holder of that epoch, and tells whether it did: then nothing
// is acknowledged or read here in that epoch any more. This host leaves the shard to the other for Config.Peace.
func (h *Host) Yield(ctx context.Context, shardID string, epoch driver.Epoch) bool {
	v, ok := h.slots.Load(shardID)
	if !ok {
		return false
	}
	s := v.(*slot)
	if s.take(ctx) != nil {
		return false
	}
	defer s.give()
	l := s.live.Load()
	if l == nil || l.Log().Epoch() != epoch {
		return false
	}
	_ = l.Drain(ctx) // whatever is left is released by End, as unknown or moved
	s.live.Store(nil)
	why := &kverr.Error{Kind: kverr.Moved, Op: "reach the shard", Message: "the shard has another owner"}
	s.state.Store(&condition{name: StateAsleep, reason: why, peace: h.cfg.Actor.Clock.Now().Add(h.cfg.Peace)})
	err := l.End(ctx, true)
	h.timers.set(&s.wish, 0)
	if f := h.cfg.Events.Yielded; f != nil {
		f(s.id)
	}
	// Also with an error: it means that the manifest does not say so, not that anything goes on here.
	return err == nil || l.Err() != nil
}

// Close finishes what was begun, checkpoints every shard if told so, and yields them all. Calls that come later fail. When ctx ends
// first, what is left is cut off: nothing acknowledged is lost by that.
func (h *Host) Close(ctx context.Context, checkpoint bool) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.mu.Unlock()
	h.reports.send(ctx, lastTimeout)
	defer context.AfterFunc(ctx, h.cancel)() // background work, too
	h.idle.close()
	h.timers.close()
	h.checkpoints.close()

	// Other kinds first, for they may be at work on shards.
	others := h.closeSlots(ctx, checkpoint, func(s *slot) bool { return s.open != nil })
	shards := h.closeSlots(ctx, checkpoint, func(s *slot) bool { return s.open == nil })
	h.cancel()
	h.background.Wait()
	return errors.Join(others, shards)
}

// closeSlots closes the slots for which which holds.
func (h *Host) closeSlots(ctx context.Context, checkpoint bool, which func(s *slot) bool) error {
	var mu sync.Mutex
	var faults []error
	var each sync.WaitGroup
	h.slots.Range(func(_, v any) bool {
		s := v.(*slot)
		if !which(s) {
			return true
		}
		each.Go(func() {
			if err := h.closeSlot(ctx, s, checkpoint); err != nil {
				mu.Lock()
				faults = append(faults, err)
				mu.Unlock()
			}
		})
		return true
	})
	each.Wait()
	return errors.Join(faults...)
}

func (h *Host) closeSlot(ctx context.Context, s *slot, checkpoint bool) error {
	if err := s.take(ctx); err != nil {
		h.cancel() // an activation that does not end
		_ = s.take(context.Background())
	}
	defer s.give()
	l := s.live.Load()
	if l == nil {
		return nil
	}
	var err error
	if checkpoint && l.Err() == nil {
		_, err = l.CheckpointState(ctx, l.Latest())
	}
	return errors.Join(err, h.stop(ctx, s, l, false))
}
