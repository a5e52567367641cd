package disklog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
)

// smallLog returns a disk with three shards' records in a few segments, and what each shard holds. After a clean end or
// after the death of the process.
func smallLog(t testing.TB, clean bool, records int) (*faultfs.FS, map[string][]string) {
	disk := faultfs.New(testDisk)
	cfg := Config{SegmentBytes: 16 << 10, Reserve: -1, FS: disk}
	e := mustOpen(t, "/data", cfg)
	want := map[string][]string{}
	shards := []string{"a", "b", "c"}
	for _, s := range shards {
		mustFence(t, e, s, epoch(1))
		want[s] = []string{"1:1:fence 1 0"}
	}
	for i := range records {
		s := shards[i%3]
		seq := uint64(len(want[s]) + 1)
		data := strings.Repeat(fmt.Sprintf("<%s %d>", s, seq), i%40+1)
		mustAppend(t, e, s, epoch(1), seq, data)
		want[s] = append(want[s], fmt.Sprintf("%d:1:%s", seq, data))
	}
	if clean {
		mustClose(t, e)
		return disk.Clone(), want
	}
	return disk.Clone(), want
}

// verify opens a damaged disk and checks that each shard is whole or says ErrCorrupt, and serves nothing that was not written.
// It returns how many shards are whole.
func verify(t *testing.T, disk *faultfs.FS, want map[string][]string, what string) (whole int) {
	t.Helper()
	e, err := Open("/data", Config{SegmentBytes: 16 << 10, Reserve: -1, FS: disk})
	if err != nil {
		if !errors.Is(err, driver.ErrCorrupt) {
			t.Errorf("%s: open: %v", what, err)
		}
		return 0
	}
	defer e.Close()
	for s, records := range want {
		got, err := read(e, s, 1)
		switch {
		case err != nil && !errors.Is(err, driver.ErrCorrupt):
			t.Errorf("%s: shard %s: %v", what, s, err)
		case len(got) > len(records) || !slices.Equal(got, records[:len(got)]):
			t.Errorf("%s: shard %s: wrong records", what, s)
		case err == nil && len(got) < len(records):
			t.Errorf("%s: shard %s: %d of %d records and no error", what, s, len(got), len(records))
		case err == nil:
			whole++
			// It takes writes where it was, too.
			if err := appendOne(e, s, epoch(1), uint64(len(got)+1), nil); err != nil {
				t.Errorf("%s: shard %s: append: %v", what, s, err)
			}
		case len(e.Damage()) == 0:
			t.Errorf("%s: shard %s: %v, and no damage is reported", what, s, err)
		}
	}
	return whole
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	for _, clean := range []bool{true, false} {
		disk, want := smallLog(t, clean, 20)
		name := segmentFiles(disk)[0]
		original := disk.Bytes(name)
		end := scanFile(t, disk, name).end
		whole, opened := 0, 0
		step := 1
		if testing.Short() {
			step = 31
		}
		for at := 0; at < end; at += step {
			b := bytes.Clone(original)
			b[at] ^= 1 << (at % 8)
			d := disk.Clone()
			d.SetBytes(name, b)
			whole += verify(t, d, want, fmt.Sprintf("clean %v, bit flipped at %d of %d", clean, at, end))
			opened++
			if t.Failed() {
				return
			}
		}
		// Damage to one record leaves the other shards as they are: most flips hit the data of one.
		if whole < opened {
			t.Errorf("of %d logs with one flipped bit, %d shards of three were whole", opened, whole)
		}
	}
}

func TestTornBatches(t *testing.T) {
	disk, want := smallLog(t, false, 20)
	name := segmentFiles(disk)[0]
	s := scanFile(t, disk, name)
	c := committer{off: s.end, number: s.next, chain: s.chain, salt: s.salt, seg: &segment{size: 1 << 30}}
	c.begin()
	c.put(kindRecord, &shardLog{name: "a"}, 1, uint64(len(want["a"])+1), nil, append(make([]byte, 1000), 'x'))
	c.put(kindRecord, &shardLog{name: "b"}, 1, uint64(len(want["b"])+1), nil, bytes.Repeat([]byte("b"), 1500))
	c.put(kindRecord, &shardLog{name: "c"}, 1, uint64(len(want["c"])+1), nil, make([]byte, 1200))
	c.seal()
	original := disk.Bytes(name)
	complete := bytes.Clone(original)
	copy(complete[s.end:], c.buf)
	first, last := s.end/sectorSize, (s.end+len(c.buf)-1)/sectorSize
	for subset := range 1 << (last - first + 1) {
		b := bytes.Clone(original)
		for i := first; i <= last; i++ {
			if subset>>(i-first)&1 == 1 {
				copy(b[i*sectorSize:(i+1)*sectorSize], complete[i*sectorSize:])
			}
		}
		if bytes.Equal(b, complete) {
			continue // all of it arrived
		}
		d := disk.Clone()
		d.SetBytes(name, b)
		what := fmt.Sprintf("sectors %b of the batch", subset)
		e := mustOpen(t, "/data", Config{SegmentBytes: 16 << 10, Reserve: -1, FS: d})
		if len(e.Damage()) > 0 {
			t.Fatalf("%s: %v", what, e.Damage())
		}
		if after := d.Bytes(name)[s.end:]; !isZero(after) {
			t.Fatalf("%s: the torn batch was not wiped", what)
		}
		mustClose(t, e)
		if whole := verify(t, d, want, what); whole != 3 {
			t.Fatalf("%s: %d shards are whole", what, whole)
		}
	}
}

