package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvstore/components/kverr"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// cursorOf gives items, and checks that nobody keeps their bytes after the next call.
func cursorOf(items []item) cursor {
	i := 0
	var last item
	return func() (item, bool, error) {
		for _, p := range [][]byte{last.key, last.value} {
			for j := range p {
				p[j] = 0xee
			}
		}
		if i == len(items) {
			return item{}, false, nil
		}
		it := items[i]
		i++
		last = item{key: bytes.Clone(it.key), value: bytes.Clone(it.value), removed: it.removed}
		return last, true, nil
	}
}

// drain takes all items of a cursor.
func drain(next cursor) ([]item, error) {
	var items []item
	for {
		it, ok, err := next()
		if err != nil || !ok {
			return items, err
		}
		items = append(items, item{key: bytes.Clone(it.key), value: bytes.Clone(it.value), removed: it.removed})
	}
}

func equalItems(a, b []item) bool {
	return slices.EqualFunc(a, b, func(x, y item) bool {
		return bytes.Equal(x.key, y.key) && bytes.Equal(x.value, y.value) && x.removed == y.removed
	})
}

// randomItems returns n items in order, about one in eight a removal.
func randomItems(rng *rand.Rand, n, maxValue int) []item {
	keys := map[string]bool{}
	for len(keys) < n {
		keys[fmt.Sprintf("user/%d/%s", rng.IntN(4*n+1), strings.Repeat("x", rng.IntN(20)))] = true
	}
	var items []item
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		it := item{key: []byte(k), removed: rng.IntN(8) == 0}
		if !it.removed {
			it.value = make([]byte, rng.IntN(maxValue+1))
			for i := range it.value {
				it.value[i] = byte(rng.Uint32())
			}
		}
		items = append(items, it)
	}
	return items
}

// encodeRun returns a run's bytes and what a manifest says of it.
func encodeRun(t testing.TB, shard, name string, items []item, blockBytes int) ([]byte, *dataplanev1.Manifest_Run) {
	w := newRunWriter(shard, name, 3, 9, blockBytes, cursorOf(items))
	data, err := io.ReadAll(w)
	if err != nil {
		t.Fatal(err)
	}
	if w.bytes != int64(len(data)) || w.items != int64(len(items)) {
		t.Fatalf("the writer counts %d bytes and %d items, want %d and %d", w.bytes, w.items, len(data), len(items))
	}
	return data, &dataplanev1.Manifest_Run{Name: name, AfterSeq: 3, Seq: 9, Items: w.items, Bytes: w.bytes}
}

// oneObject is an engine that has one object.
type oneObject struct {
	driver.Engine
	data []byte
}

func (e *oneObject) GetObject(_ context.Context, _, _ string, off int64, p []byte) error {
	if off+int64(len(p)) > int64(len(e.data)) {
		return driver.ErrCorrupt
	}
	copy(p, e.data[off:])
	return nil
}

func readRun(shard string, run *dataplanev1.Manifest_Run, data []byte) ([]item, error) {
	r := openRun(context.Background(), &oneObject{data: data}, shard, run, nil)
	defer r.close()
	return drain(r.next)
}

func TestRunsComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, n := range []int{0, 1, 2, 100, 5000} {
		for _, blockBytes := range []int{1 << 10, 32 << 10} {
			for _, maxValue := range []int{0, 100, 5000} {
				items := randomItems(rng, n, maxValue)
				data, run := encodeRun(t, "s", "c/1-1", items, blockBytes)
				got, err := readRun("s", run, data)
				if err != nil {
					t.Fatal(err)
				}
				if !equalItems(got, items) {
					t.Fatalf("%d items, blocks of %d, values up to %d: came back different", n, blockBytes, maxValue)
				}
			}
		}
	}
	// items larger than blocks and than chunks
	items := []item{{key: []byte{}, value: make([]byte, 3*chunkBytes)}, {key: []byte("a"), value: []byte{}}, {key: []byte("b"), value: make([]byte, chunkBytes)}}
	data, run := encodeRun(t, "s", "c/1-1", items, 1<<10)
	if got, err := readRun("s", run, data); err != nil || !equalItems(got, items) {
		t.Fatalf("large items: %d came back, %v", len(got), err)
	}
}

