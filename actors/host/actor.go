package host

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// ErrOver is what Do, Durable and Checkpoint return when the actor's ownership is over: nothing was taken. Open the shard
// again, or ask where it is now; Err tells why.
var ErrOver = errors.New("the actor is over")

// State is a durable state of an actor: everything acknowledged up to Seq. It is immutable.
type State struct {
	Tree     *btree.Tree // not written to any more
	Revision uint64      // of the machine
	Seq      uint64      // of the record that made it durable
	TimeMS   int64       // shard time of that record
}

// Actor runs one Machine on one Log. It is a monitor: callers step the machine under its mutex, completions of appends
// publish, release and append what gathered meanwhile. It has no goroutine of its own. DESIGN.md has the order and the gate.
type Actor[C Command] struct {
	cfg      Config
	hooks    Hooks
	log      *wal.Log
	term     time.Duration // of the engine's leases; 0 = they never lapse
	ackAfter time.Time     // nothing leaves before; zero = at once
	appended func(seq uint64, err error)
	pool     sync.Pool // of *outcomes[C]

	durable  atomic.Pointer[State]
	readonly atomic.Pointer[refusal]     // the last append, if it wrote nothing
	why      atomic.Pointer[kverr.Error] // why the actor is over; nil while it lives
	bytes    atomic.Int64                // of the tree of durable, by its own count

	background sync.WaitGroup // confirmations
	leaving    atomic.Int32   // lists of outcomes that are being released; raised with mu held
	flushing   atomic.Bool    // idle is set; changed with mu held

	mu         sync.Mutex
	machine    Machine[C]    // guarded by mu, as is all below
	waiting    []waiter[C]   // outcomes that may not leave yet, in order
	replies    []Gated[C]    // room for Machine.Replies
	turn       uint64        // counts calls that stepped
	stepped    int           // commands since the last flight began
	ways       []*Way        // of those of them that are followed
	ticked     time.Time     // what the machine was told last
	queue      []C           // commands not stepped yet because the next body is full
	queueBytes int           // Size of them together
	flight     *flight       // the append in flight; nil when there is none
	pace       pace          // of appends
	confirming *confirmation // the confirmation under way; nil when there is none
	silent     bool          // the last append was not written, and took longer than Patience
	doubted    bool          // the last confirmation had no answer
	closing    bool          // no more commands are taken
	wakeMS     int64         // what Hooks.Wake was told last
	idle       chan struct{} // closed once nothing waits and nothing is in flight; nil when nobody asked
	stopTimer  func() bool   // of the timer that ends the wait for ackAfter; nil when it is not set
}

// flight is an append in flight.
type flight struct {
	state State
	body  []byte // until the append begins
	turn  uint64 // outcomes up to this turn were stepped before the append began

	began    time.Time
	commands int // stepped since the flight before
	bytes    int // of body
	ways     []*Way
}

// waiter is an outcome that waits to be durable or for the gate.
type waiter[C Command] struct {
	Gated[C]
	turn uint64 // at which it was stepped, or later
	sent bool   // it waited for an append, so the change may be its own
}

// outcomes are commands to release once the mutex is free.
type outcomes[C Command] struct {
	list []outcome[C]
}

type outcome[C Command] struct {
	command C
	err     error
}

// Do hands commands to the machine, in order. Each is released exactly once, possibly before Do returns. With ErrOver no
// command was taken and none is released.
func (a *Actor[C]) Do(cmds ...C) error {
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	if a.closing {
		a.mu.Unlock()
		return ErrOver
	}
	var out *outcomes[C]
	a.tick(now)
	for i, c := range cmds {
		err := a.take(c, i, now)
		if err == nil {
			continue
		}
		if err != errStarved && err != errLate {
			// Those behind it may count on their order: refuse them too.
			for _, c := range cmds[i:] {
				out = a.release(out, c, err)
			}
			break
		}
		out = a.release(out, c, err)
	}
	f, out := a.advance(now, out)
	a.mu.Unlock()
	a.leave(f, out)
	return nil
}

