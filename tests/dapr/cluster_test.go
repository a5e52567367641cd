// Package dapr runs hosts of shards on real daprd, placement and Redis processes, and takes them apart while clients write: what DAPR.md says of
// Dapr's behaviour, as far as the product relies on it, is a test here.
package dapr

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kvstore/actors/host"
	"kvstore/actors/host/daprhost"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/redislog"
	"kvstore/tests/testenv"
)

// cluster is some hosts, each with a sidecar, and a frontend's sidecar.
type cluster struct {
	t         *testing.T
	setup     setup
	redis     *testenv.Redis
	placement *testenv.Placement
	nodes     []*node
	shards    []string
	front     *testenv.Sidecar
	locator   *daprhost.Locator // by front

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // guarded by mu
}

// node is one host.
type node struct {
	*testenv.Process
	sidecar *testenv.Sidecar
	address string
}

// setup says how a cluster is made.
type setup struct {
	hosts, shards int
	// placementOf, if not nil, tells where a host's sidecar finds placement.
	placementOf func(c *cluster, host int) string
	sentry      *testenv.Sentry
	token       string // of the sidecars' API
}

// newCluster starts everything and waits until every shard is served.
func newCluster(t *testing.T, s setup) *cluster {
	t.Helper()
	c := &cluster{t: t, setup: s, placement: testenv.NewPlacement(t, s.sentry), redis: testenv.NewRedis(t), conns: make(map[string]*grpc.ClientConn)}
	t.Cleanup(func() {
		for _, conn := range c.conns {
			conn.Close()
		}
	})
	engine, err := redislog.Open(t.Context(), redislog.Config{URL: "redis://" + c.redis.Addr})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.shards {
		id := fmt.Sprintf("a1b2c3d4e5f60718-%d", i)
		if err := store.Create(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
		c.shards = append(c.shards, id)
	}
	for i := range s.hosts {
		at := c.placement.Addr
		if s.placementOf != nil {
			at = s.placementOf(c, i)
		}
		c.addNode(at)
	}
	c.front = c.newSidecar("kvstore", c.placement.Addr)
	c.locator = c.locatorBy(c.front)
	for _, id := range c.shards {
		c.locate(id)
	}
	return c
}

func (c *cluster) newSidecar(appID, placement string) *testenv.Sidecar {
	c.t.Helper()
	cfg := testenv.SidecarConfig{AppID: appID, Placement: placement, Sentry: c.setup.sentry}
	if c.setup.token != "" {
		cfg.Env = append(cfg.Env, "DAPR_API_TOKEN="+c.setup.token)
	}
	return testenv.NewSidecar(c.t, cfg)
}

func (c *cluster) addNode(placement string) *node {
	c.t.Helper()
	n := &node{sidecar: c.newSidecar("kvstore-shard", placement), address: testenv.FreeAddr(c.t)}
	text, err := json.Marshal(app{Address: n.address, Sidecar: n.sidecar.GRPC, Token: c.setup.token, Redis: c.redis.Addr})
	if err != nil {
		c.t.Fatal(err)
	}
	n.Process = testenv.NewProcess(c.t, fmt.Sprint("host-", len(c.nodes)), os.Args[0], nil, []string{appEnv + "=" + string(text)}).Supervised()
	n.Start(c.t)
	c.nodes = append(c.nodes, n)
	return n
}

// locatorBy asks through a sidecar.
func (c *cluster) locatorBy(s *testenv.Sidecar) *daprhost.Locator {
	c.t.Helper()
	link, err := daprhost.Dial(daprhost.SidecarConfig{Address: s.GRPC, Token: c.setup.token})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { link.Close() })
	l, err := daprhost.NewLocator(link, daprhost.LocatorConfig{Budget: 10 * time.Second})
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// locate finds a shard, which must be somewhere within a while.
func (c *cluster) locate(shardID string) host.Location {
	c.t.Helper()
	return locate(c.t, c.locator, shardID)
}

func locate(t *testing.T, l *daprhost.Locator, shardID string) host.Location {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	for {
		loc, err := l.Locate(ctx, shardID)
		if err == nil {
			return loc
		}
		if ctx.Err() != nil || kverr.KindOf(err) != kverr.Unavailable {
			t.Fatalf("locate %s: %v", shardID, err)
		}
	}
}

// await waits until a condition holds.
func (c *cluster) await(what string, cond func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > time.Minute {
			c.t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // of a condition outside of this process
	}
	return time.Since(began)
}

// nodeAt is the host with an address.
func (c *cluster) nodeAt(address string) *node {
	i := slices.IndexFunc(c.nodes, func(n *node) bool { return n.address == address })
	if i < 0 {
		c.t.Fatalf("no host has the address %q", address)
	}
	return c.nodes[i]
}

// held lists which shards a host serves, as the frontend's sidecar tells.
func (c *cluster) held() map[*node][]string {
	c.t.Helper()
	all := make(map[*node][]string)
	for _, id := range c.shards {
		n := c.nodeAt(c.locate(id).Address)
		all[n] = append(all[n], id)
	}
	return all
}

func (c *cluster) conn(address string) *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[address] == nil {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}}))
		if err != nil {
			c.t.Error(err)
			return nil
		}
		c.conns[address] = conn
	}
	return c.conns[address]
}

