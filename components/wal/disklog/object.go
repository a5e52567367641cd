package disklog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"kvstore/components/wal/driver"
)

// objectSuffix ends the file name of every object. Object names hold no '.', so an object "a" and a folder of objects
// "a/..." do not meet, nor an object and the manifest.
const objectSuffix = ".o"

// syncEvery is how many bytes of a checkpoint are written before they are synced. One sync of all of it at the end would keep the disk
// busy with tens of megabytes at once, and commits would wait behind them (BenchmarkCheckpointPause).
const syncEvery = 1 << 20

// cutBytes is how many bytes of a file are given back to the file system at once; in stores with small segments it is an eighth of those. The
// blocks of a file that is removed whole are discarded together where the file system is mounted so, as those of clouds' images are, and commits
// would wait behind hundreds of megabytes of that (BenchmarkCheckpointPause).
const cutBytes = 8 << 20

// objects stores objects that do not go into packs as immutable files. A file is written under a temporary name, synced, renamed, and its folder synced; folders
// too are made durably. It is then read through a bounded set of open files.
type objects struct {
	e       *Engine
	counter atomic.Uint64 // names temporary files
	buffers sync.Pool     // *[objectBuffer]byte
	folders folderSyncs
	open    handles
	piece   int64 // longer files are removed in pieces of this length
}

func (o *objects) init(e *Engine) {
	o.e = e
	o.buffers.New = func() any { return new([objectBuffer]byte) }
	o.folders.init(e.fs)
	o.open.init(e.fs, e.cfg.MaxHandles, os.O_RDONLY)
	o.piece = min(cutBytes, max(packBlock, e.cfg.SegmentBytes/8&^(packBlock-1)))
}

func (o *objects) close() {
	if o.e != nil {
		o.open.close()
	}
}

func (o *objects) path(shard, name string) string {
	return o.e.path(shardsDir, shard, filepath.FromSlash(name)+objectSuffix)
}

// temporary returns a new name for a file that is being written.
func (o *objects) temporary() string {
	return o.e.path(temporaryDir, strconv.FormatUint(o.counter.Add(1), 10))
}

// PutObject implements driver.Engine. Value objects are refused when free space is below the reserve. Checkpoints, whose
// names begin with driver.CheckpointPrefix, may use three quarters of it, because only a checkpoint lets the log be trimmed.
func (e *Engine) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	if err := errors.Join(driver.CheckShard(shard), driver.CheckObject(name)); err != nil {
		return err
	}
	if e.isClosed() {
		return driver.ErrClosed
	}
	put := e.objects.put
	if e.packs.takes(name, size) {
		put = e.objects.pack
	}
	if err := put(ctx, shard, name, size, r); err != nil {
		return fmt.Errorf("putting object %s of %s: %w", name, shard, err)
	}
	return nil
}

// pack stores an object in a pack.
func (o *objects) pack(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	if _, _, err := o.e.fs.Stat(o.path(shard, name)); err == nil {
		return fmt.Errorf("%w: it exists", driver.ErrRefused)
	}
	return o.e.packs.put(ctx, shard, name, size, r)
}

// put stores an object as a file.
func (o *objects) put(ctx context.Context, shard, name string, size int64, r io.Reader) (err error) {
	final := o.path(shard, name)
	if _, _, err := o.e.fs.Stat(final); err == nil || o.e.packs.has(shard, name) {
		return fmt.Errorf("%w: it exists", driver.ErrRefused)
	}
	share, every := 1.0, int64(math.MaxInt64)
	if strings.HasPrefix(name, driver.CheckpointPrefix) {
		share, every = checkpointShare, syncEvery
	}
	if err := o.e.space.take(max(size, 0), share); err != nil {
		return err
	}
	temporary := o.temporary()
	f, err := o.e.fs.Open(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return noSpace(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(noSpace(err), ignoreNotExist(o.e.fs.Remove(temporary)))
		}
	}()
	buf := o.buffers.Get().(*[objectBuffer]byte)
	defer o.buffers.Put(buf)
	var off, synced int64
	for {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, f.Close())
		}
		n, readErr := fill(r, buf[:])
		if off+int64(n) > max(size, 0) { // not claimed yet
			if err := o.e.space.take(int64(n), share); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return errors.Join(err, f.Close())
			}
			off += int64(n)
		}
		if off-synced >= every {
			if err := f.Datasync(); err != nil {
				return errors.Join(err, f.Close())
			}
			synced = off
		}
		if readErr == io.EOF { //nolint:errorlint // an EOF that an error wraps is not r's end
			break
		}
		if readErr != nil {
			return errors.Join(readErr, f.Close())
		}
	}
	if size >= 0 && off != size {
		return errors.Join(fmt.Errorf("%w: %d bytes came, %d were announced", driver.ErrRefused, off, size), f.Close())
	}
	if err := errors.Join(f.Datasync(), f.Close()); err != nil {
		return err
	}
	folder := filepath.Dir(final)
	if err := o.folders.make(folder); err != nil {
		return err
	}
	if err := o.e.fs.Rename(temporary, final); err != nil {
		return err
	}
	return o.folders.sync(folder)
}

