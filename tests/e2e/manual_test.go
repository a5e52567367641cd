package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/testenv"
)

// example is what kvctl's manual has people type.
type example struct {
	text string
	code int // that its remark promises
}

// manualExamples reads the examples of each command from kvctl's manual: lines that run kvctl, with the here-document of such a line. What stands
// behind three spaces is a remark.
func manualExamples(t *testing.T) map[string][]example {
	t.Helper()
	manual, err := os.ReadFile("../../services/cmd/kvctl/MANUAL.md")
	if err != nil {
		t.Fatal(err)
	}
	runs := regexp.MustCompile(`^(kvctl |\w+=\S+ kvctl |.*(\||<\() ?kvctl )`)
	promise := regexp.MustCompile(`exit code (\d)`)
	out := map[string][]example{}
	command, document := "", false
	for line := range strings.Lines(string(manual)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "## "); ok {
			if command, ok = strings.CutPrefix(name, "kvctl "); ok {
				out[command] = nil
			}
			continue
		}
		line, indented := strings.CutPrefix(line, "  ")
		all := out[command]
		switch {
		case document:
			all[len(all)-1].text += "\n" + line
			document = line != "END"
		case indented && runs.MatchString(line):
			text, remark, _ := strings.Cut(line, "   ")
			e := example{text: text}
			if m := promise.FindStringSubmatch(remark); m != nil {
				e.code, _ = strconv.Atoi(m[1])
			}
			out[command] = append(all, e)
			document = strings.HasSuffix(text, "<<'END'")
		}
	}
	return out
}

// stage is what the examples of a command find.
type stage struct {
	before  string                                       // run before the first of them
	each    bool                                         // and before the others
	as      []string                                     // old, new: what stands for something of the reader's own, or would take long, and what it is here
	endless bool                                         // but for those with --once and --count: Ctrl-C ends them, when they have told what before does once more
	unnamed bool                                         // no variable names the server
	serve   func(t *testing.T, dir string) (addr string) // another server than everybody's; $SERVER is its address
}

// short makes measurements short.
var short = []string{
	"-d 10s", "-d 50ms", "-d 30s", "-d 50ms", "-d 5s", "-d 50ms --warmup 0s", "-n 1000000", "-n 100", "-n 100000", "-n 100", "-n 10000", "-n 100",
	"--keys 1000000 --zipf 1.1", "--keys 1000 --zipf 1.1 -d 50ms", "--unary -c 64", "--unary -c 64 -d 50ms", "--processes 1,2,4 --callers 1,8,32", "--processes 1,2 --callers 2",
	"--processes 1,8", "--processes 1,2 -d 50ms", "--requests 2000", "--requests 20", "6000", "10",
}

const (
	somePrompts = "have kvctl namespace create prompts --kind prompt; for b in b0 b1 b2; do kvctl prompt write $b x --namespace prompts --scope model=llama; done"
	someUsers   = "kvctl put user/41 Eva; kvctl put user/42 Ada; have kvctl namespace create orders; have kvctl namespace create copy; kvctl put o1 x --namespace orders"
	contexts    = "kvctl context add local --endpoint $SERVER; kvctl context add prod --endpoint $SERVER; kvctl context add prod2 --endpoint $SERVER; kvctl put greeting hello --context local"
	changes     = "kvctl put config NEW; kvctl put service/a NEW; have kvctl namespace create prompts --kind prompt; kvctl prompt write $RANDOM$RANDOM NEW --namespace prompts --scope model=llama"
)

