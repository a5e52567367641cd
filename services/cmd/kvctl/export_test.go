package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/client"
	"kvstore/client/clienttest"
	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// holds is what a namespace holds, but for versions and times that no import can bring back.
func holds(t *testing.T, sh *shell, namespace string) map[string]string {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{sh.env["KVSTORE_ENDPOINT"]}, Namespace: namespace, DialOptions: sh.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := map[string]string{}
	for full, err := range c.List(t.Context(), &client.ListOptions{PageSize: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		e := full
		if int64(len(full.Value)) != full.Size {
			if full, err = c.Get(t.Context(), e.Key, nil); err != nil {
				t.Fatal(err)
			}
		}
		out[e.Key] = fmt.Sprintf("%x %q %q %v %v", full.Value, full.ContentType, full.Encoding, full.Metadata, full.Tags)
		if left := time.Until(full.Expires); !full.Expires.IsZero() && left > 50*time.Minute && left <= time.Hour { // what fillOdd gives
			out[e.Key] += " for an hour"
		} else if !full.Expires.IsZero() {
			out[e.Key] += " for " + left.String()
		}
	}
	return out
}

// fillOdd stores what is odd about keys and values, and enough of the rest for many batches.
func fillOdd(t *testing.T, sh *shell, n int) {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{sh.env["KVSTORE_ENDPOINT"]}, DialOptions: sh.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	put := func(key string, value []byte, o *client.PutOptions) {
		if _, err := c.Put(t.Context(), key, value, o); err != nil {
			t.Fatalf("%q: %v", key, err)
		}
	}
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	long := func(n int) []byte { b := make([]byte, n); fill(b, uint64(n)); return b }
	all := &client.PutOptions{
		ContentType: "text/\u2028plain", Encoding: "zstd", Metadata: map[string]string{"by": "<me> & \"you\"", "": "empty"},
		Tags: map[string]string{"a": "1", "ü": "ö"}, TTL: time.Hour,
	}
	for key, value := range map[string][]byte{
		"\x00": []byte("a key of one zero byte"), "\x01\x7f\u0080\u2028\ufffd": []byte("\ufffd"), "key with \"quotes\" \\ and \n lines": []byte("a\nb\r\n"),
		"日本語/🔑": []byte("😀"), strings.Repeat("k", 1024): {}, "empty": {}, "binary": binary, "html": []byte("<a href='x'>&amp;</a>\u2029"), "zero": []byte("\x00"),
		"over the inline limit": long(1025), "just in one piece": long(chunkOver), "just in chunks": long(chunkOver + 1), "several chunks": long(3*chunkSize + 7),
		"long text": bytes.Repeat([]byte("ä"), chunkOver),
	} {
		put(key, value, nil)
		put("options/"+key[:min(len(key), 1000)], value, all)
	}
	var items []client.PutItem
	for i := range n {
		items = append(items, client.PutItem{Key: fmt.Sprintf("many/%06d", i), Value: fmt.Appendf(nil, "value %d", i)})
		if len(items) == 1000 || i == n-1 {
			if _, err := c.BatchPut(t.Context(), items); err != nil {
				t.Fatal(err)
			}
			items = items[:0]
		}
	}
}

// TestExportRoundTrip: what goes out comes in again, byte by byte, through a pipe and through a file.
func TestExportRoundTrip(t *testing.T) {
	sh, _ := newShell(t)
	fillOdd(t, sh, 1234)
	want := holds(t, sh, "")
	code, dump, told := sh.run("", "export")
	if code != 0 || !regexp.MustCompile(fmt.Sprintf(`^exported %d keys, [\d.]+ MiB of values\n$`, len(want))).MatchString(told) {
		t.Fatalf("exit %d: %s", code, told)
	}
	for line := range strings.Lines(dump) {
		if len(line) > 4*chunkSize {
			t.Errorf("a line of %d bytes: %.100s", len(line), line)
		}
	}
	sh.ok("namespace", "create", "copy")
	if code, _, told := sh.run(dump, "import", "-", "--namespace", "copy"); code != 0 || !strings.Contains(told, fmt.Sprintf("imported %d keys\n", len(want))) {
		t.Fatalf("exit %d: %s", code, told)
	}
	same := func(namespace string, want map[string]string) {
		t.Helper()
		got := holds(t, sh, namespace)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %q is %.200q, want %.200q", namespace, k, got[k], v)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d keys, want %d", namespace, len(got), len(want))
		}
	}
	same("copy", want)

	// By a file; again, which changes nothing; with keys that exist.
	file := filepath.Join(t.TempDir(), "dump")
	sh.ok("export", "--out", file)
	sh.ok("namespace", "create", "copy2")
	sh.ok("put", "zero", "mine", "--namespace", "copy2")
	if code, _, told := sh.run("", "import", file, "--namespace", "copy2", "--if-absent"); code != 0 ||
		!strings.Contains(told, fmt.Sprintf("imported %d keys, 1 existed already\n", len(want)-1)) {
		t.Errorf("exit %d: %s", code, told)
	}
	if got := sh.ok("get", "zero", "--namespace", "copy2"); got != "mine" {
		t.Errorf("--if-absent has overwritten a key with %q", got)
	}
	sh.ok("import", file, "--namespace", "copy2")
	same("copy2", want)
	if _, err := os.Stat(file + ".import"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a checkpoint stays behind: %v", err)
	}
	if code, _, told := sh.run("", "import", file, "--check"); code != 0 || !strings.Contains(told, fmt.Sprintf("could import %d keys", len(want))) {
		t.Errorf("--check: exit %d: %s", code, told)
	}

	// A part.
	if dump := sh.ok("export", "many/", "--start", "many/000010", "--end", "many/000020"); strings.Count(dump, "\n") != 12 {
		t.Errorf("10 keys, head and end are %d lines", strings.Count(dump, "\n"))
	}
	if code, _, told := sh.run("", "export", "--out", file); code != exitUsage || !strings.Contains(told, "--resume") {
		t.Errorf("an export over a file: exit %d: %s", code, told)
	}
}

