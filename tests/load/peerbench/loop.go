package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// system is one thing under load: a peer or this store, behind the client that its users would take.
type system interface {
	put(ctx context.Context, key string, value []byte) error
	get(ctx context.Context, key string) error
}

// load is one closed-loop run.
type load struct {
	workers int
	reads   bool // all gets, else all puts
	keys    int
	size    int
	d       time.Duration
	seed    uint64
}

// outcome is what a run measured.
type outcome struct {
	OpsPerSec float64 `json:"ops_per_s"`
	P50us     int64   `json:"p50_us"`
	P99us     int64   `json:"p99_us"`
	Ops       int64   `json:"ops"`
}

func (o outcome) String() string {
	return fmt.Sprintf("%8.0f/s  p50 %6.2f ms  p99 %6.2f ms", o.OpsPerSec, float64(o.P50us)/1e3, float64(o.P99us)/1e3)
}

// keyOf names the i-th key.
func keyOf(i uint64) string { return fmt.Sprintf("key-%08d", i) }

// fill puts every key once.
func fill(ctx context.Context, s system, l load) error {
	value := randomValue(l.size)
	var next atomic.Int64
	return each(64, func(int) error {
		for {
			i := next.Add(1) - 1
			if i >= int64(l.keys) {
				return nil
			}
			if err := s.put(ctx, keyOf(uint64(i)), value); err != nil {
				return err
			}
		}
	})
}

// run drives s with l.workers callers, each with one request outstanding, keys by a Zipf law (s = 1.1). Any error ends it:
// a benchmark that fails requests measures something else.
func run(ctx context.Context, s system, l load) (outcome, error) {
	value := randomValue(l.size)
	var mu sync.Mutex // guards total
	total := hdrhistogram.New(1, 60_000_000, 3)
	start := time.Now()
	end := start.Add(l.d)
	err := each(l.workers, func(w int) error {
		z := rand.NewZipf(rand.New(rand.NewPCG(l.seed, uint64(w))), 1.1, 1, uint64(l.keys-1))
		h := hdrhistogram.New(1, 60_000_000, 3)
		for {
			t := time.Now()
			if !t.Before(end) {
				break
			}
			key := keyOf(z.Uint64())
			var err error
			if l.reads {
				err = s.get(ctx, key)
			} else {
				err = s.put(ctx, key, value)
			}
			if err != nil {
				return fmt.Errorf("request on %s: %w", key, err)
			}
			_ = h.RecordValue(max(1, time.Since(t).Microseconds()))
		}
		mu.Lock()
		defer mu.Unlock()
		total.Merge(h)
		return nil
	})
	el := time.Since(start)
	return outcome{
		OpsPerSec: float64(total.TotalCount()) / el.Seconds(),
		P50us:     total.ValueAtQuantile(50),
		P99us:     total.ValueAtQuantile(99),
		Ops:       total.TotalCount(),
	}, err
}

func randomValue(n int) []byte {
	v := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(v)
	return v
}

// each runs n callers and returns the first error.
func each(n int, fn func(i int) error) error {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for i := range n {
		wg.Go(func() {
			if err := fn(i); err != nil {
				once.Do(func() { first = err })
			}
		})
	}
	wg.Wait()
	return first
}
