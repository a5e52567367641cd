package resp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/actors/shard"
	"kvstore/components/authn"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/frontend"
	"kvstore/services/resp"
)

// TestConversations: every command, byte for byte. A line > is sent, those that follow are the reply.
func TestConversations(t *testing.T) {
	r := newRig(t, rigConfig{RESP: resp.Config{Databases: []string{"default", "second"}}})
	_, err := r.Dir.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "second", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV})
	must(t, err)
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			must(t, err)
			l := dial(t, r.Addr)
			asked := ""
			for i, s := range strings.Split(string(text), "\n") {
				switch {
				case s == "" || s[0] == '#':
				case strings.HasPrefix(s, "> "):
					asked = s[2:]
					l.send(asked + "\r\n")
				case strings.HasPrefix(asked, "TTL ") && s[0] == ':': // some of the time may have passed
					var got, want int
					if _, err := fmt.Sscanf(l.reply()+s, ":%d\r\n:%d", &got, &want); err != nil || got > want || got < want-20 || (got < 0) != (want < 0) {
						t.Fatalf("%s:%d: came %d, %v; want %s", file, i+1, got, err, s)
					}
				case !t.Failed():
					got := make([]byte, len(s)+2)
					if _, err := io.ReadFull(l.in, got); err != nil || string(got) != s+"\r\n" {
						t.Fatalf("%s:%d: came %q, %v; want %q", file, i+1, got, err, s)
					}
				}
			}
		})
	}
}

