package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// The page of a report: all of it, but for the data.
//
//go:embed report.html
var reportPage []byte

// reportMark is where the data goes.
const reportMark = "/*DATA*/"

// Names of what a sweep writes.
const (
	summaryName = "PERFORMANCE_SUMMARY.md"
	chartsName  = "benchmark_charts.html"
	resultsName = "results.json"
)

// reportData is all that a report shows, and what results.json holds.
type reportData struct {
	Made     time.Time    `json:"made"`
	Settings *sweep       `json:"settings"`
	Done     int          `json:"measurements"`
	Of       int          `json:"measurements_wanted"`
	Kinds    []kindReport `json:"kinds"`
}

// kindReport is one kind of load.
type kindReport struct {
	Kind  string       `json:"kind"`
	Main  string       `json:"main_step"`
	Steps []string     `json:"steps"`
	Cells []cellReport `json:"cells"`
	Peak  int          `json:"peak"`  // index into Cells
	Sweet int          `json:"sweet"` // the least callers in all that reach sweetPart of the peak
}

// sweetPart of the peak's throughput is enough for a sweet spot: beyond it more callers mostly wait for each other.
const sweetPart = 0.9

// cellReport is what the rounds of a measurement come to: the median one by throughput, and their range.
type cellReport struct {
	Processes int          `json:"processes"`
	Callers   int          `json:"callers"`
	Total     int          `json:"concurrency"`
	Rounds    int          `json:"rounds"`
	OpsPerS   float64      `json:"ops_per_s"`
	Least     float64      `json:"ops_per_s_least"`
	Most      float64      `json:"ops_per_s_most"`
	KeysPerS  float64      `json:"keys_per_s,omitempty"`
	TokensPS  float64      `json:"tokens_per_s,omitempty"`
	HitRatio  float64      `json:"hit_ratio,omitempty"`
	ClientCPU float64      `json:"client_cpu_us_per_op"`
	Steps     []stepReport `json:"steps"`
	Each      []oneProcess `json:"each"`
}

// stepReport is a step with its distribution.
type stepReport struct {
	stepResult
	Curve [][2]float64 `json:"curve"` // percentile, milliseconds
}

// curvePercentiles are those of the curves.
var curvePercentiles = []float64{0, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97, 98, 99, 99.5, 99.7, 99.9, 99.95, 99.99, 99.995, 99.999}

// report writes what is known so far; s is told where.
func (w *sweep) report(s *session) error {
	data, err := w.gather()
	if err != nil {
		return err
	}
	page, err := data.page()
	if err != nil {
		return err
	}
	err = errors.Join(
		replaceJSON(w.file(resultsName), data),
		replaceFile(w.file(summaryName), data.summary(), 0o644),
		replaceFile(w.file(chartsName), page, 0o644),
	)
	if err != nil || s == nil {
		return err
	}
	if s.output == "json" {
		return s.json(data)
	}
	for _, k := range data.Kinds {
		fmt.Fprintf(s.stdout, "%s\n", k.Kind)
		s.table(k.table())
		fmt.Fprintf(s.stdout, "%s\n\n", k.verdict())
	}
	fmt.Fprintf(s.stdout, "%s, %s, %s\n", w.file(summaryName), w.file(chartsName), w.file(resultsName))
	return nil
}

// gather reads what was measured.
func (w *sweep) gather() (*reportData, error) {
	data := &reportData{Made: time.Now().UTC().Truncate(time.Second), Settings: w}
	rounds := map[string][]cell{} // by all but the round
	name := func(c cell) string { return fmt.Sprint(c.Kind, " ", c.Processes, " ", c.Callers) }
	all := w.cells()
	for _, at := range all {
		c, err := w.readCell(at)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		rounds[name(c)] = append(rounds[name(c)], c)
		data.Done++
	}
	data.Of = len(all)
	for _, kind := range w.Kinds {
		k := kindReport{Kind: kind, Main: mainStep(kind)}
		for _, at := range all {
			if rs := rounds[name(at)]; at.Kind == kind && at.Round == 1 && len(rs) > 0 {
				k.Cells = append(k.Cells, newCellReport(rs))
			}
		}
		if len(k.Cells) > 0 {
			k.conclude()
			data.Kinds = append(data.Kinds, k)
		}
	}
	return data, nil
}

