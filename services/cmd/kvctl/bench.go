package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"kvstore/client"
)

const benchHelp = `
Each of -c callers has one operation under way at a time (closed loop); over the stream they share frames. Keys are chosen
evenly, or with --zipf S some more often than others. Values are random bytes of one size.

  kvctl bench put -c 256 -d 10s
  kvctl bench get -c 64 --keys 1000000 --zipf 1.1
  kvctl bench mixed --reads 0.95 -n 1000000 -o json
  kvctl bench put --unary -c 64            one RPC for each operation`

var (
	benchPutCommand = command{
		short: "measure durable puts", setup: benchSetup("put"),
		help: "Every put counted is durable." + benchHelp,
	}
	benchGetCommand = command{
		short: "measure linearizable gets", setup: benchSetup("get"),
		help: "The keys are written first, unless --no-load." + benchHelp,
	}
	benchMixedCommand = command{
		short: "measure gets and puts together", setup: benchSetup("mixed"),
		help: "The keys are written first, unless --no-load." + benchHelp,
	}
)

// load is what bench put, get and mixed are asked for.
type load struct {
	kind     string
	callers  int
	duration time.Duration
	ops      int64
	size     size
	keys     int
	zipf     float64
	reads    float64
	unary    bool
	conns    int
	noLoad   bool
	prefix   string
}

// loadResult is their outcome.
type loadResult struct {
	Kind     string       `json:"kind"`
	Callers  int          `json:"callers"`
	Conns    int          `json:"connections"`
	Unary    bool         `json:"unary"`
	Size     int64        `json:"value_bytes"`
	Keys     int          `json:"keys"`
	Zipf     float64      `json:"zipf"`
	Seconds  float64      `json:"seconds"`
	Ops      int64        `json:"ops"`
	OpsPerS  float64      `json:"ops_per_s"`
	Steps    []stepResult `json:"steps"`
	NotFound int64        `json:"not_found"`
}

func benchSetup(kind string) func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
	return func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		l := &load{kind: kind, size: 256}
		fs.IntVar(&l.callers, "c", 64, "`number` of callers, each with one operation under way")
		fs.DurationVar(&l.duration, "d", 10*time.Second, "how `long`, unless -n is given")
		fs.Int64Var(&l.ops, "n", 0, "`number` of operations; 0 = by -d")
		fs.Var(&l.size, "size", "`size` of values, up to 16MiB")
		fs.IntVar(&l.keys, "keys", 10_000, "`number` of different keys")
		fs.Float64Var(&l.zipf, "zipf", 0, "exponent `S` of the keys' popularity, over 1; 0 = all alike")
		fs.BoolVar(&l.unary, "unary", false, "one RPC for each operation instead of the shared stream")
		fs.IntVar(&l.conns, "conns", 1, "`number` of connections")
		fs.StringVar(&l.prefix, "prefix", "bench/", "keys begin with this `text`; they stay")
		fs.BoolVar(&l.noLoad, "no-load", false, "the keys are there already")
		fs.Float64Var(&l.reads, "reads", 0.9, "part of gets in mixed, 0 to 1")
		return func(ctx context.Context, s *session, _ []string) error {
			if err := l.validate(); err != nil {
				return err
			}
			c, err := s.connect(ctx, func(cfg *client.Config) { cfg.Unary, cfg.Connections = l.unary, l.conns })
			if err != nil {
				return err
			}
			res, err := l.run(ctx, s, c)
			if err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(res)
			}
			s.steps(res.Steps...)
			fmt.Fprintf(s.stdout, "%.0f operations/s: %d in %.1f s, %d callers, %d connections, values of %s\n",
				res.OpsPerS, res.Ops, res.Seconds, res.Callers, res.Conns, bytesText(res.Size))
			if res.NotFound > 0 {
				fmt.Fprintf(s.stdout, "%d keys were not found\n", res.NotFound)
			}
			return nil
		}
	}
}

func (l *load) validate() error {
	switch {
	case l.callers < 1 || l.callers > 100_000:
		return usagef("-c %d: want 1 to 100000", l.callers)
	case l.conns < 1 || l.conns > 64:
		return usagef("--conns %d: want 1 to 64", l.conns)
	case l.keys < 1:
		return usagef("--keys %d: want at least 1", l.keys)
	case l.zipf != 0 && l.zipf <= 1:
		return usagef("--zipf %v: want more than 1, or 0", l.zipf)
	case l.reads < 0 || l.reads > 1:
		return usagef("--reads %v: want 0 to 1", l.reads)
	case l.ops < 0 || l.ops == 0 && l.duration <= 0:
		return usagef("give -n or -d, both positive")
	case l.size > 16<<20:
		return usagef("--size %d: at most 16MiB; bench value measures bigger ones", l.size)
	}
	return nil
}

func (l *load) key(i int) string { return fmt.Sprintf("%s%09d", l.prefix, i) }

func (l *load) run(ctx context.Context, s *session, c *client.Client) (loadResult, error) {
	value := make([]byte, l.size)
	fill(value, 1)
	if l.kind != "put" && !l.noLoad {
		if err := l.fillKeys(ctx, c, value); err != nil {
			return loadResult{}, fmt.Errorf("writing the keys first: %w", err)
		}
	}
	puts, gets := newLatency("put"), newLatency("get")
	var started, done, missing atomic.Int64
	began := time.Now()
	progress := startProgress(s.stderr, s.errWidth, func() (float64, string) {
		n, took := done.Load(), time.Since(began)
		part := took.Seconds() / l.duration.Seconds()
		if l.ops > 0 {
			part = float64(n) / float64(l.ops)
		}
		return part, fmt.Sprintf("%.0f operations/s", float64(n)/took.Seconds())
	})
	err := workers(ctx, l.callers, func(ctx context.Context, w int) error {
		rng := rand.New(rand.NewPCG(uint64(w), 7))
		pick := func() int { return rng.IntN(l.keys) }
		if l.zipf > 0 && l.keys > 1 {
			z := rand.NewZipf(rng, l.zipf, 1, uint64(l.keys-1))
			pick = func() int { return int(z.Uint64()) }
		}
		for ctx.Err() == nil {
			if l.ops > 0 && started.Add(1) > l.ops || l.ops == 0 && time.Since(began) >= l.duration {
				return nil
			}
			key := l.key(pick())
			at := time.Now()
			if l.kind == "put" || l.kind == "mixed" && rng.Float64() >= l.reads {
				if _, err := c.Put(ctx, key, value, nil); err != nil {
					return err
				}
				puts.record(time.Since(at), int64(len(value)))
			} else {
				e, err := c.Get(ctx, key, nil)
				if errors.Is(err, client.ErrNotFound) {
					missing.Add(1)
				} else if err != nil {
					return err
				}
				gets.record(time.Since(at), int64(len(e.Value)))
			}
			done.Add(1)
		}
		return ctx.Err()
	})
	took := time.Since(began)
	progress.end()
	if err != nil {
		return loadResult{}, err
	}
	res := loadResult{
		Kind: l.kind, Callers: l.callers, Conns: l.conns, Unary: l.unary, Size: int64(l.size), Keys: l.keys, Zipf: l.zipf,
		Seconds: took.Seconds(), Ops: done.Load(), OpsPerS: float64(done.Load()) / took.Seconds(), NotFound: missing.Load(),
	}
	for _, lat := range []*latency{gets, puts} {
		if r := lat.result(took); r.Count > 0 {
			res.Steps = append(res.Steps, r)
		}
	}
	return res, nil
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
