// Package badnet is a TCP proxy that does what networks do: it delays, cuts connections, loses requests and replies, delivers a request after
// its sender has given up, and goes away for a while. What it does follows from a seed, connection by connection. It knows no protocol: an
// exchange begins when the client speaks after the server did.
//
//	p := badnet.New(t, redis.Addr, badnet.Config{Seed: 1, Rate: 0.05, Latency: 2 * time.Millisecond})
//	... connect to p.Addr() ...
//	t.Logf("seed 1 did %v", p.Faults())
package badnet

import (
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Config says how bad the network is.
type Config struct {
	Seed    uint64
	Rate    float64       // share of exchanges that go wrong, 0 to 1
	Latency time.Duration // every burst of bytes waits up to this long
	// Away is how long the network is gone when it goes, for all connections; 0 = it never goes by itself.
	Away time.Duration
}

// What can happen to an exchange.
const (
	resetBefore  = "connection reset before the request arrived"
	cutRequest   = "request cut short"
	lateRequest  = "request delivered after its sender gave up"
	replyLost    = "reply lost, connection reset"
	replySilence = "reply lost, connection silent"
	cutReply     = "reply cut short"
	partition    = "network gone for a while"
	cut          = "all connections reset" // by Cut alone
)

var kinds = [Kinds]string{resetBefore, cutRequest, lateRequest, replyLost, replySilence, cutReply, partition}

// Kinds is how many kinds of faults there are.
const Kinds = 7

// Proxy is a running proxy. Its methods may be called from any goroutine.
type Proxy struct {
	cfg      Config
	upstream string
	listener net.Listener
	ended    chan struct{} // closed by the end of the test
	running  sync.WaitGroup

	mu     sync.Mutex // guards all below
	conns  map[net.Conn]bool
	made   uint64         // connections so far
	faults map[string]int // by kind
	back   chan struct{}  // closed when the network is there
}

// New starts a proxy in front of upstream. It ends with the test.
func New(t testing.TB, upstream string, cfg Config) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		cfg: cfg, upstream: upstream, listener: l, ended: make(chan struct{}),
		conns: map[net.Conn]bool{}, faults: map[string]int{}, back: make(chan struct{}),
	}
	close(p.back)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		close(p.ended)
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.running.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Faults tells how often each kind of fault happened.
func (p *Proxy) Faults() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.faults)
}

// Leave takes the network away for a time: bytes on their way arrive after it, if anybody still waits for them.
func (p *Proxy) Leave(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.back:
	default:
		return // it is away
	}
	back := make(chan struct{})
	p.back = back
	p.faults[partition]++
	time.AfterFunc(d, func() { close(back) })
}

// Cut resets all connections that there are, wherever their bytes are; new ones are taken. It returns how many there were, of clients and to the server.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
	if n := len(p.conns); n > 0 {
		p.faults[cut]++
	}
	return len(p.conns)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.made++
		n := p.made
		p.mu.Unlock()
		p.running.Go(func() { p.serve(client, n) })
	}
}

// keep notes a connection so that the end of the test closes it; false when that has come.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
		_ = c.Close()
		return false
	default:
		p.conns[c] = true
		return true
	}
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

// wait waits for a time, and for the network to be there; false at the end of the test.
func (p *Proxy) wait(d time.Duration) bool {
	p.mu.Lock()
	back := p.back
	p.mu.Unlock()
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.ended:
			return false
		}
	}
	select {
	case <-back:
		return true
	case <-p.ended:
		return false
	}
}

// link is one client connection with its server connection.
type link struct {
	*Proxy
	client, server net.Conn

	mu       sync.Mutex // guards all below
	r        *rand.Rand
	fault    string // of the exchange under way; "" = none
	answered bool   // the server spoke last
	silent   bool   // nothing of the server arrives any more: TCP loses no bytes of a connection but all that follow, too
}

// serve runs one connection.
func (p *Proxy) serve(client net.Conn, n uint64) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	if !p.wait(0) {
		return
	}
	server, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	if !p.keep(server) {
		return
	}
	defer p.drop(server)
	l := &link{Proxy: p, client: client, server: server, r: rand.New(rand.NewPCG(p.cfg.Seed, n)), answered: true}
	p.running.Go(func() {
		l.pump(server, client, l.reply)
		reset(client)
	})
	l.pump(client, server, l.request)
	_ = server.Close()
}

// pump carries bytes from one side to the other until pass says that it is over.
func (l *link) pump(from, to net.Conn, pass func(to net.Conn, b []byte) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !pass(to, buf[:n]) {
			return
		}
		if err != nil {
			return
		}
	}
}

func (l *link) latency() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.Latency <= 0 {
		return 0
	}
	return time.Duration(l.r.Int64N(int64(l.cfg.Latency)))
}

// request passes bytes of the client on, or what the fault of the exchange makes of them.
func (l *link) request(to net.Conn, b []byte) bool {
	l.mu.Lock()
	begins := l.answered && !l.silent
	l.answered = false
	if begins {
		l.fault = ""
		if l.r.Float64() < l.cfg.Rate {
			l.fault = kinds[l.r.IntN(Kinds)]
			if l.fault == partition && l.cfg.Away == 0 {
				l.fault = replyLost
			}
		}
	}
	fault, at := l.fault, 1+l.r.IntN(len(b))
	l.mu.Unlock()
	if begins && !l.wait(l.latency()) {
		return false
	}
	switch {
	case !begins:
	case fault == resetBefore:
		l.count(fault)
		reset(l.client)
		return false
	case fault == cutRequest:
		l.count(fault)
		_, _ = to.Write(b[:at])
		reset(l.client)
		return false
	case fault == lateRequest:
		l.count(fault)
		reset(l.client)
		if l.wait(50 * time.Millisecond) {
			_, _ = to.Write(b)
		}
		return false
	case fault == partition:
		l.Leave(l.cfg.Away)
		if !l.wait(0) {
			return false
		}
	}
	_, err := to.Write(b)
	return err == nil
}

// reply passes bytes of the server on, or what the fault of the exchange makes of them.
func (l *link) reply(to net.Conn, b []byte) bool {
	l.mu.Lock()
	begins := !l.answered
	l.answered = true
	fault, at := l.fault, l.r.IntN(len(b))
	was := l.silent
	l.silent = was || fault == replySilence // from here on, whatever the client says meanwhile
	silent := l.silent
	l.mu.Unlock()
	if silent {
		if !was {
			l.count(replySilence)
		}
		return true
	}
	if begins && !l.wait(l.latency()) {
		return false
	}
	switch fault {
	case lateRequest:
		return true // nobody is there
	case replyLost:
		l.count(fault)
		return false
	case cutReply:
		l.count(fault)
		_, _ = to.Write(b[:at])
		return false
	}
	_, err := to.Write(b)
	return err == nil
}

func (p *Proxy) count(kind string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[kind]++
}

// reset closes a connection so that its peer sees a reset.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
