package main

import (
	"errors"
	"os"
	"path/filepath"
)

// replaceFile writes a file so that nobody ever sees half of it, neither now nor after a crash: it is there as it was, or as a whole.
func replaceFile(name string, data []byte, mode os.FileMode) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(name), ".kvctl-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), name)
}
