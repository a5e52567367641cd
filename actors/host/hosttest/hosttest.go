// Package hosttest is the conformance suite of actor runtimes (DESIGN D5): what a host of shards must do whatever it is built on. It
// runs over the memory engine with faults, in a synctest bubble, so that time is as fast as the test.
//
//	func TestConformance(t *testing.T) {
//		hosttest.Run(t, func(t testing.TB, o hosttest.Options) hosttest.Host { ... })
//	}
//
// It does not test engines (waltest), the machine of shards, or how hosts are found.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/fanout"
	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// Host is a runtime under test.
type Host interface {
	Do(ctx context.Context, shardID string, cmds ...*shard.Command)
	View(ctx context.Context, shardID string) (shard.View, error)
	PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error)
	WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error)
	DropValues(shardID string, refs ...shard.Ref)
	ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error
	Follow(ctx context.Context, w *fanout.Watch, starts <-chan []fanout.Start, send func(*fanout.Told) error) error
	Register(id string, open host.Opener) error
	Use(ctx context.Context, id string) (host.Resident, error)
	Next(ctx context.Context, id string) (host.Resident, error)
	AcceptLoss(ctx context.Context, id string) (wal.Mark, error)
	Close(ctx context.Context, checkpoint bool) error
}

// Options are what a test asks of a host.
type Options struct {
	Store *wal.Store
	// Address is the host's name; hosts of one Store that are Reachable find each other by it.
	Address   string
	Reachable bool
	// IdleAfter, MemoryBudget, Actor, Shard and Values are as in the host's configuration.
	IdleAfter    time.Duration
	MemoryBudget int64
	Actor        host.Config
	Shard        shard.Config
	Values       values.Config
	// CheckpointValueBytes is how many bytes of values make a checkpoint due; 0 = the default.
	CheckpointValueBytes int64
}

// Maker makes a host.
type Maker func(t testing.TB, o Options) Host

// Run runs the suite.
func Run(t *testing.T, mk Maker) {
	for _, test := range []struct {
		name string
		term time.Duration
		run  func(c *cluster)
	}{
		{"Durable", 0, testDurable},
		{"GroupCommit", 0, testGroupCommit},
		{"Close", 0, testClose},
		{"Unknown", 0, testUnknown},
		{"NoSpace", 0, testNoSpace},
		{"Memory", 0, testMemory},
		{"Checkpoint", 0, testCheckpoint},
		{"Sleep", 0, testSleep},
		{"Expiry", 0, testExpiry},
		{"NoShard", 0, testNoShard},
		{"Yield", term, testYield},
		{"Unreachable", term, testUnreachable},
		{"TwoOwners", term, testTwoOwners},
		{"Lease", term, testLease},
		{"Kinds", 0, testKinds},
		{"Kinds/Move", term, testKindsMove},
		{"Kinds/Fenced", term, testKindsFenced},
		{"Values/Pack", 0, testPack},
		{"Values/Stream", 0, testStream},
		{"Values/Orphans", 0, testOrphans},
		{"Values/Dead", 0, testDead},
		{"Values/OnTheirWay", 0, testOnTheirWay},
		{"Values/Reuse", 0, testReuse},
		{"Values/OtherEpoch", 0, testOtherEpoch},
		{"Values/Sweep", 0, testSweep},
		{"Values/Compact", 0, testCompact},
		{"Watch", 0, testWatch},
		{"Watch/Move", term, testWatchMove},
		{"Watch/Fenced", term, testWatchFenced},
		{"Watch/Place", 0, testWatchPlace},
		{"Faults", 0, testFaults},
		{"FaultsOfTwo", term, testFaultsOfTwo},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, mk, test.term)
				defer c.close()
				test.run(c)
			})
		})
	}
}

const (
	term = 10 * time.Second
	one  = "k-0" // the shard that tests use
	ns   = shard.NamespaceID(1)

	valuePrefix = "v/" // of the names of value objects (package wal)
)

// cluster is an engine with hosts on it.
type cluster struct {
	t     *testing.T
	mk    Maker
	fault *fault.Engine
	store *wal.Store
	hosts []Host
}

