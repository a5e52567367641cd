package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
)

// These benchmarks tell what eyes cost in processor time of the whole process (cpu-us/op): what is done behind a request's back counts, too.

// cpu is the processor time that this process has had.
func cpu(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rawSink is a collector that takes whatever comes and decodes nothing of it, so that next to nothing of its own is measured.
type rawSink struct{ bytes atomic.Int64 }

// Marshal implements encoding.CodecV2: an empty answer says that all was taken.
func (*rawSink) Marshal(any) (mem.BufferSlice, error) { return nil, nil }

// Unmarshal implements encoding.CodecV2.
func (s *rawSink) Unmarshal(data mem.BufferSlice, _ any) error {
	s.bytes.Add(int64(data.Len()))
	return nil
}

// Name implements encoding.CodecV2.
func (*rawSink) Name() string { return "proto" }

// openSink has a rawSink listen.
func openSink(b *testing.B) (s *rawSink, url string) {
	b.Helper()
	s = &rawSink{}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(s), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var m struct{}
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		return stream.SendMsg(&m)
	}))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	b.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return s, "http://" + lis.Addr().String()
}

// BenchmarkFollowedPut is what it costs to follow a put of a pipeline through one process, until its three spans are at the collector: in a row, sent 200 at
// a time, and one after every 200 us of other work, as they come in truth.
func BenchmarkFollowedPut(b *testing.B) {
	for _, apart := range []time.Duration{0, 200 * time.Microsecond} {
		b.Run(fmt.Sprintf("apart=%s", apart), func(b *testing.B) {
			sink, url := openSink(b)
			tel := New(Info{Version: "1.2", Target: "all", Engine: "filelog"})
			traces, err := tel.OpenTraces(context.Background(), TraceConfig{Endpoint: url, Sample: 1}, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			put := func() {
				span := traces.Tracer().Request("", "pipeline put", append(tracing.Where("", "shop"), attribute.String("kvstore.face", "pipeline"))...)
				sc := span.SpanContext()
				now := time.Now()
				traces.followed(host.Stops{
					Trace: sc.TraceID(), Span: sc.SpanID(), Shard: "default.shop.17", Op: "put",
					Taken: now, Stepped: now, Appending: now, Durable: now, Commands: 31, Bytes: 9000,
				}, nil)
				tracing.End(span, nil)
			}
			b.ReportAllocs()
			before := cpu(b)
			for n := range b.N {
				put()
				if apart == 0 && n%200 == 0 {
					traces.sender.send(context.Background())
				}
				for began := time.Now(); time.Since(began) < apart; { // somebody works
				}
			}
			if err := traces.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((cpu(b)-before-time.Duration(b.N)*apart).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
			b.ReportMetric(float64(sink.bytes.Load())/float64(b.N), "sent-B/op")
			if told := tel.value(b, "kvstore_spans_total"); told != float64(3*b.N) {
				b.Errorf("%v spans are told of, of %d", told, 3*b.N)
			}
		})
	}
}

// BenchmarkScrape is a scrape of a process with 64 shards, as Prometheus asks for it, and without compression.
func BenchmarkScrape(b *testing.B) {
	ctx := context.Background()
	inner, err := memlog.New(memlog.Config{})
	if err != nil {
		b.Fatal(err)
	}
	tel := New(Info{Version: "1.2", Target: "all", Engine: "memory"})
	engine := tel.Engine(inner)
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := memhost.New(store, memhost.Config{Events: tel.Shards(memhost.Events{})})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = h.Close(ctx, false) }()
	tel.WatchHost(engine, h)
	tel.registry.MustRegister(tel.requests)
	for _, method := range []string{"Put", "Get", "Delete", "List", "BatchPut", "BatchGet", "Watch", "Pipeline"} {
		o := tel.requests.Call("kvstore.v1.KVService", method, false)
		o.Done(1, time.Millisecond)
		o.Failed(1, time.Millisecond, kverr.NotFound)
	}
	for _, op := range []string{"put", "get", "delete"} {
		tel.requests.Operation("pipeline", op).Done(1, time.Millisecond)
	}
	done := make(chan error, 1)
	for i := range 64 {
		id := fmt.Sprintf("default.shop.%d", i)
		if err := h.Create(ctx, id, nil); err != nil {
			b.Fatal(err)
		}
		h.Do(ctx, id, &shard.Command{Op: shard.OpPut, Put: shard.Put{Key: []byte("k")}, Done: func(_ *shard.Command, err error) { done <- err }})
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	srv := httptest.NewServer(tel.Handler(slog.New(slog.DiscardHandler)))
	defer srv.Close()
	for _, encoding := range []string{"gzip", "identity"} {
		b.Run(encoding, func(b *testing.B) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
			if err != nil {
				b.Fatal(err)
			}
			req.Header.Set("Accept-Encoding", encoding)
			req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")
			var size int64
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				resp, err := srv.Client().Do(req)
				if err != nil {
					b.Fatal(err)
				}
				size, err = io.Copy(io.Discard, resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK || size == 0 {
					b.Fatalf("%s, %v", resp.Status, err)
				}
				_ = resp.Body.Close()
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
			b.ReportMetric(float64(size), "sent-B/op")
		})
	}
}

// BenchmarkCommit is what a commit pays to be counted, with its append: once for all commands that share it.
func BenchmarkCommit(b *testing.B) {
	tel := New(Info{})
	events := tel.Shards(memhost.Events{})
	e := tel.Engine(instant{})
	done := func(error) {}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			e.Append("s", driver.Epoch{}, driver.Frame{}, done)
			events.Committed(host.Committed{Outcome: wal.Written, Took: time.Millisecond, Commands: 3, Bytes: 3000, Waiting: 2})
		}
	})
}

// instant is an engine that appends in no time; nothing else of it is called.
type instant struct{ driver.Engine }

// Append implements driver.Engine.
func (instant) Append(_ string, _ driver.Epoch, _ driver.Frame, done func(error)) { done(nil) }

// Name implements driver.Engine.
func (instant) Name() string { return "instant" }
