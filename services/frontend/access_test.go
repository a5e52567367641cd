package frontend

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"kvstore/actors/shard"
	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/components/vtcodec"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestEveryCallIsInTheTable: what is registered and not in the table would be refused to everybody; what is in the table and not
// registered is a mistake.
func TestEveryCallIsInTheTable(t *testing.T) {
	r := newRig(t, Config{}, nil)
	srv := grpc.NewServer(r.Server.Options()...)
	r.Server.Register(srv)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	reflection.Register(srv)
	registered := map[string]bool{}
	for service, info := range srv.GetServiceInfo() {
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			registered[name] = true
			if _, ok := needs[name]; !ok {
				t.Errorf("%s is registered and not in the table needs: say what it needs", name)
			}
		}
	}
	for name := range needs {
		if !registered[name] {
			t.Errorf("the table needs has %s, which nobody registers", name)
		}
	}
	if len(registered) < 35 {
		t.Errorf("%d calls are registered; where are the others?", len(registered))
	}
}

// requests are for every call one that names a keyspace and is good, so that what comes back is about rights.
var requests = map[string]func(ks string) proto.Message{
	"KVService/Get": func(ks string) proto.Message {
		return &kvv1.GetRequest{Keyspace: ks, Get: &kvv1.GetOp{Key: []byte("k")}}
	},
	"KVService/BatchGet": func(ks string) proto.Message {
		return &kvv1.BatchGetRequest{Keyspace: ks, Gets: []*kvv1.GetOp{{Key: []byte("k")}}}
	},
	"KVService/List":      func(ks string) proto.Message { return &kvv1.ListRequest{Keyspace: ks} },
	"KVService/GetStream": func(ks string) proto.Message { return &kvv1.GetStreamRequest{Keyspace: ks, Key: []byte("k")} },
	"KVService/Put": func(ks string) proto.Message {
		return &kvv1.PutRequest{Keyspace: ks, Put: &kvv1.PutOp{Key: []byte("k")}}
	},
	"KVService/Delete": func(ks string) proto.Message {
		return &kvv1.DeleteRequest{Keyspace: ks, Delete: &kvv1.DeleteOp{Key: []byte("k")}}
	},
	"KVService/BatchPut": func(ks string) proto.Message {
		return &kvv1.BatchPutRequest{Keyspace: ks, Puts: []*kvv1.PutOp{{Key: []byte("k")}}}
	},
	"KVService/BatchDelete": func(ks string) proto.Message {
		return &kvv1.BatchDeleteRequest{Keyspace: ks, Deletes: []*kvv1.DeleteOp{{Key: []byte("k")}}}
	},
	"KVService/Transaction": func(ks string) proto.Message {
		return &kvv1.TransactionRequest{Keyspace: ks, Ops: []*kvv1.TransactionRequest_Op{{Op: &kvv1.TransactionRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte("k")}}}}}
	},
	"KVService/PutStream": func(ks string) proto.Message {
		return &kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: &kvv1.PutStreamRequest_Head{Keyspace: ks, Put: &kvv1.PutOp{Key: []byte("k")}}}}
	},
	"KVService/Pipeline": func(ks string) proto.Message {
		return &kvv1.PipelineRequest{Keyspace: ks, Ops: []*kvv1.PipelineRequest_Op{getOp(1, "k")}}
	},

	"KVService/Watch": func(ks string) proto.Message { return &kvv1.WatchRequest{Keyspace: ks} },
	"KVService/Watches": func(ks string) proto.Message {
		return beginWatch(1, 1, &kvv1.WatchRequest{Keyspace: ks})
	},

	"PromptCacheService/Lookup": func(ks string) proto.Message { return &kvv1.LookupRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/Read":   func(ks string) proto.Message { return &kvv1.ReadRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/List": func(ks string) proto.Message {
		return &kvv1.PromptCacheServiceListRequest{Keyspace: ks, Namespace: "prompts"}
	},
	"PromptCacheService/Usage": func(ks string) proto.Message { return &kvv1.UsageRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/Write": func(ks string) proto.Message {
		return &kvv1.WriteRequest{Head: &kvv1.WriteRequest_Head{Keyspace: ks, Namespace: "prompts"}}
	},
	"PromptCacheService/Release": func(ks string) proto.Message { return &kvv1.ReleaseRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/Touch":   func(ks string) proto.Message { return &kvv1.TouchRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/Pin":     func(ks string) proto.Message { return &kvv1.PinRequest{Keyspace: ks, Namespace: "prompts"} },
	"PromptCacheService/Delete": func(ks string) proto.Message {
		return &kvv1.PromptCacheServiceDeleteRequest{Keyspace: ks, Namespace: "prompts"}
	},
	"PromptCacheService/Clear": func(ks string) proto.Message {
		return &kvv1.ClearRequest{Keyspace: ks, Namespace: "prompts", AllScopes: true}
	},

	"AdminService/CreateKeyspace": func(string) proto.Message { return &kvv1.CreateKeyspaceRequest{Keyspace: &kvv1.Keyspace{Name: "new"}} },
	"AdminService/DeleteKeyspace": func(string) proto.Message { return &kvv1.DeleteKeyspaceRequest{Name: "gone", Confirm: "gone"} },
	"AdminService/AcceptLoss":     func(string) proto.Message { return &kvv1.AcceptLossRequest{Shard: "s-0", Confirm: "s-0"} },
	"AdminService/ListKeyspaces":  func(string) proto.Message { return &kvv1.ListKeyspacesRequest{} },
	"AdminService/GetKeyspace":    func(ks string) proto.Message { return &kvv1.GetKeyspaceRequest{Name: ks} },
	"AdminService/GetNamespace":   func(ks string) proto.Message { return &kvv1.GetNamespaceRequest{Keyspace: ks, Name: DefaultName} },
	"AdminService/ListNamespaces": func(ks string) proto.Message { return &kvv1.ListNamespacesRequest{Keyspace: ks} },
	"AdminService/CreateNamespace": func(ks string) proto.Message {
		return &kvv1.CreateNamespaceRequest{Namespace: &kvv1.Namespace{Keyspace: ks, Name: DefaultName, Kind: kindKV}}
	},
	"AdminService/UpdateNamespace": func(ks string) proto.Message {
		return &kvv1.UpdateNamespaceRequest{Namespace: &kvv1.Namespace{Keyspace: ks, Name: DefaultName}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"default_ttl_ms"}}}
	},
	"AdminService/DeleteNamespace": func(ks string) proto.Message {
		return &kvv1.DeleteNamespaceRequest{Keyspace: ks, Name: "gone", Confirm: "gone"}
	},
	"AdminService/Status": func(string) proto.Message { return &kvv1.StatusRequest{} },
}

