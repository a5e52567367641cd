// Package clienttest is a small KVStore in memory, in the test's own process, for tests of programs that use package
// client. It has the API's semantics (versions, preconditions, identities, paging, atomic transactions, prefix lookups,
// leases) and can misbehave on demand: lose replies, reorder and repeat them, refuse for a while, break streams.
//
//	srv := clienttest.Start(t)
//	c := srv.Dial(t, client.Config{})
//
// It is not durable, has no limits, shards or expiry by time, and nothing of the product is built on it.
package clienttest

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"kvstore/client"
	"kvstore/components/kverr"
	"kvstore/components/vtcodec"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Server is one store and what listens for it. Its data outlives Stop and Restart.
type Server struct {
	// Faults may be changed at any time.
	Faults Faults

	listening sync.Mutex // guards lis and grpc
	lis       net.Listener
	buf       *bufconn.Listener // nil with a real address
	grpc      *grpc.Server

	mu         sync.Mutex // guards the following
	revision   uint64
	spaces     map[string]*space
	keyspaces  map[string]*kvstorev1.Keyspace
	namespaces map[string]*kvstorev1.Namespace
	answered   map[identity]any // the first answer to each write that had an identity
	forget     bool
	applied    int64
	now        func() time.Time
	changes    []change      // of keys, oldest first
	forgotten  int           // changes before those
	news       chan struct{} // closed by the next change
}

// identity is a write's identity with its place in the request.
type identity struct {
	client string
	op     uint64
	index  int
}

// Start runs a server that only Dial of the same process reaches, until the test ends.
func Start(tb testing.TB) *Server {
	s := newServer()
	s.serveBuf()
	tb.Cleanup(s.Stop)
	return s
}

// StartTCP runs a server on a loopback port, until the test ends.
func StartTCP(tb testing.TB) *Server {
	s := New()
	tb.Cleanup(s.Stop)
	return s
}

// New runs a server on a loopback port, until Stop; it panics when there is none. It is for examples, which have no
// testing.TB.
func New() *Server {
	s := newServer()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s.serve(lis)
	return s
}

func newServer() *Server {
	s := &Server{
		spaces: map[string]*space{}, keyspaces: map[string]*kvstorev1.Keyspace{},
		namespaces: map[string]*kvstorev1.Namespace{}, answered: map[identity]any{}, now: time.Now, news: make(chan struct{}),
	}
	s.keyspaces["default"] = &kvstorev1.Keyspace{Name: "default", Uid: "0123456789abcdef", Shards: 4, Version: 1}
	s.namespaces["default/default"] = &kvstorev1.Namespace{
		Keyspace: "default", Name: "default", Uid: 1, Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_KV, Version: 1,
	}
	return s
}

func (s *Server) serveBuf() {
	buf := bufconn.Listen(1 << 20)
	s.serve(buf)
	s.listening.Lock()
	s.buf = buf
	s.listening.Unlock()
}

func (s *Server) serve(lis net.Listener) {
	g := grpc.NewServer(grpc.ForceServerCodecV2(vtcodec.Codec{}))
	kvstorev1.RegisterKVServiceServer(g, kv{Server: s})
	kvstorev1.RegisterPromptCacheServiceServer(g, prompt{Server: s})
	kvstorev1.RegisterAdminServiceServer(g, admin{Server: s})
	s.listening.Lock()
	s.lis, s.grpc = lis, g
	s.listening.Unlock()
	go func() { _ = g.Serve(lis) }()
}

// Addr is the address of a server of StartTCP.
func (s *Server) Addr() string {
	s.listening.Lock()
	defer s.listening.Unlock()
	return s.lis.Addr().String()
}

// Stop breaks all connections and refuses new ones. The data stays.
func (s *Server) Stop() {
	s.listening.Lock()
	g := s.grpc
	s.listening.Unlock()
	g.Stop()
}

// Restart serves again after Stop. It is for servers of Start: nobody can promise that a port is still free.
func (s *Server) Restart() {
	if s.buf == nil {
		panic("clienttest: Restart of a server with a port")
	}
	s.serveBuf()
}