// TestExportResumes: wherever an export was cut off, also between two bytes of a line, --resume makes the same file of it.
func TestExportResumes(t *testing.T) {
	sh, _ := newShell(t)
	sh.ok("put", "a", "1")
	sh.ok("put", "b", "two\nlines")
	if code, _, errs := sh.run(strings.Repeat("\x00\xff", chunkOver/2+5), "put", "c", "-"); code != 0 {
		t.Fatal(errs)
	}
	sh.ok("put", "d", "last")
	file := filepath.Join(t.TempDir(), "dump")
	sh.ok("export", "--out", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cuts []int // around the ends of lines, and some within
	for n := range len(whole) + 1 {
		if n%40009 == 0 || n < 500 && n%41 == 0 || bytes.IndexByte(whole[max(0, n-2):min(len(whole), n+2)], '\n') >= 0 {
			cuts = append(cuts, n)
		}
	}
	if testing.Short() { // the same again and again
		cuts = cuts[len(cuts)/2:]
	}
	for _, n := range cuts {
		if err := os.WriteFile(file, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, told := sh.run("", "export", "--out", file, "--resume"); code != 0 {
			t.Fatalf("cut off at %d of %d: exit %d: %s", n, len(whole), code, told)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[bytes.IndexByte(got, '\n'):], whole[bytes.IndexByte(whole, '\n'):]) {
			t.Fatalf("cut off at %d of %d, it becomes another file: %.300q ... %.300q", n, len(whole), got, got[max(0, len(got)-300):])
		}
	}
	if code, _, told := sh.run("", "export", "--out", file, "--resume"); code != 0 || !strings.Contains(told, "whole already: 4 keys") {
		t.Errorf("exit %d: %s", code, told)
	}
	if code, _, told := sh.run("", "export", "x/", "--out", file, "--resume"); code != exitUsage || !strings.Contains(told, `prefix ""`) {
		t.Errorf("another export into the file: exit %d: %s", code, told)
	}
	if err := os.WriteFile(file, append([]byte("nonsense\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, told := sh.run("", "export", "--out", file, "--resume"); code != exitError || !strings.Contains(told, "line 1 is no record") {
		t.Errorf("a file of something else: exit %d: %s", code, told)
	}
}

// spoiled is a stream of a value whose last chunk arrives with another byte, as long as spoil says so.
type spoiled struct {
	grpc.ClientStream
	spoil *atomic.Bool
	left  int64
}

func (s *spoiled) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if r, ok := m.(*kvstorev1.GetStreamResponse); ok && err == nil {
		if e := r.GetEntry(); e != nil {
			s.left = e.Size
		}
		if c := r.GetChunk(); len(c) > 0 {
			if s.left -= int64(len(c)); s.left == 0 && s.spoil.Load() {
				c[len(c)-1] ^= 1
			}
		}
	}
	return err
}

// TestExportOfDamage: a value that does not match its checksum is never in the file as a whole, so that --resume reads it again.
func TestExportOfDamage(t *testing.T) {
	sh, _ := newShell(t)
	var spoil atomic.Bool
	sh.dial = append(sh.dial, grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, d, cc, method, o...)
		return &spoiled{ClientStream: s, spoil: &spoil}, err
	}))
	sh.ok("put", "a", "1")
	for key, size := range map[string]int{"one chunk and a byte": chunkSize + 1, "whole chunks": 2 * chunkSize} {
		if code, _, errs := sh.run(strings.Repeat("x", size), "put", key, "-"); code != 0 {
			t.Fatal(errs)
		}
		file := filepath.Join(t.TempDir(), "dump")
		spoil.Store(true)
		if code, _, told := sh.run("", "export", "--out", file); code != exitError || !strings.Contains(told, "checksum") {
			t.Errorf("%s: exit %d: %s", key, code, told)
		}
		spoil.Store(false)
		if code, _, told := sh.run("", "export", "--out", file, "--resume"); code != 0 {
			t.Errorf("%s: exit %d: %s", key, code, told)
		}
		sh.ok("namespace", "create", "copy")
		sh.ok("import", file, "--namespace", "copy")
		if !maps.Equal(holds(t, sh, ""), holds(t, sh, "copy")) {
			t.Errorf("%s: the export has another value", key)
		}
		sh.ok("namespace", "rm", "copy", "--confirm", "copy")
		sh.ok("del", key)
	}
}

