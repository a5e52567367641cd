package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/wal/memlog"
	"kvstore/tests/badnet"
)

// cutter is a TCP proxy that cuts its first connection after so many bytes one way; later ones pass.
type cutter struct {
	lis      net.Listener
	upstream string
	up, down atomic.Int64 // bytes that the first connection carried
	seen     atomic.Int32 // connections
	running  sync.WaitGroup
}

// never is a limit that is not reached.
const never = 1 << 40

func newCutter(tb testing.TB, upstream string, upLimit, downLimit int64) *cutter {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := &cutter{lis: lis, upstream: upstream}
	c.running.Go(func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			c.running.Go(func() { c.serve(client, upLimit, downLimit) })
		}
	})
	return c
}

func (c *cutter) address() string { return c.lis.Addr().String() }

func (c *cutter) close() {
	_ = c.lis.Close()
	c.running.Wait()
}

func (c *cutter) serve(client net.Conn, upLimit, downLimit int64) {
	defer client.Close()
	server, err := net.Dial("tcp", c.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	if c.seen.Add(1) > 1 {
		upLimit, downLimit = never, never
	}
	var both sync.WaitGroup
	pump := func(to, from net.Conn, limit int64, count *atomic.Int64) {
		n, _ := io.CopyN(to, from, limit)
		count.Add(n)
		_ = to.Close()
		_ = from.Close()
	}
	both.Go(func() { pump(server, client, upLimit, &c.up) })
	both.Go(func() { pump(client, server, downLimit, &c.down) })
	both.Wait()
}

// identity is that of one write of a test.
func identity(op uint64) shard.Identity {
	return shard.Identity{Client: [16]byte{7}, Op: op, NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
}

// known holds what is known of a key after a test wrote it.
type known struct {
	shard, key, value string
	version           uint64 // 0: not acknowledged
	maybe             bool   // it may be there
}

// check compares what is known of keys with what the hosts have. No key of a test is written by two commands.
func (c *cluster) check(ctx context.Context, all []known) {
	c.tb.Helper()
	written := make(map[string]int)
	for id := range c.places {
		changes, ok := c.view(ctx, id).Changes(0)
		if !ok {
			c.tb.Fatalf("history of %s is cut", id)
		}
		for e := range changes {
			if written[string(e.Key)]++; written[string(e.Key)] == 2 {
				c.tb.Errorf("%s was applied twice", e.Key)
			}
		}
	}
	for _, k := range all {
		e, found, err := c.view(ctx, k.shard).Get(namespace, []byte(k.key))
		switch {
		case err != nil:
			c.tb.Errorf("%s: %v", k.key, err)
		case k.version != 0 && !found:
			c.tb.Errorf("%s was acknowledged at version %d and is lost", k.key, k.version)
		case k.version != 0 && e.Version != k.version:
			c.tb.Errorf("%s was acknowledged at version %d and has %d", k.key, k.version, e.Version)
		case found && !apart(&e) && string(e.Value.Inline) != k.value:
			c.tb.Errorf("%s is %.20q, not %.20q", k.key, e.Value.Inline, k.value)
		case k.version == 0 && !k.maybe && found:
			c.tb.Errorf("%s is there, and its writer was told that it was not applied", k.key)
		}
	}
}

// view is what the node that has a shard has. A call that is still on its way elsewhere may take it from there once more.
func (c *cluster) view(ctx context.Context, id string) (v shard.View) {
	c.tb.Helper()
	c.mu.Lock()
	at := c.places[id]
	c.mu.Unlock()
	soon(ctx, c.tb, "the shard's owner answers", func() bool {
		holder, err := c.store.Holder(ctx, id)
		for _, n := range c.nodes {
			if err != nil || n.Address != at.Address && n.Address != holder.Address {
				continue
			}
			if seen, err := n.View(ctx, id); err == nil {
				v = seen
				return true
			}
		}
		return false
	})
	return v
}

func apart(e *shard.Entry) bool { return e.Value.Ref.Object != (shard.ObjectID{}) }

// write puts a key and tells what is known of it then. Only errors that the table of DESIGN.md allows may come.
func write(ctx context.Context, tb testing.TB, c doer, id string, cmd *shard.Command) known {
	tb.Helper()
	k := known{shard: id, key: string(cmd.Put.Key), value: string(cmd.Put.Value.Inline)}
	refs := cmd.NamesRefs()
	safe := cmd.ID != (shard.Identity{})
	err := do(ctx, c, id, cmd)
	kind := kverr.KindOf(err)
	switch {
	case err == nil:
		k.version = cmd.Result.Write.Version
	case kind == kverr.OutcomeUnknown && (refs || !safe):
		k.maybe = true
	case kind == kverr.Unavailable && refs:
	default:
		tb.Errorf("%s: %v", k.key, err)
		k.maybe = true
	}
	return k
}

// script does some of everything with a client.
func script(ctx context.Context, tb testing.TB, c *Client, run string) (all []known) {
	tb.Helper()
	a, b := shardID(0), shardID(1)
	var op uint64
	next := func() shard.Identity {
		op++
		id := identity(op)
		copy(id.Client[1:], run)
		return id
	}
	// Several at once, over two shards.
	type asked struct {
		known
		cmd  *shard.Command
		done chan error
	}
	var batch []asked
	byShard := map[string][]*shard.Command{}
	for i := range 8 {
		id := []string{a, b}[i%2]
		cmd := put(fmt.Sprintf("%s/batch%d", run, i), run)
		if i < 6 {
			cmd.ID = next()
		}
		done := make(chan error, 1)
		cmd.Done = func(_ *shard.Command, err error) { done <- err }
		batch = append(batch, asked{known{shard: id, key: string(cmd.Put.Key), value: run}, cmd, done})
		byShard[id] = append(byShard[id], cmd)
	}
	for id, cmds := range byShard {
		c.Do(ctx, id, cmds...)
	}
	for i, w := range batch {
		select {
		case err := <-w.done:
			switch {
			case err == nil:
				w.version = w.cmd.Result.Write.Version
			case i >= 6 && kverr.KindOf(err) == kverr.OutcomeUnknown:
				w.maybe = true
			default:
				tb.Errorf("%s: %v", w.key, err)
			}
		case <-ctx.Done():
			tb.Fatalf("%s: no answer", w.key)
		}
		all = append(all, w.known)
	}
	// One after the other; a read sees what was acknowledged.
	for i := range 3 {
		cmd := put(fmt.Sprintf("%s/one%d", run, i), run)
		if i > 0 {
			cmd.ID = next()
		}
		k := write(ctx, tb, c, a, cmd)
		all = append(all, k)
		value, found, err := get(ctx, c, a, k.key)
		if err != nil || k.version != 0 && (!found || value != run) {
			tb.Errorf("%s, after it was put: %q %v %v", k.key, value, found, err)
		}
	}
	// A value apart from its key, short and long.
	for i, n := range []int{5000, maxInline + 5000} {
		value := bytes.Repeat([]byte{byte('a' + i)}, n)
		refs, err := c.PutValues(ctx, b, value)
		if err != nil {
			tb.Errorf("%s: put values: %v", run, err)
			continue
		}
		cmd := put(fmt.Sprintf("%s/apart%d", run, i), "")
		cmd.ID, cmd.Put.Value = next(), shard.Value{Ref: refs[0]}
		k := write(ctx, tb, c, b, cmd)
		all = append(all, k)
		if k.version == 0 {
			continue
		}
		got := make([]byte, n)
		if err := c.ReadValue(ctx, b, refs[0], 0, got); err != nil || !bytes.Equal(got, value) {
			tb.Errorf("%s: read the value: %v", k.key, err)
		}
	}
	return all
}

// values counts the value objects that are stored and those that the shards' states name.
func (c *cluster) values(ctx context.Context) (stored, named int) {
	c.tb.Helper()
	for id := range c.places {
		err := c.store.Engine().ListObjects(ctx, id, "v/", func(string, int64) error {
			stored++
			return nil
		})
		if err != nil {
			c.tb.Fatal(err)
		}
		named += int(c.view(ctx, id).Totals().Objects)
	}
	return stored, named
}

// soon waits until a condition holds.
func soon(ctx context.Context, tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("not in time: %s", what)
		}
	}
}

