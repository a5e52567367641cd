package disklog

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// packs stores small objects one behind the other in preallocated files, so that one costs a write and a share of a sync, and not
// a file with two syncs of its own. A pack is written by all shards; whoever comes while it is being synced shares the next sync.
// A pack that holds nothing any more becomes the next one; the blocks of deleted objects in others are given back by punching holes.
type packs struct {
	e     *Engine
	limit int64 // bytes of an object; longer ones are files
	files handles

	mu      sync.Mutex // guards what follows, the fields of pack that say so, and is held while a pack is begun
	index   map[string]map[string]spot
	all     map[uint64]*pack
	current *pack    // nil: the next object begins one
	next    uint64   // number of the pack to come
	spares  []string // files of full size that hold nothing, at most maxSpares
	closed  bool
	absent  bool           // the directory is of a layout that has no packs
	calls   sync.WaitGroup // what uses a file; added to under mu while not closed
}

// spot is where an object is. Its memory is what an object costs, so it is small.
type spot struct {
	pack   *pack // nil: it is being written
	sector uint32
	size   uint32
}

func (s spot) offset() int64 { return int64(s.sector) * sectorSize }

func (s *packs) init(e *Engine) {
	s.e = e
	s.limit = min(maxPacked, e.cfg.PackBytes/8)
	s.files.init(e.fs, e.cfg.MaxHandles, os.O_RDWR)
	s.index = make(map[string]map[string]spot)
	s.all = make(map[uint64]*pack)
	s.next = 1
}

// takes reports whether objects of a name and size belong into packs. Checkpoints do not: they come in sizes that are not known before.
func (s *packs) takes(name string, size int64) bool {
	return 0 <= size && size <= s.limit && !strings.HasPrefix(name, driver.CheckpointPrefix)
}

// has reports whether an object is in a pack or on its way into one.
func (s *packs) has(shard, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.index[shard][name]
	return ok
}

// put stores an object. What does not fit into a buffer is written while it is read: that holds up nobody, for a place that was given is nobody
// else's, and its header comes last.
func (s *packs) put(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	if err := s.e.space.take(0, 1); err != nil {
		s.dropSpares()
		return err
	}
	buf := s.e.objects.buffers.Get().(*[objectBuffer]byte)
	defer s.e.objects.buffers.Put(buf)
	h := packHeader{kind: packObject, size: size, shard: shard, name: name}
	in := &packInput{ctx: ctx, r: r, left: size}
	n, err := in.fill(buf[packHeaderSize:])
	if err != nil {
		return err
	}
	p, err := s.begin(&h)
	if err != nil {
		return err
	}
	if in.left > 0 {
		err = s.write(p, buf[packHeaderSize:packHeaderSize+n], h.offset+packHeaderSize)
		for at := h.offset + packHeaderSize + int64(n); err == nil && in.left > 0; at += int64(n) {
			if n, err = in.fill(buf[:]); err == nil {
				err = s.write(p, buf[:n], at)
			}
		}
		n = 0
	}
	if in.err != nil {
		h.kind, n = packDead, 0
	}
	if err == nil || in.err != nil {
		h.crc = in.crc
		h.encode(buf[:], p.salt)
		err = s.write(p, buf[:packHeaderSize+n], h.offset)
	}
	if err == nil && in.err == nil {
		err = s.sync(p)
	}
	return s.end(p, &h, err, in.err)
}

// packInput is what an object is made of.
type packInput struct {
	ctx  context.Context
	r    io.Reader
	left int64  // bytes to come
	crc  uint32 // of those that came
	err  error  // the object is not to be
}

