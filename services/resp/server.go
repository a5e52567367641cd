// Package resp speaks Redis's protocol, RESP2 and RESP3, for what a key-value store has of Redis's commands. Durable, linearizable and with the rights
// of every other way in: it works on a frontend (see Face). DESIGN.md has the commands, and where they differ from Redis's.
//
//	srv := resp.New(resp.Config{}, front.Face())
//	go srv.Serve(listener)
//	defer srv.Stop(ctx)
package resp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/components/tracing"
	"kvstore/services/frontend"
)

// Config is how a server behaves.
type Config struct {
	// Databases are the namespaces that SELECT 0, 1, ... means, of the keyspace that the caller is in. Default: "default" alone.
	Databases []string
	// MaxConns is how many connections are served at once; one more is told so and closed. Default 4,096.
	MaxConns int
	// BufferBytes is what requests of over 64 KiB may take in memory, all connections together; default 256 MiB. Long values of SET take none of it.
	BufferBytes int64
	// OpTimeout is how long a request may wait for its outcome before the caller is told that it is unknown, or an eighth longer. Default 30 s.
	OpTimeout time.Duration
	// StallTimeout is how long a half-sent request or a reply that is not read may stand still, and how long a stranger may stay one, before the
	// connection is closed. Between requests a connection may rest for ever. Default 60 s.
	StallTimeout time.Duration
	// Version is what INFO tells of the server; default "dev".
	Version string
	// Refused, when set, is told of connections that did not come in; why is for a log.
	Refused func(from, why string)
	// Log gets what goes wrong by no fault of the requests. Default: nowhere.
	Log *slog.Logger
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if len(c.Databases) == 0 {
		c.Databases = []string{frontend.DefaultName}
	}
	if c.MaxConns == 0 {
		c.MaxConns = 4096
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = 256 << 20
	}
	if c.OpTimeout == 0 {
		c.OpTimeout = 30 * time.Second
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = time.Minute
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Refused == nil {
		c.Refused = func(string, string) {}
	}
}

// Server serves RESP.
type Server struct {
	cfg     Config
	face    frontend.Face
	started time.Time
	run     string // random, for INFO
	budget  budget
	cursors cursors
	served  atomic.Int64 // requests
	missed  atomic.Int64 // reads of kind cache that failed and were answered as misses
	ids     atomic.Int64 // of connections
	away    atomic.Int64 // requests that are away
	ctx     context.Context
	cancel  func()
	done    chan struct{} // closed by Stop

	counters map[*command]frontend.Counter
	unknown  frontend.Counter
	tracer   *tracing.Tracer // nil: nobody follows

	mu       sync.Mutex
	conns    map[*conn]struct{} // guarded by mu
	listener net.Listener       // guarded by mu
	stopped  bool               // guarded by mu
	all      sync.WaitGroup
}

// New makes a server on a frontend. Stop must be called.
func New(cfg Config, face frontend.Face) *Server {
	cfg.EnsureDefaults()
	var id [20]byte
	_, _ = rand.Read(id[:]) // never fails
	s := &Server{cfg: cfg, face: face, started: time.Now(), run: hex.EncodeToString(id[:]), conns: make(map[*conn]struct{}), done: make(chan struct{})}
	s.budget.left.Store(cfg.BufferBytes)
	s.counters, s.unknown = newCounters(face.Meter())
	s.tracer = face.Tracer()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.all.Go(s.watchStalls)
	return s
}

// Serve takes connections until Stop closes the listener, and then returns nil.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = l
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return l.Close()
	}
	for pause := time.Duration(0); ; {
		raw, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.accept(raw)
		case errors.Is(err, net.ErrClosed):
			return nil
		case pause > time.Second:
			return fmt.Errorf("serve RESP: %w", err)
		default: // out of file descriptors, for example
			pause = 2*pause + 5*time.Millisecond
			select {
			case <-time.After(pause):
			case <-s.done:
				return nil
			}
		}
	}
}

func (s *Server) accept(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		_ = raw.Close()
		return
	}
	if len(s.conns) >= s.cfg.MaxConns {
		s.cfg.Refused(raw.RemoteAddr().String(), errMaxClients)
		s.all.Go(func() { // with TLS it takes a handshake
			_ = raw.SetDeadline(time.Now().Add(time.Second))
			_, _ = raw.Write(appendError(nil, errMaxClients))
			_ = raw.Close()
		})
		return
	}
	c := newConn(s, raw)
	s.conns[c] = struct{}{}
	s.all.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// Stop takes no more connections and requests, answers those that were taken, and closes. What is not answered when ctx ends is cut off.
func (s *Server) Stop(ctx context.Context) {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.done)
		if s.listener != nil {
			_ = s.listener.Close()
		}
		for c := range s.conns {
			c.stop()
		}
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.cancel()
		s.mu.Lock()
		for c := range s.conns {
			_ = c.raw.Close()
		}
		s.mu.Unlock()
		<-ended
	}
	s.cancel()
}

// Connections is how many connections there are.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) stopping() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// watchStalls closes connections that stand still where they must not, and answers those whose requests, left to others, take too long.
func (s *Server) watchStalls() {
	tick := time.NewTicker(max(min(s.cfg.StallTimeout, s.cfg.OpTimeout)/8, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case now := <-tick.C:
			s.mu.Lock()
			for c := range s.conns {
				if c.stalled(now) {
					s.cfg.Refused(c.raw.RemoteAddr().String(), "nothing moved for "+s.cfg.StallTimeout.String()+" in the middle of a request, a reply or a log-in")
					_ = c.raw.Close()
				}
				c.giveUpAway()
			}
			s.mu.Unlock()
		}
	}
}

// budget is room that connections share.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.left.Add(-n) >= 0 {
		return true
	}
	b.left.Add(n)
	return false
}

func (b *budget) give(n int64) {
	if n > 0 {
		b.left.Add(n)
	}
}
