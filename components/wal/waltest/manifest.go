package waltest

import (
	"fmt"
	"sync"

	"kvstore/components/wal/driver"
)

var manifestTests = []engineTest{
	{"absent shard does not exist", func(r *run) {
		_, _, err := r.e.Manifest(r.ctx(), "none")
		r.needIs(err, driver.ErrNotExist, "manifest")
	}},
	{"swap from nothing creates once", func(r *run) {
		r.create("s")
		_, err := r.e.SwapManifest(r.ctx(), "s", "", []byte("again"))
		r.needIs(err, driver.ErrConflict, "second create")
		data, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		if string(data) != "first manifest" || tag == "" {
			r.Fatalf("manifest is %q with tag %q", data, tag)
		}
	}},
	{"swap needs the newest tag", func(r *run) {
		r.create("s")
		_, first, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		second, err := r.e.SwapManifest(r.ctx(), "s", first, []byte("two"))
		r.need(err, "swap")
		if second == first || second == "" {
			r.Fatalf("tag %q after %q", second, first)
		}
		_, err = r.e.SwapManifest(r.ctx(), "s", first, []byte("three"))
		r.needIs(err, driver.ErrConflict, "swap by an old tag")
		// the same content again is still another state: A-B-A must not pass
		third, err := r.e.SwapManifest(r.ctx(), "s", second, []byte("first manifest"))
		r.need(err, "swap back")
		if third == first || third == second {
			r.Fatalf("tag %q was used before", third)
		}
		data, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		if string(data) != "first manifest" || tag != third {
			r.Fatalf("manifest is %q with tag %q, want tag %q", data, tag, third)
		}
	}},
	{"swap of an absent shard conflicts", func(r *run) {
		_, err := r.e.SwapManifest(r.ctx(), "none", "7", []byte("x"))
		r.needIs(err, driver.ErrConflict, "swap")
	}},
	{"manifest and tag survive a crash", func(r *run) {
		r.create("s")
		_, first, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		tag, err := r.e.SwapManifest(r.ctx(), "s", first, pattern(100_000, 1))
		r.need(err, "swap")
		r.crash()
		data, got, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		if got != tag || string(data) != string(pattern(100_000, 1)) {
			r.Fatalf("tag %q and %d bytes after the crash, want tag %q and 100000", got, len(data), tag)
		}
		_, err = r.e.SwapManifest(r.ctx(), "s", first, []byte("x"))
		r.needIs(err, driver.ErrConflict, "swap by a tag from before")
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("x"))
		r.need(err, "swap by the tag from before")
	}},
	{"a race has one winner each round", func(r *run) {
		r.create("s")
		const rounds, racers = 20, 8
		for round := range rounds {
			_, tag, err := r.e.Manifest(r.ctx(), "s")
			r.need(err, "manifest")
			errs := make([]error, racers)
			var wg sync.WaitGroup
			for i := range racers {
				wg.Go(func() {
					_, errs[i] = r.e.SwapManifest(r.ctx(), "s", tag, fmt.Appendf(nil, "round %d racer %d", round, i))
				})
			}
			wg.Wait()
			winner := -1
			for i, err := range errs {
				if err == nil {
					if winner >= 0 {
						r.Fatalf("round %d: racers %d and %d both won", round, winner, i)
					}
					winner = i
					continue
				}
				r.needIs(err, driver.ErrConflict, "round %d racer %d", round, i)
			}
			if winner < 0 {
				r.Fatalf("round %d: nobody won", round)
			}
			data, _, err := r.e.Manifest(r.ctx(), "s")
			r.need(err, "manifest")
			if want := fmt.Sprintf("round %d racer %d", round, winner); string(data) != want {
				r.Fatalf("manifest is %q, want %q", data, want)
			}
		}
	}},
	{"shards are apart", func(r *run) {
		r.create("a")
		r.create("a.1")
		_, tag, err := r.e.Manifest(r.ctx(), "a")
		r.need(err, "manifest")
		_, err = r.e.SwapManifest(r.ctx(), "a", tag, []byte("changed"))
		r.need(err, "swap")
		data, _, err := r.e.Manifest(r.ctx(), "a.1")
		r.need(err, "manifest")
		if string(data) != "first manifest" {
			r.Fatalf("the other shard's manifest is %q", data)
		}
	}},
	{"a removed shard is gone, with everything", func(r *run) {
		r.create("s")
		e := epoch(1, 'a')
		r.mustFence("s", e)
		r.fill("s", e, 2, 5)
		r.putObject("s", "v/1-1", pattern(100, 1))
		_, tag, err := r.e.Manifest(r.ctx(), "s")
		r.need(err, "manifest")
		r.need(r.e.RemoveShard(r.ctx(), "s"), "remove")
		r.need(r.e.RemoveShard(r.ctx(), "s"), "remove again")
		for range 2 {
			_, _, err = r.e.Manifest(r.ctx(), "s")
			r.needIs(err, driver.ErrNotExist, "manifest")
			r.needIs(r.append("s", e, 7, []byte("late")), driver.ErrFenced, "append")
			_, _, err = r.fence("s", epoch(2, 'b'))
			r.needIs(err, driver.ErrNotExist, "fence")
			r.needIs(r.e.GetObject(r.ctx(), "s", "v/1-1", 0, make([]byte, 1)), driver.ErrNotExist, "object")
			if names := r.names("s", ""); len(names) > 0 {
				r.Fatalf("objects are left: %v", names)
			}
			r.crash()
		}
		_, err = r.e.SwapManifest(r.ctx(), "s", tag, []byte("x"))
		r.needIs(err, driver.ErrConflict, "swap by a removed shard's tag")
		r.create("s")
		if seq, previous, err := r.fence("s", epoch(1, 'c')); err != nil || seq != 1 || previous != 0 {
			r.Fatalf("fence of the shard made again: seq %d, previous epoch %d, %v", seq, previous, err)
		}
	}},
}
