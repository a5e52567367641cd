// Package node is a KVStore in one process: an engine, the shards and the directory on it, a frontend before them, and the doors
// that users and operators come in by. It starts them in the order in which they depend on each other and stops them in reverse.
//
// It holds no logic of its own; what a key or a block is, is decided further in.
//
//	n, err := node.New(node.Config{DataDir: "kvstore-data"})
//	err = n.Run(ctx) // until ctx ends
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
	"kvstore/services/gateway"
	"kvstore/services/resp"
	"kvstore/services/telemetry"
)

// Node is one process. Its doors are open from New on; it serves between the start and the end of Run.
type Node struct {
	cfg      Config
	doors    *doors
	grpc     net.Listener // nil: the target serves no users
	rest     net.Listener // nil: so, or it is turned off
	data     net.Listener // nil: it serves no frontends
	resp     net.Listener // nil: nobody asked for it
	admin    net.Listener
	ready    readiness
	served   chan struct{} // closed once it serves
	failed   chan error    // gets what ends a server unasked
	progress progress
	metrics  *telemetry.Telemetry
	traces   *telemetry.Traces // nil: nobody follows; set by Run, before anything starts
}

// New checks the configuration, reads the doors' files and opens the doors, so that a taken port or a bad certificate is known at once. Run must be called, or Close.
func New(cfg Config) (*Node, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, served: make(chan struct{}), failed: make(chan error, 4)}
	n.metrics = telemetry.New(telemetry.Info{Version: cfg.Version, Target: cfg.Target, Engine: cfg.Engine})
	n.progress.out = cfg.Progress
	n.ready.set("starting")
	var err error
	if n.doors, err = openDoors(cfg.Access, cfg.Log); err != nil {
		return nil, err
	}
	t := Targets[cfg.Target]
	for _, door := range []struct {
		to   *net.Listener
		what Door
		at   string
		open bool
	}{
		{&n.grpc, DoorGRPC, cfg.GRPCListen, t.users}, {&n.rest, DoorREST, cfg.RESTListen, t.users && cfg.RESTListen != Off},
		{&n.resp, DoorRESP, cfg.RESPListen, cfg.RESPListen != ""},
		{&n.data, DoorDataPlane, cfg.Cluster.DataListen, t.cluster && t.stores}, {&n.admin, DoorAdmin, cfg.AdminListen, true},
	} {
		if !door.open {
			continue
		}
		if *door.to, err = listen(door.what, door.at); err != nil {
			n.closeListeners()
			return nil, err
		}
	}
	return n, nil
}

// Close closes the doors of a node that will not run.
func (n *Node) Close() error {
	n.closeListeners()
	return nil
}

func (n *Node) closeListeners() {
	for _, l := range []net.Listener{n.grpc, n.rest, n.resp, n.data, n.admin} {
		if l != nil {
			_ = l.Close() // a second time when it was served
		}
	}
}

// GRPCAddr is where the public API is; empty when the target has none.
func (n *Node) GRPCAddr() string { return addressOf(n.grpc) }

// RESTAddr is where REST is; empty when the target has none, or it is turned off.
func (n *Node) RESTAddr() string { return addressOf(n.rest) }

// DataAddr is where the data plane is; empty when the target has none.
func (n *Node) DataAddr() string { return addressOf(n.data) }

// RESPAddr is where the door for Redis's protocol is; empty when there is none.
func (n *Node) RESPAddr() string { return addressOf(n.resp) }

// AdminAddr is where the admin port is.
func (n *Node) AdminAddr() string { return addressOf(n.admin) }

func addressOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// describe tells where the doors are.
func (n *Node) describe() []any {
	var all []any
	for _, door := range []struct{ name, at string }{{"grpc", n.GRPCAddr()}, {"rest", n.RESTAddr()}, {"resp", n.RESPAddr()}, {"data", n.DataAddr()}, {"admin", n.AdminAddr()}} {
		if door.at != "" {
			all = append(all, door.name, door.at)
		}
	}
	return all
}

// Serving is closed once the node serves.
func (n *Node) Serving() <-chan struct{} { return n.served }

// closers are what was started, to be stopped in reverse.
type closers struct{ stops []func(context.Context) error }

func (c *closers) add(f func(context.Context) error) { c.stops = append(c.stops, f) }

