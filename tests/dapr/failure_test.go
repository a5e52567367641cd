package dapr

import (
	"strings"
	"testing"
	"time"

	"kvstore/actors/host/daprhost"
	"kvstore/components/kverr"
	"kvstore/tests/testenv"
)

// mostPause is how long a shard may go without a write that is acknowledged, in the tests of this file, on a busy machine: a lease term of 1 s is
// part of it.
const mostPause = 5 * time.Second

// TestLocate: every sidecar leads to the same owner, and shards are spread; a shard that does not exist is not found.
func TestLocate(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 24})
	held := c.held()
	for _, n := range c.nodes {
		if len(held[n]) == 0 {
			t.Errorf("%s serves none of %d shards", n.Name, len(c.shards))
		}
		by := c.locatorBy(n.sidecar)
		for _, id := range c.shards {
			if here, there := locate(t, by, id), c.locate(id); here != there {
				t.Errorf("%s: %s leads to %+v, the frontend's sidecar to %+v", id, n.Name, here, there)
			}
		}
	}
	_, err := c.locator.Locate(t.Context(), "a1b2c3d4e5f60718-999")
	if err == nil || kverr.KindOf(err) != kverr.NotFound {
		t.Errorf("a shard that does not exist: %v", err)
	}
	began := time.Now()
	for range 100 {
		c.locate(c.shards[0])
	}
	t.Logf("Locate takes %v", time.Since(began)/100)
}

// TestHostKilled: kill -9 of a host, with its sidecar left, moves its shards at once; it comes back and gets what Dapr places on it.
func TestHostKilled(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 12})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	victim.Crash()
	l.steady(5)
	c.await("the host that was killed serves again", func() bool { return len(c.held()[victim]) > 0 })
	l.steady(5)
	if gap := l.stop("kill -9 of a host"); gap > testenv.AtMost(mostPause) {
		t.Errorf("a shard was not written for %v", gap)
	}
}

// TestSidecarKilled: kill -9 of a host's sidecar stops nothing: whoever knows where a shard is goes on, and others are led there once more.
func TestSidecarKilled(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 12})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	victim.sidecar.Crash()
	l.steady(20)
	c.await("the sidecar is back", func() bool { return victim.sidecar.Starts() == 2 })
	c.await("its host is placed on again", func() bool { return locate(t, c.locator, c.shards[0]).Address == victim.address })
	l.steady(5)
	if gap := l.stop("kill -9 of a sidecar"); gap > testenv.AtMost(mostPause) {
		t.Errorf("a shard was not written for %v", gap)
	}
}

// TestPlacementKilled: without placement no shard is found anew, and everything goes on where it is.
func TestPlacementKilled(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 12})
	l := c.load()
	c.placement.Kill()
	during := l.steady(50)
	c.placement.Start(t)
	for _, id := range c.shards {
		c.locate(id)
	}
	l.steady(5)
	gap := l.stop("kill -9 of placement")
	t.Logf("50 writes to each shard without placement took %v", during)
	if gap > testenv.AtMost(mostPause) {
		t.Errorf("a shard was not written for %v", gap)
	}
}

// TestGracefulMove: a host that is told to stop hands its shards over, faster than any lease ends.
func TestGracefulMove(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 12})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	if err := victim.Stop(); err != nil {
		t.Fatalf("%v; its log:\n%s", err, victim.Tail(4096))
	}
	l.steady(5)
	victim.Start(t) // comes back, and gets its shards back from those who serve them
	c.await("the host serves again", func() bool { return len(c.held()[victim]) > 0 })
	l.steady(5)
	if gap := l.stop("a host that leaves and comes back"); gap > testenv.AtMost(time.Second) {
		t.Errorf("a shard was not written for %v: that is as long as if the host had been killed", gap)
	}
}

// TestSecured: the same with mutual TLS between the sidecars and placement, by a sentry, and a token for the sidecars' API; whoever has no
// token is told nothing.
func TestSecured(t *testing.T) {
	c := newCluster(t, setup{hosts: 2, shards: 8, sentry: testenv.NewSentry(t), token: "correct-horse"})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	victim.Crash()
	l.steady(5)
	if gap := l.stop("kill -9 of a host, secured"); gap > testenv.AtMost(mostPause) {
		t.Errorf("a shard was not written for %v", gap)
	}
	for _, token := range []string{"", "wrong"} {
		link, err := daprhost.Dial(daprhost.SidecarConfig{Address: c.front.GRPC, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := daprhost.NewLocator(link, daprhost.LocatorConfig{})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = stranger.Locate(t.Context(), c.shards[0])
		if err == nil || !strings.Contains(err.Error(), "refuses the call: Unauthenticated") || strings.Contains(err.Error(), "correct-horse") || time.Since(began) > testenv.AtMost(2*time.Second) {
			t.Errorf("with token %q: %v, after %v", token, err, time.Since(began))
		}
		link.Close()
	}
}
