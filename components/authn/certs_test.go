package authn

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/components/authn/ca"
	"kvstore/components/kverr"
)

// paper is a folder of certificates.
type paper struct {
	t   *testing.T
	dir string
	cas map[string]*ca.CA
}

func newPaper(t *testing.T, cas ...string) *paper {
	p := &paper{t: t, dir: t.TempDir(), cas: map[string]*ca.CA{}}
	for _, name := range cas {
		root, err := ca.New(name, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := root.Write(p.file(name)); err != nil {
			t.Fatal(err)
		}
		if p.cas[name], err = ca.Read(p.file(name)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *paper) file(name string) string { return filepath.Join(p.dir, name) }

// issue makes name.crt and name.key, or replaces them.
func (p *paper) issue(by, name string, leaf ca.Leaf) {
	p.t.Helper()
	leaf.Name = name
	if leaf.Life == 0 {
		leaf.Life = time.Hour
	}
	pair, err := p.cas[by].Issue(leaf, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	if err := pair.Write(p.file(name)); err != nil {
		p.t.Fatal(err)
	}
}

// shake does a handshake over the loopback interface and one byte each way; it returns what went wrong on either side.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	hello := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	side := func(c net.Conn) error {
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		if _, err := c.Write(hello); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, len(hello)))
		return err
	}
	go func() {
		raw, err := lis.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer raw.Close()
		c := raw
		if server != nil {
			c = tls.Server(raw, server)
		}
		err = side(c)
		_ = raw.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, raw) // a close with bytes unread would be a reset
		ended <- err
	}()
	raw, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tcp := raw
	if client != nil {
		if client = client.Clone(); client.ServerName == "" {
			client.ServerName = "127.0.0.1"
		}
		raw = tls.Client(raw, client)
	}
	clientErr = side(raw)
	tcp.Close()
	return <-ended, clientErr
}

var here = ca.Leaf{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}