// TestBrokenAtEveryStep cuts the connection after every few bytes, one way or the other: everything that can be repeated succeeds, what
// cannot is told truly, nothing is applied twice, and no value is left behind.
func TestBrokenAtEveryStep(t *testing.T) {
	cl := newCluster(t, 1, 2)
	node := cl.nodes[0]
	once := func(name string, up, down int64) (carriedUp, carriedDown int64) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		p := newCutter(t, node.Address, up, down)
		at := through{Locator: cl, address: p.address()}
		c, err := NewClient(ClientConfig{Locator: at})
		if err != nil {
			t.Fatal(err)
		}
		all := script(ctx, t, c, name)
		c.Close()
		p.close()
		cl.check(ctx, all)
		if t.Failed() {
			t.Fatalf("cut after %d bytes up, %d down", up, down)
		}
		return p.up.Load(), p.down.Load()
	}
	up, down := once("clean", never, never)
	steps := int64(60)
	if testing.Short() {
		steps = 12
	}
	// Most of the bytes are those of the long value; steps are shorter before it.
	for i := range steps {
		once(fmt.Sprintf("up%d", i), cutAt(i, steps, up), never)
		once(fmt.Sprintf("down%d", i), never, cutAt(i, steps, down))
	}
	ctx := testContext(t)
	soon(ctx, t, "every value that no key names is gone", func() bool {
		stored, named := cl.values(ctx)
		return stored == named
	})
}

