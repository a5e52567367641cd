// Package vfs is the narrow view of a file system that disklog needs, so that tests can fail any operation and cut the
// power below it (package faultfs). It is not a general file system: what the engine does not call is not here.
package vfs

import "io"

// File is one open file. Its methods may be called from many goroutines.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Datasync makes everything written so far durable, and the length if it changed. After an error the unsynced writes
	// may be lost although they can still be read, and a later success says nothing about them (Linux drops dirty pages).
	Datasync() error
	// Allocate makes the file size bytes long with blocks of its own; new bytes read as zeros.
	Allocate(size int64) error
	// Punch gives the blocks of n bytes from offset off back, which then read as zeros; both are multiples of a file system's block. Where the
	// file system cannot do that, nothing happens.
	Punch(off, n int64) error
	// Size is the length in bytes.
	Size() (int64, error)
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	Dir  bool
}

// FS is a file system. Errors are those of package os: errors.Is with fs.ErrNotExist, fs.ErrExist, syscall.ENOSPC works.
type FS interface {
	// Open opens a file with flags of package os, creating it with mode 0600.
	Open(name string, flag int) (File, error)
	// Rename replaces newName. It is durable only after SyncDir of both directories.
	Rename(oldName, newName string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Mkdir makes one directory with mode 0700.
	Mkdir(name string) error
	// ReadDir lists a directory in any order.
	ReadDir(name string) ([]Entry, error)
	// Stat returns the length of a file and whether it is a directory.
	Stat(name string) (size int64, dir bool, err error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Space returns the free bytes (for this user) and the size of the file system that holds name.
	Space(name string) (free, total int64, err error)
	// Lock takes an exclusive lock on a file, which it creates, without waiting, and writes our process id into it. When
	// another holds it the error is a *LockedError.
	Lock(name string) (io.Closer, error)
}

// LockedError says who holds a lock.
type LockedError struct {
	Name string
	PID  string // as the holder wrote it; "unknown" when it did not
}

func (e *LockedError) Error() string {
	return "data directory is in use: " + e.Name + " is locked by process " + e.PID
}
