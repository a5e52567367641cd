package tracing

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of a Queue and of a span. What does not fit is dropped, and counted.
const (
	// MaxQueue is how many bytes of ended spans wait to be sent: half of what a collector takes in one message unless told otherwise (4 MiB).
	MaxQueue = 2 << 20
	// EnoughQueue is from how many bytes on Queue.Enough asks for them to be sent.
	EnoughQueue = MaxQueue / 4

	maxEvents = 16
)

// Queue holds spans that have ended, encoded as the repeated field `spans` of OTLP's ScopeSpans (opentelemetry/proto/trace/v1/trace.proto), until somebody
// takes them to send them. To end a span wakes nobody, unless there is much to send. It is safe for any number of goroutines.
type Queue struct {
	enough chan struct{}

	mu     sync.Mutex
	buf    []byte // guarded by mu
	spans  int    // guarded by mu: in buf
	lost   int    // guarded by mu: of those that did not fit since the last Take
	closed bool   // guarded by mu
}

// NewQueue makes an empty one.
func NewQueue() *Queue { return &Queue{enough: make(chan struct{}, 1)} }

// Enough tells when more than EnoughQueue bytes wait.
func (q *Queue) Enough() <-chan struct{} { return q.enough }

// Take hands over all spans that wait, how many those are, and how many did not fit since the last time. The bytes are the caller's; room is where the next
// ones are kept, and may be what an earlier Take returned.
func (q *Queue) Take(room []byte) (encoded []byte, spans, lost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	encoded, spans, lost = q.buf, q.spans, q.lost
	q.buf, q.spans, q.lost = room[:0], 0, 0
	return encoded, spans, lost
}

// Close has all further spans dropped.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

// add encodes a span that has ended.
func (q *Queue) add(s *recorded) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	n := s.size()
	if len(q.buf)+n+maxSpanHead > MaxQueue {
		q.lost++
		return
	}
	before := len(q.buf)
	q.buf = protowire.AppendTag(q.buf, fieldSpans, protowire.BytesType)
	q.buf = protowire.AppendVarint(q.buf, uint64(n))
	q.buf = s.append(q.buf)
	q.spans++
	if before < EnoughQueue && len(q.buf) >= EnoughQueue {
		select {
		case q.enough <- struct{}{}:
		default:
		}
	}
}

// Numbers of the fields of OTLP's messages.
const (
	fieldSpans = 2 // of ScopeSpans

	fieldTraceID       = 1 // of Span
	fieldSpanID        = 2
	fieldParent        = 4
	fieldName          = 5
	fieldKind          = 6
	fieldStart         = 7
	fieldEnd           = 8
	fieldAttributes    = 9
	fieldEvents        = 11
	fieldDroppedEvents = 12
	fieldStatus        = 15
	fieldFlags         = 16

	fieldMessage = 2 // of Status
	fieldCode    = 3

	fieldKey   = 1 // of KeyValue
	fieldValue = 2

	fieldString = 1 // of AnyValue
	fieldBool   = 2
	fieldInt    = 3
	fieldDouble = 4

	fieldEventTime       = 1 // of Span.Event
	fieldEventName       = 2
	fieldEventAttributes = 3
)

// Values of OTLP's fields.
const (
	statusError = 2

	flagSampled     = 0x01
	flagKnowsRemote = 0x100
	flagRemote      = 0x200 // the parent is of another process
)

// maxSpanHead bounds the tag and the length before a span.
const maxSpanHead = 1 + 5

// recorded is what a span tells.
type recorded struct {
	trace      trace.TraceID
	id, parent trace.SpanID // parent: zero = none
	remote     bool         // the parent is of another process
	kind       trace.SpanKind
	name       string
	fault      string // kind of the error it ended with; "" = none
	start, end time.Time
	details    []byte // its attributes and events, encoded
	events     int
}

// head is how many bytes the fields take that every span has: ids, times and flags.
const head = (1 + 1 + 16) + (1 + 1 + 8) + 2*(1+8) + (2 + 4)

func (s *recorded) size() int {
	n := head + 1 + protowire.SizeBytes(len(s.name)) + 2 + len(s.details)
	if s.parent.IsValid() {
		n += 1 + 1 + 8
	}
	if s.fault != "" {
		n += 1 + protowire.SizeBytes(s.statusSize())
	}
	if s.events > maxEvents {
		n += 1 + protowire.SizeVarint(uint64(s.events-maxEvents))
	}
	return n
}

func (s *recorded) statusSize() int { return 1 + protowire.SizeBytes(len(s.fault)) + 2 }

