package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latency gathers times of one kind of step from many goroutines.
type latency struct {
	name string
	part [latencyParts]struct {
		mu   sync.Mutex // guards the following
		hist *hdrhistogram.Histogram
		data int64 // bytes moved
		_    [64]byte
	}
}

// latencyParts spreads the goroutines over several locks.
const latencyParts = 8

// Range and precision of times: 1 µs to 10 min, three digits.
const (
	latencyMaxUS  = int64(10 * time.Minute / time.Microsecond)
	latencyDigits = 3
)

func newLatency(name string) *latency {
	l := &latency{name: name}
	for i := range l.part {
		l.part[i].hist = hdrhistogram.New(1, latencyMaxUS, latencyDigits)
	}
	return l
}

// record adds one step that took d and moved so many bytes.
func (l *latency) record(d time.Duration, bytes int64) {
	p := &l.part[rand.IntN(latencyParts)]
	p.mu.Lock()
	_ = p.hist.RecordValue(min(max(d.Microseconds(), 1), latencyMaxUS)) // in range by construction
	p.data += bytes
	p.mu.Unlock()
}

// count is how many steps were recorded.
func (l *latency) count() (n int64) {
	for i := range l.part {
		p := &l.part[i]
		p.mu.Lock()
		n += p.hist.TotalCount()
		p.mu.Unlock()
	}
	return n
}

// stepResult is one step's row; times in milliseconds.
type stepResult struct {
	Name  string  `json:"step"`
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_ms"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
	Bytes int64   `json:"bytes"`
	MBps  float64 `json:"mb_per_s"`      // megabytes (10^6) a second of the whole run
	HDR   string  `json:"hdr,omitempty"` // with --hdr: all of it, in microseconds, in HdrHistogram's compressed V2 encoding as base64

	hist *hdrhistogram.Histogram
}

// result adds up what was recorded in a run that took so long.
func (l *latency) result(took time.Duration) stepResult {
	all := hdrhistogram.New(1, latencyMaxUS, latencyDigits)
	var bytes int64
	for i := range l.part {
		p := &l.part[i]
		p.mu.Lock()
		all.Merge(p.hist)
		bytes += p.data
		p.mu.Unlock()
	}
	return newStepResult(l.name, all, bytes, took)
}

func newStepResult(name string, all *hdrhistogram.Histogram, bytes int64, took time.Duration) stepResult {
	r := stepResult{Name: name, Count: all.TotalCount(), Bytes: bytes, hist: all}
	ms := func(q float64) float64 { return float64(all.ValueAtQuantile(q)) / 1000 }
	r.Mean, r.Max = all.Mean()/1000, float64(all.Max())/1000
	r.P50, r.P90, r.P99, r.P999 = ms(50), ms(90), ms(99), ms(99.9)
	if took > 0 {
		r.MBps = float64(r.Bytes) / 1e6 / took.Seconds()
	}
	return r
}

// withHDR adds the histograms to results.
func withHDR(steps []stepResult) error {
	for i := range steps {
		text, err := steps[i].hist.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			return err
		}
		steps[i].HDR = string(text)
	}
	return nil
}

// steps prints a table of steps.
func (s *session) steps(results ...stepResult) {
	var rows [][]string
	for _, r := range results {
		rows = append(rows, []string{
			r.Name, fmt.Sprint(r.Count), msText(r.P50), msText(r.P90), msText(r.P99), msText(r.P999), msText(r.Max),
			fmt.Sprintf("%.1f", r.MBps),
		})
	}
	s.table([]string{"STEP", "COUNT", "P50 ms", "P90 ms", "P99 ms", "P99.9 ms", "MAX ms", "MB/s"}, rows)
}

func msText(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.3f", ms)
	case ms < 100:
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

// progress shows how far a run is, on a terminal; elsewhere it does nothing.
type progress struct {
	stop chan struct{}
	wg   sync.WaitGroup
}

// progressEvery is how often the bar moves.
const progressEvery = 200 * time.Millisecond

// startProgress shows what state tells until end is called: the part done (0 to 1, below 0 when unknown) and a text.
func startProgress(w io.Writer, columns int, state func() (done float64, text string)) *progress {
	p := &progress{stop: make(chan struct{})}
	if columns == 0 {
		return p
	}
	began := time.Now()
	p.wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				fmt.Fprintf(w, "\r%s\r", strings.Repeat(" ", columns-1))
				return
			case <-tick.C:
				done, text := state()
				fmt.Fprintf(w, "\r%s", bar(columns-1, done, time.Since(began), text))
			}
		}
	})
	return p
}

func (p *progress) end() {
	close(p.stop)
	p.wg.Wait()
}

// bar is one line of progress, exactly so many columns wide.
func bar(columns int, done float64, took time.Duration, text string) string {
	const width = 24
	done = min(max(done, 0), 1)
	eta := "--:--"
	if done > 0 {
		left := time.Duration(float64(took) * (1 - done) / done).Round(time.Second)
		eta = fmt.Sprintf("%02d:%02d", int(left.Minutes()), int(left.Seconds())%60)
	}
	full := int(done * width)
	line := fmt.Sprintf("[%s%s] %5.1f %%  ETA %s  %s", strings.Repeat("#", full), strings.Repeat(".", width-full), done*100, eta, text)
	if n := len([]rune(line)); n < columns {
		line += strings.Repeat(" ", columns-n)
	}
	return cut(line, columns)
}

// hold keeps a measurement that is ready until standard input ends, so that several processes begin together.
func (s *session) hold() error {
	fmt.Fprintln(s.stderr, readyLine)
	_, err := io.Copy(io.Discard, s.stdin)
	return err
}

// readyLine is what hold says.
const readyLine = "ready: begins when standard input ends"

// workers runs n goroutines that take work by number until take says there is no more or one of them fails; it returns
// the first failure.
func workers(ctx context.Context, n int, work func(ctx context.Context, worker int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			if err := work(ctx, w); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return nil
}
