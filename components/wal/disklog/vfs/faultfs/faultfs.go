// Package faultfs is a file system in memory that can fail any operation and lose power. It is harsher than real ones in
// what it may do, and does nothing that real ones do not:
//
//   - Power is cut: of what was written and not synced, each sector of 512 bytes is kept or lost on its own. Names changed and
//     not synced are kept up to some point in time, as by a journal.
//   - A sync that fails drops what it was to write, which can still be read until the power is cut; the next sync succeeds.
//   - A write can fail half-way.
//
// It is for tests of package disklog; it knows no permissions, links or times.
package faultfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"kvstore/components/wal/disklog/vfs"
)

const sector = 512

// ErrPowerCut is the error of every operation after the power was cut.
var ErrPowerCut = errors.New("power is cut")

// Op is a kind of operation.
type Op string

// Operations, as a Hook sees them.
const (
	Open     Op = "open"
	Read     Op = "read"
	Write    Op = "write"
	Sync     Op = "sync"
	Allocate Op = "allocate"
	Punch    Op = "punch"
	Rename   Op = "rename"
	Remove   Op = "remove"
	Mkdir    Op = "mkdir"
	ReadDir  Op = "readdir"
	Stat     Op = "stat"
	SyncDir  Op = "syncdir"
	Space    Op = "space"
)

// Changes reports whether an operation changes what is stored.
func (o Op) Changes() bool {
	switch o {
	case Write, Sync, Allocate, Punch, Rename, Remove, Mkdir, SyncDir:
		return true
	}
	return false
}

// ShortWrite as a Hook's answer to a write has N bytes of it written before it fails with Err. N is lowered to the end of
// a sector: kernels copy whole pages.
type ShortWrite struct {
	N   int
	Err error
}

func (e *ShortWrite) Error() string { return fmt.Sprintf("short write: %v", e.Err) }

// Unwrap returns Err.
func (e *ShortWrite) Unwrap() error { return e.Err }

// Hook is asked before each operation; an error makes the operation fail with it. It must not call the file system.
type Hook func(op Op, name string) error

// FS is such a file system. It begins with the folder "/".
type FS struct {
	mu       sync.Mutex // guards everything, also inodes
	names    map[string]*inode
	durable  map[string]*inode
	journal  []change // what durable lacks, oldest first
	hook     Hook
	cut      bool
	capacity int64
	locked   map[string]bool
}

// inode is a file or a folder.
type inode struct {
	dir    bool
	data   []byte       // what is read
	synced []byte       // what the disk has
	dirty  []bool       // by sector of data: the next sync writes it
	holes  map[int]bool // sectors of data without a place on the disk
}

func (n *inode) punch(s int) {
	if n.holes == nil {
		n.holes = map[int]bool{}
	}
	n.holes[s] = true
}

// change is one change of names.
type change struct {
	remove string // "" = none
	add    string // "" = none
	node   *inode // of add
}

var _ vfs.FS = (*FS)(nil)

// New returns an empty file system of a capacity in bytes.
func New(capacity int64) *FS {
	root := map[string]*inode{"/": {dir: true}}
	return &FS{names: root, durable: maps.Clone(root), capacity: capacity, locked: map[string]bool{}}
}

// SetHook has h asked from now on; nil for none.
func (f *FS) SetHook(h Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = h
}

// SetCapacity changes the size of the disk.
func (f *FS) SetCapacity(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = n
}

// CutPower makes every operation from now on fail.
func (f *FS) CutPower() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = true
}

// AfterCut returns the disk as it is found when the power is back: everything synced, and a part of the rest that depends
// on rng. f is not changed.
func (f *FS) AfterCut(rng *rand.Rand) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := New(f.capacity)
	kept := 0
	if len(f.journal) > 0 {
		kept = rng.IntN(len(f.journal) + 1)
	}
	names := maps.Clone(f.durable)
	for _, c := range f.journal[:kept] {
		c.apply(names)
	}
	share := []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	copies := map[*inode]*inode{}
	for _, name := range slices.Sorted(maps.Keys(names)) { // sorted, so that a seed means one outcome
		node := names[name]
		if copies[node] == nil {
			copies[node] = node.afterCut(rng, share)
		}
		out.names[name] = copies[node]
	}
	out.durable = maps.Clone(out.names)
	return out
}

func (n *inode) afterCut(rng *rand.Rand, share float64) *inode {
	out := &inode{dir: n.dir}
	if n.dir {
		return out
	}
	size := len(n.synced)
	if rng.Float64() < share {
		size = len(n.data)
	}
	out.synced = make([]byte, size)
	copy(out.synced, n.synced)
	for s, dirty := range n.dirty {
		if !dirty {
			continue
		}
		if at := s * sector; rng.Float64() < share && at < size && at < len(n.data) {
			copy(out.synced[at:min(at+sector, size)], n.data[at:])
		}
	}
	out.data = slices.Clone(out.synced)
	return out
}

// Clone returns a copy of the disk as the page cache shows it, as after the death of the process.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := New(f.capacity)
	copies := map[*inode]*inode{}
	dup := func(n *inode) *inode {
		if copies[n] == nil {
			copies[n] = &inode{dir: n.dir, data: slices.Clone(n.data), synced: slices.Clone(n.synced), dirty: slices.Clone(n.dirty), holes: maps.Clone(n.holes)}
		}
		return copies[n]
	}
	for name, n := range f.names {
		out.names[name] = dup(n)
	}
	out.durable = map[string]*inode{}
	for name, n := range f.durable {
		out.durable[name] = dup(n)
	}
	for _, c := range f.journal {
		if c.node != nil {
			c.node = dup(c.node)
		}
		out.journal = append(out.journal, c)
	}
	return out
}

