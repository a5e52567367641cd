package memhost

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

var _ host.Resident = (*shardActor)(nil)

// shardActor is an active shard.
type shardActor struct {
	*host.Actor[*shard.Command]
	values *values.Store
	hub    *hub
	epoch  uint64
	view   atomic.Pointer[durableView] // of the last state that was read
}

// openShard is the host.Opener of shards.
func (h *Host) openShard(ctx context.Context, o host.Opening) (host.Resident, error) {
	a := &shardActor{hub: &hub{host: h, id: o.ID}}
	a.hub.actor = a
	published := o.Hooks.Published
	o.Hooks.Published = func(s *host.State) {
		published(s)
		a.hub.published(s)
	}
	actor, err := host.Open(ctx, o.Store, o.ID, shard.New(h.cfg.Shard), o.Config, o.Hooks, o.Options)
	if err != nil {
		return nil, err
	}
	a.Actor, a.epoch = actor, actor.Log().Epoch().Counter
	a.values = values.New(h.cfg.Values, actor.Log(), a)
	return a, nil
}

// Seq is for values.Host.
func (a *shardActor) Seq() uint64 { return a.Latest().Seq }

// Busy tells that values are on their way, or that somebody watches.
func (a *shardActor) Busy() bool { return a.values.Busy() || a.hub.busy() }

// End ends the shard, its watches and its values.
func (a *shardActor) End(ctx context.Context, yield bool) error {
	err := a.Actor.End(ctx, yield)
	a.hub.close()
	a.values.Close()
	return err
}

// durableView keeps the view of a state, since making one costs more than reading from it.
type durableView struct {
	state *host.State
	view  shard.View
}

// viewOf returns the view of a durable state.
func (a *shardActor) viewOf(s *host.State) shard.View {
	if v := a.view.Load(); v != nil && v.state == s {
		return v.view
	}
	v := &durableView{state: s, view: shard.NewView(s.Tree)}
	a.view.Store(v)
	return v.view
}

// shard returns a live shard, activating it if need be.
func (h *Host) shard(ctx context.Context, shardID string) (*shardActor, error) {
	return asShard(h.use(ctx, shardID))
}

// shardNext is shard after the actor took nothing.
func (h *Host) shardNext(ctx context.Context, shardID string) (*shardActor, error) {
	return asShard(h.useNext(ctx, shardID))
}

func asShard(l *live, err error) (*shardActor, error) {
	if err != nil {
		return nil, err
	}
	if l.shard == nil {
		return nil, errNoShard
	}
	return l.shard, nil
}

// errNoShard is what users of shards are told of an actor of another kind.
var errNoShard = &kverr.Error{Kind: kverr.NotFound, Op: "reach the shard", Message: "there is no such shard"}

// Do hands commands to a shard, in order, activating it first if need be. Each is released exactly once, possibly before Do
// returns.
func (h *Host) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	if h.cfg.Events.Followed != nil {
		for _, c := range cmds {
			if c.Follow != nil {
				c.Follow.Take(shardID, c.Op.String(), h.cfg.Actor.Clock.Now(), h.cfg.Events.Followed)
			}
		}
	}
	a, err := h.shard(ctx, shardID)
	var tracked *shardActor
	for range tries {
		if err != nil {
			releaseAll(cmds, asKind(err))
			return
		}
		if a != tracked { // once for each epoch: a command settles what it names once
			cmds, tracked = a.values.Track(cmds), a
		}
		if a.Do(cmds...) == nil {
			return
		}
		a, err = h.shardNext(ctx, shardID)
	}
	releaseAll(cmds, errUnsteady)
}

func releaseAll(cmds []*shard.Command, err *kverr.Error) {
	for _, c := range cmds {
		c.Release(err)
	}
}

// View returns the shard's last durable state for linearizable reads: everything that was acknowledged before the call is in it.
func (h *Host) View(ctx context.Context, shardID string) (shard.View, error) {
	a, err := h.shard(ctx, shardID)
	for range tries {
		if err != nil {
			return shard.View{}, asKind(err)
		}
		s, derr := a.Durable(ctx)
		if derr == nil {
			return a.viewOf(s), nil
		}
		if !errors.Is(derr, host.ErrOver) {
			return shard.View{}, asKind(derr)
		}
		a, err = h.shardNext(ctx, shardID)
	}
	return shard.View{}, errUnsteady
}

// Epoch is the counter of the epoch in which a shard is served here; 0 while it is not. Leased tells that reads need not ask the engine.
func (h *Host) Epoch(shardID string) (epoch uint64, leased bool) {
	s, ok := h.slots.Load(shardID)
	if !ok {
		return 0, false
	}
	l := s.(*slot).live.Load()
	if l == nil || l.shard == nil || l.Err() != nil {
		return 0, false
	}
	return l.epoch, l.shard.Leased()
}

// Read answers queries of a shard, all from its last durable state: everything that was acknowledged before the call is in it. Each
// is answered before Read returns.
func (h *Host) Read(ctx context.Context, shardID string, queries ...*shard.Query) {
	if h.cfg.Events.Followed != nil {
		for _, q := range queries {
			if q.Follow != nil {
				q.Follow.Take(shardID, q.Op.String(), h.cfg.Actor.Clock.Now(), h.cfg.Events.Followed)
			}
		}
	}
	v, err := h.View(ctx, shardID)
	for _, q := range queries {
		if err == nil {
			v.Answer(q)
		}
		q.Release(err)
	}
}

// PutValues stores values apart from keys; see values.Store.Put.
func (h *Host) PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error) {
	a, err := h.shard(ctx, shardID)
	if err != nil {
		return nil, asKind(err)
	}
	refs, err := a.values.Put(ctx, values...)
	if err != nil {
		return nil, asKind(err)
	}
	h.checkValues(shardID, a)
	return refs, nil
}

// WriteValue stores one value of exactly size bytes from a stream; see values.Store.WriteStream.
func (h *Host) WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error) {
	a, err := h.shard(ctx, shardID)
	if err != nil {
		return shard.Ref{}, asKind(err)
	}
	ref, err := a.values.WriteStream(ctx, size, r)
	if err != nil {
		return shard.Ref{}, asKind(err)
	}
	h.checkValues(shardID, a)
	return ref, nil
}

// checkValues asks for a checkpoint when many values were written since the last.
func (h *Host) checkValues(shardID string, a *shardActor) {
	if a.values.Written() >= h.cfg.CheckpointValueBytes {
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
	if l := s.(*slot).live.Load(); l != nil && l.shard != nil {
		for i := range refs {
			if refs[i].Object.Epoch == l.shard.epoch {
				l.shard.values.Drop(refs[i])
			}
		}
	}
}

// ReadValue fills p from offset off of a value; see values.Store.Read for its errors.
func (h *Host) ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error {
	a, err := h.shard(ctx, shardID)
	if err != nil {
		return asKind(err)
	}
	if err := a.values.Read(ctx, ref, off, p); err != nil {
		return asKind(err)
	}
	return nil
}

// sweep removes what earlier epochs left behind, in the background.
func (h *Host) sweep(s *slot, l *live) {
	v := shard.NewView(l.Latest().Tree)
	h.background.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.BackgroundTimeout)
		defer cancel()
		stats, err := l.shard.values.Sweep(ctx, v)
		switch {
		case err != nil:
			h.tellFailed(s, l, "sweep", err)
		case h.cfg.Events.Swept != nil:
			h.cfg.Events.Swept(s.id, stats)
		}
	})
}
