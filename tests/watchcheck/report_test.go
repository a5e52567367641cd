package watchcheck

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"kvstore/tests/checked"
)

// outcome is what became of a run.
type outcome struct {
	store    string
	verified int            // judgements
	done     map[string]int // what was done to watches
	told     map[string]map[string]int
	acks     int64
	took     time.Duration
}

// report is that of all runs.
type report struct {
	events   int
	seed     uint64
	outcomes []outcome
}

func (r *report) add(o outcome) { r.outcomes = append(r.outcomes, o) }

// missing is what did not happen, and must for the run to say something. In a long one everything happens to every watcher.
func (o *outcome) missing(long bool) (all []string) {
	for what, n := range o.done {
		if n == 0 {
			all = append(all, "it never happened: "+what)
		}
	}
	outsiders := slices.Concat(outsiderKinds.sse, outsiderKinds.single)
	for i, k := range slices.Concat(outsiders, checked.EveryKind()) {
		told := o.told[k.Name]
		switch {
		case !long && !k.Sleeps && i >= len(outsiders): // the others leave soon enough
		case told["events"] == 0:
			all = append(all, "no event was told to a watcher of "+k.Name)
		case told["resumed"] == 0:
			all = append(all, "it never went on from its token: a watcher of "+k.Name)
		case k.Sleeps && k.All && told["COMPACTED"] == 0, k.Sleeps && !k.All && told["RESYNC"] == 0:
			all = append(all, "its changes were never gone: a watcher of "+k.Name)
		case k.PrevValue && told["values before"] == 0:
			all = append(all, "no value before was told to a watcher of "+k.Name)
		}
	}
	return all
}

// columns of the table; what is counted under which name.
var columns = []struct{ title, of string }{
	{"events", "events"}, {"PUT", "PUT"}, {"DELETE", "DELETE"}, {"EXPIRE", "EXPIRE"}, {"STORED", "STORED"}, {"REMOVED", "REMOVED"},
	{"went on from its token", "resumed"}, {"told the state anew", "RESYNC"}, {"told that changes are gone", "COMPACTED"},
}

// String is the outcome in Markdown.
func (o *outcome) String() string {
	var b strings.Builder
	total := 0
	for _, told := range o.told {
		total += told["events"]
	}
	fmt.Fprintf(&b, "## %s\n%d events told and judged in %v, %d operations acknowledged; %d judgements, nothing wrong.\n\n", o.store, total, o.took.Round(time.Second), o.acks, o.verified)
	fmt.Fprintf(&b, "| done to watches | times |\n|---|---|\n")
	for _, what := range slices.Sorted(maps.Keys(o.done)) {
		fmt.Fprintf(&b, "| %s | %d |\n", what, o.done[what])
	}
	fmt.Fprintf(&b, "\n| watcher of |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	fmt.Fprintf(&b, "\n|---|%s\n", strings.Repeat("---|", len(columns)))
	for _, name := range slices.Sorted(maps.Keys(o.told)) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, c := range columns {
			fmt.Fprintf(&b, " %d |", o.told[name][c.of])
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// String is the report in Markdown.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Watches, broken in all ways\n")
	fmt.Fprintf(&b, "`make watch-check EVENTS=%d KVSTORE_WATCH_SEED=%d` on one machine (%d CPUs, %s). What is judged: [tests/checked](../checked/doc.go); that each rule finds what\n", r.events, r.seed, runtime.NumCPU(), runtime.Version())
	fmt.Fprintf(&b, "breaks it: TestAccount there. The witness is the watcher that the others, and what clients were answered, are held against. Watchers share the Watches streams of four\n")
	fmt.Fprintf(&b, "clients; those by SSE (REST), and by a Watch, have a connection or a stream each. All connections go through the proxies that cut them.\n")
	for i := range r.outcomes {
		fmt.Fprintf(&b, "\n%s", &r.outcomes[i])
	}
	return b.String()
}