// cutAt is where step i of n cuts of total bytes, more often near the beginning.
func cutAt(i, n, total int64) int64 { return 1 + total*i*i/(n*n) }

// through sends everybody to one address.
type through struct {
	Locator
	address string
}

func (l through) Locate(ctx context.Context, id string) (host.Location, error) {
	at, err := l.Locator.Locate(ctx, id)
	at.Address = l.address
	return at, err
}

// move hands a shard from the node that has it to another.
func (c *cluster) move(ctx context.Context, id string, to *node) {
	c.tb.Helper()
	holder, err := c.store.Holder(ctx, id)
	if err != nil {
		c.tb.Fatal(err)
	}
	for _, n := range c.nodes {
		if n.Address == holder.Address && n != to {
			n.Yield(ctx, id, holder.Epoch)
		}
	}
	c.place(id, host.Location{Address: to.Address})
}

// TestMovedUnderWay moves shards to and fro under writers with and without identities: none sees an error, and everything is applied once.
func TestMovedUnderWay(t *testing.T) {
	cl := newCluster(t, 2, 4)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	moves := 60
	if testing.Short() {
		moves = 15
	}
	over := make(chan struct{})
	var writers sync.WaitGroup
	var mu sync.Mutex
	var all []known
	for w := range 6 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				id := shardID((w + i) % 4)
				cmd := put(fmt.Sprintf("w%d/%d", w, i), "v")
				if w%2 == 0 {
					cmd.ID = shard.Identity{Client: [16]byte{byte(w + 1)}, Op: uint64(i), NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
				}
				err := do(ctx, c, id, cmd)
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				if _, found, err := get(ctx, c, id, string(cmd.Put.Key)); err != nil || !found {
					t.Errorf("writer %d does not find what it wrote: %v %v", w, found, err)
				}
				mu.Lock()
				all = append(all, known{shard: id, key: string(cmd.Put.Key), value: "v", version: cmd.Result.Write.Version})
				mu.Unlock()
			}
		})
	}
	for i := range moves {
		id := shardID(i % 4)
		mu.Lock()
		before := len(all)
		mu.Unlock()
		cl.move(ctx, id, cl.nodes[(i/4+1)%2])
		soon(ctx, t, "writes go on", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(all) >= before+20 || t.Failed()
		})
	}
	close(over)
	writers.Wait()
	cl.check(ctx, all)
}

