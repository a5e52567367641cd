package resp

import "strings"

// command is a command of Redis's. One of parse, says and run is set.
type command struct {
	name      string
	arity     int    // arguments with the name; negative: at least so many
	flags     string // as COMMAND tells them
	first     int    // where keys are among the arguments, as COMMAND tells it
	last      int
	step      int
	parse     func(c *command, args [][]byte, in *intent, nowMS int64) (text string) // about keys: see intent; text is an error
	says      func(c *conn, b []byte, args [][]byte) []byte                          // appends a reply that depends on nothing before it
	run       func(c *conn, b []byte, args [][]byte) []byte                          // appends a reply, when all before it is done
	ends      bool                                                                   // done at once between MULTI and EXEC
	apart     bool                                                                   // not allowed there
	strangers bool                                                                   // allowed before AUTH
}

// fits tells whether there are as many arguments as there must be.
func (c *command) fits(n int) bool { return n == c.arity || c.arity < 0 && n >= -c.arity }

// commands are all commands, in the order of DESIGN.md.
var commands = []*command{
	{name: "get", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseKeys(verbGet)},
	{name: "set", arity: -3, flags: "write denyoom", first: 1, last: 1, step: 1, parse: parseSet},
	{name: "setnx", arity: 3, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseSetNX},
	{name: "setex", arity: 4, flags: "write denyoom", first: 1, last: 1, step: 1, parse: parseSetEX(1000)},
	{name: "psetex", arity: 4, flags: "write denyoom", first: 1, last: 1, step: 1, parse: parseSetEX(1)},
	{name: "getset", arity: 3, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseGetSet},
	{name: "getdel", arity: 2, flags: "write fast", first: 1, last: 1, step: 1, parse: parseKeys(verbGetDelete)},
	{name: "mget", arity: -2, flags: "readonly fast", first: 1, last: -1, step: 1, parse: parseKeys(verbMGet)},
	{name: "mset", arity: -3, flags: "write denyoom", first: 1, last: -1, step: 2, parse: parseMSet},
	{name: "del", arity: -2, flags: "write", first: 1, last: -1, step: 1, parse: parseKeys(verbDelete)},
	{name: "unlink", arity: -2, flags: "write fast", first: 1, last: -1, step: 1, parse: parseKeys(verbDelete)},
	{name: "exists", arity: -2, flags: "readonly fast", first: 1, last: -1, step: 1, parse: parseKeys(verbExists)},
	{name: "strlen", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseKeys(verbStrlen)},
	{name: "type", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseKeys(verbType)},
	{name: "incr", arity: 2, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseAdd(1)},
	{name: "decr", arity: 2, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseAdd(-1)},
	{name: "incrby", arity: 3, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseAdd(1)},
	{name: "decrby", arity: 3, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseAdd(-1)},
	{name: "append", arity: 3, flags: "write denyoom fast", first: 1, last: 1, step: 1, parse: parseAppend},
	{name: "expire", arity: -3, flags: "write fast", first: 1, last: 1, step: 1, parse: parseExpire(1000, false)},
	{name: "pexpire", arity: -3, flags: "write fast", first: 1, last: 1, step: 1, parse: parseExpire(1, false)},
	{name: "expireat", arity: -3, flags: "write fast", first: 1, last: 1, step: 1, parse: parseExpire(1000, true)},
	{name: "pexpireat", arity: -3, flags: "write fast", first: 1, last: 1, step: 1, parse: parseExpire(1, true)},
	{name: "persist", arity: 2, flags: "write fast", first: 1, last: 1, step: 1, parse: parsePersist},
	{name: "ttl", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseTTL(1000, false)},
	{name: "pttl", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseTTL(1, false)},
	{name: "expiretime", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseTTL(1000, true)},
	{name: "pexpiretime", arity: 2, flags: "readonly fast", first: 1, last: 1, step: 1, parse: parseTTL(1, true)},
	{name: "scan", arity: -2, flags: "readonly", run: runScan},
	{name: "dbsize", arity: 1, flags: "readonly fast", run: runDBSize},
	{name: "multi", arity: 1, flags: "noscript loading stale fast allow_busy", run: runMulti, ends: true},
	{name: "exec", arity: 1, flags: "noscript loading stale skip_slowlog", run: runExec, ends: true},
	{name: "discard", arity: 1, flags: "noscript loading stale fast allow_busy", run: runDiscard, ends: true},
	{name: "watch", arity: -2, flags: "noscript loading stale fast allow_busy", first: 1, last: -1, step: 1, run: runWatch, ends: true},
	{name: "unwatch", arity: 1, flags: "noscript loading stale fast allow_busy", run: runUnwatch},
	{name: "ping", arity: -1, flags: "fast", says: sayPing},
	{name: "echo", arity: 2, flags: "fast", says: sayEcho},
	{name: "hello", arity: -1, flags: "noscript loading stale fast no_auth allow_busy", run: runHello, apart: true, strangers: true},
	{name: "auth", arity: -2, flags: "noscript loading stale fast no_auth allow_busy", run: runAuth, apart: true, strangers: true},
	{name: "select", arity: 2, flags: "loading stale fast", run: runSelect, apart: true},
	{name: "client", arity: -2, flags: "", run: runClient},
	{name: "info", arity: -1, flags: "loading stale", run: runInfo},
	{name: "cluster", arity: -2, flags: "", run: runCluster},
	{name: "command", arity: -1, flags: "loading stale", run: runCommand},
	{name: "reset", arity: 1, flags: "noscript loading stale fast no_auth allow_busy", run: runReset, ends: true, strangers: true},
	{name: "quit", arity: -1, flags: "noscript loading stale fast no_auth allow_busy", run: runQuit, ends: true, strangers: true},
}

// What is above, by name in small letters, and as COMMAND lists it. A function makes both, for a variable that its own functions look at would be a
// cycle.
var (
	table  map[string]*command
	listed []*command
)

func init() {
	listed = commands
	table = make(map[string]*command, len(commands))
	for _, c := range commands {
		table[c.name] = c
	}
}

const longestName = 16

func lookUp(name []byte) *command {
	var room [longestName]byte
	if len(name) > longestName {
		return nil
	}
	small := room[:len(name)]
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 0x20
		}
		small[i] = c
	}
	return table[string(small)]
}

// errUnknownCommand is Redis's text, with as much of the arguments.
func errUnknownCommand(args [][]byte) string {
	var with strings.Builder
	for _, a := range args[1:] {
		if with.Len() >= 128 {
			break
		}
		with.WriteByte('\'')
		with.Write(a[:min(len(a), 128-with.Len()+1)])
		with.WriteString("' ")
	}
	name := args[0]
	return "ERR unknown command '" + string(name[:min(len(name), 128)]) + "', with args beginning with: " + with.String()
}