// TestBadProtocol: what is no request is told what is wrong with it, in Redis's words, and the connection ends.
func TestBadProtocol(t *testing.T) {
	r := newRig(t, rigConfig{})
	for _, tc := range []struct{ sent, want string }{
		{"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
		{"*1\r\n$600000000\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
		{"*1\r\n:5\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"},
		{"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
		{"*70000\r\n", "-ERR Protocol error: invalid multibulk length\r\n"},
		{"*1\r\n$x\r\n", "-ERR Protocol error: invalid bulk length\r\n"},
		{"*1" + strings.Repeat("1", 70_000), "-ERR Protocol error: too big mbulk count string\r\n"},
		{"*1\r\n$1" + strings.Repeat("1", 70_000), "-ERR Protocol error: too big bulk count string\r\n"},
		{strings.Repeat("x", 70_000), "-ERR Protocol error: too big inline request\r\n"},
		{"set a \"b\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"},
		{"set a \"b\"c\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"},
		// What came before is answered first.
		{"PING\r\n*0\r\n\r\n*-1\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4x\r\n", "+PONG\r\n+PONG\r\n-ERR Protocol error: invalid bulk length\r\n"},
	} {
		l := dial(t, r.Addr)
		l.send(tc.sent)
		l.expect(tc.want)
		l.ended()
	}
}

// TestWordsOfALine: requests that are lines.
func TestWordsOfALine(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := dial(t, r.Addr)
	l.send("SET 'a b' \"x\\x41\\n\\\"\"\r\n  GET   'a b'\nECHO 'it\\'s'\r\n")
	l.expect("+OK\r\n$4\r\nxA\n\"\r\n$4\r\nit's\r\n")
}

// TestRequestsInPieces: wherever a request is cut, it is understood.
func TestRequestsInPieces(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := dial(t, r.Addr)
	all := encode("SET", "key", strings.Repeat("v", 300)) + "PING\r\n" + encode("MSET", "a", "1", "b", "", "key", "2") + encode("MGET", "a", "b", "key", "none")
	want := "+OK\r\n+PONG\r\n+OK\r\n*4\r\n$1\r\n1\r\n$0\r\n\r\n$1\r\n2\r\n$-1\r\n"
	for at := range len(all) {
		l.send(all[:at])
		l.send(all[at:])
		l.expect(want)
	}
	for i := range len(all) {
		l.send(all[i : i+1])
	}
	l.expect(want)
}

// TestOrder: replies of a pipeline are in order, and each sees what those before it wrote, whatever shards they are on.
func TestOrder(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := dial(t, r.Addr)
	rng := rand.New(rand.NewPCG(1, 2))
	model := map[string]string{}
	long := strings.Repeat("x", 3000) // lies apart
	for range 60 {
		var sent, want strings.Builder
		for range 1 + rng.IntN(100) {
			k := fmt.Sprintf("order:%d", rng.IntN(12))
			v, there := model[k]
			switch rng.IntN(7) {
			case 0, 1:
				v = fmt.Sprint(rng.IntN(1000))
				if rng.IntN(4) == 0 {
					v += long
				}
				model[k] = v
				sent.WriteString(encode("SET", k, v))
				want.WriteString("+OK\r\n")
			case 2, 3:
				sent.WriteString(encode("GET", k))
				want.WriteString(bulk(v, there))
			case 4:
				delete(model, k)
				sent.WriteString(encode("DEL", k))
				fmt.Fprintf(&want, ":%d\r\n", count(there))
			case 5:
				model[k] += "y"
				sent.WriteString(encode("APPEND", k, "y"))
				fmt.Fprintf(&want, ":%d\r\n", len(model[k]))
			case 6:
				model[k] = "z"
				sent.WriteString(encode("GETSET", k, "z"))
				want.WriteString(bulk(v, there))
			}
		}
		l.send(sent.String())
		l.expect(want.String())
	}
}

func bulk(v string, there bool) string {
	if !there {
		return "$-1\r\n"
	}
	return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestLongPipeline: a pipeline of many thousand requests in one piece needs no reader meanwhile but TCP's buffers.
func TestLongPipeline(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := dial(t, r.Addr)
	const n = 20_000
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		var b strings.Builder
		for i := range n {
			b.WriteString(encode("INCR", fmt.Sprintf("n:%d", i%7)))
		}
		_, _ = io.WriteString(l.conn, b.String())
	}()
	for i := range n {
		if got, want := l.reply(), fmt.Sprintf(":%d\r\n", i/7+1); got != want {
			t.Fatalf("reply %d is %q, want %q", i, got, want)
		}
	}
	<-sent
}

// TestIncrementsAreAtomic: of many clients at once, with commands that are done in the shard, by reading and writing, and in transactions.
func TestIncrementsAreAtomic(t *testing.T) {
	r := newRig(t, rigConfig{})
	const clients, each = 8, 25
	dial(t, r.Addr).do("SET", "{c}long", strings.Repeat("x", 2000))
	seen := make([]map[string]bool, clients)
	var all sync.WaitGroup
	for c := range clients {
		l := dial(t, r.Addr)
		seen[c] = map[string]bool{}
		all.Go(func() {
			for range each {
				l.send(encode("INCR", "{c}n") + encode("APPEND", "{c}s", "ab") + encode("APPEND", "{c}long", "z") + encode("MULTI") +
					encode("INCR", "{c}m") + encode("GET", "{c}m") + encode("EXEC") + encode("GETSET", "{c}token", fmt.Sprint(c, "/", len(seen[c]))))
				for i := range 8 {
					got := l.reply()
					switch {
					case got[0] == '-':
						t.Errorf("reply %d: %q", i, got)
						return
					case i == 6: // the sum and what is read after it
						var sum, n, value int
						if _, err := fmt.Sscanf(got, "*2\r\n:%d\r\n$%d\r\n%d\r\n", &sum, &n, &value); err != nil || sum != value {
							t.Errorf("EXEC answered %q", got)
							return
						}
					case i == 7:
						seen[c][got] = true
					}
				}
			}
		})
	}
	all.Wait()
	l := dial(t, r.Addr)
	const n = clients * each
	for _, tc := range []struct{ cmd, key, want string }{
		{"GET", "{c}n", bulk(fmt.Sprint(n), true)}, {"GET", "{c}m", bulk(fmt.Sprint(n), true)},
		{"STRLEN", "{c}s", fmt.Sprintf(":%d\r\n", 2*n)}, {"STRLEN", "{c}long", fmt.Sprintf(":%d\r\n", 2000+n)},
	} {
		if got := l.do(tc.cmd, tc.key); got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.cmd, tc.key, got, tc.want)
		}
	}
	olds := map[string]bool{l.do("GET", "{c}token"): true}
	for _, s := range seen {
		for v := range s {
			if olds[v] {
				t.Errorf("two GETSETs answered %q", v)
			}
			olds[v] = true
		}
	}
	if len(olds) != n+1 {
		t.Errorf("%d values were handed out, want %d", len(olds), n+1)
	}
}

// TestLongValues: values that lie apart, of all lengths, through every command that reads or writes them whole.
func TestLongValues(t *testing.T) {
	r := newRig(t, rigConfig{Front: frontend.Config{MaxValueBytes: 16 << 20}})
	l := dial(t, r.Addr)
	rng := rand.NewChaCha8([32]byte{3, 4})
	for _, n := range []int{1024, 1025, 64 << 10, 1 << 20, 1<<20 + 1, 3<<20 + 17} {
		v := make([]byte, n)
		_, _ = rng.Read(v) // never fails
		value := string(v)
		ask := func(want string, args ...string) {
			t.Helper()
			if got := l.do(args...); got != want {
				t.Fatalf("%s with %d bytes: %.60q (%d bytes), want %.60q (%d bytes)", args[0], n, got, len(got), want, len(want))
			}
		}
		alive := func() {
			t.Helper()
			if got := l.do("TTL", "{v}k"); got > ":1000\r\n" && got < ":900\r\n" || len(got) < 6 {
				t.Fatalf("TTL: %q", got)
			}
		}
		ask("+OK\r\n", "SET", "{v}k", value, "EX", "1000")
		ask(bulk(value, true), "GET", "{v}k")
		ask(fmt.Sprintf(":%d\r\n", n), "STRLEN", "{v}k")
		ask("*2\r\n"+bulk(value, true)+"$-1\r\n", "MGET", "{v}k", "{v}none")
		alive()
		ask("$-1\r\n", "SET", "{v}k", value, "NX")
		ask("-ERR syntax error\r\n", "SET", "{v}k", value, "EX")
		ask("+OK\r\n", "SET", "{v}k", value, "KEEPTTL")
		alive()
		ask(":1\r\n", "PERSIST", "{v}k")
		ask(bulk(value, true), "GET", "{v}k")
		if n <= 4<<20 {
			ask(fmt.Sprintf(":%d\r\n", n+1), "APPEND", "{v}k", "!")
			ask(bulk(value+"!", true), "GETSET", "{v}k", value)
			ask("+OK\r\n", "MULTI")
			ask("+QUEUED\r\n", "SET", "{v}k2", value)
			ask("+QUEUED\r\n", "GET", "{v}k")
			ask("*2\r\n+OK\r\n"+bulk(value, true), "EXEC")
			ask(bulk(value, true), "GETDEL", "{v}k2")
		}
	}
	// Too long, and nothing is lost of what follows.
	l.send("*3\r\n$3\r\nSET\r\n$4\r\nlong\r\n$20000000\r\n")
	for range 20 {
		l.send(strings.Repeat("x", 1_000_000))
	}
	l.send("\r\n" + encode("EXISTS", "long") + encode("MSET", "a", strings.Repeat("y", 20<<20), "b", "1") + encode("EXISTS", "a", "b"))
	l.expect("-ERR TOO_LARGE value has 20000000 bytes; at most 16777216 are allowed\r\n:0\r\n")
	if got := l.reply(); !strings.HasPrefix(got, "-ERR TOO_LARGE request has ") {
		t.Errorf("a request of 20 MiB: %q", got)
	}
	l.expect(":0\r\n")
}

// TestBuffersAreBounded: many large requests at once take no more than they may together; who finds no room is told, and goes on.
func TestBuffersAreBounded(t *testing.T) {
	r := newRig(t, rigConfig{RESP: resp.Config{BufferBytes: 3 << 20}})
	var held []*line
	for range 2 {
		l := dial(t, r.Addr)
		l.send("*3\r\n$6\r\nAPPEND\r\n$1\r\nk\r\n$1000000\r\n" + strings.Repeat("x", 900_000))
		held = append(held, l)
	}
	l := dial(t, r.Addr)
	for deadline := time.Now().Add(patience); ; { // until what they sent has come
		var n int
		_, text, _ := strings.Cut(l.do("INFO", "clients"), "request_buffer_bytes:")
		if _, err := fmt.Sscan(text, &n); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d bytes are held, %v", n, err)
		}
		if n > 1_800_000 {
			break
		}
	}
	value := strings.Repeat("y", 2_500_000)
	if got := l.do("GETSET", "other", value); !strings.HasPrefix(got, "-TRYAGAIN the request ") {
		t.Fatalf("more than there is room for: %.100q", got)
	}
	l.send("PING\r\n")
	l.expect("+PONG\r\n")
	for _, h := range held {
		h.send(strings.Repeat("x", 100_000) + "\r\n")
		if got := h.reply(); got[0] != ':' {
			t.Fatal(got)
		}
	}
	if got := l.do("GETSET", "other", value); got[0] != '$' {
		t.Errorf("once there is room again: %.100q", got)
	}
}

