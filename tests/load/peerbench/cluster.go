package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/client"
)

// What cluster.sh starts (make up).
const (
	clusterRedis    = "127.0.0.1:6390"
	clusterFrontend = "127.0.0.1:8085"
	clusterOther    = "127.0.0.1:8086"
	clusterAdmin    = 2112 // port of the first frontend; the others follow, frontends first
)

// Kinds of processes.
const (
	kindFrontends = "frontends"
	kindHosts     = "hosts"
	kindRedis     = "redis"
	kindSidecars  = "sidecars"
	kindPlacement = "placement"
)

// actors is how many actors the peer's callers spread over: as many as the cluster has shards.
const actors = 64

// cluster compares the store as a cluster, two frontends and three hosts with a daprd each, all on Redis with appendfsync always, with
// what people build on Dapr actors (one call and one state transaction a put) on the same Redis, and with etcd.
func (b *bench) cluster(ctx context.Context) (err error) {
	script, err := filepath.Abs("tests/e2e/cluster.sh")
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "cluster")
	if err := command(ctx, script, "up", b.bin, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, command(context.WithoutCancel(ctx), script, "down", dir)) }()
	b.watched = watched{}
	defer func() { b.watched = nil }()
	for kind, pattern := range map[string]string{
		kindFrontends: "frontend-?", kindHosts: "shard-?", kindRedis: "redis", kindSidecars: "*-daprd", kindPlacement: "placement",
	} {
		if b.watched[kind], err = pidsOf(dir, pattern); err != nil {
			return err
		}
	}
	peer, stop, err := startDaprActors(ctx, b.bin, filepath.Join(b.dir, "dapractor"), b.watched)
	if err != nil {
		return err
	}
	defer stop()
	etcd, etcdAddr, err := startEtcd(ctx, b.bin, filepath.Join(b.dir, "etcd"))
	if err != nil {
		return err
	}
	defer etcd.stop()
	b.watched["etcd"] = []int{etcd.cmd.Process.Pid}
	e, err := newEtcd(etcdAddr)
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Config{Endpoints: []string{clusterFrontend, clusterOther}, Connections: 2})
	if err != nil {
		return err
	}
	defer c.Close()
	u, err := client.Dial(ctx, client.Config{Endpoints: []string{clusterFrontend, clusterOther}, Connections: 4, Unary: true})
	if err != nil {
		return err
	}
	defer u.Close()
	ours, unary := &ourSystem{c: []*client.Client{c}}, &ourSystem{c: []*client.Client{u}}
	base := load{keys: 10_000, size: 256}
	for _, s := range []system{e, ours, peer} {
		if err := fill(ctx, s, base); err != nil {
			return err
		}
	}
	at := func(c int) load { l := base; l.workers = c; l.d = b.d; return l }
	if err := b.idle(ctx, max(b.d, 3*time.Second)); err != nil {
		return err
	}
	for _, p := range []pair{
		{"cluster put c=64 / dapr actors", at(64), ours, peer, "Dapr actors, a transaction a put", false, 4, false},
		{"cluster put c=256 / dapr actors", at(256), ours, peer, "Dapr actors, a transaction a put", false, 4, false},
		{"cluster put c=1 p50 / dapr actors", at(1), ours, peer, "Dapr actors, a transaction a put", true, 0.6, true},
		{"cluster put c=64 / etcd", at(64), ours, e, "etcd", false, 1.2, false},
		{"cluster put c=256 / etcd", at(256), ours, e, "etcd", false, 1.2, false},
		{"cluster unary put c=64 / etcd", at(64), unary, e, "etcd", false, 0, false},
	} {
		if err := b.compare(ctx, p); err != nil {
			return err
		}
	}
	b.besides("cluster put c=64", kindSidecars, kindPlacement)
	b.besides("cluster put c=256", kindSidecars, kindPlacement)
	if b.profiles == "" {
		return nil
	}
	for _, c := range []int{1, 64, 256} {
		doors := make(map[string]string)
		for i, who := range []string{"frontend-1", "frontend-2", "shard-1", "shard-2", "shard-3"} {
			doors[who] = fmt.Sprintf("127.0.0.1:%d", clusterAdmin+i)
		}
		name := fmt.Sprintf("put-c%d", c)
		if err := b.profile(ctx, name, doors, func() error { _, err := run(ctx, ours, at(c)); return err }); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return nil
}

