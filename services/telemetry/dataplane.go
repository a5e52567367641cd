package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvstore/components/kverr"
	"kvstore/services/dataplane"
)

// DataPlane counts what a frontend's end of the data plane tells. It is called once.
func (t *Telemetry) DataPlane() dataplane.ClientEvents {
	if !counting {
		return dataplane.ClientEvents{}
	}
	exchange := t.latency("kvstore_dataplane_exchange_duration_seconds", "Time from a call's hand-over to the stream of its host until its outcome came.")
	locate := t.outcomeLatencies("kvstore_dataplane_locate_duration_seconds", "Time of a question where a shard is, by reason of the error (OK without one).")
	connects := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kvstore_dataplane_connects_total", Help: "Streams to hosts that were opened, or could not be."}, []string{"outcome"})
	broken := prometheus.NewCounter(prometheus.CounterOpts{Name: "kvstore_dataplane_streams_broken_total", Help: "Streams to hosts that were up and have ended; hosts that stop end theirs, too."})
	again := prometheus.NewCounter(prometheus.CounterOpts{Name: "kvstore_dataplane_calls_sent_again_total", Help: "Calls sent once more, because their shard had moved or their stream broke."})
	t.registry.MustRegister(connects, broken, again)
	opened, failed := connects.WithLabelValues("ok"), connects.WithLabelValues("failed")
	return dataplane.ClientEvents{
		Exchanged: func(took time.Duration) { exchange.observe(1, took) },
		Located: func(took time.Duration, err *kverr.Error) {
			if err == nil {
				locate.Done(1, took)
			} else {
				locate.Failed(1, took, err.Kind)
			}
		},
		Connected: func(err error) {
			if err == nil {
				opened.Inc()
			} else {
				failed.Inc()
			}
		},
		Broke: broken.Inc,
		Again: again.Inc,
	}
}

// WatchDataPlane shows what a frontend's end of the data plane has under way.
func (t *Telemetry) WatchDataPlane(c *dataplane.Client) {
	streams := gauge("kvstore_dataplane_streams", "Streams to hosts that are up.")
	calls := gauge("kvstore_dataplane_calls", "Calls under way: sent to their hosts, or parked until their shard is found.", "state")
	detours := gauge("kvstore_dataplane_detours", "Hosts whose data plane cannot be reached, so that their calls go by Dapr.")
	t.read(func(tell func(*prometheus.Desc, float64, ...string)) {
		s := c.Stats()
		tell(streams.desc, float64(s.Links))
		tell(calls.desc, float64(s.UnderWay), "sent")
		tell(calls.desc, float64(s.Parked), "parked")
		tell(detours.desc, float64(s.Detours))
	}, streams, calls, detours)
}

// shown is a latency that is a metric of its own.
type shown struct {
	latency
	desc *prometheus.Desc
}

// latency adds a histogram of times without labels.
func (t *Telemetry) latency(name, help string) *latency {
	s := &shown{desc: prometheus.NewDesc(name, help, nil, nil)}
	t.registry.MustRegister(s)
	return &s.latency
}

// Describe implements prometheus.Collector.
func (s *shown) Describe(out chan<- *prometheus.Desc) { out <- s.desc }

// Collect implements prometheus.Collector.
func (s *shown) Collect(out chan<- prometheus.Metric) {
	var c counts
	c.add(&s.latency)
	out <- c.metric(s.desc, nil)
}

// shownOutcomes are outcomes that are a metric of their own, with the reason as its label.
type shownOutcomes struct {
	outcomes
	desc *prometheus.Desc
}

// outcomeLatencies adds a histogram of times by reason of the error.
func (t *Telemetry) outcomeLatencies(name, help string) *outcomes {
	s := &shownOutcomes{desc: prometheus.NewDesc(name, help, []string{"code"}, nil)}
	t.registry.MustRegister(s)
	return &s.outcomes
}

// Describe implements prometheus.Collector.
func (s *shownOutcomes) Describe(out chan<- *prometheus.Desc) { out <- s.desc }

// Collect implements prometheus.Collector.
func (s *shownOutcomes) Collect(out chan<- prometheus.Metric) {
	s.each(func(ok bool, kind kverr.Kind, l *latency) {
		code := "OK"
		if !ok {
			code = kind.String()
		}
		var c counts
		c.add(l)
		out <- c.metric(s.desc, nil, code)
	})
}
