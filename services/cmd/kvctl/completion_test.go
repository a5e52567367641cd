package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvstore/client/clienttest"
)

// fits is what kvctl says that the last of some words may become.
func (sh *shell) fits(words ...string) []string {
	sh.t.Helper()
	var out []string
	for line := range strings.Lines(sh.ok(append([]string{completeWord}, words...)...)) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out = append(out, word)
	}
	return out
}

func TestCompletion(t *testing.T) {
	sh, _ := newShell(t)
	sh.env["KVCTL_CONFIG"] = filepath.Join(t.TempDir(), "config.json")
	sh.ok("context", "add", "here", "--endpoint", sh.env["KVSTORE_ENDPOINT"])
	sh.ok("context", "add", "there", "--endpoint", "127.0.0.1:1")
	for _, key := range []string{"user/1", "user/2", "user/2/name", "user:1", "z", "with space", "other/a", "other/b", "line\nbreak"} {
		sh.ok("put", key, "x")
	}
	sh.ok("namespace", "create", "prompts", "--kind", "prompt")
	sh.ok("keyspace", "create", "tenant")
	for _, tc := range []struct{ line, want string }{ // words are separated by |
		{"pu", "put"}, {"nothing", ""}, {"keyspace|", "create|get|ls|rm"}, {"help|names", "namespace"}, {"help|namespace|c", "create"}, {"he", "help"},
		{"context|use|", "here|there"}, {"--context|t", "there"}, {"get|a|--context|h", "here"}, {"get|--context=t", "--context=there"},
		{"get|-o|", "json|raw|table|wide"}, {"get|--end", "--endpoint"}, {"get|--me", "--meta"}, {"watch|--st", "--state"}, {"get|-", "-o"},
		{"namespace|create|x|--kind|p", "prompt"}, {"completion|", "bash|fish|zsh"},
		{"--namespace|p", "prompts"}, {"get|--keyspace|t", "tenant"}, {"namespace|get|", "default|prompts"}, {"keyspace|rm|t", "tenant"},
		{"get|", "line|other/|user/|user:1|with space|z|:nospace"}, {"get|user/", "user/1|user/2|user/2/|:nospace"}, {"get|user/2/", "user/2/name"}, {"get|user:", "user:1"},
		{"get|z|", ""}, {"del|z|user:", "user:1"}, {"put|z", "z"}, {"put|z|t", ""}, {"put|z|@f", ":files"}, {"import|", ":files"}, {"get|--ca|", ":files"},
		{"127.0.0.1:1|get|--me", "--meta"}, {"get|--|z", "z"}, {"get|--|--me", ""}, {"--line|kvctl get use", "user/|user:1|:nospace"}, {"--line|kvctl get 'with", "with space"},
		{"--line|kvctl get with\\ ", "with space"}, {"--line|kvctl ", ""}, {"fly|", ""}, {"get|z|--endpoint|", ""},
		{"get|--endpoint|127.0.0.1:1|--namespace|", "default|prompts"}, // the test's dialer goes to its server
	} {
		got := sh.fits(strings.Split(tc.line, "|")...)
		var want []string
		if tc.want != "" {
			want = strings.Split(tc.want, "|")
		}
		switch tc.line {
		case "get|-": // all flags
			if !slices.Contains(got, "-o") || !slices.Contains(got, "--meta") || !slices.Contains(got, "--endpoint") {
				t.Errorf("%s: %q", tc.line, got)
			}
			continue
		case "--line|kvctl ":
			if len(got) < 20 {
				t.Errorf("%s: %q", tc.line, got)
			}
			continue
		case "get|": // a key with a line break is not offered
			want = want[1:]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", tc.line, got, want)
		}
	}
	sh.env = map[string]string{"KVSTORE_ENDPOINT": "127.0.0.1:1"}
	sh.dial = nil
	if got := sh.fits("get", "a"); len(got) != 0 { // nobody there is no error
		t.Errorf("without a server: %q", got)
	}
}