// roles says of every call who may make it, apart from the table that it tests.
var roles = map[string][]string{
	"KVService/Get": readers, "KVService/BatchGet": readers, "KVService/List": readers, "KVService/GetStream": readers, "KVService/Pipeline": readers,
	"KVService/Watch": readers, "KVService/Watches": readers,
	"KVService/Put": writers, "KVService/Delete": writers, "KVService/BatchPut": writers, "KVService/BatchDelete": writers,
	"KVService/Transaction": writers, "KVService/PutStream": writers,
	"PromptCacheService/Lookup": readers, "PromptCacheService/Read": readers, "PromptCacheService/List": readers, "PromptCacheService/Usage": readers,
	"PromptCacheService/Write": writers, "PromptCacheService/Release": writers, "PromptCacheService/Touch": writers, "PromptCacheService/Pin": writers,
	"PromptCacheService/Delete": writers, "PromptCacheService/Clear": writers,
	"AdminService/CreateKeyspace": operators, "AdminService/DeleteKeyspace": operators, "AdminService/ListKeyspaces": operators,
	"AdminService/AcceptLoss":  operators,
	"AdminService/GetKeyspace": seers, "AdminService/GetNamespace": seers, "AdminService/ListNamespaces": seers,
	"AdminService/CreateNamespace": admins, "AdminService/UpdateNamespace": admins, "AdminService/DeleteNamespace": admins,
	"AdminService/Status": {"reader", "writer", "admin", "operator", "elsewhere", "all"},
}

