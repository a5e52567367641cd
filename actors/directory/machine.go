// Package directory is the machine that keeps which keyspaces and namespaces exist, and which shards own their slots (DESIGN D1): a
// pure state machine like a shard's, with a log of its own.
//
// It holds no data of users and touches no shards. What a change leaves to do there (create shards, remove data) it keeps as
// chores until somebody reports them as done; package keeper does them. Readers use a Catalog. It also remembers how far the
// logs of shards have come, so that a store which lost records is known by it (Mark).
package directory

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"kvstore/actors/host"
	"kvstore/components/btree"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

var _ host.Machine[*Command] = (*Machine)(nil)

// Machine is the logic of the directory (see host.Machine). One goroutine at a time.
type Machine struct {
	tree     *btree.Tree
	revision uint64
	visible  uint64 // revision of the last change that a Catalog shows: marks are none
	now      int64  // directory time: never goes back

	body    dataplanev1.DirectoryBody // effects since the last Ready
	size    int                       // of body, about
	replies []host.Gated[*Command]

	// Counts of what the tree holds, so that limits cost nothing to check.
	keyspaces, namespaces, shards, chores, settled int

	perKeyspace map[string]int    // namespaces
	names       map[string]string // of keyspaces, by uid
	removed     map[string]bool   // uids of keyspaces whose shards are being removed or were a while ago
}

// New makes a machine that knows nothing.
func New() *Machine {
	m := &Machine{}
	m.Restore(new(btree.Tree))
	return m
}

// Step takes one command and answers it with the next Ready or Replies.
func (m *Machine) Step(c *Command) {
	c.Err, c.Revision = nil, 0
	before := m.revision
	var err *kverr.Error
	switch c.Op {
	case OpBootstrap:
		err = m.bootstrap(c.Keyspace)
	case OpCreateKeyspace:
		err = m.createKeyspace(c.Keyspace)
	case OpDeleteKeyspace:
		err = m.deleteKeyspace(c.Keyspace, c.Version)
	case OpCreateNamespace:
		err = m.createNamespace(&c.Namespace, c.Identity)
	case OpUpdateNamespace:
		err = m.updateNamespace(&c.Namespace, c.Fields, c.Version, c.Identity)
	case OpDeleteNamespace:
		err = m.deleteNamespace(&c.Namespace, c.Version)
	case OpFinishChore:
		m.finishChore(c.Chore)
	case OpRemember:
		err = m.remember(c.Marks)
	case OpAcceptLoss:
		err = m.acceptLoss(c.Marks)
	case OpRaise:
		m.raise(c.Version)
	default:
		err = kverr.Invalid("op", "is %d; this release does not know it", c.Op)
	}
	c.Err = err
	if m.revision != before {
		c.Revision = m.revision
	}
	// Every answer depends on all that was decided so far: changes are rare, and waiting for one more sync hurts nobody.
	m.replies = append(m.replies, host.Gated[*Command]{Command: c, Dep: m.revision})
}

// raise makes the catalog's revision rise to one, so that whoever has seen a higher one than the store has now takes what the store
// has for news.
func (m *Machine) raise(revision uint64) {
	if revision <= m.visible {
		return
	}
	m.revision = max(m.revision+1, revision)
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteChore{}}) // there is no chore 0: nothing else changes
}

func (m *Machine) bootstrap(spec KeyspaceSpec) *kverr.Error {
	if m.revision != 0 {
		return nil // it was used before; whoever removed "default" since then meant it
	}
	spec.Name = DefaultName
	if err := m.createKeyspace(spec); err != nil {
		return err
	}
	return m.createNamespace(&NamespaceSpec{Keyspace: DefaultName, Name: DefaultName}, nil)
}

