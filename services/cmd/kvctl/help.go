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
-- nothing is a flag. -o json is for programs, -o raw for pipes.

Environment: KVSTORE_ENDPOINT (127.0.0.1:8085), KVSTORE_KEYSPACE and KVSTORE_NAMESPACE ("default"), KVSTORE_TOKEN or
KVSTORE_TOKEN_FILE, and for TLS KVSTORE_TLS, KVSTORE_CA, KVSTORE_CERT, KVSTORE_KEY, KVSTORE_SERVER_NAME (as the flags).
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
	fmt.Fprintf(s.stdout, "usage: kvctl %s\n\n%s.\n\n%s\n\nFlags:\n",
		strings.TrimSpace(name+" [flags] "+cmd.args), strings.ToUpper(cmd.short[:1])+cmd.short[1:], cmd.help)
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	s.globals(fs)
	cmd.setup(fs)
	fs.VisitAll(func(f *flag.Flag) {
		arg, usage := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "false" && f.DefValue != "0s" {
			usage += " (default " + f.DefValue + ")"
		}
		dash := "--"
		if len(f.Name) == 1 {
			dash = "-"
		}
		fmt.Fprintf(s.stdout, "  %-24s %s\n", strings.TrimSpace(dash+f.Name+" "+arg), usage)
	})
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