var (
	readers   = []string{"reader", "writer", "admin", "all"}
	writers   = []string{"writer", "admin", "all"}
	admins    = []string{"admin", "all"}
	seers     = []string{"reader", "writer", "admin", "operator", "all"}
	operators = []string{"operator", "all"}
)

// tokenLines are the tokens of the tests: of keyspace default, but for elsewhere's.
var tokenLines = map[string]string{
	"reader": "default=read", "writer": "default=write", "admin": "default=admin", "operator": "server-admin",
	"elsewhere": "tenant=admin ghost=admin", "all": "*=admin server-admin",
}

func secretOf(name string) string { return "kvs_token-of-" + name + "-0123456789" }

// tokens writes a tokens file with some of tokenLines and opens it.
func openTokens(tb testing.TB, names ...string) (tokens *authn.Tokens, file string) {
	tb.Helper()
	file = filepath.Join(tb.TempDir(), "tokens")
	writeTokens(tb, file, names...)
	tokens, err := authn.OpenTokens(file)
	if err != nil {
		tb.Fatal(err)
	}
	return tokens, file
}

func writeTokens(tb testing.TB, file string, names ...string) {
	tb.Helper()
	var text strings.Builder
	for _, name := range names {
		text.WriteString(name + " " + authn.HashOf(secretOf(name)) + " " + tokenLines[name] + "\n")
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// outcome makes a call of any kind and returns how its first reply failed.
func outcome(t *testing.T, ctx context.Context, conn *grpc.ClientConn, call string, req proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/kvstore.v1."+call)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if call == "KVService/Watches" {
		resp := &kvv1.WatchesResponse{}
		if err := s.RecvMsg(resp); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if e := kverr.FromItem(resp.Error); e != nil {
			return e
		}
		return nil
	}
	resp := &kvv1.PipelineResponse{}
	if call != "KVService/Pipeline" {
		if err := s.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
	if err := s.RecvMsg(resp); err != nil {
		return err
	}
	if e := resp.Results[0].GetError(); e != nil {
		return kverr.FromItem(e)
	}
	return nil
}

// TestWhoMayCallWhat makes every call with every token, and without, in two keyspaces.
func TestWhoMayCallWhat(t *testing.T) {
	tokens, _ := openTokens(t, slices.Sorted(maps.Keys(tokenLines))...)
	var log bytes.Buffer
	r := newRig(t, Config{
		Access: tokens, Log: slog.New(slog.NewTextHandler(&log, nil)), Status: func(context.Context) (*kvv1.StatusResponse, error) {
			return &kvv1.StatusResponse{Engine: "secret"}, nil
		},
	}, nil)
	ctx := testContext(t)
	for name, need := range needs {
		call, ours := strings.CutPrefix(name, "/kvstore.v1.")
		if !ours {
			continue
		}
		if requests[call] == nil || roles[call] == nil {
			t.Errorf("%s (%v) is not tested: give it a request and its roles", call, need)
			continue
		}
		for token, want := range map[string]codes.Code{"": codes.Unauthenticated, "nobody": codes.Unauthenticated} {
			c := ctx
			if token != "" {
				c = withToken(ctx, secretOf(token))
			}
			err := outcome(t, c, r.Conn, call, requests[call](""))
			if status.Code(err) != want || len(status.Convert(err).Details()) == 0 {
				t.Errorf("%s with token %q: %v", call, token, err)
			}
		}
		for token := range tokenLines {
			err := outcome(t, withToken(ctx, secretOf(token)), r.Conn, call, requests[call](DefaultName))
			got := kverr.KindOf(err)
			if denied := err != nil && (got == kverr.PermissionDenied || got == kverr.Unauthenticated); denied == slices.Contains(roles[call], token) {
				t.Errorf("%s with token %q: %v; those who may: %v", call, token, err, roles[call])
			}
		}
	}
	// No oracle: a keyspace that is there and one that is not are refused in the same words, which name neither.
	for call, of := range roles {
		if slices.Contains(of, "elsewhere") {
			continue
		}
		c := withToken(ctx, secretOf("elsewhere"))
		there, not := outcome(t, c, r.Conn, call, requests[call](DefaultName)), outcome(t, c, r.Conn, call, requests[call]("nothere"))
		if kverr.KindOf(there) != kverr.PermissionDenied || there.Error() != not.Error() || strings.Contains(there.Error(), "default") {
			t.Errorf("%s: %v and %v", call, there, not)
		}
	}
	_, err := r.KV.List(withToken(ctx, secretOf("elsewhere")), &kvv1.ListRequest{Keyspace: "ghost"})
	if kverr.KindOf(err) != kverr.NotFound || strings.Contains(err.Error(), "default") {
		t.Errorf("a role in a keyspace that is not there: %v", err)
	}
	if _, err = r.KV.List(withToken(ctx, secretOf("all")), &kvv1.ListRequest{Keyspace: "ghost"}); !strings.Contains(err.Error(), "default") {
		t.Errorf("who may see all is helped: %v", err)
	}
	for token, sees := range map[string]bool{"reader": false, "elsewhere": false, "operator": true} {
		st, err := r.Admin.Status(withToken(ctx, secretOf(token)), &kvv1.StatusRequest{})
		if err != nil || st.Header.GetServerTimeMs() == 0 || st.Version == "" || (st.Engine != "") != sees {
			t.Errorf("status for %s: %v, %v", token, st, err)
		}
	}
	if text := log.String(); !strings.Contains(text, "refused at the door") || !strings.Contains(text, "UNAUTHENTICATED") || strings.Contains(text, "kvs_") {
		t.Errorf("log:\n%s", text)
	}
	if n := strings.Count(log.String(), "refused at the door"); n > 60 {
		t.Errorf("%d lines: a stranger fills the log", n)
	}
}

// TestNobodyComesByAnotherWay: a server that was made without the door answers nobody.
func TestNobodyComesByAnotherWay(t *testing.T) {
	tokens, _ := openTokens(t, "all")
	r := newRig(t, Config{Access: tokens}, nil)
	srv := grpc.NewServer(ServerOptions()...)
	r.Server.Register(srv)
	conn := overBufconn(t, srv)
	for call, request := range requests {
		if err := outcome(t, withToken(testContext(t), secretOf("all")), conn, call, request("")); kverr.KindOf(err) != kverr.Unauthenticated {
			t.Errorf("%s: %v", call, err)
		}
	}
	if _, err := New(Config{}, r.Host, r.Dir); err == nil || !strings.Contains(err.Error(), "Access") {
		t.Errorf("a frontend without a word about who may come: %v", err)
	}
}

// TestPipelineRights: each frame is for its keyspace; a reader may read.
func TestPipelineRights(t *testing.T) {
	tokens, _ := openTokens(t, "reader", "writer")
	r := newRig(t, Config{Access: tokens}, nil)
	for token, may := range map[string]bool{"reader": false, "writer": true} {
		s, err := r.KV.Pipeline(withToken(testContext(t), secretOf(token)))
		if err != nil {
			t.Fatal(err)
		}
		del := &kvv1.PipelineRequest_Op{Id: 2, Op: &kvv1.PipelineRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte("k")}}}
		got := map[uint64]kverr.Kind{}
		for _, frame := range []*kvv1.PipelineRequest{
			{Ops: []*kvv1.PipelineRequest_Op{putOp(1, "k", "v"), del, getOp(3, "none")}},
			{Keyspace: "tenant", Ops: []*kvv1.PipelineRequest_Op{putOp(4, "k", "v"), getOp(5, "k")}},
			{Ops: []*kvv1.PipelineRequest_Op{getOp(6, "none")}},
		} {
			if err := s.Send(frame); err != nil {
				t.Fatal(err)
			}
		}
		for len(got) < 6 {
			resp, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, res := range resp.Results {
				got[res.Id] = fine
				if e := res.GetError(); e != nil {
					got[res.Id] = kverr.FromItem(e).Kind
				}
			}
		}
		write := fine
		if !may {
			write = kverr.PermissionDenied
		}
		want := map[uint64]kverr.Kind{1: write, 2: write, 3: kverr.NotFound, 4: kverr.PermissionDenied, 5: kverr.PermissionDenied, 6: kverr.NotFound}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", token, got, want)
		}
	}
}

