package crash

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/tests/testenv"
)

const (
	workers      = 32
	acksPerRound = 200
)

// TestCrash is KVSTORE_CRASH_ROUNDS rounds of: work, kill -9, sometimes kill -9 again during recovery, start, check all.
// KVSTORE_CRASH_SEED repeats a run's choices (not its timing).
func TestCrash(t *testing.T) {
	bin := testenv.Bin(t, "crash")
	srv := testenv.New(t, bin, "-segment-bytes", "1048576", "-checkpoint-bytes", "524288")
	crash(t, srv, disturbance{})
}

// disturbance is what else goes wrong in a round. nil is nothing.
type disturbance struct {
	working func(round int) // while the clients work
	killed  func(round int) // while the server is dead
}

// TestCrashOnRedis is the same with the store in a Redis, which is killed and started again too: under load in every third round, beside the
// server in every third.
func TestCrashOnRedis(t *testing.T) {
	bin := testenv.Bin(t, "crash")
	redis := testenv.NewRedis(t)
	srv := testenv.NewOnRedis(t, bin, redis, "-checkpoint-bytes", "524288")
	restart := func(when int) func(round int) {
		return func(round int) {
			if round%3 == when {
				redis.Kill()
				redis.Start(t)
			}
		}
	}
	crash(t, srv, disturbance{working: restart(0), killed: restart(1)})
}

// crash runs the rounds.
func crash(t *testing.T, srv *testenv.Server, d disturbance) {
	rounds, err := strconv.Atoi(os.Getenv("KVSTORE_CRASH_ROUNDS"))
	if err != nil {
		rounds = 5
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVSTORE_CRASH_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KVSTORE_CRASH_SEED=%d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rounds)*time.Minute+time.Minute)
	defer cancel()
	r := rand.New(rand.NewPCG(seed, 0))
	srv.Start(t)
	srv.Ready(ctx, t)

	var acks atomic.Int64
	var ws []*worker
	var ps []*promptWorker
	for i := range workers {
		c, err := client.Dial(ctx, client.Config{Endpoints: []string{srv.Addr}, Unary: i%2 == 1, BackoffMax: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ws = append(ws, newWorker(i, c, seed, &acks))
		if i%4 == 0 {
			ps = append(ps, newPromptWorker(i, c, seed, &acks))
		}
	}
	if err := createPromptNamespace(ctx, ws[0].c); err != nil {
		t.Fatal(err)
	}

	for round := range rounds {
		acks.Store(0)
		stop := make(chan struct{})
		errs := make(chan error, len(ws)+len(ps))
		var wg sync.WaitGroup
		for _, w := range ws {
			wg.Go(func() { errs <- w.run(ctx, stop) })
		}
		for _, p := range ps {
			wg.Go(func() { errs <- p.run(ctx, stop) })
		}
		waitFor(ctx, t, srv, errs, func() bool { return acks.Load() >= acksPerRound })
		if d.working != nil {
			d.working(round)
		}
		chaos := time.NewTimer(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		select {
		case <-chaos.C:
		case err := <-errs:
			t.Fatalf("round %d: %v\nthe server's log:\n%s", round, err, srv.Tail())
		}
		srv.Kill()
		if d.killed != nil {
			d.killed(round)
		}
		before := acks.Load()
		if round%3 == 2 { // once more, in the middle of its recovery
			srv.Start(t)
			<-time.After(time.Duration(r.Int64N(int64(60 * time.Millisecond))))
			srv.Kill()
		}
		srv.Start(t)
		srv.Ready(ctx, t)
		close(stop)
		wg.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		for _, err := range parallel(ws, func(w *worker) error { return w.verify(ctx) }) {
			t.Errorf("round %d: %v", round, err)
		}
		for _, err := range parallel(ps, func(p *promptWorker) error { return p.verify(ctx) }) {
			t.Errorf("round %d: %v", round, err)
		}
		if t.Failed() {
			t.Fatalf("round %d of seed %d failed; the server's log:\n%s", round, seed, srv.Tail())
		}
		if (round+1)%10 == 0 || round+1 == rounds {
			t.Logf("%d rounds: %d acknowledgements before the last kill, nothing lost", round+1, before)
		}
	}
	total := map[string]int{}
	for _, w := range ws {
		for verb, n := range w.seen {
			total[verb] += n
		}
	}
	for _, p := range ps {
		for verb, n := range p.seen {
			total[verb] += n
		}
	}
	for _, verb := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%-20s %d acknowledged", verb, total[verb])
	}
}

// waitFor waits until done holds; no worker may fail meanwhile.
func waitFor(ctx context.Context, t *testing.T, srv *testenv.Server, errs <-chan error, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for !done() {
		select {
		case err := <-errs:
			t.Fatalf("%v\nthe server's log:\n%s", err, srv.Tail())
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no progress for %v; the server's log:\n%s", testenv.Patience, srv.Tail())
		}
	}
}

// parallel runs fn for every item and returns the errors.
func parallel[T any](items []T, fn func(T) error) (errs []error) {
	var mu sync.Mutex // guards errs
	var wg sync.WaitGroup
	for _, it := range items {
		wg.Go(func() {
			if err := fn(it); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("verify: %w", err))
			}
		})
	}
	wg.Wait()
	return errs
}