// Dial connects a client, closed when the test ends. Endpoints of cfg are filled in.
func (s *Server) Dial(tb testing.TB, cfg client.Config) *client.Client {
	tb.Helper()
	if s.buf == nil {
		cfg.Endpoints = []string{s.Addr()}
	} else {
		cfg.Endpoints = []string{"passthrough:///clienttest"}
		cfg.DialOptions = append(cfg.DialOptions, s.Dialer())
	}
	c, err := client.Dial(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Dialer is the option with which any gRPC client reaches a server of Start, whatever the address.
func (s *Server) Dialer() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		s.listening.Lock()
		buf := s.buf
		s.listening.Unlock()
		return buf.DialContext(ctx)
	})
}

// Conn is a bare connection to a server of Start.
func (s *Server) Conn(tb testing.TB) *grpc.ClientConn {
	tb.Helper()
	cc, err := grpc.NewClient("passthrough:///clienttest", s.Dialer(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = cc.Close() })
	return cc
}

// Applied tells how many puts, deletes and transactions changed the store: a repeated write counts once.
func (s *Server) Applied() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// Forget makes the server keep no identities any more: for benchmarks, whose writes would fill the memory.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget = true
}

// SetClock makes the server's clock tell another time.
func (s *Server) SetClock(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

func (s *Server) header() *kvstorev1.ResponseHeader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &kvstorev1.ResponseHeader{ServerTimeMs: s.now().UnixMilli()}
}

// once runs apply for a write with an identity, or returns the first answer to it. mu is held.
func (s *Server) once(id *kvstorev1.WriteIdentity, index int, apply func() any) any {
	if id == nil || s.forget {
		return apply()
	}
	k := identity{string(id.Client), id.Op, index}
	if got, ok := s.answered[k]; ok {
		return got
	}
	if s.now().UnixMilli() > id.NotAfterMs {
		return &kverr.Error{Kind: kverr.Expired, Message: "came after its not_after"}
	}
	out := apply()
	s.answered[k] = out
	return out
}

// Faults are ways to misbehave. The functions are called by many goroutines; nil does nothing.
type Faults struct {
	mu      sync.Mutex
	before  func(method string) error
	after   func(method string) error
	replies func(*kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse
	ops     func(*kvstorev1.PipelineRequest_Op)
}

// Before is called before anything is done of a call, or of a frame of Pipeline; its error is the answer (and breaks
// the stream). Method "item" is one item of a batch, or a block of Write.
func (f *Faults) Before(fn func(method string) error) { f.set(func() { f.before = fn }) }

// After is called when all is done and nothing answered; its error is the answer instead (and breaks the stream).
func (f *Faults) After(fn func(method string) error) { f.set(func() { f.after = fn }) }

// Replies changes what Pipeline sends for a frame.
func (f *Faults) Replies(fn func(*kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse) {
	f.set(func() { f.replies = fn })
}

// Ops is shown each operation of a Pipeline before it is done.
func (f *Faults) Ops(fn func(*kvstorev1.PipelineRequest_Op)) { f.set(func() { f.ops = fn }) }

func (f *Faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *Faults) runBefore(method string) error {
	f.mu.Lock()
	fn := f.before
	f.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(method)
}

func (f *Faults) runOps(op *kvstorev1.PipelineRequest_Op) {
	f.mu.Lock()
	fn := f.ops
	f.mu.Unlock()
	if fn != nil {
		fn(op)
	}
}

func (f *Faults) runAfter(method string) error {
	f.mu.Lock()
	fn := f.after
	f.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(method)
}

func (f *Faults) runReplies(r *kvstorev1.PipelineResponse) []*kvstorev1.PipelineResponse {
	f.mu.Lock()
	fn := f.replies
	f.mu.Unlock()
	if fn == nil {
		return []*kvstorev1.PipelineResponse{r}
	}
	return fn(r)
}

func or(s, d string) string {
	if s == "" {
		return d
	}
	return s
}
