package redislog

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/components/wal/driver"
)

const (
	// chunkBytes is how much of an object one key holds. It is part of the format.
	chunkBytes = 256 << 10
	// window is how many chunks of one object are on their way at once (but see stride).
	window = 3
	// getChunks bounds the chunks of one reply, and dropChunks those that one script removes.
	getChunks, dropChunks = 4, 256
	// listObjects is how many names one reply holds.
	listObjects = 512
	// staleAfter is how long an object that is being written may stand still before a listing removes it: its writer is gone.
	staleAfter = time.Hour
	// removedFor is how long the name of an object that was removed is not taken again, in seconds: a write that was repeated after its reply was lost may
	// still be on its way, and would bring the object back. Systems give up what a closed connection has not sent after some 100 s (Linux,
	// tcp_orphan_retries).
	removedFor = 120
)

// nameEnd ends the name in a member of the index of objects; its state follows.
const nameEnd = "\x00"

// state is what the index says of an object: the id of its write and how far it is.
//
//	<id>=<size>             it is there
//	<id>?<chunks>:<time>    it is being written; the time is the server's when the last chunk came, in seconds
//	<id>!<chunks>           it is being removed
type state string

const idLength = 16

func (s state) kind() byte {
	if len(s) <= idLength {
		return 0
	}
	return s[idLength]
}

// size is the object's length; ok only for one that is there.
func (s state) size() (n int64, ok bool) {
	if s.kind() != '=' {
		return 0, false
	}
	n, err := strconv.ParseInt(string(s[idLength+1:]), 10, 64)
	return n, err == nil && n >= 0
}

// chunks is how many chunks the object may have.
func (s state) chunks() int64 {
	if n, ok := s.size(); ok {
		return (n + chunkBytes - 1) / chunkBytes
	}
	if s.kind() == 0 {
		return 0
	}
	count, _, _ := strings.Cut(string(s[idLength+1:]), ":")
	n, _ := strconv.ParseInt(count, 10, 64)
	return n
}

// touched is when the last chunk came.
func (s state) touched() time.Time {
	_, at, _ := strings.Cut(string(s), ":")
	n, _ := strconv.ParseInt(at, 10, 64)
	return time.Unix(n, 0)
}

// beginObject checks what all verbs of objects check.
func (e *Engine) beginObject(ctx context.Context, shard, name string) error {
	if err := driver.CheckObject(name); err != nil {
		return err
	}
	return e.begin(ctx, shard)
}

// PutObject implements driver.Engine. An object that fits into a chunk is one script. A longer one is written chunk by chunk, invisible,
// and then published; its memory here is that of a few chunks.
func (e *Engine) PutObject(ctx context.Context, shard, name string, size int64, r io.Reader) error {
	if err := e.beginObject(ctx, shard, name); err != nil {
		return err
	}
	if !strings.HasPrefix(name, driver.CheckpointPrefix) {
		if err := e.room(max(0, size)); err != nil {
			return err
		}
	}
	k := e.keys(shard)
	w := writer{engine: e, shard: shard, name: name, keys: &k, id: newID()}
	first := make([]byte, firstBuffer(size))
	n, err := fill(r, first)
	switch {
	case err == nil && n < chunkBytes: // the byte too much came
		return w.wrongSize(int64(n), size)
	case err == io.EOF: //nolint:errorlint // fill gives it as it is
		if size >= 0 && int64(n) != size {
			return w.wrongSize(int64(n), size)
		}
		return w.small(ctx, first[:n])
	case err != nil:
		return fmt.Errorf("%w: object %s: %w", driver.ErrRefused, name, err)
	}
	total, err := w.large(ctx, first, r)
	if err == nil && size >= 0 && total != size {
		err = w.wrongSize(total, size)
	}
	if err == nil {
		err = w.publish(ctx, total)
	}
	if err != nil {
		w.abort(ctx)
	}
	return err
}

// firstBuffer is room for an object of a size, and a byte more to see that it ends there; at most a chunk.
func firstBuffer(size int64) int64 {
	if size < 0 || size >= chunkBytes {
		return chunkBytes
	}
	return size + 1
}

// fill reads until p is full. io.EOF says that r ended before; any other error is r's own.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var got int
		got, err = r.Read(p[n:])
		n += got
	}
	if n == len(p) {
		return n, nil // an error comes again
	}
	return n, err
}

// writer writes one object.
type writer struct {
	engine      *Engine
	shard, name string
	keys        *keys
	id          string
}

func (w *writer) wrongSize(got, want int64) error {
	return fmt.Errorf("%w: object %s: %d bytes came where %d were announced", driver.ErrRefused, w.name, got, want)
}

// outcome makes an error of what a script returned.
func (w *writer) outcome(n int64, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("object %s of shard %s: %w", w.name, w.shard, err)
	case n == 0:
		return fmt.Errorf("%w: object %s exists", driver.ErrRefused, w.name)
	case n < 0:
		return fmt.Errorf("shard %s: %w", w.shard, driver.ErrNotExist)
	}
	return nil
}

