package ring

import (
	"fmt"
	"iter"
	"math/bits"
	"sort"
	"strconv"
	"strings"

	"kvstore/components/key"
)

// MaxShards is how many shards a keyspace may have.
const MaxShards = key.MaxShardsInKeyspace

// Map says which shard of a keyspace owns each slot. It is immutable and safe for any number of goroutines.
type Map struct {
	uid     string
	version uint64
	ranges  []Range // in order, without gaps, neighbours of different shards
	below   []int   // below[s]: slots of shards before s; below[Shards()] = Slots
}

// Range is a run of slots with one owner: First <= slot <= Last.
type Range struct {
	First, Last uint16
	Shard       int
}

// New returns a map of version 1 that gives each of n shards, 1 to MaxShards, an equal share of the slots in one range; the
// shares differ by at most one slot. The uid is the keyspace's: 1 to 32 of a-z and 0-9.
func New(uid string, n int) (*Map, error) {
	if n < 1 || n > MaxShards {
		return nil, fmt.Errorf("ring: %d shards; there must be 1 to %d", n, MaxShards)
	}
	ranges := make([]Range, n)
	for i := range ranges {
		ranges[i] = Range{uint16(i * Slots / n), uint16((i+1)*Slots/n - 1), i}
	}
	return Make(uid, 1, ranges)
}

// Make returns a map of the given ranges, which are in order and cover all slots. Shards are numbered from 0 without gaps, and
// each owns at least one slot. Neighbouring ranges of one shard become one.
func Make(uid string, version uint64, ranges []Range) (*Map, error) {
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	if version == 0 {
		return nil, fmt.Errorf("ring: version is 0; versions count from 1")
	}
	m := &Map{uid: uid, version: version}
	next := 0
	var owned []int
	for _, r := range ranges {
		switch {
		case int(r.First) != next || r.Last < r.First || r.Last >= Slots:
			return nil, fmt.Errorf("ring: range %d..%d where %d is next of %d slots", r.First, r.Last, next, Slots)
		case r.Shard < 0 || r.Shard >= MaxShards:
			return nil, fmt.Errorf("ring: shard %d; shards are 0 to %d", r.Shard, MaxShards-1)
		}
		next = int(r.Last) + 1
		for len(owned) <= r.Shard {
			owned = append(owned, 0)
		}
		owned[r.Shard] += next - int(r.First)
		if last := len(m.ranges) - 1; last >= 0 && m.ranges[last].Shard == r.Shard {
			m.ranges[last].Last = r.Last
		} else {
			m.ranges = append(m.ranges, r)
		}
	}
	if next != Slots {
		return nil, fmt.Errorf("ring: ranges end before slot %d of %d", next, Slots)
	}
	m.below = make([]int, len(owned)+1)
	for s, n := range owned {
		if n == 0 {
			return nil, fmt.Errorf("ring: shard %d of %d owns no slot", s, len(owned))
		}
		m.below[s+1] = m.below[s] + n
	}
	return m, nil
}

// UID is the keyspace's.
func (m *Map) UID() string { return m.uid }

// Version grows with every change of the keyspace's map.
func (m *Map) Version() uint64 { return m.version }

// Shards is how many shards there are: they are numbered 0 to Shards()-1.
func (m *Map) Shards() int { return len(m.below) - 1 }

// Owner returns the number of the shard that owns a slot below Slots.
func (m *Map) Owner(slot uint16) int {
	return m.ranges[sort.Search(len(m.ranges)-1, func(i int) bool { return m.ranges[i].Last >= slot })].Shard
}

// SlotsOf is how many slots a shard owns.
func (m *Map) SlotsOf(shard int) int { return m.below[shard+1] - m.below[shard] }

// Ranges yields the runs of slots in order.
func (m *Map) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for _, r := range m.ranges {
			if !yield(r) {
				return
			}
		}
	}
}

// Share is a shard's part of a capacity or quota, by the slots that it owns. The shares of all shards add up to the capacity
// exactly. Since 0 means no limit, it is split as 0 to each, and any other capacity gives each shard at least 1, though
// it be smaller than the number of shards.
func (m *Map) Share(capacity int64, shard int) int64 {
	if capacity <= 0 {
		return 0
	}
	rest := uint64(max(0, capacity-int64(m.Shards())))
	part := func(slots int) int64 { // rest * slots / Slots, rounded down
		hi, lo := bits.Mul64(rest, uint64(slots))
		q, _ := bits.Div64(hi, lo, Slots)
		return int64(q)
	}
	return 1 + part(m.below[shard+1]) - part(m.below[shard])
}

// ShardID returns the id of a shard's actor and log, "<uid>-<n>".
func (m *Map) ShardID(shard int) string { return ShardID(m.uid, shard) }

// ShardID returns the id of shard n of the keyspace with that uid.
func ShardID(uid string, n int) string { return uid + "-" + strconv.Itoa(n) }

// ParseShardID is the reverse of ShardID. It accepts what ShardID gives and nothing else.
func ParseShardID(id string) (uid string, n int, err error) {
	uid, number, found := strings.Cut(id, "-")
	if !found {
		return "", 0, fmt.Errorf("ring: shard id %.80q is not of the form uid-number", id)
	}
	if err := checkUID(uid); err != nil {
		return "", 0, err
	}
	n, err = strconv.Atoi(number)
	if err != nil || n < 0 || n >= MaxShards || strconv.Itoa(n) != number {
		return "", 0, fmt.Errorf("ring: shard id %.80q does not end in a number from 0 to %d", id, MaxShards-1)
	}
	return uid, n, nil
}

// checkUID holds uids to what is safe in file names, blob names and Dapr actor ids.
func checkUID(uid string) error {
	if len(uid) < 1 || len(uid) > 32 {
		return fmt.Errorf("ring: uid of %d characters; it must have 1 to 32", len(uid))
	}
	for i := range len(uid) {
		if c := uid[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("ring: uid %q; it may have a-z and 0-9", uid)
		}
	}
	return nil
}
