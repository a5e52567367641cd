package directory

import (
	"encoding/binary"
	"fmt"

	"kvstore/components/btree"
	"kvstore/components/key"
	"kvstore/components/ring"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// State layout: one tree, as of a shard. Values are the messages of directory.proto.
//
//	01                          revision, time, visible revision (uvarints)
//	02 keyspace                 DirectoryKeyspace
//	03 keyspace 00 namespace    DirectoryNamespace
//	04 id:8                     DirectoryChore
//	05 shard                    DirectoryMark
//	06 settled:8 id:8           DirectoryChore that was done once and rests
const (
	prefixMeta      = 0x01
	prefixKeyspace  = 0x02
	prefixNamespace = 0x03
	prefixChore     = 0x04
	prefixMark      = 0x05
	prefixSettled   = 0x06
)

// wholePartition is DirectoryNamespace.partition of the rule that takes the whole namespace.
const wholePartition = -1

func keyspaceKey(name string) []byte { return append([]byte{prefixKeyspace}, name...) }

func namespaceKey(keyspace, name string) []byte {
	return append(append(append([]byte{prefixNamespace}, keyspace...), 0), name...)
}

func settledKey(c *dataplanev1.DirectoryChore) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{prefixSettled}, uint64(c.SettledMs)), c.Id)
}

func choreKey(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{prefixChore}, id) }

