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
	list [1]*shard.Command // of cmd: what Shards.Do takes
	done chan error        // room for one
}

var calls = sync.Pool{New: func() any {
	c := &call{done: make(chan error, 1)}
	c.cmd.Done = func(_ *shard.Command, err error) { c.done <- err }
	c.list[0] = &c.cmd
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
	c.cmd.UntilMS = untilOf(ctx)
	s.shards.Do(ctx, shardID, c.list[:]...)
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

// untilOf is when a caller stops waiting, in milliseconds since the Unix epoch; 0 when he does not tell.
func untilOf(ctx context.Context) int64 {
	if deadline, ok := ctx.Deadline(); ok {
		return deadline.UnixMilli()
	}
	return 0
}

// reading is one query and whoever waits for it.
type reading struct {
	query shard.Query
	list  [1]*shard.Query // of query: what Shards.Read takes
	done  chan error      // room for one
}

var readings = sync.Pool{New: func() any {
	r := &reading{done: make(chan error, 1)}
	r.query.Done = func(_ *shard.Query, err error) { r.done <- err }
	r.list[0] = &r.query
	return r
}}

func newReading() *reading { return readings.Get().(*reading) }

// free takes the reading back; only for one that has come back.
func (r *reading) free() {
	r.query = shard.Query{Done: r.query.Done}
	readings.Put(r)
}

// read sends the reading's query and waits for its answer. After an error it must not be freed, nor what the query points to be
// used again.
func (s *Server) read(ctx context.Context, shardID string, r *reading) *kverr.Error {
	s.shards.Read(ctx, shardID, r.list[:]...)
	select {
	case err := <-r.done: // in one process it is there already
		return asFault(err)
	default:
	}
	select {
	case err := <-r.done:
		return asFault(err)
	case <-ctx.Done():
		return gaveUp(ctx)
	}
}

// asFault is kverr.From that leaves nil alone.
func asFault(err error) *kverr.Error {
	if err == nil {
		return nil
	}
	return kverr.From(err)
}

// question is what a request asks one shard.
type question struct {
	shard   *Shard
	queries []*shard.Query
}

// readAll asks several shards and waits for all answers. The error of a query that did not get through is in its Answer. A
// non-nil error means that the caller gave up and queries are still with their shards.
func (s *Server) readAll(ctx context.Context, questions []question) *kverr.Error {
	var left atomic.Int32
	for i := range questions {
		left.Add(int32(len(questions[i].queries)))
	}
	if left.Load() == 0 {
		return nil
	}
	done := make(chan struct{})
	answered := func(q *shard.Query, err error) {
		if err != nil {
			q.Answer = shard.Answer{Err: kverr.From(err)}
		}
		if left.Add(-1) == 0 {
			close(done)
		}
	}
	for i := range questions {
		for _, q := range questions[i].queries {
			q.Done = answered
		}
		s.shards.Read(ctx, questions[i].shard.ID, questions[i].queries...)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return gaveUp(ctx)
	}
}

// askEach asks each of several shards one query and returns them in the order of the shards.
func (s *Server) askEach(ctx context.Context, shards []*Shard, prepare func(sh *Shard, q *shard.Query)) ([]shard.Query, *kverr.Error) {
	queries := make([]shard.Query, len(shards))
	list := make([]*shard.Query, len(shards))
	questions := make([]question, len(shards))
	for i, sh := range shards {
		prepare(sh, &queries[i])
		list[i] = &queries[i]
		questions[i] = question{sh, list[i : i+1]}
	}
	if err := s.readAll(ctx, questions); err != nil {
		return nil, err
	}
	return queries, nil
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
	until := untilOf(ctx)
	for id, cmds := range groups {
		for _, c := range cmds {
			c.Done, c.UntilMS = release, until
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
