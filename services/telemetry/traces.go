package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"kvstore/actors/host"
	"kvstore/components/tracing"
)

// TraceConfig says where traces go. The environment variables OTEL_SDK_DISABLED, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and
// OTEL_EXPORTER_OTLP_* (the certificate of the collector's CA, headers, timeouts) do what OpenTelemetry says.
type TraceConfig struct {
	// Endpoint is the OTLP/gRPC endpoint of a collector: https://host:port, or http://host:port on this machine. Empty: what
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT says; without any there are no traces.
	Endpoint string
	// Plain lets spans leave this machine without TLS.
	Plain bool
	// Sample is which part of the requests is followed, of those that come without a decision, from 0 to 1; negative: what OTEL_TRACES_SAMPLER and
	// OTEL_TRACES_SAMPLER_ARG say, by default DefaultSample.
	Sample float64
}

// DefaultSample is the part of requests that is followed where nobody says another.
const DefaultSample = 0.01

// Resolve fills in what the environment says, and validates. Endpoint stays empty where there are to be no traces.
func (c *TraceConfig) Resolve() error {
	if disabled, _ := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); disabled {
		c.Endpoint = ""
		return nil
	}
	from := "-otlp-endpoint"
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		if c.Endpoint == "" {
			if c.Endpoint = os.Getenv(name); c.Endpoint != "" {
				from = name
			}
		}
	}
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil: // it is not told back: what nobody can read may have a password anywhere
		return fmt.Errorf("%s is no URL: it must be https://host:port, or http://host:port on this machine", from)
	case u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil:
		return fmt.Errorf("%s is %q: it must be https://host:port, or http://host:port on this machine", from, redacted(c.Endpoint))
	case u.Scheme == "http" && !c.Plain && !loopback(u.Hostname()):
		return fmt.Errorf("%s is %q: spans would leave this machine in plain text. Say https, or -otlp-insecure if the network is trusted", from, redacted(c.Endpoint))
	}
	if c.Sample < 0 {
		c.Sample = DefaultSample
		switch sampler := os.Getenv("OTEL_TRACES_SAMPLER"); sampler {
		case "", "traceidratio", "parentbased_traceidratio":
			if arg := os.Getenv("OTEL_TRACES_SAMPLER_ARG"); arg != "" {
				if c.Sample, err = strconv.ParseFloat(arg, 64); err != nil {
					return fmt.Errorf("OTEL_TRACES_SAMPLER_ARG is %q: it must be a number from 0 to 1", arg)
				}
			}
		case "always_on", "parentbased_always_on":
			c.Sample = 1
		case "always_off", "parentbased_always_off":
			c.Sample = 0
		default:
			return fmt.Errorf("OTEL_TRACES_SAMPLER is %q: it may be (parentbased_)traceidratio, (parentbased_)always_on and (parentbased_)always_off", sampler)
		}
	}
	if !(c.Sample >= 0 && c.Sample <= 1) {
		return fmt.Errorf("-trace-sample is %v: from 0 to 1", c.Sample)
	}
	return nil
}

// redacted is an address without what may be a secret: all before the last @, whether it is a URL of the usual form or not, and a query.
func redacted(text string) string {
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		text = "xxxxx" + text[at:]
	}
	if at := strings.IndexAny(text, "?#"); at >= 0 {
		text = text[:at+1] + "xxxxx"
	}
	return text
}

func loopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// Traces are the traces of a process: who is followed, and where spans go.
type Traces struct {
	tracer *tracing.Tracer
	queue  *tracing.Queue
	engine string
	sender *sender
	cancel context.CancelFunc // gives up what is being sent
	stop   chan struct{}
	ended  chan struct{}
}

// Times of what is sent.
const (
	spanEvery    = 2 * time.Second
	flushTimeout = 3 * time.Second
)

// OpenTraces begins to send spans to a collector; it does not wait for that to be there. cfg is resolved. nil: there are none, and Tracer and Followed
// of nil follow nothing.
func (t *Telemetry) OpenTraces(ctx context.Context, cfg TraceConfig, log *slog.Logger) (*Traces, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	to := otlptracegrpc.NewClient(otlptracegrpc.WithEndpointURL(cfg.Endpoint))
	if err := to.Start(ctx); err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "kvstore"), attribute.String("service.version", t.info.Version), attribute.String("kvstore.target", t.info.Target),
	), resource.WithFromEnv())
	if err != nil {
		_ = to.Stop(ctx)
		return nil, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	counts := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kvstore_spans_total", Help: "Spans handed to the collector, and those that it did not take."}, []string{"outcome"})
	t.registry.MustRegister(counts)
	q := tracing.NewQueue()
	sending, cancel := context.WithCancel(context.Background())
	tr := &Traces{
		tracer: tracing.New(q, cfg.Sample), queue: q, engine: t.info.Engine, cancel: cancel, stop: make(chan struct{}), ended: make(chan struct{}),
		sender: &sender{to: to, queue: q, about: resourceOf(about), schema: about.SchemaURL(), log: log, sent: counts.WithLabelValues("sent"), lost: counts.WithLabelValues("lost")},
	}
	go tr.run(sending)
	return tr, nil
}

