package compose

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	rtv1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// mutual turns on what components/dapr/README.md tells: a token on the sidecars' APIs, and TLS by Dapr's own authority between sidecars and
// placement. The cluster serves as before, and each way around it is closed.
func mutual(t *testing.T, p *project) {
	p.configure(map[string]string{"COMPOSE_PROFILES": "mtls", "KVSTORE_ADMIN_LISTEN": "127.0.0.1:2112", "KVSTORE_OTLP_ENDPOINT": ""})
	p.must("up", "--detach", "--no-build", "--pull", "never", "sentry")
	file := filepath.Join(t.TempDir(), "ca.crt")
	deadline := time.Now().Add(patience)
	for { // sentry makes it when it first starts
		if _, err := p.compose("cp", "sentry:/credentials/ca.crt", file); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // of a condition outside of this process
	}
	if err := os.Chmod(file, 0o644); err != nil { // placement reads it as another user
		t.Fatal(err)
	}
	anchors, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	token := rand.Text()
	p.configure(map[string]string{"DAPR_MTLS": "true", "DAPR_TRUST_ANCHORS": string(anchors), "DAPR_TRUST_ANCHORS_FILE": file, "DAPR_API_TOKEN": token})
	p.up()
	eitherFrontendServes(t, p)

	for _, pod := range []string{"shard-1-pod", "frontend-1-pod"} {
		api := p.sidecar(pod)
		for _, tc := range []struct {
			name, token string
			want        codes.Code
		}{{"no token", "", codes.Unauthenticated}, {"a wrong token", "x" + token, codes.Unauthenticated}, {"the token", token, codes.OK}} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if tc.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "dapr-api-token", tc.token)
			}
			if _, err := api.GetMetadata(ctx, &rtv1.GetMetadataRequest{}); status.Code(err) != tc.want {
				t.Errorf("%s: a call with %s: %v, want %v", pod, tc.name, err, tc.want)
			}
			if _, err := api.GetState(ctx, &rtv1.GetStateRequest{StoreName: "actorstate", Key: "k"}); tc.want == codes.OK && status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: a part of the API that is not allowed: %v", pod, err)
			}
			cancel()
		}
	}
	for addr, name := range map[string]string{
		net.JoinHostPort(p.address("shard-1-pod"), "50002"): "a host's sidecar", net.JoinHostPort(p.address("placement"), "50005"): "placement",
		net.JoinHostPort(p.address("shard-1-pod"), "9085"): "a host's data plane",
	} {
		if err := plainCall(t.Context(), addr); err == nil || status.Code(err) == codes.Unimplemented {
			t.Errorf("%s answers in plain text: %v", name, err)
		}
		if err := tlsCall(addr); err == nil {
			t.Errorf("%s answers a client without a certificate", name)
		}
	}
	// Sidecars' APIs are not on the network.
	for _, port := range []string{"50001", "3500", "9090", "2112"} {
		addr := net.JoinHostPort(p.address("shard-1-pod"), port)
		if conn, err := net.DialTimeout("tcp", addr, 10*time.Second); err == nil {
			conn.Close()
			t.Errorf("%s can be reached from other containers", addr)
		}
	}
}

// sidecar is the API of a pod's sidecar, which is on its loopback alone.
func (p *project) sidecar(pod string) rtv1.DaprClient {
	p.t.Helper()
	netns := fmt.Sprintf("/proc/%d/ns/net", p.inspect(pod).State.Pid)
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:50001", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialIn(ctx, netns, addr) }))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return rtv1.NewDaprClient(conn)
}

// dialIn connects to an address in another network.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	got := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is in the other network, and ends with this function
		ns, err := os.Open(netns)
		if err != nil {
			got <- result{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			got <- result{nil, fmt.Errorf("enter %s: %w", netns, err)}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		got <- result{conn, err}
	}()
	r := <-got
	return r.conn, r.err
}

// address is a container's on the network that compose made.
func (p *project) address(service string) string {
	p.t.Helper()
	out, err := p.docker(p.t.Context(), nil, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", p.inspect(service).ID)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// plainCall calls a method that nobody has, in plain text.
func plainCall(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = rtv1.NewDaprClient(conn).GetMetadata(ctx, &rtv1.GetMetadataRequest{})
	return err
}

// tlsCall begins TLS with these certificates, or none; the server's refusal comes with the first read, as its greeting does.
func tlsCall(addr string, certs ...tls.Certificate) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: certs})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
