package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/daprhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/dataplane"
)

// dial makes the way to this process's daprd, and to the other parts of the cluster through it.
func (n *Node) dial(open *closers) (*daprhost.Sidecar, *daprhost.Locator, *dataplane.Client, error) {
	sidecar, err := daprhost.Dial(daprhost.SidecarConfig{Address: n.cfg.Cluster.DaprGRPC, Token: n.cfg.Cluster.DaprToken})
	if err != nil {
		return nil, nil, nil, err
	}
	open.add(func(context.Context) error { return sidecar.Close() })
	locator, err := daprhost.NewLocator(sidecar, daprhost.LocatorConfig{})
	if err != nil {
		return nil, nil, nil, err
	}
	cfg := dataplane.ClientConfig{Locator: locator, TLS: n.doors.peerClient(), Tracer: n.traces.Tracer(), Events: n.metrics.DataPlane()}
	if n.cfg.Cluster.DaprInvoke {
		n.cfg.Log.Warn("insecure: requests may travel by Dapr, which does not tell who calls an actor", "dapr_invoke", true)
		cfg.Invoker = locator
	}
	shards, err := dataplane.NewClient(cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	n.metrics.WatchDataPlane(shards)
	open.add(func(context.Context) error {
		shards.Close()
		return nil
	})
	return sidecar, locator, shards, nil
}

// activations is how many shards a host of a cluster opens at once. Most of that is waiting, for Redis and for other hosts, and when a host is lost
// its shards are to be opened within a fraction of the lease term that they wait for anyway.
const activations = 16

// clusterReplay is how much log the shards of a keyspace gather together before their checkpoints, in a cluster: the hosts that take over a killed one's
// share replay it while nobody can write to it, beside those who write to the other shards. A put takes 4 to 8 us of a processor to replay (BenchmarkReplay):
// a third of this, of small puts, about a second, half of which is within the dead host's lease. The 24 MiB a shard that suit one process would be
// ten times that. A shard alone gathers no less than minCheckpointBytes, so that checkpoints cost little beside what they cover.
const (
	clusterReplay      = 64 << 20
	minCheckpointBytes = 1 << 20
)

// startShard starts a host of shards: Dapr says which of them to open, and frontends come by the data plane.
func (n *Node) startShard(ctx context.Context, open *closers) (ready func() error, err error) {
	store, err := n.openStore(ctx, open)
	if err != nil {
		return nil, err
	}
	if err := keeper.Make(ctx, store); err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	sidecar, locator, elsewhere, err := n.dial(open)
	if err != nil {
		return nil, err
	}
	peers := &connections{tls: n.doors.peerClient(), open: make(map[string]*grpc.ClientConn)}
	open.add(func(context.Context) error { return peers.close() })

	var server *dataplane.Server // set before Dapr calls
	cfg := daprhost.Config{Shards: n.hostConfig(), Dial: peers.dial, Events: n.sidecarEvents()}
	if n.cfg.CheckpointBytes == 0 {
		cfg.Shards.Actor.CheckpointBytes = max(clusterReplay/int64(max(1, n.cfg.DefaultShards)), minCheckpointBytes)
	}
	cfg.Shards.Address = n.dataAddress()
	cfg.Shards.Activations = activations
	if n.cfg.Cluster.DaprInvoke {
		cfg.Methods = map[string]daprhost.Handler{dataplane.MethodExchange: func(ctx context.Context, _ string, payload []byte) ([]byte, error) {
			return server.Invoke(ctx, payload)
		}}
	}
	shards, err := daprhost.New(store, sidecar, cfg)
	if err != nil {
		return nil, err
	}
	open.add(func(ctx context.Context) error { return shards.Close(ctx, true) }) // again, when what follows fails
	n.metrics.WatchHost(store.Engine(), shards.Host)
	server = dataplane.NewServer(shards, dataplane.ServerConfig{Status: func() *kvv1.StatusResponse { return statusOf(store, shards.Host) }})
	here, err := keeper.New(shards, chores{shards, elsewhere}, n.keeperConfig())
	if err != nil {
		return nil, err
	}
	directory, err := catalog.NewServer(here, catalog.ServerConfig{})
	if err != nil {
		return nil, err
	}
	wherever, err := n.follow(ctx, open, locator)
	if err != nil {
		return nil, err
	}
	shards.RememberWith(wherever)
	srv := grpc.NewServer(append(dataplane.ServerOptions(nil), n.doors.peerOptions()...)...)
	server.Register(srv)
	shards.RegisterPeers(srv)
	directory.Register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(n.data); err != nil {
			n.failed <- fmt.Errorf("serve the data plane: %w", err)
		}
	}()
	open.add(func(ctx context.Context) error {
		directory.Stop()
		server.Stop()
		n.stopGRPC(ctx, srv)
		<-done
		server.Close()
		return nil
	})
	shards.Begin()
	open.add(func(ctx context.Context) error { return n.handOver(ctx, store, shards) }) // first of all: shards are handed over while they are served
	return func() error {
		if err := shards.Ready(); err != nil {
			return fmt.Errorf("no way from Dapr to this host: %w", err)
		}
		return whyNotReady(store, shards.Host)
	}, nil
}

// handOver closes the shards. A store that does not answer cannot be told of it, nor take checkpoints: then their leases end by themselves, and waiting for it
// would take all of DrainTimeout, as when docker compose restart takes the network away from those whom it stops next.
func (n *Node) handOver(ctx context.Context, store *wal.Store, shards *daprhost.Host) error {
	if err := answers(store); err != nil {
		n.cfg.Log.Warn("the store does not answer: shards are given up without telling it", "error", err)
		bounded, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		ctx = bounded
	}
	return shards.Close(ctx, true)
}

