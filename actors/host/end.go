package host

import (
	"context"
	"errors"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// ended tells whether the ownership has ended. Mutex held or not: it never turns false again.
func (a *Actor[C]) ended() bool { return a.why.Load() != nil }

// Err tells why the actor is over; nil while it lives.
func (a *Actor[C]) Err() *kverr.Error { return a.why.Load() }

// HeldFor is how long a refusal, of an append that wrote nothing or to open a shard, is held against a shard that nobody has tried since: whoever
// looks may be who keeps callers away, as a balancer does, and without a try nobody would learn that it is over. It is well above the minute after which
// the alert on such shards rings (infra/prometheus), or those that are tried rarely never would.
const HeldFor = 2 * time.Minute

// refusal is an append that wrote nothing.
type refusal struct {
	why *kverr.Error
	at  time.Time
}

// ReadOnly tells why the last append wrote nothing; nil when it wrote, or when nothing was appended for HeldFor since. Reads go on, and each
// write tries again.
func (a *Actor[C]) ReadOnly() *kverr.Error {
	r := a.readonly.Load()
	if r == nil || a.cfg.Clock.Now().Sub(r.at) > HeldFor {
		return nil
	}
	return r.why
}

// rollBack takes the machine back to its last durable state after an append that is known to have written nothing. The epoch
// goes on. Outcomes that depend on durable state alone still leave; every other command was not applied.
func (a *Actor[C]) rollBack(now time.Time, cause error, out *outcomes[C]) *outcomes[C] {
	why := notWritten(cause)
	a.readonly.Store(&refusal{why, now})
	s := a.durable.Load()
	a.turn++
	r := a.machine.Ready()
	out = a.admit(now, r.Replies, out)
	keep := a.waiting[:0]
	for _, w := range a.waiting {
		if w.Dep > s.Revision {
			out = a.release(out, w.Command, why)
			continue
		}
		keep = append(keep, w)
	}
	clear(a.waiting[len(keep):])
	a.waiting = keep
	out = a.refuseQueue(why, out)
	a.machine.Restore(s.Tree.Clone())
	a.rearm()
	a.settle()
	return out
}

// end ends the ownership after an append that did not succeed. Last is the revision that the append would have made durable:
// what depends on it is unknown when the append is; what comes after it was never sent. The error it returns is for tellOver.
func (a *Actor[C]) end(what wal.Outcome, last uint64, cause error, out *outcomes[C]) (*kverr.Error, *outcomes[C]) {
	if what != wal.Unknown {
		return a.lose(cause, out)
	}
	unknown := &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "append", Message: "the log did not tell whether the write is durable", Err: cause}
	unsent := &kverr.Error{Kind: kverr.Unavailable, Op: "append", Message: "the shard is being opened again; the write was not applied", RetryAfterMS: 100, Err: cause}
	return a.finish(unknown, unknown, last, unsent, out)
}

// lose ends the ownership when another epoch has it, or the engine is gone. Nothing that waits was applied here, but for what
// an append in flight holds: that one decides.
func (a *Actor[C]) lose(cause error, out *outcomes[C]) (*kverr.Error, *outcomes[C]) {
	why := &kverr.Error{Kind: kverr.Moved, Op: "own the shard", Message: "the shard has another owner", Err: cause}
	switch {
	case errors.Is(cause, driver.ErrCorrupt):
		why = &kverr.Error{Kind: kverr.DataLoss, Op: "own the shard", Message: "the store has lost records of shard " + a.log.Shard() + " that were durable", Err: cause}
	case !errors.Is(cause, driver.ErrFenced):
		why = &kverr.Error{Kind: kverr.Unavailable, Op: "own the shard", Message: "the shard is not open here any more", RetryAfterMS: 100, Err: cause}
	}
	if a.flight != nil {
		// The append may land all the same: a fence comes after the manifest that says so. What it wrote is told when it has
		// landed (see land); until then nothing that waits is either applied or not.
		if !a.why.CompareAndSwap(nil, why) {
			why = nil
		}
		a.closing = true
		return why, out
	}
	return a.finish(why, why, 0, why, out)
}

