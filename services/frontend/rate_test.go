package frontend

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// TestBucket: what passes of requests that come at some times, at 10 operations a second.
func TestBucket(t *testing.T) {
	const ms = int64(time.Millisecond)
	type request struct {
		at   int64 // milliseconds
		n    int
		wait int64 // milliseconds; 0 = it passes
	}
	ten := func(at int64) (all []request) {
		for range 10 {
			all = append(all, request{at, 1, 0})
		}
		return all
	}
	for name, all := range map[string][]request{
		"a second's worth at once":            append(ten(0), request{0, 1, 100}, request{50, 1, 50}, request{100, 1, 0}, request{100, 1, 100}),
		"no more after a long time":           append(append(ten(0), ten(60_000)...), request{60_000, 1, 100}),
		"a large one passes and the next pay": {{0, 100, 0}, {0, 1, 9100}, {9099, 1, 1}, {9100, 1, 0}, {9100, 1, 100}},
		"as fast as allowed, for ever":        {{0, 10, 0}, {100, 1, 0}, {200, 1, 0}, {300, 1, 0}, {300, 1, 100}, {400, 1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bucket
			for i, r := range all {
				if wait := b.take(r.at*ms, r.n, 10); wait != r.wait*ms {
					t.Fatalf("request %d: told to wait %v, want %d ms", i, time.Duration(wait), r.wait)
				}
			}
		})
	}
	var once bucket
	if a, b := once.take(0, 1, 1), once.take(0, 1, 1); a != 0 || b != int64(time.Second) {
		t.Errorf("one a second: waits %v and %v", time.Duration(a), time.Duration(b))
	}
}

// TestClientsAreBounded: however many clients come, there are so many buckets; who has none of his own shares one; and those that say nothing any
// more make room.
func TestClientsAreBounded(t *testing.T) {
	c := clients{buckets: map[string]*bucket{}}
	now := int64(time.Hour)
	for i := range maxClients {
		c.of(fmt.Sprint(i), now).take(now, 1, 1)
	}
	if c.of("more", now) != &c.rest || c.of("0", now) == &c.rest || len(c.buckets) != maxClients {
		t.Fatalf("%d buckets", len(c.buckets))
	}
	now += 3 * int64(time.Second)
	if c.of("more", now) == &c.rest || len(c.buckets) != 1 {
		t.Fatalf("%d buckets when all are full again", len(c.buckets))
	}
}

// limitTo sets the rate of namespace default.
func (r *rig) limitTo(t *testing.T, rate int64) {
	t.Helper()
	_, err := r.Admin.UpdateNamespace(testContext(t), &kvv1.UpdateNamespaceRequest{
		Namespace:  &kvv1.Namespace{Keyspace: DefaultName, Name: DefaultName, OpsPerSecond: rate},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"ops_per_second"}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNamespaceRate: what is more than a namespace's rate is refused with the time to wait, whatever call it is, and others are not; and a change of the
// rate counts at once.
func TestNamespaceRate(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	r.put(t, "a", "1")
	r.limitTo(t, 10)
	batch := &kvv1.BatchGetRequest{}
	for range 900 {
		batch.Gets = append(batch.Gets, &kvv1.GetOp{Key: []byte("a")})
	}
	if _, err := r.KV.BatchGet(ctx, batch); err != nil { // it passes whole, and is paid for after
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		e := kverr.FromGRPC(err)
		if err == nil || e.Kind != kverr.RateLimited || e.RetryAfterMS < 30_000 || e.RetryAfterMS > 90_000 {
			t.Errorf("%s: %v, want RATE_LIMITED for some 89 s", what, err)
		}
	}
	_, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a")}})
	refused("a get", err)
	_, err = r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("a")}})
	refused("a put", err)
	_, err = r.KV.List(ctx, &kvv1.ListRequest{})
	refused("a list", err)
	_, err = r.KV.Transaction(ctx, &kvv1.TransactionRequest{Ops: []*kvv1.TransactionRequest_Op{{Op: &kvv1.TransactionRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte("a")}}}}})
	refused("a transaction", err)
	watch, err := r.KV.Watch(ctx, &kvv1.WatchRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	refused("a watch", err)
	for id, res := range exchange(t, r, &kvv1.PipelineRequest{Ops: []*kvv1.PipelineRequest_Op{getOp(1, "a"), putOp(2, "a", "2")}}) {
		if e := kverr.FromItem(res.GetError()); e == nil || e.Kind != kverr.RateLimited || e.RetryAfterMS == 0 {
			t.Errorf("operation %d of a pipeline: %v", id, res)
		}
	}
	if n := r.Server.Stats().NamespaceLimited; n < 6 {
		t.Errorf("%d refusals were counted", n)
	}
	if _, err := r.Dir.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: DefaultName, Name: "other", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.KV.List(ctx, &kvv1.ListRequest{Namespace: "other"}); err != nil {
		t.Errorf("another namespace: %v", err)
	}
	r.limitTo(t, 1_000_000) // what was too much for the rate before may be little for this one
	if _, err = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a")}}); err != nil {
		t.Errorf("with a higher rate: %v", err)
	}
	r.limitTo(t, 0)
	if _, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a")}}); err != nil {
		t.Errorf("without a rate: %v", err)
	}
}

