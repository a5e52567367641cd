package main

import (
	"flag"
	"strings"

	"kvstore/client"
)

// door is how kvctl comes in by a server's door, by flags, environment or context (settle). There is no flag for a token: a command line is in the
// shell's history and in everybody's list of processes.
type door struct {
	tls                   bool
	ca, cert, key, server string
	token, tokenFile      string
	insecure              bool
}

func (d *door) flags(fs *flag.FlagSet) {
	fs.BoolVar(&d.tls, "tls", d.tls, "speak TLS, trusting the CAs that the system trusts (KVSTORE_TLS=1); the four that follow turn it on too")
	fs.StringVar(&d.ca, "ca", d.ca, "`file` with the CAs that the server's certificate may be of (KVSTORE_CA)")
	fs.StringVar(&d.cert, "cert", d.cert, "`file` with a client certificate (KVSTORE_CERT)")
	fs.StringVar(&d.key, "key", d.key, "`file` with its key (KVSTORE_KEY)")
	fs.StringVar(&d.server, "server-name", d.server, "`name` that the server's certificate must have, instead of the endpoint's (KVSTORE_SERVER_NAME)")
	fs.StringVar(&d.tokenFile, "token-file", d.tokenFile, "`file` with the token (KVSTORE_TOKEN_FILE); KVSTORE_TOKEN has the token itself")
	fs.BoolVar(&d.insecure, "insecure", d.insecure, "send a token in plain text to another machine")
}

// exposed tells whether a token would travel in plain text, so that client.Dial refuses.
func (d *door) exposed(endpoint string) bool {
	return (d.token != "" || d.tokenFile != "") && !d.wantsTLS(endpoint) && !d.insecure
}

// wantsTLS tells whether TLS is asked for, by an endpoint of grpcs:// too.
func (d *door) wantsTLS(endpoint string) bool {
	return strings.Contains(endpoint, "grpcs://") || d.tls || d.ca != "" || d.cert != "" || d.key != "" || d.server != ""
}

func (d *door) config(c *client.Config) {
	c.UseTLS, c.CAFile, c.CertFile, c.KeyFile, c.ServerName, c.Insecure = d.tls, d.ca, d.cert, d.key, d.server, d.insecure
	if c.TokenFile = d.tokenFile; c.TokenFile == "" {
		c.Token = d.token
	}
}
