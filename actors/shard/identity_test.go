package shard

import (
	"encoding/binary"
	"testing"
)

// TestSweepKeepsPace holds the promise of DESIGN.md: under steady writes the table holds about 1.5 times the outcomes that
// must be kept, and no body looks at more than in proportion to what it adds.
func TestSweepKeepsPace(t *testing.T) {
	const lifeMS, perMS = 1000, 2
	m := New(Config{})
	now, most := int64(1_000_000), int64(0)
	var key [8]byte
	for i := range 50_000 {
		if i%perMS == 0 {
			now++
			m.Tick(now)
		}
		binary.BigEndian.PutUint64(key[:], uint64(i%100))
		m.Step(&Command{Op: OpPut, Namespace: 1, Put: Put{Key: key[:]}, ID: Identity{Client: [16]byte{byte(1 + i%7)}, Op: uint64(i), NotAfterMS: now + lifeMS}})
		if i%16 == 15 {
			before := m.meta.identities
			m.Ready()
			if forgot := before - m.meta.identities; forgot > sweepPerOutcome*16+idleSweep {
				t.Fatalf("a body of 16 outcomes forgot %d", forgot)
			}
			if i > 2*lifeMS*perMS {
				most = max(most, m.meta.identities)
			}
		}
	}
	if alive := int64(lifeMS * perMS); most < alive || most > alive*8/5 {
		t.Errorf("%d outcomes are held at most, %d must be", most, alive)
	}
	t.Logf("%d outcomes held at most, %d must be", most, lifeMS*perMS)
}

// TestIdentityKeys: keys of one client ascend with its counter and index, which is what makes their writes cheap, and no two
// identities share one.
func TestIdentityKeys(t *testing.T) {
	last := ""
	for _, op := range []uint64{0, 1, 255, 256, 65535, 65536, 1 << 40, 1<<64 - 1} {
		for _, index := range []uint32{0, 1, 255, 256, 1 << 31} {
			for _, slot := range []uint16{0, 7, 4095} {
				k := string(appendIdentityKey(nil, slot, &Identity{Client: [16]byte{9}, Op: op, Index: index}))
				if k <= last {
					t.Errorf("the key of op %d, index %d, slot %d is not after the one before", op, index, slot)
				}
				last = k
			}
		}
	}
}
