package main

import (
	"cmp"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"kvstore/client"
)

// what says what something on the command line is, for completion.
type what int

const (
	completeNothing what = iota
	completeKeys
	completeFiles
	completeContexts
	completeNamespaces
	completeKeyspaces
	completeKeyValue // a key, then a value: @FILE
	completeShells
)

var (
	//go:embed completion.bash
	completionBash string
	//go:embed completion.zsh
	completionZsh string
	//go:embed completion.fish
	completionFish string
)

var shells = map[string]string{"bash": completionBash, "zsh": completionZsh, "fish": completionFish}

var completionCommand = command{
	args: "bash|zsh|fish", min: 1, max: 1, complete: completeShells, local: true,
	short: "write the completion of a shell",
	help: `Completes commands, flags and their values, contexts, and, asking the server for a second at most, keyspaces, namespaces and keys, the
latter up to the next /.

  source <(kvctl completion bash)            for this shell; in ~/.bashrc for all
  kvctl completion bash > kvctl.bash         in /etc/bash_completion.d for everybody
  kvctl completion zsh > _kvctl              in a folder of $fpath
  kvctl completion fish > kvctl.fish         in ~/.config/fish/completions`,
	setup: simple(func(_ context.Context, s *session, args []string) error {
		script, ok := shells[args[0]]
		if !ok {
			return usagef("completion %s: want bash, zsh or fish", args[0])
		}
		fmt.Fprint(s.stdout, script)
		return nil
	}),
}

// completeWord is the word before those that are to be completed: what the scripts of shells run.
const completeWord = "__complete"

// Bounds of what the server is asked for.
const (
	completePatience = time.Second
	completeMost     = 50 // keys
	completeAsks     = 20 // pages of them
)

// completer finds what the last of some words may become.
type completer struct {
	s     *session
	cur   string // that word
	front string // what stands before what is completed in it: --flag=
	out   io.Writer
}

// offer prints a candidate that fits.
func (c *completer) offer(word, about string) {
	if strings.HasPrefix(word, c.cur) && !strings.ContainsFunc(word, unicode.IsControl) {
		about, _, _ = strings.Cut(about, "\n")
		fmt.Fprintf(c.out, "%s%s\t%s\n", c.front, word, about)
	}
}

// Directives, on the last line.
const (
	offerFiles   = ":files"   // names of files fit
	offerNoSpace = ":nospace" // the word goes on
)

func (c *completer) directive(d string) { fmt.Fprintln(c.out, d) }

// completion prints what the last of words may become. It never fails: who presses a key wants no error.
func (s *session) completion(ctx context.Context, words []string) {
	if len(words) == 2 && words[0] == "--line" {
		words = shellWords(words[1])
		words = words[min(1, len(words)):] // kvctl itself
	}
	if len(words) == 0 {
		words = []string{""}
	}
	c := &completer{s: s, cur: words[len(words)-1], out: s.stdout}
	s.stderr, s.timeout, s.soon = io.Discard, completePatience, completePatience
	c.complete(ctx, words[:len(words)-1])
}

// complete goes through the words that are there.
func (c *completer) complete(ctx context.Context, words []string) {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	c.s.globals(fs)
	var name string
	var cmd command
	known, plain := false, false
	var pos []string
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "--" && !plain:
			plain = true
		case strings.HasPrefix(w, "-") && len(w) > 1 && !plain:
			f, value, has := c.flag(fs, w)
			if f == nil || has || isBool(f) {
				c.give(fs, f, cmp.Or(value, "true"))
				continue
			}
			if i++; i == len(words) {
				c.value(ctx, f)
				return
			}
			c.give(fs, f, words[i])
		case known:
			pos = append(pos, w)
		case name == "" && isAddress(w):
			c.s.endpoint, c.s.given["endpoint"] = w, true
		default:
			name = strings.TrimSpace(name + " " + w)
			if cmd, known = commands[name]; known {
				own := newCompletionFlags(c.s, name, cmd)
				fs = own
			} else if name != "help" && !strings.HasPrefix(name, "help ") && len(group(name)) == 0 {
				return // there is no such command
			}
		}
	}
	switch {
	case strings.HasPrefix(c.cur, "-") && !plain:
		if at := strings.IndexByte(c.cur, '='); at > 0 {
			if f, _, _ := c.flag(fs, c.cur); f != nil {
				c.front, c.cur = c.cur[:at+1], c.cur[at+1:]
				c.value(ctx, f)
			}
			return
		}
		fs.VisitAll(func(f *flag.Flag) {
			_, usage := flag.UnquoteUsage(f)
			c.offer(dashed(f.Name), usage)
		})
	case known:
		if cmd.max < 0 || len(pos) < cmd.max {
			c.argument(ctx, cmd, len(pos))
		}
	default:
		c.commands(name)
	}
}