// TestHostGone ends a host's data plane under writers; its shards open on another.
func TestHostGone(t *testing.T) {
	cl := newCluster(t, 3, 6)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	var mu sync.Mutex
	var all []known
	over := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				cmd := put(fmt.Sprintf("w%d/%d", w, i), "v")
				if w < 6 {
					cmd.ID = shard.Identity{Client: [16]byte{byte(w + 1)}, Op: uint64(i), NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
				}
				k := write(ctx, t, c, shardID((w+i)%6), cmd)
				mu.Lock()
				all = append(all, k)
				mu.Unlock()
			}
		})
	}
	acked := func(atLeast int) {
		t.Helper()
		soon(ctx, t, "writes are acknowledged", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(all) >= atLeast || t.Failed()
		})
	}
	acked(500)
	for _, dead := range cl.nodes[:2] {
		dead.kill()
		for n := range 6 {
			cl.mu.Lock()
			at := cl.places[shardID(n)]
			cl.mu.Unlock()
			if at.Address == dead.Address {
				cl.place(shardID(n), host.Location{Address: cl.nodes[2].Address})
			}
		}
		mu.Lock()
		n := len(all)
		mu.Unlock()
		acked(n + 500)
	}
	close(over)
	writers.Wait()
	cl.check(ctx, all)
}

// TestSilentHost: a host that takes everything and answers nothing is given up, and its calls end elsewhere or are told as unknown.
func TestSilentHost(t *testing.T) {
	cl := newCluster(t, 2, 2)
	ctx := testContext(t)
	p := badnet.New(t, cl.nodes[0].Address, badnet.Config{})
	cl.place(shardID(0), host.Location{Address: p.Addr()})
	c := cl.client(ClientConfig{Silence: 300 * time.Millisecond})
	if k := write(ctx, t, c, shardID(0), put("before", "v")); k.version == 0 {
		t.Fatal("not written")
	}
	p.Leave(time.Hour)
	unknown := make(chan error, 1)
	go func() { unknown <- do(ctx, c, shardID(0), put("unknown", "v")) }()
	safe := make(chan known, 1)
	go func() {
		cmd := put("safe", "v")
		cmd.ID = identity(1)
		safe <- write(ctx, t, c, shardID(0), cmd)
	}()
	read := make(chan error, 1)
	go func() {
		value, found, err := get(ctx, c, shardID(0), "before")
		if err == nil && (!found || value != "v") {
			err = fmt.Errorf("found %v %q", found, value)
		}
		read <- err
	}()
	// The other host takes over, as a Locator would tell after a while.
	cl.place(shardID(0), host.Location{Address: cl.nodes[1].Address})
	if err := <-unknown; kverr.KindOf(err) != kverr.OutcomeUnknown {
		t.Errorf("without an identity: %v", err)
	}
	if err := <-read; err != nil {
		t.Errorf("read: %v", err)
	}
	cl.check(ctx, []known{<-safe})
}

// TestSlowIsNotSilent: a host whose log does not come back is not given up as long as it answers pings.
func TestSlowIsNotSilent(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{Silence: 200 * time.Millisecond})
	frozen := cl.freezeAppends()
	done := make(chan error, 1)
	go func() { done <- do(ctx, c, shardID(0), put("k", "v")) }()
	<-frozen.Hit()
	select {
	case err := <-done:
		t.Fatalf("the put ended before its append: %v", err)
	case <-time.After(time.Second): // five times the silence that would be too long
	}
	frozen.Thaw()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := cl.askedFor(shardID(0)); n != 1 {
		t.Errorf("the shard was looked for %d times", n)
	}
}

