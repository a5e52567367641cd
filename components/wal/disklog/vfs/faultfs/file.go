package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// file is an open file.
type file struct {
	fs   *FS
	name string // as it was opened
	node *inode
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin(Read, f.name); err != nil {
		return 0, err
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin(Write, f.name); err != nil {
		var short *ShortWrite
		if !errors.As(err, &short) {
			return 0, err
		}
		n := min(short.N, len(p))
		n = max(n-int((off+int64(n))%sector), 0)
		if err := f.write(p[:n], off); err != nil {
			return 0, err
		}
		return n, &fs.PathError{Op: "write", Path: f.name, Err: short.Err}
	}
	if err := f.write(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *file) write(p []byte, off int64) error {
	if err := f.grow(off + int64(len(p))); err != nil {
		return err
	}
	if err := f.fill(off, off+int64(len(p))); err != nil {
		return err
	}
	copy(f.node.data[off:], p)
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		f.mark(int(s))
	}
	return nil
}

// fill gives holes their blocks back, if the disk has the room.
func (f *file) fill(from, to int64) error {
	n := f.node
	if len(n.holes) == 0 {
		return nil
	}
	for s := int(from / sector); int64(s)*sector < to; s++ {
		if !n.holes[s] {
			continue
		}
		if f.fs.used()+sector > f.fs.capacity {
			return &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
		}
		delete(n.holes, s)
	}
	return nil
}

// grow makes the file at least size bytes long, if the disk has the room.
func (f *file) grow(size int64) error {
	more := size - int64(len(f.node.data))
	if more <= 0 {
		return nil
	}
	if f.fs.used()+more > f.fs.capacity {
		return &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.node.data = append(f.node.data, make([]byte, more)...)
	return nil
}

func (f *file) mark(s int) {
	if d := s + 1 - len(f.node.dirty); d > 0 {
		f.node.dirty = append(f.node.dirty, make([]bool, d)...)
	}
	f.node.dirty[s] = true
}

func (f *file) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.node
	if err := f.fs.begin(Sync, f.name); err != nil {
		if !errors.Is(err, ErrPowerCut) {
			clear(n.dirty) // the kernel takes the pages for clean now
		}
		return err
	}
	if d := len(n.data) - len(n.synced); d > 0 {
		n.synced = append(n.synced, make([]byte, d)...)
	}
	n.synced = n.synced[:len(n.data)]
	for s, dirty := range n.dirty {
		if at := s * sector; dirty && at < len(n.data) {
			copy(n.synced[at:], n.data[at:min(at+sector, len(n.data))])
		}
	}
	clear(n.dirty)
	return nil
}

func (f *file) Allocate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin(Allocate, f.name); err != nil {
		return err
	}
	if err := f.fill(0, size); err != nil {
		return err
	}
	return f.grow(size)
}

func (f *file) Punch(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin(Punch, f.name); err != nil {
		return err
	}
	end := min(off+n, int64(len(f.node.data)))
	for ; off < end; off += sector {
		clear(f.node.data[off:min(off+sector, end)])
		f.mark(int(off / sector))
		f.node.punch(int(off / sector))
	}
	return nil
}

func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.begin(Stat, f.name); err != nil {
		return 0, err
	}
	return int64(len(f.node.data)), nil
}

// Close implements vfs.File.
func (f *file) Close() error { return nil }
