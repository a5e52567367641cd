package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"

	"kvstore/client/clienttest"
	"kvstore/components/authn"
)

// shell runs command lines of kvctl in this process.
type shell struct {
	t    *testing.T
	dial []grpc.DialOption
	env  map[string]string
	tty  int

	errTTY int
}

func newShell(t *testing.T) (*shell, *clienttest.Server) {
	srv := clienttest.Start(t)
	return &shell{t: t, dial: []grpc.DialOption{srv.Dialer()}, env: map[string]string{"KVSTORE_ENDPOINT": "passthrough:///t"}}, srv
}

func (sh *shell) run(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), system{
		stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, width: sh.tty, errWidth: sh.errTTY, dial: sh.dial,
		getenv: func(k string) string { return sh.env[k] },
	}, args)
	return code, out.String(), errs.String()
}

// ok runs a line that must succeed.
func (sh *shell) ok(args ...string) string {
	sh.t.Helper()
	code, out, errs := sh.run("", args...)
	if code != 0 {
		sh.t.Fatalf("kvctl %s: exit %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	big := file("big", strings.Repeat("0123456789", 100_000))
	script := file("txn", "# move\nif {1}a present\nput {1}b \"two words\" if-absent\ndel {1}a\n")

	// Lines run in order against one server. want is a regular expression on standard output, or on standard error when
	// the exit code is not 0.
	sh, _ := newShell(t)
	for _, tc := range []struct {
		line  string // split at spaces; FILE stands for big, TXN for script, CERTS for a folder
		stdin string
		code  int
		want  string
	}{
		{"put a one", "", 0, `^created a, version \d+, 3 B\n$`},
		{"put a two -o json", "", 0, `"created": false`},
		{"get a", "", 0, `^two$`}, // a pipe gets the value alone
		{"get a -o table", "", 0, `(?s)^key +a\nversion.*\n\ntwo\n$`},
		{"get a --meta -o json", "", 0, `(?s)^\{\s+"key": "a",\s+"version": 2,\s+"size": 3`},
		{"get nothing", "", 3, `^kvctl: "nothing": get`},
		{"put a x --if-absent", "", 4, `(?s)exists.*without --if-absent`},
		{"put a x --if-version 1", "", 4, `(?s)version 2.*--if-version 2`},
		{"put a x --if-version 2", "", 0, `updated a`},
		{"put q x --if-present", "", 4, `--if-absent creates it`},
		{"put a x --if-present --if-absent", "", 2, `alone`},
		{"put - -", "from stdin", 0, `created -, version \d+, 10 B`},
		{"get - -o raw", "", 0, `^from stdin$`},
		{"put at @@home", "", 0, `5 B`},
		{"get at", "", 0, `^@home$`},
		{"put f @/nowhere/at/all", "", 2, `names a file`},
		{"put big @FILE --content-type text/plain --tag album=1 --tag year=2024 --meta by=me --ttl 1h", "", 0, `976.6 KiB`},
		{"get big --meta -o json", "", 0, `(?s)"size": 1000000.*"expires".*"content_type": "text/plain",\s+"metadata": \{\s+"by": "me"\s+\},\s+"tags": \{\s+"album": "1",\s+"year": "2024"`},
		{"put big x --ttl -5s", "", 2, `past`},
		{"put big x --tag nonsense", "", 2, `name=value`},
		{"put --ttl 5m -- -k -v", "", 0, `created -k`},
		{"get -- -k", "", 0, `^-v$`},

		{"ls -o raw", "", 0, `^-\n-k\na\nat\nbig\n$`},
		{"ls a -o raw", "", 0, `^a\nat\n$`},
		{"ls --start at --end big -o raw", "", 0, `^at\n$`},
		{"ls --limit 1", "", 0, `^KEY +VERSION +SIZE +UPDATED +EXPIRES\n- +\d+ +10 B +20\d\d-`},
		{"ls a --values -o json", "", 0, `^\{"key":"a","value":"x",`},
		{"ls --count", "", 0, `^5\n$`},
		{"ls zzz", "", 0, `^KEY`},

		{"del a nothing", "", 0, `^deleted a\nnot there: nothing\n$`},
		{"del at --if-version 1", "", 4, `"at"`},
		{"del at -o json", "", 0, `^\{"deleted":true,"key":"at"`},

		{"txn -f TXN", "", 4, `nothing was applied`},
		{"put {1}a 1", "", 0, `created`},
		{"txn -f TXN", "", 0, `^committed 2 operations at revision \d+`},
		{"get {1}b", "", 0, `^two words$`},
		{"txn -f -", "put a 1\nput b 2\n", 1, `common \{tag\}`},
		{"txn -f -", "put a\n", 2, `line 1: put: 2 words are too few`},
		{"txn -f -", "get a\n", 2, `line 1: "get": want put, del, if`},
		{"txn -f -", "\n# nothing\n", 2, `empty`},
		{"txn -f - -o json", "if {1}b absent\nput {1}c 1", 4, `nothing was applied`},
		{"txn", "", 2, `-f FILE is missing`},

		{"batch -f - -o json", "put k1 v1\nput k2 v2\n", 0, `^\{"op":"put","key":"k1","version":\d+,"created":true\}\n\{"op":"put","key":"k2"`},
		{"batch -f -", "get k1\nget none\ndel k2\n", 3, `"none": get`},
		{"batch -f -", "get k1\n", 0, `OP +KEY +RESULT\nget +k1 +v1\n`},

		{"watch k --state --once -o json", "", 0, `^\{"type":"PUT","key":"k1","value":"v1","version":\d+,"initial":true,"size":2\}\n\{"type":"SYNCED","token":"\w+=*"\}\n$`},
		{"watch k1 --exact --state --count 1", "", 0, `^PUT +\d+  k1  v1\n$`},
		{"watch k --state --once -o raw", "", 0, `^k1\n$`},
		{"watch --once", "", 2, `--once wants --state`},
		{"watch --exact", "", 2, `wants a key`},
		{"watch --from ==", "", 2, `--from`},
		{"watch --state --from AA==", "", 2, `both given`},
		{"watch --count -1", "", 2, `negative`},

		{"status", "", 0, `(?s)^kvstore clienttest at passthrough:///t, engine memory.*SHARD`},
		{"status -o json", "", 0, `"version": ?"clienttest"`},
		{"version", "", 0, `^kvctl `},
		{"accept-loss s-0", "", 2, `--confirm s-0`},
		{"accept-loss s-0 --confirm s-1", "", 2, `--confirm s-0`},
		{"accept-loss s-0 --confirm s-0", "", 0, `^shard s-0 is served .*record 7 of epoch 1`},
		{"accept-loss s-0 --confirm s-0 -o json", "", 0, `"seq": 7`},
		{"doctor", "", 2, `--redis URL is missing`},
		{"doctor --redis http://x", "", 2, `scheme must be redis or rediss`},
		{"doctor --redis redis://u:secret@%zz", "", 2, `URL cannot be parsed: it must be redis`},
		{"doctor --redis redis://127.0.0.1:1 --timeout 100ms", "", 5, `redis://127.0.0.1:1: `},

		{"namespace create prompts --kind prompt --capacity-blocks 100", "", 0, `prompts +prompt +tag +100 blocks`},
		{"namespace create prompts", "", 4, `exists`},
		{"namespace create x --kind fish", "", 2, `want kv, cache or prompt`},
		{"namespace create tree --partition elements:2", "", 0, `tree +kv +elements:2`},
		{"namespace create x --partition elements:no", "", 2, `want tag`},
		{"namespace update prompts --capacity-bytes 1GiB --default-ttl 1h", "", 0, `100 blocks and 1.0 GiB +1h0m0s`},
		{"namespace update prompts", "", 2, `nothing to change`},
		{"namespace update prompts --capacity-blocks 5 --if-version 99", "", 4, `version`},
		{"namespace ls", "", 0, `(?s)^NAMESPACE.*default.*prompts.*tree`},
		{"namespace ls -o raw", "", 0, `^default\nprompts\ntree\n$`},
		{"namespace get prompts -o json", "", 0, `"kind": ?"NAMESPACE_KIND_PROMPT"`},
		{"namespace rm tree", "", 2, `--confirm tree`},
		{"namespace rm tree --confirm tree", "", 0, `^deleted namespace tree`},
		{"namespace get tree", "", 3, `no namespace`},
		{"namespace", "", 2, `One of: create, get, ls, rm, update`},
		{"keyspace create t1 --shards 2", "", 0, `t1`},
		{"keyspace ls", "", 0, `(?s)default.*t1`},
		{"keyspace ls -o raw", "", 0, `^default\nt1\n$`},
		{"keyspace get t1", "", 0, `t1 `},
		{"keyspace create t2 --shards -1", "", 2, `1 to 1024`},
		{"keyspace rm t1 --confirm t1", "", 0, `deleted keyspace t1`},
		{"put a here --keyspace default --namespace default", "", 0, `created a`},

		{"prompt write b0 first --namespace prompts --scope model=m", "", 0, `^stored b0, 5 B`},
		{"prompt write b0 other --namespace prompts --scope model=m", "", 0, `^already there: b0`},
		{"prompt write hex:ff01 second --namespace prompts --scope model=m --parent b0 --depth 1", "", 0, `^stored`},
		{"watch --namespace prompts --scope model=m --state --once", "", 0, `(?m)^STORED +\d+  model=m  b0  \(5 B\)$`},
		{"watch --namespace prompts --state --once -o json", "", 0, `"size":6,"scope":\{"model":"m"\},"scope_id":"[0-9a-f]{32}","id":"hex:ff01","depth":1,"parent":"b0"\}`},
		{"watch --namespace prompts k", "", 1, `by scope`},
		{"watch k --scope a=b", "", 2, `a prefix is of keys`},
		{"prompt lookup b0 hex:ff01 b2 --namespace prompts --scope model=m", "", 0, `(?s)0 +b0 +5 B.*1 +hex:ff01.*2 of 3 blocks`},
		{"prompt lookup b2 b0 --all --namespace prompts --scope model=m -o json", "", 0, `"id":"b0","index":1`},
		{"prompt lookup b2 b0 --namespace prompts --scope model=m", "", 3, `none of these`},
		{"prompt lookup b0 --scope model=m", "", 1, `right kind`},
		{"prompt lookup hex:xyz --namespace prompts", "", 2, `hex:xyz`},
		{"prompt read b0 hex:ff01 --namespace prompts --scope model=m", "", 0, `^firstsecond$`},
		{"prompt read b0 hex:ff01 --namespace prompts --scope model=m -o json", "", 0, `^\{"id":"b0","size":5,"value":"first"\}\n\{"id":"hex:ff01","size":6,"value":"second"\}\n$`},
		{"prompt read b9 --namespace prompts --scope model=m", "", 3, `b9 is not stored`},
		{"prompt pin b0 b9 --for 1h --namespace prompts --scope model=m", "", 0, `(?s)b0 +pinned.*b9 +not there`},
		{"prompt ls --namespace prompts", "", 0, `\{"model":"m"\}`},
		{"prompt ls --namespace prompts --scope model=m -o raw", "", 0, `(?s)^(hex:ff01\n|b0\n){2}$`},
		{"prompt ls --namespace prompts --limit -1", "", 2, `negative`},
		{"prompt usage --namespace prompts", "", 0, `(?s)total +2 +11 B.*capacity 100 blocks`},
		{"prompt usage --namespace prompts -o json", "", 0, `"blocks": 2`},
		{"prompt rm b0 b9 --namespace prompts --scope model=m", "", 0, `(?s)b0 +deleted.*b9 +not there`},
		{"prompt clear --namespace prompts", "", 2, `--all-scopes`},
		{"prompt clear --namespace prompts --scope model=m", "", 0, `^deleted 1 blocks; 0 stay`},

		{"ca issue server --dir CERTS", "", 1, `kvctl ca init`},
		{"ca init --dir CERTS", "", 0, `^wrote .*ca.crt and .*ca.key\n$`},
		{"ca init --dir CERTS", "", 2, `--if-absent`},
		{"ca init --dir CERTS --if-absent", "", 0, `^kept`},
		{"ca issue server --dir CERTS --dns kv.example,kv --ip 10.0.0.5 --uri spiffe://kv/a", "", 0, `^wrote`},
		{"ca issue server --dir CERTS", "", 2, `is there already`},
		{"ca issue server --dir CERTS --if-absent", "", 0, `^kept`},
		{"ca issue other --dir CERTS --ip nonsense", "", 2, `no IP address`},
		{"ca issue other --dir CERTS --uri nonsense", "", 1, `no URI`},
		{"ca issue ../x --dir CERTS", "", 2, `cannot be the name`},
		{"ca issue ca --dir CERTS", "", 2, `cannot be the name`},
		{"token new app --grant default=write,k=read --for 1h", "", 0, `^app sha256:[0-9a-f]{64} default=write k=read expires=20\S+Z\n$`},
		{"token new app --grant default=own", "", 2, `KEYSPACE=read`},
		{"token new App --grant default=read", "", 2, `the name is not one`},
		{"token new app", "", 2, `--grant is missing`},
		{"token new app --grant server-admin -o json", "", 0, `(?s)"line": "app sha256:\S+ server-admin",\s+"token": "kvs_`},
		{"token new app --grant *=admin --out CERTS/app.token", "", 0, `^app sha256:\S+ \*=admin\n$`},
		{"token new app --grant *=admin --out CERTS/app.token", "", 1, `exists`},

		{"fly", "", 2, `(?s)unknown command "fly".*kvctl help`},
		{"set a b", "", 2, `"set"; is it put\?`},
		{"exp", "", 2, `"exp"; is it export\?`},
		{"--version", "", 0, `^kvctl `},
		{"txn -f /nowhere", "", 2, `^kvctl: -f: open /nowhere: no such file or directory\n  "kvctl help txn" explains it\n$`},
		{"get -5", "", 2, `no flag -5 .*behind --`},
		{"get", "", 2, `0 arguments given, KEY wanted`},
		{"get a b", "", 2, `unexpected argument "b"`},
		{"get a --colour", "", 2, `-colour`},
		{"get a -o xml", "", 2, `table, wide, json or raw`},
		{"bench put -c 0", "", 2, `1 to 100000`},
		{"bench get --zipf 1", "", 2, `not 1`},
		{"bench get --zipf NaN", "", 2, `not 1`},
		{"bench mixed --reads NaN", "", 2, `0 to 1`},
		{"bench put --rate NaN", "", 2, `a second`},
		{"bench prompt", "", 2, `--trace FILE is missing`},
		{"bench prompt --trace /nowhere", "", 2, `--trace`},
		{"bench value --size tiny", "", 2, `80MiB`},
	} {
		args := strings.Fields(strings.NewReplacer("FILE", big, "TXN", script, "CERTS", filepath.Join(dir, "certs")).Replace(tc.line))
		code, out, errs := sh.run(tc.stdin, args...)
		got := out
		if code != 0 {
			got = errs
		}
		if code != tc.code || !regexp.MustCompile(tc.want).MatchString(got) {
			t.Errorf("kvctl %s: exit %d, want %d; want %q in:\n%s%s", tc.line, code, tc.code, tc.want, out, errs)
		}
		if code != 0 && strings.Count(errs, "kvctl: ") == 0 {
			t.Errorf("kvctl %s: the error does not name the program: %q", tc.line, errs)
		}
	}
}

func TestBigValueThroughAPipe(t *testing.T) {
	sh, _ := newShell(t)
	want := strings.Repeat("x y z ", 1_000_000)
	if code, _, errs := sh.run(want, "put", "big", "-"); code != 0 {
		t.Fatal(errs)
	}
	if got := sh.ok("get", "big"); got != want {
		t.Errorf("%d bytes came back, want %d", len(got), len(want))
	}
}

func TestTerminal(t *testing.T) {
	sh, _ := newShell(t)
	sh.tty = 40
	sh.ok("put", "a-key-with-a-name-that-is-far-too-long-for-a-narrow-terminal", "text")
	if code, _, errs := sh.run("\x00\x01\xff binary", "put", "bin", "-"); code != 0 {
		t.Fatal(errs)
	}
	for _, columns := range []int{40, 60, 80, 100} {
		sh.tty = columns
		out := sh.ok("ls")
		for line := range strings.Lines(out) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > columns {
				t.Errorf("a line of %d columns: %q", n, line)
			}
		}
		// The key is cut, so that what follows it can be seen.
		if columns >= 80 && !regexp.MustCompile(`(?m)^a-key-with\S*…  +1  `).MatchString(out) {
			t.Errorf("on %d columns: %s", columns, out)
		}
	}
	if out := sh.ok("ls", "-o", "wide"); !strings.Contains(out, "a-key-with-a-name-that-is-far-too-long-for-a-narrow-terminal ") {
		t.Errorf("wide: %s", out)
	}
	sh.ok("put", "evil\x1b[2J\nkey", "x")
	if out := sh.ok("ls"); strings.Contains(out, "\x1b") || !strings.Contains(out, `evil\x1b[2J\nkey`) {
		t.Errorf("a key that moves the cursor: %q", out)
	}
	sh.tty = 40
	if out := sh.ok("get", "bin"); !strings.Contains(out, "00 01 ff") || strings.Contains(out, "\x00") {
		t.Errorf("binary on a terminal: %q", out)
	}
	if out := sh.ok("get", "bin", "-o", "raw"); out != "\x00\x01\xff binary" {
		t.Errorf("raw: %q", out)
	}
	if out := sh.ok("get", "bin", "-o", "json"); !strings.Contains(out, `"value_base64": "AAH/IGJpbmFyeQ=="`) {
		t.Errorf("json: %q", out)
	}
}

// TestHostileTexts: whatever keys, values and what is kept with them hold, a terminal gets text in lines; -o raw alone writes it as it is.
func TestHostileTexts(t *testing.T) {
	sh, _ := newShell(t)
	sh.ok("namespace", "create", "prompts", "--kind", "prompt")
	const evil = "evil\x1b[2J\u009b31m\u202e\r\x7f\x07"
	key, folder := evil+"\nkey", filepath.Join(t.TempDir(), evil)
	plain := func(text string) bool {
		return !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' })
	}
	sh.tty = 200
	for _, args := range [][]string{
		{"put", key, evil, "--content-type", evil, "--encoding", evil, "--tag", evil + "=" + evil, "--meta", evil + "=" + evil},
		{"put", key, evil, "--content-type", evil, "--encoding", evil, "--tag", evil + "=" + evil, "--meta", evil + "=" + evil, "-o", "json"},
		{"get", key}, {"get", key, "-o", "json"}, {"get", key, "-o", "table"}, {"get", key + "2"}, {"ls"}, {"ls", "--values", "-o", "json"}, {"ls", "-o", "wide"}, {"export"},
		{"watch", "--state", "--once"}, {"watch", "--state", "--once", "-o", "json"},
		{"batch", "-f", "-"}, {"batch", "-f", "-", "-o", "json"}, {"txn", "-f", "-"}, {"txn", "-f", "-", "-o", "json"},
		{"prompt", "write", evil, evil, "--namespace", "prompts", "--scope", evil + "=" + evil, "--parent", key},
		{"prompt", "write", evil, evil, "--namespace", "prompts", "--scope", evil + "=" + evil},
		{"prompt", "read", evil, "--namespace", "prompts", "--scope", evil + "=" + evil}, {"prompt", "read", evil, "-o", "json", "--namespace", "prompts", "--scope", evil + "=" + evil},
		{"prompt", "lookup", evil, "--namespace", "prompts", "--scope", evil + "=" + evil}, {"prompt", "ls", "--namespace", "prompts"},
		{"prompt", "ls", "--namespace", "prompts", "--scope", evil + "=" + evil}, {"prompt", "usage", "--namespace", "prompts"},
		{"watch", "--namespace", "prompts", "--state", "--once"}, {"watch", "--namespace", "prompts", "--state", "--once", "-o", "json"},
		{"import", "-"}, {"del", key, key}, {"get", evil, "--namespace", evil}, {"help", evil}, {evil}, {"ca", "init", "--dir", folder}, {"ca", "issue", "x", "--dir", folder},
	} {
		stdin := fmt.Sprintf("put %q %q if-absent\n", key, evil)
		if args[0] == "import" {
			stdin = `{"key":"a","` + evil + `":1}`
		}
		code, out, errs := sh.run(stdin, args...)
		if !plain(out) || !plain(errs) {
			t.Errorf("%q: exit %d\n%q\n%q", args, code, out, errs)
		}
		if (args[0] == "get" && len(args) == 2 && args[1] == key || args[0] == "del") && !strings.Contains(out, `evil\x1b[2J\u009b31m\u202e\r\x7f\a\nkey`) {
			t.Errorf("%q: %s", args, out)
		}
	}
	sh.ok("put", key, evil)
	for _, args := range [][]string{{"get", key, "-o", "raw"}, {"prompt", "read", evil, "-o", "raw", "--namespace", "prompts", "--scope", evil + "=" + evil}} {
		if out := sh.ok(args...); out != evil {
			t.Errorf("%q: %q", args, out)
		}
	}
	// What a program reads on a terminal is what it would read in a pipe.
	var there, piped any
	on := sh.ok("get", key, "-o", "json")
	sh.tty = 0
	if err := errors.Join(json.Unmarshal([]byte(on), &there), json.Unmarshal([]byte(sh.ok("get", key, "-o", "json")), &piped)); err != nil || !reflect.DeepEqual(there, piped) {
		t.Errorf("%v: %v, in a pipe %v", err, there, piped)
	}
}

func TestVisible(t *testing.T) {
	for text, want := range map[string]string{
		"plain ü 漢": "plain ü 漢", "a\x1b[0m": `a\x1b[0m`, "\x9b31m": `\x9b31m`, "\u009b": `\u009b`, "\xc3": `\xc3`, "\u202eab": `\u202eab`, "a\nb\tc": `a\nb\tc`, "\ufffd": "\ufffd",
	} {
		if got := visible(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]bool{"a\r\nb\r\n": true, "a\tb\n": true, "a\rb": false, "a\x1bb": false, "\xff": false, "": true} {
		if printable([]byte(text)) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
	var b strings.Builder
	if _, err := (screen{&b}).Write([]byte("{\"a\":\"\u009b\U000e0001ü\"}\n")); err != nil || b.String() != `{"a":"\u009b\udb40\udc01ü"}`+"\n" {
		t.Errorf("%v: %s", err, b.String())
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestFullDisk: what could not be written is no success.
func TestFullDisk(t *testing.T) {
	sh, _ := newShell(t)
	sh.ok("put", "a", "1")
	for _, line := range []string{"ls", "ls -o raw", "ls --count", "get a", "version", "status", "help", "help get", "get --help", "export", "del b", "watch --state", "watch --state -o json"} {
		var errs bytes.Buffer
		code := run(t.Context(), system{stdin: strings.NewReader(""), stdout: full{}, stderr: &errs, dial: sh.dial, getenv: func(k string) string { return sh.env[k] }}, strings.Fields(line))
		if code != exitError || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%s: exit %d: %s", line, code, errs.String())
		}
	}
}

func TestNoServer(t *testing.T) {
	srv := clienttest.StartTCP(t)
	addr := srv.Addr()
	srv.Stop()
	sh := &shell{t: t, env: map[string]string{}}
	code, _, errs := sh.run("", "get", "a", "--endpoint", addr, "--timeout", "2s")
	if code != exitUnavailable || !strings.Contains(errs, addr) || !strings.Contains(errs, "kvstored") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// TestSilentServer: a server that takes a get and says nothing keeps nobody for longer than --timeout.
func TestSilentServer(t *testing.T) {
	srv := clienttest.StartTCP(t)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	srv.Faults.Before(func(method string) error {
		if method != "Status" {
			<-over
		}
		return nil
	})
	sh := &shell{t: t, env: map[string]string{}}
	for _, line := range []string{"get a", "ls", "ls --count", "watch", "prompt ls --namespace p"} {
		code, _, errs := sh.run("", append(strings.Fields(line), "--endpoint", srv.Addr(), "--timeout", "300ms")...)
		if code != exitUnavailable || !strings.Contains(errs, "no answer in time") {
			t.Errorf("%s: exit %d: %s", line, code, errs)
		}
	}
}

// opener is a standard error that opens a gate when kvctl says that it waits.
type opener struct {
	bytes.Buffer
	gate chan struct{}
}

func (o *opener) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "waiting for it") {
		close(o.gate)
	}
	return o.Buffer.Write(p)
}

// TestWaitsForAServer: a server that takes connections and says nothing, as one does that recovers, is waited for; one that is not
// there only by who said for how long.
func TestWaitsForAServer(t *testing.T) {
	srv := clienttest.StartTCP(t)
	for _, tc := range []struct {
		name   string
		silent bool // takes connections, answers nothing
		args   []string
		code   int
		waits  bool
	}{
		{"recovering", true, []string{"ls", "--count"}, exitOK, true},
		{"recovering, --timeout", true, []string{"ls", "--count", "--timeout", "20s"}, exitOK, true},
		{"not there", false, []string{"ls", "--count"}, exitUnavailable, false},
		{"not there, --timeout", false, []string{"--timeout", "20s", "ls", "--count"}, exitOK, true},
	} {
		stderr := &opener{gate: make(chan struct{})}
		dialer := func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case <-stderr.gate:
				return new(net.Dialer).DialContext(ctx, "tcp", srv.Addr())
			default:
			}
			if !tc.silent {
				return nil, syscall.ECONNREFUSED
			}
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }() // ends with ours
			return ours, nil
		}
		var stdout bytes.Buffer
		code := run(t.Context(), system{
			stdout: &stdout, stderr: stderr, soon: 100 * time.Millisecond, dial: []grpc.DialOption{grpc.WithContextDialer(dialer)},
			getenv: func(k string) string { return map[string]string{"KVSTORE_ENDPOINT": "passthrough:///t"}[k] },
		}, tc.args)
		waited := strings.Contains(stderr.String(), "waiting for it")
		if code != tc.code || waited != tc.waits || (code == exitOK) != (stdout.String() == "0\n") {
			t.Errorf("%s: exit %d, %q\n%s", tc.name, code, stdout.String(), stderr.String())
		}
	}
}

