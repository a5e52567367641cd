package vfs

import "golang.org/x/sys/unix"

func datasync(fd int) error { return unix.Fdatasync(fd) }

func allocate(fd int, size int64) error { return unix.Fallocate(fd, 0, 0, size) }

func punch(fd int, off, n int64) error {
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
