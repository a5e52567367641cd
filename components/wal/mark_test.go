package wal_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
)

// goingBack is an engine whose store can be exchanged for an earlier copy of itself, as a failover or a lost tail does.
type goingBack struct{ now *memlog.Engine }

func (g *goingBack) Name() string          { return g.now.Name() }
func (g *goingBack) Term() time.Duration   { return time.Second }
func (g *goingBack) Space() (int64, int64) { return g.now.Space() }
func (g *goingBack) Close() error          { return nil }
func (g *goingBack) to(t *testing.T, e *memlog.Engine) {
	t.Helper()
	t.Cleanup(func() { e.Close() })
	g.now = e
}

func (g *goingBack) Manifest(ctx context.Context, shard string) ([]byte, driver.Tag, error) {
	return g.now.Manifest(ctx, shard)
}

func (g *goingBack) SwapManifest(ctx context.Context, shard string, old driver.Tag, data []byte) (driver.Tag, error) {
	return g.now.SwapManifest(ctx, shard, old, data)
}

func (g *goingBack) Fence(ctx context.Context, shard string, e driver.Epoch, record func(seq, previous uint64) []byte) (uint64, error) {
	return g.now.Fence(ctx, shard, e, record)
}

func (g *goingBack) Append(shard string, e driver.Epoch, f driver.Frame, done func(error)) {
	g.now.Append(shard, e, f, done)
}

func (g *goingBack) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) error {
	return g.now.Read(ctx, shard, from, fn)
}

func (g *goingBack) Trim(ctx context.Context, shard string, e driver.Epoch, below uint64) error {
	return g.now.Trim(ctx, shard, e, below)
}

func (g *goingBack) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	return g.now.PutObject(ctx, shard, name, size, r)
}

func (g *goingBack) GetObject(ctx context.Context, shard, name string, off int64, p []byte) error {
	return g.now.GetObject(ctx, shard, name, off, p)
}

func (g *goingBack) DeleteObject(ctx context.Context, shard, name string) error {
	return g.now.DeleteObject(ctx, shard, name)
}

func (g *goingBack) ListObjects(ctx context.Context, shard, prefix string, fn func(string, int64) error) error {
	return g.now.ListObjects(ctx, shard, prefix, fn)
}

func (g *goingBack) RemoveShard(ctx context.Context, shard string) error {
	return g.now.RemoveShard(ctx, shard)
}

// lostTail is a store that has lost records 7 to 11 of epoch 1, which the process of the returned Store has seen.
func lostTail(t *testing.T) (*goingBack, *wal.Store) {
	t.Helper()
	g := &goingBack{newMemory(t)}
	store := newStore(t, g)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 5)
	old := g.now.Clone()
	write(t, l, 5)
	g.to(t, old)
	return g, store
}

