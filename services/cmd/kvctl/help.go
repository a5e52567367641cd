package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const intro = `kvctl talks to KVStore: durable keys and values, and a cache of prompt blocks.

  kvctl put greeting hello         store a value
  kvctl get greeting               read it
  kvctl ls                         what is there
  kvctl help put                   all about one command

Commands:
`

const outro = `
Values come from the command line, standard input (-) or a file (@FILE). Flags may stand before or after arguments; behind
-- nothing is a flag. -o json is for programs, -o raw for pipes; tables fit the terminal, with -o wide they are as wide as they are.
A terminal gets nothing that moves its cursor or changes its colours, whatever keys and values hold, but by -o raw.

The server's address may also stand first: kvctl 10.0.0.4:8085 get greeting, or grpc://10.0.0.4:8085 (grpcs:// is with TLS);
alone it asks how the server is.

Where nothing else is said: 127.0.0.1:8085, keyspace and namespace "default". Each setting is, by what comes first:
  1. its flag
  2. its variable: KVSTORE_ENDPOINT, KVSTORE_KEYSPACE, KVSTORE_NAMESPACE, KVSTORE_TOKEN or KVSTORE_TOKEN_FILE, and for TLS
     KVSTORE_TLS, KVSTORE_CA, KVSTORE_CERT, KVSTORE_KEY, KVSTORE_SERVER_NAME (as the flags)
  3. what the context has: that of KVSTORE_CONTEXT, or the current one (kvctl help context)
--context NAME leaves the variables aside. A context that it does not name, that of KVSTORE_CONTEXT or the current one, is
left aside when an endpoint is given by flag or variable: its token is for its own server.

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict (version or existence), 5 unavailable.
`

// help explains everything, a group of commands, or one command.
func (s *session) help(args []string) error {
	name := strings.Join(args, " ")
	if name == "" {
		fmt.Fprint(s.stdout, intro)
		printCommands(s.stdout, slices.Sorted(maps.Keys(commands)))
		fmt.Fprint(s.stdout, outro)
		return nil
	}
	if cmd, ok := commands[name]; ok {
		s.helpCommand(name, cmd)
		return nil
	}
	if sub := group(name); len(sub) > 0 {
		fmt.Fprintf(s.stdout, "kvctl %s ...\n\n", name)
		var names []string
		for _, n := range sub {
			names = append(names, name+" "+n)
		}
		printCommands(s.stdout, names)
		return nil
	}
	return usagef("no help for %q: there is no such command", name)
}

func printCommands(w io.Writer, names []string) {
	for _, n := range names {
		fmt.Fprintf(w, "  %-18s %s\n", n, commands[n].short)
	}
}

func (s *session) helpCommand(name string, cmd command) {
	fmt.Fprintf(s.stdout, "%s\nFlags of every command:\n", commandText(name, cmd))
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	new(session).globals(fs)
	printFlags(s.stdout, fs, nil)
}

// commandText explains a command, but for the flags that every command has.
func commandText(name string, cmd command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: kvctl %s\n\n%s.\n\n%s\n", strings.TrimSpace(name+" [flags] "+cmd.args), strings.ToUpper(cmd.short[:1])+cmd.short[1:], cmd.help)
	all, global := flag.NewFlagSet(name, flag.ContinueOnError), flag.NewFlagSet("", flag.ContinueOnError)
	new(session).globals(global)
	cmd.setup(all)
	var flags strings.Builder
	printFlags(&flags, all, global)
	if flags.Len() > 0 {
		b.WriteString("\nFlags:\n" + flags.String())
	}
	return b.String()
}

// printFlags prints the flags of a set that another one does not have.
func printFlags(w io.Writer, fs, without *flag.FlagSet) {
	fs.VisitAll(func(f *flag.Flag) {
		if without != nil && without.Lookup(f.Name) != nil {
			return
		}
		arg, usage := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "false" && f.DefValue != "0s" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-24s %s\n", strings.TrimSpace(dashed(f.Name)+" "+arg), usage)
	})
}

// manual is all help as one page.
func manual() string {
	var b strings.Builder
	b.WriteString("# kvctl\n\nWritten by `make manual` from what `kvctl help` says; a test holds the two together, and runs every example.\n\n")
	section := func(title, text string) {
		fmt.Fprintf(&b, "## %s\n\n```text\n%s\n```\n\n", title, strings.Trim(text, "\n"))
	}
	var all strings.Builder
	s := &session{system: system{stdout: &all}}
	_ = s.help(nil) // of everything: there is always help
	section("kvctl help", all.String())
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		section("kvctl "+name, commandText(name, commands[name]))
	}
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	s.globals(fs)
	all.Reset()
	printFlags(&all, fs, nil)
	section("Flags of every command", all.String())
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// group lists the second words of the commands that begin with first.
func group(first string) []string {
	var out []string
	for n := range commands {
		if head, rest, ok := strings.Cut(n, " "); ok && head == first {
			out = append(out, rest)
		}
	}
	slices.Sort(out)
	return out
}
