package daprhost_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"kvstore/actors/host"
	"kvstore/actors/host/daprhost"
	"kvstore/actors/host/hosttest"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// TestConformance: used through its sidecar, a host does what hosttest asks. Two hosts of a test are in the state that Dapr can be in for
// hours: each sidecar says that every shard is its host's.
func TestConformance(t *testing.T) {
	var network sync.Map // address -> *bufconn.Listener
	hosttest.Run(t, func(t testing.TB, o hosttest.Options) hosttest.Host {
		if o.Address == "" {
			o.Address = "host"
		}
		cfg := daprhost.Config{Beat: time.Hour, Shards: memhost.Config{
			Address: o.Address, IdleAfter: o.IdleAfter, MemoryBudget: o.MemoryBudget, Actor: o.Actor, Shard: o.Shard, Values: o.Values,
			CheckpointValueBytes: o.CheckpointValueBytes,
		}}
		cfg.Dial = func(string) (grpc.ClientConnInterface, error) { return nil, errors.New("unreachable") }
		h := &cluster{address: o.Address, sidecar: newSidecar(), peers: bufconn.Listen(1 << 16), server: grpc.NewServer()}
		if o.Reachable {
			network.Store(o.Address, h.peers)
			cfg.Dial = func(address string) (grpc.ClientConnInterface, error) {
				l, _ := network.Load(address)
				return h.dialPeer(t, l.(*bufconn.Listener)), nil
			}
		}
		h.link = h.sidecar.dial(t)
		var err error
		if h.Host, err = daprhost.New(o.Store, h.link, cfg); err != nil {
			t.Fatal(err)
		}
		if h.locator, err = daprhost.NewLocator(h.link, daprhost.LocatorConfig{}); err != nil {
			t.Fatal(err)
		}
		h.RegisterPeers(h.server)
		go h.server.Serve(h.peers)
		h.Begin()
		return h
	})
}

// cluster is a host as its users see it: they locate a shard by the host's sidecar, then go to where it is.
type cluster struct {
	*daprhost.Host
	address string
	sidecar *sidecar
	link    *daprhost.Sidecar
	locator *daprhost.Locator
	peers   *bufconn.Listener
	server  *grpc.Server

	mu    sync.Mutex
	conns []*grpc.ClientConn // guarded by mu
}

func (c *cluster) dialPeer(t testing.TB, l *bufconn.Listener) grpc.ClientConnInterface {
	conn, err := grpc.NewClient("passthrough:///peer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	return conn
}

// reach waits until the shard is served by this host.
func (c *cluster) reach(ctx context.Context, shardID string) error {
	loc, err := c.locator.Locate(ctx, shardID)
	if err != nil {
		return err
	}
	if loc.Address != c.address {
		return &kverr.Error{Kind: kverr.Moved, Message: "it is at " + loc.Address}
	}
	return nil
}

func (c *cluster) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	if err := c.reach(ctx, shardID); err != nil {
		for _, cmd := range cmds {
			cmd.Release(kverr.From(err))
		}
		return
	}
	c.Host.Do(ctx, shardID, cmds...)
}

func (c *cluster) View(ctx context.Context, shardID string) (shard.View, error) {
	if err := c.reach(ctx, shardID); err != nil {
		return shard.View{}, err
	}
	return c.Host.View(ctx, shardID)
}

func (c *cluster) PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error) {
	if err := c.reach(ctx, shardID); err != nil {
		return nil, err
	}
	return c.Host.PutValues(ctx, shardID, values...)
}

func (c *cluster) WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error) {
	if err := c.reach(ctx, shardID); err != nil {
		return shard.Ref{}, err
	}
	return c.Host.WriteValue(ctx, shardID, size, r)
}

func (c *cluster) ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error {
	if err := c.reach(ctx, shardID); err != nil {
		return err
	}
	return c.Host.ReadValue(ctx, shardID, ref, off, p)
}

func (c *cluster) Use(ctx context.Context, id string) (host.Resident, error) {
	if err := c.reach(ctx, id); err != nil {
		return nil, err
	}
	return c.Host.Use(ctx, id)
}

func (c *cluster) Next(ctx context.Context, id string) (host.Resident, error) {
	if err := c.reach(ctx, id); err != nil {
		return nil, err
	}
	return c.Host.Next(ctx, id)
}

func (c *cluster) Close(ctx context.Context, checkpoint bool) error {
	err := c.Host.Close(ctx, checkpoint)
	c.server.Stop()
	c.link.Close()
	c.sidecar.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	return err
}
