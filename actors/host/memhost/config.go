package memhost

import (
	"errors"
	"fmt"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// Defaults of Config.
const (
	DefaultActivations       = 2
	DefaultPeace             = 30 * time.Second
	DefaultValueBytes        = 256 << 20
	DefaultMoveBytes         = 64 << 20
	DefaultMaxQueuedBytes    = 128 << 20
	DefaultBackgroundTimeout = 10 * time.Minute
)

// Config tunes a Host. The zero value of each field takes its default.
type Config struct {
	// Actor bounds each shard's actor; its Clock is the host's.
	Actor host.Config
	// Shard bounds each shard's machine.
	Shard shard.Config
	// Values bounds each shard's values.
	Values values.Config
	// Address is what manifests name this host by; required with Peers.
	Address string
	// Peers are the other hosts that share the engine; may be nil.
	Peers Peers
	// Placement tells which shards are this host's to open. nil: all that it is asked for.
	Placement Placement
	// MemoryBudget is how many bytes the states of all shards may take together, by the trees' own count; 0 = no limit. At
	// MemoryBudget-MemoryReserve commands that grow a state are refused with kverr.Exhausted; others pass.
	MemoryBudget int64
	// MemoryReserve is kept for what deletes and expiry leave behind. Default: an eighth of MemoryBudget.
	MemoryReserve int64
	// MaxQueuedBytes bounds the bytes of commands that queue because the next record of their shard is full, of all shards together;
	// beyond it they are refused with kverr.Overloaded. Default 128 MiB. A shard's own bound is Actor.MaxQueuedBytes.
	MaxQueuedBytes int64
	// IdleAfter is how long a shard is not used before it sleeps: it is checkpointed and its memory is given back. 0 = never.
	IdleAfter time.Duration
	// Activations is how many shards are activated at once. Default 2.
	Activations int
	// Peace is how long a host that lost a shard leaves it to the new holder while that serves it. Default 30 s.
	Peace time.Duration
	// CheckpointValueBytes of values written since the last checkpoint make one due, so that dead values go in time.
	// Default 256 MiB.
	CheckpointValueBytes int64
	// MoveBytes is how many bytes of values one round of compaction may copy, after a checkpoint. Default 64 MiB.
	MoveBytes int64
	// BackgroundTimeout bounds one checkpoint or sweep. Default 10 minutes.
	BackgroundTimeout time.Duration
	// Events are told of; may be empty.
	Events Events
}

// Events are told to whoever runs the host. They are called from its goroutines and must not block. Nil ones are not called.
type Events struct {
	// Activating tells how far a shard's activation has come, now and then.
	Activating func(shardID string, p wal.Progress)
	// Activated tells that a shard is active.
	Activated func(shardID string, a Activation)
	// Yielded tells that a shard was given up for another host that asked.
	Yielded func(shardID string)
	// Committed tells of every append of every shard, and is called on its path.
	Committed func(c host.Committed)
	// Slept tells that an idle shard went to sleep.
	Slept func(shardID string)
	// Over tells that a shard's ownership ended unasked.
	Over func(shardID string, why *kverr.Error)
	// Checkpointed tells of a checkpoint, and what was collected after it.
	Checkpointed func(shardID string, s wal.CheckpointStats, c values.Collected)
	// Swept tells what a sweep removed.
	Swept func(shardID string, s wal.SweepStats)
	// Failed tells of background work that failed; it is tried again.
	Failed func(shardID, what string, err error)
	// Told tells that watches were told of changes (or their state), how many of them together, and how long that was after the oldest of those
	// changes was seen.
	Told func(watches int, lag time.Duration)
	// Followed tells of every command and query that was followed, when its outcome leaves, and is called on its path.
	Followed func(s host.Stops, err error)
	// Jumped tells that the clock was moved forward.
	Jumped func(shardID string, by time.Duration)
}

// Activation is how a shard became active.
type Activation struct {
	Epoch uint64
	Took  time.Duration
	// TookOver: its holder before had not given it up; see wal.Log.TookOver.
	TookOver bool
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	c.Actor.EnsureDefaults()
	c.Shard.EnsureDefaults()
	c.Values.EnsureDefaults()
	if c.MemoryReserve == 0 {
		c.MemoryReserve = c.MemoryBudget / 8
	}
	if c.MaxQueuedBytes == 0 {
		c.MaxQueuedBytes = DefaultMaxQueuedBytes
	}
	if c.Activations == 0 {
		c.Activations = DefaultActivations
	}
	if c.Peace == 0 {
		c.Peace = DefaultPeace
	}
	if c.CheckpointValueBytes == 0 {
		c.CheckpointValueBytes = DefaultValueBytes
	}
	if c.MoveBytes == 0 {
		c.MoveBytes = DefaultMoveBytes
	}
	if c.BackgroundTimeout == 0 {
		c.BackgroundTimeout = DefaultBackgroundTimeout
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	faults := []error{c.Actor.Validate(), c.Shard.Validate(), c.Values.Validate()}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.Peers == nil || c.Address != "", "Address is empty: required with Peers")
	check(c.MemoryBudget >= 0, "MemoryBudget is %d: not negative", c.MemoryBudget)
	check(c.MemoryReserve >= 0 && c.MemoryReserve <= c.MemoryBudget, "MemoryReserve is %d: from 0 to MemoryBudget (%d)", c.MemoryReserve, c.MemoryBudget)
	check(c.MaxQueuedBytes >= 1, "MaxQueuedBytes is %d: at least 1", c.MaxQueuedBytes)
	check(c.IdleAfter >= 0, "IdleAfter is %v: not negative", c.IdleAfter)
	check(c.Activations >= 1, "Activations is %d: at least 1", c.Activations)
	check(c.Peace >= 0, "Peace is %v: not negative", c.Peace)
	check(c.CheckpointValueBytes >= 1, "CheckpointValueBytes is %d: at least 1", c.CheckpointValueBytes)
	check(c.MoveBytes >= 0, "MoveBytes is %d: not negative", c.MoveBytes)
	check(c.BackgroundTimeout > 0, "BackgroundTimeout is %v: more than 0", c.BackgroundTimeout)
	return errors.Join(faults...)
}
