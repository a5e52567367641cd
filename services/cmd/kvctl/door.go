package main

import (
	"cmp"
	"flag"
	"strconv"

	"kvstore/client"
)

// door is how kvctl comes in by a server's door: flags and their environment. There is no flag for a token: a command line is in the
// shell's history and in everybody's list of processes.
type door struct {
	tls                   bool
	ca, cert, key, server string
	token, tokenFile      string
	insecure              bool
}

func (d *door) flags(fs *flag.FlagSet, getenv func(string) string) {
	text := func(p *string, name, env, usage string) {
		fs.StringVar(p, name, cmp.Or(*p, getenv(env)), usage+" ("+env+")")
	}
	on, _ := strconv.ParseBool(getenv("KVSTORE_TLS"))
	fs.BoolVar(&d.tls, "tls", d.tls || on, "speak TLS, trusting the CAs that the system trusts (KVSTORE_TLS=1); the four that follow turn it on too")
	text(&d.ca, "ca", "KVSTORE_CA", "`file` with the CAs that the server's certificate may be of")
	text(&d.cert, "cert", "KVSTORE_CERT", "`file` with a client certificate")
	text(&d.key, "key", "KVSTORE_KEY", "`file` with its key")
	text(&d.server, "server-name", "KVSTORE_SERVER_NAME", "`name` that the server's certificate must have, instead of the endpoint's")
	text(&d.tokenFile, "token-file", "KVSTORE_TOKEN_FILE", "`file` with the token; KVSTORE_TOKEN has the token itself")
	fs.BoolVar(&d.insecure, "insecure", d.insecure, "send a token in plain text to another machine")
	d.token = getenv("KVSTORE_TOKEN")
}

// exposed tells whether a token would travel in plain text, so that client.Dial refuses.
func (d *door) exposed() bool {
	return (d.token != "" || d.tokenFile != "") && !d.wantsTLS() && !d.insecure
}

// wantsTLS tells whether TLS is asked for.
func (d *door) wantsTLS() bool {
	return d.tls || d.ca != "" || d.cert != "" || d.key != "" || d.server != ""
}

func (d *door) config(c *client.Config) {
	c.UseTLS, c.CAFile, c.CertFile, c.KeyFile, c.ServerName, c.Insecure = d.tls, d.ca, d.cert, d.key, d.server, d.insecure
	if c.TokenFile = d.tokenFile; c.TokenFile == "" {
		c.Token = d.token
	}
}
