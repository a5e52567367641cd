package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
)

// Config says how to reach a server. Endpoints are required; the rest has defaults.
type Config struct {
	// Endpoints are addresses of one server or of equal frontends: host:port, grpc://host:port, grpcs://host:port (which turns UseTLS on), or any
	// gRPC target when there is one alone. Connections are spread over them and move on when one is down.
	Endpoints []string

	// Keyspace and Namespace are where operations go; empty means "default" on the server. Client.In changes them.
	Keyspace  string
	Namespace string

	// Connections is how many TCP connections, each with one Pipeline stream, operations are spread over: 1 to 64,
	// default 1. One carries more than a small machine can; more help when the server has many cores. Values and blocks
	// that travel as streams go over as many further ones, opened when first used, so that short calls do not wait behind them.
	Connections int

	// Unary sends Put, Get and Delete as RPCs of their own instead of over the Pipeline stream: slower, but it passes
	// proxies that do not carry streams.
	Unary bool

	// MaxOutstanding bounds the operations under way on one connection: 1 to 65,536, default 4,096. Callers beyond it
	// wait.
	MaxOutstanding int

	// RetryFor is how long a call is repeated when its context has no deadline, and how long after its first try the
	// server may still execute a write: 1 s to 10 min, default 1 min.
	RetryFor time.Duration

	// BackoffMin and BackoffMax bound the pause between two tries, of a call and of a connection; it doubles and is jittered, that of a call
	// downwards by up to half.
	// Defaults 10 ms and 2 s.
	BackoffMin time.Duration
	BackoffMax time.Duration

	// UseTLS turns TLS 1.3 on, as any of the four fields below it does. CAFile names the CAs (PEM) that the server's certificate may be of;
	// without it those count that the system trusts. CertFile and KeyFile are the client's own certificate and key, if the
	// server wants one. ServerName is the name that the server's certificate must have; without it the endpoint's host. Files are
	// read anew for each connection.
	UseTLS            bool
	CAFile            string
	CertFile, KeyFile string
	ServerName        string

	// TLS is instead of those, for whoever has a configuration of his own. Without any of them the client speaks plain text.
	TLS *tls.Config

	// Token goes with every call; TokenFile names a file that has it, and is read again every few seconds. At most one of them. Over
	// plain text it is sent to this machine alone, unless Insecure is set.
	Token     string
	TokenFile string
	Insecure  bool

	// TracerProvider, when set, makes a span for every call, by its own sampling, as a part of the span in the call's context; the server continues those
	// that are sampled, and follows none of the others. nil: what is followed is the server's to decide.
	TracerProvider trace.TracerProvider

	// DialOptions are added to those of every connection, after the client's own.
	DialOptions []grpc.DialOption
}

// EnsureDefaults fills what is zero.
func (c *Config) EnsureDefaults() {
	setDefault(&c.Connections, 1)
	setDefault(&c.MaxOutstanding, 4096)
	setDefault(&c.RetryFor, time.Minute)
	setDefault(&c.BackoffMin, 10*time.Millisecond)
	setDefault(&c.BackoffMax, 2*time.Second)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// The schemes of endpoints as URIs.
const (
	plainScheme = "grpc://"
	tlsScheme   = "grpcs://"
)

// resolveSchemes makes host:port of endpoints that are URIs.
func (c *Config) resolveSchemes() error {
	c.Endpoints = slices.Clone(c.Endpoints) // the caller's stays as it is
	plain, secure := false, false
	for i, e := range c.Endpoints {
		addr, isPlain := strings.CutPrefix(e, plainScheme)
		if !isPlain {
			var isTLS bool
			if addr, isTLS = strings.CutPrefix(e, tlsScheme); !isTLS {
				continue
			}
			secure = true
		}
		plain = plain || isPlain
		addr = strings.TrimSuffix(addr, "/")
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" || strings.Contains(port, "/") {
			return invalid("connect", "Endpoints[%d]: %q, want grpc://host:port or grpcs://host:port", i, e)
		}
		c.Endpoints[i] = addr
	}
	if plain && secure {
		return invalid("connect", "Endpoints: grpc:// and grpcs:// together, want all with TLS or none")
	}
	c.UseTLS = c.UseTLS || secure && c.TLS == nil
	return nil
}

// Validate lists every fault of a Config that has its defaults.
func (c *Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if len(c.Endpoints) == 0 {
		fault("Endpoints: none given, want at least one host:port")
	}
	for i, e := range c.Endpoints {
		if e == "" {
			fault("Endpoints[%d]: empty", i)
		}
	}
	if c.Connections < 1 || c.Connections > 64 {
		fault("Connections: %d, want 1 to 64", c.Connections)
	}
	if c.MaxOutstanding < 1 || c.MaxOutstanding > 1<<16 {
		fault("MaxOutstanding: %d, want 1 to 65536", c.MaxOutstanding)
	}
	if c.RetryFor < time.Second || c.RetryFor > 10*time.Minute {
		fault("RetryFor: %v, want 1s to 10m", c.RetryFor)
	}
	if c.BackoffMin <= 0 || c.BackoffMax < c.BackoffMin {
		fault("BackoffMin, BackoffMax: %v, %v, want 0 < BackoffMin <= BackoffMax", c.BackoffMin, c.BackoffMax)
	}
	c.validateDoor(fault)
	return errors.Join(faults...)
}

// wantsTLS tells whether a field turns TLS on.
func (c *Config) wantsTLS() bool {
	return c.UseTLS || c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != ""
}

func (c *Config) validateDoor(fault func(format string, args ...any)) {
	if c.TLS != nil && c.wantsTLS() {
		fault("TLS: given together with UseTLS, CAFile, CertFile, KeyFile or ServerName; want one or the other")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		fault("CertFile, KeyFile: one without the other")
	}
	if c.Token != "" && c.TokenFile != "" {
		fault("Token, TokenFile: both given, want one")
	}
	if c.Token == "" && c.TokenFile == "" || c.TLS != nil || c.wantsTLS() || c.Insecure {
		return
	}
	for i, e := range c.Endpoints {
		if !onThisMachine(e) {
			fault("Endpoints[%d]: %q may be another machine, and a token must not travel in plain text: turn TLS on, or set Insecure if the network is trusted", i, e)
		}
	}
}
