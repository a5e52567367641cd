package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"kvstore/client"
	"kvstore/components/kverr"
)

// commands are all there are. A name of two words belongs to the group of its first.
var commands = map[string]command{
	"get":              getCommand,
	"put":              putCommand,
	"del":              delCommand,
	"ls":               lsCommand,
	"watch":            watchCommand,
	"batch":            batchCommand,
	"txn":              txnCommand,
	"export":           exportCommand,
	"import":           importCommand,
	"status":           statusCommand,
	"accept-loss":      acceptLossCommand,
	"doctor":           doctorCommand,
	"namespace ls":     namespaceLsCommand,
	"namespace get":    namespaceGetCommand,
	"namespace create": namespaceCreateCommand,
	"namespace update": namespaceUpdateCommand,
	"namespace rm":     namespaceRmCommand,
	"keyspace ls":      keyspaceLsCommand,
	"keyspace get":     keyspaceGetCommand,
	"keyspace create":  keyspaceCreateCommand,
	"keyspace rm":      keyspaceRmCommand,
	"prompt lookup":    promptLookupCommand,
	"prompt read":      promptReadCommand,
	"prompt write":     promptWriteCommand,
	"prompt pin":       promptPinCommand,
	"prompt rm":        promptRmCommand,
	"prompt clear":     promptClearCommand,
	"prompt ls":        promptLsCommand,
	"prompt usage":     promptUsageCommand,
	"bench put":        benchPutCommand,
	"bench get":        benchGetCommand,
	"bench mixed":      benchMixedCommand,
	"bench batch":      benchBatchCommand,
	"bench watch":      benchWatchCommand,
	"bench prompt":     benchPromptCommand,
	"bench value":      benchValueCommand,
	"bench sweep":      benchSweepCommand,
	"bench report":     benchReportCommand,
	"ca init":          caInitCommand,
	"ca cluster":       caClusterCommand,
	"ca issue":         caIssueCommand,
	"token new":        tokenNewCommand,
	"context add":      contextAddCommand,
	"context use":      contextUseCommand,
	"context ls":       contextLsCommand,
	"context show":     contextShowCommand,
	"context rm":       contextRmCommand,
	"completion":       completionCommand,
	"version":          versionCommand,
}

// command is one thing that kvctl does.
type command struct {
	args     string // as usage shows them
	min, max int    // how many; max < 0: any number
	short    string // one line
	help     string // what else there is to know, with examples
	complete what   // its arguments are, for completion in shells
	local    bool   // it asks no server: what is wrong with contexts does not concern it

	// setup declares the command's flags and returns what it does with them.
	setup func(fs *flag.FlagSet) func(ctx context.Context, s *session, args []string) error
}

// system is the world outside of kvctl.
type system struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	width          int               // columns of stdout; 0: no terminal
	errWidth       int               // columns of stderr; 0: no terminal
	dial           []grpc.DialOption // for tests
	soon           time.Duration     // see connect; 0: 3 s
}

// Exit codes, a promise to scripts.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
)

// usageError is a command line that makes no sense.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// session is one run of a command.
type session struct {
	system
	endpoint  string
	keyspace  string
	namespace string
	context   string // that counts here; "" = none
	output    string // "", "table", "wide", "json", "raw"
	door      door
	timeout   time.Duration
	given     map[string]bool // flags of the command line
	command   string          // the name of the command that runs
	c         *client.Client
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, sys system, args []string) int {
	sys.stdin = interruptible{ctx, sys.stdin}
	out := &checked{Writer: sys.stdout}
	sys.stdout = out
	s := &session{system: sys, given: map[string]bool{}}
	err := s.run(ctx, args)
	if out.err != nil && (err == nil || errors.Is(err, flag.ErrHelp)) {
		err = fmt.Errorf("standard output: %w", out.err)
	}
	if s.c != nil {
		_ = s.c.Close()
	}
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	fmt.Fprintf(sys.stderr, "kvctl: %s\n", visibleLines(err.Error()))
	if h := hint(s, err); h != "" {
		fmt.Fprintf(sys.stderr, "  %s\n", visible(h))
	}
	return exitCode(err)
}

func (s *session) run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == completeWord {
		s.completion(ctx, args[1:])
		return nil
	}
	args, err := s.globalArgs(args)
	if errors.Is(err, flag.ErrHelp) {
		return s.help(nil)
	} else if err != nil {
		return err
	}
	if len(args) == 0 || args[0] == "help" {
		if len(args) > 0 {
			args = args[1:]
		}
		return s.help(args)
	}
	name, cmd, rest, err := find(args)
	if errors.Is(err, flag.ErrHelp) {
		return s.help([]string{name})
	}
	if err != nil {
		return err
	}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	s.globals(fs)
	do := cmd.setup(fs)
	s.command = name
	pos, err := parseMixed(fs, rest)
	s.note(fs)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return s.help(strings.Fields(name))
	case err != nil && strings.HasPrefix(err.Error(), "flag provided but not defined: "):
		return usagef("%s: there is no flag %s (an argument that begins with - stands behind --)", name, strings.TrimPrefix(err.Error(), "flag provided but not defined: "))
	case err != nil:
		return usagef("%s: %v", name, err)
	case len(pos) < cmd.min:
		return usagef("%s: %d arguments given, %s wanted", name, len(pos), cmp.Or(cmd.args, "none"))
	case cmd.max >= 0 && len(pos) > cmd.max:
		return usagef("%s: unexpected argument %q", name, pos[cmd.max])
	}
	switch s.output {
	case "", "table", "json", "raw":
	case "wide":
		s.output, s.width = "table", 0
	default:
		return usagef("-o %s: want table, wide, json or raw", s.output)
	}
	if err := s.settle(); err != nil && !cmd.local {
		return err
	}
	return do(ctx, s, pos)
}