// call calls a host's data service.
func (c *cluster) call(ctx context.Context, address, method, args string) (string, error) {
	var out wrapperspb.StringValue
	err := c.conn(address).Invoke(ctx, "/test.Data/"+method, wrapperspb.String(args), &out)
	return out.Value, err
}

// writer is a client that writes one key after another to a shard, each until it is acknowledged, the way a frontend does it: straight to
// the host that it was led to, and asking anew when that one does not answer or is not the owner.
type writer struct {
	shardID  string
	name     string // its keys begin with it
	by       *daprhost.Locator
	versions []string        // that its writes got
	acked    atomic.Int64    // keys 0 to acked-1
	gaps     []time.Duration // between two acknowledgements, the longest first
	at       host.Location
}

func (w *writer) run(ctx context.Context, c *cluster) {
	last := time.Now()
	pace := time.NewTicker(10 * time.Millisecond) // writes to read back, not a benchmark
	defer pace.Stop()
	for ctx.Err() == nil {
		<-pace.C
		if w.at.Address == "" {
			loc, err := w.by.Locate(ctx, w.shardID)
			if err != nil {
				continue
			}
			w.at = loc
		}
		attempt, cancel := context.WithTimeout(ctx, testenv.AtMost(500*time.Millisecond)) // one that is late is led anew, if anybody leads
		version, err := c.call(attempt, w.at.Address, "Put", fmt.Sprintf("%s %s%d v%d", w.shardID, w.name, w.acked.Load(), w.acked.Load()))
		cancel()
		if err != nil {
			w.at = host.Location{}
			continue
		}
		w.acked.Add(1)
		w.versions = append(w.versions, version)
		now := time.Now()
		w.gaps = append(w.gaps, now.Sub(last))
		last = now
	}
	slices.SortFunc(w.gaps, func(a, b time.Duration) int { return int(b - a) })
}

// load is a writer for each shard.
type load struct {
	c       *cluster
	writers []*writer
	cancel  context.CancelFunc
	all     sync.WaitGroup
}

// load writes to every shard until it is stopped, and waits until it does. Clients find shards by the frontend's sidecar and, with another
// client for each shard, by those that are named.
func (c *cluster) load(also ...*daprhost.Locator) *load {
	l := &load{c: c}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(c.t.Context())
	for i, by := range append([]*daprhost.Locator{c.locator}, also...) {
		for _, id := range c.shards {
			w := &writer{shardID: id, name: string(rune('a' + i)), by: by}
			l.writers = append(l.writers, w)
			l.all.Go(func() { w.run(ctx, c) })
		}
	}
	l.steady(5)
	return l
}

// steady waits until every shard has taken n more writes, and returns how long that took.
func (l *load) steady(n int64) time.Duration {
	l.c.t.Helper()
	began := time.Now()
	for _, w := range l.writers {
		goal := w.acked.Load() + n
		l.c.await("writes to "+w.shardID, func() bool { return w.acked.Load() >= goal })
	}
	return time.Since(began)
}

// stop reads every acknowledged write back, holds that no two writes of a shard got one version, which would be two owners', tells the
// longest pause of each client, and returns the longest of all.
func (l *load) stop(what string) time.Duration {
	c := l.c
	c.t.Helper()
	l.cancel()
	l.all.Wait()
	versions := make(map[string]string)
	for _, w := range l.writers {
		for i, v := range w.versions {
			if other := versions[w.shardID+"@"+v]; other != "" {
				c.t.Errorf("%s: version %s was given to %s and to %s%d", w.shardID, v, other, w.name, i)
			}
			versions[w.shardID+"@"+v] = fmt.Sprint(w.name, i)
		}
		if wrong := c.check(w.shardID, w.name, w.acked.Load()); wrong != "" {
			c.t.Fatalf("%s: of %d acknowledged writes: %s", w.shardID, w.acked.Load(), wrong)
		}
	}
	var gaps []time.Duration
	acked := int64(0)
	for _, w := range l.writers {
		acked += w.acked.Load()
		gaps = append(gaps, w.gaps[0])
	}
	slices.Sort(gaps)
	c.t.Logf("%s: %d writes acknowledged and read back; the longest pause of each of %d clients: %v", what, acked, len(gaps), gaps)
	return gaps[len(gaps)-1]
}

// check tells which of the first n writes under a name is not there, wherever the shard is; "" when all are.
func (c *cluster) check(shardID, name string, n int64) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), testenv.Patience)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, 5*time.Second)
		wrong, err := c.call(attempt, c.locate(shardID).Address, "Check", fmt.Sprint(shardID, " ", name, " ", n))
		done()
		if err == nil {
			return wrong
		}
		if ctx.Err() != nil {
			c.t.Fatalf("check %s: %v", shardID, err)
		}
	}
}
