// Package disklog is the log engine of one machine (driver.Engine "disk"): the records of all shards in one log of
// preallocated, checksummed segment files with one writing goroutine and one fdatasync for whatever gathered, short objects packed into files that
// they share, and checkpoints, long objects and manifests as files beside it. DESIGN.md has the formats, what recovery can tell apart, and why.
//
// It is not a database: it knows nothing of what records and objects hold, and verifies no object that is read: its
// reader has a checksum. One process at a time may have a data directory open.
//
//	engine, err := disklog.Open("/var/lib/kvstore", disklog.Config{})
//	defer engine.Close()
package disklog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"kvstore/components/wal/disklog/vfs"
	"kvstore/components/wal/driver"
)

// Engine is a driver.Engine over one data directory.
type Engine struct {
	cfg    Config
	fs     vfs.FS
	dir    string
	id     [16]byte
	lock   io.Closer
	space  *gauge
	damage []error // found by Open; not changed afterwards

	mu        sync.Mutex           // guards what follows, the fields of shardLog and segment that say so
	shards    map[string]*shardLog // entries are made and removed by the committer only, which therefore reads without mu
	segments  []*segment           // oldest first
	deadBelow uint64               // segments of lower numbers are needed by no durable state

	committer committer
	preparer  preparer
	cleaner   cleaner
	objects   objects
	packs     packs
	manifests manifests

	closing  sync.Once
	closeErr error
	closed   chan struct{} // closed when Close begins
}

var _ driver.Engine = (*Engine)(nil)

// shardLog is the log of one shard.
type shardLog struct {
	name string

	// Guarded by Engine.mu; pos is written by the committer only, which therefore reads it without.
	pos   position
	kept  uint64 // records below are forgotten; at least 1, at most pos.last when there is one
	index index  // records from kept to pos.last; one that is not there was lost to damage
	doubt error  // not nil: records behind pos.last may have been lost, so the shard takes no writes
	hurt  error  // the first damage seen in its records; details for ErrCorrupt

	// The committer's: the position when the batch at hand is durable. Valid if round is the committer's.
	next  position
	round uint64
}

// Open opens a data directory, making it if it is not there, and recovers its log. The error is a *vfs.LockedError when
// another process has it, and wraps driver.ErrCorrupt when nothing of it can be trusted; damage to some records is no error
// of Open, see Damage.
func Open(dir string, cfg Config) (*Engine, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, fs: cfg.FS, dir: filepath.Clean(dir),
		shards: make(map[string]*shardLog), closed: make(chan struct{}),
	}
	e.space = &gauge{fs: e.fs, dir: e.dir, configured: cfg.Reserve, now: time.Now}
	if err := e.makeDirs(); err != nil {
		return nil, fmt.Errorf("opening data directory: %w", err)
	}
	lock, err := e.fs.Lock(e.path("LOCK"))
	if err != nil {
		return nil, err
	}
	e.lock = lock
	if err := e.open(); err != nil {
		e.closeFiles()
		return nil, errors.Join(fmt.Errorf("opening data directory %s: %w", e.dir, err), lock.Close())
	}
	return e, nil
}

func (e *Engine) open() error {
	if err := e.readID(); err != nil {
		return err
	}
	if err := e.cleanTemporary(); err != nil {
		return err
	}
	e.objects.init(e)
	e.packs.init(e)
	e.manifests.init(e)
	e.committer.init(e)
	if err := e.recover(); err != nil {
		return err
	}
	if err := e.packs.open(); err != nil {
		return err
	}
	e.preparer.start(e)
	e.committer.start()
	e.cleaner.start(e)
	return e.firstSegment()
}

// firstSegment gives a new directory its first segment, and one whose log is damaged at the end a new one, with what is
// known of the loss.
func (e *Engine) firstSegment() error {
	if e.committer.seg != nil && !e.committer.roll { // its goroutine has nothing to do yet
		return nil
	}
	empty := e.committer.seg == nil
	err := e.wait(context.Background(), request{kind: reqSnapshot})
	if err != nil && empty {
		close(e.closed)
		e.stop()
		return fmt.Errorf("beginning the log: %w", err)
	}
	if err != nil {
		e.cfg.Warn(err) // reads go on
	}
	return nil
}

