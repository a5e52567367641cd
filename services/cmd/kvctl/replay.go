package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
)

// replayer runs the requests of a trace.
type replayer struct {
	cfg      *replay
	prompt   *client.Prompt
	requests []traceRequest

	lookup, read, write, release, whole *latency

	next                                        atomic.Int64 // request to take
	done, blocks, hits                          atomic.Int64
	good, written, existing, lost, refused, bad atomic.Int64
	firstRefusal                                atomic.Pointer[string]

	began time.Time
	took  time.Duration

	mu       sync.Mutex   // guards the following
	finished []bool       // which requests are done
	buffers  []*reqBuffer // not in use
}

// reqBuffer is what one request needs, used again.
type reqBuffer struct {
	ids    []byte
	refs   []client.BlockRef
	blocks []client.NewBlock
	data   []byte
}

// inMemoryBlock is the size up to which blocks to be written are made in memory; bigger ones are made as they are sent.
const inMemoryBlock = 64 << 10

// idBytes is the length of block ids.
const idBytes = 8

func newReplayer(r *replay, c *client.Client, requests []traceRequest) *replayer {
	return &replayer{
		cfg: r, requests: requests, finished: make([]bool, len(requests)),
		prompt: c.Prompt(client.Scope{"model": "bench", "block_tokens": "512", "block_bytes": fmt.Sprint(int64(r.blockBytes))}),
		lookup: newLatency("lookup"), read: newLatency("read"), write: newLatency("write"), release: newLatency("release"),
		whole: newLatency("request"),
	}
}

// run replays until the trace ends, something fails, or ctx ends.
func (p *replayer) run(ctx context.Context, s *session) error {
	p.began = time.Now()
	bar := startProgress(s.stderr, s.errWidth, func() (float64, string) {
		took := time.Since(p.began).Seconds()
		return float64(p.done.Load()) / float64(len(p.requests)), fmt.Sprintf("hits %.2f %%  %.0f tokens/s",
			100*ratio(p.hits.Load(), p.blocks.Load()), float64(p.tokens())/took)
	})
	var err error
	if p.cfg.rate != "" {
		err = p.open(ctx)
	} else {
		err = workers(ctx, p.cfg.callers, p.closed)
	}
	p.took = time.Since(p.began)
	bar.end()
	return err
}