// run sends spans until it is stopped.
func (t *Traces) run(ctx context.Context) {
	defer close(t.ended)
	tick := time.NewTicker(spanEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		case <-t.queue.Enough():
		}
		t.sender.send(ctx)
	}
}

// Close sends what is left, for a short time. It is called once.
func (t *Traces) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, t.cancel)()
	t.queue.Close()
	close(t.stop)
	<-t.ended
	t.sender.send(ctx)
	t.cancel()
	if err := t.sender.to.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

// Tracer is who follows requests; nil when nobody does.
func (t *Traces) Tracer() *tracing.Tracer {
	if t == nil {
		return nil
	}
	return t.tracer
}

// Followed makes spans of what a host of shards tells of what was followed (memhost.Events); nil when nobody follows.
func (t *Traces) Followed() func(s host.Stops, err error) {
	if t == nil {
		return nil
	}
	return t.followed
}

// followed makes the spans of a command or query that has its outcome: "shard ...", from its arrival at the host, and within that "append", from when its
// append began until it was durable.
func (t *Traces) followed(s host.Stops, err error) {
	var room [2]attribute.KeyValue
	attrs := append(room[:0], attribute.String("kvstore.shard", s.Shard))
	if !s.Stepped.IsZero() {
		attrs = append(attrs, attribute.Int64("kvstore.queue_wait_us", s.Stepped.Sub(s.Taken).Microseconds()))
	}
	of := t.tracer.Past(tracing.Of(s.Trace, s.Span).WithRemote(true), "shard "+s.Op, s.Taken, time.Now(), err, attrs...)
	if !s.Appending.IsZero() && !s.Durable.IsZero() {
		t.tracer.Past(of, "append", s.Appending, s.Durable, nil,
			attribute.String("kvstore.engine", t.engine), attribute.Int("kvstore.commit.commands", s.Commands), attribute.Int("kvstore.commit.bytes", s.Bytes))
	}
}

// collector takes spans (otlptrace.Client).
type collector interface {
	UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error
	Stop(ctx context.Context) error
}

// sender sends spans to a collector, counts them, and logs that it does not take them, at most once a minute.
type sender struct {
	to         collector
	queue      *tracing.Queue
	about      *resourcepb.Resource
	schema     string
	log        *slog.Logger
	sent, lost prometheus.Counter

	mu   sync.Mutex // held while spans are sent
	next time.Time  // guarded by mu: when it may be logged again
	room []byte     // guarded by mu: of the last batch, to be used again
}

// send sends what there is.
func (s *sender) send(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	encoded, spans, lost := s.queue.Take(s.room)
	s.room = encoded
	s.lost.Add(float64(lost))
	if spans == 0 {
		return
	}
	scope := &tracepb.ScopeSpans{Scope: &commonpb.InstrumentationScope{Name: tracing.Scope}}
	scope.ProtoReflect().SetUnknown(encoded) // they are encoded; it is copied to where it belongs
	if err := s.to.UploadTraces(ctx, []*tracepb.ResourceSpans{{Resource: s.about, SchemaUrl: s.schema, ScopeSpans: []*tracepb.ScopeSpans{scope}}}); err != nil {
		s.lost.Add(float64(spans))
		if now := time.Now(); now.After(s.next) {
			s.next = now.Add(time.Minute)
			s.log.Warn("the collector of traces does not take spans; they are dropped, and nothing else is touched", "error", strings.TrimSpace(err.Error()))
		}
		return
	}
	s.sent.Add(float64(spans))
}

// resourceOf is what a process says of itself, as OTLP has it. All of it is text.
func resourceOf(r *resource.Resource) *resourcepb.Resource {
	out := &resourcepb.Resource{}
	for _, a := range r.Attributes() {
		out.Attributes = append(out.Attributes, &commonpb.KeyValue{
			Key: string(a.Key), Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a.Value.String()}},
		})
	}
	return out
}