func (w *writer) small(ctx context.Context, data []byte) error {
	k := w.keys
	return w.outcome(w.engine.runInt(ctx, putScript, []string{k.manifest, k.objects, k.chunkKey(w.name, 0), k.removed},
		w.name+nameEnd, w.id, len(data), data))
}

// large writes first and what r gives after it as chunks, and returns how many bytes they were.
func (w *writer) large(ctx context.Context, first []byte, r io.Reader) (total int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := w.chunk(ctx, 0, first); err != nil {
		return 0, err
	}
	total = int64(len(first))
	buffers := make(chan []byte, window) // a token each; made when first used
	buffers <- first
	for range window - 1 {
		buffers <- nil
	}
	var sending sync.WaitGroup
	for n, ended := int64(1), false; !ended && ctx.Err() == nil; n++ {
		p := <-buffers
		if p == nil {
			p = make([]byte, chunkBytes)
		}
		got, err := fill(r, p[:chunkBytes])
		if err != nil && err != io.EOF { //nolint:errorlint // fill gives it as it is
			cancel(fmt.Errorf("%w: object %s: %w", driver.ErrRefused, w.name, err))
			break
		}
		ended = err != nil
		if got == 0 {
			break
		}
		total += int64(got)
		sending.Go(func() {
			if err := w.chunk(ctx, n, p[:got]); err != nil {
				cancel(err)
			}
			buffers <- p
		})
	}
	sending.Wait()
	return total, context.Cause(ctx)
}

// chunk writes a chunk: at once, or, of a checkpoint when the line is slow, in parts, so that appends do not wait long behind it.
func (w *writer) chunk(ctx context.Context, n int64, data []byte) error {
	if !strings.HasPrefix(w.name, driver.CheckpointPrefix) {
		return w.part(ctx, n, 0, data)
	}
	for off := 0; off < len(data); {
		size, release, err := w.engine.nextPart(ctx)
		if err != nil {
			return fmt.Errorf("object %s of shard %s: %w", w.name, w.shard, err)
		}
		size = min(size, len(data)-off)
		began := time.Now()
		err = w.part(ctx, n, off, data[off:off+size])
		if err == nil {
			w.engine.partTook(time.Since(began))
		}
		release()
		if err != nil {
			return err
		}
		off += size
	}
	return nil
}

func (w *writer) part(ctx context.Context, n int64, off int, data []byte) error {
	k := w.keys
	return w.outcome(w.engine.runInt(ctx, chunkScript, []string{k.manifest, k.objects, k.chunkKey(w.name, n), k.removed},
		w.name+nameEnd, w.id, n, off, data))
}

func (w *writer) publish(ctx context.Context, size int64) error {
	n, err := w.engine.runInt(ctx, publishScript, []string{w.keys.objects}, w.name+nameEnd, w.id, size)
	if err == nil && n == 0 {
		return fmt.Errorf("%w: object %s was removed while it was written", driver.ErrRefused, w.name)
	}
	return w.outcome(n, err)
}

// abort removes what was written, unless it was published after all. What it cannot remove now a listing does later.
func (w *writer) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.engine.cfg.Timeout)
	defer cancel()
	s, err := w.engine.stateOf(ctx, w.keys, w.name)
	if err == nil && s.kind() == '?' && strings.HasPrefix(string(s), w.id) {
		_ = w.engine.drop(ctx, w.keys, w.name, s)
	}
}

// lookup is the query for the state of an object.
func lookup(name string) *redis.ZRangeBy {
	return &redis.ZRangeBy{Min: "[" + name + nameEnd, Max: "(" + name + nameEnd + "\xff", Count: 1}
}

// stateIn takes the state from what lookup found; "" when there is no such object.
func stateIn(members []string) state {
	if len(members) == 0 {
		return ""
	}
	_, s, _ := strings.Cut(members[0], nameEnd)
	return state(s)
}

func (e *Engine) stateOf(ctx context.Context, k *keys, name string) (s state, err error) {
	err = e.read(ctx, func(ctx context.Context) error {
		members, err := e.client.ZRangeByLex(ctx, k.objects, lookup(name)).Result()
		s = stateIn(members)
		return err
	})
	return s, err
}

// GetObject implements driver.Engine. State and bytes come in one pipeline.
func (e *Engine) GetObject(ctx context.Context, shard, name string, off int64, p []byte) error {
	if err := e.beginObject(ctx, shard, name); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("%w: object %s: offset %d", driver.ErrRefused, name, off)
	}
	k := e.keys(shard)
	for first := true; first || len(p) > 0; first = false {
		// up to the end of a chunk, getChunks of them
		n := min(int64(len(p)), getChunks*chunkBytes-off%chunkBytes)
		if err := e.getPart(ctx, &k, shard, name, off, p[:n], int64(len(p))); err != nil {
			return err
		}
		off, p = off+n, p[n:]
	}
	return nil
}

