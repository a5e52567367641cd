package waltest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kvstore/components/btree"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest/fault"
)

// RunLog runs the suite of Log over an engine. newHarness is called for each test.
func RunLog(t *testing.T, newHarness func(t testing.TB) *Harness) {
	for _, test := range logTests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			test.run(newLogRun(t, h))
		})
	}
}

type logTest struct {
	name string
	run  func(r *logRun)
}

// logRun is a case of the suite of Log: engine, fault wrapper and store on one harness.
type logRun struct {
	run
	fault *fault.Engine
	store *wal.Store
	ahead time.Duration // of the clock that logs are opened with
}

// clock is the time as logs see it.
func (r *logRun) clock() time.Time { return time.Now().Add(r.ahead) }

// outlast moves the clock behind every lease, and behind the wait of every owner that is there.
func (r *logRun) outlast() { r.ahead += 2 * r.e.Term() }

func newLogRun(t *testing.T, h *Harness) *logRun {
	r := &logRun{run: run{T: t, h: h}}
	r.openStore()
	return r
}

// openStore opens the harness's store, with nothing that fails.
func (r *logRun) openStore() {
	r.Helper()
	r.fault = fault.Wrap(r.h.Open(r))
	r.e = r.fault
	store, err := wal.NewStore(r.fault, wal.Config{BlockBytes: 1 << 10, FanIn: 3})
	r.need(err, "store")
	r.store = store
}

// crashStore lets the process die and opens the store again.
func (r *logRun) crashStore() {
	r.Helper()
	r.fault.Clear()
	r.h.Crash(r)
	r.openStore()
}

// open opens and restores a shard.
func (r *logRun) open(shard string) (*wal.Log, *Model, error) {
	l, err := r.store.Open(r.ctx(), shard, wal.OpenOptions{Address: "here", Clock: r.clock})
	if err != nil {
		return nil, nil, err
	}
	m := &Model{}
	return l, m, l.Restore(r.ctx(), m, nil)
}

func (r *logRun) mustOpen(shard string) (*wal.Log, *Model) {
	r.Helper()
	l, m, err := r.open(shard)
	r.need(err, "open %s", shard)
	return l, m
}

// newShard makes and opens a shard.
func (r *logRun) newShard(shard string) (*wal.Log, *Model) {
	r.Helper()
	r.need(r.store.Create(r.ctx(), shard, []byte("meta of "+shard)), "create %s", shard)
	return r.mustOpen(shard)
}

// appendBody appends one body and waits for its outcome.
func (r *logRun) appendBody(l *wal.Log, body []byte) error {
	r.Helper()
	outcome := make(chan error, 2)
	want := l.Seq() + 1
	l.Append(body, 1, func(seq uint64, err error) {
		if err == nil && seq != want {
			err = fmt.Errorf("record %d was written as %d", want, seq)
		}
		outcome <- err
	})
	return r.wait(outcome)
}

// mustWrite appends a body and applies it to the model.
func (r *logRun) mustWrite(l *wal.Log, m *Model, body []byte) {
	r.Helper()
	r.need(r.appendBody(l, body), "append")
	r.need(m.Replay(body, 0), "apply")
}

// snapshot is what a host would checkpoint now.
func snapshot(l *wal.Log, m *Model) wal.Snapshot {
	return wal.Snapshot{Tree: m.tree.Clone(), Seq: l.Seq()}
}

// wantModel ends the test when got is not want.
func (r *logRun) wantModel(got, want *Model, what string, args ...any) {
	r.Helper()
	if d := got.differs(want); d != "" {
		r.Fatalf("%s: %s", fmt.Sprintf(what, args...), d)
	}
}

func newModel() *Model { return &Model{tree: &btree.Tree{}, plain: map[string]string{}} }

