package resp_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"kvstore/components/kverr"
	"kvstore/services/resp"
)

// TestBehindALoneWrite: what comes while a lone write is under way is answered after it, and sees it.
func TestBehindALoneWrite(t *testing.T) {
	r, s := newSlow(t, rigConfig{})
	l := dial(t, r.Addr)
	for round := range 200 {
		let := make(chan struct{})
		s.hold.Store(&let)
		l.send(encode("SET", "a", fmt.Sprint(round)))
		switch round % 4 { // what follows comes before the outcome, with it, or in pieces
		case 0:
			l.send(encode("GET", "a"))
			close(let)
		case 1:
			close(let)
			l.send(encode("GET", "a"))
		case 2:
			l.send(encode("PING") + encode("GET", "a"))
			s.hold.Store(nil)
			close(let)
			l.expect("+OK\r\n+PONG\r\n" + bulk(fmt.Sprint(round), true))
			continue
		case 3:
			get := encode("GET", "a")
			l.send(get[:7])
			close(let)
			l.expect("+OK\r\n") // does not wait for the rest
			l.send(get[7:])
			l.expect(bulk(fmt.Sprint(round), true))
			continue
		}
		l.expect("+OK\r\n" + bulk(fmt.Sprint(round), true))
	}
}

// TestLateLoneWrite: a lone write that does not end in time is told to be unknown although nobody waits for it, once; the connection goes on.
func TestLateLoneWrite(t *testing.T) {
	r, s := newSlow(t, rigConfig{RESP: resp.Config{OpTimeout: 300 * time.Millisecond}})
	l, behind := dial(t, r.Addr), dial(t, r.Addr)
	for i := range 3 {
		let := make(chan struct{})
		s.hold.Store(&let)
		began := time.Now()
		behind.send(encode("SET", "b", fmt.Sprint(i)))
		got := l.do("SET", "a", fmt.Sprint(i))
		if !strings.HasPrefix(got, "-UNKNOWN the outcome is not known: it took longer than 300ms") || time.Since(began) < 300*time.Millisecond {
			t.Fatalf("a SET that does not end: %q after %v", got, time.Since(began))
		}
		behind.send(encode("PING")) // before, with or after its own end
		if got := behind.reply(); !strings.HasPrefix(got, "-UNKNOWN ") {
			t.Fatalf("a SET that does not end, with a request behind it: %q", got)
		}
		behind.expect("+PONG\r\n")
		s.hold.Store(nil)
		if got := l.do("SET", "c", "1") + l.do("PING"); got != "+OK\r\n+PONG\r\n" {
			t.Fatalf("after it: %q", got)
		}
		close(let)
		deadline := time.Now().Add(patience)
		for _, key := range []string{"a", "b"} {
			for l.do("GET", key) != bulk(fmt.Sprint(i), true) {
				if time.Now().After(deadline) {
					t.Fatal("the SET that was let go is not seen")
				}
			}
		}
		if got := l.do("PING") + behind.do("PING"); got != "+PONG\r\n+PONG\r\n" {
			t.Fatalf("what came late was told: %q", got)
		}
	}
}

