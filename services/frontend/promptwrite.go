package frontend

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

const (
	// maxGathered bounds the bytes of the blocks of one Write that wait to be stored together.
	maxGathered = 4 << 20
	// maxGatheredBlocks bounds their number.
	maxGatheredBlocks = 1000
	// maxStoresAtOnce bounds Config.StoresAtOnce.
	maxStoresAtOnce = 1 << 16
	// storePatience is how long a Write waits for its turn to store. An engine that stands still, or a disk that takes long to sync, holds nobody
	// else up for longer.
	storePatience = 100 * time.Millisecond
)

// Write takes blocks off the stream. Those of up to a chunk are gathered and stored together, with one command for each
// shard; longer ones go straight into an object. Blocks that are there already are not stored again, not even for a moment.
func (p *promptService) Write(stream grpc.ClientStreamingServer[kvv1.WriteRequest, kvv1.WriteResponse]) error {
	first, rerr := stream.Recv()
	if rerr != nil {
		if errors.Is(rerr, io.EOF) {
			return kverr.Invalid("head", "is missing; the first message must have the head")
		}
		return rerr
	}
	head := first.GetHead()
	if head == nil {
		return kverr.Invalid("head", "is missing; the first message must have the head")
	}
	ctx := stream.Context()
	sc, err := p.promptScope(ctx, head.Keyspace, head.Namespace, head.Scope)
	if err != nil {
		return within("head", err)
	}
	ttl := head.TtlMs
	switch {
	case ttl < 0 || ttl > maxTTLMS:
		return kverr.Invalid("head.ttl_ms", "is %d, must be 0 to %d", ttl, maxTTLMS)
	case ttl == 0:
		ttl = sc.ns.DefaultTTLMS
	}
	w := &blockWriter{service: p, stream: stream, ctx: ctx, scope: &sc, ttlMS: ttl, latest: make(map[*Shard]uint64)}
	if err := w.run(first); err != nil {
		return err
	}
	return stream.SendAndClose(&kvv1.WriteResponse{Header: p.headerOf(sc.ns, w.latest), Results: w.results})
}

// blockWriter is one Write on its way.
type blockWriter struct {
	service *promptService
	stream  grpc.ClientStreamingServer[kvv1.WriteRequest, kvv1.WriteResponse]
	ctx     context.Context
	scope   *promptScope
	ttlMS   int64

	results []*kvv1.WriteResponse_Result
	latest  map[*Shard]uint64

	gathered []gatheredBlock
	bytes    int64

	next *kvv1.WriteRequest // received, not taken yet
}

// gatheredBlock is a whole block that waits to be stored.
type gatheredBlock struct {
	put   shard.BlockPut
	bytes []byte
	shard *Shard
	at    int // its result
}

func (w *blockWriter) run(first *kvv1.WriteRequest) error {
	if first.Header == nil && len(first.Chunk) > 0 {
		return kverr.Invalid("chunk", "comes before the header of a block")
	}
	w.next = first
	for {
		m, err := w.receive()
		if errors.Is(err, io.EOF) {
			return w.flush()
		}
		if err != nil {
			return err
		}
		if m.Header == nil {
			if len(m.Chunk) > 0 {
				return kverr.Invalid("chunk", "brings %d bytes more than header.size of block %d", len(m.Chunk), len(w.results)-1)
			}
			continue
		}
		if err := w.block(m); err != nil {
			return err
		}
	}
}

// receive takes the next message; the chunk in it is the caller's.
func (w *blockWriter) receive() (*kvv1.WriteRequest, error) {
	if m := w.next; m != nil {
		w.next = nil
		return m, nil
	}
	m, err := w.stream.Recv()
	switch {
	case err != nil:
		return nil, err
	case m.Head != nil:
		return nil, kverr.Invalid("head", "comes again; it belongs to the first message alone")
	case len(m.Chunk) > chunkBytes:
		return nil, kverr.TooBig("chunk", len(m.Chunk), chunkBytes, "bytes")
	}
	return m, nil
}

