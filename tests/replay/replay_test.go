// Package replay replays a real conversation trace (12,031 requests, 288,500 blocks; see tests/load/testdata) into a real
// kvstored through kvctl and holds the hit ratio against what is known of the trace (DESIGN D10).
package replay

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"kvstore/tests/testenv"
)

func replay(ctx context.Context, t *testing.T, s *testenv.Server, args ...string) testenv.Replay {
	t.Helper()
	return testenv.ReplayTrace(t, func(args ...string) ([]byte, error) {
		out, err := s.Kvctl(ctx, args...)
		if err != nil {
			err = fmt.Errorf("%w\nthe server's log:\n%s", err, s.Tail())
		}
		return out, err
	}, args...)
}

// TestTraceAcrossKill: the whole trace in order, with kill -9 and restart half-way: the exact ratio, every hit read and compared.
func TestTraceAcrossKill(t *testing.T) {
	s := testenv.New(t, testenv.Bin(t, "e2e"))
	s.Start(t)
	s.Ready(t.Context(), t)
	const half = testenv.TraceRequests / 2
	first := replay(t.Context(), t, s, "--name", "trace", "--keep", "--limit", strconv.Itoa(half))
	s.Kill()
	s.Start(t)
	s.Ready(t.Context(), t)
	second := replay(t.Context(), t, s, "--name", "trace", "--keep", "--from", strconv.Itoa(half))
	blocks, hits := first.Blocks+second.Blocks, first.Hits+second.Hits
	if first.Requests+second.Requests != testenv.TraceRequests || blocks != testenv.TraceBlocks || hits != testenv.TraceHits {
		t.Fatalf("%d requests, %d of %d blocks hit (%.2f %%); want %d, %d of %d (36.64 %%)",
			first.Requests+second.Requests, hits, blocks, 100*float64(hits)/float64(blocks), testenv.TraceRequests, testenv.TraceHits, testenv.TraceBlocks)
	}
}

// TestTraceWithCapacity: 4 shards with room for a part of the blocks only.
func TestTraceWithCapacity(t *testing.T) {
	bin := testenv.Bin(t, "e2e")
	for _, c := range []struct {
		capacity int
		atLeast  float64 // per cent: what least-recently-touched reaches
		best     float64 // clairvoyant eviction
	}{{30_000, 32.0, 36.6}, {10_000, 20.6, 36.6}} {
		t.Run(fmt.Sprint(c.capacity), func(t *testing.T) {
			s := testenv.New(t, bin)
			s.Start(t)
			s.Ready(t.Context(), t)
			r := replay(t.Context(), t, s, "--capacity", strconv.Itoa(c.capacity))
			ratio := 100 * float64(r.Hits) / float64(r.Blocks)
			t.Logf("capacity %d blocks: %.2f %% of %d blocks hit (clairvoyant eviction: %.1f %%)", c.capacity, ratio, r.Blocks, c.best)
			if r.Blocks != testenv.TraceBlocks || ratio < c.atLeast {
				t.Fatalf("%.2f %% of %d blocks hit; at least %.1f %% of %d wanted", ratio, r.Blocks, c.atLeast, testenv.TraceBlocks)
			}
		})
	}
}

// TestTraceOnCluster: the trace on the cluster of make up, half of it through each frontend.
func TestTraceOnCluster(t *testing.T) {
	bin := testenv.Bin(t, "dapr")
	c := testenv.NewCluster(t, bin, testenv.ClusterConfig{})
	var through []func(...string) ([]byte, error)
	for _, f := range c.Frontends {
		through = append(through, func(args ...string) ([]byte, error) { return testenv.Kvctl(t.Context(), bin, f.Addr, args...) })
	}
	testenv.ReplayThrough(t, through...)
}