var logTests = []logTest{
	{"activation never creates", func(r *logRun) {
		for range 2 {
			_, err := r.store.Open(r.ctx(), "none", wal.OpenOptions{})
			r.needIs(err, driver.ErrNotExist, "open")
			_, err = r.store.Holder(r.ctx(), "none")
			r.needIs(err, driver.ErrNotExist, "holder")
		}
	}},
	{"create, open, remove", func(r *logRun) {
		r.need(r.store.Create(r.ctx(), "s", []byte("meta")), "create")
		r.needIs(r.store.Create(r.ctx(), "s", []byte("other")), wal.ErrExists, "create again")
		h, err := r.store.Holder(r.ctx(), "s")
		r.need(err, "holder")
		if h.Epoch.Counter != 0 {
			r.Fatalf("a new shard has a holder: %+v", h)
		}
		l, m := r.mustOpen("s")
		if string(l.Meta()) != "meta" || l.Shard() != "s" || l.Seq() != 1 || l.Epoch().Counter != 1 || !l.AckAfter().IsZero() {
			r.Fatalf("meta %q shard %s seq %d epoch %d ack after %v", l.Meta(), l.Shard(), l.Seq(), l.Epoch().Counter, l.AckAfter())
		}
		if m.tree.Len() != 0 {
			r.Fatal("a new shard has content")
		}
		h, err = r.store.Holder(r.ctx(), "s")
		r.need(err, "holder")
		if h.Epoch != l.Epoch() || h.Address != "here" || h.Yielded {
			r.Fatalf("holder is %+v, want %+v", h, l.Epoch())
		}
		r.need(r.store.Remove(r.ctx(), "s"), "remove")
		_, err = r.store.Open(r.ctx(), "s", wal.OpenOptions{})
		r.needIs(err, driver.ErrNotExist, "open of a removed shard")
		if got := wal.OutcomeOf(r.appendBody(l, []byte("late"))); got != wal.Lost {
			r.Fatalf("append to a removed shard is %v", got)
		}
	}},
	{"the lost reply of a create is settled", func(r *logRun) {
		r.fault.Add(fault.Rule{Verb: fault.Swap, Err: io.ErrUnexpectedEOF, After: true})
		r.need(r.store.Create(r.ctx(), "s", []byte("meta")), "create")
		r.mustOpen("s")
	}},
	{"what is appended comes back", func(r *logRun) {
		rng := rand.New(rand.NewPCG(1, 1))
		l, want := r.newShard("s")
		for range 5 {
			for range 30 {
				r.mustWrite(l, want, randomBody(rng, 100))
			}
			r.crashStore()
			var got *Model
			l, got = r.mustOpen("s")
			r.wantModel(got, want, "after a crash")
		}
		if l.Epoch().Counter != 6 || l.Seq() != 5*30+6 {
			r.Fatalf("epoch %d, seq %d", l.Epoch().Counter, l.Seq())
		}
	}},
	{"outcomes of appends", outcomesOfAppends},
	{"an older owner is shut out", olderOwner},
	{"an owner frozen across its successor's life is refused", frozenOwner},
	{"every error at every call of open", everyErrorOfOpen},
	{"yield is seen by the successor", func(r *logRun) {
		l, m := r.newShard("s")
		outcome := make(chan error, 1)
		frozen := r.fault.Add(fault.Rule{Verb: fault.Append, Freeze: true})
		body := set(nil, "key", "value")
		l.Append(body, 1, func(_ uint64, err error) { outcome <- err })
		<-frozen.Hit()
		yielded := make(chan error, 1)
		go func() { yielded <- l.Yield(r.ctx()) }()
		for l.Err() == nil { // it refuses at once, but waits for the append
			select {
			case err := <-yielded:
				r.Fatalf("yielded while an append was outstanding: %v", err)
			default:
			}
		}
		r.needIs(r.appendBody(l, body), wal.ErrEpochOver, "append after yield")
		h, err := r.store.Holder(r.ctx(), "s")
		r.need(err, "holder")
		if h.Yielded {
			r.Fatal("marked while an append was outstanding")
		}
		frozen.Thaw()
		r.need(r.wait(outcome), "append")
		r.need(m.Replay(body, 0), "apply")
		r.need(r.wait(yielded), "yield")
		h, err = r.store.Holder(r.ctx(), "s")
		r.need(err, "holder")
		if !h.Yielded {
			r.Fatal("not marked")
		}
		_, err = l.Confirm(r.ctx())
		r.needIs(err, wal.ErrEpochOver, "confirm after yield")
		_, err = l.Checkpoint(r.ctx(), snapshot(l, m))
		r.needIs(err, wal.ErrEpochOver, "checkpoint after yield")
		r.need(l.Yield(r.ctx()), "yield again")
		next, got := r.mustOpen("s")
		r.wantModel(got, m, "after yield")
		if !next.AckAfter().IsZero() {
			r.Fatal("the successor waits although the holder yielded")
		}
	}},
	{"the lost reply of a yield is settled", func(r *logRun) {
		l, _ := r.newShard("s")
		r.fault.Add(fault.Rule{Verb: fault.Swap, Err: io.ErrUnexpectedEOF, After: true})
		r.need(l.Yield(r.ctx()), "yield")
	}},
	{"an owner whose append is unknown may yield", func(r *logRun) {
		l, _ := r.newShard("s")
		r.fault.Add(fault.Rule{Verb: fault.Append, Err: io.ErrUnexpectedEOF})
		if got := wal.OutcomeOf(r.appendBody(l, set(nil, "k", "v"))); got != wal.Unknown {
			r.Fatalf("outcome %v", got)
		}
		r.need(l.Yield(r.ctx()), "yield")
		next, _ := r.mustOpen("s")
		if !next.AckAfter().IsZero() {
			r.Fatal("the successor waits although the holder yielded")
		}
	}},
	{"checkpoints are the state, and the log is trimmed", checkpointsAreTheState},
	{"a checkpoint that fails leaves a whole one", failingCheckpoints},
	{"appends go on while a checkpoint is written", func(r *logRun) {
		rng := rand.New(rand.NewPCG(1, 1))
		l, m := r.newShard("s")
		for range 50 {
			r.mustWrite(l, m, randomBody(rng, 100))
		}
		frozen := r.fault.Add(fault.Rule{Verb: fault.Put, Freeze: true})
		snap, finished := snapshot(l, m), make(chan error, 1)
		go func() {
			_, err := l.Checkpoint(r.ctx(), snap)
			finished <- err
		}()
		<-frozen.Hit()
		for range 50 {
			r.mustWrite(l, m, randomBody(rng, 100))
		}
		n, all := l.SinceCheckpoint()
		if n != l.Seq() || all == 0 {
			r.Fatalf("%d records and %d bytes since the checkpoint, want %d", n, all, l.Seq())
		}
		frozen.Thaw()
		r.need(r.wait(finished), "checkpoint")
		if l.CheckpointSeq() != snap.Seq || l.ReleasedSeq() != snap.Seq {
			r.Fatalf("checkpoint at %d, released %d, want %d", l.CheckpointSeq(), l.ReleasedSeq(), snap.Seq)
		}
		if n, bytes := l.SinceCheckpoint(); n != 50 || bytes == 0 || bytes > all*2/3 {
			r.Fatalf("%d records and %d bytes since the checkpoint, want 50 of %d and half of %d", n, bytes, l.Seq(), all)
		}
		_, got := r.mustOpen("s")
		r.wantModel(got, m, "reopened")
	}},
	{"values are packed, streamed, read, deleted and swept", valuesOfLogs},
	{"random lives with faults and crashes", randomLives},
}

