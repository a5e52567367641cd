package resp_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"kvstore/tests/testenv"
)

// What is below runs against a real redis-server, or with its clients: make redis.

// TestRedisSaysTheSame: generated commands, in pipelines of random length, get the replies that a redis-server gives, byte for byte, in both
// versions of the protocol. What DESIGN.md says to differ is not generated: SCAN's cursors and order, INFO, COMMAND, CLIENT but names, keys that are
// empty, MSET and EXEC over partitions (all keys share a tag). Times are far, and TTL may differ by seconds.
func TestRedisSaysTheSame(t *testing.T) {
	server := testenv.NewRedis(t)
	r := newRig(t, rigConfig{})
	for version := 2; version <= 3; version++ {
		t.Run(fmt.Sprint("RESP", version), func(t *testing.T) {
			ours, theirs := dial(t, r.Addr), dial(t, server.Addr)
			for _, l := range []*line{ours, theirs} {
				l.do("HELLO", fmt.Sprint(version))
			}
			theirs.do("FLUSHALL")
			g := &generator{Rand: rand.New(rand.NewPCG(uint64(version), 5)), tag: fmt.Sprintf("{%d}", version)}
			var past []string
			for n := 0; n < 10_000; {
				var sent strings.Builder
				var batch []string
				for range 1 + g.IntN(30) {
					c := g.command()
					sent.WriteString(encode(c...))
					batch = append(batch, fmt.Sprintf("%.100q", c))
				}
				n += len(batch)
				ours.send(sent.String())
				theirs.send(sent.String())
				for i, c := range batch {
					got, want := ours.reply(), theirs.reply()
					past = append(past, fmt.Sprintf("%s -> %.60q", c, want))
					if strings.HasPrefix(c, `["ttl"`) && got != want { // Redis rounds by its own clock, which is read at another time
						var a, b int
						if _, err := fmt.Sscanf(got+want, ":%d\r\n:%d\r\n", &a, &b); err == nil && a-b <= 20 && b-a <= 20 && a > 0 {
							continue
						}
					}
					if got != want {
						t.Fatalf("command %d of the pipeline\n%s\nanswers %.300q, Redis's is %.300q; before it:\n%s", i, c, got, want,
							strings.Join(past[max(0, len(past)-40):], "\n"))
					}
				}
			}
		})
	}
}

// generator makes commands: few keys, so that they meet, and mistakes among them.
type generator struct {
	*rand.Rand
	tag   string
	multi bool
}

func (g *generator) pick(words ...string) string { return words[g.IntN(len(words))] }

func (g *generator) key() string { return fmt.Sprintf("%skey:%d", g.tag, g.IntN(12)) }

func (g *generator) value() string {
	switch g.IntN(12) {
	case 0:
		return ""
	case 1:
		return strings.Repeat("long\r\n\x00", 300+g.IntN(300)) // lies apart
	case 2:
		return g.pick("9223372036854775807", "-9223372036854775808", "9223372036854775808", "007", " 1", "1 ", "+1", "-0", "-1", "0", "1e3")
	case 3, 4, 5, 6:
		return fmt.Sprint(g.IntN(2000) - 1000)
	}
	return g.pick("value", "Wert", "\xff\xfe", "a\r\nb")
}

func (g *generator) number() string {
	if g.IntN(8) == 0 {
		return g.pick("x", "", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "1.5", "+3", "03")
	}
	return fmt.Sprint(g.IntN(200) - 100)
}

// time is a number that is far from any moment of the test, or wrong.
func (g *generator) time(relative bool) string {
	switch g.IntN(10) {
	case 0:
		return g.pick("0", "-1", "x", "", "9223372036854775807", "-9223372036854775808")
	case 1:
		return "-5000"
	}
	if relative {
		return fmt.Sprint(1_000_000 + g.IntN(1_000_000))
	}
	return fmt.Sprint(2_000_000_000 + g.IntN(1_000_000_000))
}

// cased is a word in some letters.
func (g *generator) cased(w string) string {
	if g.IntN(2) == 0 {
		return strings.ToUpper(w)
	}
	return w
}

