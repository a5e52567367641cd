package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
)

const benchHelp = `
Closed loop: each of -c callers has one operation under way and begins the next when it is answered. Open loop, with --rate R: R
operations a second begin at their times whether those before are answered or not, as long as no more than -c are under way, and
latency counts from when an operation should have begun, so that a stall is not left out (no coordinated omission).

Over the stream callers share frames. Keys are chosen evenly, or with --zipf S some more often than others (0.99 is YCSB's). Values are
random bytes of one size. What happens in --warmup is not counted.
`

var (
	benchPutCommand = command{
		short: "measure durable puts", setup: benchSetup("put"),
		help: "Every put counted is durable.\n" + benchHelp + `
  kvctl bench put -c 256 -d 10s
  kvctl bench put --rate 2000 -c 1000 -d 10s
  kvctl bench put --unary -c 64            one RPC for each operation`,
	}
	benchGetCommand = command{
		short: "measure linearizable gets", setup: benchSetup("get"),
		help: "The keys are written first, unless --no-load.\n" + benchHelp + `
  kvctl bench get -c 64 --keys 1000000 --zipf 1.1
  kvctl bench get -n 100000 --no-load -o json`,
	}
	benchMixedCommand = command{
		short: "measure gets and puts together", setup: benchSetup("mixed"),
		help: "The keys are written first, unless --no-load.\n" + benchHelp + `
  kvctl bench mixed --reads 0.95 --zipf 0.99 -n 1000000
  kvctl bench mixed --rate 5000 -c 500 -d 30s --hdr -o json      histograms too, as HdrHistogram writes them`,
	}
	benchBatchCommand = command{
		short: "measure batches of puts and gets", setup: benchSetup("batch"),
		help: `One operation is one BatchPut of --batch keys, or, for the part that --reads says, one BatchGet. Keys a second are told too.
` + benchHelp + `
  kvctl bench batch --batch 100 -c 16 -d 10s
  kvctl bench batch --batch 500 --reads 0.5 -c 8 -d 10s`,
	}
	benchWatchCommand = command{
		short: "measure how late watches tell of changes", setup: benchSetup("watch"),
		help: `Puts go to keys that --watchers watches follow; each watch must be told of each put. The step "event" counts from when a put began (or
should have, with --rate) until a watch has told of it, for each watch.
` + benchHelp + `
  kvctl bench watch --watchers 100 --rate 50 -d 10s
  kvctl bench watch --watchers 1 -c 64 -n 10000`,
	}
)

// load is what bench put, get, mixed, batch and watch are asked for.
type load struct {
	kind     string
	callers  int
	duration time.Duration
	warmup   time.Duration
	ops      int64
	rate     float64
	size     size
	keys     int
	zipf     float64
	reads    float64
	batch    int
	watchers int
	unary    bool
	conns    int
	noLoad   bool
	prefix   string
	hdr      bool
	hold     bool
}

// loadResult is their outcome.
type loadResult struct {
	Kind     string       `json:"kind"`
	Mode     string       `json:"mode"` // closed or open
	Rate     float64      `json:"rate,omitempty"`
	Callers  int          `json:"callers"`
	Conns    int          `json:"connections"`
	Unary    bool         `json:"unary"`
	Size     int64        `json:"value_bytes"`
	Keys     int          `json:"keys"`
	Zipf     float64      `json:"zipf"`
	Batch    int          `json:"batch,omitempty"`
	Watchers int          `json:"watchers,omitempty"`
	Seconds  float64      `json:"seconds"`
	Ops      int64        `json:"ops"`
	OpsPerS  float64      `json:"ops_per_s"`
	KeysPerS float64      `json:"keys_per_s,omitempty"` // of batches
	Steps    []stepResult `json:"steps"`
	NotFound int64        `json:"not_found"`
}