// TestDamagedRuns: no flipped bit, no cut and no swap is taken for data.
func TestDamagedRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	items := randomItems(rng, 50, 20)
	data, run := encodeRun(t, "s", "c/1-1", items, 300)
	wantDamage := func(what string, run *dataplanev1.Manifest_Run, data []byte) {
		t.Helper()
		_, err := readRun("s", run, data)
		if !errors.Is(err, driver.ErrCorrupt) || kverr.KindOf(err) != kverr.DataLoss || !strings.Contains(err.Error(), run.Name) {
			t.Fatalf("%s: got %v, want damage of object %s", what, err, run.Name)
		}
	}
	for i := range data {
		for bit := range 8 {
			data[i] ^= 1 << bit
			wantDamage(fmt.Sprintf("bit %d of byte %d flipped", bit, i), run, data)
			data[i] ^= 1 << bit
		}
	}
	for n := range data {
		wantDamage(fmt.Sprintf("cut to %d bytes", n), run, data[:n])
		if n > 0 {
			short := &dataplanev1.Manifest_Run{Name: run.Name, AfterSeq: 3, Seq: 9, Items: run.Items, Bytes: int64(n)}
			wantDamage(fmt.Sprintf("cut to %d bytes, and the manifest says so", n), short, data[:n])
		}
	}
	for what, other := range map[string]*dataplanev1.Manifest_Run{
		"another object": {Name: "c/1-2", AfterSeq: 3, Seq: 9, Items: run.Items, Bytes: run.Bytes},
		"other records":  {Name: "c/1-1", AfterSeq: 4, Seq: 9, Items: run.Items, Bytes: run.Bytes},
		"a later seq":    {Name: "c/1-1", AfterSeq: 3, Seq: 10, Items: run.Items, Bytes: run.Bytes},
		"more items":     {Name: "c/1-1", AfterSeq: 3, Seq: 9, Items: run.Items + 1, Bytes: run.Bytes},
	} {
		wantDamage(what, other, data)
	}
	if _, err := readRun("t", run, data); !errors.Is(err, driver.ErrCorrupt) {
		t.Fatalf("another shard's run: %v", err)
	}
	frames := splitFrames(t, data)
	if len(frames) < 5 {
		t.Fatalf("%d frames, want several blocks", len(frames))
	}
	frames[1], frames[2] = frames[2], frames[1]
	joined := func() []byte { return slices.Concat(append([][]byte{[]byte(runMagic)}, frames...)...) }
	wantDamage("two blocks swapped", run, joined())
	if _, err := readRun("s", run, joined()); !strings.Contains(err.Error(), "frame 1 has checksum") {
		t.Fatalf("two blocks swapped: %v, want the first one's checksum to tell", err)
	}
	frames[1], frames[2] = frames[2], frames[1]
	for i := range items {
		items[i].value = bytes.Repeat([]byte{'x'}, len(items[i].value))
	}
	similar, _ := encodeRun(t, "s", "c/1-2", items, 300)
	frames[2] = splitFrames(t, similar)[2]
	wantDamage("a block of another object", run, joined())
	frames[2] = splitFrames(t, data)[2]
	if _, err := readRun("s", run, joined()); err != nil {
		t.Fatal(err)
	}
	lacking := slices.Delete(slices.Clone(frames), 2, 3)
	short := slices.Concat(append([][]byte{[]byte(runMagic)}, lacking...)...)
	run.Bytes = int64(len(short))
	wantDamage("a block missing", run, short)
}

func splitFrames(t *testing.T, data []byte) [][]byte {
	var frames [][]byte
	for data = data[len(runMagic):]; len(data) > 0; {
		n := frameOverhead + int(binary.LittleEndian.Uint32(data))
		frames = append(frames, data[:n])
		data = data[n:]
	}
	return frames
}

func TestRunsOfAnotherFormat(t *testing.T) {
	data, run := encodeRun(t, "s", "c/1-1", nil, 1<<10)
	header := data[len(runMagic):]
	header[frameOverhead+1] = 2
	payload := header[frameOverhead:][:binary.LittleEndian.Uint32(header)]
	binary.LittleEndian.PutUint32(header[4:], frameChecksum(runSalt("s", "c/1-1"), 0, payload))
	if _, err := readRun("s", run, data); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "run format 2") {
		t.Fatalf("got %v", err)
	}
}

// TestMerge compares with a map.
func TestMerge(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range 300 {
		want := map[string]item{}
		var cursors []cursor
		k := 1 + rng.IntN(9)
		for range k {
			items := randomItems(rng, rng.IntN(40), 10)
			cursors = append(cursors, cursorOf(items))
			for _, it := range items {
				if _, newer := want[string(it.key)]; !newer {
					want[string(it.key)] = it
				}
			}
		}
		got, err := drain(merge(cursors...))
		if err != nil {
			t.Fatal(err)
		}
		var sorted []item
		for _, key := range slices.Sorted(maps.Keys(want)) {
			sorted = append(sorted, want[key])
		}
		if !equalItems(got, sorted) {
			t.Fatalf("%d cursors: %d items, want %d, or others", k, len(got), len(sorted))
		}
	}
}

