package disklog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"kvstore/components/wal/disklog/vfs"
)

const (
	packsDir   = "packs"
	packSuffix = ".pack"

	packHeaderSize = sectorSize // of an object in a pack; never torn
	packFixed      = 40         // bytes of it before the names
	packBlock      = 4096       // what a file system frees at least
)

var packMagic = [4]byte{'K', 'V', 'P', 1} // the last byte is the format version

// packKind says what a header in a pack stands before. Numbers are stored: they are only ever appended.
type packKind uint8

const (
	packObject packKind = 1 // an object
	packDead   packKind = 2 // what no longer matters: one or more deleted objects, or what a crash cut off
	packEnd    packKind = 3 // nothing: whatever was acknowledged is before it, and durable
)

// packHeader is the sector before an object in a pack.
type packHeader struct {
	kind    packKind
	offset  int64  // where it is, so that a copy elsewhere does not pass
	durable int64  // everything before this offset was durable when it was written
	size    int64  // bytes that follow, to be rounded up to a sector
	crc     uint32 // of those bytes
	shard   string
	name    string
}

// next returns the offset behind what the header stands before.
func (h *packHeader) next() int64 { return h.offset + packedSize(h.size) }

// packedSize is what an object of size bytes takes.
func packedSize(size int64) int64 {
	return packHeaderSize + (size+sectorSize-1)&^(sectorSize-1)
}

// encode fills b, which has packHeaderSize bytes.
func (h *packHeader) encode(b []byte, salt uint32) {
	clear(b[:packHeaderSize])
	copy(b, packMagic[:])
	binary.LittleEndian.PutUint64(b[8:], uint64(h.offset))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.durable))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.size))
	binary.LittleEndian.PutUint32(b[32:], h.crc)
	b[36], b[37], b[38] = byte(h.kind), byte(len(h.shard)), byte(len(h.name))
	n := packFixed + copy(b[packFixed:], h.shard)
	n += copy(b[n:], h.name)
	binary.LittleEndian.PutUint32(b[4:], crc32.Update(salt, castagnoli, b[8:n]))
}

// decodePackHeader says whether the sector b, at an offset of a pack of size bytes, is a header that was written whole.
func decodePackHeader(b []byte, offset, size int64, salt uint32) (h packHeader, ok bool) {
	if len(b) < packHeaderSize || [4]byte(b[:4]) != packMagic {
		return h, false
	}
	shard, name := int(b[37]), int(b[38])
	n := packFixed + shard + name
	if n > packHeaderSize || binary.LittleEndian.Uint32(b[4:]) != crc32.Update(salt, castagnoli, b[8:n]) {
		return h, false
	}
	h = packHeader{
		kind:    packKind(b[36]),
		offset:  int64(binary.LittleEndian.Uint64(b[8:])),
		durable: int64(binary.LittleEndian.Uint64(b[16:])),
		size:    int64(binary.LittleEndian.Uint64(b[24:])),
		crc:     binary.LittleEndian.Uint32(b[32:]),
		shard:   string(b[packFixed : packFixed+shard]),
		name:    string(b[packFixed+shard : n]),
	}
	return h, h.offset == offset && h.size >= 0 && h.size <= size-offset-packHeaderSize
}

func packName(number uint64) string { return fmt.Sprintf("%016x%s", number, packSuffix) }

func parsePackName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, packSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && n > 0
}

// packSalt keeps packs and segments of one number apart.
func packSalt(id [16]byte, number uint64) uint32 {
	return crc32.Update(salt(id, number), castagnoli, packMagic[:3])
}

// pack is one file of small objects.
type pack struct {
	number uint64
	path   string
	size   int64
	salt   uint32

	syncs  groupSync
	failed atomic.Bool // a sync failed

	marks sync.Mutex // held while headers of objects that are there are written over

	// Guarded by packs.mu.
	file     vfs.File // nil once it is sealed and nobody uses it
	end      int64    // where the next object goes
	inflight []int64  // offsets of objects that are not durable yet, ascending; one that failed stays for ever
	users    int      // calls under way
	live     int      // objects in the index
	bytes    int64    // what they take
	dead     int64    // bytes of objects that were deleted and have their blocks still
	sealed   bool     // it takes no more objects
}

// flush makes everything durable that was written to the pack before the call. Callers that come while a sync is running share the next.
func (p *pack) flush(f vfs.File) error {
	return p.syncs.do(func() error {
		err := f.Datasync()
		if err != nil {
			p.failed.Store(true)
		}
		return err
	})
}

// sync is flush for objects: once a sync failed no later one says anything about what was written before, because the kernel takes what it could
// not write for clean.
func (p *pack) sync(f vfs.File) error {
	err := p.flush(f)
	if err == nil && p.failed.Load() {
		return fmt.Errorf("an earlier sync of %s failed", p.path)
	}
	return err
}