// TestHTTPIsNotServed: a page in a browser can send HTTP to a door on its machine; what its body holds is not executed.
func TestHTTPIsNotServed(t *testing.T) {
	refused := make(chan string, 2)
	r := newRig(t, rigConfig{RESP: resp.Config{Refused: func(_, why string) { refused <- why }}})
	for _, method := range []string{"POST", "PUT"} {
		l := dial(t, r.Addr)
		l.send(method + " / HTTP/1.1\r\nhost: 127.0.0.1\r\nContent-Length: 17\r\n\r\nSET stolen 1\r\n\r\n")
		got, _ := io.ReadAll(l.in) // it may end by a reset: not all was read
		if bytes.Contains(got, []byte("+OK")) {
			t.Errorf("%s: %q", method, got)
		}
		if why := <-refused; !strings.Contains(why, "HTTP") {
			t.Errorf("%s: refused because %q", method, why)
		}
	}
	l := dial(t, r.Addr)
	l.send("EXISTS stolen\r\n")
	l.expect(":0\r\n")
}

// TestSlowOnes: who stops in the middle of a request, does not read his replies, or does not say who he is, is closed, and nothing of him is left; who
// rests between requests is not.
func TestSlowOnes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	entry, token := newToken(t, "app", "default=write")
	must(t, os.WriteFile(file, []byte(entry), 0o600))
	tokens, err := authn.OpenTokens(file)
	must(t, err)
	var mu sync.Mutex
	var refused []string
	r := newRig(t, rigConfig{Front: frontend.Config{Access: tokens}, RESP: resp.Config{StallTimeout: 2 * time.Second, Refused: func(_, why string) {
		mu.Lock()
		defer mu.Unlock()
		refused = append(refused, why)
	}}})
	before := runtime.NumGoroutine()
	resting := dial(t, r.Addr)
	resting.send(encode("AUTH", token))
	resting.expect("+OK\r\n")
	stranger := dial(t, r.Addr)
	half := dial(t, r.Addr)
	half.send(encode("AUTH", token))
	half.expect("+OK\r\n")
	resting.send(encode("SET", "big", strings.Repeat("x", 1<<20)))
	resting.expect("+OK\r\n")
	half.send("*2\r\n$3\r\nGET\r\n$5\r\nab")
	value := dial(t, r.Addr)
	value.send(encode("AUTH", token) + "*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$5000000\r\nabc")
	value.expect("+OK\r\n")
	deaf := dial(t, r.Addr)
	deaf.send(encode("AUTH", token))
	deaf.expect("+OK\r\n")
	go func() { // its replies fill every buffer on the way
		request := []byte(encode("GET", "big"))
		for {
			if _, err := deaf.conn.Write(request); err != nil {
				return
			}
		}
	}()
	stranger.ended()
	half.ended()
	if _, err := io.Copy(io.Discard, value.in); err != nil {
		t.Logf("the one who stopped in a value: %v", err)
	}
	deadline := time.Now().Add(patience)
	for {
		mu.Lock()
		n := len(refused)
		mu.Unlock()
		if n >= 4 || time.Now().After(deadline) {
			break
		}
		runtime.Gosched()
	}
	resting.send("PING\r\n")
	resting.expect("+PONG\r\n")
	mu.Lock()
	if len(refused) != 4 || !strings.Contains(refused[0], "nothing moved for 2s") {
		t.Errorf("refused %q, want 4", refused)
	}
	mu.Unlock()
	deaf.conn.Close()
	for runtime.NumGoroutine() > before+2 && time.Now().Before(deadline) { // resting, and the tester's own
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before+2 {
		t.Errorf("%d goroutines, there were %d", n, before)
	}
}

