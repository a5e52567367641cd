package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// chunkBytes is how much of a run is fetched at once. Two chunks of each open run are held.
const chunkBytes = 128 << 10

// runReader reads a run from its object, fetching ahead. close must be called.
type runReader struct {
	decoder *runDecoder
	chunks  <-chan chunk // in order; closed after the last one or an error
	empty   chan []byte  // chunks to be filled again
	cancel  context.CancelFunc
	stopped sync.WaitGroup

	data   []byte // rest of the current chunk
	whole  []byte // the current chunk, to be given back
	joined []byte // a frame that lies in several chunks
	left   int64  // bytes of the object that are not consumed yet
	onRead func(bytes int64)
}

type chunk struct {
	data []byte
	err  error
}

// openRun begins to read a run. onRead is told of bytes as they are consumed; it may be nil.
func openRun(ctx context.Context, engine driver.Engine, shard string, run *dataplanev1.Manifest_Run, onRead func(int64)) *runReader {
	ctx, cancel := context.WithCancel(ctx)
	chunks := make(chan chunk, 1)
	r := &runReader{decoder: newRunDecoder(shard, run), chunks: chunks, empty: make(chan []byte, 2), cancel: cancel, left: run.Bytes, onRead: onRead}
	size := min(run.Bytes, chunkBytes)
	for range 2 {
		r.empty <- make([]byte, size)
	}
	r.stopped.Go(func() {
		defer close(chunks)
		for off := int64(0); off < run.Bytes; {
			var buf []byte
			select {
			case buf = <-r.empty:
			case <-ctx.Done():
				return
			}
			buf = buf[:min(size, run.Bytes-off)]
			err := engine.GetObject(ctx, shard, run.Name, off, buf)
			select {
			case chunks <- chunk{buf, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
			off += int64(len(buf))
		}
	})
	return r
}

// close stops fetching.
func (r *runReader) close() {
	r.cancel()
	r.stopped.Wait()
}

// next is the reader's cursor.
func (r *runReader) next() (item, bool, error) {
	for {
		if it, ok, err := r.decoder.item(); ok || err != nil {
			return it, ok, err
		}
		if r.left == 0 {
			return item{}, false, r.decoder.ended()
		}
		if err := r.frame(); err != nil {
			return item{}, false, err
		}
	}
}

// frame feeds the decoder the next frame.
func (r *runReader) frame() error {
	if r.left == r.decoder.run.Bytes {
		magic, err := r.take(len(runMagic))
		if err != nil {
			return err
		}
		if string(magic) != runMagic {
			return r.decoder.damaged("it does not begin as a run does")
		}
	}
	head, err := r.take(frameOverhead)
	if err != nil {
		return err
	}
	size, checksum := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:])
	if size > maxFrame {
		return r.decoder.damaged("frame %d claims %d bytes", r.decoder.frames, size)
	}
	payload, err := r.take(int(size))
	if err != nil {
		return err
	}
	return r.decoder.frame(checksum, payload)
}

// take consumes n bytes. They are valid until the next call.
func (r *runReader) take(n int) ([]byte, error) {
	if int64(n) > r.left {
		return nil, r.decoder.damaged("frame %d reaches beyond the end", r.decoder.frames)
	}
	if len(r.data) == 0 {
		if err := r.fetch(); err != nil {
			return nil, err
		}
	}
	r.left -= int64(n)
	if r.onRead != nil {
		r.onRead(int64(n))
	}
	if n <= len(r.data) {
		p := r.data[:n]
		r.data = r.data[n:]
		return p, nil
	}
	r.joined = r.joined[:0]
	for {
		part := min(n-len(r.joined), len(r.data))
		r.joined = append(r.joined, r.data[:part]...)
		r.data = r.data[part:]
		if len(r.joined) == n {
			return r.joined, nil
		}
		if err := r.fetch(); err != nil {
			return nil, err
		}
	}
}

// fetch makes the next chunk the current one.
func (r *runReader) fetch() error {
	if r.whole != nil {
		r.empty <- r.whole[:cap(r.whole)]
		r.whole = nil
	}
	c, ok := <-r.chunks
	switch {
	case !ok:
		return context.Canceled
	case errors.Is(c.err, driver.ErrNotExist), errors.Is(c.err, driver.ErrCorrupt):
		return r.decoder.damaged("%v", c.err)
	case c.err != nil:
		return c.err
	}
	r.data, r.whole = c.data, c.data
	return nil
}