// fine stands for no error.
const fine = kverr.Kind(255)

// TestRevokedTokenEndsStreams: what a stream took before is answered, the frame after the reload is not applied, and the stream ends.
func TestRevokedTokenEndsStreams(t *testing.T) {
	tokens, file := openTokens(t, "writer", "admin")
	held := make(chan struct{})
	refused := make(chan struct{})
	log := slog.New(slog.NewTextHandler(writerFunc(func(line []byte) {
		if bytes.Contains(line, []byte("Pipeline")) {
			close(refused)
		}
	}), nil))
	r := newRig(t, Config{Access: tokens, Log: log}, func(s Shards) Shards { return &holding{Shards: s, until: held} })
	ctx := testContext(t)
	s, err := r.KV.Pipeline(withToken(ctx, secretOf("writer")))
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("v", 5000) // stored apart: it waits for held
	if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{putOp(1, "before", big)}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{getOp(2, "none")}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := s.Recv(); err != nil || resp.Results[0].Id != 2 {
		t.Fatal(resp, err)
	}
	writeTokens(t, file, "admin")
	if _, err := tokens.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{putOp(3, "after", "v")}}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-refused:
	case <-ctx.Done():
		t.Fatal("the frame after the reload is not refused")
	}
	close(held)
	if resp, err := s.Recv(); err != nil || len(resp.Results) != 1 || resp.Results[0].GetPut().GetVersion() == 0 {
		t.Errorf("what was taken before: %v, %v", resp, err)
	}
	if resp, err := s.Recv(); kverr.KindOf(err) != kverr.Unauthenticated {
		t.Errorf("the stream goes on: %v, %v", resp, err)
	}
	if _, err := r.KV.Get(withToken(ctx, secretOf("writer")), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("before")}}); kverr.KindOf(err) != kverr.Unauthenticated {
		t.Errorf("the revoked token opens a new call: %v", err)
	}
	admin := withToken(ctx, secretOf("admin"))
	if resp, err := r.KV.Get(admin, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("before")}}); err != nil || string(resp.Entry.Value) != big {
		t.Errorf("before: %v", err)
	}
	if _, err := r.KV.Get(admin, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("after")}}); kverr.KindOf(err) != kverr.NotFound {
		t.Errorf("after: %v", err)
	}
}

