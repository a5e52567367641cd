package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/components/authn"
	"kvstore/components/kverr"
)

// door is how the client comes in: its TLS, its token, and what became of the last attempt. gRPC tells why a connection failed as text
// alone, so what can be acted on is kept here.
type door struct {
	config func() *tls.Config // for the next handshake; nil = plain text
	token  *tokenSource       // nil = none

	come    atomic.Bool                 // some connection was of use
	refused atomic.Pointer[kverr.Error] // why the last one was not, when trying again changes nothing; nil otherwise
	silent  atomic.Bool                 // the last one in plain text ended before the server said a word
}

func openDoor(cfg *Config) (*door, error) {
	d := &door{}
	switch {
	case cfg.TLS != nil:
		d.config = func() *tls.Config { return cfg.TLS }
	case cfg.wantsTLS():
		files, err := authn.OpenClient(authn.ClientFiles{CA: cfg.CAFile, Cert: cfg.CertFile, Key: cfg.KeyFile, ServerName: cfg.ServerName})
		if err != nil {
			return nil, err
		}
		d.config = files.Config
	}
	var err error
	if cfg.Token != "" || cfg.TokenFile != "" {
		d.token, err = openToken(cfg.Token, cfg.TokenFile)
	}
	return d, err
}

// verdict is the error of a try that failed for want of a connection, as far as the door knows better than gRPC; nil when it does not.
func (d *door) verdict() *kverr.Error {
	if e := d.refused.Load(); e != nil {
		return e
	}
	if d.silent.Load() {
		return &kverr.Error{Kind: kverr.Unavailable,
			Message: "the server closes the connection before it says a word: if it speaks TLS on this port, turn TLS on (name its CA's certificate)"}
	}
	return nil
}

// creds are gRPC's transport credentials for the door.
func (d *door) creds() credentials.TransportCredentials {
	if d.config == nil {
		return &doorCreds{insecure.NewCredentials(), d}
	}
	return &doorCreds{credentials.NewTLS(d.config()), d}
}

// doorCreds note how handshakes end. With TLS each handshake is by the files of its moment.
type doorCreds struct {
	credentials.TransportCredentials // for everything but handshakes
	door                             *door
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *doorCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	d := c.door
	by := c.TransportCredentials
	if d.config != nil {
		by = credentials.NewTLS(d.config())
	}
	conn, info, err := by.ClientHandshake(ctx, authority, raw)
	if err != nil {
		if e := authn.Explain(err); e != nil {
			d.refused.Store(e)
		}
		return nil, nil, err
	}
	return &doorConn{Conn: conn, door: d, plain: d.config == nil}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *doorCreds) Clone() credentials.TransportCredentials {
	return &doorCreds{c.TransportCredentials.Clone(), c.door}
}

// doorConn notes how a connection begins: with TLS 1.3 a server refuses a client's certificate only after the handshake, and one that
// speaks TLS hangs up on plain text.
type doorConn struct {
	net.Conn
	door  *door
	plain bool
	begun atomic.Bool // something was read
}

// Read implements net.Conn.
func (c *doorConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.begun.Load() {
		return n, err
	}
	switch {
	case n > 0:
		c.begun.Store(true)
		c.door.refused.Store(nil)
		c.door.silent.Store(false)
		c.door.come.Store(true)
	case err == nil:
	case c.plain && errors.Is(err, net.ErrClosed): // by us: it says nothing of the server
	case c.plain:
		c.door.silent.Store(hungUp(err))
	default:
		if e := authn.Explain(err); e != nil {
			c.door.refused.Store(e)
		}
	}
	return n, err
}

// Write implements net.Conn: whoever hangs up fast is noticed by what is written first.
func (c *doorConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && c.plain && !c.begun.Load() && hungUp(err) {
		c.door.silent.Store(true)
	}
	return n, err
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// tokenSource gives calls their token. It is safe for concurrent use.
type tokenSource struct {
	file string // "" = the token is fixed

	mu     sync.Mutex
	read   time.Time         // guarded by mu: when the file was read last
	header map[string]string // guarded by mu; never changed once it was given out
}

// reread is how old what was read of a token file may be.
const reread = 5 * time.Second

func openToken(token, file string) (*tokenSource, error) {
	t := &tokenSource{file: file}
	if file != "" {
		return t, t.refresh()
	}
	return t, t.set(token)
}

// set takes a token; errors do not tell it.
func (t *tokenSource) set(token string) error {
	if len(token) < authn.MinToken || len(token) > authn.MaxToken {
		return fmt.Errorf("the token has %d bytes; a token has %d to %d", len(token), authn.MinToken, authn.MaxToken)
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return errors.New("the token has a character that is no printable ASCII")
		}
	}
	t.header = map[string]string{"authorization": "Bearer " + token}
	return nil
}

// refresh reads the file; nobody else has t, or mu is held.
func (t *tokenSource) refresh() error {
	t.read = time.Now()
	text, err := os.ReadFile(t.file)
	if err != nil {
		return fmt.Errorf("token file: %w", err)
	}
	if err := t.set(strings.TrimSpace(string(text))); err != nil {
		return fmt.Errorf("token file %s: %w", t.file, err)
	}
	return nil
}

// renew reads the file again and tells whether there is one.
func (t *tokenSource) renew() bool {
	if t == nil || t.file == "" {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.refresh() // what was read before stays
	return true
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t *tokenSource) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != "" && time.Since(t.read) > reread {
		_ = t.refresh() // what was read before stays
	}
	return t.header, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. Config.Validate has seen to it that a token travels in plain text
// only within this machine, or as told.
func (t *tokenSource) RequireTransportSecurity() bool { return false }

// onThisMachine tells whether an endpoint can only be this machine.
func onThisMachine(endpoint string) bool {
	if strings.HasPrefix(endpoint, "unix:") || strings.HasPrefix(endpoint, "unix-abstract:") {
		return true
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
