package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

func (r *rig) put(t *testing.T, k, v string) *kvv1.PutResult {
	t.Helper()
	resp, err := r.KV.Put(testContext(t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(k), Value: []byte(v)}})
	if err != nil {
		t.Fatalf("put %s: %v", k, err)
	}
	return resp.Result
}

func (r *rig) get(t *testing.T, k string) *kvv1.Entry {
	t.Helper()
	resp, err := r.KV.Get(testContext(t), &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(k)}})
	if err != nil {
		t.Fatalf("get %s: %v", k, err)
	}
	return resp.Entry
}

func wantKind(t *testing.T, what string, err error, want kverr.Kind) *kverr.Error {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: succeeded, want %v", what, want)
	}
	e := kverr.FromGRPC(err)
	if e.Kind != want {
		t.Fatalf("%s: %v (%v), want %v", what, err, e.Kind, want)
	}
	return e
}

func TestPutGetDelete(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	before := time.Now().UnixMilli()
	put, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{
		Key: []byte("a"), Value: []byte("1"), ContentType: "text/plain", Encoding: "zstd",
		Metadata: map[string]string{"who": "me"}, Tags: map[string]string{"colour": "red"}, TtlMs: 3_600_000,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !put.Result.Created || put.Result.Version == 0 || put.Header.ServerTimeMs < before || len(put.Header.Token) == 0 {
		t.Errorf("put: %v", put)
	}
	e := r.get(t, "a")
	if string(e.Key) != "a" || string(e.Value) != "1" || e.ContentType != "text/plain" || e.Encoding != "zstd" || e.Metadata["who"] != "me" ||
		e.Tags["colour"] != "red" || e.Version != put.Result.Version || e.Size != 1 || e.Checksum != 0 || e.CreatedMs < before ||
		e.UpdatedMs != e.CreatedMs || e.ExpiresMs != e.UpdatedMs+3_600_000 {
		t.Errorf("get: %v", e)
	}
	meta, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a"), MetadataOnly: true}})
	if err != nil || len(meta.Entry.Value) != 0 || meta.Entry.Size != 1 {
		t.Errorf("metadata only: %v, %v", meta, err)
	}
	again := r.put(t, "a", "22")
	if again.Created || again.Version <= put.Result.Version {
		t.Errorf("second put: %v", again)
	}
	del, err := r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: []byte("a")}})
	if err != nil || !del.Result.Deleted || del.Result.Revision <= again.Version {
		t.Errorf("delete: %v, %v", del, err)
	}
	del, err = r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: []byte("a")}})
	if err != nil || del.Result.Deleted || del.Result.Revision != 0 {
		t.Errorf("delete of nothing: %v, %v", del, err)
	}
	_, err = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("a")}})
	wantKind(t, "get after delete", err, kverr.NotFound)
	if back := r.put(t, "a", "3"); back.Version <= again.Version || !back.Created {
		t.Errorf("a version came back: %v", back)
	}
}

// TestKeepTTL: a key keeps the expiry that it has; one that is not there gets the namespace's, as from any write that names
// none.
func TestKeepTTL(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	_, err := r.Dir.CreateNamespace(ctx, &kvv1.Namespace{
		Keyspace: DefaultName, Name: "short", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV, DefaultTtlMs: 60_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	put := func(k string, ttl int64, keep bool) (lives int64) {
		t.Helper()
		op := &kvv1.PutOp{Key: []byte(k), TtlMs: ttl, KeepTtl: keep}
		if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Namespace: "short", Put: op}); err != nil {
			t.Fatal(err)
		}
		got, err := r.KV.Get(ctx, &kvv1.GetRequest{Namespace: "short", Get: &kvv1.GetOp{Key: op.Key}})
		if err != nil {
			t.Fatal(err)
		}
		return got.Entry.ExpiresMs - got.Entry.CreatedMs
	}
	if lives := put("new", 0, true); lives != 60_000 {
		t.Errorf("a new key with keep_ttl lives %d ms, want the namespace's 60000", lives)
	}
	if lives := put("own", 3_600_000, false); lives != 3_600_000 {
		t.Errorf("ttl_ms 3600000: lives %d ms", lives)
	}
	if lives := put("own", 0, true); lives != 3_600_000 {
		t.Errorf("keep_ttl: lives %d ms, want what it had", lives)
	}
}