// closed is one caller of a closed loop.
func (p *replayer) closed(ctx context.Context, _ int) error {
	for ctx.Err() == nil {
		i := int(p.next.Add(1)) - 1
		if i >= len(p.requests) {
			return nil
		}
		if err := p.request(ctx, i, time.Now()); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// open starts each request at its time, as long as no more than -c are under way.
func (p *replayer) open(ctx context.Context) error {
	first := p.requests[0].at
	return workers(ctx, p.cfg.callers, func(ctx context.Context, _ int) error {
		for ctx.Err() == nil {
			i := int(p.next.Add(1)) - 1
			if i >= len(p.requests) {
				return nil
			}
			due := time.Duration(float64(i) / p.cfg.perSecond * float64(time.Second))
			if p.cfg.speed > 0 {
				due = time.Duration(float64(p.requests[i].at-first) / p.cfg.speed)
			}
			at := p.began.Add(due)
			if err := waitUntil(ctx, at); err != nil {
				return err
			}
			if err := p.request(ctx, i, at); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

func waitUntil(ctx context.Context, at time.Time) error {
	d := time.Until(at)
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// request replays request i, which was due at a time.
func (p *replayer) request(ctx context.Context, i int, due time.Time) error {
	ids := p.requests[i].ids
	b := p.buffer()
	defer p.giveBack(b)
	b.name(ids)

	at := time.Now()
	var o *client.LookupOptions
	if p.cfg.lease > 0 {
		o = &client.LookupOptions{Lease: p.cfg.lease}
	}
	found, err := p.prompt.Lookup(ctx, b.refs, o)
	if err != nil {
		return err
	}
	p.lookup.record(time.Since(at), 0)
	if found.Count > len(ids) {
		return fmt.Errorf("lookup of %d blocks found %d", len(ids), found.Count)
	}
	if found.Count > 0 {
		if err := p.readHits(ctx, b.refs[:found.Count], ids); err != nil {
			return err
		}
	}
	if len(found.Lease) > 0 {
		at = time.Now()
		if err := p.prompt.Release(ctx, found.Lease); err != nil {
			return err
		}
		p.release.record(time.Since(at), 0)
	}
	if found.Count < len(ids) {
		if err := p.writeMisses(ctx, b, ids, found.Count); err != nil {
			return err
		}
	}
	p.whole.record(time.Since(due), 0)
	p.blocks.Add(int64(len(ids)))
	p.hits.Add(int64(found.Count))
	p.done.Add(1)
	p.mu.Lock()
	p.finished[i] = true
	p.mu.Unlock()
	return nil
}

// readHits reads blocks and compares every byte.
func (p *replayer) readHits(ctx context.Context, refs []client.BlockRef, ids []uint64) error {
	at := time.Now()
	var moved int64
	for blk, err := range p.prompt.Read(ctx, refs, &client.ReadOptions{SkipMisses: true}) {
		switch {
		case err != nil:
			return err
		case blk.Miss:
			p.lost.Add(1)
		case int64(len(blk.Data)) != int64(p.cfg.blockBytes) || !same(blk.Data, ids[blk.Index]):
			p.bad.Add(1)
		default:
			p.good.Add(1)
			moved += int64(len(blk.Data))
		}
	}
	p.read.record(time.Since(at), moved)
	return nil
}

// writeMisses writes the blocks from number hits on.
func (p *replayer) writeMisses(ctx context.Context, b *reqBuffer, ids []uint64, hits int) error {
	n := int(p.cfg.blockBytes)
	b.blocks = b.blocks[:0]
	if need := n * (len(ids) - hits); n <= inMemoryBlock && cap(b.data) < need {
		b.data = make([]byte, need)
	}
	data := b.data[:cap(b.data)]
	for i := hits; i < len(ids); i++ {
		blk := client.NewBlock{BlockRef: b.refs[i]}
		if i > 0 {
			blk.Parent = b.refs[i-1].ID
		}
		if n <= inMemoryBlock {
			blk.Data, data = data[:n:n], data[n:]
			fill(blk.Data, ids[i])
		} else {
			blk.Reader, blk.Size = newContent(ids[i], int64(n)), int64(n)
		}
		b.blocks = append(b.blocks, blk)
	}
	at := time.Now() // making the bytes is not the store's work
	outs, err := p.prompt.Write(ctx, b.blocks, nil)
	if err != nil {
		return err
	}
	p.write.record(time.Since(at), int64(n)*int64(len(outs)))
	for _, out := range outs {
		switch {
		case out.Err != nil:
			text := out.Err.Error()
			p.firstRefusal.CompareAndSwap(nil, &text)
			p.refused.Add(1)
		case out.Stored:
			p.written.Add(1)
		default:
			p.existing.Add(1)
		}
	}
	return nil
}

// name fills in the references of ids.
func (b *reqBuffer) name(ids []uint64) {
	b.ids, b.refs = b.ids[:0], b.refs[:0]
	for _, id := range ids {
		b.ids = binary.BigEndian.AppendUint64(b.ids, id)
	}
	for i := range ids {
		b.refs = append(b.refs, client.BlockRef{ID: b.ids[i*idBytes : (i+1)*idBytes], Depth: uint32(i)})
	}
}

func (p *replayer) buffer() *reqBuffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.buffers); n > 0 {
		b := p.buffers[n-1]
		p.buffers = p.buffers[:n-1]
		return b
	}
	return new(reqBuffer)
}

func (p *replayer) giveBack(b *reqBuffer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buffers = append(p.buffers, b)
}

func (p *replayer) tokens() int64 { return tokensPerBlock * (p.good.Load() + p.written.Load()) }

func ratio(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// resume is the first request that is not done.
func (p *replayer) resume() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, ok := range p.finished {
		if !ok {
			return p.cfg.from + i
		}
	}
	return p.cfg.from + len(p.finished)
}

func (p *replayer) result(namespace string) replayResult {
	sec := p.took.Seconds()
	r := replayResult{
		Trace: p.cfg.trace, Namespace: namespace, Mode: "closed", Callers: p.cfg.callers, BlockBytes: int64(p.cfg.blockBytes),
		Capacity: p.cfg.capacity, From: p.cfg.from, Next: p.resume(), Seconds: sec, Requests: p.done.Load(), Blocks: p.blocks.Load(),
		Hits: p.hits.Load(), HitRatio: ratio(p.hits.Load(), p.blocks.Load()), Read: p.good.Load(), Written: p.written.Load(),
		Existing: p.existing.Load(), Lost: p.lost.Load(), Refused: p.refused.Load(), Wrong: p.bad.Load(),
		RequestsPS: float64(p.done.Load()) / sec, TokensPS: float64(p.tokens()) / sec,
	}
	switch {
	case p.cfg.ordered:
		r.Mode = "ordered"
	case p.cfg.rate != "":
		r.Mode = "open"
	}
	if text := p.firstRefusal.Load(); text != nil {
		r.FirstRefuse = *text
	}
	for _, l := range []*latency{p.lookup, p.read, p.release, p.write, p.whole} {
		if st := l.result(p.took); st.Count > 0 {
			r.Steps = append(r.Steps, st)
		}
	}
	return r
}
