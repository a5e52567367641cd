package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"kvstore/components/authn"
)

// Access says how the doors know who comes (components/authn/DESIGN.md). The files are followed without a restart.
type Access struct {
	// TLS are the files of the gRPC API, REST, RESP and the admin port; without Cert they speak plain text.
	TLS authn.ServerFiles
	// Tokens is the tokens file; with it every call needs a token, on loopback too. "" = no tokens.
	Tokens string
	// Peers are the files of the data plane, where both sides prove who they are; without Cert it speaks plain text.
	Peers authn.PeerFiles
}

// missing tells what a door on an address that other machines can reach would need and does not have; "" = nothing.
func (a *Access) missing(door Door) string {
	if door == DoorDataPlane {
		if a.Peers.Cert == "" {
			return "mutual TLS (-peer-cert, -peer-key, -peer-ca, -peer-names)"
		}
		return ""
	}
	var lacks []string
	if a.TLS.Cert == "" {
		lacks = append(lacks, "TLS (-tls-cert, -tls-key)")
	}
	if a.Tokens == "" && !a.TLS.RequireClient {
		lacks = append(lacks, "a way to know who comes (-tokens, or -tls-client-ca with -tls-client-required)")
	}
	return strings.Join(lacks, " and ")
}

// validate lists what does not go together.
func (a *Access) validate(check func(ok bool, format string, args ...any)) {
	t, p := &a.TLS, &a.Peers
	check((t.Cert == "") == (t.Key == ""), "-tls-cert and -tls-key belong together: give both or neither")
	check(t.Cert != "" || t.ClientCA == "", "-tls-client-ca is given, but there is no TLS: it needs -tls-cert and -tls-key")
	check(!t.RequireClient || t.ClientCA != "", "-tls-client-required needs -tls-client-ca, which says whose certificates are good")
	given := 0
	for _, f := range []string{p.Cert, p.Key, p.CA, strings.Join(p.Names, "")} {
		if f != "" {
			given++
		}
	}
	check(given == 0 || given == 4, "-peer-cert, -peer-key, -peer-ca and -peer-names belong together: give all four or none")
}

// doors are what the doors' files hold, and how strangers are noted.
type doors struct {
	tokens *authn.Tokens
	certs  *authn.Server // nil = plain text
	peers  *authn.Peers  // nil = plain text
	log    *slog.Logger

	mu      sync.Mutex
	next    time.Time // guarded by mu: when the next stranger may be logged
	leftOut int       // guarded by mu
}

// openDoors reads the files.
func openDoors(a Access, log *slog.Logger) (*doors, error) {
	d := &doors{tokens: authn.Anyone, log: log}
	var err error
	if a.Tokens != "" {
		if d.tokens, err = authn.OpenTokens(a.Tokens); err != nil {
			return nil, err
		}
	}
	if a.TLS.Cert != "" {
		if d.certs, err = authn.OpenServer(a.TLS); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
	}
	if a.Peers.Cert != "" {
		if d.peers, err = authn.OpenPeers(a.Peers); err != nil {
			return nil, fmt.Errorf("TLS of the data plane: %w", err)
		}
	}
	return d, nil
}

// watch follows the files until stop is called.
func (d *doors) watch() (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	events := authn.Events{
		Reloaded: func(files []string) { d.log.Info("files of the doors were reloaded", "files", files) },
		Kept: func(files []string, err error) {
			d.log.Error("files of the doors changed and cannot be used; what was in force stays", "files", files, "error", err)
		},
		Expiring: func(file string, notAfter time.Time, left time.Duration) {
			d.log.Warn("a certificate is about to expire, or has: renew it", "file", file, "expires", notAfter.UTC().Format(time.RFC3339),
				"left", left.Round(time.Second).String())
		},
	}
	all.Go(func() { d.tokens.Watch(ctx, events) })
	if d.certs != nil {
		all.Go(func() { d.certs.Watch(ctx, events) })
	}
	if d.peers != nil {
		all.Go(func() { d.peers.Watch(ctx, events) })
	}
	return func(context.Context) error {
		cancel()
		all.Wait()
		return nil
	}
}

// handshakeTime bounds what comes before a connection's first call, so that silent strangers hold nothing for long.
const handshakeTime = 20 * time.Second

// grpcOptions are the transport of the gRPC API.
func (d *doors) grpcOptions() []grpc.ServerOption {
	options := []grpc.ServerOption{grpc.ConnectionTimeout(handshakeTime)}
	if d.certs != nil {
		options = append(options, grpc.Creds(&notingCreds{credentials.NewTLS(d.certs.Config()), d}))
	}
	return options
}

// peerOptions are the transport of the data plane, where both sides prove who they are. They come behind other options.
func (d *doors) peerOptions() []grpc.ServerOption {
	options := []grpc.ServerOption{grpc.ConnectionTimeout(handshakeTime)}
	if d.peers != nil {
		options = append(options, grpc.Creds(&notingCreds{credentials.NewTLS(d.peers.ServerConfig()), d}))
	}
	return options
}

// peerClient is TLS towards the data plane of other processes; nil = plain text.
func (d *doors) peerClient() *tls.Config {
	if d.peers == nil {
		return nil
	}
	return d.peers.ClientConfig()
}

// adminListener puts TLS on the admin port.
func (d *doors) adminListener(l net.Listener) net.Listener { return d.listener(l, "http/1.1") }

// listener puts TLS on a door, for the protocols that clients may name there.
func (d *doors) listener(l net.Listener, protocols ...string) net.Listener {
	if d.certs == nil {
		return l
	}
	return tls.NewListener(l, d.certs.Config(protocols...))
}

// restListener puts TLS on the REST door.
func (d *doors) restListener(l net.Listener) net.Listener { return d.listener(l, "h2", "http/1.1") }

// notingCreds logs handshakes that fail: gRPC tells nobody.
type notingCreds struct {
	credentials.TransportCredentials
	doors *doors
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *notingCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.doors.stranger(raw.RemoteAddr().String(), authn.ExplainServer(err))
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (c *notingCreds) Clone() credentials.TransportCredentials {
	return &notingCreds{c.TransportCredentials.Clone(), c.doors}
}

// stranger logs a connection that did not come in, at most one a second.
func (d *doors) stranger(from, why string) {
	now := time.Now()
	d.mu.Lock()
	if now.Before(d.next) {
		d.leftOut++
		d.mu.Unlock()
		return
	}
	leftOut := d.leftOut
	d.next, d.leftOut = now.Add(time.Second), 0
	d.mu.Unlock()
	d.log.Warn("a connection was refused at the door", "from", from, "why", why, "not_logged_before", leftOut)
}

// Write takes what net/http has to say of connections to REST and the admin port, most of it about handshakes.
func (d *doors) Write(line []byte) (int, error) {
	d.stranger("", strings.TrimSpace(string(line)))
	return len(line), nil
}

// describe says at the start how the doors stand.
func (d *doors) describe() []any {
	tokens := "none"
	if !d.tokens.Open() {
		tokens = fmt.Sprint(d.tokens.Len())
	}
	return []any{"tls", d.certs != nil, "client_certificates_required", d.certs != nil && d.certs.RequiresClient(), "tokens", tokens,
		"peer_tls", d.peers != nil}
}
