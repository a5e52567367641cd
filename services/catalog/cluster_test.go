package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
	"kvstore/services/catalog"
)

// term is the lease term of the engine.
const term = 2 * time.Second

// cluster is one engine with hosts on it that can be killed, frozen and cut off, and clients, all in one synctest bubble: the network
// is in memory, so that time is the bubble's.
type cluster struct {
	t      *testing.T
	engine *memlog.Engine
	ctx    context.Context
	cancel context.CancelFunc
	runs   sync.WaitGroup // clients

	mu     sync.Mutex
	hosts  map[string]*node // by address; guarded by mu
	placed string           // the host that the directory is placed on; guarded by mu
	apart  string           // the host that shards are placed on; empty = where the directory is; guarded by mu
	failed []string         // what hosts told of failures; guarded by mu
}

// node is a host of shards as a process has it.
type node struct {
	address  string
	engine   *fault.Engine // its way to the store
	host     *memhost.Host
	keeper   *keeper.Keeper
	catalog  *catalog.Server
	grpc     *grpc.Server
	listener *bufconn.Listener
	client   *catalog.Client // the host's own, by which its shards are held against what is remembered
	stop     func()          // of the client

	mu    sync.Mutex
	cut   bool       // no connection is made; guarded by mu
	conns []net.Conn // to it and from it; guarded by mu
	fault func(method string) (before, after error)
}

func newCluster(t *testing.T, addresses ...string) *cluster {
	t.Helper()
	engine, err := memlog.New(memlog.Config{Term: term})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, engine: engine, hosts: make(map[string]*node), placed: addresses[0]}
	c.ctx, c.cancel = context.WithCancel(t.Context())
	for _, a := range addresses {
		c.start(a)
	}
	return c
}

// start begins a host, in place of one of that address that was killed.
func (c *cluster) start(address string) *node {
	c.t.Helper()
	n := &node{address: address, engine: fault.Wrap(c.engine), listener: bufconn.Listen(1 << 20)}
	store, err := wal.NewStore(n.engine, wal.Config{})
	if err != nil {
		c.t.Fatal(err)
	}
	if n.host, err = memhost.New(store, memhost.Config{Address: address, Peers: peersOf{c, address}, Placement: placementOf{c, address}}); err != nil {
		c.t.Fatal(err)
	}
	if n.keeper, err = keeper.New(n.host, keeper.Through(n.host, c), keeper.Config{DefaultShards: 3, Failed: func(what string, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.failed = append(c.failed, fmt.Sprint(address, ": ", what, ": ", err))
	}}); err != nil {
		c.t.Fatal(err)
	}
	if err := keeper.Make(c.t.Context(), store); err != nil {
		c.t.Fatal(err)
	}
	if n.catalog, err = catalog.NewServer(n.keeper, catalog.ServerConfig{}); err != nil {
		c.t.Fatal(err)
	}
	if n.client, err = catalog.NewClient(c, catalog.ClientConfig{Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return c.connect(ctx, address, n)
	}}); err != nil {
		c.t.Fatal(err)
	}
	var ctx context.Context
	ctx, n.stop = context.WithCancel(c.ctx)
	c.runs.Go(func() { n.client.Run(ctx) })
	n.host.RememberWith(n.client)
	n.grpc = grpc.NewServer(grpc.UnaryInterceptor(n.intercept))
	n.catalog.Register(n.grpc)
	go func() { _ = n.grpc.Serve(n.listener) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[address] = n
	return n
}

// intercept fails calls before they are done, or after.
func (n *node) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	n.mu.Lock()
	f := n.fault
	n.mu.Unlock()
	var before, after error
	if f != nil {
		before, after = f(info.FullMethod[len("/kvstore.dataplane.v1.DirectoryService/"):])
	}
	if before != nil {
		return nil, before
	}
	resp, err := handler(ctx, req)
	if err == nil && after != nil {
		return nil, after
	}
	return resp, err
}