// fill fills b, or takes all that is left.
func (in *packInput) fill(b []byte) (n int, err error) {
	if in.err = in.ctx.Err(); in.err != nil {
		return 0, in.err
	}
	want := min(int64(len(b)), in.left)
	n, err = fill(in.r, b[:want])
	in.crc = crc32.Update(in.crc, castagnoli, b[:n])
	in.left -= int64(n)
	if err == nil && in.left == 0 { // it must end here
		var more [1]byte
		var m int
		if m, err = fill(in.r, more[:]); m > 0 {
			err = fmt.Errorf("%w: more bytes came than were announced", driver.ErrRefused)
		}
	}
	switch {
	case err != nil && err != io.EOF: //nolint:errorlint // an EOF that an error wraps is not r's end
		in.err = err
	case in.left > 0 && int64(n) < want:
		in.err = fmt.Errorf("%w: %d bytes less came than were announced", driver.ErrRefused, in.left)
	}
	return n, in.err
}

// write writes to a pack that is in use.
func (s *packs) write(p *pack, b []byte, off int64) error {
	f, err := s.enter(p)
	if err != nil {
		return err
	}
	defer s.calls.Done()
	_, err = f.WriteAt(b, off)
	return err
}

func (s *packs) sync(p *pack) error {
	f, err := s.enter(p)
	if err != nil {
		return err
	}
	defer s.calls.Done()
	return p.sync(f)
}

// enter gives a pack's file to a call and keeps it and the engine open until calls.Done. The file is nil when it is to be had from files.
func (s *packs) enter(p *pack) (vfs.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, driver.ErrClosed
	}
	s.calls.Add(1)
	return p.file, nil
}

// begin gives an object a place in a pack, which is in use until end.
func (s *packs) begin(h *packHeader) (*pack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, driver.ErrClosed
	}
	if _, ok := s.index[h.shard][h.name]; ok {
		return nil, fmt.Errorf("%w: it exists", driver.ErrRefused)
	}
	need := packedSize(h.size)
	if p := s.current; p == nil || p.end+need+packHeaderSize > p.size { // the end mark has its place
		if err := s.roll(need + packHeaderSize); err != nil {
			return nil, err
		}
	}
	p := s.current
	h.offset = p.end
	p.end += need
	p.inflight = append(p.inflight, h.offset)
	h.durable = p.inflight[0]
	p.users++
	if s.index[h.shard] == nil {
		s.index[h.shard] = make(map[string]spot)
	}
	s.index[h.shard][h.name] = spot{}
	return p, nil
}

// end puts an object that is durable into the index, or says why it is not there. Given is why it is not to be, err why its header is not
// durable.
func (s *packs) end(p *pack, h *packHeader, err, given error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.release(p)
	shard := s.index[h.shard]
	_, wanted := shard[h.name]
	if err == nil && given == nil && wanted {
		shard[h.name] = spot{pack: p, sector: uint32(h.offset / sectorSize), size: uint32(h.size)}
		p.live++
		p.bytes += packedSize(h.size)
	} else if wanted {
		delete(shard, h.name)
	}
	if err != nil {
		if s.current == p { // what is behind a write that failed is anybody's guess
			s.current, p.sealed = nil, true
		}
		if given != nil {
			return given
		}
		return err
	}
	p.inflight = slices.DeleteFunc(p.inflight, func(off int64) bool { return off == h.offset })
	switch {
	case given != nil:
		p.dead += packedSize(h.size)
	case !wanted:
		given = fmt.Errorf("%w: the shard was removed", driver.ErrRefused)
		p.dead += packedSize(h.size)
		if !s.closed {
			given = errors.Join(given, s.mark(p, p.file, &packHeader{kind: packDead, offset: h.offset, size: h.size}))
		}
	}
	return given
}

// release ends a call's use of a pack. The caller holds mu.
func (s *packs) release(p *pack) {
	if p.users--; p.users > 0 || !p.sealed || s.closed {
		return
	}
	s.finish(p)
	if p.live == 0 {
		s.retire(p)
	}
}

// finish closes the file of a pack that nothing is written to any more. The caller holds mu.
func (s *packs) finish(p *pack) {
	if p.file == nil {
		return
	}
	if len(p.inflight) == 0 {
		s.seal(p)
	}
	_ = p.file.Close() // what matters was synced
	p.file = nil
}

