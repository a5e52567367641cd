package frontend

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// DefaultName is the keyspace and the namespace that an empty name means.
const DefaultName = "default"

// Keyspace is a keyspace as requests need it; immutable.
type Keyspace struct {
	Name   string
	Map    *ring.Map
	Shards []*Shard // by number
	uid    uint64   // the uid's 16 hexadecimal digits, for tokens
	spaces map[string]*Namespace
	record *KeyspaceRecord
}

// Shard is a shard of a keyspace; immutable.
type Shard struct {
	ID       string
	Number   int
	keyspace *Keyspace
}

// alone is a list of this shard.
func (s *Shard) alone() []*Shard { return s.keyspace.Shards[s.Number : s.Number+1] }

// owner is the shard that owns a slot.
func (ks *Keyspace) owner(slot uint16) *Shard { return ks.Shards[ks.Map.Owner(slot)] }

// Namespace is a namespace as requests need it; immutable.
type Namespace struct {
	Name           string
	ID             shard.NamespaceID
	Kind           kvv1.NamespaceKind
	DefaultTTLMS   int64
	CapacityBlocks int64 // of the whole namespace; 0 = no limit
	CapacityBytes  int64
	rule           key.Rule
	rate           int64   // operations a second; 0 = no limit
	bucket         *bucket // what of rate is left; it outlives catalogs
	keyspace       *Keyspace
	record         *kvv1.Namespace
}

// Keyspace returns the keyspace that the namespace lives in.
func (ns *Namespace) Keyspace() *Keyspace { return ns.keyspace }

// partition is the part of a key that decides its slot.
func (ns *Namespace) partition(k []byte) []byte { return ns.rule.Partition(k) }

func (ns *Namespace) slot(k []byte) uint16 { return ring.Slot(ns.Name, ns.partition(k)) }

// ShardOf is the shard that owns a key.
func (ns *Namespace) ShardOf(k []byte) *Shard { return ns.keyspace.owner(ns.slot(k)) }

// place fills in the slot of a put and returns the shard that owns it.
func (ns *Namespace) place(p *shard.Put) *Shard {
	p.Slot = ns.slot(p.Key)
	return ns.keyspace.owner(p.Slot)
}

// placeDelete does the same for a delete.
func (ns *Namespace) placeDelete(d *shard.Delete) *Shard {
	d.Slot = ns.slot(d.Key)
	return ns.keyspace.owner(d.Slot)
}

// applyDefaults fills in what the namespace decides for writes that do not.
func (ns *Namespace) applyDefaults(p *shard.Put) {
	if p.TTLMS == 0 { // with KeepTTL it is for a key that is not there
		p.TTLMS = ns.DefaultTTLMS
	}
}

// catalog is all keyspaces and namespaces as of one revision of the directory; immutable. It is made anew when the
// directory changes, which administrators do, not requests.
type catalog struct {
	revision  uint64
	keyspaces map[string]*Keyspace
}

// current returns the catalog as of now.
func (s *Server) current(ctx context.Context) (*catalog, *kverr.Error) {
	c := s.catalog.Load() // before the question: a lower answer then is that of a directory that has lost what c shows
	revision, err := s.dir.Revision(ctx)
	if err != nil {
		return nil, kverr.From(err)
	}
	if c != nil && c.revision == revision {
		return c, nil
	}
	return s.reload(ctx, c, revision)
}

// reload makes the catalog anew, once for all who find it out of date.
func (s *Server) reload(ctx context.Context, old *catalog, revision uint64) (*catalog, *kverr.Error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	if c := s.catalog.Load(); c != nil && c != old && c.revision >= revision {
		return c, nil
	}
	snap, err := s.dir.Snapshot(ctx)
	if err != nil {
		return nil, kverr.From(err)
	}
	c, err := newCatalog(snap, s.catalog.Load())
	if err != nil {
		return nil, kverr.Wrap(kverr.Unknown, "read the directory", err)
	}
	s.catalog.Store(c)
	return c, nil
}

func newCatalog(snap *Snapshot, before *catalog) (*catalog, error) {
	c := &catalog{revision: snap.Revision, keyspaces: make(map[string]*Keyspace, len(snap.Keyspaces))}
	for i := range snap.Keyspaces {
		record := &snap.Keyspaces[i]
		ks := &Keyspace{
			Name: record.Keyspace.Name, Map: record.Map, record: record,
			Shards: make([]*Shard, record.Map.Shards()), spaces: make(map[string]*Namespace, len(record.Namespaces)),
		}
		var err error
		if ks.uid, err = strconv.ParseUint(record.Keyspace.Uid, 16, 64); err != nil {
			return nil, fmt.Errorf("keyspace %q: uid: %w", ks.Name, err)
		}
		for n := range ks.Shards {
			ks.Shards[n] = &Shard{ID: record.Map.ShardID(n), Number: n, keyspace: ks}
		}
		for _, r := range record.Namespaces {
			rule, err := ruleOf(r.Partition)
			if err != nil {
				return nil, fmt.Errorf("namespace %q of keyspace %q: %w", r.Name, ks.Name, err)
			}
			ns := &Namespace{
				Name: r.Name, ID: shard.NamespaceID(r.Uid), Kind: r.Kind, DefaultTTLMS: r.DefaultTtlMs,
				CapacityBlocks: r.CapacityBlocks, CapacityBytes: r.CapacityBytes, rule: rule, rate: r.OpsPerSecond, keyspace: ks, record: r,
			}
			ns.bucket = before.bucketOf(ns)
			ks.spaces[r.Name] = ns
		}
		c.keyspaces[ks.Name] = ks
	}
	return c, nil
}

