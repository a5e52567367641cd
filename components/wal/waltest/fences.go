package waltest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest/fault"
)

var fenceTests = []engineTest{
	{"a fence tells its place and the epoch before", func(r *run) {
		r.create("s")
		a := epoch(1, 'a')
		seq, previous, err := r.fence("s", a)
		r.need(err, "fence")
		if seq != 1 || previous != 0 {
			r.Fatalf("first fence at %d after epoch %d, want 1 after 0", seq, previous)
		}
		r.fill("s", a, 2, 3)
		seq, previous, err = r.fence("s", epoch(7, 'b'))
		r.need(err, "fence")
		if seq != 5 || previous != 1 {
			r.Fatalf("second fence at %d after epoch %d, want 5 after 1", seq, previous)
		}
		seq, previous, err = r.fence("s", epoch(8, 'c'))
		r.need(err, "fence")
		if seq != 6 || previous != 7 {
			r.Fatalf("third fence at %d after epoch %d, want 6 after 7", seq, previous)
		}
	}},
	{"an absent shard has no fence", func(r *run) {
		_, _, err := r.fence("none", epoch(1, 'a'))
		r.needIs(err, driver.ErrNotExist, "fence")
	}},
	{"a fence repeated is one fence", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		first := r.mustFence("s", e)
		for range 2 {
			if again := r.mustFence("s", e); again != first {
				r.Fatalf("fence repeated at %d, first at %d", again, first)
			}
			r.crash()
		}
		r.fill("s", e, 2, 3)
		for range 2 {
			if again := r.mustFence("s", e); again != first {
				r.Fatalf("fence repeated after appends at %d, first at %d", again, first)
			}
			r.crash()
		}
		r.wantRecords("s", 1, fenceData(1, e), recordData(2, e), recordData(3, e), recordData(4, e))
	}},
	{"a withdrawn fence writes nothing", func(r *run) {
		r.create("s")
		a := epoch(1, 'a')
		r.mustFence("s", a)
		_, err := r.e.Fence(r.ctx(), "s", epoch(2, 'b'), func(uint64, uint64) []byte { return nil })
		r.needIs(err, driver.ErrRefused, "fence")
		r.fill("s", a, 2, 1)
		r.wantRecords("s", 1, fenceData(1, a), recordData(2, a))
	}},
	{"lower epochs and other writers are refused", func(r *run) {
		r.create("s")
		e := epoch(5, 'a')
		r.mustFence("s", e)
		for range 2 {
			for _, other := range []driver.Epoch{epoch(4, 'a'), epoch(4, 'b'), epoch(5, 'b'), epoch(1, 'a')} {
				_, _, err := r.fence("s", other)
				r.needIs(err, driver.ErrFenced, "fence for %d %c", other.Counter, other.Writer[0])
				r.needIs(r.append("s", other, 2, []byte("x")), driver.ErrFenced, "append by %d %c", other.Counter, other.Writer[0])
				r.needIs(r.e.Trim(r.ctx(), "s", other, 2), driver.ErrFenced, "trim by %d %c", other.Counter, other.Writer[0])
			}
			r.needIs(r.append("s", epoch(6, 'a'), 2, []byte("x")), driver.ErrFenced, "append by an epoch that placed no fence")
			r.wantRecords("s", 1, fenceData(1, e))
			r.crash()
		}
	}},
	{"of many fences at once the highest stands", func(r *run) {
		r.create("s")
		const n = 12
		seqs := make([]uint64, n+1)
		errs := make([]error, n+1)
		var wg sync.WaitGroup
		for i := 1; i <= n; i++ {
			wg.Go(func() { seqs[i], _, errs[i] = r.fence("s", epoch(uint64(i), byte(i))) })
		}
		wg.Wait()
		r.need(errs[n], "highest fence")
		for i := 1; i < n; i++ {
			if errs[i] != nil {
				r.needIs(errs[i], driver.ErrFenced, "fence %d", i)
			} else if seqs[i] >= seqs[n] {
				r.Fatalf("fence of epoch %d at %d, of epoch %d at %d", i, seqs[i], n, seqs[n])
			}
			r.needIs(r.append("s", epoch(uint64(i), byte(i)), seqs[n]+1, []byte("x")), driver.ErrFenced, "append of epoch %d", i)
		}
		r.fill("s", epoch(n, n), seqs[n]+1, 1)
	}},
	{"a writer frozen across fence, writes, checkpoint and trim of its successor is refused", func(r *run) {
		f := fault.Wrap(r.e)
		r.e = f
		r.create("s")
		a, b := epoch(1, 'a'), epoch(2, 'b')
		r.mustFence("s", a)
		next := r.fill("s", a, 2, 3)
		frozen := f.Add(fault.Rule{Verb: fault.Append, Freeze: true})
		late := r.appendAsync("s", a, next, []byte("late"))
		<-frozen.Hit()

		seq := r.mustFence("s", b)
		if seq != next {
			r.Fatalf("fence at %d, want %d", seq, next)
		}
		last := r.fill("s", b, seq+1, 5) - 1
		r.putObject("s", "c/2-1", pattern(1000, 1))
		_, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("checkpoint"))
		r.need(err, "swap")
		r.need(r.e.Trim(r.ctx(), "s", b, last), "trim")

		frozen.Thaw()
		r.needIs(r.wait(late), driver.ErrFenced, "append of the frozen writer")
		// it does not give up: no place in the log takes it
		for seq := uint64(1); seq <= last+2; seq++ {
			r.needIs(r.append("s", a, seq, []byte("late")), driver.ErrFenced, "append of the frozen writer at %d", seq)
		}
		_, _, err = r.fence("s", a)
		r.needIs(err, driver.ErrFenced, "fence of the frozen writer")
		r.needIs(r.e.Trim(r.ctx(), "s", a, last+1), driver.ErrFenced, "trim of the frozen writer")
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("mine"))
		r.needIs(err, driver.ErrConflict, "swap of the frozen writer")
		r.fill("s", b, last+1, 1)
		r.wantRecords("s", last, recordData(last, b), recordData(last+1, b))
	}},
	{"the same across a restart", func(r *run) {
		r.create("s")
		a, b := epoch(1, 'a'), epoch(2, 'b')
		r.mustFence("s", a)
		r.fill("s", a, 2, 3)
		r.mustFence("s", b)
		last := r.fill("s", b, 6, 5) - 1
		r.need(r.e.Trim(r.ctx(), "s", b, last), "trim")
		for range 2 {
			r.crash()
			for seq := uint64(1); seq <= last+2; seq++ {
				r.needIs(r.append("s", a, seq, []byte("late")), driver.ErrFenced, "append at %d", seq)
			}
			_, _, err := r.fence("s", a)
			r.needIs(err, driver.ErrFenced, "fence")
		}
		r.fill("s", b, last+1, 1)
	}},
	{"the lost reply of a fence is settled by repeating it", func(r *run) {
		f := fault.Wrap(r.e)
		r.e = f
		r.create("s")
		e := epoch(1, 'a')
		f.Add(fault.Rule{Verb: fault.Fence, Err: io.ErrUnexpectedEOF, After: true})
		_, _, err := r.fence("s", e)
		r.needIs(err, io.ErrUnexpectedEOF, "fence")
		if seq := r.mustFence("s", e); seq != 1 {
			r.Fatalf("fence at %d, want 1", seq)
		}
		r.wantRecords("s", 1, fenceData(1, e))
	}},
	{"the lost reply of a swap is settled by reading back", func(r *run) {
		f := fault.Wrap(r.e)
		r.e = f
		r.create("s")
		_, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		f.Add(fault.Rule{Verb: fault.Swap, Err: io.ErrUnexpectedEOF, After: true})
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("two"))
		r.needIs(err, io.ErrUnexpectedEOF, "swap")
		data, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		if string(data) != "two" {
			r.Fatalf("manifest is %q", data)
		}
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("three"))
		r.need(err, "swap by the tag that was read back")
	}},
	{"the lost reply of an append shows in the log", func(r *run) {
		f := fault.Wrap(r.e)
		r.e = f
		r.create("s")
		a, b := epoch(1, 'a'), epoch(2, 'b')
		r.mustFence("s", a)
		f.Add(fault.Rule{Verb: fault.Append, Err: io.ErrUnexpectedEOF, After: true})
		r.needIs(r.append("s", a, 2, recordData(2, a)), io.ErrUnexpectedEOF, "append")
		if seq := r.mustFence("s", b); seq != 3 {
			r.Fatalf("fence at %d, want 3", seq)
		}
		r.wantRecords("s", 1, fenceData(1, a), recordData(2, a), fenceData(3, b))
	}},
	{"every error at every step writes nothing else", func(r *run) {
		everyErrorAtEveryStep(r)
	}},
	{"a canceled call writes nothing or says so", func(r *run) {
		r.create("s")
		ctx, cancel := context.WithCancel(r.ctx())
		cancel()
		_, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		if _, err := r.e.SwapManifest(ctx, "s", tag, []byte("x")); err == nil {
			data, _, _ := r.e.Manifest(r.ctx(), "s")
			if string(data) != "x" {
				r.Fatal("a canceled swap said that it was done, and was not")
			}
		}
		if err := r.e.PutObject(ctx, "s", "v/1-1", 3, bytes.NewReader([]byte("abc"))); err == nil {
			r.wantObject("s", "v/1-1", []byte("abc"))
		}
	}},
}

