package memhost

import (
	"context"
	"errors"
	"sync"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// Highwater remembers, elsewhere than in their own logs, how far the logs of shards have come, so that a store which lost acknowledged
// records is not served (DESIGN D6). The directory does: *keeper.Keeper is one.
type Highwater interface {
	// Remember notes marks; it returns once they are durable. Lower ones than those that it has change nothing.
	Remember(ctx context.Context, marks ...wal.Mark) error
	// Marks returns what is remembered of some shards, in their order: everything that Remember returned for is in it. It tells of each
	// whether it was made, also when no mark was ever given.
	Marks(ctx context.Context, shardIDs ...string) ([]wal.Mark, error)
}

// RememberWith names who remembers how far shards have come; without it only this host does, as long as it lives. It comes before
// any use.
func (h *Host) RememberWith(hw Highwater) { h.highwater = hw }

// AcceptLoss lets an actor of which nobody else remembers anything, the directory say, be opened although the store has lost records of
// it that this host has seen; it returns the last of them. An actor that the store does not know any more is made anew. What others
// remember of shards is theirs to accept.
func (h *Host) AcceptLoss(ctx context.Context, id string) (wal.Mark, error) {
	s, err := h.slot(id)
	if err != nil {
		return wal.Mark{}, err
	}
	if err := s.take(ctx); err != nil {
		return wal.Mark{}, err
	}
	defer s.give()
	s.state.Store(asleep) // the next use tries, whatever the last one found
	s.damage.Store(nil)
	mark := h.store.Mark(id)
	h.store.AcceptLoss(id)
	if _, err := h.store.Holder(ctx, id); !errors.Is(err, driver.ErrNotExist) {
		return mark, err
	}
	if err := h.store.Create(ctx, id, nil); err != nil && !errors.Is(err, wal.ErrExists) {
		return mark, err
	}
	return mark, nil
}

const (
	// reportEvery is how long after a write at the latest it is reported, with all others of that time.
	reportEvery = time.Second
	// reportMarks bounds the marks of one report; the others are in the next.
	reportMarks = 4096
	// markTimeout bounds how long an activation waits for what is remembered, and a report for being taken; lastTimeout the last one,
	// which a host that closes sends.
	markTimeout = 5 * time.Second
	lastTimeout = time.Second
	// leastDoubt and mostDoubt are the bounds when the shard's holder cannot be asked (keepPeace): callers can be led there, and wait no longer. The
	// longer that has been so the longer the directory gets, which may be slow because a machine has died, and the holder with it.
	leastDoubt = time.Second
	mostDoubt  = 4 * time.Second
)

// reports tells the Highwater how far shards have come: nothing while nobody writes, and otherwise all that did, once in reportEvery.
type reports struct {
	host *Host

	mu    sync.Mutex // guards all below
	dirty map[*slot]bool
	armed bool // a report will come
}

// note makes a shard part of the next report. It is called for every durable state, so it costs little when the shard is part of it
// already.
func (r *reports) note(s *slot) {
	if r.host.highwater == nil || s.open != nil || s.noted.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.noted.Store(true)
	r.dirty[s] = true
	r.arm()
}

// arm sees to it that a report comes. Mutex held.
func (r *reports) arm() {
	if !r.armed {
		r.armed = true
		r.host.cfg.Actor.Clock.AfterFunc(reportEvery, r.due)
	}
}

// due runs when a report is due.
func (r *reports) due() {
	if !r.host.enter() {
		return
	}
	go func() {
		defer r.host.background.Done()
		r.send(r.host.ctx, markTimeout)
	}()
}

// send reports what there is to report, once.
func (r *reports) send(ctx context.Context, timeout time.Duration) {
	r.mu.Lock()
	r.armed = false
	var slots []*slot
	var marks []wal.Mark
	for s := range r.dirty {
		if len(slots) == reportMarks {
			r.arm()
			break
		}
		delete(r.dirty, s)
		s.noted.Store(false) // what it writes from now on is the next report's
		if m := r.host.store.Mark(s.id); m.Epoch > 0 {
			slots, marks = append(slots, s), append(marks, m)
		}
	}
	r.mu.Unlock()
	if len(marks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := r.host.highwater.Remember(ctx, marks...); err != nil {
		for _, s := range slots {
			r.note(s)
		}
	}
}

// remembered asks, for so long, what a shard that is to be opened must have; nil when nobody remembers, as for the directory itself.
func (h *Host) remembered(s *slot, patience time.Duration) (*wal.Mark, error) {
	if h.highwater == nil || s.open != nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, patience)
	defer cancel()
	marks, err := h.highwater.Marks(ctx, s.id)
	if kverr.KindOf(err) == kverr.DataLoss && err != nil {
		return nil, err // the directory itself has lost records
	}
	if err != nil {
		return nil, &kverr.Error{Kind: kverr.Unavailable, Op: "open the shard", Message: "the directory does not tell how far the shard had come", RetryAfterMS: 100, Err: err}
	}
	return &marks[0], nil
}