// TestTooManyConnections: one more than may be is told so.
func TestTooManyConnections(t *testing.T) {
	r := newRig(t, rigConfig{RESP: resp.Config{MaxConns: 2}})
	a, b := dial(t, r.Addr), dial(t, r.Addr)
	for _, l := range []*line{a, b} {
		l.send("PING\r\n")
		l.expect("+PONG\r\n")
	}
	c := dial(t, r.Addr)
	c.expect("-ERR max number of clients reached\r\n")
	c.ended()
	a.send("QUIT\r\n")
	a.expect("+OK\r\n")
	a.ended()
	deadline := time.Now().Add(patience)
	for { // the place is free soon
		d := dial(t, r.Addr)
		d.send("PING\r\n")
		if got, _ := d.in.ReadString('\n'); got == "+PONG\r\n" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of one who left stays taken")
		}
	}
}

func newToken(t testing.TB, name, grant string) (entry, token string) {
	t.Helper()
	token = authn.NewToken()
	return fmt.Sprintf("%s %s %s\n", name, authn.HashOf(token), grant), token
}

// TestRights: nobody does anything before AUTH, a user is a keyspace, and a token that is revoked ends at the next request.
func TestRights(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	write, writer := newToken(t, "writer", "default=write")
	read, reader := newToken(t, "reader", "default=read")
	other, elsewhere := newToken(t, "elsewhere", "tenant=write")
	must(t, os.WriteFile(file, []byte(write+read+other), 0o600))
	tokens, err := authn.OpenTokens(file)
	must(t, err)
	r := newRig(t, rigConfig{Front: frontend.Config{Access: tokens}})
	_, err = r.Dir.CreateKeyspace(t.Context(), &kvv1.Keyspace{Name: "tenant", Shards: 1})
	must(t, err)
	_, err = r.Dir.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "tenant", Name: "default", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV})
	must(t, err)
	const noAuth, wrong = "-NOAUTH Authentication required.\r\n", "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
	l := dial(t, r.Addr)
	for _, args := range [][]string{{"GET", "a"}, {"PING"}, {"INFO"}, {"MULTI"}, {"COMMAND"}, {"nonsense"}, {"CLIENT", "ID"}, {"SELECT", "0"}} {
		if got := l.do(args...); got != noAuth {
			t.Errorf("%v without a token: %q", args, got)
		}
	}
	if got := l.do("HELLO", "3"); !strings.HasPrefix(got, "-NOAUTH HELLO must be called with the client already authenticated") {
		t.Errorf("HELLO without a token: %q", got)
	}
	for _, args := range [][]string{
		{"AUTH", "wrong"}, {"AUTH", "default", "wrong"}, {"AUTH", "tenant", writer}, {"AUTH", "nowhere", writer}, {"AUTH", elsewhere},
		{"HELLO", "3", "AUTH", "default", "wrong"},
	} {
		if got := l.do(args...); got != wrong {
			t.Errorf("%v: %q", args[:len(args)-1], got)
		}
	}
	if got := l.do("GET", "a"); got != noAuth {
		t.Errorf("GET after refused tokens: %q", got)
	}
	// A stranger may not send much.
	for _, sent := range []string{"*11\r\n", "*1\r\n$20000\r\n"} {
		s := dial(t, r.Addr)
		s.send(sent)
		if got := s.reply(); !strings.HasPrefix(got, "-ERR Protocol error: unauthenticated ") {
			t.Errorf("%q of a stranger: %q", sent, got)
		}
		s.ended()
	}
	if got := l.do("AUTH", writer); got != "+OK\r\n" {
		t.Fatal(got)
	}
	l.do("SET", "a", "1")
	if got := dial(t, r.Addr).do("HELLO", "2", "AUTH", "default", reader); got[0] != '*' {
		t.Errorf("HELLO with a token: %q", got)
	}
	if got := l.do("AUTH", "default", reader); got != "+OK\r\n" {
		t.Fatal(got)
	}
	for _, args := range [][]string{{"SET", "a", "2"}, {"INCR", "a"}, {"DEL", "a"}, {"GETDEL", "a"}, {"EXPIRE", "a", "1"}, {"SET", "big", strings.Repeat("x", 2<<20)}} {
		if got := l.do(args...); !strings.HasPrefix(got, "-NOPERM ") {
			t.Errorf("%s with the role read: %q", args[0], got)
		}
	}
	l.do("MULTI")
	l.do("SET", "a", "2")
	if got := l.do("EXEC"); !strings.HasPrefix(got, "-NOPERM ") {
		t.Errorf("EXEC with the role read: %q", got)
	}
	if got := l.do("GET", "a"); got != bulk("1", true) {
		t.Errorf("GET: %q", got)
	}
	if got := l.do("AUTH", "tenant", elsewhere) + l.do("GET", "a") + l.do("SET", "a", "3"); got != "+OK\r\n$-1\r\n+OK\r\n" {
		t.Errorf("in another keyspace: %q", got)
	}
	must(t, os.WriteFile(file, []byte(write+read), 0o600))
	_, err = tokens.Reload()
	must(t, err)
	if got := l.do("GET", "a") + l.do("PING"); got != noAuth+noAuth {
		t.Errorf("with a token that was revoked: %q", got)
	}
	if got := l.do("AUTH", reader) + l.do("GET", "a"); got != "+OK\r\n"+bulk("1", true) {
		t.Errorf("with another token: %q", got)
	}
}