// TestHandshakes: who gets in, and what the others are told.
func TestHandshakes(t *testing.T) {
	p := newPaper(t, "ours", "theirs", "clients")
	p.issue("ours", "server", here)
	p.issue("ours", "elsewhere", ca.Leaf{DNS: []string{"kv.example"}})
	p.issue("clients", "client", ca.Leaf{})
	p.issue("theirs", "stranger", ca.Leaf{})
	open := func(f ServerFiles) *tls.Config {
		t.Helper()
		s, err := OpenServer(f)
		if err != nil {
			t.Fatal(err)
		}
		return s.Config("h2")
	}
	dial := func(f ClientFiles) *tls.Config {
		t.Helper()
		c, err := OpenClient(f)
		if err != nil {
			t.Fatal(err)
		}
		return c.Config()
	}
	crt := func(name string) string { return p.file(name) + ".crt" }
	key := func(name string) string { return p.file(name) + ".key" }
	plain := ServerFiles{Cert: crt("server"), Key: key("server")}
	optional, required := plain, plain
	optional.ClientCA, required.ClientCA, required.RequireClient = crt("clients"), crt("clients"), true
	other := ServerFiles{Cert: crt("elsewhere"), Key: key("elsewhere")}
	trusting := ClientFiles{CA: crt("ours")}
	with := func(name string) ClientFiles {
		return ClientFiles{CA: crt("ours"), Cert: crt(name), Key: key(name)}
	}
	// A certificate of a CA that the server does not name is not even sent, unless one insists.
	insisting := dial(trusting)
	insisting.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &dial(with("stranger")).Certificates[0], nil
	}
	old := dial(trusting)
	old.MinVersion, old.MaxVersion = 0, tls.VersionTLS12

	for _, tc := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		want   string // of Explain; "" = they understand each other
		log    string // of ExplainServer
	}{
		{"plain TLS", open(plain), dial(trusting), "", ""},
		{"unknown CA", open(plain), dial(ClientFiles{CA: crt("theirs")}), "not of a CA that is trusted here", "refuses this server's certificate"},
		{"wrong name", open(other), dial(trusting), "is for kv.example and not for 127.0.0.1", "refuses this server's certificate"},
		{"the name said", open(other), dial(ClientFiles{CA: crt("ours"), ServerName: "kv.example"}), "", ""},
		{"server without TLS", nil, dial(trusting), "does not speak TLS on this port", ""},
		{"client without TLS", open(plain), nil, "", "plain text"},
		{"TLS 1.2", open(plain), old, "no TLS version in common", "unsupported versions"},
		{"optional, none", open(optional), dial(trusting), "", ""},
		{"optional, good", open(optional), dial(with("client")), "", ""},
		{"optional, a stranger's", open(optional), dial(with("stranger")), "", ""},
		{"optional, a stranger's all the same", open(optional), insisting, "not of a CA that the server trusts", "client's certificate is refused"},
		{"required, none", open(required), dial(trusting), "wants a client certificate", "didn't provide a certificate"},
		{"required, good", open(required), dial(with("client")), "", ""},
		{"required, a stranger's", open(required), dial(with("stranger")), "wants a client certificate", "didn't provide a certificate"},
		{"required, a stranger's all the same", open(required), insisting, "not of a CA that the server trusts", "client's certificate is refused"},
	} {
		serverErr, clientErr := shake(t, tc.server, tc.client)
		told := Explain(clientErr)
		switch {
		case tc.want == "" && tc.log == "" && (serverErr != nil || clientErr != nil):
			t.Errorf("%s: server %v, client %v", tc.name, serverErr, clientErr)
		case tc.want != "" && (told == nil || told.Kind != kverr.Unauthenticated || !strings.Contains(told.Message, tc.want)):
			t.Errorf("%s: the client has %v, is told %v; want %q", tc.name, clientErr, told, tc.want)
		case tc.log != "" && (serverErr == nil || !strings.Contains(ExplainServer(serverErr), tc.log)):
			t.Errorf("%s: the server has %v; want %q", tc.name, serverErr, tc.log)
		}
	}
	if Explain(nil) != nil || Explain(io.EOF) != nil || Explain(context.Canceled) != nil || Explain(&net.OpError{Op: "dial", Err: errors.New("refused")}) != nil {
		t.Error("what is no matter of credentials is taken for one")
	}
}

// TestFilesThatCannotBe: each is an error at the start, and a reason to stay with the old ones later.
func TestFilesThatCannotBe(t *testing.T) {
	p := newPaper(t, "ours", "theirs")
	p.issue("ours", "server", here)
	p.issue("ours", "other", here)
	p.issue("ours", "expired", ca.Leaf{Life: -time.Hour})
	if err := os.WriteFile(p.file("empty.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	crt := func(name string) string { return p.file(name) + ".crt" }
	key := func(name string) string { return p.file(name) + ".key" }
	for _, tc := range []struct {
		f    ServerFiles
		want string
	}{
		{ServerFiles{Cert: crt("server")}, "both"},
		{ServerFiles{Cert: crt("server"), Key: key("server"), RequireClient: true}, "no CA to check them by"},
		{ServerFiles{Cert: crt("none"), Key: key("server")}, "no such file"},
		{ServerFiles{Cert: crt("server"), Key: key("other")}, "does not match"},
		{ServerFiles{Cert: crt("empty"), Key: key("server")}, "empty.crt"},
		{ServerFiles{Cert: crt("expired"), Key: key("expired")}, "expired at"},
		{ServerFiles{Cert: crt("server"), Key: key("server"), ClientCA: crt("empty")}, "no certificate in PEM form"},
	} {
		if _, err := OpenServer(tc.f); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.f, err, tc.want)
		}
	}
	if _, err := OpenClient(ClientFiles{Cert: crt("server")}); err == nil {
		t.Error("a client certificate without its key")
	}
	if _, err := OpenClient(ClientFiles{CA: key("server")}); err == nil {
		t.Error("a key for a CA")
	}
	peers := PeerFiles{Cert: crt("server"), Key: key("server"), CA: crt("theirs"), Names: []string{"localhost"}}
	if _, err := OpenPeers(peers); err == nil || !strings.Contains(err.Error(), "is not of the CA") {
		t.Errorf("a certificate that our peers would refuse: %v", err)
	}
	peers.CA, peers.Names = crt("ours"), nil
	if _, err := OpenPeers(peers); err == nil {
		t.Error("no names: everybody of the CA would be let in")
	}
}

