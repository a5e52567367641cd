package disklog

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

const (
	shardsDir    = "shards"
	temporaryDir = "tmp"
	idFormat     = "kvstore-disk 2" // the number is the version of the layout
	idBefore     = "kvstore-disk 1" // without packs; it becomes idFormat before its first pack, which older releases would not find
)

// makeDirs makes the data directory, and the folders above it as far as they are missing.
func (e *Engine) makeDirs() error {
	if err := makeAll(e.fs, e.dir); err != nil {
		return err
	}
	return e.fs.SyncDir(e.dir)
}

// makeAll makes a directory and those above it, durably.
func makeAll(f vfs.FS, dir string) error {
	_, isDir, err := f.Stat(dir)
	switch {
	case err == nil && isDir:
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeAll(f, parent); err != nil {
		return err
	}
	if err := f.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.SyncDir(parent)
}

// readID reads the directory's id, or makes one if the directory is new. Every checksum of the log depends on it.
func (e *Engine) readID() error {
	for _, d := range []string{segmentsDir, shardsDir, packsDir, temporaryDir} {
		if err := makeAll(e.fs, e.path(d)); err != nil {
			return err
		}
	}
	name := e.path("ID")
	b, err := readFile(e.fs, name, 256)
	if errors.Is(err, fs.ErrNotExist) {
		used, err := e.fs.ReadDir(e.path(segmentsDir))
		if err != nil {
			return err
		}
		if len(used) > 0 {
			return fmt.Errorf("%w: %s is missing, and there are log segments", driver.ErrCorrupt, name)
		}
		_, _ = rand.Read(e.id[:]) // never fails
		return e.writeID()
	}
	if err != nil {
		return err
	}
	fields := strings.Fields(string(b))
	if len(fields) == 4 && fields[0]+" " == idFormat[:len(fields[0])+1] && fields[0]+" "+fields[1] != idFormat && fields[0]+" "+fields[1] != idBefore {
		return fmt.Errorf("%s: layout version %s, this release knows %q", name, fields[1], idFormat)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	body, sum, ok := cutLast(line, " ")
	old := strings.HasPrefix(body, idBefore+" ")
	if !ok || sum != fmt.Sprintf("%08x", crc32.Checksum([]byte(body), castagnoli)) || !old && !strings.HasPrefix(body, idFormat+" ") {
		return fmt.Errorf("%w: %s", driver.ErrCorrupt, name)
	}
	_, digits, _ := cutLast(body, " ")
	id, err := hex.DecodeString(digits)
	if err != nil || len(id) != len(e.id) {
		return fmt.Errorf("%w: %s", driver.ErrCorrupt, name)
	}
	copy(e.id[:], id)
	e.packs.absent = old
	return nil
}

// writeID says that the directory is of this release's layout.
func (e *Engine) writeID() error {
	line := idFormat + " " + hex.EncodeToString(e.id[:])
	line = fmt.Sprintf("%s %08x\n", line, crc32.Checksum([]byte(line), castagnoli))
	return writeFile(e.fs, e.path(temporaryDir, "id"), e.path("ID"), []byte(line))
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// cleanTemporary removes files that were never finished.
func (e *Engine) cleanTemporary() error {
	names, err := e.fs.ReadDir(e.path(temporaryDir))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := e.fs.Remove(e.path(temporaryDir, n.Name)); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads a whole file of at most limit bytes.
func readFile(fsys vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", driver.ErrCorrupt, name, size, limit)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// writeFile replaces a file with b: written beside, synced, renamed, the folder synced.
func writeFile(fsys vfs.FS, temporary, name string, b []byte) error {
	f, err := fsys.Open(temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return noSpace(err)
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = fsys.Remove(temporary)
		return noSpace(err)
	}
	if err := fsys.Rename(temporary, name); err != nil {
		_ = fsys.Remove(temporary)
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}
