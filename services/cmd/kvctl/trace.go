package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// traceRequest is one request of a prompt trace.
type traceRequest struct {
	at  time.Duration // since the trace began
	ids []uint64      // of its blocks, in the order of its chain
}

// readTrace reads a trace: JSON lines with "timestamp" (milliseconds) and "hash_ids", gzipped or not. That is the format
// of the Mooncake traces.
func readTrace(path string) ([]traceRequest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("--trace: %v", err)
	}
	defer f.Close()
	buffered := bufio.NewReader(f)
	var r io.Reader = buffered
	if magic, err := buffered.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		if r, err = gzip.NewReader(buffered); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 4<<20)
	var out []traceRequest
	for n := 1; sc.Scan(); n++ {
		if len(bytes.TrimSpace(sc.Bytes())) == 0 {
			continue
		}
		var line struct {
			Timestamp float64  `json:"timestamp"`
			HashIDs   []uint64 `json:"hash_ids"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return nil, usagef("%s: line %d: %v; want JSON lines with hash_ids", path, n, err)
		}
		out = append(out, traceRequest{time.Duration(line.Timestamp * float64(time.Millisecond)), line.HashIDs})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(out) == 0 {
		return nil, usagef("%s holds no requests", path)
	}
	return out, nil
}
