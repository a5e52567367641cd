// Package shard is the logic of a shard: keys with values, versions, expiry and exactly-once writes, and the blocks of the prompt
// cache, as a pure state machine over one copy-on-write tree. Machine takes commands and gives effects to make durable, with
// outcomes that leave when what they depend on is; View answers reads from the last durable state. DESIGN.md has the formats.
//
//	m := shard.New(shard.Config{})
//	m.Tick(nowMS)
//	m.Step(&shard.Command{Op: shard.OpPut, Namespace: 1, Put: shard.Put{Key: []byte("k")}})
//	r := m.Ready() // append r.Body, then release r.Replies, then publish shard.NewView(m.Tree().Clone())
//
// It is not a store: it reads no clock, does no I/O, and knows nothing of logs, hosts' loops or the network. What users send is
// validated before it comes here.
package shard

import (
	"fmt"

	"kvstore/actors/host"
	"kvstore/components/btree"
	"kvstore/components/key"
	"kvstore/components/kverr"
)

var _ host.Machine[*Command] = (*Machine)(nil)

// Bounds that are part of the protocol.
const (
	maxNotAfterAheadMS = key.MaxNotAfterAheadMS // D11
	maxSlot            = 4095                   // D1
)

// Machine is the logic of a shard (see host.Machine): KV entries and prompt blocks, in one tree. One goroutine at a time.
type Machine struct {
	cfg  Config
	tree *btree.Tree
	meta meta // as of now; in the tree, as of the last sealed body
	now  int64

	body    []byte // effects since the last Ready
	replies []host.Gated[*Command]

	removedAt   uint64 // revision of the last removal: what the absence of a key depends on
	pinnedAt    uint64 // revision of the last pin of a block: what a pin, or that there is none, depends on
	nextExpiry  int64  // first expiry in the index; 0 = none, unknownExpiry = look
	remembered  int    // outcomes remembered in this body
	sweepAsked  int    // what this body's Sweep effects ask for
	sweepAt     int64  // no Sweep effect before, so that ticks do not follow each other too closely
	pending     chunk  // history of this body
	counters    map[NamespaceID]*counters
	sealing     []NamespaceID            // namespaces whose counters changed in this body
	dropped     map[uint32]*droppedBlock // as in the tree, by block
	lastBody    int                      // length of the last body, to size the next
	lastReplies int

	// Room that is used again and again. Each is good until the next call that uses it; idKey until the step's end.
	payload, key, key2, item, aside, idKey []byte
	due                                    [][]byte

	prompt promptState
}

const unknownExpiry = -1

// New makes a machine with an empty tree. The config must be valid.
func New(cfg Config) *Machine {
	m := &Machine{cfg: cfg}
	m.cfg.EnsureDefaults()
	m.counters = make(map[NamespaceID]*counters)
	m.Restore(new(btree.Tree))
	return m
}

// Step takes one command and answers it with the next Ready or Replies. Whatever it is given, it does not panic.
func (m *Machine) Step(c *Command) {
	c.Result = Result{}
	switch c.Op {
	case OpPut:
		m.stepPut(c)
	case OpDelete:
		m.stepDelete(c)
	case OpTxn:
		m.stepTxn(c)
	case OpEdit:
		m.stepEdit(c)
	case OpDropNamespace:
		m.stepDrop(c)
	case OpRelocate:
		m.stepRelocate(c)
	case OpForget:
		m.stepForget(c)
	case OpLookup, OpIndex, OpRelease, OpTouch, OpPin, OpDeleteBlocks, OpClear, OpUnindex:
		if c.Prompt == nil {
			m.fail(c, invalid("prompt", "a prompt operation has no arguments"), 0)
			return
		}
		m.stepPrompt(c)
	default:
		m.fail(c, invalid("op", fmt.Sprintf("operation %d is not known to this release", c.Op)), 0)
	}
}

// Tick moves shard time forward and expires at most Config.TickBudget items.
func (m *Machine) Tick(nowMS int64) {
	m.now = max(m.now, nowMS)
	m.expire(m.cfg.TickBudget)
	m.tickPrompt(m.cfg.TickBudget)
	m.sweepIdle()
}