// fill reads until buf is full or r ends. io.ReadFull would not do: its ErrUnexpectedEOF for a last short piece looks like that of
// a reader that was cut off, and half an object would be kept.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// GetObject implements driver.Engine.
func (e *Engine) GetObject(_ context.Context, shard, name string, off int64, p []byte) error {
	if err := errors.Join(driver.CheckShard(shard), driver.CheckObject(name)); err != nil {
		return err
	}
	if e.isClosed() {
		return driver.ErrClosed
	}
	if found, err := e.packs.get(shard, name, off, p); found {
		if err != nil {
			return fmt.Errorf("reading object %s of %s: %w", name, shard, err)
		}
		return nil
	}
	path := e.objects.path(shard, name)
	h, err := e.objects.open.get(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("object %s of %s: %w", name, shard, driver.ErrNotExist)
		}
		return fmt.Errorf("opening object %s of %s: %w", name, shard, err)
	}
	defer e.objects.open.put(h)
	n, err := h.file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %s ends at %d, bytes %d to %d were asked for", driver.ErrCorrupt, path, off+int64(n), off, off+int64(len(p)))
	}
	return fmt.Errorf("reading object %s of %s: %w", name, shard, err)
}

// DeleteObject implements driver.Engine. A crash soon after may bring the object back.
func (e *Engine) DeleteObject(_ context.Context, shard, name string) error {
	if err := errors.Join(driver.CheckShard(shard), driver.CheckObject(name)); err != nil {
		return err
	}
	if e.isClosed() {
		return driver.ErrClosed
	}
	if found, err := e.packs.remove(shard, name); err != nil {
		return fmt.Errorf("deleting object %s of %s: %w", name, shard, err)
	} else if found {
		return nil
	}
	if err := e.objects.remove(e.objects.path(shard, name)); err != nil {
		return fmt.Errorf("deleting object %s of %s: %w", name, shard, err)
	}
	return nil
}

// remove removes the file of an object, a long one piece by piece (see cutBytes): it first gets a temporary name, durably, so that no crash
// brings back what holes were punched into. While somebody reads the file it goes as a whole, when the last of them has done.
func (o *objects) remove(path string) error {
	size, _, err := o.e.fs.Stat(path)
	if err != nil {
		return ignoreNotExist(err)
	}
	if size <= o.piece {
		o.open.forget(path)
		return ignoreNotExist(o.e.fs.Remove(path))
	}
	doomed := o.temporary()
	if err := o.e.fs.Rename(path, doomed); err != nil {
		return ignoreNotExist(err) // another call was faster
	}
	if o.open.forget(path) {
		err = o.e.fs.SyncDir(filepath.Dir(path))
		if err == nil {
			_ = o.cut(doomed, size) // what is left goes with the name
		}
	}
	return errors.Join(err, o.e.fs.Remove(doomed))
}

// cut gives the blocks of a file back, piece by piece.
func (o *objects) cut(path string, size int64) error {
	f, err := o.e.fs.Open(path, os.O_RDWR)
	if err != nil {
		return err
	}
	for off := int64(0); off < size; off += o.piece {
		if err := errors.Join(f.Punch(off, o.piece), f.Datasync()); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// ListObjects implements driver.Engine.
func (e *Engine) ListObjects(ctx context.Context, shard, prefix string, fn func(name string, size int64) error) error {
	if err := driver.CheckShard(shard); err != nil {
		return err
	}
	names, sizes := e.packs.list(shard, prefix)
	for i, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(name, sizes[i]); err != nil {
			return err
		}
	}
	return e.objects.list(ctx, e.path(shardsDir, shard), "", prefix, fn)
}

func (o *objects) list(ctx context.Context, dir, before, prefix string, fn func(name string, size int64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := o.e.fs.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	for _, n := range entries {
		path := filepath.Join(dir, n.Name)
		if n.Dir {
			// Only folders that lead to the prefix or lie within it.
			below := before + n.Name + "/"
			if !strings.HasPrefix(below, prefix) && !strings.HasPrefix(prefix, below) {
				continue
			}
			if err := o.list(ctx, path, below, prefix, fn); err != nil {
				return err
			}
			continue
		}
		name, ok := strings.CutSuffix(before+n.Name, objectSuffix)
		if !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		size, _, err := o.e.fs.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := fn(name, size); err != nil {
			return err
		}
	}
	return nil
}

// removeShard removes a shard's folder with all in it.
func (o *objects) removeShard(shard string) error {
	if err := o.e.packs.removeShard(shard); err != nil {
		return fmt.Errorf("removing the objects of %s: %w", shard, err)
	}
	dir := o.e.path(shardsDir, shard)
	o.open.forgetBelow(dir)
	o.folders.forgetBelow(dir)
	if err := o.removeAll(dir); err != nil {
		return fmt.Errorf("removing the objects of %s: %w", shard, err)
	}
	return o.e.fs.SyncDir(o.e.path(shardsDir))
}

func (o *objects) removeAll(dir string) error {
	entries, err := o.e.fs.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	for _, n := range entries {
		path := filepath.Join(dir, n.Name)
		if n.Dir {
			err = o.removeAll(path)
		} else {
			err = o.remove(path)
		}
		if err := ignoreNotExist(err); err != nil {
			return err
		}
	}
	return ignoreNotExist(o.e.fs.Remove(dir))
}
