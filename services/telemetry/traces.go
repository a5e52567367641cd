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
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"kvstore/actors/host"
	"kvstore/components/tracing"
)

// TraceConfig says where traces go. The environment variables OTEL_SDK_DISABLED, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* and
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
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil:
		return fmt.Errorf("%s is %q: it must be https://host:port, or http://host:port on this machine", from, redacted(c.Endpoint, u))
	case u.Scheme == "http" && !c.Plain && !loopback(u.Hostname()):
		return fmt.Errorf("%s is %q: spans would leave this machine in plain text. Say https, or -otlp-insecure if the network is trusted", from, c.Endpoint)
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

// redacted is an address without what may be a password.
func redacted(text string, u *url.URL) string {
	if u != nil && u.User != nil {
		return u.Redacted()
	}
	return text
}

func loopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// Traces are the traces of a process: who is followed, and where spans go.
type Traces struct {
	tracer   *tracing.Tracer
	provider *sdktrace.TracerProvider
	engine   string
}

// Bounds of what is kept of spans: those that do not fit are dropped.
const (
	spanQueue    = 8192
	spanBatch    = 512
	spanEvery    = 2 * time.Second
	spanAttrs    = 32
	spanEvents   = 16
	flushTimeout = 3 * time.Second
)

// OpenTraces begins to send spans to a collector; it does not wait for that to be there. cfg is resolved. nil: there are none, and Tracer and Followed
// of nil follow nothing.
func (t *Telemetry) OpenTraces(ctx context.Context, cfg TraceConfig, log *slog.Logger) (*Traces, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(cfg.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "kvstore"), attribute.String("service.version", t.info.Version), attribute.String("kvstore.target", t.info.Target),
	), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kvstore_spans_total", Help: "Spans handed to the collector, and those that it did not take."}, []string{"outcome"})
	t.registry.MustRegister(spans)
	noting := &notingExporter{SpanExporter: exporter, log: log, sent: spans.WithLabelValues("sent"), lost: spans.WithLabelValues("lost")}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeCountLimit, limits.EventCountLimit, limits.AttributeValueLengthLimit = spanAttrs, spanEvents, 256
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())), // tracing.Tracer has decided
		sdktrace.WithResource(about),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithBatcher(noting, sdktrace.WithMaxQueueSize(spanQueue), sdktrace.WithMaxExportBatchSize(spanBatch), sdktrace.WithBatchTimeout(spanEvery)),
	)
	return &Traces{tracer: tracing.New(provider, cfg.Sample), provider: provider, engine: t.info.Engine}, nil
}

// Close sends what is left, for a short time.
func (t *Traces) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
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
	span := t.tracer.Child(tracing.Of(s.Trace, s.Span), "shard "+s.Op, trace.SpanKindInternal, s.Taken, attribute.String("kvstore.shard", s.Shard))
	if !s.Stepped.IsZero() {
		span.SetAttributes(attribute.Int64("kvstore.queue_wait_us", s.Stepped.Sub(s.Taken).Microseconds()))
	}
	if !s.Appending.IsZero() && !s.Durable.IsZero() {
		commit := t.tracer.Child(span.SpanContext(), "append", trace.SpanKindInternal, s.Appending,
			attribute.String("kvstore.engine", t.engine), attribute.Int("kvstore.commit.commands", s.Commands), attribute.Int("kvstore.commit.bytes", s.Bytes))
		commit.End(trace.WithTimestamp(s.Durable))
	}
	tracing.End(span, err)
}

// notingExporter counts spans, and logs that a collector does not take them, at most once a minute.
type notingExporter struct {
	sdktrace.SpanExporter
	log        *slog.Logger
	sent, lost prometheus.Counter

	mu   sync.Mutex
	next time.Time // guarded by mu: when it may be logged again
}

// ExportSpans implements sdktrace.SpanExporter. It returns nil: who asked would hand the error to a handler of the whole process.
func (n *notingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := n.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		n.sent.Add(float64(len(spans)))
		return nil
	}
	n.lost.Add(float64(len(spans)))
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); now.After(n.next) {
		n.next = now.Add(time.Minute)
		n.log.Warn("the collector of traces does not take spans; they are dropped, and nothing else is touched", "error", strings.TrimSpace(err.Error()))
	}
	return nil
}