func (m *Machine) createKeyspace(spec KeyspaceSpec) *kverr.Error {
	if err := key.CheckName("keyspace.name", spec.Name); err != nil {
		return kverr.From(err)
	}
	if len(spec.UID) != 16 {
		return kverr.Invalid("keyspace.uid", "is %q; it must have 16 hexadecimal digits", spec.UID)
	}
	if old := m.keyspace(spec.Name); old != nil {
		if old.Uid == spec.UID && shardsOf(old) == spec.Shards {
			return nil // this request has made it
		}
		return exists("keyspace", old.Version)
	}
	if m.names[spec.UID] != "" || m.removed[spec.UID] {
		return kverr.Invalid("keyspace.uid", "is %q, which another keyspace has or had", spec.UID)
	}
	slots, err := ring.New(spec.UID, spec.Shards)
	if err != nil {
		return kverr.Invalid("keyspace.shards", "%v", err)
	}
	switch {
	case m.keyspaces >= MaxKeyspaces:
		return full("keyspaces", MaxKeyspaces)
	case m.shards+spec.Shards > MaxShards:
		return full("shards in all keyspaces", MaxShards)
	case m.chores >= MaxChores:
		return full("chores", MaxChores)
	}
	m.revision++
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutKeyspace{PutKeyspace: &dataplanev1.DirectoryKeyspace{
		Name: spec.Name, Uid: spec.UID, Map: slots.Encode(), CreatedMs: m.now, Version: m.revision,
	}}})
	m.addChore(&dataplanev1.DirectoryChore{
		Kind: dataplanev1.DirectoryChore_KIND_CREATE_SHARDS, KeyspaceUid: spec.UID, Keyspace: spec.Name, Shards: int32(spec.Shards),
	})
	return nil
}

func (m *Machine) deleteKeyspace(spec KeyspaceSpec, version uint64) *kverr.Error {
	name := spec.Name
	ks := m.keyspace(name)
	there := ks != nil && (spec.UID == "" || spec.UID == ks.Uid)
	if err := meets(there, ks.GetVersion(), version, "keyspace", name); err != nil {
		return err
	}
	if m.settled >= MaxSettled {
		return full("keyspaces removed within the last hour", MaxSettled)
	}
	m.revision++
	// What was to be done for it is overtaken.
	for _, c := range m.allChores() {
		if c.KeyspaceUid == ks.Uid {
			m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteChore{DeleteChore: c.Id}})
		}
	}
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteKeyspace{DeleteKeyspace: name}})
	m.addChore(&dataplanev1.DirectoryChore{
		Kind: dataplanev1.DirectoryChore_KIND_REMOVE_SHARDS, KeyspaceUid: ks.Uid, Keyspace: name, Shards: int32(shardsOf(ks)),
	})
	return nil
}

func (m *Machine) createNamespace(spec *NamespaceSpec, identity []byte) *kverr.Error {
	if err := checkNamespace(spec); err != nil {
		return err
	}
	ks := m.keyspaceMeant(spec)
	if ks == nil {
		return missing("keyspace", spec.Keyspace)
	}
	if old := m.namespace(spec.Keyspace, spec.Name); old != nil {
		if repeats(old, identity) {
			return nil
		}
		return exists("namespace", old.Version)
	}
	switch {
	case m.perKeyspace[spec.Keyspace] >= MaxNamespaces:
		return full("namespaces in a keyspace", MaxNamespaces)
	case m.namespaces >= MaxTotal:
		return full("namespaces in all keyspaces", MaxTotal)
	case ks.LastNamespace == 1<<32-1:
		return full("namespaces ever made in a keyspace", 1<<32-1)
	}
	m.revision++
	next := proto.CloneOf(ks)
	next.LastNamespace++
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutKeyspace{PutKeyspace: next}})
	kind := spec.Kind
	if kind == kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED {
		kind = kvv1.NamespaceKind_NAMESPACE_KIND_KV
	}
	partition := int32(spec.PathElements)
	if spec.Whole {
		partition = wholePartition
	}
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutNamespace{PutNamespace: &dataplanev1.DirectoryNamespace{
		Keyspace: spec.Keyspace, Name: spec.Name, Uid: next.LastNamespace, Kind: int32(kind), Partition: partition,
		CapacityBlocks: spec.CapacityBlocks, CapacityBytes: spec.CapacityBytes, DefaultTtlMs: spec.DefaultTTLMS, OpsPerSecond: spec.OpsPerSecond,
		CreatedMs: m.now, Version: m.revision, ChangedBy: identity,
	}}})
	return nil
}

// keyspaceMeant returns the keyspace that a spec of a namespace means, nil when it is not there.
func (m *Machine) keyspaceMeant(spec *NamespaceSpec) *dataplanev1.DirectoryKeyspace {
	ks := m.keyspace(spec.Keyspace)
	if ks == nil || spec.KeyspaceUID != "" && spec.KeyspaceUID != ks.Uid {
		return nil
	}
	return ks
}

// namespaceMeant returns the namespace that a spec means, nil when it is not there.
func (m *Machine) namespaceMeant(spec *NamespaceSpec) *dataplanev1.DirectoryNamespace {
	if m.keyspaceMeant(spec) == nil {
		return nil
	}
	ns := m.namespace(spec.Keyspace, spec.Name)
	if ns == nil || spec.UID != 0 && spec.UID != ns.Uid {
		return nil
	}
	return ns
}

