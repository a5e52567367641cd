package catalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Defaults of ServerConfig.
const (
	DefaultHeartbeat   = time.Second
	DefaultMaxWatchers = 4096
)

// chunkBytes is about how much of the directory one message of a watch has.
const chunkBytes = 256 << 10

// ServerConfig tunes a Server. The zero value of each field takes its default.
type ServerConfig struct {
	// Heartbeat is how often a watch in which nothing changes gets a message, for which the owner makes sure of its lease. Default
	// 1 s. Clients give a stream up after ClientConfig.Silence without one.
	Heartbeat time.Duration
	// MaxWatchers bounds the watches under way; further ones are refused with kverr.Exhausted. Default 4,096.
	MaxWatchers int
}

// EnsureDefaults fills in what is zero.
func (c *ServerConfig) EnsureDefaults() {
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.MaxWatchers == 0 {
		c.MaxWatchers = DefaultMaxWatchers
	}
}

// Validate lists every fault.
func (c *ServerConfig) Validate() error {
	var faults []error
	if c.Heartbeat < 0 {
		faults = append(faults, fmt.Errorf("the field Heartbeat is %v: more than 0", c.Heartbeat))
	}
	if c.MaxWatchers < 1 {
		faults = append(faults, fmt.Errorf("the field MaxWatchers is %d: at least 1", c.MaxWatchers))
	}
	return errors.Join(faults...)
}

// Server is DirectoryService on a host that may own the directory. Every host of shards has one; one that does not own the directory
// answers kverr.Moved.
type Server struct {
	dataplanev1.UnimplementedDirectoryServiceServer
	cfg    ServerConfig
	keeper *keeper.Keeper

	watchers atomic.Int64
	stopping chan struct{} // closed by Stop
	stop     sync.Once
}

// NewServer makes the service of a host.
func NewServer(k *keeper.Keeper, cfg ServerConfig) (*Server, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, keeper: k, stopping: make(chan struct{})}, nil
}

// Register makes the service known to a gRPC server: that of the data plane, which decides who may call it.
func (s *Server) Register(r grpc.ServiceRegistrar) { dataplanev1.RegisterDirectoryServiceServer(r, s) }

// Stop ends all watches, so that a graceful stop of the gRPC server need not wait for them.
func (s *Server) Stop() { s.stop.Do(func() { close(s.stopping) }) }

var errStopping = &kverr.Error{Kind: kverr.Unavailable, Op: "watch the directory", Message: "the host is stopping"}

// WatchDirectory sends the directory, then what changes, then heartbeats.
func (s *Server) WatchDirectory(req *dataplanev1.WatchDirectoryRequest, stream grpc.ServerStreamingServer[dataplanev1.WatchDirectoryResponse]) error {
	defer s.watchers.Add(-1)
	if n := s.watchers.Add(1); n > int64(s.cfg.MaxWatchers) {
		return &kverr.Error{Kind: kverr.Exhausted, Op: "watch the directory", Message: fmt.Sprintf("the host has %d watches, at most", s.cfg.MaxWatchers), RetryAfterMS: 1000}
	}
	var sent keeper.State
	beat := time.NewTimer(s.cfg.Heartbeat)
	defer beat.Stop()
	for {
		changed := s.keeper.Changed()
		now, err := s.keeper.State(stream.Context())
		if err != nil {
			return kverr.From(err)
		}
		if err := sendChanges(stream, sent, now); err != nil {
			return err
		}
		if req.GetOnce() {
			return nil
		}
		sent = now
		beat.Reset(s.cfg.Heartbeat)
		select {
		case <-changed:
		case <-beat.C:
		case <-s.stopping:
			return errStopping
		case <-stream.Context().Done():
			return kverr.From(context.Cause(stream.Context()))
		}
	}
}

// sendChanges sends what turns the state that was sent last into another: at least one message, which is a heartbeat if nothing changed.
func sendChanges(stream grpc.ServerStreamingServer[dataplanev1.WatchDirectoryResponse], sent, now keeper.State) error {
	first := sent.Tree == nil
	m := &dataplanev1.WatchDirectoryResponse{Reset_: first}
	size := 0
	if first || now.Revision != sent.Revision {
		for change, err := range directory.Changes(sent.Tree, now.Tree) {
			if err != nil {
				return kverr.Wrap(kverr.DataLoss, "read the directory", err)
			}
			if size > chunkBytes {
				m.More = true
				if err := stream.Send(m); err != nil {
					return err
				}
				m, size = new(dataplanev1.WatchDirectoryResponse), 0
			}
			m.Changes = append(m.Changes, change)
			size += change.SizeVT()
		}
	}
	m.Revision, m.Epoch = now.Revision, now.Epoch
	return stream.Send(m)
}

// revision is that of the directory after a request was done: whoever waits for it sees what was done.
func (s *Server) revision(ctx context.Context) (uint64, error) {
	r, err := s.keeper.Revision(ctx)
	if err != nil {
		// It was done: the error of this must not be taken for one of that.
		return 0, kverr.Wrap(kverr.OutcomeUnknown, "read the directory", err)
	}
	return r, nil
}

// CreateKeyspace makes a keyspace.
func (s *Server) CreateKeyspace(ctx context.Context, req *dataplanev1.CreateKeyspaceRequest) (*dataplanev1.CreateKeyspaceResponse, error) {
	if req.Uid == "" {
		return nil, kverr.Invalid("uid", "is empty; it must have 16 hexadecimal digits")
	}
	ks, err := s.keeper.CreateKeyspace(ctx, &kvv1.Keyspace{Name: req.Name, Uid: req.Uid, Shards: req.Shards})
	if err != nil {
		return nil, kverr.From(err)
	}
	r, err := s.revision(ctx)
	return &dataplanev1.CreateKeyspaceResponse{Keyspace: ks, Revision: r}, err
}

