package compose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// envCollector is set where this program is the collector.
const envCollector = "KVSTORE_COMPOSE_COLLECTOR"

// jaegerConfig is what of Jaeger's configuration is used here; what else Jaeger takes has a type of its own, and what is unknown is refused.
type jaegerConfig struct {
	Service struct {
		Extensions []string
		Pipelines  map[string]struct{ Receivers, Processors, Exporters []string }
		Telemetry  struct{ Metrics struct{ Level string } }
	}
	Extensions struct {
		Storage struct {
			Backends map[string]struct {
				Memory struct {
					MaxTraces int `yaml:"max_traces"`
				}
			}
		} `yaml:"jaeger_storage"`
		Query struct {
			Storage    struct{ Traces string }
			GRPC, HTTP serverConfig
		} `yaml:"jaeger_query"`
	}
	Receivers struct {
		OTLP struct{ Protocols struct{ GRPC serverConfig } }
	}
	Processors struct{ Batch struct{} }
	Exporters  struct {
		Storage struct {
			Trace string `yaml:"trace_storage"`
		} `yaml:"jaeger_storage_exporter"`
	}
}

type serverConfig struct {
	Endpoint string
	TLS      *struct {
		CertFile       string `yaml:"cert_file"`
		KeyFile        string `yaml:"key_file"`
		ClientCAFile   string `yaml:"client_ca_file"`
		MinVersion     string `yaml:"min_version"`
		ReloadInterval string `yaml:"reload_interval"`
	}
}

func readJaeger(file string) (*jaegerConfig, error) {
	var c jaegerConfig
	return &c, readStrict(file, &c)
}

// readStrict reads YAML that has no fields but those of into.
func readStrict(file string, into any) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// collect is a collector that has Jaeger's command line and takes its receiver's address and TLS from Jaeger's configuration. It writes a line for each
// span: its trace, the target of the process, the span's name.
func collect(args []string) error {
	if len(args) != 1 || !strings.HasPrefix(args[0], "--config=") {
		return fmt.Errorf("want --config=FILE, not %q", args)
	}
	cfg, err := readJaeger(strings.TrimPrefix(args[0], "--config="))
	if err != nil {
		return err
	}
	door := cfg.Receivers.OTLP.Protocols.GRPC
	if door.TLS == nil || door.TLS.ClientCAFile == "" {
		return errors.New("the receiver has no mutual TLS")
	}
	pair, err := tls.LoadX509KeyPair(door.TLS.CertFile, door.TLS.KeyFile)
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(door.TLS.ClientCAFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return fmt.Errorf("no certificate in %s", door.TLS.ClientCAFile)
	}
	l, err := net.Listen("tcp", door.Endpoint)
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})))
	collectorpb.RegisterTraceServiceServer(srv, spanPrinter{})
	return srv.Serve(l)
}

type spanPrinter struct {
	collectorpb.UnimplementedTraceServiceServer
}

// Export implements collectorpb.TraceServiceServer.
func (spanPrinter) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, r := range req.ResourceSpans {
		target := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "kvstore.target" {
				target = a.Value.GetStringValue()
			}
		}
		for _, s := range r.ScopeSpans {
			for _, span := range s.Spans {
				fmt.Println("span", hex.EncodeToString(span.TraceId), target, span.Name)
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}