// finish marks the actor as over, because of why, and empties it: outcomes that depend on revisions up to last get sent. Of the
// others, those that waited for an append which is durable by now, and were held at the gate, may not be called not applied: the
// next owner has them. All other commands get unsent. The error it returns is for tellOver: nil when the actor was over already.
func (a *Actor[C]) finish(why, sent *kverr.Error, last uint64, unsent *kverr.Error, out *outcomes[C]) (*kverr.Error, *outcomes[C]) {
	if !a.why.CompareAndSwap(nil, why) {
		why = nil
	}
	a.closing = true
	for _, r := range a.machine.Ready().Replies {
		a.waiting = append(a.waiting, waiter[C]{Gated: r})
	}
	durable := a.durable.Load().Revision
	for _, w := range a.waiting {
		err := unsent
		switch {
		case w.Dep <= last:
			err = sent
		case w.sent && w.Dep <= durable:
			err = &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "own the shard", Message: "the write is in the log; the shard was given up before it could be acknowledged", Err: unsent}
		}
		out = a.release(out, w.Command, err)
	}
	a.waiting = nil
	out = a.refuseQueue(unsent, out)
	if a.stopTimer != nil {
		a.stopTimer()
		a.stopTimer = nil
	}
	if a.hooks.Wake != nil {
		a.hooks.Wake(0)
	}
	if a.hooks.Grown != nil {
		a.hooks.Grown(-a.bytes.Swap(0))
	}
	a.settle()
	return why, out
}

func (a *Actor[C]) refuseQueue(why *kverr.Error, out *outcomes[C]) *outcomes[C] {
	for _, c := range a.queue {
		a.unqueued(c.Size())
		out = a.release(out, c, why)
	}
	a.queue = nil
	return out
}

// tellOver tells the runtime, without the mutex.
func (a *Actor[C]) tellOver(why *kverr.Error) {
	if why != nil && a.hooks.Over != nil {
		a.hooks.Over(why)
	}
}

// notWritten makes the error of commands whose append is known to have written nothing.
func notWritten(cause error) *kverr.Error {
	if errors.Is(cause, driver.ErrNoSpace) {
		return &kverr.Error{Kind: kverr.NoSpace, Op: "append", Message: "the store has less free space than its reserve: nothing is written until its disk has more; reads go on", RetryAfterMS: 1000, Err: cause}
	}
	return &kverr.Error{Kind: kverr.Unavailable, Op: "append", Message: "the log refused the write; it was not applied", RetryAfterMS: 100, Err: cause}
}

// Drain takes no more commands and waits until every one that was taken is released. When ctx ends first the actor is not over:
// End ends it, Resume lets it go on.
func (a *Actor[C]) Drain(ctx context.Context) error {
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	return a.Flush(ctx)
}

// Flush waits until the actor has nothing in flight and nobody waits for an outcome, or is over.
func (a *Actor[C]) Flush(ctx context.Context) error {
	a.mu.Lock()
	if a.idle == nil {
		a.idle = make(chan struct{})
		a.flushing.Store(true)
	}
	a.settle()
	if a.idle == nil {
		a.mu.Unlock()
		return nil
	}
	idle := a.idle
	a.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Resume takes commands again after a Drain that was not followed by an End. It tells whether the actor still lives.
func (a *Actor[C]) Resume() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closing = a.ended()
	return !a.closing
}

// End ends the ownership: no read is served any more from its return on. With yield the shard's store is told, so that a
// successor need not wait for the lease; whatever still waits is released as unknown once its append is. It returns after every
// goroutine of the actor has. Hooks.Over is not called.
func (a *Actor[C]) End(ctx context.Context, yield bool) error {
	why := &kverr.Error{Kind: kverr.Moved, Op: "own the shard", Message: "the shard was given up here"}
	a.mu.Lock()
	a.closing = true
	var out *outcomes[C]
	if a.flight == nil {
		_, out = a.finish(why, why, 0, why, out)
	} else {
		a.why.CompareAndSwap(nil, why)
	}
	a.mu.Unlock()
	a.leave(nil, out)
	var err error
	if yield {
		err = a.log.Yield(ctx)
	}
	a.log.Close()
	a.background.Wait()
	return err
}
