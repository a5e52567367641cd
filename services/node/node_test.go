package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/components/wal/redislog"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

const patience = 30 * time.Second

// run starts a node; what it returns stops it and tells how it ended.
func run(t *testing.T, cfg Config) (n *Node, conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	cfg.GRPCListen, cfg.RESTListen, cfg.AdminListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Serving():
	case err := <-ended:
		t.Fatalf("it ended at once: %v", err)
	case <-time.After(patience):
		t.Fatal("it does not serve")
	}
	if conn, err = grpc.NewClient(n.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	over := false
	stop = func() error {
		over = true
		_ = conn.Close()
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if !over {
			if err := stop(); err != nil {
				t.Errorf("run: %v", err)
			}
		}
	})
	return n, conn, stop
}

// engines runs a test on every engine.
func engines(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Run(EngineMemory, func(t *testing.T) { test(t, Config{Engine: EngineMemory}) })
	t.Run(EngineDisk, func(t *testing.T) { test(t, Config{Engine: EngineDisk, DataDir: filepath.Join(t.TempDir(), "data")}) })
	t.Run(EngineRedis, func(t *testing.T) {
		test(t, Config{Engine: EngineRedis, Redis: redislog.Config{URL: "redis://" + testenv.NewRedis(t).Addr}})
	})
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestEveryRPC calls each RPC of KVService and AdminService once over a real connection, on every engine.
func TestEveryRPC(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		n, conn, _ := run(t, cfg)
		ctx := within(t)
		kv, admin := kvv1.NewKVServiceClient(conn), kvv1.NewAdminServiceClient(conn)
		must := func(what string, ok bool, err error) {
			t.Helper()
			if err != nil || !ok {
				t.Fatalf("%s: %t, %v", what, ok, err)
			}
		}
		ks, err := admin.CreateKeyspace(ctx, &kvv1.CreateKeyspaceRequest{Keyspace: &kvv1.Keyspace{Name: "tenant", Shards: 2}})
		must("CreateKeyspace", ks.GetKeyspace().GetShards() == 2 && len(ks.GetKeyspace().GetUid()) == 16, err)
		_, err = admin.CreateKeyspace(ctx, &kvv1.CreateKeyspaceRequest{Keyspace: &kvv1.Keyspace{Name: "tenant"}})
		must("CreateKeyspace again", kverr.FromGRPC(err).Kind == kverr.AlreadyExists, nil)
		got, err := admin.GetKeyspace(ctx, &kvv1.GetKeyspaceRequest{Name: "tenant"})
		must("GetKeyspace", got.GetKeyspace().GetUid() == ks.Keyspace.Uid, err)
		list, err := admin.ListKeyspaces(ctx, &kvv1.ListKeyspacesRequest{})
		must("ListKeyspaces", len(list.GetKeyspaces()) == 2, err)
		made, err := admin.CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{Namespace: &kvv1.Namespace{
			Keyspace: "tenant", Name: "n", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV, DefaultTtlMs: 1_000_000}})
		must("CreateNamespace", made.GetNamespace().GetUid() > 0 && made.GetNamespace().GetPartition().GetHashTag(), err)
		_, err = admin.CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{Namespace: &kvv1.Namespace{Keyspace: "tenant", Name: "n", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}})
		must("CreateNamespace again", kverr.FromGRPC(err).Kind == kverr.AlreadyExists, nil)
		mask := &fieldmaskpb.FieldMask{Paths: []string{"default_ttl_ms"}}
		upd, err := admin.UpdateNamespace(ctx, &kvv1.UpdateNamespaceRequest{UpdateMask: mask, Namespace: &kvv1.Namespace{
			Keyspace: "tenant", Name: "n", DefaultTtlMs: 0, Version: made.GetNamespace().GetVersion()}})
		must("UpdateNamespace", upd.GetNamespace().GetDefaultTtlMs() == 0 && upd.GetNamespace().GetVersion() > made.Namespace.Version, err)
		_, err = admin.UpdateNamespace(ctx, &kvv1.UpdateNamespaceRequest{UpdateMask: mask, Namespace: &kvv1.Namespace{
			Keyspace: "tenant", Name: "n", Version: made.GetNamespace().GetVersion()}})
		must("UpdateNamespace of an old version", kverr.FromGRPC(err).Kind == kverr.VersionMismatch, nil)
		gotNS, err := admin.GetNamespace(ctx, &kvv1.GetNamespaceRequest{Keyspace: "tenant", Name: "n"})
		must("GetNamespace", gotNS.GetNamespace().GetVersion() == upd.Namespace.Version, err)
		spaces, err := admin.ListNamespaces(ctx, &kvv1.ListNamespacesRequest{Keyspace: "tenant"})
		must("ListNamespaces", len(spaces.GetNamespaces()) >= 1, err)

		k := func(s string) []byte { return []byte("{t}" + s) }
		put, err := kv.Put(ctx, &kvv1.PutRequest{Keyspace: "tenant", Namespace: "n", Put: &kvv1.PutOp{Key: k("a"), Value: []byte("1")}})
		must("Put", put.GetResult().GetCreated(), err)
		get, err := kv.Get(ctx, &kvv1.GetRequest{Keyspace: "tenant", Namespace: "n", Get: &kvv1.GetOp{Key: k("a")}})
		must("Get", string(get.GetEntry().GetValue()) == "1" && get.GetEntry().GetVersion() == put.Result.Version, err)
		_, err = kv.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k("a")}})
		must("Get elsewhere", kverr.FromGRPC(err).Kind == kverr.NotFound, nil)
		large := bytes.Repeat([]byte("large"), 1000)
		puts, err := kv.BatchPut(ctx, &kvv1.BatchPutRequest{Keyspace: "tenant", Namespace: "n", Puts: []*kvv1.PutOp{{Key: k("b"), Value: large}, {Key: []byte("c")}}})
		must("BatchPut", puts.GetResults()[0].GetResult().GetCreated() && puts.GetResults()[1].GetResult().GetCreated(), err)
		gets, err := kv.BatchGet(ctx, &kvv1.BatchGetRequest{Keyspace: "tenant", Namespace: "n", Gets: []*kvv1.GetOp{{Key: k("b")}, {Key: []byte("x")}}})
		must("BatchGet", bytes.Equal(gets.GetResults()[0].GetEntry().GetValue(), large) && gets.GetResults()[1].GetError() != nil, err)
		txn, err := kv.Transaction(ctx, &kvv1.TransactionRequest{Keyspace: "tenant", Namespace: "n", Ops: []*kvv1.TransactionRequest_Op{
			{Op: &kvv1.TransactionRequest_Op_Put{Put: &kvv1.PutOp{Key: k("d"), Value: large}}}, {Op: &kvv1.TransactionRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: k("a")}}}}})
		must("Transaction", txn.GetCommitted(), err)
		keys, err := kv.List(ctx, &kvv1.ListRequest{Keyspace: "tenant", Namespace: "n"})
		must("List", len(keys.GetEntries()) == 3, err)
		if err := roundTrip(ctx, kv); err != nil {
			t.Fatalf("PutStream, GetStream: %v", err)
		}
		pipe, err := kv.Pipeline(ctx)
		must("Pipeline", true, err)
		must("Pipeline send", true, errors.Join(pipe.Send(&kvv1.PipelineRequest{Keyspace: "tenant", Namespace: "n", Ops: []*kvv1.PipelineRequest_Op{
			{Id: 9, Op: &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: k("d")}}}}}), pipe.CloseSend()))
		answer, err := pipe.Recv()
		must("Pipeline answer", answer.GetResults()[0].GetId() == 9 && bytes.Equal(answer.GetResults()[0].GetEntry().GetValue(), large), err)
		del, err := kv.Delete(ctx, &kvv1.DeleteRequest{Keyspace: "tenant", Namespace: "n", Delete: &kvv1.DeleteOp{Key: k("b")}})
		must("Delete", del.GetResult().GetDeleted(), err)
		dels, err := kv.BatchDelete(ctx, &kvv1.BatchDeleteRequest{Keyspace: "tenant", Namespace: "n", Deletes: []*kvv1.DeleteOp{{Key: k("d")}, {Key: []byte("c")}}})
		must("BatchDelete", dels.GetResults()[1].GetResult().GetDeleted(), err)

		status, err := admin.Status(ctx, &kvv1.StatusRequest{})
		must("Status", status.GetEngine() == n.cfg.Engine && len(status.GetShards()) == 6, err)
		_, err = admin.DeleteNamespace(ctx, &kvv1.DeleteNamespaceRequest{Keyspace: "tenant", Name: "n", Confirm: "n"})
		must("DeleteNamespace", true, err)
		_, err = kv.List(ctx, &kvv1.ListRequest{Keyspace: "tenant", Namespace: "n"})
		must("List of nothing", kverr.FromGRPC(err).Kind == kverr.NotFound, nil)
		_, err = admin.DeleteKeyspace(ctx, &kvv1.DeleteKeyspaceRequest{Name: "tenant", Confirm: "tenant"})
		must("DeleteKeyspace", true, err)
		_, err = admin.GetKeyspace(ctx, &kvv1.GetKeyspaceRequest{Name: "tenant"})
		must("GetKeyspace of nothing", kverr.FromGRPC(err).Kind == kverr.NotFound, nil)
	})
}

