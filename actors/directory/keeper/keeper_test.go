package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// world is a store with a host and a keeper, to be ended and begun again.
type world struct {
	t      *testing.T
	engine *fault.Engine
	store  *wal.Store
	host   *memhost.Host
	keeper *keeper.Keeper

	mu     sync.Mutex
	failed []string // guarded by mu
}

func newWorld(t *testing.T) *world {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, engine: fault.Wrap(engine)}
	if w.store, err = wal.NewStore(w.engine, wal.Config{}); err != nil {
		t.Fatal(err)
	}
	w.begin()
	return w
}

func (w *world) begin() {
	w.t.Helper()
	var err error
	if w.host, err = memhost.New(w.store, memhost.Config{}); err != nil {
		w.t.Fatal(err)
	}
	w.keeper, err = keeper.New(w.host, w.host, keeper.Config{Failed: func(what string, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = append(w.failed, fmt.Sprint(what, ": ", err))
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.host.RememberWith(w.keeper)
	if err := w.keeper.Begin(w.t.Context(), w.store); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) end() {
	w.t.Helper()
	if err := w.host.Close(w.t.Context(), false); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.end()
	if err := w.engine.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) catalog() *directory.Catalog {
	w.t.Helper()
	c, err := w.keeper.Catalog(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// settle waits until there are no chores.
func (w *world) settle() *directory.Catalog {
	w.t.Helper()
	for {
		changed := w.keeper.Changed()
		c := w.catalog()
		if c.Chores == 0 {
			return c
		}
		<-changed
	}
}

func (w *world) put(shardID string, ns shard.NamespaceID, key string) {
	w.t.Helper()
	done := make(chan error, 1)
	c := &shard.Command{
		Op: shard.OpPut, Namespace: ns, Put: shard.Put{Key: []byte(key), Value: shard.Value{Inline: []byte("v")}},
		Done: func(_ *shard.Command, err error) { done <- err },
	}
	w.host.Do(w.t.Context(), shardID, c)
	if err := <-done; err != nil || c.Result.Err != nil {
		w.t.Fatal(err, c.Result.Err)
	}
}

func (w *world) has(shardID string, ns shard.NamespaceID, key string) bool {
	w.t.Helper()
	v, err := w.host.View(w.t.Context(), shardID)
	if err != nil {
		w.t.Fatal(err)
	}
	_, ok, _ := v.Get(ns, []byte(key))
	return ok
}

func TestBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.catalog()
		ns, ok := c.Namespace("default", "default")
		if !ok || len(c.Keyspaces) != 1 || len(c.Keyspaces[0].Namespaces) != 1 {
			t.Fatalf("there is %+v", c.Keyspaces)
		}
		if ns.Kind != kvv1.NamespaceKind_NAMESPACE_KIND_KV || ns.UID != 1 || !ns.Keyspace.Ready || len(ns.Keyspace.ShardIDs) != 4 {
			t.Fatalf("default is %+v of %+v", ns, ns.Keyspace)
		}
		for _, id := range ns.Keyspace.ShardIDs {
			w.put(id, ns.UID, "k")
		}
		uid := ns.Keyspace.UID

		// It stays removed when somebody removes it, also through a restart; it is itself after a restart otherwise.
		w.end()
		w.begin()
		if ns, ok := w.catalog().Namespace("default", "default"); !ok || ns.Keyspace.UID != uid {
			t.Fatal("default is another one after a restart")
		}
		if err := w.keeper.DeleteKeyspace(t.Context(), "default", ""); err != nil {
			t.Fatal(err)
		}
		w.settle()
		w.end()
		w.begin()
		if c := w.catalog(); len(c.Keyspaces) != 0 {
			t.Fatalf("there is %+v", c.Keyspaces[0])
		}
		w.close()
	})
}

// TestResumeCreate: a keyspace whose shards could not be created is finished by the next process, and is not ready before.
func TestResumeCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		frozen := w.engine.Add(fault.Rule{Verb: fault.Swap, Nth: 3, Times: -1, Err: driver.ErrRefused})
		ctx, cancel := context.WithCancel(t.Context())
		made := make(chan error, 1)
		go func() {
			_, err := w.keeper.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "big", Shards: 8})
			made <- err
		}()
		synctest.Wait() // the chore has failed and rests
		if ks, ok := w.catalog().Keyspace("big"); !ok || ks.Ready {
			t.Fatalf("%v, ready %v", ok, ks.Ready)
		}
		cancel()
		if err := <-made; err == nil || kverr.KindOf(err) != kverr.Canceled {
			t.Fatal(err)
		}
		frozen.Remove()
		w.end()
		w.mu.Lock()
		failures := len(w.failed)
		w.mu.Unlock()
		if failures == 0 {
			t.Fatal("nobody was told of the failure")
		}
		w.begin()
		c := w.settle()
		ks, ok := c.Keyspace("big")
		if !ok || !ks.Ready {
			t.Fatalf("%v, ready %v", ok, ks.Ready)
		}
		for _, id := range ks.ShardIDs {
			w.put(id, 1, "k")
		}
		w.close()
	})
}

