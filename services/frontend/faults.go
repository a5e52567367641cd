package frontend

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Users are told "internal error" and no cause (see kverr); here is where the cause goes. Only what is the server's fault is
// logged: unforeseen errors and damaged data. What users send is not part of such errors, so neither are keys and values.

// faults logs, at most once in faultEvery, and says how many it left out.
type faults struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	next    time.Time // guarded by mu: when the next may be logged
	leftOut int       // guarded by mu
}

const (
	faultEvery   = time.Second
	maxFaultText = 1 << 10
)

// note logs err if it is the server's fault.
func (f *faults) note(where string, err error) {
	if !ownFault(err) {
		return
	}
	now := f.now()
	f.mu.Lock()
	if now.Before(f.next) {
		f.leftOut++
		f.mu.Unlock()
		return
	}
	leftOut := f.leftOut
	f.next, f.leftOut = now.Add(faultEvery), 0
	f.mu.Unlock()
	text := err.Error()
	f.log.Error("a request failed by no fault of its own", "call", where, "kind", kverr.KindOf(err).String(),
		"error", text[:min(len(text), maxFaultText)], "not_logged_before", leftOut)
}

// ownFault tells whether an error says that something is wrong here. What gRPC itself finds wrong is about the request or the
// connection.
func ownFault(err error) bool {
	if e, ok := errors.AsType[*kverr.Error](err); ok {
		return e.Kind == kverr.Unknown || e.Kind == kverr.DataLoss
	}
	var own interface{ GRPCStatus() *status.Status }
	return !errors.As(err, &own) && kverr.KindOf(err) == kverr.Unknown
}

// item is kverr.Item for an error that has not been noted.
func (s *Server) item(where string, err *kverr.Error) *kvv1.Error {
	s.faults.note(where, err)
	return kverr.Item(err)
}

// guarded is a service whose calls have come by a door and are counted, and whose errors are noted. It wraps the handlers themselves, for an
// interceptor costs every call two allocations.
func (s *Server) guarded(d *grpc.ServiceDesc) *grpc.ServiceDesc {
	out := *d
	out.Methods, out.Streams = slices.Clone(d.Methods), slices.Clone(d.Streams)
	for i := range out.Methods {
		m := &out.Methods[i]
		name, handle, call := m.MethodName, m.Handler, d.ServiceName+"/"+m.MethodName
		counter := s.cfg.Meter.Call(d.ServiceName, name, false)
		m.Handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			if err := s.cameByDoor(ctx); err != nil {
				return nil, err
			}
			began := s.since()
			s.calls.Add(1)
			span := s.follow(ctx, call)
			if span != nil {
				ctx, dec = trace.ContextWithSpan(ctx, span), decodeFollowed(span, dec)
			}
			resp, err := handle(srv, ctx, dec, in)
			tracing.End(span, err)
			s.calls.Add(-1)
			if err != nil {
				s.faults.note(name, err)
			}
			s.count(counter, began, err)
			return resp, err
		}
	}
	for i := range out.Streams {
		m := &out.Streams[i]
		name, handle, call := m.StreamName, m.Handler, d.ServiceName+"/"+m.StreamName
		lasts, underWay := lasting[name], &s.calls
		if lasts {
			underWay = new(atomic.Int64) // they are counted by kind
		}
		counter := s.cfg.Meter.Call(d.ServiceName, name, lasts)
		m.Handler = func(srv any, stream grpc.ServerStream) error {
			if err := s.cameByDoor(stream.Context()); err != nil {
				return err
			}
			began := s.since()
			underWay.Add(1)
			var span trace.Span // of what lasts there is none: operations of a Pipeline have their own
			if !lasts {
				if span = s.follow(stream.Context(), call); span != nil {
					stream = &followedStream{stream, trace.ContextWithSpan(stream.Context(), span)}
				}
			}
			err := handle(srv, stream)
			tracing.End(span, err)
			underWay.Add(-1)
			if err != nil {
				s.faults.note(name, err)
			}
			s.count(counter, began, err)
			return err
		}
	}
	return &out
}
