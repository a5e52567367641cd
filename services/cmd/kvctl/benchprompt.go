package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"kvstore/client"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

var benchPromptCommand = command{
	args: "", min: 0, max: 0,
	short: "replay a trace of prompts against the prompt cache",
	help: `One request of the trace is one Lookup of its blocks (longest prefix), one Read of the hits, and one Write of the misses.
Ids and bytes of blocks follow from the trace, and every byte read is compared: any block that is not what was written
makes the exit code 1, and so does any that the server did not store (no room on its disk, say): then the figures are of less work.

By default -c callers take requests in the trace's order, each when it has done the one before. --ordered is the same with
one caller: then the hit ratio is exact (36.64 % of 288,500 blocks for the conversation trace without a capacity).
--rate R starts R requests a second whether the ones before are done or not; --rate x10 keeps the trace's own times, ten
times as fast. Latency of whole requests then counts from when they should have started.

Tokens a second count 512 tokens for each block that was read and verified, or newly and durably written.

Blocks go into a namespace of kind prompt that is made for the run and deleted behind it. To stop half-way and go on later:

  kvctl bench prompt --trace conversation.jsonl.gz --ordered
  kvctl bench prompt --trace conversation.jsonl.gz -c 32 --block-bytes 16KiB --capacity 30000
  kvctl bench prompt --trace conversation.jsonl.gz --ordered --name half --keep --limit 6000
  kvctl bench prompt --trace conversation.jsonl.gz --ordered --name half --from 6000`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		r := &replay{blockBytes: 16 << 10}
		fs.StringVar(&r.trace, "trace", "", "`file` of JSON lines with hash_ids, gzipped or not")
		fs.BoolVar(&r.ordered, "ordered", false, "one request strictly after the other")
		fs.IntVar(&r.callers, "c", 32, "`number` of requests under way at once; with --rate the most")
		fs.StringVar(&r.rate, "rate", "", "open loop: `R` requests a second, or xN: the trace's times N times as fast")
		fs.Var(&r.blockBytes, "block-bytes", "`size` of a block")
		fs.Int64Var(&r.capacity, "capacity", 0, "`blocks` that the namespace keeps; 0 = no limit, or what the namespace of --name has")
		fs.IntVar(&r.from, "from", 0, "start with this request of the trace, counted from 0")
		fs.IntVar(&r.limit, "limit", 0, "replay at most this `number` of requests; 0 = all")
		fs.DurationVar(&r.lease, "lease", 0, "lease the hits for this `time` while they are read; 0 = no lease")
		fs.StringVar(&r.name, "name", "", "`namespace` to use; when it is not there it is made, and deleted behind the run without --keep")
		fs.BoolVar(&r.keep, "keep", false, "do not delete the namespace")
		fs.IntVar(&r.conns, "conns", 1, "`number` of connections")
		fs.StringVar(&r.out, "out", "", "write the JSON result to this `file` too")
		fs.BoolVar(&r.hdr, "hdr", false, "histograms too in the JSON result")
		fs.BoolVar(&r.hold, "hold", false, "when ready say so on standard error, and begin when standard input ends")
		return r.command
	},
}

// tokensPerBlock is what a block of the trace stands for.
const tokensPerBlock = 512

// replay is a run of bench prompt.
type replay struct {
	trace      string
	ordered    bool
	callers    int
	rate       string
	blockBytes size
	capacity   int64
	from       int
	limit      int
	lease      time.Duration
	name       string
	keep       bool
	conns      int
	out        string
	hdr        bool
	hold       bool

	perSecond float64 // of --rate R
	speed     float64 // of --rate xN
}

// replayResult is its outcome.
type replayResult struct {
	Trace       string       `json:"trace"`
	Namespace   string       `json:"namespace"`
	Mode        string       `json:"mode"` // ordered, closed or open
	Callers     int          `json:"callers"`
	BlockBytes  int64        `json:"block_bytes"`
	Capacity    int64        `json:"capacity_blocks"`
	From        int          `json:"from"`
	Next        int          `json:"next"` // first request of the trace that was not replayed: the --from to go on with
	Seconds     float64      `json:"seconds"`
	Requests    int64        `json:"requests"`
	Blocks      int64        `json:"blocks"`
	Hits        int64        `json:"hits"`
	HitRatio    float64      `json:"hit_ratio"` // of blocks
	Read        int64        `json:"blocks_read_verified"`
	Written     int64        `json:"blocks_written"`
	Existing    int64        `json:"blocks_already_there"`
	Lost        int64        `json:"blocks_lost_before_read"` // found by lookup, missed by read
	Refused     int64        `json:"blocks_refused"`          // the server stored them not
	Wrong       int64        `json:"blocks_wrong"`
	RequestsPS  float64      `json:"requests_per_s"`
	TokensPS    float64      `json:"tokens_per_s"`
	Steps       []stepResult `json:"steps"`
	FirstRefuse string       `json:"first_refusal,omitempty"`
	Failure     string       `json:"failure,omitempty"`
}

// verdict is what makes the figures of a replay those of something else.
func (res *replayResult) verdict() error {
	var refused error
	if res.Refused > 0 {
		refused = fmt.Errorf("%d blocks were not stored, the first because: %s", res.Refused, res.FirstRefuse)
	}
	return errors.Join(wrongBlocks(res.Wrong), refused)
}

// wrongBlocks is nil for none.
func wrongBlocks(n int64) error {
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d blocks that were read are not what was written", n)
}

