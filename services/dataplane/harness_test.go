package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

const testTimeout = 30 * time.Second

func testContext(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	tb.Cleanup(cancel)
	return ctx
}

// node is a host of shards with its data plane.
type node struct {
	*memhost.Host
	Plane   *Server
	GRPC    *grpc.Server
	Address string
	served  chan error
}

// cluster is some nodes on one engine, and who tells where shards are.
type cluster struct {
	tb     testing.TB
	faults *fault.Engine
	store  *wal.Store
	peers  memhost.LocalPeers
	nodes  []*node

	mu     sync.Mutex
	places map[string]host.Location // guarded by mu
	asked  map[string]int           // how often Locate was asked; guarded by mu
}

const namespace = shard.NamespaceID(1)

func shardID(n int) string { return fmt.Sprintf("k-%d", n) }

// newCluster makes nodes and shards, spread evenly over them, on an engine without leases: a host whose shard another has taken serves reads of it until it writes.
func newCluster(tb testing.TB, nodes, shards int) *cluster {
	tb.Helper()
	return newClusterOn(tb, memlog.Config{}, nodes, shards)
}

// newClusterOn is newCluster on an engine as it is configured.
func newClusterOn(tb testing.TB, cfg memlog.Config, nodes, shards int) *cluster {
	tb.Helper()
	engine, err := memlog.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	c := &cluster{tb: tb, faults: fault.Wrap(engine), places: make(map[string]host.Location), asked: make(map[string]int)}
	if c.store, err = wal.NewStore(c.faults, wal.Config{}); err != nil {
		tb.Fatal(err)
	}
	for range nodes {
		c.addNode()
	}
	for n := range shards {
		if err := c.store.Create(context.Background(), shardID(n), nil); err != nil {
			tb.Fatal(err)
		}
		c.place(shardID(n), host.Location{Address: c.nodes[n%nodes].Address})
	}
	tb.Cleanup(func() {
		for _, n := range c.nodes {
			n.kill()
		}
		for _, n := range c.nodes {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			if err := n.Close(ctx, false); err != nil && !errors.Is(err, driver.ErrFenced) { // others may have taken its shards
				tb.Errorf("close a host: %v", err)
			}
			cancel()
		}
		if err := engine.Close(); err != nil {
			tb.Errorf("close the engine: %v", err)
		}
	})
	return c
}

func (c *cluster) addNode() *node {
	c.tb.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.tb.Fatal(err)
	}
	n := &node{Address: lis.Addr().String(), GRPC: grpc.NewServer(ServerOptions(nil)...), served: make(chan error, 1)}
	if n.Host, err = memhost.New(c.store, memhost.Config{
		Address: n.Address, Peers: &c.peers, Shard: shard.Config{HistoryBytes: 1 << 30, HistoryChanges: 1 << 30},
	}); err != nil {
		c.tb.Fatal(err)
	}
	c.peers.Join(n.Host)
	n.Plane = NewServer(n.Host, ServerConfig{})
	n.Plane.Register(n.GRPC)
	go func() { n.served <- n.GRPC.Serve(lis) }()
	c.nodes = append(c.nodes, n)
	return n
}

// kill ends the node's data plane at once.
func (n *node) kill() {
	n.GRPC.Stop()
	n.Plane.Close()
}

func (c *cluster) place(id string, at host.Location) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.places[id] = at
}

// Locate is for Locator.
func (c *cluster) Locate(_ context.Context, id string) (host.Location, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[id]++
	at, ok := c.places[id]
	if !ok {
		return host.Location{}, kverr.New(kverr.NotFound, "locate", "there is no such shard")
	}
	if at.Address == "" {
		return host.Location{}, kverr.Busy(kverr.Unavailable, 5*time.Millisecond, "the shard is being opened")
	}
	return at, nil
}

// freezeAppends holds every append back until it is thawed.
func (c *cluster) freezeAppends() *fault.Armed {
	a := c.faults.Add(fault.Rule{Verb: fault.Append, Times: -1, Freeze: true})
	c.tb.Cleanup(a.Thaw)
	return a
}

// askedFor is how often a shard was looked for.
func (c *cluster) askedFor(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[id]
}

func (c *cluster) client(cfg ClientConfig) *Client {
	c.tb.Helper()
	if cfg.Locator == nil {
		cfg.Locator = c
	}
	client, err := NewClient(cfg)
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(client.Close)
	return client
}

// errNoAnswer is for a call that was never answered.
var errNoAnswer = errors.New("no answer")

// do sends one command and waits for its outcome.
func do(ctx context.Context, c doer, id string, cmd *shard.Command) error {
	done := make(chan error, 1)
	cmd.Done = func(_ *shard.Command, err error) { done <- err }
	c.Do(ctx, id, cmd)
	select {
	case err := <-done:
		if err == nil && cmd.Result.Err != nil {
			return cmd.Result.Err
		}
		return err
	case <-ctx.Done():
		return errNoAnswer
	}
}

type doer interface {
	Do(ctx context.Context, id string, cmds ...*shard.Command)
}

func put(k, v string) *shard.Command {
	return &shard.Command{Op: shard.OpPut, Namespace: namespace, Put: shard.Put{Key: []byte(k), Value: shard.Value{Inline: []byte(v)}}}
}

// get reads one key.
func get(ctx context.Context, c reader, id, k string) (value string, found bool, err error) {
	done := make(chan error, 1)
	q := &shard.Query{Op: shard.QueryGet, Namespace: namespace, Key: []byte(k), Done: func(_ *shard.Query, err error) { done <- err }}
	c.Read(ctx, id, q)
	select {
	case err := <-done:
		if err == nil && q.Answer.Err != nil {
			err = q.Answer.Err
		}
		return string(q.Answer.Entry.Value.Inline), q.Answer.Found, err
	case <-ctx.Done():
		return "", false, errNoAnswer
	}
}

type reader interface {
	Read(ctx context.Context, id string, queries ...*shard.Query)
}
