// Package redislog is the log engine on Redis 7 (DESIGN D6): the records of a shard are a list, its objects are chunks, its manifest is a
// hash, and every change is one Lua script that checks first whether its caller may make it. Redis runs one script at a
// time, so what a script checks still holds when it writes; fencing is that.
//
// What is acknowledged is as durable as the server makes it: with appendfsync always a reply leaves after the sync. Doctor tells what
// a given server can lose. DESIGN.md beside this file has the keys, the scripts, and what can be lost when.
//
//	e, err := redislog.Open(ctx, redislog.Config{URL: "redis://127.0.0.1:6379/0"})
//	store, err := wal.NewStore(e, wal.Config{})
package redislog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/wal/driver"
)

var _ driver.Engine = (*Engine)(nil)

// Engine is the store. See driver.Engine for the contract of its methods.
type Engine struct {
	cfg     Config
	client  redis.UniversalClient // for everything but appends
	appends redis.UniversalClient // for appends alone, so that nothing large is ever in front of them
	ctx     context.Context       // of work that belongs to no call; ends when Close gives up waiting
	cancel  context.CancelFunc
	closing chan struct{} // closed by Close: nothing is tried again
	work    sync.WaitGroup
	space   space
	under   atomic.Int64  // bytes of appends that wait or are on their way
	alone   chan struct{} // has room for one: a part of a checkpoint that goes alone

	strideMu sync.Mutex
	stride   stride // guarded by strideMu

	mu     sync.Mutex // guards all below
	wake   sync.Cond  // queue has grown, or closed is set
	queue  []*pending
	closed bool
}

// Open connects to a Redis and examines it (Doctor). What it must not be used with, an eviction policy say, is an error; what it can lose is
// told to Config.Warn.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	if err := e.examine(ctx); err != nil {
		_ = e.Close()
		return nil, err
	}
	for range cfg.Pipelines {
		e.work.Go(e.commit)
	}
	return e, nil
}

// quiet ends the library's own lines on stderr, once for all: every error that it prints is also returned.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// connect makes an engine that commits nothing yet.
func connect(cfg Config) (*Engine, error) {
	quiet()
	o, err := cfg.options()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, closing: make(chan struct{}), alone: make(chan struct{}, 1)}
	e.wake.L = &e.mu
	e.ctx, e.cancel = context.WithCancel(context.Background())
	o.PoolSize = cfg.Connections
	e.client = redis.NewUniversalClient(o)
	own := *o
	own.PoolSize = 2 * cfg.Pipelines // one for each committer, and for what is being settled
	e.appends = redis.NewUniversalClient(&own)
	return e, nil
}

// examine looks at the server before anything is stored in it.
func (e *Engine) examine(ctx context.Context) error {
	findings, err := e.Doctor(ctx)
	if err != nil {
		return fmt.Errorf("open redis %s: %w", e.cfg.Redacted(), err)
	}
	var refused []error
	for _, f := range findings {
		switch {
		case f.Level == Refused:
			refused = append(refused, errors.New(f.String()))
		case f.Level == Risk && !e.cfg.Relaxed:
			e.cfg.Warn(fmt.Errorf("redis %s: %s", e.cfg.Redacted(), f.String()))
		}
	}
	if len(refused) > 0 {
		return fmt.Errorf("open redis %s: %w", e.cfg.Redacted(), errors.Join(refused...))
	}
	return nil
}

// Name is "redis".
func (e *Engine) Name() string { return "redis" }

// Term is as configured.
func (e *Engine) Term() time.Duration { return e.cfg.Term }

// Close waits for outstanding appends, which are tried no further if the server does not answer, and disconnects. Other calls
// under way fail.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		e.work.Wait()
		return nil
	}
	e.closed = true
	close(e.closing)
	e.wake.Broadcast()
	e.mu.Unlock()
	e.work.Wait()
	e.cancel()
	return errors.Join(e.appends.Close(), e.client.Close())
}

// begin checks what every verb checks.
func (e *Engine) begin(ctx context.Context, shard string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", driver.ErrRefused, err)
	}
	if err := driver.CheckShard(shard); err != nil {
		return err
	}
	select {
	case <-e.closing:
		return driver.ErrClosed
	default:
		return nil
	}
}
