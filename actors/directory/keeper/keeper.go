// Package keeper runs the directory: it makes the directory's machine known to a runtime as an actor like any shard, hands out
// catalogs, and does on shards what changes leave to do there (chores), again after a crash, until they are done.
//
// It decides nothing about keyspaces and namespaces, which the machine does, and knows of shards only what Shards can do. Where the
// actor is active, and when, the runtime decides; chores are done by whichever host owns it.
//
//	k, err := keeper.Open(ctx, store, host, host, keeper.Config{}) // host is a *memhost.Host
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
	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// ShardID is the id of the directory's actor, and of its log. No shard of a keyspace has it, because those end in '-' and a number.
const ShardID = "directory"

// Default numbers of shards of a keyspace that asks for none (DESIGN D1).
const (
	DefaultShards        = 4  // in one process
	DefaultShardsCluster = 64 // over many
)

// Shards is what chores need of shards, wherever they are active; *memhost.Host has it for one process.
type Shards interface {
	// Create makes a shard; wal.ErrExists when it is there.
	Create(ctx context.Context, shardID string, meta []byte) error
	// Remove removes a shard and all that it holds, and ends whoever owns it. An absent one is a success.
	Remove(ctx context.Context, shardID string) error
	// Do hands commands to a shard; each is released once.
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)
}

// Commander hands commands to shards, wherever they are active: the data plane's client.
type Commander interface {
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)
}

// Through returns Shards over many hosts: they are created and removed by this host, in the store that all share, and commanded
// through c.
func Through(here Shards, c Commander) Shards { return through{here, c} }

type through struct {
	Shards
	commander Commander
}

func (t through) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	t.commander.Do(ctx, shardID, cmds...)
}

// Host is the runtime that the directory is active in; *memhost.Host is one.
type Host interface {
	// Register makes the directory's kind of actor known, before anybody uses it.
	Register(id string, open host.Opener) error
	// Use returns the actor, activating it here if need be and if it is this host's to activate; otherwise the error is of kind
	// kverr.Moved. Next is Use after an actor took nothing, for it may be going to sleep.
	Use(ctx context.Context, id string) (host.Resident, error)
	Next(ctx context.Context, id string) (host.Resident, error)
	// AcceptLoss lets the actor be opened although the store has lost records of it that this host has seen, and returns the last of
	// them. An actor that the store does not know any more is made anew.
	AcceptLoss(ctx context.Context, id string) (wal.Mark, error)
}

// Config tunes a Keeper. The zero value of each field takes its default.
type Config struct {
	// DefaultShards is how many shards a keyspace gets that asks for 0, the first one too. Default 4; DefaultShardsCluster is for
	// clusters.
	DefaultShards int
	// ChorePause is how long chores rest after one failed. Default 1 s.
	ChorePause time.Duration
	// StepTimeout bounds one step of a chore, on one shard. Default 1 minute.
	StepTimeout time.Duration
	// Failed is told of background work that failed and is tried again; may be nil.
	Failed func(what string, err error)
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.DefaultShards == 0 {
		c.DefaultShards = DefaultShards
	}
	if c.ChorePause == 0 {
		c.ChorePause = time.Second
	}
	if c.StepTimeout == 0 {
		c.StepTimeout = time.Minute
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.DefaultShards < 1 || c.DefaultShards > ring.MaxShards {
		faults = append(faults, fmt.Errorf("DefaultShards is %d: 1 to %d", c.DefaultShards, ring.MaxShards))
	}
	if c.ChorePause < 0 {
		faults = append(faults, fmt.Errorf("ChorePause is %v: not negative", c.ChorePause))
	}
	if c.StepTimeout < 0 {
		faults = append(faults, fmt.Errorf("StepTimeout is %v: not negative", c.StepTimeout))
	}
	return errors.Join(faults...)
}

// Keeper is the directory as one host sees it. It is safe for any number of goroutines. It needs no closing: the actor ends with its
// host.
type Keeper struct {
	cfg    Config
	host   Host
	shards Shards
	seen   atomic.Uint64         // highest revision of the catalog that this process owned
	owner  atomic.Pointer[owner] // the last one here; nil when there is none

	mu      sync.Mutex
	changed chan struct{} // closed at the next change; guarded by mu
}

// New makes the directory known to a host. It opens nothing.
func New(h Host, shards Shards, cfg Config) (*Keeper, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	k := &Keeper{cfg: cfg, host: h, shards: shards, changed: make(chan struct{})}
	if err := h.Register(ShardID, k.open); err != nil {
		return nil, err
	}
	return k, nil
}

// Make makes the directory of a store that has none: nothing but its manifest. Its first owner fills in default/default.
func Make(ctx context.Context, store *wal.Store) error {
	if err := store.Create(ctx, ShardID, nil); err != nil && !errors.Is(err, wal.ErrExists) {
		return err
	}
	return nil
}

// Open is New and Begin.
func Open(ctx context.Context, store *wal.Store, h Host, shards Shards, cfg Config) (*Keeper, error) {
	k, err := New(h, shards, cfg)
	if err != nil {
		return nil, err
	}
	return k, k.Begin(ctx, store)
}

// Begin is for one process: it makes the directory of a new store, opens it, and waits until the default keyspace can be used, if
// there is one.
func (k *Keeper) Begin(ctx context.Context, store *wal.Store) error {
	if err := Make(ctx, store); err != nil {
		return err
	}
	return k.awaitReady(ctx, directory.DefaultName)
}

func bootstrap(shards int) *directory.Command {
	return &directory.Command{Op: directory.OpBootstrap, Keyspace: directory.KeyspaceSpec{UID: NewUID(), Shards: shards}}
}

// NewUID draws the uid of a keyspace that is to be made.
func NewUID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (k *Keeper) tellChanged() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.changed)
	k.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of the directory, or of its owner. Take it before State, Revision or
