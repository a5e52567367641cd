package node

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"kvstore/components/authn"
	"kvstore/components/kverr"
)

// readiness is why a process is not ready; it begins with a reason and ends with one.
type readiness struct {
	mu     sync.Mutex
	reason string             // guarded by mu; "" = started and not stopping
	probe  func() (why error) // guarded by mu; asked when reason is ""
}

func (r *readiness) set(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reason = reason
}

// serve makes the process ready as long as probe finds nothing.
func (r *readiness) serve(probe func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reason, r.probe = "", probe
}

// err is why the process is not ready, nil when it is.
func (r *readiness) err() error {
	r.mu.Lock()
	reason, probe := r.reason, r.probe
	r.mu.Unlock()
	if reason != "" {
		return errors.New(reason)
	}
	return probe()
}

// newAdmin is the admin port: /livez says that the process runs, /readyz that it serves reads and writes, or why not. With tokens
// both tell those without one nothing more than that, metrics need the grant metrics or server-admin, and profiles server-admin; without tokens
// metrics are for whoever reaches the port, and profiles for callers on this machine alone.
func newAdmin(ready *readiness, d *doors, metrics http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := ready.err(); err != nil {
			text := "not ready"
			if d.mayAdmin(r) == nil {
				text += ": " + err.Error()
			}
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if err := d.may(r, authn.Metrics); err != nil {
			refuse(w, err)
			return
		}
		metrics.ServeHTTP(w, r)
	})
	for path, h := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		mux.HandleFunc("GET "+path, d.operatorsOnly(h))
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(d, "", 0),
	}
}

// mayAdmin tells whether a request comes from who may administer the server.
func (d *doors) mayAdmin(r *http.Request) *kverr.Error { return d.may(r, authn.ServerAdmin) }

// may tells whether a request comes with a token that has what is needed, which no keyspace is named for.
func (d *doors) may(r *http.Request, need authn.Need) *kverr.Error {
	pass, err := d.tokens.Admit(r.Header["Authorization"], need)
	if err != nil {
		return err
	}
	return d.tokens.Check(pass, "")
}

// refuse answers who may not come in.
func refuse(w http.ResponseWriter, err *kverr.Error) {
	if err.Kind == kverr.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	http.Error(w, err.Message, err.Kind.HTTPStatus())
}

// operatorsOnly refuses callers who may not administer the server; without tokens, those on other machines. The address is that of the
// connection: headers can be made up.
func (d *doors) operatorsOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := d.mayAdmin(r)
		switch {
		case err != nil:
			refuse(w, err)
		case d.tokens.Open() && !loopback(r.RemoteAddr):
			http.Error(w, "profiles are served to this machine alone", http.StatusForbidden)
		default:
			h(w, r)
		}
	}
}

// serveAdmin serves until stop is called.
func serveAdmin(l net.Listener, ready *readiness, d *doors, metrics http.Handler) (stop func(context.Context) error) {
	srv := newAdmin(ready, d, metrics)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(d.adminListener(l)) }()
	return func(ctx context.Context) error {
		err := srv.Shutdown(ctx)
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			return errors.Join(err, serr)
		}
		return err
	}
}
