// Package traces follows requests through real processes' parts, and looks at what arrives at a real OTLP endpoint.
package traces

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/prototext"

	"kvstore/components/authn/ca"
)

const patience = time.Minute

// collector is an OTLP collector: the gRPC service, on a listener.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	t   testing.TB
	url string

	mu    sync.Mutex
	spans []span // guarded by mu
	text  strings.Builder
}

// span is a span as it arrived, with the target or the name of the service that told it.
type span struct {
	*tracepb.Span
	from string
}

// newCollector starts one; with TLS its certificate's authority is put where exporters look for it.
func newCollector(t *testing.T, secure bool) *collector {
	t.Helper()
	var options []grpc.ServerOption
	if secure {
		now := time.Now()
		authority, err := ca.New("collectors", time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := authority.Issue(ca.Leaf{Name: "collector", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Life: time.Hour}, now)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(file, authority.Cert, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", file)
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	}
	c := &collector{t: t}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.url = "http://" + lis.Addr().String()
	if secure {
		c.url = "https://" + lis.Addr().String()
	}
	srv := grpc.NewServer(options...)
	collectorpb.RegisterTraceServiceServer(srv, c)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("the collector: %v", err)
		}
	})
	return c
}

// Export implements collectorpb.TraceServiceServer.
func (c *collector) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		from := value(r.Resource.Attributes, "kvstore.target")
		if from == "" {
			from = value(r.Resource.Attributes, "service.name")
		}
		for _, s := range r.ScopeSpans {
			for _, sp := range s.Spans {
				c.spans = append(c.spans, span{sp, from})
			}
		}
	}
	c.text.WriteString(prototext.Format(req))
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func value(attrs []*commonpb.KeyValue, name string) string {
	for _, a := range attrs {
		if a.Key == name {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func number(attrs []*commonpb.KeyValue, name string) int64 {
	for _, a := range attrs {
		if a.Key == name {
			return a.Value.GetIntValue()
		}
	}
	return 0
}

// paths are all spans that arrived, each as its way from the root: "from:name" joined by " > ", sorted. A span whose parent did not arrive begins with "?".
func (c *collector) paths() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID := map[string]span{}
	for _, s := range c.spans {
		id := hex.EncodeToString(s.TraceId) + hex.EncodeToString(s.SpanId)
		if _, twice := byID[id]; twice {
			c.t.Errorf("span %s came twice", id)
		}
		byID[id] = s
	}
	var all []string
	for _, s := range byID {
		path := ""
		for at := s; ; {
			path = at.from + ":" + at.Name + path
			if len(at.ParentSpanId) == 0 {
				break
			}
			parent, ok := byID[hex.EncodeToString(at.TraceId)+hex.EncodeToString(at.ParentSpanId)]
			if !ok {
				path = "? > " + path
				break
			}
			if parent.StartTimeUnixNano > at.StartTimeUnixNano+uint64(time.Millisecond) {
				c.t.Errorf("%s begins before its parent %s", at.Name, parent.Name)
			}
			path, at = " > "+path, parent
		}
		all = append(all, path)
	}
	slices.Sort(all)
	return all
}

// find returns the spans of a name.
func (c *collector) find(name string) (all []span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Name == name {
			all = append(all, s)
		}
	}
	return all
}

// holds checks that nothing of what was stored or sent has arrived.
func (c *collector) holdsNo(secrets ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range secrets {
		if strings.Contains(c.text.String(), s) {
			c.t.Errorf("the collector was told %q", s)
		}
	}
}

// client makes a provider as a user has one, for client.Config.
func (c *collector) client(sampler sdktrace.Sampler) *sdktrace.TracerProvider {
	exporter, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithEndpointURL(c.url))
	if err != nil {
		c.t.Fatal(err)
	}
	return sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sampler),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "shop"))))
}

// same compares lists of paths.
func same(t *testing.T, got, want []string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("spans:\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
