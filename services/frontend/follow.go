package frontend

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/tracing"
)

// Follow makes the way of a command or query that is a part of a request with a span.
func Follow(span trace.Span) *host.Way {
	sc := span.SpanContext()
	return &host.Way{Trace: sc.TraceID(), Span: sc.SpanID()}
}

// followed are shards whose calls are followed when the request that they are made for is, by its context. Of the commands of one visit the first is:
// they share what happens to it.
type followed struct{ Shards }

// Do implements Shards.
func (f followed) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() && len(cmds) > 0 {
		cmds[0].Follow = Follow(span)
	}
	f.Shards.Do(ctx, shardID, cmds...)
}

// Read implements Shards.
func (f followed) Read(ctx context.Context, shardID string, queries ...*shard.Query) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() && len(queries) > 0 {
		queries[0].Follow = Follow(span)
	}
	f.Shards.Read(ctx, shardID, queries...)
}

// follow begins the span of a call of gRPC, if it is to be followed; otherwise it is nil.
func (s *Server) follow(ctx context.Context, call string) trace.Span {
	t := s.cfg.Tracer
	if t == nil {
		return nil
	}
	traceparent := ""
	if v := metadata.ValueFromIncomingContext(ctx, tracing.Header); len(v) > 0 {
		traceparent = v[0]
	}
	if !t.Wants(traceparent) {
		return nil
	}
	return t.Request(traceparent, call, attribute.String("kvstore.face", "grpc"))
}

// decodeFollowed is dec, after which the span knows where the request goes.
func decodeFollowed(span trace.Span, dec func(any) error) func(any) error {
	return func(m any) error {
		err := dec(m)
		if r, ok := m.(interface {
			GetKeyspace() string
			GetNamespace() string
		}); ok {
			span.SetAttributes(tracing.Where(r.GetKeyspace(), r.GetNamespace())...)
		}
		return err
	}
}

// followedStream is a stream whose context has the span.
type followedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (f *followedStream) Context() context.Context { return f.ctx }

// follow begins the span of an operation, if it is to be followed: the client says so, or he leaves it to chance.
func (p *pipeline) follow(o *operation) {
	t := p.server.cfg.Tracer
	if len(o.req.traceparent) == 0 && p.head.traced {
		return
	}
	traceparent := ""
	if len(o.req.traceparent) > 0 {
		traceparent = string(o.req.traceparent)
	}
	if !t.Wants(traceparent) {
		return
	}
	o.span = t.Request(traceparent, pipelineSpans[o.req.verb], append(tracing.Where(p.head.keyspace, p.head.namespace), attribute.String("kvstore.face", "pipeline"))...)
	p.spans = append(p.spans, o.span)
	if way := Follow(o.span); o.req.verb == verbGet {
		o.query.Follow = way
	} else {
		o.cmd.Follow = way
	}
}

// pipelineSpans are the names of spans of operations, by verb.
var pipelineSpans = [...]string{verbNone: "pipeline invalid", verbPut: "pipeline put", verbGet: "pipeline get", verbDelete: "pipeline delete"}

// unfollow ends the span of an operation that has its outcome. It is called where there is one.
func (o *operation) unfollow() {
	if o.err != nil {
		tracing.End(o.span, o.err)
	} else {
		tracing.End(o.span, nil)
	}
	o.span = nil
}
