package memhost

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// TestDoWhileDraining: commands that come while a shard is being put to sleep wait and then wake it. One that names a value is
// refused then, as its value is of the epoch before; that must cost neither the value beside it in the same object, nor be counted twice.
func TestDoWhileDraining(t *testing.T) {
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
		h, err := New(store, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := errors.Join(h.Close(context.Background(), true), faults.Close()); err != nil {
				t.Error(err)
			}
		}()
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		put := func(key string, v shard.Value) <-chan error {
			done := make(chan error, 1)
			go h.Do(t.Context(), "a-0", &shard.Command{
				Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte(key), Value: v},
				Done: func(_ *shard.Command, err error) { done <- err },
			})
			return done
		}
		want := bytes.Repeat([]byte("x"), 2000)
		refs, err := h.PutValues(t.Context(), "a-0", want, make([]byte, 2000)) // in one object
		if err != nil {
			t.Fatal(err)
		}
		frozen := faults.Add(fault.Rule{Verb: fault.Append, Freeze: true})
		first := put("first", shard.Value{Ref: refs[0]})
		<-frozen.Hit()

		place, _ := h.slots.Load("a-0")
		slept := make(chan error, 1)
		go func() { slept <- h.sleep(t.Context(), place.(*slot), true) }()
		synctest.Wait() // it waits for the append
		second, third := put("second", shard.Value{Ref: refs[1]}), put("third", shard.Value{Inline: []byte("v")})
		synctest.Wait()
		frozen.Thaw()
		if err := <-slept; err != nil {
			t.Fatal(err)
		}
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		if err := <-second; err == nil || kverr.KindOf(err) != kverr.Unavailable {
			t.Errorf("a value of the epoch before: %v, want Unavailable", err)
		}
		if err := <-third; err != nil {
			t.Errorf("a command while the shard goes to sleep: %v", err)
		}
		v, err := h.View(t.Context(), "a-0")
		if err != nil {
			t.Fatal(err)
		}
		e, ok, _ := v.Get(1, []byte("first"))
		got := make([]byte, len(want))
		if err := h.ReadValue(t.Context(), "a-0", e.Value.Ref, 0, got); !ok || err != nil || !bytes.Equal(got, want) {
			t.Errorf("the acknowledged value: found %v, %v", ok, err)
		}
	})
}

// TestCloseInTime: a checkpoint that takes too long is cut off when the time for closing is over.
func TestCloseInTime(t *testing.T) {
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
		h, err := New(store, Config{Actor: host.Config{CheckpointBytes: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		frozen := faults.Add(fault.Rule{Verb: fault.Put, Times: -1, Freeze: true})
		done := make(chan error, 1)
		h.Do(t.Context(), "a-0", &shard.Command{
			Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k")},
			Done: func(_ *shard.Command, err error) { done <- err },
		})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		<-frozen.Hit()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		began := time.Now()
		if err := h.Close(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("closed with %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v of 1 s", took)
		}
		faults.Clear()
		if err := faults.Close(); err != nil {
			t.Error(err)
		}
	})
}
