package host

import (
	"context"
	"errors"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
)

// confirmation is one proof of the epoch with the engine, shared by all who need it.
type confirmation struct {
	turn  uint64 // outcomes up to this turn were stepped before it began
	began time.Time
	done  chan struct{} // closed once it is over
	err   error         // valid then
}

var errUnconfirmed = &kverr.Error{Kind: kverr.Unavailable, Op: "confirm the owner", Message: "the log engine does not answer", RetryAfterMS: 100}

// Durable returns the last durable state for a linearizable read: it holds everything that was acknowledged before the call.
// Inside the lease it takes no lock and asks nobody; otherwise it first confirms the epoch with the engine. Errors are
// ErrOver, a *kverr.Error of kind Unavailable when the engine could not be asked, or the context's.
func (a *Actor[C]) Durable(ctx context.Context) (*State, error) { return a.owned(ctx, a.ackAfter) }

// Fenced is Durable that does not wait until an earlier holder's lease has ended: everything that was durable before the call is in the
// state, since that holder can write no more, but it may still answer reads from the state that it knows. So it is for those who must not
// miss a record, and whom nobody else's answers matter to.
func (a *Actor[C]) Fenced(ctx context.Context) (*State, error) { return a.owned(ctx, time.Time{}) }

// Recent is Durable for those who need not know of what another owner did in the last Config.Patience: as long as this epoch was known to own the
// actor then, it asks the engine in the background, and does not wait.
func (a *Actor[C]) Recent(ctx context.Context) (*State, error) {
	if a.why.Load() != nil {
		return nil, ErrOver
	}
	if a.term == 0 {
		return a.durable.Load(), nil
	}
	now, until := a.cfg.Clock.Now(), a.log.LeaseUntil()
	if now.Before(a.ackAfter) || now.Sub(until) > a.cfg.Patience {
		return a.Durable(ctx)
	}
	if until.Sub(now) < a.term/2 {
		a.renew()
	}
	return a.durable.Load(), nil
}

// owned returns the last durable state once this epoch is known to own the actor, from a moment on.
func (a *Actor[C]) owned(ctx context.Context, from time.Time) (*State, error) {
	if a.why.Load() != nil {
		return nil, ErrOver
	}
	if a.term == 0 {
		return a.durable.Load(), nil
	}
	for {
		now := a.cfg.Clock.Now()
		if wait := from.Sub(now); wait > 0 {
			if err := a.pause(ctx, wait); err != nil {
				return nil, err
			}
			continue
		}
		if a.why.Load() != nil {
			return nil, ErrOver
		}
		if until := a.log.LeaseUntil(); now.Before(until) {
			if until.Sub(now) < a.term/2 {
				a.renew() // in use: renew early, so that no read waits for it
			}
			return a.durable.Load(), nil
		}
		if err := a.Confirm(ctx); err != nil {
			return nil, err
		}
	}
}

// Leased tells whether Durable returns at once.
func (a *Actor[C]) Leased() bool {
	if a.term == 0 {
		return true
	}
	now := a.cfg.Clock.Now()
	return !now.Before(a.ackAfter) && now.Before(a.log.LeaseUntil())
}

// Latest returns the last durable state as it is known here: another owner may have gone further. It is for status, checkpoints
// and reads that may be stale.
func (a *Actor[C]) Latest() *State { return a.durable.Load() }

// Confirm proves with the engine that this epoch still owns the shard, together with everybody else who asks now. When the engine did not
// answer the last time, or has not for Config.Patience, only whoever asks first waits for it: the others fail at once.
func (a *Actor[C]) Confirm(ctx context.Context) error {
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	joins, doubted := a.confirming != nil, a.doubted
	c := a.renewLocked()
	a.mu.Unlock()
	if c == nil {
		return ErrOver
	}
	if joins && (doubted || now.Sub(c.began) > a.cfg.Patience) {
		return errUnconfirmed
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// renew begins a confirmation, or joins the one under way; nil when the actor is over.
func (a *Actor[C]) renew() *confirmation {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewLocked()
}

func (a *Actor[C]) renewLocked() *confirmation {
	if a.ended() {
		return nil
	}
	if a.confirming == nil {
		c := &confirmation{turn: a.turn, began: a.cfg.Clock.Now(), done: make(chan struct{})}
		a.confirming = c
		a.background.Go(func() { a.runConfirm(c) })
	}
	return a.confirming
}

func (a *Actor[C]) runConfirm(c *confirmation) {
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.ConfirmTimeout)
	_, err := a.log.Confirm(ctx)
	cancel()

	now := a.cfg.Clock.Now()
	var out *outcomes[C]
	var over *kverr.Error
	a.mu.Lock()
	a.confirming, a.doubted = nil, err != nil
	switch {
	case a.ended():
		c.err = ErrOver
	case err == nil:
		out = a.gather(now, c.turn, out)
		a.settle()
	case errors.Is(err, driver.ErrFenced):
		c.err = ErrOver
		over, out = a.lose(err, out)
	default:
		c.err = &kverr.Error{Kind: kverr.Unavailable, Op: "confirm the owner", Message: "the log engine did not answer", RetryAfterMS: 100, Err: err}
		out = a.abandonHeld(err, out)
		a.settle()
	}
	close(c.done)
	a.mu.Unlock()
	a.tellOver(over)
	a.leave(nil, out)
}

// open tells whether outcomes that depend on durable state alone may leave at now: nobody else can have acknowledged anything
// that they do not know.
func (a *Actor[C]) open(now time.Time) bool {
	return a.term == 0 || !now.Before(a.ackAfter) && now.Before(a.log.LeaseUntil())
}

// openGate sees to it that outcomes which wait for nothing but the gate leave: a timer for ackAfter, a confirmation for the
// lease. Mutex held.
func (a *Actor[C]) openGate(now time.Time) {
	wait := a.ackAfter.Sub(now)
	switch {
	case wait <= 0:
		a.renewLocked()
	case a.stopTimer == nil:
		a.stopTimer = a.cfg.Clock.AfterFunc(wait, a.gateOpens)
	}
}

// gateOpens runs when ackAfter has come.
func (a *Actor[C]) gateOpens() {
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	a.stopTimer = nil
	out := a.gather(now, 0, nil)
	a.settle()
	a.mu.Unlock()
	a.leave(nil, out)
}

// abandonHeld releases outcomes that wait for the gate alone, after the engine could not be asked. They changed nothing
// themselves, but one may be the remembered outcome of an earlier try: so nothing is said about what was applied.
func (a *Actor[C]) abandonHeld(err error, out *outcomes[C]) *outcomes[C] {
	unknown := &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "confirm the owner", Message: "the log engine did not answer", Err: err}
	durable := a.durable.Load().Revision
	keep := a.waiting[:0]
	for _, w := range a.waiting {
		if w.Dep <= durable {
			out = a.release(out, w.Command, unknown)
			continue
		}
		keep = append(keep, w)
	}
	clear(a.waiting[len(keep):])
	a.waiting = keep
	return out
}

// pause waits on the actor's clock.
func (a *Actor[C]) pause(ctx context.Context, d time.Duration) error {
	done := make(chan struct{})
	stop := a.cfg.Clock.AfterFunc(d, func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		stop()
		return context.Cause(ctx)
	}
}
