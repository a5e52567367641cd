package catalog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/actors/directory"
	"kvstore/actors/directory/keeper"
	"kvstore/actors/host"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/frontend"
)

var _ frontend.DirectoryCopy = (*Client)(nil)

// Locator finds out which host owns an actor, having it activated if need be. It may wait for that; errors are *kverr.Error. With one of kind
// DataLoss may come the address of the host that refuses to activate it.
type Locator interface {
	Locate(ctx context.Context, id string) (host.Location, error)
}

// Defaults of ClientConfig.
const (
	DefaultSilence     = 3 * time.Second
	DefaultOpening     = 15 * time.Second
	DefaultAttempt     = 10 * time.Second
	DefaultCallTimeout = 30 * time.Second
)

// Pauses between tries to reach the owner: at random up to twice the first, twice as long each time, up to the last.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// ClientConfig tunes a Client. The zero value of each field takes its default.
type ClientConfig struct {
	// TLS is what connections to owners are made with. nil: plain text, which is for one machine.
	TLS *tls.Config
	// Dial connects to an address. Default: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Silence is how long a watch may be without a message, heartbeats included, before the owner is looked for again. Default 3 s.
	// A change is seen within this time and that of finding the owner, also when a connection dies without a word; otherwise at
	// once.
	Silence time.Duration
	// Opening is how long the first message of a watch may take: a new owner answers nobody before an earlier one's lease is
	// over. Default 15 s.
	Opening time.Duration
	// Attempt bounds one try of a request, CallTimeout all of them when the caller's context has no deadline. Defaults 10 s and 30 s.
	Attempt     time.Duration
	CallTimeout time.Duration
	// Failed is told why the owner is not being followed, each time; may be nil.
	Failed func(err error)
}

// EnsureDefaults fills in what is zero.
func (c *ClientConfig) EnsureDefaults() {
	if c.Silence == 0 {
		c.Silence = DefaultSilence
	}
	if c.Opening == 0 {
		c.Opening = DefaultOpening
	}
	if c.Attempt == 0 {
		c.Attempt = DefaultAttempt
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = DefaultCallTimeout
	}
}

// Validate lists every fault.
func (c *ClientConfig) Validate() error {
	var faults []error
	for name, d := range map[string]time.Duration{"Silence": c.Silence, "Opening": c.Opening, "Attempt": c.Attempt, "CallTimeout": c.CallTimeout} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("%s is %v: more than 0", name, d))
		}
	}
	return errors.Join(faults...)
}

// Client is the directory as a process sees it that does not own it: a copy, which Run keeps current, and the way to the owner. Reads
// are from the copy, however old it is, and cost an atomic load. Requests go to the owner, are repeated until they are answered, and
// return once the copy has what they did. It is safe for any number of goroutines.
type Client struct {
	cfg     ClientConfig
	locator Locator

	current atomic.Pointer[copied]

	mu        sync.Mutex
	changed   chan struct{} // closed when anything below, or current, is another; guarded by mu
	owner     *owner        // who is followed, or about to be; nil while nobody is; guarded by mu
	heard     time.Time     // when the last message came from an owner that had made sure of its lease; guarded by mu
	following bool          // that is the one that is followed now; guarded by mu
	failure   error         // why nobody is followed; guarded by mu
}

// copied is a state of the directory; immutable.
type copied struct {
	catalog  *directory.Catalog
	snapshot *frontend.Snapshot
	usable   bool   // a keyspace can be used, or none is being made
	epoch    uint64 // of the owner that sent it
	from     string // its address
}

// owner is a host that is taken for the owner.
type owner struct {
	at   host.Location
	api  dataplanev1.DirectoryServiceClient
	lost func() // stops following it
}

// NewClient makes a client. Run keeps it current.
func NewClient(l Locator, cfg ClientConfig) (*Client, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, locator: l, changed: make(chan struct{})}, nil
}

