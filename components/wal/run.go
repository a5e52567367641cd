package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// A run is one immutable sorted object of a checkpoint: what changed in a shard between two records. DESIGN.md has its format:
// a magic, then frames of length, checksum and payload. A frame's checksum also covers whose object it is and its place in
// it, so that an object or a block in the wrong place is damage, not data.
const (
	runMagic  = "kvrun\r\n\x01"
	runFormat = 1

	frameOverhead = 8        // length and checksum
	maxFrame      = 64 << 20 // bytes of a payload: what a reader takes at most

	frameHeader byte = 1
	frameItems  byte = 2
	frameFooter byte = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// item is one entry of a run. Its slices are valid until its cursor moves on.
type item struct {
	key, value []byte
	removed    bool
}

// cursor gives items in ascending order of keys, each key once; false at the end.
type cursor func() (item, bool, error)

// runSalt is what the checksums of a run's frames begin with.
func runSalt(shard, name string) uint32 {
	crc := crc32.Update(0, castagnoli, []byte(shard))
	crc = crc32.Update(crc, castagnoli, []byte{0})
	return crc32.Update(crc, castagnoli, []byte(name))
}

// frameChecksum is the checksum of the frame number index of a run.
func frameChecksum(salt uint32, index uint32, payload []byte) uint32 {
	var place [8]byte
	binary.LittleEndian.PutUint32(place[0:], salt)
	binary.LittleEndian.PutUint32(place[4:], index)
	return crc32.Update(crc32.Update(0, castagnoli, place[:]), castagnoli, payload)
}

// runWriter encodes a cursor as a run while it is read, holding one block.
type runWriter struct {
	next       cursor
	salt       uint32
	blockBytes int

	out     []byte // encoded; out[read:] is not read yet
	read    int
	frames  uint32
	lastKey []byte
	ended   bool

	items, removed, bytes int64
}

var _ io.Reader = (*runWriter)(nil)

// newRunWriter returns the reader that gives the run of an object: what next gives.
func newRunWriter(shard, name string, afterSeq, seq uint64, blockBytes int, next cursor) *runWriter {
	w := &runWriter{next: next, salt: runSalt(shard, name), blockBytes: blockBytes}
	w.out = append(w.out, runMagic...)
	start := w.open(frameHeader)
	w.out = binary.AppendUvarint(w.out, runFormat)
	w.out = binary.AppendUvarint(w.out, afterSeq)
	w.out = binary.AppendUvarint(w.out, seq)
	w.out = binary.AppendUvarint(w.out, uint64(len(shard)))
	w.out = append(w.out, shard...)
	w.out = binary.AppendUvarint(w.out, uint64(len(name)))
	w.out = append(w.out, name...)
	w.close(start)
	return w
}

// open begins a frame and returns where.
func (w *runWriter) open(kind byte) int {
	start := len(w.out)
	w.out = append(w.out, 0, 0, 0, 0, 0, 0, 0, 0, kind)
	return start
}

// close ends the frame that began at start.
func (w *runWriter) close(start int) {
	payload := w.out[start+frameOverhead:]
	binary.LittleEndian.PutUint32(w.out[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(w.out[start+4:], frameChecksum(w.salt, w.frames, payload))
	w.frames++
}

// Read gives the run's bytes.
func (w *runWriter) Read(p []byte) (int, error) {
	for w.read == len(w.out) {
		if w.ended {
			return 0, io.EOF
		}
		w.out, w.read = w.out[:0], 0
		if err := w.block(); err != nil {
			return 0, fmt.Errorf("encode a run: %w", err) // wrapped, so that an io.EOF among errors is not the run's end
		}
	}
	n := copy(p, w.out[w.read:])
	w.read += n
	w.bytes += int64(n)
	return n, nil
}

// finished tells whether all of the run was read.
func (w *runWriter) finished() bool { return w.ended && w.read == len(w.out) }

// block encodes the next block, and the footer after the last one.
func (w *runWriter) block() error {
	w.lastKey = w.lastKey[:0]
	start := w.open(frameItems)
	inBlock := 0
	for len(w.out) < w.blockBytes {
		it, ok, err := w.next()
		if err != nil {
			return err
		}
		if !ok {
			w.ended = true
			break
		}
		w.add(it)
		inBlock++
	}
	if inBlock == 0 {
		w.out = w.out[:start]
	} else {
		w.close(start)
	}
	if w.ended {
		frames := w.frames
		start := w.open(frameFooter)
		w.out = binary.AppendUvarint(w.out, uint64(w.items))
		w.out = binary.AppendUvarint(w.out, uint64(w.removed))
		w.out = binary.AppendUvarint(w.out, uint64(frames))
		w.close(start)
	}
	return nil
}

// add encodes one item: how many bytes the key shares with the one before in its block, how many follow, the length of
// the value plus one (0: removed), then those bytes and the value.
func (w *runWriter) add(it item) {
	shared := 0
	for n := min(len(w.lastKey), len(it.key)); shared < n && w.lastKey[shared] == it.key[shared]; {
		shared++
	}
	w.out = binary.AppendUvarint(w.out, uint64(shared))
	w.out = binary.AppendUvarint(w.out, uint64(len(it.key)-shared))
	w.items++
	if it.removed {
		w.removed++
		w.out = append(w.out, 0)
		w.out = append(w.out, it.key[shared:]...)
	} else {
		w.out = binary.AppendUvarint(w.out, uint64(len(it.value))+1)
		w.out = append(w.out, it.key[shared:]...)
		w.out = append(w.out, it.value...)
	}
	w.lastKey = append(w.lastKey[:shared], it.key[shared:]...)
}

// runDecoder decodes the frames of one run, in order, and checks all that a run promises.
type runDecoder struct {
	shard string
	run   *dataplanev1.Manifest_Run
	salt  uint32

	frames  uint32
	footer  bool
	block   []byte // rest of the block being decoded
	key     []byte
	started bool // the block has given a key, so that key is set
	first   bool // no item yet
	items   int64
	removed int64
}

func newRunDecoder(shard string, run *dataplanev1.Manifest_Run) *runDecoder {
	return &runDecoder{shard: shard, run: run, salt: runSalt(shard, run.Name), first: true}
}

func (d *runDecoder) damaged(format string, args ...any) error {
	return damagedShard("read the checkpoint", d.shard, "object %s: %s", d.run.Name, fmt.Sprintf(format, args...))
}

// frame takes the next frame's checksum and payload. The payload must not change until all its items are taken.
func (d *runDecoder) frame(checksum uint32, payload []byte) error {
	index := d.frames
	d.frames++
	if got := frameChecksum(d.salt, index, payload); got != checksum {
		return d.damaged("frame %d has checksum %08x, its content %08x", index, checksum, got)
	}
	if len(payload) == 0 {
		return d.damaged("frame %d is empty", index)
	}
	kind, payload := payload[0], payload[1:]
	switch {
	case d.footer:
		return d.damaged("frame %d comes after the footer", index)
	case (index == 0) != (kind == frameHeader):
		return d.damaged("frame %d is of kind %d", index, kind)
	case kind == frameHeader:
		return d.header(payload)
	case kind == frameItems:
		d.block, d.started = payload, false
		return nil
	case kind == frameFooter:
		d.footer = true
		return d.checkFooter(payload, index)
	}
	return fmt.Errorf("object %s of shard %s: %w: a frame of kind %d", d.run.Name, d.shard, ErrUnsupported, kind)
}

// fields takes uvarints off a payload.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad = true
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) bytes(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.bad = true
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (d *runDecoder) header(payload []byte) error {
	f := fields{b: payload}
	if format := f.uint(); !f.bad && format != runFormat {
		return fmt.Errorf("object %s of shard %s: %w: run format %d, known is %d", d.run.Name, d.shard, ErrUnsupported, format, runFormat)
	}
	afterSeq, seq := f.uint(), f.uint()
	shard := f.bytes(f.uint())
	name := f.bytes(f.uint())
	if f.bad || len(f.b) > 0 {
		return d.damaged("its header cannot be decoded")
	}
	if string(shard) != d.shard || string(name) != d.run.Name || afterSeq != d.run.AfterSeq || seq != d.run.Seq {
		return d.damaged("it says that it is %s of shard %s, for records %d to %d; the manifest names records %d to %d", name, shard, afterSeq+1, seq, d.run.AfterSeq+1, d.run.Seq)
	}
	return nil
}

func (d *runDecoder) checkFooter(payload []byte, index uint32) error {
	f := fields{b: payload}
	items, removed, frames := f.uint(), f.uint(), f.uint()
	if f.bad || len(f.b) > 0 || frames != uint64(index) || items != uint64(d.items) || removed != uint64(d.removed) || d.items != d.run.Items {
		return d.damaged("it has %d items, %d of them removals, in %d frames; its footer says %d, %d, %d, the manifest %d items",
			d.items, d.removed, index, items, removed, frames, d.run.Items)
	}
	return nil
}

// item takes the next item of the block; false when another frame is needed. The key is valid until the next call, the value
// as long as the frame's payload.
func (d *runDecoder) item() (item, bool, error) {
	if len(d.block) == 0 {
		return item{}, false, nil
	}
	f := fields{b: d.block}
	shared, rest, size := f.uint(), f.uint(), f.uint()
	suffix := f.bytes(rest)
	it := item{removed: size == 0}
	if !it.removed {
		it.value = f.bytes(size - 1)
	}
	if f.bad || shared > uint64(len(d.key)) || !d.started && shared > 0 {
		return item{}, false, d.damaged("item %d cannot be decoded", d.items)
	}
	// the keys' first difference is at shared or beyond, so comparing from there on compares them
	if !d.first {
		if !d.started {
			if !less(d.key, suffix) {
				return item{}, false, d.damaged("item %d is out of order", d.items)
			}
		} else if !less(d.key[shared:], suffix) {
			return item{}, false, d.damaged("item %d is out of order", d.items)
		}
	}
	d.key = append(d.key[:shared], suffix...)
	d.block, d.started, d.first = f.b, true, false
	d.items++
	if it.removed {
		d.removed++
	}
	it.key = d.key
	return it, true, nil
}

// less compares byte strings.
func less(a, b []byte) bool { return string(a) < string(b) }

// ended checks that nothing is missing once all frames are taken.
func (d *runDecoder) ended() error {
	if !d.footer {
		return d.damaged("it ends without a footer")
	}
	return nil
}
