package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"kvstore/client"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

// TestFailureRules shows, from outside, what becomes here of what SPEC.md says of failures of the topologies that it compares: a single server (A), and
// frontends before shards (B). Each part is named after its row.
func TestFailureRules(t *testing.T) {
	t.Parallel()
	r := &rules{c: newCluster(t, testenv.ClusterConfig{Shards: 16})}
	r.owners = newOwners(t.Context(), t, r.c)
	t.Run("S1-15", r.singleServer)
	t.Run("S1-18", r.frontends)
	t.Run("S1-16", r.shards)
}

// rules is a cluster, and who holds its shards.
type rules struct {
	c      *testenv.Cluster
	owners *owners
}

// singleServer is S1-15, "single server loss fatal". Of a store in one process it stays true for as long as that is down. In a cluster there is one server
// whose loss stops writes, Redis, for as long as that is down; that of any other, which its supervisor starts again, does not. Nowhere is anything lost.
func (r *rules) singleServer(t *testing.T) {
	one := testenv.New(t, testenv.Bin(t, "chaos-ci"))
	one.Start(t)
	one.Ready(t.Context(), t)
	cl := dial(t, time.Second, one.Addr)
	put, err := cl.Put(t.Context(), "k", []byte("v"), nil)
	if err != nil {
		t.Fatal(err)
	}
	one.Kill()
	fails(t, "one process that is killed", cl)
	one.Start(t)
	one.Ready(t.Context(), t)
	if e, err := cl.Get(t.Context(), "k", nil); err != nil || string(e.Value) != "v" || e.Version != put.Version {
		t.Errorf("after a restart: %q, version %d, %v; it was written as version %d", e.Value, e.Version, err, put.Version)
	}

	p := startProbes(t.Context(), t, r.c, r.owners)
	for _, lost := range []*testenv.Process{r.c.Hosts[0].Process, r.c.Hosts[1].Sidecar.Process, r.c.Placement.Process, r.c.Frontends[0].Process, r.c.Frontends[1].Sidecar.Process} {
		began, starts := time.Now(), lost.Starts()
		lost.Crash()
		p.steady(t.Context(), t, 5)
		t.Logf("%s was killed: every shard was written 5 times after %v", lost.Name, time.Since(began).Round(time.Millisecond))
		await(t.Context(), t, "it is started again", func() bool { return lost.Starts() > starts })
		r.c.Await(t.Context(), t)
	}
	cl = dial(t, time.Second, r.c.Endpoints()...)
	r.c.RedisServer.Kill()
	fails(t, "a cluster whose Redis is killed", cl)
	for _, h := range r.c.Hosts {
		unready(t, h, "the store does not answer")
	}
	began := time.Now()
	r.c.RedisServer.Start(t)
	p.steady(t.Context(), t, 2)
	t.Logf("every shard was written %v after Redis was there again", time.Since(began).Round(time.Millisecond))
	if err := p.err(); err != nil {
		t.Errorf("a client that repeats its calls for a minute: %v", err)
	}
}

