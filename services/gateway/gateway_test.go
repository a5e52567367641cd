package gateway

import (
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"kvstore/components/kverr"
)

// TestRoutes: which operation a path is, and what its variables are. Nothing is cleaned, and everything is decoded once.
func TestRoutes(t *testing.T) {
	g := &Gateway{resources: newResources(routes)}
	for _, tc := range []struct {
		line, id, first, second string
	}{
		{"GET /api/v1/keys/a", "getKey", "a", ""},
		{"GET /api/v1/keys/a//b/../c/", "getKey", "a//b/../c/", ""},
		{"PUT /api/v1/keys/a%2Fb%252F%20%3f%23", "putKey", "a/b%2F ?#", ""},
		{"DELETE /api/v1/keys/", "deleteKey", "", ""},
		{"HEAD /api/v1/keys/%ff", "headKey", "\xff", ""},
		{"GET /api/v1/keys", "listKeys", "", ""},
		{"HEAD /api/v1/keys", "listKeys", "", ""},
		{"GET /api/v1/watch/", "watch", "", ""},
		{"GET /api/v1/watch/a/b", "watch", "a/b", ""},
		{"HEAD /api/v1/watch/a", "405", "a", ""},
		{"GET /api/v1/watch", "404", "", ""},
		{"GET /api/v1/keyspaces/a", "getKeyspace", "a", ""},
		{"GET /api/v1/keyspaces/a/", "404", "", ""},
		{"GET /api/v1/keyspaces//namespaces", "404", "", ""},
		{"GET /api/v1/keyspaces/%61/namespaces/b", "getNamespace", "a", "b"},
		{"PATCH /api/v1/keyspaces/a/namespaces", "405", "a", ""},
		{"GET /api%2Fv1/keys/a", "404", "", ""},
		{"GET //api/v1/keys/a", "404", "", ""},
		{"GET /", "404", "", ""},
		{"POST /api/v1/batch/put", "batchPut", "", ""},
		{"GET /api/v1/batch/put", "405", "", ""},
		{"BREW /api/v1/keys/a", "405", "a", ""},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		r, err := http.NewRequest(method, "http://127.0.0.1"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		q := &request{g: g, r: r}
		rt, rerr := g.route(q)
		got := ""
		if ref, ok := errors.AsType[*refusal](rerr); ok {
			got = map[int]string{404: "404", 405: "405"}[ref.status]
			if got == "405" && ref.header.Get("Allow") == "" {
				t.Errorf("%s: no Allow", tc.line)
			}
		} else if rt != nil {
			got = rt.id
		}
		if got != tc.id || got != "404" && (q.vars[0] != tc.first || q.vars[1] != tc.second) {
			t.Errorf("%s is %s with %q, want %s with %q and %q", tc.line, got, q.vars, tc.id, tc.first, tc.second)
		}
	}
}

// TestETags of writes and reads.
func TestETags(t *testing.T) {
	for _, tc := range []struct{ match, none, want string }{
		{"", "", "<nil>"},
		{`"17"`, "", "if_version:17"},
		{"*", "", "if_present:true"},
		{"", "*", "if_absent:true"},
		{`"17"`, "*", "If-None-Match"},
		{"", `"17"`, "If-None-Match"},
		{`"17", "18"`, "", "If-Match"},
		{`W/"17"`, "", "If-Match"},
		{`"0"`, "", "If-Match"},
		{`17`, "", "If-Match"},
		{`"x"`, "", "If-Match"},
	} {
		h := http.Header{}
		if tc.match != "" {
			h.Set("If-Match", tc.match)
		}
		if tc.none != "" {
			h.Set("If-None-Match", tc.none)
		}
		cond, err := writeCondition(h)
		got := cond.String()
		if err != nil {
			got = kverr.From(err).Field
		}
		if strings.TrimSpace(got) != tc.want {
			t.Errorf("If-Match %q, If-None-Match %q: %q, want %q", tc.match, tc.none, got, tc.want)
		}
	}
	for _, tc := range []struct {
		match, none string
		status      int
	}{
		{`"17"`, "", 0}, {`"16", "17"`, "", 0}, {`W/"17"`, "", 412}, {`"16"`, "", 412}, {"*", "", 0},
		{"", `"17"`, 304}, {"", `W/"17"`, 304}, {"", `"16"`, 0}, {"", `"16", "17"`, 304}, {"", "*", 304},
	} {
		h := http.Header{}
		if tc.match != "" {
			h.Set("If-Match", tc.match)
		}
		if tc.none != "" {
			h.Set("If-None-Match", tc.none)
		}
		status := 0
		if err := readCondition(h, 17); err != nil {
			status = problemOf(err).Status
		}
		if status != tc.status {
			t.Errorf("a read with If-Match %q, If-None-Match %q: %d, want %d", tc.match, tc.none, status, tc.status)
		}
	}
}

// FuzzPairs: metadata of any kind comes back as it was, by headers that HTTP may carry.
func FuzzPairs(f *testing.F) {
	for _, s := range []string{"owner", "Owner", "a b", "%", "100%", "\x00\r\n", "Zoë", " x ", ":", "ÿ"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return
		}
		h := http.Header{}
		setPairs(h, headerMeta, map[string]string{name: value})
		sent := http.Header{} // HTTP/2 has lower case alone, and what is around a value gets lost
		for n, v := range h {
			for i := range len(n) {
				if c := n[i]; !nameByte(c|0x20) && c != '%' && c != '_' {
					t.Fatalf("header %q", n)
				}
			}
			if strings.TrimSpace(v[0]) != v[0] || strings.ContainsAny(v[0], "\r\n\x00") {
				t.Fatalf("value %q", v[0])
			}
			sent.Set(strings.ToLower(n), v[0])
		}
		back, err := pairsOf(sent, headerMeta)
		if err != nil || !maps.Equal(back, map[string]string{name: value}) {
			t.Fatalf("%q: %q came back as %q, %v", name, value, back, err)
		}
	})
}

