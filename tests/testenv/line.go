package testenv

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Line passes TCP connections on to an address. It can be cut so that nobody notices, as by a network that drops packets: what comes is
// swallowed, and nothing is closed. And it can lead somewhere else.
type Line struct {
	Addr string // where it listens

	mu    sync.Mutex
	to    string // guarded by mu, as is all below
	cut   bool
	conns []net.Conn
}

// NewLine starts a line to an address. It ends with the test.
func NewLine(t testing.TB, to string) *Line {
	t.Helper()
	in, err := net.Listen("tcp", FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	l := &Line{Addr: in.Addr().String(), to: to}
	t.Cleanup(func() {
		_ = in.Close()
		l.hangUp()
	})
	go func() {
		for {
			conn, err := in.Accept()
			if err != nil {
				return
			}
			go l.serve(conn)
		}
	}()
	return l
}

// serve connects one connection through. While the line is cut it stays open and silent.
func (l *Line) serve(in net.Conn) {
	l.mu.Lock()
	l.conns = append(l.conns, in)
	to, cut := l.to, l.cut
	l.mu.Unlock()
	if cut {
		return
	}
	out, err := net.Dial("tcp", to)
	if err != nil {
		_ = in.Close()
		return
	}
	l.mu.Lock()
	l.conns = append(l.conns, out)
	l.mu.Unlock()
	go l.pass(in, out)
	l.pass(out, in)
}

// pass copies one direction. That one end has closed is not passed on while the line is cut.
func (l *Line) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		cut := l.cut
		l.mu.Unlock()
		if cut {
			if err == nil {
				continue
			}
			return
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = io.EOF
			}
		}
		if err != nil {
			_ = from.Close()
			_ = to.Close()
			return
		}
	}
}

// Cut swallows everything from now on.
func (l *Line) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
}

// Mend lets new connections pass. Those that were there are closed: what was swallowed cannot be given back.
func (l *Line) Mend() {
	l.mu.Lock()
	l.cut = false
	l.mu.Unlock()
	l.hangUp()
}

// LeadTo closes all connections; new ones go to another address.
func (l *Line) LeadTo(to string) {
	l.mu.Lock()
	l.to = to
	l.mu.Unlock()
	l.hangUp()
}

func (l *Line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}
