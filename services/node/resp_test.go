package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/authn"
	"kvstore/components/authn/ca"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestRESPDoor: the door for Redis's protocol speaks TLS and wants tokens as the others do, serves the same keys, and is in the address file; who speaks
// plain text to it is noted.
func TestRESPDoor(t *testing.T) {
	dir := t.TempDir()
	root, err := ca.New("root", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := root.Issue(ca.Leaf{DNS: []string{"kv.example"}, Life: time.Hour}, time.Now())
	if err == nil {
		err = pair.Write(filepath.Join(dir, "server"))
	}
	token := strings.Repeat("all", 10)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "tokens"), []byte("all "+authn.HashOf(token)+" *=admin server-admin\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	n, _, stop := run(t, Config{
		Engine: EngineMemory, RESPListen: "127.0.0.1:0", AddressFile: filepath.Join(dir, "addresses"),
		Access: Access{TLS: authn.ServerFiles{Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key")}, Tokens: filepath.Join(dir, "tokens")},
		Log: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			select {
			case lines <- string(p):
			default:
			}
			return len(p), nil
		}), nil)),
	})
	if text, err := os.ReadFile(filepath.Join(dir, "addresses")); err != nil || !strings.Contains(string(text), `"resp":"`+n.RESPAddr()+`"`) {
		t.Errorf("address file: %s, %v", text, err)
	}
	ctx := within(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root.Cert)
	dial := func(password string) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: n.RESPAddr(), Password: password, MaxRetries: -1, TLSConfig: &tls.Config{RootCAs: roots, ServerName: "kv.example"}})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	if err := dial(token).Set(ctx, "a", "1", 0).Err(); err != nil {
		t.Error(err)
	}
	if v, err := dial(token).Get(ctx, "a").Result(); v != "1" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if err := dial("").Get(ctx, "a").Err(); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("without a token: %v", err)
	}
	plain, err := net.Dial("tcp", n.RESPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = io.WriteString(plain, "PING\r\n")
	if got, _ := io.ReadAll(plain); strings.Contains(string(got), "PONG") {
		t.Errorf("plain text was answered %q", got)
	}
	for told := false; !told; {
		select {
		case line := <-lines:
			told = strings.Contains(line, "a connection was refused at the door") && strings.Contains(line, plain.LocalAddr().String())
		case <-ctx.Done():
			t.Fatal("who spoke plain text was not noted")
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", n.RESPAddr()); err == nil {
		c.Close()
		t.Error("the door is open after the stop")
	}
}

// TestRESPIsTheSameStore: what came in by one door is seen through the other, in namespaces by number.
func TestRESPIsTheSameStore(t *testing.T) {
	n, conn, _ := run(t, Config{Engine: EngineMemory, RESPListen: "127.0.0.1:0", RESPDatabases: []string{"default", "other"}})
	ctx := within(t)
	if _, err := kvv1.NewAdminServiceClient(conn).CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{
		Namespace: &kvv1.Namespace{Keyspace: "default", Name: "other", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV},
	}); err != nil {
		t.Fatal(err)
	}
	kv := kvv1.NewKVServiceClient(conn)
	for db, name := range []string{"default", "other"} {
		c := redis.NewClient(&redis.Options{Addr: n.RESPAddr(), DB: db})
		defer c.Close()
		if err := c.Set(ctx, "k", name, 0).Err(); err != nil {
			t.Fatal(err)
		}
		got, err := kv.Get(ctx, &kvv1.GetRequest{Namespace: name, Get: &kvv1.GetOp{Key: []byte("k")}})
		if err != nil || string(got.Entry.Value) != name {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if err := c.Incr(context.WithoutCancel(ctx), "n").Err(); err != nil {
			t.Error(err)
		}
	}
}
