package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/client"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

// What stopped readers may cost a server: each its connection's buffers, its window and a batch on its way; and what the heap sways by between two looks at it.
const (
	stoppedReaders = 20
	readerBudget   = 1.0 // MiB
	heapSway       = 8.0
)

// TestStoppedReaders: readers that stop reading while others write cost the server at most their budget, from the beginning to the end. KVSTORE_STOPPED is for
// how long, such as 10m.
func TestStoppedReaders(t *testing.T) {
	lasts, err := time.ParseDuration(os.Getenv("KVSTORE_STOPPED"))
	if err != nil {
		t.Skip("KVSTORE_STOPPED says for how long readers stop: make slow-reader sets it")
	}
	srv := testenv.New(t, testenv.Bin(t, "slow-reader"))
	srv.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), lasts+5*time.Minute)
	defer cancel()
	srv.Ready(ctx, t)
	c, err := client.Dial(ctx, client.Config{Endpoints: []string{srv.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	writing, stop := context.WithCancel(ctx)
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				if _, err := c.Put(writing, fmt.Sprintf("k%d/%d", w, i%100), make([]byte, 1000), nil); err != nil && writing.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	defer writers.Wait()
	defer stop()
	pause(ctx, 20*time.Second) // the history is full: it takes no more from now on
	before := leastHeap(ctx, t, srv.Admin)
	t.Logf("%8s  heap %6.1f MiB, before there are readers", "", before)

	var conns []*grpc.ClientConn
	for i := range stoppedReaders {
		conn, err := grpc.NewClient("passthrough:///"+srv.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		conns = append(conns, conn)
		req := &kvv1.WatchRequest{From: &kvv1.WatchRequest_InitialState{InitialState: i%2 == 0}}
		if i%2 != 0 {
			req.From = nil
		}
		stream, err := kvv1.NewKVServiceClient(conn).Watch(ctx, req)
		if err == nil {
			_, err = stream.Recv() // and never again
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []float64
	const looks = 10
	start := time.Now()
	for range looks {
		pause(ctx, lasts/looks)
		heap := leastHeap(ctx, t, srv.Admin)
		t.Logf("%8s  heap %6.1f MiB, %d readers stopped", time.Since(start).Round(time.Second), heap, stoppedReaders)
		all = append(all, heap)
	}
	// The heap grows by itself, with what is remembered of writes: what the readers cost is what it loses when they leave.
	for _, conn := range conns {
		_ = conn.Close()
	}
	after := leastHeap(ctx, t, srv.Admin)
	t.Logf("%8s  heap %6.1f MiB, they have left", time.Since(start).Round(time.Second), after)
	if cost, may := all[looks-1]-after, stoppedReaders*readerBudget+heapSway; cost > may {
		t.Errorf("%d readers cost %.1f MiB in the end, and may cost %.1f", stoppedReaders, cost, may)
	}
	if first, last := all[0]-before, all[looks-1]-after; last > first+heapSway {
		t.Errorf("readers cost %.1f MiB in the beginning, and %.1f in the end", first, last)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// leastHeap is the least of some looks at a server's heap after a collection, in MiB: what requests under way have is not meant.
func leastHeap(ctx context.Context, t *testing.T, admin string) float64 {
	t.Helper()
	least := 0.0
	for i := range 5 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/debug/pprof/heap?gc=1&debug=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		heap := -1.0
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			var n float64
			if _, err := fmt.Sscanf(lines.Text(), "# HeapAlloc = %g", &n); err == nil {
				heap = n / (1 << 20)
			}
		}
		_ = resp.Body.Close()
		if heap < 0 {
			t.Fatalf("the server does not tell its heap: %s", resp.Status)
		}
		if i == 0 || heap < least {
			least = heap
		}
	}
	return least
}
