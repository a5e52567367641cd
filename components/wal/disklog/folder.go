package disklog

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"kvstore/components/wal/disklog/vfs"
)

// groupSync runs one sync at a time. Callers that come while one is running share the next.
type groupSync struct {
	running sync.Mutex // held by the one that is running

	mu   sync.Mutex  // guards next
	next *syncWaiter // the sync that is to begin; its first caller runs it
}

// syncWaiter is one sync to come, for all who came before it began.
type syncWaiter struct {
	done chan struct{} // closed when it has ended
	err  error         // valid after done
}

// do returns when a run of sync that began after the call has ended, with its error.
func (g *groupSync) do(run func() error) error {
	g.mu.Lock()
	if w := g.next; w != nil {
		g.mu.Unlock()
		<-w.done
		return w.err
	}
	w := &syncWaiter{done: make(chan struct{})}
	g.next = w
	g.mu.Unlock()

	g.running.Lock() // the sync before this one
	g.mu.Lock()
	g.next = nil // who comes from here on takes the next
	g.mu.Unlock()
	w.err = run()
	g.running.Unlock()
	close(w.done)
	return w.err
}

// folderSyncs makes folders and their names durable.
type folderSyncs struct {
	fs vfs.FS

	mu    sync.Mutex            // guards what follows
	made  map[string]bool       // folders known to be there, durably
	syncs map[string]*groupSync // of each folder
}

func (s *folderSyncs) init(f vfs.FS) {
	s.fs = f
	s.made = make(map[string]bool)
	s.syncs = make(map[string]*groupSync)
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
	g := s.syncs[dir]
	if g == nil {
		g = new(groupSync)
		s.syncs[dir] = g
	}
	s.mu.Unlock()
	return g.do(func() error { return s.fs.SyncDir(dir) })
}

func (s *folderSyncs) forgetBelow(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.made {
		if d == dir || strings.HasPrefix(d, dir+string(os.PathSeparator)) {
			delete(s.made, d)
			delete(s.syncs, d) // who waits for one has it
		}
	}
}
