// Package tracing decides which requests are followed, and begins their spans, for next to nothing where nobody follows: one in a hundred requests may
// cost some microseconds, the other ninety-nine cost a random number. It speaks OpenTelemetry's API and format, and does without its SDK, whose
// Start allocates also for what is not sampled, and whose spans cost many times what encoding them at once does (DESIGN.md of services/telemetry).
//
// A request that comes with a W3C traceparent is followed if that says so, one that comes without by a ratio, and none beyond MaxPerSecond, so that callers
// who have everything followed do not make it dear for the others. Spans hold no keys, values, tokens or clients.
//
//	if t.Wants(traceparent) {
//		span := t.Request(traceparent, "kvstore.put", attribute.String("kvstore.face", "grpc"))
//		defer tracing.End(span, err)
//	}
package tracing

import (
	"context"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"kvstore/components/kverr"
)

// Header is the header of HTTP and of gRPC that says who follows a request (W3C Trace Context).
const Header = "traceparent"

// MaxPerSecond is how many requests a process follows in a second, whoever wants it; more are served and not followed.
const MaxPerSecond = 1000

// Scope is the instrumentation scope of all spans.
const Scope = "kvstore"

// Tracer begins spans. All methods work on nil, which follows nothing. It is safe for any number of goroutines.
type Tracer struct {
	queue  *Queue
	below  uint64        // a random number below it: followed
	second atomic.Uint64 // the second at hand, and how many were followed in it, in its low half
	clock  func() time.Time
}

// New makes a Tracer that follows a ratio (0 to 1) of the requests that come without a decision. Spans that have ended go to the queue.
func New(q *Queue, ratio float64) *Tracer {
	t := &Tracer{queue: q, clock: time.Now}
	switch {
	case ratio >= 1:
		t.below = math.MaxUint64
	case ratio > 0:
		t.below = uint64(ratio * (1 << 63) * 2)
	}
	return t
}

// Wants tells whether a request is to be followed, which came with this traceparent; "" = with none.
func (t *Tracer) Wants(traceparent string) bool {
	if t == nil {
		return false
	}
	if traceparent == "" {
		return t.below > 0 && rand.Uint64() < t.below && t.room()
	}
	return sampled(traceparent) && t.room()
}

// sampled tells whether a traceparent says that its request is followed: "00-<32 digits>-<16 digits>-<2 digits, of which the last bit counts>".
func sampled(traceparent string) bool {
	if len(traceparent) < 55 {
		return false
	}
	switch traceparent[54] {
	case '1', '3', '5', '7', '9', 'b', 'd', 'f':
		return true
	}
	return false
}

// room counts a request that is to be followed, unless too many of this second are.
func (t *Tracer) room() bool {
	now := uint64(t.clock().Unix())
	for {
		was := t.second.Load()
		next := was + 1
		switch {
		case was>>32 != now&math.MaxUint32:
			next = now<<32 | 1
		case was&math.MaxUint32 >= MaxPerSecond:
			return false
		}
		if t.second.CompareAndSwap(was, next) {
			return true
		}
	}
}

// Request begins the span of a request that Wants has said yes to. One with a traceparent that makes no sense begins a trace of its own.
func (t *Tracer) Request(traceparent, name string, attrs ...attribute.KeyValue) trace.Span {
	var of trace.SpanContext
	if traceparent != "" {
		of = trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), &carrier{traceparent}))
	}
	return t.begin(of, of.IsValid(), name, trace.SpanKindServer, attrs)
}

// Child begins a span as a part of another of this process. nil: the Tracer is, and nothing is followed.
func (t *Tracer) Child(of trace.SpanContext, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) trace.Span {
	if t == nil {
		return nil
	}
	return t.begin(of, false, name, kind, attrs)
}

func (t *Tracer) begin(of trace.SpanContext, remote bool, name string, kind trace.SpanKind, attrs []attribute.KeyValue) trace.Span {
	s := &span{queue: t.queue, told: recorded{trace: of.TraceID(), id: newSpanID(), parent: of.SpanID(), remote: remote, kind: kind, name: name, start: time.Now()}}
	if !of.IsValid() {
		s.told.trace, s.told.parent = newTraceID(), trace.SpanID{}
	}
	s.told.details = attributes(s.room[:0], fieldAttributes, attrs)
	return s
}

// Past tells a span that is over, from times that were noted on its way: it is cheaper than one that is begun and ended. What it returns names it for its parts.
// of may be of another process.
func (t *Tracer) Past(of trace.SpanContext, name string, from, to time.Time, err error, attrs ...attribute.KeyValue) trace.SpanContext {
	var room [192]byte
	s := recorded{
		trace: of.TraceID(), id: newSpanID(), parent: of.SpanID(), remote: of.IsRemote(), kind: trace.SpanKindInternal, name: name,
		start: from, end: to, details: attributes(room[:0], fieldAttributes, attrs),
	}
	if err != nil {
		s.fault = kverr.KindOf(err).String()
		s.details = attributes(s.details, fieldAttributes, []attribute.KeyValue{attribute.String("error.type", s.fault)})
	}
	t.queue.add(&s)
	return Of(s.trace, s.id)
}

// Of names a span by its ids.
func Of(traceID [16]byte, span [8]byte) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: span, TraceFlags: trace.FlagsSampled})
}

// Traceparent is the header that makes what is asked with it a part of a span.
func Traceparent(of trace.SpanContext) string {
	c := carrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), of), &c)
	return c.value
}

// End ends a span; one that is nil is none. Of an error it tells the kind alone, since texts may hold what users have sent.
func End(span trace.Span, err error) {
	if span == nil {
		return
	}
	if err != nil {
		kind := kverr.KindOf(err).String()
		span.SetStatus(codes.Error, kind)
		span.SetAttributes(attribute.String("error.type", kind))
	}
	span.End()
}

// maxName bounds the names that spans tell; longer ones name nothing that exists.
const maxName = 64

// Where are the attributes that say where a request goes; empty names are the default ones.
func Where(keyspace, namespace string) []attribute.KeyValue {
	return []attribute.KeyValue{attribute.String("kvstore.keyspace", nameOf(keyspace)), attribute.String("kvstore.namespace", nameOf(namespace))}
}

func nameOf(s string) string {
	switch {
	case s == "":
		return "default"
	case len(s) > maxName || !utf8.ValidString(s):
		return "invalid"
	}
	return s
}

// carrier holds one header, as propagation wants it.
type carrier struct{ value string }

// Get implements propagation.TextMapCarrier.
func (c *carrier) Get(name string) string {
	if name == Header {
		return c.value
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c *carrier) Set(name, value string) {
	if name == Header {
		c.value = value
	}
}

// Keys implements propagation.TextMapCarrier.
func (*carrier) Keys() []string { return []string{Header} }