func TestPreconditions(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	version := r.put(t, "there", "1").Version
	absent := &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}
	present := &kvv1.Precondition{Check: &kvv1.Precondition_IfPresent{IfPresent: true}}
	is := func(v uint64) *kvv1.Precondition {
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{IfVersion: v}}
	}
	for _, tc := range []struct {
		key     string
		p       *kvv1.Precondition
		want    kverr.Kind
		current uint64
	}{
		{"there", absent, kverr.AlreadyExists, version},
		{"there", is(version + 5), kverr.VersionMismatch, version},
		{"nowhere", present, kverr.VersionMismatch, 0},
		{"nowhere", is(version), kverr.VersionMismatch, 0},
	} {
		_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(tc.key), Precondition: tc.p}})
		if e := wantKind(t, tc.key, err, tc.want); e.CurrentVersion != tc.current {
			t.Errorf("%s %v: current version %d, want %d", tc.key, tc.p, e.CurrentVersion, tc.current)
		}
		if tc.want == kverr.AlreadyExists {
			continue
		}
		_, err = r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: []byte(tc.key), Precondition: tc.p}})
		wantKind(t, "delete "+tc.key, err, tc.want)
	}
	for _, p := range []*kvv1.Precondition{is(version), present} {
		if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("there"), Precondition: p}}); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
}

