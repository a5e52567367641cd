package memhost

import (
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
)

// TestPutGet is the way that every write and read takes.
func TestPutGet(t *testing.T) {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(store, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Create(t.Context(), "a-0", nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	c := &shard.Command{Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k"), Value: shard.Value{Inline: []byte("v")}}, Done: func(c *shard.Command, err error) { done <- err }}
	h.Do(t.Context(), "a-0", c)
	if err := <-done; err != nil || c.Result.Err != nil {
		t.Fatal(err, c.Result.Err)
	}
	v, err := h.View(t.Context(), "a-0")
	if err != nil {
		t.Fatal(err)
	}
	e, ok := v.Get(1, []byte("k"))
	if !ok || string(e.Value.Inline) != "v" || e.Version != c.Result.Write.Version {
		t.Fatalf("%+v %v", e, ok)
	}
	if err := h.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}
