package shard

// KnowsObject tells whether the view accounts for an object, be it live or dead and not forgotten yet. An object of an
// earlier epoch that it does not know is named by nothing and never will be.
func KnowsObject(v View, id ObjectID) bool {
	var room [keyRoom]byte
	_, ok := v.tree.Get(appendObjectKey(room[:0], prefixObject, id))
	return ok
}

// Totals are sums over a whole shard.
type Totals struct {
	Items       int64 // live keys and blocks
	ItemBytes   int64 // their keys and values, wherever those are
	Objects     int64 // value objects that are not forgotten
	ObjectBytes int64 // their length together, dead parts included
}

// Totals adds up what the shard holds. Its cost is the number of namespaces and objects.
func (v View) Totals() Totals {
	var t Totals
	for _, item := range v.tree.Ascend([]byte{prefixCounters}, []byte{prefixCounters + 1}) {
		var n counters
		n.decode(item)
		t.Items += n.items
		t.ItemBytes += n.bytes
	}
	for _, item := range v.tree.Ascend([]byte{prefixObject}, []byte{prefixObject + 1}) {
		var o object
		o.decode(item)
		t.Objects++
		t.ObjectBytes += o.total
	}
	return t
}
