package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// settled is what a command line of kvctl comes down to.
func settled(t *testing.T, env map[string]string, args ...string) (*session, error) {
	t.Helper()
	s := &session{system: system{getenv: func(k string) string { return env[k] }}, given: map[string]bool{}}
	args, err := s.globalArgs(args)
	if err != nil {
		t.Fatal(err)
	}
	name, cmd, rest, err := find(args)
	if err != nil {
		t.Fatal(err)
	}
	fs := newFlagSet(name)
	s.globals(fs)
	cmd.setup(fs)
	if _, err := parseMixed(fs, rest); err != nil {
		t.Fatal(err)
	}
	s.note(fs)
	return s, s.settle()
}

// TestPrecedence: flag, variable, context, default; and no token leaves for a server that it is not of.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	err := os.WriteFile(file, []byte(`{"current":"here","contexts":{
		"here":{"endpoint":"here:1","keyspace":"kh","namespace":"nh","token":"token-of-here","ca":"/ca-of-here"},
		"there":{"endpoint":"grpcs://there:2","token_file":"/token-of-there","insecure":true}}}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	const all = "KVSTORE_KEYSPACE=ke KVSTORE_NAMESPACE=ne KVSTORE_TOKEN=te KVSTORE_CA=/ce"
	for _, tc := range []struct{ env, line, want string }{
		{"", "get a", "here:1 kh nh token-of-here  /ca-of-here"},
		{"", "get a --namespace nf", "here:1 kh nf token-of-here  /ca-of-here"},
		{"", "--namespace nf get a --keyspace kf", "here:1 kf nf token-of-here  /ca-of-here"},
		{"", "--namespace nf get a --namespace ng", "here:1 kh ng token-of-here  /ca-of-here"},
		{all, "get a", "here:1 ke ne te  /ce"},
		{all, "get a --token-file tf --keyspace kf", "here:1 kf ne  tf /ce"},
		{all, "--context here get a", "here:1 kh nh token-of-here  /ca-of-here"},
		{all, "get a --context there --keyspace kf", "grpcs://there:2 kf   /token-of-there  insecure"},
		{"KVSTORE_CONTEXT=there KVSTORE_NAMESPACE=ne", "get a", "grpcs://there:2  ne  /token-of-there  insecure"},
		{"KVSTORE_CONTEXT=there", "get a --context here", "here:1 kh nh token-of-here  /ca-of-here"},
		// Whoever names another endpoint does not send it what the current context has.
		{"KVSTORE_ENDPOINT=env:3", "get a", "env:3     "},
		{"", "get a --endpoint flag:4", "flag:4     "},
		{"KVSTORE_CONTEXT=here", "get a --endpoint flag:4", "flag:4     "},
		{"KVSTORE_CONTEXT=here", "--endpoint flag:4 get a", "flag:4     "},
		{"KVSTORE_CONTEXT=here", "flag:4 get a", "flag:4     "},
		{"KVSTORE_CONTEXT=here KVSTORE_ENDPOINT=env:3", "get a", "env:3     "},
		{"KVSTORE_CONTEXT=here KVSTORE_ENDPOINT=env:3 KVSTORE_TOKEN=te", "get a", "env:3   te  "},
		{"KVSTORE_CONTEXT=here", "get a --endpoint=", "127.0.0.1:8085     "},
		{"", "get a --context= --endpoint flag:4", "flag:4     "},
		{"KVSTORE_CONTEXT=there KVSTORE_ENDPOINT=env:3", "get a --context here", "here:1 kh nh token-of-here  /ca-of-here"},
		{"", "flag:4 get a", "flag:4     "},
		{"", "grpc://flag:4 get a", "grpc://flag:4     "},
		{"", "--context here get a --endpoint flag:4", "flag:4 kh nh token-of-here  /ca-of-here"}, // who names both is asked nothing
		{"KVCTL_CONFIG=/nowhere/at/all", "get a", "127.0.0.1:8085     "},
		{"KVCTL_CONFIG=", "get a", "127.0.0.1:8085     "},
	} {
		env := map[string]string{"KVCTL_CONFIG": file}
		for _, v := range strings.Fields(tc.env) {
			k, v, _ := strings.Cut(v, "=")
			env[k] = v
		}
		s, err := settled(t, env, strings.Fields(tc.line)...)
		if err != nil {
			t.Errorf("%s kvctl %s: %v", tc.env, tc.line, err)
			continue
		}
		got := strings.Join([]string{s.endpoint, s.keyspace, s.namespace, s.door.token, s.door.tokenFile, s.door.ca}, " ")
		if s.door.insecure {
			got += " insecure"
		}
		if strings.TrimSpace(got) != strings.TrimSpace(tc.want) {
			t.Errorf("%s kvctl %s: %q, want %q", tc.env, tc.line, got, tc.want)
		}
	}
	for env, want := range map[string]string{"KVSTORE_CONTEXT=nowhere": `no context "nowhere"`, "KVCTL_CONFIG=" + filepath.Dir(file): "is a directory"} {
		k, v, _ := strings.Cut(env, "=")
		if _, err := settled(t, map[string]string{"KVCTL_CONFIG": file, k: v}, "get", "a"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", env, err, want)
		}
	}
	if err := os.WriteFile(file, []byte(`{"contexts":{"a":{"endpoint":"x:1","tokn":"y"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := settled(t, map[string]string{"KVCTL_CONFIG": file}, "get", "a"); err == nil || !strings.Contains(err.Error(), "tokn") {
		t.Errorf("a setting that nobody knows: %v", err)
	}
}

func TestContexts(t *testing.T) {
	sh, _ := newShell(t)
	file := filepath.Join(t.TempDir(), "deep", "config.json")
	endpoint := sh.env["KVSTORE_ENDPOINT"]
	sh.env = map[string]string{"KVCTL_CONFIG": file}
	code, _, errs := sh.run("kvs_some-secret-token\n", "context", "add", "one", "--endpoint", endpoint, "--insecure", "--namespace", "n1", "--token-stdin")
	if code != 0 {
		t.Fatal(errs)
	}
	for path, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
	sh.ok("context", "add", "two", "--endpoint", endpoint)
	sh.ok("namespace", "create", "n1", "--context", "two")
	sh.ok("put", "a", "in n1") // the first one is the current one
	sh.ok("context", "use", "two")
	sh.ok("put", "a", "in default")
	for _, tc := range [][]string{{"in n1", "get", "a", "--context", "one"}, {"in n1", "--context", "one", "get", "a"}, {"in default", "get", "a"}} {
		if got := sh.ok(tc[1:]...); got != tc[0] {
			t.Errorf("%v: %q", tc, got)
		}
	}
	sh.env["KVSTORE_CONTEXT"] = "one"
	if got := sh.ok("get", "a"); got != "in n1" {
		t.Errorf("KVSTORE_CONTEXT: %q", got)
	}
	if got := sh.ok("context", "show"); !strings.Contains(got, `"namespace": "n1"`) || !strings.Contains(got, `"token": "(kept here)"`) {
		t.Errorf("show: %s", got)
	}
	delete(sh.env, "KVSTORE_CONTEXT")
	for _, o := range []string{"table", "json", "raw"} {
		got := sh.ok("context", "ls", "-o", o)
		if strings.Contains(got, "secret") || strings.Count(got, "one") != 1 || o == "table" && !strings.Contains(got, "*  two") {
			t.Errorf("ls -o %s: %s", o, got)
		}
	}
	sh.ok("context", "rm", "two")
	if got := sh.ok("context", "ls", "-o", "raw"); got != "one\n" {
		t.Errorf("after rm: %q", got)
	}
	sh.env["KVSTORE_CONTEXT"] = "two" // gone, but contexts can be mended
	sh.ok("context", "ls")
	for line, want := range map[string]string{
		"context use two": "no context", "context rm two": "no context", "context add x": "--endpoint is missing", "get a": "no context",
		"context add x --endpoint a:1 --token-stdin": "want a token",
	} {
		if code, _, errs := sh.run("", strings.Fields(line)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d: %s", line, code, errs)
		}
	}
}

// TestBrokenContexts: what asks no server works with a file of contexts that nobody understands, and what asks one names it.
func TestBrokenContexts(t *testing.T) {
	dir := t.TempDir()
	file, sweeps := filepath.Join(dir, "config.json"), filepath.Join(dir, "sweep")
	if err := os.Mkdir(sweeps, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{file: `{"contexts":`, filepath.Join(sweeps, "sweep.json"): "{}"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh := &shell{t: t, env: map[string]string{"KVCTL_CONFIG": file}}
	sh.ok("ca", "init", "--dir", dir)
	works := map[string]string{ // and with which arguments
		"version": "", "completion": "bash", "ca init": "--if-absent --dir " + dir, "ca issue": "server --dir " + dir, "ca cluster": filepath.Join(dir, "cluster"),
		"token new": "app --grant default=read", "bench report": sweeps,
	}
	for name, cmd := range commands {
		words := strings.Fields(name)
		args, ok := works[name]
		switch {
		case ok:
			sh.ok(append(words, strings.Fields(args)...)...)
			continue
		case name == "doctor": // asks a Redis alone
			if code, _, errs := sh.run("", name); code != exitUsage || !strings.Contains(errs, "--redis URL is missing") {
				t.Errorf("doctor: exit %d: %s", code, errs)
			}
			continue
		case words[0] == "context" && name != "context ls":
			words = append(words, "a", "--endpoint", "b:1")
		default:
			words = append(words, strings.Fields(strings.Repeat("a ", cmd.min))...)
		}
		if code, _, errs := sh.run("", words...); code != exitError || !strings.Contains(errs, file) {
			t.Errorf("%q: exit %d: %s", words, code, errs)
		}
	}
}

// TestTLSByAddress: grpcs:// is TLS as much as a flag is.
func TestTLSByAddress(t *testing.T) {
	d := door{token: "t"}
	if !d.exposed("a:1") || !d.exposed("grpc://a:1") || d.exposed("grpcs://a:1") || d.exposed("grpcs://a:1,grpcs://b:1") {
		t.Error("a token is exposed by an address without TLS alone")
	}
	for endpoint, want := range map[string]string{"a:1": "plain text", "grpc://a:1": "plain text", "grpcs://a:1": "TLS"} {
		if got := (settings{Endpoint: endpoint}).security(); got != want {
			t.Errorf("%s: %s", endpoint, got)
		}
	}
}

// TestAddressFirst: kvctl HOST:PORT is the client of that server.
func TestAddressFirst(t *testing.T) {
	for word, want := range map[string]bool{
		"10.0.0.4:8085": true, "grpc://10.0.0.4:8085": true, "grpcs://kv.example:8085": true, "[::1]:8085": true, "a:1,b:2": true,
		"get": false, "a:b": false, ":8085": false, "a:99999": false, "": false, "a:1,": false,
	} {
		if isAddress(word) != want {
			t.Errorf("isAddress(%q) = %v", word, !want)
		}
	}
	sh, _ := newShell(t)
	sh.env = map[string]string{}
	addr := "127.0.0.1:1" // the test's dialer goes to its server, whatever the address is
	sh.ok(addr, "put", "a", "1")
	if got := sh.ok("grpc://"+addr, "-o", "raw", "get", "a"); got != "1" {
		t.Errorf("%q", got)
	}
	if got := sh.ok(addr); !strings.HasPrefix(got, "kvstore clienttest at "+addr) {
		t.Errorf("an address alone: %q", got)
	}
	if code, _, errs := sh.run("", addr, "get", "a", "--timeout", "1s", "--endpoint", "127.0.0.2:1"); code != 0 {
		t.Errorf("a flag overrides what stands first: exit %d: %s", code, errs)
	}
	if code, _, errs := sh.run("", "--endpoint", addr, addr, "get", "a"); code != exitUsage || !strings.Contains(errs, "given already") {
		t.Errorf("two addresses: exit %d: %s", code, errs)
	}
	if code, _, errs := sh.run("", "grpc://10.0.0.4", "get", "a"); code == 0 || !strings.Contains(errs, "host:port") {
		t.Errorf("no port: exit %d: %s", code, errs)
	}
}