// roundTrip stores and reads a value of three chunks.
func roundTrip(ctx context.Context, kv kvv1.KVServiceClient) error {
	value := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	put, err := kv.PutStream(ctx)
	if err != nil {
		return err
	}
	head := &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: []byte("streamed")}, Size: int64(len(value))}
	if err := put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: head}}); err != nil {
		return err
	}
	for from := 0; from < len(value); from += 1 << 20 {
		if err := put.Send(&kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Chunk{Chunk: value[from:min(len(value), from+1<<20)]}}); err != nil {
			return err
		}
	}
	if _, err := put.CloseAndRecv(); err != nil {
		return err
	}
	get, err := kv.GetStream(ctx, &kvv1.GetStreamRequest{Key: []byte("streamed")})
	if err != nil {
		return err
	}
	var back []byte
	for {
		m, err := get.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		back = append(back, m.GetChunk()...)
	}
	if !bytes.Equal(back, value) {
		return fmt.Errorf("%d bytes came back of %d", len(back), len(value))
	}
	return nil
}

// TestRestart stops a node in order and starts another on its directory.
func TestRestart(t *testing.T) {
	cfg := Config{DataDir: filepath.Join(t.TempDir(), "data")}
	var line bytes.Buffer
	for round := range 3 {
		cfg.Progress = &line
		_, conn, stop := run(t, cfg)
		kv := kvv1.NewKVServiceClient(conn)
		for before := range round {
			if _, err := kv.Get(within(t), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: fmt.Append(nil, before)}}); err != nil {
				t.Errorf("round %d, key %d: %v", round, before, err)
			}
		}
		if _, err := kv.Put(within(t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: fmt.Append(nil, round)}}); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(line.String(), "recovering: 4 of 4 shards") {
		t.Errorf("progress for people: %q", line.String())
	}
}

