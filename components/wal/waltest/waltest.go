// Package waltest is the conformance suite of log engines, and of Log over them. Every engine's tests call Run with a
// Harness; the in-memory engine is no exception. What an engine must do is said in driver.Engine; each rule there has a
// test here. Subpackage fault makes any engine fail on purpose.
package waltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"kvstore/components/wal/driver"
)

// patience is how long a test waits for something that must happen.
const patience = 30 * time.Second

// Harness holds one store that starts empty, and what can be done to it. At most one engine is open on it at a time, but for Beside.
type Harness struct {
	// Open opens the store; again after the engine was closed or crashed.
	Open func(t testing.TB) driver.Engine
	// Beside opens the store a second time, as another process would, while the engine that Open gave is open. The test closes it.
	// nil when one process has the store for itself.
	Beside func(t testing.TB) driver.Engine
	// Crash ends the open engine as the death of its process would: whatever is not durable may be gone. The next Open is the
	// restart.
	Crash func(t testing.TB)
	// TearTail adds to the store what an append that a crash cut short leaves behind the last record of shard. The engine is
	// closed. nil when the engine has no such state.
	TearTail func(t testing.TB, shard string)
	// DamageRecord flips a bit of the stored bytes of a record of shard; data is the record's. The engine is closed. nil when
	// stored bytes cannot change.
	DamageRecord func(t testing.TB, shard string, data []byte)
	// Unsupported says why functions above are nil; tests that need them are skipped with it.
	Unsupported string
}

// Run runs the suite of engines. newHarness is called for each test.
func Run(t *testing.T, newHarness func(t testing.TB) *Harness) {
	groups := []struct {
		name  string
		tests []engineTest
	}{
		{"Manifest", manifestTests},
		{"Records", recordTests},
		{"Fence", fenceTests},
		{"Objects", objectTests},
		{"Crash", crashTests},
		{"Beside", besideTests},
		{"Names", nameTests},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, test := range g.tests {
				t.Run(test.name, func(t *testing.T) {
					h := newHarness(t)
					test.run(&run{T: t, h: h, e: h.Open(t)})
				})
			}
		})
	}
}

// engineTest is one case of the suite.
type engineTest struct {
	name string
	run  func(r *run)
}

// run is one case under way: a test, its harness, and the engine that is open.
type run struct {
	*testing.T
	h *Harness
	e driver.Engine
}

func (r *run) ctx() context.Context { return r.Context() }

// need ends the test with an error when err is not nil.
func (r *run) need(err error, what string, args ...any) {
	r.Helper()
	if err != nil {
		r.Fatalf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// needIs ends the test unless err is target.
func (r *run) needIs(err, target error, what string, args ...any) {
	r.Helper()
	if !errors.Is(err, target) {
		r.Fatalf("%s: got error %v, want %v", fmt.Sprintf(what, args...), err, target)
	}
}

// reopen closes the engine and opens the store again.
func (r *run) reopen() {
	r.Helper()
	r.need(r.e.Close(), "close")
	r.e = r.h.Open(r)
}

// crash lets the engine die and opens the store again.
func (r *run) crash() {
	r.Helper()
	r.h.Crash(r)
	r.e = r.h.Open(r)
}

// create makes a shard by its first manifest.
func (r *run) create(shard string) {
	r.Helper()
	_, err := r.e.SwapManifest(r.ctx(), shard, "", []byte("first manifest"))
	r.need(err, "create %s", shard)
}

// epoch returns an epoch by a writer that is told by one letter.
func epoch(counter uint64, writer byte) driver.Epoch {
	return driver.Epoch{Counter: counter, Writer: [16]byte{writer}}
}

// fence places a fence whose data says what it is, and returns its seq and the previous epoch that the engine told.
func (r *run) fence(shard string, e driver.Epoch) (seq, previous uint64, err error) {
	told := uint64(1 << 60)
	seq, err = r.e.Fence(r.ctx(), shard, e, func(seq, previousEpoch uint64) []byte {
		told = previousEpoch
		return fenceData(seq, e)
	})
	return seq, told, err
}

// mustFence is fence that must succeed.
func (r *run) mustFence(shard string, e driver.Epoch) uint64 {
	r.Helper()
	seq, _, err := r.fence(shard, e)
	r.need(err, "fence %s for epoch %d", shard, e.Counter)
	return seq
}

func fenceData(seq uint64, e driver.Epoch) []byte {
	return fmt.Appendf(nil, "fence %d of epoch %d writer %x", seq, e.Counter, e.Writer[0])
}

func recordData(seq uint64, e driver.Epoch) []byte {
	return fmt.Appendf(nil, "record %d of epoch %d writer %x", seq, e.Counter, e.Writer[0])
}

// appendAsync starts an append; its outcome comes on the channel, once.
func (r *run) appendAsync(shard string, e driver.Epoch, seq uint64, data []byte) <-chan error {
	outcome := make(chan error, 2)
	r.e.Append(shard, e, driver.Frame{Epoch: e.Counter, Seq: seq, Data: data}, func(err error) { outcome <- err })
	return outcome
}

// append appends one record and waits.
func (r *run) append(shard string, e driver.Epoch, seq uint64, data []byte) error {
	r.Helper()
	return r.wait(r.appendAsync(shard, e, seq, data))
}

func (r *run) wait(outcome <-chan error) error {
	r.Helper()
	select {
	case err := <-outcome:
		return err
	case <-time.After(patience):
		r.Fatal("an append was never done")
		return nil
	}
}

// fill appends records from seq on, n of them, and returns the next seq.
func (r *run) fill(shard string, e driver.Epoch, seq uint64, n int) uint64 {
	r.Helper()
	for range n {
		r.need(r.append(shard, e, seq, recordData(seq, e)), "append %d", seq)
		seq++
	}
	return seq
}

// read returns all records from seq on.
func (r *run) read(shard string, from uint64) ([]driver.Frame, error) {
	var frames []driver.Frame
	err := r.e.Read(r.ctx(), shard, from, func(f driver.Frame) error {
		frames = append(frames, f)
		return nil
	})
	return frames, err
}

// wantRecords checks that the records from seq on are exactly those, by data, and have contiguous numbers.
func (r *run) wantRecords(shard string, from uint64, want ...[]byte) {
	r.Helper()
	frames, err := r.read(shard, from)
	r.need(err, "read %s from %d", shard, from)
	if len(frames) != len(want) {
		r.Fatalf("read %s from %d: %d records, want %d", shard, from, len(frames), len(want))
	}
	for i, f := range frames {
		if f.Seq != from+uint64(i) || !bytes.Equal(f.Data, want[i]) {
			r.Fatalf("read %s: record %d is %d %.60q, want %.60q", shard, from+uint64(i), f.Seq, f.Data, want[i])
		}
	}
}

// pattern returns n bytes that differ from place to place and from seed to seed.
func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x >> 32)
	}
	return p
}

// names returns the names of objects with a prefix, sorted.
func (r *run) names(shard, prefix string) []string {
	r.Helper()
	var names []string
	err := r.e.ListObjects(r.ctx(), shard, prefix, func(name string, _ int64) error {
		names = append(names, name)
		return nil
	})
	r.need(err, "list %s of %s", prefix, shard)
	slices.Sort(names)
	return names
}
