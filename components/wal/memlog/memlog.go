// Package memlog is the log engine that keeps everything in memory: for tests, simulators and caches that may be lost. It is
// an engine like the others (it passes waltest): linearizable, with a lease term as configured and a free-space reserve, and
// appends that complete later, from its own goroutine or when the caller drains them. It is not durable over the end of
// the process; Clone stands in for a crash and a restart.
package memlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvstore/components/wal/driver"
)

var _ driver.Engine = (*Engine)(nil)

// Config tunes an Engine. The zero value is ready.
type Config struct {
	// Term is the lease term that Engine.Term tells. 0 means that leases never lapse.
	Term time.Duration
	// Capacity is how many bytes of records and objects fit; 0 = no limit.
	Capacity int64
	// Reserve is the part of Capacity at which writes are refused with ErrNoSpace.
	Reserve int64
	// Manual starts no goroutine: appends complete when Drain is called. Close drains too.
	Manual bool
}

// Validate returns every fault of the configuration, joined.
func (c *Config) Validate() error {
	var faults []error
	if c.Term < 0 {
		faults = append(faults, fmt.Errorf("Term is %v: must not be negative", c.Term))
	}
	if c.Capacity < 0 || c.Reserve < 0 || c.Reserve > c.Capacity {
		faults = append(faults, fmt.Errorf("Config.Capacity is %d and Reserve %d: need 0 <= Reserve <= Capacity", c.Capacity, c.Reserve))
	}
	return errors.Join(faults...)
}

// Engine is the store. See driver.Engine for the contract of its methods.
type Engine struct {
	cfg Config

	mu      sync.Mutex // guards all below
	wake    sync.Cond  // the queue has grown, or closed is set
	shards  map[string]*shard
	lastTag uint64 // tags are never reused, also not by a shard made again
	used    int64  // bytes of records and objects
	queue   []pending
	closed  bool

	stopped chan struct{} // closed when the committer has ended
}

// shard is one shard's durable state. Its byte slices are never changed in place, so clones share them.
type shard struct {
	manifest []byte
	tag      driver.Tag
	epoch    driver.Epoch // of the last fence
	fenceSeq uint64
	frames   []driver.Frame // without holes
	objects  map[string][]byte
}

func (s *shard) lastSeq() uint64 {
	if len(s.frames) == 0 {
		return 0
	}
	return s.frames[len(s.frames)-1].Seq
}

// pending is an append that is not durable yet.
type pending struct {
	shard string
	epoch driver.Epoch
	frame driver.Frame
	done  func(error)
}

// New returns an empty Engine.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, shards: map[string]*shard{}, stopped: make(chan struct{})}
	e.start()
	return e, nil
}

func (e *Engine) start() {
	e.wake.L = &e.mu
	if e.cfg.Manual {
		close(e.stopped)
		return
	}
	go func() {
		defer close(e.stopped)
		for e.waitForWork() {
			e.Drain()
		}
	}()
}

// waitForWork returns false when the engine is closed and nothing is left to do.
func (e *Engine) waitForWork() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.queue) == 0 && !e.closed {
		e.wake.Wait()
	}
	return len(e.queue) > 0
}

// Drain completes the appends that are outstanding now and returns how many they were. Their done functions are called
// in order, from this goroutine.
func (e *Engine) Drain() int {
	e.mu.Lock()
	batch := e.queue
	e.queue = nil
	results := make([]error, len(batch))
	for i := range batch {
		results[i] = e.commit(&batch[i])
	}
	e.mu.Unlock()
	for i := range batch {
		batch[i].done(results[i])
	}
	return len(batch)
}

// commit applies one append. Callers hold mu.
func (e *Engine) commit(p *pending) error {
	s := e.shards[p.shard]
	if s == nil || s.epoch != p.epoch || p.frame.Epoch != p.epoch.Counter {
		return driver.ErrFenced
	}
	if want := s.lastSeq() + 1; p.frame.Seq != want {
		return fmt.Errorf("%w: record %d appended where %d comes next", driver.ErrFenced, p.frame.Seq, want)
	}
	if err := e.room(int64(len(p.frame.Data))); err != nil {
		return err
	}
	s.frames = append(s.frames, p.frame)
	e.used += int64(len(p.frame.Data))
	return nil
}

// room returns ErrNoSpace when n more bytes would go into the reserve. Callers hold mu.
func (e *Engine) room(n int64) error {
	if e.cfg.Capacity > 0 && e.used+n > e.cfg.Capacity-e.cfg.Reserve {
		return driver.ErrNoSpace
	}
	return nil
}

