// Package daprhost runs shards as Dapr virtual actors: the runtime of a cluster (DESIGN D3, D5). Dapr decides on which host a shard is to be
// opened; a memhost.Host, which this package composes, does all the rest. It also holds Dapr's other side: Locator, by which a frontend
// finds out where a shard is. Nothing else in the tree knows Dapr, except the pub/sub driver and the Dapr-facing component.
//
// It is not a second placement or failure detector: it only asks its own sidecar whether callbacks still come, and ends a sidecar
// that is wedged, for its supervisor to start it again. DESIGN.md beside this file has the rules and their reasons.
//
//	sidecar, err := daprhost.Dial(daprhost.SidecarConfig{Address: "127.0.0.1:50001"})
//	h, err := daprhost.New(store, sidecar, daprhost.Config{Shards: memhost.Config{Address: "10.0.0.7:9085"}})
//	h.Begin()
//	h.Do(ctx, "a1b2c3d4e5f60718-0", cmd) // Moved, unless it is served here or Dapr has placed it here
//	h.Close(ctx, true)
package daprhost

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/host/memhost"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// Handler is a method of a shard's actor that callers use who cannot reach the data plane (Locator.Invoke). What is wrong with the
// request it says in its answer; an error says that it was not run. Calls may come twice, and one that nobody waits for any more goes on.
type Handler func(ctx context.Context, shardID string, payload []byte) ([]byte, error)

// Config tunes a Host. The zero value of each field takes its default.
type Config struct {
	// Shards tunes the runtime of shards. Its Address, that of the data plane, is required; Peers and Placement are set by New.
	Shards memhost.Config
	// ActorType is the Dapr actor type of the shards: one for each cluster that shares a placement service and namespace. Default
	// DefaultActorType.
	ActorType string
	// Dial returns the connection to another host's data plane, by which it is asked to yield a shard. The connection stays the
	// caller's. nil: hosts wait for each other's leases to end.
	Dial func(address string) (grpc.ClientConnInterface, error)
	// Methods are what Locator.Invoke can call, by name. "Locate" is taken.
	Methods map[string]Handler
	// MaxCalls bounds the handlers that run at once; further calls are refused with kverr.Exhausted. Default 64.
	MaxCalls int
	// CallTimeout bounds one handler. Default 5 s.
	CallTimeout time.Duration
	// Beat is how often the sidecar is looked at. One that routes nothing for three beats, and says that it is well, is ended. Default 1 s.
	Beat time.Duration
	// Events are told of; may be empty.
	Events Events
}

// Events are told to whoever runs the host. They are called from its goroutines and must not block. Nil ones are not called.
type Events struct {
	// Ready tells that Dapr routes actors to this host, and how long that took since the stream was begun.
	Ready func(took time.Duration)
	// Lost tells that the sidecar's stream ended, or that it does not route any more. Shards that are open go on.
	Lost func(why error)
	// Ended tells that the sidecar was asked to end, why, and with what success.
	Ended func(why string, err error)
}

// Defaults of Config.
const (
	DefaultMaxCalls    = 64
	DefaultCallTimeout = 5 * time.Second
	DefaultBeat        = time.Second
)

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	c.Shards.EnsureDefaults()
	if c.ActorType == "" {
		c.ActorType = DefaultActorType
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = DefaultMaxCalls
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = DefaultCallTimeout
	}
	if c.Beat == 0 {
		c.Beat = DefaultBeat
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	faults := []error{c.Shards.Validate(), checkActorType(c.ActorType)}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.Shards.Address != "", "Shards.Address is empty: required")
	check(c.Shards.Peers == nil && c.Shards.Placement == nil, "Shards.Peers and Shards.Placement must be nil: they are the host's")
	check(c.MaxCalls >= 1, "MaxCalls is %d: at least 1", c.MaxCalls)
	check(c.CallTimeout > 0, "CallTimeout is %v: more than 0", c.CallTimeout)
	check(c.Beat >= 10*time.Millisecond, "Beat is %v: at least 10ms", c.Beat)
	for name, f := range c.Methods {
		check(name != "" && name != methodLocate && !strings.ContainsAny(name, reserved) && f != nil, "Methods[%q]: it needs a handler, and a name other than %q without any of %q", name, methodLocate, reserved)
	}
	return errors.Join(faults...)
}

// reserved may not be in names that daprd routes by.
const reserved = "/\\#?|"

func checkActorType(name string) error {
	if name == "" || len(name) > 64 || strings.ContainsAny(name, reserved) {
		return fmt.Errorf("ActorType is %q: 1 to 64 bytes without any of %q", name, reserved)
	}
	return nil
}