func (c *closers) close(ctx context.Context) error {
	var errs []error
	for i := len(c.stops) - 1; i >= 0; i-- {
		errs = append(errs, c.stops[i](ctx))
	}
	return errors.Join(errs...)
}

// Run starts everything, serves until ctx ends, and stops everything within Config.DrainTimeout. It returns nil after a clean
// stop.
func (n *Node) Run(ctx context.Context) (err error) {
	began := time.Now()
	log := n.cfg.Log
	defer n.closeListeners() // those that nobody has begun to serve: the others are closed by then
	var open closers
	defer func() {
		n.ready.set("stopping")
		// Stopping is not bound to ctx, which has ended, but to its own time.
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.cfg.DrainTimeout)
		defer cancel()
		stopped := time.Now()
		if cerr := open.close(drain); cerr != nil {
			err = errors.Join(err, cerr)
		} else if err == nil {
			log.Info("stopped", "took", time.Since(stopped).Round(time.Millisecond).String())
		}
	}()

	open.add(n.doors.watch())
	open.add(serveAdmin(n.admin, &n.ready, n.doors, n.metrics.Handler(log)))
	if n.cfg.Insecure {
		log.Warn("insecure: doors may be open to other machines without TLS, or without a way to know who comes",
			append(n.doors.describe(), n.describe()...)...)
	}
	log.Info("starting", append(n.describe(), "version", n.cfg.Version, "target", n.cfg.Target, "engine", n.cfg.Engine, "store", n.cfg.store(), "pid", os.Getpid())...)
	log.Info("doors", n.doors.describe()...)
	if err := n.openTraces(ctx, &open); err != nil {
		return err
	}
	ready, err := Targets[n.cfg.Target].start(n, ctx, &open)
	if err != nil {
		return err
	}
	n.ready.serve(ready)
	if err := n.writeAddresses(); err != nil {
		return err
	}
	open.add(func(context.Context) error { return n.removeAddresses() })
	close(n.served)
	log.Info("serving", append(n.describe(), "took", time.Since(began).Round(time.Millisecond).String())...)

	select {
	case <-ctx.Done():
		log.Info("stopping", "drain_timeout", n.cfg.DrainTimeout.String())
		return nil
	case err := <-n.failed:
		return err
	}
}

// openTraces begins to send traces, if that is wanted.
func (n *Node) openTraces(ctx context.Context, open *closers) error {
	cfg := n.cfg.Traces
	if err := cfg.Resolve(); err != nil {
		return err
	}
	traces, err := n.metrics.OpenTraces(ctx, cfg, n.cfg.Log)
	if err != nil || traces == nil {
		return err
	}
	n.traces = traces
	open.add(traces.Close)
	n.cfg.Log.Info("traces", "endpoint", cfg.Endpoint, "sample", cfg.Sample)
	return nil
}

// startAll starts what one process needs for itself.
func (n *Node) startAll(ctx context.Context, open *closers) (ready func() error, err error) {
	store, err := n.openStore(ctx, open)
	if err != nil {
		return nil, err
	}
	shards, err := memhost.New(store, n.hostConfig())
	if err != nil {
		return nil, err
	}
	open.add(func(ctx context.Context) error { return shards.Close(ctx, true) })
	n.metrics.WatchHost(store.Engine(), shards)

	dir, err := keeper.New(shards, shards, n.keeperConfig())
	if err != nil {
		return nil, err
	}
	shards.RememberWith(dir)
	if err := dir.Begin(ctx, store); err != nil {
		return nil, fmt.Errorf("open the directory: %w", err)
	}
	if err := n.activate(ctx, dir, shards); err != nil {
		return nil, err
	}
	status := func(context.Context) (*kvv1.StatusResponse, error) { return statusOf(store, shards), nil }
	if err := n.serveUsers(open, shards, catalog.Local{Keeper: dir}, status); err != nil {
		return nil, err
	}
	return func() error { return whyNotReady(store, shards) }, nil
}

// openStore opens the engine.
func (n *Node) openStore(ctx context.Context, open *closers) (*wal.Store, error) {
	engine, err := n.openEngine(ctx)
	if err != nil {
		return nil, err
	}
	open.add(func(context.Context) error { return engine.Close() })
	watched := watchSpace(engine, n.cfg.Log)
	open.add(watched.unwatch)
	return wal.NewStore(n.metrics.Engine(watched), wal.Config{})
}

