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
	"net"
	"os"
	"path/filepath"
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
	"kvstore/components/wal/driver"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
)

// Node is one process. Its doors are open from New on; it serves between the start and the end of Run.
type Node struct {
	cfg         Config
	doors       *doors
	grpc, admin net.Listener
	ready       readiness
	served      chan struct{} // closed once it serves
	progress    progress
}

// New checks the configuration, reads the doors' files and opens the doors, so that a taken port or a bad certificate is known at once. Run must be called, or Close.
func New(cfg Config) (*Node, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, served: make(chan struct{})}
	n.progress.out = cfg.Progress
	n.ready.set("starting")
	var err error
	if n.doors, err = openDoors(cfg.Access, cfg.Log); err != nil {
		return nil, err
	}
	if n.grpc, err = listen(DoorGRPC, cfg.GRPCListen); err != nil {
		return nil, err
	}
	if n.admin, err = listen(DoorAdmin, cfg.AdminListen); err != nil {
		return nil, errors.Join(err, n.grpc.Close())
	}
	return n, nil
}

// Close closes the doors of a node that will not run.
func (n *Node) Close() error { return errors.Join(n.grpc.Close(), n.admin.Close()) }

// GRPCAddr is where the public API is.
func (n *Node) GRPCAddr() string { return n.grpc.Addr().String() }

// AdminAddr is where the admin port is.
func (n *Node) AdminAddr() string { return n.admin.Addr().String() }

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
	open.add(serveAdmin(n.admin, &n.ready, n.doors))
	if n.cfg.Insecure {
		log.Warn("insecure: doors may be open to other machines without TLS, or without a way to know who comes",
			append(n.doors.describe(), "grpc", n.GRPCAddr(), "admin", n.AdminAddr())...)
	}
	log.Info("starting", "version", n.cfg.Version, "target", n.cfg.Target, "engine", n.cfg.Engine, "store", n.cfg.store(),
		"grpc", n.GRPCAddr(), "admin", n.AdminAddr(), "pid", os.Getpid())
	log.Info("doors", n.doors.describe()...)
	grpcStarted := false
	defer func() {
		if !grpcStarted {
			_ = n.grpc.Close()
		}
	}()

	engine, err := n.openEngine(ctx)
	if err != nil {
		return err
	}
	open.add(func(context.Context) error { return engine.Close() })
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		return err
	}

	hostCfg := memhost.Config{MemoryBudget: memoryBudget(n.cfg.MemoryBudget, machineMemory()), Events: n.events()}
	hostCfg.Actor.CheckpointBytes = n.cfg.CheckpointBytes
	hostCfg.IdleAfter = max(n.cfg.IdleAfter, 0)
	shards, err := memhost.New(store, hostCfg)
	if err != nil {
		return err
	}
	open.add(func(ctx context.Context) error { return shards.Close(ctx, true) })

	dir, err := keeper.New(shards, shards, keeper.Config{
		DefaultShards: n.cfg.DefaultShards,
		Failed:        func(what string, err error) { log.Warn("the directory will try again", "what", what, "error", err) },
	})
	if err != nil {
		return err
	}
	shards.RememberWith(dir)
	if err := dir.Begin(ctx, store); err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}

	if err := n.activate(ctx, dir, shards); err != nil {
		return err
	}

	front, err := frontend.New(frontend.Config{
		Access:        n.doors.tokens,
		MaxValueBytes: n.cfg.MaxValueBytes, Version: n.cfg.Version, Log: log,
		Status: func(context.Context) (*kvv1.StatusResponse, error) { return statusOf(store, shards), nil },
	}, shards, catalog.Local{Keeper: dir})
	if err != nil {
		return err
	}
	grpcStarted = true
	failed := make(chan error, 1)
	open.add(n.serveGRPC(front, failed))
	n.ready.serve(func() error { return whyNotReady(engine, shards) })
	if err := n.writeAddresses(); err != nil {
		return err
	}
	open.add(func(context.Context) error { return n.removeAddresses() })
	close(n.served)
	log.Info("serving", "took", time.Since(began).Round(time.Millisecond).String(), "grpc", n.GRPCAddr(), "admin", n.AdminAddr(),
		"memory_budget", hostCfg.MemoryBudget)

	select {
	case <-ctx.Done():
		log.Info("stopping", "drain_timeout", n.cfg.DrainTimeout.String())
		return nil
	case err := <-failed:
		return fmt.Errorf("serve gRPC: %w", err)
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

// serveGRPC serves the public API with health and reflection; what ends it unasked goes to failed.
func (n *Node) serveGRPC(front *frontend.Server, failed chan<- error) (stop func(context.Context) error) {
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
			failed <- err
		}
	}()
	return func(ctx context.Context) error {
		status.Shutdown() // load balancers stop sending before calls are cut off
		front.Stop()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			srv.GracefulStop()
		}()
		// Half of the time is kept for checkpoints.
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
		<-done
		return nil
	}
}

// whyNotReady tells what keeps shards from serving reads and writes.
func whyNotReady(engine driver.Engine, shards *memhost.Host) error {
	if free, reserve := engine.Space(); reserve > 0 && free < reserve {
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
	GRPC  string `json:"grpc"`
	Admin string `json:"admin"`
	PID   int    `json:"pid"`
}

// writeAddresses writes the address file so that nobody sees half of it.
func (n *Node) writeAddresses() error {
	if n.cfg.AddressFile == "" {
		return nil
	}
	text, err := json.Marshal(addresses{n.GRPCAddr(), n.AdminAddr(), os.Getpid()})
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
