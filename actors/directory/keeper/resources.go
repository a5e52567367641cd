package keeper

import (
	"context"

	"kvstore/actors/directory"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// CreateKeyspace makes a keyspace with its shards and waits until it can be used. When ctx ends first it is made all the same.
func (k *Keeper) CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error) {
	c := &directory.Command{Op: directory.OpCreateKeyspace, Keyspace: directory.KeyspaceSpec{Name: ks.GetName(), UID: newUID(), Shards: int(ks.GetShards())}}
	if c.Keyspace.Shards == 0 {
		c.Keyspace.Shards = k.cfg.DefaultShards
	}
	if err := k.do(ctx, c); err != nil {
		return nil, err
	}
	if err := k.awaitReady(ctx, c.Keyspace.Name); err != nil {
		return nil, err
	}
	catalog, err := k.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	made, ok := catalog.Keyspace(c.Keyspace.Name)
	if !ok || made.UID != c.Keyspace.UID {
		return nil, kverr.New(kverr.NotFound, "create a keyspace", "it was removed again meanwhile")
	}
	return made.Proto(), nil
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

// DeleteKeyspace removes a keyspace with its namespaces at once, and what it holds soon after, also through a crash.
func (k *Keeper) DeleteKeyspace(ctx context.Context, name string) error {
	return k.do(ctx, &directory.Command{Op: directory.OpDeleteKeyspace, Keyspace: directory.KeyspaceSpec{Name: name}})
}

// CreateNamespace makes a namespace.
func (k *Keeper) CreateNamespace(ctx context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error) {
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
	return k.change(ctx, &directory.Command{Op: directory.OpCreateNamespace, Namespace: spec})
}

// UpdateNamespace changes the fields of a namespace that mask names: capacity_blocks, capacity_bytes, default_ttl_ms. A version in
// ns that is not 0 must be the current one.
func (k *Keeper) UpdateNamespace(ctx context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error) {
	c := &directory.Command{Op: directory.OpUpdateNamespace, Namespace: specOf(ns), Version: ns.GetVersion()}
	for _, field := range mask {
		switch field {
		case "capacity_blocks":
			c.Fields |= directory.FieldCapacityBlocks
		case "capacity_bytes":
			c.Fields |= directory.FieldCapacityBytes
		case "default_ttl_ms":
			c.Fields |= directory.FieldDefaultTTL
		default:
			return nil, kverr.Invalid("update_mask", "names %q; it may name capacity_blocks, capacity_bytes and default_ttl_ms", field)
		}
	}
	if c.Fields == 0 {
		return nil, kverr.Invalid("update_mask", "is empty; it must name what to change")
	}
	return k.change(ctx, c)
}

// DeleteNamespace removes a namespace at once, and what it holds soon after, also through a crash.
func (k *Keeper) DeleteNamespace(ctx context.Context, keyspace, name string) error {
	return k.do(ctx, &directory.Command{Op: directory.OpDeleteNamespace, Namespace: directory.NamespaceSpec{Keyspace: keyspace, Name: name}})
}

func specOf(ns *kvv1.Namespace) directory.NamespaceSpec {
	return directory.NamespaceSpec{
		Keyspace: ns.GetKeyspace(), Name: ns.GetName(), Kind: ns.GetKind(),
		CapacityBlocks: ns.GetCapacityBlocks(), CapacityBytes: ns.GetCapacityBytes(), DefaultTTLMS: ns.GetDefaultTtlMs(),
	}
}

// change runs a command on a namespace and returns the namespace as it is then.
func (k *Keeper) change(ctx context.Context, c *directory.Command) (*kvv1.Namespace, error) {
	if err := k.do(ctx, c); err != nil {
		return nil, err
	}
	catalog, err := k.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	ns, ok := catalog.Namespace(c.Namespace.Keyspace, c.Namespace.Name)
	if !ok {
		return nil, kverr.New(kverr.NotFound, "change a namespace", "it was removed again meanwhile")
	}
	return ns.Proto(), nil
}