// slow holds commands back until they are let go, and refuses with what it is told to.
type slow struct {
	frontend.Shards
	hold   atomic.Pointer[chan struct{}]
	refuse atomic.Pointer[kverr.Error]
}

func (s *slow) Do(ctx context.Context, id string, cmds ...*shard.Command) {
	if err := s.refuse.Load(); err != nil {
		for _, c := range cmds {
			c.Release(err)
		}
		return
	}
	if hold := s.hold.Load(); hold != nil {
		held := append([]*shard.Command(nil), cmds...)
		go func() {
			<-*hold
			s.Shards.Do(ctx, id, held...)
		}()
		return
	}
	s.Shards.Do(ctx, id, cmds...)
}

// TestLate: an outcome that does not come in time is told to be unknown; the connection goes on, and what comes later disturbs nobody.
func TestLate(t *testing.T) {
	s := &slow{}
	r := newRig(t, rigConfig{RESP: resp.Config{OpTimeout: time.Second}, Wrap: func(in frontend.Shards) frontend.Shards {
		s.Shards = in
		return s
	}})
	l := dial(t, r.Addr)
	if got := l.do("SET", "a", "1"); got != "+OK\r\n" {
		t.Fatal(got)
	}
	let := make(chan struct{})
	s.hold.Store(&let)
	l.send(encode("GET", "a") + encode("SET", "b", "2") + encode("MGET", "a", "c") + encode("PING"))
	l.expect("$1\r\n1\r\n")
	if got := l.reply(); !strings.HasPrefix(got, "-UNKNOWN the outcome is not known: ") {
		t.Errorf("a SET that does not end: %q", got)
	}
	l.expect("*2\r\n$1\r\n1\r\n$-1\r\n+PONG\r\n")
	s.hold.Store(nil)
	for i := range 50 {
		if got := l.do("SET", "a", fmt.Sprint(i)) + l.do("GET", "a"); got != "+OK\r\n"+bulk(fmt.Sprint(i), true) {
			t.Fatal(got)
		}
	}
	close(let)
	deadline := time.Now().Add(patience)
	for l.do("GET", "b") != bulk("2", true) {
		if time.Now().After(deadline) {
			t.Fatal("the SET that was let go is not seen")
		}
	}
}

