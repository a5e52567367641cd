package host

import (
	"context"
	"fmt"
	"time"

	"kvstore/components/wal"
)

// OpenOptions are the options of Open.
type OpenOptions struct {
	// Log is passed to the store. Its Clock is set by Open.
	Log wal.OpenOptions
	// Progress is called now and then while the state is read back; may be nil.
	Progress func(wal.Progress)
}

// Open takes a shard over under a new epoch, reads its state back into m, and runs m from there on. m must be new.
// Errors are those of wal.Store.Open and wal.Log.Restore.
func Open[C Command](ctx context.Context, store *wal.Store, shard string, m Machine[C], cfg Config, hooks Hooks, opts OpenOptions) (*Actor[C], error) {
	cfg.EnsureDefaults()
	opts.Log.Clock = cfg.Clock.Now
	log, err := store.Open(ctx, shard, opts.Log)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", shard, err)
	}
	if err := log.Restore(ctx, m, opts.Progress); err != nil {
		giveUp(ctx, log)
		return nil, fmt.Errorf("restore %s: %w", shard, err)
	}
	r := m.Ready()
	if len(r.Body) > 0 || len(r.Replies) > 0 {
		giveUp(ctx, log)
		return nil, fmt.Errorf("restore %s: the machine has effects before any command", shard)
	}
	a := &Actor[C]{cfg: cfg, hooks: hooks, log: log, machine: m, term: store.Engine().Term(), ackAfter: log.AckAfter(), pace: pace{target: cfg.MaxWait}}
	a.appended = a.land
	s := &State{Tree: m.Tree().Clone(), Revision: r.Head, Seq: log.Seq(), TimeMS: r.TimeMS}
	a.durable.Store(s)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bytes.Store(s.Tree.Bytes())
	if hooks.Grown != nil {
		hooks.Grown(s.Tree.Bytes())
	}
	a.rearm()
	return a, nil
}

// giveUp ends an epoch that served nothing, so that the next try need not wait for its lease. An error costs that wait.
func giveUp(ctx context.Context, log *wal.Log) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), yieldTimeout)
	defer cancel()
	_ = log.Yield(ctx)
	log.Close()
}

// yieldTimeout bounds the yield of an epoch that is being given up anyway.
const yieldTimeout = 2 * time.Second

// Log returns the actor's log, for values and for status. It belongs to the actor.
func (a *Actor[C]) Log() *wal.Log { return a.log }

// Checkpoint stores the durable state, so that an activation replays only what comes after it. Writes go on meanwhile. It does
// nothing when nothing was logged since the last.
func (a *Actor[C]) Checkpoint(ctx context.Context) (wal.CheckpointStats, error) {
	return a.CheckpointState(ctx, a.durable.Load())
}

// CheckpointState is Checkpoint of a state that Latest gave a moment ago.
func (a *Actor[C]) CheckpointState(ctx context.Context, s *State) (wal.CheckpointStats, error) {
	if a.ended() {
		return wal.CheckpointStats{}, ErrOver
	}
	if seq := a.log.CheckpointSeq(); seq >= s.Seq {
		return wal.CheckpointStats{Seq: seq}, nil
	}
	return a.log.Checkpoint(ctx, wal.Snapshot{Tree: s.Tree, Seq: s.Seq})
}

// WakeMS is when the machine next wants a Tick, in milliseconds since the Unix epoch; 0 = never.
func (a *Actor[C]) WakeMS() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machine.WakeMS()
}
