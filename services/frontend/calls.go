package frontend

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"kvstore/components/authn"
	"kvstore/components/tracing"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Calls are the services as another face in the same process calls them (package gateway): the same code, so the same rules and limits, without
// a connection in between. Each call must be let in by Admit first, which gives the context to make it with.
type Calls struct {
	KV     kvv1.KVServiceServer
	Prompt kvv1.PromptCacheServiceServer
	Admin  kvv1.AdminServiceServer

	server *Server
}

// Calls returns the services for another face.
func (s *Server) Calls() *Calls {
	return &Calls{KV: &kvService{Server: s}, Prompt: &promptService{Server: s}, Admin: &adminService{Server: s}, server: s}
}

// Admit decides as the door of gRPC does whether a caller may make a call: call is its full method name, authorization the values of the header of
// that name, from the address that he comes from. The context that it returns is for that call alone.
func (c *Calls) Admit(ctx context.Context, call string, authorization []string, from string) (context.Context, error) {
	access := c.server.cfg.Access
	if access.Open() {
		if c.server.cfg.ClientRate > 0 { // then it matters who it is
			ctx = peer.NewContext(ctx, &peer.Peer{Addr: address(from)})
		}
		return ctx, nil
	}
	ctx = grpc.NewContextWithServerTransportStream(peer.NewContext(ctx, &peer.Peer{Addr: address(from)}), callName(call))
	need, known := needs[call]
	if !known {
		return nil, errNoSuchCall
	}
	pass, err := access.Admit(authorization, need)
	if err != nil {
		c.server.refusals.note(ctx, call, err)
		return nil, err
	}
	return authn.NewContext(ctx, pass), nil
}

// HoldsBlocks tells whether a namespace is of prompts, in a context that Admit gave: WRONG_KIND if it is not.
func (c *Calls) HoldsBlocks(ctx context.Context, keyspace, namespace string) error {
	if _, err := c.server.findNamespace(ctx, keyspace, namespace, kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT); err != nil {
		return err
	}
	return nil
}

// Note logs an error of a call, if it is the server's fault.
func (c *Calls) Note(call string, err error) { c.server.faults.note(call, err) }

// Meter is who counts for the face.
func (c *Calls) Meter() Meter { return c.server.cfg.Meter }

// Tracer is who follows requests; nil: nobody does.
func (c *Calls) Tracer() *tracing.Tracer { return c.server.cfg.Tracer }

// address is a peer's, as net/http tells it.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

var _ net.Addr = address("")

// callName tells the log which call a context is of, where there is no stream of gRPC's.
type callName string

// Method implements grpc.ServerTransportStream.
func (n callName) Method() string { return string(n) }

// SetHeader implements grpc.ServerTransportStream; there is nobody to send it to.
func (callName) SetHeader(metadata.MD) error { return nil }

// SendHeader implements grpc.ServerTransportStream.
func (callName) SendHeader(metadata.MD) error { return nil }

// SetTrailer implements grpc.ServerTransportStream.
func (callName) SetTrailer(metadata.MD) error { return nil }
