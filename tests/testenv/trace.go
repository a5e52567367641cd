package testenv

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"
)

// The conversation trace (tests/load/testdata), as it is known: replayed in order, with lookups that find the longest prefix and nothing ever evicted,
// TraceHits of TraceBlocks are hits, 36.64 % (DESIGN D10). Any other figure of such a replay is wrong.
const (
	TraceRequests = 12_031
	TraceBlocks   = 288_500
	TraceHits     = 105_710

	trace = "../load/testdata/conversation_trace.jsonl.gz" // from the folder of any test
)

// Replay is what kvctl bench prompt tells, as far as it is looked at.
type Replay struct {
	Requests int64 `json:"requests"`
	Blocks   int64 `json:"blocks"`
	Hits     int64 `json:"hits"`
	Read     int64 `json:"blocks_read_verified"`
	Refused  int64 `json:"blocks_refused"`
	Wrong    int64 `json:"blocks_wrong"`
}

// ReplayTrace replays the trace through kvctl, in order and in blocks of 1 KiB. The test ends unless every hit was read and was right.
func ReplayTrace(t testing.TB, kvctl func(args ...string) ([]byte, error), args ...string) Replay {
	t.Helper()
	out, err := kvctl(append([]string{"bench", "prompt", "--trace", trace, "--ordered", "--block-bytes", "1024", "-o", "json"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var r Replay
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.Wrong != 0 || r.Refused != 0 || r.Read != r.Hits {
		t.Fatalf("%d blocks came back wrong, %d were refused, %d of %d hits could be read", r.Wrong, r.Refused, r.Read, r.Hits)
	}
	return r
}

// ReplayThrough replays the first requests of the trace, 500 unless KVSTORE_TRACE says how many, an equal part through each of a cluster's frontends,
// in turn: what was written through one is a hit through the next. The test ends unless the ratio is the one that it must be.
func ReplayThrough(t testing.TB, frontends ...func(args ...string) ([]byte, error)) {
	t.Helper()
	requests := 500
	if n := os.Getenv("KVSTORE_TRACE"); n != "" {
		var err error
		if requests, err = strconv.Atoi(n); err != nil || requests < len(frontends) || requests > TraceRequests {
			t.Fatalf("KVSTORE_TRACE=%s is no number of requests of the trace, at most %d", n, TraceRequests)
		}
	}
	var sum Replay
	for i, kvctl := range frontends {
		from, to := i*requests/len(frontends), (i+1)*requests/len(frontends)
		r := ReplayTrace(t, kvctl, "--name", "trace", "--keep", "--from", fmt.Sprint(from), "--limit", fmt.Sprint(to-from))
		sum.Requests, sum.Blocks, sum.Hits = sum.Requests+r.Requests, sum.Blocks+r.Blocks, sum.Hits+r.Hits
	}
	blocks, hits := prefixHits(t, requests)
	if sum.Requests != int64(requests) || sum.Blocks != blocks || sum.Hits != hits {
		t.Fatalf("%d requests, %d of %d blocks hit; want %d, %d of %d", sum.Requests, sum.Hits, sum.Blocks, requests, hits, blocks)
	}
	t.Logf("%d requests through %d frontends: %d of %d blocks hit (%.2f %%)", requests, len(frontends), hits, blocks, 100*float64(hits)/float64(blocks))
}

// prefixHits is what the first requests of the trace must come to: all blocks, and those in the longest prefix of their request that was written
// before.
func prefixHits(t testing.TB, requests int) (blocks, hits int64) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	written := make(map[uint64]bool)
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 4<<20)
	for left := requests; left > 0; left-- {
		var line struct {
			Blocks []uint64 `json:"hash_ids"`
		}
		if !lines.Scan() {
			t.Fatalf("the trace ends %d requests early: %v", left, lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		for hit := true; len(line.Blocks) > 0; line.Blocks = line.Blocks[1:] {
			if hit = hit && written[line.Blocks[0]]; hit {
				hits++
			}
			written[line.Blocks[0]] = true
			blocks++
		}
	}
	if requests == TraceRequests && (blocks != TraceBlocks || hits != TraceHits) {
		t.Fatalf("the trace has %d blocks of which %d are hits; it is another than the one that is known, or this counts wrong", blocks, hits)
	}
	return blocks, hits
}