// Clone returns an engine of its own with what is durable now: what a restart after a crash at this moment would find.
// Outstanding appends are not in it. The engine cloned from goes on, or may be closed already.
func (e *Engine) Clone() *Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := &Engine{cfg: e.cfg, shards: make(map[string]*shard, len(e.shards)), lastTag: e.lastTag, used: e.used, stopped: make(chan struct{})}
	for name, s := range e.shards {
		copied := *s
		copied.frames = slices.Clone(s.frames)
		copied.objects = maps.Clone(s.objects)
		c.shards[name] = &copied
	}
	c.start()
	return c
}

// Close completes outstanding appends and stops the engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.wake.Broadcast()
	e.mu.Unlock()
	if e.cfg.Manual {
		e.Drain()
	}
	<-e.stopped
	return nil
}

// Name is "memory".
func (e *Engine) Name() string { return "memory" }

// Term is as configured.
func (e *Engine) Term() time.Duration { return e.cfg.Term }

// Space tells what is left of the configured capacity.
func (e *Engine) Space() (free, reserve int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cfg.Capacity == 0 {
		return 0, 0
	}
	return max(0, e.cfg.Capacity-e.used), e.cfg.Reserve
}

// begin checks what every verb checks and locks mu; the caller unlocks it unless there is an error.
func (e *Engine) begin(ctx context.Context, shardName string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", driver.ErrRefused, err)
	}
	if err := driver.CheckShard(shardName); err != nil {
		return err
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return driver.ErrClosed
	}
	return nil
}

// Manifest implements driver.Engine.
func (e *Engine) Manifest(ctx context.Context, shardName string) ([]byte, driver.Tag, error) {
	if err := e.begin(ctx, shardName); err != nil {
		return nil, "", err
	}
	defer e.mu.Unlock()
	s := e.shards[shardName]
	if s == nil {
		return nil, "", fmt.Errorf("manifest of shard %s: %w", shardName, driver.ErrNotExist)
	}
	return bytes.Clone(s.manifest), s.tag, nil
}

// SwapManifest implements driver.Engine.
func (e *Engine) SwapManifest(ctx context.Context, shardName string, old driver.Tag, data []byte) (driver.Tag, error) {
	if err := e.begin(ctx, shardName); err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	s := e.shards[shardName]
	switch {
	case s == nil && old == "":
		s = &shard{objects: map[string][]byte{}}
		e.shards[shardName] = s
	case s == nil || s.tag != old:
		return "", driver.ErrConflict
	}
	e.lastTag++
	s.tag = driver.Tag(strconv.FormatUint(e.lastTag, 10))
	s.manifest = bytes.Clone(data)
	return s.tag, nil
}

// Fence implements driver.Engine.
func (e *Engine) Fence(ctx context.Context, shardName string, epoch driver.Epoch, record func(seq, previousEpoch uint64) []byte) (uint64, error) {
	if err := e.begin(ctx, shardName); err != nil {
		return 0, err
	}
	defer e.mu.Unlock()
	s := e.shards[shardName]
	switch {
	case s == nil:
		return 0, fmt.Errorf("log of shard %s: %w", shardName, driver.ErrNotExist)
	case s.epoch == epoch:
		return s.fenceSeq, nil
	case epoch.Counter <= s.epoch.Counter:
		return 0, driver.ErrFenced
	}
	var previous uint64
	if n := len(s.frames); n > 0 {
		previous = s.frames[n-1].Epoch
	}
	seq := s.lastSeq() + 1
	data := record(seq, previous)
	if data == nil {
		return 0, fmt.Errorf("%w: the fence was withdrawn", driver.ErrRefused)
	}
	s.frames = append(s.frames, driver.Frame{Epoch: epoch.Counter, Seq: seq, Data: data})
	s.epoch, s.fenceSeq = epoch, seq
	e.used += int64(len(data))
	return seq, nil
}

// Append implements driver.Engine.
func (e *Engine) Append(shardName string, epoch driver.Epoch, f driver.Frame, done func(error)) {
	if err := e.begin(context.Background(), shardName); err != nil {
		go done(err)
		return
	}
	e.queue = append(e.queue, pending{shard: shardName, epoch: epoch, frame: f, done: done})
	e.wake.Signal()
	e.mu.Unlock()
}

