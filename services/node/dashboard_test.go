package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"kvstore/actors/host"
	"kvstore/client"
	"kvstore/services/dataplane"
	"kvstore/services/telemetry"
)

// dashboard is what Grafana's schema (version 39) has of what ours uses; what is not here is refused, as is what Grafana would not know.
type dashboard struct {
	UID           string   `json:"uid"`
	Title         string   `json:"title"`
	Description   string   `json:"description"`
	Tags          []string `json:"tags"`
	SchemaVersion int      `json:"schemaVersion"`
	Version       int      `json:"version"`
	Editable      bool     `json:"editable"`
	Refresh       string   `json:"refresh"`
	Timezone      string   `json:"timezone"`
	GraphTooltip  int      `json:"graphTooltip"`
	Time          struct{ From, To string }
	Annotations   struct {
		List []struct{} `json:"list"`
	} `json:"annotations"`
	Links      []struct{} `json:"links"`
	Templating struct {
		List []variable `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type source struct{ Type, UID string }

type variable struct {
	Name, Type, Label, Query, Definition, AllValue string
	Datasource                                     *source
	Refresh                                        int
	Multi, IncludeAll                              bool
	Current                                        *struct{ Text, Value string }
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Collapsed                *bool
	Panels                   []struct{}
	GridPos                  struct{ H, W, X, Y int }
	Datasource               *source
	FieldConfig              struct {
		Defaults struct {
			Unit   string
			Min    *float64
			Custom struct {
				LineWidth, FillOpacity int
				Stacking               *struct{ Mode string }
			}
		}
		Overrides []struct{}
	}
	Options struct {
		Legend *struct {
			DisplayMode, Placement string
			ShowLegend             bool
		}
		Tooltip    *struct{ Mode string }
		ShowHeader bool
	}
	Transformations []struct {
		ID      string
		Options map[string]any
	}
	Targets []target
}

type target struct {
	RefID, Expr, LegendFormat, Format string
	Datasource                        source
	Instant                           bool
}

const dashboardFile = "../../infra/grafana/kvstore.json"

// readDashboard reads the dashboard, and refuses fields that it does not know.
func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	data, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var d dashboard
	if err := dec.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// TestDashboard: Grafana's dashboard is one that Grafana can show, and asks for nothing that processes do not tell.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.UID != "kvstore" || d.Title == "" || d.SchemaVersion != 39 || len(d.Templating.List) != 2 || d.Templating.List[0].Type != "datasource" {
		t.Errorf("%+v", d)
	}
	there := toldMetrics(t)
	ids := map[int]bool{}
	var taken [][4]int
	shown := map[string]bool{}
	names := regexp.MustCompile(`\b(kvstore|rpc|go|process)_[a-z0-9_]+`)
	for _, p := range d.Panels {
		g := p.GridPos
		if p.ID == 0 || ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d, %q: an id of its own and a title are wanted", p.ID, p.Title)
		}
		ids[p.ID] = true
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%q is at %+v", p.Title, g)
		}
		for _, o := range taken {
			if g.X < o[0]+o[2] && o[0] < g.X+g.W && g.Y < o[1]+o[3] && o[1] < g.Y+g.H {
				t.Errorf("%q lies over another", p.Title)
			}
		}
		taken = append(taken, [4]int{g.X, g.Y, g.W, g.H})
		if p.Type == "row" {
			continue
		}
		if !slices.Contains([]string{"timeseries", "table"}, p.Type) || !slices.Contains([]string{"s", "short", "bytes", "reqps", "percentunit"}, p.FieldConfig.Defaults.Unit) {
			t.Errorf("%q is a %s in %s", p.Title, p.Type, p.FieldConfig.Defaults.Unit)
		}
		if p.Datasource == nil || *p.Datasource != (source{"prometheus", "${datasource}"}) || len(p.Targets) == 0 {
			t.Errorf("%q has no source, or asks for nothing", p.Title)
		}
		for i, q := range p.Targets {
			if q.RefID != string(rune('A'+i)) || q.Datasource != *p.Datasource || q.LegendFormat == "" || q.Instant != (p.Type == "table") {
				t.Errorf("%q: %+v", p.Title, q)
			}
			all := names.FindAllString(q.Expr, -1)
			if len(all) == 0 {
				t.Errorf("%q asks for no metric: %s", p.Title, q.Expr)
			}
			for _, name := range all {
				shown[name] = true
				if !there[name] {
					t.Errorf("%q asks for %s, which no process tells", p.Title, name)
				}
			}
		}
	}
	if len(shown) < 40 {
		t.Errorf("it shows %d metrics", len(shown))
	}
}

// TestDashboardQueries has promtool read every query, as recording rules: make alerts runs it.
func TestDashboardQueries(t *testing.T) {
	promtool := os.Getenv("KVSTORE_PROMTOOL")
	if promtool == "" {
		t.Skip("KVSTORE_PROMTOOL is not set: make alerts runs this")
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*").Replace(q.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%q uses a variable that it has not: %s", p.Title, q.Expr)
			}
			rules = append(rules, rule{fmt.Sprintf("dashboard:query:%d", len(rules)), expr})
		}
	}
	if len(rules) < 30 {
		t.Fatalf("%d queries", len(rules))
	}
	data, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(within(t), promtool, "check", "rules", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// nowhere knows no shard.
type nowhere struct{}

func (nowhere) Locate(context.Context, string) (host.Location, error) { return host.Location{}, nil }

// toldMetrics are the names that processes tell: a node that has served something, and what a frontend of a cluster has beyond that.
func toldMetrics(t *testing.T) map[string]bool {
	n, _, _ := run(t, Config{Engine: EngineMemory, RESPListen: "127.0.0.1:0", Traces: telemetry.TraceConfig{Endpoint: "http://127.0.0.1:1"}})
	c, err := client.Dial(within(t), client.Config{Endpoints: []string{n.GRPCAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(within(t), "key", []byte("value"), nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	add := func(s scraped) {
		for name, f := range s {
			there[name] = true
			if f.GetType().String() == "HISTOGRAM" {
				for _, part := range []string{"_bucket", "_count", "_sum"} {
					there[name+part] = true
				}
			}
		}
	}
	add(scrape(t, n))

	cluster := telemetry.New(telemetry.Info{Target: "frontend"})
	events := cluster.DataPlane()
	events.Located(1, nil)
	way, err := dataplane.NewClient(dataplane.ClientConfig{Locator: nowhere{}, Events: events})
	if err != nil {
		t.Fatal(err)
	}
	defer way.Close()
	cluster.WatchDataPlane(way)
	w := httptest.NewRecorder()
	cluster.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	add(all)
	return there
}
