package node

import (
	"context"
	"net"
	"os"
)

// Target is a set of parts that run in one process (DESIGN D15).
type Target struct {
	// About tells people what it is.
	About string

	users   bool // it serves the public API
	stores  bool // it has an engine, and shards on it
	cluster bool // the other parts are in other processes
	// start starts the parts, adds to open what stops them, and returns why they are not ready.
	start func(n *Node, ctx context.Context, open *closers) (ready func() error, err error)
}

// Targets are the values of Config.Target.
var Targets = map[string]Target{
	"all":      {About: "frontend, shards and directory in one process", users: true, stores: true, start: (*Node).startAll},
	"shard":    {About: "a host of shards in a cluster, beside a daprd", stores: true, cluster: true, start: (*Node).startShard},
	"frontend": {About: "the public API of a cluster, beside a daprd", users: true, cluster: true, start: (*Node).startFrontend},
}

// Cluster is what parts in several processes need to find and reach each other.
type Cluster struct {
	// DataListen is where a host of shards serves the data plane, host:port. Default: on the loopback interface, at the port of the instance.
	DataListen string
	// DataAddress is where others reach it, host:port. Default DataListen, if that names an address.
	DataAddress string
	// DaprGRPC is the gRPC API of this process's daprd, host:port or unix:path. Default 127.0.0.1 at the port that DAPR_GRPC_PORT names, or
	// 50001.
	DaprGRPC string
	// DaprToken is the daprd's API token. Default: what DAPR_API_TOKEN holds.
	DaprToken string
	// DaprInvoke lets requests travel by Dapr's InvokeActor where a data plane cannot be reached. Dapr does not tell who calls an actor,
	// so everyone who may call actors of the namespace can then do everything.
	DaprInvoke bool
}

// daprPort is where daprd's gRPC API is by default.
const daprPort = "50001"

func (c *Cluster) ensureDefaults(instance int) {
	if c.DataListen == "" {
		c.DataListen = DoorDataPlane.Loopback(instance)
	}
	if c.DaprGRPC == "" {
		port := os.Getenv("DAPR_GRPC_PORT")
		if port == "" {
			port = daprPort
		}
		c.DaprGRPC = net.JoinHostPort("127.0.0.1", port)
	}
	if c.DaprToken == "" {
		c.DaprToken = os.Getenv("DAPR_API_TOKEN")
	}
}

// validate lists the faults of a cluster's part.
func (c *Cluster) validate(all *Config, t Target, check func(ok bool, format string, args ...any)) {
	if !t.stores {
		return
	}
	host, _, err := net.SplitHostPort(c.DataListen)
	if err != nil {
		check(false, "-data-listen is %q: it must be host:port", c.DataListen)
		return
	}
	if c.DataAddress != "" {
		_, _, err := net.SplitHostPort(c.DataAddress)
		check(err == nil, "-data-address is %q: it must be host:port", c.DataAddress)
	} else {
		ip := net.ParseIP(host)
		check(host != "" && (ip == nil || !ip.IsUnspecified()), "-data-listen is %q, which is no address that others can reach: name one with -data-address", c.DataListen)
	}
	missing := all.Access.missing(DoorDataPlane)
	check(all.Insecure || missing == "" || loopback(c.DataListen), "-data-listen is %q, which other machines can reach, and there is not: %s. Give it, or listen on 127.0.0.1, or say -insecure if the network is closed to everyone who may not read and write everything",
		c.DataListen, missing)
}

// dataAddress is where others reach this host.
func (n *Node) dataAddress() string {
	if n.cfg.Cluster.DataAddress != "" {
		return n.cfg.Cluster.DataAddress
	}
	return n.DataAddr() // the port may have been chosen
}
