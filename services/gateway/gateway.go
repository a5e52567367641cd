// Package gateway is the REST face: HTTP requests become calls of the frontend's services in the same process, so that rights, limits and rules are
// those of gRPC and written once. Here is what HTTP has and gRPC has not: paths, methods, headers, JSON, ETags, problem documents (RFC 9457) and
// server-sent events. DESIGN.md tells the rules and their reasons, openapi.yaml every operation.
//
// It opens no listeners; package node does.
//
//	g, err := gateway.New(gateway.Config{}, front.Calls())
//	go g.Serve(listener)
//	...
//	front.Stop() // ends watches
//	err = g.Shutdown(ctx)
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	"kvstore/services/frontend"
)

// Config is how a gateway behaves.
type Config struct {
	// Local takes requests alone that name this machine as their host (localhost, or an address). For doors on loopback that let everybody
	// in: a web page could otherwise have its name resolved to 127.0.0.1 and read and write with the browser's help.
	Local bool
	// MaxRequests is how many requests are served at once; one more gets RESOURCE_EXHAUSTED. Watches do not count, the frontend has a limit
	// for them. Default 1,024.
	MaxRequests int64
	// MaxConnections is how many connections are open at once; one more is closed. Default 16,384.
	MaxConnections int64
	// MaxBodyBytes bounds the memory for bodies that are read whole, of all requests together; one that does not fit gets RESOURCE_EXHAUSTED.
	// Default 256 MiB, at least 128 MiB.
	MaxBodyBytes int64
	// HeaderTimeout is how long the headers of a request may take. Default 10 s.
	HeaderTimeout time.Duration
	// StallTimeout is how long the next MiB of a body may take, in either direction; then the connection ends. Default 60 s.
	StallTimeout time.Duration
	// IdleTimeout is how long a connection may be silent between requests. Default 2 min.
	IdleTimeout time.Duration
	// Metrics serves GET /api/v1/admin/metrics. None: UNIMPLEMENTED.
	Metrics http.Handler
	// ErrorLog gets what net/http has to say of connections, mostly of failed handshakes. Default: nowhere.
	ErrorLog *log.Logger
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.MaxRequests == 0 {
		c.MaxRequests = 1024
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 16384
	}
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = 256 << 20
	}
	if c.HeaderTimeout == 0 {
		c.HeaderTimeout = 10 * time.Second
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = time.Minute
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 2 * time.Minute
	}
	if c.ErrorLog == nil {
		c.ErrorLog = log.New(discard{}, "", 0)
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	for _, n := range []struct {
		name  string
		value int64
		least int64
	}{
		{"MaxRequests", c.MaxRequests, 1}, {"MaxConnections", c.MaxConnections, 1}, {"MaxBodyBytes", c.MaxBodyBytes, jsonMemory * maxJSON},
		{"HeaderTimeout", int64(c.HeaderTimeout), 1}, {"StallTimeout", int64(c.StallTimeout), 1}, {"IdleTimeout", int64(c.IdleTimeout), 1},
	} {
		if n.value < n.least {
			faults = append(faults, fmt.Errorf("%s is %d, must be at least %d", n.name, n.value, n.least))
		}
	}
	return errors.Join(faults...)
}

type discard struct{}

// Write implements io.Writer.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Gateway is the REST face of a frontend.
type Gateway struct {
	cfg       Config
	calls     *frontend.Calls
	resources []resource
	counters  map[string]frontend.Counter // by operation id; none for watches
	server    *http.Server
	origins   *http.CrossOriginProtection

	requests    atomic.Int64 // being served, without watches
	connections atomic.Int64
	bodies      atomic.Int64 // bytes of memory for bodies
}

// New makes a gateway. The configuration must be valid once defaults are filled in.
func New(cfg Config, calls *frontend.Calls) (*Gateway, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, calls: calls, resources: newResources(routes), origins: http.NewCrossOriginProtection()}
	g.counters = make(map[string]frontend.Counter)
	for i := range routes {
		if !routes[i].watch {
			g.counters[routes[i].id] = calls.Meter().Operation("rest", operationName(routes[i].id))
		}
	}
	g.server = &http.Server{
		Handler: g, ReadHeaderTimeout: cfg.HeaderTimeout, IdleTimeout: cfg.IdleTimeout, MaxHeaderBytes: netMaxHeader, ErrorLog: cfg.ErrorLog,
		ConnState: g.count,
	}
	return g, nil
}

// netMaxHeader is where net/http refuses headers by itself, with a line of text; maxHeader is where we do, and say why.
const (
	netMaxHeader = 256 << 10
	maxHeader    = 128 << 10
)

// count holds connections to their limit.
func (g *Gateway) count(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if g.connections.Add(1) > g.cfg.MaxConnections {
			_ = c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		g.connections.Add(-1)
	}
}

// Serve serves until Shutdown or Close; then it returns http.ErrServerClosed.
func (g *Gateway) Serve(l net.Listener) error { return g.server.Serve(l) }

// Shutdown takes no more requests and waits for those under way until ctx ends; then it cuts them off. The frontend must be stopped
// first, for watches end by that.
func (g *Gateway) Shutdown(ctx context.Context) error {
	err := g.server.Shutdown(ctx)
	if err != nil && ctx.Err() != nil {
		return g.server.Close()
	}
	return err
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := request{g: g, w: w, r: r, control: http.NewResponseController(w)}
	err := q.serve()
	switch {
	case err == nil:
	case q.began:
		// The status has left: only an end before the promised length can tell that something went wrong.
		panic(http.ErrAbortHandler)
	default:
		q.extend(q.control.SetWriteDeadline)
		problemOf(err).write(w, err)
	}
}