// bucketOf is the bucket that a namespace had before, or a new one. A bucket counts in the time of its rate, so another rate begins with another.
func (c *catalog) bucketOf(ns *Namespace) *bucket {
	if c != nil {
		if ks := c.keyspaces[ns.keyspace.Name]; ks != nil && ks.uid == ns.keyspace.uid {
			if old := ks.spaces[ns.Name]; old != nil && old.ID == ns.ID && old.rate == ns.rate {
				return old.bucket
			}
		}
	}
	return new(bucket)
}

// ruleOf converts a partition rule; none is hash_tag.
func ruleOf(p *kvv1.PartitionRule) (key.Rule, error) {
	switch r := p.GetRule().(type) {
	case *kvv1.PartitionRule_HashTag:
		if !r.HashTag {
			return key.Rule{}, kverr.Invalid("partition.hash_tag", "is false; only true is accepted")
		}
	case *kvv1.PartitionRule_PathElements:
		return key.PathElements(int(r.PathElements))
	case *kvv1.PartitionRule_Namespace:
		if !r.Namespace {
			return key.Rule{}, kverr.Invalid("partition.namespace", "is false; only true is accepted")
		}
		return key.WholeNamespace(), nil
	}
	return key.HashTag(), nil
}

// keyspace finds a keyspace; an empty name means "default". Requests go through Server.keyspace.
func (c *catalog) keyspace(name string) (*Keyspace, *kverr.Error) {
	if name == "" {
		name = DefaultName
	}
	if ks, ok := c.keyspaces[name]; ok {
		return ks, nil
	}
	return nil, noSuch("keyspace", name, c.keyspaces)
}

// namespace finds a namespace; an empty name means "default".
func (ks *Keyspace) namespace(name string) (*Namespace, *kverr.Error) {
	if name == "" {
		name = DefaultName
	}
	if ns, ok := ks.spaces[name]; ok {
		return ns, nil
	}
	return nil, noSuch("namespace", name, ks.spaces)
}

// namespace finds the namespace of a request, as findNamespace, and counts an operation on it.
func (s *Server) namespace(ctx context.Context, keyspace, name string, kinds ...kvv1.NamespaceKind) (*Namespace, *kverr.Error) {
	ns, err := s.findNamespace(ctx, keyspace, name, kinds...)
	if err != nil {
		return nil, err
	}
	if err := s.spend(ctx, ns, 1); err != nil {
		return nil, err
	}
	return ns, nil
}

// findNamespace finds the namespace of a request and holds it to one of some kinds. Empty names mean "default".
func (s *Server) findNamespace(ctx context.Context, keyspace, name string, kinds ...kvv1.NamespaceKind) (*Namespace, *kverr.Error) {
	ks, err := s.keyspace(ctx, keyspace)
	if err != nil {
		return nil, err
	}
	ns, err := ks.namespace(name)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(kinds, ns.Kind) {
		return nil, &kverr.Error{Kind: kverr.WrongKind, Message: fmt.Sprintf(
			"namespace %q is of kind %s, this call needs %s", ns.Name, kindName(ns.Kind), kindName(kinds[0]))}
	}
	return ns, nil
}

// keyKinds are the kinds of namespaces that hold keys. Kind cache is kind kv in everything but what RESP may answer instead of an error
// (Namespace.MissesForErrors).
var keyKinds = []kvv1.NamespaceKind{kvv1.NamespaceKind_NAMESPACE_KIND_KV, kvv1.NamespaceKind_NAMESPACE_KIND_CACHE}

// keyNamespace finds the namespace of a request about keys.
func (s *Server) keyNamespace(ctx context.Context, keyspace, name string) (*Namespace, *kverr.Error) {
	return s.namespace(ctx, keyspace, name, keyKinds...)
}

func kindName(k kvv1.NamespaceKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "NAMESPACE_KIND_"))
}

// noSuch tells what there is instead, as far as ten names go.
func noSuch[T any](what, name string, there map[string]T) *kverr.Error {
	names := make([]string, 0, len(there))
	for n := range there {
		names = append(names, n)
	}
	slices.Sort(names)
	more := ""
	if len(names) > 10 {
		more = fmt.Sprintf(" and %d more", len(names)-10)
		names = names[:10]
	}
	if len(names) == 0 {
		names = []string{"none"}
	}
	create := map[string]string{"keyspace": "CreateKeyspace", "namespace": "CreateNamespace"}[what]
	return &kverr.Error{Kind: kverr.NotFound, Message: fmt.Sprintf(
		"no %s %.80q; there is: %s%s; %s makes one", what, name, strings.Join(names, ", "), more, create)}
}

// ruleName describes a partition rule for people.
func ruleName(r key.Rule) string {
	switch {
	case r.Whole():
		return "namespace"
	case r.Elements() > 0:
		return fmt.Sprintf("path_elements %d", r.Elements())
	}
	return "hash_tag"
}
