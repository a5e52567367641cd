package client

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// begin begins the span of a call, and a context that has the server continue it, or leave it alone when nobody follows. Without a TracerProvider the span is nil.
func (co *core) begin(ctx context.Context, op, keyspace, namespace string) (context.Context, trace.Span) {
	if co.tracer == nil {
		return ctx, nil
	}
	ctx, span := co.span(ctx, op, keyspace, namespace)
	return metadata.AppendToOutgoingContext(ctx, tracing.Header, tracing.Traceparent(span.SpanContext())), span
}

func (co *core) span(ctx context.Context, op, keyspace, namespace string) (context.Context, trace.Span) {
	ctx, span := co.tracer.Start(ctx, "kvstore."+strings.ReplaceAll(op, " ", "_"), trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		span.SetAttributes(tracing.Where(keyspace, namespace)...)
	}
	return ctx, span
}

// place is where a request goes, if it says so.
func place(req any) (keyspace, namespace string) {
	if r, ok := req.(interface {
		GetKeyspace() string
		GetNamespace() string
	}); ok {
		return r.GetKeyspace(), r.GetNamespace()
	}
	return "", ""
}

// follow begins the span of an operation of the stream. Only what is followed says so on the wire; the frames say that this client decides.
func (c *call) follow(ctx context.Context, co *core) trace.Span {
	op := "get"
	switch c.op.Op.(type) {
	case *kvstorev1.PipelineRequest_Op_Put:
		op = "put"
	case *kvstorev1.PipelineRequest_Op_Delete:
		op = "delete"
	}
	_, span := co.span(ctx, op, c.keyspace, c.namespace)
	if sc := span.SpanContext(); sc.IsSampled() {
		c.op.Traceparent = tracing.Traceparent(sc)
	}
	return span
}
