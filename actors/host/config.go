package host

import (
	"errors"
	"fmt"
	"time"

	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// Defaults and limits of Config.
const (
	DefaultMaxBody           = 4 << 20
	DefaultMaxCommands       = 64 << 10
	DefaultMaxQueuedBytes    = 32 << 20
	DefaultMaxWait           = 500 * time.Millisecond
	DefaultPatience          = 3 * time.Second
	DefaultCheckpointBytes   = 24 << 20
	DefaultCheckpointRecords = 1 << 20
	DefaultConfirmTimeout    = 5 * time.Second
)

// Clock is where an actor and its runtime take time from. The zero value is the real clock (or that of a synctest bubble).
type Clock struct {
	// Now tells the time; it must be cheap.
	Now func() time.Time
	// AfterFunc calls f in its own goroutine once d has passed; stop tells whether it prevented the call.
	AfterFunc func(d time.Duration, f func()) (stop func() bool)
}

// EnsureDefaults fills in the real clock.
func (c *Clock) EnsureDefaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AfterFunc == nil {
		c.AfterFunc = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
}

// Config bounds one actor. The zero value of each field takes its default.
type Config struct {
	// Clock is the time source.
	Clock Clock
	// MaxBody is how many bytes of effects gather for one record before further commands queue unstepped; a body is larger
	// than this by at most one command's effects. Default 4 MiB.
	MaxBody int
	// MaxCommands bounds the commands that were taken and not released yet; beyond it commands are released with
	// kverr.Overloaded. Default 65,536.
	MaxCommands int
	// MaxQueuedBytes bounds the bytes of commands that queue unstepped; beyond it likewise. Default 32 MiB.
	MaxQueuedBytes int
	// MaxWait bounds what waits for a log that does not keep up with what comes, by how long the log takes for it: beyond it commands are
	// released with kverr.Overloaded at once. Default 500 ms.
	MaxWait time.Duration
	// Patience is how long an append, or a confirmation, may take before others fail at once instead of waiting for it too: kverr.Unavailable. It
	// goes on; while the next ones fail too, whoever begins one waits for it alone; and once one has succeeded all is well again. Default 3 s.
	Patience time.Duration
	// CheckpointBytes of log since the last checkpoint make one due. More means fewer bytes written by checkpoints and more to replay
	// at the next start. Default 24 MiB: of four busy shards, about a million small writes together.
	CheckpointBytes int64
	// CheckpointRecords since the last checkpoint make one due. Default 1,048,576.
	CheckpointRecords int64
	// ConfirmTimeout bounds one confirmation of the epoch with the engine. Default 5 s.
	ConfirmTimeout time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	c.Clock.EnsureDefaults()
	setDefault(&c.MaxBody, DefaultMaxBody)
	setDefault(&c.MaxCommands, DefaultMaxCommands)
	setDefault(&c.MaxQueuedBytes, DefaultMaxQueuedBytes)
	setDefault(&c.MaxWait, DefaultMaxWait)
	setDefault(&c.Patience, DefaultPatience)
	setDefault(&c.CheckpointBytes, DefaultCheckpointBytes)
	setDefault(&c.CheckpointRecords, DefaultCheckpointRecords)
	setDefault(&c.ConfirmTimeout, DefaultConfirmTimeout)
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.MaxBody >= 1<<10, "MaxBody is %d: at least 1024", c.MaxBody)
	check(c.MaxCommands >= 1, "MaxCommands is %d: at least 1", c.MaxCommands)
	check(c.MaxQueuedBytes >= 1, "MaxQueuedBytes is %d: at least 1", c.MaxQueuedBytes)
	check(c.MaxWait > 0, "MaxWait is %v: more than 0", c.MaxWait)
	check(c.Patience > 0, "Patience is %v: more than 0", c.Patience)
	check(c.CheckpointBytes >= 1, "CheckpointBytes is %d: at least 1", c.CheckpointBytes)
	check(c.CheckpointRecords >= 1, "CheckpointRecords is %d: at least 1", c.CheckpointRecords)
	check(c.ConfirmTimeout > 0, "ConfirmTimeout is %v: more than 0", c.ConfirmTimeout)
	return errors.Join(faults...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Hooks is what an actor tells its runtime. All but Over are called with the actor's mutex held: they must not call the
// actor, and must not block. Nil ones are not called.
type Hooks struct {
	// Wake asks for Actor.Tick at a time in milliseconds since the Unix epoch; 0 withdraws the wish.
	Wake func(ms int64)
	// CheckpointDue says that enough has been logged since the last checkpoint; it may come more than once.
	CheckpointDue func()
	// Published tells of every new durable state, before the outcomes that it lets go.
	Published func(s *State)
	// Grown tells by how many bytes (by the tree's own count) the durable state has changed since the last call.
	Grown func(delta int64)
	// Starved tells whether the runtime as a whole is at its memory budget: then commands that grow the state are released
	// with kverr.Exhausted, others pass. (A machine keeps its own shard's budget itself.) It is asked for each command that
	// grows the state.
	Starved func() bool
	// Queue takes room for the bytes of a command that must queue, of what the runtime has for all its actors, or gives it back when they are
	// negative. False refuses: the command is released with kverr.Overloaded.
	Queue func(bytes int) bool
	// Committed tells of every append that has ended.
	Committed func(c Committed)
	// Jumped tells that the clock was moved forward by more than 10 s (D12).
	Jumped func(by time.Duration)
	// Over says that the actor's ownership ended, and why. It is called once, without the mutex.
	Over func(why *kverr.Error)
}

// Committed is an append that has ended.
type Committed struct {
	Outcome  wal.Outcome
	Took     time.Duration // from its beginning
	Commands int           // stepped since the one before: at most those whose effects it holds
	Bytes    int           // of the record's body
	Waiting  int           // commands that have no outcome yet, or may not have it, behind this append
}