// TestJSONIsTakenAsItIs: whatever would be changed or passed over without a word is refused.
func TestJSONIsTakenAsItIs(t *testing.T) {
	for _, tc := range []struct{ body, field, words string }{
		{`{"key":"a","value":"b"}`, "", ""},
		{`{"key":"\ud83d\ude00","value":"\\ud800"}`, "", ""},
		{"{\"key\":\"\xff\"}", "body", "UTF-8"},
		{`{"key":"\ud800"}`, "body", "pair"},
		{`{"key":"\ude00"}`, "body", "pair"},
		{`{"key":"\ud800\u0041"}`, "body", "pair"},
		{`{"key":"\ud800x"}`, "body", "pair"},
		{`{"kee":"a"}`, "body", "unknown field"},
		{`{"key":1}`, "key", "a string"},
		{`{"key":"a","ttl_seconds":1.5}`, "ttl_seconds", "whole number"},
		{`{"key":"a","ttl_seconds":99999999999999999999}`, "ttl_seconds", "whole number"},
		{`{"key":"a"} {}`, "body", "goes on"},
		{`{"key":"a"`, "body", "ends before"},
		{``, "body", "ends before"},
		{`{"key":}`, "body", "byte 8"},
		{`[]`, "body", "an object"},
	} {
		var p putItem
		err := decodeJSON([]byte(tc.body), &p)
		if tc.field == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.body, err)
			}
			continue
		}
		if e := kverr.From(err); err == nil || e.Field != tc.field || !strings.Contains(e.Message, tc.words) {
			t.Errorf("%s: %v, want %s and %q", tc.body, err, tc.field, tc.words)
		}
	}
}

// TestLoneSurrogate: of strings made of pieces that matter, those are refused that encoding/json would change, and no others.
func TestLoneSurrogate(t *testing.T) {
	pieces := []string{`\ud800`, `\uDBFF`, `\udc00`, `\uDFFF`, `\ud83d\ude00`, `\\`, `\n`, `\u0041`, `x`, `ud800`, `é`}
	rng := rand.New(rand.NewPCG(1, 2))
	changed := 0
	for range 20_000 {
		inside := ""
		for range rng.IntN(6) {
			inside += pieces[rng.IntN(len(pieces))]
		}
		var s string
		if err := json.Unmarshal([]byte(`"`+inside+`"`), &s); err != nil {
			t.Fatalf("%s: %v", inside, err)
		}
		replaced := strings.Contains(s, "\ufffd")
		if replaced != loneSurrogate([]byte(`"`+inside+`"`)) {
			t.Fatalf("%s becomes %q", inside, s)
		}
		if replaced {
			changed++
		}
	}
	if changed < 1000 {
		t.Errorf("%d strings of 20,000 are changed", changed)
	}
}

// TestHosts: which names are this machine's for sure.
func TestHosts(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:8080": true, "127.0.0.1:8080": true, "[::1]:8080": true, "::1": true, "10.0.0.4": true,
		"kv.example": false, "localhost.evil.example:8080": false, "": false, "127.0.0.1.evil.example": false,
	} {
		if namesThisMachine(host) != want {
			t.Errorf("%q: want %v", host, want)
		}
	}
}