func (g *generator) command() []string {
	if g.IntN(12) == 0 {
		return g.transaction()
	}
	if g.IntN(60) == 0 { // a wrong number of arguments, or no command
		all := []string{g.cased(g.pick("get", "set", "mset", "del", "incr", "append", "expire", "ttl", "setex", "getset", "echo", "scan", "nosuch", "hgetall2", "select", "ping"))}
		for range g.IntN(5) {
			all = append(all, g.key())
		}
		if all[0] == "scan" || all[0] == "SCAN" || (all[0] == "set" || all[0] == "SET") && len(all) == 3 {
			all = all[:1]
		}
		return all
	}
	switch g.IntN(24) {
	case 0, 1, 2:
		return []string{g.cased("get"), g.key()}
	case 3, 4, 5:
		return g.set()
	case 6:
		return []string{g.cased("setnx"), g.key(), g.value()}
	case 7:
		return []string{g.pick("setex", "psetex"), g.key(), g.time(true), g.value()}
	case 8:
		return []string{"getset", g.key(), g.value()}
	case 9:
		return []string{"getdel", g.key()}
	case 10:
		return g.many(g.cased("mget"))
	case 11:
		all := []string{g.cased("mset")}
		for range 1 + g.IntN(4) {
			all = append(all, g.key(), g.value())
		}
		return all
	case 12:
		return g.many(g.pick("del", "unlink"))
	case 13:
		return g.many("exists")
	case 14:
		return []string{"strlen", g.key()}
	case 15:
		return []string{g.pick("incr", "decr"), g.key()}
	case 16:
		return []string{g.pick("incrby", "decrby"), g.key(), g.number()}
	case 17:
		return []string{"append", g.key(), g.value()}
	case 18, 19:
		all := []string{g.pick("expire", "pexpire"), g.key(), g.time(true)}
		if g.IntN(3) == 0 {
			all[0], all[2] = "expireat", g.time(false)
		}
		for g.IntN(3) == 0 {
			all = append(all, g.cased(g.pick("nx", "xx", "gt", "lt", "zz")))
		}
		return all
	case 20:
		return []string{"persist", g.key()}
	case 21:
		if g.multi { // its reply, among others, would have to be told from them
			return []string{"strlen", g.key()}
		}
		return []string{"ttl", g.key()}
	case 22:
		return []string{"type", g.key()}
	}
	switch g.IntN(6) {
	case 0:
		return []string{"ping"}
	case 1:
		return []string{"echo", g.value()}
	case 2:
		return []string{"expiretime", fmt.Sprintf("%sat", g.tag)}
	case 3:
		if g.multi { // not allowed here
			return []string{"ping"}
		}
		return []string{"select", g.pick("0", "x", "-1", "9999999999", "1000")}
	case 4:
		return []string{"client", "setname", g.pick("a", "a b", "name")}
	}
	return []string{"client", "getname"}
}

func (g *generator) many(name string) []string {
	all := []string{name}
	for range 1 + g.IntN(5) {
		all = append(all, g.key())
	}
	return all
}

func (g *generator) set() []string {
	all := []string{g.cased("set"), g.key(), g.value()}
	for g.IntN(3) == 0 {
		switch w := g.pick("nx", "xx", "get", "keepttl", "ex", "px", "exat", "pxat", "zz"); w {
		case "ex", "px":
			all = append(all, g.cased(w), g.time(true))
		case "exat":
			all = append(all, w, g.time(false))
		case "pxat":
			all = append(all, w, g.time(false)+"000")
		default:
			all = append(all, g.cased(w))
		}
	}
	return all
}

// transaction begins one, or ends one.
func (g *generator) transaction() []string {
	switch {
	case g.multi && g.IntN(3) > 0, !g.multi && g.IntN(8) == 0:
		g.multi = false
		return []string{g.pick("exec", "exec", "exec", "discard")}
	case g.IntN(4) == 0:
		return []string{"watch", g.key()}
	case g.IntN(4) == 0:
		return []string{"unwatch"}
	}
	g.multi = true
	return []string{"multi"}
}

