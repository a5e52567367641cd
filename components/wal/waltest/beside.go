package waltest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"kvstore/components/wal/driver"
)

// besideTests are about two processes on one store. An engine that lets no second process in is skipped.
var besideTests = []engineTest{
	{"another process fences, and sees all", beside(func(r *run, other driver.Engine) {
		r.create("s")
		a, b := epoch(1, 'a'), epoch(2, 'b')
		r.mustFence("s", a)
		next := r.fill("s", a, 2, 3)
		r.putObject("s", "v/1-1", pattern(300_000, 1))

		second := &run{T: r.T, h: r.h, e: other}
		second.wantObject("s", "v/1-1", pattern(300_000, 1))
		if seq := second.mustFence("s", b); seq != next {
			r.Fatalf("fence at %d, want %d", seq, next)
		}
		r.needIs(r.append("s", a, next+1, []byte("late")), driver.ErrFenced, "append of the first process")
		r.needIs(r.e.Trim(r.ctx(), "s", a, 3), driver.ErrFenced, "trim of the first process")
		_, _, err := r.fence("s", a)
		r.needIs(err, driver.ErrFenced, "fence of the first process")
		second.fill("s", b, next+1, 2)
		for _, each := range []*run{r, second} {
			each.wantRecords("s", 2, recordData(2, a), recordData(3, a), recordData(4, a), fenceData(5, b), recordData(6, b), recordData(7, b))
		}
		r.need(other.DeleteObject(r.ctx(), "s", "v/1-1"), "delete")
		r.needIs(r.e.GetObject(r.ctx(), "s", "v/1-1", 0, make([]byte, 1)), driver.ErrNotExist, "get of what the other process deleted")
	})},
	{"of two processes that swap, one wins each time", beside(func(r *run, other driver.Engine) {
		r.create("s")
		for round := range 50 {
			_, tag, err := r.e.Manifest(r.ctx(), "s")
			r.need(err, "manifest")
			var errs [2]error
			var wg sync.WaitGroup
			for i, e := range []driver.Engine{r.e, other} {
				wg.Go(func() { _, errs[i] = e.SwapManifest(r.ctx(), "s", tag, fmt.Appendf(nil, "round %d by %d", round, i)) })
			}
			wg.Wait()
			winner := 0
			if errs[0] != nil {
				winner = 1
			}
			r.need(errs[winner], "round %d: the winner's swap", round)
			r.needIs(errs[1-winner], driver.ErrConflict, "round %d: the loser's swap", round)
			for _, e := range []driver.Engine{r.e, other} {
				data, _, err := e.Manifest(r.ctx(), "s")
				r.need(err, "manifest")
				if want := fmt.Sprintf("round %d by %d", round, winner); string(data) != want {
					r.Fatalf("manifest is %q, want %q", data, want)
				}
			}
		}
	})},
	{"a fence is placed against a process that does not stop to append", beside(func(r *run, other driver.Engine) {
		r.create("s")
		a := epoch(1, 'a')
		r.mustFence("s", a)
		last := make(chan uint64, 1) // seq of the first append that was refused
		var next func(seq uint64)
		next = func(seq uint64) {
			r.e.Append("s", a, driver.Frame{Epoch: 1, Seq: seq, Data: recordData(seq, a)}, func(err error) {
				switch {
				case err == nil:
					next(seq + 1)
				case errors.Is(err, driver.ErrFenced):
					last <- seq
				default:
					r.Errorf("append %d: %v", seq, err)
					last <- seq
				}
			})
		}
		next(2)
		b := epoch(2, 'b')
		second := &run{T: r.T, h: r.h, e: other}
		placed := second.mustFence("s", b)
		select {
		case seq := <-last:
			if seq != placed {
				r.Fatalf("append %d was refused, the fence is at %d", seq, placed)
			}
		case <-time.After(patience):
			r.Fatal("the fenced process goes on")
		}
		second.fill("s", b, placed+1, 1)
	})},
	{"an object that is removed while it is read is whole or absent", beside(func(r *run, other driver.Engine) {
		r.create("s")
		data := pattern(1_500_000, 3)
		for i := range 30 {
			name := fmt.Sprintf("v/%d", i)
			r.putObject("s", name, data)
			removed := make(chan error, 1)
			go func() { removed <- other.DeleteObject(r.ctx(), "s", name) }()
			for {
				got := make([]byte, len(data))
				err := r.e.GetObject(r.ctx(), "s", name, 0, got)
				if err != nil {
					r.needIs(err, driver.ErrNotExist, "get while it is removed")
					break
				}
				if !bytes.Equal(got, data) {
					r.Fatal("the object differs")
				}
			}
			r.need(r.wait(removed), "delete")
		}
	})},
}

// beside runs a case with a second engine on the store.
func beside(test func(r *run, other driver.Engine)) func(r *run) {
	return func(r *run) {
		if r.h.Beside == nil {
			r.Skip("one process has the store for itself")
		}
		other := r.h.Beside(r)
		test(r, other)
		r.need(other.Close(), "close")
	}
}
