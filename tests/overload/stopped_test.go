package overload

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

const (
	callers    = 32
	stoppedFor = 15 * time.Second // through an append that is given up, and openings that fail
)

// failure is a call that failed while the engine was stopped.
type failure struct {
	answer
	err *kverr.Error
}

// TestEngineStopped: a Redis that stops answering (SIGSTOP) costs callers Patience, once; from then on one of them at a time waits for it, and the others are told at
// once that nothing was done and when to come again. When it goes on they are served again soon.
func TestEngineStopped(t *testing.T) {
	bin := testenv.Bin(t, "overload")
	redis := testenv.NewRedis(t)
	srv := testenv.NewOnRedis(t, bin, redis)
	srv.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	srv.Ready(ctx, t)
	conn, err := grpc.NewClient("passthrough:///"+srv.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	kv := kvv1.NewKVServiceClient(conn)
	put := func(key string) error {
		_, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte(key), Value: []byte("v")}})
		return err
	}
	for i := range callers {
		if err := put(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := redis.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	stopped, end := context.WithTimeout(ctx, stoppedFor)
	defer end()
	base := make(chan time.Duration)
	go func() { base <- control(stopped, t, srv.Addr) }()
	var mu sync.Mutex
	var failed []failure
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for n := 0; stopped.Err() == nil; n++ {
				at := time.Now()
				var err error
				if i%2 == 0 {
					err = put(fmt.Sprint(i))
				} else {
					_, err = kv.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: []byte(fmt.Sprint(i))}})
				}
				if err != nil {
					mu.Lock()
					failed = append(failed, failure{answer{at.Sub(began), time.Since(at)}, kverr.FromGRPC(err)})
					mu.Unlock()
				}
				pause(stopped, 20*time.Millisecond)
			}
		})
	}
	<-stopped.Done()
	if err := redis.Resume(); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	all.Wait()
	idle := <-base
	for i := range callers { // with all shards
		for {
			err := put(fmt.Sprint(i))
			if err == nil {
				break
			}
			if k := kverr.FromGRPC(err).Kind; k != kverr.Unavailable && k != kverr.OutcomeUnknown {
				t.Fatal(err)
			}
			pause(ctx, 20*time.Millisecond)
		}
	}
	back := time.Since(resumed)

	// From when Patience is over for all: leases have lapsed too by then.
	after := host.DefaultPatience + 2*time.Second
	quick, slow := []answer(nil), 0
	for _, f := range failed {
		if f.at < after {
			continue
		}
		switch {
		case f.took > testenv.AtMost(500*time.Millisecond):
			slow++ // it waited for a try of the engine's
			continue
		case f.err.Kind != kverr.Unavailable || f.err.RetryAfterMS == 0:
			t.Fatalf("a call was told at once: %v, which must be UNAVAILABLE with the time to wait", f.err)
		}
		quick = append(quick, f.answer)
	}
	p99 := quantile(quick, 0.99)
	t.Logf("%d calls failed in %v: from %v on %d at once, p50 %v, p99 %v, and %d after a try; calls that cost nothing took %v (p99)",
		len(failed), stoppedFor, after, len(quick), quantile(quick, 0.5), p99, slow, idle)
	t.Logf("all shards were written to again %v after it went on", back.Round(time.Millisecond))
	if most := testenv.AtMost(shedWithin) + 3*idle; len(quick) == 0 || p99 > most {
		t.Errorf("%d calls failed at once, in %v (p99), must be at most %v", len(quick), p99, most)
	}
	if slow > callers {
		t.Errorf("%d calls waited for the engine, must be at most one for each shard and try", slow)
	}
	if most := testenv.AtMost(8 * time.Second); back > most {
		t.Errorf("it took %v until all was well again, must take at most %v", back, most)
	}
}
