package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/actors/host/values"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
)

// Buckets of what is not a time of a request.
var (
	widthBuckets      = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384}
	sizeBuckets       = []float64{256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}
	commitBuckets     = []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	backgroundBuckets = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}
)

// reasonsLost are the reasons for which ownership of a shard can end unasked.
var reasonsLost = []kverr.Kind{kverr.Moved, kverr.Unavailable, kverr.OutcomeUnknown, kverr.DataLoss}

// backgroundWork is what memhost.Events.Failed names.
var backgroundWork = []string{"activate", "checkpoint", "sleep", "sweep"}

// Shards counts what a host of shards tells, and tells it on to next. It is called once.
func (t *Telemetry) Shards(next memhost.Events) memhost.Events {
	if !counting {
		return next
	}
	make1 := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		t.registry.MustRegister(c)
		return c
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		t.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		t.registry.MustRegister(h)
		return h
	}
	elections := make1("kvstore_leader_elections_total", "Shards taken over from a holder that had not given them up: it crashed or was cut off.")
	activation := histogram("kvstore_shard_activation_duration_seconds", "Time to open a shard, however it came here.", backgroundBuckets)
	yielded := make1("kvstore_shards_yielded_total", "Shards given to another host that asked: planned moves.")
	slept := make1("kvstore_shard_sleeps_total", "Shards that went to sleep because nobody used them.")
	lost := vec("kvstore_shard_ownerships_lost_total", "Ownerships that ended unasked, by reason; MOVED is a fence.", "reason")
	failed := vec("kvstore_background_failures_total", "Background work that failed; it is tried again.", "work")
	jumps := make1("kvstore_clock_jumps_total", "How often a shard saw the clock moved forward.")
	checkpoint := histogram("kvstore_checkpoint_duration_seconds", "Time of a checkpoint.", backgroundBuckets)
	checkpointBytes := make1("kvstore_checkpoint_bytes_total", "Bytes that checkpoints have written.")
	appends := newCommits()
	t.registry.MustRegister(appends)
	for _, k := range reasonsLost {
		lost.WithLabelValues(k.String())
	}
	for _, w := range backgroundWork {
		failed.WithLabelValues(w)
	}

	out := next
	out.Activated = func(id string, a memhost.Activation) {
		activation.Observe(a.Took.Seconds())
		if a.TookOver {
			elections.Inc()
		}
		if next.Activated != nil {
			next.Activated(id, a)
		}
	}
	out.Yielded = func(id string) {
		yielded.Inc()
		if next.Yielded != nil {
			next.Yielded(id)
		}
	}
	out.Slept = func(id string) {
		slept.Inc()
		if next.Slept != nil {
			next.Slept(id)
		}
	}
	out.Over = func(id string, why *kverr.Error) {
		lost.WithLabelValues(why.Kind.String()).Inc()
		if next.Over != nil {
			next.Over(id, why)
		}
	}
	out.Checkpointed = func(id string, s wal.CheckpointStats, c values.Collected) {
		checkpoint.Observe(s.Took.Seconds())
		checkpointBytes.Add(float64(s.BytesWritten))
		if next.Checkpointed != nil {
			next.Checkpointed(id, s, c)
		}
	}
	out.Failed = func(id, what string, err error) {
		failed.WithLabelValues(what).Inc()
		if next.Failed != nil {
			next.Failed(id, what, err)
		}
	}
	out.Jumped = func(id string, by time.Duration) {
		jumps.Inc()
		if next.Jumped != nil {
			next.Jumped(id, by)
		}
	}
	lag := t.latency("kvstore_watch_lag_seconds", "Time from when a shard saw a change that concerns a watch until the watch was told, on the shard's host; one count for each watch.")
	out.Told = func(watches int, late time.Duration) {
		lag.observe(watches, late)
		if next.Told != nil {
			next.Told(watches, late)
		}
	}
	out.Committed = func(c host.Committed) {
		appends.count(c)
		if next.Committed != nil {
			next.Committed(c)
		}
	}
	return out
}

// maxShardSeries is how many shards of a host have series of their own; those beyond, by id, are in the sums alone.
const maxShardSeries = 1024