func outcomesOfAppends(r *logRun) {
	for i, c := range []struct {
		err   error
		after bool
		want  wal.Outcome
	}{
		{driver.ErrNoSpace, false, wal.NotWritten},
		{driver.ErrRefused, false, wal.NotWritten},
		{driver.ErrClosed, false, wal.NotWritten},
		{&driver.NotLeaderError{Hint: "b"}, false, wal.NotWritten},
		{fmt.Errorf("deep: %w", driver.ErrNoSpace), false, wal.NotWritten},
		{driver.ErrFenced, false, wal.Lost},
		{io.ErrUnexpectedEOF, false, wal.Unknown},
		{io.ErrUnexpectedEOF, true, wal.Unknown},
		{context.DeadlineExceeded, false, wal.Unknown},
		{driver.ErrCorrupt, false, wal.Unknown},
	} {
		shard := fmt.Sprintf("s-%d", i)
		l, m := r.newShard(shard)
		r.mustWrite(l, m, set(nil, "a", "1"))
		r.fault.Add(fault.Rule{Verb: fault.Append, Err: c.err, After: c.after})
		lost := set(nil, "b", "2")
		err := r.appendBody(l, lost)
		if got := wal.OutcomeOf(err); got != c.want {
			r.Fatalf("%v: outcome %v, want %v", c.err, got, c.want)
		}
		r.needIs(err, c.err, "append")
		if goesOn := c.want == wal.NotWritten; goesOn != (l.Err() == nil) {
			r.Fatalf("%v: the log's error is %v", c.err, l.Err())
		} else if goesOn {
			r.mustWrite(l, m, set(nil, "c", "3"))
		} else if got := wal.OutcomeOf(r.appendBody(l, lost)); got != wal.Lost {
			r.Fatalf("%v: a later append is %v", c.err, got)
		}
		if c.after {
			r.need(m.Replay(lost, 0), "apply")
		}
		_, got := r.mustOpen(shard)
		r.wantModel(got, m, "after %v", c.err)
	}
}