func (r *replay) validate() error {
	switch {
	case r.trace == "":
		return usagef("bench prompt: --trace FILE is missing: JSON lines with hash_ids, such as tests/load/testdata has")
	case r.callers < 1 || r.callers > 4096:
		return usagef("-c %d: want 1 to 4096", r.callers)
	case r.conns < 1 || r.conns > 64:
		return usagef("--conns %d: want 1 to 64", r.conns)
	case r.blockBytes < 1 || r.blockBytes > 512<<20:
		return usagef("--block-bytes %d: want 1 to 512MiB", r.blockBytes)
	case r.capacity < 0 || r.from < 0 || r.limit < 0:
		return usagef("--capacity, --from and --limit are not negative")
	case r.lease < 0 || r.lease > 30*time.Second:
		return usagef("--lease %v: want 0 to 30s", r.lease)
	case r.ordered && r.rate != "":
		return usagef("--ordered and --rate exclude each other")
	}
	if r.ordered {
		r.callers = 1
	}
	if n, ok := strings.CutPrefix(r.rate, "x"); ok {
		r.speed, _ = strconv.ParseFloat(n, 64)
	} else if r.rate != "" {
		r.perSecond, _ = strconv.ParseFloat(r.rate, 64)
	}
	if r.rate != "" && !(r.speed > 0) && !(r.perSecond > 0) { // NaN too
		return usagef("--rate %s: want requests a second, such as 50, or a speed, such as x10", r.rate)
	}
	return nil
}

func (r *replay) command(ctx context.Context, s *session, _ []string) error {
	if err := r.validate(); err != nil {
		return err
	}
	requests, err := readTrace(r.trace)
	if err != nil {
		return err
	}
	if r.from >= len(requests) {
		return usagef("--from %d: the trace has %d requests", r.from, len(requests))
	}
	requests = requests[r.from:]
	if r.limit > 0 {
		requests = requests[:min(r.limit, len(requests))]
	}
	c, err := s.connect(ctx, func(cfg *client.Config) { cfg.Connections, cfg.Unary = r.conns, true })
	if err != nil {
		return err
	}
	ns, drop, err := r.namespace(ctx, c)
	if err != nil {
		return err
	}
	p := newReplayer(r, c.In(s.keyspace, ns), requests)
	if r.hold {
		if err := s.hold(); err != nil {
			return err
		}
	}
	stopped := p.run(ctx, s)
	res := p.result(ns)
	failure := errors.Join(stopped, res.verdict())
	if r.hdr {
		failure = cmp.Or(failure, withHDR(res.Steps))
	}
	if failure != nil {
		res.Failure = failure.Error()
	}
	if err := r.show(s, res); err != nil {
		failure = cmp.Or(failure, err)
	}
	if stopped == nil {
		failure = cmp.Or(failure, drop())
	} else {
		fmt.Fprintf(s.stderr, "stopped at request %d; namespace %s is kept: go on with --name %[2]s --from %[1]d\n", res.Next, ns)
	}
	return failure
}

// namespace finds or makes the namespace of a run. drop deletes it again when this run has made it. The capacity of one that is
// there is not changed behind its owner's back: another --capacity than it has is refused.
func (r *replay) namespace(ctx context.Context, c *client.Client) (name string, drop func() error, err error) {
	if name = r.name; name == "" {
		name = "bench-" + strings.ToLower(rand.Text()[:10])
	}
	nothing := func() error { return nil }
	_, err = c.CreateNamespace(ctx, &kvstorev1.Namespace{
		Name: name, Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT, CapacityBlocks: r.capacity,
	})
	switch {
	case errors.Is(err, client.ErrAlreadyExists):
		ns, err := c.GetNamespace(ctx, name)
		if err != nil {
			return "", nil, err
		}
		if r.capacity != 0 && r.capacity != ns.CapacityBlocks {
			return "", nil, usagef("--capacity %d: namespace %s is there, with %d (0 = no limit); leave --capacity out, or change it before: "+
				"kvctl namespace update %[2]s --capacity-blocks %[1]d", r.capacity, name, ns.CapacityBlocks)
		}
		r.capacity = ns.CapacityBlocks
		return name, nothing, nil
	case err != nil:
		return "", nil, err
	case r.keep:
		return name, nothing, nil
	}
	return name, func() error { return c.DeleteNamespace(context.WithoutCancel(ctx), name, name) }, nil
}

// show prints the result, and writes it to --out.
func (r *replay) show(s *session, res replayResult) error {
	if r.out != "" {
		if err := writeFile(r.out, func(w io.Writer) error { return writeJSON(w, res) }); err != nil {
			return err
		}
	}
	if s.output == "json" {
		return s.json(res)
	}
	s.steps(res.Steps...)
	fmt.Fprintf(s.stdout, "\nhit ratio %.2f %% (%d of %d blocks), %d requests in %.1f s\n",
		res.HitRatio*100, res.Hits, res.Blocks, res.Requests, res.Seconds)
	fmt.Fprintf(s.stdout, "%.0f tokens/s, %.1f requests/s; %d blocks read and verified, %d written, %d already there\n",
		res.TokensPS, res.RequestsPS, res.Read, res.Written, res.Existing)
	if res.Lost > 0 {
		fmt.Fprintf(s.stdout, "%d blocks were evicted between lookup and read (--lease keeps them)\n", res.Lost)
	}
	if res.Refused > 0 {
		fmt.Fprintf(s.stdout, "%d blocks were not stored\n", res.Refused)
	}
	if res.Wrong > 0 {
		fmt.Fprintf(s.stdout, "%d BLOCKS WERE WRONG\n", res.Wrong)
	}
	return nil
}
