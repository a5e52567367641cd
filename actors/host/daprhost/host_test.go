package daprhost_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host/daprhost"
	"kvstore/actors/host/memhost"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// bench is one host with a shard and its sidecar, in a bubble.
type bench struct {
	*daprhost.Host
	t       *testing.T
	faults  *fault.Engine
	sidecar *sidecar
	locator *daprhost.Locator
	lost    []string // what Events.Lost told
}

func onBench(t *testing.T, cfg daprhost.Config, test func(t *testing.T, b *bench)) {
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
		if err := store.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		b := &bench{t: t, faults: faults, sidecar: newSidecar()}
		link := b.sidecar.dial(t)
		cfg.Shards = memhost.Config{Address: "here"}
		cfg.Events.Lost = func(why error) { b.lost = append(b.lost, why.Error()) }
		if b.Host, err = daprhost.New(store, link, cfg); err != nil {
			t.Fatal(err)
		}
		if b.locator, err = daprhost.NewLocator(link, daprhost.LocatorConfig{}); err != nil {
			t.Fatal(err)
		}
		b.Begin()
		defer func() {
			if err := b.Close(context.Background(), true); err != nil {
				t.Error(err)
			}
			link.Close()
			b.sidecar.close()
			faults.Close()
		}()
		time.Sleep(100 * time.Millisecond)
		if err := b.Ready(); err != nil {
			t.Fatal(err)
		}
		test(t, b)
	})
}

func (b *bench) put() error {
	done := make(chan error, 1)
	b.Do(b.t.Context(), "a-0", &shard.Command{
		Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k")},
		Done: func(_ *shard.Command, err error) { done <- err },
	})
	return <-done
}