func olderOwner(r *logRun) {
	rng := rand.New(rand.NewPCG(1, 1))
	old, m := r.newShard("s")
	for range 20 {
		r.mustWrite(old, m, randomBody(rng, 50))
	}
	stale := m.clone()
	l, m := r.mustOpen("s")
	r.wantModel(m, stale, "second owner")
	if got := wal.OutcomeOf(r.appendBody(old, []byte("late"))); got != wal.Lost {
		r.Fatalf("append of the older owner is %v", got)
	}
	r.needIs(old.Err(), wal.ErrFenced, "older owner")
	old, _ = l, old
	l, m = r.mustOpen("s")
	_, err := old.Checkpoint(r.ctx(), wal.Snapshot{Tree: stale.tree.Clone(), Seq: old.Seq()})
	r.needIs(err, wal.ErrFenced, "checkpoint of an older owner that does not know yet")
	r.outlast() // before that a yield is not even tried
	if err := old.Yield(r.ctx()); err == nil {
		r.Fatal("an older owner yielded")
	}
	r.mustWrite(l, m, randomBody(rng, 50))
	_, err = l.Sweep(r.ctx(), func(wal.ObjectID) bool { return true })
	r.need(err, "sweep")
	if names := r.names("s", "c/"); len(names) > 0 {
		r.Fatalf("runs of older owners are left: %v", names)
	}
	_, err = l.Checkpoint(r.ctx(), snapshot(l, m))
	r.need(err, "checkpoint")
	_, got := r.mustOpen("s")
	r.wantModel(got, m, "reopened")
}

func frozenOwner(r *logRun) {
	rng := rand.New(rand.NewPCG(1, 1))
	old, m := r.newShard("s")
	r.mustWrite(old, m, randomBody(rng, 50))
	frozen := r.fault.Add(fault.Rule{Verb: fault.Append, Freeze: true})
	outcome := make(chan error, 1)
	old.Append(randomBody(rng, 50), 1, func(_ uint64, err error) { outcome <- err })
	<-frozen.Hit()
	l, got := r.mustOpen("s")
	r.wantModel(got, m, "successor")
	for range 20 {
		r.mustWrite(l, got, randomBody(rng, 50))
	}
	stats, err := l.Checkpoint(r.ctx(), snapshot(l, got))
	r.need(err, "checkpoint")
	r.need(stats.Cleanup, "clean up")
	frozen.Thaw()
	if o := wal.OutcomeOf(r.wait(outcome)); o != wal.Lost {
		r.Fatalf("append of the frozen owner is %v", o)
	}
	r.mustWrite(l, got, randomBody(rng, 50))
	_, again := r.mustOpen("s")
	r.wantModel(again, got, "reopened")
}

