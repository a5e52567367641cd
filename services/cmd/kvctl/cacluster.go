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
	args: "DIR", min: 1, max: 1,
	short: "make what the doors of a small cluster need",
	help: `Makes an authority, certificates, a token and a Redis password, a folder for each who needs some of it and should have no more:

  DIR/ca         ca.crt ca.key                                  this command alone
  DIR/frontend   server.crt server.key tokens                   kvstored -tls-cert -tls-key -tokens
                 peer.crt peer.key ca.crt                       kvstored -peer-cert -peer-key -peer-ca
  DIR/shard      peer.crt peer.key ca.crt redis-password        and -redis-password-file
  DIR/redis      users.acl                                      redis-server --aclfile
  DIR/client     ca.crt token                                   kvctl --ca --token-file; the token may do everything

Peers are named frontend.kvstore and shard.kvstore, for -peer-names. What is there is kept, but for certificates that have less than a
third of their time left or lack a name: they are made anew, and servers take them without a restart. So it may run at every start.

  kvctl ca cluster /credentials --dns frontend-1,frontend-2
  kvctl status --ca client/ca.crt --token-file client/token`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		dns := fs.String("dns", "", "`names` with commas, under which clients dial frontends, beside localhost")
		life := fs.Duration("for", 90*24*time.Hour, "`time` that certificates are good")
		return func(_ context.Context, s *session, args []string) error {
			if *life < time.Minute {
				return usagef("--for %v: want a minute at least", *life)
			}
			c := clusterFiles{dir: args[0], life: *life, now: time.Now(), say: func(what, file string) { fmt.Fprintf(s.stdout, "%s %s\n", what, file) }}
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
	for _, sub := range []string{"ca", "frontend", "shard", "redis", "client"} {
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
		"frontend/server": {Name: "frontend", DNS: append(frontendNames, "localhost"), IPs: local},
		"frontend/peer":   {Name: "frontend", DNS: []string{"frontend.kvstore"}},
		"shard/peer":      {Name: "shard", DNS: []string{"shard.kvstore"}},
	} {
		if err := c.certificate(root, base, leaf); err != nil {
			return err
		}
	}
	for _, sub := range []string{"frontend", "shard", "client"} {
		if err := c.write(sub+"/ca.crt", root.Cert, 0o644); err != nil {
			return err
		}
	}
	token, err := c.secret("client/token", authn.NewToken)
	if err != nil {
		return err
	}
	line := "admin " + authn.HashOf(token) + " *=admin server-admin\n"
	if _, err := os.Lstat(c.path("frontend/tokens")); errors.Is(err, os.ErrNotExist) { // kept otherwise: people add lines
		if err := c.write("frontend/tokens", []byte(line), 0o600); err != nil {
			return err
		}
	}
	password, err := c.secret("shard/redis-password", authn.NewToken)
	if err != nil {
		return err
	}
	// Redis runs as another user: the file has a hash of 256 random bits, and a user who may do nothing but ask whether it is well.
	sum := sha256.Sum256([]byte(password))
	acl := "user default on #" + hex.EncodeToString(sum[:]) + " ~* &* +@all\nuser health on nopass resetkeys resetchannels -@all +ping\n"
	return c.write("redis/users.acl", []byte(acl), 0o644)
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

// secret reads a secret from a file of its owner, or makes it.
func (c *clusterFiles) secret(name string, random func() string) (string, error) {
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
	secret := random()
	return secret, c.write(name, []byte(secret+"\n"), 0o600)
}

// write replaces a file at once, unless it is as it should be.
func (c *clusterFiles) write(name string, data []byte, mode os.FileMode) (err error) {
	file := c.path(name)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, data) {
		c.say("kept", file)
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(file), ".kvstore-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	c.say("wrote", file)
	return os.Rename(temp.Name(), file)
}
