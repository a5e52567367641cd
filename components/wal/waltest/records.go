package waltest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"kvstore/components/wal/driver"
)

var recordTests = []engineTest{
	{"an empty log has no records", func(r *run) {
		r.create("s")
		r.wantRecords("s", 1)
		r.crash()
		r.wantRecords("s", 1)
	}},
	{"records come back in order, with epochs", func(r *run) {
		r.create("s")
		a := epoch(1, 'a')
		r.mustFence("s", a)
		next := r.fill("s", a, 2, 10)
		b := epoch(3, 'b')
		if seq := r.mustFence("s", b); seq != next {
			r.Fatalf("fence at %d, want %d", seq, next)
		}
		r.fill("s", b, next+1, 3)
		for range 2 {
			frames, err := r.read("s", 1)
			r.need(err, "read")
			if len(frames) != 15 {
				r.Fatalf("%d records, want 15", len(frames))
			}
			for i, f := range frames {
				wantEpoch := uint64(1)
				if i >= 11 {
					wantEpoch = 3
				}
				if f.Seq != uint64(i+1) || f.Epoch != wantEpoch {
					r.Fatalf("record %d has seq %d epoch %d, want epoch %d", i+1, f.Seq, f.Epoch, wantEpoch)
				}
			}
			r.wantRecords("s", 12, fenceData(12, b), recordData(13, b), recordData(14, b), recordData(15, b))
			r.wantRecords("s", 15, recordData(15, b))
			r.wantRecords("s", 16)
			r.wantRecords("s", 1000)
			r.reopen()
		}
	}},
	{"a gap or a repetition of seq is refused", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.needIs(r.append("s", e, 1, []byte("x")), driver.ErrFenced, "append before any fence")
		r.mustFence("s", e)
		r.fill("s", e, 2, 2)
		for _, seq := range []uint64{0, 1, 2, 3, 5, 1 << 40} {
			r.needIs(r.append("s", e, seq, []byte("x")), driver.ErrFenced, "append %d where 4 comes next", seq)
		}
		r.fill("s", e, 4, 1)
		r.wantRecords("s", 1, fenceData(1, e), recordData(2, e), recordData(3, e), recordData(4, e))
	}},
	{"append to an absent shard is refused", func(r *run) {
		r.needIs(r.append("none", epoch(1, 'a'), 1, []byte("x")), driver.ErrFenced, "append")
	}},
	{"an append may be made from inside done", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		const n = 500
		finished := make(chan error, 1)
		var next func(seq uint64)
		next = func(seq uint64) {
			r.e.Append("s", e, driver.Frame{Epoch: 1, Seq: seq, Data: recordData(seq, e)}, func(err error) {
				if err != nil || seq == n {
					finished <- err
					return
				}
				next(seq + 1)
			})
		}
		next(2)
		r.need(r.wait(finished), "chain of appends")
		frames, err := r.read("s", 1)
		r.need(err, "read")
		if len(frames) != n {
			r.Fatalf("%d records, want %d", len(frames), n)
		}
	}},
	{"many shards append at once", func(r *run) {
		const shards, each = 16, 40
		var wg sync.WaitGroup
		errs := make([]error, shards)
		e := epoch(1, 'a')
		for i := range shards {
			shard := fmt.Sprintf("s-%d", i)
			r.create(shard)
			r.mustFence(shard, e)
			wg.Go(func() {
				for seq := uint64(2); seq < 2+each; seq++ {
					if err := r.append(shard, e, seq, pattern(100*i+1, seq)); err != nil {
						errs[i] = err
						return
					}
				}
			})
		}
		wg.Wait()
		r.need(errors.Join(errs...), "appends")
		for range 2 {
			for i := range shards {
				want := [][]byte{fenceData(1, e)}
				for seq := uint64(2); seq < 2+each; seq++ {
					want = append(want, pattern(100*i+1, seq))
				}
				r.wantRecords(fmt.Sprintf("s-%d", i), 1, want...)
			}
			r.crash()
		}
	}},
	{"records of 0 bytes and of 16 MiB", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		big := pattern(16<<20, 7)
		r.need(r.append("s", e, 2, nil), "empty record")
		r.need(r.append("s", e, 3, big), "big record")
		r.need(r.append("s", e, 4, nil), "empty record")
		r.need(r.append("s", e, 5, pattern(16<<20+1, 8)), "big record")
		for range 2 {
			r.wantRecords("s", 1, fenceData(1, e), nil, big, nil, pattern(16<<20+1, 8))
			r.crash()
		}
	}},
	{"a reader's error ends the read", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 3)
		stop := errors.New("stop")
		calls := 0
		err := r.e.Read(r.ctx(), "s", 1, func(driver.Frame) error {
			calls++
			if calls == 2 {
				return stop
			}
			return nil
		})
		r.needIs(err, stop, "read")
		if calls != 2 {
			r.Fatalf("%d calls, want 2", calls)
		}
	}},
	{"a reader may use the engine", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 2)
		err := r.e.Read(r.ctx(), "s", 1, func(f driver.Frame) error {
			if _, _, err := r.e.Manifest(r.ctx(), "s"); err != nil {
				return err
			}
			return r.append("s", e, f.Seq+3, recordData(f.Seq+3, e))
		})
		r.need(err, "read")
		frames, err := r.read("s", 1)
		r.need(err, "read")
		if len(frames) < 6 {
			r.Fatalf("%d records, want at least 6", len(frames))
		}
	}},
	{"frames outlive the read", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 50)
		frames, err := r.read("s", 1)
		r.need(err, "read")
		r.fill("s", e, 52, 50)
		r.need(r.e.Trim(r.ctx(), "s", e, 100), "trim")
		for i, f := range frames[1:] {
			if string(f.Data) != string(recordData(uint64(i+2), e)) {
				r.Fatalf("record %d changed to %q", i+2, f.Data)
			}
		}
	}},
	{"trim forgets, but never the last record", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 9)
		r.need(r.e.Trim(r.ctx(), "s", e, 5), "trim")
		r.wantRecords("s", 9, recordData(9, e), recordData(10, e))
		r.need(r.e.Trim(r.ctx(), "s", e, 3), "trim further back")
		r.need(r.e.Trim(r.ctx(), "s", e, 1000), "trim beyond the end")
		for range 2 {
			r.wantRecords("s", 10, recordData(10, e))
			r.reopen()
		}
		r.fill("s", e, 11, 1)
		b := epoch(2, 'b')
		seq, previous, err := r.fence("s", b)
		r.need(err, "fence")
		if seq != 12 || previous != 1 {
			r.Fatalf("fence at %d after epoch %d, want 12 after 1", seq, previous)
		}
	}},
	{"trimmed records do not exist", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		// an engine trims at its leisure, by the segment perhaps: enough to fill some
		data := pattern(1<<20, 1)
		const n = 200
		for seq := uint64(2); seq <= n; seq++ {
			r.need(r.append("s", e, seq, data), "append %d", seq)
		}
		r.need(r.e.Trim(r.ctx(), "s", e, n), "trim")
		_, err := r.read("s", 1)
		r.needIs(err, driver.ErrNotExist, "read from a trimmed record")
		r.crash()
		_, err = r.read("s", 1)
		r.needIs(err, driver.ErrNotExist, "read from a trimmed record after a crash")
		r.wantRecords("s", n, data)
		r.fill("s", e, n+1, 1)
	}},
	{"a long log is read from any place", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		rng := rand.New(rand.NewPCG(3, 3))
		sizes := []int{0, 1, 50, 300, 5_000, 70_000, 400_000}
		want := [][]byte{fenceData(1, e)}
		for seq := uint64(2); seq <= 600; seq++ {
			n := sizes[rng.IntN(len(sizes)-1)]
			if rng.IntN(60) == 0 {
				n = sizes[len(sizes)-1]
			}
			want = append(want, pattern(n, seq))
			r.need(r.append("s", e, seq, want[seq-1]), "append %d", seq)
		}
		for range 10 {
			from := 1 + rng.Uint64N(600)
			r.wantRecords("s", from, want[from-1:]...)
		}
		r.need(r.e.Trim(r.ctx(), "s", e, 200), "trim")
		for range 5 {
			from := 200 + rng.Uint64N(401)
			r.wantRecords("s", from, want[from-1:]...)
		}
	}},
	{"a log that is trimmed while it is read has no holes", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		data := pattern(100_000, 5)
		for seq := uint64(2); seq <= 100; seq++ {
			r.need(r.append("s", e, seq, data), "append %d", seq)
		}
		next := uint64(1)
		err := r.e.Read(r.ctx(), "s", 1, func(f driver.Frame) error {
			if f.Seq != next {
				return fmt.Errorf("record %d comes after %d", f.Seq, next-1)
			}
			if next++; f.Seq == 2 {
				return r.e.Trim(r.ctx(), "s", e, 90)
			}
			return nil
		})
		if err != nil {
			r.needIs(err, driver.ErrNotExist, "read of records that were trimmed meanwhile")
		} else if next != 101 {
			r.Fatalf("the read ended before record %d", next)
		}
	}},
	{"close waits for appends and refuses later ones", func(r *run) {
		e := epoch(1, 'a')
		const shards = 8
		outcomes := make([]<-chan error, shards)
		for i := range shards {
			shard := fmt.Sprintf("s-%d", i)
			r.create(shard)
			r.mustFence(shard, e)
		}
		for i := range shards {
			outcomes[i] = r.appendAsync(fmt.Sprintf("s-%d", i), e, 2, recordData(2, e))
		}
		closed := r.e
		r.need(closed.Close(), "close")
		written := make([]bool, shards)
		for i, c := range outcomes {
			select {
			case err := <-c:
				if written[i] = err == nil; !written[i] {
					r.needIs(err, driver.ErrClosed, "append during close")
				}
			default:
				r.Fatalf("append of shard %d was not done when Close returned", i)
			}
		}
		r.needIs(r.append("s-0", e, 3, []byte("late")), driver.ErrClosed, "append after close")
		_, _, err := closed.Manifest(r.ctx(), "s-0")
		r.needIs(err, driver.ErrClosed, "manifest after close")
		_, err = closed.SwapManifest(r.ctx(), "s-0", "x", nil)
		r.needIs(err, driver.ErrClosed, "swap after close")
		r.e = r.h.Open(r)
		for i := range shards {
			want := [][]byte{fenceData(1, e)}
			if written[i] {
				want = append(want, recordData(2, e))
			}
			r.wantRecords(fmt.Sprintf("s-%d", i), 1, want...)
		}
	}},
}
