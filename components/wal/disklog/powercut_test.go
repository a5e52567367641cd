package disklog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"kvstore/components/wal/disklog/vfs/faultfs"
	"kvstore/components/wal/driver"
)

// TestPowerCuts works at random on a disk that loses power at random operations and whose syncs and writes sometimes
// fail, and checks after each restart that everything acknowledged is there and nothing else. KVSTORE_SEED repeats one run, as far
// as the engine's goroutines allow; KVSTORE_ROUNDS makes it longer.
func TestPowerCuts(t *testing.T) {
	first, rounds := uint64(1), 40
	if testing.Short() {
		rounds = 15
	}
	if s := os.Getenv("KVSTORE_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		rounds = 1
	}
	if s := os.Getenv("KVSTORE_ROUNDS"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	var total tally
	for seed := first; seed < first+uint64(rounds); seed++ {
		w := &worker{
			t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), disk: faultfs.New(testDisk), shards: map[string]*shardModel{},
		}
		for range 6 {
			w.life()
		}
		total.add(w.tally)
		if t.Failed() {
			t.Fatalf("repeat with KVSTORE_SEED=%d go test -run TestPowerCuts ./components/wal/disklog", seed)
		}
	}
	t.Logf("%+v", total)
	if total.acked < rounds*100 || total.cuts < rounds || (rounds > 30 && (total.faults == 0 || total.unknownKept == 0 || total.unknownLost == 0)) {
		t.Errorf("the run proves little: %+v", total)
	}
}

// tally counts what a run has seen.
type tally struct{ acked, cuts, faults, unknownKept, unknownLost, objects, deleted, trims int }

func (a *tally) add(b tally) {
	a.acked += b.acked
	a.cuts += b.cuts
	a.faults += b.faults
	a.unknownKept += b.unknownKept
	a.unknownLost += b.unknownLost
	a.objects += b.objects
	a.deleted += b.deleted
	a.trims += b.trims
}

// shardModel is what the store must hold of one shard.
type shardModel struct {
	epoch    uint64
	last     uint64
	kept     uint64              // trims that were acknowledged
	mayKept  uint64              // a trim whose outcome is unknown, 0 = none
	records  map[uint64][][]byte // in the log; more than one if it is not known which of them, until it is read
	maybe    map[uint64][][]byte // tried, outcome unknown
	manifest []byte
	mayMan   []byte // a manifest whose outcome is unknown
	tag      driver.Tag
	objects  map[string][]byte
	loose    map[string][]byte // objects that may be there: deleted, or their put failed
}

type worker struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	disk    *faultfs.FS
	e       *Engine
	shards  map[string]*shardModel
	counter int
	tally   tally
}

// life opens the store, checks it, works until the power is cut or enough was done, and leaves the disk for the next.
func (w *worker) life() {
	cuts := w.rng.IntN(4) > 0
	if cuts && w.rng.IntN(3) == 0 { // perhaps while opening
		w.arm(w.rng.IntN(60))
	}
	cfg := Config{SegmentBytes: 32 << 10, PackBytes: minPack, Reserve: -1, FS: w.disk}
	e, err := Open("/data", cfg)
	if err != nil {
		if !w.gone(err) && !errors.Is(err, syscall.EIO) {
			w.t.Errorf("seed %d: open: %v", w.seed, err)
		}
		w.cut()
		return
	}
	w.e = e
	if d := e.Damage(); len(d) > 0 {
		w.t.Errorf("seed %d: damage: %v", w.seed, d)
	}
	if w.check() && cuts {
		w.arm(w.rng.IntN(400))
	}
	for range 60 {
		if !w.step() {
			break
		}
	}
	if !cuts && w.rng.IntN(2) == 0 {
		if err := e.Close(); err != nil {
			w.t.Errorf("seed %d: close: %v", w.seed, err)
		}
		w.disk.SetHook(nil)
		return
	}
	w.cut()
}

