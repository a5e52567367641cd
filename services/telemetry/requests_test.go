package telemetry

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"

	"kvstore/components/kverr"
)

// gathered is all that a collector tells, by name.
func gathered(t *testing.T, c prometheus.Collector) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		all[f.GetName()] = f
	}
	return all
}

func TestLatencyIsInTheRightBucket(t *testing.T) {
	r := newRequests()
	o := r.Call("kvstore.v1.KVService", "BatchPut", false)
	o.Done(3, 100*time.Microsecond) // a bound is within
	o.Done(2, 100*time.Microsecond+1)
	o.Done(1, time.Hour)
	h := gathered(t, r)["kvstore_request_duration_seconds"].Metric[0]
	for _, l := range h.Label {
		if want := map[string]string{"face": "grpc", "op": "batch_put", "code": "OK"}[l.GetName()]; l.GetValue() != want {
			t.Errorf("label %v", l)
		}
	}
	count, sum := h.Histogram.GetSampleCount(), h.Histogram.GetSampleSum()
	if want := 5*100e-6 + 3600; count != 6 || math.Abs(sum-want) > 1e-6 {
		t.Errorf("%d requests in %v s, want 6 in %v", count, sum, want)
	}
	for i, want := range []uint64{3, 5, 5} {
		if got := h.Histogram.Bucket[i].GetCumulativeCount(); got != want {
			t.Errorf("bucket %v: %d, want %d", h.Histogram.Bucket[i].GetUpperBound(), got, want)
		}
	}
}

// TestCallsAreNamedByConvention: every bound of the convention is among ours, kinds with one code are one series, and lasting streams do not count
// as requests.
func TestCallsAreNamedByConvention(t *testing.T) {
	r := newRequests()
	put, watch := r.Call("kvstore.v1.KVService", "Put", false), r.Call("kvstore.v1.KVService", "Watch", true)
	put.Failed(1, time.Millisecond, kverr.Exhausted)
	put.Failed(1, 20*time.Millisecond, kverr.NoSpace)
	put.Failed(1, time.Millisecond, kverr.Kind(200)) // of a newer release
	watch.Done(1, time.Hour)
	all := gathered(t, r)
	byCode := map[string]uint64{}
	for _, m := range all["rpc_server_call_duration_seconds"].Metric {
		if got := len(m.Histogram.Bucket); got != len(rpcBounds) {
			t.Errorf("%d bounds, the convention has %d", got, len(rpcBounds))
		}
		var method, code string
		for _, l := range m.Label {
			switch l.GetName() {
			case "rpc_method":
				method = l.GetValue()
			case "rpc_response_status_code":
				code = l.GetValue()
			}
		}
		byCode[method+" "+code] = m.Histogram.GetSampleCount()
	}
	for what, want := range map[string]uint64{
		"kvstore.v1.KVService/Put RESOURCE_EXHAUSTED": 2, "kvstore.v1.KVService/Put UNKNOWN": 1, "kvstore.v1.KVService/Watch OK": 1,
	} {
		if byCode[what] != want {
			t.Errorf("%s: %d, want %d", what, byCode[what], want)
		}
	}
	if got := len(all["kvstore_request_duration_seconds"].Metric); got != 3 {
		t.Errorf("%d series of requests, want 3", got)
	}
	refused := map[string]float64{}
	for _, m := range all["kvstore_refusals_total"].Metric {
		refused[m.Label[0].GetValue()] = m.Counter.GetValue()
	}
	if refused["RESOURCE_EXHAUSTED"] != 1 || refused["NO_SPACE"] != 1 || refused["UNAUTHENTICATED"] != 0 {
		t.Errorf("refusals: %v", refused)
	}
	for c := range codeNames {
		if codeNames[c] == "" {
			t.Errorf("code %v has no name", codes.Code(c))
		}
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	o := newRequests().Call("kvstore.v1.KVService", "Put", false)
	o.Failed(1, 0, kverr.NotFound) // the first of a kind makes its place
	if n := testing.AllocsPerRun(1000, func() {
		o.Done(1, time.Millisecond)
		o.Failed(1, time.Millisecond, kverr.NotFound)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCount is what a call pays: two looks at a monotonic clock and three additions.
func BenchmarkCount(b *testing.B) {
	o := newRequests().Call("kvstore.v1.KVService", "Put", false)
	epoch := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		began := time.Since(epoch)
		o.Done(1, time.Since(epoch)-began)
	}
}
