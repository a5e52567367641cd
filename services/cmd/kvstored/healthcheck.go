package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"kvstore/services/node"
)

const healthcheckUsage = `kvstored healthcheck asks a kvstored on this machine whether it serves: exit code 0 or 1. It is for container engines,
whose images have neither a shell nor curl. Its flags are those of the server that it asks.

  kvstored healthcheck
  kvstored healthcheck -tls-cert server.crt -tls-key server.key

Flags:
`

// healthcheck asks /readyz of the admin port of a server on this machine, and tells what it answered.
func healthcheck(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("kvstored healthcheck", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	admin := f.String("admin-listen", "", "`address` of the admin port (default "+node.DoorAdmin.Loopback(0)+" for instance 0)")
	instance := f.Int("instance", 0, "the server's `number`")
	cert := f.String("tls-cert", "", "`file` with the server's certificate: the admin port must show it")
	key := f.String("tls-key", "", "`file` with its key, to be shown to a server that wants certificates of its clients")
	timeout := f.Duration("timeout", 3*time.Second, "`time` after which no answer is one")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stderr, healthcheckUsage)
		f.SetOutput(stderr)
		f.PrintDefaults()
		return exitOK
	case err == nil && f.NArg() > 0:
		err = fmt.Errorf("%q is no flag; it takes nothing else", f.Arg(0))
	case err == nil && (*cert == "") != (*key == ""):
		err = errors.New("-tls-cert and -tls-key belong together: give both or neither")
	case err == nil && (*instance < 0 || *instance > node.MaxInstance):
		err = fmt.Errorf("-instance is %d: 0 to %d", *instance, node.MaxInstance)
	}
	if *admin == "" {
		*admin = node.DoorAdmin.Loopback(*instance)
	}
	host, port, splitErr := net.SplitHostPort(*admin)
	if err == nil && splitErr != nil {
		err = fmt.Errorf("-admin-listen is %q: it must be host:port", *admin)
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstored healthcheck: %v\nRun kvstored healthcheck -h for help.\n", err)
		return exitUsage
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() { // it listens on all addresses
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	answer, err := askReady(ctx, net.JoinHostPort(host, port), *cert, *key)
	if err != nil {
		fmt.Fprintf(stderr, "kvstored healthcheck: %v\n", err)
		return exitError
	}
	fmt.Fprintln(stdout, answer)
	return exitOK
}

// askReady returns what /readyz says, which is an error unless it is yes.
func askReady(ctx context.Context, addr, cert, key string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, Proxy: nil}
	url := "http://" + addr + "/readyz"
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return "", err
		}
		transport.TLSClientConfig = samePair(pair)
		url = "https://" + addr + "/readyz"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, text)
	}
	return text, nil
}

// samePair is TLS with a server that has the same certificate as its client. The address that is asked needs not be among its names: it is the
// certificate itself that says that this is the server.
func samePair(pair tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
		VerifyPeerCertificate: func(shown [][]byte, _ [][]*x509.Certificate) error {
			if len(shown) == 0 || !bytes.Equal(shown[0], pair.Certificate[0]) {
				return errors.New("the certificate of the admin port is not that of -tls-cert")
			}
			return nil
		},
	}
}
