// Package replay replays a real conversation trace (12,031 requests, 288,500 blocks; see tests/load/testdata) into a real
// kvstored through kvctl and holds the hit ratio against what is known of the trace (DESIGN D10).
package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"kvstore/tests/testenv"
)

const (
	trace     = "../load/testdata/conversation_trace.jsonl.gz"
	requests  = 12_031
	allBlocks = 288_500
	// ceiling is how many blocks are hits when nothing is ever evicted and a lookup finds the longest prefix: 36.64 %. Any other
	// figure of an ordered replay without a capacity is wrong.
	ceiling = 105_710
)

// result is the JSON of kvctl bench prompt, as far as it is looked at here.
type result struct {
	Requests int64 `json:"requests"`
	Blocks   int64 `json:"blocks"`
	Hits     int64 `json:"hits"`
	Read     int64 `json:"blocks_read_verified"`
	Refused  int64 `json:"blocks_refused"`
	Wrong    int64 `json:"blocks_wrong"`
}

func replay(ctx context.Context, t *testing.T, s *testenv.Server, args ...string) result {
	t.Helper()
	out, err := s.Kvctl(ctx, append([]string{"bench", "prompt", "--trace", trace, "--ordered", "--block-bytes", "1024", "-o", "json"}, args...)...)
	if err != nil {
		t.Fatalf("kvctl: %v\n%s\nthe server's log:\n%s", err, out, s.Tail())
	}
	var r result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.Wrong != 0 || r.Refused != 0 || r.Read != r.Hits {
		t.Fatalf("%d blocks came back wrong, %d were refused, %d of %d hits could be read", r.Wrong, r.Refused, r.Read, r.Hits)
	}
	return r
}

// TestTraceAcrossKill: the whole trace in order, with kill -9 and restart half-way: the exact ratio, every hit read and compared.
func TestTraceAcrossKill(t *testing.T) {
	s := testenv.New(t, testenv.Bin(t, "e2e"))
	s.Start(t)
	s.Ready(t.Context(), t)
	const half = requests / 2
	first := replay(t.Context(), t, s, "--name", "trace", "--keep", "--limit", strconv.Itoa(half))
	s.Kill()
	s.Start(t)
	s.Ready(t.Context(), t)
	second := replay(t.Context(), t, s, "--name", "trace", "--keep", "--from", strconv.Itoa(half))
	blocks, hits := first.Blocks+second.Blocks, first.Hits+second.Hits
	if first.Requests+second.Requests != requests || blocks != allBlocks || hits != ceiling {
		t.Fatalf("%d requests, %d of %d blocks hit (%.2f %%); want %d, %d of %d (36.64 %%)",
			first.Requests+second.Requests, hits, blocks, 100*float64(hits)/float64(blocks), requests, ceiling, allBlocks)
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
			if r.Blocks != allBlocks || ratio < c.atLeast {
				t.Fatalf("%.2f %% of %d blocks hit; at least %.1f %% of %d wanted", ratio, r.Blocks, c.atLeast, allBlocks)
			}
		})
	}
}
