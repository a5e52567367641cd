package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/zeebo/xxh3"

	"kvstore/services/gateway"
)

// web asks a server by HTTP and holds every answer to openapi.yaml.
type web struct {
	t      *testing.T
	base   string
	client *http.Client
	doc    *openapi3.T
	paths  map[*regexp.Regexp]*openapi3.PathItem
	used   map[string]bool // operations that have succeeded, or answered what they always answer
}

func newWeb(t *testing.T, base string) *web {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(gateway.Document())
	if err != nil {
		t.Fatal(err)
	}
	w := &web{t: t, base: base, client: &http.Client{Transport: &http.Transport{DisableCompression: true, ExpectContinueTimeout: patience}}, doc: doc, paths: make(map[*regexp.Regexp]*openapi3.PathItem), used: map[string]bool{}}
	t.Cleanup(w.client.CloseIdleConnections)
	for path, item := range doc.Paths.Map() {
		pattern := regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllStringFunc(regexp.QuoteMeta(path), func(v string) string {
			if slices.Contains([]string{`\{key\}`, `\{prefix\}`, `\{id\}`}, v) {
				return ".*"
			}
			return "[^/]+"
		})
		w.paths[regexp.MustCompile("^"+pattern+"$")] = item
	}
	return w
}

// answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request; headers are "Name: value".
func (w *web) ask(method, path, body string, headers ...string) *answer {
	w.t.Helper()
	return w.send(method, path, strings.NewReader(body), headers...)
}

func (w *web) send(method, path string, body io.Reader, headers ...string) *answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(within(w.t), method, w.base+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Add(name, value)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := &answer{resp.StatusCode, resp.Header, string(text)}
	w.hold(req, a)
	return a
}

// hold compares an answer with what the document says of it.
func (w *web) hold(req *http.Request, a *answer) {
	w.t.Helper()
	where := fmt.Sprintf("%s %s: %d %s", req.Method, req.URL.RequestURI(), a.status, a.body[:min(len(a.body), 300)])
	media := a.header.Get("Content-Type")
	if a.header.Get("X-Content-Type-Options") != "nosniff" && a.status != http.StatusNoContent {
		w.t.Errorf("%s: headers %v", where, a.header)
	}
	var op *openapi3.Operation
	for pattern, item := range w.paths {
		if found := item.GetOperation(req.Method); found != nil && pattern.MatchString(req.URL.EscapedPath()) && (op == nil || strings.Contains(pattern.String(), "openapi")) {
			op = found
		}
	}
	schema := w.doc.Components.Schemas["Problem"]
	if op != nil {
		said := op.Responses.Status(a.status)
		if said == nil {
			said = op.Responses.Default()
		}
		if a.status < 300 || a.status == http.StatusNotImplemented {
			w.used[op.OperationID] = true
		}
		schema = nil
		if content := said.Value.Content.Get(media); content != nil {
			schema = content.Schema
		} else if a.body != "" {
			w.t.Errorf("%s: %s does not speak %q", where, op.OperationID, media)
		}
	}
	if req.Method == http.MethodHead || schema == nil || !strings.HasSuffix(media, "json") {
		return
	}
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		w.t.Errorf("%s: %v", where, err)
	} else if err := schema.Value.VisitJSON(v); err != nil {
		w.t.Errorf("%s: %v", where, err)
	}
	if a.status >= 400 && media != "application/problem+json" {
		w.t.Errorf("%s: an error as %s", where, media)
	}
}

