package resp

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/services/frontend"
)

// Bounds of a batch: at one of them it is finished before more is taken.
const (
	maxParts  = 1024
	maxStatic = 64 << 10
)

// batch is the requests of a connection that are under way together. Those of one shard go to it in one visit, in order; those that read or write the same
// key as one before and not both only read it, or both only write it, wait for the batch to be finished (see keys).
type batch struct {
	conn     *conn
	requests []pending
	parts    []*part
	count    int // of parts that go to shards
	static   []byte
	keys     *keys
	visits   map[*frontend.Shard]*visit
	order    []*visit
	left     atomic.Int32  // parts under way, and one for who sends
	done     chan struct{} // room for one: left is 0

	turn    atomic.Uint64 // who answers it: see away.go
	sent    atomic.Int64  // when it was left to others, by Server.since
	replied chan struct{} // room for one: somebody else has answered it
	lost    bool          // ... before its outcome was there
}

// pending is one request of a batch.
type pending struct {
	intent       intent
	cmd          *command // nil: the reply is made, in static
	first, parts int
	from, to     int // of static
	late         *kverr.Error
	counted
}

// part is what a request asks of one shard about one key.
type part struct {
	batch   *batch
	query   shard.Query
	cmd     shard.Command
	edit    shard.Edit
	shard   *frontend.Shard
	err     *kverr.Error
	queries [1]*shard.Query
	cmds    [1]*shard.Command
	done    atomic.Bool
}

// visit is what goes to one shard.
type visit struct {
	shard   *frontend.Shard
	queries []*shard.Query
	parts   []*part // commands
	cmds    []*shard.Command
	big     bool // values must be stored first
}

var partPool = sync.Pool{New: func() any {
	p := &part{}
	p.query.Done = func(_ *shard.Query, err error) { p.finish(err) }
	p.cmd.Done = func(_ *shard.Command, err error) { p.finish(err) }
	p.queries[0], p.cmds[0] = &p.query, &p.cmd
	return p
}}

// finish takes a part that has its outcome, on the path of all others of the shard.
func (p *part) finish(err error) {
	switch {
	case err != nil:
		p.err = kverr.From(err)
	case p.query.Op != shard.QueryNone:
		p.err = p.query.Answer.Err
	default:
		p.err = p.cmd.Result.Err
	}
	b := p.batch
	p.done.Store(true)
	if b.left.Add(-1) == 0 {
		b.complete()
	}
}

func (p *part) free() {
	if p.query.Op != shard.QueryNone {
		p.query = shard.Query{Done: p.query.Done}
	}
	if p.cmd.Op != shard.OpNone {
		if p.cmd.Edit != nil {
			p.edit = shard.Edit{}
		}
		p.cmd = shard.Command{Done: p.cmd.Done}
	}
	p.batch, p.shard, p.err = nil, nil, nil
	p.done.Store(false)
	partPool.Put(p)
}

func newBatch(c *conn) *batch {
	b := &batch{conn: c, done: make(chan struct{}, 1), replied: make(chan struct{}, 1), visits: make(map[*frontend.Shard]*visit)}
	b.left.Store(1)
	return b
}

func (b *batch) full() bool { return len(b.parts) >= maxParts || len(b.static) >= maxStatic }

// said ends a reply that was put into static.
func (b *batch) said() {
	from := 0
	if n := len(b.requests); n > 0 {
		from = b.requests[n-1].to
	}
	b.requests = append(b.requests, pending{from: from, to: len(b.static)})
}

// add begins a request.
func (b *batch) add(cmd *command, in *intent) *pending {
	b.requests = append(b.requests, pending{cmd: cmd, intent: *in, first: len(b.parts), from: len(b.static), to: len(b.static)})
	return &b.requests[len(b.requests)-1]
}

// part adds a part to the last request.
func (b *batch) part(q *pending, ns *frontend.Namespace, key []byte) (*part, uint16) {
	p := partPool.Get().(*part)
	p.batch = b
	slot, sh := ns.Slot(key)
	p.shard = sh
	q.parts++
	b.parts = append(b.parts, p)
	b.count++
	return p, slot
}

// reset makes room for the next batch.
func (b *batch) reset() {
	for i, p := range b.parts {
		p.free()
		b.parts[i] = nil
	}
	clear(b.requests)
	b.requests, b.parts, b.static, b.count = b.requests[:0], b.parts[:0], b.static[:0], 0
	if cap(b.static) > 4*maxStatic {
		b.static = nil
	}
	if cap(b.parts) > maxParts {
		b.requests, b.parts = nil, nil
	}
	if b.keys != nil {
		b.keys.forget()
	}
}

// visit is the visit to a shard.
func (b *batch) visit(sh *frontend.Shard) *visit {
	v := b.visits[sh]
	if v == nil {
		if len(b.visits) >= 4096 { // a connection that has seen many keyspaces come and go
			clear(b.visits)
		}
		v = &visit{shard: sh}
		b.visits[sh] = v
	}
	if len(v.queries) == 0 && len(v.parts) == 0 {
		b.order = append(b.order, v)
	}
	return v
}

