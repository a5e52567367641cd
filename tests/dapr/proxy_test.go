package dapr

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy passes connections on to an address until it is frozen: then it swallows what comes, without closing anything, as a network
// that drops packets.
type proxy struct {
	Addr string
	to   string

	mu     sync.Mutex
	frozen bool // guarded by mu
	conns  []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Addr: l.Addr().String(), to: to}
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			p.hold(in)
			if p.isFrozen() {
				continue
			}
			out, err := net.Dial("tcp", p.to)
			if err != nil {
				in.Close()
				continue
			}
			p.hold(out)
			go p.pass(in, out)
			go p.pass(out, in)
		}
	}()
	return p
}

func (p *proxy) hold(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

func (p *proxy) isFrozen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frozen
}

// pass copies one direction. The end of one connection is not passed on while the proxy is frozen.
func (p *proxy) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if p.isFrozen() {
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
			from.Close()
			to.Close()
			return
		}
	}
}

// freeze swallows everything from now on.
func (p *proxy) freeze() { p.set(true) }

// thaw lets new connections pass. Those that were frozen are closed: what was swallowed cannot be given back.
func (p *proxy) thaw() {
	p.set(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) set(frozen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = frozen
}