// block takes one block off the stream, beginning with the message that has its header.
func (w *blockWriter) block(m *kvv1.WriteRequest) error {
	h := m.Header
	k, kerr := checkRef("header.block.id", h.Block)
	switch {
	case kerr != nil:
		return kerr
	case len(w.results) == key.MaxLookup:
		return kverr.TooBig("header", len(w.results)+1, key.MaxLookup, "blocks of one Write")
	case len(h.Parent) > key.MaxBlockID:
		return kverr.TooBig("header.parent", len(h.Parent), key.MaxBlockID, "bytes")
	case h.Size < 0:
		return kverr.Invalid("header.size", "is %d, must not be negative", h.Size)
	case h.Size > w.service.cfg.MaxBlockBytes:
		return kverr.TooBig("header.size", h.Size, w.service.cfg.MaxBlockBytes, "bytes")
	case len(m.Chunk) > chunkBytes:
		return kverr.TooBig("chunk", len(m.Chunk), chunkBytes, "bytes")
	}
	b := gatheredBlock{
		put:   shard.BlockPut{Block: k, Parent: h.Parent, Size: h.Size, Checksum: h.Checksum, TTLMS: w.ttlMS},
		shard: w.scope.owner(&k), at: len(w.results),
	}
	b.put.Block = k
	w.results = append(w.results, &kvv1.WriteResponse_Result{})
	in := &blockChunks{w: w, rest: m.Chunk, left: h.Size, block: b.at}
	if int64(len(m.Chunk)) > h.Size {
		return in.tooMany()
	}
	if h.Size > chunkBytes {
		return w.large(&b, in)
	}
	if int64(len(m.Chunk)) == h.Size {
		b.bytes = m.Chunk // the whole block in one message: no copy
	} else {
		b.bytes = make([]byte, h.Size)
		if _, err := io.ReadFull(in, b.bytes); err != nil {
			return in.fault(err)
		}
	}
	b.put.Checksum = xxh3.Hash(b.bytes)
	if h.Checksum != 0 && h.Checksum != b.put.Checksum {
		w.failed(b.at, wrongBlock(h.Checksum, b.put.Checksum))
		return nil
	}
	w.gathered = append(w.gathered, b)
	if w.bytes += h.Size; w.bytes >= maxGathered || len(w.gathered) >= maxGatheredBlocks {
		return w.flush()
	}
	return nil
}

func wrongBlock(want, got uint64) *kverr.Error {
	return kverr.Invalid("header.checksum", "is %016x, but the bytes received have %016x", want, got)
}

func (w *blockWriter) failed(at int, err *kverr.Error) {
	w.results[at].Outcome = &kvv1.WriteResponse_Result_Error{Error: w.service.item("Write", err)}
}

func (w *blockWriter) done(at int, stored bool) {
	w.results[at].Outcome = &kvv1.WriteResponse_Result_Stored{Stored: stored}
}

// flush stores what was gathered, when its turn comes.
func (w *blockWriter) flush() error {
	todo := w.gathered
	w.gathered, w.bytes = nil, 0
	if len(todo) == 0 {
		return nil
	}
	leave, gone := w.service.storeTurn(w.ctx)
	if gone != nil {
		return gone
	}
	defer leave()
	// A block that is there is only used. If it went meanwhile, it is stored after all: once, since the second round does not
	// ask.
	for round := 0; len(todo) > 0 && round < 2; round++ {
		var err error
		if todo, err = w.store(todo, round == 0); err != nil {
			return err
		}
	}
	return nil
}

// storeTurn waits until fewer than StoresAtOnce store, or for storePatience. Turns are taken in the order of coming; leave ends one.
//
// When 32 callers of a replay all stored at once, one sync ended for all of them, and their next lookups waited for each other: at their median
// 3.2 ms, with four at a time 1.3 (tests/load/REPORT.md).
func (s *Server) storeTurn(ctx context.Context) (leave func(), gone *kverr.Error) {
	if s.storing == nil {
		return func() {}, nil
	}
	leave = func() { <-s.storing }
	select {
	case s.storing <- struct{}{}:
		return leave, nil
	default: // only who waits needs a timer
	}
	patience := time.NewTimer(storePatience)
	defer patience.Stop()
	select {
	case s.storing <- struct{}{}:
		return leave, nil
	case <-patience.C:
		return func() {}, nil
	case <-ctx.Done():
		return nil, gaveUp(ctx)
	}
}

