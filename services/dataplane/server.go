package dataplane

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Host is the shards of a process, as the server asks them; *memhost.Host is one. What its calls promise is what frontend.Shards
// promises.
type Host interface {
	// Epoch is the counter of the epoch in which a shard is served now; 0: it is not, and other calls may wait for it. Leased tells
	// that reads need not ask the engine.
	Epoch(shardID string) (epoch uint64, leased bool)

	Do(ctx context.Context, shardID string, cmds ...*shard.Command)
	Read(ctx context.Context, shardID string, queries ...*shard.Query)
	PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error)
	WriteValue(ctx context.Context, shardID string, size int64, r io.Reader) (shard.Ref, error)
	DropValues(shardID string, refs ...shard.Ref)
	ReadValue(ctx context.Context, shardID string, ref shard.Ref, off int64, p []byte) error

	// Follow follows the shards that come by starts, as they are served here, until ctx ends or send fails. Send is told when each has begun, and
	// why one is over; the others go on.
	Follow(ctx context.Context, w *fanout.Watch, starts <-chan []fanout.Start, send func(*fanout.Told) error) error
}

// ServerConfig is how a Server behaves.
type ServerConfig struct {
	// Status tells how engine and shards are. None: Status is UNIMPLEMENTED.
	Status func() *kvv1.StatusResponse
	// Patience is how long a call whose caller names no time waits for its shard to be opened. Default 5 s.
	Patience time.Duration
	// Keep is how long references that were handed out by Invoke wait for the command that names them. Default 1 minute.
	Keep time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *ServerConfig) EnsureDefaults() {
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	if c.Keep == 0 {
		c.Keep = time.Minute
	}
}

// Server is the host's end of the data plane.
type Server struct {
	dataplanev1.UnimplementedShardServiceServer
	cfg  ServerConfig
	host Host

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	stopping chan struct{}   // closed by Stop
	stopped  context.Context // ends with it
	stop     func()

	mu       sync.Mutex
	sessions map[sessionID]*session // guarded by mu
	invoked  *session               // of calls that come by Invoke
}

// NewServer makes a server for the shards of a host.
func NewServer(host Host, cfg ServerConfig) *Server {
	cfg.EnsureDefaults()
	s := &Server{cfg: cfg, host: host, stopping: make(chan struct{}), sessions: make(map[sessionID]*session)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	stopped, stop := context.WithCancel(context.Background())
	s.stopped = stopped
	s.stop = sync.OnceFunc(func() {
		close(s.stopping)
		stop()
	})
	s.invoked = newSession(host)
	s.invoked.keep = cfg.Keep
	return s
}

// Register adds the service to a gRPC server that was made with ServerOptions.
func (s *Server) Register(g grpc.ServiceRegistrar) { dataplanev1.RegisterShardServiceServer(g, s) }

// Stop tells clients to take their calls elsewhere: what has come is answered, what comes later is refused with MOVED, and streams end
// as soon as their clients have taken leave; watches end at once. It does not wait; stop the gRPC server after a while.
func (s *Server) Stop() { s.stop() }

// Close gives up what calls that came by Invoke left behind. The gRPC server must have been stopped.
func (s *Server) Close() {
	s.Stop()
	s.cancel()
	s.invoked.close()
}

// Exchange serves one client.
func (s *Server) Exchange(stream grpc.BidiStreamingServer[dataplanev1.ExchangeRequest, dataplanev1.ExchangeResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	if err := s.greeted(stream, cancel); err != nil {
		return err
	}
	ses := newSession(s.host)
	s.mu.Lock()
	s.sessions[ses.id] = ses
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sessions, ses.id)
		s.mu.Unlock()
		ses.close()
	}()
	x := newExchange(ctx, s, ses)
	defer func() {
		cancel()
		x.workers.close()
	}()
	var w buffer
	at := w.begin(fieldWelcome)
	w.bytes(1, ses.id[:])
	w.end(at)
	welcome := w.take()
	if err := stream.SendMsg(&welcome); err != nil {
		return err
	}
	go func() {
		err := x.read(stream)
		x.readEnd <- err
		x.ends.Store(true)
		if err != nil {
			cancel()
		}
		poke(x.wake)
	}()
	// When this returns first, the stream's context ends and with it the reader.
	return x.write(stream)
}

// greeted waits for Hello.
func (s *Server) greeted(stream grpc.ServerStream, cancel context.CancelFunc) error {
	timer := time.AfterFunc(helloTimeout, cancel)
	defer timer.Stop()
	var f frame
	if err := stream.RecvMsg(&f); err != nil {
		if errors.Is(err, io.EOF) {
			return kverr.Invalid("hello", "is missing; a stream begins with it")
		}
		return err
	}
	defer f.buf.Free()
	p, _, ok := nextPart(f.buf.ReadOnlyData())
	if !ok || p.number != fieldHello {
		return kverr.Invalid("hello", "is missing; a stream begins with it")
	}
	if v, _, ok := nextPart(p.bytes); !ok || v.number != 1 || v.value != protocolVersion {
		return kverr.New(kverr.Unimplemented, "greet", "this host speaks version %d of the data plane, the frontend speaks %d", protocolVersion, v.value)
	}
	return nil
}

// Status tells how engine and shards are.
func (s *Server) Status(context.Context, *dataplanev1.StatusRequest) (*dataplanev1.StatusResponse, error) {
	if s.cfg.Status == nil {
		return nil, kverr.New(kverr.Unimplemented, "", "this host does not tell its status")
	}
	return &dataplanev1.StatusResponse{Status: s.cfg.Status()}, nil
}

// sessionOf finds the session that a stream of values belongs to; nil when it is over.
func (s *Server) sessionOf(id []byte) *session {
	if len(id) != len(sessionID{}) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[sessionID(id)]
}

// patient is a context for a call that may wait for its shard, with the time that its caller told.
func (s *Server) patient(ctx context.Context, timeoutMS int64) (context.Context, context.CancelFunc) {
	wait := s.cfg.Patience
	if timeoutMS > 0 {
		wait = min(time.Duration(timeoutMS)*time.Millisecond, time.Hour)
	}
	return context.WithTimeoutCause(ctx, wait, errOpening)
}

// stale tells that a later owner of the route's shard than this host is known of.
func (s *Server) stale(r *route) bool {
	epoch, _ := s.host.Epoch(r.shard)
	return epoch != 0 && epoch < r.epoch
}

var errOpening = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the shard is still being opened", RetryAfterMS: 100}

var errMoved = &kverr.Error{Kind: kverr.Moved, Op: "reach the shard", Message: "the shard has a later owner than this host"}

func newSessionID() (id sessionID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}