func (s *recorded) append(b []byte) []byte {
	b = protowire.AppendTag(b, fieldTraceID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.trace[:])
	b = protowire.AppendTag(b, fieldSpanID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.id[:])
	flags := uint32(flagSampled | flagKnowsRemote)
	if s.parent.IsValid() {
		b = protowire.AppendTag(b, fieldParent, protowire.BytesType)
		b = protowire.AppendBytes(b, s.parent[:])
		if s.remote {
			flags |= flagRemote
		}
	}
	b = protowire.AppendTag(b, fieldName, protowire.BytesType)
	b = protowire.AppendString(b, s.name)
	b = protowire.AppendTag(b, fieldKind, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(trace.ValidateSpanKind(s.kind))) // OTLP's numbers are those of the API
	b = protowire.AppendTag(b, fieldStart, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.start.UnixNano()))
	b = protowire.AppendTag(b, fieldEnd, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.end.UnixNano()))
	b = append(b, s.details...)
	if s.events > maxEvents {
		b = protowire.AppendTag(b, fieldDroppedEvents, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(s.events-maxEvents))
	}
	if s.fault != "" {
		b = protowire.AppendTag(b, fieldStatus, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(s.statusSize()))
		b = protowire.AppendTag(b, fieldMessage, protowire.BytesType)
		b = protowire.AppendString(b, s.fault)
		b = protowire.AppendTag(b, fieldCode, protowire.VarintType)
		b = protowire.AppendVarint(b, statusError)
	}
	b = protowire.AppendTag(b, fieldFlags, protowire.Fixed32Type)
	return protowire.AppendFixed32(b, flags)
}

// attributes appends attributes as a field of a span or of an event.
func attributes(b []byte, field protowire.Number, attrs []attribute.KeyValue) []byte {
	for i := range attrs {
		key, v := string(attrs[i].Key), &attrs[i].Value
		var size int // of the AnyValue
		var text string
		switch v.Type() {
		case attribute.BOOL:
			size = 2
		case attribute.INT64:
			size = 1 + protowire.SizeVarint(uint64(v.AsInt64()))
		case attribute.FLOAT64:
			size = 1 + 8
		case attribute.STRING:
			text = v.AsString()
			size = 1 + protowire.SizeBytes(len(text))
		default: // lists, which no span here has: as text
			text = v.String()
			size = 1 + protowire.SizeBytes(len(text))
		}
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(1+protowire.SizeBytes(len(key))+1+protowire.SizeBytes(size)))
		b = protowire.AppendTag(b, fieldKey, protowire.BytesType)
		b = protowire.AppendString(b, key)
		b = protowire.AppendTag(b, fieldValue, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		switch v.Type() {
		case attribute.BOOL:
			b = protowire.AppendTag(b, fieldBool, protowire.VarintType)
			b = protowire.AppendVarint(b, protowire.EncodeBool(v.AsBool()))
		case attribute.INT64:
			b = protowire.AppendTag(b, fieldInt, protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(v.AsInt64()))
		case attribute.FLOAT64:
			b = protowire.AppendTag(b, fieldDouble, protowire.Fixed64Type)
			b = protowire.AppendFixed64(b, math.Float64bits(v.AsFloat64()))
		default:
			b = protowire.AppendTag(b, fieldString, protowire.BytesType)
			b = protowire.AppendString(b, text)
		}
	}
	return b
}

// span is a span under way. It is OpenTelemetry's, without what no span here has: links, and errors' texts (RecordError does nothing). After its end nothing
// changes it.
type span struct {
	noop.Span
	queue *Queue

	mu   sync.Mutex
	told recorded  // guarded by mu
	over bool      // guarded by mu
	room [192]byte // what told.details begins in
}

var _ trace.Span = (*span)(nil)

// SpanContext implements trace.Span.
func (s *span) SpanContext() trace.SpanContext { return Of(s.told.trace, s.told.id) } // which never change

// IsRecording implements trace.Span.
func (s *span) IsRecording() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over
}

// SetAttributes implements trace.Span. To set one twice tells it twice.
func (s *span) SetAttributes(attrs ...attribute.KeyValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.told.details = attributes(s.told.details, fieldAttributes, attrs)
	}
}

// SetName implements trace.Span.
func (s *span) SetName(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.told.name = name
	}
}

// SetStatus implements trace.Span. The description is the kind of an error.
func (s *span) SetStatus(code codes.Code, description string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over && code == codes.Error {
		s.told.fault = description
	}
}

// AddEvent implements trace.Span. Beyond 16 events are counted alone.
func (s *span) AddEvent(name string, options ...trace.EventOption) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.told.events++
	if s.told.events > maxEvents {
		return
	}
	event := trace.NewEventConfig(options...)
	b := protowire.AppendTag(nil, fieldEventTime, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(event.Timestamp().UnixNano()))
	b = protowire.AppendTag(b, fieldEventName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = attributes(b, fieldEventAttributes, event.Attributes())
	s.told.details = protowire.AppendTag(s.told.details, fieldEvents, protowire.BytesType)
	s.told.details = protowire.AppendBytes(s.told.details, b)
}

// End implements trace.Span. Options are not looked at: it ends now.
func (s *span) End(...trace.SpanEndOption) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	s.told.end = s.told.start.Add(time.Since(s.told.start))
	s.queue.add(&s.told)
}

// newSpanID makes an id of a span. Ids are to be different, not secret.
func newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

func newTraceID() (id trace.TraceID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id
}
