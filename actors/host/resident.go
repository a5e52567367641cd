package host

import (
	"context"

	"kvstore/components/kverr"
	"kvstore/components/wal"
)

// Resident is an actor that is active in a runtime, whatever its kind: an Actor, which has all but Busy, together with what its
// kind keeps beside it. The runtime decides when it is opened, checkpointed, put to sleep and given up; what is asked of it is between
// it and its callers.
type Resident interface {
	// Err tells why the actor is over; nil while it lives.
	Err() *kverr.Error
	// ReadOnly tells why the last append wrote nothing; nil when it wrote, or when there was none for a minute since.
	ReadOnly() *kverr.Error
	// Log returns the actor's log.
	Log() *wal.Log
	// Latest returns the last durable state as it is known here.
	Latest() *State
	// CheckpointState stores a state that Latest gave a moment ago.
	CheckpointState(ctx context.Context, s *State) (wal.CheckpointStats, error)
	// Tick tells the time when no command comes.
	Tick()
	// WakeMS is when the actor next wants a Tick, in milliseconds since the Unix epoch; 0 = never.
	WakeMS() int64
	// Busy tells that something goes on which an idle actor's sleep would cut off.
	Busy() bool
	// Drain takes no more commands and waits until every one that was taken is released; Resume takes commands again.
	Drain(ctx context.Context) error
	Resume() bool
	// End ends the ownership, and all that the actor runs or holds: see Actor.End.
	End(ctx context.Context, yield bool) error
}

// Opening is what a runtime opens an actor with.
type Opening struct {
	Store   *wal.Store
	ID      string // of the actor, its log and its manifest
	Config  Config
	Hooks   Hooks
	Options OpenOptions
}

// Opener takes an actor of its kind over and runs it, with Open. It is what makes a kind of actors known to a runtime.
type Opener func(ctx context.Context, o Opening) (Resident, error)
