package disklog

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
)

// packConfig makes packs of 64 KiB, for objects of up to 8 KiB.
func packConfig(disk *faultfs.FS) Config {
	return Config{SegmentBytes: minSegment, PackBytes: minPack, Reserve: -1, FS: disk}
}

func mustPut(t testing.TB, e *Engine, shard, name string, data []byte) {
	t.Helper()
	if err := e.PutObject(ctx, shard, name, int64(len(data)), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

func wantObject(t testing.TB, e *Engine, shard, name string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := e.GetObject(ctx, shard, name, 0, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("object %s: %v", name, err)
	}
}

// names lists the objects of a shard.
func names(t testing.TB, e *Engine, shard string) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	if err := e.ListObjects(ctx, shard, "", func(name string, size int64) error {
		out[name] = size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func packFiles(disk *faultfs.FS) (out []string) {
	for _, name := range disk.Files() {
		if strings.HasSuffix(name, packSuffix) {
			out = append(out, name)
		}
	}
	return out
}

// object returns bytes that differ by name.
func object(name string, n int) []byte {
	return bytes.Repeat([]byte(name+"."), n/len(name)+1)[:n]
}

// TestPacksAreUsedAgain has a store of constant size replace its objects many times over: once it has the files that it needs, none is
// made and none removed any more.
func TestPacksAreUsedAgain(t *testing.T) {
	disk := faultfs.New(testDisk)
	e := mustOpen(t, "/data", packConfig(disk))
	var removed atomic.Int64
	const kept = 40
	most := 0
	for i := range 1000 {
		mustPut(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 5000))
		if i >= kept {
			if err := e.DeleteObject(ctx, "s", fmt.Sprintf("v/1-%x", i-kept)); err != nil {
				t.Fatal(err)
			}
		}
		if i == 200 {
			disk.SetHook(func(op faultfs.Op, _ string) error {
				if op == faultfs.Remove {
					removed.Add(1)
				}
				return nil
			})
		}
		most = max(most, len(packFiles(disk)))
	}
	disk.SetHook(nil)
	// 40 objects of 5.5 KiB fill 4 packs; one more is being filled, one is half dead, two wait.
	if most > 4+2+maxSpares || removed.Load() > 0 {
		t.Errorf("%d files for 40 objects, %d removals", most, removed.Load())
	}
	for range 2 {
		if n := len(names(t, e, "s")); n != kept {
			t.Fatalf("%d objects, want %d", n, kept)
		}
		for i := 1000 - kept; i < 1000; i++ {
			wantObject(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 5000))
		}
		mustClose(t, e)
		e = mustOpen(t, "/data", packConfig(disk))
	}
}

// TestSpaceOfDeletedObjectsComesBack leaves one object of 20 in each pack.
func TestSpaceOfDeletedObjectsComesBack(t *testing.T) {
	disk := faultfs.New(testDisk)
	e := mustOpen(t, "/data", Config{SegmentBytes: minSegment, PackBytes: 1 << 20, Reserve: -1, FS: disk})
	free := func() int64 {
		n, _, err := disk.Space("/data")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := free()
	const n = 600
	for i := range n {
		mustPut(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 50<<10))
	}
	for i := range n {
		if i%20 != 7 {
			if err := e.DeleteObject(ctx, "s", fmt.Sprintf("v/1-%x", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if used := before - free(); used > (n/20)*2*64<<10+2<<20 { // twice what is needed, and the pack at hand and a spare one
		t.Errorf("%d objects of 50 KiB take %d bytes", n/20, used)
	}
	for range 2 {
		if got := len(names(t, e, "s")); got != n/20 {
			t.Fatalf("%d objects, want %d", got, n/20)
		}
		for i := 7; i < n; i += 20 {
			wantObject(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 50<<10))
		}
		mustClose(t, e)
		e = mustOpen(t, "/data", Config{SegmentBytes: minSegment, PackBytes: 1 << 20, Reserve: -1, FS: disk})
		if d := e.Damage(); len(d) > 0 {
			t.Fatal(d)
		}
	}
}

// TestDamagedPack flips a bit in each sector of a pack: what is lost is the one object that it hit.
func TestDamagedPack(t *testing.T) {
	for _, clean := range []bool{true, false} {
		disk := faultfs.New(testDisk)
		e := mustOpen(t, "/data", packConfig(disk))
		const n = 12
		for i := range n {
			mustPut(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 300+i*400))
		}
		if clean {
			mustClose(t, e)
		}
		disk = disk.Clone()
		name := packFiles(disk)[0]
		original := disk.Bytes(name)
		noted := 0
		for at := 20; !isZero(original[at-20:]); at += sectorSize { // 20 is in the middle of a header
			b := bytes.Clone(original)
			b[at] ^= 4
			d := disk.Clone()
			d.SetBytes(name, b)
			for range 2 {
				e := mustOpen(t, "/data", packConfig(d))
				bad := 0
				for i := range n {
					want := object(fmt.Sprint(i), 300+i*400)
					got := make([]byte, len(want))
					err := e.GetObject(ctx, "s", fmt.Sprintf("v/1-%x", i), 0, got)
					if err != nil && !errors.Is(err, driver.ErrNotExist) {
						t.Fatal(err)
					}
					if err != nil || !bytes.Equal(got, want) { // the caller has a checksum
						bad++
					}
				}
				if bad > 1 {
					t.Fatalf("clean %v, bit flipped at %d: %d objects are lost", clean, at, bad)
				}
				noted += len(e.Damage())
				mustPut(t, e, "s", fmt.Sprintf("v/2-%d", len(names(t, e, "s"))), object("new", 3000))
				mustClose(t, e)
			}
		}
		if noted < n {
			t.Errorf("damaged headers were noted %d times", noted)
		}
	}
}

// TestForeignPackIsLeftAlone: a file that is not what its name says is damage, and nobody's to remove.
func TestForeignPackIsLeftAlone(t *testing.T) {
	disk := faultfs.New(testDisk)
	e := mustOpen(t, "/data", packConfig(disk))
	for i := range 40 {
		mustPut(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 3000))
	}
	mustClose(t, e)
	files := packFiles(disk)
	first, second := disk.Bytes(files[0]), disk.Bytes(files[1])
	disk.SetBytes(files[0], second)
	disk.SetBytes(files[1], first)
	for range 2 {
		e = mustOpen(t, "/data", packConfig(disk))
		if d := e.Damage(); len(d) != 2 {
			t.Fatalf("two packs were swapped: %v", d)
		}
		mustPut(t, e, "s", fmt.Sprintf("v/2-%d", len(names(t, e, "s"))), object("new", 3000))
		mustClose(t, e)
	}
	if !bytes.Equal(disk.Bytes(files[0]), second) || !bytes.Equal(disk.Bytes(files[1]), first) {
		t.Error("files that cannot be read were changed")
	}
	disk.SetBytes(files[0], first) // put right
	disk.SetBytes(files[1], second)
	e = mustOpen(t, "/data", packConfig(disk))
	for i := range 40 {
		wantObject(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 3000))
	}
}

// TestObjectBehindOneThatWasCutOff: a place was given to an object whose bytes do not come, and others behind it are
// acknowledged. They are found, also where a clean end was marked before.
func TestObjectBehindOneThatWasCutOff(t *testing.T) {
	disk := faultfs.New(testDisk)
	cfg := Config{SegmentBytes: minSegment, PackBytes: 4 << 20, Reserve: -1, FS: disk}
	e := mustOpen(t, "/data", cfg)
	mustPut(t, e, "s", "v/1-0", object("zero", 1000))
	mustClose(t, e)
	for round := range 3 {
		e = mustOpen(t, "/data", cfg)
		pr, pw := io.Pipe()
		cut := make(chan error, 1)
		go func() { cut <- e.PutObject(ctx, "s", fmt.Sprintf("v/2-%d", round), 400<<10, pr) }()
		if _, err := pw.Write(make([]byte, 300<<10)); err != nil { // more than is read before it has its place
			t.Fatal(err)
		}
		mustPut(t, e, "s", fmt.Sprintf("v/1-%d", round+1), object("behind", 2000))
		disk.CutPower()
		_ = pw.CloseWithError(io.ErrClosedPipe)
		if err := <-cut; err == nil {
			t.Fatal("an object without its end was stored")
		}
		_ = e.Close()
		disk = disk.AfterCut(rand.New(rand.NewPCG(uint64(round), 1)))
		cfg.FS = disk
	}
	e = mustOpen(t, "/data", cfg)
	if d := e.Damage(); len(d) > 0 {
		t.Error(d)
	}
	if got := names(t, e, "s"); len(got) != 4 {
		t.Errorf("found %v", got)
	}
	wantObject(t, e, "s", "v/1-0", object("zero", 1000))
	for round := range 3 {
		wantObject(t, e, "s", fmt.Sprintf("v/1-%d", round+1), object("behind", 2000))
	}
}

// TestPackAfterAFailedSync: what a failed sync was to write is not there, whatever later syncs say, and the next object goes elsewhere.
func TestPackAfterAFailedSync(t *testing.T) {
	disk := faultfs.New(testDisk)
	e := mustOpen(t, "/data", packConfig(disk))
	mustPut(t, e, "s", "v/1-1", object("one", 3000))
	disk.SetHook(func(op faultfs.Op, name string) error {
		if op == faultfs.Sync && strings.HasSuffix(name, packSuffix) {
			return syscall.EIO
		}
		return nil
	})
	if err := e.PutObject(ctx, "s", "v/1-2", 3, strings.NewReader("two")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("put whose sync fails: %v", err)
	}
	disk.SetHook(nil)
	if err := e.GetObject(ctx, "s", "v/1-2", 0, make([]byte, 3)); !errors.Is(err, driver.ErrNotExist) {
		t.Fatalf("get of an object whose sync failed: %v", err)
	}
	mustPut(t, e, "s", "v/1-3", object("three", 3000))
	if n := len(packFiles(disk)); n != 2 {
		t.Errorf("%d packs after a failed sync, want 2", n)
	}
	disk.CutPower()
	_ = e.Close()
	disk = disk.AfterCut(rand.New(rand.NewPCG(1, 1)))
	e = mustOpen(t, "/data", packConfig(disk))
	wantObject(t, e, "s", "v/1-1", object("one", 3000))
	wantObject(t, e, "s", "v/1-3", object("three", 3000))
}

// TestDirectoryWithoutPacks opens one that an earlier release wrote: every object is a file.
func TestDirectoryWithoutPacks(t *testing.T) {
	disk := faultfs.New(testDisk)
	e := mustOpen(t, "/data", packConfig(disk))
	mustFence(t, e, "s", epoch(1))
	for i := range 5 { // of unknown size: files
		if err := e.PutObject(ctx, "s", fmt.Sprintf("v/1-%d", i), -1, bytes.NewReader(object(fmt.Sprint(i), 3000))); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, e)
	line := idBefore + strings.TrimPrefix(string(disk.Bytes("/data/ID"))[:len(idFormat)+33], idFormat)
	old := fmt.Sprintf("%s %08x\n", line, crc32.Checksum([]byte(line), castagnoli))
	disk.SetBytes("/data/ID", []byte(old))

	for range 2 { // reading changes nothing: the release before can still open it
		e = mustOpen(t, "/data", packConfig(disk))
		wantObject(t, e, "s", "v/1-3", object("3", 3000))
		if got := string(disk.Bytes("/data/ID")); got != old {
			t.Fatalf("the id became %q", got)
		}
		mustClose(t, e)
	}
	e = mustOpen(t, "/data", packConfig(disk))
	mustPut(t, e, "s", "v/2-1", object("new", 3000))
	if err := e.PutObject(ctx, "s", "v/1-1", 1, strings.NewReader("x")); !errors.Is(err, driver.ErrRefused) {
		t.Errorf("put over a file: %v", err)
	}
	if got := string(disk.Bytes("/data/ID")); !strings.HasPrefix(got, idFormat+" ") {
		t.Errorf("with a pack, the id is %q", got)
	}
	mustClose(t, e)
	e = mustOpen(t, "/data", packConfig(disk))
	if got := names(t, e, "s"); len(got) != 6 || got["v/2-1"] != 3000 {
		t.Errorf("objects %v", got)
	}
	for _, name := range []string{"v/1-1", "v/2-1"} {
		if err := e.DeleteObject(ctx, "s", name); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, e, "s"); len(got) != 4 {
		t.Errorf("after deletes: %v", got)
	}
	if err := e.RemoveShard(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	if got := names(t, e, "s"); len(got) != 0 {
		t.Errorf("after removal: %v", got)
	}
}

// TestFullDiskOfPacks: below the reserve packs are not written, and deletes make room, also of the pack at hand.
func TestFullDiskOfPacks(t *testing.T) {
	disk := faultfs.New(4 << 20)
	var now clock
	e := mustOpen(t, "/data", Config{SegmentBytes: minSegment, PackBytes: 1 << 20, Reserve: 1 << 20, FS: disk})
	e.space.mu.Lock()
	e.space.now = now.read
	e.space.mu.Unlock()
	n := 0
	var err error
	for ; err == nil && n < 1000; n++ {
		err = e.PutObject(ctx, "s", fmt.Sprintf("v/1-%x", n), 20<<10, bytes.NewReader(object(fmt.Sprint(n), 20<<10)))
	}
	if n--; !errors.Is(err, driver.ErrNoSpace) || n < 50 {
		t.Fatalf("%d objects, then %v", n, err)
	}
	disk.SetCapacity(4<<20 - 500<<10) // somebody else takes some
	for i := n - 1; i > n-25; i-- {   // the newest
		if err := e.DeleteObject(ctx, "s", fmt.Sprintf("v/1-%x", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < n-25; i += 2 {
		if err := e.DeleteObject(ctx, "s", fmt.Sprintf("v/1-%x", i)); err != nil {
			t.Fatal(err)
		}
	}
	if free, reserve := e.Space(); free < reserve {
		t.Errorf("%d bytes free after half was deleted, %d are reserved", free, reserve)
	}
	mustPut(t, e, "s", "v/2-1", object("again", 20<<10))
	for i := 1; i < n-25; i += 2 {
		wantObject(t, e, "s", fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 20<<10))
	}
}

// TestRemovedShardStaysAway: objects of a removed shard do not come back with the power.
func TestRemovedShardStaysAway(t *testing.T) {
	for seed := range uint64(20) {
		disk := faultfs.New(testDisk)
		e := mustOpen(t, "/data", packConfig(disk))
		for i := range 20 {
			mustPut(t, e, fmt.Sprint("s", i%2), fmt.Sprintf("v/1-%x", i), object(fmt.Sprint(i), 3000))
		}
		if err := e.RemoveShard(ctx, "s0"); err != nil {
			t.Fatal(err)
		}
		disk.CutPower()
		_ = e.Close()
		disk = disk.AfterCut(rand.New(rand.NewPCG(seed, 3)))
		e = mustOpen(t, "/data", packConfig(disk))
		if gone, kept := names(t, e, "s0"), names(t, e, "s1"); len(gone) > 0 || len(kept) != 10 {
			t.Fatalf("seed %d: %d objects of a removed shard, %d of 10 of another", seed, len(gone), len(kept))
		}
		mustClose(t, e)
	}
}

// TestPackCutOffWhileUsedAgain ends the process, and cuts the power, before each operation of a store that uses its packs again: no object that was
// acknowledged is missing, and nothing is taken for damage.
func TestPackCutOffWhileUsedAgain(t *testing.T) {
	const kept, before, puts = 15, 60, 90 // 11 objects fill a pack; by then two spare ones wait
	name := func(i int) string { return fmt.Sprintf("v/1-%x", i) }
	renamed := map[string]bool{}
	for at, whole := 1, false; !whole; at++ {
		disk := faultfs.New(testDisk)
		e := mustOpen(t, "/data", packConfig(disk))
		acked := map[int]bool{}
		whole = true
		for i := range puts {
			if i == before {
				ops := 0
				disk.SetHook(func(op faultfs.Op, path string) error {
					if strings.Contains(path, segmentsDir) || !op.Changes() {
						return nil
					}
					if ops++; ops < at {
						return nil
					}
					if op == faultfs.Rename {
						renamed[filepath.Base(filepath.Dir(path))] = true
					}
					disk.CutFromHook()
					return faultfs.ErrPowerCut
				})
			}
			if whole = e.PutObject(ctx, "s", name(i), 5000, bytes.NewReader(object(fmt.Sprint(i), 5000))) == nil; !whole {
				break
			}
			acked[i] = true
			if i < kept {
				continue
			}
			delete(acked, i-kept)
			if whole = e.DeleteObject(ctx, "s", name(i-kept)) == nil; !whole {
				break
			}
		}
		_ = e.Close()
		found := []*faultfs.FS{disk.Clone()}
		for seed := range uint64(3) {
			found = append(found, disk.AfterCut(rand.New(rand.NewPCG(seed, uint64(at)))))
		}
		for n, disk := range found {
			e := mustOpen(t, "/data", packConfig(disk))
			if d := e.Damage(); len(d) > 0 {
				t.Fatalf("operation %d, disk %d: %v", at, n, d)
			}
			for i := range acked {
				wantObject(t, e, "s", name(i), object(fmt.Sprint(i), 5000))
			}
			mustClose(t, e)
		}
	}
	if !renamed[packsDir] || !renamed[temporaryDir] {
		t.Errorf("files were renamed in %v: no pack was used again", renamed)
	}
}