// seal marks the end of a pack, so that the next Open knows at once that it is whole. The mark is not synced: without it Open verifies what was
// written last. The caller holds mu.
func (s *packs) seal(p *pack) {
	var b [packHeaderSize]byte
	h := packHeader{kind: packEnd, offset: p.end, durable: p.end}
	h.encode(b[:], p.salt)
	if _, err := p.file.WriteAt(b[:], p.end); err != nil {
		s.e.cfg.Warn(err)
	}
}

// retire removes a pack that holds nothing, or keeps its file for the next one. The caller holds mu.
func (s *packs) retire(p *pack) {
	delete(s.all, p.number)
	s.files.forget(p.path)
	if p.size == s.e.cfg.PackBytes && len(p.inflight) == 0 && len(s.spares) < maxSpares && !s.e.space.low() {
		s.spares = append(s.spares, p.path)
		return
	}
	if err := ignoreNotExist(s.e.fs.Remove(p.path)); err != nil {
		s.e.cfg.Warn(fmt.Errorf("removing an empty pack: %w", err))
	}
}

// dropSpares gives the space of spare files back.
func (s *packs) dropSpares() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range s.spares {
		if err := ignoreNotExist(s.e.fs.Remove(path)); err != nil {
			s.e.cfg.Warn(fmt.Errorf("removing a spare pack: %w", err))
		}
	}
	s.spares = nil
}

// roll makes a new pack the current one, with room for need bytes. The caller holds mu.
func (s *packs) roll(need int64) error {
	p, err := s.create(need)
	if err != nil {
		return err
	}
	old := s.current
	s.current = p
	s.all[p.number] = p
	if old != nil {
		old.sealed = true
		old.users++ // released at once, which seals it unless it is in use
		s.release(old)
	}
	return nil
}

// create makes the file of a pack, out of a spare one if there is one. It is named durably before anything is written to it.
func (s *packs) create(need int64) (_ *pack, err error) {
	e := s.e
	size := e.cfg.PackBytes
	if s.next < 16 {
		size = min(size, max(firstPack<<(s.next-1), need))
	}
	if s.absent {
		if err := e.writeID(); err != nil {
			return nil, err
		}
		s.absent = false
	}
	p := &pack{number: s.next, path: e.path(packsDir, packName(s.next)), salt: packSalt(e.id, s.next)}
	flag := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if n := len(s.spares); n > 0 && size == e.cfg.PackBytes {
		spare := s.spares[n-1]
		s.spares = s.spares[:n-1]
		if err := s.again(spare, p.path); err != nil {
			return nil, err
		}
		flag = os.O_RDWR
	} else {
		for err = e.space.take(size, 1); errors.Is(err, driver.ErrNoSpace) && size/2 >= max(need, packBlock); {
			size /= 2
			err = e.space.take(size, 1)
		}
		if err != nil {
			return nil, err
		}
	}
	s.next++ // also when it fails from here on: a number names one file for good
	p.size = size
	if p.file, err = e.fs.Open(p.path, flag); err != nil {
		return nil, noSpace(err)
	}
	if err = p.file.Allocate(size); err == nil { // of a spare one: its holes
		err = e.fs.SyncDir(e.path(packsDir))
	}
	if err != nil {
		return nil, errors.Join(noSpace(err), p.file.Close(), ignoreNotExist(e.fs.Remove(p.path)))
	}
	return p, nil
}