// hostConfig is how shards run here.
func (n *Node) hostConfig() memhost.Config {
	cfg := memhost.Config{MemoryBudget: memoryBudget(n.cfg.MemoryBudget, machineMemory()), Events: n.events()}
	cfg.Actor.CheckpointBytes = n.cfg.CheckpointBytes
	cfg.IdleAfter = max(n.cfg.IdleAfter, 0)
	cfg.Events.Followed = n.traces.Followed()
	n.cfg.Log.Info("shards", "memory_budget", cfg.MemoryBudget, "idle_after", cfg.IdleAfter.String())
	return cfg
}

// keeperConfig is how the directory runs here.
func (n *Node) keeperConfig() keeper.Config {
	return keeper.Config{
		DefaultShards: n.cfg.DefaultShards,
		Failed: func(what string, err error) {
			n.cfg.Log.Warn("the directory will try again", "what", what, "error", err)
		},
	}
}

// serveUsers opens the doors to the public API.
func (n *Node) serveUsers(open *closers, shards frontend.Shards, dir frontend.Directory, status func(context.Context) (*kvv1.StatusResponse, error)) error {
	stores := 0
	if n.cfg.Engine == EngineDisk { // a store elsewhere is waited for, not worked for
		stores = 2 * runtime.GOMAXPROCS(0)
	}
	front, err := frontend.New(frontend.Config{
		Access:        n.doors.tokens,
		MaxValueBytes: n.cfg.MaxValueBytes, ClientRate: n.cfg.ClientRate, Version: n.cfg.Version, Log: n.cfg.Log, Status: status, Meter: n.metrics.Requests(),
		Tracer: n.traces.Tracer(), StoresAtOnce: stores,
	}, shards, dir)
	if err != nil {
		return err
	}
	n.metrics.WatchFrontend(front)
	if n.resp != nil {
		open.add(n.serveRESP(front))
	}

	open.add(n.serveGRPC(front))
	if n.rest == nil {
		return nil
	}
	stop, err := n.serveREST(front)
	if err != nil {
		return err
	}
	open.add(stop)
	return nil
}

// serveRESP serves Redis's protocol. It is stopped once the gRPC API is.
func (n *Node) serveRESP(front *frontend.Server) (stop func(context.Context) error) {
	srv := resp.New(resp.Config{Databases: n.cfg.RESPDatabases, Version: n.cfg.Version, Log: n.cfg.Log, Refused: n.doors.stranger}, front.Face())
	n.metrics.WatchRESP(srv.Connections)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(n.doors.listener(n.resp)); err != nil {
			n.failed <- err
		}
	}()
	return func(ctx context.Context) error {
		patience, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout/2)
		defer cancel()
		srv.Stop(patience)
		<-done
		return nil
	}
}

// activate brings every shard back, so that the first request does not wait for it. One that fails does not keep the others from
// serving: /readyz tells of it, and requests for it get its error.
func (n *Node) activate(ctx context.Context, dir *keeper.Keeper, shards *memhost.Host) error {
	catalog, err := dir.Catalog(ctx)
	if err != nil {
		return fmt.Errorf("read the directory: %w", err)
	}
	ids := shardIDs(catalog)
	began := time.Now()
	n.ready.set(fmt.Sprintf("recovering %d shards", len(ids)))
	n.progress.begin(len(ids))
	work := make(chan string)
	var wait sync.WaitGroup
	for range 2 { // as many as memhost activates at once
		wait.Go(func() {
			for id := range work {
				if _, err := shards.View(ctx, id); err != nil && ctx.Err() == nil {
					n.cfg.Log.Error("a shard does not come back", "shard", id, "error", err)
				}
				n.progress.done()
			}
		})
	}
	for _, id := range ids {
		select {
		case work <- id:
		case <-ctx.Done():
		}
	}
	close(work)
	wait.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("stopped while recovering: %w", context.Cause(ctx))
	}
	n.progress.end()
	n.progress.mu.Lock()
	items, records, bytes := n.progress.sum()
	n.progress.mu.Unlock()
	n.cfg.Log.Info("recovered", "shards", len(ids), "took", time.Since(began).Round(time.Millisecond).String(),
		"items", items, "records", records, "bytes", bytes)
	return nil
}

func shardIDs(c *directory.Catalog) []string {
	var ids []string
	for _, ks := range c.Keyspaces {
		if ks.Ready {
			ids = append(ids, ks.ShardIDs...)
		}
	}
	return ids
}