// Run follows the owner until ctx ends.
func (c *Client) Run(ctx context.Context) {
	var dialled dialled
	defer func() { dialled.close() }()
	pause := firstPause
	for ctx.Err() == nil {
		heard, err := c.follow(ctx, &dialled)
		if ctx.Err() != nil {
			break
		}
		c.fail(err)
		if heard {
			pause = firstPause // it was the owner: find the next one soon
		}
		select {
		case <-time.After(pause + rand.N(pause)):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
	c.set(func() { c.following, c.failure = false, errNotRunning })
}

var errNotRunning = &kverr.Error{Kind: kverr.Unavailable, Op: "follow the directory", Message: "this process is stopping"}

// dialled is the connection to the host that was dialled last.
type dialled struct {
	address string
	conn    *grpc.ClientConn
}

func (d *dialled) close() {
	if d.conn != nil {
		_ = d.conn.Close()
	}
	*d = dialled{}
}

// to returns the connection to an address.
func (d *dialled) to(address string, cfg *ClientConfig) (*grpc.ClientConn, error) {
	if d.conn != nil && d.address == address {
		return d.conn, nil
	}
	d.close()
	secure := insecure.NewCredentials()
	if cfg.TLS != nil {
		secure = credentials.NewTLS(cfg.TLS)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secure),
		// A host that was away is tried again soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: lastPause}, MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
	}
	if cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(cfg.Dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, err
	}
	*d = dialled{address, conn}
	return conn, nil
}

// follow finds the owner and keeps the copy current from what it sends, until that ends. heard: it was the owner for a while.
func (c *Client) follow(ctx context.Context, d *dialled) (heard bool, _ error) {
	at, err := c.locator.Locate(ctx, keeper.ShardID)
	refusal := err
	if at.Address == "" {
		return false, refusal
	}
	conn, err := d.to(at.Address, &c.cfg)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o := &owner{at: at, api: dataplanev1.NewDirectoryServiceClient(conn), lost: func() { cancel(errLost) }}
	c.set(func() { c.owner = o })
	defer c.set(func() { c.owner = nil })
	if refusal != nil { // the directory has lost records: there is nothing to follow, but this is who can be told that the loss is accepted
		select {
		case <-time.After(lastPause):
		case <-ctx.Done():
		}
		return false, refusal
	}

	silence := time.AfterFunc(c.cfg.Opening, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := o.api.WatchDirectory(ctx, &dataplanev1.WatchDirectoryRequest{})
	if err != nil {
		return false, c.why(ctx, err)
	}
	replica, complete := directory.NewReplica(), uint64(0)
	for {
		m, err := stream.Recv()
		if err != nil {
			return heard, c.why(ctx, err)
		}
		silence.Reset(c.cfg.Silence)
		if m.Reset_ {
			replica, complete = directory.NewReplica(), 0
		}
		for _, change := range m.Changes {
			if err := replica.Apply(change); err != nil {
				return heard, kverr.Wrap(kverr.Unimplemented, "follow the directory", err)
			}
		}
		if m.More {
			continue
		}
		if err := c.take(replica, m, complete, at.Address); err != nil {
			return heard, err
		}
		complete, heard = m.Revision, true
	}
}

var (
	errSilent = &kverr.Error{Kind: kverr.Unavailable, Op: "follow the directory", Message: "its owner is silent"}
	errLost   = &kverr.Error{Kind: kverr.Unavailable, Op: "follow the directory", Message: "its owner did not answer a request"}
)

// why is the error of a stream, or what ended it here.
func (c *Client) why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return kverr.FromGRPC(err)
}

// take makes a complete state the current copy, unless it is older than that.
func (c *Client) take(replica *directory.Replica, m *dataplanev1.WatchDirectoryResponse, complete uint64, from string) error {
	old := c.current.Load()
	if old != nil {
		switch {
		case m.Epoch < old.epoch:
			return &kverr.Error{Kind: kverr.Moved, Op: "follow the directory", Message: fmt.Sprintf(
				"its owner of epoch %d answered, epoch %d has been heard of", m.Epoch, old.epoch)}
		case m.Revision < old.catalog.Revision:
			return &kverr.Error{Kind: kverr.DataLoss, Op: "follow the directory", Message: fmt.Sprintf(
				"its store has lost acknowledged changes: it is at revision %d of epoch %d, this process has seen revision %d of epoch %d",
				m.Revision, m.Epoch, old.catalog.Revision, old.epoch)}
		}
	}
	next := old
	if old == nil || m.Revision != complete || m.Epoch != old.epoch || from != old.from || m.Revision != old.catalog.Revision {
		catalog, err := replica.Catalog(m.Revision)
		if err != nil {
			return kverr.Wrap(kverr.DataLoss, "follow the directory", err)
		}
		snapshot := snapshotOf(catalog)
		next = &copied{
			catalog: catalog, snapshot: snapshot, usable: len(snapshot.Keyspaces) > 0 || len(catalog.Keyspaces) == 0, epoch: m.Epoch, from: from,
		}
	}
	c.set(func() {
		c.current.Store(next)
		c.heard, c.following, c.failure = time.Now(), true, nil
	})
	return nil
}

// set changes what is guarded by mu, and tells whoever waits.
func (c *Client) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) fail(err error) {
	c.set(func() { c.following, c.failure = false, err })
	if c.cfg.Failed != nil {
		c.cfg.Failed(err)
	}
}