// TestBadNetwork runs writers over a network that resets, cuts, loses and delays, while shards move.
func TestBadNetwork(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			cl := newClusterOn(t, memlog.Config{Term: 300 * time.Millisecond}, 2, 4) // calls on their way take shards from hosts that still read them
			ctx, cancel := context.WithTimeout(context.Background(), 2*testTimeout)
			defer cancel()
			addresses := map[string]string{}
			var proxies []*badnet.Proxy
			for i, n := range cl.nodes {
				p := badnet.New(t, n.Address, badnet.Config{Seed: seed*10 + uint64(i), Rate: 0.02, Latency: time.Millisecond, Away: 200 * time.Millisecond})
				addresses[n.Address] = p.Addr()
				proxies = append(proxies, p)
			}
			c := cl.client(ClientConfig{Locator: renamed{cl, addresses}, Silence: 500 * time.Millisecond, Budget: 20 * time.Second, OpenTimeout: 500 * time.Millisecond})
			var mu sync.Mutex
			var all []known
			var writers sync.WaitGroup
			writes := 150
			if testing.Short() {
				writes = 40
			}
			for w := range 8 {
				writers.Go(func() {
					for i := range writes {
						cmd := put(fmt.Sprintf("w%d/%d", w, i), "v")
						if w < 6 {
							cmd.ID = shard.Identity{Client: [16]byte{byte(w + 1)}, Op: uint64(i), NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
						}
						k := write(ctx, t, c, shardID((w+i)%4), cmd)
						if _, found, err := get(ctx, c, k.shard, k.key); err != nil || k.version != 0 && !found {
							t.Errorf("%s at version %d, read: %v %v", k.key, k.version, found, err)
						}
						mu.Lock()
						all = append(all, k)
						mu.Unlock()
					}
				})
			}
			stop := make(chan struct{})
			var mover sync.WaitGroup
			mover.Go(func() {
				r := rand.New(rand.NewPCG(seed, 3))
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						return
					case <-tick.C:
						cl.move(ctx, shardID(r.IntN(4)), cl.nodes[r.IntN(2)])
					}
				}
			})
			writers.Wait()
			close(stop)
			mover.Wait()
			cl.check(ctx, all)
			for i, p := range proxies {
				t.Logf("network of host %d: %v", i, p.Faults())
			}
		})
	}
}

// renamed tells other addresses for hosts. A shard that a call on its way has taken elsewhere is told where it is served: the host that lost it leaves it there for a while.
type renamed struct {
	*cluster
	addresses map[string]string
}

func (l renamed) Locate(ctx context.Context, id string) (host.Location, error) {
	at, err := l.cluster.Locate(ctx, id)
	if holder, herr := l.store.Holder(ctx, id); herr == nil {
		for _, n := range l.nodes {
			if n.Address == holder.Address && n.Serving(id) {
				at.Address = n.Address
			}
		}
	}
	at.Address = l.addresses[at.Address]
	return at, err
}

// TestStopIsGentle: a host that is stopped hands its callers over without an error, also those whose writes must not be repeated.
func TestStopIsGentle(t *testing.T) {
	cl := newCluster(t, 1, 4)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	var done atomic.Int64
	over := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				if err := do(ctx, c, shardID(i%4), put(fmt.Sprintf("w%d/%d", w, i), "v")); err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				done.Add(1)
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		from := done.Load()
		soon(ctx, t, "writes go on", func() bool { return done.Load() >= from+n || t.Failed() })
	}
	more(200)
	for range 2 {
		leaving, staying := cl.nodes[0], cl.addNode()
		leaving.Plane.Stop()
		for n := range 4 {
			cl.move(ctx, shardID(n), staying)
		}
		leaving.GRPC.GracefulStop() // ends only when the client has taken leave
		more(200)
		cl.nodes[0], cl.nodes[len(cl.nodes)-1] = staying, leaving
	}
	close(over)
	writers.Wait()
}