// TestCompletionInShells: what real shells offer.
func TestCompletionInShells(t *testing.T) {
	if testing.Short() {
		t.Skip("is of shells, and starts many processes: make unit runs it")
	}
	srv := clienttest.StartTCP(t)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "kvctl")); err != nil {
		t.Fatal(err)
	}
	sh := &shell{t: t, env: map[string]string{"KVSTORE_ENDPOINT": srv.Addr()}}
	for _, key := range []string{"user:1", "user:2", "dir/a", "dir/b", "$(touch pwned)"} {
		sh.ok("put", key, "x")
	}
	for name, text := range map[string]string{"value.txt": "x", "kvctl.bash": completionBash, "kvctl.fish": completionFish, "_kvctl": completionZsh} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KVCTL_IS_THE_TEST=yes", "KVSTORE_ENDPOINT="+srv.Addr(), "HOME="+dir, "TERM=dumb")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Run("bash", func(t *testing.T) {
		for line, want := range map[string]string{
			"kvctl namesp": "namespace", "kvctl get user:": "1|2", "kvctl get dir/": "dir/a|dir/b", "kvctl bench sw": "sweep", "kvctl put k @val": "@value.txt",
			"kvctl import val": "value.txt", "kvctl get --context=": "", "kvctl get -o js": "json", "kvctl get '$": `$(touch pwned)`, `kvctl get \$`: `\$\(touch\ pwned\)`, "kvctl get 'd": "dir/",
			`kvctl get "user:`: "user:1|user:2", "kvctl get user':": ":1|:2", "kvctl get 'us'er:": "1|2", "kvctl get 'user:'": "user:1|user:2",
			`kvctl get "dir/a" --context="`: "", `kvctl get -o "js`: "json", `kvctl get $'us`: "",
		} {
			// What bash does on a Tab: words split at spaces, : and =, compopt only while completing.
			got := in("bash", "--norc", "-c", `source ./kvctl.bash; compopt() { :; }
				COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=(kvctl) COMP_CWORD=1; _kvctl; IFS='|'; echo "${COMPREPLY[*]}"`, "bash", line)
			if got != want {
				t.Errorf("%q: %q, want %q", line, got, want)
			}
		}
		if got := in("bash", "--norc", "-c", `source <(kvctl completion bash); complete -p kvctl`); !strings.Contains(got, "_kvctl") {
			t.Errorf("%s", got)
		}
	})
	// A key that somebody else has named is one word after a Tab, the same key, or it is not offered.
	t.Run("bash executes no key", func(t *testing.T) {
		hostile := []string{
			"evil '; touch pwned #", `evil "; touch pwned #`, "evil $(touch pwned)", "evil `touch pwned`", "evil ; touch pwned #", "evil & touch pwned #",
			"evil \u2028; touch pwned #", "evil \u2028'; touch pwned #", "evil \u2028\"; touch pwned #", "evil ü; touch pwned #",
			`evil \'; touch pwned #`, `evil \"; touch pwned #`, `evil \'; touch pwned; '`, `evil "'; touch pwned #`, `evil \`, "evil !! ~ * ? [a] {a,b} $HOME",
		}
		for _, key := range hostile {
			sh.ok("put", key, "x")
		}
		for _, tc := range []struct {
			before, word, end string // what bash inserts stands between before and end, in place of word
			least             int    // keys offered
		}{
			{"kvctl get ", "evil", "", 12}, {"kvctl get '", "evil", "'", len(hostile)}, {`kvctl get "`, "evil", `"`, len(hostile)}, {"kvctl get ev'", "il", "'", len(hostile)},
			{`kvctl get e\v"`, "il ", `"`, len(hostile)}, {"kvctl get ", "'evil '", "", 12}, {`kvctl get --endpoint "` + srv.Addr() + `" `, "ev", "", 12}, {"kvctl get $'", "evil", "'", 0},
		} {
			for _, locale := range []string{"C", "C.UTF-8"} {
				got := in("bash", "--norc", "-c", `export LC_ALL=$1; source ./kvctl.bash; compopt() { :; }
					COMP_LINE=$2$3 COMP_POINT=${#COMP_LINE} COMP_WORDS=(kvctl); _kvctl
					kvctl() { printf '%s\0' "$#:${!#}"; }
					for c in "${COMPREPLY[@]}"; do eval "$2$c$4"; done`, "bash", locale, tc.before, tc.word, tc.end)
				n := 0
				for word := range strings.SplitSeq(strings.TrimSuffix(got, "\x00"), "\x00") {
					args, key, _ := strings.Cut(word, ":")
					if key = strings.TrimSpace(key); slices.Contains(hostile, key) && (args == "2" || args == "4") {
						n++
					} else if word != "" {
						t.Errorf("%s: %s%s: %q", locale, tc.before, tc.word, word)
					}
				}
				if n < tc.least {
					t.Errorf("%s: %s%s: %d keys offered, want %d", locale, tc.before, tc.word, n, tc.least)
				}
				if os.Remove(filepath.Join(dir, "pwned")) == nil {
					t.Errorf("%s: %s%s: a key was executed", locale, tc.before, tc.word)
				}
			}
		}
	})
	t.Run("fish", func(t *testing.T) {
		if _, err := exec.LookPath("fish"); err != nil {
			t.Skip("needs fish (Debian's package fish)")
		}
		for line, want := range map[string]string{"kvctl namesp": "namespace", "kvctl get user:": "user:1|user:2", "kvctl get dir/": "dir/a|dir/b", "kvctl bench sw": "sweep", "kvctl import val": "value.txt"} {
			got := in("fish", "-N", "-c", `source ./kvctl.fish; complete -C $argv[1] | string replace -r '\t.*' ''; true`, "--", line)
			if got = strings.ReplaceAll(got, "\n", "|"); got != want {
				t.Errorf("%q: %q, want %q", line, got, want)
			}
		}
	})
	t.Run("zsh", func(t *testing.T) {
		if _, err := exec.LookPath("zsh"); err != nil {
			t.Skip("needs zsh (Debian's package zsh)")
		}
		for line, want := range map[string]string{"kvctl namesp": "namespace", "kvctl get user:": "user:1|user:2", "kvctl get dir/": "dir/a|dir/b", "kvctl bench sw": "sweep"} {
			// Outside of its line editor zsh completes nothing: what would be offered is written down instead.
			got := in("zsh", "-f", "-c", `compdef() { :; }; compadd() { print -l -- $words_found; }; _files() { print files; }; compset() { :; }
				source ./_kvctl; words=("${(@s: :)1}"); CURRENT=$#words; PREFIX=$words[-1]; _kvctl`, "zsh", line)
			if got = strings.ReplaceAll(got, "\n", "|"); got != want {
				t.Errorf("%q: %q, want %q", line, got, want)
			}
		}
	})
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("a key was executed")
	}
}
