package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"kvstore/components/kverr"
)

var errStop = kverr.New(kverr.Unknown, "", "stop here")

func newFlagSet(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs
}

func TestContent(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 1000, 4099} {
		want := make([]byte, n)
		fill(want, 42)
		if !same(want, 42) {
			t.Errorf("%d bytes are not the same as themselves", n)
		}
		if n >= 8 {
			if same(want, 43) {
				t.Errorf("%d bytes pass for those of another block", n)
			}
			for _, at := range []int{0, n / 2, n - 1} {
				want[at] ^= 4
				if same(want, 42) {
					t.Errorf("a flipped bit at %d of %d is not seen", at, n)
				}
				want[at] ^= 4
			}
		}
		c := newContent(42, int64(n))
		for _, r := range []io.Reader{c, iotest.OneByteReader(c), iotest.HalfReader(c)} {
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("content of %d bytes differs from fill: %v", n, err)
			}
			if _, err := c.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "300": 300, "1k": 1 << 10, "16KiB": 16 << 10, "80MiB": 80 << 20, "1g": 1 << 30, "2GB": 2 << 30, "512b": 512,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5k", "9999999999g", "k"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestSplit(t *testing.T) {
	for line, want := range map[string][]string{
		"":                           nil,
		"  # all comment":            nil,
		"put a b # why":              {"put", "a", "b"},
		`put "a key" "x\ty\"z" # no`: {"put", "a key", "x\ty\"z"},
		`put a ""`:                   {"put", "a", ""},
		`put a b#c`:                  {"put", "a", "b#c"},
	} {
		if got, err := split(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("split(%q) = %q, %v, want %q", line, got, err, want)
		}
	}
	for _, line := range []string{`put "open`, `put "a"b`} {
		if got, err := split(line); err == nil {
			t.Errorf("split(%q) = %q, want an error", line, got)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add("put a b if-absent\nget \"x y\"\nif k version 3")
	f.Fuzz(func(t *testing.T, text string) {
		steps, err := parseScript(strings.NewReader(text), "put", "get", "del", "if")
		var usage usageError
		if err != nil && !errors.As(err, &usage) {
			t.Errorf("%q: %v is no usage error", text, err)
		}
		for _, s := range steps {
			if s.verb == "put" && s.value == nil {
				t.Errorf("%q: a put without a value", text)
			}
		}
	})
}

func TestBarFitsTheTerminal(t *testing.T) {
	for _, columns := range []int{10, 40, 79, 200} {
		for _, done := range []float64{-1, 0, 0.5, 1, 2} {
			line := bar(columns, done, time.Minute, "hits 12.34 %  5 tokens/s")
			if n := utf8.RuneCountInString(line); n != columns {
				t.Errorf("%d columns instead of %d: %q", n, columns, line)
			}
		}
	}
	if line := bar(79, 0.5, time.Minute, ""); !strings.Contains(line, "50.0 %") || !strings.Contains(line, "ETA 01:00") {
		t.Error(line)
	}
}

func TestExitCodes(t *testing.T) {
	for kind, want := range map[kverr.Kind]int{
		kverr.NotFound: 3, kverr.VersionMismatch: 4, kverr.AlreadyExists: 4, kverr.Unavailable: 5, kverr.OutcomeUnknown: 5,
		kverr.DeadlineExceeded: 5, kverr.InvalidArgument: 1, kverr.DataLoss: 1, kverr.Unknown: 1,
	} {
		if got := exitCode(&kverr.Error{Kind: kind}); got != want {
			t.Errorf("%v: exit code %d, want %d", kind, got, want)
		}
	}
	if exitCode(usagef("x")) != 2 {
		t.Error("usage")
	}
}

func TestLatency(t *testing.T) {
	l := newLatency("x")
	for i := range 1000 {
		l.record(time.Duration(i+1)*time.Millisecond, 10)
	}
	r := l.result(10 * time.Second)
	if r.Count != 1000 || r.Bytes != 10_000 || r.MBps != 0.001 {
		t.Errorf("%+v", r)
	}
	for _, q := range []struct{ got, want float64 }{{r.P50, 500}, {r.P90, 900}, {r.P99, 990}, {r.Max, 1000}} {
		if q.got < q.want*0.99 || q.got > q.want*1.01 {
			t.Errorf("%v, want about %v", q.got, q.want)
		}
	}
	l.record(time.Hour, 0) // over the range: counted at its end
	if r := l.result(0); r.Count != 1001 {
		t.Errorf("%+v", r)
	}
}
