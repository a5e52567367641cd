package disklog

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestIndexAgainstAMap does random things to an index and to a plain map.
func TestIndexAgainstAMap(t *testing.T) {
	type place struct {
		segment uint64
		off     uint32
	}
	seeds := uint64(100)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 3))
		var x index
		model := map[uint64]place{}
		last, kept := uint64(0), uint64(1)
		for step := range 300 {
			p := place{1 + uint64(step/30), rng.Uint32()}
			switch k := rng.IntN(10); {
			case k < 6 || last == 0: // the next record, sometimes behind a loss
				last += 1 + rng.Uint64N(20)/19
				if before := x.put(last, p.segment, p.off); before != 0 {
					t.Fatalf("seed %d: %d was in segment %d", seed, last, before)
				}
				model[last] = p
			case k < 8: // copies of a few
				for seq := kept + rng.Uint64N(last-kept+1); seq <= last && rng.IntN(5) > 0; seq++ {
					if before := x.put(seq, p.segment, p.off); before != model[seq].segment {
						t.Fatalf("seed %d: %d was in segment %d, want %d", seed, seq, before, model[seq].segment)
					}
					model[seq] = p
				}
			case k < 9:
				seq := kept + rng.Uint64N(last-kept+1)
				if before, _ := x.cut(seq); before != model[seq].segment {
					t.Fatalf("seed %d: %d was cut from segment %d, want %d", seed, seq, before, model[seq].segment)
				}
				delete(model, seq)
			default:
				kept += rng.Uint64N(last-kept+1) / 3
				dropped, want := map[uint64]int{}, map[uint64]int{}
				x.dropBelow(kept, func(segment uint64, n int) { dropped[segment] += n })
				for seq, p := range model {
					if seq < kept {
						want[p.segment]++
						delete(model, seq)
					}
				}
				if !maps.Equal(dropped, want) {
					t.Fatalf("seed %d: dropped %v, want %v", seed, dropped, want)
				}
			}
			for seq := kept; seq <= last+1; seq++ {
				segment, off, ok := x.find(seq)
				if want, there := model[seq]; ok != there || (ok && (segment != want.segment || off != want.off)) {
					t.Fatalf("seed %d step %d: %d is at %d %d (%v), want %v (%v)", seed, step, seq, segment, off, ok, want, there)
				}
			}
			if !slices.IsSortedFunc(x.extents, func(a, b extent) int { return int(a.end()) - int(b.first) - 1 }) {
				t.Fatalf("seed %d: extents overlap: %v", seed, x.extents)
			}
		}
	}
}