// TestFaults: what goes wrong in a shard, in Redis's words.
func TestFaults(t *testing.T) {
	s := &slow{}
	r := newRig(t, rigConfig{Wrap: func(in frontend.Shards) frontend.Shards {
		s.Shards = in
		return s
	}})
	l := dial(t, r.Addr)
	for _, tc := range []struct {
		err  *kverr.Error
		want string
	}{
		{&kverr.Error{Kind: kverr.Exhausted, Message: "m"}, "-OOM command not allowed when used memory > 'maxmemory'.\r\n"},
		{&kverr.Error{Kind: kverr.NoSpace, Message: "m"}, "-MISCONF m\r\n"},
		{&kverr.Error{Kind: kverr.Unavailable, Message: "m"}, "-TRYAGAIN m\r\n"},
		{&kverr.Error{Kind: kverr.OutcomeUnknown, Message: "m\r\nn"}, "-UNKNOWN the outcome is not known: m  n\r\n"},
		{&kverr.Error{Kind: kverr.DataLoss, Message: "m"}, "-ERR DATA_LOSS m\r\n"},
	} {
		s.refuse.Store(tc.err)
		for _, args := range [][]string{{"SET", "a", "1"}, {"INCR", "a"}, {"MSET", "a", "1", "b", "2"}, {"GETSET", "a", "1"}, {"DEL", "a", "b"}} {
			if got := l.do(args...); got != tc.want {
				t.Errorf("%v: %s answers %q, want %q", tc.err.Kind, args[0], got, tc.want)
			}
		}
	}
	s.refuse.Store(nil)
	for _, k := range []string{"", strings.Repeat("k", 1025), "\xff"} {
		if got := l.do("GET", k); !strings.HasPrefix(got, "-ERR INVALID_ARGUMENT key ") && !strings.HasPrefix(got, "-ERR TOO_LARGE key ") {
			t.Errorf("GET %.10q: %q", k, got)
		}
	}
}

