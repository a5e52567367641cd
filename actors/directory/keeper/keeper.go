// Package keeper runs the directory: it keeps the directory's machine on its log, hands out catalogs, and does on shards what
// changes leave to do there (chores), again after a crash, until they are done.
//
// It decides nothing about keyspaces and namespaces, which the machine does, and knows of shards only what Shards can do.
//
//	k, err := keeper.Open(ctx, store, host, keeper.Config{})
//	catalog, err := k.Catalog(ctx)
//	ns, ok := catalog.Namespace("default", "default")
package keeper

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/actors/directory"
	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// ShardID is the name of the directory's own log. No shard of a keyspace has it, because those end in '-' and a number.
const ShardID = "directory"

// Shards is what a keeper needs of the shards; *memhost.Host has it.
type Shards interface {
	// Create makes a shard; wal.ErrExists when it is there.
	Create(ctx context.Context, shardID string, meta []byte) error
	// Remove removes a shard and all that it holds. An absent one is a success.
	Remove(ctx context.Context, shardID string) error
	// Do hands commands to a shard; each is released once.
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)
}

// Config tunes a Keeper. The zero value of each field takes its default.
type Config struct {
	// Actor bounds the directory's actor; its Clock is the keeper's. A checkpoint is due after 1 MiB or 1,000 records.
	Actor host.Config
	// Address is what the manifest names this process by.
	Address string
	// DefaultShards is how many shards a keyspace gets that asks for 0. Default 4.
	DefaultShards int
	// ChorePause is how long chores rest after one failed. Default 1 s.
	ChorePause time.Duration
	// Failed is told of background work that failed and is tried again; may be nil.
	Failed func(what string, err error)
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Actor.CheckpointBytes == 0 {
		c.Actor.CheckpointBytes = 1 << 20
	}
	if c.Actor.CheckpointRecords == 0 {
		c.Actor.CheckpointRecords = 1000
	}
	c.Actor.EnsureDefaults()
	if c.DefaultShards == 0 {
		c.DefaultShards = 4
	}
	if c.ChorePause == 0 {
		c.ChorePause = time.Second
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	faults := []error{c.Actor.Validate()}
	if c.DefaultShards < 1 || c.DefaultShards > 1024 {
		faults = append(faults, fmt.Errorf("DefaultShards is %d: 1 to 1,024", c.DefaultShards))
	}
	if c.ChorePause < 0 {
		faults = append(faults, fmt.Errorf("ChorePause is %v: not negative", c.ChorePause))
	}
	return errors.Join(faults...)
}

// Keeper runs the directory. It is safe for any number of goroutines.
type Keeper struct {
	cfg    Config
	store  *wal.Store
	shards Shards
	ctx    context.Context // of background work; ends with Close
	cancel context.CancelFunc

	actor   atomic.Pointer[host.Actor[*directory.Command]]
	opening chan struct{} // a token: whoever holds it may replace actor
	catalog atomic.Pointer[directory.Catalog]
	visible atomic.Pointer[visible]
	reading sync.Mutex // held while a catalog is made, so that one does it for all

	checkpointDue chan struct{} // one token
	background    sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed at the next change; guarded by mu
	closed  bool          // guarded by mu
}

// Open opens the directory of a store, making it with default/default when the store is new, and waits until the
// default keyspace can be used, if there is one.
func Open(ctx context.Context, store *wal.Store, shards Shards, cfg Config) (*Keeper, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := store.Create(ctx, ShardID, nil); err != nil && !errors.Is(err, wal.ErrExists) {
		return nil, err
	}
	k := &Keeper{
		cfg: cfg, store: store, shards: shards, opening: make(chan struct{}, 1), checkpointDue: make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	err := k.start(ctx)
	if err != nil {
		_ = k.Close(ctx)
		return nil, err
	}
	return k, nil
}

func (k *Keeper) start(ctx context.Context) error {
	if _, err := k.use(ctx); err != nil {
		return err
	}
	k.background.Go(k.checkpoints)
	k.background.Go(k.chores)
	bootstrap := &directory.Command{Op: directory.OpBootstrap, Keyspace: directory.KeyspaceSpec{UID: newUID(), Shards: k.cfg.DefaultShards}}
	if err := k.do(ctx, bootstrap); err != nil {
		return err
	}
	return k.awaitReady(ctx, directory.DefaultName)
}

func newUID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// use returns the live actor, opening the directory again when its ownership ended.
func (k *Keeper) use(ctx context.Context) (*host.Actor[*directory.Command], error) {
	if a := k.actor.Load(); a != nil && a.Err() == nil {
		return a, nil
	}
	select {
	case k.opening <- struct{}{}:
		defer func() { <-k.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	old := k.actor.Load()
	if old != nil && old.Err() == nil {
		return old, nil
	}
	k.mu.Lock()
	closed := k.closed
	k.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if old != nil {
		_ = old.End(ctx, false)
	}
	hooks := host.Hooks{
		Published: k.published,
		CheckpointDue: func() {
			select {
			case k.checkpointDue <- struct{}{}:
			default:
			}
		},
	}
	a, err := host.Open(ctx, k.store, ShardID, directory.New(), k.cfg.Actor, hooks, host.OpenOptions{Log: wal.OpenOptions{Address: k.cfg.Address}})
	if err != nil {
		return nil, err
	}
	k.actor.Store(a)
	k.tellChanged()
	return a, nil
}

// published tells of a new durable state, unless marks alone are new in it.
func (k *Keeper) published(s *host.State) {
	v := &visible{state: s, revision: directory.Revision(s.Tree)}
	if before := k.visible.Swap(v); before == nil || before.revision != v.revision {
		k.tellChanged()
	}
}

var errClosed = &kverr.Error{Kind: kverr.Unavailable, Op: "read the directory", Message: "it is closed"}

func (k *Keeper) tellChanged() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.changed)
	k.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of the directory. Take it before Catalog to miss nothing.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// tries is how often a call opens the directory anew when its ownership ends meanwhile.
const tries = 3

// state returns the last durable state, for a linearizable read.
func (k *Keeper) state(ctx context.Context) (*host.State, error) {
	for range tries {
		a, err := k.use(ctx)
		if err != nil {
			return nil, asKind(err)
		}
		s, err := a.Durable(ctx)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, host.ErrOver) {
			return nil, asKind(err)
		}
	}
	return nil, asKind(host.ErrOver)
}

// Revision is that of the last durable state: everything acknowledged before the call is in it. It costs next to nothing.
func (k *Keeper) Revision(ctx context.Context) (uint64, error) {
	s, err := k.state(ctx)
	if err != nil {
		return 0, err
	}
	if v := k.visible.Load(); v != nil && v.state == s {
		return v.revision, nil
	}
	v := &visible{state: s, revision: directory.Revision(s.Tree)}
	k.visible.Store(v)
	return v.revision, nil
}

// visible keeps what Revision read from a state, since it is asked for every request.
type visible struct {
	state    *host.State
	revision uint64
}

// Catalog returns the directory as it is: everything acknowledged before the call is in it. It is made once for each change.
func (k *Keeper) Catalog(ctx context.Context) (*directory.Catalog, error) {
	s, err := k.state(ctx)
	if err != nil {
		return nil, err
	}
	revision := directory.Revision(s.Tree)
	if c := k.catalog.Load(); c != nil && c.Revision == revision {
		return c, nil
	}
	k.reading.Lock()
	defer k.reading.Unlock()
	if c := k.catalog.Load(); c != nil && c.Revision >= revision {
		return c, nil
	}
	c, err := directory.NewCatalog(s.Tree)
	if err != nil {
		return nil, kverr.Wrap(kverr.DataLoss, "read the directory", err)
	}
	k.catalog.Store(c)
	return c, nil
}

// do runs one command and waits for its outcome.
func (k *Keeper) do(ctx context.Context, c *directory.Command) error {
	released := make(chan error, 1)
	c.Done = func(_ *directory.Command, err error) { released <- err }
	for range tries {
		a, err := k.use(ctx)
		if err != nil {
			return asKind(err)
		}
		if a.Do(c) != nil {
			continue
		}
		select {
		case err := <-released:
			if err == nil && c.Err != nil {
				return c.Err
			}
			return err
		case <-ctx.Done():
			return asKind(context.Cause(ctx))
		}
	}
	return asKind(host.ErrOver)
}

// checkpoints runs checkpoints that are due.
func (k *Keeper) checkpoints() {
	for {
		select {
		case <-k.checkpointDue:
		case <-k.ctx.Done():
			return
		}
		a := k.actor.Load()
		if a == nil || a.Err() != nil {
			continue
		}
		if _, err := a.Checkpoint(k.ctx); err != nil && k.ctx.Err() == nil {
			k.tellFailed("checkpoint", err)
			k.pause()
		}
	}
}

func (k *Keeper) tellFailed(what string, err error) {
	if k.cfg.Failed != nil {
		k.cfg.Failed(what, err)
	}
}

// pause rests after a failure.
func (k *Keeper) pause() {
	done := make(chan struct{})
	stop := k.cfg.Actor.Clock.AfterFunc(k.cfg.ChorePause, func() { close(done) })
	select {
	case <-done:
	case <-k.ctx.Done():
		stop()
	}
}

// Close finishes what was begun and gives the directory up. A chore under way is cut off and goes on at the next Open.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.background.Wait()
	a := k.actor.Load()
	if a == nil {
		return nil
	}
	drained := a.Drain(ctx)
	return errors.Join(drained, a.End(ctx, true))
}

// asKind makes a *kverr.Error of what is none yet.
func asKind(err error) error {
	var e *kverr.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return kverr.Wrap(kverr.DeadlineExceeded, "reach the directory", err)
	case errors.Is(err, context.Canceled):
		return kverr.Wrap(kverr.Canceled, "reach the directory", err)
	case errors.Is(err, driver.ErrNoSpace):
		return kverr.Wrap(kverr.NoSpace, "open the directory", err)
	}
	return kverr.Wrap(kverr.Unavailable, "reach the directory", err)
}