// Tick tells the machine the time when no command comes. The runtime calls it when a Hooks.Wake is due.
func (a *Actor[C]) Tick() {
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	if a.closing {
		a.mu.Unlock()
		return
	}
	a.wakeMS = 0 // the runtime has forgotten the wish that led here
	a.tick(now)
	f, out := a.advance(now, nil)
	if a.flight == nil {
		a.rearm() // otherwise the landing does
	}
	a.mu.Unlock()
	a.leave(f, out)
}

// maxJump is how far the clock may be ahead of the time that has passed before an event is raised (D12).
const maxJump = 10 * time.Second

// tick tells the machine the time, and the runtime when the clock was moved. Sleep is no jump: both readings of now know of it.
func (a *Actor[C]) tick(now time.Time) {
	a.machine.Tick(now.UnixMilli())
	if a.hooks.Jumped != nil && !a.ticked.IsZero() {
		if jump := now.Round(0).Sub(a.ticked.Round(0)) - now.Sub(a.ticked); jump > maxJump {
			a.hooks.Jumped(jump)
		}
	}
	a.ticked = now
}

var (
	errStarved = &kverr.Error{Kind: kverr.Exhausted, Op: "write", Message: "the host is at its memory budget; deletes still pass", RetryAfterMS: 1000}
	errCrowded = &kverr.Error{Kind: kverr.Overloaded, Op: "queue", Message: "too many commands wait for the shard's log", RetryAfterMS: 50}
	errLate    = &kverr.Error{Kind: kverr.DeadlineExceeded, Op: "queue", Message: "the deadline passed before it was begun; it was not applied"}
	errStuck   = &kverr.Error{Kind: kverr.Unavailable, Op: "append", Message: "the log engine does not answer; the write was not applied", RetryAfterMS: 500}
)

// minRetry is the least time after which whoever was refused for want of time is told to come again.
const minRetry = 50 * time.Millisecond

// crowded refuses a command that would have to wait too long. What waits now is half written when it may be tried again.
func crowded(wait time.Duration) *kverr.Error {
	return &kverr.Error{
		Kind: kverr.Overloaded, Op: "queue", Message: "the log engine takes writes more slowly than they come: they would wait too long",
		RetryAfterMS: max(minRetry, wait/2).Milliseconds(),
	}
}

// shed tells why a command that there is room for is not taken; nil when it is. Mutex held.
func (a *Actor[C]) shed(c C, now time.Time) *kverr.Error {
	until := c.Until()
	if until != 0 && now.UnixMilli() >= until {
		return errLate
	}
	if a.flight == nil {
		return nil
	}
	if a.silent || now.Sub(a.flight.began) > a.cfg.Patience {
		return errStuck
	}
	limit := a.pace.limit()
	if limit == 0 {
		return nil
	}
	bytes := a.flight.bytes + a.machine.Pending() + a.queueBytes
	if wait := a.pace.wait(bytes); bytes >= limit || bytes > paceFloor && until != 0 && now.Add(wait).UnixMilli() > until {
		return crowded(wait)
	}
	return nil
}

// take steps or queues one command; ahead is how many of the same call came before it. An error refuses it. Mutex held.
func (a *Actor[C]) take(c C, ahead int, now time.Time) *kverr.Error {
	if err := a.shed(c, now); err != nil {
		return err
	}
	if a.hooks.Starved != nil && c.Grows() && a.hooks.Starved() {
		return errStarved
	}
	if len(a.waiting)+len(a.queue)+ahead >= a.cfg.MaxCommands {
		return errCrowded
	}
	if len(a.queue) == 0 && a.machine.Pending() < a.cfg.MaxBody {
		a.step(c, now)
		return nil
	}
	size := c.Size()
	if len(a.queue) > 0 && a.queueBytes+size > a.cfg.MaxQueuedBytes || a.hooks.Queue != nil && !a.hooks.Queue(size) {
		return errCrowded
	}
	a.queue = append(a.queue, c)
	a.queueBytes += size
	return nil
}

// step lets the machine take one command. Mutex held.
func (a *Actor[C]) step(c C, now time.Time) {
	if w := c.Way(); w != nil {
		w.stepped(now)
		a.ways = append(a.ways, w)
	}
	a.machine.Step(c)
	a.stepped++
}

