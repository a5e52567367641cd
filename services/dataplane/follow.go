package dataplane

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
)

// follow is the way of a call that somebody follows: a span of its own from the caller's side, of which what the host does is a part. Calls that are sent
// again keep it.
type follow struct {
	ids  [24]byte // as Call.follow has them: those of span, or of the caller's where there is no Tracer
	span trace.Span
}

// follow begins the span of a call.
func (c *Client) follow(way *host.Way, shardID, op string) *follow {
	f := &follow{}
	traceID, spanID := way.Trace, way.Span
	f.span = c.cfg.Tracer.Child(tracing.Of(way.Trace, way.Span), "exchange", trace.SpanKindClient,
		attribute.String("kvstore.shard", shardID), attribute.String("kvstore.op", op))
	if f.span != nil {
		spanID = f.span.SpanContext().SpanID()
	}
	copy(f.ids[:16], traceID[:])
	copy(f.ids[16:], spanID[:])
	return f
}

// again notes that the call comes back without its outcome, to be sent once more.
func (f *follow) again(from *target) {
	if f.span == nil {
		return
	}
	if from == nil {
		f.span.AddEvent("sent again")
		return
	}
	f.span.AddEvent("sent again", trace.WithAttributes(attribute.Int64("kvstore.epoch", int64(from.epoch))))
}

// unfollow ends the span of a call that has its outcome.
func (k *call) unfollow(err *kverr.Error) {
	f := k.follow
	k.follow = nil
	if err == nil && k.kind == callCommand {
		err = k.cmd.Result.Err
	}
	if err == nil {
		tracing.End(f.span, nil)
	} else {
		tracing.End(f.span, err)
	}
}

// wayOf is who follows a call that has come; nil when the bytes are no ids.
func wayOf(ids []byte) *host.Way {
	if len(ids) != 24 {
		return nil
	}
	return &host.Way{Trace: [16]byte(ids[:16]), Span: [8]byte(ids[16:])}
}
