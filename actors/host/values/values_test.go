package values_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"kvstore/actors/host"
	"kvstore/actors/host/values"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// The life of values in a whole host is tested by hosttest; here is what only shows from inside.

// owner is an actor with its values.
type owner struct {
	t      *testing.T
	engine *fault.Engine
	actor  *host.Actor[*shard.Command]
	values *values.Store
}

func (o *owner) Do(cmds ...*shard.Command) error { return o.actor.Do(cmds...) }
func (o *owner) Seq() uint64                     { return o.actor.Latest().Seq }

func newOwner(t *testing.T, cfg values.Config) *owner {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{t: t, engine: fault.Wrap(engine)}
	store, err := wal.NewStore(o.engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	o.actor, err = host.Open(t.Context(), store, "s", shard.New(shard.Config{}), host.Config{}, host.Hooks{}, host.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o.values = values.New(cfg, o.actor.Log(), o)
	return o
}

func (o *owner) close() {
	o.engine.Clear()
	if err := o.actor.End(context.Background(), true); err != nil {
		o.t.Error(err)
	}
	o.values.Close()
	if err := o.engine.Close(); err != nil {
		o.t.Error(err)
	}
}

func (o *owner) run(c *shard.Command) error {
	done := make(chan error, 1)
	c.Done = func(c *shard.Command, err error) {
		if err == nil && c.Result.Err != nil {
			err = c.Result.Err
		}
		done <- err
	}
	if err := o.actor.Do(o.values.Track([]*shard.Command{c})...); err != nil {
		o.t.Fatal(err)
	}
	return <-done
}

func (o *owner) name(key string, ref shard.Ref) {
	o.t.Helper()
	c := &shard.Command{Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte(key), Value: shard.Value{Ref: ref}}}
	if err := o.run(c); err != nil {
		o.t.Fatal(err)
	}
}

func (o *owner) put(vs ...[]byte) []shard.Ref {
	o.t.Helper()
	refs, err := o.values.Put(o.t.Context(), vs...)
	if err != nil {
		o.t.Fatal(err)
	}
	return refs
}

func (o *owner) objects() (n int) {
	o.t.Helper()
	if err := o.engine.ListObjects(o.t.Context(), "s", "v/", func(string, int64) error { n++; return nil }); err != nil {
		o.t.Fatal(err)
	}
	return n
}

// TestCollectNotReleased: a state that is not checkpointed deletes nothing, however dead objects are in it. (A pin of a reader holds
// seqs back in the same way.)
func TestCollectNotReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{})
		defer o.close()
		o.name("a", o.put(make([]byte, 2000))[0])
		o.name("a", o.put(make([]byte, 3000))[0])
		s := o.actor.Latest()
		done, err := o.values.Collect(t.Context(), shard.NewView(s.Tree), s.Seq, 1<<20)
		if err != nil || done.Deleted != 0 || o.objects() != 2 {
			t.Fatalf("%+v, %v; %d objects", done, err, o.objects())
		}
		if _, err := o.actor.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		done, err = o.values.Collect(t.Context(), shard.NewView(s.Tree), s.Seq, 1<<20)
		if err != nil || done.Deleted != 1 || o.objects() != 1 {
			t.Fatalf("%+v, %v; %d objects", done, err, o.objects())
		}
	})
}

// TestCollectOldState: a state from before an object's second value was named says nothing about that object, also when by now all its
// references are settled.
func TestCollectOldState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{})
		defer o.close()
		refs := o.put(bytes.Repeat([]byte("1"), 2000), bytes.Repeat([]byte("2"), 2000))
		o.name("a", refs[0])
		if err := o.run(&shard.Command{Op: shard.OpDelete, Namespace: 1, Delete: shard.Delete{Key: []byte("a")}}); err != nil {
			t.Fatal(err)
		}
		old := o.actor.Latest() // the object is dead in it
		if _, err := o.actor.CheckpointState(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		o.name("b", refs[1])
		done, err := o.values.Collect(t.Context(), shard.NewView(old.Tree), old.Seq, 1<<20)
		if err != nil || done.Deleted != 0 {
			t.Fatalf("%+v, %v: it is live", done, err)
		}
		got := make([]byte, 2000)
		if err := o.values.Read(t.Context(), refs[1], 0, got); err != nil || got[0] != '2' {
			t.Fatal(err)
		}
	})
}

// TestBound: values that wait are bounded in bytes, and one call always fits when nothing waits.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{Writers: 1, QueuedBytes: 10_000})
		defer o.close()
		o.put(make([]byte, 20_000))
		frozen := o.engine.Add(fault.Rule{Verb: fault.Put, Freeze: true})
		errs := make(chan error, 4)
		for range 4 {
			go func() {
				_, err := o.values.Put(t.Context(), make([]byte, 3000))
				errs <- err
			}()
		}
		<-frozen.Hit()
		synctest.Wait()
		if err := <-errs; err == nil || kverr.KindOf(err) != kverr.Overloaded {
			t.Fatalf("the fourth of 3,000 bytes with a bound of 10,000: %v", err)
		}
		frozen.Thaw()
		for range 3 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAbandoned: a caller that gives up while its values wait leaves nothing behind.
func TestAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{Writers: 1})
		defer o.close()
		frozen := o.engine.Add(fault.Rule{Verb: fault.Put, Freeze: true})
		first := make(chan shard.Ref, 1)
		go func() { first <- o.put(make([]byte, 2000))[0] }()
		<-frozen.Hit()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := o.values.Put(ctx, make([]byte, 3000))
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		frozen.Thaw()
		o.name("a", <-first)
		synctest.Wait()
		if n := o.objects(); n != 1 {
			t.Fatalf("%d objects, want 1", n)
		}
		if o.values.Busy() {
			t.Fatal("busy with a caller that has gone")
		}
	})
}

// TestWriteFails: what could not be stored is refused as not applied; those who waited behind it are stored.
func TestWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{Writers: 1})
		defer o.close()
		broken := o.engine.Add(fault.Rule{Verb: fault.Put, Freeze: true, Err: driver.ErrNoSpace})
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { _, err := o.values.Put(t.Context(), make([]byte, 2000)); first <- err }()
		<-broken.Hit()
		go func() { _, err := o.values.Put(t.Context(), make([]byte, 2000)); second <- err }()
		synctest.Wait()
		broken.Thaw()
		if err := <-first; err == nil || kverr.KindOf(err) != kverr.NoSpace {
			t.Fatal(err)
		}
		if err := <-second; err != nil {
			t.Fatal(err)
		}
	})
}

// TestClose: Close cuts off a stream that goes on for ever, and later calls are refused.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t, values.Config{})
		o.engine.Add(fault.Rule{Verb: fault.Put, Freeze: true})
		done := make(chan error, 1)
		go func() {
			_, err := o.values.WriteStream(t.Context(), 10, bytes.NewReader(make([]byte, 10)))
			done <- err
		}()
		synctest.Wait()
		if !o.values.Busy() {
			t.Fatal("not busy with a stream under way")
		}
		o.values.Close()
		if err := <-done; err == nil || kverr.KindOf(err) != kverr.Unavailable {
			t.Fatal(err)
		}
		if _, err := o.values.Put(t.Context(), make([]byte, 10)); err == nil || kverr.KindOf(err) != kverr.Unavailable {
			t.Fatal(err)
		}
		o.close()
	})
}
