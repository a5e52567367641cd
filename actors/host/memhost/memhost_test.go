package memhost

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// TestStatus: what an operator sees of a shard in each of its states.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine, err := memlog.New(memlog.Config{})
		if err != nil {
			t.Fatal(err)
		}
		faults := fault.Wrap(engine)
		store, err := wal.NewStore(faults, wal.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h, err := New(store, Config{IdleAfter: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		put := func(key string, ref shard.Ref) error {
			done := make(chan error, 1)
			h.Do(t.Context(), "a-0", &shard.Command{
				Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte(key), Value: shard.Value{Ref: ref}},
				Done: func(_ *shard.Command, err error) { done <- err },
			})
			return <-done
		}
		is := func(state string, kind kverr.Kind) Status {
			t.Helper()
			all := h.Status()
			if len(all) != 1 || all[0].State != state {
				t.Fatalf("%+v, want one shard in state %s", all, state)
			}
			if why := all[0].Reason; (why != nil) != (kind != 0) || why != nil && why.Kind != kind {
				t.Fatalf("reason %v, want kind %v", why, kind)
			}
			return all[0]
		}
		refs, err := h.PutValues(t.Context(), "a-0", make([]byte, 2000))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(put("a", refs[0]), put("b", shard.Ref{})); err != nil {
			t.Fatal(err)
		}
		s := is(StateActive, 0)
		if s.Epoch != 1 || s.Revision != 2 || s.Seq != 3 || s.Entries != 2 || s.ValueBytes != 2000 || s.ValueObjects != 1 ||
			s.LogRecords != 3 || s.LogBytes == 0 || s.MemoryBytes == 0 || s.MemoryBytes != h.MemoryBytes() || s.CheckpointBytes != 0 {
			t.Fatalf("%+v", s)
		}

		full := faults.Add(fault.Rule{Verb: fault.Append, Times: -1, Err: driver.ErrNoSpace})
		if err := put("c", shard.Ref{}); err == nil || kverr.KindOf(err) != kverr.NoSpace {
			t.Fatal(err)
		}
		is(StateReadOnly, kverr.NoSpace)
		full.Remove()
		if err := put("c", shard.Ref{}); err != nil {
			t.Fatal(err)
		}
		is(StateActive, 0)

		time.Sleep(3 * time.Minute)
		synctest.Wait()
		is(StateAsleep, 0)
		if n := h.MemoryBytes(); n != 0 {
			t.Fatalf("%d bytes while asleep", n)
		}
		broken := faults.Add(fault.Rule{Verb: fault.Read, Times: -1, Err: driver.ErrCorrupt})
		if _, err := h.View(t.Context(), "a-0"); err == nil || kverr.KindOf(err) != kverr.DataLoss {
			t.Fatal(err)
		}
		is(StateFailed, kverr.DataLoss)
		broken.Remove()
		time.Sleep(time.Second)
		if _, err := h.View(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		if s := is(StateActive, 0); s.CheckpointBytes == 0 || s.Entries != 3 || s.Epoch != 3 {
			t.Fatalf("%+v", s)
		}
		if err := errors.Join(h.Close(t.Context(), true), faults.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPutGet is the way that every write and read takes.
func TestPutGet(t *testing.T) {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(store, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Create(t.Context(), "a-0", nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	c := &shard.Command{Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k"), Value: shard.Value{Inline: []byte("v")}}, Done: func(c *shard.Command, err error) { done <- err }}
	h.Do(t.Context(), "a-0", c)
	if err := <-done; err != nil || c.Result.Err != nil {
		t.Fatal(err, c.Result.Err)
	}
	v, err := h.View(t.Context(), "a-0")
	if err != nil {
		t.Fatal(err)
	}
	e, ok, _ := v.Get(1, []byte("k"))
	if !ok || string(e.Value.Inline) != "v" || e.Version != c.Result.Write.Version {
		t.Fatalf("%+v %v", e, ok)
	}
	if err := h.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

// TestBroken: while a shard cannot be opened because its engine does not answer, one caller waits for each try and the others fail at once; when it
// answers they all are served.
func TestBroken(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		h := s.host("a", Config{})
		down := s.faults.Add(fault.Rule{Verb: fault.Manifest, Times: -1, Err: errors.New("no answer")})
		if err := s.put(h, shard.Put{}); !errors.Is(err, kverr.Unavailable) {
			t.Fatal(err)
		}
		down.Remove()
		time.Sleep(failPause)
		hangs := s.faults.Add(fault.Rule{Verb: fault.Manifest, Times: -1, Freeze: true})
		probe := make(chan error, 1)
		go func() { probe <- s.put(h, shard.Put{}) }()
		<-hangs.Hit()
		began := time.Now()
		for range 10 {
			if err := s.put(h, shard.Put{}); !errors.Is(err, kverr.Unavailable) || time.Since(began) > 0 {
				t.Fatalf("beside the one that tries: %v after %v", err, time.Since(began))
			}
		}
		hangs.Remove()
		if err := <-probe; err != nil {
			t.Fatal(err)
		}
		if err := s.put(h, shard.Put{}); err != nil {
			t.Fatal(err)
		}
	})
}
