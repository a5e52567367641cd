package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"kvstore/client"
	"kvstore/components/authn"
	"kvstore/components/authn/ca"
	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// gate is a server that lets in whoever has the token of the day.
type gate struct {
	kvstorev1.UnimplementedAdminServiceServer
	kvstorev1.UnimplementedKVServiceServer

	mu    sync.Mutex
	token string   // guarded by mu; "" = anybody
	seen  []string // guarded by mu: authorization headers
}

func (g *gate) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	header := strings.Join(md.Get("authorization"), "+")
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = append(g.seen, header)
	if g.token != "" && header != "Bearer "+g.token {
		return kverr.New(kverr.Unauthenticated, "", "not today")
	}
	return nil
}

func (g *gate) Status(ctx context.Context, _ *kvstorev1.StatusRequest) (*kvstorev1.StatusResponse, error) {
	return &kvstorev1.StatusResponse{}, g.check(ctx)
}

func (g *gate) Pipeline(s grpc.BidiStreamingServer[kvstorev1.PipelineRequest, kvstorev1.PipelineResponse]) error {
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		if err := g.check(s.Context()); err != nil {
			return err
		}
		resp := &kvstorev1.PipelineResponse{}
		for _, op := range req.Ops {
			resp.Results = append(resp.Results, &kvstorev1.PipelineResponse_Result{Id: op.Id,
				Outcome: &kvstorev1.PipelineResponse_Result_Put{Put: &kvstorev1.PutResult{Version: 1}}})
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

func (g *gate) change(token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.token = token
}

// open serves the gate on a loopback port; certs may be nil.
func (g *gate) open(t *testing.T, certs *authn.Server) (addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if certs != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(certs.Config())))
	}
	srv := grpc.NewServer(options...)
	kvstorev1.RegisterAdminServiceServer(srv, g)
	kvstorev1.RegisterKVServiceServer(srv, g)
	go func() { _ = srv.Serve(lis) }()
	t.Cleanup(srv.Stop)
	return lis.Addr().String()
}

// papers makes a CA and certificates of it in a folder: server, elsewhere (another name) and client, and the CA stranger.
func papers(t *testing.T) (file func(name string) string, root *ca.CA) {
	t.Helper()
	dir := t.TempDir()
	file = func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"stranger", "ca"} {
		var err error
		root, err = ca.New(name, time.Hour, time.Now())
		must(err)
		must(root.Write(file(name)))
	}
	here := []net.IP{net.IPv4(127, 0, 0, 1)}
	for name, leaf := range map[string]ca.Leaf{"server": {IPs: here}, "elsewhere": {DNS: []string{"kv.example"}}, "client": {}} {
		leaf.Life = time.Hour
		pair, err := root.Issue(leaf, time.Now())
		must(err)
		must(pair.Write(file(name)))
	}
	return file, root
}

// hangs listens on a loopback port, closes the first connection without a word, and never answers the others.
func hangs(t *testing.T) (addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		if first, err := lis.Accept(); err == nil {
			_ = first.Close() // those that come later stay in the listener's queue
		}
	}()
	return lis.Addr().String()
}

