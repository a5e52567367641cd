package memhost

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// stage is hosts that share a store, with a term of 1 s.
type stage struct {
	t      *testing.T
	faults *fault.Engine
	store  *wal.Store
	peers  LocalPeers
	hosts  []*Host
}

func onStage(t *testing.T, test func(t *testing.T, s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		engine, err := memlog.New(memlog.Config{Term: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		s := &stage{t: t, faults: fault.Wrap(engine)}
		if s.store, err = wal.NewStore(s.faults, wal.Config{}); err != nil {
			t.Fatal(err)
		}
		if err := s.store.Create(t.Context(), "a-0", nil); err != nil {
			t.Fatal(err)
		}
		defer func() {
			s.faults.Clear()
			for _, h := range s.hosts {
				_ = h.Close(context.Background(), false)
			}
			_ = s.faults.Close()
		}()
		test(t, s)
	})
}

func (s *stage) host(address string, cfg Config) *Host {
	s.t.Helper()
	cfg.Address, cfg.Peers = address, &s.peers
	h, err := New(s.store, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.peers.Join(h)
	s.hosts = append(s.hosts, h)
	return h
}

// put writes to the shard by a host.
func (s *stage) put(h *Host, p shard.Put) error {
	done := make(chan error, 1)
	p.Key, p.Value.Inline = []byte("k"), []byte("v")
	h.Do(s.t.Context(), "a-0", &shard.Command{Op: shard.OpPut, Namespace: 1, Put: p, Done: func(_ *shard.Command, err error) { done <- err }})
	return <-done
}

// TestOpen: where a shard is, is told without waiting, also while the engine does not answer.
func TestOpen(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		h := s.host("a", Config{})
		frozen := s.faults.Add(fault.Rule{Verb: fault.Manifest, Freeze: true})
		for range 3 {
			if a := h.Open("a-0"); a != (Answer{}) {
				t.Fatalf("%+v while it is being opened", a)
			}
			synctest.Wait()
		}
		frozen.Thaw()
		synctest.Wait()
		if a := h.Open("a-0"); a.Epoch != 1 || a.Why != nil {
			t.Fatalf("%+v", a)
		}
		if a := h.Open("a-1"); a != (Answer{}) {
			t.Fatalf("%+v of a shard that nobody has looked for yet", a)
		}
		synctest.Wait()
		if a := h.Open("a-1"); a.Why == nil || a.Why.Kind != kverr.NotFound {
			t.Fatalf("%+v of a shard that does not exist", a)
		}
		// It may be made and used meanwhile; and nothing is kept of one that was only asked for.
		if err := s.store.Create(t.Context(), "a-1", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := h.View(t.Context(), "a-1"); err != nil {
			t.Fatal(err)
		}
		h.Open("a-2")
		time.Sleep(time.Second)
		if n := len(h.Status()); n != 2 {
			t.Fatalf("%d shards are known, want 2", n)
		}
	})
}

// TestPeace: a host leaves a shard that it lost alone while the holder serves it, also while that one is still opening it, and takes it back
// at once when the holder is gone.
func TestPeace(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		a, b := s.host("a", Config{}), s.host("b", Config{})
		if err := s.put(a, shard.Put{}); err != nil {
			t.Fatal(err)
		}
		fencing := s.faults.Add(fault.Rule{Verb: fault.Fence, Freeze: true}) // b names itself in the manifest, and then stands still
		b.Open("a-0")
		<-fencing.Hit()
		for range 20 {
			if answer := a.Open("a-0"); answer.Epoch != 0 {
				t.Fatalf("%+v: the shard was taken back from a host that was opening it", answer)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if answer := a.Open("a-0"); answer.Why == nil || answer.Why.Kind != kverr.Moved || answer.Holder.Address != "b" || !answer.HolderPlaced {
			t.Fatalf("%+v, want that it moved to b", answer)
		}
		fencing.Thaw()
		synctest.Wait()
		if answer := b.Open("a-0"); answer.Epoch != 2 {
			t.Fatalf("%+v", answer)
		}
		if err := s.put(a, shard.Put{}); kverr.KindOf(err) != kverr.Moved {
			t.Fatal(err)
		}
		s.host("b", Config{}) // the process at that address is another one now
		began := time.Now()
		if err := s.put(a, shard.Put{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 1200*time.Millisecond { // a term
			t.Fatalf("the shard of a host that was gone was written after %v", took)
		}
	})
}

// apart is peers of whom some cannot be asked.
type apart struct {
	Peers
	silent atomic.Bool
}

var errApart = errors.New("no way to the host")

func (p *apart) Serves(ctx context.Context, shardID string, holder wal.Holder) (Serving, error) {
	if p.silent.Load() {
		return Serving{}, errApart
	}
	return p.Peers.Serves(ctx, shardID, holder)
}

// directory is a Highwater that takes its time to answer.
type directory struct{ takes atomic.Int64 }

func (d *directory) Remember(context.Context, ...wal.Mark) error { return nil }

func (d *directory) Marks(ctx context.Context, ids ...string) ([]wal.Mark, error) {
	select {
	case <-time.After(time.Duration(d.takes.Load())):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return []wal.Mark{{Shard: ids[0], Made: true}}, nil
}

// TestCutOff: a host that reaches neither who holds the shard that it lost nor the directory leads callers to the holder, for as long as that lasts. One that
// reaches the directory, be it slow, takes the shard.
func TestCutOff(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		way := &apart{Peers: &s.peers}
		a, err := New(s.store, Config{Address: "a", Peers: way})
		if err != nil {
			t.Fatal(err)
		}
		s.peers.Join(a)
		dir := &directory{}
		a.RememberWith(dir)
		b := s.host("b", Config{})
		s.hosts = append(s.hosts, a)
		for _, h := range []*Host{a, b} {
			if err := s.put(h, shard.Put{}); err != nil {
				t.Fatal(err)
			}
		}
		lost := time.Now()
		dir.takes.Store(int64(time.Hour))
		way.silent.Store(true)
		for range 10 { // within peace
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if answer := a.Open("a-0"); answer.Epoch != 0 || answer.Why != nil && answer.Holder.Address != "b" {
				t.Fatalf("%+v, want that it moved to b", answer)
			}
			began := time.Now()
			if err := s.put(a, shard.Put{}); kverr.KindOf(err) != kverr.Moved || time.Since(began) > mostDoubt {
				t.Fatalf("%v after %v", err, time.Since(began))
			}
		}
		if all := a.Status(); all[0].State != StateAsleep {
			t.Fatalf("%+v", all)
		}
		dir.takes.Store(int64(3 * time.Second)) // within mostDoubt, which it gets a while after the loss
		for s.put(a, shard.Put{}) != nil {
			if time.Since(lost) > 20*time.Second {
				t.Fatal("not taken from a holder that cannot be asked, 20 s after it was lost")
			}
			time.Sleep(failPause)
		}
		// b can be asked, and has lost it now.
		if err := s.put(b, shard.Put{}); kverr.KindOf(err) != kverr.Moved {
			t.Fatal(err)
		}
	})
}

// TestWaits: a host that waits for the end of an earlier owner's lease is not made to begin anew, nor another to begin after it: who is asked for the
// shard meanwhile leads there. One that leaves gives it up all the same.
func TestWaits(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		lost, b, c := s.host("lost", Config{}), s.host("b", Config{}), s.host("c", Config{})
		if err := s.put(lost, shard.Put{}); err != nil {
			t.Fatal(err)
		}
		s.host("lost", Config{}) // as if it had been killed and started again
		began := time.Now()
		written := make(chan error)
		go func() { written <- s.put(b, shard.Put{}) }()
		synctest.Wait()
		for _, h := range []*Host{c, s.hosts[3]} {
			h.Open("a-0")
			synctest.Wait()
			if answer := h.Open("a-0"); answer.Why == nil || answer.Why.Kind != kverr.Moved || answer.Holder.Address != "b" || answer.HolderPlaced {
				t.Fatalf("%+v, want that it moved to b", answer)
			}
			synctest.Wait()
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Second {
			t.Fatalf("the shard was written after %v, want the term", took)
		}
		time.Sleep(time.Second - time.Millisecond)
		if c.Open("a-0"); c.Serving("a-0") {
			t.Fatal("the shard is away a second time before callers came through")
		}
		synctest.Wait()
		if answer := c.Open("a-0"); answer.Why == nil || answer.Holder.Address != "b" {
			t.Fatalf("%+v, want that it is at b", answer)
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		began = time.Now()
		if err := s.put(c, shard.Put{}); err != nil || time.Since(began) > 0 {
			t.Fatalf("%v after %v: b has answered for a term, so it yields at once", err, time.Since(began))
		}

		s.host("c", Config{}) // c was killed, too
		go func() { written <- s.put(b, shard.Put{}) }()
		synctest.Wait()
		closed := make(chan error)
		go func() { closed <- b.Close(t.Context(), false) }()
		synctest.Wait()
		if err := s.put(s.hosts[3], shard.Put{}); err != nil {
			t.Fatal(err)
		}
		<-written
		<-closed
	})
}

// placements is a Placement for tests.
type placements struct {
	mu     sync.Mutex
	placed bool     // guarded by mu
	woken  []string // guarded by mu
}

func (p *placements) Placed(string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.placed
}

func (p *placements) Wake(shardID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.woken = append(p.woken, shardID)
}

func (p *placements) set(placed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.placed = placed
}

// TestPlacement: a shard that is not placed here is not opened, by users or by its own wake-up; one that is open is served all the same.
func TestPlacement(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		p := &placements{}
		h := s.host("a", Config{Placement: p, IdleAfter: time.Minute})
		if err := s.put(h, shard.Put{}); kverr.KindOf(err) != kverr.Moved {
			t.Fatal(err)
		}
		if n := len(h.Status()); n != 0 {
			t.Fatalf("%d shards are known", n)
		}
		p.set(true)
		if err := s.put(h, shard.Put{TTLMS: 600_000}); err != nil {
			t.Fatal(err)
		}
		p.set(false)
		if err := s.put(h, shard.Put{TTLMS: 600_000}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute) // it sleeps
		if err := s.put(h, shard.Put{}); kverr.KindOf(err) != kverr.Moved {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.woken) != 1 || p.woken[0] != "a-0" || len(h.Active()) != 0 {
			t.Fatalf("woken: %v, active: %v; want the one shard woken, elsewhere", p.woken, h.Active())
		}
	})
}

