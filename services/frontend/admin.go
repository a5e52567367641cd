package frontend

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// adminService is the AdminService: it validates, the directory does.
type adminService struct {
	kvv1.UnimplementedAdminServiceServer
	*Server
}

func (a *adminService) CreateKeyspace(ctx context.Context, req *kvv1.CreateKeyspaceRequest) (*kvv1.CreateKeyspaceResponse, error) {
	ks := req.GetKeyspace()
	if err := key.CheckName("keyspace.name", ks.GetName()); err != nil {
		return nil, err
	}
	if ks.Shards < 0 || ks.Shards > key.MaxShardsInKeyspace {
		return nil, kverr.Invalid("keyspace.shards", "is %d; it must be 1 to %d, or 0 for what the server is configured for", ks.Shards, key.MaxShardsInKeyspace)
	}
	made, err := a.dir.CreateKeyspace(ctx, &kvv1.Keyspace{Name: ks.Name, Shards: ks.Shards})
	if err != nil {
		return nil, kverr.From(err)
	}
	return &kvv1.CreateKeyspaceResponse{Keyspace: made}, nil
}

func (a *adminService) GetKeyspace(ctx context.Context, req *kvv1.GetKeyspaceRequest) (*kvv1.GetKeyspaceResponse, error) {
	ks, err := a.keyspace(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return &kvv1.GetKeyspaceResponse{Keyspace: ks.record.Keyspace}, nil
}

func (a *adminService) ListKeyspaces(ctx context.Context, _ *kvv1.ListKeyspacesRequest) (*kvv1.ListKeyspacesResponse, error) {
	c, err := a.current(ctx)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.ListKeyspacesResponse{}
	for _, ks := range c.keyspaces {
		resp.Keyspaces = append(resp.Keyspaces, ks.record.Keyspace)
	}
	slices.SortFunc(resp.Keyspaces, func(x, y *kvv1.Keyspace) int { return strings.Compare(x.Name, y.Name) })
	return resp, nil
}

func (a *adminService) DeleteKeyspace(ctx context.Context, req *kvv1.DeleteKeyspaceRequest) (*kvv1.DeleteKeyspaceResponse, error) {
	if err := key.CheckName("name", req.Name); err != nil {
		return nil, err
	}
	if err := checkConfirm(req.Confirm, req.Name); err != nil {
		return nil, err
	}
	if _, err := a.keyspace(ctx, req.Name); err != nil {
		return nil, err
	}
	if err := a.dir.DeleteKeyspace(ctx, req.Name); err != nil {
		return nil, kverr.From(err)
	}
	return &kvv1.DeleteKeyspaceResponse{}, nil
}

// AcceptLoss implements AdminService.
func (a *adminService) AcceptLoss(ctx context.Context, req *kvv1.AcceptLossRequest) (*kvv1.AcceptLossResponse, error) {
	if req.Shard == "" || len(req.Shard) > driver.MaxShardName {
		return nil, kverr.Invalid("shard", "is %.80q; it must be the id of a shard, as the error tells it", req.Shard)
	}
	if req.Confirm != req.Shard {
		return nil, kverr.Invalid("confirm", "is %.80q; it must repeat the id %q, for what its store has lost will be given up", req.Confirm, req.Shard)
	}
	mark, err := a.dir.AcceptLoss(ctx, req.Shard)
	if err != nil {
		return nil, kverr.From(err)
	}
	a.cfg.Log.Warn("a loss was accepted", "shard", req.Shard, "epoch", mark.Epoch, "seq", mark.Seq)
	return &kvv1.AcceptLossResponse{Epoch: mark.Epoch, Seq: mark.Seq}, nil
}

func checkConfirm(confirm, name string) *kverr.Error {
	if confirm != name {
		return kverr.Invalid("confirm", "is %.80q; it must repeat the name %q, for everything in it will be gone", confirm, name)
	}
	return nil
}

func (a *adminService) CreateNamespace(ctx context.Context, req *kvv1.CreateNamespaceRequest) (*kvv1.CreateNamespaceResponse, error) {
	want := req.GetNamespace()
	if want == nil {
		return nil, kverr.Invalid("namespace", "is missing")
	}
	if err := checkNamespace(want); err != nil {
		return nil, within("namespace", err)
	}
	ks, err := a.keyspace(ctx, want.Keyspace)
	if err != nil {
		return nil, err
	}
	made, derr := a.dir.CreateNamespace(ctx, &kvv1.Namespace{
		Keyspace: ks.Name, Name: want.Name, Kind: want.Kind, Partition: partitionOf(want.Partition),
		CapacityBlocks: want.CapacityBlocks, CapacityBytes: want.CapacityBytes, DefaultTtlMs: want.DefaultTtlMs, OpsPerSecond: want.OpsPerSecond,
	})
	if derr != nil {
		return nil, kverr.From(derr)
	}
	return &kvv1.CreateNamespaceResponse{Namespace: made}, nil
}

// partitionOf spells the default rule out.
func partitionOf(p *kvv1.PartitionRule) *kvv1.PartitionRule {
	if p.GetRule() == nil {
		return &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_HashTag{HashTag: true}}
	}
	return p
}

