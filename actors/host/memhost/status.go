package memhost

import (
	"cmp"
	"slices"

	"kvstore/components/kverr"
)

// States of a shard in Status. A shard whose activation failed is StateFailed until it is opened, is placed elsewhere, or nobody has tried for
// host.HeldFor; the last does not hold for one that has lost data, whatever else its activation failed for since.
const (
	StateActive     = "active"
	StateAsleep     = "asleep"
	StateActivating = "activating"
	StateReadOnly   = "readonly"
	StateFailed     = "failed"
)

// Status is how one shard, or other actor, is on this host. Of one that is not active only ID, State and Reason are known.
type Status struct {
	ID              string
	State           string
	Epoch           uint64
	Revision        uint64
	Seq             uint64 // of the last durable record
	Entries         int64  // live keys and blocks
	EntryBytes      int64  // their keys and values, wherever those are
	MemoryBytes     int64  // of the state, by the tree's own count
	LogBytes        int64  // that a restart would replay
	LogRecords      uint64 // likewise
	CheckpointBytes int64
	ValueBytes      int64        // of values apart from keys that the state names
	ValueObjects    int64        // objects that hold them
	Reason          *kverr.Error // why it is readonly, failed or another host's
}

// Status returns the state of every shard that this host knows, by id.
func (h *Host) Status() []Status {
	var all []Status
	h.slots.Range(func(_, v any) bool {
		all = append(all, h.statusOf(v.(*slot)))
		return true
	})
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (h *Host) statusOf(s *slot) Status {
	l := s.live.Load()
	if l == nil || l.Err() != nil {
		return h.statusOfClosed(s)
	}
	state, log := l.Latest(), l.Log()
	records, bytes := log.SinceCheckpoint()
	st := Status{
		ID: s.id, State: StateActive, Epoch: l.epoch, Revision: state.Revision, Seq: state.Seq, MemoryBytes: state.Tree.Bytes(),
		LogBytes: bytes, LogRecords: records, CheckpointBytes: l.checkpointBytes.Load(),
	}
	if why := l.ReadOnly(); why != nil {
		st.State, st.Reason = StateReadOnly, why
	}
	if l.shard != nil {
		t := l.shard.viewOf(state).Totals()
		st.Entries, st.EntryBytes, st.ValueBytes, st.ValueObjects = t.Items, t.ItemBytes, t.ObjectBytes, t.Objects
	}
	return st
}

// statusOfClosed is statusOf for one that is not open. What failed says nothing of a shard that is placed elsewhere meanwhile: it is never tried here
// again, and how it is there, its host tells.
func (h *Host) statusOfClosed(s *slot) Status {
	c, placed := s.state.Load(), h.placed(s.id)
	switch why := s.damage.Load(); {
	case c.name == StateActivating:
	case placed && why != nil:
		return Status{ID: s.id, State: StateFailed, Reason: why}
	case c.name == StateFailed && (!placed || !h.cfg.Actor.Clock.Now().Before(c.shown)):
		c = asleep
	}
	return Status{ID: s.id, State: c.name, Reason: c.reason}
}

// Blocks is what the shards of a host have done to blocks of prompts.
type Blocks struct {
	Evicted, EvictedBytes int64 // to make room for others
	Damaged               int64 // found so by a reader, and forgotten
}

// Blocks tells what the shards here have done to blocks of prompts.
func (h *Host) Blocks() Blocks {
	return Blocks{Evicted: h.evicted.Load(), EvictedBytes: h.evictedBytes.Load(), Damaged: h.damaged.Load()}
}

// Watches is how the watches of a host's shards are.
type Watches struct {
	Feeds  int64 // shards that watches follow, each counted for each watch
	Queued int64 // of those, with something to tell that is not told
	Held   int64 // of those, without credit: their watcher does not take what he is told
}

// Watches tells how the watches of shards here are.
func (h *Host) Watches() Watches {
	return Watches{Feeds: h.feeds.Load(), Queued: h.untold.Load(), Held: h.held.Load()}
}

// MemoryBytes is what the states of all active shards take together, by the trees' own count.
func (h *Host) MemoryBytes() int64 { return h.memory.Load() }