// TestLimits holds every limit and every malformed field to its error, and the largest that is allowed to success.
func TestLimits(t *testing.T) {
	r := newRig(t, Config{MaxValueBytes: 64 << 10}, nil)
	ctx := testContext(t)
	id := func(change func(*kvv1.WriteIdentity)) *kvv1.WriteIdentity {
		w := &kvv1.WriteIdentity{Client: []byte("0123456789abcdef"), Op: 1, NotAfterMs: time.Now().Add(time.Minute).UnixMilli()}
		change(w)
		return w
	}
	pairs := func(n, each int) map[string]string {
		m := make(map[string]string)
		for i := range n {
			name := fmt.Sprintf("%03d", i)
			m[name] = strings.Repeat("v", each-len(name))
		}
		return m
	}
	put := func(change func(*kvv1.PutOp)) func() error {
		return func() error {
			op := &kvv1.PutOp{Key: []byte("k"), Value: []byte("v")}
			change(op)
			_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: op})
			return err
		}
	}
	batchPut := func(n, each int) func() error {
		return func() error {
			req := &kvv1.BatchPutRequest{}
			for i := range n {
				req.Puts = append(req.Puts, &kvv1.PutOp{Key: fmt.Appendf(nil, "b%05d", i), Value: make([]byte, each)})
			}
			_, err := r.KV.BatchPut(ctx, req)
			return err
		}
	}
	txn := func(conditions, ops, each int) func() error {
		return func() error {
			req := &kvv1.TransactionRequest{}
			for range conditions {
				req.Conditions = append(req.Conditions, &kvv1.TransactionRequest_Condition{Key: []byte("{t}absent"),
					Precondition: &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}})
			}
			for i := range ops {
				req.Ops = append(req.Ops, &kvv1.TransactionRequest_Op{Op: &kvv1.TransactionRequest_Op_Put{
					Put: &kvv1.PutOp{Key: fmt.Appendf(nil, "{t}%05d", i), Value: make([]byte, each)}}})
			}
			_, err := r.KV.Transaction(ctx, req)
			return err
		}
	}
	list := func(change func(*kvv1.ListRequest)) func() error {
		return func() error {
			req := &kvv1.ListRequest{}
			change(req)
			_, err := r.KV.List(ctx, req)
			return err
		}
	}
	long := bytes.Repeat([]byte("k"), key.MaxKey)
	for _, tc := range []struct {
		name  string
		call  func() error
		want  kverr.Kind // Unknown = success
		field string
	}{
		{"longest key", put(func(p *kvv1.PutOp) { p.Key = long }), kverr.Unknown, ""},
		{"no key", put(func(p *kvv1.PutOp) { p.Key = nil }), kverr.InvalidArgument, "put.key"},
		{"long key", put(func(p *kvv1.PutOp) { p.Key = append(long[:len(long):len(long)], 'k') }), kverr.TooLarge, "put.key"},
		{"key not UTF-8", put(func(p *kvv1.PutOp) { p.Key = []byte("a\xff") }), kverr.InvalidArgument, "put.key"},
		{"largest value", put(func(p *kvv1.PutOp) { p.Value = make([]byte, 64<<10) }), kverr.Unknown, ""},
		{"large value", put(func(p *kvv1.PutOp) { p.Value = make([]byte, 64<<10+1) }), kverr.TooLarge, "put.value"},
		{"content type", put(func(p *kvv1.PutOp) { p.ContentType = strings.Repeat("c", 257) }), kverr.TooLarge, "put.content_type"},
		{"content type not UTF-8", put(func(p *kvv1.PutOp) { p.ContentType = "\xff" }), kverr.InvalidArgument, "put.content_type"},
		{"encoding", put(func(p *kvv1.PutOp) { p.Encoding = strings.Repeat("c", 65) }), kverr.TooLarge, "put.encoding"},
		{"most tags", put(func(p *kvv1.PutOp) { p.Tags = pairs(32, 256) }), kverr.Unknown, ""},
		{"too many tags", put(func(p *kvv1.PutOp) { p.Tags = pairs(33, 10) }), kverr.TooLarge, "put.tags"},
		{"long tag", put(func(p *kvv1.PutOp) { p.Tags = pairs(1, 257) }), kverr.TooLarge, `put.tags["000"]`},
		{"nameless tag", put(func(p *kvv1.PutOp) { p.Tags = map[string]string{"": "x"} }), kverr.InvalidArgument, "put.tags"},
		{"tag not UTF-8", put(func(p *kvv1.PutOp) { p.Tags = map[string]string{"x": "\xff"} }), kverr.InvalidArgument, "put.tags"},
		{"most metadata", put(func(p *kvv1.PutOp) { p.Metadata = pairs(64, 256) }), kverr.Unknown, ""},
		{"metadata entries", put(func(p *kvv1.PutOp) { p.Metadata = pairs(65, 10) }), kverr.TooLarge, "put.metadata"},
		{"metadata bytes", put(func(p *kvv1.PutOp) { p.Metadata = pairs(1, 16<<10+1) }), kverr.TooLarge, "put.metadata"},
		{"negative ttl", put(func(p *kvv1.PutOp) { p.TtlMs = -1 }), kverr.InvalidArgument, "put.ttl_ms"},
		{"longest ttl", put(func(p *kvv1.PutOp) { p.TtlMs = maxTTLMS }), kverr.Unknown, ""},
		{"endless ttl", put(func(p *kvv1.PutOp) { p.TtlMs = maxTTLMS + 1 }), kverr.InvalidArgument, "put.ttl_ms"},
		{"keep and ttl", put(func(p *kvv1.PutOp) { p.TtlMs, p.KeepTtl = 1, true }), kverr.InvalidArgument, "put.keep_ttl"},
		{"version 0", put(func(p *kvv1.PutOp) {
			p.Precondition = &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{}}
		}), kverr.InvalidArgument, "put.precondition.if_version"},
		{"absent false", put(func(p *kvv1.PutOp) {
			p.Precondition = &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{}}
		}), kverr.InvalidArgument, "put.precondition.if_absent"},
		{"present false", put(func(p *kvv1.PutOp) {
			p.Precondition = &kvv1.Precondition{Check: &kvv1.Precondition_IfPresent{}}
		}), kverr.InvalidArgument, "put.precondition.if_present"},
		{"no put at all", func() error { _, err := r.KV.Put(ctx, &kvv1.PutRequest{}); return err }, kverr.InvalidArgument, "put.key"},
		{"short client", func() error {
			_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k")}, Identity: id(func(w *kvv1.WriteIdentity) { w.Client = []byte("x") })})
			return err
		}, kverr.InvalidArgument, "identity.client"},
		{"zero client", func() error {
			_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k")}, Identity: id(func(w *kvv1.WriteIdentity) { w.Client = make([]byte, 16) })})
			return err
		}, kverr.InvalidArgument, "identity.client"},
		{"far not_after", func() error {
			_, err := r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: []byte("k")}, Identity: id(func(w *kvv1.WriteIdentity) { w.NotAfterMs += 10 * 60_000 })})
			return err
		}, kverr.InvalidArgument, "identity.not_after_ms"},
		{"no not_after", func() error {
			_, err := r.KV.BatchPut(ctx, &kvv1.BatchPutRequest{Puts: []*kvv1.PutOp{{Key: []byte("k")}}, Identity: id(func(w *kvv1.WriteIdentity) { w.NotAfterMs = 0 })})
			return err
		}, kverr.InvalidArgument, "identity.not_after_ms"},
		{"past not_after", func() error {
			_, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k")}, Identity: id(func(w *kvv1.WriteIdentity) { w.NotAfterMs = 1 })})
			return err
		}, kverr.Expired, ""},
		{"get without key", func() error { _, err := r.KV.Get(ctx, &kvv1.GetRequest{}); return err }, kverr.InvalidArgument, "get.key"},
		{"delete without key", func() error { _, err := r.KV.Delete(ctx, &kvv1.DeleteRequest{}); return err }, kverr.InvalidArgument, "delete.key"},
		{"large batch", batchPut(1000, 8<<10), kverr.Unknown, ""},
		{"heavy batch", batchPut(1000, 8<<10+256), kverr.TooLarge, "puts"},
		{"most ops", batchPut(1000, 1), kverr.Unknown, ""},
		{"too many ops", batchPut(1001, 1), kverr.TooLarge, "puts"},
		{"empty batch", batchPut(0, 0), kverr.InvalidArgument, "puts"},
		{"empty batch get", func() error { _, err := r.KV.BatchGet(ctx, &kvv1.BatchGetRequest{}); return err }, kverr.InvalidArgument, "gets"},
		{"empty batch delete", func() error { _, err := r.KV.BatchDelete(ctx, &kvv1.BatchDeleteRequest{}); return err }, kverr.InvalidArgument, "deletes"},
		{"many gets", func() error {
			_, err := r.KV.BatchGet(ctx, &kvv1.BatchGetRequest{Gets: make([]*kvv1.GetOp, 1001)})
			return err
		}, kverr.TooLarge, "gets"},
		{"most of a transaction", txn(1000, 1000, 1), kverr.Unknown, ""},
		{"large transaction", txn(1000, 1001, 1), kverr.TooLarge, "ops"},
		{"heavy transaction", txn(0, 129, 64<<10), kverr.TooLarge, "ops"},
		{"empty transaction", txn(0, 0, 0), kverr.InvalidArgument, "ops"},
		{"empty op", func() error {
			_, err := r.KV.Transaction(ctx, &kvv1.TransactionRequest{Ops: []*kvv1.TransactionRequest_Op{{}}})
			return err
		}, kverr.InvalidArgument, "ops[0].op"},
		{"empty condition", func() error {
			_, err := r.KV.Transaction(ctx, &kvv1.TransactionRequest{Conditions: []*kvv1.TransactionRequest_Condition{{Key: []byte("k")}}})
			return err
		}, kverr.InvalidArgument, "conditions[0].precondition"},
		{"bad op", func() error {
			_, err := r.KV.Transaction(ctx, &kvv1.TransactionRequest{Ops: []*kvv1.TransactionRequest_Op{{Op: &kvv1.TransactionRequest_Op_Put{Put: &kvv1.PutOp{}}}}})
			return err
		}, kverr.InvalidArgument, "ops[0].put.key"},
		{"two partitions", func() error {
			_, err := r.KV.Transaction(ctx, &kvv1.TransactionRequest{
				Conditions: []*kvv1.TransactionRequest_Condition{{Key: []byte("{a}1"), Precondition: &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}}},
				Ops:        []*kvv1.TransactionRequest_Op{{Op: &kvv1.TransactionRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte("{b}1")}}}}})
			return err
		}, kverr.CrossPartition, ""},
		{"page size", list(func(l *kvv1.ListRequest) { l.PageSize = 1001 }), kverr.InvalidArgument, "page_size"},
		{"negative page size", list(func(l *kvv1.ListRequest) { l.PageSize = -1 }), kverr.InvalidArgument, "page_size"},
		{"largest page", list(func(l *kvv1.ListRequest) { l.PageSize = 1000 }), kverr.Unknown, ""},
		{"long prefix", list(func(l *kvv1.ListRequest) { l.Prefix = make([]byte, 1025) }), kverr.TooLarge, "prefix"},
		{"long start", list(func(l *kvv1.ListRequest) { l.Start = make([]byte, 1025) }), kverr.TooLarge, "start"},
		{"long end", list(func(l *kvv1.ListRequest) { l.End = make([]byte, 1025) }), kverr.TooLarge, "end"},
		{"made-up token", list(func(l *kvv1.ListRequest) { l.PageToken = []byte("x") }), kverr.InvalidArgument, "page_token"},
		{"count with token", list(func(l *kvv1.ListRequest) { l.PageToken, l.CountOnly = []byte("x"), true }), kverr.InvalidArgument, "page_token"},
		{"no keyspace", func() error {
			_, err := r.KV.Get(ctx, &kvv1.GetRequest{Keyspace: "other", Get: &kvv1.GetOp{Key: []byte("k")}})
			return err
		}, kverr.NotFound, ""},
		{"no namespace", func() error {
			_, err := r.KV.Get(ctx, &kvv1.GetRequest{Namespace: "other", Get: &kvv1.GetOp{Key: []byte("k")}})
			return err
		}, kverr.NotFound, ""},
		{"wrong kind", func() error {
			_, err := r.KV.Get(ctx, &kvv1.GetRequest{Namespace: "prompts", Get: &kvv1.GetOp{Key: []byte("k")}})
			return err
		}, kverr.WrongKind, ""},
	} {
		err := tc.call()
		if tc.want == kverr.Unknown {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: succeeded, want %v", tc.name, tc.want)
			continue
		}
		if e := kverr.FromGRPC(err); e.Kind != tc.want || e.Field != tc.field {
			t.Errorf("%s: %v (%v of field %q), want %v of field %q", tc.name, err, e.Kind, e.Field, tc.want, tc.field)
		}
	}
	_, err := r.KV.Get(ctx, &kvv1.GetRequest{Namespace: "other", Get: &kvv1.GetOp{Key: []byte("k")}})
	if !strings.Contains(err.Error(), "default, prompts") {
		t.Errorf("NOT_FOUND does not tell what there is: %v", err)
	}
}

