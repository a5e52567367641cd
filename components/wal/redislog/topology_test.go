package redislog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/tests/testenv"
)

// await waits until a condition of servers holds.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", testenv.Patience, what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(what, context.Cause(t.Context()))
		}
	}
}

// direct is a connection to one server, for what the engine never does.
func direct(t testing.TB, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr, Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// do sends a command that must succeed.
func do(t testing.TB, c *redis.Client, args ...any) string {
	t.Helper()
	got, err := c.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return fmt.Sprint(got)
}

// follow makes a server the replica of what is at an address, and waits until it has everything.
func follow(t testing.TB, replica *testenv.Redis, at string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(at)
	replica.Must(t, "REPLICAOF", host, port)
	c := direct(t, replica.Addr)
	await(t, "the replica is in step", func() bool { return strings.Contains(do(t, c, "INFO", "replication"), "master_link_status:up") })
}

// TestRoleChange: the server becomes the replica of another while a shard is open on it. No append is acknowledged meanwhile, the error says
// why, and the engine goes on when the server is the master again. An engine does not begin on a replica.
func TestRoleChange(t *testing.T) {
	t.Parallel()
	server, other := testenv.NewRedis(t), testenv.NewRedis(t)
	e := openOn(t, Config{URL: "redis://" + server.Addr})
	patient := openOn(t, Config{URL: "redis://" + server.Addr, Settle: testenv.Patience})
	o := takeOver(t, e, "s", 1)
	o.must("one", "two")
	follow(t, other, server.Addr) // so that what the server gets back from it is what it had
	other.Must(t, "REPLICAOF", "NO", "ONE")
	follow(t, server, other.Addr)

	if err := o.append("three"); !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("an append to a replica: %v, want ErrRefused that says READONLY", err)
	}
	_, tag, err := e.Manifest(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.SwapManifest(t.Context(), "s", tag, []byte("no")); !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("a manifest to a replica: %v, want ErrRefused that says READONLY", err)
	}
	o.check()
	if err := refusedOpen(t, Config{URL: "redis://" + server.Addr}); !strings.Contains(err.Error(), "replica") {
		t.Errorf("an engine on a replica: %v", err)
	}

	// For less than Settle nobody is told of it.
	o.e = patient
	outcome := make(chan error, 1)
	go func() { outcome <- o.append("three") }()
	server.Must(t, "REPLICAOF", "NO", "ONE")
	if err := <-outcome; err != nil {
		t.Fatalf("an append while the server became the master again: %v", err)
	}
	o.e = e
	o.must("four")
	o.check()
}

// nothing is the state of a shard that keeps none.
type nothing struct{}

func (nothing) Restore(*btree.Tree)        {}
func (nothing) Replay([]byte, int64) error { return nil }