// stages are those of commands whose examples find more than an empty keyspace and the files of everybody.
var stages = map[string]stage{
	"accept-loss":  {before: "kvctl put a 1", as: []string{"0123456789abcdef-3", `"$(kvctl status -o json | jq -r '.shards[] | select(.keyspace == env.KVSTORE_KEYSPACE).id')"`}},
	"ca init":      {as: []string{"/certs", "certs"}},
	"ca issue":     {before: "kvctl ca init --if-absent"},
	"ca cluster":   {as: []string{"/credentials", "credentials", "client/", "credentials/client/"}, serve: credentials},
	"bench report": {before: "kvctl bench sweep --kinds put --processes 1 --callers 1 -d 20ms --warmup 0s --dir results"},
	"bench value":  {as: []string{"bench value", "bench value --size 64KiB --count 2", " --size 80MiB --count 10", "", " --size 1MiB,32MiB", ""}},
	"context add":  {as: []string{"127.0.0.1:8085", "$SERVER"}, unnamed: true},
	"context ls":   {before: contexts, unnamed: true},
	"context show": {before: contexts, unnamed: true},
	"context use":  {before: contexts, unnamed: true},
	"context rm":   {before: contexts, unnamed: true},
	"del":          {before: "kvctl put user/42 Ada; kvctl put tmp/1 x", as: []string{"17", `"$(kvctl get user/42 -o json | jq .version)"`}, each: true},
	"doctor": {serve: redis, as: []string{"redis://127.0.0.1:6379", "redis://$SERVER", "rediss://kv@cache.example:6380",
		"rediss://kv@localhost:$(cat tls-port) --redis-ca-file ca.crt"}},
	"export":           {before: someUsers + "; for i in {1..100}; do echo put changed/$i x; done | kvctl batch -f -", each: true},
	"get":              {before: "kvctl put user/42 Ada; kvctl put photo @photo.jpg"},
	"import":           {before: someUsers + "; rm -f users.jsonl; kvctl export user/ --out users.jsonl; kvctl export --namespace orders | gzip >orders.jsonl.gz"},
	"keyspace get":     {before: "have kvctl keyspace create tenant1"},
	"keyspace rm":      {before: "have kvctl keyspace create tenant1"},
	"namespace get":    {before: somePrompts},
	"namespace ls":     {before: "have kvctl keyspace create tenant1"},
	"namespace rm":     {before: "have kvctl namespace create orders"},
	"namespace update": {before: somePrompts + "; have kvctl namespace create sessions; have kvctl namespace create batch", as: []string{"--if-version 3", `--if-version "$(kvctl namespace get sessions -o json | jq -r .version)"`}},
	"prompt clear":     {before: somePrompts},
	"prompt lookup":    {before: somePrompts},
	"prompt ls":        {before: somePrompts},
	"prompt pin":       {before: somePrompts},
	"prompt read":      {before: somePrompts},
	"prompt rm":        {before: somePrompts},
	"prompt usage":     {before: somePrompts},
	"prompt write":     {before: somePrompts},
	"put":              {before: "for i in {1..20}; do echo put user/42 x; done | kvctl batch -f - -c 1"}, // so that its version is not 17
	"token new":        {before: "kvctl put greeting hello"},
	"txn":              {before: "kvctl put {42}balance 100", as: []string{"<<'END'", "<<END", "version 7", "version $(kvctl get {42}balance -o json | jq .version)"}},
	"watch":            {before: changes, endless: true},
}