// Ready seals the body: what is kept per body (history chunk, counters, meta) goes into the tree.
func (m *Machine) Ready() host.Ready[*Command] {
	r := host.Ready[*Command]{Replies: m.replies}
	m.lastReplies = max(len(m.replies), m.lastReplies/2)
	m.replies = nil
	if len(m.body) > 0 {
		m.ridePrompt()
		m.seal(m.now)
		r.Body = m.body
		m.lastBody = max(len(m.body), m.lastBody/2)
		m.body = nil
	}
	r.Head = m.meta.revision
	r.TimeMS = m.now
	return r
}

// Replies takes the outcomes alone.
func (m *Machine) Replies(dst []host.Gated[*Command]) []host.Gated[*Command] {
	dst = append(dst, m.replies...)
	clear(m.replies)
	m.replies = m.replies[:0]
	return dst
}

// Pending is the length of the body so far.
func (m *Machine) Pending() int { return len(m.body) }

// Tree is all durable state, once Ready was taken.
func (m *Machine) Tree() *btree.Tree { return m.tree }

// Restore replaces the tree, which the machine then owns. Effects that no Ready took are dropped; outcomes that no Ready
// took are answered as not applied.
func (m *Machine) Restore(t *btree.Tree) {
	m.tree = t
	m.meta.load(t)
	if planted(bugRevisionReused) && m.meta.revision > 0 {
		m.meta.revision--
	}
	m.now = max(m.now, m.meta.timeMS)
	m.body = nil
	m.removedAt, m.pinnedAt = 0, 0
	m.nextExpiry = unknownExpiry
	m.remembered, m.sweepAsked, m.sweepAt = 0, 0, 0
	m.pending.reset()
	if !planted(bugCountersSurvive) {
		m.counters = make(map[NamespaceID]*counters)
		m.sealing = nil
	}
	for i := range m.replies {
		m.replies[i].Dep = 0
		m.replies[i].Command.Result = Result{Err: &kverr.Error{Kind: kverr.Unavailable, Op: "commit", Message: "not applied: its record could not be written"}}
	}
	m.restoreDropped()
	m.restorePrompt()
}

// WakeMS is when the next item expires, or the sweep of old outcomes has something to do; 0 = never.
func (m *Machine) WakeMS() int64 {
	return earliest(m.wakeExpiry(), earliest(m.wakePrompt(), m.wakeSweep()))
}

func earliest(a, b int64) int64 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// newRevision begins the next revision; the caller logs effects at it.
func (m *Machine) newRevision() uint64 {
	m.meta.revision++
	return m.meta.revision
}

// seal ends a body, live and in replay alike, so that the tree after it is a function of the tree before it, the body and
// its time.
func (m *Machine) seal(timeMS int64) {
	m.sealPrompt()
	m.sealHistory()
	m.sweep(sweepPerOutcome*m.remembered+m.sweepAsked, timeMS)
	m.remembered, m.sweepAsked = 0, 0
	m.sealCounters()
	m.meta.timeMS = max(m.meta.timeMS, timeMS)
	m.item = m.meta.append(m.item[:0])
	m.tree.Set(metaKey, m.item)
}

// reply hands a command back with the outcome in c.Result; it leaves once revision dep is durable.
func (m *Machine) reply(c *Command, dep uint64) {
	if m.replies == nil {
		m.replies = make([]host.Gated[*Command], 0, max(m.lastReplies, 1))
	}
	m.replies = append(m.replies, host.Gated[*Command]{Command: c, Dep: dep})
}

// fail is reply with an error.
func (m *Machine) fail(c *Command, err *kverr.Error, dep uint64) {
	c.Result = Result{Err: err}
	m.reply(c, dep)
}

// full tells whether growth is refused. While it is, deletes and expiry still pass.
func (m *Machine) full() bool {
	return m.cfg.MemoryBudget > 0 && m.tree.Bytes() >= m.cfg.MemoryBudget
}

// overfull: even remembering that nothing happened is refused.
func (m *Machine) overfull() bool {
	return m.cfg.MemoryBudget > 0 && m.tree.Bytes() >= m.cfg.MemoryBudget+m.cfg.MemoryBudget/8
}

func (m *Machine) exhausted() *kverr.Error {
	return &kverr.Error{
		Kind: kverr.Exhausted, Op: "write", Field: "memory_budget", RetryAfterMS: 1000,
		Message: fmt.Sprintf("the shard is at its memory budget of %d bytes; deletes still pass", m.cfg.MemoryBudget),
	}
}

func invalid(field, message string) *kverr.Error {
	return &kverr.Error{Kind: kverr.InvalidArgument, Op: "step", Field: field, Message: message}
}