func (w *worker) cut() {
	w.tally.cuts++
	w.disk.CutPower()
	if w.e != nil {
		_ = w.e.Close()
	}
	w.disk = w.disk.AfterCut(w.rng)
}

// arm has the power cut at the n-th change from now on, and perhaps a sync or write fail before.
func (w *worker) arm(n int) {
	left := n
	faultIn := -1
	if w.rng.IntN(2) == 0 && n > 0 {
		faultIn = w.rng.IntN(n)
	}
	short := w.rng.IntN(3000)
	var faults atomic.Int64
	disk := w.disk
	disk.SetHook(func(op faultfs.Op, name string) error {
		if !op.Changes() {
			return nil
		}
		if left--; left < 0 {
			disk.CutFromHook()
			return nil
		}
		if faultIn--; faultIn < 0 && faults.Load() == 0 && (strings.Contains(name, segmentsDir) || strings.Contains(name, packsDir)) && left%3 == 0 {
			switch op {
			case faultfs.Sync:
				faults.Add(1)
				return syscall.EIO
			case faultfs.Write:
				faults.Add(1)
				return &faultfs.ShortWrite{N: short, Err: syscall.EIO}
			}
		}
		return nil
	})
}

// gone reports whether err means that the life is over; other errors of operations must be expected ones.
func (w *worker) gone(err error) bool { return errors.Is(err, faultfs.ErrPowerCut) }

// fence takes a shard over and settles what is unknown of it.
func (w *worker) fence(name string, m *shardModel) bool {
	for range 10 { // at most two writes fail in a life
		m.epoch++
		data := fmt.Appendf(nil, "fence %d", m.epoch)
		seq, err := w.e.Fence(ctx, name, epoch(m.epoch), func(seq, _ uint64) []byte {
			m.maybe[seq] = append(m.maybe[seq], data)
			return data
		})
		if err == nil {
			// What was unknown is settled now: it is in the log if it is before the fence.
			for s := m.last + 1; s < seq; s++ {
				if m.records[s] = m.maybe[s]; len(m.records[s]) == 0 {
					w.t.Errorf("seed %d: %s: fence at %d, the log ended at %d", w.seed, name, seq, m.last)
				}
				w.tally.unknownKept++
			}
			if len(m.maybe) > int(seq-m.last) {
				w.tally.unknownLost++
			}
			if len(m.maybe[seq]) > 1 {
				w.tally.unknownLost++
			}
			clear(m.maybe)
			m.records[seq], m.last = [][]byte{data}, seq
			return true
		}
		if w.gone(err) || errors.Is(err, driver.ErrRefused) {
			return false
		}
		w.tally.faults++ // outcome unknown: again
	}
	w.t.Errorf("seed %d: %s: no fence succeeds", w.seed, name)
	return false
}

// check compares the store with the model and takes every shard over.
func (w *worker) check() bool {
	for name, m := range w.shards {
		got, tag, err := w.e.Manifest(ctx, name)
		switch {
		case w.gone(err):
			return false
		case err != nil && (m.manifest != nil || !errors.Is(err, driver.ErrNotExist)):
			w.t.Errorf("seed %d: %s: manifest: %v", w.seed, name, err)
			return false
		case err != nil: // its first manifest never came to be
			delete(w.shards, name)
			continue
		case !bytes.Equal(got, m.manifest) && (m.mayMan == nil || !bytes.Equal(got, m.mayMan)):
			w.t.Errorf("seed %d: %s: manifest %q, want %q or %q", w.seed, name, got, m.manifest, m.mayMan)
		}
		m.manifest, m.tag, m.mayMan = got, tag, nil
		if !w.fence(name, m) || !w.checkLog(name, m) {
			return false
		}
		if !w.checkObjects(name, m) {
			return false
		}
	}
	return true
}

