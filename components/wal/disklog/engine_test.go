package disklog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

var ctx = context.Background()

// small makes segments roll after some records.
func small() Config { return Config{SegmentBytes: 32 << 10, Reserve: -1} }

func mustOpen(t testing.TB, dir string, cfg Config) *Engine {
	t.Helper()
	e, err := Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func mustClose(t testing.TB, e *Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func epoch(n uint64) driver.Epoch {
	return driver.Epoch{Counter: n, Writer: [16]byte{byte(n), 7}}
}

func mustFence(t testing.TB, e *Engine, shard string, ep driver.Epoch) uint64 {
	t.Helper()
	if _, err := e.SwapManifest(ctx, shard, "", []byte("m")); err != nil && !errors.Is(err, driver.ErrConflict) {
		t.Fatal(err)
	}
	seq, err := e.Fence(ctx, shard, ep, func(seq, prev uint64) []byte { return fmt.Appendf(nil, "fence %d %d", seq, prev) })
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func appendOne(e *Engine, shard string, ep driver.Epoch, seq uint64, data []byte) error {
	ch := make(chan error, 1)
	e.Append(shard, ep, driver.Frame{Epoch: ep.Counter, Seq: seq, Data: data}, func(err error) { ch <- err })
	return <-ch
}

func mustAppend(t testing.TB, e *Engine, shard string, ep driver.Epoch, seq uint64, data string) {
	t.Helper()
	if err := appendOne(e, shard, ep, seq, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func read(e *Engine, shard string, from uint64) (out []string, err error) {
	err = e.Read(ctx, shard, from, func(f driver.Frame) error {
		if f.Seq != from+uint64(len(out)) {
			return fmt.Errorf("record %d after %d", f.Seq, from+uint64(len(out))-1)
		}
		out = append(out, fmt.Sprintf("%d:%d:%s", f.Seq, f.Epoch, f.Data))
		return nil
	})
	return out, err
}

func mustRead(t testing.TB, e *Engine, shard string, from uint64, want ...string) {
	t.Helper()
	got, err := read(e, shard, from)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("read %q, want %q", got, want)
	}
}

func TestLogSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	e := mustOpen(t, dir, small())
	if seq := mustFence(t, e, "a-0", epoch(1)); seq != 1 {
		t.Fatalf("first fence at %d", seq)
	}
	mustFence(t, e, "b-0", epoch(4))
	mustAppend(t, e, "a-0", epoch(1), 2, "two")
	mustAppend(t, e, "b-0", epoch(4), 2, "")
	if seq := mustFence(t, e, "a-0", epoch(2)); seq != 3 {
		t.Fatalf("fence at %d", seq)
	}
	if seq := mustFence(t, e, "a-0", epoch(2)); seq != 3 {
		t.Fatalf("repeated fence at %d", seq)
	}
	mustClose(t, e)
	e = mustOpen(t, dir, small())
	if d := e.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
	mustRead(t, e, "a-0", 1, "1:1:fence 1 0", "2:1:two", "3:2:fence 3 1")
	mustRead(t, e, "b-0", 2, "2:4:")
	if seq := mustFence(t, e, "a-0", epoch(2)); seq != 3 {
		t.Fatalf("repeated fence at %d after reopening", seq)
	}
	for _, c := range []struct {
		ep  driver.Epoch
		seq uint64
	}{{epoch(1), 4}, {epoch(2), 3}, {epoch(2), 5}, {driver.Epoch{Counter: 2}, 4}, {epoch(3), 4}} {
		if err := appendOne(e, "a-0", c.ep, c.seq, nil); !errors.Is(err, driver.ErrFenced) {
			t.Errorf("append of %d in %v: %v, want ErrFenced", c.seq, c.ep, err)
		}
	}
	for _, ep := range []driver.Epoch{epoch(1), {Counter: 2}} {
		if _, err := e.Fence(ctx, "a-0", ep, func(uint64, uint64) []byte { return nil }); !errors.Is(err, driver.ErrFenced) {
			t.Errorf("fence for %v: %v, want ErrFenced", ep, err)
		}
	}
	mustAppend(t, e, "a-0", epoch(2), 4, "four")
	mustRead(t, e, "a-0", 4, "4:2:four")
	mustRead(t, e, "a-0", 5)
	mustRead(t, e, "never", 1)
}

func TestSegmentsRollAndAreRemoved(t *testing.T) {
	dir := t.TempDir()
	e := mustOpen(t, dir, small())
	mustFence(t, e, "cold", epoch(1)) // its only record is never trimmed
	mustFence(t, e, "hot", epoch(1))
	data := strings.Repeat("x", 3000)
	const n = 400
	for seq := uint64(2); seq <= n; seq++ {
		mustAppend(t, e, "hot", epoch(1), seq, data)
		if seq%20 == 0 {
			if err := e.Trim(ctx, "hot", epoch(1), seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := read(e, "hot", n-1); !errors.Is(err, driver.ErrNotExist) {
		t.Errorf("reading a trimmed record: %v", err)
	}
	mustRead(t, e, "hot", n, fmt.Sprintf("%d:1:%s", n, data))
	// 400 records of 3 KB fill 40 segments; what is needed fits in one.
	mustClose(t, e)
	files, err := filepath.Glob(filepath.Join(dir, segmentsDir, "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > 2*minLogSegments {
		t.Errorf("%d segments are left", len(files))
	}
	e = mustOpen(t, dir, small())
	if d := e.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
	mustRead(t, e, "cold", 1, "1:1:fence 1 0")
	mustRead(t, e, "hot", n, fmt.Sprintf("%d:1:%s", n, data))
	mustAppend(t, e, "cold", epoch(1), 2, "warm")
}

func TestManyShardsAtOnce(t *testing.T) {
	dir := t.TempDir()
	e := mustOpen(t, dir, small())
	var wg sync.WaitGroup
	const shards, records = 20, 50
	for i := range shards {
		wg.Go(func() {
			shard := fmt.Sprintf("s-%d", i)
			if _, err := e.SwapManifest(ctx, shard, "", []byte("m")); err != nil {
				t.Error(err)
			}
			if _, err := e.Fence(ctx, shard, epoch(1), func(uint64, uint64) []byte { return []byte{} }); err != nil {
				t.Error(err)
			}
			for seq := uint64(2); seq <= records; seq++ {
				if err := appendOne(e, shard, epoch(1), seq, bytes.Repeat([]byte{byte(seq)}, int(seq)*7)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, e)
	e = mustOpen(t, dir, small())
	for i := range shards {
		n := uint64(0)
		err := e.Read(ctx, fmt.Sprintf("s-%d", i), 1, func(f driver.Frame) error {
			if n++; f.Seq != n || (n > 1 && !bytes.Equal(f.Data, bytes.Repeat([]byte{byte(n)}, int(n)*7))) {
				return fmt.Errorf("record %d is wrong", n)
			}
			return nil
		})
		if err != nil || n != records {
			t.Fatalf("shard %d: %d records, %v", i, n, err)
		}
	}
}

func TestRemoveShard(t *testing.T) {
	dir := t.TempDir()
	e := mustOpen(t, dir, small())
	for _, s := range []string{"gone", "kept"} {
		mustFence(t, e, s, epoch(3))
		if err := e.PutObject(ctx, s, "v/1/2", 1, strings.NewReader("o")); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.RemoveShard(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		mustRead(t, e, "gone", 1)
		if _, _, err := e.Manifest(ctx, "gone"); !errors.Is(err, driver.ErrNotExist) {
			t.Errorf("manifest: %v", err)
		}
		if err := e.GetObject(ctx, "gone", "v/1/2", 0, make([]byte, 1)); !errors.Is(err, driver.ErrNotExist) {
			t.Errorf("object: %v", err)
		}
		mustRead(t, e, "kept", 1, "1:3:fence 1 0")
		if err := e.GetObject(ctx, "kept", "v/1/2", 0, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	check()
	mustClose(t, e)
	e = mustOpen(t, dir, small())
	check()
	if seq := mustFence(t, e, "gone", epoch(1)); seq != 1 {
		t.Errorf("a new shard's first fence is at %d", seq)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir, small())
	_, err := Open(dir, small())
	var locked *vfs.LockedError
	if !errors.As(err, &locked) || locked.PID != fmt.Sprint(os.Getpid()) {
		t.Fatalf("%v, want a LockedError with our process id", err)
	}
}

func TestClosedEngine(t *testing.T) {
	e := mustOpen(t, t.TempDir(), small())
	mustFence(t, e, "a", epoch(1))
	mustClose(t, e)
	if err := appendOne(e, "a", epoch(1), 2, nil); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("append: %v", err)
	}
	if _, err := e.Fence(ctx, "a", epoch(2), func(uint64, uint64) []byte { return nil }); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("fence: %v", err)
	}
	if err := e.PutObject(ctx, "a", "v/1", 0, strings.NewReader("")); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("put: %v", err)
	}
	if err := e.GetObject(ctx, "a", "v/1", 0, nil); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("get: %v", err)
	}
}