// everyErrorAtEveryStep runs one life of a shard with each verb failing in each way at each of its calls, and checks that
// whatever failed with a known outcome left the log as it was, and that the next epoch goes on.
func everyErrorAtEveryStep(r *run) {
	failures := []error{driver.ErrNoSpace, driver.ErrRefused, driver.ErrClosed, &driver.NotLeaderError{Hint: "b"}, io.ErrUnexpectedEOF}
	verbs := map[string]fault.Verb{"fence": fault.Fence, "append": fault.Append, "swap": fault.Swap, "put": fault.Put, "trim": fault.Trim, "delete": fault.Delete}
	inner := r.e
	n := 0
	for name, verb := range verbs {
		for _, failure := range failures {
			for _, after := range []bool{false, true} {
				if after && !errors.Is(failure, io.ErrUnexpectedEOF) {
					continue // the others promise that nothing was written
				}
				for nth := 1; nth <= 2; nth++ {
					n++
					r.Run("", func(t *testing.T) {
						f := fault.Wrap(inner)
						sub := &run{T: t, h: r.h, e: f}
						armed := f.Add(fault.Rule{Verb: verb, Nth: nth, Err: failure, After: after})
						oneLife(sub, shardName(n))
						if armed.Hits() != 1 {
							t.Fatalf("%s %d was never called", name, nth)
						}
					})
				}
			}
		}
	}
}

