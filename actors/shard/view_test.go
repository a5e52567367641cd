package shard

import (
	"testing"

	"kvstore/components/kverr"
)

// TestUndecodableEntry: an entry that is stored and cannot be decoded is not absent, and hides no other.
func TestUndecodableEntry(t *testing.T) {
	m := New(Config{})
	m.Tick(1000)
	for _, k := range []string{"a", "b", "c"} {
		m.Step(&Command{Op: OpPut, Namespace: 1, Put: Put{Key: []byte(k), Value: Value{Inline: []byte("v")}}})
	}
	m.Ready()
	tree := m.Tree().Clone()
	tree.Set(appendDataKey(nil, 1, []byte("b")), []byte{entryRef, 1})
	v := NewView(tree)
	if _, ok, err := v.Get(1, []byte("b")); !ok || err == nil || err.Kind != kverr.DataLoss {
		t.Errorf("Get: found %v, %v; want DataLoss", ok, err)
	}
	if _, ok, err := v.Get(1, []byte("c")); !ok || err != nil {
		t.Errorf("Get of the key behind: found %v, %v", ok, err)
	}
	page, more, err := v.List(1, ListQuery{})
	if err == nil || err.Kind != kverr.DataLoss || !more || len(page) != 1 || string(page[0].Key) != "a" {
		t.Errorf("List: %d entries, more %v, %v; want a and then DataLoss", len(page), more, err)
	}
	if page, _, err := v.List(1, ListQuery{After: []byte("b")}); err != nil || len(page) != 1 || string(page[0].Key) != "c" {
		t.Errorf("List behind it: %d entries, %v", len(page), err)
	}
}