func benchSetup(kind string) func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
	return func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		l := &load{kind: kind, size: 256, batch: 1, reads: 1}
		fs.IntVar(&l.callers, "c", 64, "`number` of callers, each with one operation under way; with --rate the most")
		fs.DurationVar(&l.duration, "d", 10*time.Second, "how `long`, unless -n is given")
		fs.Int64Var(&l.ops, "n", 0, "`number` of operations; 0 = by -d")
		fs.DurationVar(&l.warmup, "warmup", 0, "`time` before anything counts; not with -n")
		fs.Float64Var(&l.rate, "rate", 0, "open loop: begin `R` operations a second; 0 = closed loop")
		fs.Var(&l.size, "size", "`size` of values, up to 16MiB")
		fs.IntVar(&l.keys, "keys", 10_000, "`number` of different keys")
		fs.Float64Var(&l.zipf, "zipf", 0, "exponent `S` of the keys' popularity, over 0 and not 1; 0 = all alike")
		fs.BoolVar(&l.unary, "unary", false, "one RPC for each operation instead of the shared stream")
		fs.IntVar(&l.conns, "conns", 1, "`number` of connections")
		fs.StringVar(&l.prefix, "prefix", "bench/", "keys begin with this `text`; they stay")
		fs.BoolVar(&l.hdr, "hdr", false, "with -o json: histograms too")
		fs.BoolVar(&l.hold, "hold", false, "when ready say so on standard error, and begin when standard input ends")
		if kind == "get" || kind == "mixed" || kind == "batch" {
			fs.BoolVar(&l.noLoad, "no-load", false, "the keys are there already")
		}
		switch kind {
		case "put", "watch":
			l.reads = 0
		case "mixed":
			fs.Float64Var(&l.reads, "reads", 0.9, "part of gets, 0 to 1")
		case "batch":
			fs.Float64Var(&l.reads, "reads", 0, "part of batches that are gets, 0 to 1")
			fs.IntVar(&l.batch, "batch", 100, "`number` of keys of a batch, up to 1000")
		}
		if kind == "watch" {
			fs.IntVar(&l.watchers, "watchers", 1, "`number` of watches of all the keys")
		}
		return l.command
	}
}

func (l *load) command(ctx context.Context, s *session, _ []string) error {
	if err := l.validate(); err != nil {
		return err
	}
	c, err := s.connect(ctx, func(cfg *client.Config) { cfg.Unary, cfg.Connections = l.unary, l.conns })
	if err != nil {
		return err
	}
	res, err := l.run(ctx, s, c)
	if err != nil && (ctx.Err() == nil || res.Ops == 0) {
		return err
	}
	if l.hdr {
		err = cmp.Or(err, withHDR(res.Steps))
	}
	return cmp.Or(l.show(s, res), err) // what was measured until Ctrl-C, too
}

func (l *load) show(s *session, res loadResult) error {
	if s.output == "json" {
		return s.json(res)
	}
	s.steps(res.Steps...)
	fmt.Fprintf(s.stdout, "%.0f operations/s: %d in %.1f s, %d callers, %d connections, values of %s\n",
		res.OpsPerS, res.Ops, res.Seconds, res.Callers, res.Conns, bytesText(res.Size))
	if l.batch > 1 {
		fmt.Fprintf(s.stdout, "%.0f keys/s\n", res.KeysPerS)
	}
	if res.NotFound > 0 {
		fmt.Fprintf(s.stdout, "%d keys were not found\n", res.NotFound)
	}
	return nil
}

func (l *load) validate() error {
	switch {
	case l.callers < 1 || l.callers > 100_000:
		return usagef("-c %d: want 1 to 100000", l.callers)
	case l.conns < 1 || l.conns > 64:
		return usagef("--conns %d: want 1 to 64", l.conns)
	case l.keys < 1:
		return usagef("--keys %d: want at least 1", l.keys)
	case !(l.zipf >= 0) || l.zipf == 1: // NaN too
		return usagef("--zipf %v: want more than 0 and not 1, such as 0.99 or 1.1, or 0", l.zipf)
	case !(l.reads >= 0 && l.reads <= 1):
		return usagef("--reads %v: want 0 to 1", l.reads)
	case l.ops < 0 || l.ops == 0 && l.duration <= 0:
		return usagef("give -n or -d, both positive")
	case l.warmup < 0 || l.warmup > 0 && l.ops > 0:
		return usagef("--warmup %v: want a time, and -d", l.warmup)
	case !(l.rate >= 0 && l.rate <= 10_000_000):
		return usagef("--rate %v: want up to 10000000 a second", l.rate)
	case l.size > 16<<20:
		return usagef("--size %d: at most 16MiB; bench value measures bigger ones", l.size)
	case l.batch < 1 || l.batch > 1000:
		return usagef("--batch %d: want 1 to 1000", l.batch)
	case l.batch*int(l.size) > 3<<20:
		return usagef("--batch %d of --size %d: together at most 3MiB", l.batch, l.size)
	case l.kind == "watch" && (l.watchers < 1 || l.watchers > 65_536):
		return usagef("--watchers %d: want 1 to 65536", l.watchers)
	case l.kind == "watch" && (l.size < stampBytes || l.size > 1<<20):
		return usagef("--size %d: want 16 to 1MiB: values hold the time, and events bring them", l.size)
	}
	return nil
}

func (l *load) key(i int) string { return fmt.Sprintf("%s%09d", l.prefix, i) }

