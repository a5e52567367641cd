package btree

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is the plain truth that a tree is checked against.
type model map[string]string

// verify compares everything that a tree can be asked with m.
func verify(t *testing.T, tr *Tree, m model) {
	t.Helper()
	if err := tr.check(); err != nil {
		t.Fatal(err)
	}
	if tr.Len() != len(m) {
		t.Fatalf("Len %d, want %d", tr.Len(), len(m))
	}
	keys := slices.Sorted(maps.Keys(m))
	i := 0
	var size int64
	for k, v := range tr.Ascend(nil, nil) {
		if i == len(keys) || string(k) != keys[i] || string(v) != m[keys[i]] {
			t.Fatalf("Ascend: item %d is %q=%q", i, k, v)
		}
		size += int64(len(k)+len(v)) + ItemOverhead
		i++
	}
	if i != len(keys) {
		t.Fatalf("Ascend: %d of %d items", i, len(keys))
	}
	for k, v := range tr.Descend(nil, nil) {
		i--
		if string(k) != keys[i] || string(v) != m[keys[i]] {
			t.Fatalf("Descend: item %d is %q=%q", i, k, v)
		}
	}
	if i != 0 {
		t.Fatalf("Descend: %d items left", i)
	}
	if tr.Bytes() != size {
		t.Fatalf("Bytes %d, want %d", tr.Bytes(), size)
	}
}

// key makes keys of many lengths, with shared prefixes, some prefixes of others, and bytes 0 and 255.
func randomKey(r *rand.Rand, space int) []byte {
	n := r.IntN(space)
	switch n % 5 {
	case 0:
		return fmt.Appendf(nil, "a/%d", n)
	case 1:
		return bytes.Repeat([]byte{0xff}, n%40)
	case 2:
		return append(bytes.Repeat([]byte{0}, n%7), byte(n), byte(n>>8))
	case 3:
		return append(bytes.Repeat([]byte{'p'}, 100+n%60), byte(n>>8), byte(n))
	default:
		return fmt.Appendf(nil, "a/%08d", n)
	}
}

func randomValue(r *rand.Rand) []byte { return bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(20)) }

// TestClones runs random histories with many clones alive, some of them written too, and compares each with its model at the
// end: nothing may have changed under a clone.
func TestClones(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			type pair struct {
				tree  *Tree
				model model
			}
			all := []pair{{new(Tree), model{}}}
			space := 50 << (seed % 8) // from a single leaf to three levels
			bias := 50
			for range 12_000 {
				if r.IntN(500) == 0 {
					bias = []int{5, 50, 95}[r.IntN(3)] // shrink, churn, grow
				}
				p := &all[r.IntN(len(all))]
				k := randomKey(r, space)
				switch {
				case r.IntN(400) == 0 && len(all) < 40:
					all = append(all, pair{p.tree.Clone(), maps.Clone(p.model)})
				case r.IntN(100) < bias:
					v := randomValue(r)
					old, existed := p.tree.Set(k, v)
					was, ok := p.model[string(k)]
					if existed != ok || string(old) != was {
						t.Fatalf("Set %q returned %q %v, want %q %v", k, old, existed, was, ok)
					}
					p.model[string(k)] = string(v)
				default:
					old, existed := p.tree.Delete(k)
					was, ok := p.model[string(k)]
					if existed != ok || string(old) != was {
						t.Fatalf("Delete %q returned %q %v, want %q %v", k, old, existed, was, ok)
					}
					delete(p.model, string(k))
				}
				k = randomKey(r, space)
				v, ok := p.tree.Get(k)
				if want, there := p.model[string(k)]; ok != there || string(v) != want {
					t.Fatalf("Get %q returned %q %v, want %q %v", k, v, ok, want, there)
				}
			}
			for _, p := range all {
				verify(t, p.tree, p.model)
			}
			for range 60 {
				a, b := all[r.IntN(len(all))], all[r.IntN(len(all))]
				verifyDiff(t, b.tree, a.tree, b.model, a.model)
			}
		})
	}
}

// verifyDiff compares Diff with the plain difference.
func verifyDiff(t *testing.T, tr, old *Tree, m, was model) {
	t.Helper()
	type change struct {
		key, value string
		deleted    bool
	}
	var want []change
	for k, v := range m {
		if w, ok := was[k]; !ok || w != v {
			want = append(want, change{k, v, false})
		}
	}
	for k := range was {
		if _, ok := m[k]; !ok {
			want = append(want, change{k, "", true})
		}
	}
	slices.SortFunc(want, func(a, b change) int { return bytes.Compare([]byte(a.key), []byte(b.key)) })
	i := 0
	for c := range tr.Diff(old) {
		if i == len(want) || want[i] != (change{string(c.Key), string(c.Value), c.Deleted}) {
			t.Fatalf("change %d of %d is %q=%q deleted: %v", i, len(want), c.Key, c.Value, c.Deleted)
		}
		if (c.Value == nil) != c.Deleted {
			t.Fatalf("value of %q is nil: %v, deleted: %v", c.Key, c.Value == nil, c.Deleted)
		}
		i++
	}
	if i != len(want) {
		t.Fatalf("%d changes, want %d", i, len(want))
	}
}