// TestLoneWritesFail: errors are told in the same words as of writes that are waited for.
func TestLoneWritesFail(t *testing.T) {
	r, s := newSlow(t, rigConfig{})
	l := dial(t, r.Addr)
	if got := l.do("SET", "a", "word"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	for _, tc := range []struct{ request, want string }{
		{encode("INCR", "a"), "-ERR value is not an integer or out of range\r\n"},
		{encode("SETNX", "a", "1"), ":0\r\n"},
		{encode("SET", "a", "1", "NX"), "$-1\r\n"},
		{encode("SET", "none", "1", "XX"), "$-1\r\n"},
		{encode("DEL", "none"), ":0\r\n"},
		{encode("EXPIRE", "none", "10"), ":0\r\n"},
		{encode("EXPIRE", "a", "10"), ":1\r\n"},
		{encode("DEL", "a"), ":1\r\n"},
		{encode("INCRBY", "a", "7"), ":7\r\n"},
	} {
		let := make(chan struct{})
		s.hold.Store(&let)
		l.send(tc.request)
		close(let)
		l.expect(tc.want)
	}
	s.hold.Store(nil)
	s.refuse.Store(&kverr.Error{Kind: kverr.NoSpace, Message: "m"})
	l.send(encode("SET", "a", "1"))
	l.expect("-MISCONF m\r\n")
}

// TestManyLoneWrites: more connections than may leave their writes to others, each with its own order.
func TestManyLoneWrites(t *testing.T) {
	r := newRig(t, rigConfig{})
	errs := make(chan error, 200)
	for i := range cap(errs) {
		go func() {
			errs <- func() error {
				conn, err := net.Dial("tcp", r.Addr)
				if err != nil {
					return err
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				reply := make([]byte, 64)
				for n := 1; n <= 50; n++ {
					if _, err := io.WriteString(conn, encode("INCR", fmt.Sprint("own-", i))); err != nil {
						return err
					}
					want := fmt.Sprintf(":%d\r\n", n)
					if _, err := io.ReadFull(conn, reply[:len(want)]); err != nil {
						return err
					}
					if got := string(reply[:len(want)]); got != want {
						return fmt.Errorf("came %q, want %q", got, want)
					}
				}
				return nil
			}()
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// untilFull sends lone increments over a connection that reads nothing, until there is no room for their replies, and returns how many.
func untilFull(t *testing.T, r *rig) (deaf net.Conn, sent int) {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: patience, Control: smallReceiveBuffer}).Dial("tcp", r.Addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	other := dial(t, r.Addr)
	for request := []byte(encode("INCR", "n")); sent < 1e6; {
		_, err := conn.Write(request)
		must(t, err)
		sent++
		for polls := 0; other.do("GET", "n") != bulk(fmt.Sprint(sent), true); polls++ {
			if polls == 2000 {
				return conn, sent
			}
		}
	}
	t.Fatal("a million replies that nobody reads found room")
	return nil, 0
}

// TestLoneWritesOfTheDeaf: replies for which there is no room hold up nobody else; once they are read, each is there, in order.
func TestLoneWritesOfTheDeaf(t *testing.T) {
	r := newRig(t, rigConfig{SendBuffer: 1})
	conn, sent := untilFull(t, r)
	if got := dial(t, r.Addr).do("SET", "a", "1"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	for n := 1; n <= sent; n++ {
		want := fmt.Sprintf(":%d\r\n", n)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Fatalf("came %q, %v; want %q", got, err, want)
		}
	}
}

// TestDeafForLong: who never reads the replies of lone writes is closed.
func TestDeafForLong(t *testing.T) {
	r := newRig(t, rigConfig{SendBuffer: 1, RESP: resp.Config{StallTimeout: 500 * time.Millisecond}})
	conn, _ := untilFull(t, r)
	other := dial(t, r.Addr)
	for deadline := time.Now().Add(patience); ; {
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			break
		}
		if got := other.do("PING"); got != "+PONG\r\n" || time.Now().After(deadline) {
			t.Fatalf("it is there still; somebody else is told %q", got)
		}
	}
}

// TestGoneWhileAway: who leaves while his write is under way leaves nothing behind.
func TestGoneWhileAway(t *testing.T) {
	r, s := newSlow(t, rigConfig{})
	before := runtime.NumGoroutine()
	let := make(chan struct{})
	s.hold.Store(&let)
	for i := range 50 {
		l := dial(t, r.Addr)
		l.send(encode("SET", fmt.Sprint(i), "1"))
		if i%2 == 0 {
			must(t, l.conn.(*net.TCPConn).SetLinger(0)) // a reset
		}
		l.conn.Close()
	}
	s.hold.Store(nil)
	close(let)
	deadline := time.Now().Add(patience)
	for r.Server.Connections() > 0 || runtime.NumGoroutine() > before+2 {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections and %d goroutines are left, %d were there before", r.Server.Connections(), runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
}

// TestRestAfterPieces: a write that came in pieces and was answered leaves a connection that may rest.
func TestRestAfterPieces(t *testing.T) {
	const stall = 200 * time.Millisecond
	r := newRig(t, rigConfig{RESP: resp.Config{StallTimeout: stall}})
	l, half := dial(t, r.Addr), dial(t, r.Addr)
	set := encode("SET", "a", "1")
	for i := range set {
		l.send(set[i : i+1])
		if got := half.do("PING"); got != "+PONG\r\n" { // so that most bytes are taken by themselves
			t.Fatal(got)
		}
	}
	l.expect("+OK\r\n")
	half.send(set[:9])
	half.ended() // is what must not stand still
	if got := l.do("GET", "a"); got != bulk("1", true) {
		t.Fatalf("after a rest: %q", got)
	}
}
