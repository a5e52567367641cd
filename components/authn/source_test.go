package authn

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// looker drives the looks of a source by hand.
type looker struct {
	t              *testing.T
	src            *source[string]
	now            time.Time
	reloaded, kept int
	lastErr        error
}

func newLooker(t *testing.T, files ...string) *looker {
	src, err := open(files, func(c [][]byte) (*string, error) {
		var all string
		for _, part := range c {
			all += string(part)
		}
		if strings.Contains(all, "bad") {
			return nil, errors.New("it is bad: " + all)
		}
		return &all, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return &looker{t: t, src: src, now: time.Unix(1e9, 0)}
}

// look looks once, half a second after the last time, and wants a state and the numbers of events so far.
func (l *looker) look(want string, reloaded, kept int) {
	l.t.Helper()
	l.now = l.now.Add(Every)
	l.src.look(l.now, Events{
		Reloaded: func([]string) { l.reloaded++ },
		Kept:     func(_ []string, err error) { l.kept++; l.lastErr = err },
	})
	if got := *l.src.current(); got != want || l.reloaded != reloaded || l.kept != kept {
		l.t.Errorf("in force is %q, %d times reloaded, %d times kept; want %q, %d, %d", got, l.reloaded, l.kept, want, reloaded, kept)
	}
}

func TestFilesAreFollowed(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, text string) { // in place
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("x", "one,")
	put("y", "two")
	l := newLooker(t, file("x"), file("y"))
	l.look("one,two", 0, 0)

	put("x", "ONE,")
	l.look("one,two", 0, 0) // may be half of it
	l.look("ONE,two", 1, 0)
	l.look("ONE,two", 1, 0)

	write(t, file("y"), "TWO") // by a rename
	l.look("ONE,two", 1, 0)
	l.look("ONE,TWO", 2, 0)

	put("x", "")
	l.look("ONE,TWO", 2, 0)
	put("x", "third,") // the empty file was the beginning of this one: it never counted
	l.look("ONE,TWO", 2, 0)
	l.look("third,TWO", 3, 0)

	put("y", "bad")
	l.look("third,TWO", 3, 0)
	for range 3 {
		l.look("third,TWO", 3, 1) // told once
	}
	l.now = l.now.Add(tellAgain)
	l.look("third,TWO", 3, 2)
	put("y", "TWO") // as it was
	l.look("third,TWO", 3, 2)

	if err := os.Remove(file("x")); err != nil {
		t.Fatal(err)
	}
	l.look("third,TWO", 3, 2)
	l.look("third,TWO", 3, 3)
	if !errors.Is(l.lastErr, os.ErrNotExist) {
		t.Errorf("a file that is gone: %v", l.lastErr)
	}
	put("x", "again,")
	l.look("third,TWO", 3, 3)
	l.look("again,TWO", 4, 3)
}

// TestKubernetesSecrets: files are links to ..data/NAME, and ..data is a link that is replaced.
func TestKubernetesSecrets(t *testing.T) {
	dir := t.TempDir()
	version := func(name, x, y string) {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o700), os.WriteFile(filepath.Join(dir, name, "x"), []byte(x), 0o600),
			os.WriteFile(filepath.Join(dir, name, "y"), []byte(y), 0o600), os.Symlink(name, filepath.Join(dir, "..new")),
			os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	version("..v1", "a", "b")
	for _, name := range []string{"x", "y"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	l := newLooker(t, filepath.Join(dir, "x"), filepath.Join(dir, "y"))
	l.look("ab", 0, 0)
	version("..v2", "A", "B")
	l.look("ab", 0, 0)
	l.look("AB", 1, 0)
	if err := os.RemoveAll(filepath.Join(dir, "..v1")); err != nil {
		t.Fatal(err)
	}
	l.look("AB", 1, 0)
}

func TestFilesAreBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, MaxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTokens(name); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
}