// Bytes returns a copy of a file.
func (f *FS) Bytes(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.names[clean(name)]; n != nil {
		return slices.Clone(n.data)
	}
	return nil
}

// SetBytes replaces what is stored of a file that exists, durably.
func (f *FS) SetBytes(name string, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.names[clean(name)]
	n.data, n.synced, n.dirty = slices.Clone(b), slices.Clone(b), nil
}

// Files returns the names of all files, sorted.
func (f *FS) Files() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for name, n := range f.names {
		if !n.dir {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func clean(name string) string {
	if !filepath.IsAbs(name) {
		name = "/" + name
	}
	return filepath.Clean(name)
}

// begin asks the hook. The caller holds mu.
func (f *FS) begin(op Op, name string) error {
	if f.cut {
		return ErrPowerCut
	}
	if f.hook != nil {
		if err := f.hook(op, name); err != nil {
			var short *ShortWrite
			if errors.As(err, &short) {
				return err
			}
			return &fs.PathError{Op: string(op), Path: name, Err: err}
		}
		if f.cut { // by the hook
			return ErrPowerCut
		}
	}
	return nil
}

// CutFromHook is CutPower for a Hook, which runs inside an operation.
func (f *FS) CutFromHook() { f.cut = true }

func (c change) apply(names map[string]*inode) {
	if c.remove != "" {
		delete(names, c.remove)
	}
	if c.add != "" {
		names[c.add] = c.node
	}
}

func (f *FS) change(c change) {
	c.apply(f.names)
	f.journal = append(f.journal, c)
}

func (f *FS) used() (n int64) {
	seen := map[*inode]bool{}
	for _, node := range f.names {
		if !seen[node] {
			seen[node] = true
			n += int64(len(node.data)) - sector*int64(len(node.holes))
		}
	}
	return n
}

// Open implements vfs.FS.
func (f *FS) Open(name string, flag int) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(Open, name); err != nil {
		return nil, err
	}
	n := f.names[name]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	case n == nil:
		if p := f.names[filepath.Dir(name)]; p == nil || !p.dir {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
		}
		n = &inode{}
		f.change(change{add: name, node: n})
	case n.dir:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EEXIST}
	case flag&os.O_TRUNC != 0:
		n.data, n.dirty = nil, nil
	}
	return &file{fs: f, name: name, node: n}, nil
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldName, newName string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	oldName, newName = clean(oldName), clean(newName)
	if err := f.begin(Rename, newName); err != nil {
		return err
	}
	n := f.names[oldName]
	if p := f.names[filepath.Dir(newName)]; n == nil || p == nil {
		return &fs.PathError{Op: "rename", Path: oldName, Err: syscall.ENOENT}
	}
	f.change(change{remove: oldName, add: newName, node: n})
	return nil
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(Remove, name); err != nil {
		return err
	}
	if f.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	for other := range f.names {
		if strings.HasPrefix(other, name+"/") {
			return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
		}
	}
	f.change(change{remove: name})
	return nil
}

// Mkdir implements vfs.FS.
func (f *FS) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(Mkdir, name); err != nil {
		return err
	}
	if f.names[name] != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EEXIST}
	}
	if p := f.names[filepath.Dir(name)]; p == nil || !p.dir {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOENT}
	}
	f.change(change{add: name, node: &inode{dir: true}})
	return nil
}

// ReadDir implements vfs.FS.
func (f *FS) ReadDir(name string) ([]vfs.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(ReadDir, name); err != nil {
		return nil, err
	}
	if n := f.names[name]; n == nil || !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOENT}
	}
	var out []vfs.Entry
	for other, n := range f.names {
		if other != "/" && filepath.Dir(other) == name {
			out = append(out, vfs.Entry{Name: filepath.Base(other), Dir: n.dir})
		}
	}
	slices.SortFunc(out, func(a, b vfs.Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Stat implements vfs.FS.
func (f *FS) Stat(name string) (int64, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(Stat, name); err != nil {
		return 0, false, err
	}
	n := f.names[name]
	if n == nil {
		return 0, false, &fs.PathError{Op: "stat", Path: name, Err: syscall.ENOENT}
	}
	return int64(len(n.data)), n.dir, nil
}

// SyncDir implements vfs.FS.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if err := f.begin(SyncDir, name); err != nil {
		return err
	}
	if n := f.names[name]; n == nil || !n.dir {
		return &fs.PathError{Op: "syncdir", Path: name, Err: syscall.ENOENT}
	}
	last := -1
	for i, c := range f.journal {
		if (c.add != "" && filepath.Dir(c.add) == name) || (c.remove != "" && filepath.Dir(c.remove) == name) {
			last = i
		}
	}
	for _, c := range f.journal[:last+1] {
		c.apply(f.durable)
	}
	f.journal = f.journal[last+1:]
	return nil
}

// Space implements vfs.FS.
func (f *FS) Space(name string) (free, total int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(Space, clean(name)); err != nil {
		return 0, 0, err
	}
	return max(f.capacity-f.used(), 0), f.capacity, nil
}

// Lock implements vfs.FS.
func (f *FS) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name = clean(name)
	if f.locked[name] {
		return nil, &vfs.LockedError{Name: name, PID: fmt.Sprint(os.Getpid())}
	}
	f.locked[name] = true
	return unlock{f, name}, nil
}

type unlock struct {
	fs   *FS
	name string
}

func (u unlock) Close() error {
	u.fs.mu.Lock()
	defer u.fs.mu.Unlock()
	delete(u.fs.locked, u.name)
	return nil
}
