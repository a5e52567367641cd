package hosttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/waltest/fault"
)

func nowMS() int64 { return time.Now().UnixMilli() }

// fate is what is known of a key in testFaults.
type fate struct {
	value []byte
	acked bool
	maybe bool // its outcome is unknown
}

// testFaults breaks each call of the engine in turn, before its work and after it, while a host does all that it does: open, write,
// pack values, checkpoint, collect, sleep, wake, close. Afterwards everything that was acknowledged is there, nothing that was
// refused is, and the host serves.
func testFaults(c *cluster) {
	verbs := []struct {
		name string
		verb fault.Verb
	}{
		{"manifest", fault.Manifest}, {"swap", fault.Swap}, {"fence", fault.Fence}, {"append", fault.Append}, {"read", fault.Read},
		{"trim", fault.Trim}, {"put", fault.Put}, {"get", fault.Get}, {"delete", fault.Delete}, {"list", fault.List},
	}
	step := 1
	if testing.Short() {
		step = 7 // under the race detector: other calls are other lives, not other races
	}
	for _, v := range verbs {
		for _, after := range []bool{false, true} {
			for nth := 1; nth <= 100; nth += step {
				c.fault.Clear()
				if err := c.store.Remove(c.t.Context(), one); err != nil {
					c.t.Fatal(err)
				}
				if err := c.store.Create(c.t.Context(), one, nil); err != nil {
					c.t.Fatal(err)
				}
				rule := c.fault.Add(fault.Rule{Verb: v.verb, Shard: one, Nth: nth, Err: io.ErrUnexpectedEOF, After: after})
				c.life(fmt.Sprintf("%s %d, after %v", v.name, nth, after), rule)
				if rule.Hits() == 0 {
					break // the life has fewer calls
				}
			}
		}
	}
}

// life is what a host does in testFaults.
func (c *cluster) life(name string, rule *fault.Armed) {
	c.t.Helper()
	o := Options{IdleAfter: time.Minute, Actor: host.Config{CheckpointRecords: 6}}
	h := c.host(o)
	keys := make(map[string]*fate)
	write := func(i, round int) {
		k, value := key(i), blob(i+1000*round, 1500)
		f := &fate{value: value}
		if old := keys[k]; old != nil && (old.acked || old.maybe) {
			k = fmt.Sprint(k, "-", round) // each key is written once, so that its fate is clear
		}
		keys[k] = f
		refs, err := h.PutValues(c.t.Context(), one, value)
		if err == nil {
			err = c.do(h, putRef(k, refs[0]))
		}
		c.judge(name, f, err)
		// A second one in place, which dies at once, so that there is something to collect.
		if refs, err := h.PutValues(c.t.Context(), one, value); err == nil {
			_ = c.do(h, putRef("dead", refs[0]))
		}
	}
	for round := range 2 {
		for i := range 8 {
			write(i, round)
		}
		time.Sleep(3 * time.Minute) // sleeps
		synctest.Wait()
	}
	_ = h.Close(c.t.Context(), true)
	rule.Remove()
	h = c.host(Options{})
	var view shard.View
	c.eventually(func() (err error) {
		view, err = h.View(c.t.Context(), one)
		return err
	})
	for k, f := range keys {
		e, ok, _ := view.Get(ns, []byte(k))
		switch {
		case f.acked && !ok:
			c.t.Fatalf("%s: %s was acknowledged and is gone", name, k)
		case ok && !f.acked && !f.maybe:
			c.t.Fatalf("%s: %s was refused and is there", name, k)
		case ok:
			got := make([]byte, e.Value.Ref.Length)
			if err := h.ReadValue(c.t.Context(), one, e.Value.Ref, 0, got); err != nil || !bytes.Equal(got, f.value) {
				c.t.Fatalf("%s: the value of %s: %v", name, k, err)
			}
		}
	}
	c.must(h, put("after", "1"))
	synctest.Wait()
	// Every object that is left is accounted for.
	view, err := h.View(c.t.Context(), one)
	if err != nil {
		c.t.Fatal(err)
	}
	if n, want := c.objects(), int(view.Totals().Objects); n > want {
		c.t.Fatalf("%s: %d objects, the state knows %d", name, n, want)
	}
	_ = h.Close(c.t.Context(), false)
	c.hosts = c.hosts[:0]
}

// judge notes what a caller was told of a write.
func (c *cluster) judge(name string, f *fate, err error) {
	c.t.Helper()
	var e *kverr.Error
	switch {
	case err == nil:
		f.acked = true
	case !errors.As(err, &e):
		c.t.Fatalf("%s: %v is a %T", name, err, err)
	case e.Kind == kverr.OutcomeUnknown:
		f.maybe = true
	case e.Kind != kverr.Unavailable && e.Kind != kverr.Moved:
		c.t.Fatalf("%s: a write ended with %v", name, err)
	}
}
