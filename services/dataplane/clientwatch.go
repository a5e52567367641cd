package dataplane

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"kvstore/actors/fanout"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Bounds of watches.
const (
	// watchWindow is how many bytes a host may have sent that a slow watcher has not taken: what he costs here. It is the least that HTTP/2 has.
	watchWindow = 64 << 10
	// watchSeekers is how many shards one watch looks for at once.
	watchSeekers = 8
)

// watchConn is the connection to a host for all its watches. They have one of their own, whose windows are small.
type watchConn struct {
	conn *grpc.ClientConn
	uses int // streams; guarded by Client.mu
}

// watchConnTo returns the connection to an address; leave gives it back.
func (c *Client) watchConnTo(address string) (w *watchConn, leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, errClosed
	}
	w = c.watchConns[address]
	if w == nil {
		options := append(dialOptions(c.cfg.TLS), grpc.WithInitialWindowSize(watchWindow),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: c.cfg.Silence}))
		conn, err := grpc.NewClient("passthrough:///"+address, options...)
		if err != nil {
			return nil, nil, err
		}
		w = &watchConn{conn: conn}
		c.watchConns[address] = w
	}
	w.uses++
	return w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if w.uses--; w.uses == 0 {
			delete(c.watchConns, address)
			_ = w.conn.Close()
		}
	}, nil
}

// watch is one Watch on its way. One goroutine, the caller's, has all of it; those of hosts and of shards that are looked for tell it.
type watch struct {
	client *Client
	ctx    context.Context // ends with the watch
	head   *dataplanev1.WatchRequest_Head
	route  *fanout.Route

	told   chan hostTold
	placed chan placed
	seeks  chan struct{}         // tokens: shards being looked for
	hosts  map[string]*watchHost // by address; whose streams are open
	where  map[string]*watchHost // by shard; that follow it
	places map[string]*target    // by shard; where it was found last
}

// watchHost is the stream to a host.
type watchHost struct {
	address string
	stream  grpc.BidiStreamingClient[dataplanev1.WatchRequest, dataplanev1.WatchResponse]
	cancel  context.CancelFunc
	shards  map[string]bool
}

// hostTold is what a host tells; told is nil when its stream is over.
type hostTold struct {
	host *watchHost
	told *fanout.Told
}

// placed is a shard that was found, or not now.
type placed struct {
	shard  string
	target *target
	err    *kverr.Error
}

// follower is a fanout.Follower. Each watch is a goroutine and a stream to each host: one that may be told nothing waits with one batch in hand, and
// with what its streams have in their windows.
type follower struct {
	client *Client
	until  context.Context // of its user
	ctx    context.Context // ends with Close
	end    context.CancelFunc
	told   chan *fanout.Told
	wait   sync.WaitGroup

	mu  sync.Mutex
	all map[uint64]*followed // guarded by mu; nil once closed
}

// followed is one watch of a follower.
type followed struct {
	end    context.CancelFunc
	more   chan struct{} // a token: there is credit
	credit atomic.Int64
}

// Follower follows shards wherever they are served; see frontend.Shards. A slow watch costs watchWindow for each host, and a batch.
func (c *Client) Follower(ctx context.Context) (fanout.Follower, error) {
	if !c.enter() {
		return nil, errClosed
	}
	f := &follower{client: c, until: ctx, told: make(chan *fanout.Told), all: make(map[uint64]*followed)}
	f.ctx, f.end = context.WithCancel(c.ctx)
	return f, nil
}