// TestFailoverLosesRecords: a replica that had not received all that was acknowledged becomes the master. Whoever has the shard open is told with his next
// append that records are missing; whoever opens it and remembers more, that it is not to be served; and nothing is written.
func TestFailoverLosesRecords(t *testing.T) {
	t.Parallel()
	master, replica := testenv.NewRedis(t), testenv.NewRedis(t)
	between, front := testenv.NewLine(t, master.Addr), testenv.NewLine(t, master.Addr)
	e := openOn(t, Config{URL: "redis://" + front.Addr, Settle: testenv.Patience})
	store, err := wal.NewStore(e, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l, err := store.Open(t.Context(), "s", wal.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restore(t.Context(), nothing{}, nil); err != nil {
		t.Fatal(err)
	}
	appends := func() error {
		outcome := make(chan error, 1)
		l.Append([]byte("record"), 1, func(_ uint64, err error) { outcome <- err })
		return <-outcome
	}
	write := func(n int) {
		t.Helper()
		for range n {
			if err := appends(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(5)
	follow(t, replica, between.Addr)
	between.Cut()
	write(5)
	master.Kill()
	replica.Must(t, "REPLICAOF", "NO", "ONE")
	front.LeadTo(replica.Addr)

	kept := replica.Must(t, "LLEN", e.keys("s").records)
	if err := appends(); wal.OutcomeOf(err) != wal.Lost || !errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("an append behind records that are lost: %v (%v), want ErrCorrupt", err, wal.OutcomeOf(err))
	}
	l.Close()
	for range 2 {
		again, err := store.Open(t.Context(), "s", wal.OpenOptions{})
		if err == nil {
			again.Close()
			t.Fatal("the shard is served without what was acknowledged")
		}
		if kverr.KindOf(err) != kverr.DataLoss || !strings.Contains(err.Error(), "lost acknowledged records") {
			t.Fatalf("the shard whose end is lost: %v, want DATA_LOSS", err)
		}
	}
	if now := replica.Must(t, "LLEN", e.keys("s").records); now != kept {
		t.Errorf("the log has %s records, it had %s: something was written to it", now, kept)
	}
	store.AcceptLoss("s")
	if l, err = store.Open(t.Context(), "s", wal.OpenOptions{}); err != nil {
		t.Fatalf("with the loss accepted: %v", err)
	}
	l.Close()
}

// redisCluster is a Redis Cluster of masters.
type redisCluster struct {
	t     testing.TB
	nodes []*testenv.Redis
}

func newRedisCluster(t testing.TB) *redisCluster {
	c := &redisCluster{t: t}
	var bus string // of the node that is made last
	for range 3 {
		_, bus, _ = net.SplitHostPort(testenv.FreeAddr(t))
		c.nodes = append(c.nodes, testenv.NewRedis(t, "cluster-enabled yes", "cluster-port "+bus, "cluster-node-timeout 2000"))
	}
	for i, n := range c.nodes {
		n.Must(t, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*16384/3), strconv.Itoa((i+1)*16384/3-1))
		n.Must(t, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	host, port, _ := net.SplitHostPort(c.nodes[2].Addr)
	for _, n := range c.nodes[:2] {
		n.Must(t, "CLUSTER", "MEET", host, port, bus)
	}
	c.await()
	return c
}

// await waits until every node says that the cluster is whole.
func (c *redisCluster) await() {
	c.t.Helper()
	for _, n := range c.nodes {
		conn := direct(c.t, n.Addr)
		await(c.t, "the cluster is whole", func() bool {
			info, err := conn.ClusterInfo(c.t.Context()).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
}

// url names the first node: an engine finds the others by it.
func (c *redisCluster) url() string { return "redis://" + c.nodes[0].Addr }

// nodeOf is the node that has the keys of a slot, of which there are some.
func (c *redisCluster) nodeOf(slot int64) int {
	c.t.Helper()
	for i, n := range c.nodes {
		if do(c.t, direct(c.t, n.Addr), "CLUSTER", "COUNTKEYSINSLOT", slot) != "0" {
			return i
		}
	}
	c.t.Fatalf("nobody has keys in slot %d", slot)
	return -1
}

// TestCluster: shards are spread over the masters of a Redis Cluster, each with all of its keys in one slot; a slot that moves takes its shard along
// under the hands of its owner; a master that is killed and comes back has everything.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := newRedisCluster(t)
	e := openOn(t, Config{URL: c.url(), Cluster: true, Settle: testenv.Patience})
	first := direct(t, c.nodes[0].Addr)
	var all []*owner
	on := map[int]int{} // shards by node
	slots := map[string]int64{}
	for i := range 12 {
		o := takeOver(t, e, fmt.Sprint("shard-", i), 1)
		o.must("one", strings.Repeat("x", 300<<10), strings.Repeat("y", 900<<10), "four") // more than a page
		if err := e.PutObject(t.Context(), o.shard, "v/1", -1, strings.NewReader(strings.Repeat("v", 600<<10))); err != nil {
			t.Fatal(err)
		}
		o.check()
		k := e.keys(o.shard)
		for _, key := range []string{k.manifest, k.head, k.records, k.objects, k.chunkKey("v/1", 0), k.chunkKey("v/1", 2)} {
			slot, err := first.ClusterKeySlot(t.Context(), key).Result()
			if err != nil {
				t.Fatal(err)
			}
			if had, ok := slots[o.shard]; ok && had != slot {
				t.Errorf("key %s is in slot %d, others of its shard in %d", key, slot, had)
			}
			slots[o.shard] = slot
			if n := do(t, direct(t, c.nodes[c.nodeOf(slot)].Addr), "EXISTS", key); n != "1" {
				t.Errorf("key %s is not where its slot is", key)
			}
		}
		on[c.nodeOf(slots[o.shard])]++
		all = append(all, o)
	}
	if len(on) != len(c.nodes) {
		t.Fatalf("12 shards are on %v", on)
	}
	if _, err := e.Doctor(t.Context()); err != nil {
		t.Error(err)
	}

	moved := all[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := moved.append("while its slot moves"); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	from := c.nodeOf(slots[moved.shard])
	c.move(slots[moved.shard], from, (from+1)%len(c.nodes))
	goal := do(t, direct(t, c.nodes[(from+1)%len(c.nodes)].Addr), "LLEN", e.keys(moved.shard).records)
	await(t, "appends go on after the move", func() bool {
		return len(done) > 0 || do(t, direct(t, c.nodes[(from+1)%len(c.nodes)].Addr), "LLEN", e.keys(moved.shard).records) != goal
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("an append while the slot moved: %v", err)
	}
	moved.check()

	c.nodes[1].Kill()
	c.nodes[1].Start(t)
	for _, o := range all {
		o.must("after a restart")
		o.check()
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	again := openOn(t, Config{URL: c.url(), Cluster: true, Settle: testenv.Patience})
	for _, o := range all {
		before := o.acked
		o = takeOver(t, again, o.shard, 2)
		if len(o.acked) != len(before)+1 {
			t.Errorf("shard %s has %d records, and had %d", o.shard, len(o.acked), len(before))
		}
		if err := again.RemoveShard(t.Context(), o.shard); err != nil {
			t.Error(err)
		}
	}
	for _, n := range c.nodes {
		if size := do(t, direct(t, n.Addr), "DBSIZE"); size != "0" {
			t.Errorf("%s keys are left of shards that were removed", size)
		}
	}
}

// move gives a slot to another node, as redis-cli --cluster reshard does.
func (c *redisCluster) move(slot int64, from, to int) {
	t := c.t
	t.Helper()
	a, b := direct(t, c.nodes[from].Addr), direct(t, c.nodes[to].Addr)
	idA, idB := do(t, a, "CLUSTER", "MYID"), do(t, b, "CLUSTER", "MYID")
	do(t, b, "CLUSTER", "SETSLOT", slot, "IMPORTING", idA)
	do(t, a, "CLUSTER", "SETSLOT", slot, "MIGRATING", idB)
	host, port, _ := net.SplitHostPort(c.nodes[to].Addr)
	for {
		keys, err := a.ClusterGetKeysInSlot(t.Context(), int(slot), 1).Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) == 0 {
			break
		}
		do(t, a, "MIGRATE", host, port, keys[0], 0, 10_000)
	}
	do(t, b, "CLUSTER", "SETSLOT", slot, "NODE", idB)
	do(t, a, "CLUSTER", "SETSLOT", slot, "NODE", idB)
}

// TestSentinel: the master is found by a Sentinel, and found again when a replica has taken over, also when the former
// master is back.
func TestSentinel(t *testing.T) {
	t.Parallel()
	a, b := testenv.NewRedis(t), testenv.NewRedis(t)
	follow(t, b, a.Addr)
	sentinel := newSentinel(t, "mymaster", a.Addr)
	e := openOn(t, Config{URL: "redis://" + sentinel, Sentinel: "mymaster", Settle: testenv.Patience})
	o := takeOver(t, e, "s", 1)
	o.must("one", "two")
	await(t, "the Sentinel knows the replica", func() bool {
		return strings.Contains(do(t, direct(t, sentinel), "SENTINEL", "REPLICAS", "mymaster"), b.Addr)
	})
	if n, err := direct(t, a.Addr).Wait(t.Context(), 1, testenv.Patience).Result(); err != nil || n != 1 {
		t.Fatalf("the replica has received it: %d, %v", n, err)
	}
	a.Kill()
	began := time.Now()
	o.must("three")
	t.Logf("the next append took %v", time.Since(began).Round(time.Millisecond))
	if role := do(t, direct(t, b.Addr), "ROLE"); !strings.Contains(role, "master") {
		t.Errorf("the former replica is %s", role)
	}
	o.check()
	a.Start(t) // it takes itself for the master, until the Sentinel looks at it
	o.must("four", "five")
	o.check()

	err := refusedOpen(t, Config{URL: "redis://" + sentinel, Sentinel: "nobody"})
	if !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a name that the Sentinel does not know: %v", err)
	}
}

// newSentinel starts a Sentinel that watches a master, and fails over by itself alone.
func newSentinel(t testing.TB, name, master string) (addr string) {
	t.Helper()
	addr = testenv.FreeAddr(t)
	host, port, _ := net.SplitHostPort(master)
	_, own, _ := net.SplitHostPort(addr)
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	conf := fmt.Sprintf("bind 127.0.0.1\nport %s\nsentinel monitor %s %s %s 1\nsentinel down-after-milliseconds %s 300\nsentinel failover-timeout %s 5000\n", own, name, host, port, name, name)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("redis-server", file, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c := direct(t, addr)
	await(t, "the Sentinel answers", func() bool { return c.Ping(t.Context()).Err() == nil })
	return addr
}

// TestWrongTopology: what a URL names and what the configuration says of it must be the same, and the error says what to change.
func TestWrongTopology(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	cluster := newRedisCluster(t)
	sentinel := newSentinel(t, "mymaster", server.Addr)
	for _, tc := range []struct {
		name, want string
		cfg        Config
	}{
		{"a node of a cluster as a server", "-redis-cluster", Config{URL: cluster.url()}},
		{"a server as a cluster", "cluster", Config{URL: "redis://" + server.Addr, Cluster: true}},
		{"a Sentinel as a server", "-redis-sentinel", Config{URL: "redis://" + sentinel}},
		{"a server as a Sentinel", "Sentinel", Config{URL: "redis://" + server.Addr, Sentinel: "mymaster"}},
	} {
		if err := refusedOpen(t, tc.cfg); !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		} else {
			t.Logf("%s: %v", tc.name, err)
		}
	}
}
