// Command peerbench runs peers and this store in one go, on one machine and one disk, with one load generator, and prints
// ratios: absolute figures drift from machine to machine, ratios of interleaved runs much less. Everything is durable
// (etcd: fsync, Redis: appendfsync always), values have 256 bytes, keys follow a Zipf law over 10,000.
//
//	peerbench -bin bin            all of it, some minutes
//	peerbench -bin bin -quick     2-second runs, one round: to see that it works, not to quote
//	peerbench -bin bin -only cluster -profile DIR    the cluster alone, with the processor time of each kind of process, and CPU profiles
//
// It exits with 1 when a target is missed (with -quick never).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// bench is one invocation.
type bench struct {
	bin    string
	dir    string
	d      time.Duration
	rounds int
	only   string
	match  string
	keys   int // of the growth part

	watched  watched // whose processor time is told; nil: nobody's
	profiles string  // folder for CPU profiles; empty: none are taken
	report   report
}

// row is one comparison: the median of the rounds' ratios, and the figures of the median round.
type row struct {
	Name   string  `json:"name"`
	What   string  `json:"what"` // "throughput" or "p50"
	Ours   outcome `json:"ours"`
	Peer   outcome `json:"peer"`
	PeerIs string  `json:"peer_is"`
	Ratio  float64 `json:"ratio"`
	Target float64 `json:"target,omitempty"`
	AtMost bool    `json:"at_most,omitempty"` // the target is an upper bound
}

func (r row) met() bool {
	return r.Target == 0 || (r.AtMost && r.Ratio <= r.Target) || (!r.AtMost && r.Ratio >= r.Target)
}

// figure is one measured value with its bound.
type figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target,omitempty"`
	AtMost bool    `json:"at_most,omitempty"`
	Note   string  `json:"note,omitempty"`
}

func (f figure) met() bool {
	return f.Target == 0 || (f.AtMost && f.Value <= f.Target) || (!f.AtMost && f.Value >= f.Target)
}

type report struct {
	When    string   `json:"when"`
	Rows    []row    `json:"rows"`
	Figures []figure `json:"figures"`
	Costs   []cost   `json:"costs,omitempty"`
}

func main() {
	var b bench
	var out string
	quick := flag.Bool("quick", false, "short runs, one round, no verdict")
	flag.StringVar(&b.bin, "bin", "bin", "folder with kvstored, kvctl and etcdd")
	flag.StringVar(&b.dir, "dir", "", "folder for all data, on the disk to measure (default: a temporary one beside -bin)")
	flag.DurationVar(&b.d, "d", 5*time.Second, "length of a run")
	flag.IntVar(&b.rounds, "rounds", 3, "interleaved rounds of each comparison")
	flag.StringVar(&b.only, "only", "", "comma-separated parts: kv, prompt, blocks, growth, cluster, watch, resp, eyes (default all)")
	flag.StringVar(&b.match, "match", "", "of those parts only the comparisons whose name contains this")
	flag.IntVar(&b.keys, "keys", 10_000_000, "keys of the growth part, more than a million")
	flag.StringVar(&b.profiles, "profile", "", "folder for CPU profiles of hosts and frontends, one set for each run of the cluster part; they cost some throughput")
	flag.StringVar(&out, "out", "", "write the result as JSON to this file")
	flag.Parse()
	if *quick {
		b.d, b.rounds = 2*time.Second, 1
	}
	if err := b.main(context.Background(), out); err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
	if missed := b.missed(); len(missed) > 0 && !*quick {
		fmt.Fprintf(os.Stderr, "peerbench: %d target(s) missed: %s\n", len(missed), strings.Join(missed, "; "))
		os.Exit(1)
	}
}

