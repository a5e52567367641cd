package telemetry

import (
	"context"
	"errors"
	"testing"
	"time"

	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
)

const patience = 20 * time.Second

// value is what a metric without labels, or with those, tells now.
func (t *Telemetry) value(tb testing.TB, name string) (total float64) {
	tb.Helper()
	families, err := t.registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
			return total
		}
	}
	tb.Fatalf("there is no %s", name)
	return 0
}

// TestElectionsAreCrashesAlone has a shard opened for the first time, put to sleep, moved and handed over in good order, none of which is an
// election; then its host dies, which is.
func TestElectionsAreCrashesAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	engine, err := memlog.New(memlog.Config{Term: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	tel := New(Info{})
	events := tel.Shards(memhost.Events{})
	open := func() *memhost.Host { // each is a process with a memory of its own
		store, err := wal.NewStore(engine, wal.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h, err := memhost.New(store, memhost.Config{Events: events})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}

	put := func(h *memhost.Host) {
		t.Helper()
		done := make(chan error, 1)
		h.Do(ctx, "s", &shard.Command{Op: shard.OpPut, Put: shard.Put{Key: []byte("k")}, Done: func(_ *shard.Command, err error) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	elections := func(want float64) {
		t.Helper()
		if got := tel.value(t, "kvstore_leader_elections_total"); got != want {
			t.Errorf("%v elections, want %v", got, want)
		}
	}
	a := open()
	if err := a.Create(ctx, "s", nil); err != nil {
		t.Fatal(err)
	}
	put(a)
	elections(0) // the first
	if err := a.Close(ctx, true); err != nil {
		t.Fatal(err)
	}
	b := open()
	put(b)
	elections(0) // handed over
	c := open()
	put(c) // b is not asked, and does not know: as good as dead
	elections(1)
	if got := tel.value(t, "kvstore_shard_activation_duration_seconds"); got != 3 {
		t.Errorf("%v activations, want 3", got)
	}
	if got := tel.value(t, "kvstore_commits_total"); got < 3 {
		t.Errorf("%v commits", got)
	}
	for _, h := range []*memhost.Host{b, c} {
		_ = h.Close(ctx, false) // b is fenced
	}
}

// TestEngineIsTimed: each call is counted once, with how it ended, and does what it did.
func TestEngineIsTimed(t *testing.T) {
	inner, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tel := New(Info{})
	e := tel.Engine(inner)
	ctx := context.Background()
	if _, _, err := e.Manifest(ctx, "s"); !errors.Is(err, driver.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := e.SwapManifest(ctx, "s", "", []byte("m")); err != nil {
		t.Fatal(err)
	}
	epoch := driver.Epoch{Counter: 1}
	if _, err := e.Fence(ctx, "s", epoch, func(uint64, uint64) []byte { return []byte("f") }); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for seq := range uint64(3) {
		e.Append("s", epoch, driver.Frame{Epoch: 1, Seq: seq + 2, Data: []byte("d")}, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := e.GetObject(ctx, "s", "absent", 0, make([]byte, 1)); err == nil {
		t.Fatal("an object that nobody put")
	}
	families, err := tel.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		if f.GetName() != "kvstore_engine_duration_seconds" {
			continue
		}
		for _, m := range f.Metric {
			l := map[string]string{}
			for _, p := range m.Label {
				l[p.GetName()] = p.GetValue()
			}
			got[l["engine"]+" "+l["op"]+" "+l["outcome"]] = m.Histogram.GetSampleCount()
		}
	}
	for what, want := range map[string]uint64{
		"memory manifest not_exist": 1, "memory swap_manifest ok": 1, "memory fence ok": 1, "memory append ok": 3, "memory get_object not_exist": 1,
	} {
		if got[what] != want {
			t.Errorf("%s: %d, want %d (%v)", what, got[what], want, got)
		}
	}
}