// globalArgs takes flags and an address that stand before the command's name. An address alone asks how the server is.
func (s *session) globalArgs(args []string) ([]string, error) {
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-version") {
		return []string{"version"}, nil
	}
	for {
		global := flag.NewFlagSet("kvctl", flag.ContinueOnError)
		global.SetOutput(io.Discard)
		s.globals(global)
		if err := global.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, usagef("%v", err)
		}
		s.note(global)
		if args = global.Args(); len(args) == 0 || !isAddress(args[0]) {
			return args, nil
		}
		if s.given["endpoint"] {
			return nil, usagef("%s: the endpoint is given already, as %s", args[0], s.endpoint)
		}
		s.endpoint, s.given["endpoint"] = args[0], true
		if args = args[1:]; len(args) == 0 {
			return []string{"status"}, nil
		}
	}
}

// find takes the command's name off args.
func find(args []string) (name string, cmd command, rest []string, err error) {
	if len(args) > 1 {
		name = args[0] + " " + args[1]
		if cmd, ok := commands[name]; ok {
			return name, cmd, args[2:], nil
		}
	}
	if cmd, ok := commands[args[0]]; ok {
		return args[0], cmd, args[1:], nil
	}
	if sub := group(args[0]); len(sub) > 0 && len(args) > 1 && slices.Contains([]string{"-h", "-help", "--help"}, args[1]) {
		return args[0], command{}, nil, flag.ErrHelp
	} else if len(sub) > 0 {
		return "", command{}, nil, usagef("%s what? One of: %s", args[0], strings.Join(sub, ", "))
	}
	if name := meant(args[0]); name != "" {
		return "", command{}, nil, usagef("unknown command %q; is it %s?", args[0], name)
	}
	return "", command{}, nil, usagef("unknown command %q", args[0])
}

// meant is the command that somebody means by a word: one that begins like it, or that is called so elsewhere.
func meant(word string) string {
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		if first, _, _ := strings.Cut(name, " "); len(word) > 1 && strings.HasPrefix(first, word) {
			return first
		}
	}
	return map[string]string{
		"set": "put", "write": "put", "read": "get", "delete": "del", "rm": "del", "remove": "del", "list": "ls", "keys": "ls", "scan": "ls", "count": "ls --count",
		"subscribe": "watch", "transaction": "txn", "multi": "txn", "info": "status", "ping": "status", "health": "status", "dump": "export", "restore": "import",
		"config": "context", "login": "context add", "benchmark": "bench", "certs": "ca",
	}[strings.ToLower(word)]
}

// parseMixed parses flags before, between and after arguments; behind "--" all are arguments.
func parseMixed(fs *flag.FlagSet, args []string) (pos []string, err error) {
	var tail []string
	for i, a := range args {
		if a == "--" {
			args, tail = args[:i], args[i+1:]
			break
		}
	}
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if args = fs.Args(); len(args) > 0 {
			pos, args = append(pos, args[0]), args[1:]
		}
	}
	return append(pos, tail...), nil
}

// connect dials on first use.
func (s *session) connect(ctx context.Context, more ...func(*client.Config)) (*client.Client, error) {
	if s.c != nil {
		return s.c, nil
	}
	cfg := client.Config{
		Endpoints: strings.Split(s.endpoint, ","), Keyspace: s.keyspace, Namespace: s.namespace, DialOptions: s.dial,
	}
	s.door.config(&cfg)
	for _, f := range more {
		f(&cfg)
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	c, err := s.dialSoon(ctx, cfg)
	// A server that takes connections without an answer is starting: recovering its data, most likely. One that does not even
	// take them is waited for only by who said how long.
	if k := kindOf(err); ctx.Err() == nil && (k == kverr.DeadlineExceeded || k == kverr.Unavailable && s.given["timeout"]) {
		fmt.Fprintf(s.stderr, "kvctl: no server answers at %s yet; waiting for it, %v at most (--timeout)\n", s.endpoint, s.timeout)
		c, err = client.Dial(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	s.c = c
	return c, nil
}

// dialSoon dials for as long as people wait without being told anything.
func (s *session) dialSoon(ctx context.Context, cfg client.Config) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.soon, 3*time.Second))
	defer cancel()
	return client.Dial(ctx, cfg)
}

// limited bounds ctx by --timeout.
func (s *session) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.timeout)
}

// never is longer than anybody waits.
const never = math.MaxInt64

// beginning bounds by --timeout when something begins that then takes as long as it takes: until begun is called.
func (s *session) beginning(ctx context.Context) (opening context.Context, begun, cancel func()) {
	opening, end := context.WithCancelCause(ctx)
	late := time.AfterFunc(cmp.Or(max(s.timeout, 0), never), func() { end(context.DeadlineExceeded) })
	return opening, func() { late.Stop() }, func() {
		late.Stop()
		end(nil)
	}
}
