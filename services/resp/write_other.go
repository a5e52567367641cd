//go:build !unix

package resp

import "errors"

const canWriteOnce = false

var errNoRoom = errors.ErrUnsupported

func writeOnce(uintptr, []byte) (int, error) { return 0, errNoRoom }