// DeleteKeyspace removes a keyspace.
func (s *Server) DeleteKeyspace(ctx context.Context, req *dataplanev1.DeleteKeyspaceRequest) (*dataplanev1.DeleteKeyspaceResponse, error) {
	if err := s.keeper.DeleteKeyspace(ctx, req.Name, req.Uid); err != nil {
		return nil, kverr.From(err)
	}
	r, err := s.revision(ctx)
	return &dataplanev1.DeleteKeyspaceResponse{Revision: r}, err
}

// CreateNamespace makes a namespace.
func (s *Server) CreateNamespace(ctx context.Context, req *dataplanev1.CreateNamespaceRequest) (*dataplanev1.CreateNamespaceResponse, error) {
	if err := checkRequestID(req.RequestId); err != nil {
		return nil, err
	}
	ns, err := s.keeper.CreateNamespace(ctx, req.Namespace, keeper.Request{ID: req.RequestId, KeyspaceUID: req.KeyspaceUid})
	if err != nil {
		return nil, kverr.From(err)
	}
	r, err := s.revision(ctx)
	return &dataplanev1.CreateNamespaceResponse{Namespace: ns, Revision: r}, err
}

// UpdateNamespace changes a namespace.
func (s *Server) UpdateNamespace(ctx context.Context, req *dataplanev1.UpdateNamespaceRequest) (*dataplanev1.UpdateNamespaceResponse, error) {
	if err := checkRequestID(req.RequestId); err != nil {
		return nil, err
	}
	ns, err := s.keeper.UpdateNamespace(ctx, req.Namespace, req.UpdateMask.GetPaths(),
		keeper.Request{ID: req.RequestId, KeyspaceUID: req.KeyspaceUid, NamespaceUID: req.NamespaceUid})
	if err != nil {
		return nil, kverr.From(err)
	}
	r, err := s.revision(ctx)
	return &dataplanev1.UpdateNamespaceResponse{Namespace: ns, Revision: r}, err
}

// requestIDBytes is the length of a request's identity.
const requestIDBytes = 16

func checkRequestID(id []byte) error {
	if len(id) != requestIDBytes {
		return kverr.Invalid("request_id", "has %d bytes; it must have %d", len(id), requestIDBytes)
	}
	return nil
}

// DeleteNamespace removes a namespace.
func (s *Server) DeleteNamespace(ctx context.Context, req *dataplanev1.DeleteNamespaceRequest) (*dataplanev1.DeleteNamespaceResponse, error) {
	err := s.keeper.DeleteNamespace(ctx, req.Keyspace, req.Name, keeper.Request{KeyspaceUID: req.KeyspaceUid, NamespaceUID: req.NamespaceUid})
	if err != nil {
		return nil, kverr.From(err)
	}
	r, err := s.revision(ctx)
	return &dataplanev1.DeleteNamespaceResponse{Revision: r}, err
}

// RememberMarks raises marks.
func (s *Server) RememberMarks(ctx context.Context, req *dataplanev1.RememberMarksRequest) (*dataplanev1.RememberMarksResponse, error) {
	marks := make([]directory.Mark, len(req.Marks))
	for i, m := range req.Marks {
		marks[i] = directory.Mark{Shard: m.GetShard(), Epoch: m.GetEpoch(), Seq: m.GetSeq()}
	}
	if err := s.keeper.Remember(ctx, marks...); err != nil {
		return nil, kverr.From(err)
	}
	return &dataplanev1.RememberMarksResponse{}, nil
}

// GetMarks tells what is remembered.
func (s *Server) GetMarks(ctx context.Context, req *dataplanev1.GetMarksRequest) (*dataplanev1.GetMarksResponse, error) {
	if len(req.Shards) > directory.MaxMarks {
		return nil, kverr.TooBig("shards", len(req.Shards), directory.MaxMarks, "shards")
	}
	marks, err := s.keeper.Marks(ctx, req.Shards...)
	if err != nil {
		return nil, kverr.From(err)
	}
	resp := &dataplanev1.GetMarksResponse{Marks: make([]*dataplanev1.ShardMark, len(marks))}
	for i := range marks {
		resp.Marks[i] = markToProto(marks[i])
	}
	return resp, nil
}

// AcceptLoss accepts the loss of a shard's records.
func (s *Server) AcceptLoss(ctx context.Context, req *dataplanev1.AcceptLossRequest) (*dataplanev1.AcceptLossResponse, error) {
	mark, err := s.keeper.AcceptLoss(ctx, req.Shard)
	if err != nil {
		return nil, kverr.From(err)
	}
	return &dataplanev1.AcceptLossResponse{Mark: markToProto(mark)}, nil
}

func markToProto(m directory.Mark) *dataplanev1.ShardMark {
	return &dataplanev1.ShardMark{
		Mark: &dataplanev1.DirectoryMark{Shard: m.Shard, Epoch: m.Epoch, Seq: m.Seq, Accepted: m.Accepted}, Made: m.Made,
	}
}

func markOf(p *dataplanev1.ShardMark) directory.Mark {
	m := p.GetMark()
	return directory.Mark{Shard: m.GetShard(), Epoch: m.GetEpoch(), Seq: m.GetSeq(), Accepted: m.GetAccepted(), Made: p.GetMade()}
}