func TestReadinessTellsWhy(t *testing.T) {
	var r readiness
	r.set("recovering 4 shards")
	ask := func(path, from string) (int, string) {
		w := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, path, nil)
		req.RemoteAddr = from
		newAdmin(&r, &doors{tokens: authn.Anyone}, http.NotFoundHandler()).Handler.ServeHTTP(w, req)
		return w.Code, w.Body.String()
	}
	const here, there = "127.0.0.1:5", "10.0.0.9:5"
	if code, body := ask("/readyz", here); code != http.StatusServiceUnavailable || !strings.Contains(body, "recovering 4 shards") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := ask("/livez", there); code != http.StatusOK {
		t.Errorf("livez while recovering: %d", code)
	}
	why := errors.New("shard 3 is readonly")
	r.serve(func() error { return why })
	if code, body := ask("/readyz", there); code != http.StatusServiceUnavailable || !strings.Contains(body, why.Error()) {
		t.Errorf("%d %s", code, body)
	}
	why = nil
	if code, _ := ask("/readyz", there); code != http.StatusOK {
		t.Errorf("ready: %d", code)
	}
	r.set("stopping")
	if code, body := ask("/readyz", here); code != http.StatusServiceUnavailable || !strings.Contains(body, "stopping") {
		t.Errorf("%d %s", code, body)
	}
	for path, want := range map[string]int{"/debug/pprof/": http.StatusOK, "/debug/pprof/cmdline": http.StatusOK} {
		if code, _ := ask(path, here); code != want {
			t.Errorf("%s from here: %d", path, code)
		}
		if code, _ := ask(path, there); code != http.StatusForbidden {
			t.Errorf("%s from there: %d", path, code)
		}
	}
}

