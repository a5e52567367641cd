package disklog

import (
	"fmt"
	"sync"
	"time"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// spaceMaxAge is how old a look at the free space may be. Space freed brings writes back within it.
const spaceMaxAge = 100 * time.Millisecond

// gauge knows how much space is free. It asks the file system at most every spaceMaxAge, and whenever what was taken
// since the last look could have used up the rest.
type gauge struct {
	fs         vfs.FS
	dir        string
	configured int64            // Config.Reserve
	now        func() time.Time // time.Now, but for tests

	mu      sync.Mutex // guards what follows
	looked  time.Time
	free    int64
	reserve int64
	taken   int64 // bytes taken since looked
}

// read returns the free space and the reserve. It is an error when the file system cannot say.
func (g *gauge) read() (free, reserve int64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.readLocked(0)
}

func (g *gauge) readLocked(need int64) (free, reserve int64, err error) {
	fresh := !g.looked.IsZero() && g.now().Sub(g.looked) < spaceMaxAge
	if !fresh || (g.taken > 0 && g.free-g.taken-need < g.reserve) {
		free, total, err := g.fs.Space(g.dir)
		if err != nil {
			return 0, 0, fmt.Errorf("asking for free space: %w", err)
		}
		g.free, g.taken, g.looked = free, 0, g.now()
		switch {
		case g.configured > 0:
			g.reserve = g.configured
		case g.configured == 0:
			g.reserve = max(defaultReserve, total/100)
		}
	}
	return g.free - g.taken, g.reserve, nil
}

// take claims n bytes, or says ErrNoSpace when less than share of the reserve would be left. Share 1 is for what users
// write, less for what makes room (checkpoints, manifests).
func (g *gauge) take(n int64, share float64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	free, reserve, err := g.readLocked(n)
	if err != nil {
		return fmt.Errorf("%w: %w", driver.ErrRefused, err)
	}
	if left := free - n; left < int64(float64(reserve)*share) {
		return fmt.Errorf("%w: %d bytes free, %d are needed and %d kept in reserve", driver.ErrNoSpace, free, n, int64(float64(reserve)*share))
	}
	g.taken += n
	return nil
}

// low reports whether users' writes stop.
func (g *gauge) low() bool { return g.shortage() != nil }

// shortage is why users' writes stop: an ErrNoSpace that says how much there is, and must be. Nil: they do not.
func (g *gauge) shortage() error {
	if free, reserve, err := g.read(); err == nil && free < reserve {
		return fmt.Errorf("%w: %d bytes are free, less than the reserve of %d", driver.ErrNoSpace, free, reserve)
	}
	return nil
}
