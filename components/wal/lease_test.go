package wal_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/components/btree"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

const term = 10 * time.Second

// leased is a store on an engine with a lease term, inside a synctest bubble.
func leased(t *testing.T, term time.Duration) (*wal.Store, *fault.Engine) {
	engine, err := memlog.New(memlog.Config{Term: term})
	if err != nil {
		t.Fatal(err)
	}
	e := fault.Wrap(engine)
	t.Cleanup(func() { e.Close() })
	store, err := wal.NewStore(e, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	return store, e
}

// state is a Replayer that forgets.
type state struct{}

func (state) Restore(*btree.Tree)        {}
func (state) Replay([]byte, int64) error { return nil }

func open(t *testing.T, store *wal.Store, yield func(context.Context, wal.Holder)) *wal.Log {
	t.Helper()
	var o wal.OpenOptions
	if yield != nil {
		o.Yield = func(ctx context.Context, h wal.Holder) error {
			yield(ctx, h)
			return nil
		}
	}
	l, err := store.Open(t.Context(), "s", o)
	if err == nil {
		err = l.Restore(t.Context(), state{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeaseCountsFromBeforeTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, e := leased(t, term)
		l := open(t, store, nil)
		if got := l.LeaseUntil(); !got.Equal(time.Now().Add(9 * time.Second)) {
			t.Fatalf("open leases until %v from now, want 9s", time.Until(got))
		}
		time.Sleep(20 * time.Second)
		slow := e.Add(fault.Rule{Verb: fault.Manifest, Freeze: true, After: true})
		sent := time.Now()
		go func() {
			time.Sleep(4 * time.Second)
			slow.Thaw()
		}()
		until, err := l.Confirm(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(sent) != 4*time.Second || !until.Equal(sent.Add(9*time.Second)) {
			t.Fatalf("asked %v ago, leased until %v after the question; want 9s after it", time.Since(sent), until.Sub(sent))
		}
		// a slower question that was sent earlier takes nothing back
		if l.LeaseUntil() != until {
			t.Fatal("LeaseUntil differs")
		}
	})
}

func TestAppendsRenewNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := leased(t, term)
		l := open(t, store, nil)
		until := l.LeaseUntil()
		time.Sleep(5 * time.Second)
		outcome := make(chan error, 1)
		l.Append([]byte("x"), 1, func(_ uint64, err error) { outcome <- err })
		if err := <-outcome; err != nil {
			t.Fatal(err)
		}
		if l.LeaseUntil() != until {
			t.Fatal("an append has renewed the lease")
		}
	})
}

// TestHolderIsLeftAlone: an error of Yield ends Open, and the holder has noticed nothing.
func TestHolderIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := leased(t, term)
		first := open(t, store, nil)
		why := errors.New("not now")
		_, err := store.Open(t.Context(), "s", wal.OpenOptions{Yield: func(_ context.Context, h wal.Holder) error {
			if h.Epoch != first.Epoch() {
				t.Errorf("asked %+v", h)
			}
			return why
		}})
		if !errors.Is(err, why) {
			t.Fatal(err)
		}
		if _, err := first.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSuccessorOutlastsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, e := leased(t, term)
		first := open(t, store, nil)
		time.Sleep(time.Minute)
		// the holder's last confirmation and the successor's swap, in the worst order: the confirmation is sent just before, and
		// comes back much later
		slow := e.Add(fault.Rule{Verb: fault.Manifest, Freeze: true, After: true})
		confirmed := make(chan time.Time)
		go func() {
			until, err := first.Confirm(t.Context())
			if err != nil {
				t.Error(err)
			}
			confirmed <- until
		}()
		synctest.Wait()
		second := open(t, store, nil)
		swapped := time.Now()
		time.Sleep(3 * time.Second)
		slow.Thaw()
		until := <-confirmed
		if !second.AckAfter().Equal(swapped.Add(term)) {
			t.Fatalf("the successor waits %v from its swap, want the term", second.AckAfter().Sub(swapped))
		}
		if !until.Before(second.AckAfter()) {
			t.Fatalf("the holder serves until %v, the successor from %v", until, second.AckAfter())
		}
		if _, err := first.Confirm(t.Context()); !errors.Is(err, wal.ErrFenced) {
			t.Fatalf("the holder confirms after the swap: %v", err)
		}
		if first.LeaseUntil() != until {
			t.Fatal("a failed confirmation changed the lease")
		}
	})
}

func TestYieldSparesTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := leased(t, term)
		first := open(t, store, nil)
		asked := 0
		second := open(t, store, func(ctx context.Context, h wal.Holder) {
			asked++
			if h.Epoch != first.Epoch() {
				t.Errorf("asked %v to yield", h.Epoch)
			}
			if err := first.Yield(ctx); err != nil {
				t.Error(err)
			}
		})
		if asked != 1 || !second.AckAfter().IsZero() {
			t.Fatalf("asked %d times, waits until %v", asked, second.AckAfter())
		}
		if err := second.Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
		third := open(t, store, func(context.Context, wal.Holder) { t.Error("asked although the holder has yielded") })
		if !third.AckAfter().IsZero() {
			t.Fatalf("waits until %v", third.AckAfter())
		}
	})
}

func TestHolderThatDoesNotYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := leased(t, term)
		open(t, store, nil)
		start := time.Now()
		second := open(t, store, func(ctx context.Context, _ wal.Holder) { <-ctx.Done() })
		if asked := time.Since(start); asked != 200*time.Millisecond {
			t.Fatalf("asked for %v, want 200ms", asked)
		}
		if !second.AckAfter().Equal(time.Now().Add(term)) {
			t.Fatalf("waits %v, want the term", time.Until(second.AckAfter()))
		}
	})
}

// TestYieldBeforeOnesTime: an owner that still waits for the one before it must not spare its own successor the wait.
func TestYieldBeforeOnesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := leased(t, term)
		first := open(t, store, nil)
		if _, err := first.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := open(t, store, nil) // the first one cannot be reached and serves on
		time.Sleep(time.Second)
		if err := second.Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
		third := open(t, store, nil)
		if third.AckAfter().Before(first.LeaseUntil()) {
			t.Fatalf("the third owner serves from %v, the first one until %v", third.AckAfter(), first.LeaseUntil())
		}
		time.Sleep(time.Until(third.AckAfter()))
		if err := third.Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
		if fourth := open(t, store, nil); !fourth.AckAfter().IsZero() {
			t.Fatal("the fourth owner waits although the third one yielded in its time")
		}
	})
}

func TestWithoutATermLeasesNeverLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, e := leased(t, 0)
		open(t, store, nil)
		l := open(t, store, func(context.Context, wal.Holder) { t.Error("asked to yield") })
		if !l.AckAfter().IsZero() {
			t.Fatal("waits")
		}
		asks := e.Add(fault.Rule{Verb: fault.Any, Times: -1})
		time.Sleep(365 * 24 * time.Hour)
		until, err := l.Confirm(t.Context())
		if err != nil || time.Until(until) < 365*24*time.Hour {
			t.Fatalf("leased for %v, %v", time.Until(until), err)
		}
		if asks.Hits() != 0 {
			t.Fatal("Confirm has asked the engine")
		}
	})
}
