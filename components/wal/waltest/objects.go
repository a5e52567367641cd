package waltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing/iotest"
	"time"

	"kvstore/components/wal/driver"
)

// putObject stores an object; it must succeed.
func (r *run) putObject(shard, name string, data []byte) {
	r.Helper()
	r.need(r.e.PutObject(r.ctx(), shard, name, int64(len(data)), bytes.NewReader(data)), "put %s", name)
}

// wantObject checks an object's content, by several reads.
func (r *run) wantObject(shard, name string, want []byte) {
	r.Helper()
	got := make([]byte, len(want))
	r.need(r.e.GetObject(r.ctx(), shard, name, 0, got), "get %s", name)
	if !bytes.Equal(got, want) {
		r.Fatalf("object %s differs", name)
	}
	if n := len(want); n > 2 {
		part := make([]byte, n-2)
		r.need(r.e.GetObject(r.ctx(), shard, name, 1, part), "get a part of %s", name)
		if !bytes.Equal(part, want[1:n-1]) {
			r.Fatalf("a part of object %s differs", name)
		}
	}
	r.needIs(r.e.GetObject(r.ctx(), shard, name, 1, got), driver.ErrCorrupt, "get beyond the end of %s", name)
}

var objectTests = []engineTest{
	{"objects of all sizes survive a crash", func(r *run) {
		r.create("s")
		sizes := []int{1, 2, 4095, 4096, 4097, 1 << 20, 5<<20 + 1}
		for i, n := range sizes {
			r.putObject("s", fmt.Sprintf("v/%d", i), pattern(n, uint64(i)))
		}
		r.need(r.e.PutObject(r.ctx(), "s", "v/unknown", -1, bytes.NewReader(pattern(70_000, 9))), "put of unknown size")
		r.putObject("s", "v/empty", nil)
		for range 2 {
			for i, n := range sizes {
				r.wantObject("s", fmt.Sprintf("v/%d", i), pattern(n, uint64(i)))
			}
			r.wantObject("s", "v/unknown", pattern(70_000, 9))
			r.need(r.e.GetObject(r.ctx(), "s", "v/empty", 0, nil), "get of nothing")
			r.crash()
		}
	}},
	{"an absent object does not exist", func(r *run) {
		r.create("s")
		r.needIs(r.e.GetObject(r.ctx(), "s", "v/1-1", 0, make([]byte, 1)), driver.ErrNotExist, "get")
		r.need(r.e.DeleteObject(r.ctx(), "s", "v/1-1"), "delete of an absent object")
	}},
	{"objects never change", func(r *run) {
		r.create("s")
		r.putObject("s", "v/1-1", []byte("first"))
		r.needIs(r.e.PutObject(r.ctx(), "s", "v/1-1", 6, bytes.NewReader([]byte("second"))), driver.ErrRefused, "put again")
		r.wantObject("s", "v/1-1", []byte("first"))
	}},
	{"a reader that fails leaves no object", func(r *run) {
		r.create("s")
		broken := errors.New("broken")
		err := r.e.PutObject(r.ctx(), "s", "v/1-1", 100_000, io.MultiReader(bytes.NewReader(pattern(50_000, 1)), iotest.ErrReader(broken)))
		r.needIs(err, broken, "put from a broken reader")
		// an error that looks like an end, at sizes around those of buffers
		for _, n := range []int{0, 1, 50_000, 1 << 16, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
			cut := io.MultiReader(bytes.NewReader(pattern(n, 1)), iotest.ErrReader(io.ErrUnexpectedEOF))
			r.needIs(r.e.PutObject(r.ctx(), "s", fmt.Sprintf("v/2-%d", n), -1, cut), io.ErrUnexpectedEOF, "put from a reader cut off after %d bytes", n)
		}
		for name, n := range map[string]int64{"v/1-2": 99, "v/1-3": 101} {
			if err := r.e.PutObject(r.ctx(), "s", name, n, bytes.NewReader(pattern(100, 1))); err == nil {
				r.Fatalf("put of 100 bytes where %d were announced: no error", n)
			}
		}
		for range 2 {
			if names := r.names("s", ""); len(names) > 0 {
				r.Fatalf("objects are left: %v", names)
			}
			r.crash()
		}
		r.putObject("s", "v/1-1", pattern(10, 1))
	}},
	{"an object is whole or absent after a crash", func(r *run) {
		r.create("s")
		pr, pw := io.Pipe()
		put := make(chan error, 1)
		e := r.e
		go func() { put <- e.PutObject(r.ctx(), "s", "v/1-1", -1, pr) }()
		if _, err := pw.Write(pattern(300_000, 1)); err != nil {
			r.Fatal(err)
		}
		r.crash()
		pw.CloseWithError(io.ErrUnexpectedEOF)
		if err := r.wait(put); err == nil {
			r.Fatal("the put succeeded")
		}
		r.needIs(r.e.GetObject(r.ctx(), "s", "v/1-1", 0, make([]byte, 1)), driver.ErrNotExist, "get")
		if names := r.names("s", ""); len(names) > 0 {
			r.Fatalf("listed: %v", names)
		}
	}},
	{"list by prefix, with lengths, and delete", func(r *run) {
		r.create("s")
		r.create("s2")
		want := map[string]int64{}
		for i := range 50 {
			name := fmt.Sprintf("v/%x-%x", i%3, i)
			r.putObject("s", name, pattern(i+1, 1))
			want[name] = int64(i + 1)
		}
		r.putObject("s", "c/1-1", pattern(10, 1))
		r.putObject("s2", "v/9-9", pattern(10, 1))
		for range 2 {
			got := map[string]int64{}
			r.need(r.e.ListObjects(r.ctx(), "s", "v/", func(name string, size int64) error {
				if _, twice := got[name]; twice {
					r.Errorf("%s is listed twice", name)
				}
				got[name] = size
				return nil
			}), "list")
			if len(got) != len(want) {
				r.Fatalf("%d objects listed, want %d", len(got), len(want))
			}
			for name, n := range want {
				if got[name] != n {
					r.Fatalf("%s has %d bytes, want %d", name, got[name], n)
				}
			}
			if names := r.names("s", "v/1-"); len(names) != 17 {
				r.Fatalf("%d objects begin with v/1-, want 17", len(names))
			}
			if names := r.names("s", ""); len(names) != 51 {
				r.Fatalf("%d objects in all, want 51", len(names))
			}
			if names := r.names("none", ""); len(names) != 0 {
				r.Fatalf("an absent shard has %v", names)
			}
			r.crash()
		}
		stop := errors.New("stop")
		r.needIs(r.e.ListObjects(r.ctx(), "s", "v/", func(string, int64) error { return stop }), stop, "list that is stopped")
		r.need(r.e.ListObjects(r.ctx(), "s", "v/", func(name string, _ int64) error {
			return r.e.DeleteObject(r.ctx(), "s", name)
		}), "delete while listing")
		for range 2 {
			if names := r.names("s", ""); !slices.Equal(names, []string{"c/1-1"}) {
				r.Fatalf("left after deletes: %v", names)
			}
			r.wantObject("s2", "v/9-9", pattern(10, 1))
			r.reopen() // after a crash a deleted object may be back
		}
		r.needIs(r.e.GetObject(r.ctx(), "s", "v/0-0", 0, make([]byte, 1)), driver.ErrNotExist, "get of a deleted object")
	}},
	{"many objects are listed, also while they go", func(r *run) {
		r.create("s")
		const writers, each = 16, 80
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if errs[w] = r.e.PutObject(r.ctx(), "s", fmt.Sprintf("v/%x-%x", w, i), 1, bytes.NewReader([]byte("x"))); errs[w] != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		r.need(errors.Join(errs...), "writers")
		seen := map[string]bool{}
		r.need(r.e.ListObjects(r.ctx(), "s", "v/", func(name string, _ int64) error {
			if seen[name] {
				return fmt.Errorf("%s is listed twice", name)
			}
			seen[name] = true
			if len(seen)%2 == 0 {
				return nil
			}
			return r.e.DeleteObject(r.ctx(), "s", name)
		}), "list")
		if len(seen) != writers*each {
			r.Fatalf("%d objects listed, want %d", len(seen), writers*each)
		}
		if names := r.names("s", ""); len(names) != writers*each/2 {
			r.Fatalf("%d objects left, want %d", len(names), writers*each/2)
		}
	}},
	{"a put that is given up leaves a whole object or none", func(r *run) {
		r.create("s")
		data := pattern(2_000_000, 4)
		whole, given := 0, 0
		for i := range 40 {
			name := fmt.Sprintf("v/%d", i)
			ctx, cancel := context.WithTimeout(r.ctx(), time.Duration(i)*500*time.Microsecond)
			err := r.e.PutObject(ctx, "s", name, int64(len(data)), bytes.NewReader(data))
			cancel()
			switch getErr := r.e.GetObject(r.ctx(), "s", name, 0, make([]byte, 1)); {
			case getErr == nil:
				r.wantObject("s", name, data)
				whole++
			case err == nil:
				r.Fatalf("a put succeeded and the object cannot be read: %v", getErr)
			default:
				r.needIs(getErr, driver.ErrNotExist, "get of an object whose put was given up")
				given++
			}
		}
		if names := r.names("s", ""); len(names) != whole {
			r.Fatalf("%d objects are listed, %d are there (%d were given up)", len(names), whole, given)
		}
	}},
	{"objects are written and read at once", func(r *run) {
		r.create("s")
		const writers, each = 8, 10
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					name := fmt.Sprintf("v/%d-%d", w, i)
					data := pattern(1000*w+i, uint64(i))
					if errs[w] = r.e.PutObject(r.ctx(), "s", name, int64(len(data)), bytes.NewReader(data)); errs[w] != nil {
						return
					}
					got := make([]byte, len(data))
					if errs[w] = r.e.GetObject(r.ctx(), "s", name, 0, got); errs[w] != nil {
						return
					}
					if !bytes.Equal(got, data) {
						errs[w] = fmt.Errorf("%s differs", name)
						return
					}
				}
			})
		}
		wg.Wait()
		r.need(errors.Join(errs...), "writers")
	}},
}
