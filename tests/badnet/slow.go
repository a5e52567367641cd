package badnet

import (
	"net"
	"sync"
	"testing"
	"time"
)

// SlowConfig says how slow a line is.
type SlowConfig struct {
	Delay time.Duration // what every byte takes, each way; any number of them are on their way at once
	Rate  int           // bytes a second towards upstream, of all connections together; 0 = as many as come
}

// Slow is a line that loses nothing and is slow.
type Slow struct {
	cfg      SlowConfig
	upstream string
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex // guards all below
	free  time.Time  // when the bytes that were taken have passed
	ended bool
	conns []net.Conn
}

// NewSlow starts a slow line to upstream. It ends with the test.
func NewSlow(t testing.TB, upstream string, cfg SlowConfig) *Slow {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Slow{cfg: cfg, upstream: upstream, listener: l}
	s.running.Go(s.accept)
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		s.ended = true
		for _, c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.running.Wait()
	})
	return s
}

// Addr is where the line begins.
func (s *Slow) Addr() string { return s.listener.Addr().String() }

func (s *Slow) accept() {
	for {
		in, err := s.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", s.upstream)
		if err != nil {
			_ = in.Close()
			continue
		}
		s.mu.Lock()
		if s.ended {
			_, _ = in.Close(), out.Close()
		}
		s.conns = append(s.conns, in, out)
		s.mu.Unlock()
		s.pass(in, out, s.cfg.Rate)
		s.pass(out, in, 0)
	}
}

// burst is some bytes on their way.
type burst struct {
	bytes []byte
	due   time.Time
}

// A direction of a connection holds at most burstBytes times bursts.
const (
	burstBytes = 16 << 10
	bursts     = 64
)

// pass carries one direction of a connection.
func (s *Slow) pass(from, to net.Conn, rate int) {
	way := make(chan burst, bursts)
	s.running.Go(func() {
		defer close(way)
		for {
			b := make([]byte, burstBytes)
			n, err := from.Read(b)
			if n > 0 {
				way <- burst{b[:n], s.passes(n, rate).Add(s.cfg.Delay)}
			}
			if err != nil {
				return
			}
		}
	})
	s.running.Go(func() {
		defer func() { _ = from.Close() }() // with what is in the way nobody is served any more
		defer func() { _ = to.Close() }()
		for b := range way {
			time.Sleep(time.Until(b.due))
			if _, err := to.Write(b.bytes); err != nil {
				_ = from.Close()
				for range way { // let the reader end
				}
				return
			}
		}
	})
}

// passes is when n bytes that begin to pass now, behind all that came before, have passed.
func (s *Slow) passes(n, rate int) time.Time {
	now := time.Now()
	if rate == 0 {
		return now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(n) * time.Second / time.Duration(rate))
	return s.free
}
