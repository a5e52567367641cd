package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"kvstore/client"
)

var benchSweepCommand = command{
	short: "measure processes x callers, and write a report",
	help: `Measures every number of processes with every number of callers in each, for every kind of load: put, get, mixed, batch, watch or prompt
(which replays --trace). A measurement is that many kvctl processes, which begin together; their operations are added up, and their
histograms merged. Rounds come one after the other, each with all measurements, so that a disturbance does not hit one of them
alone; the report has the median and the range.

Each measurement is kept in --dir when it is done. A sweep that was interrupted, even by kill -9, goes on where it was when the same
command is given again. --dir gets results.json, PERFORMANCE_SUMMARY.md and benchmark_charts.html, which needs nothing beside it:
no server, no network. They are written anew after every measurement.

  kvctl bench sweep --kinds put,get --processes 1,2,4 --callers 1,8,32 -d 5s --dir results
  kvctl bench sweep --kinds prompt --trace conversation.jsonl.gz --processes 1,8 --callers 4 --requests 2000 --dir prompt-results
  kvctl bench report results                   the same report from what is kept`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		w := &sweep{Size: 256}
		fs.StringVar(&w.kinds, "kinds", "put,get,mixed", "`kinds` of load with commas: put, get, mixed, batch, watch, prompt")
		fs.StringVar(&w.processes, "processes", "1,2,4", "`numbers` of processes with commas, up to 64")
		fs.StringVar(&w.callers, "callers", "1,8,32,128", "`numbers` of callers in each process, with commas")
		fs.IntVar(&w.Rounds, "rounds", 1, "`number` of times that everything is measured")
		fs.DurationVar(&w.duration, "d", 5*time.Second, "how `long` each measurement counts")
		fs.DurationVar(&w.warmup, "warmup", time.Second, "`time` before it counts")
		fs.Var(&w.Size, "size", "`size` of values, or of blocks of a prompt")
		fs.IntVar(&w.Keys, "keys", 10_000, "`number` of different keys")
		fs.Float64Var(&w.Zipf, "zipf", 0, "exponent `S` of the keys' popularity; 0 = all alike")
		fs.Float64Var(&w.Reads, "reads", 0.9, "part of gets in mixed, 0 to 1")
		fs.IntVar(&w.Batch, "batch", 100, "`number` of keys of a batch")
		fs.IntVar(&w.Watchers, "watchers", 1, "`number` of watches of each process")
		fs.StringVar(&w.Trace, "trace", "", "`file` of prompts, for prompt")
		fs.IntVar(&w.Requests, "requests", 1000, "`number` of requests of the trace, all processes together")
		fs.StringVar(&w.dir, "dir", "bench-results", "`folder` for what is measured")
		return w.command
	},
}

var benchReportCommand = command{
	args: "DIR", min: 1, max: 1, complete: completeFiles, local: true,
	short: "write the report of a sweep anew",
	help: `From what bench sweep keeps in DIR: results.json, PERFORMANCE_SUMMARY.md and benchmark_charts.html.

  kvctl bench report results`,
	setup: simple(func(_ context.Context, s *session, args []string) error {
		w := &sweep{dir: args[0]}
		if there, err := w.read(w); err != nil {
			return err
		} else if !there {
			return usagef("%s holds no sweep: kvctl bench sweep --dir %[1]s makes one", w.dir)
		}
		return w.report(s)
	}),
}

// sweep is what bench sweep is asked for. What is exported says what was measured, and where, and is kept in sweep.json.
type sweep struct {
	kinds, processes, callers string
	duration, warmup          time.Duration
	dir                       string
	filled                    bool // the keys are there

	Kinds     []string `json:"kinds"`
	Processes []int    `json:"processes"`
	Callers   []int    `json:"callers"`
	Rounds    int      `json:"rounds"`
	Seconds   float64  `json:"seconds"`
	Warmup    float64  `json:"warmup_seconds"`
	Size      size     `json:"value_bytes"`
	Keys      int      `json:"keys"`
	Zipf      float64  `json:"zipf"`
	Reads     float64  `json:"reads"`
	Batch     int      `json:"batch"`
	Watchers  int      `json:"watchers"`
	Trace     string   `json:"trace,omitempty"`
	Requests  int      `json:"requests"`

	Where place `json:"where"`
}

