package host

import (
	"kvstore/components/btree"
)

// Command is one request to a machine. The machine fills in its outcome; the host releases it.
type Command interface {
	// Release hands the command back to whoever waits for it, exactly once. With a nil error the outcome that the machine
	// filled in may leave: everything it depended on is durable. Otherwise err (a *kverr.Error) tells whether the command was
	// not applied or may have been. It must not block: it runs on the path of every other command of the shard.
	Release(err error)
	// Size is an estimate of the bytes that the command holds. It is asked only when the command must queue.
	Size() int
	// Grows tells whether the command may make the state larger. Such commands are refused at the memory budget; others,
	// above all deletes, always pass.
	Grows() bool
	// Until is when whoever waits for the command stops waiting, in milliseconds since the Unix epoch; 0 = not known. It is not stepped
	// after that.
	Until() int64
	// Way is who follows the command; nil for almost all.
	Way() *Way
}

// Gated is a command with an outcome that may leave once revision Dep is durable.
type Gated[C Command] struct {
	Command C
	Dep     uint64 // highest revision that the outcome depended on
}

// Ready is what a machine has to say since it was last asked (D2). The host keeps one order: append Body, then release
// Replies, then publish.
type Ready[C Command] struct {
	// Body holds the effects to append as one record; empty when nothing changed. The host owns it.
	Body []byte
	// Head is the machine's revision after those effects.
	Head uint64
	// TimeMS is shard time for the record's header.
	TimeMS int64
	// Replies are outcomes, in any order, each with what it depends on.
	Replies []Gated[C]
}

// Machine is the logic of an actor: a pure state machine whose state is one copy-on-write tree. It reads no clock and
// does no I/O; the host calls it from one goroutine at a time. Two machines that replay the same bodies hold the same tree.
type Machine[C Command] interface {
	// Step takes one command. Its outcome comes with this Ready or, if the machine makes it wait, with a later one.
	Step(c C)
	// Tick tells the time in milliseconds since the Unix epoch, before the Steps that happen at it. The machine may expire
	// things.
	Tick(nowMS int64)
	// Ready takes what has gathered since the last call.
	Ready() Ready[C]
	// Replies takes the outcomes alone, appended to dst; effects stay for the next Ready. It lets an outcome that depends
	// on durable state alone leave while an append is in flight.
	Replies(dst []Gated[C]) []Gated[C]
	// Pending is how many bytes Body would have now. The host stops stepping at a bound.
	Pending() int
	// Replay applies one durable body, in order, while the actor is activated.
	Replay(body []byte, timeMS int64) error
	// Tree is all durable state. The host clones it (O(1)) when a Ready is taken; once that Ready is durable the clone serves reads
	// and checkpoints.
	Tree() *btree.Tree
	// Restore replaces all state by a tree: on activation (before Replay), and to roll back to the last durable state when an append
	// is known to have written nothing. Volatile state (leases, touches) that it can keep, it keeps.
	Restore(t *btree.Tree)
	// WakeMS is when the machine next wants a Tick without a command (an expiry), 0 = never.
	WakeMS() int64
}