// TestFailureIsForgotten: a shard that could not be opened is not held against the host for ever. Who goes by readiness sends nobody, so nobody would try
// again; and one that is placed elsewhere is never tried here again, while its host may serve it. A loss stays, where the shard is placed.
func TestFailureIsForgotten(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		p := &placements{placed: true}
		h := s.host("a", Config{Placement: p})
		try := func(cause error) {
			t.Helper()
			rule := s.faults.Add(fault.Rule{Verb: fault.Manifest, Times: -1, Err: cause})
			defer rule.Remove()
			time.Sleep(failPause)
			if err := s.put(h, shard.Put{}); err == nil {
				t.Fatal("a shard is opened whose manifest cannot be read")
			}
		}
		is := func(state string, kind kverr.Kind) {
			t.Helper()
			all := h.Status()
			if len(all) != 1 || all[0].State != state || (all[0].Reason != nil) != (kind != 0) || kind != 0 && all[0].Reason.Kind != kind {
				t.Fatalf("%+v, want one shard in state %s with a reason of kind %v", all, state, kind)
			}
		}
		silent := errors.New("no answer")
		try(silent)
		is(StateFailed, kverr.Unavailable)
		time.Sleep(host.HeldFor / 2)
		try(silent)
		time.Sleep(host.HeldFor - time.Second) // since the last try
		is(StateFailed, kverr.Unavailable)
		time.Sleep(time.Second)
		is(StateAsleep, 0)

		try(driver.ErrCorrupt)
		is(StateFailed, kverr.DataLoss)
		try(silent) // which refutes nothing
		is(StateFailed, kverr.DataLoss)
		time.Sleep(time.Hour)
		is(StateFailed, kverr.DataLoss)
		if lost := h.Lost(); len(lost) != 1 {
			t.Fatalf("lost: %v", lost)
		}
		p.set(false)
		is(StateAsleep, 0)
		p.set(true)
		is(StateFailed, kverr.DataLoss)
		if !h.ForgetLoss("a-0") || h.ForgetLoss("a-0") { // another host's to tell, and accepted there
			t.Fatal("a loss is not forgotten, or twice")
		}
		is(StateAsleep, 0)
		try(driver.ErrCorrupt)
		is(StateFailed, kverr.DataLoss)
		time.Sleep(failPause)
		if err := s.put(h, shard.Put{}); err != nil {
			t.Fatal(err)
		}
		is(StateActive, 0)
		if lost := h.Lost(); len(lost) != 0 {
			t.Fatalf("lost: %v", lost)
		}
	})
}

// TestLossOfTheDirectory: while the directory has lost records no shard is opened, but that is not held against shards once it is over.
func TestLossOfTheDirectory(t *testing.T) {
	onStage(t, func(t *testing.T, s *stage) {
		h := s.host("a", Config{})
		h.RememberWith(&memory{
			remember: func([]wal.Mark) error { return nil },
			marks: func(string) (wal.Mark, error) {
				return wal.Mark{}, &kverr.Error{Kind: kverr.DataLoss, Op: "open the directory"}
			},
		})
		if err := s.put(h, shard.Put{}); kverr.KindOf(err) != kverr.DataLoss {
			t.Fatal(err)
		}
		if all := h.Status(); len(all) != 1 || all[0].State != StateFailed || len(h.Lost()) != 0 {
			t.Fatalf("%+v, lost: %v", all, h.Lost())
		}
		time.Sleep(host.HeldFor)
		if all := h.Status(); all[0].State != StateAsleep {
			t.Fatalf("%+v", all)
		}
	})
}