// message is what the generated types have in common.
type message interface {
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

// get reads one message into into; false when it is not there.
func get(t *btree.Tree, k []byte, into message) bool {
	item, ok := t.Get(k)
	return ok && into.UnmarshalVT(item) == nil
}

// put stores one message.
func put(t *btree.Tree, k []byte, v message) error {
	item, err := v.MarshalVT()
	if err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	t.Set(k, item)
	return nil
}

func (m *Machine) set(k []byte, v message) error { return put(m.tree, k, v) }

// keyspace returns a keyspace, nil when there is none.
func (m *Machine) keyspace(name string) *dataplanev1.DirectoryKeyspace {
	ks := new(dataplanev1.DirectoryKeyspace)
	if !get(m.tree, keyspaceKey(name), ks) {
		return nil
	}
	return ks
}

func (m *Machine) namespace(keyspace, name string) *dataplanev1.DirectoryNamespace {
	ns := new(dataplanev1.DirectoryNamespace)
	if !get(m.tree, namespaceKey(keyspace, name), ns) {
		return nil
	}
	return ns
}

func (m *Machine) chore(id uint64) *dataplanev1.DirectoryChore {
	c := new(dataplanev1.DirectoryChore)
	if !get(m.tree, choreKey(id), c) {
		return nil
	}
	return c
}

func (m *Machine) allChores() []*dataplanev1.DirectoryChore { return choresOf(m.tree) }

// choresOf lists the chores of a state in order.
func choresOf(t *btree.Tree) []*dataplanev1.DirectoryChore { return choresIn(t, prefixChore) }

// settledOf finds a chore that rests, by its id.
func settledOf(t *btree.Tree, id uint64) *dataplanev1.DirectoryChore {
	for k, item := range t.Ascend([]byte{prefixSettled}, []byte{prefixSettled + 1}) {
		if binary.BigEndian.Uint64(k[9:]) != id {
			continue
		}
		c := new(dataplanev1.DirectoryChore)
		if c.UnmarshalVT(item) == nil {
			return c
		}
	}
	return nil
}

func choresIn(t *btree.Tree, prefix byte) []*dataplanev1.DirectoryChore {
	var all []*dataplanev1.DirectoryChore
	for _, item := range t.Ascend([]byte{prefix}, []byte{prefix + 1}) {
		c := new(dataplanev1.DirectoryChore)
		if c.UnmarshalVT(item) == nil {
			all = append(all, c)
		}
	}
	return all
}

func shardsOf(ks *dataplanev1.DirectoryKeyspace) int {
	slots, err := ring.Decode(ks.GetMap())
	if err != nil {
		return 0
	}
	return slots.Shards()
}

// apply makes one change, in the same way when it is decided and when it is replayed.
func (m *Machine) apply(e *dataplanev1.DirectoryEffect) error {
	if _, marks := e.Kind.(*dataplanev1.DirectoryEffect_PutMarks); !marks {
		m.visible = e.Revision
	}
	switch k := e.Kind.(type) {
	case *dataplanev1.DirectoryEffect_PutKeyspace:
		if old := m.keyspace(k.PutKeyspace.Name); old == nil {
			m.keyspaces++
			m.shards += shardsOf(k.PutKeyspace)
			m.names[k.PutKeyspace.Uid] = k.PutKeyspace.Name
		}
		return m.set(keyspaceKey(k.PutKeyspace.Name), k.PutKeyspace)
	case *dataplanev1.DirectoryEffect_DeleteKeyspace:
		m.applyDeleteKeyspace(k.DeleteKeyspace)
		return nil
	case *dataplanev1.DirectoryEffect_PutNamespace:
		if old := m.namespace(k.PutNamespace.Keyspace, k.PutNamespace.Name); old == nil {
			m.namespaces++
			m.perKeyspace[k.PutNamespace.Keyspace]++
		}
		return m.set(namespaceKey(k.PutNamespace.Keyspace, k.PutNamespace.Name), k.PutNamespace)
	case *dataplanev1.DirectoryEffect_DeleteNamespace:
		if _, was := m.tree.Delete(namespaceKey(k.DeleteNamespace.Keyspace, k.DeleteNamespace.Name)); was {
			m.namespaces--
			m.perKeyspace[k.DeleteNamespace.Keyspace]--
		}
		return nil
	case *dataplanev1.DirectoryEffect_PutChore:
		if _, was := m.tree.Get(choreKey(k.PutChore.Id)); !was {
			m.chores++
		}
		m.noteRemoval(k.PutChore, true)
		return m.set(choreKey(k.PutChore.Id), k.PutChore)
	case *dataplanev1.DirectoryEffect_DeleteChore:
		if _, was := m.tree.Delete(choreKey(k.DeleteChore)); was {
			m.chores--
		}
		return nil
	case *dataplanev1.DirectoryEffect_PutSettled:
		if _, was := m.tree.Delete(choreKey(k.PutSettled.Id)); was {
			m.chores--
		}
		m.settled++
		return m.set(settledKey(k.PutSettled), k.PutSettled)
	case *dataplanev1.DirectoryEffect_DeleteSettled:
		if _, was := m.tree.Delete(settledKey(k.DeleteSettled)); was {
			m.settled--
		}
		m.noteRemoval(k.DeleteSettled, false)
		return nil
	case *dataplanev1.DirectoryEffect_PutMarks:
		for _, mark := range k.PutMarks.Marks {
			if err := m.set(markKey(mark.Shard), mark); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("directory: an effect at revision %d that this release does not know", e.Revision)
}

// noteRemoval keeps which uids may not be given out.
func (m *Machine) noteRemoval(c *dataplanev1.DirectoryChore, there bool) {
	switch {
	case c.Kind != dataplanev1.DirectoryChore_KIND_REMOVE_SHARDS:
	case there:
		m.removed[c.KeyspaceUid] = true
	default:
		delete(m.removed, c.KeyspaceUid)
	}
}

func (m *Machine) applyDeleteKeyspace(name string) {
	ks := m.keyspace(name)
	if ks == nil {
		return
	}
	m.keyspaces--
	m.shards -= shardsOf(ks)
	m.namespaces -= m.perKeyspace[name]
	delete(m.perKeyspace, name)
	delete(m.names, ks.Uid)
	m.tree.Delete(keyspaceKey(name))
	from := namespaceKey(name, "")
	m.deleteRange(from, append(from[:len(from)-1:len(from)-1], 1))
	from = markKey(ks.Uid + "-")
	m.deleteRange(from, append(from[:len(from)-1:len(from)-1], '-'+1))
}

func (m *Machine) deleteRange(from, to []byte) {
	var gone [][]byte
	for k := range m.tree.Ascend(from, to) {
		gone = append(gone, k)
	}
	for _, k := range gone {
		m.tree.Delete(k)
	}
}

// seal writes what is kept once per body.
func (m *Machine) seal(timeMS int64) {
	item := binary.AppendUvarint(nil, m.revision)
	item = binary.AppendUvarint(item, uint64(max(timeMS, metaOf(m.tree).timeMS)))
	m.tree.Set([]byte{prefixMeta}, binary.AppendUvarint(item, m.visible))
}

// meta is what a state has once.
type meta struct {
	revision uint64
	timeMS   int64
	visible  uint64
}

// metaOf reads it.
func metaOf(t *btree.Tree) meta {
	item, ok := t.Get([]byte{prefixMeta})
	if !ok {
		return meta{}
	}
	var numbers [3]uint64
	for i := range numbers {
		v, n := binary.Uvarint(item)
		if n <= 0 {
			numbers[i] = numbers[0] // an earlier release had no visible revision: all were
			break
		}
		numbers[i], item = v, item[n:]
	}
	return meta{revision: numbers[0], timeMS: int64(numbers[1]), visible: numbers[2]}
}

// Restore replaces all state by a tree. Effects that no Ready took are dropped.
func (m *Machine) Restore(t *btree.Tree) {
	m.tree = t
	stored := metaOf(t)
	m.revision, m.visible, m.now = stored.revision, stored.visible, stored.timeMS
	m.body, m.size = dataplanev1.DirectoryBody{}, 0
	chores, settled := choresOf(t), choresIn(t, prefixSettled)
	m.keyspaces, m.namespaces, m.shards, m.chores, m.settled = 0, 0, 0, len(chores), len(settled)
	m.perKeyspace, m.names, m.removed = make(map[string]int), make(map[string]string), make(map[string]bool)
	for _, c := range append(chores, settled...) {
		m.noteRemoval(c, true)
	}
	for _, item := range t.Ascend([]byte{prefixKeyspace}, []byte{prefixKeyspace + 1}) {
		var ks dataplanev1.DirectoryKeyspace
		if ks.UnmarshalVT(item) == nil {
			m.keyspaces++
			m.shards += shardsOf(&ks)
			m.names[ks.Uid] = ks.Name
		}
	}
	for _, item := range t.Ascend([]byte{prefixNamespace}, []byte{prefixNamespace + 1}) {
		var ns dataplanev1.DirectoryNamespace
		if ns.UnmarshalVT(item) == nil {
			m.namespaces++
			m.perKeyspace[ns.Keyspace]++
		}
	}
}

// ruleOf makes the partition rule that a namespace was given.
func ruleOf(partition int32) (key.Rule, error) {
	switch partition {
	case 0:
		return key.HashTag(), nil
	case wholePartition:
		return key.WholeNamespace(), nil
	}
	return key.PathElements(int(partition))
}
