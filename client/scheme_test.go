package client

import (
	"slices"
	"testing"
)

func TestEndpointsAsURIs(t *testing.T) {
	for _, tc := range []struct {
		given, want []string // want nil: refused
		tls         bool
	}{
		{[]string{"127.0.0.1:8085"}, []string{"127.0.0.1:8085"}, false},
		{[]string{"grpc://10.0.0.4:8085"}, []string{"10.0.0.4:8085"}, false},
		{[]string{"grpc://[::1]:8085/", "10.0.0.4:8085"}, []string{"[::1]:8085", "10.0.0.4:8085"}, false},
		{[]string{"grpcs://kv.example:8085"}, []string{"kv.example:8085"}, true},
		{[]string{"unix:///run/kv"}, []string{"unix:///run/kv"}, false},
		{[]string{"grpc://10.0.0.4"}, nil, false},
		{[]string{"grpc://:8085"}, nil, false},
		{[]string{"grpc://10.0.0.4:8085/path"}, nil, false},
		{[]string{"grpc://10.0.0.4:8085", "grpcs://10.0.0.5:8085"}, nil, false},
	} {
		cfg := Config{Endpoints: slices.Clone(tc.given)}
		mine := cfg.Endpoints
		err := cfg.resolveSchemes()
		if (err == nil) != (tc.want != nil) || tc.want != nil && (!slices.Equal(cfg.Endpoints, tc.want) || cfg.UseTLS != tc.tls) {
			t.Errorf("%q: %q, TLS %v, %v; want %q, TLS %v", tc.given, cfg.Endpoints, cfg.UseTLS, err, tc.want, tc.tls)
		}
		if !slices.Equal(mine, tc.given) {
			t.Errorf("%q: the caller's own endpoints are changed to %q", tc.given, mine)
		}
	}
}
