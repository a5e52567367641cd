package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
)

// Locator tells where shards are. In a cluster it asks Dapr, which opens a shard where it has placed it.
type Locator interface {
	// Locate tells where a shard is served. It may wait for that; an error of kind Unavailable or Moved asks to come again, after
	// its RetryAfterMS. Errors are *kverr.Error, and those of other kinds that time does not mend are final.
	Locate(ctx context.Context, shardID string) (host.Location, error)
}

// Invoker is the way to a shard where its host's data plane cannot be reached: InvokeActor of Dapr.
type Invoker interface {
	// Invoke calls a method of the shard's actor. The payload goes to Server.Invoke there, and what that returns comes back. Errors are
	// *kverr.Error, of a kind that is NotApplied only when the method surely did not run.
	Invoke(ctx context.Context, shardID, method string, payload []byte) ([]byte, error)
}

// MethodExchange is the actor method of Invoker for Server.Invoke.
const MethodExchange = "Exchange"

// ClientConfig is how a Client behaves.
type ClientConfig struct {
	// Locator is required.
	Locator Locator
	// Invoker is for hosts whose data plane cannot be reached; may be nil.
	Invoker Invoker
	// TLS is for connections to hosts; nil: plain text, for loopback alone.
	TLS *tls.Config
	// Budget is how long a call whose caller names no deadline, or a later one, looks for its shard. Default 5 s.
	Budget time.Duration
	// LocateTimeout bounds one question to the Locator. Default 2 s.
	LocateTimeout time.Duration
	// OpenTimeout bounds the opening of a stream to a host. Default 1 s.
	OpenTimeout time.Duration
	// Detour is how long calls go by Invoker before a host that could not be reached is tried again. Default 5 s.
	Detour time.Duration
	// Silence is how long a host may say nothing, not even to a ping, while calls are due: then it is given up. Default 3 s.
	Silence time.Duration
	// Events are told of; may be empty.
	Events ClientEvents
	// Tracer makes the spans of calls that are followed. nil: what is followed is so again on the host.
	Tracer *tracing.Tracer
}

// ClientEvents are told to whoever runs the client. They are called from its goroutines, with mutexes held, and must not block. Nil ones are not called.
type ClientEvents struct {
	// Exchanged tells of a call whose outcome has come: how long that was after the call was handed to the stream of its host.
	Exchanged func(took time.Duration)
	// Located tells of a question to the Locator; err is nil when a shard was found.
	Located func(took time.Duration, err *kverr.Error)
	// Connected tells of an attempt to open a stream to a host.
	Connected func(err error)
	// Broke tells that a stream that was up has ended, with calls due or without.
	Broke func()
	// Again tells that a call is to be sent once more: its shard has moved, or its stream broke.
	Again func()
}

// ClientStats is what a Client has under way.
type ClientStats struct {
	Links    int // streams that are up
	UnderWay int // calls that hosts have, or that wait for their stream
	Parked   int // calls that wait for their shard to be found
	Detours  int // hosts whose calls go by Invoker
}

// Stats tells what is under way now.
func (c *Client) Stats() ClientStats {
	var s ClientStats
	c.mu.Lock()
	links := slices.Collect(maps.Values(c.links))
	for _, o := range c.unreachable {
		if time.Now().Before(o.until) {
			s.Detours++
		}
	}
	c.mu.Unlock()
	for _, l := range links {
		l.mu.Lock()
		if l.up {
			s.Links++
		}
		s.UnderWay += l.calls
		l.mu.Unlock()
	}
	c.routesMu.RLock()
	routes := slices.Collect(maps.Values(c.routes))
	c.routesMu.RUnlock()
	for _, r := range routes {
		r.mu.Lock()
		s.Parked += r.calls
		r.mu.Unlock()
	}
	return s
}

// EnsureDefaults fills in what is zero.
func (c *ClientConfig) EnsureDefaults() {
	for _, d := range []struct {
		to      *time.Duration
		without time.Duration
	}{
		{&c.Budget, 5 * time.Second}, {&c.LocateTimeout, 2 * time.Second}, {&c.OpenTimeout, time.Second}, {&c.Silence, 3 * time.Second}, {&c.Detour, 5 * time.Second},
	} {
		if *d.to == 0 {
			*d.to = d.without
		}
	}
}

// Validate lists every fault.
func (c *ClientConfig) Validate() error {
	var faults []error
	if c.Locator == nil {
		faults = append(faults, errors.New("Locator is nil: required"))
	}
	for name, d := range map[string]time.Duration{"Budget": c.Budget, "LocateTimeout": c.LocateTimeout, "OpenTimeout": c.OpenTimeout, "Silence": c.Silence, "Detour": c.Detour} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("%s is %v: not negative", name, d))
		}
	}
	return errors.Join(faults...)
}