func newCellReport(rounds []cell) cellReport {
	slices.SortFunc(rounds, func(a, b cell) int { return cmp.Compare(a.OpsPerS, b.OpsPerS) })
	c := rounds[(len(rounds)-1)/2]
	r := cellReport{
		Processes: c.Processes, Callers: c.Callers, Total: c.Processes * c.Callers, Rounds: len(rounds), OpsPerS: c.OpsPerS, Least: rounds[0].OpsPerS,
		Most: rounds[len(rounds)-1].OpsPerS, KeysPerS: c.KeysPerS, TokensPS: c.TokensPS, HitRatio: c.HitRatio, ClientCPU: c.ClientCPU, Each: c.Each,
	}
	for _, st := range c.Steps {
		step := stepReport{stepResult: st}
		step.HDR = "" // it stays with the cell
		for _, q := range curvePercentiles {
			if q < 99 || float64(st.Count)*(100-q) >= 100 { // no percentile beyond what was counted
				step.Curve = append(step.Curve, [2]float64{q, float64(st.hist.ValueAtQuantile(q)) / 1000})
			}
		}
		step.Curve = append(step.Curve, [2]float64{100, st.Max})
		r.Steps = append(r.Steps, step)
	}
	return r
}

// conclude finds the peak and the sweet spot.
func (k *kindReport) conclude() {
	for i, c := range k.Cells {
		if c.OpsPerS > k.Cells[k.Peak].OpsPerS {
			k.Peak = i
		}
		for _, st := range c.Steps {
			if !slices.Contains(k.Steps, st.Name) {
				k.Steps = append(k.Steps, st.Name)
			}
		}
	}
	k.Sweet = k.Peak
	for i, c := range k.Cells {
		at := k.Cells[k.Sweet]
		if c.OpsPerS < sweetPart*k.Cells[k.Peak].OpsPerS {
			continue
		}
		if c.Total < at.Total || c.Total == at.Total && c.OpsPerS > at.OpsPerS {
			k.Sweet = i
		}
	}
}

// step is one of a cell's steps; the first when it has none of that name.
func (c *cellReport) step(name string) *stepReport {
	for i := range c.Steps {
		if c.Steps[i].Name == name {
			return &c.Steps[i]
		}
	}
	return &c.Steps[0]
}

// table is a kind's measurements as rows.
func (k *kindReport) table() (head []string, rows [][]string) {
	head = []string{"PROCESSES", "CALLERS", "CONCURRENCY", "OPERATIONS/s"}
	extra := map[string]string{"batch": "KEYS/s", "prompt": "TOKENS/s"}[k.Kind]
	if extra != "" {
		head = append(head, extra)
	}
	ranges := slices.ContainsFunc(k.Cells, func(c cellReport) bool { return c.Rounds > 1 })
	if ranges {
		head = append(head, "LEAST", "MOST")
	}
	for _, name := range k.Steps {
		for _, q := range []string{"P50", "P99", "P99.9"} {
			head = append(head, strings.ToUpper(name)+" "+q+" ms")
		}
	}
	for _, c := range k.Cells {
		row := []string{fmt.Sprint(c.Processes), fmt.Sprint(c.Callers), fmt.Sprint(c.Total), fmt.Sprintf("%.0f", c.OpsPerS)}
		if extra != "" {
			row = append(row, fmt.Sprintf("%.0f", c.KeysPerS+c.TokensPS))
		}
		if ranges {
			row = append(row, fmt.Sprintf("%.0f", c.Least), fmt.Sprintf("%.0f", c.Most))
		}
		for _, name := range k.Steps {
			if st := c.step(name); st.Name == name {
				row = append(row, msText(st.P50), msText(st.P99), msText(st.P999))
			} else {
				row = append(row, "-", "-", "-")
			}
		}
		rows = append(rows, row)
	}
	return head, rows
}

