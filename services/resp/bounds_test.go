package resp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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

// newSlow is a server on slow shards.
func newSlow(t *testing.T, cfg rigConfig) (*rig, *slow) {
	t.Helper()
	s := &slow{}
	cfg.Wrap = func(in frontend.Shards) frontend.Shards {
		s.Shards = in
		return s
	}
	return newRig(t, cfg), s
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

func (s *slow) Read(ctx context.Context, id string, queries ...*shard.Query) {
	if err := s.refuse.Load(); err != nil {
		for _, q := range queries {
			q.Done(q, err)
		}
		return
	}
	s.Shards.Read(ctx, id, queries...)
}

func (s *slow) ReadValue(ctx context.Context, id string, ref shard.Ref, off int64, p []byte) error {
	if err := s.refuse.Load(); err != nil {
		return err
	}
	return s.Shards.ReadValue(ctx, id, ref, off, p)
}

// TestLate: an outcome that does not come in time is told to be unknown; the connection goes on, and what comes later disturbs nobody.
func TestLate(t *testing.T) {
	r, s := newSlow(t, rigConfig{RESP: resp.Config{OpTimeout: time.Second}})
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
	r, s := newSlow(t, rigConfig{})
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

// TestMissesForErrors: in a namespace of kind cache, and in no other, a read that fails is a miss; a write that fails is never a success, and what the
// caller does wrong is told.
func TestMissesForErrors(t *testing.T) {
	r, s := newSlow(t, rigConfig{Front: frontend.Config{InlineLimit: 1 << 10}, RESP: resp.Config{Databases: []string{"default", "kvcache"}}})
	_, err := r.Dir.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "kvcache", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_CACHE})
	must(t, err)
	l := dial(t, r.Addr)
	reads := [][]string{{"GET", "a"}, {"MGET", "a", "b"}, {"EXISTS", "a", "b"}, {"STRLEN", "a"}, {"TTL", "a"}, {"TYPE", "a"}}
	misses := []string{"$-1\r\n", "*2\r\n$-1\r\n$-1\r\n", ":0\r\n", ":0\r\n", ":-2\r\n", "+none\r\n"}
	missed := 0
	for _, db := range []string{"0", "1"} {
		if got := l.do("SELECT", db) + l.do("SET", "a", "1") + l.do("SET", "apart", strings.Repeat("v", 4<<10)) + l.do("GET", "a"); got != "+OK\r\n+OK\r\n+OK\r\n$1\r\n1\r\n" {
			t.Fatal(got)
		}
		for _, refused := range []*kverr.Error{
			{Kind: kverr.DataLoss, Message: "m"}, {Kind: kverr.Unavailable, Message: "m"}, {Kind: kverr.Exhausted, Message: "m"}, {Kind: kverr.DeadlineExceeded, Message: "m"},
		} {
			s.refuse.Store(refused)
			for i, args := range reads {
				got := l.do(args...)
				if isMiss := got == misses[i]; isMiss != (db == "1") || !isMiss && !strings.Contains(got, "-") {
					t.Errorf("database %s, %v: %v answers %q", db, refused.Kind, args, got)
				}
			}
			for _, args := range [][]string{{"SET", "a", "2"}, {"DEL", "a"}, {"INCR", "n"}, {"MSET", "a", "2"}} {
				if got := l.do(args...); got[0] != '-' {
					t.Errorf("database %s, %v: %v answers %q", db, refused.Kind, args, got)
				}
			}
			if db == "1" {
				missed += len(reads) + 1 // MGET's two
			}
		}
		s.refuse.Store(nil)
		if got := l.do("GET", "\xff"); got[0] != '-' {
			t.Errorf("database %s: a key that cannot be: %q", db, got)
		}
		if got := l.do("GET", "a") + l.do("STRLEN", "apart"); got != "$1\r\n1\r\n:4096\r\n" {
			t.Errorf("database %s: afterwards: %q", db, got)
		}
	}
	if got := l.do("INFO", "stats"); !strings.Contains(got, fmt.Sprintf("misses_for_errors:%d\r\n", missed+4)) { // EXISTS's two
		t.Errorf("%d misses, and INFO has %q", missed+4, got)
	}
}

