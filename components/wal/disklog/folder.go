package disklog

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"kvstore/components/wal/disklog/vfs"
)

// folderSyncs makes folders and their names durable. Callers that come while a folder is being synced share the next
// sync of it.
type folderSyncs struct {
	fs vfs.FS

	mu    sync.Mutex               // guards what follows
	made  map[string]bool          // folders known to be there, durably
	under map[string]*folderWaiter // the sync that is to begin next; its first caller runs it
	locks map[string]*sync.Mutex   // one sync of a folder at a time
}

// folderWaiter is one sync to come, for all who came before it began.
type folderWaiter struct {
	done chan struct{} // closed when it has ended
	err  error         // valid after done
}

func (s *folderSyncs) init(f vfs.FS) {
	s.fs = f
	s.made = make(map[string]bool)
	s.under = make(map[string]*folderWaiter)
	s.locks = make(map[string]*sync.Mutex)
}

// make makes a folder and those above it.
func (s *folderSyncs) make(dir string) error {
	s.mu.Lock()
	known := s.made[dir]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := makeAll(s.fs, dir); err != nil {
		return err
	}
	// It may have been there without being durable.
	if err := s.fs.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	s.mu.Lock()
	s.made[dir] = true
	s.mu.Unlock()
	return nil
}

// sync makes the names in a folder durable that were there when it was called.
func (s *folderSyncs) sync(dir string) error {
	s.mu.Lock()
	if w := s.under[dir]; w != nil {
		s.mu.Unlock()
		<-w.done
		return w.err
	}
	w := &folderWaiter{done: make(chan struct{})}
	s.under[dir] = w
	lock := s.locks[dir]
	if lock == nil {
		lock = new(sync.Mutex)
		s.locks[dir] = lock
	}
	s.mu.Unlock()

	lock.Lock() // the sync before this one
	s.mu.Lock()
	delete(s.under, dir) // who comes from here on takes the next
	s.mu.Unlock()
	w.err = s.fs.SyncDir(dir)
	lock.Unlock()
	close(w.done)
	return w.err
}

func (s *folderSyncs) forgetBelow(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.made {
		if d == dir || strings.HasPrefix(d, dir+string(os.PathSeparator)) {
			delete(s.made, d)
			if s.under[d] == nil {
				delete(s.locks, d)
			}
		}
	}
}