// request is one request on its way.
type request struct {
	g       *Gateway
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	ctx     context.Context // of the call
	vars    [2]string       // of the path, decoded
	query   params
	began   bool       // the status has left
	span    trace.Span // nil: nobody follows
}

// extend gives the peer time for the next piece. An error is that of a connection that does not know deadlines, as in tests.
func (q *request) extend(set func(time.Time) error) {
	_ = set(time.Now().Add(q.g.cfg.StallTimeout))
}

// serve finds the operation, carries it out and counts it.
func (q *request) serve() error {
	if err := q.sane(); err != nil {
		return err
	}
	rt, err := q.g.route(q)
	if err != nil || rt == nil {
		return err
	}
	began := time.Now()
	err = q.answer(rt)
	c := q.g.counters[rt.id] // nil: a watch
	if err == nil {
		tracing.End(q.span, nil)
		if c != nil {
			c.Done(1, time.Since(began))
		}
		return nil
	}
	kind := kindOf(err)
	tracing.End(q.span, &kverr.Error{Kind: kind})
	if c != nil {
		c.Failed(1, time.Since(began), kind)
	}
	return err
}

// follow begins the span of a request that was let in, if it is to be followed. Watches last, and have none; nor has what everybody may ask, who must not
// use up what is followed.
func (q *request) follow(rt *route) {
	t := q.g.calls.Tracer()
	if t == nil || rt.watch || rt.call == "" {
		return
	}
	traceparent := ""
	if v := q.r.Header["Traceparent"]; len(v) > 0 {
		traceparent = v[0]
	}
	if t.Wants(traceparent) {
		q.span = t.Request(traceparent, "rest "+operationName(rt.id), attribute.String("kvstore.face", "rest"))
	}
}

// kindOf is the kind of an error that a request ended with. Those that HTTP alone has are about the request.
func kindOf(err error) kverr.Kind {
	if ref, ok := errors.AsType[*refusal](err); ok && ref.status < http.StatusInternalServerError {
		return kverr.InvalidArgument
	}
	return kverr.KindOf(err)
}

// operationName is put_key for putKey.
func operationName(id string) string {
	var name strings.Builder
	for _, c := range id {
		if unicode.IsUpper(c) {
			name.WriteByte('_')
		}
		name.WriteRune(unicode.ToLower(c))
	}
	return name.String()
}

// answer lets the caller in and carries the operation out.
func (q *request) answer(rt *route) (err error) {
	ctx := q.r.Context()
	if rt.call != "" {
		if ctx, err = q.g.calls.Admit(ctx, rt.call, q.r.Header["Authorization"], q.r.RemoteAddr); err != nil {
			return err
		}
	}
	q.follow(rt)
	if q.span != nil {
		ctx = trace.ContextWithSpan(ctx, q.span)
	}
	if q.query, err = parseParams(q.r.URL.RawQuery, rt); err != nil {
		return err
	}
	if q.span != nil && rt.spaced() {
		q.span.SetAttributes(tracing.Where(q.spaceOf())...)
	}
	if !rt.watch {
		if n := q.g.requests.Add(1); n > q.g.cfg.MaxRequests {
			q.g.requests.Add(-1)
			return kverr.Busy(kverr.Exhausted, time.Second, "this server serves %d requests over HTTP, its limit", q.g.cfg.MaxRequests)
		}
		defer q.g.requests.Add(-1)
	}
	timeout, err := timeoutOf(q.r.Header, rt)
	if err != nil {
		return err
	}
	q.ctx = ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		q.ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	q.extend(q.control.SetWriteDeadline)
	setCommon(q.w.Header())
	err = rt.handle(q)
	if err != nil && rt.call != "" && kindOf(err) != kverr.InvalidArgument { // what HTTP alone finds wrong is the caller's fault, too
		q.g.calls.Note(rt.call, err)
	}
	return err
}

// sane refuses what no operation wants to see.
func (q *request) sane() error {
	size := 0
	for name, values := range q.r.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	if size += len(q.r.RequestURI); size > maxHeader {
		ref := refuse(http.StatusRequestHeaderFieldsTooLarge, reasonHeaders, "path and headers have %d bytes; at most %d are allowed", size, maxHeader)
		ref.limit = maxHeader
		return ref
	}
	if q.g.cfg.Local && !namesThisMachine(q.r.Host) {
		return refuse(http.StatusMisdirectedRequest, reasonHost,
			"the host %.80q is not this machine; without tokens it must be named localhost, or by its address", q.r.Host)
	}
	if err := q.g.origins.Check(q.r); err != nil {
		return refuse(http.StatusForbidden, reasonCrossOrigin, "a web page of another origin may not change anything here")
	}
	return nil
}

// namesThisMachine tells whether a host is localhost or an address, which no other name can be made to mean.
func namesThisMachine(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.EqualFold(host, "localhost") || net.ParseIP(host) != nil
}

// takeBody makes room for n bytes of bodies; give gives it back.
func (g *Gateway) takeBody(n int64) error {
	if g.bodies.Add(n) > g.cfg.MaxBodyBytes {
		g.bodies.Add(-n)
		return kverr.Busy(kverr.Exhausted, time.Second, "the bodies of requests take %d bytes of memory, their limit", g.cfg.MaxBodyBytes)
	}
	return nil
}

func (g *Gateway) giveBody(n int64) { g.bodies.Add(-n) }
