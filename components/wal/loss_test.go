package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// twoStores takes manifests from one engine and all else from another: a store part of which has gone back in time.
type twoStores struct {
	driver.Engine
	manifests driver.Engine
}

func (e twoStores) Manifest(ctx context.Context, shard string) ([]byte, driver.Tag, error) {
	return e.manifests.Manifest(ctx, shard)
}

func (e twoStores) SwapManifest(ctx context.Context, shard string, old driver.Tag, data []byte) (driver.Tag, error) {
	return e.manifests.SwapManifest(ctx, shard, old, data)
}

func newStore(t *testing.T, engine driver.Engine) *wal.Store {
	t.Helper()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func newMemory(t testing.TB) *memlog.Engine {
	t.Helper()
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

// write appends n records.
func write(t *testing.T, l *wal.Log, n int) {
	t.Helper()
	for i := range n {
		outcome := make(chan error, 1)
		l.Append(fmt.Appendf(nil, "body %d", i), 1, func(_ uint64, err error) { outcome <- err })
		if err := <-outcome; err != nil {
			t.Fatal(err)
		}
	}
}

// wantLoss checks for a DataLoss that says what is the matter, and with which shard.
func wantLoss(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || kverr.KindOf(err) != kverr.DataLoss || !errors.Is(err, driver.ErrCorrupt) || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want data loss that says %q", err, says)
	}
	if told := new(kverr.Error); !errors.As(err, &told) || !strings.Contains(told.Message, "shard s") {
		t.Fatalf("users are told %q, which names no shard", told.Message)
	}
}

func frames(t *testing.T, e driver.Engine, from uint64) []driver.Frame {
	t.Helper()
	var all []driver.Frame
	if err := e.Read(t.Context(), "s", from, func(f driver.Frame) error { all = append(all, f); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLogBehindTheManifest: a store that lost the end of a log must not issue the same numbers again.
func TestLogBehindTheManifest(t *testing.T) {
	engine := newMemory(t)
	store := newStore(t, engine)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 5)
	old := engine.Clone() // what a lost tail would leave
	t.Cleanup(func() { old.Close() })
	write(t, l, 5)
	snap := treeOf(map[string]string{"a": "1"})
	if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: snap, Seq: l.Seq()}); err != nil {
		t.Fatal(err)
	}
	before := len(frames(t, old, 1))
	for range 8 { // never, however often it is tried
		_, err := newStore(t, twoStores{old, engine}).Open(t.Context(), "s", wal.OpenOptions{})
		wantLoss(t, err, "the log ends at record 6 of epoch 1, but the checkpoint covers record 11 of epoch 1")
	}
	if after := len(frames(t, old, 1)); after != before {
		t.Fatalf("%d records were written to a log that has lost some", after-before)
	}
}

// TestManifestBehindTheLog: the manifest has gone back, the log has not.
func TestManifestBehindTheLog(t *testing.T) {
	engine := newMemory(t)
	store := newStore(t, engine)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	old := engine.Clone()
	t.Cleanup(func() { old.Close() })
	for range 3 {
		write(t, open(t, store, nil), 1)
	}
	for range 2 {
		_, err := newStore(t, twoStores{engine, old}).Open(t.Context(), "s", wal.OpenOptions{})
		wantLoss(t, err, "the store has lost newer manifests")
	}
}

// lying is an engine that changes what comes back.
type lying struct {
	driver.Engine
	record func(*dataplanev1.Record)
	frame  func(*driver.Frame)
	object func(name string, off int64, p []byte)
}

func (e *lying) Read(ctx context.Context, shard string, from uint64, fn func(driver.Frame) error) error {
	return e.Engine.Read(ctx, shard, from, func(f driver.Frame) error {
		if e.record != nil {
			var r dataplanev1.Record
			if err := r.UnmarshalVT(f.Data); err != nil {
				return err
			}
			e.record(&r)
			data, err := r.MarshalVT()
			if err != nil {
				return err
			}
			f.Data = data
		}
		if e.frame != nil {
			e.frame(&f)
		}
		return fn(f)
	})
}

func (e *lying) GetObject(ctx context.Context, shard, name string, off int64, p []byte) error {
	err := e.Engine.GetObject(ctx, shard, name, off, p)
	if err == nil && e.object != nil {
		e.object(name, off, p)
	}
	return err
}

// TestRestoreChecksTheChain: records are replayed only as links of one chain.
func TestRestoreChecksTheChain(t *testing.T) {
	at := func(seq uint64, edit func(r *dataplanev1.Record)) *lying {
		return &lying{record: func(r *dataplanev1.Record) {
			if r.Header.Seq == seq {
				edit(r)
			}
		}}
	}
	// epoch 1: fence 1, records 2 to 4; epoch 2: fence 5, record 6; epoch 3: fence 7
	for name, c := range map[string]struct {
		lie  *lying
		says string
	}{
		"nothing":         {&lying{}, ""},
		"a seq":           {at(3, func(r *dataplanev1.Record) { r.Header.Seq = 4 }), "it was stored as record 3"},
		"an epoch":        {at(3, func(r *dataplanev1.Record) { r.Header.Epoch = 2 }), "it was stored as record 3 of epoch 1"},
		"a writer":        {at(3, func(r *dataplanev1.Record) { r.Header.Writer[0] ^= 1 }), "another writer began that epoch"},
		"the predecessor": {at(5, func(r *dataplanev1.Record) { r.Header.PreviousEpoch = 0 }), "it follows epoch 1 and says that it follows epoch 0"},
		"no fence":        {at(5, func(r *dataplanev1.Record) { r.Header.Fence = false }), "a fence stands where an epoch begins"},
		"a fence inside":  {at(3, func(r *dataplanev1.Record) { r.Header.Fence, r.Body = true, nil }), "a fence stands where an epoch begins"},
		"our fence":       {at(7, func(r *dataplanev1.Record) { r.Header.Writer[0] ^= 1 }), "our fence is record 7"},
		"the shard":       {at(3, func(r *dataplanev1.Record) { r.Header.Shard = "t" }), `belongs to shard "t"`},
		"a hole":          {&lying{frame: func(f *driver.Frame) { f.Seq++ }}, "it was stored as record"},
	} {
		engine := newMemory(t)
		store := newStore(t, engine)
		if err := store.Create(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
		write(t, open(t, store, nil), 3)
		write(t, open(t, store, nil), 1)
		c.lie.Engine = engine
		l, err := newStore(t, c.lie).Open(t.Context(), "s", wal.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		switch err = l.Restore(t.Context(), state{}, nil); {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.says != "" && (err == nil || kverr.KindOf(err) != kverr.DataLoss || !strings.Contains(err.Error(), c.says)):
			t.Errorf("a lie about %s: got %v, want data loss that says %q", name, err, c.says)
		}
	}
}

// TestUnknownRecordsAreRefusedByName: a newer release's data is not damage.
func TestUnknownRecordsAreRefusedByName(t *testing.T) {
	for says, edit := range map[string]func(r *dataplanev1.Record){
		"record format 2": func(r *dataplanev1.Record) { r.Header.Format = 2 },
		"codec 9":         func(r *dataplanev1.Record) { r.Header.Codec = 9 },
	} {
		engine := newMemory(t)
		store := newStore(t, engine)
		if err := store.Create(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
		write(t, open(t, store, nil), 3)
		l, err := newStore(t, &lying{Engine: engine, record: edit}).Open(t.Context(), "s", wal.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		err = l.Restore(t.Context(), state{}, nil)
		if !errors.Is(err, wal.ErrUnsupported) || kverr.KindOf(err) == kverr.DataLoss || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q unsupported", err, says)
		}
	}
}

// TestManifestsThatAreRefused: a manifest that cannot be right is never taken over, nor changed.
func TestManifestsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(m *dataplanev1.Manifest)
		is   error
		says string
	}{
		"format":   {func(m *dataplanev1.Manifest) { m.Format = 2 }, wal.ErrUnsupported, "manifest format 2"},
		"shard":    {func(m *dataplanev1.Manifest) { m.Shard = "t" }, driver.ErrCorrupt, `"t"`},
		"writer":   {func(m *dataplanev1.Manifest) { m.Writer = nil }, driver.ErrCorrupt, "writer"},
		"runs":     {func(m *dataplanev1.Manifest) { m.Runs[0].AfterSeq = 1 }, driver.ErrCorrupt, "runs"},
		"seq":      {func(m *dataplanev1.Manifest) { m.CheckpointSeq = 1 }, driver.ErrCorrupt, "runs"},
		"run size": {func(m *dataplanev1.Manifest) { m.Runs[0].Bytes = 0 }, driver.ErrCorrupt, "runs"},
	} {
		engine := newMemory(t)
		store := newStore(t, engine)
		if err := store.Create(t.Context(), "s", nil); err != nil {
			t.Fatal(err)
		}
		l := open(t, store, nil)
		write(t, l, 3)
		if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": "1"}), Seq: l.Seq()}); err != nil {
			t.Fatal(err)
		}
		data, tag, err := engine.Manifest(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		var m dataplanev1.Manifest
		if err := m.UnmarshalVT(data); err != nil {
			t.Fatal(err)
		}
		c.edit(&m)
		if data, err = m.MarshalVT(); err != nil {
			t.Fatal(err)
		}
		if _, err := engine.SwapManifest(t.Context(), "s", tag, data); err != nil {
			t.Fatal(err)
		}
		_, err = store.Open(t.Context(), "s", wal.OpenOptions{})
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v that says %q", name, err, c.is, c.says)
		}
		if now, _, _ := engine.Manifest(t.Context(), "s"); !bytes.Equal(now, data) {
			t.Errorf("%s: the manifest was changed", name)
		}
	}
}

// TestDamagedCheckpointIsDataLoss: a flipped bit anywhere in a run, and a run that is gone.
func TestDamagedCheckpointIsDataLoss(t *testing.T) {
	engine := newMemory(t)
	store := newStore(t, engine)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 3)
	stats, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": "1", "b": "2"}), Seq: l.Seq()})
	if err != nil {
		t.Fatal(err)
	}
	restore := func(lie *lying) error {
		lie.Engine = engine
		l, err := newStore(t, lie).Open(t.Context(), "s", wal.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return l.Restore(t.Context(), state{}, nil)
	}
	if err := restore(&lying{}); err != nil {
		t.Fatal(err)
	}
	for i := range stats.BytesWritten {
		err := restore(&lying{object: func(_ string, off int64, p []byte) {
			if at := i - off; at >= 0 && at < int64(len(p)) {
				p[at] ^= 4
			}
		}})
		wantLoss(t, err, "c/1-1")
	}
	if err := engine.DeleteObject(t.Context(), "s", "c/1-1"); err != nil {
		t.Fatal(err)
	}
	wantLoss(t, restore(&lying{}), "c/1-1")
}

// TestPinsHoldTheLog: records that a reader has a claim on outlive checkpoints, until it expires.
func TestPinsHoldTheLog(t *testing.T) {
	engine := newMemory(t)
	store := newStore(t, engine)
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	l := open(t, store, nil)
	write(t, l, 10)
	pin := func(expires int64) {
		data, tag, err := engine.Manifest(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		var m dataplanev1.Manifest
		if err := m.UnmarshalVT(data); err != nil {
			t.Fatal(err)
		}
		m.Pins = []*dataplanev1.Manifest_Pin{{Name: "backup", Seq: 4, ExpiresMs: expires}}
		if data, err = m.MarshalVT(); err != nil {
			t.Fatal(err)
		}
		if _, err := engine.SwapManifest(t.Context(), "s", tag, data); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct {
		expires  int64
		released uint64
	}{{1 << 50, 3}, {1, 0}} {
		pin(c.expires)
		write(t, l, 1)
		if _, err := l.Checkpoint(t.Context(), wal.Snapshot{Tree: treeOf(map[string]string{"a": fmt.Sprint(i)}), Seq: l.Seq()}); err != nil {
			t.Fatal(err)
		}
		want := c.released
		if want == 0 {
			want = l.Seq()
		}
		if l.ReleasedSeq() != want || l.CheckpointSeq() != l.Seq() {
			t.Fatalf("released %d, checkpoint at %d; want %d and %d", l.ReleasedSeq(), l.CheckpointSeq(), want, l.Seq())
		}
		err := engine.Read(t.Context(), "s", 4, func(driver.Frame) error { return nil })
		if held := c.released != 0; held != (err == nil) {
			t.Fatalf("pinned records: %v", err)
		}
	}
}
