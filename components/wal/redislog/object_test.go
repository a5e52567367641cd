package redislog

import (
	"bytes"
	"errors"
	"testing"

	"kvstore/components/wal/driver"
	"kvstore/tests/testenv"
)

// TestLateWrite: a write that comes once more after its object was removed, or given up, does not bring it back, be it a single script or the first part of
// a longer one; names are kept for that as long as removedFor.
func TestLateWrite(t *testing.T) {
	server := testenv.NewRedis(t)
	e := openOn(t, Config{URL: "redis://" + server.Addr})
	takeOver(t, e, "ab-0", 1)
	k := e.keys("ab-0")
	data := []byte("value")
	short := writer{engine: e, shard: "ab-0", name: "v/1-1", keys: &k, id: newID()}
	long := writer{engine: e, shard: "ab-0", name: "v/1-2", keys: &k, id: newID()}
	abandoned := writer{engine: e, shard: "ab-0", name: "v/1-3", keys: &k, id: newID()}
	for range 2 { // the second try finds what the first did
		if err := errors.Join(short.small(t.Context(), data), long.part(t.Context(), 0, 0, data), abandoned.part(t.Context(), 0, 0, data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := long.publish(t.Context(), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	abandoned.abort(t.Context())
	for _, w := range []*writer{&short, &long} {
		if err := e.DeleteObject(t.Context(), "ab-0", w.name); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"of one script": short.small(t.Context(), data), "of parts": long.part(t.Context(), 0, 0, data), "given up": abandoned.part(t.Context(), 0, 0, data),
	} {
		if !errors.Is(err, driver.ErrRefused) {
			t.Errorf("a late write %s: %v, want that it is refused", name, err)
		}
	}
	client := direct(t, server.Addr)
	if n := do(t, client, "EXISTS", k.objects, k.chunkKey("v/1-1", 0), k.chunkKey("v/1-2", 0), k.chunkKey("v/1-3", 0)); n != "0" {
		t.Errorf("%s keys of objects are left", n)
	}

	do(t, client, "ZINCRBY", k.removed, -removedFor-1, short.name+nameEnd) // as if it had been removed long before the others
	if err := errors.Join(e.PutObject(t.Context(), "ab-0", "v/1-4", 5, bytes.NewReader(data)), e.DeleteObject(t.Context(), "ab-0", "v/1-4")); err != nil {
		t.Fatal(err)
	}
	if n := do(t, client, "ZCARD", k.removed); n != "3" {
		t.Errorf("%s names are kept, want the three that were removed of late", n)
	}
	if ttl, err := client.TTL(t.Context(), k.removed).Result(); err != nil || ttl <= 0 || ttl.Seconds() > removedFor {
		t.Errorf("they are kept for %v, %v; want at most %d s", ttl, err, removedFor)
	}
}