// place is where a sweep was measured.
type place struct {
	Began    time.Time `json:"began"`
	Endpoint string    `json:"endpoint"`
	Version  string    `json:"server_version"`
	Engine   string    `json:"engine"`
	Shards   int       `json:"shards"`
	System   string    `json:"client_system"`
	CPU      string    `json:"client_cpu"`
	CPUs     int       `json:"client_cpus"`
	MemoryGB float64   `json:"client_memory_gib"`
}

// cell is one measurement.
type cell struct {
	Kind      string       `json:"kind"`
	Processes int          `json:"processes"`
	Callers   int          `json:"callers"` // of each process
	Round     int          `json:"round"`
	Began     time.Time    `json:"began"`
	Seconds   float64      `json:"seconds"` // of the process that took longest
	Ops       int64        `json:"ops"`     // of a prompt: requests
	OpsPerS   float64      `json:"ops_per_s"`
	KeysPerS  float64      `json:"keys_per_s,omitempty"`
	TokensPS  float64      `json:"tokens_per_s,omitempty"`
	HitRatio  float64      `json:"hit_ratio,omitempty"`
	ClientCPU float64      `json:"client_cpu_us_per_op"` // of all processes, with their start
	Steps     []stepResult `json:"steps"`
	Each      []oneProcess `json:"each"`
}

// oneProcess is what one of the processes did.
type oneProcess struct {
	OpsPerS float64 `json:"ops_per_s"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_ms"` // of the main step
	P99     float64 `json:"p99_ms"`
}

// Bounds of a sweep.
const (
	sweepProcesses = 64
	sweepCells     = 10_000
)