// everyErrorOfOpen lets each engine call of an activation fail in each way. Activation must succeed or say so, lose nothing,
// and the next one must succeed.
func everyErrorOfOpen(r *logRun) {
	rng := rand.New(rand.NewPCG(1, 1))
	l, want := r.newShard("s")
	for i := range 40 {
		r.mustWrite(l, want, randomBody(rng, 60))
		if i%10 == 5 {
			_, err := l.Checkpoint(r.ctx(), snapshot(l, want))
			r.need(err, "checkpoint")
		}
	}
	count := r.fault.Add(fault.Rule{Verb: fault.Any, Times: -1})
	_, got := r.mustOpen("s")
	r.wantModel(got, want, "reopened")
	calls := count.Hits()
	count.Remove()
	failed := 0
	for nth := 1; nth <= calls; nth++ {
		for _, failure := range []error{io.ErrUnexpectedEOF, driver.ErrRefused, driver.ErrNoSpace, driver.ErrClosed} {
			for _, after := range []bool{false, true} {
				rule := r.fault.Add(fault.Rule{Verb: fault.Any, Nth: nth, Err: failure, After: after})
				l, got, err := r.open("s")
				if err == nil {
					r.wantModel(got, want, "call %d of open gave %v (after: %v)", nth, failure, after)
					r.mustWrite(l, want, randomBody(rng, 60))
				} else {
					failed++
					r.needIs(err, failure, "call %d of open", nth)
				}
				rule.Remove()
				l, got = r.mustOpen("s")
				r.wantModel(got, want, "opened after call %d of open gave %v (after: %v)", nth, failure, after)
				r.mustWrite(l, want, randomBody(rng, 60))
			}
		}
	}
	if failed == 0 {
		r.Fatal("no failure was felt")
	}
}

func checkpointsAreTheState(r *logRun) {
	rng := rand.New(rand.NewPCG(1, 1))
	l, m := r.newShard("s")
	full := 0
	for i := range 60 {
		if i == 40 { // nearly everything goes
			body := []byte{}
			for key := range m.plain {
				if key != "key/7" {
					body = remove(body, key)
				}
			}
			r.mustWrite(l, m, body)
		}
		for range 1 + rng.IntN(5) {
			r.mustWrite(l, m, randomBody(rng, 400))
		}
		r.mustWrite(l, m, set(nil, fmt.Sprintf("key/%d", i), fmt.Sprintf("of round %d", i)))
		stats, err := l.Checkpoint(r.ctx(), snapshot(l, m))
		r.need(err, "checkpoint %d", i)
		r.need(stats.Cleanup, "clean up after checkpoint %d", i)
		if stats.Full {
			full++
		}
		names := r.names("s", "c/")
		if stats.Seq != l.Seq() || stats.Runs != len(names) || stats.Changed == 0 || stats.BytesWritten == 0 {
			r.Fatalf("checkpoint %d: %+v, objects %v", i, stats, names)
		}
		again, err := l.Checkpoint(r.ctx(), snapshot(l, m))
		r.need(err, "checkpoint of nothing")
		if again.BytesWritten != 0 || again.Seq != stats.Seq {
			r.Fatalf("a checkpoint of nothing: %+v", again)
		}
		if i%7 == 0 {
			var got *Model
			l, got = r.mustOpen("s")
			r.wantModel(got, m, "opened after checkpoint %d", i)
		}
	}
	if full < 2 || full > 30 {
		r.Fatalf("%d of 60 checkpoints were full ones", full)
	}
	// an epoch's fence alone needs no run, only the manifest moves
	before := r.names("s", "c/")
	l, m = r.mustOpen("s")
	stats, err := l.Checkpoint(r.ctx(), snapshot(l, m))
	r.need(err, "checkpoint of a fence")
	if after := r.names("s", "c/"); !slices.Equal(before, after) && !stats.Full {
		r.Fatalf("a checkpoint without changes turned %v into %v", before, after)
	}
	r.crashStore()
	_, got := r.mustOpen("s")
	r.wantModel(got, m, "after a crash")
}

