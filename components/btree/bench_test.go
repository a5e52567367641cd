package btree

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

// sizes are what growth is judged by: cost per write and read may grow with the logarithm only.
var sizes = []int{10_000, 1_000_000}

// randomKeys makes n keys of 24 bytes in random order, as typed prefix, namespace and user key are.
func randomKeys(n int) [][]byte {
	r := rand.New(rand.NewPCG(1, 1))
	keys := make([][]byte, n)
	all := make([]byte, 0, n*24)
	for i := range keys {
		start := len(all)
		all = append(all, "k\x00\x00\x00\x01"...)
		all = fmt.Appendf(all, "user/%014d", r.Uint64N(1e14))
		keys[i] = all[start:len(all):len(all)]
	}
	return keys
}

var benchValue = make([]byte, 32)

func grown(keys [][]byte) *Tree {
	var t Tree
	for _, k := range keys {
		t.Set(k, benchValue)
	}
	return &t
}

func BenchmarkGet(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			keys := randomKeys(n)
			t := grown(keys)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := t.Get(keys[i%n]); !ok {
					b.Fatal("missing")
				}
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			keys := randomKeys(n)
			t := grown(keys)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				t.Set(keys[i%n], benchValue)
			}
		})
	}
}

// BenchmarkSetCloned is the shard's way: a clone for readers after every so many writes.
func BenchmarkSetCloned(b *testing.B) {
	for _, n := range sizes {
		for _, every := range []int{1, 64, 1024} {
			b.Run(fmt.Sprintf("%d/every=%d", n, every), func(b *testing.B) {
				keys := randomKeys(n)
				t := grown(keys)
				var published *Tree
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					t.Set(keys[i%n], benchValue)
					if i%every == 0 {
						published = t.Clone()
					}
				}
				runtime.KeepAlive(published)
			})
		}
	}
}

func BenchmarkInsertDelete(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			keys := randomKeys(n)
			t := grown(keys)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				t.Delete(keys[i%n])
				t.Set(keys[i%n], benchValue)
			}
		})
	}
}

func BenchmarkAscend(b *testing.B) {
	t := grown(randomKeys(1_000_000))
	b.ReportAllocs()
	items := 0
	for b.Loop() {
		for range t.Ascend(nil, nil) {
			items++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(items), "ns/item")
}

// BenchmarkPage reads pages of 100 items from random places.
func BenchmarkPage(b *testing.B) {
	keys := randomKeys(1_000_000)
	t := grown(keys)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n := 0
		for range t.Ascend(keys[i%len(keys)], nil) {
			if n++; n == 100 {
				break
			}
		}
	}
}

func BenchmarkDiff1000(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			keys := randomKeys(n)
			t := grown(keys)
			old := t.Clone()
			for i := range 1000 {
				t.Set(keys[i*(n/1000)], binary.BigEndian.AppendUint64(nil, uint64(i)))
			}
			b.ReportAllocs()
			for b.Loop() {
				changes := 0
				for range t.Diff(old) {
					changes++
				}
				if changes != 1000 {
					b.Fatalf("%d changes", changes)
				}
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	var sorted [][]byte
	for k := range grown(randomKeys(1_000_000)).Ascend(nil, nil) {
		sorted = append(sorted, k)
	}
	for b.Loop() {
		var builder Builder
		for _, k := range sorted {
			builder.Add(k, benchValue)
		}
		builder.Tree()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(sorted)), "ns/item")
}

// BenchmarkHeap reports the heap of an item besides its key and value, and what Bytes says of it.
func BenchmarkHeap(b *testing.B) {
	const n = 1_000_000
	keys := randomKeys(n)
	orders := map[string]func() *Tree{
		"random": func() *Tree { return grown(keys) },
		"ascending": func() *Tree {
			var t Tree
			for i := range n {
				t.Set(fmt.Appendf(nil, "k\x00\x00\x00\x01user/%014d", i), benchValue)
			}
			return &t
		},
	}
	for name, grow := range orders {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				before := heap()
				t := grow()
				overhead := float64(heap()-before)/n - float64(len(keys[0])+len(benchValue))
				b.ReportMetric(overhead, "overhead-B/item")
				b.ReportMetric(float64(t.Bytes())/n, "Bytes/item")
				runtime.KeepAlive(t)
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
