package compose

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// observed: Prometheus, with exactly our configuration, finds all hosts and frontends well and has our rules; spans of a request come from all whom it
// passed. Whoever has no token, or no certificate, is told nothing.
func observed(t *testing.T, p *project) {
	if _, err := p.compose("--profile", "observability", "config", "--quiet"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "grafana") // what Grafana comes with
	p.must("cp", "credentials:/credentials/grafana", dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)

	metricsAreThere(t, p, &tls.Config{RootCAs: pool, ServerName: "prometheus", Certificates: []tls.Certificate{pair}})
	tracesAreThere(t, p, pool)

	for _, service := range []string{"shard-1", "frontend-2"} {
		addr := net.JoinHostPort(p.address(service+"-pod"), "2112")
		https := webClient(t, &tls.Config{InsecureSkipVerify: true})
		for _, header := range []string{"", "Bearer kvs_" + strings.Repeat("x", 43)} {
			if code, text, err := get(t, https, "https://"+addr+"/metrics", header); err != nil || code != http.StatusUnauthorized || strings.Contains(text, "kvstore_") {
				t.Errorf("%s: metrics with %q: %d %.100s, %v", service, header, code, text, err)
			}
		}
		if code, text, err := get(t, https, "http://"+addr+"/metrics", ""); err == nil && code == http.StatusOK {
			t.Errorf("%s: metrics in plain text: %.100s", service, text)
		}
	}
	for _, addr := range []string{net.JoinHostPort(p.address("prometheus"), "9090"), net.JoinHostPort(p.address("jaeger"), "4317")} {
		if err := tlsCall(addr); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s, without a certificate: %v", addr, err)
		}
	}
	for _, service := range []string{"prometheus", "jaeger"} {
		h := p.inspect(service).HostConfig
		if !h.ReadonlyRootfs || !slices.Contains(h.CapDrop, "ALL") || !slices.Contains(h.SecurityOpt, "no-new-privileges:true") || h.Memory == 0 || len(h.PortBindings) > 0 {
			t.Errorf("%s: %+v", service, h)
		}
	}
	p.must("rm", "--stop", "--force", "prometheus", "jaeger")
}

// metricsAreThere asks Prometheus as Grafana does.
func metricsAreThere(t *testing.T, p *project, way *tls.Config) {
	t.Helper()
	c := webClient(t, way)
	api := "https://" + net.JoinHostPort(p.address("prometheus"), "9090") + "/api/v1/"
	want := map[string]string{}
	for _, f := range frontends {
		want[f+":2112"] = "frontend up"
	}
	for _, h := range hosts {
		want[h+":2112"] = "shard up"
	}
	await(t, func() error {
		var answer struct {
			Data struct {
				ActiveTargets []struct {
					Labels            map[string]string
					Health, LastError string
				}
			}
		}
		if err := ask(t, c, api+"targets", &answer); err != nil {
			return err
		}
		got := map[string]string{}
		for _, target := range answer.Data.ActiveTargets {
			got[target.Labels["instance"]] = target.Labels["job"] + " " + target.Health + target.LastError
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("targets: %v, want %v", got, want)
		}
		return nil
	})
	for query, count := range map[string]int{"kvstore_build_info": 5, `kvstore_shards{state="active"}`: 3, "kvstore_dataplane_streams": 5} {
		await(t, func() error {
			var answer struct{ Data struct{ Result []any } }
			if err := ask(t, c, api+"query?query="+url.QueryEscape(query), &answer); err != nil {
				return err
			}
			if len(answer.Data.Result) != count {
				return fmt.Errorf("%s has %d series, want %d", query, len(answer.Data.Result), count)
			}
			return nil
		})
	}

	rules, err := os.ReadFile(filepath.Join(root, "infra/prometheus/kvstore.rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1) {
		names = append(names, m[1])
	}
	await(t, func() error { // they are asked for the first time within an interval
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health string }
				}
			}
		}
		if err := ask(t, c, api+"rules", &answer); err != nil {
			return err
		}
		var got []string
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				if r.Health != "ok" {
					return fmt.Errorf("rule %s is %s", r.Name, r.Health)
				}
				got = append(got, r.Name)
			}
		}
		if len(names) < 5 || !slices.Equal(got, names) {
			return fmt.Errorf("rules: %v, want %v", got, names)
		}
		return nil
	})
}