func (w *sweep) command(ctx context.Context, s *session, _ []string) error {
	if err := w.validate(); err != nil {
		return err
	}
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	if err := w.begin(ctx, s, c); err != nil {
		return err
	}
	all := w.cells()
	done := 0
	began := time.Now()
	var now string
	var fresh, skipped int
	for _, at := range all {
		if _, err := w.readCell(at); err == nil {
			skipped++
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if skipped > 0 {
		fmt.Fprintf(s.stderr, "%d of %d measurements are done already\n", skipped, len(all))
	}
	for _, at := range all {
		if _, err := w.readCell(at); err == nil {
			done++
			continue
		}
		now = fmt.Sprintf("%d of %d: %s, %d processes x %d callers, round %d", done+1, len(all), at.Kind, at.Processes, at.Callers, at.Round)
		line := now
		bar := startProgress(s.stderr, s.errWidth, func() (float64, string) { return float64(done) / float64(len(all)), line })
		err := w.measure(ctx, s, c, &at)
		bar.end()
		if err != nil {
			return fmt.Errorf("%s: %w\n  %d measurements are kept in %s: the same command goes on", line, err, done, w.dir)
		}
		if err := w.writeCell(at); err != nil {
			return err
		}
		done++
		fresh++
		if s.errWidth == 0 {
			fmt.Fprintf(s.stderr, "%s: %.0f operations/s\n", line, at.OpsPerS)
		}
		if err := w.report(nil); err != nil {
			return err
		}
	}
	fmt.Fprintf(s.stderr, "%d measurements in %v\n", fresh, time.Since(began).Round(time.Second))
	return w.report(s)
}

func (w *sweep) validate() error {
	w.Kinds = list(w.kinds)
	w.Seconds, w.Warmup = w.duration.Seconds(), w.warmup.Seconds()
	for _, k := range w.Kinds {
		if !slices.Contains([]string{"put", "get", "mixed", "batch", "watch", "prompt"}, k) {
			return usagef("--kinds %s: want put, get, mixed, batch, watch or prompt", k)
		}
		if k == "prompt" && w.Trace == "" {
			return usagef("--kinds prompt wants --trace FILE")
		}
	}
	for _, n := range []struct {
		flag, text string
		most       int
		to         *[]int
	}{{"processes", w.processes, sweepProcesses, &w.Processes}, {"callers", w.callers, 100_000, &w.Callers}} {
		for _, word := range list(n.text) {
			v, err := strconv.Atoi(word)
			if err != nil || v < 1 || v > n.most {
				return usagef("--%s %s: want numbers of 1 to %d with commas", n.flag, word, n.most)
			}
			*n.to = append(*n.to, v)
		}
		slices.Sort(*n.to)
		*n.to = slices.Compact(*n.to)
	}
	slices.Sort(w.Kinds)
	w.Kinds = slices.Compact(w.Kinds)
	switch {
	case len(w.Kinds) == 0 || len(w.Processes) == 0 || len(w.Callers) == 0:
		return usagef("--kinds, --processes and --callers: want at least one of each")
	case w.Rounds < 1 || w.duration <= 0 || w.warmup < 0 || w.Requests < 1:
		return usagef("--rounds, -d and --requests must be positive, --warmup not negative")
	case len(w.Kinds)*len(w.Processes)*len(w.Callers)*w.Rounds > sweepCells:
		return usagef("that would be over %d measurements", sweepCells)
	case slices.Contains(w.Kinds, "prompt") && w.Requests < slices.Max(w.Processes):
		return usagef("--requests %d: want at least one for each process", w.Requests)
	}
	// What the processes would refuse.
	for _, k := range w.Kinds {
		l := load{
			kind: k, callers: 1, conns: 1, keys: w.Keys, zipf: w.Zipf, reads: w.Reads, duration: w.duration, warmup: w.warmup, size: w.Size,
			batch: 1, watchers: w.Watchers,
		}
		if k == "batch" {
			l.batch = w.Batch
		}
		if k != "prompt" {
			if err := l.validate(); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin makes the folder, or sees that it is of the same sweep.
func (w *sweep) begin(ctx context.Context, s *session, c *client.Client) error {
	limited, cancel := s.limited(ctx)
	defer cancel()
	st, err := c.Status(limited)
	if err != nil {
		return err
	}
	system, cpu, memory := machine()
	w.Where = place{
		Began: time.Now().UTC().Truncate(time.Second), Endpoint: s.endpoint, Version: st.Version, Engine: st.Engine, Shards: len(st.Shards),
		System: system, CPU: cpu, CPUs: runtime.NumCPU(), MemoryGB: memory,
	}
	if w.Trace != "" {
		if w.Trace, err = filepath.Abs(w.Trace); err != nil {
			return err
		}
	}
	was := sweep{}
	if there, err := w.read(&was); err != nil {
		return err
	} else if there {
		w.Where.Began = was.Where.Began
		asked := *w
		a, b := reflect.ValueOf(asked), reflect.ValueOf(was)
		for i := range a.NumField() {
			if f := a.Type().Field(i); f.IsExported() && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
				return usagef("%s holds a sweep with other %s (%v, now %v): name another --dir", w.dir, f.Tag.Get("json"), b.Field(i), a.Field(i))
			}
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "cells"), 0o755); err != nil {
		return err
	}
	return replaceJSON(w.file("sweep.json"), w)
}

func (w *sweep) file(name string) string { return filepath.Join(w.dir, name) }

// read reads what the folder says it is of.
func (w *sweep) read(into *sweep) (there bool, err error) {
	text, err := os.ReadFile(w.file("sweep.json"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", w.file("sweep.json"), err)
	}
	return true, nil
}

// replaceJSON writes a file of JSON that nobody ever sees half of.
func replaceJSON(name string, v any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, v); err != nil {
		return err
	}
	return replaceFile(name, b.Bytes(), 0o644)
}

// cells are all measurements in their order.
func (w *sweep) cells() []cell {
	var all []cell
	for round := range w.Rounds {
		for _, kind := range w.Kinds {
			for _, p := range w.Processes {
				for _, c := range w.Callers {
					all = append(all, cell{Kind: kind, Processes: p, Callers: c, Round: round + 1})
				}
			}
		}
	}
	return all
}

func (w *sweep) cellFile(c cell) string {
	return w.file(filepath.Join("cells", fmt.Sprintf("%s-p%d-c%d-r%d.json", c.Kind, c.Processes, c.Callers, c.Round)))
}

func (w *sweep) readCell(c cell) (cell, error) {
	text, err := os.ReadFile(w.cellFile(c))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", w.cellFile(c), err)
	}
	return c, c.decode()
}

// decode brings the histograms of a cell back.
func (c *cell) decode() error {
	for i := range c.Steps {
		h, err := hdrhistogram.Decode([]byte(c.Steps[i].HDR))
		if err != nil {
			return fmt.Errorf("%s, %d x %d, step %s: %w", c.Kind, c.Processes, c.Callers, c.Steps[i].Name, err)
		}
		c.Steps[i].hist = h
	}
	return nil
}

func (w *sweep) writeCell(c cell) error { return replaceJSON(w.cellFile(c), c) }

// measure does one measurement.
func (w *sweep) measure(ctx context.Context, s *session, c *client.Client, at *cell) (err error) {
	at.Began = time.Now().UTC()
	args := func(i int) []string { return w.loadArgs(at, i) }
	switch at.Kind {
	case "prompt":
		name := "bench-" + strings.ToLower(rand.Text()[:10])
		_, drop, err := (&replay{name: name}).namespace(ctx, c)
		if err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, drop()) }()
		args = func(i int) []string { return w.promptArgs(at, name, i) }
	case "get", "mixed":
		if w.filled {
			break
		}
		value := make([]byte, w.Size)
		fill(value, 1)
		if err := (&load{keys: w.Keys, prefix: sweepPrefix}).fillKeys(ctx, c, value); err != nil {
			return fmt.Errorf("writing the keys first: %w", err)
		}
		w.filled = true
	}
	crew, err := w.start(ctx, s, at, args)
	if err != nil {
		return err
	}
	return w.sum(at, crew)
}

// sweepPrefix is where the keys of sweeps are.
const sweepPrefix = "bench/"

// loadArgs is the command line of process i, but for prompt. Watches are of what their own process puts.
func (w *sweep) loadArgs(at *cell, i int) []string {
	prefix := sweepPrefix
	if at.Kind == "watch" {
		prefix += strconv.Itoa(i+1) + "/"
	}
	args := []string{
		"bench", at.Kind, "-o", "json", "--hdr", "--hold", "-c", strconv.Itoa(at.Callers), "-d", w.secondsText(w.Seconds), "--warmup", w.secondsText(w.Warmup),
		"--size", strconv.FormatInt(int64(w.Size), 10), "--keys", strconv.Itoa(w.Keys), "--zipf", fmt.Sprint(w.Zipf), "--prefix", prefix,
	}
	switch at.Kind {
	case "get":
		args = append(args, "--no-load")
	case "mixed":
		args = append(args, "--no-load", "--reads", fmt.Sprint(w.Reads))
	case "batch":
		args = append(args, "--batch", strconv.Itoa(w.Batch))
	case "watch":
		args = append(args, "--watchers", strconv.Itoa(w.Watchers))
	}
	return args
}

func (w *sweep) secondsText(s float64) string {
	return time.Duration(s * float64(time.Second)).String()
}

// promptArgs is the command line of process i: each replays a part of its own of the trace.
func (w *sweep) promptArgs(at *cell, namespace string, i int) []string {
	from, to := i*w.Requests/at.Processes, (i+1)*w.Requests/at.Processes
	return []string{
		"bench", "prompt", "-o", "json", "--hdr", "--hold", "-c", strconv.Itoa(at.Callers), "--trace", w.Trace, "--name", namespace, "--keep",
		"--from", strconv.Itoa(from), "--limit", strconv.Itoa(to - from), "--block-bytes", strconv.FormatInt(int64(w.Size), 10),
	}
}

// member is one process of a measurement.
type member struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout bytes.Buffer
	ready  chan bool     // one value: it is ready, or it has ended before
	ended  chan struct{} // closed when it says no more
	told   bytes.Buffer  // on standard error, behind that it is ready
}

