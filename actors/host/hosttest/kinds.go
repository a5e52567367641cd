package hosttest

import (
	"context"
	"testing/synctest"
	"time"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/waltest/fault"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// keeper makes the directory known to a host: the other kind of actor that there is.
func (c *cluster) keeper(h Host) *keeper.Keeper {
	c.t.Helper()
	k, err := keeper.New(h, shardsOf{c.store, h}, keeper.Config{})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := keeper.Make(c.t.Context(), c.store); err != nil {
		c.t.Fatal(err)
	}
	return k
}

// shardsOf is what the directory needs of shards.
type shardsOf struct {
	*wal.Store
	host Host
}

func (s shardsOf) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	s.host.Do(ctx, shardID, cmds...)
}

func (c *cluster) namespaces(k *keeper.Keeper) int {
	c.t.Helper()
	catalog, err := k.Catalog(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	ks, _ := catalog.Keyspace(directory.DefaultName)
	return len(ks.Namespaces)
}

func (c *cluster) addNamespace(k *keeper.Keeper, name string) error {
	_, err := k.CreateNamespace(c.t.Context(), &kvv1.Namespace{Keyspace: directory.DefaultName, Name: name}, keeper.Request{})
	return err
}

// testKinds: an actor of another kind is kept as shards are: opened on use, put to sleep and woken for what is due, and it is none.
func testKinds(c *cluster) {
	h := c.host(Options{IdleAfter: time.Minute})
	k := c.keeper(h)
	if err := c.addNamespace(k, "n"); err != nil {
		c.t.Fatal(err)
	}
	c.kind(c.doAt(h, keeper.ShardID, put("a", "1")), kverr.NotFound)
	if _, err := h.View(c.t.Context(), keeper.ShardID); err == nil || kverr.KindOf(err) != kverr.NotFound {
		c.t.Fatalf("a view of what is no shard: %v", err)
	}
	ks, err := k.CreateKeyspace(c.t.Context(), &kvv1.Keyspace{Name: "k", Shards: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := k.DeleteKeyspace(c.t.Context(), "k", ks.Uid); err != nil {
		c.t.Fatal(err)
	}
	// It sleeps: nothing of it asks the engine for anything.
	time.Sleep(5 * time.Minute)
	synctest.Wait()
	asked := c.fault.Add(fault.Rule{Verb: fault.Any, Shard: keeper.ShardID, Nth: 1 << 30})
	time.Sleep(30 * time.Minute)
	if n := asked.Seen(); n != 0 {
		c.t.Fatalf("%d calls of the engine while it sleeps", n)
	}
	// It is woken when something is due, without being used, and sleeps again.
	time.Sleep(directory.QuarantineMS * time.Millisecond)
	synctest.Wait()
	if asked.Seen() == 0 {
		c.t.Fatal("it was not woken")
	}
	s, err := k.State(c.t.Context())
	if err != nil || directory.NextDueMS(s.Tree) != 0 {
		c.t.Fatalf("due at %d, %v", directory.NextDueMS(s.Tree), err)
	}
	h = c.restart(h, Options{}, true)
	if n := c.namespaces(c.keeper(h)); n != 2 {
		c.t.Fatalf("%d namespaces after a restart, want 2", n)
	}
}

// testKindsMove: such an actor goes from host to host as shards do: the one that is used gets it, the other answers Moved for a while.
func testKindsMove(c *cluster) {
	a, b := c.host(Options{Address: "a", Reachable: true}), c.host(Options{Address: "b", Reachable: true})
	ka, kb := c.keeper(a), c.keeper(b)
	if err := c.addNamespace(ka, "one"); err != nil {
		c.t.Fatal(err)
	}
	began := time.Now()
	if n := c.namespaces(kb); n != 2 {
		c.t.Fatalf("%d namespaces, want 2", n)
	}
	if took := time.Since(began); took > time.Second {
		c.t.Fatalf("the take-over took %v although the holder could be asked", took)
	}
	c.kind(c.addNamespace(ka, "two"), kverr.Moved)
	if err := c.addNamespace(kb, "two"); err != nil {
		c.t.Fatal(err)
	}
	if err := b.Close(c.t.Context(), false); err != nil {
		c.t.Fatal(err)
	}
	// It was yielded, so nobody is left in peace; whoever asks may be told the old place once more.
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, err := ka.Catalog(c.t.Context())
		if err == nil {
			break
		}
		if c.kind(err, kverr.Moved); time.Since(began) > time.Second {
			c.t.Fatalf("not taken back in %v: %v", time.Since(began), err)
		}
	}
	if n := c.namespaces(ka); n != 3 {
		c.t.Fatalf("%d namespaces, want 3", n)
	}
}

// testKindsFenced: an owner that cannot be asked is fenced, and serves no read once its lease is over.
func testKindsFenced(c *cluster) {
	a, b := c.host(Options{Address: "a"}), c.host(Options{Address: "b"})
	ka, kb := c.keeper(a), c.keeper(b)
	if err := c.addNamespace(ka, "one"); err != nil {
		c.t.Fatal(err)
	}
	began := time.Now()
	if err := c.addNamespace(kb, "two"); err != nil {
		c.t.Fatal(err)
	}
	if took := time.Since(began); took < term {
		c.t.Fatalf("acknowledged after %v, the term is %v", took, term)
	}
	c.kind(c.addNamespace(ka, "three"), kverr.Moved)
	if _, err := ka.State(c.t.Context()); err == nil || kverr.KindOf(err) != kverr.Moved {
		c.t.Fatalf("the earlier owner answers: %v", err)
	}
	if n := c.namespaces(kb); n != 3 {
		c.t.Fatalf("%d namespaces, want 3", n)
	}
}