// getPart fills p, of which more bytes follow that are read next.
func (e *Engine) getPart(ctx context.Context, k *keys, shard, name string, off int64, p []byte, wanted int64) error {
	var s state
	var parts []*redis.StringCmd
	err := e.read(ctx, func(ctx context.Context) error {
		pipe := e.client.Pipeline()
		found := pipe.ZRangeByLex(ctx, k.objects, lookup(name))
		parts = parts[:0]
		for at := off; at < off+int64(len(p)); {
			from := at % chunkBytes
			to := min(chunkBytes, from+off+int64(len(p))-at)
			parts = append(parts, pipe.GetRange(ctx, k.chunkKey(name, at/chunkBytes), from, to-1))
			at += to - from
		}
		_, err := pipe.Exec(ctx)
		s = stateIn(found.Val())
		return err
	})
	if err != nil {
		return fmt.Errorf("object %s of shard %s: %w", name, shard, err)
	}
	size, ok := s.size()
	switch {
	case !ok:
		return fmt.Errorf("object %s of shard %s: %w", name, shard, driver.ErrNotExist)
	case off > size || size-off < wanted:
		return fmt.Errorf("object %s of shard %s: %w: %d bytes at %d asked, it has %d", name, shard, driver.ErrCorrupt, wanted, off, size)
	}
	n := 0
	for _, part := range parts {
		n += copy(p[n:], part.Val())
	}
	if n == len(p) {
		return nil
	}
	// Bytes are missing: it was removed between the look at its state and theirs, or it is damaged.
	now, err := e.stateOf(ctx, k, name)
	switch {
	case err != nil:
		return fmt.Errorf("object %s of shard %s: %w", name, shard, err)
	case now != s:
		return fmt.Errorf("object %s of shard %s: %w", name, shard, driver.ErrNotExist)
	}
	return fmt.Errorf("object %s of shard %s: %w: bytes at %d are missing", name, shard, driver.ErrCorrupt, off)
}

// DeleteObject implements driver.Engine.
func (e *Engine) DeleteObject(ctx context.Context, shard, name string) error {
	if err := e.beginObject(ctx, shard, name); err != nil {
		return err
	}
	k := e.keys(shard)
	s, err := e.stateOf(ctx, &k, name)
	if err == nil && (s.kind() == '=' || s.kind() == '!') {
		err = e.drop(ctx, &k, name, s)
	}
	if err != nil {
		return fmt.Errorf("delete object %s of shard %s: %w", name, shard, err)
	}
	return nil
}

// drop removes an object that is in state s. When there is too much of it for one script it is marked first, so that nobody reads it and a
// listing goes on where a crash stopped.
func (e *Engine) drop(ctx context.Context, k *keys, name string, s state) error {
	chunks := s.chunks()
	marked := s
	if chunks > dropChunks && s.kind() != '!' {
		marked = state(string(s[:idLength]) + "!" + strconv.FormatInt(chunks, 10))
	}
	for n := int64(0); ; {
		all := []string{k.objects, k.removed}
		for ; n < chunks && len(all) < 2+dropChunks; n++ {
			all = append(all, k.chunkKey(name, n))
		}
		becomes := marked
		if n >= chunks {
			becomes = ""
		}
		if _, err := e.runInt(ctx, dropScript, all, name+nameEnd, string(s), string(becomes), removedFor); err != nil {
			return err
		}
		if n >= chunks {
			return nil
		}
		s = marked
	}
}

// eachObject calls fn for every object of the index whose name begins with prefix, in the order of names.
func (e *Engine) eachObject(ctx context.Context, k *keys, prefix string, fn func(name string, s state) error) error {
	by := &redis.ZRangeBy{Min: "[" + prefix, Max: "(" + prefix + "\xff", Count: listObjects}
	for {
		var members []string
		err := e.read(ctx, func(ctx context.Context) (err error) {
			members, err = e.client.ZRangeByLex(ctx, k.objects, by).Result()
			return err
		})
		if err != nil {
			return err
		}
		for _, m := range members {
			name, s, ok := strings.Cut(m, nameEnd)
			if !ok {
				return fmt.Errorf("%w: the index of objects has %q", driver.ErrCorrupt, m)
			}
			if err := fn(name, state(s)); err != nil {
				return err
			}
		}
		if len(members) < listObjects {
			return nil
		}
		// a member that changed its state while it was listed comes behind this one: skip the whole name
		name, _, _ := strings.Cut(members[len(members)-1], nameEnd)
		by.Min = "(" + name + nameEnd + "\xff"
	}
}

// ListObjects implements driver.Engine. It also removes what writers that are gone, and removals that were cut off, left behind.
func (e *Engine) ListObjects(ctx context.Context, shard, prefix string, fn func(name string, size int64) error) error {
	if err := e.begin(ctx, shard); err != nil {
		return err
	}
	k := e.keys(shard)
	var now time.Time
	err := e.eachObject(ctx, &k, prefix, func(name string, s state) error {
		if size, ok := s.size(); ok {
			return fn(name, size)
		}
		if s.kind() == '?' {
			if now.IsZero() {
				now, _ = e.client.Time(ctx).Result() // an error leaves year 1: then nothing is stale
			}
			if now.Sub(s.touched()) < staleAfter {
				return nil
			}
		}
		_ = e.drop(ctx, &k, name, s) // what fails the next listing tries again
		return nil
	})
	if err != nil {
		return fmt.Errorf("list objects of shard %s: %w", shard, err)
	}
	return nil
}