func TestMergeGivesErrors(t *testing.T) {
	broken := errors.New("broken")
	rng := rand.New(rand.NewPCG(5, 5))
	for n := range 12 {
		inner, calls := cursorOf(randomItems(rng, 10, 3)), 0
		failing := func() (item, bool, error) {
			if calls++; calls > n {
				return item{}, false, broken
			}
			return inner()
		}
		next := merge(cursorOf(randomItems(rng, 10, 3)), failing, cursorOf(randomItems(rng, 10, 3)))
		_, err := drain(next)
		if n <= 10 && !errors.Is(err, broken) || n > 10 && err != nil {
			t.Fatalf("failing after %d items: %v", n, err)
		}
		if err != nil {
			if _, _, again := next(); !errors.Is(again, broken) {
				t.Fatalf("after an error: %v", again)
			}
		}
	}
}

// FuzzRunItems: a block whose checksum is right decodes to items in order, or is damage.
func FuzzRunItems(f *testing.F) {
	data, _ := encodeRun(f, "s", "c/1-1", []item{{key: []byte("a"), value: []byte("1")}, {key: []byte("ab"), removed: true}, {key: []byte("b"), value: nil}}, 1<<10)
	frame := data[len(runMagic):]
	frame = frame[frameOverhead+binary.LittleEndian.Uint32(frame):]
	f.Add(frame[frameOverhead:][:binary.LittleEndian.Uint32(frame)])
	f.Add([]byte{frameItems, 0, 1, 1, 'a', 1, 0, 1})
	f.Fuzz(func(t *testing.T, payload []byte) {
		d := newRunDecoder("s", &dataplanev1.Manifest_Run{Name: "c/1-1"})
		d.frames = 1
		if d.frame(frameChecksum(d.salt, 1, payload), payload) != nil {
			return
		}
		var last []byte
		for n := 0; ; n++ {
			it, ok, err := d.item()
			if err != nil && !errors.Is(err, driver.ErrCorrupt) {
				t.Fatal(err)
			}
			if err != nil || !ok {
				return
			}
			if n > 0 && bytes.Compare(last, it.key) >= 0 {
				t.Fatalf("%q comes after %q", it.key, last)
			}
			last = append(last[:0], it.key...)
		}
	})
}

// FuzzRunObject: whatever bytes an object has, reading it ends, with items in order or an error.
func FuzzRunObject(f *testing.F) {
	data, run := encodeRun(f, "s", "c/1-1", []item{{key: []byte("a"), value: []byte("1")}, {key: []byte("b"), removed: true}}, 1<<10)
	f.Add(data, run.Items)
	f.Fuzz(func(t *testing.T, data []byte, items int64) {
		run := &dataplanev1.Manifest_Run{Name: "c/1-1", AfterSeq: 3, Seq: 9, Items: items, Bytes: int64(len(data))}
		got, err := readRun("s", run, data)
		if err == nil && int64(len(got)) != items {
			t.Fatalf("%d items, want %d", len(got), items)
		}
	})
}

func BenchmarkRunWrite(b *testing.B) { benchmarkRun(b, true) }
func BenchmarkRunRead(b *testing.B)  { benchmarkRun(b, false) }

func benchmarkRun(b *testing.B, write bool) {
	items := randomItems(rand.New(rand.NewPCG(1, 1)), 100_000, 60)
	plain := func() cursor {
		i := 0
		return func() (item, bool, error) {
			if i == len(items) {
				return item{}, false, nil
			}
			i++
			return items[i-1], true, nil
		}
	}
	data, err := io.ReadAll(newRunWriter("s", "c/1-1", 3, 9, 32<<10, plain()))
	if err != nil {
		b.Fatal(err)
	}
	run := &dataplanev1.Manifest_Run{Name: "c/1-1", AfterSeq: 3, Seq: 9, Items: int64(len(items)), Bytes: int64(len(data))}
	engine, err := memlog.New(memlog.Config{Manual: true})
	if err != nil {
		b.Fatal(err)
	}
	engine.SwapManifest(b.Context(), "s", "", nil)
	if err := engine.PutObject(b.Context(), "s", "c/1-1", -1, bytes.NewReader(data)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if write {
			io.Copy(io.Discard, newRunWriter("s", "c/1-1", 3, 9, 32<<10, plain()))
			continue
		}
		r := openRun(b.Context(), engine, "s", run, nil)
		for {
			_, ok, err := r.next()
			if err != nil {
				b.Fatal(err)
			}
			if !ok {
				break
			}
		}
		r.close()
	}
}
