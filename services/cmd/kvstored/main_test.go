package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
)

// TestUsage: -h explains everything; a mistake is told in a line or two, each fault by the name of its flag.
func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args  []string
		code  int
		lines int // at most
		want  []string
	}{
		{[]string{"-h"}, exitOK, 120, []string{"kvctl put greeting hello", "-data-dir directory", "-reserve-bytes"}},
		{[]string{"-bogus"}, exitUsage, 2, []string{"-bogus", "kvstored -h"}},
		{[]string{"-shards", "many"}, exitUsage, 2, []string{"-shards"}},
		{[]string{"serve"}, exitUsage, 2, []string{`"serve"`}},
		{[]string{"-engine", "tape", "-max-value-bytes", "5", "-grpc-listen", "0.0.0.0:0"}, exitUsage, 4,
			[]string{"-engine", "-max-value-bytes", "-grpc-listen", "-insecure"}},
		{[]string{"-target", "shard"}, exitUsage, 3, []string{"-engine", "redis"}},
		{[]string{"-target", "shard", "-engine", "redis", "-redis-url", "redis://127.0.0.1:1", "-data-listen", "0.0.0.0:9085"}, exitUsage, 3, []string{"-data-address", "-peer-cert", "-insecure"}},
		{[]string{"-target", "frontend", "-engine", "redis"}, exitUsage, 3, []string{"stores nothing"}},
		{[]string{"-dapr-grpc", "127.0.0.1:1"}, exitUsage, 2, []string{"-target is all"}},
		{[]string{"healthcheck", "-h"}, exitOK, 30, []string{"-admin-listen", "kvstored healthcheck -tls-cert"}},
		{[]string{"healthcheck", "now"}, exitUsage, 2, []string{`"now"`, "healthcheck -h"}},
		{[]string{"healthcheck", "-tls-cert", "x"}, exitUsage, 2, []string{"-tls-key"}},
		{[]string{"healthcheck", "-instance", "99"}, exitUsage, 2, []string{"-instance"}},
		{[]string{"healthcheck", "-admin-listen", "2112"}, exitUsage, 2, []string{"-admin-listen", "host:port"}},
		{[]string{"pause", "it"}, exitUsage, 2, []string{"no arguments"}},
		{[]string{"-log-level", "loud"}, exitUsage, 2, []string{"-log-level", "debug, info"}},
		{[]string{"-otlp-endpoint", "http://far.example:4317"}, exitUsage, 2, []string{"-otlp-endpoint", "plain text", "-otlp-insecure"}},
		{[]string{"-trace-sample", "2"}, exitUsage, 2, []string{"-trace-sample", "0 to 1"}},
	} {
		var stderr bytes.Buffer
		code := run(context.Background(), tc.args, io.Discard, &stderr)
		if lines := strings.Count(stderr.String(), "\n"); code != tc.code || lines > tc.lines {
			t.Errorf("%v: exit %d, %d lines\n%s", tc.args, code, lines, stderr.String())
		}
		for _, want := range tc.want {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%v does not tell of %s:\n%s", tc.args, want, stderr.String())
			}
		}
	}
}