// newCompletionFlags are the flags of a command, beside what was given before its name.
func newCompletionFlags(s *session, name string, cmd command) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	s.globals(fs)
	cmd.setup(fs)
	return fs
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func isBool(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// flag is the flag that a word is, with its value when that is part of it.
func (c *completer) flag(fs *flag.FlagSet, word string) (f *flag.Flag, value string, has bool) {
	name, value, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
	return fs.Lookup(name), value, has
}

// give notes a flag that was given, as far as it makes sense.
func (c *completer) give(fs *flag.FlagSet, f *flag.Flag, value string) {
	if f != nil && fs.Set(f.Name, value) == nil {
		c.s.given[f.Name] = true
	}
}

// commands offers the next word of a command's name.
func (c *completer) commands(name string) {
	if name == "" {
		c.offer("help", "explain everything, or one command")
	}
	before := strings.TrimSpace(strings.TrimPrefix(name, "help"))
	seen := map[string]bool{}
	for _, n := range slices.Sorted(maps.Keys(commands)) {
		rest := n
		if before != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(n, before+" "); !ok {
				continue
			}
		}
		first, _, isGroup := strings.Cut(rest, " ")
		about := commands[n].short
		if isGroup {
			about = strings.Join(group(first), ", ")
		}
		if !seen[first] {
			c.offer(first, about)
		}
		seen[first] = true
	}
}

// Values of flags that are one of a few words.
var flagWords = map[string][]string{
	"o": {"json", "raw", "table", "wide"}, "kind": slices.Sorted(maps.Keys(kinds)), "kinds": {"batch", "get", "mixed", "prompt", "put", "watch"},
}

// value offers values of a flag.
func (c *completer) value(ctx context.Context, f *flag.Flag) {
	if words := flagWords[f.Name]; words != nil {
		for _, w := range words {
			c.offer(w, "")
		}
		return
	}
	arg, _ := flag.UnquoteUsage(f)
	switch {
	case f.Name == "context":
		c.ask(ctx, completeContexts)
	case f.Name == "namespace":
		c.ask(ctx, completeNamespaces)
	case f.Name == "keyspace":
		c.ask(ctx, completeKeyspaces)
	case arg == "file" || arg == "folder":
		c.directive(offerFiles)
	}
}

// argument offers what the n-th argument of a command may be.
func (c *completer) argument(ctx context.Context, cmd command, n int) {
	kind := cmd.complete
	if kind == completeKeyValue {
		if kind = completeKeys; n > 0 {
			if at, ok := strings.CutPrefix(c.cur, "@"); ok {
				c.front, c.cur = "@", at
				c.directive(offerFiles)
			}
			return
		}
	}
	c.ask(ctx, kind)
}

// ask offers names that somebody has to be asked for.
func (c *completer) ask(ctx context.Context, kind what) {
	switch kind {
	case completeNothing, completeKeyValue:
		return
	case completeFiles:
		c.directive(offerFiles)
		return
	case completeShells:
		for _, name := range slices.Sorted(maps.Keys(shells)) {
			c.offer(name, "")
		}
		return
	case completeContexts:
		if all, _, err := c.s.contexts(); err == nil {
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				c.offer(name, all.Contexts[name].Endpoint)
			}
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, completePatience)
	defer cancel()
	if c.s.settle() != nil {
		return
	}
	kv, err := c.s.connect(ctx)
	if err != nil {
		return
	}
	switch kind {
	case completeNamespaces:
		if all, err := kv.ListNamespaces(ctx); err == nil {
			for _, ns := range all {
				c.offer(ns.Name, kindText(ns.Kind))
			}
		}
	case completeKeyspaces:
		if all, err := kv.ListKeyspaces(ctx); err == nil {
			for _, ks := range all {
				c.offer(ks.Name, "")
			}
		}
	case completeKeys:
		c.keys(ctx, kv)
	}
}

// keys offers keys up to the next slash, as shells do with folders.
func (c *completer) keys(ctx context.Context, kv *client.Client) {
	o := &client.ListOptions{Prefix: c.cur, KeysOnly: true, PageSize: completeMost}
	n, open := 0, false
	for range completeAsks {
		more := false
		for page, err := range kv.Pages(ctx, o) {
			if err != nil {
				return
			}
			for _, e := range page.Entries {
				if n++; n > completeMost {
					return
				}
				at := strings.IndexByte(e.Key[len(c.cur):], '/')
				if at < 0 || len(c.cur)+at+1 == len(e.Key) {
					c.offer(e.Key, bytesText(e.Size))
					continue
				}
				folder := e.Key[:len(c.cur)+at+1]
				c.offer(folder, "")
				o.Start = folder[:len(folder)-1] + "0" // what comes behind all that begins with the folder
				more, open = true, true
				break
			}
			break // one page
		}
		if !more {
			break
		}
	}
	if open {
		c.directive(offerNoSpace)
	}
}

// shellWords takes a line apart as a shell would, as far as it is written; the last word may be empty.
func shellWords(line string) []string {
	var words []string
	var word strings.Builder
	var quote rune
	there, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, there = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, there = r, true
		case unicode.IsSpace(r):
			if there {
				words = append(words, word.String())
			}
			word.Reset()
			there = false
		default:
			word.WriteRune(r)
			there = true
		}
	}
	return append(words, word.String())
}
