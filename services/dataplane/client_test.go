package dataplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/authn/ca"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	"kvstore/tests/badnet"
)

func TestClientConfig(t *testing.T) {
	_, err := NewClient(ClientConfig{Budget: -1, Silence: -2})
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{"Locator", "Budget", "Silence"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

// TestLookingForAShard: what Locate says decides, within the caller's time.
func TestLookingForAShard(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{Budget: 100 * time.Millisecond})
	if err := do(ctx, c, "none-0", put("k", "v")); kverr.KindOf(err) != kverr.NotFound {
		t.Errorf("a shard that does not exist: %v", err)
	}
	c.routesMu.RLock()
	if c.routes["none-0"] != nil {
		t.Error("something is kept of a shard that does not exist")
	}
	c.routesMu.RUnlock()

	// It is being opened: too long for one caller, not for another.
	there := cl.nodes[0].Address
	cl.place(shardID(0), host.Location{})
	if err := do(ctx, c, shardID(0), put("k", "v")); kverr.KindOf(err) != kverr.Unavailable {
		t.Errorf("a shard that is not opened in time: %v", err)
	}
	patient := cl.client(ClientConfig{})
	done := make(chan error, 1)
	go func() { done <- do(ctx, patient, shardID(0), put("k", "v")) }()
	asked := cl.askedFor(shardID(0))
	soon(ctx, t, "the shard is looked for again", func() bool { return cl.askedFor(shardID(0)) >= asked+3 })
	cl.place(shardID(0), host.Location{Address: there})
	if err := <-done; err != nil {
		t.Errorf("a shard that is opened after a while: %v", err)
	}

	// A host that knows of no later owner than the one that the call is for says MOVED.
	cl.place(shardID(0), host.Location{Address: there, Epoch: 99})
	if err := do(ctx, c, shardID(0), put("k", "v")); kverr.KindOf(err) != kverr.Unavailable || errors.Is(err, kverr.Moved) {
		t.Errorf("a later owner than any: %v", err)
	}
	// Nobody listens.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := lis.Addr().String()
	_ = lis.Close()
	cl.place(shardID(0), host.Location{Address: dead})
	if _, _, err := get(ctx, cl.client(ClientConfig{Budget: 100 * time.Millisecond}), shardID(0), "k"); kverr.KindOf(err) != kverr.Unavailable {
		t.Errorf("a host that is not there: %v", err)
	}
	hasty, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := patient.ReadValue(hasty, shardID(0), shard.Ref{Object: shard.ObjectID{Epoch: 1}, Length: 9}, 0, make([]byte, 9)); kverr.KindOf(err) != kverr.DeadlineExceeded && err != nil {
		// The patient client still has its stream to the host that serves.
		if kverr.KindOf(err) != kverr.NotFound {
			t.Errorf("a caller in a hurry: %v", err)
		}
	}
}

// sent is how many frames a client has handed to its links.
func sent(c *Client) (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		l.mu.Lock()
		n += l.sent
		l.mu.Unlock()
	}
	return n
}