// TestExportOnATerminal: the bar is no part of the export. Whether somebody counts for it, or how long that takes, changes nothing.
func TestExportOnATerminal(t *testing.T) {
	for name, count := range map[string]func(context.Context) error{
		"fails":       func(context.Context) error { return status.Error(codes.PermissionDenied, "no counting") },
		"never comes": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		sh, _ := newShell(t)
		sh.errTTY = 80
		sh.dial = append(sh.dial, grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if r, ok := req.(*kvstorev1.ListRequest); ok && r.CountOnly {
				return count(ctx)
			}
			return call(ctx, method, req, reply, cc, o...)
		}))
		sh.ok("put", "a", "1")
		began := time.Now()
		if code, out, told := sh.run("", "export"); code != 0 || !strings.Contains(out, `{"end":{"keys":1,`) || time.Since(began) > 20*time.Second {
			t.Errorf("a count that %s: exit %d after %v: %s", name, code, time.Since(began), told)
		}
	}
}

// TestExportSkipsWhatGoes: a key that is deleted between the list and its value is no error.
func TestExportSkipsWhatGoes(t *testing.T) {
	sh, srv := newShell(t)
	sh.ok("put", "keep", strings.Repeat("x", 5000))
	sh.ok("put", "lose", strings.Repeat("x", 5000))
	sh.ok("put", "lose long", strings.Repeat("x", chunkOver+1))
	other := *sh
	gone := false
	srv.Faults.Before(func(method string) error {
		if method == "BatchGet" && !gone {
			gone = true
			other.ok("del", "lose", "lose long")
		}
		return nil
	})
	dump := sh.ok("export")
	if !strings.Contains(dump, `"key":"keep"`) || strings.Contains(dump, `"key":"lose`) || !strings.Contains(dump, `{"end":{"keys":1,`) {
		t.Errorf("%.500s", dump)
	}
}

