package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// watched are the processes of a comparison, by kind. What each kind costs per request is the least noisy figure there is, and on
// machines whose cores are all busy it is what decides about throughput.
type watched map[string][]int

// cost is one run in processor time.
type cost struct {
	Run     string             `json:"run"` // which system did what; "idle": nobody asked anything
	Ops     int64              `json:"ops"` // with idle: seconds
	Micros  map[string]float64 `json:"us_per_op"`
	Seconds float64            `json:"s"`
}

// clientKind is this process.
const clientKind = "client"

// sample is what each kind has used so far.
func (w watched) sample() (map[string]time.Duration, error) {
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return nil, err
	}
	used := map[string]time.Duration{clientKind: time.Duration(self.Utime.Nano() + self.Stime.Nano())}
	for kind, pids := range w {
		for _, pid := range pids {
			d, err := cpuOf(pid)
			if err != nil {
				return nil, fmt.Errorf("processor time of %s: %w", kind, err)
			}
			used[kind] += d
		}
	}
	return used, nil
}

// costs runs f and adds what it took to the report; f returns how many requests it made.
func (b *bench) costs(name string, f func() (ops int64, err error)) error {
	if b.watched == nil {
		_, err := f()
		return err
	}
	before, err := b.watched.sample()
	if err != nil {
		return err
	}
	start := time.Now()
	ops, err := f()
	if err != nil {
		return err
	}
	c := cost{Run: name, Ops: ops, Micros: make(map[string]float64), Seconds: time.Since(start).Seconds()}
	after, err := b.watched.sample()
	if err != nil {
		return err
	}
	for kind, d := range after {
		c.Micros[kind] = float64((d - before[kind]).Nanoseconds()) / 1e3 / float64(max(1, ops))
	}
	b.report.Costs = append(b.report.Costs, c)
	return nil
}

// idle adds what each kind takes while nobody asks anything.
func (b *bench) idle(ctx context.Context, d time.Duration) error {
	return b.costs(idleRun, func() (int64, error) {
		select {
		case <-time.After(d):
			return int64(d / time.Second), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
}

const idleRun = "idle"

// besides adds to the report which share of a run's processor time some kinds took beyond what they take idle: nothing, if the run's
// requests do not pass through them.
func (b *bench) besides(name string, kinds ...string) {
	runs, idle := b.sum(name), b.sum(idleRun)
	if runs.Ops == 0 || idle.Seconds == 0 {
		return
	}
	var all, theirs, asleep float64
	for _, us := range runs.Micros {
		all += us
	}
	for _, k := range kinds {
		theirs += runs.Micros[k]
		asleep += idle.Micros[k] / idle.Seconds * runs.Seconds
	}
	b.report.Figures = append(b.report.Figures, figure{
		Name: name + ": processor time of " + strings.Join(kinds, " and ") + " beyond idle", Value: max(0, theirs-asleep) / all * 100, Unit: "%", Target: 2, AtMost: true,
		Note: fmt.Sprintf("%.1f of %.1f us a request, idle ones would have taken %.1f", theirs/float64(runs.Ops), all/float64(runs.Ops), asleep/float64(runs.Ops)),
	})
}

// sum adds up the runs of one name; its Micros are of all requests together.
func (b *bench) sum(name string) cost {
	s := cost{Run: name, Micros: make(map[string]float64)}
	for _, c := range b.report.Costs {
		if c.Run != name {
			continue
		}
		s.Ops += c.Ops
		s.Seconds += c.Seconds
		for k, v := range c.Micros {
			s.Micros[k] += v * float64(c.Ops)
		}
	}
	return s
}

// printCosts prints a table of processor time, microseconds per request, runs of one name together.
func (b *bench) printCosts(out io.Writer) {
	if len(b.report.Costs) == 0 {
		return
	}
	var kinds []string
	for _, c := range b.report.Costs {
		for k := range c.Micros {
			if !slices.Contains(kinds, k) {
				kinds = append(kinds, k)
			}
		}
	}
	slices.Sort(kinds)
	fmt.Fprintln(out, "\nProcessor time of each kind of process, microseconds per request (idle: per second). What runs beside a system without taking part costs what it costs idle.")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "RUN\tREQUESTS\tALL\t")
	for _, k := range kinds {
		fmt.Fprint(w, strings.ToUpper(k), "\t")
	}
	fmt.Fprintln(w)
	var names []string
	for _, c := range b.report.Costs {
		if !slices.Contains(names, c.Run) {
			names = append(names, c.Run)
		}
	}
	for _, name := range names {
		s, all := b.sum(name), 0.0
		for _, v := range s.Micros {
			all += v
		}
		ops := float64(max(1, s.Ops))
		fmt.Fprintf(w, "%s\t%d\t%.1f\t", name, s.Ops, all/ops)
		for _, k := range kinds {
			fmt.Fprintf(w, "%.1f\t", s.Micros[k]/ops)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

// pidsOf reads the process ids that cluster.sh keeps in a folder, of the names that a pattern matches.
func pidsOf(dir, pattern string) ([]int, error) {
	files, err := filepath.Glob(filepath.Join(dir, pattern+".pid"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("no process is called %s in %s", pattern, dir)
	}
	return pids, nil
}

// profile fetches a CPU profile of each of some admin doors over d while f runs, into b.profiles; with no such folder it only runs f.
func (b *bench) profile(ctx context.Context, name string, doors map[string]string, f func() error) error {
	if b.profiles == "" {
		return f()
	}
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 1, 1+len(doors))
	var mu sync.Mutex // guards errs
	for who, addr := range doors {
		wg.Go(func() {
			err := fetchProfile(ctx, addr, b.d, filepath.Join(b.profiles, name+"-"+who+".pprof"))
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	err := f()
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	errs[0] = err
	return errors.Join(errs...)
}

func fetchProfile(ctx context.Context, addr string, d time.Duration, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, max(1, int(d.Seconds()))), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile of %s: %s: %.200s", addr, resp.Status, data)
	}
	return os.WriteFile(file, data, 0o644)
}
