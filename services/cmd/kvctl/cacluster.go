package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kvstore/components/authn"
	"kvstore/components/authn/ca"
)

var caClusterCommand = command{
	args: "DIR", min: 1, max: 1, local: true,
	short: "make what the doors of a small cluster need",
	help: `Makes an authority, certificates, a token and a Redis password, a folder for each who needs some of it and should have no more:

  DIR/ca         ca.crt ca.key                                  this command alone
  DIR/frontend   server.crt server.key tokens                   kvstored -tls-cert -tls-key -tokens
                 peer.crt peer.key ca.crt                       kvstored -peer-cert -peer-key -peer-ca
  DIR/shard      peer.crt peer.key ca.crt redis-password        and -redis-password-file
                 tokens                                         kvstored -tokens, with peer.crt as -tls-cert: for its metrics
  DIR/redis      users.acl                                      redis-server --aclfile
  DIR/client     ca.crt token                                   kvctl --ca --token-file; the token may do everything
  DIR/prometheus server.crt server.key ca.crt token             Prometheus; the token may read metrics
  DIR/jaeger     server.crt server.key ca.crt                   Jaeger
  DIR/grafana    server.crt server.key ca.crt password db-key   Grafana, and its way to both

The last three are files that their group may read: those servers run as other users.
Peers are named frontend.kvstore and shard.kvstore, for -peer-names. What is there is kept, but for certificates that have less than a
third of their time left or lack a name: they are made anew, and servers take them without a restart. So it may run at every start. In
tokens files lines of the name prometheus are its own; it keeps the others.

  kvctl ca cluster /credentials --dns frontend-1,frontend-2
  kvctl status --ca client/ca.crt --token-file client/token`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		dns := fs.String("dns", "", "`names` with commas, under which clients dial frontends, beside localhost")
		life := fs.Duration("for", 90*24*time.Hour, "`time` that certificates are good")
		return func(_ context.Context, s *session, args []string) error {
			if *life < time.Minute {
				return usagef("--for %v: want a minute at least", *life)
			}
			c := clusterFiles{dir: args[0], life: *life, now: time.Now(), say: func(what, file string) { s.say("%s %s\n", what, file) }}
			return c.make(list(*dns))
		}
	},
}

// clusterFiles makes the files of a cluster.
type clusterFiles struct {
	dir  string
	life time.Duration
	now  time.Time
	say  func(what, file string)
}

// make makes what is not there, in an order in which it can be interrupted anywhere and run again.
func (c *clusterFiles) make(frontendNames []string) error {
	for _, sub := range []string{"ca", "frontend", "shard", "redis", "client", "prometheus", "jaeger", "grafana"} {
		if err := os.MkdirAll(c.path(sub), 0o755); err != nil {
			return err
		}
	}
	root, err := c.authority()
	if err != nil {
		return err
	}
	local := []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback}
	for base, leaf := range map[string]ca.Leaf{
		"frontend/server":   {Name: "frontend", DNS: append(frontendNames, "localhost"), IPs: local},
		"frontend/peer":     {Name: "frontend", DNS: []string{"frontend.kvstore"}},
		"shard/peer":        {Name: "shard", DNS: []string{"shard.kvstore"}},
		"prometheus/server": {Name: "prometheus", DNS: []string{"prometheus"}},
		"jaeger/server":     {Name: "jaeger", DNS: []string{"jaeger"}},
		"grafana/server":    {Name: "grafana", DNS: []string{"grafana", "localhost"}, IPs: local},
	} {
		if err := c.certificate(root, base, leaf); err != nil {
			return err
		}
	}
	for _, name := range []string{"prometheus", "jaeger", "grafana"} { // each time: a run before may have ended between the two
		if err := os.Chmod(c.path(name+"/server.key"), groupReads); err != nil {
			return err
		}
	}
	for _, sub := range []string{"frontend", "shard", "client", "prometheus", "jaeger", "grafana"} {
		if err := c.write(sub+"/ca.crt", root.Cert, 0o644); err != nil {
			return err
		}
	}
	token, err := c.secret("client/token", 0o600)
	if err != nil {
		return err
	}
	scraper, err := c.secret("prometheus/token", groupReads)
	if err != nil {
		return err
	}
	admin, metrics := "admin "+authn.HashOf(token)+" *=admin server-admin\n", scraperName+" "+authn.HashOf(scraper)+" metrics\n"
	if err := errors.Join(c.tokens("frontend/tokens", admin, metrics), c.tokens("shard/tokens", "", metrics)); err != nil {
		return err
	}
	for _, name := range []string{"grafana/password", "grafana/db-key"} {
		if _, err := c.secret(name, groupReads); err != nil {
			return err
		}
	}
	password, err := c.secret("shard/redis-password", 0o600)
	if err != nil {
		return err
	}
	// Redis runs as another user: the file has a hash of 256 random bits, and a user who may do nothing but ask whether it is well.
	sum := sha256.Sum256([]byte(password))
	acl := "user default on #" + hex.EncodeToString(sum[:]) + " ~* &* +@all\nuser health on nopass resetkeys resetchannels -@all +ping\n"
	return c.write("redis/users.acl", []byte(acl), 0o644)
}

