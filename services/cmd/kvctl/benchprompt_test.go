package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/components/kverr"
)

func trace(t *testing.T, zipped bool) string {
	t.Helper()
	var b bytes.Buffer
	for i := range 20 { // a shared first block, chains of 5 that share 3 with the neighbour
		fmt.Fprintf(&b, `{"timestamp": %d, "input_length": 1, "hash_ids": [0, %d, %d, %d, %d]}`+"\n",
			i*2, 1000+i/2, 2000+i/2, 3000+i, 4000+i)
	}
	path := filepath.Join(t.TempDir(), "trace.jsonl")
	data := b.Bytes()
	if zipped {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data = z.Bytes()
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The trace has 20 requests of 5 blocks. The first of a pair finds block 0 alone (the very first nothing), the second
// three blocks.
const traceHits = 9*1 + 10*3

func (sh *shell) replay(args ...string) (res replayResult) {
	sh.t.Helper()
	out := sh.ok(append([]string{"bench", "prompt", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		sh.t.Fatalf("%v in %s", err, out)
	}
	return res
}

func TestBenchPrompt(t *testing.T) {
	sh, srv := newShell(t)
	for _, size := range []string{"1", "1000", "100KiB"} { // odd, in memory, as a stream
		res := sh.replay("--trace", trace(t, size == "1"), "--ordered", "--block-bytes", size, "--lease", "1s")
		if res.Requests != 20 || res.Blocks != 100 || res.Hits != traceHits || res.Read != traceHits ||
			res.Written != 100-traceHits || res.Existing+res.Lost+res.Refused+res.Wrong != 0 || res.Next != 20 || res.Mode != "ordered" {
			t.Errorf("blocks of %s: %+v", size, res)
		}
	}
	if n := srv.Leased(); n != 0 {
		t.Errorf("%d leases were not released", n)
	}
	if out := sh.ok("namespace", "ls", "-o", "json"); strings.Contains(out, "bench-") {
		t.Errorf("a namespace stayed behind: %s", out)
	}
	closed := sh.replay("--trace", trace(t, false), "-c", "4", "--block-bytes", "100")
	if closed.Blocks != 100 || closed.Read+closed.Written+closed.Existing != 100 || closed.Mode != "closed" {
		t.Errorf("closed: %+v", closed)
	}
	for _, rate := range []string{"5000", "x1000"} {
		if open := sh.replay("--trace", trace(t, false), "--rate", rate, "--block-bytes", "8"); open.Requests != 20 || open.Mode != "open" {
			t.Errorf("rate %s: %+v", rate, open)
		}
	}
	// The least recently used chain is out when its second request comes, but for the shared first block.
	small := sh.replay("--trace", trace(t, false), "--ordered", "--block-bytes", "8", "--capacity", "3")
	if small.Hits >= traceHits || small.Blocks != 100 {
		t.Errorf("with a capacity of 3 blocks: %+v", small)
	}
	if out := sh.ok("bench", "prompt", "--trace", trace(t, false), "--ordered"); !strings.Contains(out, "hit ratio 39.00 % (39 of 100 blocks)") {
		t.Errorf("table:\n%s", out)
	}
}

// TestBenchPromptResumes: two halves make the whole, with the server's data between them.
func TestBenchPromptResumes(t *testing.T) {
	sh, _ := newShell(t)
	tr, out := trace(t, false), filepath.Join(t.TempDir(), "result.json")
	a := sh.replay("--trace", tr, "--ordered", "--name", "half", "--keep", "--limit", "7", "--out", out)
	b := sh.replay("--trace", tr, "--ordered", "--name", "half", "--from", fmt.Sprint(a.Next))
	if a.Next != 7 || a.Hits+b.Hits != traceHits || a.Blocks+b.Blocks != 100 || b.Next != 20 {
		t.Errorf("halves: %+v and %+v", a, b)
	}
	var filed replayResult
	if data, err := os.ReadFile(out); err != nil || json.Unmarshal(data, &filed) != nil || filed.Hits != a.Hits {
		t.Errorf("--out: %+v, %v", filed, err)
	}
	if got := sh.ok("namespace", "get", "half"); !strings.Contains(got, "half") {
		t.Error("a namespace that was there before the run is gone")
	}
	sh.ok("namespace", "update", "half", "--capacity-blocks", "50")
	code, _, errs := sh.run("", "bench", "prompt", "--trace", tr, "--ordered", "--name", "half", "--capacity", "3")
	if code != exitUsage || !strings.Contains(errs, "kvctl namespace update half --capacity-blocks 3") {
		t.Errorf("another capacity than the namespace has: exit %d, %s", code, errs)
	}
	if c := sh.replay("--trace", tr, "--ordered", "--name", "half", "--limit", "1"); c.Capacity != 50 {
		t.Errorf("the capacity of the namespace is 50, the result says %d", c.Capacity)
	}
}

// TestBenchPromptFindsWrongBlocks: what a client cannot see by itself, a well-formed block of other bytes.
func TestBenchPromptFindsWrongBlocks(t *testing.T) {
	sh, srv := newShell(t)
	tr := trace(t, false)
	sh.replay("--trace", tr, "--ordered", "--name", "ns", "--keep", "--block-bytes", "64")
	srv.Swap()
	code, out, errs := sh.run("", "bench", "prompt", "--trace", tr, "--ordered", "--name", "ns", "--block-bytes", "64")
	if code != exitError || !strings.Contains(out, "BLOCKS WERE WRONG") || !strings.Contains(errs, "not what was written") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// TestBenchPromptFailsWhenBlocksAreRefused: figures of blocks that were never stored are none; the replay goes through all the same, and its
// namespace is deleted.
func TestBenchPromptFailsWhenBlocksAreRefused(t *testing.T) {
	sh, srv := newShell(t)
	n := 0
	srv.Faults.Before(func(m string) error {
		if m == "item" {
			if n++; n == 3 || n == 5 {
				return kverr.New(kverr.TooLarge, "write", "no room for it")
			}
		}
		return nil
	})
	code, out, errs := sh.run("", "bench", "prompt", "--trace", trace(t, false), "--ordered")
	if code != exitError || !strings.Contains(out, "20 requests") || !strings.Contains(out, "2 blocks were not stored") ||
		!strings.Contains(errs, "2 blocks were not stored, the first because: ") || !strings.Contains(errs, "no room for it") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if strings.Contains(errs, "go on with") {
		t.Errorf("a replay that went through is told to go on:\n%s", errs)
	}
	if out := sh.ok("namespace", "ls", "-o", "json"); strings.Contains(out, "bench-") {
		t.Errorf("a namespace stayed behind: %s", out)
	}
}

// TestBenchPromptStopsAndTellsHowToGoOn: and what the server refused before.
func TestBenchPromptStopsAndTellsHowToGoOn(t *testing.T) {
	sh, srv := newShell(t)
	n, refused := 0, false
	srv.Faults.Before(func(m string) error {
		switch {
		case m == "Lookup":
			if n++; n > 5 {
				return errStop
			}
		case m == "item" && n == 1 && !refused:
			refused = true
			return kverr.New(kverr.TooLarge, "write", "no room for it")
		}
		return nil
	})
	code, out, errs := sh.run("", "bench", "prompt", "--trace", trace(t, false), "--ordered", "--name", "stopped")
	if code != exitError || !strings.Contains(errs, "--name stopped --from 5") || !strings.Contains(out, "5 requests") ||
		!strings.Contains(errs, "stop here") || !strings.Contains(errs, "1 blocks were not stored, the first because: ") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}
