package memhost

import (
	"slices"
	"testing"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
)

// TestActivate: shards are opened before their first use, progress is told, and one that does not exist does not hold up the rest.
func TestActivate(t *testing.T) {
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
	defer h.Close(t.Context(), false)
	ids := []string{"a-0", "a-1", "none-0", "a-2"}
	for _, id := range ids {
		if id == "none-0" {
			continue
		}
		if err := h.Create(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	var told []int
	err = h.Activate(t.Context(), ids, func(done, total int) { told = append(told, done*10+total) })
	if err == nil || kverr.KindOf(err) != kverr.NotFound {
		t.Fatalf("%v, want one shard not found", err)
	}
	if !slices.Equal(told, []int{14, 24, 34, 44}) {
		t.Fatalf("told %v", told)
	}
	status := h.Status()
	if len(status) != 3 {
		t.Fatalf("%+v", status)
	}
	for _, s := range status {
		if s.State != StateActive || s.Epoch != 1 {
			t.Fatalf("%+v", s)
		}
	}
}

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
