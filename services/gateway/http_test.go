package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/components/authn"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
	"kvstore/services/gateway"
)

// rig is a gateway on a listener, before real shards in memory.
type rig struct {
	t       testing.TB
	addr    string
	front   *frontend.Server
	gateway *gateway.Gateway
	stop    func()
}

const patience = 30 * time.Second

func newRig(t testing.TB, cfg gateway.Config) *rig {
	t.Helper()
	return newRigOf(t, cfg, frontend.Config{Access: authn.Anyone})
}

// newRigOf is newRig with a frontend that is configured.
func newRigOf(t testing.TB, cfg gateway.Config, front frontend.Config) *rig {
	t.Helper()
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		t.Fatal(err)
	}
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	host, err := memhost.New(store, memhost.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := keeper.New(host, host, keeper.Config{})
	if err != nil {
		t.Fatal(err)
	}
	host.RememberWith(dir)
	if err := dir.Begin(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t}
	if r.front, err = frontend.New(front, host, catalog.Local{Keeper: dir}); err != nil {
		t.Fatal(err)
	}
	if r.gateway, err = gateway.New(cfg, r.front.Calls()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.gateway.Serve(l) }()
	r.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.front.Stop()
		if err := r.gateway.Shutdown(ctx); err != nil {
			t.Errorf("stop the gateway: %v", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		if err := host.Close(ctx, false); err != nil {
			t.Errorf("close the host: %v", err)
		}
		if err := engine.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) url(path string) string { return "http://" + r.addr + "/api/v1" + path }

// dial opens a connection and writes what is given.
func (r *rig) dial(text string) net.Conn {
	r.t.Helper()
	conn, err := r.send(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return conn
}

func (r *rig) send(text string) (net.Conn, error) {
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, text)
	return conn, errors.Join(err, conn.SetDeadline(time.Now().Add(patience)))
}

// put stores a value and returns the status.
func (r *rig) put(path string, body io.Reader) int {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodPut, r.url(path), body)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// settled waits until there are no more goroutines than before.
func settled(t testing.TB, before int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

// TestHalfARequest: whoever does not go on is let go in time, is told why where HTTP lets him be told, and nothing of what he sent is stored.
func TestHalfARequest(t *testing.T) {
	const short = time.Second
	r := newRig(t, gateway.Config{HeaderTimeout: short, StallTimeout: short, IdleTimeout: short})
	var all sync.WaitGroup
	for _, tc := range []struct{ name, sent, want string }{
		{"nothing", "", ""},
		{"half a line", "GET /api/v1/ke", "400"},
		{"half of the headers", "GET /api/v1/keys/k HTTP/1.1\r\nHost: localhost\r\nX: ", ""},
		{"half a body", "PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345", "408"},
		{"half a chunk", "PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123", "408"},
		{"half a large body", "PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n" + strings.Repeat("x", 1500000), "408"},
		{"half of JSON", "POST /api/v1/batch/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{", "408"},
		{"half a block", "PUT /api/v1/prompt/blocks/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345", "408"},
		{"no HTTP", "\x16\x03\x01 hello\r\n\r\n", "400"},
		{"a bad escape", "GET /api/v1/keys/%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"},
		{"two lengths", "PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", "400"},
		{"no host", "GET /api/v1/keys/k HTTP/1.1\r\n\r\n", "400"},
		{"headers without end", "GET /api/v1/keys/k HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("h", 300<<10), "431"},
		{"a chunk that is none", "PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"},
	} {
		all.Go(func() {
			conn, err := r.send(tc.sent)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(conn)
			}
			if err != nil && tc.want != "431" { // who is still sending may not get to read
				t.Errorf("%s: %v", tc.name, err)
			}
			line, _, _ := strings.Cut(string(got), "\r\n")
			if tc.want == "" && len(got) > 0 || err == nil && !strings.Contains(line, tc.want) {
				t.Errorf("%s: %q, want %q", tc.name, line, tc.want)
			}
			if tc.want == "408" && !strings.Contains(string(got), `"reason":"REQUEST_TIMEOUT"`) {
				t.Errorf("%s: %s", tc.name, got)
			}
		})
	}
	all.Wait()
	// A client that closes in the middle.
	conn := r.dial("PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); !strings.Contains(string(got), "ended 5 bytes before its Content-Length") {
		t.Errorf("closed in the middle: %s", got)
	}
	resp, err := http.Get(r.url("/keys/half"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("half a value was stored: %s", resp.Status)
	}
}

// TestClientsThatLeave: of whoever leaves in the middle, or does not read, nothing stays.
func TestClientsThatLeave(t *testing.T) {
	r := newRig(t, gateway.Config{StallTimeout: 300 * time.Millisecond})
	if status := r.put("/keys/large", strings.NewReader(strings.Repeat("x", 12<<20))); status != http.StatusCreated {
		t.Fatal(status)
	}
	http.DefaultClient.CloseIdleConnections()
	warm := r.dial("GET /api/v1/watch/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
	waitFor(t, warm, "event: started")
	_ = warm.Close()
	settle := func() int {
		last := -1
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			if n := runtime.NumGoroutine(); n == last {
				return n
			}
			last = runtime.NumGoroutine()
			timer := time.NewTimer(100 * time.Millisecond)
			<-timer.C
		}
		return last
	}
	before := settle()
	for range 20 {
		for _, tc := range []struct{ sent, until string }{
			{"GET /api/v1/keys/large HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 OK"},
			{"GET /api/v1/watch/?state=true&values=true HTTP/1.1\r\nHost: localhost\r\n\r\n", "event: synced"},
			{"PUT /api/v1/keys/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\nxxx", ""},
			{"POST /api/v1/batch/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n{", ""},
		} {
			conn := r.dial(tc.sent)
			if tc.until != "" {
				waitFor(t, conn, tc.until)
			}
			_ = conn.Close()
		}
	}
	settled(t, before)
	// So is a watcher who does not read.
	for i := range 20 {
		r.put(fmt.Sprintf("/keys/some/%d", i), strings.NewReader(strings.Repeat("x", 1<<20)))
	}
	http.DefaultClient.CloseIdleConnections()
	watcher := r.deaf("GET /api/v1/watch/?state=true&values=true HTTP/1.1\r\nHost: localhost\r\n\r\n")
	settled(t, before)
	if got, _ := io.ReadAll(watcher); strings.Contains(string(got), "event: synced") {
		t.Error("a watcher who did not read was told all the same")
	}
	// One that stays and does not read is cut off; a response that lacks its end does not look whole.
	conn := r.deaf("GET /api/v1/keys/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
	settled(t, before)
	got, _ := io.ReadAll(conn)
	if len(got) >= 12<<20 {
		t.Errorf("who did not read got %d bytes all the same", len(got))
	}
}

// deaf sends a request and reads the beginning of the answer alone.
func (r *rig) deaf(text string) net.Conn {
	r.t.Helper()
	conn := r.dial("")
	if err := conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil { // or the kernel reads in his place
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		r.t.Fatal(err)
	}
	waitFor(r.t, conn, "200 OK")
	return conn
}

// waitFor reads up to a text.
func waitFor(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			t.Fatalf("before %q: %v", text, err)
		}
	}
}

// TestBounds: one request, one connection or one byte too many is refused, with when to come again, and the others are served.
func TestBounds(t *testing.T) {
	r := newRig(t, gateway.Config{MaxRequests: 2, MaxConnections: 4})
	const half = " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n1234"
	first, second := r.dial("PUT /api/v1/keys/a"+half), r.dial("PUT /api/v1/keys/b"+half)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	var resp *http.Response
	for { // until both are being served
		var err error
		if resp, err = client.Get(r.url("/keys/none")); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			break
		}
	}
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("the third: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	watch := r.dial("GET /api/v1/watch/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
	waitFor(t, watch, "event: started") // watches do not count
	if got, err := io.ReadAll(r.dial("GET /api/v1/keys/none HTTP/1.1\r\nHost: localhost\r\n\r\n")); len(got) > 0 {
		t.Errorf("the fifth connection: %q, %v", got, err)
	}
	for _, conn := range []net.Conn{first, second} {
		if _, err := io.WriteString(conn, "567890"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, conn, "201 Created")
	}
}

// TestRate: what is more than a client may is 429, with the time to wait in the header and to the millisecond in the document.
func TestRate(t *testing.T) {
	r := newRigOf(t, gateway.Config{}, frontend.Config{Access: authn.Anyone, ClientRate: 10})
	keys := strings.Repeat(`{"key":"a"},`, 600)
	resp, err := http.Post(r.url("/batch/get"), "application/json", strings.NewReader(`{"gets":[`+strings.TrimSuffix(keys, ",")+`]}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	if resp, err = http.Get(r.url("/keys/a")); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var p gateway.Problem
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		t.Fatal(err)
	}
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	if resp.StatusCode != http.StatusTooManyRequests || p.Reason != "RATE_LIMITED" || seconds < 20 || seconds > 60 || p.RetryAfterMS > int64(seconds)*1000 || p.RetryAfterMS < int64(seconds-1)*1000 {
		t.Errorf("%s, Retry-After %d: %+v", resp.Status, seconds, p)
	}
}

// TestBodiesAreBounded: what all bodies together may take is a limit, too.
func TestBodiesAreBounded(t *testing.T) {
	const limit = 72 << 20
	r := newRig(t, gateway.Config{MaxBodyBytes: limit})
	held := r.dial(fmt.Sprintf("POST /api/v1/batch/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{", 24<<20-1024))
	for {
		status := r.put("/keys/k", strings.NewReader(strings.Repeat("x", 1<<20)))
		if status == http.StatusTooManyRequests {
			break
		}
		if status != http.StatusOK && status != http.StatusCreated {
			t.Fatal(status)
		}
	}
	_ = held.Close()
	for deadline := time.Now().Add(patience); r.put("/keys/k", strings.NewReader(strings.Repeat("x", 1<<20))) != http.StatusOK; {
		if time.Now().After(deadline) {
			t.Fatal("what a body took was not given back")
		}
	}
}

// TestStopEndsWatches: a stop waits for nobody who would stay for ever.
func TestStopEndsWatches(t *testing.T) {
	r := newRig(t, gateway.Config{})
	watch := r.dial("GET /api/v1/watch/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
	lines := bufio.NewReader(watch)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "event: started") {
			break
		}
	}
	began := time.Now()
	r.stop()
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.Contains(string(rest), "event: end") || time.Since(began) > patience/2 {
		t.Errorf("%q, %v, after %v", rest, err, time.Since(began))
	}
}

func BenchmarkREST(b *testing.B) {
	r := newRig(b, gateway.Config{})
	value := strings.Repeat("v", 256)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	do := func(b *testing.B, method string, body string) {
		req, err := http.NewRequest(method, r.url("/keys/bench"), strings.NewReader(body))
		if err != nil {
			b.Error(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			b.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			b.Error(resp.Status)
		}
	}
	do(b, "PUT", value)
	for _, op := range []struct{ method, body string }{{"GET", ""}, {"PUT", value}, {"HEAD", ""}} {
		b.Run(op.method, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					do(b, op.method, op.body)
				}
			})
		})
	}
	client.CloseIdleConnections()
}

// discard is a response that nobody reads, so that the server's part is measured alone.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkHandler is the server's part without net/http's own.
func BenchmarkHandler(b *testing.B) {
	r := newRig(b, gateway.Config{})
	value := strings.Repeat("v", 256)
	r.put("/keys/bench", strings.NewReader(value))
	http.DefaultClient.CloseIdleConnections()
	for _, op := range []struct{ method, body string }{{"GET", ""}, {"PUT", value}, {"HEAD", ""}} {
		b.Run(op.method, func(b *testing.B) {
			b.ReportAllocs()
			req, err := http.NewRequest(op.method, r.url("/keys/bench"), nil)
			if err != nil {
				b.Fatal(err)
			}
			req.RequestURI = "/api/v1/keys/bench"
			for b.Loop() {
				body := strings.NewReader(op.body)
				req.Body, req.ContentLength = io.NopCloser(body), int64(len(op.body))
				r.gateway.ServeHTTP(&discard{make(http.Header, 16)}, req)
			}
		})
	}
}