// loadRun is a load that runs.
type loadRun struct {
	*load
	c     *client.Client
	value []byte

	puts, gets, events *latency
	choose             *chooser
	id                 uint64       // of this run, random
	epoch              time.Time    // that stamps count from
	began, counts      time.Time    // when it began, and from when on it counts
	countsAt           atomic.Int64 // counts, in nanoseconds after epoch, for watches: they are there before
	started            atomic.Int64 // operations
	done, missing      atomic.Int64
}

func (l *load) run(ctx context.Context, s *session, c *client.Client) (loadResult, error) {
	r := &loadRun{
		load: l, c: c, value: make([]byte, l.size), puts: newLatency("put"), gets: newLatency("get"), events: newLatency("event"),
		choose: newChooser(l.keys, l.zipf), id: rand.Uint64(), epoch: time.Now(),
	}
	r.countsAt.Store(never)
	fill(r.value, 1)
	if l.reads > 0 && !l.noLoad {
		if err := l.fillKeys(ctx, c, r.value); err != nil {
			return loadResult{}, fmt.Errorf("writing the keys first: %w", err)
		}
	}
	var watches *watchesRun
	if l.kind == "watch" {
		var err error
		if watches, err = r.watch(ctx); err != nil {
			return loadResult{}, err
		}
		defer watches.end()
	}
	if l.hold {
		if err := s.hold(); err != nil {
			return loadResult{}, err
		}
	}
	r.began = time.Now()
	r.counts = r.began.Add(l.warmup)
	r.countsAt.Store(int64(r.counts.Sub(r.epoch)))
	progress := startProgress(s.stderr, s.errWidth, func() (float64, string) {
		n, took := r.done.Load(), time.Since(r.began)
		part := took.Seconds() / (l.warmup + l.duration).Seconds()
		if l.ops > 0 {
			part = float64(n) / float64(l.ops)
		}
		return part, fmt.Sprintf("%.0f operations/s", float64(n)/max(0.001, (took-l.warmup).Seconds()))
	})
	err := workers(ctx, l.callers, r.caller)
	took := time.Since(r.counts)
	if err == nil && watches != nil {
		err = watches.await(ctx)
	}
	progress.end()
	n := r.done.Load()
	res := loadResult{
		Kind: l.kind, Mode: "closed", Rate: l.rate, Callers: l.callers, Conns: l.conns, Unary: l.unary, Size: int64(l.size), Keys: l.keys, Zipf: l.zipf,
		Watchers: l.watchers, Seconds: took.Seconds(), Ops: n, OpsPerS: float64(n) / took.Seconds(), NotFound: r.missing.Load(),
	}
	if l.rate > 0 {
		res.Mode = "open"
	}
	if l.kind == "batch" {
		res.Batch, res.KeysPerS = l.batch, res.OpsPerS*float64(l.batch)
	}
	for _, lat := range []*latency{r.gets, r.puts, r.events} {
		if st := lat.result(took); st.Count > 0 {
			res.Steps = append(res.Steps, st)
		}
	}
	return res, err
}

