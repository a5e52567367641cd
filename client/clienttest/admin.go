package clienttest

import (
	"context"
	"maps"
	"slices"
	"strings"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// admin is AdminService.
type admin struct {
	kvstorev1.UnimplementedAdminServiceServer
	*Server
}

// Status is the RPC.
func (s admin) Status(context.Context, *kvstorev1.StatusRequest) (*kvstorev1.StatusResponse, error) {
	if err := s.Faults.runBefore("Status"); err != nil {
		return nil, err
	}
	h := s.header()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, sp := range s.spaces {
		n += len(sp.entries) + len(sp.blocks)
	}
	return &kvstorev1.StatusResponse{Header: h, Version: "clienttest", Engine: "memory", Shards: []*kvstorev1.StatusResponse_Shard{
		{Id: "0123456789abcdef-0", Keyspace: "default", State: "active", Epoch: 1, Revision: s.revision, Entries: int64(n)},
	}}, nil
}

// CreateKeyspace is the RPC.
func (s admin) CreateKeyspace(_ context.Context, r *kvstorev1.CreateKeyspaceRequest) (*kvstorev1.CreateKeyspaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ks := r.GetKeyspace()
	if ks.GetName() == "" {
		return nil, kverr.Invalid("keyspace.name", "is empty")
	}
	if s.keyspaces[ks.Name] != nil {
		return nil, kverr.New(kverr.AlreadyExists, "", "keyspace %q exists", ks.Name)
	}
	ks.Version = 1
	s.keyspaces[ks.Name] = ks
	s.namespaces[ks.Name+"/default"] = &kvstorev1.Namespace{
		Keyspace: ks.Name, Name: "default", Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_KV, Version: 1,
	}
	return &kvstorev1.CreateKeyspaceResponse{Keyspace: ks}, nil
}

// GetKeyspace is the RPC.
func (s admin) GetKeyspace(_ context.Context, r *kvstorev1.GetKeyspaceRequest) (*kvstorev1.GetKeyspaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ks := s.keyspaces[r.Name]; ks != nil {
		return &kvstorev1.GetKeyspaceResponse{Keyspace: ks}, nil
	}
	return nil, kverr.New(kverr.NotFound, "", "no keyspace %q", r.Name)
}

// ListKeyspaces is the RPC.
func (s admin) ListKeyspaces(context.Context, *kvstorev1.ListKeyspacesRequest) (*kvstorev1.ListKeyspacesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &kvstorev1.ListKeyspacesResponse{}
	for _, k := range slices.Sorted(maps.Keys(s.keyspaces)) {
		resp.Keyspaces = append(resp.Keyspaces, s.keyspaces[k])
	}
	return resp, nil
}

// AcceptLoss is the RPC: nothing is ever lost here.
func (s admin) AcceptLoss(_ context.Context, r *kvstorev1.AcceptLossRequest) (*kvstorev1.AcceptLossResponse, error) {
	if r.Confirm != r.Shard {
		return nil, kverr.Invalid("confirm", "must repeat the id")
	}
	return &kvstorev1.AcceptLossResponse{Epoch: 1, Seq: 7}, nil
}

// DeleteKeyspace is the RPC.
func (s admin) DeleteKeyspace(_ context.Context, r *kvstorev1.DeleteKeyspaceRequest) (*kvstorev1.DeleteKeyspaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keyspaces[r.Name] == nil {
		return nil, kverr.New(kverr.NotFound, "", "no keyspace %q", r.Name)
	}
	if r.Confirm != r.Name {
		return nil, kverr.Invalid("confirm", "is %q, not the name", r.Confirm)
	}
	delete(s.keyspaces, r.Name)
	for _, m := range slices.Collect(maps.Keys(s.namespaces)) {
		if strings.HasPrefix(m, r.Name+"/") {
			delete(s.namespaces, m)
			delete(s.spaces, m)
		}
	}
	return &kvstorev1.DeleteKeyspaceResponse{}, nil
}

// CreateNamespace is the RPC.
func (s admin) CreateNamespace(
	_ context.Context, r *kvstorev1.CreateNamespaceRequest,
) (*kvstorev1.CreateNamespaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := r.GetNamespace()
	if ns.GetName() == "" {
		return nil, kverr.Invalid("namespace.name", "is empty")
	}
	ns.Keyspace = or(ns.Keyspace, "default")
	k := ns.Keyspace + "/" + ns.Name
	if s.namespaces[k] != nil {
		return nil, kverr.New(kverr.AlreadyExists, "", "namespace %q exists", ns.Name)
	}
	if ns.Kind == 0 {
		ns.Kind = kvstorev1.NamespaceKind_NAMESPACE_KIND_KV
	}
	ns.Version = 1
	ns.CreatedMs = s.now().UnixMilli()
	s.namespaces[k] = ns
	return &kvstorev1.CreateNamespaceResponse{Namespace: ns}, nil
}

func (s admin) find(keyspace, name string) (*kvstorev1.Namespace, error) {
	if ns := s.namespaces[or(keyspace, "default")+"/"+name]; ns != nil {
		return ns, nil
	}
	return nil, kverr.New(kverr.NotFound, "", "no namespace %q", name)
}

// GetNamespace is the RPC.
func (s admin) GetNamespace(_ context.Context, r *kvstorev1.GetNamespaceRequest) (*kvstorev1.GetNamespaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns, err := s.find(r.Keyspace, r.Name)
	return &kvstorev1.GetNamespaceResponse{Namespace: ns}, err
}

// ListNamespaces is the RPC.
func (s admin) ListNamespaces(_ context.Context, r *kvstorev1.ListNamespacesRequest) (*kvstorev1.ListNamespacesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &kvstorev1.ListNamespacesResponse{}
	for _, k := range slices.Sorted(maps.Keys(s.namespaces)) {
		if strings.HasPrefix(k, or(r.Keyspace, "default")+"/") {
			resp.Namespaces = append(resp.Namespaces, s.namespaces[k])
		}
	}
	return resp, nil
}

// UpdateNamespace is the RPC.
func (s admin) UpdateNamespace(
	_ context.Context, r *kvstorev1.UpdateNamespaceRequest,
) (*kvstorev1.UpdateNamespaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.find(r.GetNamespace().GetKeyspace(), r.GetNamespace().GetName())
	if err != nil {
		return nil, err
	}
	if v := r.Namespace.Version; v != 0 && v != old.Version {
		return nil, kverr.Mismatch(old.Version)
	}
	ns := &kvstorev1.Namespace{
		Keyspace: old.Keyspace, Name: old.Name, Uid: old.Uid, Kind: old.Kind, Partition: old.Partition,
		CapacityBlocks: old.CapacityBlocks, CapacityBytes: old.CapacityBytes, DefaultTtlMs: old.DefaultTtlMs, OpsPerSecond: old.OpsPerSecond,
		CreatedMs: old.CreatedMs, Version: old.Version + 1,
	}
	for _, f := range r.UpdateMask.GetPaths() {
		switch f {
		case "capacity_blocks":
			ns.CapacityBlocks = r.Namespace.CapacityBlocks
		case "capacity_bytes":
			ns.CapacityBytes = r.Namespace.CapacityBytes
		case "default_ttl_ms":
			ns.DefaultTtlMs = r.Namespace.DefaultTtlMs
		case "ops_per_second":
			ns.OpsPerSecond = r.Namespace.OpsPerSecond
		default:
			return nil, kverr.Invalid("update_mask", "names %q", f)
		}
	}
	s.namespaces[ns.Keyspace+"/"+ns.Name] = ns
	return &kvstorev1.UpdateNamespaceResponse{Namespace: ns}, nil
}

// DeleteNamespace is the RPC.
func (s admin) DeleteNamespace(
	_ context.Context, r *kvstorev1.DeleteNamespaceRequest,
) (*kvstorev1.DeleteNamespaceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns, err := s.find(r.Keyspace, r.Name)
	if err != nil {
		return nil, err
	}
	if r.Confirm != r.Name {
		return nil, kverr.Invalid("confirm", "is %q, not the name", r.Confirm)
	}
	delete(s.namespaces, ns.Keyspace+"/"+ns.Name)
	delete(s.spaces, ns.Keyspace+"/"+ns.Name)
	return &kvstorev1.DeleteNamespaceResponse{}, nil
}
