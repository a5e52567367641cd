// Package authn says who comes in by a door: TLS from files, and static bearer tokens from a file. Both follow their files without
// a restart. DESIGN.md has the formats, the rules and their reasons.
//
// It is a library: nothing is opened at import, no goroutine runs but one that calls Watch, nothing is logged (see Events). What
// a token allows is decided here; which call needs what is package frontend's table.
//
//	tokens, err := authn.OpenTokens("tokens")
//	go tokens.Watch(ctx, authn.Events{})
//	pass, err := tokens.Admit(header, authn.Read)  // at the door: who is it, and may it do such a thing at all?
//	err = tokens.Check(pass, "tenant1")            // per call and per frame: in this keyspace, and still?
//
//	certs, err := authn.OpenServer(authn.ServerFiles{Cert: "tls.crt", Key: "tls.key"})
//	creds := credentials.NewTLS(certs.Config())
package authn

import (
	"context"

	"kvstore/components/kverr"
)

// Need is what a call needs of the token that it comes with. Each of Read, Write and Admin includes the one before it.
type Need uint8

// Needs of calls.
const (
	// AnyToken is any token that is valid now.
	AnyToken Need = iota
	// See is any role in the keyspace that the call names, or ServerAdmin: looking at what there is, not at data.
	See
	// Read is the role read in the keyspace.
	Read
	// Write is the role write in the keyspace.
	Write
	// Admin is the role admin in the keyspace.
	Admin
	// ServerAdmin is the grant server-admin: keyspaces, and how the server is. It includes no data.
	ServerAdmin
	// Metrics is the grant metrics, or ServerAdmin: reading metrics, and nothing else.
	Metrics

	needs // how many there are
)

// String is the need as the tokens file writes it.
func (n Need) String() string {
	switch n {
	case See:
		return "any role"
	case Read:
		return "read"
	case Write:
		return "write"
	case Admin:
		return "admin"
	case ServerAdmin:
		return serverAdmin
	case Metrics:
		return metricsGrant
	}
	return "a token"
}

// Refusals. They are the same for every caller, so they tell nothing about what there is.
var (
	errNoToken = &kverr.Error{Kind: kverr.Unauthenticated,
		Message: "this server wants a token and the call has none: send it as metadata (HTTP header) authorization: Bearer TOKEN"}
	errBadToken = &kverr.Error{Kind: kverr.Unauthenticated,
		Message: "the token is not one of this server's: it is mistyped, or was replaced or revoked"}
	errExpired = &kverr.Error{Kind: kverr.Unauthenticated, Message: "the token has expired: ask for a new one"}
	errScheme  = &kverr.Error{Kind: kverr.Unauthenticated, Message: "authorization is not of the form: Bearer TOKEN, once"}
	errDenied  = [needs]*kverr.Error{
		See:         denied("a role in the keyspace"),
		Read:        denied("the role read in the keyspace"),
		Write:       denied("the role write in the keyspace"),
		Admin:       denied("the role admin in the keyspace"),
		ServerAdmin: denied("the grant " + serverAdmin),
		Metrics:     denied("the grant " + metricsGrant + " or " + serverAdmin),
	}
)

func denied(what string) *kverr.Error {
	return &kverr.Error{Kind: kverr.PermissionDenied, Message: "the token does not have " + what + " that this needs"}
}

// Pass is a call's leave to go on: whose token it came with and what the call needs. It is immutable, costs nothing to make
// and is not proof for ever: Check asks again.
type Pass struct {
	entry *Entry
	need  Need
}

// Name is the name of the token's entry in the file, for logs.
func (p *Pass) Name() string { return p.entry.Name }

type passKey struct{}

// NewContext returns ctx with a pass in it.
func NewContext(ctx context.Context, p *Pass) context.Context {
	return context.WithValue(ctx, passKey{}, p)
}

// FromContext returns the pass in ctx; nil when there is none.
func FromContext(ctx context.Context) *Pass {
	p, _ := ctx.Value(passKey{}).(*Pass)
	return p
}