// TestMaybeApplied: once a write may have been applied, "not applied" from a later try ends nothing.
func TestMaybeApplied(t *testing.T) {
	cl := newCluster(t, 2, 1)
	ctx := testContext(t)
	p := badnet.New(t, cl.nodes[0].Address, badnet.Config{})
	cl.place(shardID(0), host.Location{Address: p.Addr()})
	c := cl.client(ClientConfig{Silence: 200 * time.Millisecond})
	impatient := cl.client(ClientConfig{Silence: 200 * time.Millisecond, Budget: 500 * time.Millisecond})
	for i, c := range []*Client{c, impatient} {
		if err := do(ctx, c, shardID(0), put(fmt.Sprintf("before%d", i), "v")); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.nodes[1].Close(ctx, false); err != nil { // it answers that it is closed: not applied
		t.Fatal(err)
	}
	frozen := cl.freezeAppends()
	type result struct {
		cmd *shard.Command
		err error
	}
	var done [2]chan result
	for i, c := range []*Client{c, impatient} {
		done[i] = make(chan result, 1)
		before := sent(c)
		go func() {
			cmd := put(fmt.Sprintf("k%d", i), "v")
			cmd.ID = shard.Identity{Client: [16]byte{byte(i + 1)}, Op: 1, NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
			err := do(ctx, c, shardID(0), cmd)
			done[i] <- result{cmd, err}
		}()
		if i == 0 {
			<-frozen.Hit() // it is the one whose append waits
		}
		soon(ctx, t, "the command is on its way", func() bool { return sent(c) > before })
	}
	p.Leave(time.Hour) // the replies are lost
	cl.place(shardID(0), host.Location{Address: cl.nodes[1].Address})
	asked := cl.askedFor(shardID(0))
	if r := <-done[1]; kverr.KindOf(r.err) != kverr.OutcomeUnknown {
		t.Errorf("within its budget only a closed host answered: %v", r.err)
	}
	soon(ctx, t, "the closed host was asked again", func() bool { return cl.askedFor(shardID(0)) >= asked+4 })
	frozen.Thaw()
	cl.place(shardID(0), host.Location{Address: cl.nodes[0].Address})
	r := <-done[0]
	if r.err != nil || !r.cmd.Result.Duplicate {
		t.Errorf("%v, duplicate %v: the first try was applied", r.err, r.cmd.Result.Duplicate)
	}
	cl.nodes = cl.nodes[:1]
	cl.check(ctx, []known{{shard: shardID(0), key: "k0", value: "v", version: r.cmd.Result.Write.Version}, {shard: shardID(0), key: "k1", value: "v", maybe: true}})
}

// TestClientIsBounded: more than maxCalls under way to a host are refused, and so are more than maxBytes.
func TestClientIsBounded(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	c := cl.client(ClientConfig{})
	if err := do(ctx, c, shardID(0), put("k", "v")); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{"calls": nil, "bytes": make([]byte, 1<<20)} {
		frozen := cl.freezeAppends()
		var wait sync.WaitGroup
		var mu sync.Mutex
		kinds := make(map[kverr.Kind]int)
		want := maxCalls
		if value != nil {
			want = maxBytes/(len(value)+1000) + 1
		}
		for range want + 100 {
			wait.Add(1)
			cmd := &shard.Command{Op: shard.OpPut, Namespace: namespace, Put: shard.Put{Key: []byte("x"), Value: shard.Value{Inline: value}}}
			cmd.Done = func(c *shard.Command, err error) {
				if err == nil && c.Result.Err != nil {
					err = c.Result.Err
				}
				mu.Lock()
				kinds[kverr.KindOf(err)]++
				mu.Unlock()
				wait.Done()
			}
			c.Do(ctx, shardID(0), cmd)
		}
		soon(ctx, t, "those that are too many are refused", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return kinds[kverr.Overloaded] >= 90
		})
		frozen.Thaw()
		frozen.Remove()
		wait.Wait()
		t.Logf("%s: %v", name, kinds)
	}
	if err := do(ctx, c, shardID(0), put("k", "w")); err != nil {
		t.Errorf("after it: %v", err)
	}
	tooLong := put("k", string(make([]byte, maxMessage)))
	if err := do(ctx, c, shardID(0), tooLong); kverr.KindOf(err) != kverr.TooLarge {
		t.Errorf("a command that no message holds: %v", err)
	}
}

// TestServerIsBounded: a client that takes no outcomes is read no further than the bound, and loses nothing.
func TestServerIsBounded(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	key := strings.Repeat("k", 200) // so that the windows hold few
	if err := do(ctx, cl.nodes[0], shardID(0), put(key, string(make([]byte, 300)))); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+cl.nodes[0].Address, dialOptions(nil)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := dataplanev1.NewShardServiceClient(conn).Exchange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&dataplanev1.ExchangeRequest{Hello: &dataplanev1.ExchangeRequest_Hello{Version: protocolVersion}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	const frames, calls = 150, 1000
	sent := make(chan int, frames)
	go func() {
		for i := range frames {
			f := &dataplanev1.ExchangeRequest{}
			if i == 0 {
				f.Routes = []*dataplanev1.ExchangeRequest_Route{{Shard: shardID(0)}}
			}
			for n := range calls {
				q := queryOf(&dataplanev1.ShardQuery{Op: uint32(shard.QueryGet), Namespace: 1, Key: []byte(key)})
				q.Id = uint32(i*calls + n)
				f.Calls = append(f.Calls, q)
			}
			if stream.Send(f) != nil {
				break
			}
			sent <- i
		}
		close(sent)
	}()
	n, stalled := 0, false
	for !stalled {
		select {
		case _, more := <-sent:
			if n++; !more {
				t.Fatal("all was taken although no outcome was")
			}
		case <-time.After(time.Second):
			stalled = true
		}
	}
	t.Logf("%d calls were taken", n*calls)
	if n*calls > maxServerCalls+2*streamWindow/len(key) { // and what the windows hold
		t.Errorf("%d calls were taken", n*calls)
	}
	got := make(map[uint32]bool)
	for len(got) < frames*calls {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range resp.Outcomes {
			if got[o.Id] || len(o.GetAnswer().GetEntries()) != 1 {
				t.Fatalf("%d: %v", o.Id, o)
			}
			got[o.Id] = true
		}
	}
}

// TestGreeting: a stream that begins with something else ends with a reason.
func TestGreeting(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	conn, err := grpc.NewClient("passthrough:///"+cl.nodes[0].Address, dialOptions(nil)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, first := range map[string]*dataplanev1.ExchangeRequest{
		"nothing":         {},
		"calls":           {Calls: []*dataplanev1.ExchangeRequest_Call{putOf("k", "v")}},
		"another version": {Hello: &dataplanev1.ExchangeRequest_Hello{Version: 2}},
	} {
		stream, err := dataplanev1.NewShardServiceClient(conn).Exchange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(first); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if k := kverr.FromGRPC(err).Kind; k != kverr.InvalidArgument && k != kverr.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A session that is over, or none.
	stream, err := dataplanev1.NewShardServiceClient(conn).WriteValues(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head := &dataplanev1.WriteValuesRequest_Head{Session: make([]byte, 16), Shard: shardID(0), Lengths: []int64{5}}
	if err := stream.Send(&dataplanev1.WriteValuesRequest{Part: &dataplanev1.WriteValuesRequest_Head_{Head: head}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || resp.Failure.GetKind() != uint32(kverr.Unavailable) {
		t.Errorf("a session that is not: %v %v", resp, err)
	}
}

// detour is an Invoker that asks the node that a shard is placed on, as Dapr does.
type detour struct {
	*cluster
	calls func() error // may fail one, before it
}

func (d detour) Invoke(ctx context.Context, id, method string, payload []byte) ([]byte, error) {
	if method != MethodExchange {
		return nil, kverr.New(kverr.Unimplemented, "", "no method %q", method)
	}
	if err := d.calls(); err != nil {
		return nil, err
	}
	return d.nodes[0].Plane.Invoke(ctx, payload)
}

// TestDetour: where the port cannot be reached, the same calls go by Invoke, and by the port again when it can.
func TestDetour(t *testing.T) {
	cl := newCluster(t, 1, 2)
	ctx := testContext(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := lis.Addr().String()
	_ = lis.Close()
	for n := range 2 {
		cl.place(shardID(n), host.Location{Address: closed})
	}
	var mu sync.Mutex
	invoked := 0
	way := detour{cl, func() error {
		mu.Lock()
		defer mu.Unlock()
		if invoked++; invoked%7 == 3 {
			return &kverr.Error{Kind: kverr.OutcomeUnknown, Message: "the call got no answer"}
		}
		return nil
	}}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return invoked
	}
	c := cl.client(ClientConfig{Invoker: way, Detour: 200 * time.Millisecond})
	var writers sync.WaitGroup
	var all [8][]known
	for w := range all {
		writers.Go(func() {
			for i := range 30 {
				cmd := put(fmt.Sprintf("w%d/%d", w, i), "v")
				if w < 6 {
					cmd.ID = shard.Identity{Client: [16]byte{byte(w + 1)}, Op: uint64(i), NotAfterMS: time.Now().Add(time.Minute).UnixMilli()}
				}
				k := write(ctx, t, c, shardID(i%2), cmd)
				if _, found, err := get(ctx, c, k.shard, k.key); err != nil || k.version != 0 && !found {
					t.Errorf("%s: %v %v", k.key, found, err)
				}
				all[w] = append(all[w], k)
			}
		})
	}
	writers.Wait()
	for _, part := range all {
		cl.check(ctx, part)
	}
	if count() == 0 {
		t.Error("nothing went by Invoke")
	}
	// Values: short ones go, long ones need the port.
	value := bytes.Repeat([]byte("x"), 100_000)
	refs, err := c.PutValues(ctx, shardID(0), value, value)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(value))
	if err := c.ReadValue(ctx, shardID(0), refs[1], 0, got); err != nil || !bytes.Equal(got, value) {
		t.Error(err)
	}
	c.DropValues(shardID(0), refs...)
	if _, err := c.PutValues(ctx, shardID(0), make([]byte, maxInline+1)); kverr.KindOf(err) != kverr.Unavailable || !strings.Contains(err.Error(), closed) {
		t.Errorf("a long value: %v", err)
	}
	big := put("big", string(make([]byte, maxInvoke)))
	if err := do(ctx, c, shardID(0), big); kverr.KindOf(err) != kverr.Unavailable {
		t.Errorf("a long command: %v", err)
	}
	// The port is there again.
	for n := range 2 {
		cl.place(shardID(n), host.Location{Address: cl.nodes[0].Address})
	}
	soon(ctx, t, "calls go by the port again", func() bool {
		before := count()
		err := do(ctx, c, shardID(0), put("k", "v"))
		return err == nil && count() == before
	})
}

// TestInvokedReferencesExpire: what was stored by Invoke and never named is given up after a while.
func TestInvokedReferencesExpire(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	plane := NewServer(cl.nodes[0].Host, ServerConfig{Keep: 20 * time.Millisecond})
	defer plane.Close()
	for range 3 {
		frame := request1(t, &dataplanev1.ExchangeRequest_Call{What: &dataplanev1.ExchangeRequest_Call_PutValues{PutValues: &dataplanev1.PutValues{Values: [][]byte{make([]byte, 2000)}}}})
		if _, err := plane.Invoke(ctx, frame); err != nil {
			t.Fatal(err)
		}
		soon(ctx, t, "the value is gone", func() bool {
			stored, _ := cl.values(ctx)
			return stored == 0
		})
	}
}

// TestTLS: both ends show certificates, and a stranger gets nowhere.
func TestTLS(t *testing.T) {
	cl := newCluster(t, 1, 1)
	ctx := testContext(t)
	root, err := ca.New("test", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root.Cert)
	certificate := func(by *ca.CA) tls.Certificate {
		pair, err := by.Issue(ca.Leaf{Name: "part", IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Life: time.Hour}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(ServerOptions(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate(root)}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})...)
	cl.nodes[0].Plane.Register(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		<-served
	})
	cl.place(shardID(0), host.Location{Address: lis.Addr().String()})
	other, err := ca.New("other", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, way := range map[string]struct {
		tls  *tls.Config
		good bool
	}{
		"ours":           {&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{certificate(root)}}, true},
		"no certificate": {&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}, false},
		"a stranger":     {&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{certificate(other)}}, false},
		"plain text":     {nil, false},
	} {
		c := cl.client(ClientConfig{TLS: way.tls, Budget: 200 * time.Millisecond})
		if err := do(ctx, c, shardID(0), put("k", "v")); (err == nil) != way.good || err != nil && kverr.KindOf(err) != kverr.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnserved: while a shard has had no host for longer than calls wait, one waits for it at a time and the others fail at once; when it has one all
// are served.
func TestUnserved(t *testing.T) {
	c := newCluster(t, 1, 1)
	client := c.client(ClientConfig{Budget: 300 * time.Millisecond})
	ctx := testContext(t)
	if err := do(ctx, client, shardID(0), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	c.place(shardID(0), host.Location{}) // it is being opened, for ever
	c.nodes[0].kill()
	for range 2 { // the first may have been sent before the connection broke
		if err := do(ctx, client, shardID(0), put("a", "1")); !errors.Is(err, kverr.Unavailable) && !errors.Is(err, kverr.OutcomeUnknown) {
			t.Fatalf("a call without a host: %v", err)
		}
	}
	probe := put("b", "1")
	probing := make(chan error, 1)
	probe.Done = func(_ *shard.Command, err error) { probing <- err }
	client.Do(ctx, shardID(0), probe)
	const beside = 100
	refused := make(chan error, beside)
	for range beside {
		cmd := put("c", "1")
		cmd.Done = func(_ *shard.Command, err error) { refused <- err }
		client.Do(ctx, shardID(0), cmd)
	}
	// Each was released before Do returned; but the time of the one that waits may be over, and then another does.
	if n := len(refused); n < beside-3 {
		t.Errorf("%d of %d calls wait beside one that does", beside-n, beside)
	}
	for range len(refused) {
		err := <-refused
		if e := kverr.From(err); e.Kind != kverr.Unavailable || e.RetryAfterMS == 0 {
			t.Fatalf("a call beside one that waits: %v", err)
		}
	}
	n := c.addNode()
	c.place(shardID(0), host.Location{Address: n.Address})
	<-probing // served, or its time was over just before
	for {
		err := do(ctx, client, shardID(0), put("b", "1"))
		if err == nil {
			break
		}
		if !errors.Is(err, kverr.Unavailable) {
			t.Fatal(err)
		}
	}
	served := make(chan error, beside)
	for range beside {
		cmd := put("c", "1")
		cmd.Done = func(_ *shard.Command, err error) { served <- err }
		client.Do(ctx, shardID(0), cmd)
	}
	for range beside {
		if err := <-served; err != nil {
			t.Fatalf("a call when there is a host: %v", err)
		}
	}
}