// store stores blocks and returns those that were there when asked for and not any more when used.
func (w *blockWriter) store(blocks []gatheredBlock, ask bool) (again []gatheredBlock, err error) {
	var a *asked
	if ask {
		keys := make([]shard.BlockKey, len(blocks))
		for i := range blocks {
			keys[i] = blocks[i].put.Block
		}
		var aerr *kverr.Error
		if a, aerr = w.service.ask(w.ctx, w.scope, shard.QueryHas, keys, false); aerr != nil {
			return nil, aerr
		}
	}
	type part struct {
		touch, index     *shard.Command
		touched, indexed []gatheredBlock
	}
	parts := make([]part, len(w.scope.ns.keyspace.Shards))
	for i, b := range blocks {
		p := &parts[b.shard.Number]
		there := false
		if a != nil {
			var aerr *kverr.Error
			if _, there, aerr = a.find(i); aerr != nil {
				w.failed(b.at, aerr)
				continue
			}
		}
		if there {
			p.touched = append(p.touched, b)
		} else {
			p.indexed = append(p.indexed, b)
		}
	}
	// Values are stored at all shards at once: each waits for its object to be durable.
	var values sync.WaitGroup
	for n := range parts {
		if p := &parts[n]; len(p.indexed) > 0 {
			values.Go(func() { p.index = w.indexCommand(w.scope.ns.keyspace.Shards[n], p.indexed) })
		}
	}
	values.Wait()
	groups := make(map[string][]*shard.Command)
	for n := range parts {
		p, sh := &parts[n], w.scope.ns.keyspace.Shards[n]
		if len(p.touched) > 0 {
			p.touch = w.scope.command(shard.OpTouch, sh)
			for _, b := range p.touched {
				p.touch.Prompt.Blocks = append(p.touch.Prompt.Blocks, b.put.Block)
			}
			groups[sh.ID] = append(groups[sh.ID], p.touch)
		}
		if p.index != nil {
			groups[sh.ID] = append(groups[sh.ID], p.index)
		}
	}
	if err := w.service.doAll(w.ctx, groups); err != nil {
		return nil, err
	}
	for n := range parts {
		p, sh := &parts[n], w.scope.ns.keyspace.Shards[n]
		for i, b := range p.touched {
			switch r := &p.touch.Result; {
			case r.Err != nil:
				w.failed(b.at, r.Err)
			case r.Blocks[i].Present:
				w.done(b.at, false)
			default:
				again = append(again, b)
			}
		}
		for i, b := range p.indexed {
			if p.index != nil {
				w.indexed(b.at, sh, p.index, i)
			}
		}
	}
	return again, nil
}

// indexCommand stores the values of blocks that go apart and makes the command that names them; nil when storing failed, as
// the results say then. It touches nothing of w but these blocks' results.
func (w *blockWriter) indexCommand(sh *Shard, blocks []gatheredBlock) *shard.Command {
	c := w.scope.command(shard.OpIndex, sh)
	c.Prompt.Index = make([]shard.BlockPut, len(blocks))
	var values [][]byte
	var named []*shard.BlockPut
	for i, b := range blocks {
		put := &c.Prompt.Index[i]
		*put = b.put
		if len(b.bytes) > w.service.cfg.InlineLimit {
			values, named = append(values, b.bytes), append(named, put)
		} else {
			put.Value.Inline = b.bytes
		}
	}
	if len(values) > 0 {
		refs, err := w.service.shards.PutValues(w.ctx, sh.ID, values...)
		if err != nil {
			for _, b := range blocks {
				w.failed(b.at, kverr.From(err))
			}
			return nil
		}
		for i, put := range named {
			put.Value.Ref = refs[i]
		}
	}
	return c
}

// indexed tells what became of block i of an index command.
func (w *blockWriter) indexed(at int, sh *Shard, c *shard.Command, i int) {
	r := &c.Result
	if r.Err != nil {
		w.failed(at, r.Err)
		return
	}
	w.latest[sh] = max(w.latest[sh], r.Revision)
	if r.Blocks[i].Refused {
		w.failed(at, errNoRoom)
		return
	}
	w.done(at, r.Blocks[i].Stored)
}

var errNoRoom = &kverr.Error{
	Kind: kverr.Exhausted, Op: "store block", RetryAfterMS: 1000,
	Message: "the namespace's capacity on this shard is filled by blocks that are leased, pinned or of the same request, or the shard's memory budget is used up",
}

