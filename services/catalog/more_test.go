package catalog_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/components/authn"
	"kvstore/components/authn/ca"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
)

// teller is an owner that tells what it is told to.
type teller struct {
	dataplanev1.UnimplementedDirectoryServiceServer
	messages chan *dataplanev1.WatchDirectoryResponse
}

func (s *teller) WatchDirectory(_ *dataplanev1.WatchDirectoryRequest, stream grpc.ServerStreamingServer[dataplanev1.WatchDirectoryResponse]) error {
	for {
		select {
		case m := <-s.messages:
			if m == nil {
				return kverr.New(kverr.Moved, "own", "not any more")
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func state(epoch, revision uint64, names ...string) *dataplanev1.WatchDirectoryResponse {
	m := &dataplanev1.WatchDirectoryResponse{Reset_: true, Epoch: epoch, Revision: revision}
	for i, name := range names {
		uid := fmt.Sprintf("%016x", i+1)
		slots, err := ring.New(uid, 1)
		if err != nil {
			panic(err)
		}
		m.Changes = append(m.Changes, &dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutKeyspace{
			PutKeyspace: &dataplanev1.DirectoryKeyspace{Name: name, Uid: uid, Map: slots.Encode(), Version: 1, Ready: true}}})
	}
	return m
}

// static is a Locator that knows one place.
type static string

func (s static) Locate(context.Context, string) (host.Location, error) {
	return host.Location{Address: string(s), Epoch: 1}, nil
}

// refusing is a Locator of a directory that has lost records, and the host that refuses to open it.
type refusing struct {
	dataplanev1.UnimplementedDirectoryServiceServer
	accepted chan string
}

var errLost = kverr.New(kverr.DataLoss, "open the log", "records are lost")

func (r *refusing) Locate(context.Context, string) (host.Location, error) {
	return host.Location{Address: "a"}, errLost
}

func (r *refusing) AcceptLoss(_ context.Context, req *dataplanev1.AcceptLossRequest) (*dataplanev1.AcceptLossResponse, error) {
	if req.Shard != keeper.ShardID {
		return nil, errLost
	}
	r.accepted <- req.Shard
	return &dataplanev1.AcceptLossResponse{Mark: &dataplanev1.ShardMark{}}, nil
}

// TestLostDirectory: a directory that is not opened, since it has lost records, is not followed, but who refuses to open it can be told to
// accept that; and whoever wants to accept another loss first is told of this one.
func TestLostDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 16)
		r := &refusing{accepted: make(chan string, 1)}
		srv := grpc.NewServer()
		dataplanev1.RegisterDirectoryServiceServer(srv, r)
		go func() { _ = srv.Serve(listener) }()
		d, err := catalog.NewClient(r, catalog.ClientConfig{
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); d.Run(ctx) }()
		time.Sleep(time.Minute) // of the bubble
		if st := d.Status(); st.Following || kverr.KindOf(st.Failure) != kverr.DataLoss {
			t.Errorf("%+v", st)
		}
		_, err = d.AcceptLoss(ctx, "0123456789abcdef-3")
		if is(t, "a shard's loss", err, kverr.DataLoss); !strings.Contains(err.Error(), "accept-loss directory") {
			t.Errorf("%v does not tell what comes first", err)
		}
		if _, err := d.AcceptLoss(ctx, keeper.ShardID); err != nil {
			t.Fatal(err)
		}
		if got := <-r.accepted; got != keeper.ShardID {
			t.Errorf("accepted %q", got)
		}
		cancel()
		<-done
		srv.Stop()
	})
}

