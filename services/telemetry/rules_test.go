package telemetry

import (
	"os"
	"regexp"
	"testing"
	"time"

	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
)

// TestAlertsAskForWhatThereIs: every metric that infra/prometheus asks for is one that a process tells. What the rules mean of them is tested
// beside them, by promtool (make alerts).
func TestAlertsAskForWhatThereIs(t *testing.T) {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tel := New(Info{})
	store, err := wal.NewStore(tel.Engine(engine), wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := memhost.New(store, memhost.Config{Events: tel.Shards(memhost.Events{})})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(t.Context(), false) }()
	tel.WatchHost(engine, h)
	tel.registry.MustRegister(tel.requests)
	tel.Requests().Operation("grpc", "put").Done(1, time.Millisecond)
	families, err := tel.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	for _, f := range families {
		there[f.GetName()] = true
		if f.GetType().String() == "HISTOGRAM" {
			for _, part := range []string{"_bucket", "_count", "_sum"} {
				there[f.GetName()+part] = true
			}
		}
	}
	for _, file := range []string{"kvstore.rules.yaml", "kvstore.rules.test.yaml"} {
		text, err := os.ReadFile("../../infra/prometheus/" + file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`\bkvstore_[a-z_]+`).FindAllString(string(text), -1)
		if len(names) < 5 {
			t.Errorf("%s names %d metrics", file, len(names))
		}
		for _, name := range names {
			if !there[name] {
				t.Errorf("%s asks for %s, which no process tells", file, name)
			}
		}
	}
}