// tracesAreThere puts a key with a traceparent that says yes, and finds what the processes say of it.
func tracesAreThere(t *testing.T, p *project, pool *x509.CertPool) {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(p.credentials, "token"))
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 24)
	_, _ = rand.Read(id) // never fails
	trace := hex.EncodeToString(id[:16])
	c := webClient(t, &tls.Config{RootCAs: pool})
	await(t, func() error { // again and again: what a collector does not take at once is dropped
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://127.0.0.1:"+p.settings["KVSTORE_REST_PORT_1"]+"/api/v1/keys/traced", strings.NewReader("value"))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Traceparent", "00-"+trace+"-"+hex.EncodeToString(id[16:])+"-01")
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode/100 != 2 {
			return fmt.Errorf("put: %s %s, %w", resp.Status, text, err)
		}
		log, err := p.compose("logs", "--no-log-prefix", "jaeger")
		if err != nil {
			return err
		}
		for _, want := range []string{"frontend rest put_key", "frontend exchange", "shard shard put", "shard append"} {
			if !strings.Contains(log, "span "+trace+" "+want+"\n") {
				return fmt.Errorf("no span %q of trace %s in\n%s", want, trace, tail(log, 2<<10))
			}
		}
		return nil
	})
}

func webClient(t *testing.T, way *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: way}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func get(t *testing.T, c *http.Client, address, authorization string) (code int, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		return 0, "", err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func ask(t *testing.T, c *http.Client, address string, into any) error {
	t.Helper()
	code, text, err := get(t, c, address, "")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("%s: %d %s", address, code, text)
	}
	return json.Unmarshal([]byte(text), into)
}

// await waits until something holds that other processes bring about.
func await(t *testing.T, holds func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// TestGrafanaFiles: Grafana, which does not run in these tests, is told of what there is: servers of docker-compose.yml by the names of their
// certificates, files that are mounted. Fields that it would not know are refused.
func TestGrafanaFiles(t *testing.T) {
	compose := composeFile(t)
	grafana := compose["grafana"]
	mounts := map[string]string{}
	for _, v := range grafana.Volumes {
		from, to, ok := strings.Cut(strings.TrimSuffix(v, ":ro"), ":")
		if !ok || to != "/var/lib/grafana" && !strings.HasSuffix(v, ":ro") {
			t.Errorf("grafana mounts %s, and may write it", v)
		}
		mounts[to] = from
	}
	for to, from := range map[string]string{
		"/credentials": "grafana", "/etc/grafana/provisioning": "./infra/grafana/provisioning", "/dashboards/kvstore.json": "./infra/grafana/kvstore.json",
	} {
		if mounts[to] != from {
			t.Errorf("at %s is %q, want %q", to, mounts[to], from)
		}
	}
	for name, want := range map[string]string{
		"GF_AUTH_ANONYMOUS_ENABLED": "false", "GF_USERS_ALLOW_SIGN_UP": "false", "GF_SERVER_PROTOCOL": "https",
		"GF_SERVER_CERT_FILE": "/credentials/server.crt", "GF_SERVER_CERT_KEY": "/credentials/server.key",
		"GF_SECURITY_ADMIN_PASSWORD__FILE": "/credentials/password", "GF_SECURITY_SECRET_KEY__FILE": "/credentials/db-key",
	} {
		if got := grafana.Environment[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"GF_SECURITY_ADMIN_PASSWORD", "GF_SECURITY_SECRET_KEY"} {
		if _, ok := grafana.Environment[name]; ok {
			t.Errorf("%s is in the environment", name)
		}
	}

	folder := filepath.Join(root, "infra/grafana/provisioning")
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Prune       bool
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool `yaml:"isDefault"`
			Editable                     bool
			JSONData                     struct {
				HTTPMethod        string `yaml:"httpMethod"`
				TimeInterval      string `yaml:"timeInterval"`
				TLSAuth           bool   `yaml:"tlsAuth"`
				TLSAuthWithCACert bool   `yaml:"tlsAuthWithCACert"`
				ServerName        string `yaml:"serverName"`
			} `yaml:"jsonData"`
			Secure map[string]string `yaml:"secureJsonData"`
		}
	}
	if err := readStrict(filepath.Join(folder, "datasources/kvstore.yaml"), &sources); err != nil {
		t.Fatal(err)
	}
	pair := map[string]string{"tlsCACert": "$__file{/credentials/ca.crt}", "tlsClientCert": "$__file{/credentials/server.crt}", "tlsClientKey": "$__file{/credentials/server.key}"}
	ports := map[string]string{"prometheus": "9090", "jaeger": "16686"}
	for _, s := range sources.Datasources {
		if _, ok := compose[s.Type]; !ok || s.URL != "https://"+s.Type+":"+ports[s.Type] || s.UID != s.Type || s.JSONData.ServerName != s.Type || s.Access != "proxy" ||
			s.IsDefault != (s.Type == "prometheus") || s.Editable || !s.JSONData.TLSAuth || !s.JSONData.TLSAuthWithCACert || !maps.Equal(s.Secure, pair) {
			t.Errorf("%+v", s)
		}
	}
	if sources.APIVersion != 1 || len(sources.Datasources) != len(ports) {
		t.Errorf("%+v", sources)
	}

	var boards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type      string
			DisableDeletion bool `yaml:"disableDeletion"`
			AllowUIUpdates  bool `yaml:"allowUiUpdates"`
			Seconds         int  `yaml:"updateIntervalSeconds"`
			Options         struct{ Path string }
		}
	}
	if err := readStrict(filepath.Join(folder, "dashboards/kvstore.yaml"), &boards); err != nil {
		t.Fatal(err)
	}
	if b := boards.Providers; boards.APIVersion != 1 || len(b) != 1 || b[0].Name == "" || b[0].Type != "file" || b[0].AllowUIUpdates || mounts[b[0].Options.Path+"/kvstore.json"] == "" {
		t.Errorf("%+v", boards)
	}
	if home := grafana.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]; mounts[home] == "" {
		t.Errorf("the first page is %q, which is not there", home)
	}
}

