package daprhost

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/host/memhost"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// peers asks other hosts over their data-plane ports.
type peers struct {
	dial func(address string) (grpc.ClientConnInterface, error)
}

var _ memhost.Peers = (*peers)(nil)

// Yield is for memhost.Peers.
func (p *peers) Yield(ctx context.Context, shardID string, holder wal.Holder) time.Duration {
	conn, err := p.dial(holder.Address)
	if err != nil {
		return 0
	}
	// Whether it has yielded does not matter: the manifest is read next.
	r, _ := dataplanev1.NewHostServiceClient(conn).Yield(ctx, &dataplanev1.YieldRequest{
		Shard: shardID, Epoch: holder.Epoch.Counter, Writer: holder.Epoch.Writer[:],
	})
	return time.Duration(r.GetWaitMs()) * time.Millisecond
}

// Serves is for memhost.Peers.
func (p *peers) Serves(ctx context.Context, shardID string, holder wal.Holder) (memhost.Serving, error) {
	conn, err := p.dial(holder.Address)
	if err != nil {
		return memhost.Serving{}, err
	}
	r, err := dataplanev1.NewHostServiceClient(conn).Serves(ctx, &dataplanev1.ServesRequest{
		Shard: shardID, Epoch: holder.Epoch.Counter, Writer: holder.Epoch.Writer[:],
	})
	if err != nil {
		if status.Code(err) == codes.Unavailable && nobodyAt(ctx, holder.Address) {
			return memhost.Serving{}, nil
		}
		return memhost.Serving{}, err
	}
	return memhost.Serving{Serves: r.Serves, Placed: r.Placed}, nil
}

// nobodyAt tells that no process listens at an address: its machine says so.
func nobodyAt(ctx context.Context, address string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// RegisterPeers serves what other hosts ask (HostService) on the server of the data plane, whose authentication keeps strangers out.
func (h *Host) RegisterPeers(s grpc.ServiceRegistrar) {
	dataplanev1.RegisterHostServiceServer(s, &hostService{host: h.Host})
}

type hostService struct {
	dataplanev1.UnimplementedHostServiceServer
	host *memhost.Host
}

// Yield gives a shard up for the caller.
func (s *hostService) Yield(ctx context.Context, r *dataplanev1.YieldRequest) (*dataplanev1.YieldResponse, error) {
	epoch, err := epochOf(r.Epoch, r.Writer)
	if err != nil {
		return nil, err
	}
	if wait := s.host.Waits(r.Shard, epoch); wait > 0 {
		return &dataplanev1.YieldResponse{WaitMs: max(1, wait.Milliseconds())}, nil
	}
	return &dataplanev1.YieldResponse{Yielded: s.host.Yield(ctx, r.Shard, epoch)}, nil
}

// Serves tells whether a shard is served here.
func (s *hostService) Serves(_ context.Context, r *dataplanev1.ServesRequest) (*dataplanev1.ServesResponse, error) {
	epoch, err := epochOf(r.Epoch, r.Writer)
	if err != nil {
		return nil, err
	}
	serving := s.host.Serves(r.Shard, epoch)
	return &dataplanev1.ServesResponse{Serves: serving.Serves, Placed: serving.Placed}, nil
}

func epochOf(counter uint64, writer []byte) (driver.Epoch, error) {
	e := driver.Epoch{Counter: counter}
	if len(writer) != len(e.Writer) {
		return e, kverr.Invalid("writer", "has %d bytes; it must have %d", len(writer), len(e.Writer))
	}
	copy(e.Writer[:], writer)
	return e, nil
}