// TestStop: what was taken is answered, and then the connections end.
func TestStop(t *testing.T) {
	s := &slow{}
	r := newRig(t, rigConfig{Wrap: func(in frontend.Shards) frontend.Shards {
		s.Shards = in
		return s
	}})
	idle, busy := dial(t, r.Addr), dial(t, r.Addr)
	idle.do("PING")
	let := make(chan struct{})
	s.hold.Store(&let)
	arrived := make(chan struct{})
	busy.send(encode("PING"))
	busy.expect("+PONG\r\n")
	busy.send(encode("SET", "a", "1"))
	go func() {
		defer close(arrived)
		idle.ended()
	}()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.Server.Stop(ctx)
	}()
	<-arrived
	close(let)
	got, _ := io.ReadAll(busy.in)
	if s := string(got); s != "+OK\r\n" && s != "" { // it was taken, or it was not
		t.Errorf("the one under way: %q", s)
	}
	<-stopped
	if c, err := net.Dial("tcp", r.Addr); err == nil {
		c.Close()
		t.Error("it takes connections after Stop")
	}
}

// TestScan: every key that is there all the time is told, by steps of any size, on any connection, once.
func TestScan(t *testing.T) {
	r := newRig(t, rigConfig{})
	lines := []*line{dial(t, r.Addr), dial(t, r.Addr)}
	var set strings.Builder
	const n = 500
	for i := range n {
		set.WriteString(encode("SET", fmt.Sprintf("scan:%03d", i), "v"))
	}
	lines[0].send(set.String() + encode("SET", "else", "x"))
	lines[0].expect(strings.Repeat("+OK\r\n", n+1))
	for _, step := range []string{"1", "7", "100", "10000000"} {
		seen := map[string]int{}
		cursor := "0"
		for turn := 0; ; turn++ {
			reply := strings.Split(lines[turn%2].do("SCAN", cursor, "MATCH", "scan:[0-4]*", "COUNT", step), "\r\n")
			for i := 5; i < len(reply); i += 2 {
				seen[reply[i]]++
			}
			if cursor = reply[2]; cursor == "0" {
				break
			}
		}
		for i := range n {
			if k := fmt.Sprintf("scan:%03d", i); seen[k] != 1 {
				t.Fatalf("COUNT %s told %s %d times", step, k, seen[k])
			}
		}
		if len(seen) != n {
			t.Errorf("COUNT %s told %d keys, want %d", step, len(seen), n)
		}
	}
	for _, tc := range []struct{ want, reply string }{
		{"-ERR invalid cursor\r\n", lines[0].do("SCAN", "x")},
		{"-ERR invalid cursor\r\n", lines[0].do("SCAN", "12345")},
		{"-ERR syntax error\r\n", lines[0].do("SCAN", "0", "COUNT", "0")},
		{"*2\r\n$1\r\n0\r\n*0\r\n", lines[0].do("SCAN", "0", "TYPE", "list", "COUNT", "1000")},
		{"*2\r\n$1\r\n0\r\n*1\r\n$4\r\nelse\r\n", lines[0].do("SCAN", "0", "MATCH", "e?s[a-f]", "COUNT", "1000")},
	} {
		if tc.reply != tc.want {
			t.Errorf("%q, want %q", tc.reply, tc.want)
		}
	}
}

