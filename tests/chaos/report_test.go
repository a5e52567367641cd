package chaos

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"kvstore/tests/testenv"
)

// report is what a run measured.
type report struct {
	seed    uint64
	shards  int
	tenths  int
	effects []effect
	seen    map[string]int // acknowledged operations, by verb
	took    time.Duration
}

func (r *report) add(e effect) { r.effects = append(r.effects, e) }

// of gathers the pauses of one kind of fault.
func (r *report) of(f *fault) (times int, moved, stayed, whole []time.Duration) {
	for _, e := range r.effects {
		if e.fault == f {
			times++
			moved = append(moved, e.moved...)
			stayed = append(stayed, e.stayed...)
			whole = append(whole, e.whole)
		}
	}
	return times, moved, stayed, whole
}

// missed lists the targets that were not met.
func (r *report) missed() (all []string) {
	for i := range faults {
		f := &faults[i]
		if _, moved, _, _ := r.of(f); f.target > 0 && percentile(moved, 99) > testenv.AtMost(f.target) {
			all = append(all, fmt.Sprintf("%s: writes to shards that moved were away for %v at p99, wanted at most %v", f.name, percentile(moved, 99), testenv.AtMost(f.target)))
		}
	}
	return all
}

// String is the report in Markdown.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# A cluster taken apart\n")
	fmt.Fprintf(&b, "`make chaos KVSTORE_CHAOS_SEED=%d`: %d faults in %v, one after the other, on a cluster of processes on one machine\n", r.seed, len(r.effects), r.took.Round(time.Second))
	fmt.Fprintf(&b, "(%d CPUs, %s; three shard hosts and two frontends, each with a daprd, %d shards, placement, one Redis with appendfsync always),\n", runtime.NumCPU(), runtime.Version(), r.shards)
	fmt.Fprintf(&b, "with checked clients and a probe for each shard, which writes every %v. What is killed is started again after 200 ms.\n\n", probePace)
	fmt.Fprintf(&b, "No acknowledged write was lost, none was applied twice, no read was stale, no client saw an error.\n\n")
	fmt.Fprintf(&b, "| fault | times | shards that moved | away p50 | p99 | longest | wanted p99 | shards that stayed: away p99 | longest | all as before, p50 |\n")
	fmt.Fprintf(&b, "|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range faults {
		f := &faults[i]
		times, moved, stayed, whole := r.of(f)
		if times == 0 {
			continue
		}
		wanted := "-"
		if f.target > 0 {
			wanted = fmt.Sprint(testenv.AtMost(f.target))
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s | %s | %s | %s | %s | %s | %s |\n", f.name, times, len(moved), short(percentile(moved, 50)), short(percentile(moved, 99)),
			short(percentile(moved, 100)), wanted, short(percentile(stayed, 99)), short(percentile(stayed, 100)), short(percentile(whole, 50)))
	}
	fmt.Fprintf(&b, "\nAway is the longest time between two acknowledged writes of a shard, from the fault until all was as before; shards move back, too, once\ntheir host is back, and both moves count.\n")
	fmt.Fprintf(&b, "\nAcknowledged and verified, by verb:\n")
	for _, verb := range slices.Sorted(maps.Keys(r.seen)) {
		fmt.Fprintf(&b, "%s %d; ", verb, r.seen[verb])
	}
	return strings.TrimSuffix(b.String(), "; ") + ".\n"
}

// percentile is the smallest value that p in a hundred are at or below; 0 of none.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func short(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// spread is the middle and the longest of some times.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (longest %s)", short(percentile(all, 50)), short(percentile(all, 100)))
}