func TestMessageOverGRPCLimit(t *testing.T) {
	r := newRig(t, Config{}, nil)
	_, err := r.KV.Put(testContext(t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k"), Value: make([]byte, maxRecvBytes)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v", err)
	}
	_, err = r.KV.Put(testContext(t), &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("k"), Value: make([]byte, key.MaxValue+1)}})
	if e := wantKind(t, "value", err, kverr.TooLarge); e.Field != "put.value" || e.Limit != key.MaxValue {
		t.Errorf("%v", e)
	}
}

func TestRepeatedWriteIsAppliedOnce(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	for _, size := range []int{1, 5000} {
		req := &kvv1.PutRequest{
			Put:      &kvv1.PutOp{Key: fmt.Appendf(nil, "k%d", size), Value: make([]byte, size)},
			Identity: &kvv1.WriteIdentity{Client: []byte("0123456789abcdef"), Op: uint64(size), NotAfterMs: time.Now().Add(time.Minute).UnixMilli()},
		}
		first, err := r.KV.Put(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		second, err := r.KV.Put(ctx, req)
		if err != nil || second.Result.Version != first.Result.Version || !second.Result.Created {
			t.Errorf("%v, %v; first %v", second, err, first)
		}
	}
}

func TestBatches(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	r.put(t, "there", "1")
	absent := &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}
	large := bytes.Repeat([]byte("x"), 3000)
	puts, err := r.KV.BatchPut(ctx, &kvv1.BatchPutRequest{Puts: []*kvv1.PutOp{
		{Key: []byte("a"), Value: []byte("1")}, {Key: nil}, {Key: []byte("there"), Precondition: absent}, {Key: []byte("large"), Value: large},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if puts.Results[0].GetResult().GetVersion() == 0 || puts.Results[3].GetResult().GetVersion() == 0 {
		t.Errorf("%v", puts)
	}
	if e := puts.Results[1].GetError(); e.GetField() != "puts[1].key" || e.Code != int32(codes.InvalidArgument) {
		t.Errorf("no key: %v", e)
	}
	if e := puts.Results[2].GetError(); e.GetReason() != "ALREADY_EXISTS" || e.CurrentVersion == 0 {
		t.Errorf("precondition: %v", e)
	}
	gets, err := r.KV.BatchGet(ctx, &kvv1.BatchGetRequest{Gets: []*kvv1.GetOp{
		{Key: []byte("a")}, {Key: []byte("missing")}, {Key: []byte("large")}, {Key: []byte("large"), MetadataOnly: true}, nil,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if string(gets.Results[0].GetEntry().GetValue()) != "1" || gets.Results[1].GetError().GetReason() != "NOT_FOUND" ||
		!bytes.Equal(gets.Results[2].GetEntry().GetValue(), large) || gets.Results[3].GetEntry().GetSize() != 3000 ||
		len(gets.Results[3].GetEntry().GetValue()) != 0 || gets.Results[4].GetError().GetField() != "gets[4].key" {
		t.Errorf("%v", gets)
	}
	dels, err := r.KV.BatchDelete(ctx, &kvv1.BatchDeleteRequest{Deletes: []*kvv1.DeleteOp{{Key: []byte("a")}, {Key: []byte("missing")}, nil}})
	if err != nil || !dels.Results[0].GetResult().GetDeleted() || dels.Results[1].GetResult().GetDeleted() || dels.Results[2].GetError() == nil {
		t.Errorf("%v, %v", dels, err)
	}
}

// TestBatchGetFitsReply asks for more than a reply carries: what does not fit is told apart from what is absent.
func TestBatchGetFitsReply(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	req := &kvv1.BatchGetRequest{}
	for i := range 6 {
		k := fmt.Appendf(nil, "k%d", i)
		if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: k, Value: make([]byte, 900<<10)}}); err != nil {
			t.Fatal(err)
		}
		req.Gets = append(req.Gets, &kvv1.GetOp{Key: k})
	}
	resp, err := r.KV.BatchGet(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if n := resp.SizeVT(); n >= key.MaxUnaryReply {
		t.Errorf("reply of %d bytes", n)
	}
	for i, item := range resp.Results {
		if i < 4 && len(item.GetEntry().GetValue()) != 900<<10 || i >= 4 && item.GetError().GetReason() != "VALUE_TOO_LARGE" {
			t.Errorf("item %d: %d bytes, %v", i, len(item.GetEntry().GetValue()), item.GetError())
		}
	}
}

func TestTransaction(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	version := r.put(t, "{t}a", "1").Version
	is := func(v uint64) *kvv1.Precondition {
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{IfVersion: v}}
	}
	req := &kvv1.TransactionRequest{
		Conditions: []*kvv1.TransactionRequest_Condition{{Key: []byte("{t}a"), Precondition: is(version)}},
		Ops: []*kvv1.TransactionRequest_Op{
			{Op: &kvv1.TransactionRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte("{t}b"), Value: bytes.Repeat([]byte("b"), 2000)}}},
			{Op: &kvv1.TransactionRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: []byte("{t}a")}}},
		},
	}
	resp, err := r.KV.Transaction(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Committed || resp.Revision <= version || resp.Results[0].GetPut().GetVersion() != resp.Revision || !resp.Results[1].GetDelete().GetDeleted() {
		t.Errorf("%v", resp)
	}
	if e := r.get(t, "{t}b"); len(e.Value) != 2000 || e.Version != resp.Revision {
		t.Errorf("%v", e)
	}
	again, err := r.KV.Transaction(ctx, req)
	if err != nil || again.Committed || again.Revision != 0 || len(again.Failures) != 1 {
		t.Fatalf("%v, %v", again, err)
	}
	if f := again.Failures[0]; f.Condition != 0 || f.Op != -1 || string(f.Key) != "{t}a" || f.CurrentVersion != 0 {
		t.Errorf("%v", f)
	}
	req = &kvv1.TransactionRequest{Ops: []*kvv1.TransactionRequest_Op{{Op: &kvv1.TransactionRequest_Op_Put{
		Put: &kvv1.PutOp{Key: []byte("{t}b"), Precondition: is(1 << 40)}}}}}
	again, err = r.KV.Transaction(ctx, req)
	if err != nil || again.Committed || len(again.Failures) != 1 || again.Failures[0].Op != 0 || again.Failures[0].Condition != -1 ||
		again.Failures[0].CurrentVersion != resp.Revision || string(again.Failures[0].Key) != "{t}b" {
		t.Errorf("%v, %v", again, err)
	}
}

