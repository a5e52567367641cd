package telemetry

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"kvstore/components/kverr"
	"kvstore/services/frontend"
)

// requests counts what users ask for. It implements frontend.Meter, and is the collector of its counts.
type requests struct {
	duration, call *prometheus.Desc
	refusals       *prometheus.Desc

	refused [maxKinds]atomic.Uint64

	mu  sync.Mutex
	all []*operation // guarded by mu; only ever added to
}

// operation is one operation of a face.
type operation struct {
	outcomes
	face, op string // "" = it is shown as a call alone
	method   string // of gRPC, with its service; "" = it is none
	requests *requests
}

var _ frontend.Meter = (*requests)(nil)

func newRequests() *requests {
	return &requests{
		duration: prometheus.NewDesc("kvstore_request_duration_seconds",
			"Time from a request's arrival to its answer, by face, operation and reason of the error (OK without one).", []string{"face", "op", "code"}, nil),
		call: prometheus.NewDesc("rpc_server_call_duration_seconds",
			"Duration of gRPC calls by OpenTelemetry's conventions; streams last as long as clients keep them open.", []string{"rpc_system_name", "rpc_method", "rpc_response_status_code"}, nil),
		refusals: prometheus.NewDesc("kvstore_refusals_total",
			"Requests turned away: at the door, or because a limit or the disk's reserve was reached.", []string{"reason"}, nil),
	}
}

// Requests is who counts for a frontend, and for faces beside it.
func (t *Telemetry) Requests() frontend.Meter {
	if !counting {
		return nil
	}
	return t.requests
}

func (r *requests) add(o *operation) *operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	o.requests = r
	r.all = append(r.all, o)
	return o
}

// Call implements frontend.Meter.
func (r *requests) Call(service, method string, lasting bool) frontend.Counter {
	o := &operation{method: service + "/" + method}
	if !lasting {
		o.face, o.op = "grpc", operationName(service, method)
	}
	return r.add(o)
}

// Operation implements frontend.Meter.
func (r *requests) Operation(face, op string) frontend.Counter {
	return r.add(&operation{face: face, op: op})
}

// Refused implements frontend.Meter.
func (r *requests) Refused(kind kverr.Kind) {
	if kind >= maxKinds {
		kind = kverr.Unknown
	}
	r.refused[kind].Add(1)
}

// Failed implements frontend.Counter.
func (o *operation) Failed(n int, took time.Duration, kind kverr.Kind) {
	o.outcomes.Failed(n, took, kind)
	switch kind {
	case kverr.Exhausted, kverr.Overloaded, kverr.RateLimited, kverr.NoSpace:
		o.requests.refused[kind].Add(uint64(n))
	}
}

// operationName is put for KVService.Put, prompt_lookup for PromptCacheService.Lookup.
func operationName(service, method string) string {
	var name strings.Builder
	if strings.HasSuffix(service, ".PromptCacheService") {
		name.WriteString("prompt")
	}
	for _, c := range method {
		if unicode.IsUpper(c) && name.Len() > 0 {
			name.WriteByte('_')
		}
		name.WriteRune(unicode.ToLower(c))
	}
	return name.String()
}

// Describe implements prometheus.Collector.
func (r *requests) Describe(out chan<- *prometheus.Desc) {
	out <- r.duration
	out <- r.call
	out <- r.refusals
}

// Collect implements prometheus.Collector.
func (r *requests) Collect(out chan<- prometheus.Metric) {
	r.mu.Lock()
	all := r.all
	r.mu.Unlock()
	for _, o := range all {
		if o.op != "" {
			o.each(func(ok bool, kind kverr.Kind, l *latency) {
				code := "OK"
				if !ok {
					code = kind.String()
				}
				var c counts
				c.add(l)
				out <- c.metric(r.duration, nil, o.face, o.op, code)
			})
		}
		if o.method != "" {
			var byCode [maxCodes]counts
			var seen [maxCodes]bool
			o.each(func(ok bool, kind kverr.Kind, l *latency) {
				code := codes.OK
				if !ok {
					code = kind.Code()
				}
				byCode[code].add(l)
				seen[code] = true
			})
			for code := range byCode {
				if seen[code] {
					out <- byCode[code].metric(r.call, rpcBounds, "grpc", o.method, codeNames[code])
				}
			}
		}
	}
	for k := range r.refused {
		kind := kverr.Kind(k)
		if n := r.refused[k].Load(); n > 0 || alwaysShown[kind] {
			out <- prometheus.MustNewConstMetric(r.refusals, prometheus.CounterValue, float64(n), kind.String())
		}
	}
}

// alwaysShown are the reasons of refusals that are shown from the beginning, so that their increase is seen.
var alwaysShown = map[kverr.Kind]bool{kverr.Unauthenticated: true, kverr.PermissionDenied: true, kverr.Exhausted: true, kverr.Overloaded: true, kverr.RateLimited: true, kverr.NoSpace: true}

// maxCodes is how many codes gRPC has.
const maxCodes = int(codes.Unauthenticated) + 1

// codeNames are the codes as OpenTelemetry writes them.
var codeNames = [maxCodes]string{
	codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED", codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE", codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL",
	codes.Unavailable: "UNAVAILABLE", codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}

// WatchFrontend shows what a frontend has under way, and what was counted by Requests. It is called once.
func (t *Telemetry) WatchFrontend(front *frontend.Server) {
	t.registry.MustRegister(t.requests)
	inFlight := gauge("kvstore_requests_in_flight", "Requests that are taken and not answered; of a pipeline, its operations.", "face")
	streams := gauge("kvstore_streams_open", "Pipelines and watches that clients keep open.", "stream")
	resyncs := counter("kvstore_watch_resyncs_total", "How often a watch was told its state anew because it was too far behind.")
	limited := counter("kvstore_rate_limited_total", "Requests refused because their client, or their namespace, had as many operations as it may.", "limit")
	blocks := counter("kvstore_prompt_blocks_total", "Blocks of prompts that were asked for, by call and whether they were there.", "op", "outcome")
	t.read(func(tell func(*prometheus.Desc, float64, ...string)) {
		s := front.Stats()
		tell(inFlight.desc, float64(s.Calls), "grpc")
		tell(inFlight.desc, float64(s.Operations), "pipeline")
		tell(streams.desc, float64(s.Pipelines), "pipeline")
		tell(streams.desc, float64(s.Watches), "watch")
		tell(resyncs.desc, float64(s.Resyncs))
		tell(limited.desc, float64(s.ClientLimited), "client")
		tell(limited.desc, float64(s.NamespaceLimited), "namespace")
		for op, f := range map[string]frontend.Found{"lookup": s.Lookups, "read": s.Reads} {
			tell(blocks.desc, float64(f.Hits), op, "hit")
			tell(blocks.desc, float64(f.Misses), op, "miss")
		}
	}, inFlight, streams, resyncs, limited, blocks)
}

// WatchRESP shows how many connections there are by Redis's protocol.
func (t *Telemetry) WatchRESP(connections func() int) {
	open := gauge("kvstore_resp_connections", "Connections by Redis's protocol.")
	t.read(func(tell func(*prometheus.Desc, float64, ...string)) { tell(open.desc, float64(connections())) }, open)
}