// frontends is S1-18, "FE loss fatal to service but loses no state (FE stateless)". The loss of all of them is, that of one is not. Versions, leases and
// what is remembered of writes are in the shards, which do not notice.
func (r *rules) frontends(t *testing.T) {
	impatient, patient := dial(t, time.Second, r.c.Endpoints()...), dial(t, time.Minute, r.c.Endpoints()...)
	if _, err := patient.CreateNamespace(t.Context(), &kvstorev1.Namespace{Name: "prompts", Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT}); err != nil {
		t.Fatal(err)
	}
	prompt := patient.In("", "prompts").Prompt(client.Scope{"model": "m"})
	refs := []client.BlockRef{{ID: []byte("block")}}
	if out, err := prompt.Write(t.Context(), []client.NewBlock{{BlockRef: refs[0], Data: []byte("tokens")}}, nil); err != nil || out[0].Err != nil {
		t.Fatal(out, err)
	}
	found, err := prompt.Lookup(t.Context(), refs, &client.LookupOptions{Lease: 30 * time.Second})
	if err != nil || found.Count != 1 {
		t.Fatal(found, err)
	}
	// One that cannot find shards says so, and no other one does. Without placement nobody finds any, and all go on with what they know.
	r.c.Frontends[0].Sidecar.Kill()
	unready(t, r.c.Frontends[0], "its daprd does not answer")
	if status, says := readyz(t, r.c.Frontends[1]); status != http.StatusOK {
		t.Errorf("the frontend that has its daprd: %d %s", status, says)
	}
	r.c.Frontends[0].Sidecar.Start(t)
	r.c.Await(t.Context(), t)
	for _, f := range r.c.Frontends {
		if _, err := dial(t, time.Minute, f.Addr).Put(t.Context(), "by "+f.Name, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.c.Placement.Kill()
	for _, f := range r.c.Frontends {
		if status, says := readyz(t, f); status != http.StatusOK {
			t.Errorf("%s without placement: %d %s", f.Name, status, says)
		}
	}
	r.c.Placement.Start(t)
	r.c.Await(t.Context(), t)
	before := r.owners.settled(t.Context(), t, nil)

	// A chain of writes, each upon the version of the one before: if one was lost, or done twice, the next is refused.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	var writes atomic.Int64
	chained := func(n int64) {
		goal := writes.Load() + n
		await(t.Context(), t, "writes go on", func() bool { return writes.Load() >= goal || len(done) > 0 })
	}
	go func() {
		version := uint64(0)
		for ctx.Err() == nil {
			condition := client.IfAbsent()
			if version > 0 {
				condition = client.IfVersion(version)
			}
			put, err := patient.Put(t.Context(), "chain", fmt.Append(nil, writes.Load()), &client.PutOptions{If: condition})
			if err != nil {
				done <- fmt.Errorf("write %d upon version %d: %w", writes.Load(), version, err)
				return
			}
			version = put.Version
			writes.Add(1)
		}
		done <- nil
	}()

	chained(50)
	a, b := r.c.Frontends[0], r.c.Frontends[1]
	a.Kill()
	chained(50)
	if _, err := impatient.Put(t.Context(), "one is left", nil, nil); err != nil {
		t.Errorf("without one frontend of two: %v", err)
	}
	b.Kill()
	fails(t, "a cluster without frontends", impatient)
	a.Start(t)
	b.Start(t)
	r.c.Await(t.Context(), t)
	if _, err := impatient.Put(t.Context(), "both are there", nil, nil); err != nil {
		t.Errorf("with frontends that know nothing of before: %v", err)
	}
	chained(50)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("%d writes upon each other, before, during and after", writes.Load())
	if e, err := impatient.Get(t.Context(), "chain", nil); err != nil || string(e.Value) != fmt.Sprint(writes.Load()-1) {
		t.Errorf("the last of %d writes: %q, %v", writes.Load(), e.Value, err)
	}
	if gone, err := prompt.Delete(t.Context(), refs); err != nil || gone[0] != client.BlockLeased {
		t.Errorf("a block that was leased by way of the former frontends: %v, %v", gone, err)
	}
	for i, h := range r.owners.all(t.Context(), t) {
		if h.Epoch != before[i].Epoch {
			t.Errorf("shard %d has another owner: nobody but frontends was lost", i)
		}
	}
}

// shards is S1-16, "shard loss = data loss + FE changes hash function". The loss of whoever serves a shard is neither. The loss of what is stored of a shard
// is loss of data, which is reported and not papered over: the shard is not served, not by others under another hash either, until an
// operator accepts it; all other shards are.
func (r *rules) shards(t *testing.T) {
	cl := dial(t, 20*time.Second, r.c.Endpoints()...)
	keyspace := r.keyspace(t, cl)
	kept := map[string]uint64{} // versions
	for i := range r.owners.shards {
		for n := range 5 {
			key := r.owners.keyOn(i, n, "kept")
			put, err := cl.Put(t.Context(), key, []byte(key), nil)
			if err != nil {
				t.Fatal(err)
			}
			kept[key] = put.Version
		}
	}
	check := func(when string, without int) {
		t.Helper()
		for i, id := range r.owners.shards {
			if i == without {
				continue
			}
			for n := range 5 {
				key := r.owners.keyOn(i, n, "kept")
				if e, err := cl.Get(t.Context(), key, nil); err != nil || string(e.Value) != key || e.Version != kept[key] {
					t.Fatalf("%s: shard %s: %s reads %q, version %d, %v; it was written as version %d", when, id, key, e.Value, e.Version, err, kept[key])
				}
			}
			if _, err := cl.Put(t.Context(), r.owners.keyOn(i, 0, "more"), nil, nil); err != nil {
				t.Fatalf("%s: put to shard %s: %v", when, id, err)
			}
		}
		if now := r.keyspace(t, cl); !proto.Equal(now, keyspace) {
			t.Errorf("%s: the map of slots is another one: %v, it was %v", when, now, keyspace)
		}
	}
	victim := r.hostOf(t, 0)
	victim.Kill()
	check("without the host of shard 0", -1)
	victim.Start(t)
	r.c.Await(t.Context(), t)
	check("with it again", -1)

	// Redis loses the end of what it acknowledged, as after a failure of its machine without appendfsync always: ten writes to one shard.
	lost := r.loseTail(t, cl, 0)
	key := r.owners.keyOn(0, 0, "kept")
	put := func() error { _, err := cl.Put(t.Context(), key, []byte("over it"), nil); return err }
	get := func() error { _, err := cl.Get(t.Context(), key, nil); return err }
	size := r.logSize(t)
	refused(t, "a write", put)
	refused(t, "a read", get)
	await(t.Context(), t, "the directory has noted what was lost", func() bool { return r.logSize(t) > size }) // nobody writes anything else
	check("with the tail of shard 0 lost", 0)
	victim = r.hostOf(t, 0)
	starts := victim.Starts()
	victim.Crash()                                                                                      // whoever has seen those writes itself
	await(t.Context(), t, "the host is started again", func() bool { return victim.Starts() > starts }) // but whoever has that shard is not ready
	for range 3 {
		refused(t, "a write, after a crash of the host that knew", put)
		refused(t, "a read, after a crash of the host that knew", get)
	}
	if out, err := r.acceptLoss(t, r.owners.shards[0]); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t.Context(), t, "the shard is served with what is left of it", func() bool {
		e, err := cl.Get(t.Context(), key, nil)
		return err == nil && string(e.Value) == key && e.Version == kept[key]
	})
	for _, key := range lost {
		if _, err := cl.Get(t.Context(), key, nil); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s, which was given up: %v", key, err)
		}
	}
	check("with the loss accepted", -1)
}

