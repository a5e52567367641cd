package keeper

import (
	"context"

	"kvstore/actors/directory"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Request says which request it is, and which resources it means beyond their names, so that it can be repeated when its answer was
// lost: it is done once, and never to what was made under the same name meanwhile. The zero value is a request that is not repeated.
type Request struct {
	ID           []byte // identity, 16 random bytes
	KeyspaceUID  string // of the keyspace that it is in; empty = whichever has the name
	NamespaceUID uint32 // of the namespace to change or remove; 0 = whichever has the name
}

// command fills in a command on a namespace.
func (r *Request) command(op directory.Op, spec directory.NamespaceSpec) *directory.Command {
	spec.KeyspaceUID, spec.UID = r.KeyspaceUID, r.NamespaceUID
	return &directory.Command{Op: op, Namespace: spec, Identity: r.ID}
}

// CreateKeyspace makes a keyspace with its shards and waits until it can be used. When ctx ends first it is made all the same. Its
// uid, when it has one (NewUID), is the request's identity: asked again with the same uid, it is made once.
func (k *Keeper) CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error) {
	c := &directory.Command{Op: directory.OpCreateKeyspace, Keyspace: directory.KeyspaceSpec{Name: ks.GetName(), UID: ks.GetUid(), Shards: int(ks.GetShards())}}
	if c.Keyspace.UID == "" {
		c.Keyspace.UID = NewUID()
	}
	if c.Keyspace.Shards == 0 {
		c.Keyspace.Shards = k.cfg.DefaultShards
	}
	if err := k.do(ctx, c); err != nil {
		return nil, err
	}
	if err := k.awaitReady(ctx, c.Keyspace.Name); err != nil {
		return nil, doneBut(err)
	}
	catalog, err := k.Catalog(ctx)
	if err != nil {
		return nil, doneBut(err)
	}
	made, ok := catalog.Keyspace(c.Keyspace.Name)
	if !ok || made.UID != c.Keyspace.UID {
		return nil, kverr.New(kverr.NotFound, "create a keyspace", "it was removed again meanwhile")
	}
	return made.Proto(), nil
}

// doneBut is the error of a request that is in the log already: it must not tell that nothing was done.
func doneBut(err error) error {
	if kverr.KindOf(err).NotApplied() {
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "change the directory", Message: "it was changed; the directory was lost before that could be told", Err: err}
	}
	return err
}

// awaitReady waits until a keyspace is ready, or gone.
func (k *Keeper) awaitReady(ctx context.Context, name string) error {
	for {
		changed := k.Changed()
		catalog, err := k.Catalog(ctx)
		if err != nil {
			return err
		}
		if ks, ok := catalog.Keyspace(name); !ok || ks.Ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return asKind(context.Cause(ctx))
		}
	}
}

// DeleteKeyspace removes a keyspace with its namespaces at once, and what it holds soon after, also through a crash. With a uid it
// removes that keyspace and no other of its name.
func (k *Keeper) DeleteKeyspace(ctx context.Context, name, uid string) error {
	return k.do(ctx, &directory.Command{Op: directory.OpDeleteKeyspace, Keyspace: directory.KeyspaceSpec{Name: name, UID: uid}})
}

// CreateNamespace makes a namespace.
func (k *Keeper) CreateNamespace(ctx context.Context, ns *kvv1.Namespace, req Request) (*kvv1.Namespace, error) {
	spec := specOf(ns)
	switch rule := ns.GetPartition().GetRule().(type) {
	case *kvv1.PartitionRule_PathElements:
		if rule.PathElements < 1 {
			return nil, kverr.Invalid("namespace.partition.path_elements", "is %d; it must be 1 to 16", rule.PathElements)
		}
		spec.PathElements = int(rule.PathElements)
	case *kvv1.PartitionRule_Namespace:
		if !rule.Namespace {
			return nil, kverr.Invalid("namespace.partition.namespace", "is false; only true is accepted")
		}
		spec.Whole = true
	case *kvv1.PartitionRule_HashTag:
		if !rule.HashTag {
			return nil, kverr.Invalid("namespace.partition.hash_tag", "is false; only true is accepted")
		}
	}
	return k.change(ctx, req.command(directory.OpCreateNamespace, spec))
}

// UpdateNamespace changes the fields of a namespace that mask names: capacity_blocks, capacity_bytes, default_ttl_ms, ops_per_second. A version in
// ns that is not 0 must be the current one.
func (k *Keeper) UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string, req Request) (*kvv1.Namespace, error) {
	c := req.command(directory.OpUpdateNamespace, specOf(ns))
	c.Version = ns.GetVersion()
	for _, field := range mask {
		switch field {
		case "capacity_blocks":
			c.Fields |= directory.FieldCapacityBlocks
		case "capacity_bytes":
			c.Fields |= directory.FieldCapacityBytes
		case "default_ttl_ms":
			c.Fields |= directory.FieldDefaultTTL
		case "ops_per_second":
			c.Fields |= directory.FieldOpsPerSecond
		default:
			return nil, kverr.Invalid("update_mask", "names %q; it may name capacity_blocks, capacity_bytes, default_ttl_ms and ops_per_second", field)
		}
	}
	if c.Fields == 0 {
		return nil, kverr.Invalid("update_mask", "is empty; it must name what to change")
	}
	return k.change(ctx, c)
}

// DeleteNamespace removes a namespace at once, and what it holds soon after, also through a crash.
func (k *Keeper) DeleteNamespace(ctx context.Context, keyspace, name string, req Request) error {
	return k.do(ctx, req.command(directory.OpDeleteNamespace, directory.NamespaceSpec{Keyspace: keyspace, Name: name}))
}

func specOf(ns *kvv1.Namespace) directory.NamespaceSpec {
	return directory.NamespaceSpec{
		Keyspace: ns.GetKeyspace(), Name: ns.GetName(), Kind: ns.GetKind(),
		CapacityBlocks: ns.GetCapacityBlocks(), CapacityBytes: ns.GetCapacityBytes(), DefaultTTLMS: ns.GetDefaultTtlMs(), OpsPerSecond: ns.GetOpsPerSecond(),
	}
}

// change runs a command on a namespace and returns the namespace as it is then.
func (k *Keeper) change(ctx context.Context, c *directory.Command) (*kvv1.Namespace, error) {
	if err := k.do(ctx, c); err != nil {
		return nil, err
	}
	catalog, err := k.Catalog(ctx)
	if err != nil {
		return nil, doneBut(err)
	}
	ns, ok := catalog.Namespace(c.Namespace.Keyspace, c.Namespace.Name)
	if !ok {
		return nil, kverr.New(kverr.NotFound, "change a namespace", "it was removed again meanwhile")
	}
	return ns.Proto(), nil
}
