package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/components/authn"
	"kvstore/components/authn/ca"
	"kvstore/services/node"
)

// TestHealthcheck: exit code 0 is for a server that serves, in plain text, by TLS, and by TLS that wants a certificate of its clients; anything
// else is 1 and says why.
func TestHealthcheck(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	root, err := ca.New("root", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string) (base string) {
		pair, err := root.Issue(ca.Leaf{Name: name, DNS: []string{name}, Life: time.Hour}, now)
		if err != nil {
			t.Fatal(err)
		}
		base = filepath.Join(dir, name)
		if err := pair.Write(base); err != nil {
			t.Fatal(err)
		}
		return base
	}
	if err := root.Write(filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	server, other := issue("server"), issue("other")
	tls := authn.ServerFiles{Cert: server + ".crt", Key: server + ".key"}
	mutual := tls
	mutual.ClientCA, mutual.RequireClient = filepath.Join(dir, "root.crt"), true

	unready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not ready: recovering", http.StatusServiceUnavailable)
	}))
	defer unready.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().String()
	free.Close()
	plain, secure, strict := serve(t, node.Access{}), serve(t, node.Access{TLS: tls}), serve(t, node.Access{TLS: mutual})

	for _, tc := range []struct {
		name  string
		admin string
		base  string // of the certificate; "" = none
		code  int
		want  string
	}{
		{"plain", plain, "", exitOK, "ok"},
		{"all addresses", anyHost(t, plain), "", exitOK, "ok"},
		{"no host", ":" + portOf(t, plain), "", exitOK, "ok"},
		{"TLS", secure, server, exitOK, "ok"},
		{"TLS both ways", strict, server, exitOK, "ok"},
		{"TLS of another", secure, other, exitError, "not that of -tls-cert"},
		{"TLS with a client that speaks plain text", secure, "", exitError, "HTTP"},
		{"plain text with a client that speaks TLS", plain, server, exitError, "HTTP"},
		{"a certificate that is not there", secure, filepath.Join(dir, "none"), exitError, "no such file"},
		{"not ready", unready.Listener.Addr().String(), "", exitError, "503 Service Unavailable: not ready: recovering"},
		{"nobody", nobody, "", exitError, "connection refused"},
	} {
		args := []string{"healthcheck", "-admin-listen", tc.admin, "-timeout", "30s"}
		if tc.base != "" {
			args = append(args, "-tls-cert", tc.base+".crt", "-tls-key", tc.base+".key")
		}
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != tc.code || !strings.Contains(out.String()+errs.String(), tc.want) {
			t.Errorf("%s: exit %d, want %d: %s%s", tc.name, code, tc.code, &out, &errs)
		}
	}
}

// TestHealthcheckGivesUp: a server that takes the connection and says nothing is not healthy.
func TestHealthcheckGivesUp(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var errs bytes.Buffer
	if code := run(t.Context(), []string{"healthcheck", "-admin-listen", silent.Addr().String(), "-timeout", "50ms"}, io.Discard, &errs); code != exitError {
		t.Errorf("exit %d: %s", code, &errs)
	}
}

func TestPause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() { ended <- run(ctx, []string{"pause"}, io.Discard, io.Discard) }()
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit %d", code)
	}
}

// serve runs a server and returns the address of its admin port.
func serve(t *testing.T, access node.Access) string {
	t.Helper()
	n, err := node.New(node.Config{Engine: node.EngineMemory, GRPCListen: "127.0.0.1:0", RESTListen: node.Off, AdminListen: "127.0.0.1:0", Access: access})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-n.Serving():
	case <-time.After(30 * time.Second):
		t.Fatal("it does not serve")
	}
	return n.AdminAddr()
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func anyHost(t *testing.T, addr string) string { return fmt.Sprint("0.0.0.0:", portOf(t, addr)) }
