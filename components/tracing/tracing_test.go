package tracing

import (
	"errors"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"kvstore/components/kverr"
)

const followed = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func newTracer(ratio float64) (*Tracer, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	return New(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)), ratio), spans
}

// TestWants: who comes with a decision is taken at his word, others by the ratio, and nobody beyond what a second has room for.
func TestWants(t *testing.T) {
	never, _ := newTracer(0)
	always, _ := newTracer(1)
	for _, c := range []struct {
		tracer      *Tracer
		traceparent string
		want        bool
	}{
		{nil, "", false}, {nil, followed, false},
		{never, "", false}, {never, followed, true}, {always, "", true},
		{always, followed[:54] + "0", false}, {always, followed[:53] + "02", false}, {always, followed[:53] + "03", true}, {always, followed[:54], false},
		{always, "nonsense", false},
	} {
		if got := c.tracer.Wants(c.traceparent); got != c.want {
			t.Errorf("%q: %v, want %v", c.traceparent, got, c.want)
		}
	}

	tenth, _ := newTracer(0.1)
	now := time.Unix(1e9, 0)
	tenth.clock = func() time.Time { return now }
	n := 0
	for i := range 50_000 {
		if i%1000 == 0 {
			now = now.Add(time.Second)
		}
		if tenth.Wants("") {
			n++
		}
	}
	if n < 4_500 || n > 5_500 {
		t.Errorf("%d of 50000 are followed, want about 5000", n)
	}

	for range 2 {
		now = now.Add(time.Second)
		n = 0
		for range 3 * MaxPerSecond {
			if tenth.Wants(followed) {
				n++
			}
		}
		if n != MaxPerSecond {
			t.Errorf("%d are followed in a second, want %d", n, MaxPerSecond)
		}
	}
}

// TestWantsCostsNothing: what is not followed allocates nothing.
func TestWantsCostsNothing(t *testing.T) {
	tracer, _ := newTracer(1e-9)
	unfollowed := followed[:54] + "0"
	if n := testing.AllocsPerRun(1000, func() {
		if tracer.Wants("") || tracer.Wants(unfollowed) {
			t.Error("it is followed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSpans: a request is a part of the span that its header names, a child a part of it, and an error is told by its kind alone.
func TestSpans(t *testing.T) {
	tracer, spans := newTracer(1)
	request := tracer.Request(followed, "put", Where("", "bad \xff name")...)
	child := tracer.Child(request.SpanContext(), "append", 0, time.Unix(5, 0))
	End(child, nil)
	End(request, &kverr.Error{Kind: kverr.NotFound, Message: "secret"})
	End(nil, errors.New("of nobody"))
	all := spans.GetSpans()
	if len(all) != 2 || all[0].Parent.SpanID() != request.SpanContext().SpanID() || !all[0].StartTime.Equal(time.Unix(5, 0)) {
		t.Fatalf("%+v", all)
	}
	if got := all[1]; got.SpanContext.TraceID().String() != followed[3:35] || got.Parent.SpanID().String() != followed[36:52] || got.Status.Description != "NOT_FOUND" {
		t.Errorf("%+v", got)
	}
	for _, a := range all[1].Attributes {
		if v := a.Value.AsString(); a.Key == "kvstore.namespace" && v != "invalid" || a.Key == "kvstore.keyspace" && v != "default" {
			t.Errorf("%s is %q", a.Key, v)
		}
	}
	if got := Traceparent(Of(request.SpanContext().TraceID(), request.SpanContext().SpanID())); got[:35] != followed[:35] || got[53:] != "01" {
		t.Errorf("the header of it is %q", got)
	}
	if root := tracer.Request("00-nonsense-01", "put"); root.SpanContext().TraceID().String() == followed[3:35] || !root.SpanContext().IsSampled() {
		t.Errorf("%v", root.SpanContext())
	}
}

func BenchmarkWants(b *testing.B) {
	tracer, _ := newTracer(0.01)
	b.ReportAllocs()
	for range b.N {
		tracer.Wants("")
	}
}