// checkNamespace validates a namespace to be made.
func checkNamespace(ns *kvv1.Namespace) *kverr.Error {
	if err := key.CheckName("name", ns.Name); err != nil {
		return kverr.From(err)
	}
	prompt := ns.Kind == kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT
	switch ns.Kind {
	case kvv1.NamespaceKind_NAMESPACE_KIND_KV, kvv1.NamespaceKind_NAMESPACE_KIND_CACHE, kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT:
	case kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED:
		return kverr.Invalid("kind", "is not set; it may be kv, cache or prompt")
	default:
		return kverr.Invalid("kind", "is %s, which this release does not serve; it may be kv, cache or prompt", kindName(ns.Kind))
	}
	rule, err := ruleOf(ns.Partition)
	switch {
	case err != nil:
		return kverr.From(err)
	case prompt && rule != key.HashTag():
		return kverr.Invalid("partition", "is %s; a namespace of kind prompt places blocks by their ids, leave it out", ruleName(rule))
	case !prompt && ns.CapacityBlocks != 0:
		return kverr.Invalid("capacity_blocks", "is %d; only kind prompt has a capacity", ns.CapacityBlocks)
	case !prompt && ns.CapacityBytes != 0:
		return kverr.Invalid("capacity_bytes", "is %d; only kind prompt has a capacity", ns.CapacityBytes)
	}
	return checkNamespaceNumbers(ns)
}

func checkNamespaceNumbers(ns *kvv1.Namespace) *kverr.Error {
	switch {
	case ns.CapacityBlocks < 0:
		return kverr.Invalid("capacity_blocks", "is %d; it must not be negative", ns.CapacityBlocks)
	case ns.CapacityBytes < 0:
		return kverr.Invalid("capacity_bytes", "is %d; it must not be negative", ns.CapacityBytes)
	case ns.DefaultTtlMs < 0 || ns.DefaultTtlMs > maxTTLMS:
		return kverr.Invalid("default_ttl_ms", "is %d; it must be 0 (for ever) to %d", ns.DefaultTtlMs, maxTTLMS)
	case ns.OpsPerSecond < 0 || ns.OpsPerSecond > key.MaxRate:
		return kverr.Invalid("ops_per_second", "is %d; it must be 0 (no limit) to %d", ns.OpsPerSecond, int64(key.MaxRate))
	}
	return nil
}

func (a *adminService) GetNamespace(ctx context.Context, req *kvv1.GetNamespaceRequest) (*kvv1.GetNamespaceResponse, error) {
	ns, err := a.lookUp(ctx, req.Keyspace, req.Name)
	if err != nil {
		return nil, err
	}
	return &kvv1.GetNamespaceResponse{Namespace: ns.record}, nil
}

func (a *adminService) lookUp(ctx context.Context, keyspace, name string) (*Namespace, *kverr.Error) {
	ks, err := a.keyspace(ctx, keyspace)
	if err != nil {
		return nil, err
	}
	return ks.namespace(name)
}

func (a *adminService) ListNamespaces(ctx context.Context, req *kvv1.ListNamespacesRequest) (*kvv1.ListNamespacesResponse, error) {
	ks, err := a.keyspace(ctx, req.Keyspace)
	if err != nil {
		return nil, err
	}
	return &kvv1.ListNamespacesResponse{Namespaces: ks.record.Namespaces}, nil
}

// mutable are the fields of a namespace that UpdateNamespace can change, and which kind has them.
var mutable = map[string]kvv1.NamespaceKind{
	"capacity_blocks": kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	"capacity_bytes":  kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	"default_ttl_ms":  kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED, // all kinds
	"ops_per_second":  kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED,
}

