package testenv

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Dapr finds a binary of Dapr. A test without KVSTORE_DAPR is skipped, naming the make target that runs it.
func Dapr(t testing.TB, name string) string {
	t.Helper()
	if os.Getenv("KVSTORE_DAPR") == "" {
		t.Skip("needs daprd and placement: make dapr builds them, sets KVSTORE_DAPR and runs this")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not on PATH; make sidecars builds it and tells where it is: %v", name, err)
	}
	return path
}

// Placement is Dapr's placement service, supervised, on one port.
type Placement struct {
	*Process
	Addr string
	// Healthz is where it tells that it is well.
	Healthz string
}

// NewPlacement starts a placement service that notices within two seconds that a sidecar's machine is gone. With a sentry it speaks TLS.
func NewPlacement(t testing.TB, sentry *Sentry) *Placement {
	t.Helper()
	p := &Placement{Addr: FreeAddr(t), Healthz: FreeAddr(t)}
	args := []string{
		"--id", "p0", "--initial-cluster", "p0=" + FreeAddr(t), "--listen-address", "127.0.0.1", "--port", port(p.Addr),
		"--healthz-listen-address", "127.0.0.1", "--healthz-port", port(p.Healthz), "--enable-metrics=false",
		"--keepalive-time", "1s", "--keepalive-timeout", "1s",
	}
	if sentry != nil {
		args = append(args, "--tls-enabled", "--trust-domain", trustDomain, "--trust-anchors-file", sentry.anchors, "--sentry-address", sentry.Addr)
	}
	p.Process = NewProcess(t, "placement", Dapr(t, "placement"), args, nil).Supervised()
	p.Start(t)
	p.AwaitHTTP(t.Context(), t, "http://"+p.Healthz+"/healthz")
	return p
}

// Sentry is Dapr's certificate authority.
type Sentry struct {
	*Process
	Addr string

	anchors string // file with the certificate that it signs by
}

// components is the folder with Dapr's configuration, from the folder of any test.
const components = "../../components/dapr"

// trustDomain is that of the certificates of tests.
const trustDomain = "kvstore.test"

// NewSentry starts a sentry that makes itself a CA.
func NewSentry(t testing.TB) *Sentry {
	t.Helper()
	dir := t.TempDir()
	s := &Sentry{Addr: FreeAddr(t), anchors: filepath.Join(dir, "ca.crt")}
	healthz := FreeAddr(t)
	s.Process = NewProcess(t, "sentry", Dapr(t, "sentry"), []string{
		"--config", filepath.Join(components, "sentry.yaml"),
		"--listen-address", "127.0.0.1", "--port", port(s.Addr), "--healthz-listen-address", "127.0.0.1", "--healthz-port", port(healthz),
		"--enable-metrics=false", "--issuer-credentials", dir, "--trust-domain", trustDomain,
	}, nil).Supervised()
	s.Start(t)
	s.AwaitHTTP(t.Context(), t, "http://"+healthz+"/healthz")
	return s
}

// Sidecar is one daprd, supervised, on its ports.
type Sidecar struct {
	*Process
	GRPC, HTTP string // its API
	Internal   string // where other sidecars reach it
}

// SidecarConfig says how a daprd runs.
type SidecarConfig struct {
	// AppID is "kvstore" of frontends, the default, and "kvstore-shard" of hosts of shards: to these components/dapr applies.
	AppID string
	// Placement is the address of the placement service. It may be a proxy's.
	Placement string
	// Sentry, if set, makes it speak mutual TLS with placement and other sidecars.
	Sentry *Sentry
	// Args and Env are added.
	Args, Env []string
}

// NewSidecar starts a daprd and waits until its API answers.
func NewSidecar(t testing.TB, cfg SidecarConfig) *Sidecar {
	t.Helper()
	if cfg.AppID == "" {
		cfg.AppID = "kvstore"
	}
	s := &Sidecar{GRPC: FreeAddr(t), HTTP: FreeAddr(t), Internal: FreeAddr(t)}
	args := append([]string{
		"--app-id", cfg.AppID, "--dapr-listen-addresses", "127.0.0.1", "--dapr-grpc-port", port(s.GRPC), "--dapr-http-port", port(s.HTTP),
		"--dapr-internal-grpc-listen-address", "127.0.0.1", "--dapr-internal-grpc-port", port(s.Internal), "--enable-metrics=false",
		"--placement-host-address", cfg.Placement, "--scheduler-host-address", "", "--resources-path", filepath.Join(components, "resources"),
		"--config", filepath.Join(components, "config.yaml"),
		"--dapr-graceful-shutdown-seconds", "1",
	}, cfg.Args...)
	if cfg.Sentry != nil {
		anchors, err := os.ReadFile(cfg.Sentry.anchors)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--enable-mtls", "--sentry-address", cfg.Sentry.Addr, "--control-plane-trust-domain", trustDomain)
		cfg.Env = append(cfg.Env, "DAPR_TRUST_ANCHORS="+string(anchors))
	}
	s.Process = NewProcess(t, "daprd-"+cfg.AppID+"-"+port(s.GRPC), Dapr(t, "daprd"), args, append([]string{"DAPR_HOST_IP=127.0.0.1"}, cfg.Env...)).Supervised()
	s.Start(t)
	s.Await(t.Context(), t)
	return s
}

// Await waits until the API answers, by gRPC and by HTTP, which opens later. It does not wait for placement.
func (s *Sidecar) Await(ctx context.Context, t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for _, door := range []string{s.GRPC, s.HTTP} {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", door)
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s does not answer: %v", s.Name, err)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// Dial is a connection to the API, closed at the end of the test.
func (s *Sidecar) Dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return p
}
