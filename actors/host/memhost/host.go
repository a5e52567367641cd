// Package memhost runs shards, and the few other actors that it is told of, inside one process: the runtime of the embedded store, of edge nodes, tests and the simulator
// (DESIGN D5). It activates a shard when it is first used, puts it to sleep when it is not used, keeps its checkpoints, values and
// wake-ups in order, and yields it to another host that asks. It satisfies frontend.Shards.
//
// It does not decide which shards exist (the directory does), and knows no keys, namespaces or users.
//
//	h, err := memhost.New(store, memhost.Config{})
//	h.Do(ctx, "a1b2c3d4e5f60718-0", &shard.Command{Op: shard.OpPut, ..., Done: done})
//	view, err := h.View(ctx, "a1b2c3d4e5f60718-0")
//	h.Close(ctx)
package memhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// maxShards bounds the shards that a host knows, active or asleep.
const maxShards = 65536

// Host runs the shards that it is asked for. It is safe for any number of goroutines.
type Host struct {
	cfg    Config
	store  *wal.Store
	ctx    context.Context // of background work; ends with Close
	cancel context.CancelFunc

	memory      atomic.Int64  // bytes of all states
	queued      atomic.Int64  // bytes of commands that queue
	feeds       atomic.Int64  // shards that watches follow
	untold      atomic.Int64  // of those, with something to tell
	held        atomic.Int64  // of those, without credit
	fills       fills         // values that watchers were told last
	activations chan struct{} // one token for each activation under way
	timers      timers
	idle        idler
	checkpoints checkpoints
	reports     reports
	highwater   Highwater // nil: nobody else remembers
	background  sync.WaitGroup

	evicted, evictedBytes, damaged atomic.Int64 // blocks of prompts

	slots  sync.Map // shard id -> *slot; entries are only ever added, and removed by Remove
	mu     sync.Mutex
	count  int  // of slots; guarded by mu
	closed bool // guarded by mu
}

// slot is an actor's place in a host, active or not.
type slot struct {
	id    string
	host  *Host
	open  host.Opener          // nil: a shard; changed with the turn
	live  atomic.Pointer[live] // nil while it is not active
	used  atomic.Bool          // since the idler looked last
	lost  uint64               // epoch of the last actor that was over by itself; changed with the turn
	noted atomic.Bool          // it is part of the next report
	wish  wish

	broken atomic.Pointer[kverr.Error] // why the last activation failed, when the engine did not answer; nil since one succeeded
	damage atomic.Pointer[kverr.Error] // what of its data was found gone or damaged here; nil since it was opened, or is another host's

	turn  chan struct{}             // a token: whoever holds it changes the slot's state
	state atomic.Pointer[condition] // for Status and for failing fast
}

// live is an active actor.
type live struct {
	host.Resident
	shard *shardActor // the same, when it is a shard; nil for other kinds
	epoch uint64

	checkpointBytes atomic.Int64
}

// New makes a host on a store. It opens nothing by itself.
func New(store *wal.Store, cfg Config) (*Host, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, store: store, activations: make(chan struct{}, cfg.Activations)}
	h.cfg.Shard.Evicted = func(bytes int64) {
		h.evicted.Add(1)
		h.evictedBytes.Add(bytes)
	}
	h.cfg.Shard.Damaged = func() { h.damaged.Add(1) }
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.timers.clock, h.timers.fire = cfg.Actor.Clock, h.due
	h.checkpoints.host, h.checkpoints.stopped = h, make(chan struct{})
	h.reports.host, h.reports.dirty = h, map[*slot]bool{}
	h.idle.host = h
	h.idle.start()
	return h, nil
}

// Create makes a shard that does not exist yet; wal.ErrExists when it does. Only the directory's owner calls it.
func (h *Host) Create(ctx context.Context, shardID string, meta []byte) error {
	return h.store.Create(ctx, shardID, meta)
}

