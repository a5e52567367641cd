package hosttest

import (
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal/waltest/fault"
)

// testYield: a host that is used for a shard which another one holds gets it at once, and the other leaves it alone for 30 s.
func testYield(c *cluster) {
	a, b := c.host(Options{Address: "a", Reachable: true}), c.host(Options{Address: "b", Reachable: true})
	c.must(a, put("a", "1"))
	began := time.Now()
	c.must(b, put("a", "2"))
	c.is(b, "a", "2")
	if took := time.Since(began); took > 100*time.Millisecond { // a runtime may have to be asked where it is once more
		c.t.Fatalf("the take-over took %v although the holder could be asked", took)
	}
	for range 29 {
		c.kind(c.do(a, put("a", "3")), kverr.Moved)
		_, err := c.get(a, "a")
		c.kind(err, kverr.Moved)
		c.is(b, "a", "2") // not asked to yield
		time.Sleep(time.Second)
	}
	time.Sleep(2 * time.Second)
	c.must(a, put("a", "4"))
	_, err := c.get(b, "a")
	c.kind(err, kverr.Moved)
	c.is(a, "a", "4")
}

// testUnreachable: a successor that cannot ask the holder acknowledges nothing, and answers no read, for a full term. Until its lease
// ends the holder answers reads; then it is done.
func testUnreachable(c *cluster) {
	a, b := c.host(Options{Address: "a"}), c.host(Options{Address: "b"})
	c.must(a, put("a", "1"))
	time.Sleep(time.Second)
	c.is(a, "a", "1")
	began := time.Now()
	w := c.start(b, put("a", "2"))[0]
	read := make(chan string, 1)
	go func() {
		v, _ := c.get(b, "a")
		read <- v
	}()
	synctest.Wait()
	c.is(a, "a", "1") // inside its lease
	if w.left() || len(read) > 0 {
		c.t.Fatal("the successor answered inside the holder's lease")
	}
	c.kind(c.do(a, put("a", "3")), kverr.Moved) // the fence stands
	if err := w.wait(); err != nil {
		c.t.Fatal(err)
	}
	if took := time.Since(began); took < term {
		c.t.Fatalf("acknowledged after %v, the term is %v", took, term)
	}
	if v := <-read; v != "2" && v != "1" {
		c.t.Fatalf("read %q", v)
	}
	_, err := c.get(a, "a")
	c.kind(err, kverr.Moved)
	c.is(b, "a", "2")
}

// testLease: reads ask the engine once in a while as long as there are reads, and not at all without.
func testLease(c *cluster) {
	h := c.host(Options{Address: "a"})
	c.must(h, put("a", "1"))
	asked := c.fault.Add(fault.Rule{Verb: fault.Manifest, Nth: 1 << 30})
	for range 1000 {
		c.is(h, "a", "1")
		time.Sleep(100 * time.Millisecond)
	}
	if n := asked.Seen(); n < 10 || n > 25 {
		c.t.Fatalf("%d confirmations in 100 s of reads with a term of 10 s", n)
	}
	synctest.Wait()
	before := asked.Seen()
	time.Sleep(time.Hour)
	if n := asked.Seen() - before; n != 0 {
		c.t.Fatalf("%d confirmations in an hour without reads", n)
	}
}

// counterOf reads the shared counter.
func (c *cluster) counterOf(h Host) (int, error) {
	v, err := c.get(h, "n")
	if err != nil {
		return 0, err
	}
	n, _ := strconv.Atoi(v)
	return n, nil
}

