package directory

import (
	"encoding/binary"
	"fmt"
	"slices"

	"kvstore/actors/shard"
	"kvstore/components/btree"
	"kvstore/components/key"
	"kvstore/components/ring"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Catalog is the directory as of one revision: what frontends route by. It is immutable and safe for any number of goroutines.
type Catalog struct {
	Revision  uint64
	Keyspaces []*Keyspace // by name
	Chores    int         // that were never done

	byName map[string]*Keyspace
}

// Keyspace is a keyspace of a catalog.
type Keyspace struct {
	Name       string
	UID        string
	Map        *ring.Map // its slots
	ShardIDs   []string  // by number
	CreatedMS  int64
	Version    uint64
	Ready      bool         // its shards exist; until then it cannot be used
	Namespaces []*Namespace // by name

	byName map[string]*Namespace
}

// Namespace is a namespace of a catalog.
type Namespace struct {
	Keyspace       *Keyspace
	Name           string
	UID            shard.NamespaceID
	Kind           kvv1.NamespaceKind
	Rule           key.Rule
	CapacityBlocks int64 // 0 = no limit
	CapacityBytes  int64 // 0 = no limit
	DefaultTTLMS   int64 // 0 = for ever
	OpsPerSecond   int64 // of each frontend; 0 = no limit
	CreatedMS      int64
	Version        uint64
}

// Revision is that of the last change which a Catalog of this state shows.
func Revision(t *btree.Tree) uint64 { return metaOf(t).visible }

// NewCatalog reads a durable state of the directory. Its cost is the number of namespaces.
func NewCatalog(t *btree.Tree) (*Catalog, error) {
	c := &Catalog{byName: make(map[string]*Keyspace)}
	c.Revision = Revision(t)
	for _, item := range t.Ascend([]byte{prefixKeyspace}, []byte{prefixKeyspace + 1}) {
		var p dataplanev1.DirectoryKeyspace
		if err := p.UnmarshalVT(item); err != nil {
			return nil, fmt.Errorf("directory: a keyspace: %w", err)
		}
		slots, err := ring.Decode(p.Map)
		if err != nil {
			return nil, fmt.Errorf("directory: keyspace %s: %w", p.Name, err)
		}
		ks := &Keyspace{
			Name: p.Name, UID: p.Uid, Map: slots, CreatedMS: p.CreatedMs, Version: p.Version, Ready: p.Ready,
			byName: make(map[string]*Namespace),
		}
		for n := range slots.Shards() {
			ks.ShardIDs = append(ks.ShardIDs, slots.ShardID(n))
		}
		c.Keyspaces = append(c.Keyspaces, ks)
		c.byName[ks.Name] = ks
	}
	for _, item := range t.Ascend([]byte{prefixNamespace}, []byte{prefixNamespace + 1}) {
		var p dataplanev1.DirectoryNamespace
		if err := p.UnmarshalVT(item); err != nil {
			return nil, fmt.Errorf("directory: a namespace: %w", err)
		}
		rule, err := ruleOf(p.Partition)
		if err != nil {
			return nil, fmt.Errorf("directory: namespace %s/%s: %w", p.Keyspace, p.Name, err)
		}
		ks := c.byName[p.Keyspace]
		if ks == nil {
			return nil, fmt.Errorf("directory: namespace %s/%s has no keyspace", p.Keyspace, p.Name)
		}
		ns := &Namespace{
			Keyspace: ks, Name: p.Name, UID: shard.NamespaceID(p.Uid), Kind: kvv1.NamespaceKind(p.Kind), Rule: rule,
			CapacityBlocks: p.CapacityBlocks, CapacityBytes: p.CapacityBytes, DefaultTTLMS: p.DefaultTtlMs, OpsPerSecond: p.OpsPerSecond,
			CreatedMS: p.CreatedMs, Version: p.Version,
		}
		ks.Namespaces = append(ks.Namespaces, ns)
		ks.byName[ns.Name] = ns
	}
	for range t.Ascend([]byte{prefixChore}, []byte{prefixChore + 1}) {
		c.Chores++
	}
	return c, nil
}

// Keyspace finds a keyspace by name.
func (c *Catalog) Keyspace(name string) (*Keyspace, bool) {
	ks, ok := c.byName[name]
	return ks, ok
}

// Namespace finds a namespace by name.
func (c *Catalog) Namespace(keyspace, name string) (*Namespace, bool) {
	ks, ok := c.byName[keyspace]
	if !ok {
		return nil, false
	}
	ns, ok := ks.byName[name]
	return ns, ok
}

// Namespace finds a namespace of the keyspace by name.
func (k *Keyspace) Namespace(name string) (*Namespace, bool) {
	ns, ok := k.byName[name]
	return ns, ok
}

// Chores returns what a durable state leaves to do on shards, oldest first.
func Chores(t *btree.Tree) []*dataplanev1.DirectoryChore { return choresOf(t) }

// NextDueMS is when the first of the chores that were done once is to be done again (see QuarantineMS), in milliseconds since the
// Unix epoch; 0 = there is none.
func NextDueMS(t *btree.Tree) int64 {
	for k := range t.Ascend([]byte{prefixSettled}, []byte{prefixSettled + 1}) {
		return int64(binary.BigEndian.Uint64(k[1:])) + QuarantineMS
	}
	return 0
}

// Due returns the chores that are to be done again at a time in milliseconds since the Unix epoch.
func Due(t *btree.Tree, nowMS int64) []*dataplanev1.DirectoryChore {
	if due := NextDueMS(t); due == 0 || due > nowMS {
		return nil
	}
	return slices.DeleteFunc(choresIn(t, prefixSettled), func(c *dataplanev1.DirectoryChore) bool {
		return c.SettledMs+QuarantineMS > nowMS
	})
}

// Proto returns the keyspace as users see it.
func (k *Keyspace) Proto() *kvv1.Keyspace {
	return &kvv1.Keyspace{Name: k.Name, Uid: k.UID, Shards: int32(len(k.ShardIDs)), CreatedMs: k.CreatedMS, Version: k.Version}
}

// Proto returns the namespace as users see it.
func (n *Namespace) Proto() *kvv1.Namespace {
	p := &kvv1.Namespace{
		Keyspace: n.Keyspace.Name, Name: n.Name, Uid: uint32(n.UID), Kind: n.Kind, Partition: &kvv1.PartitionRule{},
		CapacityBlocks: n.CapacityBlocks, CapacityBytes: n.CapacityBytes, DefaultTtlMs: n.DefaultTTLMS, OpsPerSecond: n.OpsPerSecond,
		CreatedMs: n.CreatedMS, Version: n.Version,
	}
	switch {
	case n.Rule.Whole():
		p.Partition.Rule = &kvv1.PartitionRule_Namespace{Namespace: true}
	case n.Rule.Elements() > 0:
		p.Partition.Rule = &kvv1.PartitionRule_PathElements{PathElements: int32(n.Rule.Elements())}
	default:
		p.Partition.Rule = &kvv1.PartitionRule_HashTag{HashTag: true}
	}
	return p
}
