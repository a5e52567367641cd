package telemetry

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvstore/components/wal/driver"
)

// engine is a driver.Engine whose calls are timed.
type engine struct {
	driver.Engine
	duration *prometheus.HistogramVec
	appended prometheus.Observer // of those that succeed
	appends  sync.Pool           // of *appending
}

var _ driver.Engine = (*engine)(nil)

// outcomeOf is how a call of an engine ended, as a label.
func outcomeOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, driver.ErrCorrupt): // before fenced: both can be
		return "corrupt"
	case errors.Is(err, driver.ErrNotExist):
		return "not_exist"
	case errors.Is(err, driver.ErrConflict):
		return "conflict"
	case errors.Is(err, driver.ErrFenced):
		return "fenced"
	case errors.Is(err, driver.ErrNoSpace):
		return "no_space"
	case errors.Is(err, driver.ErrRefused):
		return "refused"
	case errors.Is(err, driver.ErrClosed):
		return "closed"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	}
	return "error"
}

// Engine times the calls of an engine. What it returns takes the engine's place. It is called once.
func (t *Telemetry) Engine(of driver.Engine) driver.Engine {
	if !counting {
		return of
	}
	e := &engine{Engine: of, duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kvstore_engine_duration_seconds", Help: "Time of a call of the log engine, by operation and how it ended.",
		Buckets: commitBuckets, ConstLabels: prometheus.Labels{"engine": of.Name()},
	}, []string{"op", "outcome"})}
	t.registry.MustRegister(e.duration)
	e.appended = e.duration.WithLabelValues("append", "ok")
	e.appends.New = func() any {
		a := &appending{engine: e}
		a.ended = a.end
		return a
	}
	return e
}

// timed notes a call that began at a time and has ended.
func (e *engine) timed(op string, began time.Time, err error) {
	e.duration.WithLabelValues(op, outcomeOf(err)).Observe(time.Since(began).Seconds())
}

// appending is an append under way. They are used again: an append allocates nothing for being timed.
type appending struct {
	engine *engine
	began  time.Time
	done   func(error)
	ended  func(error) // end, bound once
}

func (a *appending) end(err error) {
	e, began, done := a.engine, a.began, a.done
	a.done = nil
	e.appends.Put(a)
	if err == nil {
		e.appended.Observe(time.Since(began).Seconds())
	} else {
		e.timed("append", began, err)
	}
	done(err)
}

// Append implements driver.Engine.
func (e *engine) Append(shard string, epoch driver.Epoch, f driver.Frame, done func(error)) {
	a := e.appends.Get().(*appending)
	a.began, a.done = time.Now(), done
	e.Engine.Append(shard, epoch, f, a.ended)
}

// Manifest implements driver.Engine.
func (e *engine) Manifest(ctx context.Context, shard string) (data []byte, tag driver.Tag, err error) {
	defer func(began time.Time) { e.timed("manifest", began, err) }(time.Now())
	return e.Engine.Manifest(ctx, shard)
}

// SwapManifest implements driver.Engine.
func (e *engine) SwapManifest(ctx context.Context, shard string, old driver.Tag, data []byte) (tag driver.Tag, err error) {
	defer func(began time.Time) { e.timed("swap_manifest", began, err) }(time.Now())
	return e.Engine.SwapManifest(ctx, shard, old, data)
}

// Fence implements driver.Engine.
func (e *engine) Fence(ctx context.Context, shard string, epoch driver.Epoch, record func(seq, previousEpoch uint64) []byte) (seq uint64, err error) {
	defer func(began time.Time) { e.timed("fence", began, err) }(time.Now())
	return e.Engine.Fence(ctx, shard, epoch, record)
}

// Read implements driver.Engine. What fn does is part of the time.
func (e *engine) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) (err error) {
	defer func(began time.Time) { e.timed("read", began, err) }(time.Now())
	return e.Engine.Read(ctx, shard, from, fn)
}

// Trim implements driver.Engine.
func (e *engine) Trim(ctx context.Context, shard string, epoch driver.Epoch, below uint64) (err error) {
	defer func(began time.Time) { e.timed("trim", began, err) }(time.Now())
	return e.Engine.Trim(ctx, shard, epoch, below)
}

// PutObject implements driver.Engine. Reading r is part of the time.
func (e *engine) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) (err error) {
	defer func(began time.Time) { e.timed("put_object", began, err) }(time.Now())
	return e.Engine.PutObject(ctx, shard, name, size, r)
}

// GetObject implements driver.Engine.
func (e *engine) GetObject(ctx context.Context, shard, name string, off int64, p []byte) (err error) {
	defer func(began time.Time) { e.timed("get_object", began, err) }(time.Now())
	return e.Engine.GetObject(ctx, shard, name, off, p)
}

// DeleteObject implements driver.Engine.
func (e *engine) DeleteObject(ctx context.Context, shard, name string) (err error) {
	defer func(began time.Time) { e.timed("delete_object", began, err) }(time.Now())
	return e.Engine.DeleteObject(ctx, shard, name)
}

// ListObjects implements driver.Engine. What fn does is part of the time.
func (e *engine) ListObjects(ctx context.Context, shard, prefix string, fn func(name string, size int64) error) (err error) {
	defer func(began time.Time) { e.timed("list_objects", began, err) }(time.Now())
	return e.Engine.ListObjects(ctx, shard, prefix, fn)
}

// RemoveShard implements driver.Engine.
func (e *engine) RemoveShard(ctx context.Context, shard string) (err error) {
	defer func(began time.Time) { e.timed("remove_shard", began, err) }(time.Now())
	return e.Engine.RemoveShard(ctx, shard)
}