// TestMissesForRates: a read of a namespace of kind cache that is over a rate is a miss, in its turn; a write is refused.
func TestMissesForRates(t *testing.T) {
	r := newRig(t, rigConfig{Front: frontend.Config{ClientRate: 10}, RESP: resp.Config{Databases: []string{"kvcache"}}})
	_, err := r.Dir.CreateNamespace(t.Context(), &kvv1.Namespace{Keyspace: "default", Name: "kvcache", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_CACHE})
	must(t, err)
	l := dial(t, r.Addr)
	l.do("SET", "a", "1")
	if got := l.do(append([]string{"MGET"}, slices.Repeat([]string{"a"}, 600)...)...); !strings.HasPrefix(got, "*600\r\n$1\r\n1\r\n") {
		t.Fatalf("%.100q", got)
	}
	var sent, want string
	const refused = "-TRYAGAIN this client may make 10 operations a second here\r\n"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"PING"}, "+PONG\r\n"}, {[]string{"GET", "a"}, "$-1\r\n"}, {[]string{"MGET", "a", "b"}, "*2\r\n$-1\r\n$-1\r\n"}, {[]string{"EXISTS", "a", "b"}, ":0\r\n"},
		{[]string{"STRLEN", "a"}, ":0\r\n"}, {[]string{"TTL", "a"}, ":-2\r\n"}, {[]string{"TYPE", "a"}, "+none\r\n"}, {[]string{"SET", "a", "2"}, refused}, {[]string{"DEL", "a"}, refused},
		{[]string{"GETDEL", "a"}, refused}, {[]string{"DBSIZE"}, refused},
	} {
		sent += encode(c.args...)
		want += c.want
	}
	l.send(sent)
	l.expect(want)
	if got := l.do("INFO", "stats"); !strings.Contains(got, "misses_for_errors:6\r\n") {
		t.Errorf("INFO has %q", got)
	}
}

// TestStop: what was taken is answered, and then the connections end.
func TestStop(t *testing.T) {
	r, s := newSlow(t, rigConfig{})
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

// TestRate: what is more than a client may is refused with TRYAGAIN, request by request; each key counts, and so does each request of a MULTI.
func TestRate(t *testing.T) {
	r := newRig(t, rigConfig{Front: frontend.Config{ClientRate: 10}})
	l := dial(t, r.Addr)
	mget := []string{"MGET"}
	for range 600 {
		mget = append(mget, "a")
	}
	if got := l.do(mget...); !strings.HasPrefix(got, "*600") {
		t.Fatalf("the first: %.100q", got)
	}
	for _, args := range [][]string{{"GET", "a"}, {"SET", "a", "1"}, {"INCR", "a"}, {"DBSIZE"}, {"SCAN", "0"}} {
		if got := l.do(args...); !strings.HasPrefix(got, "-TRYAGAIN this client may make 10 operations a second") {
			t.Errorf("%v: %.100q", args, got)
		}
	}
	if got := l.do("MULTI") + l.do("SET", "a", "1") + l.do("EXEC"); !strings.HasPrefix(got, "+OK\r\n+QUEUED\r\n") || !strings.Contains(got, "-TRYAGAIN") {
		t.Errorf("a transaction: %.100q", got)
	}
	if got := l.do("PING"); got != "+PONG\r\n" {
		t.Errorf("what is not on keys: %q", got)
	}
}

// TestRateOfMulti: EXEC counts the keys of its requests, as they count without MULTI, and WATCH counts its own.
func TestRateOfMulti(t *testing.T) {
	keys := slices.Repeat([]string{"a"}, 600)
	for name, requests := range map[string][][]string{
		"EXEC":  {{"MULTI"}, append([]string{"MGET"}, keys...), {"EXEC"}},
		"WATCH": {append([]string{"WATCH"}, keys...)},
	} {
		l := dial(t, newRig(t, rigConfig{Front: frontend.Config{ClientRate: 10}}).Addr)
		for _, args := range requests {
			if got := l.do(args...); got[0] == '-' {
				t.Fatalf("%s: %.100q", name, got)
			}
		}
		if got := l.do("GET", "a"); !strings.HasPrefix(got, "-TRYAGAIN this client may make 10 operations a second") {
			t.Errorf("after %s with a minute's worth of keys: %.100q", name, got)
		}
	}
}

// written counts the values that are written apart.
type written struct {
	frontend.Shards
	values atomic.Int64
}

func (w *written) WriteValue(ctx context.Context, id string, size int64, r io.Reader) (shard.Ref, error) {
	w.values.Add(1)
	return w.Shards.WriteValue(ctx, id, size, r)
}

// TestRateOfLongValues: a SET of a long value that is refused has written nothing, and one that is not counts once.
func TestRateOfLongValues(t *testing.T) {
	w := &written{}
	r := newRig(t, rigConfig{Front: frontend.Config{ClientRate: 2}, Wrap: func(in frontend.Shards) frontend.Shards {
		w.Shards = in
		return w
	}})
	l := dial(t, r.Addr)
	value := strings.Repeat("v", 1<<20+1)
	if got := l.do("SET", "a", value) + l.do("EXISTS", "a"); got != "+OK\r\n:1\r\n" {
		t.Errorf("a second's worth: %.100q", got)
	}
	l.do(append([]string{"EXISTS"}, slices.Repeat([]string{"a"}, 200)...)...)
	l.do(append([]string{"EXISTS"}, slices.Repeat([]string{"a"}, 200)...)...) // if the first came within half a second it was refused
	if got := l.do("SET", "a", value); !strings.HasPrefix(got, "-TRYAGAIN this client may make 2 operations a second") {
		t.Errorf("over the rate: %.100q", got)
	}
	if n := w.values.Load(); n != 1 {
		t.Errorf("%d values were written, want 1", n)
	}
	if got := l.do("PING"); got != "+PONG\r\n" {
		t.Error(got)
	}
}