func shardName(n int) string { return "life-" + string(rune('a'+n/26)) + string(rune('a'+n%26)) }

// oneLife makes a shard and lives two epochs of it, trying each step again until it succeeds. A step that failed may have
// happened; the log must hold exactly what was done in the end.
func oneLife(r *run, shard string) {
	retry := func(what string, step func() error) {
		r.Helper()
		for range 3 {
			if step() == nil {
				return
			}
		}
		r.Fatalf("%s fails for ever", what)
	}
	swap := func(data string) {
		r.Helper()
		retry("swap", func() error {
			old, tag, err := r.e.Manifest(r.ctx(), shard)
			if err != nil && !errors.Is(err, driver.ErrNotExist) {
				return err
			}
			if string(old) == data {
				return nil
			}
			_, err = r.e.SwapManifest(r.ctx(), shard, tag, []byte(data))
			return err
		})
	}
	var want [][]byte
	next := uint64(1)
	for counter := uint64(1); counter <= 3; counter++ {
		e := epoch(counter, byte(counter))
		swap(string(rune('0' + counter)))
		retry("fence", func() error {
			seq, _, err := r.fence(shard, e)
			if err == nil {
				for ; next < seq; next++ { // an append with an unknown outcome has landed
					want = append(want, recordData(next, epoch(counter-1, byte(counter-1))))
				}
				want = append(want, fenceData(seq, e))
				next = seq + 1
			}
			return err
		})
		for range 2 {
			err := r.append(shard, e, next, recordData(next, e))
			if err != nil && errors.Is(err, io.ErrUnexpectedEOF) {
				break // the epoch ends; the next fence shows whether it landed
			}
			if err != nil {
				continue // known not to be written: the same seq is free
			}
			want = append(want, recordData(next, e))
			next++
		}
		retry("put", func() error {
			name := "v/" + string(rune('0'+counter))
			err := r.e.PutObject(r.ctx(), shard, name, 5, bytes.NewReader([]byte("value")))
			if err != nil && r.e.GetObject(r.ctx(), shard, name, 0, make([]byte, 5)) == nil {
				return nil
			}
			return err
		})
	}
	r.wantRecords(shard, 1, want...)
	last := epoch(3, 3)
	retry("trim", func() error { return r.e.Trim(r.ctx(), shard, last, 2) })
	retry("trim", func() error { return r.e.Trim(r.ctx(), shard, last, 3) })
	retry("delete", func() error { return r.e.DeleteObject(r.ctx(), shard, "v/1") })
	retry("delete", func() error { return r.e.DeleteObject(r.ctx(), shard, "v/2") })
	if names := r.names(shard, "v/"); len(names) != 1 || names[0] != "v/3" {
		r.Fatalf("objects left: %v", names)
	}
	r.wantRecords(shard, next-1, want[len(want)-1])
}