func (a *adminService) UpdateNamespace(ctx context.Context, req *kvv1.UpdateNamespaceRequest) (*kvv1.UpdateNamespaceResponse, error) {
	want := req.GetNamespace()
	if want == nil {
		return nil, kverr.Invalid("namespace", "is missing")
	}
	ns, err := a.lookUp(ctx, want.Keyspace, want.Name)
	if err != nil {
		return nil, err
	}
	mask := req.GetUpdateMask().GetPaths()
	if len(mask) == 0 {
		return nil, kverr.Invalid("update_mask", "is empty; it names the fields to change: capacity_blocks, capacity_bytes, default_ttl_ms, ops_per_second")
	}
	for _, path := range mask {
		kind, ok := mutable[path]
		switch {
		case !ok:
			return nil, kverr.Invalid("update_mask", "names %.80q; it may name capacity_blocks, capacity_bytes, default_ttl_ms and ops_per_second, for the rest is fixed", path)
		case kind != kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED && kind != ns.Kind:
			return nil, kverr.Invalid("update_mask", "names %s, which a namespace of kind %s does not have", path, kindName(ns.Kind))
		}
	}
	if err := checkNamespaceNumbers(want); err != nil {
		return nil, within("namespace", err)
	}
	changed := &kvv1.Namespace{
		Keyspace: ns.keyspace.Name, Name: ns.Name, Version: want.Version,
		CapacityBlocks: want.CapacityBlocks, CapacityBytes: want.CapacityBytes, DefaultTtlMs: want.DefaultTtlMs, OpsPerSecond: want.OpsPerSecond,
	}
	now, derr := a.dir.UpdateNamespace(ctx, changed, mask)
	if derr != nil {
		return nil, kverr.From(derr)
	}
	return &kvv1.UpdateNamespaceResponse{Namespace: now}, nil
}

func (a *adminService) DeleteNamespace(ctx context.Context, req *kvv1.DeleteNamespaceRequest) (*kvv1.DeleteNamespaceResponse, error) {
	if err := key.CheckName("name", req.Name); err != nil {
		return nil, err
	}
	if err := checkConfirm(req.Confirm, req.Name); err != nil {
		return nil, err
	}
	ns, err := a.lookUp(ctx, req.Keyspace, req.Name)
	if err != nil {
		return nil, err
	}
	if err := a.dir.DeleteNamespace(ctx, ns.keyspace.Name, ns.Name); err != nil {
		return nil, kverr.From(err)
	}
	return &kvv1.DeleteNamespaceResponse{}, nil
}

func (a *adminService) Status(ctx context.Context, req *kvv1.StatusRequest) (*kvv1.StatusResponse, error) {
	if req.HeadOnly || !a.seesServer(ctx) {
		return a.statusHead(&kvv1.StatusResponse{}), nil
	}
	if a.cfg.Status == nil {
		return nil, kverr.New(kverr.Unimplemented, "", "this frontend does not know how its shards are")
	}
	c, unasked := a.lastKnown(ctx)
	resp, serr := a.cfg.Status(ctx)
	if serr != nil {
		return nil, kverr.From(serr)
	}
	names := make(map[string]string)
	if c != nil {
		for _, ks := range c.keyspaces {
			for _, sh := range ks.Shards {
				names[sh.ID] = ks.Name
			}
		}
	}
	for _, sh := range resp.Shards {
		if sh.Keyspace = names[sh.Id]; sh.Keyspace == "" {
			sh.Keyspace = fmt.Sprintf("(%s)", sh.Id[:max(0, strings.LastIndexByte(sh.Id, '-'))])
		}
	}
	if d, ok := a.dir.(DirectoryCopy); ok {
		resp.Directory = d.CopyStatus()
	} else if unasked != nil {
		resp.Directory = &kvv1.StatusResponse_Directory{Reason: unasked.Error()}
	}
	return a.statusHead(resp), nil
}

// statusPatience is how long Status waits for the directory. It is asked on bad days above all.
const statusPatience = time.Second

// lastKnown is the catalog as of now, or else the last there was, which may be none, and why.
func (a *adminService) lastKnown(ctx context.Context) (*catalog, *kverr.Error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	c, err := a.current(ctx)
	if err != nil {
		c = a.catalog.Load()
	}
	return c, err
}

// statusHead fills in what every caller may know.
func (a *adminService) statusHead(resp *kvv1.StatusResponse) *kvv1.StatusResponse {
	resp.Header = &kvv1.ResponseHeader{ServerTimeMs: a.now()}
	resp.Version = a.cfg.Version
	resp.UptimeMs = a.cfg.Now().Sub(a.started).Milliseconds()
	return resp
}