func newCluster(t *testing.T, mk Maker, term time.Duration) *cluster {
	engine, err := memlog.New(memlog.Config{Term: term})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, mk: mk, fault: fault.Wrap(engine)}
	if c.store, err = wal.NewStore(c.fault, wal.Config{}); err != nil {
		t.Fatal(err)
	}
	if err := c.store.Create(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) close() {
	c.fault.Clear()
	for _, h := range c.hosts {
		_ = h.Close(context.Background(), false)
	}
	if err := c.fault.Close(); err != nil {
		c.t.Error(err)
	}
}

// host makes a host.
func (c *cluster) host(o Options) Host {
	o.Store = c.store
	h := c.mk(c.t, o)
	c.hosts = append(c.hosts, h)
	return h
}

// pending is a command on its way.
type pending struct {
	*shard.Command
	done     chan struct{}
	err      error // why it was not applied, or not known to be; the outcome's error when it was released without one
	released int
}

// start hands commands to a host, without waiting.
func (c *cluster) start(h Host, cmds ...*shard.Command) []*pending { return c.startAt(h, one, cmds...) }

func (c *cluster) startAt(h Host, id string, cmds ...*shard.Command) []*pending {
	all := make([]*pending, len(cmds))
	for i, cmd := range cmds {
		p := &pending{Command: cmd, done: make(chan struct{})}
		cmd.Done = func(cmd *shard.Command, err error) {
			if p.released++; p.released > 1 {
				panic("a command was released twice")
			}
			if p.err = err; err == nil && cmd.Result.Err != nil {
				p.err = cmd.Result.Err
			}
			close(p.done)
		}
		all[i] = p
	}
	h.Do(c.t.Context(), id, cmds...)
	return all
}

// wait waits for a command.
func (p *pending) wait() error {
	<-p.done
	return p.err
}

// left tells whether a command was released.
func (p *pending) left() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func put(key, value string) *shard.Command {
	return &shard.Command{Op: shard.OpPut, Namespace: ns, Put: shard.Put{Key: []byte(key), Value: shard.Value{Inline: []byte(value)}}}
}

func putRef(key string, ref shard.Ref) *shard.Command {
	return &shard.Command{Op: shard.OpPut, Namespace: ns, Put: shard.Put{Key: []byte(key), Value: shard.Value{Ref: ref}}}
}

func remove(key string) *shard.Command {
	return &shard.Command{Op: shard.OpDelete, Namespace: ns, Delete: shard.Delete{Key: []byte(key)}}
}

// doAt runs one command on an actor and waits.
func (c *cluster) doAt(h Host, id string, cmd *shard.Command) error {
	return c.startAt(h, id, cmd)[0].wait()
}

// do runs one command and waits.
func (c *cluster) do(h Host, cmd *shard.Command) error { return c.start(h, cmd)[0].wait() }

// must runs one command that must succeed.
func (c *cluster) must(h Host, cmd *shard.Command) {
	c.t.Helper()
	if err := c.do(h, cmd); err != nil {
		c.t.Fatal(err)
	}
}

// get reads a key's inline value; "" when it is not there.
func (c *cluster) get(h Host, key string) (string, error) {
	v, err := h.View(c.t.Context(), one)
	if err != nil {
		return "", err
	}
	e, _, _ := v.Get(ns, []byte(key))
	return string(e.Value.Inline), nil
}

// is fails unless a key has a value.
func (c *cluster) is(h Host, key, want string) {
	c.t.Helper()
	if got, err := c.get(h, key); err != nil || got != want {
		c.t.Fatalf("%s is %q, %v; want %q", key, got, err, want)
	}
}

// kind fails unless an error is of a kind.
func (c *cluster) kind(err error, want kverr.Kind) {
	c.t.Helper()
	if err == nil || kverr.KindOf(err) != want {
		c.t.Fatalf("%v, want kind %v", err, want)
	}
	var e *kverr.Error
	if !errors.As(err, &e) {
		c.t.Fatalf("%v is a %T, must be a *kverr.Error", err, err)
	}
}

// objects counts the value objects in the store.
func (c *cluster) objects() int {
	c.t.Helper()
	n := 0
	err := c.fault.ListObjects(c.t.Context(), one, valuePrefix, func(string, int64) error {
		n++
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// restart closes a host and makes another.
func (c *cluster) restart(h Host, o Options, checkpoint bool) Host {
	c.t.Helper()
	if err := h.Close(c.t.Context(), checkpoint); err != nil {
		c.t.Fatal(err)
	}
	return c.host(o)
}

func key(i int) string { return fmt.Sprintf("key%05d", i) }