// advance does what can be done after steps: begin an append if none is in flight, fill the next body from the queue, and
// let outcomes go that may. The caller appends what was begun and releases the outcomes after it has given up the mutex.
func (a *Actor[C]) advance(now time.Time, out *outcomes[C]) (begun *flight, _ *outcomes[C]) {
	a.turn++
	if a.flight == nil {
		begun, out = a.begin(now, out)
	}
	out = a.drain(now, out)
	a.replies = a.machine.Replies(a.replies[:0])
	out = a.admit(now, a.replies, out)
	clear(a.replies)
	a.settle()
	return begun, out
}

// begin takes what the machine has gathered. A body that is not empty becomes the flight.
func (a *Actor[C]) begin(now time.Time, out *outcomes[C]) (*flight, *outcomes[C]) {
	r := a.machine.Ready()
	out = a.admit(now, r.Replies, out)
	if len(r.Body) == 0 {
		a.ways = nil
		return nil, out
	}
	a.flight = &flight{
		state: State{Tree: a.machine.Tree().Clone(), Revision: r.Head, TimeMS: r.TimeMS}, body: r.Body, turn: a.turn,
		began: now, commands: a.stepped, bytes: len(r.Body), ways: a.ways,
	}
	for _, w := range a.ways {
		w.appending(now, a.stepped, len(r.Body))
	}
	a.stepped, a.ways = 0, nil
	return a.flight, out
}

// drain steps queued commands until the next body is full. Those that nobody waits for any more are not begun.
func (a *Actor[C]) drain(now time.Time, out *outcomes[C]) *outcomes[C] {
	if len(a.queue) == 0 {
		return out
	}
	n := 0
	for n < len(a.queue) && a.machine.Pending() < a.cfg.MaxBody {
		c := a.queue[n]
		n++
		a.unqueued(c.Size())
		if until := c.Until(); until != 0 && now.UnixMilli() >= until {
			out = a.release(out, c, errLate)
			continue
		}
		a.step(c, now)
	}
	a.queue = slices.Delete(a.queue, 0, n)
	return out
}

// unqueued gives back the room that a command had in the queue. Mutex held.
func (a *Actor[C]) unqueued(bytes int) {
	a.queueBytes -= bytes
	if a.hooks.Queue != nil {
		a.hooks.Queue(-bytes)
	}
}

// admit lets new outcomes go that may leave at once, and keeps the others waiting.
func (a *Actor[C]) admit(now time.Time, replies []Gated[C], out *outcomes[C]) *outcomes[C] {
	if len(replies) == 0 {
		return out
	}
	durable := a.durable.Load().Revision
	open, held := a.open(now), false
	for _, r := range replies {
		if r.Dep <= durable && open {
			out = a.release(out, r.Command, nil)
			continue
		}
		held = held || r.Dep <= durable
		a.waiting = append(a.waiting, waiter[C]{Gated: r, turn: a.turn, sent: r.Dep > durable})
	}
	if held {
		a.openGate(now)
	}
	return out
}

// gather lets waiting outcomes go that may leave by now: what they depended on is durable, and this epoch is known to own the shard
// after they were stepped, by its lease or by something that began at turn proven or later and succeeded.
func (a *Actor[C]) gather(now time.Time, proven uint64, out *outcomes[C]) *outcomes[C] {
	if len(a.waiting) == 0 {
		return out
	}
	if now.Before(a.ackAfter) {
		a.openGate(now)
		return out
	}
	durable := a.durable.Load().Revision
	open, held := a.open(now), false
	keep := a.waiting[:0]
	for _, w := range a.waiting {
		if w.Dep <= durable && (open || w.turn <= proven) {
			out = a.release(out, w.Command, nil)
			continue
		}
		held = held || w.Dep <= durable
		keep = append(keep, w)
	}
	clear(a.waiting[len(keep):])
	a.waiting = keep
	if held {
		a.openGate(now)
	}
	return out
}