// failingCheckpoints lets each engine call of a checkpoint fail in each way, goes on, and compares.
func failingCheckpoints(r *logRun) {
	rng := rand.New(rand.NewPCG(1, 1))
	l, m := r.newShard("s")
	for nth := 1; nth <= 12; nth++ {
		for _, failure := range []error{io.ErrUnexpectedEOF, driver.ErrNoSpace, driver.ErrRefused} {
			for _, after := range []bool{false, true} {
				for _, times := range []int{1, 3} {
					for range 3 {
						r.mustWrite(l, m, randomBody(rng, 200))
					}
					rule := r.fault.Add(fault.Rule{Verb: fault.Any, Nth: nth, Times: times, Err: failure, After: after})
					snap := snapshot(l, m)
					stats, err := l.Checkpoint(r.ctx(), snap)
					rule.Remove()
					if err != nil || stats.Cleanup != nil {
						r.needIs(cmp.Or(err, stats.Cleanup), failure, "checkpoint")
					}
					if err == nil && l.CheckpointSeq() != snap.Seq {
						r.Fatalf("a checkpoint of record %d succeeded and stands at %d", snap.Seq, l.CheckpointSeq())
					}
					if rng.IntN(2) == 0 {
						r.mustWrite(l, m, randomBody(rng, 200))
						_, err := l.Checkpoint(r.ctx(), snapshot(l, m))
						r.need(err, "the checkpoint after call %d gave %v (after: %v)", nth, failure, after)
					}
					if rng.IntN(3) == 0 {
						var got *Model
						l, got = r.mustOpen("s")
						r.wantModel(got, m, "opened after call %d of a checkpoint gave %v (after: %v, times: %d)", nth, failure, after, times)
					}
				}
			}
		}
	}
	_, err := l.Sweep(r.ctx(), func(wal.ObjectID) bool { return false })
	r.need(err, "sweep")
	stats, err := l.Checkpoint(r.ctx(), snapshot(l, m))
	r.need(err, "checkpoint")
	l, _ = r.mustOpen("s")
	_, err = l.Sweep(r.ctx(), func(wal.ObjectID) bool { return false })
	r.need(err, "sweep")
	if names := r.names("s", "c/"); len(names) != stats.Runs {
		r.Fatalf("objects %v are left of %d runs", names, stats.Runs)
	}
}

func valuesOfLogs(r *logRun) {
	l, _ := r.newShard("s")
	values := [][]byte{pattern(3000, 1), nil, pattern(1, 2), pattern(100_000, 3)}
	id, size, offsets, err := l.PackValues(r.ctx(), values)
	r.need(err, "pack")
	if size != 103_001 || len(offsets) != 4 {
		r.Fatalf("size %d, offsets %v", size, offsets)
	}
	big, err := l.StreamValue(r.ctx(), -1, bytes.NewReader(pattern(2<<20, 4)))
	r.need(err, "stream")
	if big == id || id.Epoch != 1 || id == (wal.ObjectID{}) {
		r.Fatalf("ids %v and %v", id, big)
	}
	r.crashStore()
	l, _ = r.mustOpen("s")
	for i, v := range values {
		got := make([]byte, len(v))
		r.need(l.ReadValue(r.ctx(), id, offsets[i], got), "read value %d", i)
		if !bytes.Equal(got, v) {
			r.Fatalf("value %d differs", i)
		}
	}
	part := make([]byte, 1000)
	r.need(l.ReadValue(r.ctx(), big, 1<<20, part), "read a part")
	if !bytes.Equal(part, pattern(2<<20, 4)[1<<20:1<<20+1000]) {
		r.Fatal("the part differs")
	}
	r.needIs(l.ReadValue(r.ctx(), id, size, part), driver.ErrCorrupt, "read beyond the end")
	orphan, _, _, err := l.PackValues(r.ctx(), [][]byte{[]byte("orphan")})
	r.need(err, "pack")
	if orphan.Epoch != 2 {
		r.Fatalf("the second epoch made %v", orphan)
	}
	asked := 0
	stats, err := l.Sweep(r.ctx(), func(o wal.ObjectID) bool { asked++; return o == id })
	r.need(err, "sweep")
	if stats.Values != 1 || stats.Bytes != 2<<20 || asked < 2 {
		r.Fatalf("swept %+v after %d questions", stats, asked)
	}
	r.needIs(l.ReadValue(r.ctx(), big, 0, part), driver.ErrNotExist, "read a swept object")
	r.need(l.ReadValue(r.ctx(), orphan, 0, make([]byte, 6)), "read an object of this epoch")
	r.need(l.DeleteObject(r.ctx(), id), "delete")
	r.need(l.DeleteObject(r.ctx(), id), "delete again")
	r.needIs(l.ReadValue(r.ctx(), id, 0, part), driver.ErrNotExist, "read a deleted object")
	l, _ = r.mustOpen("s")
	stats, err = l.Sweep(r.ctx(), func(wal.ObjectID) bool { return false })
	r.need(err, "sweep")
	if names := r.names("s", "v/"); stats.Values != 1 || len(names) != 0 {
		r.Fatalf("swept %+v, left %v", stats, names)
	}
	l.Close()
	_, err = l.StreamValue(r.ctx(), 1, bytes.NewReader([]byte("x")))
	r.needIs(err, wal.ErrEpochOver, "stream after close")
}

