package disklog

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest"
)

const testDisk = 1 << 30

// newHarness holds a data directory on a disk that loses power whenever the engine crashes.
func newHarness(t testing.TB) *waltest.Harness {
	disk := faultfs.New(testDisk)
	rng := rand.New(rand.NewPCG(1, 2))
	cfg := Config{SegmentBytes: 256 << 10, PackBytes: 4 << 20, Reserve: -1}
	var open *Engine
	end := func() {
		if open != nil {
			_ = open.Close()
			open = nil
		}
	}
	t.Cleanup(end)
	return &waltest.Harness{
		Open: func(t testing.TB) driver.Engine {
			end()
			cfg.FS = disk
			e, err := Open("/data", cfg)
			if err != nil {
				t.Fatal(err)
			}
			open = e
			return e
		},
		Crash: func(testing.TB) {
			disk.CutPower()
			end()
			disk = disk.AfterCut(rng)
		},
		TearTail: func(t testing.TB, shard string) {
			name, end := endOfLog(t, disk)
			torn := tornBatch(t, disk, name, end, shard)
			b := disk.Bytes(name)
			copy(b[end:], torn)
			disk.SetBytes(name, b)
		},
		DamageRecord: func(t testing.TB, shard string, data []byte) {
			for _, name := range segmentFiles(disk) {
				b := disk.Bytes(name)
				if i := bytes.Index(b, data); i >= 0 {
					b[i] ^= 0x10
					disk.SetBytes(name, b)
					return
				}
			}
			t.Fatalf("record of %s not found", shard)
		},
	}
}

// segmentFiles returns the paths of a disk's segments, oldest first.
func segmentFiles(disk *faultfs.FS) []string {
	return slices.DeleteFunc(disk.Files(), func(n string) bool { return !strings.HasSuffix(n, segmentSuffix) })
}

// scanFile scans one segment of a disk as the newest one.
func scanFile(t testing.TB, disk *faultfs.FS, name string) *scanner {
	b := disk.Bytes(name)
	h, ok := decodeSegmentHeader(b)
	if !ok {
		t.Fatalf("%s has no header", name)
	}
	s := &scanner{
		buf: b, salt: salt(h.id, h.number), mode: scanTail, next: h.firstBatch,
		frame: func(frame, int) {}, lost: func(frame, int) {}, gap: func(int, string) {},
	}
	s.scan()
	return s
}

// endOfLog returns the newest segment that was written to and where its log ends.
func endOfLog(t testing.TB, disk *faultfs.FS) (name string, end int) {
	for _, n := range segmentFiles(disk) {
		if _, ok := decodeSegmentHeader(disk.Bytes(n)); ok {
			name = n
		}
	}
	return name, scanFile(t, disk, name).end
}

// tornBatch returns the first sectors of a batch that would follow, with a record of shard.
func tornBatch(t testing.TB, disk *faultfs.FS, name string, end int, shard string) []byte {
	s := scanFile(t, disk, name)
	c := committer{off: end, number: s.next, chain: s.chain, salt: s.salt, seg: &segment{size: 1 << 30}}
	c.begin()
	c.put(kindRecord, &shardLog{name: shard}, 1, 1000, nil, bytes.Repeat([]byte("torn"), 1000))
	c.seal()
	return c.buf[:2*sectorSize-end%sectorSize]
}

func TestConformance(t *testing.T) { waltest.Run(t, newHarness) }

func TestLog(t *testing.T) { waltest.RunLog(t, newHarness) }