// TestLMCache replays what LMCache's three Redis clients send, byte for byte, and what they need to come back.
func TestLMCache(t *testing.T) {
	r := newRig(t, rigConfig{Front: frontend.Config{MaxValueBytes: 128 << 20}})
	key := "meta-llama/Llama-3.1-8B@1@0@" + strings.Repeat("0123456789abcdef", 15) + "@bfloat16@tag%value" // some 300 bytes
	chunk := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n'}, 32<<20/5)
	t.Run("resp", func(t *testing.T) { // the C++ adapter: RESP2, one key a command, no HELLO, replies of exactly these bytes
		l := dial(t, r.Addr)
		head := fmt.Sprintf("*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n", len(key), key, len(chunk))
		one := func(cmd string) {
			l.send(fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(cmd), cmd, len(key), key))
		}
		one("EXISTS")
		l.expect(":0\r\n")
		one("GET")
		l.expect("$-1\r\n")
		l.send(head)
		_, err := l.conn.Write(chunk)
		must(t, err)
		l.send("\r\n")
		l.expect("+OK\r\n")
		one("EXISTS")
		l.expect(":1\r\n")
		one("GET")
		l.expect(fmt.Sprintf("$%d\r\n", len(chunk)))
		got := make([]byte, len(chunk))
		_, err = io.ReadFull(l.in, got)
		must(t, err)
		if !bytes.Equal(got, chunk) {
			t.Error("the chunk came back another")
		}
		l.expect("\r\n")
		one("DEL")
		l.expect(":1\r\n")
		one("DEL")
		l.expect(":0\r\n")
	})
	t.Run("redis-py", func(t *testing.T) { // HELLO 3 is required; SETINFO and MAINT_NOTIFICATIONS may fail; bytes before metadata
		l := dial(t, r.Addr)
		l.send("*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")
		hello := l.reply()
		if !strings.HasPrefix(hello, "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n") || !strings.Contains(hello, "$5\r\nproto\r\n:3\r\n") {
			t.Errorf("HELLO 3: %q", hello)
		}
		l.send("*4\r\n$6\r\nCLIENT\r\n$19\r\nMAINT_NOTIFICATIONS\r\n$2\r\nON\r\n$20\r\nmoving-endpoint-type\r\n")
		if got := l.reply(); got[0] != '-' {
			t.Errorf("MAINT_NOTIFICATIONS: %q", got)
		}
		l.send("*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$8\r\nredis-py\r\n*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$7\r\nLIB-VER\r\n$5\r\n8.1.0\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n")
		l.expect("+OK\r\n+OK\r\n+OK\r\n")
		meta := strings.Repeat("m", 28)
		l.send(encode("SET", key+"kv_bytes", string(chunk[:100_000])) + encode("SET", key+"metadata", meta))
		l.expect("+OK\r\n+OK\r\n")
		l.send(encode("EXISTS", key+"metadata") + encode("GET", key+"metadata") + encode("GET", key+"kv_bytes") + encode("GET", "nokv_bytes"))
		l.expect(":1\r\n" + bulk(meta, true) + bulk(string(chunk[:100_000]), true) + "_\r\n")
		l.send(encode("DEL", key+"metadata", key+"kv_bytes"))
		l.expect(":2\r\n")
	})
	t.Run("glide", func(t *testing.T) {
		l := dial(t, r.Addr)
		if got := l.do("HELLO", "3"); got[0] != '%' {
			t.Error(got)
		}
		if got := l.do("INFO", "REPLICATION"); !strings.HasPrefix(got, "=") || !strings.Contains(got, "role:master\r\n") {
			t.Errorf("INFO REPLICATION: %q", got)
		}
		if got := l.do("PING") + l.do("SET", key, "v", "EX", "60") + l.do("GET", key); got != "+PONG\r\n+OK\r\n"+bulk("v", true) {
			t.Error(got)
		}
		if got := l.do("CLUSTER", "SLOTS"); got != "-ERR This instance has cluster support disabled\r\n" {
			t.Error(got)
		}
	})
}
