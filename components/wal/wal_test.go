package wal_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"kvstore/components/btree"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
)

func treeOf(items map[string]string) *btree.Tree {
	var b btree.Builder
	for _, k := range slices.Sorted(maps.Keys(items)) {
		b.Add([]byte(k), []byte(items[k]))
	}
	return b.Tree()
}

func TestConfig(t *testing.T) {
	var c wal.Config
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = wal.Config{BlockBytes: 1, FanIn: 1, YieldTimeout: -1}
	err := c.Validate()
	for _, field := range []string{"BlockBytes", "FanIn", "YieldTimeout"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not name %s", err, field)
		}
	}
	if _, err := wal.NewStore(nil, c); err == nil {
		t.Error("a store was made with a bad configuration")
	}
}

func TestOutcomeOf(t *testing.T) {
	for err, want := range map[error]wal.Outcome{
		nil:                      wal.Written,
		driver.ErrNoSpace:        wal.NotWritten,
		driver.ErrClosed:         wal.NotWritten,
		driver.ErrRefused:        wal.NotWritten,
		&driver.NotLeaderError{}: wal.NotWritten,
		driver.ErrFenced:         wal.Lost,
		driver.ErrCorrupt:        wal.Unknown,
		io.EOF:                   wal.Unknown,
		wal.ErrEpochOver:         wal.Unknown,
	} {
		if got := wal.OutcomeOf(err); got != want {
			t.Errorf("outcome of %v is %v, want %v", err, got, want)
		}
	}
}

// collector is a Replayer that keeps what it is given.
type collector struct {
	tree   *btree.Tree
	bodies []string
	times  []int64
	fail   error
}

func (c *collector) Restore(t *btree.Tree) { c.tree = t }

func (c *collector) Replay(body []byte, timeMS int64) error {
	c.bodies = append(c.bodies, string(body))
	c.times = append(c.times, timeMS)
	return c.fail
}

func TestRestoreGivesBodiesTimesAndProgress(t *testing.T) {
	store := newStore(t, newMemory(t))
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 2)
	if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": "1", "b": "2"}), Seq: l.Seq()}); err != nil {
		t.Fatal(err)
	}
	outcome := make(chan error, 1)
	l.Append([]byte("after"), 1234, func(_ uint64, err error) { outcome <- err })
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	l, err := store.Open(t.Context(), "s", wal.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var c collector
	var last wal.Progress
	if err := l.Restore(t.Context(), &c, func(p wal.Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.bodies, c.times, c.tree.Len()); got != "[after] [1234] 2" {
		t.Errorf("restored %s", got)
	}
	if last.CheckpointBytes != last.CheckpointBytesTotal || last.CheckpointBytes == 0 || last.CheckpointItems != 2 || last.CheckpointItemsTotal != 2 ||
		last.Records != 2 || last.RecordBytes == 0 || last.LastSeq != l.Seq() {
		t.Errorf("progress ended at %+v", last)
	}
	// a tree that the machine writes to afterwards is not what the next checkpoint counts from
	c.tree.Set([]byte("c"), []byte("3"))
	stats, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: c.tree.Clone(), Seq: l.Seq()})
	if err != nil || stats.Changed != 1 || stats.Full {
		t.Errorf("checkpoint %+v, %v; want one change", stats, err)
	}

	broken := errors.New("broken")
	if l, err = store.Open(t.Context(), "s", wal.OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Restore(t.Context(), &collector{}, nil); err != nil { // the checkpoint covers all bodies now
		t.Fatal(err)
	}
	write(t, l, 3)
	if l, err = store.Open(t.Context(), "s", wal.OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	c = collector{fail: broken}
	if err := l.Restore(t.Context(), &c, nil); !errors.Is(err, broken) || len(c.bodies) != 1 {
		t.Errorf("restore into a machine that fails: %v after %d bodies", err, len(c.bodies))
	}
}

// TestAppendAllocates one frame, and nothing else.
func TestAppendAllocates(t *testing.T) {
	engine, err := memlog.New(memlog.Config{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	discard := &discarding{Engine: engine}
	store := newStore(t, discard)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	body := make([]byte, 1000)
	done := func(uint64, error) {}
	if n := testing.AllocsPerRun(100, func() {
		l.Append(body, 1, done)
		discard.done(nil)
	}); n != 1 {
		t.Errorf("an append takes %v allocations, want 1", n)
	}
}

// discarding is an engine whose appends end when the test says so, and go nowhere.
type discarding struct {
	driver.Engine
	done func(error)
}

func (e *discarding) Append(_ string, _ driver.Epoch, _ driver.Frame, done func(error)) {
	e.done = done
}

// TestMisuse: calls in the wrong order are bugs of the caller.
func TestMisuse(t *testing.T) {
	store := newStore(t, newMemory(t))
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l, err := store.Open(t.Context(), "s", wal.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s does not panic", what)
			}
		}()
		f()
	}
	panics("an append before Restore", func() { l.Append(nil, 0, func(uint64, error) {}) })
	panics("a checkpoint before Restore", func() { l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(nil), Seq: 1}) })
	if err := l.Restore(t.Context(), state{}, nil); err != nil {
		t.Fatal(err)
	}
	panics("a checkpoint of what is not durable", func() { l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(nil), Seq: 2}) })
}

// hasty is an engine that stores objects before their reader has ended.
type hasty struct{ driver.Engine }

func (e hasty) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	return e.Engine.PutObject(ctx, shard, name, -1, io.LimitReader(r, 20))
}

func TestRunsThatWereNotReadToTheEnd(t *testing.T) {
	engine := newMemory(t)
	store := newStore(t, hasty{engine})
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 1)
	if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": "1"}), Seq: l.Seq()}); err == nil {
		t.Fatal("a checkpoint was published whose run is not whole")
	}
	if l.CheckpointSeq() != 0 {
		t.Fatalf("checkpoint at %d", l.CheckpointSeq())
	}
}