// TestCertificatesAreReloaded: connections see the new certificate, and the old as long as the new one is bad.
func TestCertificatesAreReloaded(t *testing.T) {
	p := newPaper(t, "ours", "next")
	p.issue("ours", "server", here)
	s, err := OpenServer(ServerFiles{Cert: p.file("server.crt"), Key: p.file("server.key")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenClient(ClientFiles{CA: p.file("ours.crt")})
	if err != nil {
		t.Fatal(err)
	}
	server := s.Config()
	good := func(when string) {
		t.Helper()
		if serverErr, clientErr := shake(t, server, c.Config()); serverErr != nil || clientErr != nil {
			t.Errorf("%s: %v, %v", when, serverErr, clientErr)
		}
	}
	good("at first")
	if err := os.WriteFile(p.file("server.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reload(); err == nil {
		t.Error("a damaged certificate was taken")
	}
	good("with a damaged file")
	p.issue("next", "server", here)
	if changed, err := s.Reload(); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if _, err := shake(t, server, c.Config()); err == nil {
		t.Error("the old CA's client takes the new CA's server")
	}
	both := append(append([]byte{}, p.cas["ours"].Cert...), p.cas["next"].Cert...)
	if err := os.WriteFile(p.file("ours.crt"), both, 0o600); err != nil {
		t.Fatal(err)
	}
	good("once the client's file has both CAs")
	if err := os.WriteFile(p.file("ours.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	good("with a damaged file of the client")
}

// TestPeers: on the data plane both sides must show a certificate of our CA with an expected name.
func TestPeers(t *testing.T) {
	p := newPaper(t, "ours", "theirs")
	p.issue("ours", "host", ca.Leaf{DNS: []string{"h1.kvstore"}})
	p.issue("ours", "spiffe", ca.Leaf{URIs: []string{"spiffe://kv/host"}})
	p.issue("ours", "app", ca.Leaf{DNS: []string{"app.example"}})
	p.issue("theirs", "stranger", ca.Leaf{DNS: []string{"h1.kvstore"}})
	peers := func(name, authority string) *Peers {
		t.Helper()
		x, err := OpenPeers(PeerFiles{Cert: p.file(name) + ".crt", Key: p.file(name) + ".key", CA: p.file(authority) + ".crt",
			Names: []string{"*.kvstore", "spiffe://kv/host"}})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	host, spiffe, app, stranger := peers("host", "ours"), peers("spiffe", "ours"), peers("app", "ours"), peers("stranger", "theirs")
	certless := &tls.Config{InsecureSkipVerify: true}
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		ok             bool
		want           string // of the server's log
	}{
		{"ours", host.ServerConfig(), host.ClientConfig(), true, ""},
		{"ours by URI", host.ServerConfig(), spiffe.ClientConfig(), true, ""},
		{"ours by URI, the other way", spiffe.ServerConfig(), host.ClientConfig(), true, ""},
		{"our CA, another name", host.ServerConfig(), app.ClientConfig(), false, "is for app.example; let in are"},
		{"our CA, a server of another name", app.ServerConfig(), host.ClientConfig(), false, ""},
		{"another CA", host.ServerConfig(), stranger.ClientConfig(), false, ""},
		{"a server of another CA", stranger.ServerConfig(), host.ClientConfig(), false, ""},
		{"no certificate", host.ServerConfig(), certless, false, "didn't provide"},
		{"plain text", host.ServerConfig(), nil, false, "plain text"},
	} {
		serverErr, clientErr := shake(t, tc.server, tc.client)
		if ok := serverErr == nil && clientErr == nil; ok != tc.ok || !ok && serverErr == nil {
			t.Errorf("%s: server %v, client %v", tc.name, serverErr, clientErr)
		}
		if tc.want != "" && !strings.Contains(ExplainServer(serverErr), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, ExplainServer(serverErr), tc.want)
		}
	}

	// A CA that was replaced counts from the next handshake on, on both sides, also for a configuration made before.
	server, client := host.ServerConfig(), host.ClientConfig()
	p.issue("theirs", "host", ca.Leaf{DNS: []string{"h1.kvstore"}})
	if err := p.cas["theirs"].Write(p.file("ours")); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Reload(); err != nil {
		t.Fatal(err)
	}
	if serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
		t.Errorf("after the CA was replaced: %v, %v", serverErr, clientErr)
	}
	if serverErr, _ := shake(t, server, spiffe.ClientConfig()); serverErr == nil {
		t.Error("a certificate of the CA that was replaced is let in")
	}
}

func TestNameRules(t *testing.T) {
	for _, tc := range []struct {
		rule, name string
		want       bool
	}{
		{"kvstore", "kvstore", true}, {"kvstore", "KVStore", true}, {"kvstore", "kvstore.example", false},
		{"*.kv", "a.kv", true}, {"*.kv", "a.b.kv", false}, {"*.kv", "kv", false}, {"*.kv", ".kv", false}, {"*.kv", "*.kv", true},
		{"*.a.kv", "*.kv", false}, {"*", "a", false}, {"", "", true},
	} {
		if got := dnsMatches(tc.rule, tc.name); got != tc.want {
			t.Errorf("rule %q, name %q: %t", tc.rule, tc.name, got)
		}
	}
}

// TestWatch follows files and warns of the end, in a time of its own.
func TestWatch(t *testing.T) {
	p := newPaper(t, "ours")
	synctest.Test(t, func(t *testing.T) {
		root, err := ca.New("root", 1000*time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		issue := func(life time.Duration) {
			pair, err := root.Issue(ca.Leaf{Life: life}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := pair.Write(p.file("server")); err != nil {
				t.Fatal(err)
			}
		}
		issue(100 * time.Minute)
		s, err := OpenServer(ServerFiles{Cert: p.file("server.crt"), Key: p.file("server.key")})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex // guards the following
		var warned []time.Duration
		reloaded, kept := 0, 0
		locked := func(f func()) {
			mu.Lock()
			defer mu.Unlock()
			f()
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Watch(ctx, Events{
				Reloaded: func([]string) { locked(func() { reloaded++ }) },
				Kept:     func([]string, error) { locked(func() { kept++ }) },
				Expiring: func(_ string, _ time.Time, left time.Duration) { locked(func() { warned = append(warned, left) }) },
			})
		}()
		after := func(d time.Duration) {
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
		}
		mu.Lock()
		defer mu.Unlock()
		after(70 * time.Minute)
		if len(warned) != 0 {
			t.Errorf("warned with 30 of 100 minutes left: %v", warned)
		}
		after(31 * time.Minute)
		if n := len(warned); n < 10 || n > 60 || warned[0] > 21*time.Minute || warned[0] < 19*time.Minute || warned[n-1] > 0 {
			t.Errorf("%d warnings: %v", n, warned)
		}
		before := len(warned)
		issue(100 * time.Minute)
		after(2 * Every)
		issue(-time.Minute)
		after(time.Minute)
		if reloaded != 1 || kept != 1 || len(warned) != before {
			t.Errorf("reloaded %d times, kept %d times, %d warnings more", reloaded, kept, len(warned)-before)
		}
		cancel()
		mu.Unlock()
		<-ended
		mu.Lock()
	})
}