// TestRedisClients: what people have. go-redis is in the module; the others are found on the machine (.ci/run installs them).
func TestRedisClients(t *testing.T) {
	testenv.NeedRedis(t)
	r := newRig(t, rigConfig{})
	host, port, _ := strings.Cut(r.Addr, ":")
	t.Run("go-redis", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := redis.NewClient(&redis.Options{Addr: r.Addr})
		defer c.Close()
		must(t, c.Set(ctx, "go:1", "v", time.Hour).Err())
		if v, err := c.Get(ctx, "go:1").Result(); v != "v" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		if _, err := c.Get(ctx, "go:none").Result(); err != redis.Nil { //nolint:errorlint // that is how it is told
			t.Errorf("none: %v", err)
		}
		if d, err := c.TTL(ctx, "go:1").Result(); d < 50*time.Minute || err != nil {
			t.Errorf("TTL %v, %v", d, err)
		}
		cmds, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Incr(ctx, "{go}n")
			p.Incr(ctx, "{go}n")
			return nil
		})
		if err != nil || cmds[1].(*redis.IntCmd).Val() != 2 {
			t.Errorf("%v, %v", cmds, err)
		}
		err = c.Watch(ctx, func(tx *redis.Tx) error {
			must(t, c.Set(ctx, "{go}n", 5, 0).Err()) // by another connection
			_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "{go}n", 6, 0).Err() })
			return err
		}, "{go}n")
		if err != redis.TxFailedErr { //nolint:errorlint // that is how it is told
			t.Errorf("a watched key that was written: %v", err)
		}
		found := 0
		for it := c.Scan(ctx, 0, "*go*", 1).Iterator(); it.Next(ctx); {
			found++
		}
		if found != 2 {
			t.Errorf("SCAN found %d", found)
		}
	})
	t.Run("redis-cli", func(t *testing.T) {
		for _, tc := range []struct{ args, want string }{
			{"set cli 1", "OK"}, {"-3 incr cli", "2"}, {"get none", ""}, {"--scan --pattern cl*", "cli"}, {"--raw nosuch", "ERR unknown command 'nosuch'"},
		} {
			out, _ := run(t, "redis-cli", append([]string{"-h", host, "-p", port}, strings.Fields(tc.args)...)...)
			if got := strings.TrimSpace(out); !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
				t.Errorf("redis-cli %s: %q, want %q", tc.args, got, tc.want)
			}
		}
	})
	t.Run("redis-benchmark", func(t *testing.T) {
		for _, p := range []string{"1", "16"} {
			out, err := run(t, "redis-benchmark", "-h", host, "-p", port, "-t", "ping,set,get,incr,mset", "-n", "2000", "-c", "16", "-P", p, "-r", "1000", "-d", "256", "-q")
			if err != nil || strings.Count(out, "requests per second") < 6 || strings.Contains(out, "Error from server") {
				t.Errorf("redis-benchmark: %v\n%s", err, out)
			}
		}
	})
	script := `
import redis, sys
c = redis.Redis(host=sys.argv[1], port=int(sys.argv[2]), **eval(sys.argv[3]))
assert c.ping() and c.set("py:1", b"\x00\xff", ex=100) and c.get("py:1") == b"\x00\xff" and 0 < c.ttl("py:1") <= 100
assert c.set("py:1", "x", nx=True) is None and c.get("py:none") is None and c.mget("py:1", "py:none") == [b"\x00\xff", None]
p = c.pipeline()
p.incr("{py}n").get("{py}n").set("{py}m", "1")
n, text, ok = p.execute()
assert int(text) == n and ok is True
with c.pipeline() as p:
    p.watch("{py}n")
    c.incr("{py}n")
    p.multi()
    p.set("{py}n", 100)
    try:
        p.execute()
        raise SystemExit("a watched key was written, and EXEC did not fail")
    except redis.WatchError:
        pass
try:
    c.execute_command("NOSUCH", "a")
    raise SystemExit("NOSUCH did not fail")
except redis.ResponseError as e:
    assert str(e).startswith("unknown command 'NOSUCH'"), e
assert sorted(c.scan_iter(match="*py*", count=2)) == [b"py:1", b"{py}m", b"{py}n"]
assert c.info("replication")["role"] == "master" and c.dbsize() > 0 and c.type("py:1") == b"string"
assert c.getdel("{py}m") == b"1" and c.delete("py:1", "{py}n") == 2
print(redis.__version__)
`
	for _, tc := range []struct{ name, path, options, version string }{
		{"python3-redis", "", "{}", "4."}, // Debian's
		{"redis-py", os.Getenv("KVSTORE_REDISPY"), "{'protocol': 3}", "8."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "redis-py" && tc.path == "" {
				t.Fatal("KVSTORE_REDISPY must name the folder that redis-py 8 was installed to; make redis does that")
			}
			cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", script, host, port, tc.options)
			cmd.Env = append(os.Environ(), "PYTHONPATH="+tc.path)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), tc.version) {
				t.Errorf("%v: %s; want version %s", err, out, tc.version)
			}
		})
	}
}

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}
