package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"kvstore/client/clienttest"
)

// TestMain makes this binary a kvctl where a test wants real processes.
func TestMain(m *testing.M) {
	if os.Getenv("KVCTL_IS_THE_TEST") != "" {
		main() // which exits
	}
	os.Exit(m.Run())
}

// TestZipf: keys come as often as Zipf's law says, for exponents on both sides of 1.
func TestZipf(t *testing.T) {
	const n, picks = 1000, 400_000
	for _, s := range []float64{0.5, 0.99, 1.3} {
		pick := newChooser(n, s).picker(rand.New(rand.NewPCG(1, 2)))
		got := make([]float64, n)
		for range picks {
			got[pick()]++
		}
		zeta := 0.0
		for i := range n {
			zeta += math.Pow(float64(i+1), -s)
		}
		for _, r := range [][2]int{{0, 1}, {1, 2}, {0, 10}, {10, 100}, {100, n}} {
			var have, want float64
			for i := r[0]; i < r[1]; i++ {
				have += got[i] / picks
				want += math.Pow(float64(i+1), -s) / zeta
			}
			if have < want*0.85 || have > want*1.15 {
				t.Errorf("exponent %v: keys %d to %d are %.4f of all, want %.4f", s, r[0], r[1], have, want)
			}
		}
	}
	for range 100 { // few keys
		if k := newChooser(2, 0.99).picker(rand.New(rand.NewPCG(3, 4)))(); k < 0 || k > 1 {
			t.Fatalf("key %d of 2", k)
		}
	}
}

