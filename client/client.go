package client

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"kvstore/components/tracing"
	"kvstore/components/vtcodec"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Client talks to one KVStore in one keyspace and namespace. It is safe for concurrent use. Close it when done.
type Client struct {
	*core
	keyspace  string
	namespace string
}

// core is what all views of one Client share.
type core struct {
	cfg    Config
	door   *door
	id     []byte        // WriteIdentity.client: 16 random bytes
	lastOp atomic.Uint64 // WriteIdentity.op counter; the first is 1
	clock  serverClock
	turn   atomic.Uint32 // chooses connections round robin
	conns  []*conn
	tracer trace.Tracer // nil: nobody follows
}

// conn is one TCP connection with its stubs, its Pipeline and its Watches stream, and a second one, opened when first used, for what is long:
// values and blocks that travel as streams. On one connection megabytes of blocks would stand in front of a lookup of a few
// kilobytes, in the buffers of both ends.
type conn struct {
	cc      *grpc.ClientConn
	kv      kvstorev1.KVServiceClient
	prompt  kvstorev1.PromptCacheServiceClient
	admin   kvstorev1.AdminServiceClient
	pipe    *pipe // nil with Config.Unary
	watches *watches

	bulk       *grpc.ClientConn
	bulkKV     kvstorev1.KVServiceClient          // GetStream, PutStream
	bulkPrompt kvstorev1.PromptCacheServiceClient // Read, Write
}

// Dial connects and learns the server's time. It fails when no endpoint answers before ctx ends; a ctx without a
// deadline gives it Config.RetryFor.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	cfg.EnsureDefaults()
	if err := cfg.resolveSchemes(); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, invalid("connect", "%v", err)
	}
	door, err := openDoor(&cfg)
	if err != nil {
		return nil, invalid("connect", "%v", err)
	}
	co := &core{cfg: cfg, door: door, id: make([]byte, 16)}
	if cfg.TracerProvider != nil {
		co.tracer = cfg.TracerProvider.Tracer(tracing.Scope)
	}
	_, _ = rand.Read(co.id) // never fails (crypto/rand)
	c := &Client{core: co, keyspace: cfg.Keyspace, namespace: cfg.Namespace}
	for i := range cfg.Connections {
		cn, err := co.open(i)
		if err != nil {
			_ = c.Close()
			return nil, invalid("connect", "endpoint %q: %v", cfg.Endpoints[0], err)
		}
		co.conns = append(co.conns, cn)
	}
	_, err = unary(ctx, co, reads, "connect", adminStub, kvstorev1.AdminServiceClient.Status, &kvstorev1.StatusRequest{HeadOnly: true})
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// open makes connection number i; it connects when first used.
func (co *core) open(i int) (*conn, error) {
	cc, err := co.dial(i)
	if err != nil {
		return nil, err
	}
	bulk, err := co.dial(i)
	if err != nil {
		_ = cc.Close()
		return nil, err
	}
	cn := &conn{
		cc:         cc,
		kv:         kvstorev1.NewKVServiceClient(cc),
		prompt:     kvstorev1.NewPromptCacheServiceClient(cc),
		admin:      kvstorev1.NewAdminServiceClient(cc),
		bulk:       bulk,
		bulkKV:     kvstorev1.NewKVServiceClient(bulk),
		bulkPrompt: kvstorev1.NewPromptCacheServiceClient(bulk),
	}
	cn.watches = newWatches(cn.kv)
	if !co.cfg.Unary {
		cn.pipe = newPipe(co, cn.kv)
	}
	return cn, nil
}

// dial makes a connection that begins with endpoint number i; it connects when first used.
func (co *core) dial(i int) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(co.door.creds()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{})),
		grpc.WithDisableRetry(), // ours know identities
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{ // gRPC's own pauses grow to two minutes, longer than a call is repeated
			Backoff:           backoff.Config{BaseDelay: co.cfg.BackoffMin, Multiplier: 2, Jitter: 0.2, MaxDelay: co.cfg.BackoffMax},
			MinConnectTimeout: 20 * time.Second, // gRPC's own
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithReadBufferSize(bufferBytes),
	}
	if co.door.token != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(co.door.token))
	}
	target := co.cfg.Endpoints[0]
	if n := len(co.cfg.Endpoints); n > 1 {
		// pick_first takes them in this order, beginning with another one for each connection.
		r := manual.NewBuilderWithScheme("kvstore")
		var state resolver.State
		for k := range n {
			e := co.cfg.Endpoints[(i+k)%n]
			state.Addresses = append(state.Addresses, resolver.Address{Addr: e, ServerName: e}) // the name is for TLS: the target has none
		}
		r.InitialState(state)
		opts = append(opts, grpc.WithResolvers(r))
		target = "kvstore:///"
	}
	return grpc.NewClient(target, append(opts, co.cfg.DialOptions...)...)
}

const (
	windowBytes = 4 << 20 // HTTP/2 flow control; fixed, which also spares the pings that measure a better one
	bufferBytes = 64 << 10
)

// Close ends all connections, of every view of this Client. Calls under way fail; it waits for the client's own
// goroutines.
func (c *Client) Close() error {
	for _, cn := range c.conns {
		if cn.pipe != nil {
			cn.pipe.close()
		}
		cn.watches.close()
		_ = cn.cc.Close()
		_ = cn.bulk.Close()
	}
	return nil
}

// In returns a view of the same Client in another keyspace and namespace; empty means "default". It shares the
// connections.
func (c *Client) In(keyspace, namespace string) *Client {
	return &Client{core: c.core, keyspace: keyspace, namespace: namespace}
}

// pick chooses the connection of the next call.
func (co *core) pick() *conn {
	if len(co.conns) == 1 {
		return co.conns[0]
	}
	return co.conns[int(co.turn.Add(1))%len(co.conns)]
}

// identity makes the identity of a new write.
func (co *core) identity() *kvstorev1.WriteIdentity {
	return &kvstorev1.WriteIdentity{Client: co.id, Op: co.lastOp.Add(1), NotAfterMs: co.notAfter()}
}

// notAfter is the server time up to which a write made now may be executed.
func (co *core) notAfter() int64 { return co.clock.now().Add(co.cfg.RetryFor).UnixMilli() }

// serverClock follows the server's clock from the replies. Its estimate is never ahead of it by more than the reply's
// travelling time counted as zero: it is behind by that time.
type serverClock struct {
	offset atomic.Int64 // nanoseconds to add to the local monotonic time since base
}

// base anchors local readings, so that a step of the local wall clock changes nothing.
var base = time.Now()

// learn takes the header of a reply that has just come.
func (s *serverClock) learn(h *kvstorev1.ResponseHeader) {
	if ms := h.GetServerTimeMs(); ms > 0 {
		s.learnMS(ms)
	}
}

func (s *serverClock) learnMS(ms int64) {
	s.offset.Store(ms*int64(time.Millisecond) - int64(time.Since(base)))
}

// now is the server's time as far as known; before the first reply it is the local time.
func (s *serverClock) now() time.Time {
	off := s.offset.Load()
	if off == 0 {
		return time.Now()
	}
	return time.Unix(0, off+int64(time.Since(base)))
}
