// Package telemetry is what operators see of a process from outside: its metrics, in Prometheus's format. DESIGN.md lists them, with what each is
// for.
//
// Those who do the work know nothing of Prometheus: each package tells what it does through a small hook of its own (frontend.Meter,
// memhost.Events, host.Hooks) or has figures to be read (frontend.Stats, memhost.Status), and this package counts. What happens for every
// request costs a few atomic additions and no allocation; what can be read is read when somebody scrapes. No name or label holds a key,
// a token, a client or an address, and the number of series is bounded by what the process is made of, not by what is sent to it.
//
//	t := telemetry.New(telemetry.Info{Version: "1.2", Target: "all"})
//	front, err := frontend.New(frontend.Config{Meter: t.Requests(), ...}, shards, dir)
//	t.WatchFrontend(front)
//	mux.Handle("GET /metrics", t.Handler(log))
package telemetry

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Info is what a process says of itself.
type Info struct {
	Version string
	Target  string
	Engine  string // "" when it has none
}

// Telemetry is the metrics of one process. It is safe for any number of goroutines.
type Telemetry struct {
	info     Info
	registry *prometheus.Registry
	requests *requests
}

// New makes the metrics of a process: those of the Go runtime and of the operating system's process are among them.
func New(info Info) *Telemetry {
	t := &Telemetry{info: info, registry: prometheus.NewRegistry(), requests: newRequests()}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kvstore_build_info", Help: "1; its labels say what runs.",
		ConstLabels: prometheus.Labels{"version": info.Version, "target": info.Target, "engine": info.Engine},
	})
	build.Set(1)
	t.registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return t
}

// maxScrapes is how many scrapes are answered at once; more get 503.
const maxScrapes = 4

// Handler answers scrapes. A figure that cannot be had is left out, and logged.
func (t *Telemetry) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	})
}

// reader is a collector of figures that are read at a scrape.
type reader struct {
	descs []*prometheus.Desc
	read  func(tell func(d *prometheus.Desc, v float64, labels ...string))
	kinds map[*prometheus.Desc]prometheus.ValueType
}

// read adds a collector that reads figures of one source together.
func (t *Telemetry) read(f func(tell func(d *prometheus.Desc, v float64, labels ...string)), all ...figure) {
	r := &reader{read: f, kinds: make(map[*prometheus.Desc]prometheus.ValueType)}
	for _, g := range all {
		r.descs = append(r.descs, g.desc)
		r.kinds[g.desc] = g.kind
	}
	t.registry.MustRegister(r)
}

// figure is a metric of a reader.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) figure {
	return figure{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) figure {
	return figure{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

// Describe implements prometheus.Collector.
func (r *reader) Describe(out chan<- *prometheus.Desc) {
	for _, d := range r.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (r *reader) Collect(out chan<- prometheus.Metric) {
	r.read(func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, r.kinds[d], v, labels...)
	})
}