// kill ends a host as kill -9 does: nothing of it reaches store or network any more.
func (c *cluster) kill(n *node) {
	n.engine.Add(fault.Rule{Verb: fault.Any, Times: -1, Freeze: true})
	n.stop()
	n.setCut(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts[n.address] == n {
		delete(c.hosts, n.address)
	}
}

// setCut cuts a host's network off, also what is connected, or mends it.
func (n *node) setCut(cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
	if cut {
		for _, conn := range n.conns {
			_ = conn.Close()
		}
		n.conns = nil
	}
}

// close lets a host end.
func (n *node) close(t *testing.T) {
	n.engine.Clear()
	n.catalog.Stop()
	n.grpc.Stop()
	if err := n.host.Close(context.Background(), false); err != nil && !errors.Is(err, wal.ErrFenced) {
		t.Log(err)
	}
}

// close ends everything; dead are hosts that were killed.
func (c *cluster) close(dead ...*node) {
	c.cancel()
	c.runs.Wait()
	c.mu.Lock()
	for _, n := range c.hosts {
		dead = append(dead, n)
	}
	c.mu.Unlock()
	for _, n := range dead {
		n.close(c.t)
	}
	if err := c.engine.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) node(address string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[address]
}

// place moves everything to a host, as a placement service tells it.
func (c *cluster) place(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.placed = address
}

// placeOf is where an actor is placed.
func (c *cluster) placeOf(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id != keeper.ShardID && c.apart != "" {
		return c.apart
	}
	return c.placed
}

// Do takes commands to where a shard is placed, as the data plane does.
func (c *cluster) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	n := c.node(c.placeOf(shardID))
	if n == nil || n.isCut() {
		for _, cmd := range cmds {
			cmd.Release(kverr.New(kverr.Unavailable, "reach the shard", "nobody answers"))
		}
		return
	}
	n.host.Do(ctx, shardID, cmds...)
}

type placementOf struct {
	c       *cluster
	address string
}

func (p placementOf) Placed(id string) bool { return p.c.placeOf(id) == p.address }
func (p placementOf) Wake(string)           {}

// peersOf is the way from one host to the others.
type peersOf struct {
	c    *cluster
	from string
}

func (p peersOf) Yield(ctx context.Context, shardID string, holder wal.Holder) time.Duration {
	n := p.c.node(holder.Address)
	if n == nil || n.isCut() {
		return 0
	}
	if wait := n.host.Waits(shardID, holder.Epoch); wait > 0 {
		return wait
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		n.host.Yield(ctx, shardID, holder.Epoch)
	}()
	select {
	case <-answered:
	case <-ctx.Done(): // a caller does not wait for a host that does not answer
	}
	return 0
}

func (p peersOf) Serves(_ context.Context, shardID string, holder wal.Holder) (memhost.Serving, error) {
	if n := p.c.node(holder.Address); n != nil && !n.isCut() {
		return n.host.Serves(shardID, holder.Epoch), nil
	}
	return memhost.Serving{}, errors.New("cut off")
}

func (n *node) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut
}

// Locate has whatever is placed opened where it is placed.
func (c *cluster) Locate(ctx context.Context, id string) (host.Location, error) {
	n := c.node(c.placeOf(id))
	if n == nil || n.isCut() {
		return host.Location{}, kverr.New(kverr.Unavailable, "locate", "nobody answers")
	}
	r, err := n.host.Use(ctx, id)
	if err != nil {
		return host.Location{}, err
	}
	return host.Location{Address: n.address, Epoch: r.Log().Epoch().Counter}, nil
}

// connect connects to a host, from another one if from is not nil.
func (c *cluster) connect(ctx context.Context, address string, from *node) (net.Conn, error) {
	to := c.node(address)
	if to == nil || to.isCut() || from != nil && from.isCut() {
		return nil, errors.New("connection refused")
	}
	conn, err := to.listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	to.keep(conn)
	if from != nil {
		from.keep(conn)
	}
	return conn, nil
}

func (n *node) keep(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, conn)
}

// client makes a client of the cluster and runs it.
func (c *cluster) client() *catalog.Client {
	c.t.Helper()
	d, err := catalog.NewClient(c, catalog.ClientConfig{Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return c.connect(ctx, address, nil)
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.runs.Go(func() { d.Run(c.ctx) })
	return d
}

// settle waits until the owner, whichever of these hosts that is, has no chores.
func (c *cluster) settle(addresses ...string) {
	c.t.Helper()
	for range 1000 {
		for _, a := range addresses {
			if now, err := c.node(a).keeper.Catalog(c.t.Context()); err == nil && now.Chores == 0 {
				return
			}
		}
		time.Sleep(100 * time.Millisecond) // of the bubble
	}
	c.t.Fatalf("chores do not end: %v", c.failed)
}

// stored lists which of some shards the store has.
func (c *cluster) stored(ids []string) (there []string) {
	c.t.Helper()
	for _, id := range ids {
		if _, _, err := c.engine.Manifest(c.t.Context(), id); err == nil {
			there = append(there, id)
		}
	}
	return there
}

func (c *cluster) put(address, shardID string, ns shard.NamespaceID, key string) error {
	done := make(chan error, 1)
	cmd := &shard.Command{
		Op: shard.OpPut, Namespace: ns, Put: shard.Put{Key: []byte(key), Value: shard.Value{Inline: []byte("v")}},
		Done: func(cmd *shard.Command, err error) {
			if err == nil && cmd.Result.Err != nil {
				err = cmd.Result.Err
			}
			done <- err
		},
	}
	c.node(address).host.Do(c.t.Context(), shardID, cmd)
	return <-done
}

// run runs a test in a bubble.
func run(t *testing.T, addresses []string, test func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, addresses...)
		test(t, c)
	})
}