// TestNeverBack: a client does not go back to an older state: neither to that of an owner which was one before, nor to that of a
// store which has lost changes, of which it tells.
func TestNeverBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 16)
		s := &teller{messages: make(chan *dataplanev1.WatchDirectoryResponse)}
		srv := grpc.NewServer()
		dataplanev1.RegisterDirectoryServiceServer(srv, s)
		go func() { _ = srv.Serve(listener) }()
		d, err := catalog.NewClient(static("a"), catalog.ClientConfig{
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); d.Run(ctx) }()

		tell := func(m *dataplanev1.WatchDirectoryResponse) {
			s.messages <- m
			synctest.Wait()
		}
		shows := func(want string, epoch uint64, failure kverr.Kind) {
			t.Helper()
			if got := names(t, d); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
			st := d.Status()
			if st.Epoch != epoch || st.Following != (failure == 0) || failure != 0 && kverr.KindOf(st.Failure) != failure {
				t.Fatalf("%+v", st)
			}
		}
		part := state(0, 0, "one")
		part.More = true
		tell(part)
		if d.Status().Revision != 0 {
			t.Fatal("half a state is shown")
		}
		tell(&dataplanev1.WatchDirectoryResponse{Changes: state(0, 0, "one", "two").Changes[1:], Epoch: 3, Revision: 7})
		shows("one()/1 two()/1", 3, 0)
		tell(nil)
		shows("one()/1 two()/1", 3, kverr.Unavailable)
		tell(state(2, 6, "one")) // an earlier owner that does not know it yet
		shows("one()/1 two()/1", 3, kverr.Moved)
		tell(state(4, 6, "one")) // a store without its end
		shows("one()/1 two()/1", 3, kverr.DataLoss)
		tell(state(4, 7, "one", "two"))
		shows("one()/1 two()/1", 4, 0)
		tell(&dataplanev1.WatchDirectoryResponse{Changes: state(0, 0, "one", "two", "three").Changes[2:], Epoch: 4, Revision: 9})
		shows("one()/1 three()/1 two()/1", 4, 0)
		tell(&dataplanev1.WatchDirectoryResponse{Changes: []*dataplanev1.DirectoryEffect{{}}, Epoch: 4, Revision: 10}) // of a later release
		shows("one()/1 three()/1 two()/1", 4, kverr.Unimplemented)
		cancel()
		<-done
		srv.Stop()
	})
}