func TestBuilder(t *testing.T) {
	edge := maxItems * (maxItems + 1)
	for _, n := range []int{0, 1, 2, maxItems, maxItems + 1, edge, edge + 1, edge + maxItems, edge + maxItems + 1, 2*edge + 1, 100_000} {
		var b Builder
		m := model{}
		for i := range n {
			k := fmt.Appendf(nil, "%07d", i)
			b.Add(k, k[3:])
			m[string(k)] = string(k[3:])
		}
		tr := b.Tree()
		verify(t, tr, m)
		kept := tr.Clone()
		for i := range min(n, 3000) {
			k := fmt.Appendf(nil, "%07d", (i*7919)%n)
			tr.Delete(k)
			delete(m, string(k))
		}
		verify(t, tr, m)
		if kept.Len() != n {
			t.Fatalf("clone has %d items, want %d", kept.Len(), n)
		}
		if again := b.Tree(); again.Len() != 0 {
			t.Fatalf("Builder still has %d items", again.Len())
		}
	}
}

func TestBuilderRefusesDisorder(t *testing.T) {
	for _, second := range []string{"b", "a", ""} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("key %q was taken after %q", second, "b")
				}
			}()
			var b Builder
			b.Add([]byte("b"), nil)
			b.Add([]byte(second), nil)
		}()
	}
}

// TestDiffOfEmpty: a nil and an empty old tree are the same, and a caller may stop at any change.
func TestDiffOfEmpty(t *testing.T) {
	var tr, empty Tree
	want := model{}
	for i := range 500 {
		tr.Set(fmt.Append(nil, i), []byte("v"))
		want[fmt.Sprint(i)] = "v"
	}
	verifyDiff(t, &tr, nil, want, nil)
	verifyDiff(t, &tr, &empty, want, nil)
	verifyDiff(t, &empty, &tr, nil, want)
	verifyDiff(t, &empty, nil, nil, nil)
	other := tr.Clone()
	for i := range 300 { // removed, changed and added keys beside each other
		k := fmt.Append(nil, i)
		switch i % 3 {
		case 0:
			other.Delete(k)
		case 1:
			other.Set(k, []byte("w"))
		case 2:
			other.Set(append(k, 'x'), nil)
		}
	}
	for _, pair := range [][2]*Tree{{&tr, &empty}, {&empty, &tr}, {&tr, other}, {other, &tr}} {
		n := 0
		for range pair[0].Diff(pair[1]) {
			n++
		}
		for stop := range n {
			seen := 0
			for range pair[0].Diff(pair[1]) {
				if seen++; seen > stop {
					break
				}
			}
			if seen != stop+1 {
				t.Fatalf("stopped at %d of %d", seen, n)
			}
		}
	}
}

// TestKeyShapes: nodes whose keys tie in their heads, are prefixes of each other, or share nothing.
func TestKeyShapes(t *testing.T) {
	shapes := map[string]func(i int) []byte{
		"runs of zeros":      func(i int) []byte { return make([]byte, i%300) },
		"runs of 255":        func(i int) []byte { return bytes.Repeat([]byte{255}, i%300) },
		"tails tie":          func(i int) []byte { return fmt.Appendf(nil, "%dsame-middle-part%d", i%3, i*7919%1000) },
		"zeros behind":       func(i int) []byte { return append([]byte("k"), make([]byte, i%9)...) },
		"one byte":           func(i int) []byte { return []byte{byte(i * 37)} },
		"long alike":         func(i int) []byte { return append(bytes.Repeat([]byte{'x'}, 900), byte(i>>8), byte(i*37)) },
		"number, then bytes": func(i int) []byte { return append(number(i*7919%100), byte(i), 0) },
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			tr, m := new(Tree), model{}
			for i := range 3000 {
				k := shape(i)
				if i%5 == 4 {
					k = shape(i / 2)
					tr.Delete(k)
					delete(m, string(k))
				} else {
					tr.Set(k, k)
					m[string(k)] = string(k)
				}
				probe := append(shape(i/3), byte(i))
				if v, ok := tr.Get(probe); ok != (m[string(probe)] != "") || string(v) != m[string(probe)] {
					t.Fatalf("Get %x: %x %v", probe, v, ok)
				}
			}
			verify(t, tr, m)
		})
	}
}