// Catalog to miss nothing.
func (k *Keeper) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// tries is how often a call uses the directory anew when its ownership ends meanwhile.
const tries = 3

// use returns the owner. Again: after one that took nothing.
func (k *Keeper) use(ctx context.Context, again bool) (*owner, error) {
	if o := k.owner.Load(); o != nil && !again && o.Err() == nil {
		if !o.asked.Load() {
			o.asked.Store(true)
		}
		return o, nil // as every request asks for the directory, past the runtime
	}
	var r host.Resident
	var err error
	if again {
		r, err = k.host.Next(ctx, ShardID)
	} else {
		r, err = k.host.Use(ctx, ShardID)
	}
	if err != nil {
		return nil, err
	}
	return r.(*owner), nil // nothing else is registered under that id
}

var errUnsteady = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the directory", Message: "the directory changes hands too fast", RetryAfterMS: 100}

// proven returns the owner and its last durable state, for a linearizable read.
func (k *Keeper) proven(ctx context.Context) (*owner, *host.State, error) {
	return k.read(ctx, (*owner).Durable)
}

// read returns the owner and its state as one of its methods tells it.
func (k *Keeper) read(ctx context.Context, state func(*owner, context.Context) (*host.State, error)) (*owner, *host.State, error) {
	for try := range tries {
		o, err := k.use(ctx, try > 0)
		if err != nil {
			return nil, nil, asKind(err)
		}
		s, err := state(o, ctx)
		if err == nil && s.Revision == 0 { // nobody sees a directory without default/default that nobody removed
			if err = o.do(ctx, bootstrap(k.cfg.DefaultShards)); err == nil {
				s, err = state(o, ctx)
			}
		}
		if err == nil {
			return o, s, nil
		}
		if !errors.Is(err, host.ErrOver) {
			return nil, nil, asKind(err)
		}
	}
	return nil, nil, errUnsteady
}

// State is the directory as it is: everything acknowledged before it was asked for is in it.
type State struct {
	Tree     *btree.Tree // not to be written to
	Revision uint64      // see directory.Revision
	Epoch    uint64      // of the owner
}

// State returns the directory as it is.
func (k *Keeper) State(ctx context.Context) (State, error) {
	o, s, err := k.proven(ctx)
	if err != nil {
		return State{}, err
	}
	return State{Tree: s.Tree, Revision: o.revision(s), Epoch: o.Log().Epoch().Counter}, nil
}

// Revision is that of the last durable state: everything that this process has acknowledged before the call is in it; of what another did that took
// the directory over it may be behind by host.Config.Patience. It costs next to nothing, and does not wait for an engine that is slow.
func (k *Keeper) Revision(ctx context.Context) (uint64, error) {
	o, s, err := k.read(ctx, (*owner).Recent)
	if err != nil {
		return 0, err
	}
	return o.revision(s), nil
}

// Catalog returns the directory as it is: everything acknowledged before the call is in it. It is made once for each change.
func (k *Keeper) Catalog(ctx context.Context) (*directory.Catalog, error) {
	o, s, err := k.proven(ctx)
	if err != nil {
		return nil, err
	}
	return o.catalogOf(s)
}

// do runs one command and waits for its outcome.
func (k *Keeper) do(ctx context.Context, c *directory.Command) error {
	for try := range tries {
		o, err := k.use(ctx, try > 0)
		if err != nil {
			return asKind(err)
		}
		if err := o.do(ctx, c); !errors.Is(err, host.ErrOver) {
			return asKind(err)
		}
	}
	return errUnsteady
}

func (k *Keeper) tellFailed(what string, err error) {
	if k.cfg.Failed != nil {
		k.cfg.Failed(what, err)
	}
}

// asKind makes a *kverr.Error of what is none yet; nil for nil.
func asKind(err error) error {
	var e *kverr.Error
	switch {
	case err == nil:
		return nil
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