// again makes a spare file the blank file of a pack: with what is in its first sector Open would take it for a pack that cannot be read. It loses its
// old name first, durably, under which without that sector it would look damaged. The caller syncs the new name.
func (s *packs) again(spare, path string) (err error) {
	fs := s.e.fs
	temporary := s.e.objects.temporary()
	if err := fs.Rename(spare, temporary); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreNotExist(fs.Remove(temporary)))
		}
	}()
	if err := fs.SyncDir(s.e.path(packsDir)); err != nil {
		return err
	}
	f, err := fs.Open(temporary, os.O_RDWR)
	if err != nil {
		return err
	}
	if err := errors.Join(writeZeros(f, 0, packHeaderSize), f.Close()); err != nil {
		return err
	}
	return fs.Rename(temporary, path)
}

// use finds an object and keeps its pack until release, and the engine open until calls.Done. f is nil when the pack's file is to be had from files.
func (s *packs) use(shard, name string) (at spot, f vfs.File, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok = s.index[shard][name]
	if ok = ok && at.pack != nil && !s.closed; ok {
		s.calls.Add(1)
		at.pack.users++
		f = at.pack.file
	}
	return at, f, ok
}

// with calls fn with the file of a pack that is in use.
func (s *packs) with(p *pack, f vfs.File, fn func(vfs.File) error) error {
	if f != nil {
		return fn(f)
	}
	h, err := s.files.get(p.path)
	if err != nil {
		return err
	}
	defer s.files.put(h)
	return fn(h.file)
}