func (b *bench) main(ctx context.Context, out string) error {
	var err error
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp(filepath.Dir(b.bin), "bench-*"); err != nil {
			return err
		}
		defer os.RemoveAll(b.dir)
	} else if err = os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	b.report.When = time.Now().UTC().Format(time.RFC3339)
	parts := []struct {
		name string
		run  func(context.Context) error
	}{{"kv", b.kv}, {"prompt", b.prompt}, {"blocks", b.blocks}, {"growth", b.growth}, {"cluster", b.cluster}, {"watch", b.watches}, {"resp", b.resp}, {"eyes", b.eyes}}
	for _, p := range parts {
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), p.name) {
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.print()
	if out != "" {
		data, err := json.MarshalIndent(b.report, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(out, append(data, '\n'), 0o644)
	}
	return nil
}

// pair is a comparison to run.
type pair struct {
	name   string
	l      load
	ours   system
	peer   system
	peerIs string
	p50    bool
	target float64
	atMost bool
}

func (b *bench) compare(ctx context.Context, p pair) error {
	if !strings.Contains(p.name, b.match) {
		return nil
	}
	p.l.d = b.d
	var rows []row
	for i := range b.rounds {
		p.l.seed = uint64(i + 1)
		fmt.Fprintf(os.Stderr, "%-34s round %d/%d\r", p.name, i+1, b.rounds)
		peer, err := b.run(ctx, p.peer, p.l, fmt.Sprintf("%s c=%d", p.peerIs, p.l.workers))
		if err != nil {
			return fmt.Errorf("%s, %s: %w", p.name, p.peerIs, err)
		}
		ours, err := b.run(ctx, p.ours, p.l, p.ourRun())
		if err != nil {
			return fmt.Errorf("%s, kvstore: %w", p.name, err)
		}
		r := row{Name: p.name, What: "throughput", Ours: ours, Peer: peer, PeerIs: p.peerIs, Target: p.target, AtMost: p.atMost, Ratio: ours.OpsPerSec / peer.OpsPerSec}
		if p.p50 {
			r.What, r.Ratio = "p50", float64(ours.P50us)/float64(peer.P50us)
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b row) int { return int((a.Ratio - b.Ratio) * 1e6) })
	m := rows[len(rows)/2]
	b.report.Rows = append(b.report.Rows, m)
	fmt.Fprintf(os.Stderr, "%-34s %.2fx   \n", p.name, m.Ratio)
	return nil
}

// ourRun names a run of the store: what the pair's name says of it.
func (p pair) ourRun() string {
	name, _, _ := strings.Cut(p.name, " / ")
	return strings.TrimSuffix(name, " p50")
}

// run is one run, with what it cost.
func (b *bench) run(ctx context.Context, s system, l load, name string) (o outcome, err error) {
	err = b.costs(name, func() (int64, error) {
		var err error
		o, err = run(ctx, s, l)
		return o.Ops, err
	})
	return o, err
}

// kv compares puts and gets with etcd and Redis.
func (b *bench) kv(ctx context.Context) error {
	etcd, etcdAddr, err := startEtcd(ctx, b.bin, filepath.Join(b.dir, "etcd"))
	if err != nil {
		return err
	}
	defer etcd.stop()
	redis, redisAddr, err := startRedis(ctx, filepath.Join(b.dir, "redis"))
	if err != nil {
		return err
	}
	defer redis.stop()
	ours, addr, _, err := startOursAdmin(ctx, b.bin, filepath.Join(b.dir, "kvstore"))
	if err != nil {
		return err
	}
	defer ours.stop()

	e, err := newEtcd(etcdAddr)
	if err != nil {
		return err
	}
	unary, err := newOurs(ctx, addr, true)
	if err != nil {
		return err
	}
	c, err := newOurs(ctx, addr, false)
	if err != nil {
		return err
	}
	r256, r1024 := newRedis(redisAddr, 256), newRedis(redisAddr, 1024)
	ru, err := newRueidis(redisAddr)
	if err != nil {
		return err
	}
	base := load{keys: 10_000, size: 256}
	for _, s := range []system{e, c, r256} {
		if err := fill(ctx, s, base); err != nil {
			return err
		}
	}
	at := func(c int, reads bool) load { l := base; l.workers, l.reads = c, reads; return l }
	for _, p := range []pair{
		{"unary put c=64 / etcd", at(64, false), unary, e, "etcd", false, 2, false},
		{"unary get c=64 / etcd linearizable", at(64, true), unary, e, "etcd", false, 1.4, false},
		{"unary put c=1 p50 / etcd", at(1, false), unary, e, "etcd", true, 1, true},
		{"client put c=1 p50 / etcd", at(1, false), c, e, "etcd", true, 1, true},
		{"client put c=256 / go-redis", at(256, false), c, r256, "go-redis, appendfsync always", false, 1, false},
		{"client put c=1024 / go-redis", at(1024, false), c, r1024, "go-redis, appendfsync always", false, 2, false},
		{"client put c=1024 / rueidis", at(1024, false), c, ru, "rueidis auto-pipelining, appendfsync always", false, 0, false},
		{"client get c=256 / go-redis", at(256, true), c, r256, "go-redis", false, 1.2, false},
		{"client get c=256 / rueidis", at(256, true), c, ru, "rueidis auto-pipelining", false, 0, false},
	} {
		if err := b.compare(ctx, p); err != nil {
			return err
		}
	}
	return b.redisBenchmark(ctx, redisAddr)
}

// redisBenchmark prints what redis-benchmark itself reaches with 64 connections of 64 pipelined commands.
func (b *bench) redisBenchmark(ctx context.Context, addr string) error {
	port := addr[strings.LastIndexByte(addr, ':')+1:]
	out, err := exec.CommandContext(ctx, "redis-benchmark", "-p", port, "-t", "set,get", "-d", "256", "-r", "10000", "-n", "1000000", "-c", "64", "-P", "64", "--csv").Output()
	if err != nil {
		return fmt.Errorf("redis-benchmark: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.ReplaceAll(strings.TrimSpace(line), `"`, ""), ",")
		var v float64
		if len(f) > 1 {
			if _, err := fmt.Sscan(f[1], &v); err == nil {
				b.report.Figures = append(b.report.Figures, figure{Name: "redis-benchmark " + f[0] + " 64 x 64 pipelined, appendfsync always", Value: v, Unit: "/s"})
			}
		}
	}
	return nil
}

func (b *bench) missed() (names []string) {
	for _, r := range b.report.Rows {
		if !r.met() {
			names = append(names, fmt.Sprintf("%s %.2fx", r.Name, r.Ratio))
		}
	}
	for _, f := range b.report.Figures {
		if !f.met() {
			names = append(names, fmt.Sprintf("%s %.4g %s", f.Name, f.Value, f.Unit))
		}
	}
	return names
}

func (b *bench) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(b.report.Rows) > 0 {
		fmt.Fprintln(w, "COMPARISON\tRATIO\tTARGET\t\tKVSTORE\tPEER\tPEER IS")
	}
	verdict := func(met bool, target float64) string {
		switch {
		case target == 0:
			return ""
		case met:
			return "met"
		}
		return "MISSED"
	}
	bound := func(target float64, atMost bool) string {
		switch {
		case target == 0:
			return "-"
		case atMost:
			return fmt.Sprintf("<= %g", target)
		}
		return fmt.Sprintf(">= %g", target)
	}
	for _, r := range b.report.Rows {
		fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%v\t%v\t%s\n", r.Name, r.Ratio, bound(r.Target, r.AtMost), verdict(r.met(), r.Target), r.Ours, r.Peer, r.PeerIs)
	}
	w.Flush()
	if len(b.report.Figures) > 0 {
		fmt.Println()
		fmt.Fprintln(w, "FIGURE\tVALUE\tUNIT\tTARGET\t\tNOTE")
	}
	for _, f := range b.report.Figures {
		fmt.Fprintf(w, "%s\t%.4g\t%s\t%s\t%s\t%s\n", f.Name, f.Value, f.Unit, bound(f.Target, f.AtMost), verdict(f.met(), f.Target), f.Note)
	}
	w.Flush()
	b.printCosts(os.Stdout)
}
