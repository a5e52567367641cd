package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kvstore/components/authn/ca"
)

var caInitCommand = command{
	local: true,
	short: "make a certificate authority",
	help: `Writes DIR/ca.crt, which everybody may have, and DIR/ca.key, which stays here: who has it can make certificates that your
servers and clients trust. It is for trials and small clusters; it cannot revoke.

  kvctl ca init
  kvctl ca init --dir /certs --if-absent      keeps what is there, for scripts that run again`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		dir := caDir(fs)
		name := fs.String("name", "kvstore CA", "`name` of the authority, for people")
		life := fs.Duration("for", ca.DefaultLife, "`time` that it is good")
		keep := ifAbsent(fs)
		return func(_ context.Context, s *session, _ []string) error {
			base := filepath.Join(*dir, "ca")
			if there, err := s.alreadyThere(base, *keep); there || err != nil {
				return err
			}
			if *life <= 0 {
				return usagef("--for %v: want a time from now", *life)
			}
			root, err := ca.New(*name, *life, time.Now())
			if err != nil {
				return err
			}
			if err := os.MkdirAll(*dir, 0o755); err != nil {
				return err
			}
			return s.wrote(base, root.Write(base))
		}
	},
}

var caIssueCommand = command{
	args: "NAME", min: 1, max: 1, local: true,
	short: "make a certificate for a server or a client",
	help: `Writes DIR/NAME.crt and DIR/NAME.key, signed by the authority that kvctl ca init made in DIR. A server's certificate needs the
names or addresses that clients dial; localhost, 127.0.0.1 and ::1 are always among them. Between our own processes the name counts
that kvstored -peer-names lets in: a DNS name or a URI.

  kvctl ca issue server --dns kv.example,kv --ip 10.0.0.5
  kvctl ca issue host1 --dns host1.kvstore --for 8760h
  kvctl ca issue host2 --uri spiffe://kvstore/host2 --if-absent`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		dir := caDir(fs)
		dns := fs.String("dns", "", "DNS `names` with commas")
		ips := fs.String("ip", "", "`addresses` with commas")
		uris := fs.String("uri", "", "`URIs` with commas")
		life := fs.Duration("for", 90*24*time.Hour, "`time` that it is good")
		keep := ifAbsent(fs)
		return func(_ context.Context, s *session, args []string) error {
			name := args[0]
			if name != filepath.Base(name) || name == "ca" || strings.HasPrefix(name, ".") {
				return usagef("%q cannot be the name of a certificate: it is that of its files", name)
			}
			leaf := ca.Leaf{Name: name, DNS: append(list(*dns), "localhost"), URIs: list(*uris), Life: *life}
			for _, text := range append(list(*ips), "127.0.0.1", "::1") {
				ip := net.ParseIP(text)
				if ip == nil {
					return usagef("--ip %s: no IP address", text)
				}
				leaf.IPs = append(leaf.IPs, ip)
			}
			base := filepath.Join(*dir, name)
			if there, err := s.alreadyThere(base, *keep); there || err != nil {
				return err
			}
			root, err := ca.Read(filepath.Join(*dir, "ca"))
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no authority in %s (kvctl ca init makes one): %w", *dir, err)
			}
			if err != nil {
				return err
			}
			pair, err := root.Issue(leaf, time.Now())
			if err != nil {
				return err
			}
			return s.wrote(base, pair.Write(base))
		}
	},
}

func caDir(fs *flag.FlagSet) *string {
	return fs.String("dir", ".", "`folder` of the authority and its certificates")
}

func ifAbsent(fs *flag.FlagSet) *bool {
	return fs.Bool("if-absent", false, "keep files that are there and succeed")
}

// list splits at commas.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// alreadyThere tells whether there is nothing to do because base.crt or base.key exists; unless keep is set that is an error.
func (s *session) alreadyThere(base string, keep bool) (bool, error) {
	for _, name := range []string{base + ".crt", base + ".key"} {
		_, err := os.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return false, err
		case !keep:
			return false, usagef("%s is there already: remove it, or keep it with --if-absent", name)
		}
		s.say("kept %s\n", name)
		return true, nil
	}
	return false, nil
}

func (s *session) wrote(base string, err error) error {
	if err != nil {
		return err
	}
	if s.output == "json" {
		return s.json(map[string]string{"certificate": base + ".crt", "key": base + ".key"})
	}
	s.say("wrote %s and %s\n", base+".crt", base+".key")
	return nil
}