func TestListPages(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	var want []string
	for i := range 250 {
		k := fmt.Sprintf("p/%04d", i*7%250)
		r.put(t, k, "v")
		want = append(want, fmt.Sprintf("p/%04d", i))
	}
	r.put(t, "q", "other")
	for _, size := range []int32{0, 1, 7, 249, 250, 1000} {
		var got []string
		req := &kvv1.ListRequest{Prefix: []byte("p/"), PageSize: size}
		var watch []byte
		for {
			resp, err := r.KV.List(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range resp.Entries {
				got = append(got, string(e.Key))
				if string(e.Value) != "v" {
					t.Fatalf("value %q", e.Value)
				}
			}
			if watch == nil {
				watch = resp.WatchToken
			}
			if !bytes.Equal(watch, resp.WatchToken) {
				t.Fatal("the watch token changed from page to page")
			}
			if req.PageToken = resp.NextPageToken; len(req.PageToken) == 0 {
				break
			}
			if int32(len(resp.Entries)) != size && size != 0 {
				t.Fatalf("a page of %d in the middle, asked for %d", len(resp.Entries), size)
			}
			r.put(t, "unrelated", "x") // revisions move on, tokens do not
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("pages of %d: %v", size, got)
		}
	}
	ranged, err := r.KV.List(ctx, &kvv1.ListRequest{Start: []byte("p/0010"), End: []byte("p/0012"), KeysOnly: true})
	if err != nil || len(ranged.Entries) != 2 || string(ranged.Entries[0].Key) != "p/0010" || len(ranged.Entries[0].Value) != 0 || ranged.Entries[0].Size != 1 {
		t.Errorf("%v, %v", ranged, err)
	}
	for _, tc := range []struct {
		req  *kvv1.ListRequest
		want int64
	}{{&kvv1.ListRequest{}, 252}, {&kvv1.ListRequest{Prefix: []byte("p/")}, 250}, {&kvv1.ListRequest{Prefix: []byte("p/"), Start: []byte("p/0240")}, 10}} {
		tc.req.CountOnly = true
		if resp, err := r.KV.List(ctx, tc.req); err != nil || resp.Count != tc.want || len(resp.Entries) != 0 {
			t.Errorf("count of %v: %v, %v; want %d", tc.req, resp.GetCount(), err, tc.want)
		}
	}
	first, err := r.KV.List(ctx, &kvv1.ListRequest{Prefix: []byte("p/"), PageSize: 5})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.KV.List(ctx, &kvv1.ListRequest{Prefix: []byte("p"), PageSize: 5, PageToken: first.NextPageToken})
	wantKind(t, "token of another query", err, kverr.InvalidArgument)
	bad := bytes.Clone(first.NextPageToken)
	bad[len(bad)/2] ^= 1
	_, err = r.KV.List(ctx, &kvv1.ListRequest{Prefix: []byte("p/"), PageSize: 5, PageToken: bad})
	wantKind(t, "damaged token", err, kverr.InvalidArgument)
}

// TestListPagesWhileKeysGo: keys that are deleted between two pages, the last one of a page among them, cost no other key its place;
// a namespace made anew under the same name is another one for page tokens.
func TestListPagesWhileKeysGo(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	for i := range 60 {
		r.put(t, fmt.Sprintf("k%02d", i), "v")
	}
	var got []string
	req := &kvv1.ListRequest{PageSize: 10}
	for {
		resp, err := r.KV.List(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Entries {
			got = append(got, string(e.Key))
		}
		if req.PageToken = resp.NextPageToken; len(req.PageToken) == 0 {
			break
		}
		var n int
		if _, err := fmt.Sscanf(got[len(got)-1], "k%d", &n); err != nil {
			t.Fatal(err)
		}
		for _, gone := range []int{n, n + 1, n + 5} { // the last of this page, the first of the next, one within
			if _, err := r.KV.Delete(ctx, &kvv1.DeleteRequest{Delete: &kvv1.DeleteOp{Key: fmt.Appendf(nil, "k%02d", gone)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("out of order or twice: %v", got)
	}
	for i := range 60 {
		k := fmt.Sprintf("k%02d", i)
		if _, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(k)}}); err == nil && !slices.Contains(got, k) {
			t.Errorf("%s is there and was not listed", k)
		}
	}
	count, err := r.KV.List(ctx, &kvv1.ListRequest{Prefix: []byte("\xff\xff"), CountOnly: true})
	if err != nil || count.Count != 0 {
		t.Errorf("a prefix of 0xff bytes: %v, %v", count, err)
	}

	space := &kvv1.Namespace{Keyspace: DefaultName, Name: "again", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}
	var token []byte
	for range 2 {
		if _, err := r.Dir.CreateNamespace(ctx, space); err != nil {
			t.Fatal(err)
		}
		if token != nil {
			_, err := r.KV.List(ctx, &kvv1.ListRequest{Namespace: "again", PageSize: 1, PageToken: token})
			wantKind(t, "a page token of the namespace before", err, kverr.InvalidArgument)
			break
		}
		for _, k := range []string{"a", "b"} {
			if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Namespace: "again", Put: &kvv1.PutOp{Key: []byte(k)}}); err != nil {
				t.Fatal(err)
			}
		}
		page, err := r.KV.List(ctx, &kvv1.ListRequest{Namespace: "again", PageSize: 1})
		if err != nil || len(page.NextPageToken) == 0 {
			t.Fatalf("%v, %v", page, err)
		}
		token = page.NextPageToken
		if err := r.Dir.DeleteNamespace(ctx, DefaultName, "again"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestListPageEndsBeforeReplyOutgrows lists entries with large metadata: the page ends early, nothing is lost.
func TestListPageEndsBeforeReplyOutgrows(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	const n = 400
	req := &kvv1.BatchPutRequest{}
	for i := range n {
		req.Puts = append(req.Puts, &kvv1.PutOp{Key: fmt.Appendf(nil, "k%04d", i), Metadata: map[string]string{"m": strings.Repeat("x", 16000)}})
	}
	if _, err := r.KV.BatchPut(ctx, req); err != nil {
		t.Fatal(err)
	}
	seen, pages := 0, 0
	list := &kvv1.ListRequest{PageSize: 1000}
	for {
		resp, err := r.KV.List(ctx, list)
		if err != nil {
			t.Fatal(err)
		}
		if resp.SizeVT() >= key.MaxUnaryReply {
			t.Fatalf("a page of %d bytes", resp.SizeVT())
		}
		seen += len(resp.Entries)
		pages++
		if list.PageToken = resp.NextPageToken; len(list.PageToken) == 0 {
			break
		}
	}
	if seen != n || pages < 2 {
		t.Errorf("%d entries on %d pages", seen, pages)
	}
}

func TestStreams(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	for _, size := range []int{0, 1, 1024, 1025, 1 << 20, 1<<20 + 1, 5<<20 + 3} {
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(i * 7 >> 3)
		}
		k := fmt.Appendf(nil, "v%d", size)
		put := putStream(t, ctx, r, &kvv1.PutStreamRequest_Head{
			Put: &kvv1.PutOp{Key: k, ContentType: "x/y"}, Size: int64(size), Checksum: xxh3.Hash(value),
		}, value)
		if put.err != nil || !put.resp.Result.Created {
			t.Fatalf("%d bytes: %v", size, put.err)
		}
		entry, got, err := getStream(ctx, r, k)
		if err != nil || !bytes.Equal(got, value) || entry.Size != int64(size) || entry.ContentType != "x/y" || entry.Version != put.resp.Result.Version {
			t.Fatalf("%d bytes: %v, got %d bytes, %v", size, err, len(got), entry)
		}
		_, err = r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: k}})
		if size > 4<<20 {
			wantKind(t, "unary get", err, kverr.ValueTooLarge)
		} else if err != nil {
			t.Errorf("unary get of %d bytes: %v", size, err)
		}
	}
	_, _, err := getStream(ctx, r, []byte("missing"))
	wantKind(t, "missing", err, kverr.NotFound)
}