func (w *worker) checkObjects(name string, m *shardModel) bool {
	listed := map[string]int64{}
	err := w.e.ListObjects(ctx, name, "", func(o string, size int64) error {
		listed[o] = size
		return nil
	})
	if err == nil {
		err = w.wantObjects(name, m.objects, func(o string) bool {
			_, ok := listed[o]
			delete(listed, o)
			return ok
		})
	}
	if err == nil {
		there := maps.Clone(m.loose) // a later cut can bring one back
		maps.DeleteFunc(there, func(o string, _ []byte) bool { _, ok := listed[o]; return !ok })
		err = w.wantObjects(name, there, func(o string) bool { delete(listed, o); return true })
	}
	if err == nil && len(listed) > 0 {
		err = fmt.Errorf("listed and never put: %v", listed)
	}
	if w.gone(err) {
		return false
	}
	if err != nil {
		w.t.Errorf("seed %d: %s: %v", w.seed, name, err)
	}
	return err == nil
}

// wantObjects compares objects with the store. Seen tells of each whether it was listed.
func (w *worker) wantObjects(name string, objects map[string][]byte, seen func(o string) bool) error {
	for o, want := range objects {
		if !seen(o) {
			return fmt.Errorf("object %s is not listed", o)
		}
		b := make([]byte, len(want))
		if err := w.e.GetObject(ctx, name, o, 0, b); err != nil || !bytes.Equal(b, want) {
			return fmt.Errorf("object %s of %d bytes: %w", o, len(want), err)
		}
	}
	return nil
}

// putSome stores several objects at once, so that they share syncs, and deletes some.
func (w *worker) putSome() bool {
	name, m := w.any()
	type outcome struct {
		object string
		data   []byte
		err    error
	}
	n := 1 + w.rng.IntN(4)
	results := make(chan outcome, n)
	for range n {
		w.counter++
		o := outcome{object: fmt.Sprintf("v/%d/%d", m.epoch, w.counter), data: w.data()}
		if w.rng.IntN(3) == 0 {
			o.data = bytes.Repeat(append(o.data, byte(w.counter)), 4)
		}
		size := int64(len(o.data))
		if w.rng.IntN(4) == 0 { // a file of its own, some so long that they are removed in pieces
			o.object, size = fmt.Sprintf("%s%d/%d", driver.CheckpointPrefix, m.epoch, w.counter), -1
			o.data = bytes.Repeat(append(o.data, byte(w.counter)), 1+w.rng.IntN(100))
		}
		go func() {
			o.err = w.e.PutObject(ctx, name, o.object, size, bytes.NewReader(o.data))
			results <- o
		}()
	}
	alive := true
	for range n {
		o := <-results
		if o.err == nil {
			m.objects[o.object] = o.data
			w.tally.objects++
			continue
		}
		m.loose[o.object] = o.data
		if w.gone(o.err) {
			alive = false
		} else {
			w.tally.faults++
		}
	}
	for _, o := range slices.Sorted(maps.Keys(m.objects)) {
		if !alive || w.rng.IntN(4) > 0 {
			continue
		}
		m.loose[o] = m.objects[o]
		delete(m.objects, o)
		if err := w.e.DeleteObject(ctx, name, o); err == nil {
			w.tally.deleted++
		} else if alive = !w.gone(err); alive {
			w.tally.faults++
		}
	}
	return alive
}

func (w *worker) checkLog(name string, m *shardModel) bool {
	from := max(m.kept, 1)
	err := w.e.Read(ctx, name, from, func(driver.Frame) error { return nil })
	if errors.Is(err, driver.ErrNotExist) && m.mayKept > from {
		m.kept, from = m.mayKept, m.mayKept
	}
	m.mayKept = 0
	next := from
	err = w.e.Read(ctx, name, from, func(f driver.Frame) error {
		if f.Seq != next {
			return fmt.Errorf("record %d, want %d", f.Seq, next)
		}
		i := slices.IndexFunc(m.records[next], func(b []byte) bool { return bytes.Equal(f.Data, b) })
		if i < 0 {
			return fmt.Errorf("record %d is not what was written", next)
		}
		m.records[next] = m.records[next][i : i+1]
		next++
		return nil
	})
	if w.gone(err) {
		return false
	}
	if err != nil || next != m.last+1 {
		w.t.Errorf("seed %d: %s: read %d to %d: %v, want up to %d", w.seed, name, from, next, err, m.last)
		return false
	}
	return true
}

