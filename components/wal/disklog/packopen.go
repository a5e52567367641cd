package disklog

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// packScan is what a pack's file holds.
type packScan struct {
	headers int          // how many there are
	objects []packHeader // in order; names as they were put
	dead    int64        // bytes of deleted objects
	durable int64        // everything before it was durable once
	end     int64        // behind the last object
	ended   bool         // the end is marked
	gaps    []packHeader // pieces without a good header before end
	damage  []error
}

// open reads which objects there are, and makes sure that they are durable before anything of them is served.
func (s *packs) open() error {
	e := s.e
	names, err := e.fs.ReadDir(e.path(packsDir))
	if err != nil {
		return err
	}
	var found []*pack
	for _, n := range names {
		if number, ok := parsePackName(n.Name); ok {
			found = append(found, &pack{number: number, path: e.path(packsDir, n.Name), salt: packSalt(e.id, number)})
			s.next = max(s.next, number+1)
		}
	}
	slices.SortFunc(found, func(a, b *pack) int { return cmp.Compare(a.number, b.number) })
	scans := make([]packScan, len(found))
	faults := make([]error, len(found))
	var wg sync.WaitGroup
	turns := make(chan struct{}, packScanners) // a disk that was not read yet is faster when asked for several things
	for i, p := range found {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if faults[i] = s.openPack(p, &scans[i], i == len(found)-1); faults[i] != nil {
				faults[i] = fmt.Errorf("opening pack %s: %w", p.path, faults[i])
			}
		})
	}
	wg.Wait()
	if err := errors.Join(faults...); err != nil {
		for _, p := range found {
			if p.file != nil {
				_ = p.file.Close()
			}
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range found {
		s.add(p, &scans[i])
	}
	for i, p := range found { // now that it is known what is live
		if scans[i].headers > 0 || len(scans[i].damage) == 0 {
			p.users++
			s.release(p)
		}
	}
	return nil
}

// add puts what a pack holds into the index. The caller holds mu.
func (s *packs) add(p *pack, scan *packScan) {
	s.e.damage = append(s.e.damage, scan.damage...)
	s.all[p.number] = p
	p.end, p.dead = scan.end, scan.dead
	for i := range scan.objects {
		h := &scan.objects[i]
		shard := s.index[h.shard]
		if shard == nil {
			shard = make(map[string]spot)
			s.index[h.shard] = shard
		}
		if before, twice := shard[h.name]; twice { // a put that failed, and was tried again
			s.forget(h.shard, h.name, before)
		}
		shard[h.name] = spot{pack: p, sector: uint32(h.offset / sectorSize), size: uint32(h.size)}
		p.live++
		p.bytes += packedSize(h.size)
	}
	if p.sealed = p.file == nil; !p.sealed {
		s.current = p
	}
}

// openPack scans a pack and settles it. The newest one is gone on with, if it is undamaged and there is room: its file stays open.
func (s *packs) openPack(p *pack, scan *packScan, newest bool) (err error) {
	f, err := s.e.fs.Open(p.path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() {
		if p.file == nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if p.size, err = f.Size(); err != nil {
		return err
	}
	if err := scanPack(f, p, scan); err != nil {
		return err
	}
	if scan.headers == 0 {
		if blank, err := blankPack(f, p); blank || err != nil {
			return err // its first objects were cut off
		}
		scan.damage = append(scan.damage, fmt.Errorf("%w: %s: no object can be found; the file is left as it is", driver.ErrCorrupt, p.path))
		return nil
	}
	if !scan.ended {
		if err := settlePack(f, p, scan); err != nil {
			return err
		}
	}
	more := newest && len(scan.objects) > 0 && len(scan.damage) == 0 && scan.end < p.size/2
	switch {
	case more && scan.ended:
		// The mark must not outlive the object that takes its place but is not written before others are acknowledged.
		if _, err := f.WriteAt(make([]byte, packHeaderSize), scan.end); err != nil {
			return err
		}
		if err := f.Datasync(); err != nil {
			return err
		}
	case !more && !scan.ended && scan.end+packHeaderSize <= p.size:
		var b [packHeaderSize]byte
		h := packHeader{kind: packEnd, offset: scan.end, durable: scan.end}
		h.encode(b[:], p.salt)
		if _, err := f.WriteAt(b[:], scan.end); err != nil {
			return err
		}
	}
	if more {
		p.file = f
	}
	return nil
}

// blankPack reports whether nothing was ever written to a pack.
func blankPack(f vfs.File, p *pack) (bool, error) {
	if p.size == 0 {
		return true, nil
	}
	head, err := readSegment(f, nil, min(p.size, packHeaderSize))
	return err == nil && isZero(head), err
}

// settlePack makes durable what a pack without an end mark holds. What was written last may be in the page cache only, and if a sync failed before,
// the kernel may believe it clean: it is verified and written again. What fails was cut off before it was acknowledged, or is damaged; in
// either case there is no such object, and whoever names it knows that it was lost.
func settlePack(f vfs.File, p *pack, scan *packScan) error {
	good := scan.objects[:0]
	var torn []packHeader
	for _, h := range scan.objects {
		if h.offset < scan.durable {
			good = append(good, h)
			continue
		}
		b := make([]byte, packedSize(h.size))
		if _, err := f.ReadAt(b, h.offset); err != nil || crc32.Checksum(b[packHeaderSize:packHeaderSize+h.size], castagnoli) != h.crc {
			torn = append(torn, packHeader{kind: packDead, offset: h.offset, size: packedSize(h.size) - packHeaderSize})
			continue
		}
		if _, err := f.WriteAt(b, h.offset); err != nil {
			return err
		}
		good = append(good, h)
	}
	scan.objects = good
	scan.end = 0
	if n := len(good); n > 0 {
		scan.end = good[n-1].next()
	}
	scan.end = max(scan.end, scan.durable)
	// So that the next scan takes no torn piece for a damaged one.
	for _, g := range append(torn, scan.gaps...) {
		if g.offset < scan.durable || g.offset >= scan.end {
			continue
		}
		var b [packHeaderSize]byte
		g.encode(b[:], p.salt)
		if _, err := f.WriteAt(b[:], g.offset); err != nil {
			return err
		}
		scan.dead += packedSize(g.size)
	}
	return f.Datasync()
}

// scanPack goes through a pack from header to header, and where there is none looks for the next one sector by sector.
func scanPack(f vfs.File, p *pack, scan *packScan) error {
	off := int64(0)
	for {
		end, err := walkPack(f, p, off, func(h *packHeader) {
			scan.headers++
			scan.durable = max(scan.durable, h.durable)
			switch h.kind {
			case packObject:
				scan.objects = append(scan.objects, *h)
			case packEnd:
				scan.ended = true
			default:
				scan.dead += packedSize(h.size)
			}
		})
		if err != nil {
			return err
		}
		if scan.end = end; scan.ended {
			break
		}
		next, err := findPackHeader(f, p, end+packHeaderSize)
		if err != nil {
			return err
		}
		if next < 0 {
			break
		}
		scan.gaps = append(scan.gaps, packHeader{kind: packDead, offset: end, size: next - end - packHeaderSize})
		off = next
	}
	for _, g := range scan.gaps {
		if g.offset < scan.durable {
			scan.damage = append(scan.damage, fmt.Errorf("%w: %s at offset %d: no object can be found in %d bytes", driver.ErrCorrupt, p.path, g.offset, packHeaderSize+g.size))
		}
	}
	if scan.end < scan.durable {
		scan.damage = append(scan.damage, fmt.Errorf("%w: %s at offset %d: no object can be found up to %d", driver.ErrCorrupt, p.path, scan.end, scan.durable))
	}
	return nil
}

// walkPack calls fn for each header from an offset on and returns where there is none any more, or where the end is marked.
func walkPack(f vfs.File, p *pack, off int64, fn func(*packHeader)) (end int64, err error) {
	var b [packHeaderSize]byte
	for off+packHeaderSize <= p.size {
		if _, err := f.ReadAt(b[:], off); err != nil {
			if errors.Is(err, io.EOF) {
				return off, fmt.Errorf("file became shorter: %w", err)
			}
			return off, nil // a bad sector
		}
		if [3]byte(b[:3]) == [3]byte(packMagic[:3]) && b[3] != packMagic[3] {
			return off, fmt.Errorf("version %d of packs, this release knows %d", b[3], packMagic[3])
		}
		h, ok := decodePackHeader(b[:], off, p.size, p.salt)
		if !ok {
			return off, nil
		}
		fn(&h)
		if h.kind == packEnd {
			return off, nil
		}
		off = h.next()
	}
	return off, nil
}

// findPackHeader returns where the first header at or behind an offset is, -1 when there is none.
func findPackHeader(f vfs.File, p *pack, off int64) (int64, error) {
	b := make([]byte, min(1<<20, max(p.size-off, 0)))
	for off < p.size {
		n := min(int64(len(b)), p.size-off)
		if _, err := f.ReadAt(b[:n], off); errors.Is(err, io.EOF) {
			return -1, fmt.Errorf("file became shorter: %w", err)
		} else if err != nil {
			if n = min(n, sectorSize); len(b) > sectorSize { // a bad sector: one at a time
				b = b[:sectorSize]
				continue
			}
			off += n
			continue
		}
		for at := int64(0); at+packHeaderSize <= n; at += sectorSize {
			if _, ok := decodePackHeader(b[at:], off+at, p.size, p.salt); ok {
				return off + at, nil
			}
		}
		off += n
	}
	return -1, nil
}