// scraperName is how tokens files name the token that reads metrics.
const scraperName = "prometheus"

// groupReads is the mode of secrets of servers that run as another user, in a group of ours.
const groupReads = 0o640

// tokens makes a tokens file of a first line and that of the scraper. Of one that is there other lines are kept, since people add some, and the first
// is not put back.
func (c *clusterFiles) tokens(name, first, scraper string) error {
	old, err := os.ReadFile(c.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return c.write(name, []byte(first+scraper), 0o600)
	}
	if err != nil {
		return err
	}
	var lines strings.Builder
	for line := range strings.Lines(string(old)) {
		switch {
		case line == scraper:
			return c.write(name, old, 0o600)
		case !strings.HasPrefix(line, scraperName+" "):
			lines.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return c.write(name, []byte(lines.String()+scraper), 0o600)
}

func (c *clusterFiles) path(name string) string {
	return filepath.Join(c.dir, filepath.FromSlash(name))
}

// authority reads the authority, or makes it.
func (c *clusterFiles) authority() (*ca.CA, error) {
	base := c.path("ca/ca")
	root, err := ca.Read(base)
	if !errors.Is(err, os.ErrNotExist) {
		return root, err
	}
	if _, err := os.Lstat(base + ".crt"); err == nil { // the key was taken away: nobody wants another authority
		return nil, fmt.Errorf("%s.crt is there and %[1]s.key is not: put it back, or remove both, and what was issued by it", base)
	}
	if root, err = ca.New("kvstore CA", ca.DefaultLife, c.now); err != nil {
		return nil, err
	}
	c.say("wrote", base+".crt")
	return root, root.Write(base)
}

// certificate makes base.crt and base.key, unless what is there will do.
func (c *clusterFiles) certificate(root *ca.CA, base string, leaf ca.Leaf) error {
	leaf.Life = c.life
	file := c.path(base)
	if c.good(root, file, leaf) {
		c.say("kept", file+".crt")
		return nil
	}
	pair, err := root.Issue(leaf, c.now)
	if err != nil {
		return err
	}
	c.say("wrote", file+".crt")
	return pair.Write(file)
}

// good tells whether a certificate is of the authority, has the names that it needs, and a third of its time left.
func (c *clusterFiles) good(root *ca.CA, base string, leaf ca.Leaf) bool {
	text, err := os.ReadFile(base + ".crt")
	if err != nil {
		return false
	}
	if _, err := os.Stat(base + ".key"); err != nil {
		return false
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root.Cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: c.now}); err != nil {
		return false
	}
	for _, name := range leaf.DNS {
		if !slices.Contains(cert.DNSNames, name) {
			return false
		}
	}
	return cert.NotAfter.Sub(c.now) > cert.NotAfter.Sub(cert.NotBefore)/3
}

// secret reads a secret from its file, or makes it.
func (c *clusterFiles) secret(name string, mode os.FileMode) (string, error) {
	text, err := os.ReadFile(c.path(name))
	if err == nil {
		if secret := strings.TrimSpace(string(text)); secret != "" {
			return secret, nil
		}
		return "", fmt.Errorf("%s is empty: remove it to have another made", c.path(name))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	secret := authn.NewToken()
	return secret, c.write(name, []byte(secret+"\n"), mode)
}

// write replaces a file at once, unless it is as it should be.
func (c *clusterFiles) write(name string, data []byte, mode os.FileMode) error {
	file := c.path(name)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, data) {
		c.say("kept", file)
		return nil
	}
	if err := replaceFile(file, data, mode); err != nil {
		return err
	}
	c.say("wrote", file)
	return nil
}
