package ring

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// formatVersion is what Encode writes and Decode takes.
const formatVersion = 1

// encoded is a map as it is stored and sent: JSON, for a map is small, rarely read, and looked at by people.
//
//	{"format":1,"uid":"91f0...","version":1,"hash":1,"ranges":[[0,2047,0],[2048,4095,1]]}
//
// A range is [first slot, last slot, shard].
type encoded struct {
	Format  int      `json:"format"`
	UID     string   `json:"uid"`
	Version uint64   `json:"version"`
	Hash    int      `json:"hash"`
	Ranges  [][3]int `json:"ranges"`
}

// Encode returns the map as JSON, the same bytes for the same map.
func (m *Map) Encode() []byte {
	e := encoded{Format: formatVersion, UID: m.uid, Version: m.version, Hash: HashVersion}
	for _, r := range m.ranges {
		e.Ranges = append(e.Ranges, [3]int{int(r.First), int(r.Last), r.Shard})
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // numbers and a checked uid
	}
	return b
}

// Decode is the reverse of Encode. It refuses a format or a hash that this release does not know, and anything that is not a
// whole map.
func Decode(b []byte) (*Map, error) {
	var e encoded
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("ring: decode map: %w", err)
	}
	if e.Format != formatVersion {
		return nil, fmt.Errorf("ring: map of format %d; this release knows %d", e.Format, formatVersion)
	}
	if e.Hash != HashVersion {
		return nil, fmt.Errorf("ring: map for hash version %d; this release knows %d", e.Hash, HashVersion)
	}
	if len(e.Ranges) > Slots {
		return nil, fmt.Errorf("ring: map of %d ranges; there are %d slots", len(e.Ranges), Slots)
	}
	ranges := make([]Range, len(e.Ranges))
	for i, r := range e.Ranges {
		if min(r[0], r[1]) < 0 || max(r[0], r[1]) >= Slots {
			return nil, fmt.Errorf("ring: range %d..%d of %d slots", r[0], r[1], Slots)
		}
		ranges[i] = Range{uint16(r[0]), uint16(r[1]), r[2]}
	}
	return Make(e.UID, e.Version, ranges)
}

// Equal reports whether two maps say the same.
func (m *Map) Equal(other *Map) bool { return bytes.Equal(m.Encode(), other.Encode()) }