// verdict is a kind in two sentences.
func (k *kindReport) verdict() string {
	p, s := k.Cells[k.Peak], k.Cells[k.Sweet]
	text := fmt.Sprintf("Peak: %.0f operations/s at %d x %d callers", p.OpsPerS, p.Processes, p.Callers)
	if p.TokensPS > 0 {
		text += fmt.Sprintf(", %.0f tokens/s", p.TokensPS)
	}
	if p.KeysPerS > 0 {
		text += fmt.Sprintf(", %.0f keys/s", p.KeysPerS)
	}
	st := s.step(k.Main)
	return text + fmt.Sprintf(". Sweet spot, the least concurrency that reaches %.0f %% of it: %d (%d x %d), %.0f operations/s, %s p50 %s ms, p99 %s ms.",
		sweetPart*100, s.Total, s.Processes, s.Callers, s.OpsPerS, st.Name, msText(st.P50), msText(st.P99))
}

// summary is the report for who reads text.
func (d *reportData) summary() []byte {
	var b bytes.Buffer
	w := d.Settings
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Performance summary\n")
	line("%s, %d of %d measurements; %s.", d.Made.Format("2006-01-02 15:04 MST"), d.Done, d.Of,
		fmt.Sprintf("each counts %gs after %gs of warm-up, values of %s, %d keys, zipf %g", w.Seconds, w.Warmup, bytesText(int64(w.Size)), w.Keys, w.Zipf))
	line("Concurrency is processes x callers in each; a caller has one operation under way (closed loop). [%s](%s) shows all of it.\n", chartsName, chartsName)
	line("| where | |\n|---|---|")
	line("| server | kvstore %s at %s, engine %s, %d shards |", w.Where.Version, w.Where.Endpoint, w.Where.Engine, w.Where.Shards)
	line("| clients | %s, %d x %s, %.1f GiB |\n", w.Where.System, w.Where.CPUs, w.Where.CPU, w.Where.MemoryGB)
	line("| load | peak | | sweet spot | | |\n|---|---|---|---|---|---|")
	line("| | operations/s | at | concurrency | p50 ms | p99 ms |")
	for _, k := range d.Kinds {
		p, s := k.Cells[k.Peak], k.Cells[k.Sweet]
		st := s.step(k.Main)
		line("| %s | %.0f | %d x %d | %d (%d x %d) | %s | %s |", k.Kind, p.OpsPerS, p.Processes, p.Callers, s.Total, s.Processes, s.Callers,
			msText(st.P50), msText(st.P99))
	}
	for _, k := range d.Kinds {
		line("\n## %s\n%s\n", k.Kind, k.verdict())
		if k.Kind == "prompt" {
			s := k.Cells[k.Sweet]
			line("Requests (iterations) a second at the peak: %.1f. At the sweet spot: lookup p50 %s ms, read p50 %s ms, %.1f %% of blocks found.\n",
				k.Cells[k.Peak].OpsPerS, msText(s.step("lookup").P50), msText(s.step("read").P50), 100*s.HitRatio)
		}
		head, rows := k.table()
		line("| %s |\n|%s", strings.ToLower(strings.Join(head, " | ")), strings.Repeat("---:|", len(head)))
		for _, r := range rows {
			line("| %s |", strings.Join(r, " | "))
		}
	}
	return b.Bytes()
}

// page is the report for a browser. JSON has no < here (encoding/json writes \u003c), so nothing in it ends the element.
func (d *reportData) page() ([]byte, error) {
	data, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if bytes.Count(reportPage, []byte(reportMark)) != 1 {
		return nil, fmt.Errorf("the page has no place for data")
	}
	return bytes.Replace(reportPage, []byte(reportMark), data, 1), nil
}
