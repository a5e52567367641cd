package ca_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/components/authn/ca"
)

func TestIssue(t *testing.T) {
	now := time.Now()
	root, err := ca.New("root", 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(t.TempDir(), "root")
	if err := root.Write(base); err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{base + ".key": 0o600, base + ".crt": 0o644} {
		if info, err := os.Stat(file); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	if root, err = ca.Read(base); err != nil {
		t.Fatal(err)
	}
	pair, err := root.Issue(ca.Leaf{
		Name: "leaf", DNS: []string{"a.example", "localhost"}, IPs: []net.IP{net.IPv6loopback}, URIs: []string{"spiffe://kv/a"}, Life: 48 * time.Hour,
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	made, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root.Cert)
	leaf := made.Leaf
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, name := range []string{"a.example", "localhost", "::1"} {
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	block, _ := pem.Decode(root.Cert)
	parent, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !leaf.NotAfter.Equal(parent.NotAfter) || leaf.IsCA || leaf.SerialNumber.BitLen() < 64 || leaf.URIs[0].String() != "spiffe://kv/a" {
		t.Errorf("%v: %+v", err, leaf)
	}
	second, err := root.Issue(ca.Leaf{Life: time.Hour}, now)
	if err != nil || string(second.Key) == string(pair.Key) {
		t.Error("two certificates have one key", err)
	}
	if _, err := root.Issue(ca.Leaf{URIs: []string{"not a uri"}}, now); err == nil {
		t.Error("a URI without a scheme")
	}

	// A leaf is no CA, and a key without its certificate neither.
	if _, err := ca.Load(*pair); err == nil || !strings.Contains(err.Error(), "not one of a CA") {
		t.Error(err)
	}
	if _, err := ca.Load(ca.Pair{Cert: root.Cert, Key: pair.Key}); err == nil || !strings.Contains(err.Error(), "not that of its certificate") {
		t.Error(err)
	}
	if _, err := ca.Load(ca.Pair{}); err == nil {
		t.Error("nothing")
	}
}