// files is what the working directory of every example holds.
func files(t *testing.T, dir string) {
	t.Helper()
	var trace bytes.Buffer
	w := gzip.NewWriter(&trace)
	for i := range 20 {
		fmt.Fprintf(w, `{"timestamp": %d, "hash_ids": [0, %d, %d]}`+"\n", i, 100+i/2, 200+i)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"photo.jpg": "\xff\xd8\xff photo", "b1.bin": "\x00block", "app.token": "kvs_0123456789012345678901234567890123456789\n", "redis.pw": "secret of this test\n",
		"move.txt": "if {1}b absent\nput {1}b 1\ndel {1}a\n", "load.txt": "put x 1\nput y 2 if-absent\ndel z\n", "conversation.jsonl.gz": trace.String(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// credentials starts a server with what kvctl ca cluster makes.
func credentials(t *testing.T, dir string) string {
	h := &house{t: t, dir: filepath.Join(dir, "credentials", "frontend")}
	h.kvctl("", "ca", "cluster", filepath.Join(dir, "credentials"))
	return h.start("-tokens", h.file("tokens")).GRPC
}

// redis starts a redis-server with a port of TLS too, whose number is in a file.
func redis(t *testing.T, dir string) string {
	testenv.NeedRedis(t)
	h := &house{t: t, dir: dir}
	h.kvctl("", "ca", "init", "--dir", dir)
	h.kvctl("", "ca", "issue", "redis", "--dir", dir)
	_, port, err := net.SplitHostPort(testenv.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	h.replace("tls-port", port)
	server := testenv.NewRedis(t, "tls-port "+port, "tls-cert-file "+h.file("redis.crt"), "tls-key-file "+h.file("redis.key"), "tls-ca-cert-file "+h.file("ca.crt"),
		"tls-auth-clients no")
	server.Must(t, "ACL", "SETUSER", "kv", "on", ">"+strings.TrimSpace(h.read("redis.pw")), "~*", "+@all")
	return server.Addr
}

// desk is where the examples of a command are run.
type desk struct {
	dir string
	env []string
}

// shell runs a script with kvctl on its PATH.
func (d *desk) shell(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "--norc", "-c", "set -o pipefail\nhave() { \"$@\" || [ $? = 4 ]; }\n"+script)
	cmd.Dir, cmd.Env = d.dir, d.env
	cmd.WaitDelay = time.Second // for what it may leave running
	return cmd
}

// TestManualExamples runs every example of kvctl's manual in a shell, against a server that has what they speak of. Each ends with exit code 0, or
// with the one that stands behind it.
func TestManualExamples(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("needs jq, as examples do (Debian's package jq)")
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	all := manualExamples(t)
	for name := range stages {
		if _, ok := all[name]; !ok {
			t.Errorf("the manual has no kvctl %s", name)
		}
	}
	s := start(t, "", "-engine", "memory")
	for i, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			if len(all[name]) == 0 {
				t.Fatal("no example")
			}
			if !strings.HasPrefix(name, "keyspace ") && name != "namespace ls" { // which make and remove the same keyspace
				t.Parallel()
			}
			st := stages[name]
			d := &desk{dir: t.TempDir()}
			files(t, d.dir)
			addr := s.GRPC
			if st.serve != nil {
				addr = st.serve(t, d.dir)
			}
			d.env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + d.dir, "SERVER=" + addr}
			if !st.unnamed {
				d.env = append(d.env, "KVSTORE_ENDPOINT="+addr)
			}
			if st.serve == nil && !st.unnamed {
				keyspace := "k" + strconv.Itoa(i)
				d.env = append(d.env, "KVSTORE_KEYSPACE="+keyspace)
				ks := &kvv1.Keyspace{Name: keyspace, Shards: 1}
				if _, err := s.AdminC.CreateKeyspace(within(t), &kvv1.CreateKeyspaceRequest{Keyspace: ks}); err != nil {
					t.Fatal(err)
				}
				ns := &kvv1.Namespace{Keyspace: keyspace, Name: "default", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV}
				if _, err := s.AdminC.CreateNamespace(within(t), &kvv1.CreateNamespaceRequest{Namespace: ns}); err != nil {
					t.Fatal(err)
				}
			}
			as := st.as
			if strings.HasPrefix(name, "bench ") {
				as = slices.Concat(as, short)
			}
			for i, e := range all[name] {
				if st.before != "" && (i == 0 || st.each) {
					if out, err := d.shell(within(t), "set -e\n"+st.before).CombinedOutput(); err != nil {
						t.Fatalf("before %s: %v\n%s", e.text, err, out)
					}
				}
				text := strings.NewReplacer(as...).Replace(e.text)
				var code int
				var out string
				if st.endless && !strings.Contains(text, " --once") && !strings.Contains(text, " --count") {
					code, out = d.interrupted(t, text, st.before)
				} else {
					cmd := d.shell(within(t), text)
					told, _ := cmd.CombinedOutput()
					code, out = cmd.ProcessState.ExitCode(), string(told)
				}
				if code != e.code {
					t.Errorf("%s\n(run as %s)\nexit %d, want %d:\n%s", e.text, text, code, e.code, out)
				}
			}
		})
	}
}

// interrupted runs a watch until it has told of what changes meanwhile, and ends it by Ctrl-C.
func (d *desk) interrupted(t *testing.T, text, changes string) (code int, out string) {
	t.Helper()
	pid := filepath.Join(d.dir, "pid")
	log := new(journal)
	cmd := d.shell(within(t), `kvctl() { (echo $BASHPID >pid; exec kvctl "$@"); }`+"\n"+text)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	await := func(texts ...string) bool {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for !slices.ContainsFunc(texts, func(text string) bool { return log.says(text) > 0 }) {
			select {
			case <-tick.C:
			case err := <-ended:
				ended <- err
				return false
			}
		}
		return true
	}
	if await("watching", "STARTED", "NEW") {
		if out, err := d.shell(within(t), "set -e\n"+changes).CombinedOutput(); err != nil {
			t.Fatalf("meanwhile: %v\n%s", err, out)
		}
		if await("NEW", "STORED") {
			id, err := os.ReadFile(pid)
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(id)))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(n, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-ended
	return cmd.ProcessState.ExitCode(), log.String()
}
