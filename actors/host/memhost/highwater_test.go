package memhost

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
)

// memory is a Highwater of two functions.
type memory struct {
	remember func(marks []wal.Mark) error
	marks    func(id string) (wal.Mark, error)
}

func (m *memory) Remember(_ context.Context, marks ...wal.Mark) error { return m.remember(marks) }

func (m *memory) Marks(_ context.Context, ids ...string) ([]wal.Mark, error) {
	mark, err := m.marks(ids[0])
	return []wal.Mark{mark}, err
}

// TestReports: what shards write is reported together, a second later at the latest, again until it is taken; idle shards report
// nothing, and a host that closes reports the rest.
func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, err := memlog.New(memlog.Config{})
		if err != nil {
			t.Fatal(err)
		}
		store, err := wal.NewStore(engine, wal.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h, err := New(store, Config{})
		if err != nil {
			t.Fatal(err)
		}
		reports := make(chan map[string]wal.Mark, 100)
		var refuse error
		h.RememberWith(&memory{
			remember: func(marks []wal.Mark) error {
				report := map[string]wal.Mark{}
				for _, m := range marks {
					report[m.Shard] = m
				}
				reports <- report
				return refuse
			},
			marks: func(id string) (wal.Mark, error) { return wal.Mark{Shard: id, Made: true}, nil },
		})
		want := func(what string, seqs map[string]uint64) {
			t.Helper()
			synctest.Wait()
			if seqs == nil {
				if len(reports) > 0 {
					t.Fatalf("%s: reported %v", what, <-reports)
				}
				return
			}
			if len(reports) != 1 {
				t.Fatalf("%s: %d reports", what, len(reports))
			}
			got := <-reports
			for id, seq := range seqs {
				if got[id].Seq != seq || got[id].Epoch != 1 {
					t.Fatalf("%s: reported %v, want %v", what, got, seqs)
				}
			}
			if len(got) != len(seqs) {
				t.Fatalf("%s: reported %v, want %v", what, got, seqs)
			}
		}
		for _, id := range []string{"a-0", "a-1"} {
			if err := h.Create(t.Context(), id, nil); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			mustPut(t, h, "a-0")
		}
		mustPut(t, h, "a-1")
		time.Sleep(reportEvery - time.Millisecond)
		want("before its time", nil)
		time.Sleep(time.Millisecond)
		want("after a second", map[string]uint64{"a-0": 4, "a-1": 2})
		time.Sleep(time.Hour)
		want("of idle shards", nil)
		refuse = errors.New("not now")
		mustPut(t, h, "a-1")
		time.Sleep(reportEvery)
		want("refused", map[string]uint64{"a-1": 3})
		refuse = nil
		mustPut(t, h, "a-0")
		time.Sleep(reportEvery)
		want("again, with what came since", map[string]uint64{"a-0": 5, "a-1": 3})
		mustPut(t, h, "a-1")
		if err := h.Close(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		want("at the end", map[string]uint64{"a-1": 4})
		if err := engine.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func mustPut(t *testing.T, h *Host, id string) {
	t.Helper()
	if err := put(t, h, id); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, h *Host, id string) error {
	done := make(chan error, 1)
	h.Do(t.Context(), id, &shard.Command{
		Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k"), Value: shard.Value{Inline: []byte("v")}},
		Done: func(_ *shard.Command, err error) { done <- err },
	})
	return <-done
}

// TestLossIsToldUntilItIsAccepted: a shard that has not what is remembered of it is DATA_LOSS, while the directory cannot be asked it
// is not opened at all, and once the loss is accepted it serves.
func TestLossIsToldUntilItIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, err := memlog.New(memlog.Config{})
		if err != nil {
			t.Fatal(err)
		}
		store, err := wal.NewStore(engine, wal.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h, err := New(store, Config{})
		if err != nil {
			t.Fatal(err)
		}
		mark := wal.Mark{Shard: "a-0", Made: true, Epoch: 3, Seq: 40}
		unreachable := errors.New("no directory")
		h.RememberWith(&memory{
			remember: func([]wal.Mark) error { return nil },
			marks:    func(string) (wal.Mark, error) { return mark, unreachable },
		})
		fails := func(kind kverr.Kind) {
			t.Helper()
			if err := put(t, h, "a-0"); kverr.KindOf(err) != kind {
				t.Fatalf("%v, want kind %v", err, kind)
			}
			time.Sleep(failPause)
		}
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		fails(kverr.Unavailable)
		unreachable = nil
		fails(kverr.DataLoss)
		if s := h.Status(); len(s) != 1 || s[0].State != StateFailed || s[0].Reason.Kind != kverr.DataLoss {
			t.Fatalf("%+v", s)
		}
		if err := store.Remove(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		fails(kverr.DataLoss) // not "there is no such shard"
		mark.Made, mark.Epoch, mark.Seq = false, 0, 0
		fails(kverr.NotFound)
		mark.Made, mark.Epoch, mark.Seq, mark.Accepted = true, 3, 40, true
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		mustPut(t, h, "a-0")
		if m := store.Mark("a-0"); m.Epoch != 4 {
			t.Fatalf("%+v", m)
		}
		if err := errors.Join(h.Close(t.Context(), false), engine.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestLossIsReportedAtOnce: a host that finds that the store has lost what it has seen itself does not wait until its next report is due: the
// next owner, if this host is gone by then, would have nobody to tell it.
func TestLossIsReportedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, err := memlog.New(memlog.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var stores [2]*wal.Store
		for i := range stores {
			if stores[i], err = wal.NewStore(engine, wal.Config{}); err != nil {
				t.Fatal(err)
			}
		}
		h, err := New(stores[0], Config{})
		if err != nil {
			t.Fatal(err)
		}
		var reported []wal.Mark
		h.RememberWith(&memory{
			remember: func(marks []wal.Mark) error {
				reported = append(reported, marks...)
				return nil
			},
			marks: func(id string) (wal.Mark, error) { return wal.Mark{Shard: id, Made: true}, nil },
		})
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		mustPut(t, h, "a-0")
		// Behind its back the store goes back to when the shard was made.
		if err := errors.Join(stores[1].Remove(t.Context(), "a-0"), stores[1].Create(t.Context(), "a-0", nil)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for kverr.KindOf(put(t, h, "a-0")) != kverr.DataLoss {
			if time.Since(began) > time.Minute {
				t.Fatal("the loss is not noticed")
			}
		}
		synctest.Wait()
		if len(reported) != 1 || reported[0].Epoch != 1 || reported[0].Seq != 2 || time.Since(began) >= reportEvery {
			t.Errorf("%v after the first write: reported %+v", time.Since(began), reported)
		}
		if err := errors.Join(h.Close(t.Context(), false), engine.Close()); err != nil {
			t.Fatal(err)
		}
	})
}