// Client is the frontend's end of the data plane. It satisfies frontend.Shards. It is safe for any number of goroutines.
type Client struct {
	cfg    ClientConfig
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wait   sync.WaitGroup // goroutines of links and routes

	routesMu sync.RWMutex
	routes   map[string]*shardRoute // guarded by routesMu

	mu          sync.Mutex
	closed      bool             // guarded by mu, as is all below
	links       map[string]*link // by address; that are up or being opened
	unreachable map[string]*outage
	watchConns  map[string]*watchConn // by address
}

// NewClient makes a client. It connects to nobody by itself.
func NewClient(cfg ClientConfig) (*Client, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, routes: make(map[string]*shardRoute), links: make(map[string]*link), unreachable: make(map[string]*outage), watchConns: make(map[string]*watchConn)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

var errClosed = &kverr.Error{Kind: kverr.Unavailable, Op: "reach the shard", Message: "the frontend is stopping", RetryAfterMS: 100}

// Close ends all streams. What is under way is released, as unknown where it may have been applied.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wait.Wait()
}

// Linked tells whether a stream to a host is up: what is routed there is served, whoever else is away.
func (c *Client) Linked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		select {
		case <-l.ready:
			if l.err == nil {
				return true
			}
		default:
		}
	}
	return false
}

// enter registers a goroutine that Close waits for; false when the client is closed.
func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wait.Add(1)
	return true
}

// Do hands commands to the shard, in order. It does not wait.
func (c *Client) Do(ctx context.Context, shardID string, cmds ...*shard.Command) {
	deadline, until := c.times(ctx)
	var calls callList
	for _, cmd := range cmds {
		k := newCall()
		k.kind, k.cmd, k.size = callCommand, cmd, cmd.Size()
		k.deadline, k.until = sooner(deadline, until, cmd.UntilMS)
		if cmd.Follow != nil {
			k.follow = c.follow(cmd.Follow, shardID, cmd.Op.String())
		}
		if k.size > maxOutcome {
			k.release(kverr.TooBig("command", k.size, maxOutcome, "bytes"))
			continue
		}
		calls.add(k)
	}
	c.route(shardID).send(calls)
}

// Read asks the shard. It does not wait. Answers of one call may be from several states of the shard.
func (c *Client) Read(ctx context.Context, shardID string, queries ...*shard.Query) {
	deadline, until := c.times(ctx)
	var calls callList
	for _, q := range queries {
		k := newCall()
		k.kind, k.query, k.size = callQuery, q, querySize(q)
		k.deadline, k.until = sooner(deadline, until, q.UntilMS)
		if q.Follow != nil {
			k.follow = c.follow(q.Follow, shardID, q.Op.String())
		}
		calls.add(k)
	}
	c.route(shardID).send(calls)
}

// querySize is at most how long a query is when it is encoded.
func querySize(q *shard.Query) int {
	n := 64 + len(q.Key)
	if l := q.List; l != nil {
		n += 64 + len(l.Prefix) + len(l.Start) + len(l.End) + len(l.After)
	}
	if p := q.Prompt; p != nil {
		n += 128 + len(p.ScopeFields) + len(p.After)
		for i := range p.Blocks {
			n += 48 + len(p.Blocks[i].ID)
		}
	}
	return n
}

// sooner is times for a call of its own caller, who stops waiting at ms milliseconds since the Unix epoch; 0 = not told.
func sooner(deadline, until, ms int64) (int64, int64) {
	if ms == 0 {
		return deadline, until
	}
	at := ms * int64(time.Millisecond)
	if deadline != 0 {
		at = min(at, deadline)
	}
	return at, min(until, at)
}

// times is when a call's caller stops waiting (0 = not told) and when it is given up, in nanoseconds since the Unix epoch.
func (c *Client) times(ctx context.Context) (deadline, until int64) {
	until = time.Now().Add(c.cfg.Budget).UnixNano()
	if d, ok := ctx.Deadline(); ok {
		deadline = d.UnixNano()
		until = min(until, deadline)
	}
	return deadline, until
}

// route finds what is known of a shard's place.
func (c *Client) route(shardID string) *shardRoute {
	c.routesMu.RLock()
	r := c.routes[shardID]
	c.routesMu.RUnlock()
	if r != nil {
		return r
	}
	c.routesMu.Lock()
	defer c.routesMu.Unlock()
	if r = c.routes[shardID]; r == nil {
		r = &shardRoute{client: c, id: shardID}
		c.routes[shardID] = r
	}
	return r
}

// forget drops what is known of a shard that does not exist.
func (c *Client) forget(r *shardRoute) {
	c.routesMu.Lock()
	defer c.routesMu.Unlock()
	if c.routes[r.id] == r {
		delete(c.routes, r.id)
	}
}
