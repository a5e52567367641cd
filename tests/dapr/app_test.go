package dapr

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"kvstore/actors/host/daprhost"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/redislog"
)

// appEnv makes this test binary a host of shards instead: its value says which.
const appEnv = "KVSTORE_TEST_DAPR_APP"

// app is a host of shards, as a process of its own: an engine, a daprhost, and in place of the data plane a service with two methods.
type app struct {
	Address string // where it serves
	Sidecar string // gRPC API of its daprd
	Token   string // of that API
	Redis   string
}

func TestMain(m *testing.M) {
	text := os.Getenv(appEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var a app
	err := json.Unmarshal([]byte(text), &a)
	if err == nil {
		err = a.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (a *app) run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	engine, err := redislog.Open(ctx, redislog.Config{URL: "redis://" + a.Redis})
	if err != nil {
		return err
	}
	defer engine.Close()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", a.Address)
	if err != nil {
		return err
	}
	sidecar, err := daprhost.Dial(daprhost.SidecarConfig{Address: a.Sidecar, Token: a.Token})
	if err != nil {
		return err
	}
	defer sidecar.Close()
	say := func(format string, args ...any) {
		fmt.Fprintln(os.Stderr, time.Now().Format("15:04:05.000"), fmt.Sprintf(format, args...))
	}
	dials := make(map[string]*grpc.ClientConn)
	h, err := daprhost.New(store, sidecar, daprhost.Config{
		Shards: memhost.Config{Address: a.Address, Events: memhost.Events{
			Activated: func(id string, now memhost.Activation) {
				say("%s active, epoch %d, took %v", id, now.Epoch, now.Took)
			},
			Over:   func(id string, why *kverr.Error) { say("%s over: %v", id, why) },
			Failed: func(id, what string, err error) { say("%s: %s failed: %v", id, what, err) },
		}},
		Dial: func(address string) (grpc.ClientConnInterface, error) {
			mu.Lock()
			defer mu.Unlock()
			if dials[address] == nil {
				conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					return nil, err
				}
				dials[address] = conn
			}
			return dials[address], nil
		},
		Methods: map[string]daprhost.Handler{
			"echo":  func(_ context.Context, _ string, p []byte) ([]byte, error) { return p, nil },
			"twice": func(_ context.Context, _ string, p []byte) ([]byte, error) { return append(p, p...), nil },
			"slow":  slow(),
		},
		Events: daprhost.Events{
			Ready: func(took time.Duration) { say("ready after %v", took) },
			Lost:  func(why error) { say("not routed to: %v", why) },
			Ended: func(why string, err error) { say("ended the sidecar: %s: %v", why, err) },
		},
	})
	if err != nil {
		return err
	}
	h.Begin()
	server := grpc.NewServer()
	h.RegisterPeers(server)
	server.RegisterService(&dataService, h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		return err
	}
	drain, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = h.Close(drain, true)
	server.GracefulStop()
	return err
}

var mu = make(mutex, 1)

type mutex chan struct{}

func (m mutex) Lock()   { m <- struct{}{} }
func (m mutex) Unlock() { <-m }

// slow answers after 500 ms how many calls of a shard ran when it began: daprd gives up the turn of a caller that has gone.
func slow() daprhost.Handler {
	running := make(map[string]int)
	return func(_ context.Context, shardID string, _ []byte) ([]byte, error) {
		mu.Lock()
		running[shardID]++
		n := running[shardID]
		mu.Unlock()
		time.Sleep(500 * time.Millisecond)
		mu.Lock()
		running[shardID]--
		mu.Unlock()
		return []byte(fmt.Sprint(n)), nil
	}
}

// dataService puts "shard key value", which tells the version, and checks with "shard name n" that the keys
// name0 to name(n-1) have the values v0 to v(n-1), and tells which has not.
var dataService = grpc.ServiceDesc{
	ServiceName: "test.Data", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Put", Handler: dataMethod(putIn)}, {MethodName: "Check", Handler: dataMethod(checkIn)}},
}

func dataMethod(f func(ctx context.Context, h *daprhost.Host, args []string) (string, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in wrapperspb.StringValue
		if err := decode(&in); err != nil {
			return nil, err
		}
		out, err := f(ctx, srv.(*daprhost.Host), strings.Fields(in.Value))
		if err != nil {
			return nil, err
		}
		return wrapperspb.String(out), nil
	}
}

func putIn(ctx context.Context, h *daprhost.Host, args []string) (string, error) {
	done := make(chan error, 1)
	c := &shard.Command{
		Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte(args[1]), Value: shard.Value{Inline: []byte(args[2])}},
		Done: func(c *shard.Command, err error) {
			if err == nil && c.Result.Err != nil {
				err = c.Result.Err
			}
			done <- err
		},
	}
	h.Do(ctx, args[0], c)
	if err := <-done; err != nil {
		return "", err
	}
	return fmt.Sprint(c.Result.Write.Version), nil
}

func checkIn(ctx context.Context, h *daprhost.Host, args []string) (string, error) {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	v, err := h.View(ctx, args[0])
	if err != nil {
		return "", err
	}
	for i := range n {
		e, ok, why := v.Get(1, fmt.Append(nil, args[1], i))
		if why != nil {
			return "", why
		}
		if want := fmt.Sprint("v", i); !ok || string(e.Value.Inline) != want {
			return fmt.Sprintf("%s%d is %q, want %s", args[1], i, e.Value.Inline, want), nil
		}
	}
	return "", nil
}