type putStreamed struct {
	resp *kvv1.PutStreamResponse
	err  error
}

func putStream(t *testing.T, ctx context.Context, r *rig, head *kvv1.PutStreamRequest_Head, value []byte) (out putStreamed) {
	t.Helper()
	s, err := r.KV.PutStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := []*kvv1.PutStreamRequest{}
	if head != nil {
		send = append(send, &kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: head}})
	}
	for len(value) > 0 {
		n := min(len(value), 700<<10)
		send = append(send, &kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Chunk{Chunk: value[:n]}})
		value = value[n:]
	}
	for _, m := range send {
		if err := s.Send(m); err != nil {
			break // CloseAndRecv tells why
		}
	}
	out.resp, out.err = s.CloseAndRecv()
	return out
}

func getStream(ctx context.Context, r *rig, k []byte) (*kvv1.Entry, []byte, error) {
	s, err := r.KV.GetStream(ctx, &kvv1.GetStreamRequest{Key: k})
	if err != nil {
		return nil, nil, err
	}
	first, err := s.Recv()
	if err != nil {
		return nil, nil, err
	}
	var value []byte
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return first.GetEntry(), value, nil
		}
		if err != nil {
			return nil, value, err
		}
		value = append(value, m.GetChunk()...)
	}
}

