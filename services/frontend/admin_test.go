package frontend

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

const (
	kindKV     = kvv1.NamespaceKind_NAMESPACE_KIND_KV
	kindPrompt = kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT
)

func TestKeyspacesAndNamespaces(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	made, err := r.Admin.CreateKeyspace(ctx, &kvv1.CreateKeyspaceRequest{Keyspace: &kvv1.Keyspace{Name: "tenant"}})
	if err != nil || made.Keyspace.Shards != 4 || len(made.Keyspace.Uid) != 16 {
		t.Fatalf("%v, %v", made, err)
	}
	got, err := r.Admin.GetKeyspace(ctx, &kvv1.GetKeyspaceRequest{Name: "tenant"})
	if err != nil || got.Keyspace.Uid != made.Keyspace.Uid {
		t.Errorf("%v, %v", got, err)
	}
	list, err := r.Admin.ListKeyspaces(ctx, &kvv1.ListKeyspacesRequest{})
	if err != nil || len(list.Keyspaces) != 2 || list.Keyspaces[0].Name != "default" || list.Keyspaces[1].Name != "tenant" {
		t.Errorf("%v, %v", list, err)
	}
	ns, err := r.Admin.CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{Namespace: &kvv1.Namespace{
		Keyspace: "tenant", Name: "orders", Kind: kindKV, DefaultTtlMs: 5_000_000,
		Partition: &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: 2}},
	}})
	if err != nil || ns.Namespace.Uid == 0 || ns.Namespace.Partition.GetPathElements() != 2 {
		t.Fatalf("%v, %v", ns, err)
	}
	put := func(k string) *kvv1.Entry {
		t.Helper()
		if _, err := r.KV.Put(ctx, &kvv1.PutRequest{Keyspace: "tenant", Namespace: "orders", Put: &kvv1.PutOp{Key: []byte(k)}}); err != nil {
			t.Fatal(err)
		}
		resp, err := r.KV.Get(ctx, &kvv1.GetRequest{Keyspace: "tenant", Namespace: "orders", Get: &kvv1.GetOp{Key: []byte(k)}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Entry
	}
	if e := put("a/b/c"); e.ExpiresMs != e.UpdatedMs+5_000_000 {
		t.Errorf("the namespace's time to live is not kept: %v", e)
	}
	txn := func(a, b string) error {
		req := &kvv1.TransactionRequest{Keyspace: "tenant", Namespace: "orders"}
		for _, k := range []string{a, b} {
			req.Ops = append(req.Ops, &kvv1.TransactionRequest_Op{Op: &kvv1.TransactionRequest_Op_Put{Put: &kvv1.PutOp{Key: []byte(k)}}})
		}
		_, err := r.KV.Transaction(ctx, req)
		return err
	}
	if err := txn("a/b/c", "a/b/d"); err != nil {
		t.Errorf("in one partition: %v", err)
	}
	wantKind(t, "in two partitions", txn("a/b/c", "a/c/d"), kverr.CrossPartition)

	updated, err := r.Admin.UpdateNamespace(ctx, &kvv1.UpdateNamespaceRequest{
		Namespace:  &kvv1.Namespace{Keyspace: "tenant", Name: "orders", DefaultTtlMs: 0, Version: ns.Namespace.Version},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"default_ttl_ms"}},
	})
	if err != nil || updated.Namespace.DefaultTtlMs != 0 || updated.Namespace.Version <= ns.Namespace.Version {
		t.Fatalf("%v, %v", updated, err)
	}
	if e := put("x/y/z"); e.ExpiresMs != 0 {
		t.Errorf("the old time to live is still kept: %v", e)
	}
	_, err = r.Admin.UpdateNamespace(ctx, &kvv1.UpdateNamespaceRequest{
		Namespace:  &kvv1.Namespace{Keyspace: "tenant", Name: "orders", Version: ns.Namespace.Version},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"default_ttl_ms"}},
	})
	wantKind(t, "update of an old version", err, kverr.VersionMismatch)

	if _, err := r.Admin.DeleteNamespace(ctx, &kvv1.DeleteNamespaceRequest{Keyspace: "tenant", Name: "orders", Confirm: "orders"}); err != nil {
		t.Fatal(err)
	}
	_, err = r.KV.Get(ctx, &kvv1.GetRequest{Keyspace: "tenant", Namespace: "orders", Get: &kvv1.GetOp{Key: []byte("a/b/c")}})
	wantKind(t, "namespace is gone", err, kverr.NotFound)
	if _, err := r.Admin.DeleteKeyspace(ctx, &kvv1.DeleteKeyspaceRequest{Name: "tenant", Confirm: "tenant"}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Admin.ListNamespaces(ctx, &kvv1.ListNamespacesRequest{Keyspace: "tenant"})
	wantKind(t, "keyspace is gone", err, kverr.NotFound)
}

