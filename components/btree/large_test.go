package btree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// number is a key of 8 bytes that sorts as i does.
func number(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }

// TestLarge grows a tree of several inner levels in different orders and takes it down again in different orders.
func TestLarge(t *testing.T) {
	const n = 60_000
	r := rand.New(rand.NewPCG(1, 2))
	ascending := make([]int, n)
	for i := range ascending {
		ascending[i] = i
	}
	descending := slices.Clone(ascending)
	slices.Reverse(descending)
	shuffled := slices.Clone(ascending)
	r.Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	orders := map[string][]int{"ascending": ascending, "descending": descending, "shuffled": shuffled}

	for grow, in := range orders {
		for shrink, out := range orders {
			t.Run(grow+" then "+shrink, func(t *testing.T) {
				t.Parallel()
				var tr Tree
				for _, i := range in {
					tr.Set(number(i), number(i))
				}
				if err := tr.check(); err != nil {
					t.Fatal(err)
				}
				full := tr.Clone()
				for j, i := range out {
					if old, ok := tr.Delete(number(i)); !ok || !bytes.Equal(old, number(i)) {
						t.Fatalf("Delete of %d returned %x %v", i, old, ok)
					}
					if j%6_000 == 0 || j > n-5 {
						if err := tr.check(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if tr.Len() != 0 || tr.Bytes() != 0 || tr.root != nil || tr.height != 0 {
					t.Fatalf("after removing all: %d keys, %d bytes, height %d", tr.Len(), tr.Bytes(), tr.height)
				}
				if err := full.check(); err != nil || full.Len() != n {
					t.Fatalf("clone: %d items, %v", full.Len(), err)
				}
				for i := range n {
					if v, ok := full.Get(number(i)); !ok || !bytes.Equal(v, number(i)) {
						t.Fatalf("clone: Get of %d returned %x %v", i, v, ok)
					}
				}
			})
		}
	}
}

// TestRanges compares every way to ask for a range with the sorted keys.
func TestRanges(t *testing.T) {
	var tr Tree
	var keys []string
	for i := range 5000 {
		k := fmt.Sprintf("k%04d", i*2)
		keys = append(keys, k)
		tr.Set([]byte(k), []byte(k))
	}
	r := rand.New(rand.NewPCG(3, 4))
	bounds := [][]byte{nil, {}, []byte("k"), []byte("k0000"), []byte("k9998"), []byte("k9999"), []byte("z"), {0xff}}
	for range 60 {
		bounds = append(bounds, fmt.Appendf(nil, "k%04d", r.IntN(10_000)))
	}
	for _, from := range bounds {
		for _, to := range bounds {
			var want []string
			for _, k := range keys {
				if k >= string(from) && (to == nil || k < string(to)) {
					want = append(want, k)
				}
			}
			var got []string
			for k := range tr.Ascend(from, to) {
				got = append(got, string(k))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("Ascend %q..%q: %d keys, want %d", from, to, len(got), len(want))
			}
			first, _, ok := tr.First(from, to)
			if ok != (len(want) > 0) || ok && string(first) != want[0] {
				t.Fatalf("First %q..%q: %q %v", from, to, first, ok)
			}
			last, _, ok := tr.Last(from, to)
			if ok != (len(want) > 0) || ok && string(last) != want[len(want)-1] {
				t.Fatalf("Last %q..%q: %q %v", from, to, last, ok)
			}
			got = got[:0]
			for k := range tr.Descend(from, to) {
				got = append(got, string(k))
			}
			slices.Reverse(got)
			if !slices.Equal(got, want) {
				t.Fatalf("Descend %q..%q: %d keys, want %d", from, to, len(got), len(want))
			}
		}
	}
	for stop := range 200 { // a caller may break at any item
		n := 0
		for range tr.Ascend(nil, nil) {
			if n++; n > stop {
				break
			}
		}
		for range tr.Descend(nil, nil) {
			if n--; n == 0 {
				break
			}
		}
		if n != 0 {
			t.Fatalf("broke after %d items, %d left", stop, n)
		}
	}
}

func TestPrefix(t *testing.T) {
	for _, tc := range []struct{ prefix, end []byte }{
		{nil, nil},
		{[]byte{0xff, 0xff}, nil},
		{[]byte("a"), []byte("b")},
		{[]byte{'a', 0xff}, []byte("b")},
		{[]byte{0}, []byte{1}},
	} {
		if end := PrefixEnd(tc.prefix); !bytes.Equal(end, tc.end) || (end == nil) != (tc.end == nil) {
			t.Errorf("PrefixEnd(%x) = %x, want %x", tc.prefix, end, tc.end)
		}
	}
	var tr Tree
	for _, k := range []string{"", "a", "a\xff", "a\xffz", "b", "\xff", "\xff\xff"} {
		tr.Set([]byte(k), nil)
	}
	for prefix, want := range map[string]int{"": 7, "a": 3, "a\xff": 2, "b": 1, "\xff": 2, "c": 0} {
		n := 0
		for range tr.AscendPrefix([]byte(prefix)) {
			n++
		}
		if n != want {
			t.Errorf("AscendPrefix(%q): %d keys, want %d", prefix, n, want)
		}
	}
}

// TestCallersBuffers: keys and values are copied in, and what comes out stays as it was.
func TestCallersBuffers(t *testing.T) {
	var tr Tree
	k, v := []byte("key"), []byte("value")
	tr.Set(k, v)
	copy(k, "xxx")
	copy(v, "xxxxx")
	got, ok := tr.Get([]byte("key"))
	if !ok || string(got) != "value" {
		t.Fatalf("Get returned %q %v after the caller changed its buffers", got, ok)
	}
	old, _ := tr.Set([]byte("key"), []byte("other"))
	tr.Delete([]byte("key"))
	if string(got) != "value" || string(old) != "value" {
		t.Fatalf("views became %q and %q", got, old)
	}
	if cap(got) != len(got) {
		t.Fatalf("append to a view of %d bytes would write into the %d behind it", len(got), cap(got))
	}
	if v, ok := tr.Get([]byte("key")); ok || v != nil {
		t.Fatalf("Get returned %q %v after Delete", v, ok)
	}
	tr.Set([]byte("empty"), nil)
	if v, ok := tr.Get([]byte("empty")); !ok || v == nil {
		t.Fatalf("an empty value came back as nil: %v %v", v == nil, ok)
	}
}

// TestReaders: clones are read, cloned and compared from many goroutines while the tree is written. It is for -race.
func TestReaders(t *testing.T) {
	var tr Tree
	for i := range 2000 {
		tr.Set(number(i), number(0))
	}
	var wg sync.WaitGroup
	before := tr.Clone()
	for round := 1; round <= 20; round++ {
		for i := range 100 {
			tr.Set(number((i*37+round)%2000), number(round))
			if i%10 == 0 {
				tr.Delete(number(i * 10))
			}
		}
		now, was := tr.Clone(), before
		before = now
		for range 3 {
			wg.Go(func() {
				n := 0
				for range now.Ascend(nil, nil) {
					n++
				}
				mine := now.Clone()
				for c := range now.Diff(was) {
					mine.Delete(c.Key)
				}
				if n != now.Len() {
					t.Errorf("%d items, want %d", n, now.Len())
				}
			})
		}
	}
	wg.Wait()
}

// TestDiffCost holds Diff to its promise: what it opens grows with the changes and not with the tree.
func TestDiffCost(t *testing.T) {
	const n = 60_000
	var b Builder
	for i := range n {
		b.Add(number(i*2), nil)
	}
	tr := b.Tree()
	height := tr.height + 1
	r := rand.New(rand.NewPCG(5, 6))
	for _, changes := range []int{0, 1, 10, 100, 1000} {
		old := tr.Clone()
		for range changes {
			switch i := r.IntN(2 * n); {
			case i%2 == 1 || r.IntN(3) > 0: // a new key splits a full leaf
				tr.Set(number(i), []byte{byte(r.Uint32())})
			default:
				tr.Delete(number(i))
			}
		}
		_, opened := cost(tr, old)
		// Both trees are opened along the path of each change; splits and merges add neighbours.
		if limit := 3 * changes * height; opened > limit {
			t.Errorf("%d changes: %d nodes opened, want at most %d", changes, opened, limit)
		}
		old = tr.Clone()
		for i := range changes * 20 { // a bulk delete merges nodes
			tr.Delete(number((changes*40 + i) * 2))
		}
		removed, opened := cost(tr, old)
		if limit := removed/8 + 8*height; opened > limit {
			t.Errorf("bulk delete of %d: %d nodes opened, want at most %d", removed, opened, limit)
		}
	}
}

// cost runs a Diff and counts the nodes that it opens.
func cost(tr, old *Tree) (changes, opened int) {
	var was, is cursor
	was.start(old)
	is.start(tr)
	diff(&was, &is, func(Change) bool { changes++; return true })
	return changes, was.opened + is.opened
}