// content is all that a store has of the shard.
func content(t *testing.T, e driver.Engine) string {
	t.Helper()
	data, tag, err := e.Manifest(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x %s %d", data, tag, len(frames(t, e, 1)))
}

func openWith(t *testing.T, store *wal.Store, m *wal.Mark) (*wal.Log, error) {
	return store.Open(t.Context(), "s", wal.OpenOptions{Mark: m})
}

// TestLostTailIsNotServed: whoever remembers a record that the store has lost refuses it, however often it is tried, and writes nothing.
func TestLostTailIsNotServed(t *testing.T) {
	g, store := lostTail(t)
	before := content(t, g)
	for range 4 {
		_, err := openWith(t, store, nil)
		wantLoss(t, err, "record 11 of epoch 1 was durable, and the log ends before it")
		_, err = openWith(t, newStore(t, g), &wal.Mark{Epoch: 1, Seq: 7})
		wantLoss(t, err, "record 7 of epoch 1 was durable, and the log ends before it")
		_, err = openWith(t, newStore(t, g), &wal.Mark{Epoch: 2, Seq: 3})
		wantLoss(t, err, "the manifest knows no epoch after 1")
	}
	if after := content(t, g); after != before {
		t.Fatalf("the store was changed from %s to %s", before, after)
	}
	// what it has is enough for who remembers no more
	for i, m := range []*wal.Mark{{Epoch: 1, Seq: 6, Made: true}, {Epoch: 1, Seq: 1}, {Made: true}, {}, nil} {
		if l, err := openWith(t, newStore(t, g), m); err != nil || l.Epoch().Counter != uint64(i+2) {
			t.Fatal(err)
		}
	}
}

// TestLossIsAccepted: an operator's word opens the shard, under an epoch above all that were lost.
func TestLossIsAccepted(t *testing.T) {
	_, store := lostTail(t)
	l, err := openWith(t, store, &wal.Mark{Epoch: 9, Seq: 100, Accepted: true})
	if err != nil {
		t.Fatal(err)
	}
	if l.Epoch().Counter != 10 || l.Seq() != 7 {
		t.Fatalf("epoch %d, fence at %d", l.Epoch().Counter, l.Seq())
	}
	if err := l.Restore(t.Context(), state{}, nil); err != nil {
		t.Fatal(err)
	}
	write(t, l, 1)
	if m := store.Mark("s"); m.Epoch != 10 || m.Seq != 8 || m.Accepted {
		t.Fatalf("%+v", m)
	}
	// the acceptance speaks for the epochs that it names
	g, store := lostTail(t)
	_, err = openWith(t, store, &wal.Mark{Accepted: true})
	wantLoss(t, err, "record 11 of epoch 1 was durable")
	// what only this process has seen is accepted here
	store.AcceptLoss("s")
	if l, err = openWith(t, store, nil); err != nil || l.Epoch().Counter != 2 {
		t.Fatal(err)
	}
	g.to(t, newMemory(t)) // another loss is another matter
	_, err = openWith(t, store, nil)
	wantLoss(t, err, "the store does not know it any more")
}

// TestNumbersThatWereIssuedTwice: a process that remembers nothing goes on with a store that has lost records; who remembers sees it
// later all the same.
func TestNumbersThatWereIssuedTwice(t *testing.T) {
	g, _ := lostTail(t)
	l := open(t, newStore(t, g), nil)
	write(t, l, 20)
	_, err := openWith(t, newStore(t, g), &wal.Mark{Epoch: 1, Seq: 11})
	wantLoss(t, err, "record 11 of epoch 1 was durable, and the record is of epoch 2 now")
	if _, err := openWith(t, newStore(t, g), &wal.Mark{Epoch: 2, Seq: l.Seq()}); err != nil {
		t.Fatal(err)
	}
}

// TestMarksBelowACheckpoint: a checkpoint stands for the records that it covers.
func TestMarksBelowACheckpoint(t *testing.T) {
	g := &goingBack{newMemory(t)}
	store := newStore(t, g)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 10)
	if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": "1"}), Seq: l.Seq()}); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{1, 5, 10, 11} {
		if _, err := openWith(t, store, &wal.Mark{Epoch: 1, Seq: seq}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := openWith(t, newStore(t, g), &wal.Mark{Epoch: 2, Seq: 5})
	wantLoss(t, err, "the checkpoint covers record 11 of epoch 1")
}

// TestLostShard: a store that does not know a shard any more is told from one that never did.
func TestLostShard(t *testing.T) {
	g, store := lostTail(t)
	g.to(t, newMemory(t))
	for _, c := range []struct {
		store *wal.Store
		mark  *wal.Mark
		lost  bool
	}{
		{store, nil, true},                                              // this process has seen it
		{store, &wal.Mark{Made: true}, true},                            // the directory has made it
		{store, &wal.Mark{Epoch: 1, Seq: 3}, true},                      // somebody has seen it
		{store, &wal.Mark{}, false},                                     // the directory knows that it was removed
		{store, &wal.Mark{Made: true, Epoch: 1, Accepted: true}, false}, // accepted: to be made anew
		{newStore(t, g), nil, false},                                    // nobody knows of it
	} {
		_, err := openWith(t, c.store, c.mark)
		if !c.lost {
			if !errors.Is(err, driver.ErrNotExist) {
				t.Fatalf("%+v: %v", c.mark, err)
			}
			continue
		}
		wantLoss(t, err, "the store does not know it any more")
	}
}

// TestNoCheckpointBeyondTheLog: an owner whose log has lost records does not publish a checkpoint that covers them: no epoch could
// follow on it.
func TestNoCheckpointBeyondTheLog(t *testing.T) {
	g := &goingBack{newMemory(t)}
	store := newStore(t, g)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 5)
	old := g.now.Clone()
	write(t, l, 5)
	g.to(t, old)
	before := content(t, g)
	snap := wal.Snapshot{Tree: treeOf(map[string]string{"a": "1"}), Seq: l.Seq()}
	_, err := l.Checkpoint(t.Context(), snap)
	wantLoss(t, err, "record 11 of epoch 1 was durable and is not in the log any more")
	if after := content(t, g); after != before {
		t.Fatalf("the store was changed from %s to %s", before, after)
	}
	outcome := make(chan error, 1)
	l.Append([]byte("x"), 1, func(_ uint64, err error) { outcome <- err })
	if err := <-outcome; wal.OutcomeOf(err) != wal.Lost || !errors.Is(err, driver.ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestLostManifestEndsTheOwner: an owner that asks for its lease and finds no manifest is over.
func TestLostManifestEndsTheOwner(t *testing.T) {
	g, _ := lostTail(t)
	l := open(t, newStore(t, g), nil)
	g.to(t, newMemory(t))
	if _, err := l.Confirm(t.Context()); !errors.Is(err, wal.ErrFenced) || !errors.Is(l.Err(), wal.ErrFenced) {
		t.Fatal(err, l.Err())
	}
	if !strings.Contains(l.Err().Error(), "its manifest is gone") {
		t.Fatal(l.Err())
	}
}
