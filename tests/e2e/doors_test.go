package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/components/authn"
	"kvstore/components/authn/ca"
)

// house is a folder with what doors need: a CA, certificates and a tokens file.
type house struct {
	t   *testing.T
	dir string
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, dir: t.TempDir()}
	h.kvctl("", "ca", "init", "--dir", h.dir)
	h.kvctl("", "ca", "issue", "server", "--dir", h.dir)
	return h
}

func (h *house) file(name string) string { return filepath.Join(h.dir, name) }

// kvctl runs it without an environment; what it says must not be an error.
func (h *house) kvctl(env string, args ...string) string {
	h.t.Helper()
	code, out, errs := h.try(env, args...)
	if code != 0 {
		h.t.Fatalf("kvctl %s: exit %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

// try runs kvctl; env is variables with spaces between.
func (h *house) try(env string, args ...string) (code int, out, errs string) {
	h.t.Helper()
	cmd, _ := program(h.t, "kvctl", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &stdout, &stderr, strings.Fields(env)
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// token makes a token in NAME.token and adds its line to the tokens file, by a rename.
func (h *house) token(name, grant string) {
	h.t.Helper()
	line := h.kvctl("", "token", "new", name, "--grant", grant, "--out", h.file(name+".token"))
	old, err := os.ReadFile(h.file("tokens"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	h.replace("tokens", string(old)+line)
}

// replace replaces a file by a rename.
func (h *house) replace(name, text string) {
	h.t.Helper()
	if err := errors.Join(os.WriteFile(h.file(name+".new"), []byte(text), 0o600), os.Rename(h.file(name+".new"), h.file(name))); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) read(name string) string {
	h.t.Helper()
	text, err := os.ReadFile(h.file(name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// start starts a server in memory with TLS, and more.
func (h *house) start(more ...string) *server {
	h.t.Helper()
	return start(h.t, "", append([]string{"-engine", "memory", "-tls-cert", h.file("server.crt"), "-tls-key", h.file("server.key")}, more...)...)
}

// local is the address of a server that may listen everywhere.
func local(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// TestWhoIsRefusedAtTheDoor: each with its exit code and in words that say what to do, and nothing is served.
func TestWhoIsRefusedAtTheDoor(t *testing.T) {
	h := newHouse(t)
	h.token("app", "default=write")
	h.token("reader", "default=read")
	h.token("tenant", "tenant=admin")
	h.token("ops", "*=admin,server-admin")
	h.kvctl("", "ca", "init", "--dir", h.file("theirs"))
	h.kvctl("", "ca", "issue", "client", "--dir", h.dir)
	h.kvctl("", "ca", "issue", "client", "--dir", h.file("theirs"))
	h.kvctl("", "ca", "issue", "other", "--dir", h.dir)
	// An expired certificate is told by the one who presents it, before the other side could.
	root, err := ca.Read(h.file("ca"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := root.Issue(ca.Leaf{Name: "old", Life: -time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Write(h.file("old")); err != nil {
		t.Fatal(err)
	}

	open := h.start("-tokens", h.file("tokens"), "-grpc-listen", "0.0.0.0:0", "-admin-listen", "0.0.0.0:0")
	mutual := h.start("-tls-client-ca", h.file("ca.crt"), "-tls-client-required", "-grpc-listen", "0.0.0.0:0")
	plain := start(t, "", "-engine", "memory", "-tokens", h.file("tokens"))
	at := "KVSTORE_ENDPOINT=" + local(t, open.GRPC) + " "
	trusting := at + "KVSTORE_CA=" + h.file("ca.crt") + " "
	as := func(name string) string { return "KVSTORE_TOKEN_FILE=" + h.file(name+".token") + " " }
	toMutual := "KVSTORE_ENDPOINT=" + local(t, mutual.GRPC) + " KVSTORE_CA=" + h.file("ca.crt") + " "
	toPlain := "KVSTORE_ENDPOINT=" + plain.GRPC + " "
	pair := func(base string) string { return "KVSTORE_CERT=" + base + ".crt KVSTORE_KEY=" + base + ".key" }

	h.kvctl(trusting+as("app"), "put", "k", "private")
	h.kvctl(trusting+as("ops"), "keyspace", "create", "tenant")
	for _, tc := range []struct {
		name string
		env  string
		line string
		code int
		want string
	}{
		{"the right one", trusting + as("app"), "get k", 0, "private"},
		{"a reader", trusting + as("reader"), "get k", 0, "private"},
		{"the operator", trusting + as("ops"), "status", 0, "engine memory"},
		{"status for others", trusting + as("reader"), "status", 0, "more is shown to a token"},
		{"mutual TLS", toMutual + pair(h.file("client")), "put k v", 0, "created"},
		{"on loopback too", toPlain + as("app"), "put k v", 0, "created"},

		{"no token", trusting, "get k", 1, "wants a token"},
		{"no token on loopback", toPlain, "get k", 1, "wants a token"},
		{"a wrong one", trusting + "KVSTORE_TOKEN=" + authn.NewToken(), "get k", 1, "not one of this server's"},
		{"of another keyspace", trusting + as("tenant"), "get k", 1, "does not have the role read in the keyspace"},
		{"of another keyspace, which is not there", trusting + as("app"), "get k --keyspace nothing", 1, "does not have the role read in the keyspace"},
		{"a reader writes", trusting + as("reader"), "put k v", 1, "the role write"},
		{"a reader deletes", trusting + as("reader"), "del k", 1, "the role write"},
		{"a writer makes a namespace", trusting + as("app"), "namespace create n", 1, "the role admin"},
		{"an administrator of a keyspace makes another", trusting + as("tenant"), "keyspace create n", 1, "server-admin"},
		{"plain text on a TLS port", at + as("app"), "get k", 5, "if it speaks TLS on this port, turn TLS on"},
		{"TLS on a plain port", toPlain + "KVSTORE_CA=" + h.file("ca.crt"), "get k", 1, "does not speak TLS on this port"},
		{"another CA", at + "KVSTORE_CA=" + h.file("theirs/ca.crt"), "get k", 1, "not of a CA that is trusted here"},
		{"the system's CAs", at + "KVSTORE_TLS=1", "get k", 1, "--ca FILE"},
		{"another name", trusting + "KVSTORE_SERVER_NAME=kv.example", "get k", 1, "not for kv.example"},
		{"no client certificate", toMutual, "get k", 1, "wants a client certificate"},
		{"a stranger's client certificate", toMutual + pair(h.file("theirs/client")), "get k", 1, "client certificate"},
		{"an expired client certificate", toMutual + pair(h.file("old")), "get k", 1, "old.crt expired at"},
	} {
		code, out, errs := h.try(tc.env, strings.Fields(tc.line)...)
		text := out
		if tc.code != 0 {
			text = errs
		}
		if code != tc.code || !strings.Contains(text, tc.want) || tc.code != 0 && out != "" || strings.Contains(errs, "private") {
			t.Errorf("%s: kvctl %s: exit %d, want %d: %s\n%s%s", tc.name, tc.line, code, tc.code, tc.want, out, errs)
		}
		if strings.Contains(errs, "kvs_") {
			t.Errorf("%s: kvctl tells the token: %s", tc.name, errs)
		}
	}

	// The admin port speaks TLS as well and has nothing to say to strangers.
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(h.read("ca.crt")))
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer web.CloseIdleConnections()
	for _, tc := range []struct {
		path, token string
		code        int
	}{
		{"/readyz", "", 200}, {"/debug/pprof/heap", "", 401}, {"/debug/pprof/heap", "app", 403}, {"/debug/pprof/heap", "ops", 200},
	} {
		req, err := http.NewRequestWithContext(within(t), http.MethodGet, "https://"+local(t, open.Admin)+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tc.token != "" {
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(h.read(tc.token+".token")))
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.code {
			t.Errorf("%s as %q: %d, want %d", tc.path, tc.token, resp.StatusCode, tc.code)
		}
	}

	log := open.stop(t) + mutual.stop(t) + plain.stop(t)
	for _, want := range []string{"refused at the door", "UNAUTHENTICATED", "PERMISSION_DENIED", "plain text"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not tell of %q", want)
		}
	}
	for _, name := range []string{"app", "reader", "tenant", "ops"} {
		if token := strings.TrimSpace(h.read(name + ".token")); strings.Contains(log, token) || strings.Contains(log, "kvs_") {
			t.Errorf("the log has the token of %s", name)
		}
	}
}

// TestServerCertificateExpires: kvctl says so; the server will not start again with it, and takes a new one while it runs.
func TestServerCertificateExpires(t *testing.T) {
	h := newHouse(t)
	root, err := ca.Read(h.file("ca"))
	if err != nil {
		t.Fatal(err)
	}
	issue := func(life time.Duration) {
		t.Helper()
		pair, err := root.Issue(ca.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Life: life}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := pair.Write(h.file("server")); err != nil {
			t.Fatal(err)
		}
	}
	issue(5 * time.Second)
	s := h.start()
	env := "KVSTORE_ENDPOINT=" + s.GRPC + " KVSTORE_CA=" + h.file("ca.crt")
	var errs string
	s.await(t, "its certificate expires", func() bool {
		code, _, text := h.try(env, "ls")
		errs = text
		return code != 0
	})
	if !strings.Contains(errs, "certificate expired at") || !strings.Contains(errs, "must renew it") {
		t.Errorf("kvctl says: %s", errs)
	}
	fails(t, 1, []string{"server.crt expired at"}, "-engine", "memory", "-grpc-listen", "127.0.0.1:0", "-rest-listen", "off", "-admin-listen", "127.0.0.1:0",
		"-tls-cert", h.file("server.crt"), "-tls-key", h.file("server.key"))
	issue(time.Hour)
	s.await(t, "it takes the new certificate", func() bool {
		code, _, _ := h.try(env, "ls")
		return code == 0
	})
	if log := s.stop(t); !strings.Contains(log, "about to expire") || !strings.Contains(log, "were reloaded") {
		t.Errorf("log:\n%s", log)
	}
}

// TestReloadUnderLoad replaces certificate and tokens, with bad files in between, while clients read and write and new ones come: none of
// them has an error, and what was revoked is refused.
func TestReloadUnderLoad(t *testing.T) {
	h := newHouse(t)
	h.token("first", "default=write")
	s := h.start("-tokens", h.file("tokens"))
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	h.replace("token", h.read("first.token"))
	config := func() client.Config {
		return client.Config{Endpoints: []string{s.GRPC}, CAFile: h.file("ca.crt"), TokenFile: h.file("token")}
	}
	dial := func(cfg client.Config) *client.Client {
		t.Helper()
		c, err := client.Dial(within(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}

	var load sync.WaitGroup
	var done, came atomic.Int64
	shared := dial(config())
	for i := range 8 {
		load.Go(func() {
			k := "k" + strconv.Itoa(i)
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := shared.Put(ctx, k, []byte(strconv.Itoa(n)), nil); err != nil && ctx.Err() == nil {
					t.Errorf("put: %v", err)
					return
				}
				if e, err := shared.Get(ctx, k, nil); ctx.Err() == nil && (err != nil || string(e.Value) != strconv.Itoa(n)) {
					t.Errorf("get: %q, %v, want %d", e.Value, err, n)
					return
				}
				done.Add(2)
			}
		})
	}
	load.Go(func() { // new connections all the time
		for ctx.Err() == nil {
			c, err := client.Dial(ctx, config())
			if err == nil {
				_, err = c.Put(ctx, "new", nil, nil)
				_ = c.Close()
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("a new client: %v", err)
				return
			}
			came.Add(1)
		}
	})
	more := func() {
		t.Helper()
		ops, clients := done.Load()+500, came.Load()+5
		s.await(t, "the load goes on", func() bool { return t.Failed() || done.Load() >= ops && came.Load() >= clients })
	}
	serial := func() string {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(h.read("ca.crt")))
		conn, err := tls.Dial("tcp", s.GRPC, &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	more()

	// The certificate: a bad one, then another key's, then a new one.
	before := serial()
	good := h.read("server.crt")
	const kept = "cannot be used; what was in force stays"
	h.replace("server.crt", good[:len(good)/2])
	s.await(t, "it tells of the bad certificate", func() bool { return s.log.says(kept) == 1 })
	more()
	h.replace("server.crt", good)
	h.kvctl("", "ca", "issue", "next", "--dir", h.dir)
	h.replace("server.crt", h.read("next.crt")) // with the old key
	s.await(t, "it tells of a certificate without its key", func() bool { return s.log.says(kept) == 2 })
	if now := serial(); now != before {
		t.Error("a certificate without its key was taken")
	}
	h.replace("server.key", h.read("next.key"))
	s.await(t, "it takes the new certificate", func() bool { return serial() != before })
	more()

	// The token: the new one is added, the client's file gets it, the old one is removed. With a bad file in between.
	witness := dial(client.Config{Endpoints: []string{s.GRPC}, CAFile: h.file("ca.crt"), Token: strings.TrimSpace(h.read("first.token"))})
	if _, err := witness.Put(ctx, "w", nil, nil); err != nil {
		t.Fatal(err)
	}
	h.token("second", "default=write")
	lines := h.read("tokens")
	second := client.Config{Endpoints: []string{s.GRPC}, CAFile: h.file("ca.crt"), Token: strings.TrimSpace(h.read("second.token"))}
	s.await(t, "it takes the new token", func() bool {
		c, err := client.Dial(ctx, second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	h.replace("token", h.read("second.token"))
	more()
	h.replace("tokens", "damaged "+lines)
	s.await(t, "it tells of the damaged tokens", func() bool { return s.log.says(kept) == 3 })
	more()
	if _, err := witness.Put(ctx, "w", nil, nil); err != nil {
		t.Errorf("with a damaged file: %v", err)
	}
	_, rest, _ := strings.Cut(lines, "\n")
	h.replace("tokens", rest)
	s.await(t, "the old token is refused on a stream that is open", func() bool {
		_, err := witness.Put(ctx, "w", nil, nil)
		if err != nil && !errors.Is(err, client.ErrUnauthenticated) {
			t.Errorf("the old token: %v", err)
		}
		return err != nil
	})
	if c, err := client.Dial(ctx, client.Config{Endpoints: []string{s.GRPC}, CAFile: h.file("ca.crt"), Token: strings.TrimSpace(h.read("first.token"))}); !errors.Is(err, client.ErrUnauthenticated) {
		t.Errorf("a new connection with the old token: %v", err)
		_ = c.Close()
	}
	more()
	cancel()
	load.Wait()
	if done.Load() == 0 || came.Load() == 0 {
		t.Error("there was no load")
	}
	t.Logf("%d operations and %d new clients without an error", done.Load(), came.Load())
	if log := s.stop(t); strings.Contains(log, "kvs_") {
		t.Errorf("the log has tokens:\n%s", log)
	}
}