// land takes the outcome of the append in flight: publish, release, append what gathered meanwhile. It runs on a goroutine of
// the engine.
func (a *Actor[C]) land(seq uint64, err error) {
	now := a.cfg.Clock.Now()
	a.mu.Lock()
	f := a.flight
	var begun *flight
	var out *outcomes[C]
	var over *kverr.Error
	what := wal.OutcomeOf(err)
	if a.hooks.Committed != nil {
		a.hooks.Committed(Committed{Outcome: what, Took: now.Sub(f.began), Commands: f.commands, Bytes: f.bytes, Waiting: len(a.waiting) + len(a.queue)})
	}
	a.silent = what != wal.Written && now.Sub(f.began) > a.cfg.Patience
	if what == wal.Written {
		a.pace.landed(f.bytes, now.Sub(f.began))
		f.began, f.bytes = now, 0 // what still stands as in flight below is written: shed counts it no more
		a.doubted = false         // the engine answers
		f.state.Seq = seq
		for _, w := range f.ways {
			w.durable(now)
		}
		a.publish(&f.state)
		out = a.gather(now, f.turn, out)
		// Whoever can run runs before the next append is sealed, so that what it brings is in it: no delay on an idle machine, fewer
		// and wider records on a busy one. The flight stays, so nobody begins another.
		a.mu.Unlock()
		a.leave(nil, out)
		out = nil
		runtime.Gosched()
		now = a.cfg.Clock.Now()
		a.mu.Lock()
	}
	a.flight = nil
	switch {
	case what == wal.Written:
		if why := a.why.Load(); why != nil { // End came while the append was in flight
			_, out = a.finish(why, why, 0, why, out)
			break
		}
		begun, out = a.advance(now, out)
		a.rearm()
	case what == wal.NotWritten && !a.ended():
		out = a.rollBack(now, err, out)
	default:
		over, out = a.end(what, f.state.Revision, err, out)
	}
	a.mu.Unlock()
	a.tellOver(over)
	a.leave(begun, out)
}

// publish makes a durable state the one that reads are served from.
func (a *Actor[C]) publish(s *State) {
	a.durable.Store(s)
	if a.readonly.Load() != nil {
		a.readonly.Store(nil)
	}
	if a.hooks.Published != nil {
		a.hooks.Published(s)
	}
	bytes := s.Tree.Bytes()
	if before := a.bytes.Swap(bytes); a.hooks.Grown != nil && bytes != before {
		a.hooks.Grown(bytes - before)
	}
	if a.hooks.CheckpointDue != nil {
		records, size := a.log.SinceCheckpoint()
		if size >= a.cfg.CheckpointBytes || records >= uint64(a.cfg.CheckpointRecords) {
			a.hooks.CheckpointDue()
		}
	}
}

// leave appends what was begun and releases what may go, without the mutex.
func (a *Actor[C]) leave(begun *flight, out *outcomes[C]) {
	if begun != nil {
		body := begun.body
		begun.body = nil
		a.log.Append(body, begun.state.TimeMS, a.appended)
	}
	if out == nil {
		return
	}
	for i := range out.list {
		out.list[i].command.Release(out.list[i].err)
	}
	clear(out.list)
	out.list = out.list[:0]
	a.pool.Put(out)
	if a.leaving.Add(-1) == 0 && a.flushing.Load() {
		a.mu.Lock()
		a.settle()
		a.mu.Unlock()
	}
}

// release adds a command to what leaves once the mutex is free.
func (a *Actor[C]) release(out *outcomes[C], c C, err error) *outcomes[C] {
	if out == nil {
		if out, _ = a.pool.Get().(*outcomes[C]); out == nil {
			out = new(outcomes[C])
		}
		a.leaving.Add(1)
	}
	out.list = append(out.list, outcome[C]{c, err})
	return out
}

// rearm tells the runtime when the machine next wants a Tick.
func (a *Actor[C]) rearm() {
	if a.hooks.Wake == nil {
		return
	}
	if ms := a.machine.WakeMS(); ms != a.wakeMS {
		a.wakeMS = ms
		a.hooks.Wake(ms)
	}
}

// settle wakes whoever waits for the actor to be idle.
func (a *Actor[C]) settle() {
	if a.idle != nil && a.isIdle() {
		close(a.idle)
		a.idle = nil
		a.flushing.Store(false)
	}
}

// isIdle tells whether nothing is in flight, waits or is being released. Mutex held.
func (a *Actor[C]) isIdle() bool {
	return a.flight == nil && len(a.waiting) == 0 && len(a.queue) == 0 && a.leaving.Load() == 0
}
