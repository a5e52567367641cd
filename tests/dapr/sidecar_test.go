package dapr

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	rtv1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/host/daprhost"
	"kvstore/components/kverr"
	"kvstore/tests/testenv"
)

// TestStaleSidecar: a sidecar that is cut off from placement, and does not know it, goes on saying that shards are its host's, while
// placement has given them to another (DAPR.md 3.8 b). So two hosts are told that one shard is theirs, by clients of either side. At any
// time one of them writes; the other leads its clients there, ends its sidecar after a while, and is a host like any other when the network is
// back.
func TestStaleSidecar(t *testing.T) {
	var lines []*testenv.Line // of each host to placement
	c := newCluster(t, setup{hosts: 3, shards: 12, placementOf: func(c *cluster, _ int) string {
		lines = append(lines, testenv.NewLine(t, c.placement.Addr))
		return lines[len(lines)-1].Addr
	}})
	held := c.held()
	i := slices.IndexFunc(c.nodes, func(n *node) bool { return len(held[n]) > 0 }) // a hash of addresses may give a host nothing
	victim, cut := c.nodes[i], lines[i]
	own := held[victim]
	old := c.locatorBy(victim.sidecar)
	l := c.load(old)
	cut.Cut()
	took := c.await("placement has given its shards to others", func() bool {
		for _, id := range own {
			if c.locate(id).Address == victim.address {
				return false
			}
		}
		return true
	})
	t.Logf("its %d shards are served by others after %v", len(own), took)
	for _, id := range own { // its own sidecar still leads to it, and it leads on to the owner
		if there, here := c.locate(id), locate(t, old, id); here.Address != there.Address {
			t.Errorf("%s: the old table leads to %+v in the end, the new one to %+v", id, here, there)
		}
	}
	if n := victim.sidecar.Starts(); n != 1 {
		t.Fatalf("the sidecar was started %d times: nothing of the above was its old table", n)
	}
	took = c.await("its host has ended the sidecar", func() bool {
		for _, id := range own { // clients of that side go on asking
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			_, _ = old.Locate(ctx, id)
			cancel()
		}
		return victim.sidecar.Starts() > 1
	})
	t.Logf("the sidecar with the old table was ended after another %v", took)
	cut.Mend()
	took = c.await("the host is routed to again", func() bool { return bytes.Count(victim.Tail(1<<20), []byte("ready after")) > 1 })
	t.Logf("the host is routed to again %v after the network", took)
	l.steady(5)
	if gap := l.stop("cut off from placement"); gap > time.Minute { // clients of the old side wait for their sidecar
		t.Errorf("a client did not get a write acknowledged for %v", gap)
	}
}