// TestJaegerFile: the pipeline of Jaeger's configuration is whole, and both doors want certificates.
func TestJaegerFile(t *testing.T) {
	c, err := readJaeger(filepath.Join(root, "infra/jaeger/jaeger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	traces := c.Service.Pipelines["traces"]
	if len(c.Service.Pipelines) != 1 || !slices.Equal(traces.Receivers, []string{"otlp"}) || !slices.Equal(traces.Processors, []string{"batch"}) ||
		!slices.Equal(traces.Exporters, []string{"jaeger_storage_exporter"}) || !slices.Equal(c.Service.Extensions, []string{"jaeger_storage", "jaeger_query"}) {
		t.Errorf("%+v", c.Service)
	}
	store := c.Exporters.Storage.Trace
	if kept, ok := c.Extensions.Storage.Backends[store]; !ok || kept.Memory.MaxTraces <= 0 || c.Extensions.Query.Storage.Traces != store {
		t.Errorf("%+v, %+v", c.Extensions, c.Exporters)
	}
	for name, tc := range map[string]struct {
		door serverConfig
		port string
	}{"spans": {c.Receivers.OTLP.Protocols.GRPC, "4317"}, "questions": {c.Extensions.Query.HTTP, "16686"}} {
		if d := tc.door; d.Endpoint != "0.0.0.0:"+tc.port || d.TLS == nil || d.TLS.CertFile != "/credentials/server.crt" || d.TLS.KeyFile != "/credentials/server.key" ||
			d.TLS.ClientCAFile != "/credentials/ca.crt" || d.TLS.MinVersion != "1.3" {
			t.Errorf("the door for %s: %+v, %+v", name, d, d.TLS)
		}
	}
	if g := c.Extensions.Query.GRPC; !strings.HasPrefix(g.Endpoint, "127.0.0.1:") {
		t.Errorf("questions by gRPC: %q", g.Endpoint)
	}
}

// composeService is what is looked at here of a service.
type composeService struct {
	Environment map[string]string
	Volumes     []string
}

func composeFile(t *testing.T) map[string]composeService {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]composeService }
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	return file.Services
}
