package compose

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"testing"
)

// prefixHits is what the first requests of a trace must come to when nothing is evicted: all blocks, and those that are in the longest
// prefix of their request that was written before.
func prefixHits(t *testing.T, file string, requests int) (blocks, hits int) {
	t.Helper()
	f, err := os.Open(file)
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
	for ; requests > 0 && lines.Scan(); requests-- {
		var line struct {
			Blocks []uint64 `json:"hash_ids"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		prefix := 0
		for prefix < len(line.Blocks) && written[line.Blocks[prefix]] {
			prefix++
		}
		for _, b := range line.Blocks {
			written[b] = true
		}
		blocks, hits = blocks+len(line.Blocks), hits+prefix
	}
	if err := lines.Err(); err != nil || requests > 0 {
		t.Fatalf("the trace ends early: %v", err)
	}
	return blocks, hits
}