// TestOnlyPlaced: whoever comes without having asked Dapr is sent there, until Dapr has placed the shard here.
func TestOnlyPlaced(t *testing.T) {
	onBench(t, daprhost.Config{}, func(t *testing.T, b *bench) {
		if err := b.put(); kverr.KindOf(err) != kverr.Moved {
			t.Fatal(err)
		}
		loc, err := b.locator.Locate(t.Context(), "a-0")
		if err != nil || loc.Address != "here" || loc.Epoch != 1 {
			t.Fatalf("%+v, %v", loc, err)
		}
		if err := b.put(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDeactivationDropsNothing: it is acknowledged at once, the shard is served on, and a little later it is located, so that it goes to
// where Dapr has placed it: here that is this host again.
func TestDeactivationDropsNothing(t *testing.T) {
	onBench(t, daprhost.Config{}, func(t *testing.T, b *bench) {
		if _, err := b.locator.Locate(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := b.sidecar.deactivate(t.Context(), daprhost.DefaultActorType, "a-0"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the acknowledgement took %v", took)
		}
		if err := b.put(); err != nil {
			t.Fatal(err)
		}
		epoch := b.Status()[0].Epoch
		located := b.sidecar.invoked("a-0")
		time.Sleep(3 * time.Second)
		if n := b.sidecar.invoked("a-0"); n != located+1 {
			t.Errorf("located %d times after it was deactivated, want once", n-located)
		}
		if err := b.put(); err != nil || b.Status()[0].Epoch != epoch {
			t.Errorf("%v, %+v", err, b.Status()[0])
		}
	})
}

// TestLossIsToldWhereItIsPlaced: a shard that has lost data is told of by the host that it is placed on, also after a time without a stream, though nobody
// asks for it; and once it is placed elsewhere it is located, so that its host finds out.
func TestLossIsToldWhereItIsPlaced(t *testing.T) {
	onBench(t, daprhost.Config{}, func(t *testing.T, b *bench) {
		b.faults.Add(fault.Rule{Verb: fault.Manifest, Times: -1, Err: driver.ErrCorrupt})
		if _, err := b.locator.Locate(t.Context(), "a-0"); kverr.KindOf(err) != kverr.DataLoss {
			t.Fatal(err)
		}
		told := func() bool {
			all := b.Status()
			return len(all) == 1 && all[0].State == memhost.StateFailed && all[0].Reason.Kind == kverr.DataLoss
		}
		if !told() {
			t.Fatalf("%+v", b.Status())
		}
		b.sidecar.endStream()
		time.Sleep(10 * time.Second)
		if err := b.Ready(); err != nil || !told() {
			t.Fatalf("after the stream came back: %v, %+v", err, b.Status())
		}
		located := b.sidecar.invoked("a-0")
		if err := b.sidecar.deactivate(t.Context(), daprhost.DefaultActorType, "a-0"); err != nil {
			t.Fatal(err)
		}
		if told() {
			t.Fatalf("it is placed elsewhere, and yet: %+v", b.Status())
		}
		time.Sleep(3 * time.Second)
		if n := b.sidecar.invoked("a-0"); n != located+1 || !told() { // which the sidecar routes here again
			t.Fatalf("located %d times after it was placed elsewhere, want once; %+v", n-located, b.Status())
		}
	})
}

// TestDeafSidecar: a sidecar that takes calls and routes none is asked to end, once for each time that it is tried, while shards are served on.
func TestDeafSidecar(t *testing.T) {
	onBench(t, daprhost.Config{}, func(t *testing.T, b *bench) {
		if _, err := b.locator.Locate(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		b.sidecar.setDeaf(true)
		time.Sleep(2 * time.Second)
		if n := b.sidecar.shutdowns(); n != 0 {
			t.Fatalf("it was asked to end %d times after 2 s: a slow one is not a wedged one", n)
		}
		time.Sleep(8 * time.Second)
		if n := b.sidecar.shutdowns(); n == 0 {
			t.Fatal("it was not asked to end")
		}
		if err := b.Ready(); err == nil || len(b.lost) == 0 || !strings.Contains(b.lost[0], "does not route") {
			t.Fatalf("%v, %q", err, b.lost)
		}
		if err := b.put(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.locator.Locate(t.Context(), "a-0"); kverr.KindOf(err) != kverr.Unavailable {
			t.Fatal(err)
		}
		b.sidecar.setDeaf(false)
		time.Sleep(5 * time.Second)
		if err := b.Ready(); err != nil {
			t.Fatal(err)
		}
		n := b.sidecar.shutdowns()
		time.Sleep(time.Minute)
		if b.sidecar.shutdowns() != n {
			t.Fatal("it was asked to end although it is well")
		}
	})
}

// TestCalls: methods are answered with their status in the payload, and bounded in number, while Locate is answered all the same.
func TestCalls(t *testing.T) {
	var block, waits chan struct{}
	cfg := daprhost.Config{MaxCalls: 2, Methods: map[string]daprhost.Handler{
		"fail": func(context.Context, string, []byte) ([]byte, error) {
			return nil, kverr.New(kverr.NoSpace, "try", "the disk is full")
		},
		"wait": func(_ context.Context, shardID string, p []byte) ([]byte, error) {
			waits <- struct{}{}
			<-block
			return append([]byte(shardID), p...), nil
		},
	}}
	onBench(t, cfg, func(t *testing.T, b *bench) {
		block, waits = make(chan struct{}), make(chan struct{}, 4)
		if _, err := b.locator.Invoke(t.Context(), "a-0", "fail", nil); kverr.KindOf(err) != kverr.NoSpace || !strings.Contains(err.Error(), "the disk is full") {
			t.Fatal(err)
		}
		answers := make(chan string, 2)
		for _, id := range []string{"a-0", "a-1"} {
			go func() {
				got, err := b.locator.Invoke(t.Context(), id, "wait", []byte("!"))
				if err != nil {
					got = []byte(err.Error())
				}
				answers <- string(got)
			}()
		}
		<-waits // both are there: a call that the sidecar had to repeat comes after a pause
		<-waits
		if _, err := b.locator.Invoke(t.Context(), "a-2", "wait", nil); kverr.KindOf(err) != kverr.Exhausted {
			close(block)
			t.Fatal(err)
		}
		if _, err := b.locator.Locate(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		close(block)
		if got := <-answers + " " + <-answers; got != "a-0! a-1!" && got != "a-1! a-0!" {
			t.Fatal(got)
		}
		if _, err := b.locator.Invoke(t.Context(), "a-0", "wait", make([]byte, daprhost.DefaultMaxBody)); kverr.KindOf(err) != kverr.TooLarge {
			t.Fatal(err)
		}
	})
}

// TestStreamComesBack: a host whose stream ends opens one again, never two, and its shards go on meanwhile.
func TestStreamComesBack(t *testing.T) {
	onBench(t, daprhost.Config{}, func(t *testing.T, b *bench) {
		if _, err := b.locator.Locate(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			b.sidecar.endStream()
			if err := b.put(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if err := b.Ready(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		if n := b.sidecar.invoked("a-0"); n < 6 {
			t.Errorf("located %d times: shards that are open are located again after each time without a stream", n)
		}
		for _, why := range b.lost {
			if strings.Contains(why, "a second stream") {
				t.Error(why)
			}
		}
	})
}
