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
	placed string           // the host that the directory, and all shards, are placed on; guarded by mu
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

	mu    sync.Mutex
	cut   bool       // no connection is made; guarded by mu
	conns []net.Conn // that clients have; guarded by mu
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
	if n.keeper, err = keeper.New(n.host, n.host, keeper.Config{DefaultShards: 3, Failed: func(what string, err error) {
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

func (c *cluster) isPlaced(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.placed == address
}

type placementOf struct {
	c       *cluster
	address string
}

func (p placementOf) Placed(string) bool { return p.c.isPlaced(p.address) }
func (p placementOf) Wake(string)        {}

// peersOf is the way from one host to the others.
type peersOf struct {
	c    *cluster
	from string
}

func (p peersOf) Yield(ctx context.Context, shardID string, holder wal.Holder) {
	n := p.c.node(holder.Address)
	if n == nil || n.isCut() {
		return
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
	c.mu.Lock()
	n := c.hosts[c.placed]
	c.mu.Unlock()
	if n == nil || n.isCut() {
		return host.Location{}, kverr.New(kverr.Unavailable, "locate", "nobody answers")
	}
	r, err := n.host.Use(ctx, id)
	if err != nil {
		return host.Location{}, err
	}
	return host.Location{Address: n.address, Epoch: r.Log().Epoch().Counter}, nil
}

func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	n := c.node(address)
	if n == nil || n.isCut() {
		return nil, errors.New("connection refused")
	}
	conn, err := n.listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, conn)
	return conn, nil
}

// client makes a client of the cluster and runs it.
func (c *cluster) client() *catalog.Client {
	c.t.Helper()
	d, err := catalog.NewClient(c, catalog.ClientConfig{Dial: c.dial})
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
