package frontend

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/components/vtcodec"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// echo is a KVService that does nothing: what gRPC itself costs.
type echo struct {
	kvv1.UnimplementedKVServiceServer
	value []byte
}

func (e *echo) Get(_ context.Context, req *kvv1.GetRequest) (*kvv1.GetResponse, error) {
	return &kvv1.GetResponse{Entry: &kvv1.Entry{Key: req.Get.Key, Value: e.value}}, nil
}

func (e *echo) Put(context.Context, *kvv1.PutRequest) (*kvv1.PutResponse, error) {
	return &kvv1.PutResponse{Result: &kvv1.PutResult{Version: 1}}, nil
}

// overTCP serves register on the loopback interface and returns a client of it.
func overTCP(b *testing.B, register func(*grpc.Server), server []grpc.ServerOption, dial ...grpc.DialOption) kvv1.KVServiceClient {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer(server...)
	register(srv)
	go func() { _ = srv.Serve(lis) }()
	conn, err := grpc.NewClient(lis.Addr().String(), append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
	})
	return kvv1.NewKVServiceClient(conn)
}

// atOnce spreads b.N calls over c goroutines.
func atOnce(b *testing.B, c int, call func(i int64) error) {
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var wait sync.WaitGroup
	for range c {
		wait.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

const benchKeys = 10_000

func benchKey(i int64) []byte { return fmt.Appendf(nil, "key:%012d", i%benchKeys) }

// vt is the client's codec in every benchmark, so that only servers differ.
var vt = grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{}))

// guarded makes a frontend of its own that wants tokens, beside r, and returns a client of it that has one.
func guarded(b *testing.B, r *rig) kvv1.KVServiceClient {
	tokens, _ := openTokens(b, "reader", "writer", "admin", "elsewhere")
	s, err := New(Config{Access: tokens}, r.Server.shards, r.Dir)
	if err != nil {
		b.Fatal(err)
	}
	return overTCP(b, func(g *grpc.Server) { s.Register(g) }, s.Options(), vt, grpc.WithPerRPCCredentials(header{"authorization": "Bearer " + secretOf("writer")}))
}

// header is sent with every call.
type header map[string]string

func (h header) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return h, nil
}
func (h header) RequireTransportSecurity() bool { return false }

// BenchmarkUnary compares Get and Put with an echo: echo is bare grpc-go, tuned is with our codec and options, header is kvstore with a
// token that nobody looks at, token is with tokens.
func BenchmarkUnary(b *testing.B) {
	value := make([]byte, 256)
	e := &echo{value: value}
	register := func(s *grpc.Server) { kvv1.RegisterKVServiceServer(s, e) }
	filled := func(far bool) *rig {
		remote = far
		r := newRig(b, Config{}, nil)
		remote = false
		for i := range int64(benchKeys) {
			if _, err := r.KV.Put(context.Background(), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: benchKey(i), Value: value}}); err != nil {
				b.Fatal(err)
			}
		}
		return r
	}
	r, far := filled(false), filled(true)
	for _, c := range []int{1, 64, 256} {
		for _, way := range []struct {
			name string
			kv   func(*testing.B) kvv1.KVServiceClient
		}{
			{"echo", func(b *testing.B) kvv1.KVServiceClient { return overTCP(b, register, nil, vt) }},
			{"tuned", func(b *testing.B) kvv1.KVServiceClient { return overTCP(b, register, ServerOptions(), vt) }},
			{"kvstore", func(b *testing.B) kvv1.KVServiceClient {
				return overTCP(b, func(s *grpc.Server) { r.Server.Register(s) }, ServerOptions(), vt)
			}},
			{"remote", func(b *testing.B) kvv1.KVServiceClient {
				return overTCP(b, func(s *grpc.Server) { far.Server.Register(s) }, ServerOptions(), vt)
			}},
			{"header", func(b *testing.B) kvv1.KVServiceClient {
				return overTCP(b, func(s *grpc.Server) { r.Server.Register(s) }, ServerOptions(), vt,
					grpc.WithPerRPCCredentials(header{"authorization": "Bearer " + secretOf("writer")}))
			}},
			{"token", func(b *testing.B) kvv1.KVServiceClient { return guarded(b, r) }},
		} {
			b.Run(fmt.Sprintf("get/c=%d/%s", c, way.name), func(b *testing.B) {
				kv := way.kv(b)
				atOnce(b, c, func(i int64) error {
					_, err := kv.Get(context.Background(), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: benchKey(i)}})
					return err
				})
			})
			b.Run(fmt.Sprintf("put/c=%d/%s", c, way.name), func(b *testing.B) {
				kv := way.kv(b)
				atOnce(b, c, func(i int64) error {
					_, err := kv.Put(context.Background(), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: benchKey(i), Value: value}})
					return err
				})
			})
		}
	}
}

// BenchmarkPipeline sends frames of n operations over one stream, some frames ahead.
func BenchmarkPipeline(b *testing.B) {
	value := make([]byte, 256)
	r := newRig(b, Config{}, nil)
	open := overTCP(b, func(s *grpc.Server) { r.Server.Register(s) }, ServerOptions(), vt)
	token := guarded(b, r)
	for _, name := range []string{"put", "get", "put/token", "get/token"} {
		verb, tokens := strings.CutSuffix(name, "/token")
		kv := open
		if tokens {
			kv = token
		}
		for _, n := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/ops=%d", name, n), func(b *testing.B) {
				s, err := kv.Pipeline(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				frame := &kvv1.PipelineRequest{}
				for i := range n {
					op := putOp(uint64(i), string(benchKey(int64(i))), string(value))
					if verb == "get" {
						op = getOp(uint64(i), string(benchKey(int64(i))))
					}
					frame.Ops = append(frame.Ops, op)
				}
				b.ReportAllocs()
				b.ResetTimer()
				ahead := make(chan struct{}, max(1, 1024/n))
				done := make(chan error, 1)
				total := (b.N + n - 1) / n
				go func() {
					left, part := total*n, 0
					for left > 0 {
						resp, err := s.Recv()
						if err != nil {
							done <- err
							return
						}
						left -= len(resp.Results)
						for part += len(resp.Results); part >= n; part -= n {
							<-ahead
						}
					}
					done <- nil
				}()
				for range total {
					ahead <- struct{}{}
					if err := s.Send(frame); err != nil {
						b.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
				_ = s.CloseSend()
			})
		}
	}
}
