package resp

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"kvstore/components/authn"
	"kvstore/services/frontend"
)

// RedisVersion is the version of Redis whose behaviour and words the commands have; clients ask for it to know what they may send.
const RedisVersion = "7.0.15"

func sayPing(c *conn, b []byte, args [][]byte) []byte {
	switch len(args) {
	case 1:
		return append(b, "+PONG\r\n"...)
	case 2:
		return appendBulk(b, args[1])
	}
	return appendError(b, errArity("ping"))
}

func sayEcho(_ *conn, b []byte, args [][]byte) []byte { return appendBulk(b, args[1]) }

func runQuit(c *conn, b []byte, _ [][]byte) []byte {
	c.closing = true
	return append(b, "+OK\r\n"...)
}

// logIn takes a user, which is the keyspace, and a password, which is a token; text is an error. Where no token is wanted, any password is good.
func (c *conn) logIn(user, password string) (text string) {
	if user == "" {
		user = frontend.DefaultName
	}
	if !c.s.face.Open() {
		pass, err := c.s.face.Admit(c.ctx, where, password)
		if err != nil {
			return errWrongPass
		}
		ctx := authn.NewContext(c.ctx, pass)
		// A token without a role in the keyspace is no better than none, so that names of keyspaces are not to be tried.
		if _, err := c.s.face.Namespace(ctx, user, c.s.cfg.Databases[0]); err != nil && faultText(c.s.face.Item(where, err))[:2] == "NO" {
			return errWrongPass
		}
		c.ctx = ctx
	}
	c.in, c.r.stranger = true, false
	c.waiting.Store(0)
	c.keyspace, c.db, c.watches = user, 0, nil
	c.asked, c.askedMore = false, false
	return ""
}

func runAuth(c *conn, b []byte, args [][]byte) []byte {
	user, password := "", args[len(args)-1]
	switch {
	case len(args) > 3:
		return appendError(b, errSyntax)
	case len(args) == 3:
		user = string(args[1])
	case c.s.face.Open():
		return appendError(b, errNoPassword)
	}
	if text := c.logIn(user, string(password)); text != "" {
		return appendError(b, text)
	}
	return append(b, "+OK\r\n"...)
}

