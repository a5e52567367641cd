package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/components/wal/driver"
)

// roomy is an engine with a reserve of 100 bytes that takes nothing which leads below it.
type roomy struct {
	driver.Engine
	free atomic.Int64
}

func (r *roomy) Space() (free, reserve int64) { return r.free.Load(), 100 }

func (r *roomy) PutObject(_ context.Context, _, _ string, size int64, _ io.Reader) error {
	if r.free.Load()-size < 100 {
		return fmt.Errorf("%w: %d bytes", driver.ErrNoSpace, size)
	}
	return nil
}

// TestSpaceIsTold: once when writes stop and once when they go on for good, however often the store is at its limit between.
func TestSpaceIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		engine := new(roomy)
		engine.free.Store(100)
		w := watchSpace(engine, slog.New(slog.NewTextHandler(&text, nil)))
		for _, step := range []struct {
			free  int64
			put   int64 // bytes of an object
			after time.Duration
			want  string // what the log says then; "" = nothing
		}{
			{100, 0, time.Minute, ""},
			{99, 0, spaceEvery, "level=ERROR"},
			{50, 0, time.Minute, ""},
			{100, 0, spaceCalm - spaceEvery, ""},
			{99, 0, spaceEvery, ""}, // filled again at once
			{1000, 0, spaceCalm - spaceEvery, ""},
			{1000, 0, 2 * spaceEvery, "level=INFO"},
			{1000, 0, time.Hour, ""},
			{0, 0, spaceEvery, "free=0 reserve=100"},
			{1000, 900, spaceCalm + spaceEvery, "level=INFO"},
			{1000, 901, 0, `refused="`}, // enough for others
			{1000, 901, spaceCalm - spaceEvery, ""},
			{1000, 901, spaceCalm - spaceEvery, ""},
			{1000, 0, 2 * spaceEvery, "level=INFO"},
		} {
			engine.free.Store(step.free)
			err := w.PutObject(t.Context(), "s", "o", step.put, nil)
			if refused := step.free-step.put < 100; errors.Is(err, driver.ErrNoSpace) != refused {
				t.Errorf("%d bytes with %d free: %v", step.put, step.free, err)
			}
			synctest.Wait()
			time.Sleep(step.after)
			synctest.Wait()
			if got := text.String(); (step.want == "") != (got == "") || !strings.Contains(got, step.want) || strings.Count(got, "\n") > 1 {
				t.Errorf("%d free, %d put, for %v: told %q, want %q", step.free, step.put, step.after, got, step.want)
			}
			text.Reset()
		}
		if err := w.unwatch(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
