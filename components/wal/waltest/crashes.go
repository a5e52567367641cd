package waltest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"kvstore/components/wal/driver"
)

var crashTests = []engineTest{
	{"what was acknowledged is there after a crash", func(r *run) {
		const shards = 4
		rng := rand.New(rand.NewPCG(1, 2))
		want := make([][][]byte, shards)
		owners := make([]driver.Epoch, shards)
		for i := range shards {
			r.create(fmt.Sprintf("s-%d", i))
		}
		for round := uint64(1); round <= 6; round++ {
			for i := range shards {
				shard := fmt.Sprintf("s-%d", i)
				owners[i] = epoch(round, byte(rng.IntN(256)))
				seq := r.mustFence(shard, owners[i])
				frames, err := r.read(shard, 1)
				r.need(err, "read")
				// at most one append was outstanding: it may have landed
				if len(frames) != int(seq) || seq < uint64(len(want[i])+1) || seq > uint64(len(want[i])+2) {
					r.Fatalf("round %d shard %d: %d records and fence at %d after %d acknowledged records", round, i, len(frames), seq, len(want[i]))
				}
				for j := range want[i] {
					if string(frames[j].Data) != string(want[i][j]) {
						r.Fatalf("round %d shard %d: record %d differs", round, i, j+1)
					}
				}
				want[i] = want[i][:0]
				for _, f := range frames {
					want[i] = append(want[i], f.Data)
				}
			}
			for range 20 {
				i := rng.IntN(shards)
				seq := uint64(len(want[i]) + 1)
				data := pattern(rng.IntN(10_000), rng.Uint64())
				r.need(r.append(fmt.Sprintf("s-%d", i), owners[i], seq, data), "append")
				want[i] = append(want[i], data)
			}
			var lost []<-chan error
			for i := range shards {
				seq := uint64(len(want[i]) + 1)
				lost = append(lost, r.appendAsync(fmt.Sprintf("s-%d", i), owners[i], seq, pattern(100, round)))
			}
			for i, c := range lost {
				select {
				case err := <-c:
					r.need(err, "append")
					want[i] = append(want[i], pattern(100, round)) // acknowledged before the crash
				default:
				}
			}
			r.crash()
		}
	}},
	{"a torn tail is not there", func(r *run) {
		if r.h.TearTail == nil {
			r.Skip(r.h.Unsupported)
		}
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 5)
		for range 3 {
			r.need(r.e.Close(), "close")
			r.h.TearTail(r, "s")
			r.e = r.h.Open(r)
			frames, err := r.read("s", 1)
			r.need(err, "read")
			next := uint64(len(frames)) + 1
			if next < 7 {
				r.Fatalf("%d records, want 6 or more", len(frames))
			}
			r.fill("s", e, next, 1)
			r.wantRecords("s", next, recordData(next, e))
		}
		frames, err := r.read("s", 1)
		r.need(err, "read")
		if len(frames) != 9 {
			r.Fatalf("%d records, want 9", len(frames))
		}
	}},
	{"damage in the middle is told", func(r *run) {
		if r.h.DamageRecord == nil {
			r.Skip(r.h.Unsupported)
		}
		r.create("s")
		r.create("other")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.mustFence("other", e)
		victim := pattern(3000, 77)
		r.fill("s", e, 2, 5)
		r.need(r.append("s", e, 7, victim), "append")
		r.fill("s", e, 8, 5)
		r.fill("other", e, 2, 5)
		r.need(r.e.Close(), "close")
		r.h.DamageRecord(r, "s", victim)
		r.e = r.h.Open(r)
		var seen []uint64
		err := r.e.Read(r.ctx(), "s", 1, func(f driver.Frame) error {
			seen = append(seen, f.Seq)
			return nil
		})
		r.needIs(err, driver.ErrCorrupt, "read of a damaged log")
		if slices.Contains(seen, 7) {
			r.Fatal("the damaged record was given out")
		}
	}},
}