// testTwoOwners: two hosts that cannot reach each other fight for a shard. At any time one writes; no read goes back behind what
// was acknowledged before it began; the loser answers Moved; both serve again.
func testTwoOwners(c *cluster) {
	hosts := []Host{c.host(Options{Address: "a"}), c.host(Options{Address: "b"})}
	c.must(hosts[0], put("n", "0"))

	var mu sync.Mutex
	acked := uint64(0)           // highest version that was acknowledged; guarded by mu
	seen := make(map[uint64]int) // versions that were acknowledged; guarded by mu
	highest := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return acked
	}
	var all sync.WaitGroup
	served := make([]int, 2)
	fight := 5 * time.Minute
	if testing.Short() {
		fight = 2 * time.Minute // under the race detector: each has had its turn by then
	}
	over := time.Now().Add(fight)
	for who, h := range hosts {
		all.Go(func() {
			for time.Now().Before(over) {
				before := highest()
				cmd := put("n", strconv.Itoa(who))
				if err := c.do(h, cmd); err == nil {
					v := cmd.Result.Write.Version
					mu.Lock()
					served[who]++
					if seen[v]++; seen[v] > 1 || v <= before {
						c.t.Errorf("writer %d: version %d, acknowledged %d times; %d was before it", who, v, seen[v], before)
					}
					acked = max(acked, v)
					mu.Unlock()
				} else if k := kverr.KindOf(err); k != kverr.Moved && k != kverr.Unavailable && k != kverr.OutcomeUnknown {
					c.t.Errorf("writer %d: %v", who, err)
				}
				time.Sleep(time.Duration(300+100*who) * time.Millisecond)
			}
		})
		all.Go(func() {
			for time.Now().Before(over) {
				before := highest()
				v, err := h.View(c.t.Context(), one)
				if err != nil {
					if k := kverr.KindOf(err); k != kverr.Moved && k != kverr.Unavailable {
						c.t.Errorf("reader %d: %v", who, err)
					}
				} else if e, _, _ := v.Get(ns, []byte("n")); e.Version < before {
					c.t.Errorf("reader %d: read version %d, %d was acknowledged before", who, e.Version, before)
				}
				time.Sleep(70 * time.Millisecond)
			}
		})
	}
	all.Wait()
	if served[0] == 0 || served[1] == 0 {
		c.t.Fatalf("writes served: %v; each host must have had its turn", served)
	}
}

// testFaultsOfTwo: an engine that fails on the way of a take-over leaves one of two hosts in charge, with everything acknowledged.
func testFaultsOfTwo(c *cluster) {
	a, b := c.host(Options{Address: "a", Reachable: true}), c.host(Options{Address: "b", Reachable: true})
	hosts := []Host{a, b}
	value := 0
	c.must(a, put("n", "0"))
	for _, verb := range []fault.Verb{fault.Manifest, fault.Swap, fault.Fence, fault.Read, fault.Append} {
		for nth := 1; nth <= 4; nth++ {
			for _, after := range []bool{false, true} {
				rule := c.fault.Add(fault.Rule{Verb: verb, Nth: nth, Err: errors.New("broken on purpose"), After: after})
				for turn := range 4 {
					value++
					err := c.do(hosts[turn%2], put("n", strconv.Itoa(value)))
					time.Sleep(31 * time.Second)
					if err == nil {
						c.readBoth(hosts, value, value)
					}
				}
				rule.Remove()
				// Whoever is asked last serves.
				time.Sleep(31 * time.Second)
				value++
				c.eventually(func() error { return c.do(hosts[nth%2], put("n", strconv.Itoa(value))) })
				c.readBoth(hosts, value, value)
			}
		}
	}
}

// readBoth: whichever host answers, the answer lies within the bounds.
func (c *cluster) readBoth(hosts []Host, low, high int) {
	c.t.Helper()
	for who, h := range hosts {
		n, err := c.counterOf(h)
		if err == nil && (n < low || n > high) {
			c.t.Fatalf("host %d reads %d, want %d to %d", who, n, low, high)
		}
	}
}

// eventually tries again for a minute.
func (c *cluster) eventually(f func() error) {
	c.t.Helper()
	var err error
	for range 60 {
		if err = f(); err == nil {
			return
		}
		time.Sleep(time.Second)
	}
	c.t.Fatalf("not within a minute: %v", err)
}
