//go:build unix

package resp

import (
	"errors"

	"golang.org/x/sys/unix"
)

const canWriteOnce = true

// errNoRoom is why a write that does not wait wrote nothing.
const errNoRoom = unix.EAGAIN

// writeOnce writes what the kernel has room for now.
func writeOnce(fd uintptr, b []byte) (int, error) {
	for {
		n, err := unix.Write(int(fd), b)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}
