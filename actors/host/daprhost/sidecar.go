package daprhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	rtv1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// DefaultMaxBody is daprd's own default of --max-body-size.
const DefaultMaxBody = 4 << 20

// SidecarConfig says how to reach a daprd.
type SidecarConfig struct {
	// Address of its gRPC API, host:port or unix:path. Required. The API is for this machine alone: it has no TLS.
	Address string
	// Token is sent as dapr-api-token, if set. It is never logged.
	Token string
	// MaxBody is the daprd's --max-body-size, in bytes. A payload with its envelope beyond it ends the stream of a whole host, so payloads
	// may have 80 % of it. Default 4 MiB.
	MaxBody int
	// Options are added to those of the connection; tests bring a dialer.
	Options []grpc.DialOption
}

// Sidecar is the way to one daprd. It is safe for any number of goroutines.
type Sidecar struct {
	cfg    SidecarConfig
	conn   *grpc.ClientConn
	client rtv1.DaprClient
}

// Dial makes a Sidecar; the connection is made when it is first used.
func Dial(cfg SidecarConfig) (*Sidecar, error) {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = DefaultMaxBody
	}
	var faults []error
	if cfg.Address == "" {
		faults = append(faults, errors.New("SidecarConfig.Address is empty"))
	}
	if cfg.MaxBody < 64<<10 {
		faults = append(faults, fmt.Errorf("SidecarConfig.MaxBody is %d: at least 65536", cfg.MaxBody))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(cfg.Address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cfg.MaxBody), grpc.MaxCallSendMsgSize(cfg.MaxBody)),
		// daprd sends GOAWAY to who pings more often than every 8 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// A daprd that is restarted is back in a second; the default would look again after up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
	}, cfg.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("sidecar %s: %w", cfg.Address, err)
	}
	return &Sidecar{cfg: cfg, conn: conn, client: rtv1.NewDaprClient(conn)}, nil
}

// Close ends the connection. Whoever uses the sidecar is closed before.
func (s *Sidecar) Close() error { return s.conn.Close() }

// MaxPayload is how many bytes a payload may have, either way.
func (s *Sidecar) MaxPayload() int { return s.cfg.MaxBody / 5 * 4 }

// outgoing is the context of a call.
func (s *Sidecar) outgoing(ctx context.Context) context.Context {
	if s.cfg.Token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "dapr-api-token", s.cfg.Token)
}

// invoke calls a method of an actor. It waits in daprd for as long as ctx lives when the actor runtime has nobody to ask, so ctx must have
// a deadline.
func (s *Sidecar) invoke(ctx context.Context, actorType, id, method string, payload []byte) ([]byte, error) {
	resp, err := s.client.InvokeActor(s.outgoing(ctx), &rtv1.InvokeActorRequest{ActorType: actorType, ActorId: id, Method: method, Data: payload})
	if err != nil {
		return nil, err
	}
	return resp.Data, nil
}

// runtime asks for the state of the actor runtime.
func (s *Sidecar) runtime(ctx context.Context) (*rtv1.ActorRuntime, error) {
	resp, err := s.client.GetMetadata(s.outgoing(ctx), &rtv1.GetMetadataRequest{})
	if err != nil {
		return nil, err
	}
	return resp.GetActorRuntime(), nil
}

// Answers tells why the daprd cannot be asked anything, nil when it can. ctx bounds how long that may take. Whether daprd itself knows where actors are
// is another matter: Locator.
func (s *Sidecar) Answers(ctx context.Context) error {
	_, err := s.runtime(ctx)
	return err
}

// shutdown asks daprd to end; its supervisor starts it again. It is POST /v1.0/shutdown.
func (s *Sidecar) shutdown(ctx context.Context) error {
	_, err := s.client.Shutdown(s.outgoing(ctx), &rtv1.ShutdownRequest{})
	return err
}

// subscribe opens the stream of actor callbacks. There may be one per daprd: closing any of two would unregister the types of both.
func (s *Sidecar) subscribe(ctx context.Context) (rtv1.Dapr_SubscribeActorEventsAlpha1Client, error) {
	return s.client.SubscribeActorEventsAlpha1(s.outgoing(ctx))
}
