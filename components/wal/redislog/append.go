package redislog

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/wal/driver"
)

// pending is an append that is not answered yet.
type pending struct {
	head, records string
	own           string
	seq           uint64
	element       []byte
	done          func(error)
	tries         attempts
}

// Bounds of one pipeline. A record that is larger goes alone.
const (
	pipelineAppends = 1024
	pipelineBytes   = 4 << 20
)

// Append implements driver.Engine.
func (e *Engine) Append(shard string, epoch driver.Epoch, f driver.Frame, done func(error)) {
	err := e.begin(context.Background(), shard)
	if err == nil {
		err = checkNumbers(epoch.Counter, f.Seq)
	}
	if err == nil && f.Epoch != epoch.Counter {
		err = driver.ErrFenced
	}
	if err == nil {
		err = e.room(int64(len(f.Data)))
	}
	if err != nil {
		go done(err)
		return
	}
	base := e.cfg.Prefix + ":{" + shard
	p := &pending{
		head: base + "}:h", records: base + "}:r", own: own(epoch), seq: f.Seq,
		element: encodeElement(shard, f), done: done, tries: attempts{engine: e},
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		go done(driver.ErrClosed)
		return
	}
	e.under.Add(int64(len(p.element)))
	e.queue = append(e.queue, p)
	e.wake.Signal()
	e.mu.Unlock()
}

// commit is a committer: it sends what is waiting as one pipeline, over and over. What comes meanwhile is in the next one, so
// pipelines widen with load, and a lone append waits for nothing.
func (e *Engine) commit() {
	for {
		batch := e.take()
		if batch == nil {
			return
		}
		if left := e.send(batch); len(left) > 0 {
			e.work.Go(func() { e.settle(left) })
		}
	}
}

// take waits for appends; nil when the engine is closed and none is left.
func (e *Engine) take() []*pending {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.queue) == 0 {
		if e.closed {
			return nil
		}
		e.wake.Wait()
	}
	n, bytes := 0, 0
	for n < len(e.queue) && n < pipelineAppends && (n == 0 || bytes+len(e.queue[n].element) <= pipelineBytes) {
		bytes += len(e.queue[n].element)
		n++
	}
	batch := e.queue[:n:n]
	e.queue = e.queue[n:]
	if len(e.queue) == 0 {
		e.queue = nil
	} else {
		e.wake.Signal()
	}
	return batch
}

// send sends appends and answers those that have an outcome. It returns the others, which are to be tried again.
func (e *Engine) send(batch []*pending) (left []*pending) {
	cmds := e.exec(batch, "evalsha", appendScript.sha)
	var unread []*pending // by a server that does not know the script
	for i, p := range batch {
		if err := cmds[i].Err(); err != nil && classify(err) == noScript {
			unread = append(unread, p)
			continue
		}
		if !e.answer(p, cmds[i]) {
			left = append(left, p)
		}
	}
	if len(unread) > 0 {
		cmds := e.exec(unread, "eval", appendScript.source)
		for i, p := range unread {
			if !e.answer(p, cmds[i]) {
				left = append(left, p)
			}
		}
	}
	return left
}

// exec runs one pipeline. Each command has its reply, or an error.
func (e *Engine) exec(batch []*pending, verb, what string) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(batch))
	pipe := e.appends.Pipeline()
	for i, p := range batch {
		args := make([]any, 0, 9)
		args = append(args, verb, what, 2, p.head, p.records, p.own, p.seq, p.element)
		// The client of a cluster may send a command again by itself, so there each try may be the second one.
		if p.tries.maybe || e.cfg.Cluster {
			args = append(args, "again")
		}
		cmds[i] = redis.NewCmd(e.ctx, args...)
		_ = pipe.Process(e.ctx, cmds[i])
	}
	_, err := pipe.Exec(e.ctx)
	for _, cmd := range cmds {
		if err != nil && cmd.Err() == nil && cmd.Val() == nil {
			cmd.SetErr(err) // never sent, or never answered
		}
	}
	return cmds
}

// What append.lua returns.
const (
	appendRefused = 0
	appendDone    = 1
	appendBefore  = 2 // by an earlier try
	appendUnknown = 3
	appendBehind  = 4 // the log ends before the record that comes before this one
)

// answer tells the caller the outcome of an append; false when it has none yet.
func (e *Engine) answer(p *pending, cmd *redis.Cmd) bool {
	if err := cmd.Err(); err != nil {
		p.tries.why = err
		switch classify(err) {
		case unknown:
			p.tries.maybe = true
			return false
		case busy, noScript:
			return false
		}
		e.ended(p, p.tries.final(err))
		return true
	}
	n, _ := cmd.Val().(int64)
	switch {
	case n == appendDone, n == appendBefore:
		e.ended(p, nil)
	case n == appendRefused && cmd.Val() != nil:
		e.ended(p, fmt.Errorf("%w: record %d is not the next of the epoch that owns the log", driver.ErrFenced, p.seq))
	case n == appendBehind:
		e.ended(p, fmt.Errorf("%w: record %d is not the next: %w: the log has lost records that were before it", driver.ErrFenced, p.seq, driver.ErrCorrupt))
	default:
		e.ended(p, &unknownError{fmt.Errorf("record %d was trimmed before its append was answered", p.seq)})
	}
	return true
}

// ended tells the caller the outcome.
func (e *Engine) ended(p *pending, err error) {
	e.under.Add(-int64(len(p.element)))
	p.done(err)
}

// settle tries appends again until each has an outcome. An append that may have been executed is looked for in the log by the
// script, so trying again is reading back.
func (e *Engine) settle(batch []*pending) {
	until := time.Now().Add(e.cfg.Settle)
	pace := attempts{engine: e, until: until}
	for len(batch) > 0 {
		if pace.again(e.ctx, errTryAgain) != nil {
			for _, p := range batch {
				e.ended(p, p.tries.final(fmt.Errorf("not taken within %v: %w", e.cfg.Settle, p.tries.why)))
			}
			return
		}
		batch = e.send(batch)
	}
}

// errTryAgain is classified as busy.
var errTryAgain = redis.ErrPoolTimeout

// Elements: checksum, epoch, seq, data.
const elementHeader = 4 + 8 + 8

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeElement(shard string, f driver.Frame) []byte {
	b := make([]byte, elementHeader, elementHeader+len(f.Data))
	binary.LittleEndian.PutUint64(b[4:], f.Epoch)
	binary.LittleEndian.PutUint64(b[12:], f.Seq)
	b = append(b, f.Data...)
	binary.LittleEndian.PutUint32(b, checksum(shard, b[4:]))
	return b
}

// checksum covers the shard's name too, so that an element of another shard passes nowhere.
func checksum(shard string, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(shard+"\x00"), castagnoli), castagnoli, b)
}

// decodeElement returns the record, which must have the number seq.
func decodeElement(shard, element string, seq uint64) (driver.Frame, error) {
	b := []byte(element)
	if len(b) < elementHeader || binary.LittleEndian.Uint32(b) != checksum(shard, b[4:]) {
		return driver.Frame{}, fmt.Errorf("record %d of shard %s: %w: its checksum is wrong", seq, shard, driver.ErrCorrupt)
	}
	f := driver.Frame{Epoch: binary.LittleEndian.Uint64(b[4:]), Seq: binary.LittleEndian.Uint64(b[12:]), Data: b[elementHeader:]}
	if f.Seq != seq {
		return driver.Frame{}, fmt.Errorf("record %s of shard %s: %w: record %d is in its place", strconv.FormatUint(seq, 10), shard, driver.ErrCorrupt, f.Seq)
	}
	return f, nil
}