func runHello(c *conn, b []byte, args [][]byte) []byte {
	version := c.version
	next := 1
	if len(args) > 1 {
		n, ok := integer(args[1])
		switch {
		case !ok:
			return appendError(b, "ERR Protocol version is not an integer or out of range")
		case n < 2 || n > 3:
			return appendError(b, "NOPROTO unsupported protocol version")
		}
		version, next = int(n), 2
	}
	var user, password, name []byte
	auth, named := false, false
	for i := next; i < len(args); i++ {
		more := len(args) - 1 - i
		switch {
		case word(args[i], "AUTH") && more >= 2:
			auth, user, password = true, args[i+1], args[i+2]
			i += 2
		case word(args[i], "SETNAME") && more >= 1:
			named, name = true, args[i+1]
			if !plain(name) {
				return appendError(b, errClientName)
			}
			i++
		default:
			return appendError(b, "ERR Syntax error in HELLO option '"+string(args[i])+"'")
		}
	}
	if auth {
		if text := c.logIn(string(user), string(password)); text != "" {
			return appendError(b, text)
		}
	}
	if !c.in {
		return appendError(b, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
	}
	if named {
		c.name = string(name)
	}
	c.version = version
	b = appendMap(b, c.version, 7)
	b = appendBulk(appendBulk(b, "server"), "redis")
	b = appendBulk(appendBulk(b, "version"), RedisVersion)
	b = appendInt(appendBulk(b, "proto"), int64(c.version))
	b = appendInt(appendBulk(b, "id"), c.id)
	b = appendBulk(appendBulk(b, "mode"), "standalone")
	b = appendBulk(appendBulk(b, "role"), "master")
	return appendArray(appendBulk(b, "modules"), 0)
}

func runReset(c *conn, b []byte, _ [][]byte) []byte {
	c.dropMulti()
	c.version, c.name, c.db = 2, "", 0
	if !c.s.face.Open() {
		c.in, c.r.stranger = false, true
		c.ctx = authn.NewContext(c.ctx, nil)
		c.waiting.Store(time.Now().UnixNano())
	}
	c.keyspace = ""
	return appendStatus(b, "RESET")
}

func runSelect(c *conn, b []byte, args [][]byte) []byte {
	n, ok := integer(args[1])
	switch {
	case !ok:
		return appendError(b, errNotInteger)
	case n > math.MaxInt32 || n < math.MinInt32:
		return appendError(b, "ERR value is out of range, value must between -2147483648 and 2147483647")
	case n < 0 || n >= int64(len(c.s.cfg.Databases)):
		return appendError(b, "ERR DB index is out of range")
	}
	c.db = int(n)
	return append(b, "+OK\r\n"...)
}

const errClientName = "ERR Client names cannot contain spaces, newlines or special characters."

// plain tells whether a name is of visible characters only.
func plain(b []byte) bool {
	for _, c := range b {
		if c < '!' || c > '~' {
			return false
		}
	}
	return len(b) <= 256
}

func runClient(c *conn, b []byte, args [][]byte) []byte {
	sub := args[1]
	count := func(n int) bool { return len(args) == n }
	name := strings.ToLower(string(sub[:min(len(sub), 64)]))
	switch name {
	case "setname":
		if count(3) {
			if !plain(args[2]) {
				return appendError(b, errClientName)
			}
			c.name = string(args[2])
			return append(b, "+OK\r\n"...)
		}
	case "getname":
		if count(2) {
			if c.name == "" {
				return appendNull(b, c.version)
			}
			return appendBulk(b, c.name)
		}
	case "id":
		if count(2) {
			return appendInt(b, c.id)
		}
	case "info":
		if count(2) {
			return appendText(b, c.version, c.describe()+"\n")
		}
	case "list":
		if count(2) {
			return appendText(b, c.version, c.describe()+"\n") // of others he is told nothing
		}
	case "setinfo":
		if count(4) {
			if !plain(args[3]) {
				return appendError(b, "ERR "+strings.ToLower(string(args[2]))+" cannot contain spaces, newlines or special characters.")
			}
			switch {
			case word(args[2], "LIB-NAME"):
				c.lib = string(args[3])
			case word(args[2], "LIB-VER"):
				c.libVersion = string(args[3])
			default:
				return appendError(b, "ERR Unrecognized option '"+string(args[2])+"'")
			}
			return append(b, "+OK\r\n"...)
		}
	case "no-evict", "no-touch":
		if count(3) {
			if !word(args[2], "ON") && !word(args[2], "OFF") {
				return appendError(b, errSyntax)
			}
			return append(b, "+OK\r\n"...)
		}
	default:
		return appendError(b, unknownSub(sub, "CLIENT"))
	}
	return appendError(b, errArity("client|"+name))
}

func unknownSub(sub []byte, name string) string {
	return "ERR unknown subcommand '" + string(sub[:min(len(sub), 128)]) + "'. Try " + name + " HELP."
}

// describe is the connection as CLIENT INFO tells it.
func (c *conn) describe() string {
	multi := -1
	if c.multi != nil {
		multi = len(c.multi.steps)
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s name=%s age=%d db=%d multi=%d watch=%d resp=%d lib-name=%s lib-ver=%s user=%s",
		c.id, c.raw.RemoteAddr(), c.raw.LocalAddr(), c.name, int(time.Since(c.began).Seconds()), c.db, multi, len(c.watches), c.version,
		c.lib, c.libVersion, c.user())
}

func (c *conn) user() string {
	if c.keyspace == "" {
		return frontend.DefaultName
	}
	return c.keyspace
}

func runCluster(_ *conn, b []byte, _ [][]byte) []byte {
	return appendError(b, "ERR This instance has cluster support disabled")
}

func runCommand(c *conn, b []byte, args [][]byte) []byte {
	if len(args) == 1 {
		b = appendArray(b, len(listed))
		for _, cmd := range listed {
			b = cmd.describe(b)
		}
		return b
	}
	switch {
	case word(args[1], "COUNT") && len(args) == 2:
		return appendInt(b, int64(len(listed)))
	case word(args[1], "DOCS"):
		return appendMap(b, c.version, 0)
	case word(args[1], "LIST") && len(args) == 2:
		b = appendArray(b, len(listed))
		for _, cmd := range listed {
			b = appendBulk(b, cmd.name)
		}
		return b
	case word(args[1], "INFO"):
		b = appendArray(b, len(args)-2)
		for _, name := range args[2:] {
			if cmd := lookUp(name); cmd != nil {
				b = cmd.describe(b)
			} else {
				b = appendNullArray(b, c.version)
			}
		}
		return b
	}
	return appendError(b, unknownSub(args[1], "COMMAND"))
}

// describe is the command as COMMAND tells it: name, arity, flags, first key, last key, step; no categories, tips, key specifications, subcommands.
func (c *command) describe(b []byte) []byte {
	b = appendInt(appendBulk(appendArray(b, 10), c.name), int64(c.arity))
	flags := strings.Fields(c.flags)
	b = appendArray(b, len(flags))
	for _, f := range flags {
		b = appendStatus(b, f)
	}
	b = appendInt(appendInt(appendInt(b, int64(c.first)), int64(c.last)), int64(c.step))
	for range 4 {
		b = appendArray(b, 0)
	}
	return b
}

// runInfo tells what clients look for; what the server is doing is for the admin port.
func runInfo(c *conn, b []byte, args [][]byte) []byte {
	var text strings.Builder
	wanted := func(section string) bool {
		for _, a := range args[1:] {
			if word(a, "ALL") || word(a, "EVERYTHING") || word(a, "DEFAULT") || word(a, strings.ToUpper(section)) {
				if text.Len() > 0 {
					text.WriteString("\r\n")
				}
				return true
			}
		}
		if len(args) == 1 && text.Len() > 0 {
			text.WriteString("\r\n")
		}
		return len(args) == 1
	}
	s := c.s
	if wanted("server") {
		up := int(time.Since(s.started).Seconds())
		fmt.Fprintf(&text, "# Server\r\nredis_version:%s\r\nredis_mode:standalone\r\nrun_id:%s\r\nuptime_in_seconds:%d\r\nuptime_in_days:%d\r\nkvstore_version:%s\r\n",
			RedisVersion, s.run, up, up/86400, s.cfg.Version)
	}
	if wanted("clients") {
		s.mu.Lock()
		n := len(s.conns)
		s.mu.Unlock()
		fmt.Fprintf(&text, "# Clients\r\nconnected_clients:%d\r\nmaxclients:%d\r\nrequest_buffer_bytes:%d\r\n",
			n, s.cfg.MaxConns, s.cfg.BufferBytes-s.budget.left.Load())
	}
	if wanted("persistence") {
		text.WriteString("# Persistence\r\nloading:0\r\naof_enabled:1\r\n")
	}
	if wanted("stats") {
		fmt.Fprintf(&text, "# Stats\r\ntotal_connections_received:%d\r\ntotal_commands_processed:%d\r\nmisses_for_errors:%d\r\n",
			s.ids.Load(), s.served.Load(), s.missed.Load())
	}
	if wanted("replication") {
		fmt.Fprintf(&text, "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_failover_state:no-failover\r\nmaster_replid:%s\r\nmaster_repl_offset:0\r\n", s.run)
	}
	if wanted("cluster") {
		text.WriteString("# Cluster\r\ncluster_enabled:0\r\n")
	}
	if wanted("keyspace") {
		text.WriteString("# Keyspace\r\n")
		if n, err := c.countKeys(); err == nil && n > 0 {
			text.WriteString("db" + strconv.Itoa(c.db) + ":keys=" + strconv.FormatInt(n, 10) + ",expires=0,avg_ttl=0\r\n")
		}
	}
	return appendText(b, c.version, text.String())
}