func TestImportLines(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	long := b64(make([]byte, 100))
	for _, tc := range []struct {
		name, file string
		code       int
		want       string // in what is told
		stored     int
	}{
		{"by hand", "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value_base64\":\"AAE=\"}", 0, "imported 2 keys\n", 2},
		{"as of ls", `{"key":"a","value":"x","version":9,"size":1,"created":"2024-05-01T10:00:00Z","updated":"2024-05-01T10:00:00Z"}`, 0, "imported 1", 1},
		{"twice", "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"a\",\"value\":\"2\"}\n", 0, "imported 2", 1},
		{"expired", `{"key":"a","value":"1","expires":"2001-01-01T00:00:00Z"}`, 0, "imported 0 keys, 1 have expired", 0},
		{"nothing", "", 0, "imported 0", 0},
		{"no JSON", "{\"key\":\"a\",\"value\":\"1\"}\nnonsense\n", 1, "line 2 is no record", 1},
		{"no object", "[1]\n", 1, "line 1 is no record", 0},
		{"no key", `{"value":"1"}`, 1, `line 1 is no record: it needs "key"`, 0},
		{"no value", `{"key":"a"}`, 1, "line 1 has neither value nor value_base64", 0},
		{"two values", `{"key":"a","value":"1","value_base64":"AAE="}`, 1, "line 1 has both", 0},
		{"a typo", `{"key":"a","valeu":"1"}`, 1, `line 1 is no record: json: unknown field "valeu"`, 0},
		{"two objects", `{"key":"a","value":"1"} {}`, 1, "line 1 has more than one", 0},
		{"bad base64", `{"key":"a","value_base64":"?"}`, 1, "line 1 is no record: illegal base64", 0},
		{"wrong size", `{"key":"a","value":"123","size":4}`, 1, "line 1 says that its value has 4 bytes; it has 3", 0},
		{"no UTF-8", "{\"key\":\"a\xff\",\"value\":\"1\"}", 1, "line 1 is not UTF-8", 0},
		{"half a character", `{"key":"\\a\ud83d","value":"1"}`, 1, `line 1 has half a character at byte 12 (\ud83d)`, 0},
		{"the other half", `{"key":"a\uDE00b","value":"1"}`, 1, `line 1 has half a character`, 0},
		{"a whole character", `{"key":"a\ud83d\ude00","value":"\\ud83d"}`, 0, `imported 1`, 1},
		{"an empty key", `{"key":"","value":"1"}`, 1, `line 1 is refused: "": `, 0},
		{"another format", `{"export":{"format":2}}`, 1, "line 1 is of format 2", 0},
		{"chunks", "{\"key\":\"a\",\"size\":200,\"chunked\":true}\n{\"chunk\":\"" + long + "\"}\n{\"chunk\":\"" + long + "\"}\n{\"key\":\"b\",\"value\":\"\"}", 0, "imported 2", 2},
		{"no chunks", "{\"key\":\"a\",\"size\":0,\"chunked\":true}\n{\"key\":\"b\",\"value\":\"\"}", 0, "imported 2", 2},
		{"expired chunks", "{\"key\":\"a\",\"size\":100,\"chunked\":true,\"expires\":\"2001-01-01T00:00:00Z\"}\n{\"chunk\":\"" + long + "\"}\n{\"key\":\"b\",\"value\":\"\"}", 0, "imported 1 keys, 1 have expired", 1},
		{"too few chunks", "{\"key\":\"a\",\"size\":200,\"chunked\":true}\n{\"chunk\":\"" + long + "\"}\n", 1, "line 1 is not whole: 100 bytes of its value are missing at the end", 0},
		{"a key among chunks", "{\"key\":\"a\",\"size\":200,\"chunked\":true}\n{\"chunk\":\"" + long + "\"}\n{\"key\":\"b\",\"value\":\"\"}\n", 1, "line 1 is not whole: 100 bytes of its value are missing at line 3", 0},
		{"too many bytes", "{\"key\":\"a\",\"size\":50,\"chunked\":true}\n{\"chunk\":\"" + long + "\"}\n", 1, "line 2 has a chunk of 100 bytes; 50", 0},
		{"a chunk alone", "{\"chunk\":\"" + long + "\"}\n", 1, "line 1 is a chunk of no entry", 0},
		{"chunked without size", `{"key":"a","chunked":true}`, 1, "line 1 chunked: it needs a size", 0},
		{"half an export", "{\"export\":{\"format\":1}}\n{\"key\":\"a\",\"value\":\"1\"}\n", 1, "was not whole", 1},
		{"behind the end", "{\"export\":{\"format\":1}}\n{\"end\":{}}\n{\"key\":\"a\",\"value\":\"1\"}\n", 1, "line 3 follows the end", 0},
		{"two exports", strings.Repeat("{\"export\":{\"format\":1}}\n{\"key\":\"a\",\"value\":\"1\"}\n{\"end\":{\"keys\":1}}\n", 2), 0, "imported 2", 1},
		{"a long line", `{"key":"a","value":"` + strings.Repeat("x", maxLine) + `"}`, 1, "line 1 has 32.0 MiB, over 32.0 MiB", 0},
	} {
		sh, _ := newShell(t)
		code, _, told := sh.run(tc.file, "import", "-")
		if code != tc.code || !strings.Contains(told, tc.want) {
			t.Errorf("%s: exit %d, want %d; want %q in %q", tc.name, code, tc.code, tc.want, told)
		}
		if n := len(holds(t, sh, "")); n != tc.stored {
			t.Errorf("%s: %d keys are stored, want %d", tc.name, n, tc.stored)
		}
	}
}