// TestRevokedTokenEndsWatch: rights are asked at every event, not only when the watch begins.
func TestRevokedTokenEndsWatch(t *testing.T) {
	tokens, file := openTokens(t, "reader", "admin")
	r := newRig(t, Config{Access: tokens}, nil)
	ctx := testContext(t)
	w := r.watch(withToken(ctx, secretOf("reader")), t, &kvv1.WatchRequest{})
	w.until(kvv1.WatchControl_WATCH_CONTROL_STARTED)
	admin := withToken(ctx, secretOf("admin"))
	r.mustPut(admin, t, "before", "v", 0)
	wantEvents(t, w.take(1), "PUT before=v created")
	writeTokens(t, file, "admin")
	if _, err := tokens.Reload(); err != nil {
		t.Fatal(err)
	}
	r.mustPut(admin, t, "after", "v", 0)
	if resp, err := w.stream.Recv(); kverr.KindOf(err) != kverr.Unauthenticated {
		t.Errorf("the watch goes on: %v, %v", resp, err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// holding stores values only once until is closed.
type holding struct {
	Shards
	until chan struct{}
}

func (h *holding) PutValues(ctx context.Context, shardID string, values ...[]byte) ([]shard.Ref, error) {
	select {
	case <-h.until:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return h.Shards.PutValues(ctx, shardID, values...)
}

// overBufconn serves srv and returns a connection to it.
func overBufconn(t *testing.T, srv *grpc.Server) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	go func() { _ = srv.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
	})
	return conn
}