// repeats tells whether the request of that identity made the last change of a namespace.
func repeats(ns *dataplanev1.DirectoryNamespace, identity []byte) bool {
	return len(identity) > 0 && bytes.Equal(ns.GetChangedBy(), identity)
}

func (m *Machine) updateNamespace(spec *NamespaceSpec, fields Fields, version uint64, identity []byte) *kverr.Error {
	ns := m.namespaceMeant(spec)
	if repeats(ns, identity) {
		return nil
	}
	if err := meets(ns != nil, ns.GetVersion(), version, "namespace", spec.Name); err != nil {
		return err
	}
	next := proto.CloneOf(ns)
	if fields&FieldCapacityBlocks != 0 {
		next.CapacityBlocks = spec.CapacityBlocks
	}
	if fields&FieldCapacityBytes != 0 {
		next.CapacityBytes = spec.CapacityBytes
	}
	if fields&FieldDefaultTTL != 0 {
		next.DefaultTtlMs = spec.DefaultTTLMS
	}
	if fields&FieldOpsPerSecond != 0 {
		next.OpsPerSecond = spec.OpsPerSecond
	}
	if err := checkBounds(next.CapacityBlocks, next.CapacityBytes, next.DefaultTtlMs, next.OpsPerSecond, kvv1.NamespaceKind(next.Kind)); err != nil {
		return err
	}
	m.revision++
	next.Version, next.ChangedBy = m.revision, identity
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutNamespace{PutNamespace: next}})
	return nil
}

func (m *Machine) deleteNamespace(spec *NamespaceSpec, version uint64) *kverr.Error {
	keyspace, name := spec.Keyspace, spec.Name
	ns := m.namespaceMeant(spec)
	if err := meets(ns != nil, ns.GetVersion(), version, "namespace", name); err != nil {
		return err
	}
	if m.chores >= MaxChores {
		return full("chores", MaxChores)
	}
	ks := m.keyspace(keyspace)
	m.revision++
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteNamespace{
		DeleteNamespace: &dataplanev1.DirectoryNamespaceName{Keyspace: keyspace, Name: name},
	}})
	m.addChore(&dataplanev1.DirectoryChore{
		Kind: dataplanev1.DirectoryChore_KIND_DROP_NAMESPACE, KeyspaceUid: ks.Uid, Keyspace: keyspace, Shards: int32(shardsOf(ks)), Namespace: ns.Uid,
	})
	return nil
}

// finishChore notes that a chore was done. One that is not there was finished before, or overtaken. A removal of shards is done twice,
// see QuarantineMS.
func (m *Machine) finishChore(id uint64) {
	c := m.chore(id)
	if c == nil {
		if c = settledOf(m.tree, id); c != nil && c.SettledMs+QuarantineMS <= m.now {
			m.revision++
			m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteSettled{DeleteSettled: c}})
		}
		return
	}
	m.revision++
	switch c.Kind {
	case dataplanev1.DirectoryChore_KIND_REMOVE_SHARDS:
		c.SettledMs = max(m.now, 1)
		m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutSettled{PutSettled: c}})
		return
	case dataplanev1.DirectoryChore_KIND_CREATE_SHARDS:
		if ks := m.keyspace(c.Keyspace); ks != nil && ks.Uid == c.KeyspaceUid {
			next := proto.CloneOf(ks)
			next.Ready = true
			m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutKeyspace{PutKeyspace: next}})
		}
	}
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_DeleteChore{DeleteChore: id}})
}

func (m *Machine) addChore(c *dataplanev1.DirectoryChore) {
	c.Id = m.revision
	m.emit(&dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutChore{PutChore: c}})
}

// emit applies an effect and logs it.
func (m *Machine) emit(e *dataplanev1.DirectoryEffect) {
	e.Revision = m.revision
	if err := m.apply(e); err != nil {
		panic(err) // made a moment ago by this machine
	}
	m.body.Effects = append(m.body.Effects, e)
	m.size += e.SizeVT() + binary.MaxVarintLen32
}

// Tick moves time forward.
func (m *Machine) Tick(nowMS int64) { m.now = max(m.now, nowMS) }

// Ready takes what has gathered.
func (m *Machine) Ready() host.Ready[*Command] {
	r := host.Ready[*Command]{Head: m.revision, TimeMS: m.now, Replies: m.replies}
	m.replies = nil
	if len(m.body.Effects) > 0 {
		body, err := m.body.MarshalVT()
		if err != nil {
			panic(fmt.Sprintf("directory: effects that cannot be written: %v", err))
		}
		m.seal(m.now)
		r.Body = body
		m.body, m.size = dataplanev1.DirectoryBody{}, 0
	}
	return r
}