func (sh *shell) bench(args ...string) (res loadResult) {
	sh.t.Helper()
	out := sh.ok(append(append([]string{"bench"}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		sh.t.Fatalf("%v in %s", err, out)
	}
	return res
}

// TestOpenLoopCountsWaiting: while a server stalls, operations that should begin meanwhile count from when they should.
func TestOpenLoopCountsWaiting(t *testing.T) {
	sh, srv := newShell(t)
	const stall = 400 * time.Millisecond
	first := true
	srv.Faults.Before(func(method string) error {
		if method == "Put" && first { // one caller: one call at a time
			first = false
			<-time.After(stall)
		}
		return nil
	})
	res := sh.bench("put", "--unary", "-c", "1", "-n", "40", "--rate", "200") // all are due within 200 ms
	if res.Mode != "open" || res.Ops != 40 || res.Steps[0].P50 < 150 || res.Steps[0].Max < 400 {
		t.Errorf("%+v", res)
	}
	if took := time.Duration(res.Seconds * float64(time.Second)); took < stall {
		t.Errorf("took %v", took)
	}
	// And it keeps the rate, when it can.
	res = sh.bench("mixed", "-c", "50", "-d", "300ms", "--rate", "300", "--keys", "10", "--warmup", "100ms")
	if res.Ops < 80 || res.Ops > 91 {
		t.Errorf("%d operations in 300 ms at 300 a second", res.Ops)
	}
}

func TestBenchBatch(t *testing.T) {
	sh, srv := newShell(t)
	res := sh.bench("batch", "-n", "20", "-c", "4", "--batch", "50", "--keys", "200", "--size", "10")
	if res.Ops != 20 || res.Batch != 50 || len(res.Steps) != 1 || res.Steps[0].Bytes != 20*50*10 || math.Abs(res.KeysPerS-50*res.OpsPerS) > 1 {
		t.Errorf("%+v", res)
	}
	if srv.Applied() != 20*50 {
		t.Errorf("%d puts arrived", srv.Applied())
	}
	res = sh.bench("batch", "-n", "40", "--reads", "0.5", "--batch", "20", "--keys", "100")
	if len(res.Steps) != 2 || res.Steps[0].Count+res.Steps[1].Count != 40 || res.NotFound != 0 {
		t.Errorf("%+v", res)
	}
	for line, want := range map[string]string{
		"batch --batch 1001": "1 to 1000", "batch --batch 1000 --size 1MiB": "3MiB", "put --reads 0.5": "no flag -reads", "put --warmup 1s -n 5": "-d",
		"put --zipf 1": "not 1", "watch --size 4": "16 to", "watch --watchers 0": "1 to", "put --rate -1": "a second",
	} {
		if code, _, errs := sh.run("", append([]string{"bench"}, strings.Fields(line)...)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("bench %s: exit %d: %s", line, code, errs)
		}
	}
}

// TestBenchWatch: each watch tells of each put.
func TestBenchWatch(t *testing.T) {
	sh, _ := newShell(t)
	res := sh.bench("watch", "-n", "100", "-c", "4", "--watchers", "5", "--keys", "10", "--hdr")
	if len(res.Steps) != 2 || res.Steps[0].Name != "put" || res.Steps[0].Count != 100 || res.Steps[1].Name != "event" || res.Steps[1].Count != 500 {
		t.Errorf("%+v", res)
	}
	h, err := hdrhistogram.Decode([]byte(res.Steps[1].HDR))
	if err != nil || h.TotalCount() != 500 || math.Abs(float64(h.ValueAtQuantile(50))/1000-res.Steps[1].P50) > 0.001 {
		t.Errorf("histogram: %v", err)
	}
}

// sweepArgs is a small sweep of all kinds.
func sweepArgs(t *testing.T, dir string) []string {
	return []string{
		"bench", "sweep", "--kinds", "put,mixed,batch,watch,prompt", "--processes", "1,2", "--callers", "2", "-d", "40ms", "--warmup", "10ms", "--rounds", "2",
		"--keys", "50", "--trace", trace(t, false), "--requests", "20", "--dir", dir, "--size", "64", "--batch", "5", "--watchers", "2",
	}
}

func modTimes(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	out := map[string]time.Time{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".json") && filepath.Base(filepath.Dir(p)) == "cells" {
			info, err := d.Info()
			if err != nil {
				return err
			}
			out[filepath.Base(p)] = info.ModTime()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBenchSweep: with real processes, killed half-way and gone on with; then its report.
func TestBenchSweep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts some forty processes, which share nothing: make unit runs it")
	}
	srv := clienttest.StartTCP(t)
	t.Setenv("KVCTL_IS_THE_TEST", "yes") // for the processes that sweeps start
	sh := &shell{t: t, env: map[string]string{"KVSTORE_ENDPOINT": srv.Addr(), "KVSTORE_TOKEN": "kvs_not-in-any-report"}}
	dir := filepath.Join(t.TempDir(), "results")
	args := sweepArgs(t, dir)

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), "KVSTORE_ENDPOINT="+srv.Addr())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(dir); err == nil && len(modTimes(t, dir)) >= 3 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("no measurement is kept")
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	before := modTimes(t, dir)
	if len(before) == 20 {
		t.Fatal("it was killed too late to tell anything")
	}

	// A day ago: what goes on is the sweep that began then.
	began := time.Now().UTC().Add(-24 * time.Hour).Truncate(time.Second)
	was := sweep{dir: dir}
	if there, err := was.read(&was); err != nil || !there {
		t.Fatal(err)
	}
	was.Where.Began = began
	if err := replaceJSON(was.file("sweep.json"), was); err != nil {
		t.Fatal(err)
	}
	code, out, told := sh.run("", args...)
	if code != 0 || !strings.Contains(told, fmt.Sprintf("%d of 20 measurements are done already", len(before))) ||
		!strings.Contains(told, fmt.Sprintf("\n%d measurements in ", 20-len(before))) {
		t.Fatalf("exit %d: %s", code, told)
	}
	after := modTimes(t, dir)
	for name, at := range before {
		if !after[name].Equal(at) {
			t.Errorf("%s was measured again", name)
		}
	}
	for _, want := range []string{"Peak: ", "Sweet spot", "TOKENS/s", "EVENT P99 ms", chartsName} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}

	// What it wrote.
	var data reportData
	text, err := os.ReadFile(filepath.Join(dir, resultsName))
	if err != nil || json.Unmarshal(text, &data) != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if data.Done != 20 || len(data.Kinds) != 5 || !data.Settings.Where.Began.Equal(began) {
		t.Errorf("%d measurements of %d kinds, begun at %v, want %v", data.Done, len(data.Kinds), data.Settings.Where.Began, began)
	}
	for _, k := range data.Kinds {
		if len(k.Cells) != 2 {
			t.Errorf("%s: %d cells", k.Kind, len(k.Cells))
			continue
		}
		for _, c := range k.Cells {
			main := c.step(k.Main)
			if c.Rounds != 2 || c.OpsPerS < c.Least || c.OpsPerS > c.Most || len(c.Each) != c.Processes || main.Name != k.Main && k.Kind != "mixed" || main.Count == 0 || c.ClientCPU <= 0 {
				t.Errorf("%s: %+v", k.Kind, c)
			}
			for i := 1; i < len(main.Curve); i++ {
				if main.Curve[i][1] < main.Curve[i-1][1] || main.Curve[i][0] <= main.Curve[i-1][0] {
					t.Errorf("%s: the curve falls: %v", k.Kind, main.Curve)
				}
			}
			// The two kinds whose work is fixed have done all of it, whoever did it.
			if k.Kind == "prompt" && c.step("request").Count != 20 {
				t.Errorf("prompt: %d requests", c.step("request").Count)
			}
			if k.Kind == "watch" && c.step("event").Count != 2*c.step("put").Count {
				t.Errorf("watch: %d events of %d puts", c.step("event").Count, c.step("put").Count)
			}
		}
	}
	summary, err := os.ReadFile(filepath.Join(dir, summaryName))
	if err != nil || !regexp.MustCompile(`(?s)# Performance summary.*20 of 20 measurements.*\| put \| \d+ \| [12] x 2 .*## prompt.*lookup p50`).Match(summary) {
		t.Errorf("%v:\n%s", err, summary)
	}
	page, err := os.ReadFile(filepath.Join(dir, chartsName))
	if err != nil {
		t.Fatal(err)
	}
	selfContained(t, string(page), string(text))
	t.Run("in a browser", func(t *testing.T) { inBrowser(t, filepath.Join(dir, chartsName)) })
	for name, text := range map[string]string{"summary": string(summary), "page": string(page), "results": string(text)} {
		if strings.Contains(text, "kvs_") {
			t.Errorf("the %s tells a token", name)
		}
	}

	// Another sweep does not go into the same folder; the report can be had again.
	if code, _, told := sh.run("", append(args, "--keys", "51")...); code != exitUsage || !strings.Contains(told, "other keys (50, now 51)") {
		t.Errorf("another sweep: exit %d: %s", code, told)
	}
	if err := os.Remove(filepath.Join(dir, chartsName)); err != nil {
		t.Fatal(err)
	}
	sh.ok("bench", "report", dir)
	if again, err := os.ReadFile(filepath.Join(dir, chartsName)); err != nil || len(again) < len(page)-100 {
		t.Errorf("report: %v", err)
	}
	if code, _, _ := sh.run("", "bench", "report", t.TempDir()); code != exitUsage {
		t.Errorf("report of nothing: exit %d", code)
	}
	for line, want := range map[string]string{
		"--kinds fly": "want put", "--processes 0": "1 to 64", "--callers x": "numbers", "--kinds prompt": "--trace", "--rounds 0": "positive", "--zipf 1": "not 1",
		"--kinds put --processes ,": "at least one",
	} {
		if code, _, told := sh.run("", append([]string{"bench", "sweep"}, strings.Fields(line)...)...); code != exitUsage || !strings.Contains(told, want) {
			t.Errorf("sweep %s: exit %d: %s", line, code, told)
		}
	}
}