// TestResumeDrop: the data of a namespace goes, even if the process ends on the way; data of others stays, and a namespace of the same
// name meets nothing of it.
func TestResumeDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, err := w.keeper.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "one"}, keeper.Request{})
		if err != nil {
			t.Fatal(err)
		}
		ks, _ := w.catalog().Keyspace("default")
		last := ks.ShardIDs[3]
		for i := range 2500 { // more than one step of the drop
			w.put(last, shard.NamespaceID(one.Uid), fmt.Sprint("k", i))
		}
		w.put(last, 1, "stays")
		broken := w.engine.Add(fault.Rule{Verb: fault.Append, Shard: last, Nth: 2, Times: -1, Err: driver.ErrRefused})
		if err := w.keeper.DeleteNamespace(t.Context(), "default", "one", keeper.Request{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c := w.catalog(); c.Chores != 1 {
			t.Fatalf("%d chores after a failure, want 1", c.Chores)
		}
		broken.Remove()
		w.end()
		w.begin()
		w.settle()
		for _, key := range []string{"k0", "k1234", "k2499"} {
			if w.has(last, shard.NamespaceID(one.Uid), key) {
				t.Fatalf("%s is still there", key)
			}
		}
		if !w.has(last, 1, "stays") {
			t.Fatal("a key of another namespace is gone")
		}
		again, err := w.keeper.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "one"}, keeper.Request{})
		if err != nil || again.Uid == one.Uid {
			t.Fatalf("made again: %+v, %v; the uid was %d", again, err, one.Uid)
		}
		w.close()
	})
}

// TestRemoveKeyspace: nothing is left in the store of a keyspace that was deleted, even if the process ends on the way.
func TestRemoveKeyspace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if _, err := w.keeper.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "k", Shards: 3}); err != nil {
			t.Fatal(err)
		}
		ks, _ := w.catalog().Keyspace("k")
		for _, id := range ks.ShardIDs {
			w.put(id, 1, "x")
		}
		broken := w.engine.Add(fault.Rule{Verb: fault.Remove, Nth: 2, Times: -1, Err: driver.ErrRefused})
		if err := w.keeper.DeleteKeyspace(t.Context(), "k", ""); err != nil {
			t.Fatal(err)
		}
		if _, ok := w.catalog().Keyspace("k"); ok {
			t.Fatal("still there")
		}
		synctest.Wait()
		broken.Remove()
		w.end()
		w.begin()
		w.settle()
		for _, id := range ks.ShardIDs {
			if _, err := w.store.Holder(t.Context(), id); !errors.Is(err, driver.ErrNotExist) {
				t.Fatalf("shard %s: %v", id, err)
			}
		}
		w.close()
	})
}

// TestChangeIsToldBesideReaders: a reader may see a new state before it is told of. A keyspace whose shards nobody was told to make is never ready.
func TestChangeIsToldBesideReaders(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var readers sync.WaitGroup
	over := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					_, _ = w.keeper.Revision(ctx)
					runtime.Gosched()
				}
			}
		})
	}
	for i := range 300 {
		if _, err := w.keeper.CreateKeyspace(ctx, &kvv1.Keyspace{Name: fmt.Sprint("k", i), Shards: 1}); err != nil {
			t.Errorf("keyspace %d: %v", i, err)
			break
		}
	}
	close(over)
	readers.Wait()
}

// TestOver: an append with an unknown outcome costs the directory its epoch, and nothing else.
func TestOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.engine.Add(fault.Rule{Verb: fault.Append, Shard: keeper.ShardID, Err: context.DeadlineExceeded, After: true})
		_, err := w.keeper.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "one"}, keeper.Request{})
		if err == nil || kverr.KindOf(err) != kverr.OutcomeUnknown {
			t.Fatal(err)
		}
		if _, ok := w.catalog().Namespace("default", "one"); !ok {
			t.Fatal("it had landed")
		}
		if _, err := w.keeper.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "two"}, keeper.Request{}); err != nil {
			t.Fatal(err)
		}
		w.close()
	})
}