func TestPutStreamFaults(t *testing.T) {
	r := newRig(t, Config{MaxValueBytes: 4 << 20}, nil)
	ctx := testContext(t)
	op := &kvv1.PutOp{Key: []byte("k")}
	for _, tc := range []struct {
		name  string
		head  *kvv1.PutStreamRequest_Head
		bytes int
		want  kverr.Kind
		field string
	}{
		{"no head", nil, 10, kverr.InvalidArgument, "head"},
		{"nothing at all", nil, 0, kverr.InvalidArgument, "head"},
		{"too few", &kvv1.PutStreamRequest_Head{Put: op, Size: 100}, 99, kverr.InvalidArgument, "chunk"},
		{"too many", &kvv1.PutStreamRequest_Head{Put: op, Size: 100}, 101, kverr.InvalidArgument, "chunk"},
		{"too few of a long one", &kvv1.PutStreamRequest_Head{Put: op, Size: 3 << 20}, 2 << 20, kverr.InvalidArgument, "chunk"},
		{"too many of a long one", &kvv1.PutStreamRequest_Head{Put: op, Size: 2 << 20}, 3 << 20, kverr.InvalidArgument, "chunk"},
		{"too large", &kvv1.PutStreamRequest_Head{Put: op, Size: 4<<20 + 1}, 0, kverr.TooLarge, "head.size"},
		{"negative", &kvv1.PutStreamRequest_Head{Put: op, Size: -1}, 0, kverr.InvalidArgument, "head.size"},
		{"value in head", &kvv1.PutStreamRequest_Head{Put: &kvv1.PutOp{Key: []byte("k"), Value: []byte("v")}, Size: 1}, 1, kverr.InvalidArgument, "head.put.value"},
		{"no key", &kvv1.PutStreamRequest_Head{Size: 1}, 1, kverr.InvalidArgument, "head.put.key"},
		{"checksum", &kvv1.PutStreamRequest_Head{Put: op, Size: 10, Checksum: 1}, 10, kverr.InvalidArgument, "head.checksum"},
		{"checksum of a long one", &kvv1.PutStreamRequest_Head{Put: op, Size: 2 << 20, Checksum: 1}, 2 << 20, kverr.InvalidArgument, "head.checksum"},
		{"no namespace", &kvv1.PutStreamRequest_Head{Namespace: "x", Put: op, Size: 1}, 1, kverr.NotFound, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := putStream(t, ctx, r, tc.head, make([]byte, tc.bytes))
			if e := wantKind(t, tc.name, out.err, tc.want); e.Field != tc.field {
				t.Errorf("%v: field %q, want %q", out.err, e.Field, tc.field)
			}
			_, err := r.KV.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte("k")}})
			wantKind(t, "get after it", err, kverr.NotFound)
		})
	}
}
