package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// valueOf is the value of key i: mostly small, some stored apart, one streamed.
func valueOf(i int) []byte {
	n := 10 + i
	switch {
	case i == 7:
		n = 3<<20 + 1
	case i%10 == 0:
		n = 2000 + i
	}
	v := make([]byte, n)
	for j := range v {
		v[j] = byte(i + j*j)
	}
	return v
}

const keys = 300

// fill writes keys in every way that there is and returns their versions.
func fill(t *testing.T, s *server, ns string) map[string]uint64 {
	t.Helper()
	ctx := within(t)
	versions := make(map[string]uint64)
	batch := &kvv1.BatchPutRequest{Namespace: ns}
	var batched []string
	pipe, err := s.KV.Pipeline(ctx)
	if err != nil {
		t.Fatal(err)
	}
	piped := &kvv1.PipelineRequest{Namespace: ns}
	for i := range keys {
		k := fmt.Sprintf("key%03d", i)
		op := &kvv1.PutOp{Key: []byte(k), Value: valueOf(i), Tags: map[string]string{"i": strconv.Itoa(i)}}
		switch {
		case i == 7:
			versions[k] = stream(t, ctx, s, ns, op)
		case i%3 == 0:
			batch.Puts, batched = append(batch.Puts, op), append(batched, k)
		case i%3 == 1:
			piped.Ops = append(piped.Ops, &kvv1.PipelineRequest_Op{Id: uint64(i), Op: &kvv1.PipelineRequest_Op_Put{Put: op}})
		default:
			resp, err := s.KV.Put(ctx, &kvv1.PutRequest{Namespace: ns, Put: op})
			if err != nil {
				t.Fatal(err)
			}
			versions[k] = resp.Result.Version
		}
	}
	resp, err := s.KV.BatchPut(ctx, batch)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range resp.Results {
		versions[batched[i]] = r.GetResult().GetVersion()
	}
	if err := errors.Join(pipe.Send(piped), pipe.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := pipe.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.Results {
			versions[fmt.Sprintf("key%03d", r.Id)] = r.GetPut().GetVersion()
		}
	}
	for k, v := range versions {
		if v == 0 {
			t.Fatalf("%s was not stored", k)
		}
	}
	if len(versions) != keys {
		t.Fatalf("%d of %d keys acknowledged", len(versions), keys)
	}
	return versions
}

func stream(t *testing.T, ctx context.Context, s *server, ns string, op *kvv1.PutOp) uint64 {
	t.Helper()
	value := op.Value
	op.Value = nil
	put, err := s.KV.PutStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head := &kvv1.PutStreamRequest_Head{Namespace: ns, Put: op, Size: int64(len(value)), Checksum: xxh3.Hash(value)}
	err = put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: head}})
	for len(value) > 0 && err == nil {
		n := min(len(value), 1<<20)
		err = put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Chunk{Chunk: value[:n]}})
		value = value[n:]
	}
	resp, rerr := put.CloseAndRecv()
	if err != nil || rerr != nil {
		t.Fatal(err, rerr)
	}
	return resp.Result.Version
}

// check reads everything back.
func check(t *testing.T, s *server, ns string, versions map[string]uint64) {
	t.Helper()
	ctx := within(t)
	for i := range keys {
		k := fmt.Sprintf("key%03d", i)
		resp, err := s.KV.Get(ctx, &kvv1.GetRequest{Namespace: ns, Get: &kvv1.GetOp{Key: []byte(k)}})
		if err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		if e := resp.Entry; !bytes.Equal(e.Value, valueOf(i)) || e.Version != versions[k] || e.Tags["i"] != strconv.Itoa(i) {
			t.Fatalf("%s is not what was stored: version %d, want %d; %d bytes, want %d", k, e.Version, versions[k], len(e.Value), len(valueOf(i)))
		}
	}
	count, err := s.KV.List(ctx, &kvv1.ListRequest{Namespace: ns, CountOnly: true})
	if err != nil || count.Count != keys {
		t.Fatalf("%d keys, %v", count.GetCount(), err)
	}
}

// TestEverythingIsThereAgain kills, starts, stops in order, starts: all data, versions and resources are there each time.
func TestEverythingIsThereAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := start(t, dir)
	if _, err := s.AdminC.CreateNamespace(within(t), &kvv1.CreateNamespaceRequest{Namespace: &kvv1.Namespace{Name: "orders", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}}); err != nil {
		t.Fatal(err)
	}
	versions := map[string]map[string]uint64{"": fill(t, s, ""), "orders": fill(t, s, "orders")}
	for _, end := range []string{"kill -9", "kill -9 again", "SIGTERM"} {
		if end == "SIGTERM" {
			if log := s.stop(t); !strings.Contains(log, "stopped") {
				t.Errorf("it does not say that it stopped:\n%s", log)
			}
		} else {
			s.kill()
		}
		s = start(t, dir)
		for ns, v := range versions {
			check(t, s, ns, v)
		}
	}
	resp, err := s.KV.Put(within(t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("key000"), Value: []byte("new")}})
	if err != nil || resp.Result.Version <= versions[""]["key000"] || resp.Result.Created {
		t.Errorf("a put after all that: %v, %v", resp, err)
	}
}

