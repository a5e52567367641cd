package fanout

import (
	"slices"
	"strings"

	"kvstore/components/kverr"
)

// Route is where the shards of a watch are to go on, for whoever leads a watcher from owner to owner.
type Route struct {
	starts []Start // in the order of the shards' ids
	// failed is how often in a row a shard could not be followed; nil: none ever.
	failed map[string]int
}

// NewRoute is the route of a watch that begins. The starts are the route's from now on.
func NewRoute(starts []Start) *Route {
	slices.SortFunc(starts, func(x, y Start) int { return strings.Compare(x.Shard, y.Shard) })
	return &Route{starts: starts}
}

// at is where a shard goes on. It is one of the route's.
func (r *Route) at(shard string) *Start {
	i, ok := slices.BinarySearchFunc(r.starts, shard, func(s Start, shard string) int { return strings.Compare(s.Shard, shard) })
	if !ok {
		return nil
	}
	return &r.starts[i]
}

// Start is where a shard goes on.
func (r *Route) Start(shard string) Start { return *r.at(shard) }

// A shard that cannot be followed now is left alone for firstPauseMS, and longer each time in a row, up to mostPauseMS.
const (
	firstPauseMS = 5
	mostPauseMS  = 1000
)

// Take takes what a shard's owner tells. When again is not nil the watcher is not told: after a pause the shard goes on there, wherever it is
// served then. An error ends the watch.
func (r *Route) Take(t *Told) (again *Start, pauseMS int64, err error) {
	s := r.at(t.Shard)
	switch {
	case t.Err == nil:
		s.Now, s.From = false, t.Cursor
		delete(r.failed, t.Shard)
		return nil, 0, nil
	case t.Err.Kind == kverr.Exhausted || !t.Err.Kind.Temporary():
		return nil, 0, t.Err
	case t.Epoch != 0 && !s.Now: // it had begun, and the owner may know of more than it has told: that none of it concerns this watcher
		s.From = t.Cursor
	}
	if r.failed == nil {
		r.failed = make(map[string]int)
	}
	fails := r.failed[t.Shard]
	r.failed[t.Shard]++
	return s, min(int64(firstPauseMS)<<min(fails, 10), mostPauseMS), nil
}