// caller is one of the callers.
func (r *loadRun) caller(ctx context.Context, w int) error {
	rng := rand.New(rand.NewPCG(uint64(w), 7))
	pick := r.choose.picker(rng)
	for ctx.Err() == nil {
		i := r.started.Add(1) - 1
		due := time.Now()
		if r.rate > 0 {
			due = r.began.Add(time.Duration(float64(i) / r.rate * float64(time.Second)))
		}
		if r.ops > 0 && i >= r.ops || r.ops == 0 && due.Sub(r.counts) >= r.duration && r.done.Load() > 0 { // one at least tells something
			return nil
		}
		if err := waitUntil(ctx, due); err != nil {
			return err
		}
		if err := r.operation(ctx, rng, pick, due); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// operation does one operation, which was due at a time.
func (r *loadRun) operation(ctx context.Context, rng *rand.Rand, pick func() int, due time.Time) error {
	lat := r.gets
	var bytes int
	var err error
	read := r.reads > 0 && rng.Float64() < r.reads
	switch {
	case r.kind == "batch" && read:
		bytes, err = r.batchGet(ctx, pick)
	case r.kind == "batch":
		lat, bytes = r.puts, r.batch*len(r.value)
		err = r.batchPut(ctx, pick)
	case read:
		var e client.Entry
		if e, err = r.c.Get(ctx, r.key(pick()), nil); errors.Is(err, client.ErrNotFound) {
			r.missing.Add(1)
			err = nil
		}
		bytes = len(e.Value)
	default:
		lat, bytes = r.puts, len(r.value)
		value := r.value
		if r.kind == "watch" {
			value = r.stamped(due)
		}
		_, err = r.c.Put(ctx, r.key(pick()), value, nil)
	}
	if err == nil && !due.Before(r.counts) {
		lat.record(time.Since(due), int64(bytes))
		r.done.Add(1)
	}
	return err
}

func (r *loadRun) batchPut(ctx context.Context, pick func() int) error {
	items := make([]client.PutItem, r.batch)
	for i := range items {
		items[i] = client.PutItem{Key: r.key(pick()), Value: r.value}
	}
	outs, err := r.c.BatchPut(ctx, items)
	for _, out := range outs {
		err = cmp.Or(err, out.Err)
	}
	return err
}

func (r *loadRun) batchGet(ctx context.Context, pick func() int) (bytes int, err error) {
	keys := make([]string, r.batch)
	for i := range keys {
		keys[i] = r.key(pick())
	}
	outs, err := r.c.BatchGet(ctx, keys, nil)
	for _, out := range outs {
		switch {
		case errors.Is(out.Err, client.ErrNotFound):
			r.missing.Add(1)
		case out.Err != nil:
			return 0, out.Err
		}
		bytes += len(out.Value)
	}
	return bytes, err
}

// fillKeys writes every key once.
func (l *load) fillKeys(ctx context.Context, c *client.Client, value []byte) error {
	var next atomic.Int64
	return workers(ctx, min(256, l.keys), func(ctx context.Context, _ int) error {
		for {
			i := int(next.Add(1)) - 1
			if i >= l.keys {
				return nil
			}
			if _, err := c.Put(ctx, l.key(i), value, nil); err != nil {
				return err
			}
		}
	})
}

// Values of bench watch begin with a number of their run, for others may put there too, and when their put was due, in nanoseconds after the
// epoch of the run.
const stampBytes = 16

func (r *loadRun) stamped(due time.Time) []byte {
	value := append([]byte(nil), r.value...)
	binary.BigEndian.PutUint64(value, r.id)
	binary.BigEndian.PutUint64(value[8:], uint64(due.Sub(r.epoch)))
	return value
}

// stamp reads a stamp of this run.
func (r *loadRun) stamp(value []byte) (due time.Duration, ok bool) {
	if len(value) < stampBytes || binary.BigEndian.Uint64(value) != r.id {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint64(value[8:])), true
}

// watchesRun are the watches of a run.
type watchesRun struct {
	r      *loadRun
	more   chan struct{} // a watch was told of something; 1 waits
	failed chan error
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// watch starts the watches and returns when all of them watch.
func (r *loadRun) watch(ctx context.Context) (*watchesRun, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watchesRun{r: r, more: make(chan struct{}, 1), failed: make(chan error, 1), cancel: cancel}
	var stand sync.WaitGroup
	stand.Add(r.watchers)
	for range r.watchers {
		w.wg.Go(func() {
			if err := w.follow(ctx, sync.OnceFunc(stand.Done)); err != nil && ctx.Err() == nil {
				select {
				case w.failed <- err:
				default:
				}
			}
		})
	}
	all := make(chan struct{})
	go func() {
		stand.Wait()
		close(all)
	}()
	select {
	case <-all:
		return w, nil
	case err := <-w.failed:
		w.end()
		return nil, err
	case <-ctx.Done():
		w.end()
		return nil, ctx.Err()
	}
}

// follow is one watch.
func (w *watchesRun) follow(ctx context.Context, stands func()) error {
	defer stands() // also when it failed
	for b, err := range w.r.c.Watch(ctx, &client.WatchOptions{Prefix: w.r.prefix, All: true}) {
		if err != nil {
			return err
		}
		if b.Started {
			stands()
		}
		for i := range b.Events {
			e := &b.Events[i]
			if due, ok := w.r.stamp(e.Value); ok && int64(due) >= w.r.countsAt.Load() {
				w.r.events.record(time.Since(w.r.epoch)-due, e.Size)
			}
		}
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
	return nil
}

// eventPatience is how long no event may come while some are missing.
const eventPatience = 10 * time.Second

// await waits until every watch has told of every put.
func (w *watchesRun) await(ctx context.Context) error {
	want := w.r.done.Load() * int64(w.r.watchers)
	for {
		have := w.r.events.count()
		if have >= want {
			return nil
		}
		select {
		case <-w.more:
		case err := <-w.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(eventPatience):
			return fmt.Errorf("watches have told of %d changes, %d were made (for each watch)", have, want)
		}
	}
}

func (w *watchesRun) end() {
	w.cancel()
	w.wg.Wait()
}
