package daprhost_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	rtv1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	"kvstore/actors/host/daprhost"
)

// sidecar is what daprd is to a host, in this process and in memory, so that it runs in a synctest bubble: it speaks the real protocol,
// one call at a time for each actor, and believes that every shard is its host's, as a daprd with an old table does. tests/dapr has the
// real one.
type sidecar struct {
	rtv1.UnimplementedDaprServer
	listener *bufconn.Listener
	server   *grpc.Server

	mu       sync.Mutex
	stream   *stream                // nil while none is open; guarded by mu, as is all below
	types    []string               // of stream
	locks    map[string]*sync.Mutex // by actor
	shutdown int                    // how often it was asked to end
	deaf     bool                   // it takes calls and routes none of them
	calls    map[string]int         // how often actors were called, by id
}

// stream is a host's stream of callbacks.
type stream struct {
	ctx  context.Context
	end  context.CancelFunc
	out  chan *rtv1.SubscribeActorEventsResponseAlpha1
	mu   sync.Mutex
	next int
	wait map[string]chan *rtv1.SubscribeActorEventsRequestAlpha1 // guarded by mu
}

func newSidecar() *sidecar {
	s := &sidecar{listener: bufconn.Listen(1 << 20), server: grpc.NewServer(), locks: make(map[string]*sync.Mutex), calls: make(map[string]int)}
	rtv1.RegisterDaprServer(s.server, s)
	go s.server.Serve(s.listener)
	return s
}

// dial connects a host or a locator.
func (s *sidecar) dial(t testing.TB) *daprhost.Sidecar {
	c, err := daprhost.Dial(daprhost.SidecarConfig{
		Address: "passthrough:///sidecar",
		Options: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 24 * time.Hour}), // bubbles live for days
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *sidecar) close() {
	s.server.Stop()
	s.listener.Close()
}

func (s *sidecar) SubscribeActorEventsAlpha1(server rtv1.Dapr_SubscribeActorEventsAlpha1Server) error {
	first, err := server.Recv()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(server.Context())
	defer cancel()
	st := &stream{ctx: ctx, end: cancel, out: make(chan *rtv1.SubscribeActorEventsResponseAlpha1), wait: make(map[string]chan *rtv1.SubscribeActorEventsRequestAlpha1)}
	s.mu.Lock()
	if s.stream != nil {
		s.mu.Unlock()
		return errors.New("a second stream: the first would lose its actors")
	}
	s.stream, s.types = st, first.GetInitialRequest().GetEntities()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.stream = nil
		s.mu.Unlock()
	}()
	if err := server.Send(&rtv1.SubscribeActorEventsResponseAlpha1{ResponseType: &rtv1.SubscribeActorEventsResponseAlpha1_InitialResponse{
		InitialResponse: &rtv1.SubscribeActorEventsResponseInitialAlpha1{},
	}}); err != nil {
		return err
	}
	go func() {
		defer cancel()
		for {
			m, err := server.Recv()
			if err != nil {
				return
			}
			id := m.GetInvokeResponse().GetId() + m.GetDeactivateResponse().GetId() + m.GetRequestFailed().GetId()
			st.mu.Lock()
			if c := st.wait[id]; c != nil {
				delete(st.wait, id)
				c <- m
			}
			st.mu.Unlock()
		}
	}()
	for {
		select {
		case m := <-st.out:
			if err := server.Send(m); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// call sends a callback and waits for its answer.
func (st *stream) call(ctx context.Context, build func(id string) *rtv1.SubscribeActorEventsResponseAlpha1) (*rtv1.SubscribeActorEventsRequestAlpha1, error) {
	answer := make(chan *rtv1.SubscribeActorEventsRequestAlpha1, 1)
	st.mu.Lock()
	st.next++
	id := strconv.Itoa(st.next)
	st.wait[id] = answer
	st.mu.Unlock()
	select {
	case st.out <- build(id):
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-st.ctx.Done():
		return nil, context.Canceled
	}
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-st.ctx.Done():
		return nil, context.Canceled
	}
}

func (s *sidecar) current() *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream
}

func (s *sidecar) InvokeActor(ctx context.Context, r *rtv1.InvokeActorRequest) (*rtv1.InvokeActorResponse, error) {
	s.mu.Lock()
	st, deaf := s.stream, s.deaf
	s.calls[r.ActorId]++
	lock := s.locks[r.ActorType+"/"+r.ActorId]
	if lock == nil {
		lock = new(sync.Mutex)
		s.locks[r.ActorType+"/"+r.ActorId] = lock
	}
	s.mu.Unlock()
	if st == nil || deaf { // it waits until somebody registers
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	lock.Lock()
	defer lock.Unlock()
	m, err := st.call(ctx, func(id string) *rtv1.SubscribeActorEventsResponseAlpha1 {
		return &rtv1.SubscribeActorEventsResponseAlpha1{ResponseType: &rtv1.SubscribeActorEventsResponseAlpha1_InvokeRequest{
			InvokeRequest: &rtv1.SubscribeActorEventsResponseInvokeRequestAlpha1{Id: id, ActorType: r.ActorType, ActorId: r.ActorId, Method: r.Method, Data: r.Data},
		}}
	})
	if err != nil {
		return nil, status.Error(codes.Internal, "error invoke actor method: "+err.Error())
	}
	if f := m.GetRequestFailed(); f != nil {
		return nil, status.Error(codes.Internal, fmt.Sprint("error invoke actor method: ", f.Message))
	}
	return &rtv1.InvokeActorResponse{Data: m.GetInvokeResponse().GetData()}, nil
}

// deactivate tells the host that an actor is not its own any more, and waits for its answer.
func (s *sidecar) deactivate(ctx context.Context, actorType, id string) error {
	_, err := s.current().call(ctx, func(call string) *rtv1.SubscribeActorEventsResponseAlpha1 {
		return &rtv1.SubscribeActorEventsResponseAlpha1{ResponseType: &rtv1.SubscribeActorEventsResponseAlpha1_DeactivateRequest{
			DeactivateRequest: &rtv1.SubscribeActorEventsResponseDeactivateRequestAlpha1{Id: call, ActorType: actorType, ActorId: id},
		}}
	})
	return err
}

func (s *sidecar) GetMetadata(context.Context, *rtv1.GetMetadataRequest) (*rtv1.GetMetadataResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &rtv1.ActorRuntime{RuntimeStatus: rtv1.ActorRuntime_INITIALIZING}
	if s.stream != nil {
		r.RuntimeStatus, r.HostReady, r.Placement = rtv1.ActorRuntime_RUNNING, true, "placement: connected"
		for _, t := range s.types {
			r.ActiveActors = append(r.ActiveActors, &rtv1.ActiveActorsCount{Type: t})
		}
	}
	return &rtv1.GetMetadataResponse{ActorRuntime: r}, nil
}

func (s *sidecar) Shutdown(context.Context, *rtv1.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutdown++
	return &emptypb.Empty{}, nil
}

func (s *sidecar) setDeaf(deaf bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = deaf
}

// shutdowns is how often it was asked to end.
func (s *sidecar) shutdowns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shutdown
}

// invoked is how often an actor was called.
func (s *sidecar) invoked(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[id]
}

// endStream ends the host's stream.
func (s *sidecar) endStream() { s.current().end() }