// Remove ends a shard, also one that another host owns, and removes all that is stored of it, for good. An absent one is a success.
// Only the directory's owner calls it.
func (h *Host) Remove(ctx context.Context, shardID string) error {
	s, err := h.slot(shardID)
	if err != nil {
		return err
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if l := s.live.Load(); l != nil {
		_ = h.stop(ctx, s, l, false) // what it was about to say is of no interest any more
	}
	h.timers.set(&s.wish, 0)
	if err := h.depose(ctx, shardID); err != nil {
		return err
	}
	if err := h.store.Remove(ctx, shardID); err != nil && !errors.Is(err, driver.ErrNotExist) {
		return err
	}
	h.forget(s)
	return nil
}

// depose ends a shard's owner elsewhere, so that it stops serving what is to be removed: it is asked to yield, and fenced. What is
// damaged has no owner.
func (h *Host) depose(ctx context.Context, shardID string) error {
	if h.store.Engine().Term() == 0 {
		return nil // the engine excludes other processes
	}
	holder, err := h.store.Holder(ctx, shardID)
	if owned := err == nil && holder.Epoch.Counter > 0 && !holder.Yielded; !owned {
		return nil
	}
	opts := h.logOptions(shardID)
	opts.Clock = h.cfg.Actor.Clock.Now
	log, err := h.store.Open(ctx, shardID, opts)
	switch {
	case err == nil:
		log.Close()
	case errors.Is(err, driver.ErrFenced), ctx.Err() != nil:
		return err // somebody opens it at this moment: try again
	}
	return nil
}

// tries is how often a call opens an actor anew when its ownership ends meanwhile.
const tries = 3

var errUnsteady = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the shard changes hands too fast", RetryAfterMS: 100}

// Register makes actors of another kind known, by id: it is opened by open when it is used, and is kept in all respects as shards
// are. It comes before any use of the id.
func (h *Host) Register(id string, open host.Opener) error {
	s, err := h.slot(id)
	if err != nil {
		return err
	}
	if err := s.take(h.ctx); err != nil {
		return err
	}
	defer s.give()
	if s.open != nil {
		return fmt.Errorf("memhost: %s is registered already", id)
	}
	s.open = open
	return nil
}

// Use returns an actor, activating it if need be; what it can do is known to whoever registered its kind.
func (h *Host) Use(ctx context.Context, id string) (host.Resident, error) {
	return asResident(h.use(ctx, id))
}

// Next is Use after the actor took nothing: it may be going to sleep or be given up, which is waited for.
func (h *Host) Next(ctx context.Context, id string) (host.Resident, error) {
	return asResident(h.useNext(ctx, id))
}

func asResident(l *live, err error) (host.Resident, error) {
	if err != nil {
		return nil, asKind(err)
	}
	return l.Resident, nil
}

// asKind makes a *kverr.Error of what is none yet. Nothing was applied when it is used for commands.
func asKind(err error) *kverr.Error {
	var k *kverr.Error
	switch {
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.DeadlineExceeded):
		return &kverr.Error{Kind: kverr.DeadlineExceeded, Op: "reach the shard", Message: "the deadline passed first", Err: err}
	case errors.Is(err, context.Canceled):
		return &kverr.Error{Kind: kverr.Canceled, Op: "reach the shard", Message: "the call was given up", Err: err}
	case errors.Is(err, driver.ErrNotExist):
		return &kverr.Error{Kind: kverr.NotFound, Op: "reach the shard", Message: "there is no such shard", Err: err}
	case errors.Is(err, driver.ErrFenced), errors.Is(err, host.ErrOver):
		return &kverr.Error{Kind: kverr.Moved, Op: "reach the shard", Message: "the shard has another owner", Err: err}
	case errors.Is(err, driver.ErrCorrupt):
		return &kverr.Error{Kind: kverr.DataLoss, Op: "open the shard", Message: "stored data is damaged", Err: err}
	case errors.Is(err, driver.ErrNoSpace):
		return &kverr.Error{Kind: kverr.NoSpace, Op: "open the shard", Message: "the store has less free space than its reserve, which opening a shard needs", RetryAfterMS: 1000, Err: err}
	}
	return &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the shard cannot be opened now", RetryAfterMS: 500, Err: err}
}
