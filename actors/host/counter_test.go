package host_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"kvstore/actors/host"
	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest/fault"
)

// The counter machine: named numbers. It is small enough to see through, and has every kind of outcome that matters to a host: a
// change, a read, a condition that fails, a remembered outcome.

type op int

const (
	add      op = iota // add n to name
	get                // answer name's number
	addAbove           // add n if the number is at least n already
	expireAt           // remove name at time n
)

type command struct {
	op   op
	name string
	n    int64
	grow bool
	size int
	till int64
	way  *host.Way
	then func() // called when it is released

	// The outcome.
	value int64
	ok    bool

	mu       sync.Mutex
	released int
	err      error
	seen     int64 // what a reader saw of name at release
	actor    *host.Actor[*command]
	done     chan struct{}
}

func (c *command) Release(err error) {
	if c.then != nil {
		defer c.then()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.released++
	c.err = err
	if c.actor != nil {
		c.seen = number(c.actor.Latest().Tree, c.name)
	}
	if c.released == 1 && c.done != nil {
		close(c.done)
	}
}

func (c *command) Size() int      { return c.size }
func (c *command) Grows() bool    { return c.grow }
func (c *command) Way() *host.Way { return c.way }

func (c *command) Until() int64 { return c.till }

// state returns how often it was released, and with what.
func (c *command) state() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.released, c.err
}

type counter struct {
	tree     *btree.Tree
	revision uint64
	now      int64
	body     []byte
	replies  []host.Gated[*command]
}

func newCounter() *counter {
	m := &counter{}
	m.Restore(new(btree.Tree))
	return m
}

// An item is the revision of its last change, and the number. "!" holds the revision of the machine, "?" what expires when.
func item(t *btree.Tree, name string) (rev uint64, n int64) {
	v, ok := t.Get([]byte(name))
	if !ok {
		return 0, 0
	}
	return binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))
}

func number(t *btree.Tree, name string) int64 { _, n := item(t, name); return n }

func (m *counter) Step(c *command) {
	rev, n := item(m.tree, c.name)
	dep := rev
	switch {
	case c.op == add, c.op == addAbove && n >= c.n:
		m.revision++
		m.effect(c.name, m.revision, n+c.n)
		dep, c.value, c.ok = m.revision, n+c.n, true
	case c.op == expireAt:
		m.revision++
		m.effect("?"+c.name, m.revision, c.n)
		dep, c.ok = m.revision, true
	default:
		c.value, c.ok = n, c.op == get
	}
	m.replies = append(m.replies, host.Gated[*command]{Command: c, Dep: dep})
}

func (m *counter) effect(name string, rev uint64, n int64) {
	m.apply(name, rev, n)
	m.body = append(m.body, byte(len(name)))
	m.body = append(m.body, name...)
	m.body = binary.BigEndian.AppendUint64(m.body, rev)
	m.body = binary.BigEndian.AppendUint64(m.body, uint64(n))
}

func (m *counter) apply(name string, rev uint64, n int64) {
	m.revision = rev
	v := binary.BigEndian.AppendUint64(nil, rev)
	m.tree.Set([]byte(name), binary.BigEndian.AppendUint64(v, uint64(n)))
	m.tree.Set([]byte("!"), binary.BigEndian.AppendUint64(nil, rev))
}

func (m *counter) Tick(now int64) {
	m.now = max(m.now, now)
	if at := m.WakeMS(); at == 0 || at > m.now {
		return
	}
	for k := range m.tree.Clone().Ascend([]byte("?"), []byte("@")) {
		if _, at := item(m.tree, string(k)); at != 0 && at <= m.now {
			m.revision++
			m.effect(string(k), m.revision, 0)
			m.effect(string(k[1:]), m.revision, 0)
		}
	}
}

func (m *counter) Ready() host.Ready[*command] {
	r := host.Ready[*command]{Body: m.body, Head: m.revision, TimeMS: m.now, Replies: m.replies}
	m.body, m.replies = nil, nil
	return r
}

func (m *counter) Replies(dst []host.Gated[*command]) []host.Gated[*command] {
	dst = append(dst, m.replies...)
	m.replies = nil
	return dst
}

