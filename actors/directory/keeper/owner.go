package keeper

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/actors/directory"
	"kvstore/actors/host"
	"kvstore/components/kverr"
)

var _ host.Resident = (*owner)(nil)

// A checkpoint of the directory is due after so much log: it is small, and changes seldom.
const (
	checkpointBytes   = 1 << 20
	checkpointRecords = 1_000
)

// owner is the directory active on this host, in one epoch, with the goroutine that does its chores.
type owner struct {
	*host.Actor[*directory.Command]
	keeper *Keeper
	clock  host.Clock
	ctx    context.Context // of the chores; ends with End
	cancel context.CancelFunc
	chores sync.WaitGroup // the goroutine that does them

	asked   atomic.Bool // since Busy was asked last
	visible atomic.Pointer[visible]
	told    uint64 // revision of the state that published told of last, plus one; 0 = none
	catalog atomic.Pointer[directory.Catalog]
	reading sync.Mutex // held while a catalog is made, so that one does it for all
}

// visible keeps what revision read from a state, since it is asked for every request.
type visible struct {
	state    *host.State
	revision uint64
}

// open is the host.Opener of the directory.
func (k *Keeper) open(ctx context.Context, opening host.Opening) (host.Resident, error) {
	opening.Config.CheckpointBytes, opening.Config.CheckpointRecords = checkpointBytes, checkpointRecords
	o := &owner{keeper: k, clock: opening.Config.Clock}
	o.clock.EnsureDefaults()
	hooks := opening.Hooks
	hooks.Published = o.published
	hooks.Over = func(why *kverr.Error) {
		k.tellChanged() // whoever waits for a change learns that there is none to be had here
		if opening.Hooks.Over != nil {
			opening.Hooks.Over(why)
		}
	}
	a, err := host.Open(ctx, opening.Store, opening.ID, directory.New(), opening.Config, hooks, opening.Options)
	if err != nil {
		return nil, err
	}
	o.Actor = a
	k.note(directory.Revision(a.Latest().Tree))
	o.ctx, o.cancel = context.WithCancel(context.Background())
	k.owner.Store(o)
	o.chores.Go(o.run)
	k.tellChanged()
	return o, nil
}

// Busy tells that there are chores, or that it was asked since Busy was asked before: the runtime does not know of all uses.
func (o *owner) Busy() bool {
	return o.asked.Swap(false) || len(directory.Chores(o.Latest().Tree)) > 0
}

// End cuts a chore that is under way off, which the next owner does again, and ends the ownership.
func (o *owner) End(ctx context.Context, yield bool) error {
	o.cancel()
	o.chores.Wait()
	o.keeper.owner.CompareAndSwap(o, nil)
	err := o.Actor.End(ctx, yield)
	o.keeper.tellChanged()
	return err
}

// published tells of a new durable state, unless marks alone are new in it. The actor calls it for one state after the other, when they can be
// read already: that revision has seen one says nothing of who was told.
func (o *owner) published(s *host.State) {
	v := &visible{state: s, revision: directory.Revision(s.Tree)}
	o.keeper.note(v.revision)
	o.visible.Store(v)
	if o.told != v.revision+1 {
		o.told = v.revision + 1
		o.keeper.tellChanged()
	}
}

// revision is the revision of a durable state's catalog.
func (o *owner) revision(s *host.State) uint64 {
	if v := o.visible.Load(); v != nil && v.state == s {
		return v.revision
	}
	v := &visible{state: s, revision: directory.Revision(s.Tree)}
	if o.Latest() == s {
		o.visible.Store(v)
	}
	return v.revision
}

// catalogOf returns the catalog of a durable state, or a newer one.
func (o *owner) catalogOf(s *host.State) (*directory.Catalog, error) {
	revision := o.revision(s)
	if c := o.catalog.Load(); c != nil && c.Revision >= revision {
		return c, nil
	}
	o.reading.Lock()
	defer o.reading.Unlock()
	if c := o.catalog.Load(); c != nil && c.Revision >= revision {
		return c, nil
	}
	c, err := directory.NewCatalog(s.Tree)
	if err != nil {
		return nil, kverr.Wrap(kverr.DataLoss, "read the directory", err)
	}
	o.catalog.Store(c)
	return c, nil
}

// do runs one command and waits for its outcome; host.ErrOver when it was not taken.
func (o *owner) do(ctx context.Context, c *directory.Command) error {
	released := make(chan error, 1)
	c.Done = func(_ *directory.Command, err error) { released <- err }
	cmds := []*directory.Command{c}
	if c.Op != directory.OpBootstrap && o.Latest().Revision == 0 {
		first := bootstrap(o.keeper.cfg.DefaultShards) // whatever becomes of it, c is told of the same
		first.Done = func(*directory.Command, error) {}
		cmds = []*directory.Command{first, c}
	}
	if err := o.Do(cmds...); err != nil {
		return err
	}
	select {
	case err := <-released:
		if err == nil && c.Err != nil {
			return c.Err
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run does what there is to do, then waits for a change, until the ownership ends.
func (o *owner) run() {
	for o.ctx.Err() == nil && o.Err() == nil {
		changed := o.keeper.Changed()
		done, err := o.choresOnce()
		switch {
		case err != nil:
			o.wait(nil, o.keeper.cfg.ChorePause)
		case done > 0:
			// Look again at once: finishing them was a change.
		default:
			var rest time.Duration // none
			if due := directory.NextDueMS(o.Latest().Tree); due > 0 {
				rest = max(time.UnixMilli(due).Sub(o.clock.Now()), time.Millisecond)
			}
			o.wait(changed, rest)
		}
	}
}

// wait waits for a change, which may be nil for none, for a time, which may be 0 for as long as it takes, or for the end.
func (o *owner) wait(changed <-chan struct{}, d time.Duration) {
	var passed chan struct{}
	if d > 0 {
		passed = make(chan struct{})
		stop := o.clock.AfterFunc(d, func() { close(passed) })
		defer stop()
	}
	select {
	case <-changed:
	case <-passed:
	case <-o.ctx.Done():
	}
}