// daprActors calls actors of type "shard", which dapractor hosts, through a sidecar of its own.
type daprActors struct {
	dapr []runtimev1.DaprClient
	n    atomic.Uint64
}

func (s *daprActors) put(ctx context.Context, key string, value []byte) error {
	n := s.n.Add(1)
	_, err := s.dapr[n%uint64(len(s.dapr))].InvokeActor(ctx, &runtimev1.InvokeActorRequest{
		ActorType: "shard", ActorId: strconv.FormatUint(n%actors, 10), Method: "put", Data: value,
	})
	return err
}

func (s *daprActors) get(context.Context, string) error { return errors.New("the peer has no get") }

// startDaprActors starts a placement service, two sidecars and dapractor, with the cluster's Redis as state store, and has them
// watched.
func startDaprActors(ctx context.Context, bin, dir string, w watched) (s *daprActors, stop func(), err error) {
	var started []*server
	stop = func() {
		for i := len(started) - 1; i >= 0; i-- {
			started[i].stop()
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	resources := filepath.Join(dir, "resources")
	if err := os.MkdirAll(resources, 0o755); err != nil {
		return nil, nil, err
	}
	state := fmt.Sprintf(`apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.redis
  version: v1
  metadata: [{name: redisHost, value: "%s"}, {name: actorStateStore, value: "true"}]
`, clusterRedis)
	config := "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: bench}\nspec: {tracing: {samplingRate: \"0\"}}\n"
	err = errors.Join(os.WriteFile(filepath.Join(resources, "state.yaml"), []byte(state), 0o644), os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o644))
	if err != nil {
		return nil, nil, err
	}
	ports := make([]string, 9)
	for i := range ports {
		addr, err := freePort()
		if err != nil {
			return nil, nil, err
		}
		_, ports[i], _ = net.SplitHostPort(addr)
	}
	run := func(name, bin string, args ...string) error {
		p, err := start(name, dir, bin, args...)
		if err == nil {
			started = append(started, p)
			kind := "peer's " + strings.TrimSuffix(strings.TrimSuffix(name, "-actors"), "-caller")
			w[kind] = append(w[kind], p.cmd.Process.Pid)
		}
		return err
	}
	if err := run("placement", "placement", "--id", "p0", "--initial-cluster", "p0=127.0.0.1:"+ports[0], "--listen-address", "127.0.0.1",
		"--port", ports[1], "--healthz-listen-address", "127.0.0.1", "--healthz-port", ports[2], "--enable-metrics=false"); err != nil {
		return nil, nil, err
	}
	for i, id := range []string{"actors", "caller"} {
		p := ports[3+3*i:]
		if err := run("daprd-"+id, "daprd", "--app-id", id, "--dapr-listen-addresses", "127.0.0.1", "--dapr-grpc-port", p[0], "--dapr-http-port", p[1],
			"--dapr-internal-grpc-listen-address", "127.0.0.1", "--dapr-internal-grpc-port", p[2], "--enable-metrics=false",
			"--placement-host-address", "127.0.0.1:"+ports[1], "--scheduler-host-address", "", "--resources-path", resources,
			"--config", filepath.Join(dir, "config.yaml")); err != nil {
			return nil, nil, err
		}
		if err := waitPort(ctx, "127.0.0.1:"+p[0]); err != nil {
			return nil, nil, err
		}
	}
	if err := run("dapractor", filepath.Join(bin, "dapractor"), "-addr", "127.0.0.1:"+ports[3]); err != nil {
		return nil, nil, err
	}
	s = new(daprActors)
	for range 4 { // connections, as every gRPC system here has
		cc, err := grpc.NewClient("127.0.0.1:"+ports[6], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		s.dapr = append(s.dapr, runtimev1.NewDaprClient(cc))
	}
	// Dapr tells nobody when actors can be called.
	until, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		try, end := context.WithTimeout(until, 2*time.Second)
		err := s.put(try, "", []byte("x"))
		end()
		if err == nil {
			return s, stop, nil
		}
		select {
		case <-until.Done():
			return nil, nil, fmt.Errorf("the actors do not answer: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