// TestRefusedCostsNothing: a client does not use up its own rate on a namespace that refuses it.
func TestRefusedCostsNothing(t *testing.T) {
	r := newRig(t, Config{ClientRate: 20}, nil)
	ctx := testContext(t)
	if _, err := r.Dir.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: DefaultName, Name: "other", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}); err != nil {
		t.Fatal(err)
	}
	r.limitTo(t, 1)
	get := &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a")}}
	_, _ = r.KV.Get(ctx, get)
	for range 200 {
		if _, err := r.KV.Get(ctx, get); err != nil && !strings.Contains(err.Error(), "namespace") {
			t.Fatalf("refused for another reason than the namespace's limit: %v", err)
		}
	}
	if _, err := r.KV.List(ctx, &kvv1.ListRequest{Namespace: "other"}); err != nil {
		t.Errorf("another namespace: %v", err)
	}
}

// TestTokenRate: where tokens are wanted each has a rate of its own, from wherever it comes.
func TestTokenRate(t *testing.T) {
	tokens, _ := openTokens(t, "reader", "writer")
	r := newRig(t, Config{ClientRate: 10, Access: tokens}, nil)
	batch := &kvv1.BatchGetRequest{}
	for range 900 {
		batch.Gets = append(batch.Gets, &kvv1.GetOp{Key: []byte("a")})
	}
	reader, writer := withToken(testContext(t), secretOf("reader")), withToken(testContext(t), secretOf("writer"))
	if _, err := r.KV.BatchGet(reader, batch); err != nil {
		t.Fatal(err)
	}
	if _, err := r.KV.BatchGet(reader, batch); kverr.FromGRPC(err).Kind != kverr.RateLimited {
		t.Errorf("the same token: %v", err)
	}
	if _, err := r.KV.BatchGet(writer, batch); err != nil {
		t.Errorf("another token: %v", err)
	}
}

// TestClientRate: each client has a rate of his own, known by his address, where no tokens are wanted.
func TestClientRate(t *testing.T) {
	r := newRig(t, Config{ClientRate: 10}, nil)
	ctx := testContext(t)
	from := func(ip string, port int) context.Context {
		return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: port}})
	}
	kv := r.Server.Calls().KV
	batch := &kvv1.BatchGetRequest{}
	for range 900 {
		batch.Gets = append(batch.Gets, &kvv1.GetOp{Key: []byte("a")})
	}
	if _, err := kv.BatchGet(from("10.0.0.1", 1), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.BatchGet(from("10.0.0.1", 2), batch); kverr.KindOf(err) != kverr.RateLimited {
		t.Errorf("the same address: %v", err)
	}
	if _, err := kv.BatchGet(from("10.0.0.2", 1), batch); err != nil {
		t.Errorf("another address: %v", err)
	}
	if n := r.Server.Stats().ClientLimited; n != 1 {
		t.Errorf("%d refusals were counted", n)
	}
}
