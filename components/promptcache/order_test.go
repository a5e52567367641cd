package promptcache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestOrderAgainstPlain checks the heap against a plain search for the lowest rank, with holds, restores and removals.
func TestOrderAgainstPlain(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var o Order
		held := map[string]int{}
		for range 3000 {
			key := fmt.Appendf(nil, "b%02d", r.IntN(60))
			it := o.Get(key)
			switch op := r.IntN(7); {
			case op == 0:
				o.Begin()
			case it == nil && op < 4:
				o.Store(key, uint32(r.IntN(20)), 1)
			case it == nil:
			case op < 3:
				o.Touch(it)
			case op == 3:
				o.Hold(it)
				held[it.Key]++
			case op == 4 && held[it.Key] > 0:
				o.Unhold(it)
				held[it.Key]--
			case op == 5 && held[it.Key] == 0:
				o.Remove(it)
			case op == 6:
				if first := o.First(); first != nil {
					o.Evict(first)
				}
			}
			var want *Item
			waiting := 0
			for _, it := range o.items {
				if it.Held() != (held[it.Key] > 0) || it.Held() != (it.pos < 0) {
					t.Fatalf("seed %d: block %s: held %v at %d, %d holds", seed, it.Key, it.Held(), it.pos, held[it.Key])
				}
				if it.Held() {
					continue
				}
				waiting++
				if want == nil || it.rank < want.rank || it.rank == want.rank && (it.Depth > want.Depth || it.Depth == want.Depth && it.Key < want.Key) {
					want = it
				}
			}
			if o.First() != want || o.Waiting() != waiting {
				t.Fatalf("seed %d: first %v of %d, want %v of %d", seed, o.First(), o.Waiting(), want, waiting)
			}
		}
	}
}

// TestOrderRestored: blocks come back in the order in which they were, and new ones are younger.
func TestOrderRestored(t *testing.T) {
	var a Order
	for i := range 50 {
		a.Begin()
		a.Store(fmt.Appendf(nil, "b%02d", i), uint32(i%7), 1)
		if i%3 == 0 {
			a.Touch(a.Get(fmt.Appendf(nil, "b%02d", i/2)))
		}
	}
	var b Order
	for key, it := range a.items {
		b.Restore([]byte(key), it.Depth, it.Bytes, it.Use)
	}
	b.Sort()
	b.Begin()
	b.Store([]byte("new"), 0, 1)
	a.Sort()
	for a.Len() > 0 {
		x, y := a.First(), b.First()
		if y.Key == "new" {
			if a.Len() > 40 {
				t.Fatalf("the new block goes when %d older ones are left", a.Len())
			}
			b.Remove(y)
			y = b.First()
		}
		if x.Key != y.Key {
			t.Fatalf("restored order has %s where %s was", y.Key, x.Key)
		}
		a.Remove(x)
		b.Remove(y)
	}
}

// TestDeepestFirst: among blocks of one age the deepest goes first, and a block used again outlives those that were not.
func TestDeepestFirst(t *testing.T) {
	var o Order
	for d := range uint32(40) {
		o.Store(fmt.Appendf(nil, "%02d", d), d, 1)
	}
	o.Begin()
	o.Touch(o.Get([]byte("39")))
	for d := 38; d >= 0; d-- {
		it := o.First()
		if want := fmt.Sprintf("%02d", d); it.Key != want {
			t.Fatalf("%s goes first, want %s", it.Key, want)
		}
		o.Evict(it)
	}
}

// TestGhostsBounded: names of evicted blocks are bounded by the size of the cache.
func TestGhostsBounded(t *testing.T) {
	var o Order
	for i := range 50_000 {
		o.Begin()
		o.Store(fmt.Appendf(nil, "%06d", i), 0, 1)
		if o.Len() > 100 {
			o.Evict(o.First())
		}
	}
	if n, q := len(o.policy.ghosts.uses), cap(o.policy.ghosts.queue); n > 202 || q > 8192 {
		t.Fatalf("%d ghosts, queue of %d for 100 blocks", n, q)
	}
}

func BenchmarkTouch(b *testing.B) {
	var o Order
	keys := make([][]byte, 100_000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "scope-of-16-byte%032d", i)
		o.Store(keys[i], uint32(i%24), 1)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		o.Begin()
		o.Touch(o.Get(keys[i*7919%len(keys)]))
		i++
	}
}

func BenchmarkStoreEvict(b *testing.B) {
	var o Order
	for i := range 100_000 {
		o.Store(fmt.Appendf(nil, "scope-of-16-byte%032d", i), uint32(i%24), 1)
	}
	b.ReportAllocs()
	i := 100_000
	var key []byte
	for b.Loop() {
		o.Begin()
		o.Evict(o.First())
		key = fmt.Appendf(key[:0], "scope-of-16-byte%032d", i)
		o.Store(key, uint32(i%24), 1)
		i++
	}
}
