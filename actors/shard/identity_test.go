package shard

import (
	"encoding/binary"
	"testing"
)

// TestSweepKeepsPace holds the promise of DESIGN.md: under steady writes the table holds about 1.5 times the outcomes that
// must be kept, and what is looked at, and logged for it, is in proportion to the writes, whatever their rate and however long they are kept.
func TestSweepKeepsPace(t *testing.T) {
	for name, c := range map[string]struct {
		lifeMS, everyUS int64 // how long an outcome is kept, and from one write to the next
		looks           int64 // at most, of Sweep effects, for each write
	}{
		"short":                   {1000, 500, 0},
		"a busy shard":            {60_000, 2000, 2},
		"a shard of many":         {60_000, 12_000, 2},
		"kept as long as allowed": {maxNotAfterAheadMS, 24_000, 20},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(Config{})
			var key [8]byte
			start := int64(1_000_000)
			now, looks, sweeps, most := start, int64(0), int64(0), int64(0)
			ready := func() {
				if m.sweepAsked > 0 {
					sweeps++
				}
				looks += int64(m.sweepAsked)
				before := m.meta.identities
				m.Ready()
				if forgot := before - m.meta.identities; forgot > sweepPerOutcome*16+idleSweep {
					t.Fatalf("a body of 16 outcomes forgot %d", forgot)
				}
			}
			writes := 5 * c.lifeMS * 1000 / c.everyUS
			for i := range writes {
				at := start + i*c.everyUS/1000
				for now < at { // the host ticks when it is asked to
					wake := m.WakeMS()
					if now = at; wake != 0 && wake < at {
						now = wake
					}
					m.Tick(now)
					ready()
				}
				binary.BigEndian.PutUint64(key[:], uint64(i%100))
				m.Step(&Command{Op: OpPut, Namespace: 1, Put: Put{Key: key[:]}, ID: Identity{Client: [16]byte{byte(1 + i%7)}, Op: uint64(i), NotAfterMS: now + c.lifeMS}})
				if i%16 == 15 {
					ready()
				}
				if i > 2*writes/5 {
					most = max(most, m.meta.identities)
				}
			}
			alive := c.lifeMS * 1000 / c.everyUS
			t.Logf("%d writes: %d outcomes held at most, %d must be; %d Sweep effects looked at up to %d", writes, most, alive, sweeps, looks)
			if most < alive || most > alive*8/5 {
				t.Errorf("%d outcomes are held at most, %d must be", most, alive)
			}
			if looks > c.looks*writes {
				t.Errorf("%d outcomes were looked at beside those that %d writes pay for, want at most %d", looks, writes, c.looks*writes)
			}
		})
	}
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
