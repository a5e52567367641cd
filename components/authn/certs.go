package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// parsePair parses a certificate, with those between it and its CA behind it, and its key, and checks that it can be used now and for
// what it is meant.
func parsePair(certFile string, cert []byte, keyFile string, key []byte, uses ...x509.ExtKeyUsage) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err) // tells no part of the key
	}
	leaf := pair.Leaf
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("certificate %s expired at %s", certFile, stamp(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("certificate %s begins at %s only; the clock here says %s", certFile, stamp(leaf.NotBefore), stamp(now))
	}
	for _, use := range uses {
		if len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, use) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return nil, fmt.Errorf("certificate %s is not for %s (extended key usage)", certFile,
				map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "servers", x509.ExtKeyUsageClientAuth: "clients"}[use])
		}
	}
	return &pair, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// parsePool parses the certificates of one or more CAs, as when one replaces another.
func parsePool(file string, text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	found := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA file %s: certificate %d: %w", file, found+1, err)
		}
		pool.AddCert(c)
		found++
	}
	if found == 0 {
		return nil, fmt.Errorf("CA file %s has no certificate in PEM form", file)
	}
	return pool, nil
}

// ServerFiles are the files of a door that speaks TLS.
type ServerFiles struct {
	// Cert and Key are the server's certificate, with those between it and its CA behind it, and its key. PEM.
	Cert, Key string
	// ClientCA, when set, holds the certificates of the CAs whose client certificates are accepted. PEM.
	ClientCA string
	// RequireClient refuses clients without a certificate of ClientCA. Otherwise they may come without, but not with a bad one.
	RequireClient bool
}

// Server is the TLS of a door, as of the last good state of its files. It is safe for concurrent use.
type Server struct {
	files ServerFiles
	src   *source[serverState]
	warn  expiry
}

type serverState struct {
	cert    *tls.Certificate
	clients *x509.CertPool // nil without ClientCA
}

// OpenServer reads the files.
func OpenServer(f ServerFiles) (*Server, error) {
	switch {
	case f.Cert == "" || f.Key == "":
		return nil, errors.New("TLS needs a certificate and its key, both")
	case f.RequireClient && f.ClientCA == "":
		return nil, errors.New("client certificates are required, but there is no CA to check them by")
	}
	names := []string{f.Cert, f.Key}
	if f.ClientCA != "" {
		names = append(names, f.ClientCA)
	}
	src, err := open(names, func(c [][]byte) (*serverState, error) {
		cert, err := parsePair(f.Cert, c[0], f.Key, c[1], x509.ExtKeyUsageServerAuth)
		if err != nil {
			return nil, err
		}
		s := &serverState{cert: cert}
		if len(c) > 2 {
			s.clients, err = parsePool(f.ClientCA, c[2])
		}
		return s, err
	})
	if err != nil {
		return nil, err
	}
	return &Server{files: f, src: src}, nil
}

// Config is TLS 1.3 by what the files hold at each handshake; protocols are for ALPN. Connections that exist are left as they are.
func (s *Server) Config(protocols ...string) *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		state := s.src.current()
		c := &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{*state.cert},
			// Every handshake is judged by today's CAs: a ticket would carry yesterday's judgement on.
			SessionTicketsDisabled: true,
		}
		if state.clients != nil {
			c.ClientCAs, c.ClientAuth = state.clients, tls.VerifyClientCertIfGiven
			if s.files.RequireClient {
				c.ClientAuth = tls.RequireAndVerifyClientCert
			}
		}
		return c, nil
	}
	return base
}

// RequiresClient tells whether a client must present a certificate.
func (s *Server) RequiresClient() bool { return s.files.RequireClient }

// Reload takes what the files hold now; after an error what was in force stays.
func (s *Server) Reload() (changed bool, err error) { return s.src.reload() }

// Watch follows the files until ctx ends.
func (s *Server) Watch(ctx context.Context, ev Events) {
	s.src.watch(ctx, ev, func(now time.Time) { s.warn.look(now, s.files.Cert, s.src.current().cert.Leaf, ev) })
}

// expiry warns of certificates that are about to expire. Only Watch's goroutine uses it.
type expiry struct {
	leaf *x509.Certificate // warned of
	next time.Time         // when to warn again
}

func (w *expiry) look(now time.Time, file string, leaf *x509.Certificate, ev Events) {
	left := leaf.NotAfter.Sub(now)
	if ev.Expiring == nil || left > leaf.NotAfter.Sub(leaf.NotBefore)/5 {
		return
	}
	if w.leaf == leaf && now.Before(w.next) {
		return
	}
	w.leaf, w.next = leaf, now.Add(min(max(left/5, 10*time.Second), 24*time.Hour))
	if left <= 0 {
		w.next = now.Add(tellAgain)
	}
	ev.Expiring(file, leaf.NotAfter, left)
}

// ClientFiles are the files of a client. All are optional.
type ClientFiles struct {
	// CA holds the certificates of the CAs that a server may have its certificate from; "" = those that the system trusts. PEM.
	CA string
	// Cert and Key are the client's own certificate and key, if the server wants one. PEM.
	Cert, Key string
	// ServerName is the name that the server's certificate must be for; "" = the host that is dialled.
	ServerName string
}

// Client is the TLS of a client, which reads its files anew for each handshake: connections are few and last. It is safe for
// concurrent use.
type Client struct {
	src *source[tls.Config]
}