func TestDamagedSegmentFiles(t *testing.T) {
	disk, want := smallLog(t, true, 300)
	files := segmentFiles(disk)
	used := files[:len(files)-1] // the last was only made ready
	if len(used) < 4 {
		t.Fatalf("%d segments", len(used))
	}
	newest := used[len(used)-1]
	for i, name := range used {
		d := disk.Clone()
		d.SetBytes(name, nil)
		verify(t, d, want, name+" emptied")
		d = disk.Clone()
		d.SetBytes(name, d.Bytes(name)[:5000])
		verify(t, d, want, name+" cut short")
		d = disk.Clone()
		b := d.Bytes(name)
		clear(b[:segmentHeaderSize])
		d.SetBytes(name, b)
		verify(t, d, want, name+" with its header zeroed")
		if name != newest { // see DESIGN.md: nothing tells that the newest ever was
			d = disk.Clone()
			if err := d.Remove(name); err != nil {
				t.Fatal(err)
			}
			verify(t, d, want, name+" removed")
		}
		other := used[(i+1)%len(used)]
		d = disk.Clone()
		a, b := d.Bytes(name), d.Bytes(other)
		d.SetBytes(name, b)
		d.SetBytes(other, a)
		verify(t, d, want, name+" and "+other+" swapped")
	}
}

// A record whose sync failed may be served after a restart only if it is on the disk then.
func TestSyncThatFailedIsNotTrusted(t *testing.T) {
	disk := faultfs.New(testDisk)
	cfg := Config{SegmentBytes: 16 << 10, Reserve: -1, FS: disk}
	e := mustOpen(t, "/data", cfg)
	mustFence(t, e, "a", epoch(1))
	disk.SetHook(func(op faultfs.Op, _ string) error {
		if op == faultfs.Sync {
			return syscall.EIO
		}
		return nil
	})
	err := appendOne(e, "a", epoch(1), 2, []byte("perhaps"))
	if err == nil || errors.Is(err, driver.ErrRefused) || errors.Is(err, driver.ErrNoSpace) {
		t.Fatalf("append whose sync failed: %v, want an unknown outcome", err)
	}
	mustRead(t, e, "a", 1, "1:1:fence 1 0") // not visible
	// The process dies; its successor still sees the page cache.
	next := disk.Clone()
	cfg.FS = next
	e = mustOpen(t, "/data", cfg)
	mustRead(t, e, "a", 1, "1:1:fence 1 0", "2:1:perhaps")
	next.CutPower()
	cfg.FS = next.AfterCut(rand.New(rand.NewPCG(1, 1)))
	e = mustOpen(t, "/data", cfg)
	mustRead(t, e, "a", 1, "1:1:fence 1 0", "2:1:perhaps")
}

// After one failed sync the log goes on in a new segment, and the failed batch is void for good.
func TestLogGoesOnAfterAFailedSync(t *testing.T) {
	disk := faultfs.New(testDisk)
	cfg := Config{SegmentBytes: 16 << 10, Reserve: -1, FS: disk}
	e := mustOpen(t, "/data", cfg)
	mustFence(t, e, "a", epoch(1))
	mustFence(t, e, "b", epoch(1))
	failed := false
	disk.SetHook(func(op faultfs.Op, _ string) error {
		if op == faultfs.Sync && !failed {
			failed = true
			return syscall.EIO
		}
		return nil
	})
	if err := appendOne(e, "a", epoch(1), 2, []byte("lost")); err == nil {
		t.Fatal("append whose sync failed: no error")
	}
	if seq := mustFence(t, e, "a", epoch(2)); seq != 2 {
		t.Fatalf("fence at %d", seq)
	}
	mustAppend(t, e, "b", epoch(1), 2, "more")
	disk = disk.Clone()
	cfg.FS = disk
	e = mustOpen(t, "/data", cfg)
	if len(e.Damage()) > 0 {
		t.Fatal(e.Damage())
	}
	mustRead(t, e, "a", 1, "1:1:fence 1 0", "2:2:fence 2 1")
	mustRead(t, e, "b", 1, "1:1:fence 1 0", "2:1:more")
}