func TestAdminRefusals(t *testing.T) {
	r := newRig(t, Config{}, nil)
	ctx := testContext(t)
	createNS := func(change func(*kvv1.Namespace)) func() error {
		return func() error {
			ns := &kvv1.Namespace{Name: "new", Kind: kindKV}
			change(ns)
			_, err := r.Admin.CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{Namespace: ns})
			return err
		}
	}
	createKS := func(ks *kvv1.Keyspace) func() error {
		return func() error {
			_, err := r.Admin.CreateKeyspace(ctx, &kvv1.CreateKeyspaceRequest{Keyspace: ks})
			return err
		}
	}
	update := func(ns *kvv1.Namespace, mask ...string) func() error {
		return func() error {
			_, err := r.Admin.UpdateNamespace(ctx, &kvv1.UpdateNamespaceRequest{Namespace: ns, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
			return err
		}
	}
	for _, tc := range []struct {
		name  string
		call  func() error
		want  kverr.Kind
		field string
	}{
		{"no keyspace", createKS(nil), kverr.InvalidArgument, "keyspace.name"},
		{"bad name", createKS(&kvv1.Keyspace{Name: "A"}), kverr.InvalidArgument, "keyspace.name"},
		{"long name", createKS(&kvv1.Keyspace{Name: strings.Repeat("a", 65)}), kverr.TooLarge, "keyspace.name"},
		{"many shards", createKS(&kvv1.Keyspace{Name: "a", Shards: 1025}), kverr.InvalidArgument, "keyspace.shards"},
		{"negative shards", createKS(&kvv1.Keyspace{Name: "a", Shards: -1}), kverr.InvalidArgument, "keyspace.shards"},
		{"taken keyspace", createKS(&kvv1.Keyspace{Name: "default"}), kverr.AlreadyExists, ""},
		{"no namespace", func() error { _, err := r.Admin.CreateNamespace(ctx, &kvv1.CreateNamespaceRequest{}); return err }, kverr.InvalidArgument, "namespace"},
		{"bad namespace", createNS(func(n *kvv1.Namespace) { n.Name = "a/b" }), kverr.InvalidArgument, "namespace.name"},
		{"no kind", createNS(func(n *kvv1.Namespace) { n.Kind = 0 }), kverr.InvalidArgument, "namespace.kind"},
		{"reserved kind", createNS(func(n *kvv1.Namespace) { n.Kind = kvv1.NamespaceKind_NAMESPACE_KIND_TREE }), kverr.InvalidArgument, "namespace.kind"},
		{"hash_tag false", createNS(func(n *kvv1.Namespace) {
			n.Partition = &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_HashTag{}}
		}), kverr.InvalidArgument, "namespace.partition.hash_tag"},
		{"17 elements", createNS(func(n *kvv1.Namespace) {
			n.Partition = &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: 17}}
		}), kverr.InvalidArgument, "namespace.partition.path_elements"},
		{"namespace false", createNS(func(n *kvv1.Namespace) {
			n.Partition = &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_Namespace{}}
		}), kverr.InvalidArgument, "namespace.partition.namespace"},
		{"capacity of kv", createNS(func(n *kvv1.Namespace) { n.CapacityBlocks = 1 }), kverr.InvalidArgument, "namespace.capacity_blocks"},
		{"bytes of kv", createNS(func(n *kvv1.Namespace) { n.CapacityBytes = 1 }), kverr.InvalidArgument, "namespace.capacity_bytes"},
		{"negative capacity", createNS(func(n *kvv1.Namespace) { n.Kind, n.CapacityBlocks = kindPrompt, -1 }), kverr.InvalidArgument, "namespace.capacity_blocks"},
		{"partitioned prompts", createNS(func(n *kvv1.Namespace) {
			n.Kind, n.Partition = kindPrompt, &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: 2}}
		}), kverr.InvalidArgument, "namespace.partition"},
		{"negative ttl", createNS(func(n *kvv1.Namespace) { n.DefaultTtlMs = -1 }), kverr.InvalidArgument, "namespace.default_ttl_ms"},
		{"other keyspace", createNS(func(n *kvv1.Namespace) { n.Keyspace = "other" }), kverr.NotFound, ""},
		{"taken namespace", createNS(func(n *kvv1.Namespace) { n.Name = "default" }), kverr.AlreadyExists, ""},
		{"no mask", update(&kvv1.Namespace{Name: "prompts"}), kverr.InvalidArgument, "update_mask"},
		{"fixed field", update(&kvv1.Namespace{Name: "prompts"}, "kind"), kverr.InvalidArgument, "update_mask"},
		{"field of another kind", update(&kvv1.Namespace{Name: "default"}, "capacity_blocks"), kverr.InvalidArgument, "update_mask"},
		{"bad update", update(&kvv1.Namespace{Name: "prompts", CapacityBytes: -1}, "capacity_bytes"), kverr.InvalidArgument, "namespace.capacity_bytes"},
		{"update of nothing", update(nil, "capacity_bytes"), kverr.InvalidArgument, "namespace"},
		{"unconfirmed", func() error {
			_, err := r.Admin.DeleteNamespace(ctx, &kvv1.DeleteNamespaceRequest{Name: "default"})
			return err
		}, kverr.InvalidArgument, "confirm"},
		{"confirmed wrongly", func() error {
			_, err := r.Admin.DeleteKeyspace(ctx, &kvv1.DeleteKeyspaceRequest{Name: "default", Confirm: "Default"})
			return err
		}, kverr.InvalidArgument, "confirm"},
		{"delete of nothing", func() error {
			_, err := r.Admin.DeleteKeyspace(ctx, &kvv1.DeleteKeyspaceRequest{Name: "other", Confirm: "other"})
			return err
		}, kverr.NotFound, ""},
		{"delete of no name", func() error {
			_, err := r.Admin.DeleteNamespace(ctx, &kvv1.DeleteNamespaceRequest{})
			return err
		}, kverr.InvalidArgument, "name"},
		{"status unknown", func() error { _, err := r.Admin.Status(ctx, &kvv1.StatusRequest{}); return err }, kverr.Unimplemented, ""},
	} {
		err := tc.call()
		if err == nil {
			t.Errorf("%s: succeeded", tc.name)
			continue
		}
		if e := kverr.FromGRPC(err); e.Kind != tc.want || e.Field != tc.field {
			t.Errorf("%s: %v (%v of field %q), want %v of field %q", tc.name, err, e.Kind, e.Field, tc.want, tc.field)
		}
	}
	list, err := r.Admin.ListNamespaces(ctx, &kvv1.ListNamespacesRequest{})
	if err != nil || !slices.EqualFunc(list.Namespaces, []string{"default", "prompts"}, func(n *kvv1.Namespace, name string) bool { return n.Name == name }) {
		t.Errorf("refused requests left something behind: %v, %v", list, err)
	}
}

