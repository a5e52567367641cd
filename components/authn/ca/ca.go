// Package ca is a certificate authority of a few lines, for clusters that have none: docker compose, trials, tests. Keys are ECDSA
// P-256. It keeps no list of what it issued and cannot revoke: certificates are short-lived, and whoever must be kept out is kept out
// by a new CA.
//
//	root, err := ca.New("kvstore", ca.DefaultLife, time.Now())
//	pair, err := root.Issue(ca.Leaf{Name: "frontend", DNS: []string{"frontend1"}, Life: 90 * 24 * time.Hour}, time.Now())
//	err = pair.Write("certs/frontend")
package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// DefaultLife is how long a CA's certificate is good, unless told otherwise: ten years.
const DefaultLife = 10 * 365 * 24 * time.Hour

// skew is how far clocks of machines may be apart: certificates begin so much before they are issued.
const skew = 5 * time.Minute

// Pair is a certificate with its key, in PEM form.
type Pair struct {
	Cert, Key []byte
}

// CA issues certificates.
type CA struct {
	Pair
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes a CA. It signs leaves alone: no other CA below it.
func New(name string, life time.Duration, now time.Time) (*CA, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-skew), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	pair, err := sign(template, nil)
	if err != nil {
		return nil, err
	}
	return Load(*pair)
}

// Load takes a CA that New made.
func Load(p Pair) (*CA, error) {
	certBlock, _ := pem.Decode(p.Cert)
	keyBlock, _ := pem.Decode(p.Key)
	if certBlock == nil || keyBlock == nil {
		return nil, errors.New("the CA's certificate or key is not in PEM form")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the CA's key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, fmt.Errorf("the CA's key is a %T; want ECDSA", parsed)
	case !cert.IsCA:
		return nil, errors.New("the certificate is not one of a CA")
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, errors.New("the CA's key is not that of its certificate")
	}
	return &CA{Pair: p, cert: cert, key: key}, nil
}

// Read reads a CA from base.crt and base.key.
func Read(base string) (*CA, error) {
	var p Pair
	var err error
	if p.Cert, err = os.ReadFile(base + ".crt"); err != nil {
		return nil, err
	}
	if p.Key, err = os.ReadFile(base + ".key"); err != nil {
		return nil, err
	}
	return Load(p)
}

// Leaf says what a certificate is for.
type Leaf struct {
	Name string // common name: for people
	DNS  []string
	IPs  []net.IP
	URIs []string
	Life time.Duration // negative: expired so long ago, for tests
}

// Issue makes a certificate for servers and for clients. It ends with its CA at the latest.
func (c *CA) Issue(l Leaf, now time.Time) (*Pair, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: l.Name}, NotBefore: now.Add(min(0, l.Life) - skew), NotAfter: now.Add(l.Life),
		DNSNames: l.DNS, IPAddresses: l.IPs, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	for _, text := range l.URIs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" {
			return nil, fmt.Errorf("%q is no URI with a scheme", text)
		}
		template.URIs = append(template.URIs, u)
	}
	return sign(template, c)
}

// sign makes a key and its certificate, signed by parent, or by itself when there is none.
func sign(template *x509.Certificate, parent *CA) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer) // with a random serial number
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// Write writes base.crt and base.key, which the owner alone may read. Each is replaced at once, the key first: whoever follows them and
// meets the new key with the old certificate looks again.
func (p *Pair) Write(base string) error {
	if err := replace(base+".key", p.Key, 0o600); err != nil {
		return err
	}
	return replace(base+".crt", p.Cert, 0o644)
}

// replace writes a file so that nobody sees half of it.
func replace(name string, data []byte, mode os.FileMode) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(name), ".kvstore-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.ReadFrom(bytes.NewReader(data))
	if err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), name)
}