// TestDoors: what does not fit is told at once and in words that help; what fits works.
func TestDoors(t *testing.T) {
	file, _ := papers(t)
	serve := func(name, clientCA string) string {
		t.Helper()
		certs, err := authn.OpenServer(authn.ServerFiles{Cert: file(name + ".crt"), Key: file(name + ".key"), ClientCA: clientCA, RequireClient: clientCA != ""})
		if err != nil {
			t.Fatal(err)
		}
		return new(gate).open(t, certs)
	}
	plain, tls, elsewhere, mutual := new(gate).open(t, nil), serve("server", ""), serve("elsewhere", ""), serve("server", file("ca.crt"))
	ours := file("ca.crt")
	for _, tc := range []struct {
		name string
		addr string
		cfg  client.Config
		kind kverr.Kind // 255 = it works
		want string
	}{
		{"plain text", plain, client.Config{}, 255, ""},
		{"TLS", tls, client.Config{CAFile: ours}, 255, ""},
		{"TLS by name", elsewhere, client.Config{CAFile: ours, ServerName: "kv.example"}, 255, ""},
		{"TLS at two addresses", tls + "," + mutual, client.Config{CAFile: ours, CertFile: file("client.crt"), KeyFile: file("client.key")}, 255, ""},
		{"TLS at one of two addresses", "127.0.0.1:1," + tls, client.Config{CAFile: ours}, 255, ""},
		{"two addresses with another name", elsewhere + "," + elsewhere, client.Config{CAFile: ours}, kverr.Unauthenticated, "is for kv.example and not for 127.0.0.1"},
		{"mutual TLS", mutual, client.Config{CAFile: ours, CertFile: file("client.crt"), KeyFile: file("client.key")}, 255, ""},
		{"TLS on a plain port", plain, client.Config{CAFile: ours}, kverr.Unauthenticated, "does not speak TLS on this port"},
		{"plain text on a TLS port", tls, client.Config{}, kverr.Unavailable, "if it speaks TLS on this port, turn TLS on"},
		{"plain text on a port that hangs up, then hangs", hangs(t), client.Config{Connections: 2}, kverr.Unavailable, "if it speaks TLS on this port, turn TLS on"},
		{"another CA", tls, client.Config{CAFile: file("stranger.crt")}, kverr.Unauthenticated, "not of a CA that is trusted here"},
		{"the system's CAs", tls, client.Config{UseTLS: true}, kverr.Unauthenticated, "not of a CA that is trusted here"},
		{"another name", elsewhere, client.Config{CAFile: ours}, kverr.Unauthenticated, "is for kv.example and not for 127.0.0.1"},
		{"no client certificate", mutual, client.Config{CAFile: ours}, kverr.Unauthenticated, "wants a client certificate"},
		{"a CA file that is none", tls, client.Config{CAFile: file("ca.key")}, kverr.InvalidArgument, "no certificate in PEM form"},
	} {
		patience := 20 * time.Second
		if tc.kind == kverr.Unavailable {
			patience = time.Second // it may be a server that starts: told once patience ends
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		tc.cfg.Endpoints = strings.Split(tc.addr, ",")
		began := time.Now()
		c, err := client.Dial(ctx, tc.cfg)
		cancel()
		if err == nil {
			_ = c.Close()
		}
		switch {
		case tc.kind == 255 && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.kind != 255 && (!errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %v: %s", tc.name, err, tc.kind, tc.want)
		case time.Since(began) > 10*time.Second:
			t.Errorf("%s: told after %v", tc.name, time.Since(began))
		}
	}
}

// TestTokensTravel: with every call, and in plain text only where nobody else listens.
func TestTokensTravel(t *testing.T) {
	const token, next = "kvs_token-of-this-very-day", "kvs_token-of-the-next-day"
	g := &gate{token: token}
	addr := g.open(t, nil)
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []client.Config{
		{Endpoints: []string{addr}}, {Endpoints: []string{addr}, Token: next}, {Endpoints: []string{addr}, Token: "short"},
		{Endpoints: []string{addr}, Token: token + "\n"}, {Endpoints: []string{addr}, Token: token, TokenFile: name},
		{Endpoints: []string{addr}, TokenFile: name + "x"},
		{Endpoints: []string{addr, "kv.example:8085"}, Token: token}, {Endpoints: []string{"10.0.0.1:8085"}, TokenFile: name},
		{Endpoints: []string{"dns:///" + addr}, Token: token},
	} {
		c, err := client.Dial(t.Context(), cfg)
		if err == nil {
			_ = c.Close()
			t.Errorf("%+v: it works", cfg.Endpoints)
		} else if strings.Contains(err.Error(), "very-day") {
			t.Errorf("the error tells the token: %v", err)
		}
	}
	for _, header := range g.seen {
		if header != "" && header != "Bearer "+next {
			t.Errorf("refused configurations have sent %q", header)
		}
	}
	if c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{"passthrough:///" + addr}, Token: token, Insecure: true}); err != nil {
		t.Errorf("as told: %v", err)
	} else {
		_ = c.Close()
	}

	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{addr}, TokenFile: name})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put := func() error {
		_, err := c.Put(t.Context(), "k", nil, nil)
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	// The file has the next token before the server forgets the first: no call fails, on the stream that is open neither.
	if err := os.WriteFile(name, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	g.change(next)
	if err := put(); err != nil {
		t.Errorf("after the token was renewed: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after the token was renewed: %v", err)
	}
	g.change("another one altogether")
	if err := put(); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("with a token that is good no more: %v", err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("with a token that is good no more: %v", err)
	}
}

// TestCertificateGoesBadLater: a client that was in once waits for better times, and says why when it gives up.
func TestCertificateGoesBadLater(t *testing.T) {
	file, root := papers(t)
	certs, err := authn.OpenServer(authn.ServerFiles{Cert: file("server.crt"), Key: file("server.key")})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve := func(lis net.Listener) *grpc.Server {
		srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.Config())))
		kvstorev1.RegisterAdminServiceServer(srv, new(gate))
		go func() { _ = srv.Serve(lis) }()
		return srv
	}
	srv := serve(lis)
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{lis.Addr().String()}, CAFile: file("ca.crt"), BackoffMax: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	srv.Stop()
	issue := func(leaf ca.Leaf) {
		t.Helper()
		leaf.Life = time.Hour
		pair, err := root.Issue(leaf, time.Now())
		if err == nil {
			err = pair.Write(file("server"))
		}
		if err == nil {
			_, err = certs.Reload()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	issue(ca.Leaf{DNS: []string{"kv.example"}})
	if lis, err = net.Listen("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer serve(lis).Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Status(ctx); err == nil || ctx.Err() == nil && !strings.Contains(err.Error(), "is for kv.example") {
		t.Errorf("with a certificate for another name: %v", err)
	}
	issue(ca.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("with a good one again: %v", err)
	}
}
