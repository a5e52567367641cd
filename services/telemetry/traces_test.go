package telemetry

import (
	"strings"
	"testing"
)

// TestWhereTracesGo: spans leave the machine by TLS unless somebody says otherwise, and a password is not told back.
func TestWhereTracesGo(t *testing.T) {
	for _, c := range []struct {
		name     string
		cfg      TraceConfig
		env      map[string]string
		endpoint string
		sample   float64
		fault    string
	}{
		{name: "none", cfg: TraceConfig{Sample: -1}, sample: -1},
		{name: "https", cfg: TraceConfig{Endpoint: "https://collector:4317", Sample: -1}, endpoint: "https://collector:4317", sample: DefaultSample},
		{name: "loopback", cfg: TraceConfig{Endpoint: "http://127.0.0.1:4317", Sample: 0.5}, endpoint: "http://127.0.0.1:4317", sample: 0.5},
		{name: "localhost", cfg: TraceConfig{Endpoint: "http://localhost:4317"}, endpoint: "http://localhost:4317"},
		{name: "plain", cfg: TraceConfig{Endpoint: "http://collector:4317"}, fault: "plain text"},
		{name: "plain, as told", cfg: TraceConfig{Endpoint: "http://collector:4317", Plain: true}, endpoint: "http://collector:4317"},
		{name: "no URL", cfg: TraceConfig{Endpoint: "collector:4317"}, fault: "must be https://"},
		{name: "a password", cfg: TraceConfig{Endpoint: "https://me:hunter2@collector:4317"}, fault: `"xxxxx@collector:4317"`},
		{name: "a password with an at", cfg: TraceConfig{Endpoint: "https://me:hunter2@hunter2@collector:4317"}, fault: `"xxxxx@collector:4317"`},
		{name: "a password, no slashes", cfg: TraceConfig{Endpoint: "https:me:hunter2@collector:4317"}, fault: `"xxxxx@collector:4317"`},
		{name: "a password, no scheme", cfg: TraceConfig{Endpoint: "me:hunter2@collector:4317"}, fault: `"xxxxx@collector:4317"`},
		{name: "a password, another scheme", cfg: TraceConfig{Endpoint: "grpc://me:hunter2@collector:4317"}, fault: `"xxxxx@collector:4317"`},
		{name: "a password in the path", cfg: TraceConfig{Endpoint: "http://collector/me:hunter2@"}, fault: `"xxxxx@"`},
		{name: "a password in the query", cfg: TraceConfig{Endpoint: "http://collector:4317/?key=hunter2"}, fault: `"http://collector:4317/?xxxxx"`},
		{name: "a password behind a bad escape", cfg: TraceConfig{Endpoint: "https://me%zz:hunter2@collector:4317"}, fault: "-otlp-endpoint is no URL"},
		{name: "a password for a port", cfg: TraceConfig{Endpoint: "https://me:hunter2"}, fault: "-otlp-endpoint is no URL"},
		{name: "environment, a password", env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me%zz:hunter2@collector:4317"}, fault: "OTEL_EXPORTER_OTLP_ENDPOINT is no URL"},
		{name: "environment", cfg: TraceConfig{Sample: -1}, env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4317", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, endpoint: "https://c:4317", sample: 0.25},
		{name: "environment, plain", cfg: TraceConfig{Sample: -1}, env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, fault: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"},
		{name: "always", cfg: TraceConfig{Endpoint: "https://c:4317", Sample: -1}, env: map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, endpoint: "https://c:4317", sample: 1},
		{name: "no such sampler", cfg: TraceConfig{Endpoint: "https://c:4317", Sample: -1}, env: map[string]string{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, fault: "OTEL_TRACES_SAMPLER"},
		{name: "disabled", cfg: TraceConfig{Endpoint: "https://c:4317", Sample: 1}, env: map[string]string{"OTEL_SDK_DISABLED": "true"}, sample: 1},
		{name: "too much", cfg: TraceConfig{Endpoint: "https://c:4317", Sample: 1.5}, fault: "-trace-sample"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SDK_DISABLED"} {
				t.Setenv(name, c.env[name])
			}
			err := c.cfg.Resolve()
			switch {
			case c.fault != "":
				if err == nil || !strings.Contains(err.Error(), c.fault) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("%v, want %q", err, c.fault)
				}
			case err != nil:
				t.Error(err)
			case c.cfg.Endpoint != c.endpoint || c.cfg.Sample != c.sample:
				t.Errorf("%q, %v; want %q, %v", c.cfg.Endpoint, c.cfg.Sample, c.endpoint, c.sample)
			}
		})
	}
}
