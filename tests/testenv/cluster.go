package testenv

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
)

// Cluster is the product as processes of this machine: hosts of shards and frontends, each beside a daprd, on one placement service and one
// Redis that syncs every write. All but Redis are supervised.
type Cluster struct {
	RedisServer *Redis
	Placement   *Placement
	Hosts       []*Node
	Frontends   []*Node
}

// Node is one kvstored with its daprd.
type Node struct {
	*Process
	Sidecar *Sidecar
	Addr    string // gRPC; of frontends, as are REST and RESP
	REST    string
	RESP    string
	Data    string // data plane; of hosts
	Known   string // where others reach the data plane; of hosts
	Admin   string // /livez, /readyz
}

// ClusterConfig says what a cluster is. The zero value is the one of make up.
type ClusterConfig struct {
	Hosts     int // default 3
	Frontends int // default 2
	Shards    int // default 64
	// PlacementOf, when not nil, is where the daprd of a host reaches placement, which is at the address given: a proxy's.
	PlacementOf func(host int, address string) string
	// DataOf, when not nil, is where others reach the data plane of a host, which is at the address given: a proxy's.
	DataOf func(host int, address string) string
	// Args are flags of every host of shards.
	Args []string
}

// NewCluster starts everything and waits until it serves. bin is the folder with kvstored.
func NewCluster(t testing.TB, bin string, cfg ClusterConfig) *Cluster {
	t.Helper()
	for _, n := range []struct {
		to      *int
		without int
	}{{&cfg.Hosts, 3}, {&cfg.Frontends, 2}, {&cfg.Shards, 64}} {
		if *n.to == 0 {
			*n.to = n.without
		}
	}
	c := &Cluster{RedisServer: NewRedis(t), Placement: NewPlacement(t, nil)}
	path := filepath.Join(bin, "kvstored")
	for i := range cfg.Frontends {
		n := &Node{Addr: FreeAddr(t), REST: FreeAddr(t), RESP: FreeAddr(t), Admin: FreeAddr(t)}
		n.Sidecar = NewSidecar(t, SidecarConfig{AppID: "kvstore", Placement: c.Placement.Addr})
		n.Process = NewProcess(t, fmt.Sprint("frontend-", i+1), path, []string{
			"-target", "frontend", "-grpc-listen", n.Addr, "-rest-listen", n.REST, "-resp-listen", n.RESP, "-admin-listen", n.Admin,
			"-dapr-grpc", n.Sidecar.GRPC,
		}, nil).Supervised()
		n.Start(t)
		c.Frontends = append(c.Frontends, n)
	}
	for i := range cfg.Hosts {
		n := &Node{Data: FreeAddr(t), Admin: FreeAddr(t)}
		at := c.Placement.Addr
		if cfg.PlacementOf != nil {
			at = cfg.PlacementOf(i, at)
		}
		n.Known = n.Data
		if cfg.DataOf != nil {
			n.Known = cfg.DataOf(i, n.Data)
		}
		n.Sidecar = NewSidecar(t, SidecarConfig{AppID: "kvstore-shard", Placement: at})
		n.Process = NewProcess(t, fmt.Sprint("shard-", i+1), path, append([]string{
			"-target", "shard", "-engine", "redis", "-redis-url", "redis://" + c.RedisServer.Addr, "-shards", fmt.Sprint(cfg.Shards),
			"-data-listen", n.Data, "-data-address", n.Known, "-admin-listen", n.Admin, "-dapr-grpc", n.Sidecar.GRPC,
		}, cfg.Args...), nil).Supervised()
		n.Start(t)
		c.Hosts = append(c.Hosts, n)
	}
	c.Await(t.Context(), t)
	return c
}

// Await waits until every process says that it serves.
func (c *Cluster) Await(ctx context.Context, t testing.TB) {
	t.Helper()
	c.Placement.AwaitHTTP(ctx, t, "http://"+c.Placement.Healthz+"/healthz")
	for _, nodes := range [][]*Node{c.Hosts, c.Frontends} {
		for _, n := range nodes {
			n.Sidecar.Await(ctx, t)
			n.AwaitHTTP(ctx, t, "http://"+n.Admin+"/readyz")
		}
	}
}

// Endpoints are the addresses of the frontends.
func (c *Cluster) Endpoints() (all []string) {
	for _, n := range c.Frontends {
		all = append(all, n.Addr)
	}
	return all
}
