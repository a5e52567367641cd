package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"kvstore/components/authn"
	"kvstore/components/authn/ca"
	"kvstore/services/dataplane"
)

// TestDoorsToOtherMachines: an address that others can reach needs TLS and a way to know who comes, or -insecure.
func TestDoorsToOtherMachines(t *testing.T) {
	tls := authn.ServerFiles{Cert: "c", Key: "k"}
	mutual := authn.ServerFiles{Cert: "c", Key: "k", ClientCA: "ca", RequireClient: true}
	optional := authn.ServerFiles{Cert: "c", Key: "k", ClientCA: "ca"}
	for _, tc := range []struct {
		name     string
		access   Access
		addr     string
		insecure bool
		want     []string // none: it may
	}{
		{"loopback", Access{}, "127.0.0.1:0", false, nil},
		{"loopback by name", Access{}, "localhost:0", false, nil},
		{"loopback v6", Access{}, "[::1]:0", false, nil},
		{"nothing", Access{}, "0.0.0.0:0", false, []string{"TLS (", "know who comes", "-insecure"}},
		{"any address", Access{}, ":8085", false, []string{"TLS ("}},
		{"a name", Access{}, "kv.example:8085", false, []string{"TLS ("}},
		{"TLS alone", Access{TLS: tls}, "0.0.0.0:0", false, []string{"-tokens"}},
		{"TLS and certificates that are not required", Access{TLS: optional}, "0.0.0.0:0", false, []string{"-tls-client-required"}},
		{"tokens alone", Access{Tokens: "t"}, "0.0.0.0:0", false, []string{"TLS ("}},
		{"TLS and tokens", Access{TLS: tls, Tokens: "t"}, "0.0.0.0:0", false, nil},
		{"mutual TLS", Access{TLS: mutual}, "0.0.0.0:0", false, nil},
		{"as told", Access{}, "0.0.0.0:0", true, nil},
		{"half a pair", Access{TLS: authn.ServerFiles{Cert: "c"}}, "127.0.0.1:0", false, []string{"-tls-key"}},
		{"a CA without TLS", Access{TLS: authn.ServerFiles{ClientCA: "ca"}}, "127.0.0.1:0", false, []string{"-tls-client-ca"}},
		{"required by nobody", Access{TLS: authn.ServerFiles{Cert: "c", Key: "k", RequireClient: true}}, "127.0.0.1:0", false, []string{"-tls-client-required"}},
		{"half a peer", Access{Peers: authn.PeerFiles{Cert: "c", Key: "k", CA: "ca"}}, "127.0.0.1:0", false, []string{"-peer-names"}},
	} {
		for _, door := range []string{"-grpc-listen", "-rest-listen", "-admin-listen", "-resp-listen"} {
			cfg := Config{Engine: EngineMemory, GRPCListen: "127.0.0.1:0", RESTListen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Access: tc.access, Insecure: tc.insecure}
			*map[string]*string{"-grpc-listen": &cfg.GRPCListen, "-rest-listen": &cfg.RESTListen, "-admin-listen": &cfg.AdminListen, "-resp-listen": &cfg.RESPListen}[door] = tc.addr
			cfg.EnsureDefaults()
			err := cfg.Validate()
			if (err == nil) != (len(tc.want) == 0) {
				t.Errorf("%s, %s: %v", tc.name, door, err)
			}
			for _, text := range tc.want {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("%s, %s: %v does not tell of %s", tc.name, door, err, text)
				}
			}
		}
	}
	if _, err := New(Config{Engine: EngineMemory, Access: Access{Tokens: filepath.Join(t.TempDir(), "none")}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a tokens file that is not there: %v", err)
	}
}

// TestAdminDoor: who is told what on the admin port, with tokens and without.
func TestAdminDoor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	lines := "ops " + authn.HashOf(strings.Repeat("ops", 10)) + " server-admin\napp " + authn.HashOf(strings.Repeat("app", 10)) + " *=admin\nprom " +
		authn.HashOf(strings.Repeat("prom", 10)) + " metrics\n"
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := authn.OpenTokens(file)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	var ready readiness
	ready.set("the disk is on fire")
	ask := func(tokens *authn.Tokens, path, from, token string) (int, string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.RemoteAddr = from
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+strings.Repeat(token, 10))
		}
		newAdmin(&ready, &doors{tokens: tokens, log: slog.New(slog.NewTextHandler(&log, nil))}, http.NotFoundHandler()).Handler.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	const here, there = "127.0.0.1:5", "10.0.0.9:5"
	for _, tc := range []struct {
		tokens            *authn.Tokens
		path, from, token string
		code              int
		told              bool // why it is not ready
	}{
		{authn.Anyone, "/readyz", here, "", 503, true},
		{authn.Anyone, "/debug/pprof/cmdline", here, "", 200, false},
		{authn.Anyone, "/debug/pprof/cmdline", there, "", 403, false},
		{authn.Anyone, "/metrics", there, "", 404, false}, // whoever reaches the port
		{tokens, "/metrics", here, "", 401, false},
		{tokens, "/metrics", here, "app", 403, false},
		{tokens, "/metrics", there, "prom", 404, false},
		{tokens, "/metrics", there, "ops", 404, false},
		{tokens, "/debug/pprof/heap", there, "prom", 403, false},
		{tokens, "/readyz", there, "prom", 503, false},
		{tokens, "/livez", there, "", 200, false},
		{tokens, "/readyz", here, "", 503, false},
		{tokens, "/readyz", there, "app", 503, false},
		{tokens, "/readyz", there, "ops", 503, true},
		{tokens, "/debug/pprof/cmdline", here, "", 401, false},
		{tokens, "/debug/pprof/cmdline", here, "wrong", 401, false},
		{tokens, "/debug/pprof/cmdline", here, "app", 403, false},
		{tokens, "/debug/pprof/heap", there, "ops", 200, false},
		{tokens, "/debug/pprof/heap", there, "", 401, false},
	} {
		code, body := ask(tc.tokens, tc.path, tc.from, tc.token)
		if code != tc.code || strings.Contains(body, "on fire") != tc.told {
			t.Errorf("%s from %s with %q (tokens: %t): %d %.80s", tc.path, tc.from, tc.token, !tc.tokens.Open(), code, body)
		}
	}
}