// OpenClient reads the files.
func OpenClient(f ClientFiles) (*Client, error) {
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a client certificate needs its key, and a key its certificate")
	}
	names := slices.DeleteFunc([]string{f.Cert, f.Key, f.CA}, func(s string) bool { return s == "" })
	src, err := open(names, func(c [][]byte) (*tls.Config, error) {
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: f.ServerName}
		if f.Cert != "" {
			pair, err := parsePair(f.Cert, c[0], f.Key, c[1], x509.ExtKeyUsageClientAuth)
			if err != nil {
				return nil, err
			}
			cfg.Certificates = []tls.Certificate{*pair}
		}
		if f.CA != "" {
			var err error
			if cfg.RootCAs, err = parsePool(f.CA, c[len(c)-1]); err != nil {
				return nil, err
			}
		}
		return cfg, nil
	})
	if err != nil {
		return nil, err
	}
	return &Client{src: src}, nil
}

// Config is the configuration for a handshake now. Files that have gone bad meanwhile are passed over.
func (c *Client) Config() *tls.Config {
	_, _ = c.src.reload()
	return c.src.current().Clone()
}

// PeerFiles are the files of the data plane, where both sides are ours and each must prove it.
type PeerFiles struct {
	// Cert and Key are this process's certificate, for servers and for clients, and its key. PEM.
	Cert, Key string
	// CA holds the certificates of the CAs of our processes, and of nobody else. PEM.
	CA string
	// Names are who is let in: a peer's certificate must have one of them as a subject alternative name. A DNS name, where *. stands
	// for one label, or a URI. At least one.
	Names []string
}

// Peers is mutual TLS between our processes, as of the last good state of its files. It is safe for concurrent use.
type Peers struct {
	files PeerFiles
	src   *source[peerState]
	warn  expiry
}

type peerState struct {
	cert *tls.Certificate
	cas  *x509.CertPool
}

// OpenPeers reads the files. A certificate that our own peers would refuse is an error.
func OpenPeers(f PeerFiles) (*Peers, error) {
	switch {
	case f.Cert == "" || f.Key == "" || f.CA == "":
		return nil, errors.New("mutual TLS needs a certificate, its key and a CA, all three")
	case len(f.Names) == 0 || slices.Contains(f.Names, ""):
		return nil, errors.New("mutual TLS needs the names that peers' certificates may have")
	}
	src, err := open([]string{f.Cert, f.Key, f.CA}, func(c [][]byte) (*peerState, error) {
		cert, err := parsePair(f.Cert, c[0], f.Key, c[1], x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
		if err != nil {
			return nil, err
		}
		pool, err := parsePool(f.CA, c[2])
		if err != nil {
			return nil, err
		}
		s := &peerState{cert: cert, cas: pool}
		chain := []*x509.Certificate{cert.Leaf}
		for _, der := range cert.Certificate[1:] {
			between, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("certificate %s: %w", f.Cert, err)
			}
			chain = append(chain, between)
		}
		if err := s.verify(chain, x509.ExtKeyUsageServerAuth); err != nil {
			return nil, fmt.Errorf("certificate %s is not of the CA in %s: %w", f.Cert, f.CA, err)
		}
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	return &Peers{files: f, src: src}, nil
}

func (s *peerState) verify(chain []*x509.Certificate, use x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: s.cas, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}})
	return err
}

// ErrStranger is for peers whose certificate is of our CA and for somebody else.
var ErrStranger = errors.New("the peer's certificate has none of the names that are let in here")

// admit checks who a verified certificate is for.
func (p *Peers) admit(leaf *x509.Certificate) error {
	for _, rule := range p.files.Names {
		for _, name := range leaf.DNSNames {
			if dnsMatches(rule, name) {
				return nil
			}
		}
		for _, uri := range leaf.URIs {
			if uri.String() == rule {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: it is for %s; let in are %s", ErrStranger, names(leaf), strings.Join(p.files.Names, ", "))
}

// dnsMatches compares a DNS name with a rule, in which *. stands for one label.
func dnsMatches(rule, name string) bool {
	if strings.EqualFold(rule, name) {
		return true
	}
	suffix, ok := strings.CutPrefix(rule, "*.")
	if !ok {
		return false
	}
	label, rest, ok := strings.Cut(name, ".")
	return ok && label != "" && label != "*" && strings.EqualFold(rest, suffix)
}

// names are the subject alternative names of a certificate, as far as people want to read.
func names(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	for _, u := range c.URIs {
		all = append(all, u.String())
	}
	if len(all) == 0 {
		return "no name"
	}
	if len(all) > 5 {
		all = append(all[:5], "and others")
	}
	return strings.Join(all, ", ")
}

// ServerConfig is TLS 1.3 for the side that is dialled: a peer must present a certificate of our CA with one of the names.
func (p *Peers) ServerConfig() *tls.Config {
	protocols := []string{"h2"}
	base := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s := p.src.current()
		return &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{*s.cert}, SessionTicketsDisabled: true,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: s.cas,
			VerifyConnection: func(c tls.ConnectionState) error { return p.admit(c.PeerCertificates[0]) },
		}, nil
	}
	return base
}

// ClientConfig is TLS 1.3 for the side that dials. Who answers is judged by the names, not by the address: hosts are found by
// addresses that come and go.
func (p *Peers) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.src.current().cert, nil },
		// Not insecure: VerifyConnection does all that is skipped, by the CA that is in force at this handshake, but compares
		// names instead of the address.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			if err := p.src.current().verify(c.PeerCertificates, x509.ExtKeyUsageServerAuth); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: c.PeerCertificates, Err: err}
			}
			return p.admit(c.PeerCertificates[0])
		},
	}
}

// Reload takes what the files hold now; after an error what was in force stays.
func (p *Peers) Reload() (changed bool, err error) { return p.src.reload() }

// Watch follows the files until ctx ends.
func (p *Peers) Watch(ctx context.Context, ev Events) {
	p.src.watch(ctx, ev, func(now time.Time) { p.warn.look(now, p.files.Cert, p.src.current().cert.Leaf, ev) })
}