// large stores a block of more than a chunk, with a few chunks in memory.
func (w *blockWriter) large(b *gatheredBlock, in *blockChunks) error {
	if err := w.flush(); err != nil { // keeps the bytes that wait bounded
		return err
	}
	_, there, ferr := w.service.findOne(w.ctx, w.scope, &b.put.Block)
	if ferr != nil {
		w.failed(b.at, ferr)
		return in.drain()
	}
	if there {
		if err := in.drain(); err != nil {
			return err
		}
		c := w.scope.command(shard.OpTouch, b.shard)
		c.Prompt.Blocks = []shard.BlockKey{b.put.Block}
		if err := w.service.doAll(w.ctx, map[string][]*shard.Command{b.shard.ID: {c}}); err != nil {
			return err
		}
		switch {
		case c.Result.Err != nil:
			w.failed(b.at, c.Result.Err)
		case c.Result.Blocks[0].Present:
			w.done(b.at, false)
		default:
			w.failed(b.at, &kverr.Error{Kind: kverr.Unavailable, Op: "store block", RetryAfterMS: 1,
				Message: "the block was stored when its bytes began to come and evicted before they ended; write it again"})
		}
		return nil
	}
	table := &tableReader{in: in, chunk: xxh3.New(), whole: xxh3.New()}
	ref, err := w.service.shards.WriteValue(w.ctx, b.shard.ID, b.put.Size+tableBytes(b.put.Size), table)
	if err != nil {
		if in.err != nil {
			return in.err
		}
		w.failed(b.at, kverr.From(err))
		return in.drain()
	}
	sum := table.whole.Sum64()
	if b.put.Checksum != 0 && sum != b.put.Checksum {
		w.service.shards.DropValues(b.shard.ID, ref)
		w.failed(b.at, wrongBlock(b.put.Checksum, sum))
		return nil
	}
	b.put.Checksum, b.put.Value.Ref = sum, ref
	c := w.scope.command(shard.OpIndex, b.shard)
	c.Prompt.Index = []shard.BlockPut{b.put}
	if err := w.service.doAll(w.ctx, map[string][]*shard.Command{b.shard.ID: {c}}); err != nil {
		return err
	}
	w.indexed(b.at, b.shard, c, 0)
	return nil
}

// blockChunks reads the bytes of the open block off the stream.
type blockChunks struct {
	w     *blockWriter
	rest  []byte // of the message received last
	left  int64  // bytes still to come, rest included
	block int
	err   error // why the stream of bytes ended early: the caller's fault or the connection's
}

func (c *blockChunks) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	for len(c.rest) == 0 {
		m, err := c.w.receive()
		switch {
		case errors.Is(err, io.EOF):
			c.err = kverr.Invalid("chunk", "is missing: the stream ended %d bytes before header.size of block %d", c.left, c.block)
		case err != nil:
			c.err = err
		case m.Header != nil:
			c.err = kverr.Invalid("header", "comes %d bytes before header.size of block %d", c.left, c.block)
		case int64(len(m.Chunk)) > c.left:
			c.err = c.tooMany()
		}
		if c.err != nil {
			return 0, c.err
		}
		c.rest = m.Chunk
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	c.left -= int64(n)
	return n, nil
}

func (c *blockChunks) tooMany() *kverr.Error {
	return kverr.Invalid("chunk", "brings more bytes than header.size of block %d", c.block)
}

// fault is why reading failed.
func (c *blockChunks) fault(err error) error {
	if c.err != nil {
		return c.err
	}
	return kverr.From(err)
}

// drain takes the rest of the block off the stream and forgets it.
func (c *blockChunks) drain() error {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return c.fault(err)
	}
	return nil
}

// tableReader reads a block's bytes and then the table of its chunks (see tableEntry).
type tableReader struct {
	in           *blockChunks
	chunk, whole *xxh3.Hasher
	inChunk      int64 // bytes of the open chunk
	table        []byte
	ended        bool
}

func (t *tableReader) Read(p []byte) (int, error) {
	if !t.ended {
		n, err := t.in.Read(p[:min(int64(len(p)), chunkBytes-t.inChunk)])
		_, _ = t.chunk.Write(p[:n])
		_, _ = t.whole.Write(p[:n])
		if t.inChunk += int64(n); t.inChunk == chunkBytes || errors.Is(err, io.EOF) && t.inChunk > 0 {
			t.table = binary.LittleEndian.AppendUint64(t.table, t.chunk.Sum64())
			t.chunk.Reset()
			t.inChunk = 0
		}
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		t.ended = true
		if n > 0 {
			return n, nil
		}
	}
	if len(t.table) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.table)
	t.table = t.table[n:]
	return n, nil
}
