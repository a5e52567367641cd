package main

import (
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/components/authn"
	"kvstore/components/authn/ca"
)

// TestCACluster: every part finds what it needs, nobody finds more, and a second run changes nothing.
func TestCACluster(t *testing.T) {
	sh, _ := newShell(t)
	dir := filepath.Join(t.TempDir(), "credentials")
	sh.ok("ca", "cluster", dir, "--dns", "frontend-1")
	first := contents(t, dir)
	want := map[string]fs.FileMode{
		"ca/ca.crt": 0o644, "ca/ca.key": 0o600,
		"frontend/server.crt": 0o644, "frontend/server.key": 0o600, "frontend/tokens": 0o600,
		"frontend/peer.crt": 0o644, "frontend/peer.key": 0o600, "frontend/ca.crt": 0o644,
		"shard/peer.crt": 0o644, "shard/peer.key": 0o600, "shard/ca.crt": 0o644, "shard/redis-password": 0o600,
		"redis/users.acl": 0o644, "client/ca.crt": 0o644, "client/token": 0o600, "shard/tokens": 0o600,
		"prometheus/server.crt": 0o644, "prometheus/server.key": 0o640, "prometheus/ca.crt": 0o644, "prometheus/token": 0o640,
		"jaeger/server.crt": 0o644, "jaeger/server.key": 0o640, "jaeger/ca.crt": 0o644,
		"grafana/server.crt": 0o644, "grafana/server.key": 0o640, "grafana/ca.crt": 0o644, "grafana/password": 0o640, "grafana/db-key": 0o640,
	}
	for name, mode := range want {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info, err, mode)
		}
	}
	if len(first) != len(want) {
		t.Errorf("%d files, want %d", len(first), len(want))
	}

	// They are what the parts take.
	if _, err := authn.OpenServer(authn.ServerFiles{Cert: filepath.Join(dir, "frontend/server.crt"), Key: filepath.Join(dir, "frontend/server.key")}); err != nil {
		t.Error(err)
	}
	for _, part := range []string{"frontend", "shard"} {
		if _, err := authn.OpenPeers(authn.PeerFiles{Cert: filepath.Join(dir, part, "peer.crt"), Key: filepath.Join(dir, part, "peer.key"),
			CA: filepath.Join(dir, part, "ca.crt"), Names: []string{"shard.kvstore", "frontend.kvstore"}}); err != nil {
			t.Error(err)
		}
	}
	tokens, err := authn.OpenTokens(filepath.Join(dir, "frontend/tokens"))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(first["client/token"])
	if pass, err := tokens.Admit([]string{"Bearer " + token}, authn.ServerAdmin); err != nil || tokens.Check(pass, "") != nil {
		t.Errorf("the token is refused: %v", err)
	}
	scraper := "Bearer " + strings.TrimSpace(first["prometheus/token"])
	for _, part := range []string{"frontend", "shard"} {
		tokens, err := authn.OpenTokens(filepath.Join(dir, part, "tokens"))
		if err != nil {
			t.Fatal(err)
		}
		if pass, err := tokens.Admit([]string{scraper}, authn.Metrics); err != nil || tokens.Check(pass, "") != nil {
			t.Errorf("%s: Prometheus is refused: %v", part, err)
		}
		for _, need := range []authn.Need{authn.ServerAdmin, authn.Read, authn.Write} {
			if _, err := tokens.Admit([]string{scraper}, need); err == nil {
				t.Errorf("%s: Prometheus may do more than read metrics: %v", part, need)
			}
		}
	}
	for name, text := range first { // whose folder is not that of their owner
		for _, secret := range []string{"client/token", "shard/redis-password", "prometheus/token", "grafana/password", "grafana/db-key"} {
			if name != secret && strings.Contains(text, strings.TrimSpace(first[secret])) {
				t.Errorf("%s holds %s", name, secret)
			}
		}
	}

	sh.ok("ca", "cluster", dir, "--dns", "frontend-1")
	unchanged(t, "a second run", first, contents(t, dir))
	mine, line := "# people's own\nme "+authn.HashOf("x")+" *=read\n", "prometheus "+authn.HashOf(strings.TrimSpace(first["prometheus/token"]))+" metrics\n"
	for _, tc := range []struct{ name, there, want string }{
		{"other lines", mine, mine + line},
		{"a last line without an end", strings.TrimSuffix(mine, "\n"), mine + line},
		{"another token of Prometheus", "prometheus " + authn.HashOf("old") + " metrics\n" + mine, mine + line},
		{"lines behind that of Prometheus", line + mine, line + mine},
	} {
		if err := os.WriteFile(filepath.Join(dir, "frontend/tokens"), []byte(tc.there), 0o600); err != nil {
			t.Fatal(err)
		}
		first["frontend/tokens"] = tc.want
		sh.ok("ca", "cluster", dir, "--dns", "frontend-1")
		unchanged(t, "a tokens file with "+tc.name, first, contents(t, dir))
	}
}

// TestCAClusterRenews: certificates are made anew in the last third of their time, for another name, and for another authority.
func TestCAClusterRenews(t *testing.T) {
	sh, _ := newShell(t)
	dir := t.TempDir()
	files := func(now time.Time, names ...string) map[string]string {
		c := clusterFiles{dir: dir, life: 30 * time.Hour, now: now, say: func(string, string) {}}
		if err := c.make(names); err != nil {
			t.Fatal(err)
		}
		return contents(t, dir)
	}
	now := time.Now()
	first := files(now, "a")
	unchanged(t, "after 19 of 30 hours", first, files(now.Add(19*time.Hour), "a"))
	renewed := files(now.Add(21*time.Hour), "a")
	for name, text := range first {
		isLeaf := strings.HasSuffix(name, "server.crt") || strings.HasSuffix(name, "server.key") || strings.Contains(name, "peer.")
		if (renewed[name] != text) != isLeaf {
			t.Errorf("after 21 of 30 hours: %s changed: %t", name, renewed[name] != text)
		}
	}
	named := files(now.Add(21*time.Hour), "a", "b")
	block, _ := pem.Decode([]byte(named["frontend/server.crt"]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.VerifyHostname("b") != nil || named["shard/peer.crt"] != renewed["shard/peer.crt"] {
		t.Errorf("another name: %v, %v", err, cert.DNSNames)
	}
	other, err := ca.New("other", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Write(filepath.Join(dir, "ca/ca")); err != nil {
		t.Fatal(err)
	}
	if reissued := files(now, "a", "b"); reissued["shard/peer.crt"] == named["shard/peer.crt"] || reissued["client/ca.crt"] != string(other.Cert) {
		t.Error("another authority: nothing was issued by it")
	}

	if err := os.Remove(filepath.Join(dir, "ca/ca.key")); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := sh.run("", "ca", "cluster", dir); code != exitError || !strings.Contains(errs, "ca.key is not") {
		t.Errorf("without the authority's key: %d %s", code, errs)
	}
}

// contents reads all files below a folder, by their paths in it.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[filepath.ToSlash(name)] = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func unchanged(t *testing.T, when string, want, got map[string]string) {
	t.Helper()
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %s changed", when, name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d files, want %d", when, len(got), len(want))
	}
}
