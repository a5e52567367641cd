package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"kvstore/components/wal/driver"
)

const (
	// spaceEvery is how often a spaceWatch looks.
	spaceEvery = 5 * time.Second
	// spaceCalm is how long nothing must have been short of space before the log says so: a store at its limit frees some by checkpoints,
	// and fills it again.
	spaceCalm = 30 * time.Second
)

// shortOfSpace is whether writes stop because the store has less free space than its reserve.
func shortOfSpace(engine driver.Engine) (free, reserve int64, short bool) {
	free, reserve = engine.Space()
	return free, reserve, reserve > 0 && free < reserve
}

// spaceWatch is an engine of which the log tells when writes are refused for want of space, and when no longer. Appends stop below the
// reserve; an object is refused already when it would lead there, so that a store that large values have filled stays just above it.
type spaceWatch struct {
	driver.Engine
	log     *slog.Logger
	refused chan error // capacity 1: an object was, which nobody has looked at yet
	stop    chan struct{}
	ended   chan struct{}
}

// watchSpace watches an engine until unwatch is called, which is before the engine is closed.
func watchSpace(engine driver.Engine, log *slog.Logger) *spaceWatch {
	w := &spaceWatch{Engine: engine, log: log, refused: make(chan error, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

func (w *spaceWatch) unwatch(context.Context) error {
	close(w.stop)
	<-w.ended
	return nil
}

// PutObject implements driver.Engine.
func (w *spaceWatch) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	err := w.Engine.PutObject(ctx, shard, name, size, r)
	if errors.Is(err, driver.ErrNoSpace) {
		select {
		case w.refused <- err:
		default:
		}
	}
	return err
}

func (w *spaceWatch) run() {
	defer close(w.ended)
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	told := false      // that writes are refused
	var last time.Time // when they were
	for {
		var refused error
		select {
		case <-w.stop:
			return
		case refused = <-w.refused:
		case <-tick.C:
		}
		free, reserve, short := shortOfSpace(w.Engine)
		now := time.Now()
		switch {
		case short || refused != nil:
			if last = now; !told {
				told = true
				w.log.Error("writes are refused: the store is at its reserve of free space; reads go on. Give it more", "free", free, "reserve", reserve, "refused", refused)
			}
		case told && now.Sub(last) >= spaceCalm:
			told = false
			w.log.Info("writes are no longer refused for want of space", "free", free, "reserve", reserve)
		}
	}
}