// selfContained: the page has all data, and nothing that is fetched from elsewhere.
func selfContained(t *testing.T, page, results string) {
	t.Helper()
	_, inside, _ := strings.Cut(page, `<script type="application/json" id="data">`)
	inside, _, ok := strings.Cut(inside, "</script>")
	var in, out any
	if !ok || json.Unmarshal([]byte(inside), &in) != nil || json.Unmarshal([]byte(results), &out) != nil || fmt.Sprint(in) != fmt.Sprint(out) {
		t.Errorf("the page does not have the data of results.json")
	}
	rest := strings.ReplaceAll(strings.Replace(page, inside, "", 1), "http://www.w3.org/2000/svg", "")
	for _, never := range []string{"http:", "https:", "//cdn", "@import", "src=", "url(", "fetch(", "XMLHttpRequest", "import("} {
		if at := strings.Index(rest, never); at >= 0 {
			t.Errorf("the page has %q: %q", never, rest[max(0, at-40):min(len(rest), at+40)])
		}
	}
	for _, href := range regexp.MustCompile(`href="[^"]*"`).FindAllString(rest, -1) {
		if !strings.HasPrefix(href, `href="data:`) {
			t.Errorf("the page links to %s", href)
		}
	}
	if !strings.Contains(page, "default-src 'none'") {
		t.Error("the page does not tell the browser that it fetches nothing")
	}
}

// inBrowser opens a page: its script must come to its end without a word.
func inBrowser(t *testing.T, page string) {
	t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium (Debian's package chromium)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(), "--enable-logging=stderr",
		"--window-size=400,800", "--dump-dom", "file://"+page)
	var said strings.Builder
	cmd.Stderr = &said
	dom, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %s", err, said.String())
	}
	for _, want := range []string{`data-ready="yes"`, "Sweet spot", "<svg", "2 processes", "aria-selected=\"true\""} {
		if !strings.Contains(string(dom), want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if strings.Contains(said.String(), "CONSOLE") {
		t.Errorf("the browser says: %s", said.String())
	}
}

// TestSweepTellsWhichFailed: a process that fails ends the sweep, with what it said, and the folder goes on later.
func TestSweepTellsWhichFailed(t *testing.T) {
	srv := clienttest.StartTCP(t)
	t.Setenv("KVCTL_IS_THE_TEST", "yes")
	sh := &shell{t: t, env: map[string]string{"KVSTORE_ENDPOINT": srv.Addr(), "KVSTORE_NAMESPACE": "nowhere"}}
	args := []string{"bench", "sweep", "--kinds", "prompt", "--trace", "/nowhere", "--processes", "2", "--callers", "1", "--dir", t.TempDir()}
	if code, _, told := sh.run("", args...); code == 0 || !strings.Contains(told, "prompt, 2 processes x 1 callers, round 1: process 1: ") ||
		!strings.Contains(told, "the same command goes on") || !strings.Contains(told, "/nowhere") {
		t.Errorf("exit %d: %s", code, told)
	}
}