// Replies takes the outcomes alone.
func (m *Machine) Replies(dst []host.Gated[*Command]) []host.Gated[*Command] {
	dst = append(dst, m.replies...)
	m.replies = nil
	return dst
}

// Pending is about how long the body is by now.
func (m *Machine) Pending() int { return m.size }

// Tree is all durable state, once Ready was taken.
func (m *Machine) Tree() *btree.Tree { return m.tree }

// WakeMS is when the directory must be active although nobody asks for it: soon while there are chores, and again every second or
// so until they are done; at the end of QuarantineMS for those that rest.
func (m *Machine) WakeMS() int64 {
	due := NextDueMS(m.tree)
	if m.chores > 0 || due > 0 && due <= m.now {
		return (m.now/1000 + 2) * 1000
	}
	return due
}

// Replay applies one durable body.
func (m *Machine) Replay(body []byte, timeMS int64) error {
	var b dataplanev1.DirectoryBody
	if err := b.UnmarshalVT(body); err != nil {
		return fmt.Errorf("directory: record body: %w", err)
	}
	for _, e := range b.Effects {
		m.revision = e.Revision
		if err := m.apply(e); err != nil {
			return err
		}
	}
	m.now = max(m.now, timeMS)
	m.seal(timeMS)
	return nil
}

func full(what string, limit int64) *kverr.Error {
	return &kverr.Error{Kind: kverr.Exhausted, Op: "change the directory", Limit: limit, Message: fmt.Sprintf("there may be at most %d %s", limit, what)}
}

func missing(what, name string) *kverr.Error {
	return &kverr.Error{Kind: kverr.NotFound, Field: what, Message: fmt.Sprintf("no %s %.80q", what, name)}
}

func exists(what string, version uint64) *kverr.Error {
	e := kverr.Exists(version)
	e.Message = fmt.Sprintf("the %s exists with version %d", what, version)
	return e
}

// meets holds an update against what is there.
func meets(exists bool, current, wanted uint64, what, name string) *kverr.Error {
	switch {
	case !exists:
		return missing(what, name)
	case wanted != 0 && wanted != current:
		e := kverr.Mismatch(current)
		e.Message = fmt.Sprintf("the %s has version %d", what, current)
		return e
	}
	return nil
}

func checkNamespace(spec *NamespaceSpec) *kverr.Error {
	if err := key.CheckName("namespace.name", spec.Name); err != nil {
		return kverr.From(err)
	}
	switch spec.Kind {
	case kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED, kvv1.NamespaceKind_NAMESPACE_KIND_KV, kvv1.NamespaceKind_NAMESPACE_KIND_CACHE,
		kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT:
	default:
		return kverr.Invalid("namespace.kind", "is %v; this release has kinds KV, CACHE and PROMPT", spec.Kind)
	}
	if spec.Whole && spec.PathElements != 0 {
		return kverr.Invalid("namespace.partition", "has two rules; it must have one")
	}
	if spec.PathElements != 0 {
		if _, err := key.PathElements(spec.PathElements); err != nil {
			return kverr.From(err)
		}
	}
	return checkBounds(spec.CapacityBlocks, spec.CapacityBytes, spec.DefaultTTLMS, spec.OpsPerSecond, spec.Kind)
}

func checkBounds(blocks, bytes, ttlMS, rate int64, kind kvv1.NamespaceKind) *kverr.Error {
	prompt := kind == kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT
	switch {
	case blocks < 0 || blocks != 0 && !prompt:
		return kverr.Invalid("namespace.capacity_blocks", "is %d; it must be 0 (no limit), or positive with kind PROMPT", blocks)
	case bytes < 0 || bytes != 0 && !prompt:
		return kverr.Invalid("namespace.capacity_bytes", "is %d; it must be 0 (no limit), or positive with kind PROMPT", bytes)
	case ttlMS < 0 || ttlMS > maxTTLMS:
		return kverr.Invalid("namespace.default_ttl_ms", "is %d; it must be 0 (for ever) to %d", ttlMS, int64(maxTTLMS))
	case rate < 0 || rate > key.MaxRate:
		return kverr.Invalid("namespace.ops_per_second", "is %d; it must be 0 (no limit) to %d", rate, int64(key.MaxRate))
	}
	return nil
}

// maxTTLMS is what a shard takes for a time to live.
const maxTTLMS = 1 << 46