// start runs the processes of a measurement, which begin when all are ready, until all have ended.
func (w *sweep) start(ctx context.Context, s *session, at *cell, args func(i int) []string) ([]*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var crew []*member
	wait := func() (first error) {
		for i, m := range crew {
			<-m.ended
			if err := m.cmd.Wait(); err != nil && first == nil {
				first = fmt.Errorf("process %d: %w: %s", i+1, err, bytes.TrimSpace(m.told.Bytes()))
			}
		}
		return first
	}
	for i := range at.Processes {
		m, err := launch(ctx, self, s.childArgs(args(i)), s.environment())
		if err != nil {
			cancel()
			return nil, errors.Join(err, wait())
		}
		crew = append(crew, m)
	}
	all := true
	for _, m := range crew {
		all = <-m.ready && all
	}
	if !all {
		cancel() // the others need not begin
	}
	for _, m := range crew {
		_ = m.stdin.Close() // begins it
	}
	if err := wait(); err != nil {
		return nil, err
	}
	return crew, nil
}

// launch starts a process.
func launch(ctx context.Context, self string, args, env []string) (*member, error) {
	m := &member{cmd: exec.CommandContext(ctx, self, args...), ready: make(chan bool, 1), ended: make(chan struct{})}
	m.cmd.Env = env
	m.cmd.Cancel = func() error { return m.cmd.Process.Signal(syscall.SIGTERM) }
	m.cmd.WaitDelay = 10 * time.Second
	m.cmd.Stdout = &m.stdout
	var err error
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stderr, err := m.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(m.ended)
		ready := false
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if !ready && sc.Text() == readyLine {
				ready = true
				m.ready <- true
				continue
			}
			m.told.WriteString(sc.Text() + "\n")
		}
		if !ready {
			m.ready <- false
		}
	}()
	return m, nil
}