// TestImportKeepsGoing: behind lines that are wrong, but not behind a server that fails.
func TestImportKeepsGoing(t *testing.T) {
	sh, srv := newShell(t)
	var file strings.Builder
	for i := range 100 {
		fmt.Fprintf(&file, "{\"key\":\"k%d\",\"value\":\"1\"}\nnonsense %d\n", i, i)
	}
	file.WriteString("{\"key\":\"\",\"value\":\"1\"}\n{\"key\":\"x\",\"size\":9,\"chunked\":true}\n{\"chunk\":\"AAE=\"}\n{\"key\":\"y\",\"value\":\"1\"}\n")
	code, _, told := sh.run(file.String(), "import", "-", "--keep-going")
	if code != exitError || !strings.Contains(told, "imported 101 keys, 102 lines were refused") || !strings.Contains(told, "line 2 is no record") ||
		strings.Contains(told, "line 60 ") || strings.Count(told, "\n") > importTold+5 {
		t.Errorf("exit %d: %s", code, told)
	}
	if got := sh.ok("get", "y"); got != "1" {
		t.Errorf("the entry behind a value that is not whole: %q", got)
	}

	// Behind a value that is not whole each entry counts, and the entry whose value that is is the one refused.
	sh.ok("put", "there", "1")
	name := filepath.Join(t.TempDir(), "dump")
	torn := func(key, more string) string {
		return `{"key":"` + key + `","size":9,"chunked":true` + more + "}\n{\"chunk\":\"AAE=\"}\n\n{\"key\":\"good\",\"value\":\"1\"}\n"
	}
	for what, tc := range map[string]struct {
		text, want string
		args       []string
	}{
		"a pipe":  {torn("x", ""), "imported 1 keys, 1 lines", []string{"-"}},
		"a file":  {torn("x", ""), "imported 1 keys, 1 lines", []string{name}},
		"twice":   {torn("x", "") + torn("x", ""), "imported 2 keys, 2 lines", []string{name}},
		"in row":  {strings.Repeat("{\"key\":\"x\",\"size\":9,\"chunked\":true}\n", 2) + torn("x", ""), "imported 1 keys, 3 lines", []string{name}},
		"checked": {torn("x", ""), "could import 1 keys, 1 lines", []string{name, "--check"}},
		"expired": {torn("x", `,"expires":"2001-01-01T00:00:00Z"`), "imported 1 keys, 1 have expired, 1 lines", []string{name}},
		"existed": {torn("there", ""), "imported 1 keys", []string{name, "--if-absent"}},
	} {
		if err := os.WriteFile(name, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, told := sh.run(tc.text, append([]string{"import", "--keep-going"}, tc.args...)...)
		if code != exitError || !strings.Contains(told, tc.want) || !strings.Contains(told, "line 1 is not whole") ||
			!strings.Contains(told, " lines were refused") || strings.Contains(told, "no entry") {
			t.Errorf("%s: exit %d: %s", what, code, told)
		}
		if what != "checked" {
			sh.ok("del", "good")
		}
	}
	srv.Faults.Before(func(method string) error {
		if method == "BatchPut" {
			return kverr.New(kverr.PermissionDenied, "", "no")
		}
		return nil
	})
	if code, _, told := sh.run("{\"key\":\"a\",\"value\":\"1\"}", "import", "-", "--keep-going"); code == 0 || strings.Contains(told, "refused") {
		t.Errorf("exit %d: %s", code, told)
	}
}

// TestImportResumes: an import whose server went away goes on behind the line that it noted, and not into another namespace or another file.
func TestImportResumes(t *testing.T) {
	sh, srv := newShell(t)
	fillOdd(t, sh, 2500)
	want := len(holds(t, sh, ""))
	file := filepath.Join(t.TempDir(), "dump")
	sh.ok("export", "--out", file)
	sh.ok("namespace", "create", "copy")
	calls, allowed := 0, 2
	srv.Faults.Before(func(method string) error {
		if method == "BatchPut" {
			if calls++; calls > allowed {
				return kverr.New(kverr.PermissionDenied, "", "not now")
			}
		}
		return nil
	})
	into := []string{"import", file, "--namespace", "copy", "--resume"}
	code, _, told := sh.run("", into...)
	m := regexp.MustCompile(`stored up to line (\d+); --resume goes on`).FindStringSubmatch(told)
	if code != exitError || m == nil || m[1] == "0" {
		t.Fatalf("exit %d: %s", code, told)
	}
	if code, _, told := sh.run("", "import", file, "--resume"); code != exitUsage || !strings.Contains(told, "namespace copy") {
		t.Errorf("into another namespace: exit %d: %s", code, told)
	}
	allowed = 1 << 30
	calls = 0
	code, _, told = sh.run("", into...)
	if code != 0 || !strings.Contains(told, "going on behind line "+m[1]) || !strings.Contains(told, fmt.Sprintf("imported %d keys\n", want)) {
		t.Errorf("exit %d: %s", code, told)
	}
	if n := len(holds(t, sh, "copy")); n != want {
		t.Errorf("%d keys, want %d", n, want)
	}
	allowed, calls = 0, 0
	if code, _, _ := sh.run("", into...); code == 0 {
		t.Error("an import without a server succeeds")
	}
	if f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0); err != nil {
		t.Error(err)
	} else if _, err := io.WriteString(f, "\n"); err != nil || f.Close() != nil {
		t.Error(err)
	}
	if code, _, told := sh.run("", into...); code != exitUsage || !strings.Contains(told, "has changed since") {
		t.Errorf("of another file: exit %d: %s", code, told)
	}
}