// TestNothingIsServedWithoutAToken asks a node for every service that it has, and calls every method of each without a token and with one.
// A method that nobody has said what it needs is UNIMPLEMENTED to both.
func TestNothingIsServedWithoutAToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	token := strings.Repeat("all", 10)
	if err := os.WriteFile(file, []byte("all "+authn.HashOf(token)+" *=admin server-admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, conn, _ := run(t, Config{Engine: EngineMemory, Access: Access{Tokens: file}})
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	with := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	list, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(with)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := list.Recv()
	if err != nil {
		t.Fatal(err)
	}
	// first makes a call with an empty message, or none, and returns how its first reply fails.
	first := func(ctx context.Context, method string) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // those that wait for more
		defer cancel()
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SendMsg(&emptypb.Empty{}) // its error comes below
		_ = s.CloseSend()
		return s.RecvMsg(&emptypb.Empty{})
	}
	calls := 0
	for _, service := range resp.GetListServicesResponse().GetService() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.Name))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			method := "/" + service.Name + "/" + string(methods.Get(i).Name())
			calls++
			if err := first(ctx, method); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s without a token: %v", method, err)
			}
			if err := first(with, method); status.Code(err) == codes.Unauthenticated || status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unimplemented {
				t.Errorf("%s with the token of all: %v", method, err)
			}
		}
	}
	if calls < 35 {
		t.Errorf("%d calls; where are the others?", calls)
	}
	if err := first(ctx, "/dapr.proto.runtime.v1.AppCallback/ListTopicSubscriptions"); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call that is not there: %v", err)
	}
}

// TestStrangerOnTheDataPlane: only a process with a certificate of our CA and an expected name gets an answer, and the log says who did not.
func TestStrangerOnTheDataPlane(t *testing.T) {
	dir := t.TempDir()
	issue := func(root *ca.CA, name, dns string) Access {
		t.Helper()
		pair, err := root.Issue(ca.Leaf{DNS: []string{dns}, Life: time.Hour}, time.Now())
		if err == nil {
			err = pair.Write(filepath.Join(dir, name))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".ca"), root.Cert, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(dir, name)
		return Access{Peers: authn.PeerFiles{Cert: base + ".crt", Key: base + ".key", CA: base + ".ca", Names: []string{"*.kvstore"}}}
	}
	authority := func() *ca.CA {
		root, err := ca.New("root", time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	ours, theirs := authority(), authority()
	lines := make(chan string, 100)
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		lines <- string(p)
		return len(p), nil
	}), nil))
	open := func(a Access) *doors {
		t.Helper()
		d, err := openDoors(a, log)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	host := open(issue(ours, "host", "h1.kvstore"))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(append(dataplane.ServerOptions(nil), host.peerOptions()...)...)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(lis) }()
	defer srv.Stop()
	for _, tc := range []struct {
		name   string
		config *tls.Config
		log    string // "" = it is let in
	}{
		{"ours", open(issue(ours, "frontend", "f1.kvstore")).peerClient(), ""},
		{"our CA, another name", open(issue(ours, "app", "app.example")).peerClient(), "is for app.example"},
		{"another CA", open(issue(theirs, "stranger", "h2.kvstore")).peerClient(), "refuses this server's certificate"},
		{"no certificate", &tls.Config{InsecureSkipVerify: true}, "didn't provide a certificate"},
		{"plain text", nil, "plain text"},
	} {
		host.mu.Lock()
		host.next = time.Time{} // each is to be logged
		host.mu.Unlock()
		creds := insecure.NewCredentials()
		if tc.config != nil {
			creds = credentials.NewTLS(tc.config)
		}
		conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		_, err = healthpb.NewHealthClient(conn).Check(within(t), &healthpb.HealthCheckRequest{})
		_ = conn.Close()
		if (err == nil) != (tc.log == "") || err != nil && status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", tc.name, err)
		}
		if tc.log == "" {
			continue
		}
		select {
		case line := <-lines:
			if !strings.Contains(line, tc.log) {
				t.Errorf("%s: the log does not tell of %q: %s", tc.name, tc.log, line)
			}
		case <-time.After(patience):
			t.Fatalf("%s: nothing is logged", tc.name)
		}
	}
	cfg := Config{}
	if missing := cfg.Access.missing(DoorDataPlane); !strings.Contains(missing, "-peer-cert") {
		t.Errorf("a data plane without mutual TLS: %q", missing)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