// chores are the shards as the directory's chores need them, wherever they are: Create and Remove are done here, on the store that all
// hosts share, commands where the shard is.
type chores struct {
	*daprhost.Host
	elsewhere *dataplane.Client
}

// Do hands commands to a shard.
func (c chores) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	c.elsewhere.Do(ctx, shardID, cmds...)
}

// sidecarEvents turns what a host tells of its sidecar into the log.
func (n *Node) sidecarEvents() daprhost.Events {
	log := n.cfg.Log
	return daprhost.Events{
		Ready: func(took time.Duration) {
			log.Info("Dapr routes to this host", "took", took.Round(time.Millisecond).String())
		},
		Lost: func(why error) {
			log.Warn("Dapr does not route to this host; shards that are open go on", "error", why)
		},
		Ended: func(why string, err error) {
			log.Warn("the sidecar was asked to end, for its supervisor to start it again", "why", why, "error", err)
		},
	}
}

// startFrontend starts what users talk to: where shards are it learns from Dapr, what there is from the directory's host.
func (n *Node) startFrontend(ctx context.Context, open *closers) (ready func() error, err error) {
	sidecar, locator, shards, err := n.dial(open)
	if err != nil {
		return nil, err
	}
	dir, err := n.follow(ctx, open, locator)
	if err != nil {
		return nil, err
	}
	n.inBackground(ctx, open, func(ctx context.Context) { n.wake(ctx, dir, locator) })
	hosts := &connections{tls: n.doors.peerClient(), open: make(map[string]*grpc.ClientConn)}
	open.add(func(context.Context) error { return hosts.close() })
	status := func(ctx context.Context) (*kvv1.StatusResponse, error) {
		return clusterStatus(ctx, dir, locator, hosts)
	}
	if err := n.serveUsers(open, shards, dir, status); err != nil {
		return nil, err
	}
	return func() error { return whyNotRouting(dir, sidecar, locator, shards) }, nil
}

// whyNotRouting tells what keeps a frontend from passing requests on to shards. While it has a stream to a host it serves what is there, also without
// placement, whose loss all frontends would tell of at once; without one it must be able to find hosts.
func whyNotRouting(dir *catalog.Client, sidecar *daprhost.Sidecar, locator *daprhost.Locator, shards *dataplane.Client) error {
	if err := dir.Ready(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if err := sidecar.Answers(ctx); err != nil {
		return fmt.Errorf("its daprd does not answer: %w", err)
	}
	if shards.Linked() {
		return nil
	}
	ctx, cancel = context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if _, err := locator.Locate(ctx, keeper.ShardID); err != nil && kverr.KindOf(err) == kverr.Unavailable {
		return fmt.Errorf("no host of shards is found: %w", err)
	}
	return nil
}

// follow keeps a copy of the directory, wherever it is.
func (n *Node) follow(ctx context.Context, open *closers, locator *daprhost.Locator) (*catalog.Client, error) {
	dir, err := catalog.NewClient(locator, catalog.ClientConfig{TLS: n.doors.peerClient(), Failed: func(err error) {
		n.cfg.Log.Warn("the directory is not followed; what was read of it stays in use", "error", err)
	}})
	if err != nil {
		return nil, err
	}
	n.inBackground(ctx, open, dir.Run)
	return dir, nil
}

// inBackground runs f until the node stops.
func (n *Node) inBackground(ctx context.Context, open *closers, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	open.add(func(context.Context) error {
		cancel()
		<-done
		return nil
	})
}

// wake has every shard opened once, so that the first request for it does not wait, and what expires in it does expire. Shards that are
// made later are opened by their first request.
func (n *Node) wake(ctx context.Context, dir *catalog.Client, locator *daprhost.Locator) {
	var ids []string
	for len(ids) == 0 { // the first keyspace may be still being made
		if s, err := dir.Snapshot(ctx); err == nil {
			ids = shardsOf(s)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	began, found := time.Now(), 0
	for _, id := range ids {
		if _, err := locator.Locate(ctx, id); err == nil {
			found++
		} else if ctx.Err() != nil {
			return
		}
	}
	n.cfg.Log.Info("shards are found", "shards", len(ids), "found", found, "took", time.Since(began).Round(time.Millisecond).String())
}

// connections are those to other hosts of shards, one for each address.
type connections struct {
	tls *tls.Config

	mu   sync.Mutex
	open map[string]*grpc.ClientConn // guarded by mu
	over bool                        // guarded by mu
}

// maxConnections bounds the addresses that a process remembers: hosts come back under old ones, or under new ones in a cloud.
const maxConnections = 1024

// dial returns the connection to an address; it is made when it is used.
func (c *connections) dial(address string) (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.open[address]; conn != nil {
		return conn, nil
	}
	if c.over {
		return nil, errors.New("the process is stopping")
	}
	if len(c.open) >= maxConnections {
		for old, conn := range c.open { // any: those that are needed are made again
			_ = conn.Close()
			delete(c.open, old)
			break
		}
	}
	creds := insecure.NewCredentials()
	if c.tls != nil {
		creds = credentials.NewTLS(c.tls)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: time.Second,
	}))
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", address, err)
	}
	c.open[address] = conn
	return conn, nil
}

func (c *connections) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	var errs []error
	for _, conn := range c.open {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