// serveGRPC serves the public API with health and reflection.
func (n *Node) serveGRPC(front *frontend.Server) (stop func(context.Context) error) {
	srv := grpc.NewServer(append(front.Options(), n.doors.grpcOptions()...)...)
	front.Register(srv)
	status := health.NewServer()
	healthpb.RegisterHealthServer(srv, status)
	reflection.Register(srv)
	for _, name := range frontend.Services() {
		status.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(n.grpc); err != nil {
			n.failed <- fmt.Errorf("serve gRPC: %w", err)
		}
	}()
	return func(ctx context.Context) error {
		status.Shutdown() // load balancers stop sending before calls are cut off
		front.Stop()
		n.stopGRPC(ctx, srv)
		<-done
		return nil
	}
}

// serveREST serves the same by HTTP.
func (n *Node) serveREST(front *frontend.Server) (stop func(context.Context) error, err error) {
	g, err := gateway.New(gateway.Config{
		Local: n.doors.tokens.Open() && loopback(n.RESTAddr()), ErrorLog: log.New(n.doors, "", 0), Metrics: n.metrics.Handler(n.cfg.Log),
	}, front.Calls())
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Serve(n.doors.restListener(n.rest)); !errors.Is(err, http.ErrServerClosed) {
			n.failed <- fmt.Errorf("serve REST: %w", err)
		}
	}()
	return func(ctx context.Context) error {
		front.Stop()
		patience, cancel := context.WithTimeout(ctx, n.cfg.DrainTimeout/4) // gRPC's calls and checkpoints come after
		defer cancel()
		err := g.Shutdown(patience)
		<-done
		return err
	}, nil
}

// stopGRPC ends a server when its calls have ended. Half of the time is kept for checkpoints.
func (n *Node) stopGRPC(ctx context.Context, srv *grpc.Server) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		srv.GracefulStop()
	}()
	half := n.cfg.DrainTimeout / 2
	patience, cancel := context.WithTimeout(ctx, half)
	defer cancel()
	select {
	case <-drained:
	case <-patience.Done():
		srv.Stop()
		<-drained
		n.cfg.Log.Info("cut off calls that did not end", "after", half.String())
	}
}

// probeTimeout is how long the store, or the sidecar, may take to answer whoever asks whether the process is ready; two of them follow each other within
// the time that kvstored healthcheck takes.
const probeTimeout = time.Second

// answers tells why a store does not answer what every engine answers, nil when it does.
func answers(store *wal.Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	_, err := store.Holder(ctx, keeper.ShardID)
	return err
}

// whyNotReady tells what keeps shards from serving reads and writes.
func whyNotReady(store *wal.Store, shards *memhost.Host) error {
	if err := answers(store); err != nil {
		return fmt.Errorf("the store does not answer: %w", err)
	}
	if free, reserve, short := shortOfSpace(store.Engine()); short {
		return fmt.Errorf("the store has %d bytes free, writes stop below %d", free, reserve)
	}
	for _, s := range shards.Status() {
		if s.State == memhost.StateReadOnly || s.State == memhost.StateFailed {
			return fmt.Errorf("shard %s is %s: %w", s.ID, s.State, s.Reason)
		}
	}
	return nil
}

// addresses is what the address file holds.
type addresses struct {
	GRPC  string `json:"grpc,omitempty"`
	REST  string `json:"rest,omitempty"`
	Data  string `json:"data,omitempty"`
	RESP  string `json:"resp,omitempty"`
	Admin string `json:"admin"`
	PID   int    `json:"pid"`
}

// writeAddresses writes the address file so that nobody sees half of it.
func (n *Node) writeAddresses() error {
	if n.cfg.AddressFile == "" {
		return nil
	}
	text, err := json.Marshal(addresses{n.GRPCAddr(), n.RESTAddr(), n.DataAddr(), n.RESPAddr(), n.AdminAddr(), os.Getpid()})
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(n.cfg.AddressFile), ".kvstored-*")
	if err != nil {
		return fmt.Errorf("address file: %w", err)
	}
	_, err = temp.Write(append(text, '\n'))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), n.cfg.AddressFile)
	}
	if err != nil {
		return fmt.Errorf("address file: %w", errors.Join(err, os.Remove(temp.Name())))
	}
	return nil
}

func (n *Node) removeAddresses() error {
	if n.cfg.AddressFile == "" {
		return nil
	}
	return os.Remove(n.cfg.AddressFile)
}