// await waits until something holds of the copy, which is nil before the first.
func (c *Client) await(ctx context.Context, holds func(*copied) bool) (*copied, error) {
	for {
		c.mu.Lock()
		changed, failure := c.changed, c.failure
		c.mu.Unlock()
		now := c.current.Load()
		if holds(now) {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if failure == nil {
				failure = context.Cause(ctx)
			}
			return nil, &kverr.Error{Kind: kverr.Unavailable, Op: "read the directory", Message: "its owner is not reached", RetryAfterMS: 1000, Err: failure}
		}
	}
}

// there is the copy once there is one that can be used: in a new cluster the shards of the first keyspace are made before anybody is told that it
// is not there.
func (c *Client) there(ctx context.Context) (*copied, error) {
	usable := func(now *copied) bool { return now != nil && now.usable }
	if now := c.current.Load(); usable(now) {
		return now, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	now, err := c.await(ctx, usable)
	if err != nil && c.current.Load() != nil {
		return nil, &kverr.Error{Kind: kverr.Unavailable, Op: "read the directory", Message: errMaking.Error(), RetryAfterMS: 1000, Err: err}
	}
	return now, err
}

var errMaking = errors.New("the shards of the only keyspace are still being made")

// Revision is that of the copy. Every change that this client was asked for and told is done is in it; others come within
// ClientConfig.Silence. Before the first copy it waits for that.
func (c *Client) Revision(ctx context.Context) (uint64, error) {
	now, err := c.there(ctx)
	if err != nil {
		return 0, err
	}
	return now.catalog.Revision, nil
}

// Snapshot returns the copy.
func (c *Client) Snapshot(ctx context.Context) (*frontend.Snapshot, error) {
	now, err := c.there(ctx)
	if err != nil {
		return nil, err
	}
	return now.snapshot, nil
}

// Status is how current a Client's copy is.
type Status struct {
	Revision  uint64        // of the copy; 0 = there is none yet
	Epoch     uint64        // of the owner that sent it
	Owner     string        // address of the host that sent it
	Following bool          // the owner is being followed; otherwise Failure tells why not
	Age       time.Duration // since the owner last made sure that the copy is the directory; 0 while there is none
	Failure   error
}

// Status tells how current the copy is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Following: c.following, Failure: c.failure}
	if now := c.current.Load(); now != nil {
		s.Revision, s.Epoch, s.Owner, s.Age = now.catalog.Revision, now.epoch, now.from, time.Since(c.heard)
	}
	return s
}

// CopyStatus is Status for users.
func (c *Client) CopyStatus() *kvv1.StatusResponse_Directory {
	s := c.Status()
	p := &kvv1.StatusResponse_Directory{Revision: s.Revision, Epoch: s.Epoch, Owner: s.Owner, Following: s.Following, AgeMs: s.Age.Milliseconds()}
	if s.Failure != nil {
		p.Reason = s.Failure.Error()
	}
	return p
}

// Ready tells why the process cannot serve by this copy, nil when it can: there must be one. One that is old is no reason, since shards
// refuse what they do not own; Status tells its age.
func (c *Client) Ready() error {
	if now := c.current.Load(); now != nil {
		if !now.usable {
			return errMaking
		}
		return nil
	}
	s := c.Status()
	if s.Failure != nil {
		return fmt.Errorf("the directory was not read yet: %w", s.Failure)
	}
	return errors.New("the directory was not read yet")
}
