package crash

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"kvstore/tests/checked"
	"kvstore/tests/testenv"
)

const acksPerRound = 200

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

	l, err := checked.Dial(ctx, checked.Config{Endpoints: []string{srv.Addr}, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	for round := range rounds {
		began := l.Acks()
		l.Work(ctx)
		waitFor(ctx, t, srv, l, func() bool { return l.Acks() >= began+acksPerRound })
		if d.working != nil {
			d.working(round)
		}
		<-time.After(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		if err := l.Failed(); err != nil {
			t.Fatalf("round %d: %v\nthe server's log:\n%s", round, err, srv.Tail())
		}
		srv.Kill()
		if d.killed != nil {
			d.killed(round)
		}
		before := l.Acks() - began
		if round%3 == 2 { // once more, in the middle of its recovery
			srv.Start(t)
			<-time.After(time.Duration(r.Int64N(int64(60 * time.Millisecond))))
			srv.Kill()
		}
		srv.Start(t)
		srv.Ready(ctx, t)
		if err := l.Rest(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := l.Verify(ctx); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if t.Failed() {
			t.Fatalf("round %d of seed %d failed; the server's log:\n%s", round, seed, srv.Tail())
		}
		if (round+1)%10 == 0 || round+1 == rounds {
			t.Logf("%d rounds: %d acknowledgements before the last kill, nothing lost", round+1, before)
		}
	}
	total := l.Seen()
	for _, verb := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%-20s %d acknowledged", verb, total[verb])
	}
}

// waitFor waits until done holds; no client may fail meanwhile.
func waitFor(ctx context.Context, t *testing.T, srv *testenv.Server, l *checked.Load, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(testenv.Patience)
	for !done() {
		if err := l.Failed(); err != nil {
			t.Fatalf("%v\nthe server's log:\n%s", err, srv.Tail())
		}
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no progress for %v; the server's log:\n%s", testenv.Patience, srv.Tail())
		}
	}
}