// TestLarge: a directory of many messages comes whole, and a change of it alone.
func TestLarge(t *testing.T) {
	run(t, []string{"a"}, func(t *testing.T, c *cluster) {
		d := c.client()
		k := c.node("a").keeper
		var all sync.WaitGroup
		for i := range 8 {
			name := fmt.Sprint("k", i)
			if _, err := k.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: name, Shards: 1}); err != nil {
				t.Fatal(err)
			}
			for j := range directory.MaxNamespaces {
				all.Go(func() {
					if _, err := k.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: name, Name: fmt.Sprintf("namespace-with-a-longer-name-%d", j)}, keeper.Request{}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
		synctest.Wait()
		fresh := c.client()
		for _, d := range []*catalog.Client{d, fresh} {
			s, err := d.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			total := 0
			for _, ks := range s.Keyspaces {
				total += len(ks.Namespaces)
			}
			if total != 8*directory.MaxNamespaces+1 {
				t.Fatalf("%d namespaces", total)
			}
		}
		c.close()
	})
}

// TestWatchers: watches beyond the limit are refused, and those under way end with the host.
func TestWatchers(t *testing.T) {
	run(t, []string{"a"}, func(t *testing.T, c *cluster) {
		a := c.node("a")
		s, err := catalog.NewServer(a.keeper, catalog.ServerConfig{MaxWatchers: 1})
		if err != nil {
			t.Fatal(err)
		}
		listener, srv := bufconn.Listen(1<<16), grpc.NewServer()
		s.Register(srv)
		go func() { _ = srv.Serve(listener) }()
		conn, err := grpc.NewClient("passthrough:///a", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		api := dataplanev1.NewDirectoryServiceClient(conn)
		first, err := api.WatchDirectory(t.Context(), &dataplanev1.WatchDirectoryRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := first.Recv(); err != nil || !m.Reset_ || m.Revision == 0 {
			t.Fatal(m, err)
		}
		second, err := api.WatchDirectory(t.Context(), &dataplanev1.WatchDirectoryRequest{Once: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = second.Recv()
		is(t, "one watch too many", kverr.FromGRPC(err), kverr.Exhausted)
		s.Stop()
		for err == nil || kverr.KindOf(err) == kverr.Exhausted {
			_, err = first.Recv()
		}
		is(t, "a watch of a host that stops", kverr.FromGRPC(err), kverr.Unavailable)
		srv.GracefulStop()
		conn.Close()
		c.close()
	})
}

// peers makes a CA and what our processes prove themselves to each other with.
func peers(t *testing.T) *authn.Peers {
	t.Helper()
	root, err := ca.New("ours", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := root.Issue(ca.Leaf{Name: "host", DNS: []string{"host.kvstore"}, Life: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "host")
	if err := errors.Join(root.Write(file+"-ca"), pair.Write(file)); err != nil {
		t.Fatal(err)
	}
	p, err := authn.OpenPeers(authn.PeerFiles{Cert: file + ".crt", Key: file + ".key", CA: file + "-ca.crt", Names: []string{"*.kvstore"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTLS runs over real connections, with certificates both ways, and measures how soon another process sees a change.
func TestTLS(t *testing.T) {
	engine, err := memlog.New(memlog.Config{Term: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := memhost.New(store, memhost.Config{Address: "a"})
	if err != nil {
		t.Fatal(err)
	}
	k, err := keeper.Open(t.Context(), store, h, h, keeper.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := catalog.NewServer(k, catalog.ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := peers(t), peers(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(ours.ServerConfig())))
	s.Register(srv)
	go func() { _ = srv.Serve(listener) }()
	defer func() {
		s.Stop()
		srv.Stop()
		if err := errors.Join(h.Close(context.Background(), false), engine.Close()); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	defer runs.Wait()
	defer cancel()
	client := func(cfg *tls.Config) *catalog.Client {
		d, err := catalog.NewClient(static(listener.Addr().String()), catalog.ClientConfig{TLS: cfg})
		if err != nil {
			t.Fatal(err)
		}
		runs.Go(func() { d.Run(ctx) })
		return d
	}
	one, two := client(ours.ClientConfig()), client(ours.ClientConfig())
	stranger, plaintext := client(theirs.ClientConfig()), client(nil)
	if _, err := two.Revision(ctx); err != nil {
		t.Fatal(err)
	}
	var own, others []time.Duration
	for i := range 200 {
		began := time.Now()
		if _, err := one.CreateNamespace(ctx, &kvv1.Namespace{Keyspace: "default", Name: fmt.Sprint("n", i)}); err != nil {
			t.Fatal(err)
		}
		done := time.Now()
		own = append(own, done.Sub(began))
		want, err := one.Revision(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for {
			if now, err := two.Revision(ctx); err != nil {
				t.Fatal(err)
			} else if now >= want {
				break
			}
			time.Sleep(20 * time.Microsecond)
		}
		others = append(others, time.Since(done))
	}
	slices.Sort(own)
	slices.Sort(others)
	t.Logf("a namespace is made in %v (median), %v (p99); another client sees it %v, %v later", own[100], own[198], others[100], others[198])
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	for what, d := range map[string]*catalog.Client{"certificate of another CA": stranger, "plain text": plaintext} {
		is(t, what, second(d.Snapshot(short)), kverr.Unavailable)
		if s := d.Status(); s.Failure == nil || s.Revision != 0 {
			t.Errorf("%s: %+v", what, s)
		}
	}
}

// TestRandomFaults: clients change the directory while hosts are killed, frozen, cut off and placed anew. What was told to be done
// is there, what was refused is not, and in the end every shard of a keyspace that is there exists and none of others.
func TestRandomFaults(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed_", seed), func(t *testing.T) {
			run(t, []string{"a", "b", "c"}, func(t *testing.T, c *cluster) { randomFaults(t, c, seed) })
		})
	}
}

func randomFaults(t *testing.T, c *cluster, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	clients := []*catalog.Client{c.client(), c.client()}
	var dead []*node
	var mu sync.Mutex
	uids := map[string]string{} // every keyspace that was ever seen, and its name; guarded by mu
	sure := map[string]bool{}   // whether a name is there, for sure; guarded by mu
	unsure := map[string]bool{} // names of which nothing is known; guarded by mu
	var counts [3]int           // requests that were answered, refused, of unknown outcome; guarded by mu
	over := make(chan struct{})
	var all sync.WaitGroup
	for who, d := range clients {
		rng := rand.New(rand.NewPCG(seed, uint64(who)))
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				name := fmt.Sprintf("k%d-%d", who, rng.IntN(6)) // each client has names of its own
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(20))*time.Second)
				mu.Lock()
				there, open := sure[name], unsure[name]
				mu.Unlock()
				var err error
				if rng.IntN(2) == 0 {
					var ks *kvv1.Keyspace
					ks, err = d.CreateKeyspace(ctx, &kvv1.Keyspace{Name: name, Shards: int32(1 + rng.IntN(5))})
					mu.Lock()
					switch kind := kverr.KindOf(err); {
					case err == nil:
						if there && !open {
							t.Errorf("seed %d: %s was made twice", seed, name)
						}
						uids[ks.Uid], sure[name] = name, true
						delete(unsure, name)
					case kind == kverr.AlreadyExists:
						if !there && !open {
							t.Errorf("seed %d: %s is there already, and nobody made it", seed, name)
						}
						sure[name] = true
						delete(unsure, name)
					case kind == kverr.Unavailable:
					default:
						unsure[name] = true
					}
				} else {
					err = d.DeleteKeyspace(ctx, name)
					mu.Lock()
					switch kind := kverr.KindOf(err); {
					case err == nil:
						if !there && !open {
							t.Errorf("seed %d: %s was removed, and it was not there", seed, name)
						}
						delete(sure, name)
						delete(unsure, name)
					case kind == kverr.NotFound:
						if there && !open {
							t.Errorf("seed %d: %s is not there, and nobody removed it", seed, name)
						}
					case kind == kverr.Unavailable:
					default:
						unsure[name] = true
					}
				}
				switch kind := kverr.KindOf(err); {
				case err == nil, kind == kverr.AlreadyExists, kind == kverr.NotFound:
					counts[0]++
				case kind == kverr.Unavailable:
					counts[1]++
				default:
					counts[2]++
				}
				mu.Unlock()
				cancel()
				time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
			}
		})
	}
	addresses := []string{"a", "b", "c"}
	faults := 25
	if testing.Short() {
		faults = 10
	}
	for range faults {
		time.Sleep(time.Duration(rng.IntN(8000)) * time.Millisecond)
		n := c.node(addresses[rng.IntN(3)])
		switch rng.IntN(4) {
		case 0: // killed, and started again
			c.kill(n)
			dead = append(dead, n)
			c.start(n.address)
		case 1: // cut off for a while
			n.setCut(true)
			time.Sleep(time.Duration(rng.IntN(6000)) * time.Millisecond)
			n.setCut(false)
		case 2: // frozen for a while, as far as the store can tell
			frozen := n.engine.Add(fault.Rule{Verb: fault.Any, Times: -1, Freeze: true})
			time.Sleep(time.Duration(rng.IntN(6000)) * time.Millisecond)
			frozen.Remove()
		}
		c.place(addresses[rng.IntN(3)])
	}
	close(over)
	all.Wait()
	time.Sleep(time.Minute)
	c.settle(addresses...)
	time.Sleep(10 * time.Second) // asking took the directory to where it is placed
	snap, err := clients[0].Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := clients[0].Status(); !s.Following {
		t.Fatalf("seed %d: %+v", seed, s)
	}
	c.cancel() // an hour of heartbeats proves nothing
	c.runs.Wait()
	time.Sleep(directory.QuarantineMS*time.Millisecond + time.Minute)
	c.settle(addresses...)
	found := map[string]bool{}
	for _, ks := range snap.Keyspaces {
		name := ks.Keyspace.Name
		found[name] = true
		var ids []string
		for n := range ks.Map.Shards() {
			ids = append(ids, ks.Map.ShardID(n))
		}
		if there := c.stored(ids); len(there) != len(ids) {
			t.Errorf("seed %d: keyspace %s has shards %v of %d", seed, name, there, len(ids))
		}
		delete(uids, ks.Keyspace.Uid)
	}
	for name := range sure {
		if !found[name] && !unsure[name] {
			t.Errorf("seed %d: %s was made and is not there", seed, name)
		}
	}
	for name := range found {
		if name != "default" && !sure[name] && !unsure[name] {
			t.Errorf("seed %d: %s was removed and is there", seed, name)
		}
	}
	for uid, name := range uids {
		var ids []string
		for n := range 5 {
			ids = append(ids, ring.ShardID(uid, n))
		}
		if there := c.stored(ids); len(there) != 0 {
			t.Errorf("seed %d: of keyspace %s, which is gone, there are %v", seed, name, there)
		}
	}
	t.Logf("%d requests done, %d refused, %d unknown; %d keyspaces, %d of unknown fate", counts[0], counts[1], counts[2], len(found), len(unsure))
	if counts[0] < 30 || counts[2] > counts[0] {
		t.Errorf("seed %d: the run shows little", seed)
	}
	if t.Failed() {
		t.Logf("failures that hosts told of, the last:\n%s", strings.Join(c.failed[max(0, len(c.failed)-5):], "\n"))
	}
	c.close(dead...)
}