// TestImportCounts: what an import counts in the end is what the file has, however often it was interrupted in the midst of a batch.
func TestImportCounts(t *testing.T) {
	sh, srv := newShell(t)
	var text strings.Builder
	for i := range 20 {
		fmt.Fprintf(&text, "{\"key\":\"k%02d\",\"value\":\"1\"}\nnonsense\n{\"key\":\"old\",\"value\":\"1\",\"expires\":\"2001-01-01T00:00:00Z\"}\n", i)
		fmt.Fprintf(&text, "{\"key\":\"\",\"value\":\"1\"}\n{\"key\":\"l%02d\",\"value\":\"1\"}\n", i)
		text.WriteString("{\"key\":\"older\",\"size\":2,\"chunked\":true,\"expires\":\"2001-01-01T00:00:00Z\"}\n{\"chunk\":\"AAE=\"}\n")
	}
	file := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	items, runs := 0, 0
	srv.Faults.Before(func(method string) error {
		if method == "item" {
			if items++; items%17 == 0 {
				return kverr.New(kverr.PermissionDenied, "", "not now")
			}
		}
		return nil
	})
	var code int
	var told string
	for code = exitError; runs < 50 && !strings.Contains(told, "40 lines were refused\nkvctl: 40"); runs++ {
		code, _, told = sh.run("", "import", file, "--resume", "--keep-going")
	}
	if code != exitError || runs < 3 || !strings.Contains(told, "imported 40 keys, 40 have expired, 40 lines were refused") {
		t.Errorf("exit %d after %d runs: %s", code, runs, told)
	}
}