// randomLives is the test of everything together: seeds of appends, checkpoints, faults anywhere, crashes and reopenings. The
// state must always be that of the acknowledged appends, and at most the one whose outcome was unknown.
func randomLives(r *logRun) {
	for seed := range uint64(20) {
		r.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			sub := *r
			sub.T = t
			defer func() { r.fault, r.store, r.e = sub.fault, sub.store, sub.e }()
			shard := fmt.Sprintf("life-%d", seed)
			sub.need(sub.store.Create(sub.ctx(), shard, nil), "create")
			randomLife(&sub, shard, rand.New(rand.NewPCG(seed, 7)))
		})
	}
}

func randomLife(r *logRun, shard string, rng *rand.Rand) {
	want := newModel()
	maybe := want // want and perhaps one append more
	var l *wal.Log
	failures := []error{io.ErrUnexpectedEOF, errors.New("odd"), context.DeadlineExceeded, driver.ErrRefused, driver.ErrNoSpace}
	const unknown = 3 // of them, those that may be a lost reply; the others promise that nothing was written
	for step := range 150 {
		if rng.IntN(4) == 0 {
			n := rng.IntN(len(failures))
			r.fault.Add(fault.Rule{Verb: fault.Any, Nth: 1 + rng.IntN(8), Times: 1 + rng.IntN(2), Err: failures[n], After: n < unknown && rng.IntN(2) == 0})
		}
		switch n := rng.IntN(20); {
		case l == nil:
			next, got, err := r.open(shard)
			if err != nil {
				if !felt(err, failures) {
					r.Fatalf("step %d: open: %v", step, err)
				}
				r.fault.Clear()
				continue
			}
			d := got.differs(want)
			if d != "" {
				if got.differs(maybe) != "" {
					r.Fatalf("step %d: opened with a wrong state: %s", step, d)
				}
				want = maybe
			}
			maybe, l = want, next
		case n < 12:
			body := randomBody(rng, 80)
			next := want.clone()
			r.need(next.Replay(body, 0), "apply")
			switch err := r.appendBody(l, body); wal.OutcomeOf(err) {
			case wal.Written:
				want, maybe = next, next
			case wal.Unknown:
				maybe, l = next, nil
			case wal.Lost:
				r.Fatalf("step %d: append lost: %v", step, err)
			}
		case n < 16:
			if _, err := l.Checkpoint(r.ctx(), wal.Snapshot{Tree: want.tree.Clone(), Seq: l.Seq()}); err != nil && !felt(err, failures) {
				r.Fatalf("step %d: checkpoint: %v", step, err)
			}
		case n < 17:
			if _, err := l.Sweep(r.ctx(), func(wal.ObjectID) bool { return false }); err != nil && !felt(err, failures) {
				r.Fatalf("step %d: sweep: %v", step, err)
			}
		case n < 18:
			if err := l.Yield(r.ctx()); err != nil && !felt(err, failures) {
				r.Fatalf("step %d: yield: %v", step, err)
			}
			l = nil
		case n < 19:
			r.crashStore()
			l = nil
		default:
			l = nil
		}
	}
	r.fault.Clear()
	_, got := r.mustOpen(shard)
	if d := got.differs(want); d != "" && got.differs(maybe) != "" {
		r.Fatalf("at the end: %s", d)
	}
}

// felt tells whether err comes from one of the failures that were put in.
func felt(err error, failures []error) bool {
	for _, f := range failures {
		if errors.Is(err, f) {
			return true
		}
	}
	return false
}