// childArgs and environment make another kvctl reach what this one does.
func (s *session) childArgs(args []string) []string {
	if s.door.insecure {
		args = append(args, "--insecure")
	}
	return args
}

func (s *session) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "KVSTORE_") || strings.HasPrefix(v, "KVCTL_CONFIG=")
	})
	for name, v := range map[string]string{
		"ENDPOINT": s.endpoint, "KEYSPACE": s.keyspace, "NAMESPACE": s.namespace, "CA": s.door.ca, "CERT": s.door.cert, "KEY": s.door.key,
		"SERVER_NAME": s.door.server, "TOKEN": s.door.token, "TOKEN_FILE": s.door.tokenFile,
	} {
		if v != "" {
			env = append(env, "KVSTORE_"+name+"="+v)
		}
	}
	if s.door.tls {
		env = append(env, "KVSTORE_TLS=1")
	}
	return env
}

// sum adds up what the processes have done.
func (w *sweep) sum(at *cell, crew []*member) error {
	merged := map[string]*hdrhistogram.Histogram{}
	bytes := map[string]int64{}
	var order []string
	var cpu time.Duration
	var hits, blocks int64
	for _, m := range crew {
		var one struct { // of loadResult and of replayResult
			Seconds  float64      `json:"seconds"`
			Ops      int64        `json:"ops"`
			Requests int64        `json:"requests"`
			Blocks   int64        `json:"blocks"`
			Hits     int64        `json:"hits"`
			OpsPerS  float64      `json:"ops_per_s"`
			TokensPS float64      `json:"tokens_per_s"`
			Steps    []stepResult `json:"steps"`
		}
		if err := json.Unmarshal(m.stdout.Bytes(), &one); err != nil {
			return fmt.Errorf("a process said %.200q: %w", m.stdout.Bytes(), err)
		}
		n := one.Ops + one.Requests
		each := oneProcess{OpsPerS: float64(n) / one.Seconds, Seconds: one.Seconds}
		at.Ops += n
		at.Seconds = max(at.Seconds, one.Seconds)
		at.TokensPS += one.TokensPS * one.Seconds // tokens, for now
		hits, blocks = hits+one.Hits, blocks+one.Blocks
		cpu += m.cmd.ProcessState.UserTime() + m.cmd.ProcessState.SystemTime()
		for _, st := range one.Steps {
			h, err := hdrhistogram.Decode([]byte(st.HDR))
			if err != nil {
				return fmt.Errorf("step %s: %w", st.Name, err)
			}
			if st.Name == mainStep(at.Kind) {
				each.P50, each.P99 = st.P50, st.P99
			}
			if merged[st.Name] == nil {
				order = append(order, st.Name)
				merged[st.Name] = hdrhistogram.New(1, latencyMaxUS, latencyDigits)
			}
			merged[st.Name].Merge(h)
			bytes[st.Name] += st.Bytes
		}
		at.Each = append(at.Each, each)
	}
	if at.Ops == 0 {
		return errors.New("no operation was done in that time")
	}
	at.OpsPerS = float64(at.Ops) / at.Seconds
	at.TokensPS /= at.Seconds
	at.HitRatio = ratio(hits, blocks)
	at.ClientCPU = float64(cpu.Microseconds()) / float64(at.Ops)
	if at.Kind == "batch" {
		at.KeysPerS = at.OpsPerS * float64(w.Batch)
	}
	for _, name := range order {
		at.Steps = append(at.Steps, newStepResult(name, merged[name], bytes[name], time.Duration(at.Seconds*float64(time.Second))))
	}
	return withHDR(at.Steps)
}

// mainStep is the step of a kind whose latency counts first.
func mainStep(kind string) string {
	switch kind {
	case "put", "batch":
		return "put"
	case "watch":
		return "event"
	case "prompt":
		return "request"
	}
	return "get"
}

// machine tells what this machine is, as far as its system does.
func machine() (system, cpu string, memoryGB float64) {
	system = runtime.GOOS + "/" + runtime.GOARCH
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		system += " " + strings.TrimSpace(string(release))
	}
	field := func(file, name string) string {
		text, _ := os.ReadFile(file) // empty where there is none
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	kb, _ := strconv.ParseFloat(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 64)
	return system, field("/proc/cpuinfo", "model name"), kb / (1 << 20)
}