func (e *Engine) stop() {
	e.cleaner.stop()
	e.committer.stop()
	e.preparer.stop()
}

// Damage returns what Open found damaged in the log, with file and offset. The shards concerned answer driver.ErrCorrupt
// where it matters; the others are as they were.
func (e *Engine) Damage() []error { return e.damage }

// Name returns "disk".
func (e *Engine) Name() string { return "disk" }

// Term returns 0: the lock on the data directory excludes a second process.
func (e *Engine) Term() time.Duration { return 0 }

// Space returns the free bytes and the reserve, zeros when the file system does not say.
func (e *Engine) Space() (free, reserve int64) {
	free, reserve, err := e.space.read()
	if err != nil {
		return 0, 0
	}
	return free, reserve
}

// Append implements driver.Engine. done is called from the goroutine that writes the log: it may call Append and
// Space, and must not wait for a call that waits for the log: Fence, Trim, RemoveShard, Close.
func (e *Engine) Append(shard string, epoch driver.Epoch, f driver.Frame, done func(error)) {
	e.committer.submit(request{kind: reqAppend, shard: shard, epoch: epoch, frameEpoch: f.Epoch, seq: f.Seq, data: f.Data, done: done})
}

// Fence implements driver.Engine. After a context's end the fence may still be placed.
func (e *Engine) Fence(ctx context.Context, shard string, epoch driver.Epoch, record func(seq, previousEpoch uint64) []byte) (uint64, error) {
	if err := driver.CheckShard(shard); err != nil {
		return 0, err
	}
	life := e.manifests.life(shard) // or RemoveShard could come between
	life.RLock()
	defer life.RUnlock()
	if err := e.manifests.exists(shard); err != nil {
		return 0, fmt.Errorf("fencing %s: %w", shard, err)
	}
	r := request{kind: reqFence, shard: shard, epoch: epoch, record: record, fenced: new(uint64)}
	if err := e.wait(ctx, r); err != nil {
		return 0, err
	}
	return *r.fenced, nil
}

// Trim implements driver.Engine. It is durable when it returns, and may use the reserve.
func (e *Engine) Trim(ctx context.Context, shard string, epoch driver.Epoch, below uint64) error {
	return e.wait(ctx, request{kind: reqTrim, shard: shard, epoch: epoch, seq: below})
}

// RemoveShard implements driver.Engine.
func (e *Engine) RemoveShard(ctx context.Context, shard string) error {
	if err := driver.CheckShard(shard); err != nil {
		return err
	}
	life := e.manifests.life(shard)
	life.Lock()
	defer life.Unlock()
	// The manifest first: without it nobody opens the shard. Then the log, then the rest, which nobody can name any more.
	if err := e.manifests.remove(shard); err != nil {
		return fmt.Errorf("removing %s: %w", shard, err)
	}
	if err := e.wait(ctx, request{kind: reqRemove, shard: shard}); err != nil {
		return fmt.Errorf("removing the log of %s: %w", shard, err)
	}
	return e.objects.removeShard(shard)
}

// wait submits r and waits for it.
func (e *Engine) wait(ctx context.Context, r request) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", driver.ErrRefused, err)
	}
	ch := make(chan error, 1)
	r.done = func(err error) { ch <- err }
	e.committer.submit(r)
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements driver.Engine. It marks the end of the log, so that the next Open can tell damage at the very end.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		close(e.closed)
		e.stop()
		e.closeFiles()
		e.closeErr = e.lock.Close()
	})
	return e.closeErr
}

func (e *Engine) isClosed() bool {
	select {
	case <-e.closed:
		return true
	default:
		return false
	}
}

func (e *Engine) closeFiles() {
	e.packs.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.segments {
		_ = s.file.Close() // everything that matters was synced
	}
	e.objects.close()
}

func (e *Engine) path(elems ...string) string {
	return filepath.Join(append([]string{e.dir}, elems...)...)
}
