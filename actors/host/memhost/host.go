// Package memhost runs shards inside one process: the runtime of the embedded store, of edge nodes, tests and the simulator
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
	"io"
	"sync"
	"sync/atomic"

	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
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
	activations chan struct{} // one token for each activation under way
	timers      timers
	idle        idler
	checkpoints checkpoints
	background  sync.WaitGroup

	slots  sync.Map // shard id -> *slot; entries are only ever added, and removed by Remove
	mu     sync.Mutex
	count  int  // of slots; guarded by mu
	closed bool // guarded by mu
}

// slot is a shard's place in a host, active or not.
type slot struct {
	id   string
	host *Host
	live atomic.Pointer[live] // nil while it is not active
	used atomic.Bool          // since the idler looked last
	wish wish

	turn  chan struct{}             // a token: whoever holds it changes the slot's state
	state atomic.Pointer[condition] // for Status and for failing fast
}

// live is an active shard.
type live struct {
	actor  *host.Actor[*shard.Command]
	values *values.Store
	epoch  uint64
	view   atomic.Pointer[durableView] // of the last state that was read

	checkpointBytes atomic.Int64
}

// durableView keeps the view of a state, since making one costs more than reading from it.
type durableView struct {
	state *host.State
	view  shard.View
}

// viewOf returns the view of a durable state.
func (l *live) viewOf(s *host.State) shard.View {
	if v := l.view.Load(); v != nil && v.state == s {
		return v.view
	}
	v := &durableView{state: s, view: shard.NewView(s.Tree)}
	l.view.Store(v)
	return v.view
}

// Seq is for values.Host.
func (l *live) Seq() uint64 { return l.actor.Latest().Seq }

// Do is for values.Host.
func (l *live) Do(cmds ...*shard.Command) error { return l.actor.Do(cmds...) }

// New makes a host on a store. It opens nothing by itself.
func New(store *wal.Store, cfg Config) (*Host, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, store: store, activations: make(chan struct{}, cfg.Activations)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.timers.clock, h.timers.fire = cfg.Actor.Clock, h.due
	h.checkpoints.host, h.checkpoints.stopped = h, make(chan struct{})
	h.idle.host = h
	h.idle.start()
	if cfg.Peers != nil {
		cfg.Peers.join(cfg.Address, h)
	}
	return h, nil
}

// Create makes a shard that does not exist yet; wal.ErrExists when it does. Only the directory's owner calls it.
func (h *Host) Create(ctx context.Context, shardID string, meta []byte) error {
	return h.store.Create(ctx, shardID, meta)
}

// Remove ends a shard here and removes all that is stored of it, for good.
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
	if err := h.store.Remove(ctx, shardID); err != nil && !errors.Is(err, driver.ErrNotExist) {
		return err
	}
	h.forget(s)
	return nil
}

// tries is how often a call opens a shard anew when its ownership ends meanwhile.
const tries = 3

// Do hands commands to a shard, in order, activating it first if need be. Each is released exactly once, possibly before Do
// returns.
func (h *Host) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	l, err := h.use(ctx, shardID)
	var tracked *live
	for range tries {
		if err != nil {
			releaseAll(cmds, asKind(err))
			return
		}
		if l != tracked { // once for each epoch: a command settles what it names once
			cmds, tracked = l.values.Track(cmds), l
		}
		if l.actor.Do(cmds...) == nil {
			return
		}
		l, err = h.useNext(ctx, shardID)
	}
	releaseAll(cmds, errUnsteady)
}

var errUnsteady = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the shard changes hands too fast", RetryAfterMS: 100}

func releaseAll(cmds []*shard.Command, err *kverr.Error) {
	for _, c := range cmds {
		c.Release(err)
	}
}

// View returns the shard's last durable state for linearizable reads: everything that was acknowledged before the call is in it.
func (h *Host) View(ctx context.Context, shardID string) (shard.View, error) {
	l, err := h.use(ctx, shardID)
	for range tries {
		if err != nil {
			return shard.View{}, asKind(err)
		}
		s, derr := l.actor.Durable(ctx)
		if derr == nil {
			return l.viewOf(s), nil
		}
		if !errors.Is(derr, host.ErrOver) {
			return shard.View{}, asKind(derr)
		}
		l, err = h.useNext(ctx, shardID)
	}
	return shard.View{}, errUnsteady
}

// PutValues stores values apart from keys; see values.Store.Put.
func (h *Host) PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error) {
	l, err := h.use(ctx, shardID)
	if err != nil {
		return nil, asKind(err)
	}
	refs, err := l.values.Put(ctx, values...)
	if err != nil {
		return nil, asKind(err)
	}
	h.checkValues(shardID, l)
	return refs, nil
}

// WriteValue stores one value of exactly size bytes from a stream; see values.Store.WriteStream.
func (h *Host) WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error) {
	l, err := h.use(ctx, shardID)
	if err != nil {
		return shard.Ref{}, asKind(err)
	}
	ref, err := l.values.WriteStream(ctx, size, r)
	if err != nil {
		return shard.Ref{}, asKind(err)
	}
	h.checkValues(shardID, l)
	return ref, nil
}

// checkValues asks for a checkpoint when many values were written since the last.
func (h *Host) checkValues(shardID string, l *live) {
	if l.values.Written() >= h.cfg.CheckpointValueBytes {
		if s, ok := h.slots.Load(shardID); ok {
			h.checkpoints.due(s.(*slot))
		}
	}
}

// DropValues gives up references that no command will name.
func (h *Host) DropValues(shardID string, refs ...shard.Ref) {
	s, ok := h.slots.Load(shardID)
	if !ok {
		return
	}
	// A shard that is not active, or in another epoch, sweeps them.
	if l := s.(*slot).live.Load(); l != nil {
		for i := range refs {
			if refs[i].Object.Epoch == l.epoch {
				l.values.Drop(refs[i])
			}
		}
	}
}

// ReadValue fills p from offset off of a value; see values.Store.Read for its errors.
func (h *Host) ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error {
	l, err := h.use(ctx, shardID)
	if err != nil {
		return asKind(err)
	}
	if err := l.values.Read(ctx, ref, off, p); err != nil {
		return asKind(err)
	}
	return nil
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
