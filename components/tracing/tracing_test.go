package tracing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"kvstore/components/kverr"
)

const followed = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func newTracer(ratio float64) (*Tracer, *Queue) {
	q := NewQueue()
	return New(q, ratio), q
}

// taken is what a queue holds, as a collector reads it. Bytes that are no field that OTLP knows fail the test.
func taken(t *testing.T, q *Queue) []*tracepb.Span {
	t.Helper()
	encoded, n, lost := q.Take(nil)
	var m tracepb.ScopeSpans
	if err := (proto.UnmarshalOptions{}).Unmarshal(encoded, &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Spans) != n || lost != 0 {
		t.Fatalf("%d spans, %d are told of, %d lost", len(m.Spans), n, lost)
	}
	for _, s := range m.Spans {
		if len(s.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s has unknown fields", s.Name)
		}
	}
	return m.Spans
}

func texts(s *tracepb.Span) map[string]string {
	all := make(map[string]string)
	for _, a := range s.Attributes {
		all[a.Key] = a.Value.GetStringValue()
	}
	return all
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
	tracer, q := newTracer(1)
	request := tracer.Request(followed, "put", Where("", "bad \xff name")...)
	child := tracer.Child(request.SpanContext(), "exchange", trace.SpanKindClient)
	past := tracer.Past(child.SpanContext().WithRemote(true), "append", time.Unix(5, 7), time.Unix(6, 8), &kverr.Error{Kind: kverr.Moved, Message: "secret"},
		attribute.Int("bytes", -1), attribute.Bool("yes", true), attribute.Float64("half", 0.5), attribute.StringSlice("many", []string{"a"}))
	child.AddEvent("sent again", trace.WithAttributes(attribute.Int("epoch", 9)))
	End(child, nil)
	End(request, &kverr.Error{Kind: kverr.NotFound, Message: "secret"})
	End(request, nil) // it has ended
	request.SetAttributes(attribute.Bool("late", true))
	End(nil, errors.New("of nobody"))

	all := taken(t, q)
	if len(all) != 3 {
		t.Fatalf("%d spans", len(all))
	}
	put, exchange, commit := all[2], all[1], all[0]
	for _, c := range []struct {
		s           *tracepb.Span
		id          trace.SpanID
		name        string
		kind        tracepb.Span_SpanKind
		parent      string
		flags       uint32
		fault       string
		attrs, more int
	}{
		{put, request.SpanContext().SpanID(), "put", tracepb.Span_SPAN_KIND_SERVER, followed[36:52], 0x301, "NOT_FOUND", 3, 0},
		{exchange, child.SpanContext().SpanID(), "exchange", tracepb.Span_SPAN_KIND_CLIENT, request.SpanContext().SpanID().String(), 0x101, "", 0, 1},
		{commit, past.SpanID(), "append", tracepb.Span_SPAN_KIND_INTERNAL, child.SpanContext().SpanID().String(), 0x301, "MOVED", 5, 0},
	} {
		s := c.s
		if s.Name != c.name || s.Kind != c.kind || trace.SpanID(s.SpanId) != c.id || hex.EncodeToString(s.TraceId) != followed[3:35] || hex.EncodeToString(s.ParentSpanId) != c.parent ||
			s.Flags != c.flags || s.Status.GetMessage() != c.fault || len(s.Attributes) != c.attrs || len(s.Events) != c.more || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("%s: %v, want %+v", c.name, s, c)
		}
		if failed := s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR; failed != (c.fault != "") || texts(s)["error.type"] != c.fault {
			t.Errorf("%s: %v", c.name, s)
		}
	}
	if got := texts(put); got["kvstore.namespace"] != "invalid" || got["kvstore.keyspace"] != "default" {
		t.Errorf("%v", got)
	}
	a := commit.Attributes
	if a[0].Value.GetIntValue() != -1 || !a[1].Value.GetBoolValue() || a[2].Value.GetDoubleValue() != 0.5 || a[3].Value.GetStringValue() != `["a"]` {
		t.Errorf("%v", a)
	}
	if commit.StartTimeUnixNano != 5_000_000_007 || commit.EndTimeUnixNano != 6_000_000_008 {
		t.Errorf("from %d to %d", commit.StartTimeUnixNano, commit.EndTimeUnixNano)
	}
	if e := exchange.Events[0]; e.Name != "sent again" || e.Attributes[0].Value.GetIntValue() != 9 || e.TimeUnixNano < exchange.StartTimeUnixNano || e.TimeUnixNano > exchange.EndTimeUnixNano {
		t.Errorf("%v", e)
	}

	if got := Traceparent(Of(request.SpanContext().TraceID(), request.SpanContext().SpanID())); got[:35] != followed[:35] || got[53:] != "01" {
		t.Errorf("the header of it is %q", got)
	}
	root := tracer.Request("00-nonsense-01", "put")
	if root.SpanContext().TraceID().String() == followed[3:35] || !root.SpanContext().IsSampled() || !root.IsRecording() {
		t.Errorf("%v", root.SpanContext())
	}
	for range 20 {
		root.AddEvent("sent again")
	}
	root.End()
	if all := taken(t, q); len(all) != 1 || len(all[0].ParentSpanId) != 0 || all[0].Flags != 0x101 || len(all[0].Events) != 16 || all[0].DroppedEventsCount != 4 {
		t.Errorf("%v", all)
	}
}

