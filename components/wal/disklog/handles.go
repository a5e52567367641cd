package disklog

import (
	"container/list"
	"os"
	"strings"
	"sync"

	"kvstore/components/wal/disklog/vfs"
)

// handle is one file of objects that is open.
type handle struct {
	path  string
	file  vfs.File
	users int           // readers, and one for being in the set; guarded by handles.mu
	place *list.Element // in handles.recent; nil when it is not in the set
}

// handles is a bounded set of open files, least recently used out first. A file in use outlives its place in the set.
type handles struct {
	fs    vfs.FS
	limit int
	flag  int // files are opened with

	mu     sync.Mutex // guards what follows
	forgot int        // calls of forget: a file that was opened meanwhile is perhaps not there any more
	byPath map[string]*handle
	recent *list.List     // of *handle, the most recently used in front
	apart  map[string]int // handles by path that are in use and not in the set
}

func (s *handles) init(f vfs.FS, limit, flag int) {
	s.fs, s.limit, s.flag = f, limit, flag
	s.byPath = make(map[string]*handle)
	s.recent = list.New()
	s.apart = make(map[string]int)
}

// get returns an open file; put gives it back.
func (s *handles) get(path string) (*handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var f vfs.File
	for forgot := -1; forgot != s.forgot; {
		if f != nil {
			_ = f.Close()
		}
		if h := s.byPath[path]; h != nil {
			h.users++
			s.recent.MoveToFront(h.place)
			return h, nil
		}
		forgot = s.forgot
		s.mu.Unlock()
		var err error
		f, err = s.fs.Open(path, s.flag)
		s.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	if h := s.byPath[path]; h != nil { // another was faster
		_ = f.Close()
		h.users++
		return h, nil
	}
	h := &handle{path: path, file: f, users: 2}
	h.place = s.recent.PushFront(h)
	s.byPath[path] = h
	for s.recent.Len() > s.limit {
		s.evict(s.recent.Back().Value.(*handle))
	}
	return h, nil
}

func (s *handles) put(h *handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(h)
}

// drop gives up one use. The caller holds mu.
func (s *handles) drop(h *handle) {
	if h.users--; h.users > 0 {
		return
	}
	_ = h.file.Close() // read, or synced where it matters
	if s.apart[h.path]--; s.apart[h.path] == 0 {
		delete(s.apart, h.path)
	}
}

// evict takes h out of the set. The caller holds mu.
func (s *handles) evict(h *handle) {
	s.recent.Remove(h.place)
	delete(s.byPath, h.path)
	s.apart[h.path]++
	s.drop(h)
}

// forget takes a file out of the set and reports whether nobody reads it. With its name gone before, nobody will.
func (s *handles) forget(path string) (unread bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot++
	if h := s.byPath[path]; h != nil {
		s.evict(h)
	}
	return s.apart[path] == 0
}

func (s *handles) forgetBelow(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, h := range s.byPath {
		if strings.HasPrefix(path, dir+string(os.PathSeparator)) {
			s.evict(h)
		}
	}
}

func (s *handles) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.byPath {
		s.evict(h)
	}
}