// TestResources: what users see, and what they are told.
func TestResources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx := t.Context()
		ns, err := w.keeper.CreateNamespace(ctx, &kvv1.Namespace{
			Keyspace: "default", Name: "blocks", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT, CapacityBlocks: 10,
			Partition: &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: 2}},
		}, keeper.Request{})
		if err != nil || ns.Partition.GetPathElements() != 2 || ns.CapacityBlocks != 10 || ns.Version == 0 {
			t.Fatal(ns, err)
		}
		up, err := w.keeper.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "default", Name: "blocks", CapacityBlocks: 5, DefaultTtlMs: 9, Version: ns.Version}, []string{"capacity_blocks"}, keeper.Request{})
		if err != nil || up.CapacityBlocks != 5 || up.DefaultTtlMs != 0 || up.Version <= ns.Version {
			t.Fatal(up, err)
		}
		for _, test := range []struct {
			name string
			err  error
			kind kverr.Kind
		}{
			{"old version", second(w.keeper.UpdateNamespace(ctx, &kvv1.Namespace{Keyspace: "default", Name: "blocks", Version: ns.Version}, []string{"capacity_blocks"}, keeper.Request{})), kverr.VersionMismatch},
			{"mask", second(w.keeper.UpdateNamespace(ctx, ns, []string{"kind"}, keeper.Request{})), kverr.InvalidArgument},
			{"no mask", second(w.keeper.UpdateNamespace(ctx, ns, nil, keeper.Request{})), kverr.InvalidArgument},
			{"exists", second(w.keeper.CreateNamespace(ctx, ns, keeper.Request{})), kverr.AlreadyExists},
			{"no keyspace", second(w.keeper.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: "none", Name: "n"}, keeper.Request{})), kverr.NotFound},
			{"no namespace", w.keeper.DeleteNamespace(ctx, "default", "none", keeper.Request{}), kverr.NotFound},
			{"name", second(w.keeper.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "A"})), kverr.InvalidArgument},
			{"shards", second(w.keeper.CreateKeyspace(ctx, &kvv1.Keyspace{Name: "a", Shards: 5000})), kverr.InvalidArgument},
		} {
			if test.err == nil || kverr.KindOf(test.err) != test.kind {
				t.Errorf("%s: %v, want kind %v", test.name, test.err, test.kind)
			}
		}
		var names []string
		for _, ks := range w.catalog().Keyspaces {
			for _, ns := range ks.Namespaces {
				names = append(names, ns.Name)
			}
		}
		if !slices.Equal(names, []string{"blocks", "default"}) {
			t.Fatal(names)
		}
		w.close()
	})
}

func second[T any](_ T, err error) error { return err }

// TestMarks: what is remembered survives a restart and changes nothing for readers; a shard that the store lost is there again, empty,
// once an operator accepts it.
func TestMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx := t.Context()
		ks, _ := w.settle().Keyspace("default")
		id := ks.ShardIDs[1]
		w.put(id, 1, "k")
		before, err := w.keeper.Revision(ctx)
		if err != nil {
			t.Fatal(err)
		}
		changed := w.keeper.Changed()
		var marks []directory.Mark
		for _, id := range ks.ShardIDs {
			marks = append(marks, directory.Mark{Shard: id, Epoch: 1, Seq: 2})
		}
		if err := w.keeper.Remember(ctx, marks...); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
			t.Fatal("marks are told as a change")
		default:
		}
		w.end()
		w.begin()
		if after, err := w.keeper.Revision(ctx); err != nil || after != before {
			t.Fatalf("revision %d, %v; want %d", after, err, before)
		}
		if err := w.store.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
		found, err := w.keeper.Marks(ctx, id, "00000000000000ff-0")
		if err != nil || found[0] != (directory.Mark{Shard: id, Epoch: 1, Seq: 2, Made: true}) || found[1] != (directory.Mark{Shard: "00000000000000ff-0"}) {
			t.Fatalf("%+v, %v", found, err)
		}
		accepted, err := w.keeper.AcceptLoss(ctx, id)
		if err != nil || !accepted.Accepted || accepted.Missing() || accepted.Behind(0, 0) {
			t.Fatalf("%+v, %v", accepted, err)
		}
		if w.has(id, 1, "k") {
			t.Fatal("it is not empty")
		}
		if err := w.keeper.Remember(ctx, make([]directory.Mark, directory.MaxMarks+1)...); err == nil || kverr.KindOf(err) != kverr.TooLarge {
			t.Fatal(err)
		}
		w.close()
	})
}