// TestRedisLosesItsTail takes from Redis the end of what it acknowledged for every shard, and for the directory, which remembers how far shards had come.
// None is served over it, and nothing older is read, until an operator accepts it: kvctl says that the directory comes first.
func TestRedisLosesItsTail(t *testing.T) {
	t.Parallel()
	r := &rules{c: newCluster(t, testenv.ClusterConfig{Shards: 8})}
	r.owners = newOwners(t.Context(), t, r.c)
	cl := dial(t, 20*time.Second, r.c.Endpoints()...)
	var keys []string
	for i := range r.owners.shards {
		keys = append(keys, r.owners.keyOn(i, 0, "k"))
	}
	write := func(value string) {
		t.Helper()
		for _, key := range keys {
			if _, err := cl.Put(t.Context(), key, []byte(value), nil); err != nil {
				t.Fatalf("put %s: %v", key, err)
			}
		}
	}
	write("old")
	at := r.quiet(t)
	write("new")
	r.quiet(t) // the directory has noted that, too
	r.c.RedisServer.Kill()
	if err := os.Truncate(r.c.RedisServer.Log(t), at+20); err != nil {
		t.Fatal(err)
	}
	r.c.RedisServer.Start(t)
	for _, key := range keys {
		refused(t, "put "+key, func() error {
			_, err := cl.Put(t.Context(), key, []byte("over it"), nil)
			if err == nil {
				t.Fatalf("%s is written over what is lost", key)
			}
			return err
		})
		refused(t, "get "+key, func() error {
			e, err := cl.Get(t.Context(), key, nil)
			if err == nil && string(e.Value) != "new" { // which an owner that lives has in memory
				t.Fatalf("%s reads %q, new was acknowledged", key, e.Value)
			}
			return err
		})
	}
	await(t.Context(), t, "kvctl says that the directory comes first", func() bool {
		out, err := r.acceptLoss(t, r.owners.shards[0])
		return err != nil && strings.Contains(out, "kvctl accept-loss directory")
	})
	for _, id := range append([]string{"directory"}, r.owners.shards...) {
		if out, err := r.acceptLoss(t, id); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, key := range keys {
		if e, err := cl.Get(t.Context(), key, nil); err != nil || string(e.Value) != "old" {
			t.Errorf("%s reads %q, %v, after the loss was accepted", key, e.Value, err)
		}
	}
	write("after")
	r.c.Await(t.Context(), t)
}

// readyz is what a process says of itself.
func readyz(t *testing.T, n *testenv.Node) (status int, says string) {
	t.Helper()
	resp, err := http.Get("http://" + n.Admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// unready waits until a process says that it is not ready, and why.
func unready(t *testing.T, n *testenv.Node, why string) {
	t.Helper()
	await(t.Context(), t, n.Name+" is not ready: "+why, func() bool {
		status, says := readyz(t, n)
		return status == http.StatusServiceUnavailable && strings.Contains(says, why)
	})
}

// refused waits until a call is told of a loss.
func refused(t *testing.T, what string, call func() error) {
	t.Helper()
	await(t.Context(), t, what+" is refused with DATA_LOSS", func() bool { return errors.Is(call(), client.ErrDataLoss) })
}

// acceptLoss is the operator.
func (r *rules) acceptLoss(t *testing.T, id string) (out string, _ error) {
	t.Helper()
	kvctl := exec.CommandContext(t.Context(), filepath.Join(testenv.Bin(t, "chaos-ci"), "kvctl"), "accept-loss", id, "--confirm", id)
	kvctl.Env = append(os.Environ(), "KVSTORE_ENDPOINT="+r.c.Frontends[0].Addr)
	text, err := kvctl.CombinedOutput()
	t.Logf("kvctl accept-loss %s: %s", id, text)
	return string(text), err
}

// loseTail writes ten keys to a shard, kills Redis, and takes their records from the end of its append-only file. It returns the keys.
func (r *rules) loseTail(t *testing.T, cl *client.Client, shard int) (keys []string) {
	t.Helper()
	// The directory is told of writes a second later. What it stores of that must not be lost, too, so nothing else is written meanwhile.
	const untold = 800 * time.Millisecond
	for n := 0; ; {
		at := r.quiet(t)
		began := time.Now()
		keys = nil
		for range 10 {
			keys = append(keys, r.owners.keyOn(shard, n, "lost"))
			n++
			if _, err := cl.Put(t.Context(), keys[len(keys)-1], []byte("acknowledged"), nil); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(began) > untold {
			continue // the machine is too slow today; once more
		}
		r.c.RedisServer.Kill()
		t.Logf("Redis loses %d bytes of %d", r.logSize(t)-at, r.logSize(t))
		if err := os.Truncate(r.c.RedisServer.Log(t), at+20); err != nil { // within a record
			t.Fatal(err)
		}
		r.c.RedisServer.Start(t)
		return keys
	}
}

// quiet waits until nothing is written to Redis any more, and returns how much has been.
func (r *rules) quiet(t *testing.T) int64 {
	t.Helper()
	at, since := r.logSize(t), time.Now()
	await(t.Context(), t, "nothing is written to Redis", func() bool {
		if now := r.logSize(t); now != at {
			at, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
	return at
}

// logSize is how much Redis has in its append-only file.
func (r *rules) logSize(t *testing.T) int64 {
	t.Helper()
	s, err := os.Stat(r.c.RedisServer.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	return s.Size()
}

// keyspace is what the directory tells of the default keyspace, among it how many shards share its slots.
func (r *rules) keyspace(t *testing.T, cl *client.Client) *kvstorev1.Keyspace {
	t.Helper()
	ks, err := cl.GetKeyspace(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	return ks
}

// hostOf is the host that has a shard.
func (r *rules) hostOf(t *testing.T, shard int) *testenv.Node {
	t.Helper()
	h := r.owners.all(t.Context(), t)[shard]
	i := slices.IndexFunc(r.c.Hosts, func(n *testenv.Node) bool { return n.Known == h.Address })
	if i < 0 {
		t.Fatalf("shard %d is at %q, which is no host", shard, h.Address)
	}
	return r.c.Hosts[i]
}

// dial is a client that repeats a call for so long.
func dial(t *testing.T, retryFor time.Duration, endpoints ...string) *client.Client {
	t.Helper()
	cl, err := client.Dial(t.Context(), client.Config{Endpoints: endpoints, RetryFor: retryFor, BackoffMax: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// fails holds that a write and a read with two seconds of time are not done, and that their errors say so. The write comes first: reads are
// answered from memory until a lease has run out, which it outlasts.
func fails(t *testing.T, what string, cl *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, werr := cl.Put(ctx, "k", []byte("v"), nil)
	if !errors.Is(werr, client.ErrUnavailable) && !errors.Is(werr, client.ErrOutcomeUnknown) && !errors.Is(werr, context.DeadlineExceeded) {
		t.Errorf("%s: put: %v", what, werr)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := cl.Get(ctx, "k", nil)
	if !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: get: %v", what, err)
	}
	t.Logf("%s: put: %v; get: %v", what, werr, err)
}
