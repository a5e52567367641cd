package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/components/ring"
	"kvstore/components/wal"
	"kvstore/components/wal/redislog"
	"kvstore/tests/testenv"
)

// role is what a process is in a cluster.
type role string

const (
	host      role = "shard host"
	sidecar   role = "daprd"
	placement role = "placement"
	frontend  role = "frontend"
)

// newCluster starts the cluster of make up.
func newCluster(t *testing.T, cfg testenv.ClusterConfig) *testenv.Cluster {
	t.Helper()
	return testenv.NewCluster(t, testenv.Bin(t, "chaos-ci"), cfg)
}

// processes are those of a role.
func processes(c *testenv.Cluster, r role) (all []*testenv.Process) {
	switch r {
	case host:
		for _, n := range c.Hosts {
			all = append(all, n.Process)
		}
	case sidecar:
		for _, n := range c.Hosts {
			all = append(all, n.Sidecar.Process)
		}
	case placement:
		all = append(all, c.Placement.Process)
	case frontend:
		for _, n := range c.Frontends {
			all = append(all, n.Process)
		}
	}
	return all
}

// owners tells who holds each shard, as Redis has it, whatever anybody believes.
type owners struct {
	store  *wal.Store
	shards []string // of keyspace default, by number
	ring   *ring.Map
}

// newOwners asks the cluster for its keyspace.
func newOwners(ctx context.Context, t *testing.T, c *testenv.Cluster) *owners {
	t.Helper()
	cl, err := client.Dial(ctx, client.Config{Endpoints: c.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ks, err := cl.GetKeyspace(ctx, "default")
	if err != nil {
		t.Fatal(err)
	}
	// Who looks on waits for a Redis that syncs for seconds, on a disk that others use; hosts, which have to do something about it, do not.
	engine, err := redislog.Open(ctx, redislog.Config{URL: "redis://" + c.RedisServer.Addr, Timeout: testenv.Patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	o := &owners{}
	if o.store, err = wal.NewStore(engine, wal.Config{}); err != nil {
		t.Fatal(err)
	}
	if o.ring, err = ring.New(ks.Uid, int(ks.Shards)); err != nil {
		t.Fatal(err)
	}
	for i := range o.ring.Shards() {
		o.shards = append(o.shards, o.ring.ShardID(i))
	}
	return o
}

// all tells the holder of every shard.
func (o *owners) all(ctx context.Context, t testing.TB) []wal.Holder {
	t.Helper()
	holders, errs := make([]wal.Holder, len(o.shards)), make([]error, len(o.shards))
	var asking sync.WaitGroup
	for i, id := range o.shards {
		asking.Go(func() { holders[i], errs[i] = o.store.Holder(ctx, id) })
	}
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("who holds the shards: %v", err)
	}
	return holders
}

// quiet is how long no shard changes its owner in a cluster that has settled: longer than it takes a host to notice that one is not placed on it
// any more, and to have it moved.
const quiet = 3 * time.Second

// settled waits until no shard changes its owner any more, and returns who holds them. Between two looks it calls use, which may be nil.
func (o *owners) settled(ctx context.Context, t testing.TB, use func()) []wal.Holder {
	t.Helper()
	var holders []wal.Holder
	since := time.Now()
	await(ctx, t, "shards keep their owners", func() bool {
		if use != nil {
			use()
		}
		now := o.all(ctx, t)
		if !slices.EqualFunc(now, holders, func(x, y wal.Holder) bool { return x.Epoch == y.Epoch }) {
			since = time.Now()
		}
		holders = now
		return time.Since(since) > quiet
	})
	return holders
}

// keyOn is a key, the n-th with this prefix, on a shard.
func (o *owners) keyOn(shard, n int, prefix string) string {
	for i := 0; ; i++ {
		k := fmt.Sprintf("%s/%d", prefix, i)
		if o.ring.Owner(ring.Slot("default", []byte(k))) == shard {
			if n == 0 {
				return k
			}
			n--
		}
	}
}

// await waits until a condition of other processes holds.
func await(ctx context.Context, t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", testenv.Patience, what)
		}
	}
}