// shardStates are the states of a shard.
var shardStates = []string{memhost.StateActive, memhost.StateAsleep, memhost.StateActivating, memhost.StateReadOnly, memhost.StateFailed}

// WatchHost shows the shards of a host, and the space of the engine under it. A shard's series are at the host that serves it.
func (t *Telemetry) WatchHost(engine driver.Engine, h *memhost.Host) {
	states := gauge("kvstore_shards", "Shards that this host knows, by state.", "state")
	damaged := gauge("kvstore_shards_data_loss", "Shards that are not served because stored data is damaged or gone.")
	entries := gauge("kvstore_shard_entries", "Live keys and blocks.", "shard")
	memory := gauge("kvstore_shard_memory_bytes", "Bytes of a shard's state in memory.", "shard")
	logBytes := gauge("kvstore_shard_log_bytes", "Bytes of log that a restart would replay.", "shard")
	valueBytes := gauge("kvstore_shard_value_bytes", "Bytes of values that lie apart from keys.", "shard")
	entryBytes := gauge("kvstore_shard_entry_bytes", "Bytes of live keys and blocks, with their values wherever those are.", "shard")
	epoch := gauge("kvstore_shard_epoch", "Counter of the ownership: it rises with every change of hands.", "shard")
	revision := gauge("kvstore_shard_revision", "Revision of the last durable state.", "shard")
	total := gauge("kvstore_memory_bytes", "Bytes of the states of all shards.")
	free := gauge("kvstore_engine_free_bytes", "Free space of the store.")
	reserve := gauge("kvstore_engine_reserve_bytes", "Free space below which writes stop; 0 = none.")
	follows := gauge("kvstore_watch_shards", "Shards that watches follow here, each counted for each watch.")
	queue := gauge("kvstore_watch_queue", "Of those, how many have something to tell that is not told: ready, or held because the watcher does not take what he is told.", "state")
	evicted := counter("kvstore_prompt_evictions_total", "Blocks of prompts that made room for others.")
	evictedBytes := counter("kvstore_prompt_evicted_bytes_total", "Bytes of those.")
	damagedBlocks := counter("kvstore_prompt_damaged_total", "Blocks of prompts that were found damaged, and forgotten.")
	t.read(func(tell func(*prometheus.Desc, float64, ...string)) {
		w := h.Watches()
		tell(follows.desc, float64(w.Feeds))
		tell(queue.desc, float64(max(0, w.Queued-w.Held)), "ready")
		tell(queue.desc, float64(w.Held), "held")
		b := h.Blocks()
		tell(evicted.desc, float64(b.Evicted))
		tell(evictedBytes.desc, float64(b.EvictedBytes))
		tell(damagedBlocks.desc, float64(b.Damaged))
		count := make(map[string]int)
		lost, shown := 0, 0
		for _, s := range h.Status() {
			count[s.State]++
			if s.Reason != nil && s.Reason.Kind == kverr.DataLoss {
				lost++
			}
			if s.State != memhost.StateActive && s.State != memhost.StateReadOnly || shown == maxShardSeries {
				continue
			}
			shown++
			tell(entries.desc, float64(s.Entries), s.ID)
			tell(entryBytes.desc, float64(s.EntryBytes), s.ID)
			tell(memory.desc, float64(s.MemoryBytes), s.ID)
			tell(logBytes.desc, float64(s.LogBytes), s.ID)
			tell(valueBytes.desc, float64(s.ValueBytes), s.ID)
			tell(epoch.desc, float64(s.Epoch), s.ID)
			tell(revision.desc, float64(s.Revision), s.ID)
		}
		for _, s := range shardStates {
			tell(states.desc, float64(count[s]), s)
		}
		tell(damaged.desc, float64(lost))
		tell(total.desc, float64(h.MemoryBytes()))
		f, r := engine.Space()
		tell(free.desc, float64(f))
		tell(reserve.desc, float64(r))
	}, follows, queue, evicted, evictedBytes, damagedBlocks, states, damaged, entries, entryBytes, memory, logBytes, valueBytes, epoch, revision, total, free, reserve)
}
