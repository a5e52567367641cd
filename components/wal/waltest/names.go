package waltest

import (
	"bytes"
	"strings"

	"kvstore/components/wal/driver"
)

var nameTests = []engineTest{
	{"bad shard names are refused", func(r *run) {
		for _, name := range []string{"", "A", "a/b", "..", ".", ".hidden", "a b", "ä", "a\x00", "a_b", strings.Repeat("a", 65)} {
			_, err := r.e.SwapManifest(r.ctx(), name, "", []byte("x"))
			r.needIs(err, driver.ErrRefused, "swap of %q", name)
			_, _, err = r.e.Manifest(r.ctx(), name)
			r.needIs(err, driver.ErrRefused, "manifest of %q", name)
			_, _, err = r.fence(name, epoch(1, 'a'))
			r.needIs(err, driver.ErrRefused, "fence of %q", name)
			r.needIs(r.append(name, epoch(1, 'a'), 1, nil), driver.ErrRefused, "append to %q", name)
			r.needIs(r.e.PutObject(r.ctx(), name, "v/1-1", 1, bytes.NewReader([]byte("x"))), driver.ErrRefused, "put to %q", name)
			r.needIs(r.e.RemoveShard(r.ctx(), name), driver.ErrRefused, "remove of %q", name)
		}
	}},
	{"bad object names are refused", func(r *run) {
		r.create("s")
		for _, name := range []string{"", "/", "/a", "a/", "a//b", "..", "a/../b", "A", "a.b", "a b", "a\x00", "ä", strings.Repeat("a", 129)} {
			r.needIs(r.e.PutObject(r.ctx(), "s", name, 1, bytes.NewReader([]byte("x"))), driver.ErrRefused, "put of %q", name)
			r.needIs(r.e.GetObject(r.ctx(), "s", name, 0, make([]byte, 1)), driver.ErrRefused, "get of %q", name)
			r.needIs(r.e.DeleteObject(r.ctx(), "s", name), driver.ErrRefused, "delete of %q", name)
		}
		if names := r.names("s", ""); len(names) > 0 {
			r.Fatalf("objects exist: %v", names)
		}
	}},
	{"the longest names are taken", func(r *run) {
		shard := strings.Repeat("z", 60) + "-0.9"
		name := strings.Repeat("o", 60) + "/" + strings.Repeat("p", 67)
		r.create(shard)
		e := epoch(1, 'a')
		r.mustFence(shard, e)
		r.fill(shard, e, 2, 1)
		r.putObject(shard, name, []byte("value"))
		r.crash()
		r.wantRecords(shard, 1, fenceData(1, e), recordData(2, e))
		r.wantObject(shard, name, []byte("value"))
	}},
}