// Read implements driver.Engine.
func (e *Engine) Read(ctx context.Context, shardName string, from uint64, fn func(driver.Frame) error) error {
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	s := e.shards[shardName]
	var frames []driver.Frame
	if s != nil {
		frames = s.frames
	}
	e.mu.Unlock()
	if s == nil {
		return fmt.Errorf("log of shard %s: %w", shardName, driver.ErrNotExist)
	}
	if len(frames) > 0 {
		first := frames[0].Seq
		if from < first {
			return fmt.Errorf("record %d of shard %s: %w: the first is %d", from, shardName, driver.ErrNotExist, first)
		}
		frames = frames[min(from-first, uint64(len(frames))):]
	}
	for _, f := range frames {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// Trim implements driver.Engine.
func (e *Engine) Trim(ctx context.Context, shardName string, epoch driver.Epoch, below uint64) error {
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	defer e.mu.Unlock()
	s := e.shards[shardName]
	if s == nil || s.epoch != epoch {
		return driver.ErrFenced
	}
	n := 0
	for n < len(s.frames)-1 && s.frames[n].Seq < below {
		e.used -= int64(len(s.frames[n].Data))
		n++
	}
	s.frames = slices.Clone(s.frames[n:]) // a Read may still walk the old slice
	return nil
}

// maxGrow bounds what PutObject allocates on an announced size alone.
const maxGrow = 64 << 20

// PutObject implements driver.Engine.
func (e *Engine) PutObject(ctx context.Context, shardName, name string, size int64, r io.Reader) error {
	if err := driver.CheckObject(name); err != nil {
		return err
	}
	var all bytes.Buffer
	if size > 0 {
		all.Grow(int(min(size, maxGrow)) + bytes.MinRead)
	}
	if _, err := all.ReadFrom(r); err != nil {
		return fmt.Errorf("%w: object %s: %w", driver.ErrRefused, name, err)
	}
	data := all.Bytes()
	if size >= 0 && int64(len(data)) != size {
		return fmt.Errorf("%w: object %s: %d bytes came where %d were announced", driver.ErrRefused, name, len(data), size)
	}
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	defer e.mu.Unlock()
	s := e.shards[shardName]
	if s == nil {
		return fmt.Errorf("shard %s: %w", shardName, driver.ErrNotExist)
	}
	if _, ok := s.objects[name]; ok {
		return fmt.Errorf("%w: object %s exists", driver.ErrRefused, name)
	}
	if err := e.room(int64(len(data))); err != nil {
		return err
	}
	s.objects[name] = data
	e.used += int64(len(data))
	return nil
}

// GetObject implements driver.Engine.
func (e *Engine) GetObject(ctx context.Context, shardName, name string, off int64, p []byte) error {
	data, err := e.object(ctx, shardName, name)
	if err != nil {
		return err
	}
	if off < 0 || off > int64(len(data)) || int64(len(data))-off < int64(len(p)) {
		return fmt.Errorf("object %s of shard %s: %w: %d bytes at %d asked, it has %d", name, shardName, driver.ErrCorrupt, len(p), off, len(data))
	}
	copy(p, data[off:])
	return nil
}

func (e *Engine) object(ctx context.Context, shardName, name string) ([]byte, error) {
	if err := driver.CheckObject(name); err != nil {
		return nil, err
	}
	if err := e.begin(ctx, shardName); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	if s := e.shards[shardName]; s != nil {
		if data, ok := s.objects[name]; ok {
			return data, nil
		}
	}
	return nil, fmt.Errorf("object %s of shard %s: %w", name, shardName, driver.ErrNotExist)
}

// DeleteObject implements driver.Engine.
func (e *Engine) DeleteObject(ctx context.Context, shardName, name string) error {
	if err := driver.CheckObject(name); err != nil {
		return err
	}
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if s := e.shards[shardName]; s != nil {
		e.used -= int64(len(s.objects[name]))
		delete(s.objects, name)
	}
	return nil
}

// ListObjects implements driver.Engine. The order is that of the names.
func (e *Engine) ListObjects(ctx context.Context, shardName, prefix string, fn func(name string, size int64) error) error {
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	sizes := map[string]int64{}
	if s := e.shards[shardName]; s != nil {
		for name, data := range s.objects {
			if strings.HasPrefix(name, prefix) {
				sizes[name] = int64(len(data))
			}
		}
	}
	e.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		if err := fn(name, sizes[name]); err != nil {
			return err
		}
	}
	return nil
}

// RemoveShard implements driver.Engine.
func (e *Engine) RemoveShard(ctx context.Context, shardName string) error {
	if err := e.begin(ctx, shardName); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if s := e.shards[shardName]; s != nil {
		for _, f := range s.frames {
			e.used -= int64(len(f.Data))
		}
		for _, data := range s.objects {
			e.used -= int64(len(data))
		}
		delete(e.shards, shardName)
	}
	return nil
}