// TestImportCutOff: a file whose reading fails in the midst of a line is stored up to the line before.
func TestImportCutOff(t *testing.T) {
	sh, _ := newShell(t)
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{sh.env["KVSTORE_ENDPOINT"]}, DialOptions: sh.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const first, second = "{\"key\":\"a\",\"value\":\"1\"}\n", "{\"key\":\"b\",\"val"
	gone := errors.New("the disk is gone")
	for _, rest := range []string{second, "", "\n \n" + second} {
		m := &importer{s: &session{}, c: c, r: newRecordReader(io.MultiReader(strings.NewReader(first+rest), iotest.ErrReader(gone)))}
		blank := int64(strings.Count(rest, "\n"))
		if err := m.run(t.Context()); !errors.Is(err, gone) || m.sure.Offset != int64(len(first+rest[:strings.LastIndex(rest, "\n")+1])) || m.sure.Line != 1+blank || m.sure.Stored != 1 {
			t.Errorf("%q: %v; the checkpoint is %+v", rest, err, m.sure)
		}
	}
}

// killed runs a kvctl as a process of its own and kills it (-9) once something holds.
func killed(t *testing.T, addr string, holds func() bool, args ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), "KVCTL_IS_THE_TEST=yes", "KVSTORE_ENDPOINT="+addr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("kvctl %q comes to nothing", args)
		}
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Fatalf("kvctl %q was killed too late to tell anything", args)
	}
}

// TestKilledHalfWay: kill -9 of an export and of the import of it; --resume goes on with both, and nothing is missing or wrong.
func TestKilledHalfWay(t *testing.T) {
	if testing.Short() {
		t.Skip("moves a hundred megabytes through processes that share nothing: make unit runs it")
	}
	srv := clienttest.StartTCP(t)
	sh := &shell{t: t, env: map[string]string{"KVSTORE_ENDPOINT": srv.Addr()}}
	c, err := client.Dial(t.Context(), client.Config{Endpoints: []string{srv.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	value := make([]byte, 400<<10)
	for i := range 100 {
		fill(value, uint64(i))
		if _, err := c.Put(t.Context(), fmt.Sprintf("k%03d", i), value, nil); err != nil {
			t.Fatal(err)
		}
	}
	fillOdd(t, sh, 100)
	file := filepath.Join(t.TempDir(), "dump")
	size := func() int64 {
		st, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	killed(t, srv.Addr(), func() bool { return size() > 1<<20 }, "export", "--out", file)
	half := size()
	sh.ok("export", "--out", file, "--resume")
	if half >= size() {
		t.Errorf("killed at %d bytes of %d", half, size())
	}
	sh.ok("namespace", "create", "copy")
	into := []string{"import", file, "--namespace", "copy"}
	killed(t, srv.Addr(), func() bool { _, err := os.Stat(file + ".import"); return err == nil }, into...)
	code, _, told := sh.run("", append(into, "--resume")...)
	if code != 0 || !strings.Contains(told, "going on behind line") {
		t.Errorf("exit %d: %s", code, told)
	}
	want, got := holds(t, sh, ""), holds(t, sh, "copy")
	if len(want) < 200 || !maps.Equal(want, got) {
		t.Errorf("%d keys became %d, or others", len(want), len(got))
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"key":"a","value":"1","tags":{"x":"y"}}`))
	f.Add([]byte(`{"key":"a\ud83d\ude00","value_base64":"AAE=","size":2}`))
	f.Add([]byte(`{"chunk":"AAE="}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		rec, err := parseRecord(line)
		if err != nil || rec.Key == nil || rec.Chunked {
			return
		}
		// What is understood can be written, and is understood the same.
		var b bytes.Buffer
		sh := &session{system: system{stdout: &b}}
		e := client.Entry{Key: *rec.Key, Value: rec.value(), Size: rec.size()}
		if err := sh.jsonLine(entryLine{entryJSON: toEntryJSON(e)}); err != nil {
			t.Fatal(err)
		}
		again, err := parseRecord(bytes.TrimSpace(b.Bytes()))
		if err != nil || *again.Key != *rec.Key || !bytes.Equal(again.value(), rec.value()) {
			t.Errorf("%q becomes %q: %v", line, b.Bytes(), err)
		}
	})
}
