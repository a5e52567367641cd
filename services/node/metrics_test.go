package node

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kvstore/client"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// scraped is what /metrics said.
type scraped map[string]*dto.MetricFamily

func scrape(t *testing.T, n *Node) scraped {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, "http://"+n.AdminAddr()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	all, err := p.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sum adds up the series of a name whose labels are as told, name and value in turn; of a histogram, its count.
func (s scraped) sum(name string, labels ...string) (total float64) {
	for _, m := range s[name].GetMetric() {
		if hasLabels(m, labels) {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for want := range slices.Chunk(labels, 2) {
		if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == want[0] && l.GetValue() == want[1] }) {
			return false
		}
	}
	return true
}

// TestMetricsTellWhatWasDone does things a known number of times and reads that number from /metrics; nothing of what was stored or sent is in
// what is told, and more load makes no more series.
func TestMetricsTellWhatWasDone(t *testing.T) {
	n, conn, _ := run(t, Config{Engine: EngineMemory})
	ctx := within(t)
	kv := kvv1.NewKVServiceClient(conn)
	c, err := client.Dial(ctx, client.Config{Endpoints: []string{n.GRPCAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	load := func(round int) {
		for i := range 40 {
			if _, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: fmt.Appendf(nil, "secret-key-%d-%d", round, i), Value: []byte("secret-value")}}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Put(ctx, fmt.Sprintf("secret-piped-%d-%d", round, i), []byte("secret-value"), nil); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("http://%s/api/v1/keys/secret-rest-%d", n.RESTAddr(), i), strings.NewReader("secret-value"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				t.Fatal(resp.Status)
			}
		}
		for i := range 7 {
			if _, err := kv.Get(ctx, &kvv1.GetRequest{Get: &kvv1.GetOp{Key: fmt.Appendf(nil, "secret-absent-%d", i)}}); err == nil {
				t.Fatal("found what is not there")
			}
			if _, err := kv.Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: fmt.Appendf(nil, "secret-key-%d-%d", round, i),
				Precondition: &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: true}}}}); err == nil {
				t.Fatal("made what is there")
			}
		}
	}
	load(0)
	// A REST request is counted when its answer has left.
	counted := func(rest float64) scraped {
		for ctx := within(t); ; {
			if s := scrape(t, n); s.sum("kvstore_request_duration_seconds", "face", "rest") >= rest || ctx.Err() != nil {
				return s
			}
		}
	}
	first := counted(5)
	const requests, calls = "kvstore_request_duration_seconds", "rpc_server_call_duration_seconds"
	for _, tc := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{requests, []string{"face", "grpc", "op", "put", "code", "OK"}, 40},
		{requests, []string{"face", "grpc", "op", "put", "code", "ALREADY_EXISTS"}, 7},
		{requests, []string{"face", "grpc", "op", "get", "code", "NOT_FOUND"}, 7},
		{requests, []string{"face", "pipeline", "op", "put", "code", "OK"}, 40},
		{calls, []string{"rpc_method", "kvstore.v1.KVService/Put", "rpc_response_status_code", "OK"}, 40},
		{calls, []string{"rpc_method", "kvstore.v1.KVService/Get", "rpc_response_status_code", "NOT_FOUND"}, 7},
		{requests, []string{"face", "rest", "op", "put_key", "code", "OK"}, 5},
		{"kvstore_requests_in_flight", []string{"face", "grpc"}, 0},
		{"kvstore_requests_in_flight", []string{"face", "pipeline"}, 0},
		{"kvstore_build_info", []string{"target", "all", "engine", "memory"}, 1},
	} {
		if got := first.sum(tc.name, tc.labels...); got != tc.want {
			t.Errorf("%s%v is %v, want %v", tc.name, tc.labels, got, tc.want)
		}
	}
	for _, m := range first[requests].GetMetric() {
		h := m.GetHistogram()
		if mean := h.GetSampleSum() / float64(h.GetSampleCount()); !(mean > 0 && mean < patience.Seconds()) || math.IsNaN(mean) {
			t.Errorf("%v took %v s each", m.Label, mean)
		}
	}
	for round := range 3 {
		load(round + 1)
	}
	second := counted(20)
	if got := second.sum(requests, "op", "put", "code", "OK"); got != 4*80 {
		t.Errorf("%v puts are counted, %d were made", got, 4*80)
	}
	series := func(s scraped) (count int) {
		for name, f := range s {
			if name == requests || name == calls { // others may come with background work
				for _, m := range f.Metric {
					count += max(1, len(m.GetHistogram().GetBucket())+2)
				}
			}
		}
		return count
	}
	if a, b := series(first), series(second); a != b || b > 1000 {
		t.Errorf("%d series, %d after more of the same", a, b)
	}
	for name, f := range second {
		if text := fmt.Sprint(name, f); strings.Contains(text, "secret") {
			t.Errorf("%s tells what was stored: %.300s", name, text)
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
}