// TestQueueIsBounded: what does not fit is counted, who sends is told before that, and what was taken is not written to.
func TestQueueIsBounded(t *testing.T) {
	tracer, q := newTracer(1)
	const spans = 30_000
	long := string(make([]byte, maxName))
	end := func() { tracer.Past(trace.SpanContext{}, "append", time.Now(), time.Now(), nil, Where(long, long)...) }
	told := 0
	for range spans {
		end()
		select {
		case <-q.Enough():
			told++
		default:
		}
	}
	encoded, n, lost := q.Take(nil)
	if told != 1 || lost == 0 || n+lost != spans || len(encoded) > MaxQueue || len(encoded) < MaxQueue-1000 {
		t.Errorf("told %d times; %d spans in %d bytes, %d lost", told, n, len(encoded), lost)
	}
	before := bytes.Clone(encoded)
	end()
	if !bytes.Equal(before, encoded) {
		t.Error("what was taken has changed")
	}
	if next, n, lost := q.Take(encoded); n != 1 || lost != 0 || len(next) == 0 {
		t.Errorf("%d, %d lost", n, lost)
	}
	end()
	if !bytes.Equal(encoded[:50], q.buf[:50]) {
		t.Error("the room is not used again")
	}
	q.Close()
	end()
	if _, n, lost := q.Take(nil); n != 1 || lost != 0 {
		t.Errorf("%d, %d lost", n, lost)
	}
}

func BenchmarkWants(b *testing.B) {
	tracer, _ := newTracer(0.01)
	b.ReportAllocs()
	for range b.N {
		tracer.Wants("")
	}
}

// TestFollowingCostsLittle: a span is one object, with the list of its attributes; what was noted is encoded where it waits.
func TestFollowingCostsLittle(t *testing.T) {
	tracer, q := newTracer(1)
	of, now := Of([16]byte{1}, [8]byte{1}), time.Now()
	room := make([]byte, 0, MaxQueue)
	q.Take(room)
	if n := testing.AllocsPerRun(1000, func() { End(tracer.Request("", "put", Where("", "shop")...), nil) }); n > 2 {
		t.Errorf("a span of a request: %v allocations", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		tracer.Past(of, "append", now, now, nil, attribute.String("engine", "disk"), attribute.Int("bytes", 9))
	}); n > 1 {
		t.Errorf("a span of noted times: %v allocations", n)
	}
}

// BenchmarkSpan is a span from its begin to where it waits to be sent.
func BenchmarkSpan(b *testing.B) {
	tracer, q := newTracer(1)
	var room []byte
	b.ReportAllocs()
	for n := range b.N {
		End(tracer.Request("", "pipeline put", Where("", "shop")...), nil)
		if n%1000 == 0 {
			room, _, _ = q.Take(room)
		}
	}
}

// BenchmarkPast is a span made of times that were noted.
func BenchmarkPast(b *testing.B) {
	tracer, q := newTracer(1)
	of, now := Of([16]byte{1}, [8]byte{1}), time.Now()
	var room []byte
	b.ReportAllocs()
	for n := range b.N {
		tracer.Past(of, "append", now, now, nil, attribute.String("kvstore.engine", "filelog"), attribute.Int("kvstore.commit.commands", 31))
		if n%1000 == 0 {
			room, _, _ = q.Take(room)
		}
	}
}
