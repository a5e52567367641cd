package authn

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxFile bounds each file that is read.
	MaxFile = 8 << 20
	// Every is how often Watch looks at the files. A change is taken once two looks have found the same, so that nobody's
	// half-written file counts: within a second.
	Every = 500 * time.Millisecond
	// tellAgain is how often Watch repeats that files are bad.
	tellAgain = 10 * time.Minute
)

// Events are what Watch has to say; a nil one is not told. They are called from its goroutine.
type Events struct {
	// Reloaded: what the files hold is in force now.
	Reloaded func(files []string)
	// Kept: the files changed and cannot be used; what was in force before stays. Told again every ten minutes while it is so.
	Kept func(files []string, err error)
	// Expiring: the certificate in file is about to expire, or has (left is not positive). Told when a fifth of its life is left,
	// and then more and more often.
	Expiring func(file string, notAfter time.Time, left time.Duration)
}

// source is what some files say together, as of their last good state. Files are read whole and compared by content: it does not
// matter how they are replaced, by a rename, through symbolic links as Kubernetes does, or in place.
type source[T any] struct {
	files []string
	parse func(contents [][]byte) (*T, error)
	now   atomic.Pointer[T]

	mu       sync.Mutex // guards the following; held for a whole look
	inForce  [32]byte   // digest of the contents that now comes from
	lastLook [32]byte   // digest of what the last look found, errors included
	told     time.Time  // when bad contents were told last
	toldOf   [32]byte   // and which
}

func open[T any](files []string, parse func([][]byte) (*T, error)) (*source[T], error) {
	s := &source[T]{files: files, parse: parse}
	if _, err := s.reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// current is the last good state.
func (s *source[T]) current() *T { return s.now.Load() }

// reload takes what the files hold now. After an error the state is what it was.
func (s *source[T]) reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	contents, digest, err := s.read()
	if err != nil {
		return false, err
	}
	return s.take(contents, digest)
}

// take puts contents in force; mu is held.
func (s *source[T]) take(contents [][]byte, digest [32]byte) (changed bool, err error) {
	if digest == s.inForce && s.now.Load() != nil {
		return false, nil
	}
	state, err := s.parse(contents)
	if err != nil {
		return false, err
	}
	s.now.Store(state)
	s.inForce = digest
	return true, nil
}

// read reads all files; the digest is of their contents, or of the error.
func (s *source[T]) read() (contents [][]byte, digest [32]byte, err error) {
	h := sha256.New()
	for _, name := range s.files {
		data, rerr := readFile(name)
		if rerr != nil {
			return nil, sha256.Sum256([]byte(rerr.Error())), rerr
		}
		contents = append(contents, data)
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(data)))) // never fails
		_, _ = h.Write(data)
	}
	return contents, [32]byte(h.Sum(nil)), nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fmt.Errorf("%s has more than %d bytes", name, MaxFile)
	}
	return data, err
}

// look is one look of Watch: contents count once two looks in succession have found them.
func (s *source[T]) look(now time.Time, ev Events) {
	s.mu.Lock()
	defer s.mu.Unlock()
	contents, digest, err := s.read()
	settled := digest == s.lastLook
	s.lastLook = digest
	switch {
	case digest == s.inForce:
		s.toldOf = [32]byte{}
		return
	case !settled:
		return
	case digest == s.toldOf && now.Sub(s.told) < tellAgain:
		return
	}
	changed := false
	if err == nil {
		changed, err = s.take(contents, digest)
	}
	if err != nil {
		s.told, s.toldOf = now, digest
		if ev.Kept != nil {
			ev.Kept(s.files, err)
		}
		return
	}
	if changed && ev.Reloaded != nil {
		ev.Reloaded(s.files)
	}
}

// watch looks until ctx ends; also is called after each look.
func (s *source[T]) watch(ctx context.Context, ev Events, also func(now time.Time)) {
	ticks := time.NewTicker(Every)
	defer ticks.Stop()
	for {
		now := time.Now()
		s.look(now, ev)
		if also != nil {
			also(now)
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}
