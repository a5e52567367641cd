package gateway_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	"kvstore/services/frontend"
	"kvstore/services/gateway"
)

// counts passes on what requests of REST are counted as, each as one: the kind of its error, or OK.
type counts chan string

func (c counts) Call(string, string, bool) frontend.Counter { return c }
func (c counts) Operation(string, string) frontend.Counter  { return c }
func (c counts) Refused(kverr.Kind)                         {}
func (c counts) Done(int, time.Duration)                    { c <- "OK" }
func (c counts) Failed(_ int, _ time.Duration, kind kverr.Kind) {
	c <- kind.String()
}

// TestFollowed: who was let in is followed, a stranger is not, whatever he asks for; and a request that failed did so for the same reason in its trace as in
// what is counted, and not by a fault that the log has to tell.
func TestFollowed(t *testing.T) {
	file, token := filepath.Join(t.TempDir(), "tokens"), authn.NewToken()
	if err := os.WriteFile(file, fmt.Appendf(nil, "app %s default=write\n", authn.HashOf(token)), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := authn.OpenTokens(file)
	if err != nil {
		t.Fatal(err)
	}
	queue, counted := tracing.NewQueue(), make(counts, 100)
	var log bytes.Buffer // written under the handler's lock, read at the end
	r := newRigOf(t, gateway.Config{}, frontend.Config{Access: tokens, Tracer: tracing.New(queue, 1), Meter: counted, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, tc := range []struct {
		line, token, body string
		status            int
		counted           string
		followed          string // name of the span and its status; "": there is none
	}{
		{"PUT /keys/a", token, "1", 201, "OK", "rest put_key "},
		{"GET /keys/none", token, "", 404, "NOT_FOUND", "rest get_key NOT_FOUND"},
		{"GET /keys/a?nonsense=1", token, "", 400, "INVALID_ARGUMENT", "rest get_key INVALID_ARGUMENT"},
		{"POST /batch/get", token, "{}", 415, "INVALID_ARGUMENT", "rest batch_get INVALID_ARGUMENT"}, // HTTP's own
		{"GET /keyspaces", token, "", 403, "PERMISSION_DENIED", ""},
		{"GET /keys/a", "", "", 401, "UNAUTHENTICATED", ""},
		{"GET /keys/a", "wrong", "", 401, "UNAUTHENTICATED", ""},
		{"GET /openapi.yaml", "", "", 200, "OK", ""},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, r.url(path), strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		if tc.body != "" {
			req.Header.Set("Content-Type", "text/plain")
		}
		if tc.token != "" {
			req.Header.Set("Authorization", "Bearer "+tc.token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		var got string
		select {
		case got = <-counted: // its span has ended by then
		case <-time.After(patience):
			t.Fatalf("%s is not counted", tc.line)
		}
		encoded, _, _ := queue.Take(nil)
		var m tracepb.ScopeSpans
		if err := proto.Unmarshal(encoded, &m); err != nil {
			t.Fatal(err)
		}
		var want, followed []string
		if tc.followed != "" {
			want = []string{tc.followed}
		}
		for _, s := range m.Spans {
			followed = append(followed, s.Name+" "+s.Status.GetMessage())
		}
		if resp.StatusCode != tc.status || got != tc.counted || !slices.Equal(followed, want) {
			t.Errorf("%s: %s, counted as %s, followed as %q; want %d, %s, %q", tc.line, resp.Status, got, followed, tc.status, tc.counted, want)
		}
	}
	r.stop()
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("callers' faults are logged as the server's: %s", &log)
	}
	if len(counted) > 0 {
		t.Errorf("%d requests more are counted than came", len(counted))
	}
}
