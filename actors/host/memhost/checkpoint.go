package memhost

import (
	"context"
	"slices"
	"sync"
	"time"

	"kvstore/actors/host/values"
	"kvstore/actors/shard"
)

// checkpoints runs the checkpoints that are due, one at a time for the host.
type checkpoints struct {
	host *Host

	mu      sync.Mutex
	queue   []*slot // guarded by mu, as is all below; no slot twice
	running bool
	closed  bool
	stopped chan struct{} // closed with closed
	done    sync.WaitGroup
}

// due asks for a checkpoint of a shard. It may be called with the shard's actor locked.
func (c *checkpoints) due(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || slices.Contains(c.queue, s) {
		return
	}
	c.queue = append(c.queue, s)
	if !c.running {
		c.running = true
		c.done.Go(c.run)
	}
}

func (c *checkpoints) run() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 || c.closed {
			c.running = false
			c.mu.Unlock()
			return
		}
		s := c.queue[0]
		c.mu.Unlock()
		if l := s.live.Load(); l != nil && l.Err() == nil {
			if err := c.host.checkpoint(c.host.ctx, s, l); err != nil {
				c.host.tellFailed(s, l, "checkpoint", err)
				c.pause()
			}
		}
		c.mu.Lock()
		c.queue = c.queue[1:] // only now, so that a wish that came meanwhile is not a second checkpoint at once
		c.mu.Unlock()
	}
}

// checkpointPause is how long checkpoints rest after one failed.
const checkpointPause = 5 * time.Second

func (c *checkpoints) pause() {
	done := make(chan struct{})
	stop := c.host.cfg.Actor.Clock.AfterFunc(checkpointPause, func() { close(done) })
	select {
	case <-done:
	case <-c.stopped:
		stop()
	}
}

// close stops after the checkpoint that runs.
func (c *checkpoints) close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.stopped)
	}
	c.mu.Unlock()
	c.done.Wait()
}

// checkpoint stores an actor's durable state and collects the values that died before it.
func (h *Host) checkpoint(ctx context.Context, s *slot, l *live) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.BackgroundTimeout)
	defer cancel()
	state := l.Latest()
	stats, err := l.CheckpointState(ctx, state)
	if err != nil {
		return err
	}
	if stats.TotalBytes > 0 {
		l.checkpointBytes.Store(stats.TotalBytes)
	}
	var collected values.Collected
	if l.shard != nil {
		collected, err = l.shard.values.Collect(ctx, shard.NewView(state.Tree), state.Seq, h.cfg.MoveBytes)
		if err != nil {
			return err
		}
	}
	if f := h.cfg.Events.Checkpointed; f != nil {
		f(s.id, stats, collected)
	}
	return nil
}
