package frontend

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// call is one command and whoever waits for it.
type call struct {
	cmd  shard.Command
	done chan error // room for one
}

var calls = sync.Pool{New: func() any {
	c := &call{done: make(chan error, 1)}
	c.cmd.Done = func(_ *shard.Command, err error) { c.done <- err }
	return c
}}

func newCall() *call { return calls.Get().(*call) }

// free takes the call back; only for one that was never sent or has come back.
func (c *call) free() {
	done := c.cmd.Done
	c.cmd = shard.Command{Done: done}
	calls.Put(c)
}

// do sends the call's command and waits for its outcome. After an error the command may still be with the shard: the call
// must not be freed, nor what the command points to be used again.
func (s *Server) do(ctx context.Context, shardID string, c *call) *kverr.Error {
	s.shards.Do(ctx, shardID, &c.cmd)
	select {
	case err := <-c.done:
		if err != nil {
			return kverr.From(err)
		}
		return nil
	case <-ctx.Done():
		return gaveUp(ctx)
	}
}

// doAll sends commands, grouped by shard, and waits for all outcomes. The error of a command that did not get through is
// in its Result. A non-nil error means that outcomes are not known and that commands are still with their shards.
func (s *Server) doAll(ctx context.Context, groups map[string][]*shard.Command) *kverr.Error {
	var left atomic.Int32
	for _, cmds := range groups {
		left.Add(int32(len(cmds)))
	}
	if left.Load() == 0 {
		return nil
	}
	done := make(chan struct{})
	release := func(c *shard.Command, err error) {
		if err != nil {
			c.Result = shard.Result{Err: kverr.From(err)}
		}
		if left.Add(-1) == 0 {
			close(done)
		}
	}
	for id, cmds := range groups {
		for _, c := range cmds {
			c.Done = release
		}
		s.shards.Do(ctx, id, cmds...)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return gaveUp(ctx)
	}
}

// gaveUp is the error of a request whose caller stopped waiting: what it wrote may be applied.
func gaveUp(ctx context.Context) *kverr.Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &kverr.Error{Kind: kverr.DeadlineExceeded, Message: "the deadline passed before the outcome was known", Err: ctx.Err()}
	}
	return &kverr.Error{Kind: kverr.Canceled, Message: "canceled before the outcome was known", Err: ctx.Err()}
}