// get reads a part of an object. found is false when it is not in a pack.
func (s *packs) get(shard, name string, off int64, b []byte) (found bool, err error) {
	at, f, ok := s.use(shard, name)
	if !ok {
		return false, nil
	}
	defer s.calls.Done()
	p := at.pack
	if end := off + int64(len(b)); off < 0 || end > int64(at.size) {
		err = fmt.Errorf("%w: it has %d bytes, %d to %d were asked for", driver.ErrCorrupt, at.size, off, end)
	} else {
		err = s.with(p, f, func(f vfs.File) error {
			_, err := f.ReadAt(b, at.offset()+packHeaderSize+off)
			return err
		})
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %s was cut off", driver.ErrCorrupt, p.path)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found = s.index[shard][name] == at // or its blocks may have been given back meanwhile
	s.release(p)
	return found, err
}

// remove deletes an object. found is false when it is not in a pack.
func (s *packs) remove(shard, name string) (found bool, err error) {
	at, f, ok := s.use(shard, name)
	if !ok {
		return false, nil
	}
	defer s.calls.Done()
	p := at.pack
	h := packHeader{kind: packDead, offset: at.offset(), size: int64(at.size)}
	err = s.with(p, f, func(f vfs.File) error {
		p.marks.Lock()
		defer p.marks.Unlock()
		return s.mark(p, f, &h)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.forget(shard, name, at)
	}
	last := s.current == p && p.users == 1 && s.e.space.low()
	if last { // what is free of it is of more use to others
		s.current, p.sealed = nil, true
	}
	if p.live > 0 && (last || s.crowded(p)) {
		s.mu.Unlock()
		if err := s.with(p, nil, func(f vfs.File) error { return s.punch(p, f) }); err != nil {
			s.e.cfg.Warn(fmt.Errorf("giving back space of %s: %w", p.path, err))
		}
		s.mu.Lock()
	}
	s.release(p)
	return true, err
}

// mark writes over the header of an object that is there. A sync that is to come makes it durable.
func (s *packs) mark(p *pack, f vfs.File, h *packHeader) error {
	var b [packHeaderSize]byte
	h.encode(b[:], p.salt)
	_, err := f.WriteAt(b[:], h.offset)
	return err
}

// forget takes an object out of the index. The caller holds mu.
func (s *packs) forget(shard, name string, at spot) {
	if s.index[shard][name] != at {
		return // another was faster
	}
	delete(s.index[shard], name)
	n := packedSize(int64(at.size))
	at.pack.live--
	at.pack.bytes -= n
	at.pack.dead += n
}

// crowded reports whether the space of deleted objects is worth giving back: it is more than what is still needed, so that packs take at
// most twice that, and a pack is gone through once each time that what is needed halves; or space is short. The caller holds mu.
func (s *packs) crowded(p *pack) bool {
	if !p.sealed || len(p.inflight) > 0 {
		return false
	}
	return p.dead >= p.size/16 && (p.dead >= p.bytes || s.e.space.low())
}

// punch gives the blocks of deleted objects back. Neighbours become one dead piece with one header, durably before a byte of it
// is gone, so that a deleted object comes back whole or not at all.
func (s *packs) punch(p *pack, f vfs.File) error {
	p.marks.Lock()
	defer p.marks.Unlock()
	s.mu.Lock()
	p.dead = 0
	s.mu.Unlock()
	var dead []packHeader
	end, err := walkPack(f, p, 0, func(h *packHeader) {
		n := len(dead)
		switch {
		case h.kind != packDead:
		case n > 0 && dead[n-1].next() == h.offset:
			dead[n-1].size = h.next() - dead[n-1].offset - packHeaderSize
			dead[n-1].crc = 1
		default:
			dead = append(dead, packHeader{kind: packDead, offset: h.offset, size: h.size})
		}
	})
	if err != nil {
		return err
	}
	for i := range dead {
		if h := &dead[i]; h.crc != 0 {
			h.crc = 0
			if err := s.mark(p, f, h); err != nil {
				return err
			}
		}
	}
	if err := p.flush(f); err != nil {
		return err
	}
	if s.ends(p, end) {
		dead = append(dead, packHeader{offset: end, size: p.size - end - packHeaderSize})
	}
	for i := range dead {
		from := (dead[i].offset + packHeaderSize + packBlock - 1) &^ (packBlock - 1)
		to := dead[i].next() &^ (packBlock - 1)
		if from < to {
			if err := f.Punch(from, to-from); err != nil {
				return err
			}
		}
	}
	return nil
}

// ends reports whether no object is behind an offset of a pack: it is not where damage ended a walk.
func (s *packs) ends(p *pack, off int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return off == p.end && off+packHeaderSize < p.size
}

// list returns names and sizes of the objects of a shard whose names begin with prefix.
func (s *packs) list(shard, prefix string) (names []string, sizes []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, at := range s.index[shard] {
		if at.pack != nil && strings.HasPrefix(name, prefix) {
			names, sizes = append(names, name), append(sizes, int64(at.size))
		}
	}
	return names, sizes
}

// removeShard deletes all objects of a shard, durably.
func (s *packs) removeShard(shard string) error {
	type deleted struct {
		name string
		at   spot
	}
	touched := map[*pack][]deleted{}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return driver.ErrClosed
	}
	s.calls.Add(1)
	defer s.calls.Done()
	for name, at := range s.index[shard] {
		if p := at.pack; p == nil {
			delete(s.index[shard], name) // end will see
		} else {
			if touched[p] == nil {
				p.users++
			}
			touched[p] = append(touched[p], deleted{name, at})
		}
	}
	s.mu.Unlock()
	var faults []error
	for p, objects := range touched {
		s.mu.Lock()
		f := p.file
		s.mu.Unlock()
		err := s.with(p, f, func(f vfs.File) error {
			p.marks.Lock()
			defer p.marks.Unlock()
			for _, o := range objects {
				if err := s.mark(p, f, &packHeader{kind: packDead, offset: o.at.offset(), size: int64(o.at.size)}); err != nil {
					return err
				}
			}
			return p.flush(f)
		})
		s.mu.Lock()
		if err == nil {
			for _, o := range objects {
				s.forget(shard, o.name, o.at)
			}
		}
		s.release(p)
		s.mu.Unlock()
		faults = append(faults, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.index[shard]) == 0 {
		delete(s.index, shard)
	}
	return errors.Join(faults...)
}

// close waits for what is being written and closes the files. The next who opens the directory must not meet a late write.
func (s *packs) close() {
	if s.e == nil {
		return
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		s.finish(p)
	}
	s.current = nil
	s.files.close()
}