// Add implements fanout.Follower.
func (f *follower) Add(id uint64, w *fanout.Watch, credit int64, starts []fanout.Start) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		return
	}
	x := &followed{more: make(chan struct{}, 1)}
	x.credit.Store(credit)
	var ctx context.Context
	ctx, x.end = context.WithCancel(f.ctx)
	f.all[id] = x
	f.wait.Go(func() {
		watches := []uint64{id}
		err := f.client.watch(ctx, w, starts, func(t *fanout.Told) error {
			for len(t.Events) > 0 && x.credit.Load() <= 0 {
				select {
				case <-x.more:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			x.credit.Add(-t.Cost())
			t.Watches = watches
			return f.tell(ctx, t)
		})
		if err != nil && ctx.Err() == nil {
			_ = f.tell(ctx, &fanout.Told{Watches: watches, Batch: fanout.Batch{Err: kverr.From(err)}}) // or it is over already
		}
	})
}

// tell hands on what a watch is told.
func (f *follower) tell(ctx context.Context, t *fanout.Told) error {
	select {
	case f.told <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Grant implements fanout.Follower.
func (f *follower) Grant(id uint64, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.all[id]; x != nil && x.credit.Add(bytes) > 0 {
		select {
		case x.more <- struct{}{}:
		default:
		}
	}
}

// Remove implements fanout.Follower.
func (f *follower) Remove(id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.all[id]; x != nil {
		x.end()
		delete(f.all, id)
	}
}

// Next implements fanout.Follower.
func (f *follower) Next() (*fanout.Told, error) {
	select {
	case t := <-f.told:
		return t, nil
	case <-f.until.Done():
		return nil, kverr.From(context.Cause(f.until))
	case <-f.ctx.Done():
		return nil, errClosed
	}
}

// Close implements fanout.Follower.
func (f *follower) Close() {
	f.mu.Lock()
	f.all = nil
	f.mu.Unlock()
	f.end()
	f.wait.Wait()
	f.client.wait.Done()
}

// watch follows shards wherever they are served, until ctx ends, send fails, or one of them cannot be followed any more. A slow send costs watchWindow for
// each host, and a batch.
func (c *Client) watch(ctx context.Context, w *fanout.Watch, starts []fanout.Start, send func(*fanout.Told) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x := &watch{
		client: c, ctx: ctx, head: protoHead(w), route: fanout.NewRoute(starts), told: make(chan hostTold), placed: make(chan placed),
		seeks: make(chan struct{}, watchSeekers), hosts: make(map[string]*watchHost), where: make(map[string]*watchHost),
		places: make(map[string]*target),
	}
	for i := range starts {
		x.seek(starts[i].Shard, 0)
	}
	for {
		var err error
		select {
		case p := <-x.placed:
			err = x.follow(p)
		case t := <-x.told:
			err = x.take(t, send)
		case <-ctx.Done():
			err = kverr.From(context.Cause(ctx))
		}
		if err != nil {
			return err
		}
	}
}

// seek looks for a shard, after a pause of about so long.
func (x *watch) seek(shardID string, pauseMS int64) {
	wait := time.Duration(pauseMS) * time.Millisecond
	go func() {
		timer := time.NewTimer(wait/2 + rand.N(wait+1))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-x.ctx.Done():
			return
		}
		select {
		case x.seeks <- struct{}{}:
			defer func() { <-x.seeks }()
		case <-x.ctx.Done():
			return
		}
		p := placed{shard: shardID}
		p.target, p.err = x.client.place(x.ctx, shardID)
		select {
		case x.placed <- p:
		case <-x.ctx.Done():
		}
	}()
}

// place finds out where a shard is, if it is not known.
func (c *Client) place(ctx context.Context, shardID string) (*target, *kverr.Error) {
	r := c.route(shardID)
	t := r.target.Load()
	if t == nil {
		if err := c.ask(ctx, shardID, callAwait, 0, &valueCall{}); err != nil {
			return nil, kverr.From(err)
		}
		if t = r.target.Load(); t == nil {
			return nil, errLeft // it has gone again
		}
	}
	if t.link == nil {
		return t, errNeedsPort(t)
	}
	return t, nil
}

// follow has a shard followed where it was found.
func (x *watch) follow(p placed) error {
	x.places[p.shard] = p.target
	if p.err != nil {
		return x.failed(&fanout.Told{Shard: p.shard, Batch: fanout.Batch{Err: p.err}})
	}
	address := p.target.link.address
	h, head := x.hosts[address], (*dataplanev1.WatchRequest_Head)(nil)
	if h == nil {
		var err error
		if h, err = x.open(address); err != nil {
			return x.failed(&fanout.Told{Shard: p.shard, Batch: fanout.Batch{Err: broken(err)}})
		}
		head = x.head
	}
	h.shards[p.shard] = true
	x.where[p.shard] = h
	start := x.route.Start(p.shard)
	// An error ends the stream, and that is told by whoever receives.
	_ = h.stream.Send(&dataplanev1.WatchRequest{Head: head, Starts: []*dataplanev1.WatchRequest_Start{protoStart(&start)}})
	return nil
}

// open opens the stream to a host.
func (x *watch) open(address string) (*watchHost, error) {
	conn, leave, err := x.client.watchConnTo(address)
	if err != nil {
		return nil, err
	}
	h := &watchHost{address: address, shards: make(map[string]bool)}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(x.ctx)
	if h.stream, err = dataplanev1.NewShardServiceClient(conn.conn).Watch(ctx); err != nil {
		h.cancel()
		leave()
		return nil, err
	}
	x.hosts[address] = h
	go func() {
		defer leave()
		defer h.cancel()
		for {
			m, err := h.stream.Recv()
			t := hostTold{host: h}
			if err == nil {
				t.told = toldOf(m)
			}
			select {
			case x.told <- t:
			case <-x.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return h, nil
}

// take takes what a host tells.
func (x *watch) take(t hostTold, send func(*fanout.Told) error) error {
	if t.told == nil {
		x.drop(t.host)
		for shardID := range t.host.shards {
			if err := x.failed(&fanout.Told{Shard: shardID, Batch: fanout.Batch{Err: errBroken}}); err != nil {
				return err
			}
		}
		return nil
	}
	if x.where[t.told.Shard] != t.host {
		return nil // it is followed elsewhere by now
	}
	if t.told.Err != nil {
		return x.failed(t.told)
	}
	if _, _, err := x.route.Take(t.told); err != nil {
		return err
	}
	return send(t.told)
}

// failed looks anew for a shard that is followed no more, unless there is no use.
func (x *watch) failed(t *fanout.Told) error {
	again, pauseMS, err := x.route.Take(t)
	if err != nil {
		return err
	}
	if h := x.where[t.Shard]; h != nil {
		delete(h.shards, t.Shard)
		delete(x.where, t.Shard)
		if len(h.shards) == 0 {
			x.drop(h)
		}
	}
	if at := x.places[t.Shard]; at != nil {
		x.client.route(t.Shard).lose(at)
	}
	x.seek(again.Shard, pauseMS)
	return nil
}

// drop ends the stream to a host.
func (x *watch) drop(h *watchHost) {
	if x.hosts[h.address] == h {
		delete(x.hosts, h.address)
	}
	h.cancel()
}