func TestFullDisk(t *testing.T) {
	disk := faultfs.New(1 << 20)
	var now clock
	cfg := Config{SegmentBytes: 64 << 10, Reserve: 256 << 10, FS: disk}
	e := mustOpen(t, "/data", cfg)
	e.space.mu.Lock()
	e.space.now = now.read // every look is a new one
	e.space.mu.Unlock()
	mustFence(t, e, "a", epoch(1))
	mustAppend(t, e, "a", epoch(1), 2, "two")
	filler := 0
	var err error
	for err == nil && filler < 100 {
		filler++
		err = e.PutObject(ctx, "a", fmt.Sprintf("v/1/%d", filler), 32<<10, bytes.NewReader(make([]byte, 32<<10)))
	}
	if !errors.Is(err, driver.ErrNoSpace) {
		t.Fatalf("filling the disk: %v", err)
	}
	if free, reserve := e.Space(); free < reserve {
		t.Fatalf("objects used the reserve: %d free, %d reserved", free, reserve)
	}
	disk.SetCapacity(1<<20 - 100<<10) // somebody else takes the space
	if err := appendOne(e, "a", epoch(1), 3, nil); !errors.Is(err, driver.ErrNoSpace) || !strings.Contains(err.Error(), "less than the reserve of ") {
		t.Fatalf("append below the reserve: %v", err)
	}
	// What makes room works: checkpoints, manifests, trims, fences, deletes; and reads.
	if err := e.PutObject(ctx, "a", "c/1/1", 1000, bytes.NewReader(make([]byte, 1000))); err != nil {
		t.Errorf("checkpoint object: %v", err)
	}
	_, tag, err := e.Manifest(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.SwapManifest(ctx, "a", tag, []byte("new")); err != nil {
		t.Errorf("manifest: %v", err)
	}
	mustFence(t, e, "a", epoch(2))
	if err := e.Trim(ctx, "a", epoch(2), 2); err != nil {
		t.Errorf("trim: %v", err)
	}
	mustRead(t, e, "a", 2, "2:1:two", "3:2:fence 3 1")
	for i := range filler {
		if err := e.DeleteObject(ctx, "a", fmt.Sprintf("v/1/%d", i+1)); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	mustAppend(t, e, "a", epoch(2), 4, "room again")
	if err := e.PutObject(ctx, "a", "v/2/1", 1000, bytes.NewReader(make([]byte, 1000))); err != nil {
		t.Errorf("object after space was freed: %v", err)
	}
}

func TestDamagedManifestAndID(t *testing.T) {
	disk, _ := smallLog(t, true, 3)
	path := "/data/shards/a/" + manifestName
	for at := range disk.Bytes(path) {
		d := disk.Clone()
		b := d.Bytes(path)
		b[at] ^= 4
		d.SetBytes(path, b)
		e := mustOpen(t, "/data", Config{SegmentBytes: 16 << 10, Reserve: -1, FS: d})
		if _, _, err := e.Manifest(ctx, "a"); !errors.Is(err, driver.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Fatalf("bit flipped at %d: %v", at, err)
		}
		mustClose(t, e)
	}
	d := disk.Clone()
	d.SetBytes(path, d.Bytes("/data/shards/b/"+manifestName))
	e := mustOpen(t, "/data", Config{SegmentBytes: 16 << 10, Reserve: -1, FS: d})
	if _, _, err := e.Manifest(ctx, "a"); !errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("another shard's manifest: %v", err)
	}
	for at := range disk.Bytes("/data/ID") {
		d := disk.Clone()
		b := d.Bytes("/data/ID")
		b[at] ^= 4
		d.SetBytes("/data/ID", b)
		if _, err := Open("/data", Config{SegmentBytes: 16 << 10, Reserve: -1, FS: d}); err == nil && at < len(b)-1 {
			t.Errorf("id damaged at %d: no error", at)
		}
	}
	d = disk.Clone()
	if err := d.Remove("/data/ID"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("/data", Config{FS: d}); !errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("no id: %v", err)
	}
}

// FuzzScan: whatever a segment holds, scanning it ends, stays inside it, and hands on only frames whose checksums hold.
func FuzzScan(f *testing.F) {
	disk, _ := smallLog(f, false, 5)
	b := disk.Bytes(segmentFiles(disk)[0])
	f.Add(b[:4096], uint8(scanTail))
	f.Add(b[:600], uint8(scanBounded))
	f.Add([]byte(nil), uint8(scanUnbounded))
	h, _ := decodeSegmentHeader(b)
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) {
		s := scanner{
			buf: b, salt: salt(h.id, h.number), mode: scanMode(mode % 3), next: 1,
			frame: func(f frame, off int) {
				if _, size, intact := decodeFrame(b[off:], salt(h.id, h.number)); size == 0 || !intact {
					t.Fatalf("a frame at %d that does not hold", off)
				}
				if f.kind == kindSnapshot {
					_, _ = decodeEntries(f.data)
				}
			},
			lost: func(frame, int) {}, gap: func(int, string) {},
		}
		s.scan()
		if s.end > max(len(b), segmentHeaderSize) {
			t.Fatalf("end %d of %d", s.end, len(b))
		}
	})
}

// clock is a time that is a second later each time it is read.
type clock struct{ reads atomic.Int64 }

func (c *clock) read() time.Time { return time.Unix(c.reads.Add(1), 0) }
