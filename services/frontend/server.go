// Package frontend is what users talk to: it checks requests, finds the shards that their keys live in, and turns
// outcomes into replies. It keeps no state of its own but a copy of the directory, so any number of frontends may stand
// before the same shards. Reads go to a shard as queries, answered from its last durable state; writes go to it as commands and
// come back once they are durable.
//
// It knows nothing of how shards are hosted (see Shards) or stored, and opens no listeners: package node does.
//
//	srv, err := frontend.New(frontend.Config{Access: tokens}, shards, directory)
//	grpcServer := grpc.NewServer(srv.Options()...)
//	srv.Register(grpcServer)
package frontend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"kvstore/components/authn"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Config is how a frontend behaves.
type Config struct {
	// Access is who may do what. Required: there is authn.Anyone for doors that only the right ones reach.
	Access *authn.Tokens
	// MaxValueBytes is the largest value of a key; default 16 MiB, at most 512 MiB.
	MaxValueBytes int64
	// MaxBlockBytes is the largest block of a prompt; default 128 MiB, at most 512 MiB.
	MaxBlockBytes int64
	// InlineLimit is the length up to which a value is kept beside its key, in the shard's memory; longer ones go to an
	// object of their own (D7). Default 1 KiB, at most 64 KiB.
	InlineLimit int
	// ClientRate is how many operations a second one client may make here: whoever has one token or, where none is wanted, one address. 0 = any
	// number. Those of a namespace are its own property.
	ClientRate int64
	// MaxWatches is how many Watch streams are served at once; one more is refused. Default 65,536.
	MaxWatches int64
	// StoresAtOnce is how many Writes of prompts may store their blocks at once; 0 = any number. Where this process has the disk too, a few for each
	// processor keep it as busy as any number would, and lookups do not wait behind all of them. Whoever has waited for his turn for a tenth of a
	// second goes on without.
	StoresAtOnce int
	// WatchProgress is how long a watch says nothing before it tells PROGRESS. Default 20 s.
	WatchProgress time.Duration
	// Status tells what AdminService.Status tells of engine and shards; the frontend adds the rest. Errors are *kverr.Error. None:
	// Status is UNIMPLEMENTED.
	Status func(ctx context.Context) (*kvv1.StatusResponse, error)
	// Version is what Status tells of the server; default "dev".
	Version string
	// Log gets what goes wrong here by no fault of the requests, with its cause, which users are not told; never keys or values.
	// Default: nowhere.
	Log *slog.Logger
	// Meter counts what requests do. Default: nobody.
	Meter Meter
	// Tracer follows some of the requests. Default: none.
	Tracer *tracing.Tracer
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.MaxValueBytes == 0 {
		c.MaxValueBytes = 16 << 20
	}
	if c.MaxBlockBytes == 0 {
		c.MaxBlockBytes = key.MaxBlock
	}
	if c.InlineLimit == 0 {
		c.InlineLimit = 1 << 10
	}
	if c.MaxWatches == 0 {
		c.MaxWatches = 1 << 16
	}
	if c.WatchProgress == 0 {
		c.WatchProgress = 20 * time.Second
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = uncounted{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.Access == nil {
		faults = append(faults, errors.New("no Access: it must be tokens, or authn.Anyone to let everybody do everything"))
	}
	if c.MaxValueBytes < 1<<10 || c.MaxValueBytes > 512<<20 {
		faults = append(faults, fmt.Errorf("MaxValueBytes is %d, must be 1 KiB to 512 MiB", c.MaxValueBytes))
	}
	if c.MaxBlockBytes < 1<<10 || c.MaxBlockBytes > key.MaxBlockConfig {
		faults = append(faults, fmt.Errorf("MaxBlockBytes is %d, must be 1 KiB to 512 MiB", c.MaxBlockBytes))
	}
	if c.InlineLimit < 1 || c.InlineLimit > 64<<10 {
		faults = append(faults, fmt.Errorf("InlineLimit is %d, must be 1 to 65,536", c.InlineLimit))
	}
	if c.ClientRate < 0 || c.ClientRate > key.MaxRate {
		faults = append(faults, fmt.Errorf("ClientRate is %d, must be 0 to %d", c.ClientRate, int64(key.MaxRate)))
	}
	if c.StoresAtOnce < 0 || c.StoresAtOnce > maxStoresAtOnce {
		faults = append(faults, fmt.Errorf("StoresAtOnce is %d, must be 0 to %d", c.StoresAtOnce, maxStoresAtOnce))
	}
	if c.MaxWatches < 1 {
		faults = append(faults, fmt.Errorf("MaxWatches is %d, must be at least 1", c.MaxWatches))
	}
	return errors.Join(faults...)
}

// Server is a frontend.
type Server struct {
	cfg     Config
	shards  Shards
	dir     Directory
	started time.Time
	faults  faults

	clients   clients // and what each may still do
	refusals  refusals
	catalog   atomic.Pointer[catalog]
	reloading sync.Mutex // held while the catalog is made anew

	epoch      time.Time // of since
	verbs      [len(verbNames)]Counter
	calls      atomic.Int64 // under way, but for lasting ones
	pipelines  atomic.Int64 // Pipeline streams
	operations atomic.Int64 // of them, not answered
	resyncs    atomic.Int64 // ever
	limited    struct {     // refused for a rate, ever
		client, namespace atomic.Int64
	}
	lookups, reads foundCount    // of blocks
	storing        chan struct{} // holds one for each Write that stores blocks; nil: they are not counted

	watches  atomic.Int64  // Watch streams
	stopping chan struct{} // closed by Stop, with stopped
	stopped  context.Context
	stop     func()
}

// New makes a frontend. The configuration must be valid once defaults are filled in.
func New(cfg Config, shards Shards, dir Directory) (*Server, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Tracer != nil {
		shards = followed{shards}
	}
	s := &Server{
		cfg: cfg, shards: shards, dir: dir, started: cfg.Now(), faults: faults{log: cfg.Log, now: cfg.Now}, stopping: make(chan struct{}),
	}
	if cfg.StoresAtOnce > 0 {
		s.storing = make(chan struct{}, cfg.StoresAtOnce)
	}
	s.refusals.cfg = &s.cfg
	s.epoch = time.Now()
	s.clients.buckets = map[string]*bucket{}
	for v, name := range verbNames {
		s.verbs[v] = cfg.Meter.Operation("pipeline", name)
	}
	stopped, cancel := context.WithCancel(context.Background())
	s.stopped = stopped
	s.stop = sync.OnceFunc(func() {
		close(s.stopping)
		cancel()
	})
	return s, nil
}

// Stop ends the streams that clients would keep open for ever: a Pipeline answers what it has taken, takes no more, and ends with
// UNAVAILABLE; so do Watches. Other calls go on. It does not wait.
func (s *Server) Stop() { s.stop() }

// Register adds the services to a gRPC server that was made with Options.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	g.RegisterService(s.guarded(&kvv1.KVService_ServiceDesc), &kvService{Server: s})
	g.RegisterService(s.guarded(&kvv1.PromptCacheService_ServiceDesc), &promptService{Server: s})
	g.RegisterService(s.guarded(&kvv1.AdminService_ServiceDesc), &adminService{Server: s})
}

// Services are the full names of what Register adds, for health.
func Services() []string {
	return []string{
		kvv1.KVService_ServiceDesc.ServiceName, kvv1.PromptCacheService_ServiceDesc.ServiceName, kvv1.AdminService_ServiceDesc.ServiceName,
	}
}

// streamWorkers are goroutines that handle unary calls one after another, each with the stack that it has grown. A put waits in
// its handler for the log, so with few workers nearly every put would run on a goroutine of its own and grow a new stack.
const streamWorkers = 256

// What a client may have sent and the frontend not read: of one stream, and of a connection. They are fixed, because gRPC's estimate costs a
// ping and its answer for nearly every frame of a client that waits for its answers.
const (
	streamWindow     = 4 << 20
	connectionWindow = 16 << 20
)

// ServerOptions are the gRPC options that a frontend is measured with (DESIGN.md gives reasons and figures). A server made with them alone,
// and not with Server.Options, answers nobody where tokens are wanted.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(maxRecvBytes),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxConcurrentStreams(4096),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.WriteBufferSize(64 << 10),
		grpc.ReadBufferSize(64 << 10),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	}
}

// now is the server's clock in milliseconds since the Unix epoch.
func (s *Server) now() int64 { return s.cfg.Now().UnixMilli() }

// errKeyAbsent is the answer for a key that is not there; one value for all of them, because misses are common.
var (
	errKeyAbsent    = &kverr.Error{Kind: kverr.NotFound, Message: "no such key"}
	statusKeyAbsent = errKeyAbsent.GRPCStatus().Err()
)