// step does one random thing; false when the life is over.
func (w *worker) step() bool {
	switch k := w.rng.IntN(20); {
	case k == 0 && len(w.shards) < 5:
		w.counter++
		name := fmt.Sprintf("s-%d", w.counter)
		m := &shardModel{records: map[uint64][][]byte{}, maybe: map[uint64][][]byte{}, objects: map[string][]byte{}, loose: map[string][]byte{}}
		w.shards[name] = m
		return w.swap(name, m) && w.fence(name, m)
	case len(w.shards) == 0:
		return true
	case k < 14:
		return w.appendSome()
	case k < 17:
		name, m := w.any()
		below := m.last - min(m.last, w.rng.Uint64N(4))
		err := w.e.Trim(ctx, name, epoch(m.epoch), below)
		switch {
		case err == nil:
			m.kept = max(m.kept, below, 1)
			w.tally.trims++
		case w.gone(err):
			m.mayKept = below
			return false
		case errors.Is(err, driver.ErrRefused):
			return false
		default:
			m.mayKept = max(m.mayKept, below)
			w.tally.faults++
		}
		return true
	case k < 19:
		return w.putSome()
	default:
		name, m := w.any()
		return w.swap(name, m)
	}
}

func (w *worker) swap(name string, m *shardModel) bool {
	w.counter++
	data := fmt.Appendf(nil, "manifest %d", w.counter)
	tag, err := w.e.SwapManifest(ctx, name, m.tag, data)
	if err == nil {
		m.manifest, m.tag, m.mayMan = data, tag, nil
		return true
	}
	m.mayMan = data
	if !w.gone(err) {
		w.t.Errorf("seed %d: %s: swap: %v", w.seed, name, err)
	}
	return false
}

func (w *worker) any() (string, *shardModel) {
	n := w.rng.IntN(len(w.shards))
	for i := range w.counter + 1 {
		if m := w.shards[fmt.Sprintf("s-%d", i)]; m != nil {
			if n--; n < 0 {
				return fmt.Sprintf("s-%d", i), m
			}
		}
	}
	panic("unreachable")
}

// data is random, all zeros, or zeros with something in them, the hardest to tell from a sector that was never written.
func (w *worker) data() []byte {
	b := make([]byte, w.rng.IntN(3000))
	switch w.rng.IntN(4) {
	case 0:
	case 1:
		if len(b) > 0 {
			b[w.rng.IntN(len(b))] = 1
		}
	default:
		for i := range b {
			b[i] = byte(w.rng.Uint32())
		}
	}
	return b
}

// appendSome appends to several shards at once, so that they share batches.
func (w *worker) appendSome() bool {
	type outcome struct {
		name string
		err  error
	}
	results := make(chan outcome, len(w.shards))
	tried := map[string][]byte{}
	for range 1 + w.rng.IntN(len(w.shards)) {
		name, m := w.any()
		if tried[name] != nil {
			continue
		}
		tried[name] = w.data()
		w.e.Append(name, epoch(m.epoch), driver.Frame{Epoch: m.epoch, Seq: m.last + 1, Data: tried[name]}, func(err error) {
			results <- outcome{name, err}
		})
	}
	alive := true
	for range tried {
		r := <-results
		m := w.shards[r.name]
		switch {
		case r.err == nil:
			m.last++
			m.records[m.last] = [][]byte{tried[r.name]}
			w.tally.acked++
		case errors.Is(r.err, driver.ErrRefused): // the log failed twice; nothing was written
			alive = false
		default:
			m.maybe[m.last+1] = append(m.maybe[m.last+1], tried[r.name])
			if w.gone(r.err) {
				alive = false
				continue
			}
			w.tally.faults++
			alive = w.fence(r.name, m) && alive
		}
	}
	return alive
}