// TestREST: every operation of S2-22 and S2-23, and every way in which a request can be wrong, on a server as users start it.
func TestREST(t *testing.T) {
	s := start(t, "", "-engine", "memory", "-max-value-bytes", "4194304")
	w := newWeb(t, "http://"+s.REST+"/api/v1")
	const (
		j    = "Content-Type: application/json"
		form = "Content-Type: application/x-www-form-urlencoded"
	)
	mib := strings.Repeat("x", 1<<20)
	many := func(n int, one string) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	until := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)
	for _, tc := range []struct {
		line    string // method and path
		headers []string
		body    string
		status  int
		want    string // in the body, or "Name: value" in the headers
	}{
		// Keys.
		{"PUT /keys/a", []string{form, "Kv-Meta-Owner: Zo%C3%AB", "Kv-Tag-env: prod", "Kv-Ttl-Seconds: 100"}, "one", 201, `Etag: "1"`},
		{"GET /keys/a", nil, "", 200, "one"},
		{"GET /keys/a", nil, "", 200, "Kv-Meta-Owner: Zo%C3%AB"},
		{"GET /keys/a", nil, "", 200, "Kv-Tag-Env: prod"},
		{"HEAD /keys/a", nil, "", 200, "Content-Length: 3"},
		{"HEAD /keys/a", nil, "", 200, form},
		{"GET /keys/a", []string{`If-None-Match: "1"`}, "", 304, `Etag: "1"`},
		{"HEAD /keys/a", []string{`If-None-Match: W/"1", "9"`}, "", 304, `Etag: "1"`},
		{"GET /keys/a", []string{`If-None-Match: "2"`}, "", 200, "one"},
		{"GET /keys/a", []string{`If-Match: "2"`}, "", 412, `"current_version":1`},
		{"PUT /keys/a", []string{`If-Match: "9"`}, "two", 412, `"current_version":1`},
		{"PUT /keys/a", []string{"If-None-Match: *"}, "two", 412, `"reason":"ALREADY_EXISTS"`},
		{"PUT /keys/a", []string{`If-Match: "1"`, "Kv-Ttl-Seconds: keep", "Content-Encoding: zstd"}, "two", 200, `{"version":2,"created":false}`},
		{"HEAD /keys/a", nil, "", 200, "Content-Encoding: zstd"},
		{"PUT /keys/new", []string{"If-Match: *"}, "x", 412, `"current_version":0`},
		{"PUT /keys/empty", nil, "", 201, `"created":true`},
		{"GET /keys/empty", nil, "", 200, "Content-Length: 0"},
		{"PUT /keys/p//q%2F../%25%3F", nil, "odd", 201, ""},
		{"GET /keys?prefix=p/", nil, "", 200, `"key":"p//q/../%?"`},
		{"DELETE /keys/p//q/..%2F%25%3F", nil, "", 200, `"deleted":true`},
		{"DELETE /keys/nothing", nil, "", 200, `{"deleted":false,"revision":0}`},
		{"DELETE /keys/a", []string{`If-Match: "1"`}, "", 412, `"current_version":2`},
		{"PUT /keys/sum", []string{"Kv-Checksum: " + sum("right")}, "right", 201, ""},
		{"PUT /keys/sum", []string{"Kv-Checksum: " + sum("right")}, "wrong", 400, `"field":"Kv-Checksum"`},
		{"PUT /keys/sum", []string{"Kv-Checksum: " + sum(mib+"x")}, mib + "y", 400, `"field":"Kv-Checksum"`},
		{"GET /keys/sum", nil, "", 200, "right"},
		{"PUT /keys/once", []string{`Idempotency-Key: "k1"`}, "first", 201, `"created":true`},
		{"PUT /keys/once", []string{`Idempotency-Key: "k1"`}, "first", 201, `"created":true`}, // the answer of the first time
		{"PUT /keys/once", []string{"Idempotency-Key: k2", "Kv-Not-After-Ms: 1"}, "late", 409, `"reason":"OUTCOME_UNKNOWN"`},
		{"GET /keys/once", nil, "", 200, "first"},
		// What is wrong with it.
		{"GET /keys/nothing", nil, "", 404, `"reason":"NOT_FOUND"`},
		{"GET /keys/", nil, "", 400, `"field":"key"`},
		{"GET /keys/%ff", nil, "", 400, "UTF-8"},
		{"PUT /keys/" + strings.Repeat("k", 1025), nil, "", 413, `"allowed":1024`},
		{"PUT /keys/big", []string{"Expect: 100-continue"}, strings.Repeat("x", 4<<20+1), 413, `"field":"value","allowed":4194304`},
		{"PUT /keys/a", []string{"Kv-Ttl-Seconds: soon"}, "", 400, `"field":"Kv-Ttl-Seconds"`},
		{"PUT /keys/a", []string{"Kv-Ttl-Seconds: 0"}, "", 400, `"field":"Kv-Ttl-Seconds"`},
		{"PUT /keys/a", []string{"Kv-Ttl-Seconds: 99999999999999"}, "", 400, `"field":"Kv-Ttl-Seconds"`},
		{"PUT /keys/a", []string{`If-Match: "1", "2"`}, "", 400, `"field":"If-Match"`},
		{"PUT /keys/a", []string{`If-None-Match: "2"`}, "", 400, `"field":"If-None-Match"`},
		{"PUT /keys/a", []string{"Content-Range: bytes 0-1/3"}, "x", 400, "Content-Range"},
		{"PUT /keys/a", []string{"Content-Type: " + strings.Repeat("t", 257)}, "", 413, `"field":"Content-Type","allowed":256`},
		{"PUT /keys/a", []string{"Kv-Meta-a: %zz"}, "", 400, "%25"},
		{"PUT /keys/a", []string{"Kv-Meta-a: " + strings.Repeat("m", 17<<10)}, "", 413, `"field":"Kv-Meta-*"`},
		{"PUT /keys/a", []string{"Kv-Tag-a: " + strings.Repeat("m", 256)}, "", 413, `Kv-Tag-*`},
		{"PUT /keys/a", []string{"Idempotency-Key: "}, "", 400, "Idempotency-Key"},
		{"PUT /keys/a", []string{"Kv-Not-After-Ms: 1"}, "", 400, "Kv-Not-After-Ms"},
		{"GET /keys/a", []string{"Kv-Timeout-Ms: 0"}, "", 400, "Kv-Timeout-Ms"},
		{"GET /keys/a", []string{"X-Long: " + strings.Repeat("h", 129<<10)}, "", 431, `"allowed":131072`},
		{"GET /keys/a?namepsace=x", nil, "", 400, `namespace`},
		{"GET /keys/a?namespace=x&namespace=y", nil, "", 400, "2 times"},
		{"GET /keys/a?namespace=none", nil, "", 404, "no namespace"},
		{"GET /keys/a?keyspace=none", nil, "", 404, "no keyspace"},
		{"GET /keys/a?x=%25zz", nil, "", 400, "INVALID_ARGUMENT"},
		{"POST /keys/a", nil, "", 405, "Allow: DELETE, GET, HEAD, OPTIONS, PUT"},
		{"OPTIONS /keys/a", nil, "", 204, "Allow: DELETE, GET, HEAD, OPTIONS, PUT"},
		{"GET /kyes/a", nil, "", 404, `"reason":"NO_SUCH_PATH"`},
		{"PUT /keys/a", []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, "x", 403, `"reason":"CROSS_ORIGIN"`},
		{"GET /keys/a", []string{"Host: rebound.example:8080"}, "", 421, `"reason":"WRONG_HOST"`},
		// Lists.
		{"GET /keys?limit=1", nil, "", 200, `"next_page_token"`},
		{"GET /keys?count_only=true", nil, "", 200, `"count":4`},
		{"GET /keys?start=o&end=p&values=true", nil, "", 200, `"value":"first"`},
		{"HEAD /keys", nil, "", 200, "Content-Type: application/json"},
		{"GET /keys?limit=1001", nil, "", 400, `"field":"limit"`},
		{"GET /keys?values=yes", nil, "", 400, `"field":"values"`},
		{"GET /keys?page_token=AAAA", nil, "", 400, `"field":"page_token"`},
		// Batches and transactions.
		{"POST /batch/put", []string{j}, `{"puts":[{"key":"b1","value":"v","ttl_seconds":9,"tags":{"a":"b"}},{"key":"b2","value_base64":"AP8="},{"key":"","value":""},{"key":"a","value":"","if_absent":true}]}`, 200, `"current_version":2`},
		{"POST /batch/get", []string{j}, `{"gets":[{"key":"b1"},{"key":"b2"},{"key":"none"},{"key":"b1","metadata_only":true}]}`, 200, `"value_base64":"AP8="`},
		{"POST /batch/delete", []string{j, "Idempotency-Key: d"}, `{"deletes":[{"key":"b1"},{"key":"b2","if_version":99},{"key":"none"}]}`, 200, `"deleted":true`},
		{"POST /batch/delete", []string{j, "Idempotency-Key: d"}, `{"deletes":[{"key":"b1"},{"key":"b2","if_version":99},{"key":"none"}]}`, 200, `"deleted":true`},
		{"POST /transaction", []string{j}, `{"conditions":[{"key":"{t}c","if_absent":true}],"ops":[{"put":{"key":"{t}1","value":"1"}},{"delete":{"key":"{t}2"}}]}`, 200, `"committed":true`},
		{"POST /transaction", []string{j}, `{"ops":[{"put":{"key":"{t}1","value":"2","if_absent":true}}]}`, 200, `"failures":[{"op":0,"key":"{t}1"`},
		{"POST /transaction", []string{j}, `{"ops":[{"put":{"key":"x","value":"2"}},{"delete":{"key":"y1"}}]}`, 400, `"reason":"CROSS_PARTITION"`},
		{"POST /transaction", []string{j}, `{"ops":[{"put":{"key":"x"}}]}`, 400, `"field":"ops[0].put.value"`},
		{"POST /transaction", []string{j}, `{}`, 400, `"field":"ops"`},
		{"POST /batch/put", []string{j}, `{"puts":[]}`, 400, `"field":"puts"`},
		{"POST /batch/put", []string{j}, `{"puts":[{"key":"x","value":"","value_base64":""}]}`, 400, `"field":"puts[0].value"`},
		{"POST /batch/get", []string{j}, `{"gets":[` + many(1001, `{"key":"x"}`) + `]}`, 413, `"allowed":1000`},
		{"POST /batch/get", []string{j}, `{"gets":`, 400, "ends before"},
		{"POST /batch/get", []string{j}, `{"got":[]}`, 400, "unknown field"},
		{"POST /batch/get", []string{form}, `{"gets":[]}`, 415, `"reason":"UNSUPPORTED_MEDIA_TYPE"`},
		{"POST /batch/get", []string{j, "Content-Encoding: gzip"}, `{"gets":[]}`, 415, "gzip"},
		{"POST /batch/get", []string{"Content-Type: application/json; charset=latin1"}, `{"gets":[]}`, 415, ""},
		{"POST /batch/put", []string{j, "Expect: 100-continue"}, strings.Repeat(" ", 24<<20+1), 413, `"allowed":25165824`},
		{"GET /batch/put", nil, "", 405, "Allow: OPTIONS, POST"},
		// Keyspaces and namespaces.
		{"POST /keyspaces", []string{j}, `{"name":"tenant","shards":2}`, 201, `"shards":2`},
		{"POST /keyspaces", []string{j}, `{"name":"tenant"}`, 412, `"reason":"ALREADY_EXISTS"`},
		{"GET /keyspaces", nil, "", 200, `"name":"tenant"`},
		{"GET /keyspaces/tenant", nil, "", 200, `"shards":2`},
		{"POST /keyspaces/tenant/namespaces", []string{j}, `{"name":"n","kind":"kv","partition":{"path_elements":2}}`, 201, `"path_elements":2`},
		{"POST /keyspaces/tenant/namespaces", []string{j}, `{"name":"n","kind":"odd"}`, 400, `"field":"kind"`},
		{"POST /keyspaces/tenant/namespaces", []string{j}, `{"name":"N","kind":"kv"}`, 400, `"field":"name"`},
		{"POST /keyspaces/tenant/namespaces", []string{j}, `{"name":"m","kind":"kv","partition":{"hash_tag":true,"namespace":true}}`, 400, `"field":"partition"`},
		{"GET /keyspaces/tenant/namespaces", nil, "", 200, `"name":"n"`},
		{"PATCH /keyspaces/tenant/namespaces/n", []string{j}, `{"default_ttl_ms":5000}`, 200, `"default_ttl_ms":5000`},
		{"PATCH /keyspaces/tenant/namespaces/n", []string{j, `If-Match: "999"`}, `{"default_ttl_ms":5000}`, 412, ""},
		{"PATCH /keyspaces/tenant/namespaces/n", []string{j}, `{}`, 400, "changes nothing"},
		{"GET /keyspaces/tenant/namespaces/n", nil, "", 200, `"kind":"kv"`},
		{"PUT /keys/a?keyspace=tenant&namespace=n", nil, "there", 201, ""},
		{"GET /keys/a?keyspace=tenant&namespace=n", nil, "", 200, "there"},
		{"DELETE /keyspaces/tenant/namespaces/n", nil, "", 400, `"field":"confirm"`},
		{"DELETE /keyspaces/tenant/namespaces/n?confirm=n", nil, "", 204, ""},
		{"DELETE /keyspaces/tenant?confirm=tenant", nil, "", 204, ""},
		{"GET /keyspaces/tenant", nil, "", 404, ""},
		// Prompts.
		{"POST /keyspaces/default/namespaces", []string{j}, `{"name":"prompts","kind":"prompt"}`, 201, ""},
		{"PUT /prompt/blocks/b0?namespace=prompts&scope=model=m&scope=dtype=bf16", nil, "block 0", 201, `{"stored":true}`},
		{"PUT /prompt/blocks/b0?namespace=prompts&scope=model=m&scope=dtype=bf16", nil, "block 0", 200, `{"stored":false}`},
		{"PUT /prompt/blocks/hex:ff00?namespace=prompts&scope=dtype=bf16&scope=model=m&depth=1&parent=b0", nil, mib + "more", 201, `{"stored":true}`},
		{"GET /prompt/blocks/b0?namespace=prompts&scope=model=m&scope=dtype=bf16", nil, "", 200, "block 0"},
		{"GET /prompt/blocks/hex:ff00?namespace=prompts&scope=model=m&scope=dtype=bf16", nil, "", 200, "Kv-Checksum: " + sum(mib+"more")},
		{"GET /prompt/blocks/b0?namespace=prompts&scope=model=other", nil, "", 404, "no such block"},
		{"GET /prompt/blocks/hex:f?namespace=prompts", nil, "", 400, `"field":"id"`},
		{"GET /prompt/blocks/?namespace=prompts", nil, "", 400, "1 to 128"},
		{"GET /prompt/blocks/b0", nil, "", 400, `"reason":"WRONG_KIND"`},
		{"GET /prompt/blocks/b0?namespace=prompts&rank=x", nil, "", 400, `"field":"rank"`},
		{"GET /prompt/blocks/b0?namespace=prompts&scope=model", nil, "", 400, `"field":"scope"`},
		{"PUT /prompt/blocks/bad?namespace=prompts", []string{"Kv-Checksum: " + sum("right")}, "wrong", 400, "Kv-Checksum"},
		{"PUT /prompt/blocks/bad?namespace=prompts", []string{"Kv-Ttl-Seconds: keep"}, "x", 400, "Kv-Ttl-Seconds"},
		{"POST /prompt/lookup?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"},{"id":"hex:ff00"},{"id":"none"}],"lease_ms":1000}`, 200, `{"count":2,`},
		{"POST /prompt/lookup?namespace=prompts", []string{j}, `{"blocks":[{"id":"b0"}],"mode":"some"}`, 400, `"field":"mode"`},
		{"POST /prompt/release?namespace=prompts", []string{j}, `{"lease":"unknown"}`, 400, ""},
		{"POST /prompt/touch?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"},{"id":"none"},{"id":"hex:ff00"}]}`, 200, `{"count":2}`},
		{"POST /prompt/touch?namespace=prompts", []string{j}, `{"blocks":[{"id":"hex:0"}]}`, 400, `"field":"blocks[0].id"`},
		{"POST /prompt/touch?namespace=prompts", []string{j}, `{"blocks":[{"id":""}]}`, 400, `"field":"blocks.id"`},
		{"POST /prompt/touch?namespace=prompts", []string{j}, `{"blocks":[` + many(65537, `{"id":"x"}`) + `]}`, 413, `"allowed":65536`},
		{"POST /prompt/touch", []string{j}, `{"blocks":[]}`, 400, `"reason":"WRONG_KIND"`},
		{"GET /prompt/touch", nil, "", 405, "Allow: OPTIONS, POST"},
		{"POST /prompt/pin?namespace=prompts", []string{j, "Idempotency-Key: p"}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"none"},{"id":"b0"}],"until_ms":` + until + `}`, 200, `{"count":1,"present":[false,true]}`},
		{"POST /prompt/lookup?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"}]}`, 200, `"pinned_until_ms":` + until},
		{"POST /prompt/pin?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"}]}`, 400, `"field":"until_ms"`},
		{"POST /prompt/pin?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"}],"until_ms":-1}`, 400, `"field":"until_ms"`},
		{"POST /prompt/pin?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"}],"until_ms":0}`, 200, `{"count":1,"present":[true]}`},
		{"POST /prompt/lookup?namespace=prompts", []string{j}, `{"scope":{"model":"m","dtype":"bf16"},"blocks":[{"id":"b0"}]}`, 200, `"tier":"memory"}]`}, // no pin any more
		{"PUT /prompt/blocks/leased?namespace=prompts&scope=model=d", nil, "to be leased", 201, ""},
		{"PUT /prompt/blocks/d0?namespace=prompts&scope=model=d", nil, "d0", 201, ""},
		{"PUT /prompt/blocks/d0?namespace=prompts&scope=model=d&rank=1", nil, "d0, another rank", 201, ""},
		{"PUT /prompt/blocks/a/..%2Fb?namespace=prompts&scope=model=d", nil, "an odd id", 201, ""},
		{"POST /prompt/delete?namespace=prompts", []string{j, "Idempotency-Key: d"}, `{"scope":{"model":"d"},"blocks":[{"id":"none"},{"id":"d0"}]}`, 200, `{"outcomes":["absent","deleted"]}`},
		{"POST /prompt/delete?namespace=prompts", []string{j, "Idempotency-Key: d"}, `{"scope":{"model":"d"},"blocks":[{"id":"none"},{"id":"d0"}]}`, 200, `{"outcomes":["absent","deleted"]}`},
		{"POST /prompt/delete?namespace=prompts", []string{j}, `{"scope":{"model":"d"},"blocks":[{"id":"d0"}]}`, 200, `{"outcomes":["absent"]}`},
		{"POST /prompt/delete?namespace=prompts", []string{j}, `{"scopes":{"model":"d"},"blocks":[{"id":"d0"}]}`, 400, "unknown field"},
		{"GET /prompt/blocks/d0?namespace=prompts&scope=model=d", nil, "", 404, ""},
		{"DELETE /prompt/blocks/d0?namespace=prompts&scope=model=d&rank=1", nil, "", 200, `{"outcome":"deleted"}`},
		{"DELETE /prompt/blocks/d0?namespace=prompts&scope=model=d&rank=1", nil, "", 200, `{"outcome":"absent"}`},
		{"DELETE /prompt/blocks/a/..%2Fb?namespace=prompts&scope=model=d", nil, "", 200, `{"outcome":"deleted"}`},
		{"DELETE /prompt/blocks/d0?namespace=prompts&depth=1", nil, "", 400, "not a parameter"},
		{"DELETE /prompt/blocks/?namespace=prompts", nil, "", 400, `"field":"id"`},
		{"DELETE /prompt/blocks/d0", nil, "", 400, `"reason":"WRONG_KIND"`},
		{"DELETE /prompt/blocks/d0?namespace=prompts", []string{"Kv-Not-After-Ms: 1"}, "", 400, "Kv-Not-After-Ms"},
		{"POST /prompt/blocks/d0?namespace=prompts", nil, "", 405, "Allow: DELETE, GET, OPTIONS, PUT"},
		{"GET /prompt/watch", nil, "", 400, `"reason":"WRONG_KIND"`},
		{"GET /prompt/watch?scope=model=m", nil, "", 400, `"reason":"WRONG_KIND"`},
		{"GET /prompt/watch?namespace=prompts&scope=model", nil, "", 400, `"field":"scope"`},
		{"GET /prompt/watch?namespace=prompts&mode=some", nil, "", 400, `"field":"mode"`},
		{"GET /prompt/watch?namespace=prompts&token=AAAA", nil, "", 400, `"field":"token"`},
		{"GET /prompt/watch?namespace=prompts&token=AAAA&state=true", nil, "", 400, `"field":"state"`},
		{"GET /prompt/watch?namespace=prompts&values=true", nil, "", 400, "not a parameter"},
		{"GET /prompt/watch?namespace=prompts", []string{"Last-Event-ID: ?"}, "", 400, `"field":"Last-Event-ID"`},
		{"POST /prompt/watch?namespace=prompts", nil, "", 405, "Allow: GET, OPTIONS"},
		// How it is, and what is to come.
		{"GET /admin/status", nil, "", 200, `"engine":"memory"`},
		{"POST /admin/backup", nil, "", 501, `"reason":"UNIMPLEMENTED"`},
		{"POST /admin/restore", nil, "", 501, `"reason":"UNIMPLEMENTED"`},
		{"GET /admin/metrics", nil, "", 200, "go_goroutines"},
		{"GET /openapi.yaml", nil, "", 200, "openapi: 3.0.3"},
		{"GET /watch/?mode=some", nil, "", 400, `"field":"mode"`},
		{"GET /watch/?token=AAAA", nil, "", 400, `"field":"token"`},
		{"GET /watch/?token=AAAA&state=true", nil, "", 400, `"field":"state"`},
		{"GET /watch/x", []string{"Last-Event-ID: ?"}, "", 400, `"field":"Last-Event-ID"`},
		{"GET /watch/x?namespace=prompts", nil, "", 400, `"reason":"WRONG_KIND"`},
		{"GET /watch/" + strings.Repeat("p", 1025), nil, "", 413, `"allowed":1024`},
		{"POST /watch/x", nil, "", 405, "Allow: GET, OPTIONS"},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		a := w.ask(method, path, tc.body, tc.headers...)
		found := strings.Contains(a.body, tc.want)
		if name, value, ok := strings.Cut(tc.want, ": "); ok && !strings.ContainsAny(name, "{\"") {
			found = found || a.header.Get(name) == value
		}
		if a.status != tc.status || !found {
			t.Errorf("%s %.200q: %d %.400s %v, want %d and %s", tc.line[:min(len(tc.line), 200)], tc.headers, a.status, a.body, a.header, tc.status, tc.want)
		}
	}
	// A lease can be given back.
	a := w.ask("POST", "/prompt/lookup?namespace=prompts", `{"scope":{"model":"d"},"blocks":[{"id":"leased"}],"mode":"all","lease_ms":30000}`, j)
	var lookup struct{ Lease string }
	if err := json.Unmarshal([]byte(a.body), &lookup); err != nil || lookup.Lease == "" {
		t.Errorf("lookup: %s, %v", a.body, err)
	}
	remove := func(outcome string) {
		t.Helper()
		a := w.ask("POST", "/prompt/delete?namespace=prompts", `{"scope":{"model":"d"},"blocks":[{"id":"leased"}]}`, j)
		if want := `{"outcomes":["` + outcome + `"]}`; strings.TrimSpace(a.body) != want {
			t.Errorf("delete: %s, want %s", a.body, want)
		}
	}
	remove("leased")
	if a := w.ask("POST", "/prompt/release?namespace=prompts", `{"lease":"`+lookup.Lease+`"}`, j); a.status != 200 {
		t.Errorf("release: %d %s", a.status, a.body)
	}
	remove("deleted")
	// Pages are the whole list, each key once.
	var keys []string
	for token := ""; ; {
		a := w.ask("GET", "/keys?limit=2&page_token="+token, "")
		var page struct {
			Entries []struct{ Key string }
			Next    string `json:"next_page_token"`
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil {
			t.Fatal(a.body, err)
		}
		for _, e := range page.Entries {
			keys = append(keys, e.Key)
		}
		if token = page.Next; token == "" {
			break
		}
	}
	if !slices.Equal(keys, []string{"a", "b2", "empty", "once", "sum", "{t}1"}) {
		t.Errorf("the list is %q", keys)
	}
	for _, item := range w.doc.Paths.Map() {
		for _, op := range item.Operations() {
			if !w.used[op.OperationID] && !strings.HasPrefix(op.OperationID, "watch") {
				t.Errorf("%s was not used", op.OperationID)
			}
		}
	}
}

func sum(s string) string { return fmt.Sprintf("%016x", xxh3.HashString(s)) }

// TestRESTLargeValues: values of 64 MiB go in and out, and the process does not grow by one of them.
func TestRESTLargeValues(t *testing.T) {
	const size = 64 << 20
	s := start(t, filepath.Join(t.TempDir(), "data"), "-max-value-bytes", strconv.Itoa(size))
	w := newWeb(t, "http://"+s.REST+"/api/v1")
	if a := w.ask("PUT", "/keys/warm", strings.Repeat("x", 2<<20)); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	before := s.peak(t)
	var sums []string
	for i := range 3 {
		k := fmt.Sprintf("/keys/large%d", i)
		h := xxh3.New()
		req, err := http.NewRequestWithContext(within(t), http.MethodPut, w.base+k, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size), h))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 201 {
			t.Fatalf("PUT: %s", resp.Status)
		}
		sums = append(sums, fmt.Sprintf("%016x", h.Sum64()))
	}
	for i := range 3 {
		resp, err := w.client.Get(w.base + fmt.Sprintf("/keys/large%d", i))
		if err != nil {
			t.Fatal(err)
		}
		h := xxh3.New()
		n, err := io.Copy(h, resp.Body)
		resp.Body.Close()
		if got := fmt.Sprintf("%016x", h.Sum64()); err != nil || n != size || got != sums[i] || resp.Header.Get("Kv-Checksum") != got {
			t.Errorf("GET: %d bytes with %s, header %s, want %s; %v", n, got, resp.Header.Get("Kv-Checksum"), sums[i], err)
		}
	}
	if grown := s.peak(t) - before; grown > size/2 {
		t.Errorf("the process grew by %d MiB for values of 64 MiB", grown>>20)
	}
	// Without a length only what can be held.
	resp, err := w.client.Do(chunked(t, w.base+"/keys/chunked", 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	over, err := w.client.Do(chunked(t, w.base+"/keys/chunked", 1<<20+1))
	if err != nil {
		t.Fatal(err)
	}
	over.Body.Close()
	if resp.StatusCode != 201 || over.StatusCode != http.StatusLengthRequired {
		t.Errorf("chunked: %s, and one byte more: %s", resp.Status, over.Status)
	}
}

func chunked(t *testing.T, url string, n int) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodPut, url, io.MultiReader(strings.NewReader(strings.Repeat("x", n))))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// peak is the most memory that the process has had.
func (s *server) peak(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	n, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// sse is one event.
type sse struct{ id, name, data string }

// events reads server-sent events.
type events struct {
	t     *testing.T
	doc   *openapi3.T
	resp  *http.Response
	lines *bufio.Scanner
}

func (w *web) watch(path, last string) *events {
	w.t.Helper()
	ctx, cancel := context.WithCancel(within(w.t))
	w.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		text, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("watch %s: %s %s", path, resp.Status, text)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return &events{w.t, w.doc, resp, bufio.NewScanner(resp.Body)}
}

// eventSchemas are what the document says of the data of events.
var eventSchemas = map[string]string{"put": "Change", "delete": "Change", "expire": "Change", "stored": "BlockChange", "removed": "BlockChange", "end": "Problem"}

// next is the next event, held to the document; ok is false at the end of the stream.
func (e *events) next() (ev sse, ok bool) {
	e.t.Helper()
	for e.lines.Scan() {
		switch name, value, _ := strings.Cut(e.lines.Text(), ": "); name {
		case "id":
			ev.id = value
		case "event":
			ev.name = value
		case "data":
			ev.data = value
		case "retry":
		case "":
			if ev.name == "" {
				continue
			}
			var data any
			if err := json.Unmarshal([]byte(ev.data), &data); err != nil {
				e.t.Errorf("%+v: %v", ev, err)
			}
			if name := eventSchemas[ev.name]; name != "" {
				if err := e.doc.Components.Schemas[name].Value.VisitJSON(data); err != nil {
					e.t.Errorf("%+v: %v", ev, err)
				}
			} else if ev.data != "{}" {
				e.t.Errorf("%+v: it should tell nothing", ev)
			}
			return ev, true
		default:
			e.t.Fatalf("line %q", e.lines.Text())
		}
	}
	return ev, false
}

// until reads up to an event of a name and returns the changes before it and its id.
func (e *events) until(name string) (changes []string, last string) {
	e.t.Helper()
	for {
		ev, ok := e.next()
		if !ok {
			e.t.Fatalf("the watch ended (%v) before %s; it told %q", e.lines.Err(), name, changes)
		}
		if ev.id != "" {
			last = ev.id
		}
		if slices.Contains([]string{"put", "delete", "expire"}, ev.name) {
			var c struct{ Key, Value string }
			if err := json.Unmarshal([]byte(ev.data), &c); err != nil {
				e.t.Fatalf("%s: %v", ev.data, err)
			}
			changes = append(changes, strings.TrimSuffix(ev.name+" "+c.Key+" "+c.Value, " "))
		}
		if ev.name == "stored" || ev.name == "removed" {
			var c struct {
				Scope           map[string]string
				ID, Parent, Why string
				Depth           uint32
				Size            int64
				Initial         bool
			}
			if err := json.Unmarshal([]byte(ev.data), &c); err != nil {
				e.t.Fatalf("%s: %v", ev.data, err)
			}
			changes = append(changes, fmt.Sprintf("%s %v %s parent %q depth %d size %d initial %v %s", ev.name, c.Scope, c.ID, c.Parent, c.Depth, c.Size, c.Initial, c.Why))
		}
		if ev.name == name {
			return changes, last
		}
	}
}

// TestRESTWatchGoesOn: a watch tells the state, then changes, and goes on from its last id after the server was killed, also with the URL that it began
// with, as EventSource does.
func TestRESTWatchGoesOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := start(t, dir)
	w := newWeb(t, "http://"+s.REST+"/api/v1")
	w.ask("PUT", "/keys/w/1", "one")
	w.ask("PUT", "/keys/other", "")
	const url = "/watch/w/?state=true&values=true&mode=all"
	e := w.watch(url, "")
	if got, _ := e.until("synced"); !slices.Equal(got, []string{"put w/1 one"}) {
		t.Errorf("the state is %q", got)
	}
	w.ask("PUT", "/keys/w/1", "two")
	got, last := e.until("put")
	if !slices.Equal(got, []string{"put w/1 two"}) || last == "" {
		t.Fatalf("%q, id %q", got, last)
	}
	w.ask("PUT", "/keys/w/2", "seen by nobody")
	w.ask("DELETE", "/keys/w/1", "")
	s.kill()
	if _, ok := e.next(); ok {
		for ok {
			_, ok = e.next()
		}
	}
	s = start(t, dir)
	w = newWeb(t, "http://"+s.REST+"/api/v1")
	e = w.watch(url, last)
	seen := map[string]bool{}
	for len(seen) < 2 {
		ev, ok := e.next()
		if !ok {
			t.Fatal("the watch ended")
		}
		if ev.name == "put" || ev.name == "delete" {
			seen[ev.name+" "+ev.data] = true
		}
		if ev.name == "synced" || ev.name == "resync" {
			t.Errorf("%s: it began anew", ev.name)
		}
	}
	for _, want := range []string{`put {"key":"w/2","value":"seen by nobody"`, `delete {"key":"w/1"`} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q was not told: %v", want, seen)
		}
	}
	// One key, and the end of the server: the stream says why.
	e = w.watch("/watch/w/2?exact=true", "")
	e.until("started")
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ev, _ := e.next()
	if ev.name != "end" || !strings.Contains(ev.data, `"reason":"UNAVAILABLE"`) {
		t.Errorf("at the end of the server it is told %+v", ev)
	}
	if _, ok := e.next(); ok || e.lines.Err() != nil {
		t.Errorf("after the end: %v", e.lines.Err())
	}
}

// TestRESTWatchBlocksGoesOn: a watch of the blocks of a scope tells those that are there, then what is stored and removed, and goes on from its last id after
// the server was killed.
func TestRESTWatchBlocksGoesOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := start(t, dir)
	w := newWeb(t, "http://"+s.REST+"/api/v1")
	ask := func(method, path, body string) {
		t.Helper()
		if a := w.ask(method, path, body); a.status != 200 && a.status != 201 {
			t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
	}
	const blocks, url = "/prompt/blocks/", "/prompt/watch?namespace=prompts&scope=model=m&scope=dtype=bf16&state=true&mode=all"
	const scope, other = "?namespace=prompts&scope=dtype=bf16&scope=model=m", "?namespace=prompts&scope=model=other"
	ask("POST", "/keyspaces/default/namespaces", `{"name":"prompts","kind":"prompt"}`)
	ask("PUT", blocks+"b0"+scope, "block 0")
	ask("PUT", blocks+"hex:ff"+scope+"&parent=b0&depth=1", "block 1, longer")
	ask("PUT", blocks+"b0"+other, "of another scope")
	e := w.watch(url, "")
	got, _ := e.until("synced")
	slices.Sort(got)
	if want := []string{
		`stored map[dtype:bf16 model:m] b0 parent "" depth 0 size 7 initial true `,
		`stored map[dtype:bf16 model:m] hex:ff parent "b0" depth 1 size 15 initial true `,
	}; !slices.Equal(got, want) {
		t.Errorf("the state is %q, want %q", got, want)
	}
	ask("PUT", blocks+"b2"+scope+"&parent=hex:ff&depth=2", "two")
	got, last := e.until("stored")
	if !slices.Equal(got, []string{`stored map[dtype:bf16 model:m] b2 parent "hex:ff" depth 2 size 3 initial false `}) || last == "" {
		t.Fatalf("%q, id %q", got, last)
	}
	ask("DELETE", blocks+"hex:ff"+scope, "") // seen by nobody, as is what follows
	ask("DELETE", blocks+"b0"+other, "")
	ask("PUT", blocks+"b3"+scope, "three")
	s.kill()
	for ok := true; ok; {
		_, ok = e.next()
	}
	s = start(t, dir)
	w = newWeb(t, "http://"+s.REST+"/api/v1")
	e = w.watch(url, last)
	var seen []string
	for !slices.ContainsFunc(seen, func(s string) bool { return strings.HasPrefix(s, "removed") }) {
		more, _ := e.until("removed")
		seen = append(seen, more...)
	}
	for !slices.ContainsFunc(seen, func(s string) bool { return strings.Contains(s, " b3 ") }) {
		more, _ := e.until("stored")
		seen = append(seen, more...)
	}
	ask("PUT", blocks+"b4"+scope, "four") // and nothing else before it
	more, _ := e.until("stored")
	seen = append(seen, more...)
	slices.Sort(seen)
	seen = slices.Compact(seen) // what came behind the last id is told again
	if want := []string{
		`removed map[dtype:bf16 model:m] hex:ff parent "b0" depth 1 size 15 initial false deleted`,
		`stored map[dtype:bf16 model:m] b3 parent "" depth 0 size 5 initial false `,
		`stored map[dtype:bf16 model:m] b4 parent "" depth 0 size 4 initial false `,
	}; !slices.Equal(seen, want) {
		t.Errorf("since the last id %q, want %q", seen, want)
	}
	// All scopes, and the end of the server: the stream says why.
	e = w.watch("/prompt/watch?namespace=prompts", "")
	e.until("started")
	ask("PUT", blocks+"b0"+other, "again")
	if got, _ := e.until("stored"); !slices.Equal(got, []string{`stored map[model:other] b0 parent "" depth 0 size 5 initial false `}) {
		t.Errorf("of all scopes: %q", got)
	}
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if ev, _ := e.next(); ev.name != "end" || !strings.Contains(ev.data, `"reason":"UNAVAILABLE"`) {
		t.Errorf("at the end of the server it is told %+v", ev)
	}
}

// TestREADME runs the commands of the README with curl.
func TestREADME(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatalf("needs curl: %v", err)
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("With curl, or anything that speaks HTTP:\n"))
	text, _, ok := bytes.Cut(text, []byte("\n[openapi.yaml]"))
	if !ok {
		t.Fatal("the README has no commands for curl")
	}
	s := start(t, "", "-engine", "memory")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "film.mp4"), bytes.Repeat([]byte("film"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ran, version := 0, ""
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "  #")
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "curl ") {
			continue
		}
		ran++
		line = strings.Replace(line, "curl ", "curl -sS --fail-with-body ", 1)
		line = strings.ReplaceAll(line, `"17"`, `"`+version+`"`)
		cmd := exec.CommandContext(within(t), "bash", "-c", "exec "+line)
		out := new(journal)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
		cmd.Env = append(os.Environ(), "U=http://"+s.REST+"/api/v1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "/watch/") { // it does not end by itself
			s.await(t, "the watch tells the state", func() bool { return out.says("event: synced") > 0 })
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if out.says(`"value":"Eva"`) != 1 {
				t.Errorf("%s: %s", line, out)
			}
			continue
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		if m := regexp.MustCompile(`"version":(\d+)`).FindStringSubmatch(out.String()); m != nil && version == "" {
			version = m[1]
		}
	}
	if ran != 9 {
		t.Errorf("%d commands", ran)
	}
}

// TestRESTDoors: TLS, HTTP/2, tokens and rights are those of the other doors.
func TestRESTDoors(t *testing.T) {
	h := newHouse(t)
	h.token("app", "default=write")
	h.token("reader", "default=read")
	h.token("tenant", "tenant=admin")
	h.token("ops", "server-admin")
	s := h.start("-tokens", h.file("tokens"), "-rest-listen", "0.0.0.0:0")
	base := "https://" + local(t, s.REST) + "/api/v1"
	curl := func(as string, args ...string) (code int, out string) {
		t.Helper()
		args = append([]string{"-sS", "--cacert", h.file("ca.crt"), "-o", h.file("out"), "-w", "%{http_version} %{http_code}"}, args...)
		if as != "" {
			args = append(args, "-H", "Authorization: Bearer "+strings.TrimSpace(h.read(as+".token")))
		}
		text, err := exec.CommandContext(within(t), "curl", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v %s", err, text)
		}
		if !strings.HasPrefix(string(text), "2 ") {
			t.Errorf("not HTTP/2: %s", text)
		}
		code, err = strconv.Atoi(string(text[2:]))
		if err != nil {
			t.Fatal(err)
		}
		return code, h.read("out")
	}
	for _, tc := range []struct {
		as, line, body string
		code           int
		want           string
	}{
		{"app", "PUT /keys/k", "private", 201, "created"},
		{"reader", "GET /keys/k", "", 200, "private"},
		{"app", "POST /batch/get", `{"gets":[{"key":"k"}]}`, 200, "private"},
		{"", "GET /keys/k", "", 401, "wants a token"},
		{"", "GET /openapi.yaml", "", 200, "openapi"},
		{"", "GET /watch/", "", 401, "wants a token"},
		{"reader", "PUT /keys/k", "x", 403, "the role write"},
		{"reader", "DELETE /keys/k", "", 403, "the role write"},
		{"reader", "POST /transaction", "{}", 403, "the role write"},
		{"reader", "POST /prompt/touch", `{"blocks":[]}`, 403, "the role write"},
		{"reader", "POST /prompt/pin", `{"blocks":[],"until_ms":0}`, 403, "the role write"},
		{"reader", "POST /prompt/delete", `{"blocks":[]}`, 403, "the role write"},
		{"reader", "POST /prompt/release", `{"lease":""}`, 403, "the role write"},
		{"reader", "DELETE /prompt/blocks/b", "", 403, "the role write"},
		{"app", "DELETE /prompt/blocks/b", "", 400, "WRONG_KIND"},
		{"reader", "GET /prompt/watch", "", 400, "WRONG_KIND"},
		{"tenant", "GET /prompt/watch", "", 403, "the role read"},
		{"tenant", "GET /prompt/watch?keyspace=none", "", 403, "the role read"},
		{"", "GET /prompt/watch", "", 401, "wants a token"},
		{"tenant", "GET /keys/k", "", 403, "the role read"},
		{"tenant", "GET /keys/k?keyspace=none", "", 403, "the role read"},
		{"tenant", "GET /watch/", "", 403, "the role read"},
		{"app", "POST /keyspaces", `{"name":"x"}`, 403, "server-admin"},
		{"app", "GET /keyspaces", "", 403, "server-admin"},
		{"app", "POST /admin/backup", "", 403, "server-admin"},
		{"app", "POST /keyspaces/default/namespaces", `{"name":"x","kind":"kv"}`, 403, "the role admin"},
		{"ops", "GET /keyspaces", "", 200, "default"},
		{"ops", "GET /keys/k", "", 403, "the role read"},
		{"ops", "GET /admin/status", "", 200, "shards"},
		{"reader", "GET /admin/status", "", 200, "uptime_ms"},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		args := []string{"-X", method, base + path}
		if tc.body != "" {
			args = append(args, "--data-binary", tc.body, "-H", "Content-Type: application/json")
		}
		code, out := curl(tc.as, args...)
		if code != tc.code || !strings.Contains(out, tc.want) || code >= 400 && strings.Contains(out, "private") {
			t.Errorf("%s as %q: %d %s, want %d and %q", tc.line, tc.as, code, out, tc.code, tc.want)
		}
	}
	// A token that is revoked ends a watch.
	lines := h.read("tokens")
	cmd := exec.CommandContext(within(t), "curl", "-sN", "--cacert", h.file("ca.crt"), "-H", "Authorization: Bearer "+strings.TrimSpace(h.read("reader.token")), base+"/watch/?state=true")
	said := new(journal)
	cmd.Stdout = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.await(t, "the watch is synced", func() bool { return said.says("event: synced") == 1 })
	h.replace("tokens", strings.ReplaceAll(lines, "reader ", "reader2 "))
	s.await(t, "the renamed token is taken", func() bool { return s.log.says("were reloaded") > 0 })
	var kept []string
	for line := range strings.Lines(lines) {
		if !strings.HasPrefix(line, "reader") {
			kept = append(kept, line)
		}
	}
	h.replace("tokens", strings.Join(kept, ""))
	s.await(t, "the watch ends", func() bool {
		curl("app", "-X", "PUT", base+"/keys/k", "--data-binary", "private")
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	if text := said.String(); !strings.Contains(text, "event: end") || !strings.Contains(text, "UNAUTHENTICATED") {
		t.Errorf("the watch told %s", text)
	}
	log := s.stop(t)
	if strings.Contains(log, "kvs_") || !strings.Contains(log, "/kvstore.v1.KVService/PutStream") {
		t.Errorf("the log has a token, or not the call that was refused:\n%s", log)
	}
}