func TestConfigListsAllFaults(t *testing.T) {
	cfg := Config{Target: "x", Engine: "y", Instance: -1, GRPCListen: "nonsense", RESTListen: "8080", AdminListen: ":1", MaxValueBytes: 1, ClientRate: -1, DefaultShards: -1, SegmentBytes: -1, CheckpointBytes: -1, DrainTimeout: -1}
	cfg.EnsureDefaults()
	err := cfg.Validate()
	for _, flag := range []string{"target", "engine", "instance", "grpc-listen", "rest-listen", "admin-listen", "max-value-bytes", "client-rate", "shards", "segment-bytes", "checkpoint-bytes", "drain-timeout"} {
		if !strings.Contains(err.Error(), "-"+flag+" ") {
			t.Errorf("no word of %s in %v", flag, err)
		}
	}
	for _, ok := range []Config{{DataDir: "d"}, {Engine: EngineMemory}, {DataDir: "d", GRPCListen: ":1", Insecure: true}} {
		ok.EnsureDefaults()
		if err := ok.Validate(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
}

func TestMemoryBudget(t *testing.T) {
	for _, tc := range []struct{ configured, machine, want int64 }{{0, 1000, 400}, {-1, 1000, 0}, {7, 1000, 7}, {0, 0, 0}} {
		if got := memoryBudget(tc.configured, tc.machine); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
	if got := memTotal([]byte("MemFree: 1 kB\nMemTotal:       2048 kB\n")); got != 2<<20 {
		t.Errorf("MemTotal is %d", got)
	}
	if memTotal([]byte("MemTotal: x kB\nMemTotal: 1")) != 0 {
		t.Error("nonsense has a size")
	}
}

// TestIdleShardsSleep: shards that nobody uses give their memory back, the node stays ready, and the next use finds all.
func TestIdleShardsSleep(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.IdleAfter = 20 * time.Millisecond
		n, conn, _ := run(t, cfg)
		ctx := within(t)
		kv, admin := kvv1.NewKVServiceClient(conn), kvv1.NewAdminServiceClient(conn)
		put, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k"), Value: []byte("v")}})
		if err != nil {
			t.Fatal(err)
		}
		for asleep := 0; asleep < 4; {
			status, err := admin.Status(ctx, &kvv1.StatusRequest{})
			if err != nil { // of the patience, at last
				t.Fatal(err)
			}
			asleep = 0
			for _, s := range status.Shards {
				if s.State == "asleep" {
					asleep++
				}
			}
		}
		resp, err := http.Get("http://" + n.AdminAddr() + "/readyz")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("readyz: %v, %v", resp, err)
		}
		_ = resp.Body.Close()
		got, err := kv.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("k")}})
		if err != nil || string(got.GetEntry().GetValue()) != "v" || got.Entry.Version != put.Result.Version {
			t.Fatalf("after sleep: %v, %v", got, err)
		}
	})
}