func TestEnvironmentAndGlobalFlags(t *testing.T) {
	sh, _ := newShell(t)
	sh.ok("namespace", "create", "n2")
	sh.env["KVSTORE_NAMESPACE"] = "n2"
	sh.ok("put", "k", "in n2")
	if out := sh.ok("--namespace", "default", "ls", "--count"); out != "0\n" {
		t.Errorf("default holds %s", out)
	}
	if out := sh.ok("get", "k"); out != "in n2" {
		t.Errorf("n2 holds %q", out)
	}
	if out := sh.ok("-o", "json", "get", "k"); !strings.Contains(out, `"value": "in n2"`) {
		t.Errorf("-o before the command: %s", out)
	}
}

// TestHelpOfAGroup: a group of commands explains itself too.
func TestHelpOfAGroup(t *testing.T) {
	sh, _ := newShell(t)
	want := sh.ok("help", "prompt")
	for _, args := range [][]string{{"prompt", "--help"}, {"prompt", "-h"}} {
		if got := sh.ok(args...); got != want || !strings.Contains(got, "prompt lookup") {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
}

// TestHelp: every command explains itself with an example, and every example parses.
func TestHelp(t *testing.T) {
	sh, _ := newShell(t)
	all := sh.ok("help")
	for name, cmd := range commands {
		if !strings.Contains(all, "  "+name+" ") {
			t.Errorf("kvctl help does not list %s", name)
		}
		out := sh.ok(append([]string{"help"}, strings.Fields(name)...)...)
		if out != sh.ok(append(strings.Fields(name), "--help")...) {
			t.Errorf("%s --help differs from help %[1]s", name)
		}
		if !strings.Contains(out, "usage: kvctl "+name) || !strings.Contains(out, "--endpoint address") {
			t.Errorf("help %s:\n%s", name, out)
		}
		examples := 0
		for line := range strings.Lines(cmd.help) {
			line, ok := strings.CutPrefix(strings.TrimSpace(line), "kvctl ")
			if !ok {
				continue
			}
			if strings.Contains(line, "$(") {
				continue
			}
			line, _, _ = strings.Cut(line, "   ") // a remark behind it
			for _, stop := range []string{" |", " >", " <", " 2>"} {
				line, _, _ = strings.Cut(line, stop)
			}
			got, c, rest, err := find(strings.Fields(line))
			if err != nil {
				t.Errorf("help %s: example %q: %v", name, line, err)
				continue
			}
			if got == name {
				examples++
			}
			s := &session{system: system{getenv: func(string) string { return "" }}}
			fs := newFlagSet(got)
			s.globals(fs)
			c.setup(fs)
			pos, err := parseMixed(fs, rest)
			if err != nil || len(pos) < c.min || c.max >= 0 && len(pos) > c.max {
				t.Errorf("help %s: example %q: arguments %q, %v", name, line, pos, err)
			}
		}
		if examples == 0 && !strings.HasPrefix(name, "bench ") {
			t.Errorf("help %s has no example of it", name)
		}
		if len(cmd.short) > 60 {
			t.Errorf("%s: %q is too long for a list", name, cmd.short)
		}
	}
	for _, code := range []string{"3 not found", "4 conflict", "5 unavailable"} {
		if !strings.Contains(all, code) {
			t.Errorf("help does not tell the exit code %q", code)
		}
	}
	if code, _, errs := sh.run("", "help", "nonsense"); code != exitUsage || !strings.Contains(errs, "nonsense") {
		t.Errorf("help nonsense: %d %s", code, errs)
	}
	if out := sh.ok("help", "prompt"); !strings.Contains(out, "prompt lookup") || strings.Contains(out, "bench") {
		t.Errorf("help prompt:\n%s", out)
	}
}

var writeManual = flag.Bool("write-manual", false, "write MANUAL.md")

// TestManual: the manual is what help says.
func TestManual(t *testing.T) {
	want := manual()
	if *writeManual {
		if err := os.WriteFile("MANUAL.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("MANUAL.md")
	if err != nil || string(got) != want {
		t.Errorf("MANUAL.md is not what help says (%v): make manual writes it", err)
	}
	for line := range strings.Lines(want) {
		if n := len([]rune(line)); n > 200 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}

func TestBench(t *testing.T) {
	sh, srv := newShell(t)
	for _, kind := range []string{"put", "get", "mixed"} {
		var res loadResult
		out := sh.ok("bench", kind, "-n", "500", "-c", "8", "--keys", "50", "--zipf", "1.2", "--size", "100", "-o", "json")
		if err := json.Unmarshal([]byte(out), &res); err != nil {
			t.Fatal(err)
		}
		if res.Ops != 500 || res.OpsPerS <= 0 || len(res.Steps) == 0 || res.NotFound != 0 {
			t.Errorf("bench %s: %+v", kind, res)
		}
		var n int64
		for _, st := range res.Steps {
			n += st.Count
			if st.Bytes != 100*st.Count || st.P50 <= 0 || st.Max < st.P99 || st.P99 < st.P50 {
				t.Errorf("bench %s: %+v", kind, st)
			}
		}
		if n != 500 {
			t.Errorf("bench %s: steps count %d", kind, n)
		}
	}
	if out := sh.ok("bench", "put", "-n", "10", "--unary"); !strings.Contains(out, "operations/s") || !strings.Contains(out, "P99") {
		t.Errorf("table: %s", out)
	}
	if srv.Applied() < 500 {
		t.Errorf("only %d puts arrived", srv.Applied())
	}
}

// TestBenchInterrupted: what was measured until Ctrl-C is told.
func TestBenchInterrupted(t *testing.T) {
	sh, srv := newShell(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n atomic.Int64
	srv.Faults.Before(func(method string) error {
		if method == "Put" && n.Add(1) == 50 {
			cancel()
		}
		return nil
	})
	var out, errs bytes.Buffer
	code := run(ctx, system{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, dial: sh.dial, getenv: func(k string) string { return sh.env[k] }},
		strings.Fields("bench put --unary -d 1m -c 4"))
	if code != exitError || !strings.Contains(out.String(), "operations/s") || !strings.Contains(errs.String(), "canceled") {
		t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
	}
}

// TestStdinInterrupted: Ctrl-C ends what waits for a keyboard.
func TestStdinInterrupted(t *testing.T) {
	sh, _ := newShell(t)
	for _, line := range []string{"put a -", "import -", "txn -f -", "batch -f -", "bench put --hold -n 1"} {
		ctx, cancel := context.WithCancel(t.Context())
		keyboard, nobody := io.Pipe()
		var errs bytes.Buffer
		code := run(ctx, system{
			stdin: asked{keyboard, cancel}, stdout: io.Discard, stderr: &errs, dial: sh.dial, getenv: func(k string) string { return sh.env[k] },
		}, strings.Fields(line))
		if code != exitError && code != exitUsage || !strings.Contains(errs.String(), "canceled") {
			t.Errorf("%s: exit %d: %s", line, code, errs.String())
		}
		nobody.Close()
	}
}

// asked is an input that tells when it is read.
type asked struct {
	io.Reader
	tell func()
}

func (a asked) Read(p []byte) (int, error) {
	a.tell()
	return a.Reader.Read(p)
}

func TestBenchValue(t *testing.T) {
	sh, _ := newShell(t)
	var res []sizeResult
	out := sh.ok("bench", "value", "--size", "64KiB,1MiB", "--count", "3", "-c", "2", "-o", "json")
	if err := json.Unmarshal([]byte(out), &res); err != nil {
		t.Fatal(err)
	}
	if len(res) != 2 || res[1].Size != 1<<20 || res[1].Write.Count != 3 || res[1].Read.Count != 3 || res[1].Wrong != 0 || res[1].Read.MBps <= 0 {
		t.Errorf("%+v", res)
	}
	if out := sh.ok("bench", "value", "--size", "64KiB", "--count", "2"); !strings.Contains(out, "64.0 KiB") {
		t.Errorf("table: %s", out)
	}
}

// TestTokenIsToldOnce: on standard error, or in a file of its owner; its line has the hash alone.
func TestTokenIsToldOnce(t *testing.T) {
	sh, _ := newShell(t)
	code, line, told := sh.run("", "token", "new", "app", "--grant", "default=read")
	at := strings.Index(told, "kvs_")
	if code != 0 || at < 0 || strings.Contains(line, "kvs_") {
		t.Fatalf("exit %d: %s%s", code, line, told)
	}
	if token := strings.TrimSpace(told[at:]); !strings.Contains(line, authn.HashOf(token)) {
		t.Errorf("%q is not the hash of %q", line, token)
	}
	file := filepath.Join(t.TempDir(), "token")
	code, line, told = sh.run("", "token", "new", "app", "--grant", "default=read", "--out", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if code != 0 || told != "" || !strings.Contains(line, authn.HashOf(strings.TrimSpace(string(text)))) {
		t.Errorf("exit %d: %s%s", code, line, told)
	}
}

// TestTokenStaysHere: without TLS it is not sent to another machine, and no flag takes it.
func TestTokenStaysHere(t *testing.T) {
	sh := &shell{t: t, env: map[string]string{"KVSTORE_TOKEN": "kvs_the-secret-of-this-test", "KVSTORE_ENDPOINT": "192.0.2.1:8085"}}
	code, out, errs := sh.run("", "get", "a")
	if code != exitError || !strings.Contains(errs, "plain text") || !strings.Contains(errs, "--insecure") || strings.Contains(out+errs, "secret") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	for name := range commands {
		if out := sh.ok(append([]string{"help"}, strings.Fields(name)...)...); strings.Contains(out, "secret") || strings.Contains(out, "--token ") {
			t.Errorf("help %s tells the token, or takes it:\n%s", name, out)
		}
	}
}