// silent is a directory that does not answer any more.
type silent struct {
	Directory
	since atomic.Bool
}

func (d *silent) Revision(ctx context.Context) (uint64, error) {
	if d.since.Load() {
		<-ctx.Done()
		return 0, kverr.From(ctx.Err())
	}
	return d.Directory.Revision(ctx)
}

// TestStatusOnABadDay: with a directory that cannot be asked the shards are told all the same, and why; whoever connects asks nobody.
func TestStatusOnABadDay(t *testing.T) {
	r := newRig(t, Config{Status: func(context.Context) (*kvv1.StatusResponse, error) {
		return &kvv1.StatusResponse{Engine: "memory", Shards: []*kvv1.StatusResponse_Shard{{Id: "0000000000000001-0"}}}, nil
	}}, nil)
	ctx := testContext(t)
	well, err := r.Admin.Status(ctx, &kvv1.StatusRequest{})
	if err != nil || len(well.Shards) != 1 || well.Shards[0].Keyspace != DefaultName || well.Directory != nil {
		t.Fatal(well, err)
	}
	d := &silent{Directory: r.Server.dir}
	r.Server.dir = d
	d.since.Store(true)
	head, err := r.Admin.Status(ctx, &kvv1.StatusRequest{HeadOnly: true})
	if err != nil || head.Header.GetServerTimeMs() == 0 || head.Version == "" || head.Engine != "" {
		t.Fatal(head, err)
	}
	ill, err := r.Admin.Status(ctx, &kvv1.StatusRequest{})
	if err != nil || len(ill.Shards) != 1 || ill.Shards[0].Keyspace != DefaultName || ill.Directory.GetReason() == "" {
		t.Fatal(ill, err)
	}
}
