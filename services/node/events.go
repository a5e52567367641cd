package node

import (
	"time"

	"kvstore/actors/host/memhost"
	"kvstore/actors/host/values"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// events turns what shards tell into the log. What comes often is for -log-level debug.
func (n *Node) events() memhost.Events {
	log := n.cfg.Log
	return n.metrics.Shards(memhost.Events{
		Activating: n.progress.note,
		Activated: func(shard string, a memhost.Activation) {
			log.Debug("shard active", "shard", shard, "epoch", a.Epoch, "took", a.Took.Round(time.Millisecond).String(), "took_over", a.TookOver)
		},
		Slept: func(shard string) { log.Debug("shard asleep", "shard", shard) },
		Over: func(shard string, why *kverr.Error) {
			log.Warn("shard lost, it will be opened again", "shard", shard, "error", why)
		},
		Checkpointed: func(shard string, s wal.CheckpointStats, c values.Collected) {
			log.Debug("checkpoint", "shard", shard, "seq", s.Seq, "collected", c)
		},
		Swept: func(shard string, s wal.SweepStats) { log.Debug("swept", "shard", shard, "what", s) },
		Failed: func(shard, what string, err error) {
			log.Warn("background work failed, it will be tried again", "shard", shard, "what", what, "error", err)
		},
		Jumped: func(shard string, by time.Duration) {
			log.Warn("the clock was moved forward", "shard", shard, "by", by.String())
		},
	})
}
