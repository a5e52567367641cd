package shard

import (
	"encoding/binary"
	"iter"
)

// object is the account of a packed value object.
type object struct {
	total  int64 // length of the object
	live   int64 // bytes of values that items name
	values int64 // how many
}

func (o *object) decode(item []byte) {
	r := reader{b: item}
	o.total, o.live, o.values = int64(r.uvarint()), int64(r.uvarint()), int64(r.uvarint())
}

func (o *object) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(o.total))
	b = binary.AppendUvarint(b, uint64(o.live))
	return binary.AppendUvarint(b, uint64(o.values))
}

// hold accounts for a value that the item under the typed key names from now on. A reference has one holder.
func (m *Machine) hold(f *Ref, typed []byte) {
	var room [keyRoom]byte
	key := appendObjectKey(room[:0], prefixObject, f.Object)
	var o object
	item, known := m.tree.Get(key)
	if known {
		o.decode(item)
	}
	if known && o.values == 0 {
		key[0] = prefixDead
		m.tree.Delete(key)
		key[0] = prefixObject
	}
	o.total = max(o.total, f.ObjectBytes)
	o.live += f.Length
	o.values++
	m.aside = o.append(m.aside[:0])
	m.tree.Set(key, m.aside)
	m.tree.Set(appendResidentKey(key[:0], f.Object, f.Offset), typed)
}

// letGo accounts for a value that no item names any more. An object without live values is dead.
func (m *Machine) letGo(f *Ref) {
	var room [keyRoom]byte
	key := appendObjectKey(room[:0], prefixObject, f.Object)
	item, known := m.tree.Get(key)
	if !known {
		return
	}
	var o object
	o.decode(item)
	o.live = max(0, o.live-f.Length)
	o.values = max(0, o.values-1)
	m.aside = o.append(m.aside[:0])
	m.tree.Set(key, m.aside)
	if o.values == 0 {
		key[0] = prefixDead
		m.tree.Set(key, nil)
	}
	m.tree.Delete(appendResidentKey(key[:0], f.Object, f.Offset))
}

// DeadObjects yields the objects that no item of the view names. Values that were written but whose commands are still on
// their way are not known here: whoever deletes objects leaves out those that it has handed references to.
func DeadObjects(v View) iter.Seq[ObjectID] {
	return func(yield func(ObjectID) bool) {
		for key := range v.tree.Ascend([]byte{prefixDead}, []byte{prefixDead + 1}) {
			if !yield(splitObjectKey(key)) {
				return
			}
		}
	}
}

// SparseObject is an object of which only a part is live.
type SparseObject struct {
	ID               ObjectID
	TotalBytes, Live int64
	Values           int64
}

// SparseObjects yields the objects with live values whose live part is below the threshold (0 to 1) of their length. Its cost is
// the number of objects; nothing is kept in order of sparseness, since compaction asks rarely and objects are few.
func SparseObjects(v View, threshold float64) iter.Seq[SparseObject] {
	return func(yield func(SparseObject) bool) {
		var o object
		for key, item := range v.tree.Ascend([]byte{prefixObject}, []byte{prefixObject + 1}) {
			o.decode(item)
			if o.values == 0 || float64(o.live) >= threshold*float64(o.total) {
				continue
			}
			if !yield(SparseObject{ID: splitObjectKey(key), TotalBytes: o.total, Live: o.live, Values: o.values}) {
				return
			}
		}
	}
}

// Resident is a live value of an object.
type Resident struct {
	Key []byte // in typed-prefix form, as Relocate wants it
	Ref Ref
}

// Residents yields the live values of an object in order of their place: what compaction must copy. Its cost is their number,
// by a reverse index (one small item per value that lies apart, that is over 1 KiB) instead of a scan of all keys.
func Residents(v View, id ObjectID) iter.Seq[Resident] {
	return func(yield func(Resident) bool) {
		from := appendObjectKey(nil, prefixResident, id)
		to := appendObjectKey(nil, prefixResident, ObjectID{id.Epoch, id.Counter + 1})
		for _, typed := range v.tree.Ascend(from, to) {
			item, ok := v.tree.Get(typed)
			if !ok {
				continue
			}
			ref, ok := refOf(typed, item)
			if ok && ref.Object == id && !yield(Resident{Key: typed, Ref: ref}) {
				return
			}
		}
	}
}