func TestWhatItSaysOfItself(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "data"), "-log-format", "json")
	ctx := within(t)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/debug/pprof/cmdline": 200, "/": 404} {
		if code, body := s.get(t, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	health := healthpb.NewHealthClient(s.conn)
	for _, service := range []string{"", "kvstore.v1.KVService", "kvstore.v1.PromptCacheService", "kvstore.v1.AdminService"} {
		if resp, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: service}); err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, resp, err)
		}
	}
	reflection, err := reflectionpb.NewServerReflectionClient(s.conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := reflection.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := reflection.Recv(); err != nil || !strings.Contains(resp.String(), "kvstore.v1.KVService") {
		t.Errorf("reflection: %v, %v", resp, err)
	}
	status, err := s.AdminC.Status(ctx, &kvv1.StatusRequest{})
	if err != nil || status.Engine != "disk" || len(status.Shards) != 4 || status.FreeBytes == 0 || status.Version == "" {
		t.Errorf("status: %v, %v", status, err)
	}
	for _, sh := range status.GetShards() {
		if sh.State != "active" || sh.Keyspace != "default" || sh.Epoch == 0 {
			t.Errorf("shard: %v", sh)
		}
	}
	if log := s.stop(t); !strings.Contains(log, `"msg":"serving"`) || !strings.Contains(log, s.GRPC) {
		t.Errorf("log:\n%s", log)
	}
}

func TestWhatItRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := start(t, dir)
	free := []string{"-grpc-listen", "127.0.0.1:0", "-rest-listen", "off", "-admin-listen", "127.0.0.1:0"}
	fails(t, 1, []string{strconv.Itoa(s.cmd.Process.Pid)}, append(free, "-data-dir", dir)...)
	fails(t, 1, []string{s.GRPC, "process " + strconv.Itoa(s.cmd.Process.Pid), "-instance"}, "-grpc-listen", s.GRPC, "-rest-listen", "off", "-admin-listen", "127.0.0.1:0", "-data-dir", dir+"2")
	fails(t, 2, []string{"-insecure", "-grpc-listen"}, "-grpc-listen", "0.0.0.0:0", "-admin-listen", "127.0.0.1:0", "-data-dir", dir+"2")
	fails(t, 2, []string{"-target", "all"}, append(free, "-target", "notifier")...)
	fails(t, 2, []string{"-engine", "-instance", "-shards", "-max-value-bytes", "-drain-timeout"}, append(free, "-engine", "tape", "-instance", "9", "-shards", "-1", "-max-value-bytes", "7", "-drain-timeout", "-1s")...)
	fails(t, 2, []string{"-h"}, "-nonsense")
	fails(t, 2, []string{"-h"}, "serve")
	fails(t, 2, []string{"-log-level"}, "-log-level", "loud")
	fails(t, 2, []string{"-log-format"}, "-log-format", "xml")
	fails(t, 0, []string{"-data-dir", "kvctl put", "8085"}, "-h")
	if _, err := os.Stat(dir + "2"); err == nil {
		t.Error("a process that did not start made its data directory")
	}
}

// TestInsecureIsLogged opens a door to other machines, as told, and says so.
func TestInsecureIsLogged(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "data"), "-insecure", "-grpc-listen", "0.0.0.0:0")
	_, port, err := net.SplitHostPort(s.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("127.0.0.1:"+port, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := kvv1.NewKVServiceClient(conn).List(within(t), &kvv1.ListRequest{}); err != nil {
		t.Error(err)
	}
	if log := s.stop(t); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "insecure") {
		t.Errorf("log:\n%s", log)
	}
}

// TestStopEndsIdleStreams leaves a Pipeline stream open: a stop ends it at once, with an error that clients try again after.
func TestStopEndsIdleStreams(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "data"), "-drain-timeout", "10m")
	pipe, err := s.KV.Pipeline(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := pipe.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{{Id: 1, Op: &kvv1.PipelineRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte("k")}}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Recv(); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	if _, err := pipe.Recv(); kverr.FromGRPC(err).Kind != kverr.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestStopCutsOffWhatDoesNotEnd leaves a PutStream half done: after half of the time it is cut off.
func TestStopCutsOffWhatDoesNotEnd(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "data"), "-drain-timeout", "2s")
	put, err := s.KV.PutStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	head := &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: []byte("half")}, Size: 5 << 20}
	for _, m := range []*kvv1.PutStreamRequest{
		{Part: &kvv1.PutStreamRequest_Head_{Head: head}}, {Part: &kvv1.PutStreamRequest_Chunk{Chunk: make([]byte, 1<<20)}},
	} {
		if err := put.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	// Only a call that has begun can hold up a stop: wait until the server works on it.
	s.await(t, "the stream has begun", func() bool {
		_, stacks := s.get(t, "/debug/pprof/goroutine?debug=2")
		return strings.Contains(stacks, "receiveValue")
	})
	if log := s.stop(t); !strings.Contains(log, "cut off") {
		t.Errorf("it does not say so:\n%s", log)
	}
}