func (m *counter) Pending() int      { return len(m.body) }
func (m *counter) Tree() *btree.Tree { return m.tree }

func (m *counter) Replay(body []byte, timeMS int64) error {
	for len(body) > 0 {
		n := int(body[0])
		if len(body) < 17+n {
			return fmt.Errorf("short effect")
		}
		m.apply(string(body[1:1+n]), binary.BigEndian.Uint64(body[1+n:]), int64(binary.BigEndian.Uint64(body[9+n:])))
		body = body[17+n:]
	}
	m.now = max(m.now, timeMS)
	return nil
}

func (m *counter) Restore(t *btree.Tree) {
	m.tree, m.body, m.revision = t, nil, 0
	if v, ok := t.Get([]byte("!")); ok {
		m.revision = binary.BigEndian.Uint64(v)
	}
}

func (m *counter) WakeMS() int64 {
	first := int64(0)
	for k := range m.tree.Ascend([]byte("?"), []byte("@")) {
		if _, at := item(m.tree, string(k)); at != 0 && (first == 0 || at < first) {
			first = at
		}
	}
	return first
}

// bench is an actor on a memory engine whose appends complete when drain is called, and whose clock is moved by hand.
type bench struct {
	t      testing.TB
	engine *memlog.Engine
	faults *fault.Engine
	store  *wal.Store
	clock  *clock
	cfg    host.Config
	hooks  host.Hooks
}

func newBench(t testing.TB, cfg memlog.Config) *bench {
	t.Helper()
	cfg.Manual = true
	engine, err := memlog.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, engine: engine, faults: fault.Wrap(engine), clock: &clock{now: time.UnixMilli(1_000_000)}}
	if b.store, err = wal.NewStore(b.faults, wal.Config{}); err != nil {
		t.Fatal(err)
	}
	b.cfg.Clock = b.clock.source()
	if err := b.store.Create(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return b
}

func (b *bench) open() *host.Actor[*command] {
	b.t.Helper()
	a, err := host.Open(b.t.Context(), b.store, "s", newCounter(), b.cfg, b.hooks, host.OpenOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// do steps one command.
func (b *bench) do(a *host.Actor[*command], c *command) *command {
	b.t.Helper()
	c.actor = a
	if err := a.Do(c); err != nil {
		b.t.Fatalf("Do: %v", err)
	}
	return c
}

// waits fails unless none of the commands was released.
func (b *bench) waits(cs ...*command) {
	b.t.Helper()
	for _, c := range cs {
		if n, err := c.state(); n != 0 {
			b.t.Fatalf("%s %d: released %d times with %v, must wait", c.name, c.n, n, err)
		}
	}
}

// left fails unless each was released exactly once with an error of that kind; 0 = none.
func (b *bench) left(kind kverr.Kind, cs ...*command) {
	b.t.Helper()
	for _, c := range cs {
		n, err := c.state()
		got := kverr.Kind(0)
		if err != nil {
			got = kverr.KindOf(err)
		}
		if n != 1 || got != kind {
			b.t.Fatalf("%s %d: released %d times with %v (%v), want once with kind %v", c.name, c.n, n, err, got, kind)
		}
	}
}

// clock is moved by hand.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*alarm
}

type alarm struct {
	at time.Time
	f  func()
}

func (c *clock) source() host.Clock {
	return host.Clock{
		Now: func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.now
		},
		AfterFunc: func(d time.Duration, f func()) func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			t := &alarm{at: c.now.Add(d), f: f}
			c.timers = append(c.timers, t)
			return func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				was := t.f != nil
				t.f = nil
				return was
			}
		},
	}
}

// advance moves the clock and runs what is due, on this goroutine.
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due []func()
	keep := c.timers[:0]
	for _, t := range c.timers {
		switch {
		case t.f == nil:
		case t.at.After(c.now):
			keep = append(keep, t)
		default:
			due = append(due, t.f)
			t.f = nil
		}
	}
	c.timers = keep
	c.mu.Unlock()
	for _, f := range due {
		f()
	}
}
