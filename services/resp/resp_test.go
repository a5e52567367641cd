package resp_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

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