// send hands all parts to their shards: reads first, none of which is of a key that is written here.
func (b *batch) send(c *conn) {
	b.left.Add(int32(b.count))
	if c.s.tracer != nil {
		b.follow()
	}
	shards := c.s.face.Shards()
	if b.count == 1 {
		p := b.parts[0]
		if p.query.Op != shard.QueryNone {
			shards.Read(c.ctx, p.shard.ID, p.queries[:]...)
			return
		}
		if !p.long(c) {
			shards.Do(c.ctx, p.shard.ID, p.cmds[:]...)
			return
		}
	}
	for _, p := range b.parts {
		v := b.visit(p.shard)
		if p.query.Op != shard.QueryNone {
			v.queries = append(v.queries, &p.query)
		} else {
			v.parts = append(v.parts, p)
			v.big = v.big || p.long(c)
		}
	}
	for _, v := range b.order {
		if len(v.queries) > 0 {
			shards.Read(c.ctx, v.shard.ID, v.queries...)
			clear(v.queries)
			v.queries = v.queries[:0]
		}
	}
	var long sync.WaitGroup
	for _, v := range b.order {
		if v.big {
			long.Go(func() { v.do(c) })
		} else if len(v.parts) > 0 {
			v.do(c)
		}
	}
	long.Wait()
	b.order = b.order[:0]
}

// long tells whether a value must be stored apart first.
func (p *part) long(c *conn) bool {
	return p.cmd.Op == shard.OpPut && len(p.cmd.Put.Value.Inline) > c.s.face.InlineLimit()
}

// do hands the commands of a visit to the shard, once their values are stored.
func (v *visit) do(c *conn) {
	var failed *kverr.Error
	if v.big {
		puts := make([]*shard.Put, 0, len(v.parts))
		for _, p := range v.parts {
			if p.long(c) {
				puts = append(puts, &p.cmd.Put)
			}
		}
		failed = c.s.face.StoreApart(c.ctx, v.shard, puts...)
	}
	for _, p := range v.parts {
		if failed != nil && p.long(c) {
			p.finish(failed)
		} else {
			v.cmds = append(v.cmds, &p.cmd)
		}
	}
	if len(v.cmds) > 0 {
		c.s.face.Shards().Do(c.ctx, v.shard.ID, v.cmds...)
	}
	clear(v.parts)
	clear(v.cmds)
	v.parts, v.cmds, v.big = v.parts[:0], v.cmds[:0], false
}

// wait waits for all parts. It is false when not all came back in time.
func (b *batch) wait(c *conn) bool {
	if b.left.Add(-1) == 0 || b.await(c) {
		b.came()
		return true
	}
	return false
}

// came says that all outcomes are there, which nobody needs to wait for.
func (b *batch) came() {
	b.left.Store(1)
	b.count = 0
}

// await waits for the last outcome. It is false when that does not come in time.
func (b *batch) await(c *conn) bool {
	if c.timer == nil {
		c.timer = time.NewTimer(c.s.cfg.OpTimeout)
	} else {
		c.timer.Reset(c.s.cfg.OpTimeout)
	}
	select {
	case <-b.done:
		c.timer.Stop()
		return true
	case <-c.timer.C:
	case <-c.s.ctx.Done():
	}
	return false
}

// use is how a request uses a key.
type use uint8

const (
	reads use = 1 << iota
	writes
	alone // nothing else of the batch may touch the key
)

// keys are the keys that a batch uses, by hash: a set that may hold what is not in it, for which a batch is finished in vain.
type keys struct {
	slots [4096]keySlot
	turn  uint32
	used  int
}

type keySlot struct {
	hash uint64
	turn uint32
	use  use
}

func (k *keys) forget() {
	k.turn++
	k.used = 0
	if k.turn == 0 {
		clear(k.slots[:])
		k.turn = 1
	}
}

// find is the slot of a key, or the free one where it would be.
func (k *keys) find(key []byte) *keySlot {
	h := xxh3.Hash(key)
	for i := h; ; i++ {
		s := &k.slots[i%uint64(len(k.slots))]
		if s.turn != k.turn {
			*s = keySlot{hash: h, turn: k.turn}
			k.used++
			return s
		}
		if s.hash == h {
			return s
		}
	}
}

// meets tells whether a key may not be used so beside what the batch does already.
func (k *keys) meets(key []byte, as use) bool {
	if k.used >= len(k.slots)/2 {
		return true
	}
	u := k.find(key).use
	switch as {
	case reads:
		return u&^reads != 0
	case writes:
		return u&^writes != 0
	}
	return u != 0
}

// claim finishes the batch first if the keys of a request may not go beside it. It is false when the connection is over.
func (c *conn) claim(list [][]byte, step int, as use) bool {
	b := c.batch
	if len(b.requests) == 0 && !c.r.buffered() || len(list) > maxParts {
		return len(b.requests) == 0 || c.finish() // alone in its batch: full ends that
	}
	if b.keys == nil {
		b.keys = &keys{turn: 1}
	}
	for i := 0; i < len(list); i += step {
		if len(b.requests) > 0 && b.keys.meets(list[i], as) {
			if !c.finish() {
				return false
			}
			break
		}
	}
	for i := 0; i < len(list); i += step {
		b = c.batch
		if b.keys == nil {
			b.keys = &keys{turn: 1}
		}
		b.keys.find(list[i]).use |= as
	}
	return true
}