// TestWedgedSidecar: a second stream that comes and goes leaves a daprd that says that it is well and routes nothing (DAPR.md 1.8). Its
// host's canary notices; the sidecar is ended, and its supervisor starts it again. Shards go on all the time.
func TestWedgedSidecar(t *testing.T) {
	c := newCluster(t, setup{hosts: 2, shards: 8})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := rtv1.NewDaprClient(victim.sidecar.Dial(t)).SubscribeActorEventsAlpha1(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_InitialRequest{
		InitialRequest: &rtv1.SubscribeActorEventsRequestInitialAlpha1{Entities: []string{daprhost.DefaultActorType, daprhost.DefaultActorType + "-data"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	took := c.await("the host has ended its sidecar", func() bool { return victim.sidecar.Starts() > 1 })
	t.Logf("the wedged sidecar was noticed, ended and started again after %v", took)
	c.await("the host is routed to again", func() bool { return bytes.Count(victim.Tail(1<<20), []byte("ready after")) > 1 })
	l.steady(5)
	if gap := l.stop("wedged sidecar"); gap > testenv.AtMost(mostPause) {
		t.Errorf("a shard was not written for %v", gap)
	}
	if !bytes.Contains(victim.Tail(1<<20), []byte("ended the sidecar")) {
		t.Errorf("the host does not tell that it ended its sidecar:\n%s", victim.Tail(4096))
	}
}

// TestFrozenHost: a process that stands still for 20 s and then goes on has lost its shards to others, and nothing that it was about to write
// counts.
func TestFrozenHost(t *testing.T) {
	c := newCluster(t, setup{hosts: 3, shards: 12})
	victim := c.nodeAt(c.locate(c.shards[0]).Address)
	l := c.load()
	if err := victim.Pause(); err != nil {
		t.Fatal(err)
	}
	resume := time.AfterFunc(20*time.Second, func() { victim.Resume() })
	defer resume.Stop()
	t.Logf("every shard is written again after %v", l.steady(2))
	c.await("the host that was frozen serves again", func() bool { return len(c.held()[victim]) > 0 })
	l.steady(5)
	if gap := l.stop("SIGSTOP of a host for 20 s"); gap > 25*time.Second {
		t.Errorf("a shard was not written for %v", gap)
	}
}

// TestMethods: what is too large is refused before it can end a host's stream, in both directions (DAPR.md 1.7); a method that does not
// exist is told as such.
func TestMethods(t *testing.T) {
	c := newCluster(t, setup{hosts: 1, shards: 1})
	most := daprhost.DefaultMaxBody / 5 * 4
	payload := bytes.Repeat([]byte("x"), most+1)
	id := c.shards[0]
	got, err := c.locator.Invoke(t.Context(), id, "echo", payload[:most])
	if err != nil || !bytes.Equal(got, payload[:most]) {
		t.Errorf("%d bytes there and back: %d bytes, %v", most, len(got), err)
	}
	if _, err := c.locator.Invoke(t.Context(), id, "echo", payload); kind(err) != kverr.TooLarge {
		t.Errorf("%d bytes: %v", len(payload), err)
	}
	got, err = c.locator.Invoke(t.Context(), id, "twice", payload[:most/2])
	if err != nil || len(got) != most {
		t.Errorf("an answer of %d bytes: %d, %v", most, len(got), err)
	}
	if _, err := c.locator.Invoke(t.Context(), id, "twice", payload[:most/2+1]); kind(err) != kverr.TooLarge {
		t.Errorf("an answer of %d bytes: %v", most+2, err)
	}
	if _, err := c.locator.Invoke(t.Context(), id, "nonsense", nil); kind(err) != kverr.Unimplemented {
		t.Errorf("a method that does not exist: %v", err)
	}
	if log := c.nodes[0].Tail(1 << 20); bytes.Contains(log, []byte("not routed to: ")) && strings.Count(string(log), "ready after") > 1 {
		t.Errorf("the stream was lost on the way:\n%s", log)
	}
}

// TestTurnsOverlap: daprd gives the next call to an actor while one that its caller has given up still runs (DAPR.md 1.4). So a shard may not rely
// on Dapr's turns, and does not.
func TestTurnsOverlap(t *testing.T) {
	c := newCluster(t, setup{hosts: 1, shards: 1})
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.locator.Invoke(short, c.shards[0], "slow", nil); kind(err) != kverr.OutcomeUnknown {
		t.Errorf("a call that was given up: %v", err)
	}
	got, err := c.locator.Invoke(t.Context(), c.shards[0], "slow", nil)
	if err != nil || string(got) != "2" {
		t.Errorf("%s calls ran together, %v: if daprd waits for the first by now, DESIGN.md can say so", got, err)
	}
}

// TestNobodyThere: a daprd whose host has gone answers calls of actors with nothing at all, not even an error (DAPR.md 1.8). That is why no call is
// made without a deadline.
func TestNobodyThere(t *testing.T) {
	c := newCluster(t, setup{hosts: 1, shards: 1})
	n := c.nodes[0]
	n.Kill()
	client := rtv1.NewDaprClient(n.sidecar.Dial(t))
	c.await("the sidecar has noticed", func() bool {
		r, err := client.GetMetadata(t.Context(), &rtv1.GetMetadataRequest{})
		return err == nil && r.GetActorRuntime().GetRuntimeStatus() == rtv1.ActorRuntime_INITIALIZING
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := client.InvokeActor(ctx, &rtv1.InvokeActorRequest{ActorType: daprhost.DefaultActorType, ActorId: c.shards[0], Method: "Locate"})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v: it answers by now, which DESIGN.md does not know", err)
	}
	began := time.Now()
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = c.locatorBy(n.sidecar).Locate(ctx, c.shards[0])
	if took := time.Since(began); kind(err) != kverr.Unavailable || took > testenv.AtMost(15*time.Second) {
		t.Errorf("a locator with a budget of 10 s: %v, after %v", err, took)
	}
}

func kind(err error) kverr.Kind {
	if err == nil {
		return kverr.Unknown
	}
	return kverr.KindOf(err)
}