// Host runs the shards that Dapr has placed on it, and those that it still holds. It is safe for any number of goroutines.
type Host struct {
	*memhost.Host

	cfg     Config
	sidecar *Sidecar
	canary  string // actor type that no other host has
	calls   chan struct{}

	ctx        context.Context // of background work; ends with Close
	cancel     context.CancelFunc
	background sync.WaitGroup

	begun   bool               // Begin was called
	staying context.Context    // of the stream
	leave   context.CancelFunc // ends it, and does not open another
	left    chan struct{}      // closed once the stream has ended for good
	nudges  chan nudge
	closing sync.Once

	mu       sync.Mutex
	ready    error                // why Dapr does not route here; nil when it does; guarded by mu, as is all below
	placed   map[string]bool      // shards that callbacks came for, and were not deactivated since
	disputed map[string]time.Time // shards that another host holds, and says are placed there, since when
	ended    time.Time            // when the sidecar was last asked to end because of those
}

var errStarting = errors.New("the sidecar is not connected yet")

// New makes a host. It opens nothing: Begin does, after whatever else is to be known to the host (memhost.Host.Register, RememberWith). The
// sidecar stays the caller's, to be closed after the host. Close must be called.
func New(store *wal.Store, sidecar *Sidecar, cfg Config) (*Host, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var id [8]byte
	rand.Read(id[:])
	h := &Host{
		cfg: cfg, sidecar: sidecar, canary: cfg.ActorType + "-canary-" + hex.EncodeToString(id[:]), calls: make(chan struct{}, cfg.MaxCalls),
		left: make(chan struct{}), nudges: make(chan nudge, maxNudges),
		ready: errStarting, placed: make(map[string]bool), disputed: make(map[string]time.Time),
	}
	cfg.Shards.Placement = placement{h}
	if cfg.Dial != nil {
		cfg.Shards.Peers = &peers{dial: cfg.Dial}
	}
	var err error
	if h.Host, err = memhost.New(store, cfg.Shards); err != nil {
		return nil, err
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.staying, h.leave = context.WithCancel(h.ctx)
	return h, nil
}

// Begin begins to connect the host to its sidecar, in the background: from then on Dapr may place shards on it. It is called once, before
// Close.
func (h *Host) Begin() {
	h.begun = true
	h.background.Go(func() {
		defer close(h.left)
		h.keepConnected(h.staying)
	})
	h.background.Go(h.nudge)
	h.background.Go(h.remind)
}

// Ready tells why Dapr does not route actors to this host; nil when it does. Shards that are open are served all the same.
func (h *Host) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready
}

// settle is how long a host that leaves goes on serving after its stream has ended, so that every sidecar has the table without it
// when its shards are given up: who asks for one then is led to its next host at once.
const settle = 300 * time.Millisecond

// Close leaves in good order. The stream ends first, and Dapr places the shards elsewhere; until that has spread they are served here, and
// each is handed over when its next host asks for it. Then what is left is checkpointed, if told so, and given up, and callers are told
// to ask where it is now. When ctx ends first, what is left is cut off: nothing acknowledged is lost by that.
func (h *Host) Close(ctx context.Context, checkpoint bool) error {
	var err error
	h.closing.Do(func() {
		defer h.cancel()
		wasReady := h.Ready() == nil
		h.leave()
		if h.begun {
			<-h.left
		}
		if wasReady {
			_ = sleep(ctx, settle)
		}
		err = h.Host.Close(ctx, checkpoint)
		h.cancel()
		h.background.Wait()
	})
	return err
}

// placement is what memhost asks.
type placement struct{ h *Host }

// Placed is for memhost.Placement.
func (p placement) Placed(shardID string) bool {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	return p.h.placed[shardID]
}

// Wake is for memhost.Placement: the shard's next host has it opened when it is located.
func (p placement) Wake(shardID string) { p.h.nudgeSoon(nudge{shardID: shardID, wake: true}) }

// setReady changes what Ready tells, and tells whether that is news.
func (h *Host) setReady(err error) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = (h.ready == nil) != (err == nil)
	h.ready = err
	return changed
}

// tellLost notes that Dapr does not route here.
func (h *Host) tellLost(why error) {
	if h.setReady(why) && h.cfg.Events.Lost != nil {
		h.cfg.Events.Lost(why)
	}
}

// tellReady notes that it does.
func (h *Host) tellReady(took time.Duration) {
	if h.setReady(nil) && h.cfg.Events.Ready != nil {
		h.cfg.Events.Ready(took)
	}
}

// end asks the sidecar to end, for its supervisor to start it again.
func (h *Host) end(why string) {
	ctx, cancel := context.WithTimeout(h.ctx, askTimeout)
	defer cancel()
	err := h.sidecar.shutdown(ctx)
	if h.cfg.Events.Ended != nil {
		h.cfg.Events.Ended(why, err)
	}
}

// errBusy is what a caller of a method gets at MaxCalls.
var errBusy = &kverr.Error{Kind: kverr.Exhausted, Op: "call the shard", Message: "the host runs as many calls as it may", RetryAfterMS: 50}
