package resp

import (
	"math"
	"strconv"

	"kvstore/actors/shard"
)

// verb is what a request about keys does.
type verb uint8

const (
	verbGet verb = iota
	verbMGet
	verbExists
	verbStrlen
	verbTTL
	verbType
	verbSet
	verbMSet
	verbDelete
	verbGetDelete
	verbAdd
	verbAppend
	verbExpire
)

// intent is a request about keys, parsed: what it does, whichever way it is done (see conn.begins and atomically).
type intent struct {
	verb   verb
	keys   [][]byte // MSET: keys and values in turn
	step   int      // from key to key in keys
	value  []byte
	apart  *bigArgument // the value, when it is in an object already
	when   shard.Check  // SET: CheckAbsent or CheckPresent
	old    bool         // SET: answers the value that was there
	number bool         // SETNX: answers 1 or 0
	keep   bool         // SET: the expiry stays
	ttl    int64        // SET: milliseconds; 0 = none
	at     int64        // SET, EXPIRE: milliseconds since the Unix epoch; 0 = none
	delta  int64
	on     shard.EditWhen // EXPIRE
	unit   int64          // TTL: milliseconds of what is answered
	moment bool           // EXPIRETIME: when, not how long
}

// writes tells whether the request may change something.
func (in *intent) writes() bool { return in.verb >= verbSet }

// costs is how many operations the request counts as: one for each key.
func (in *intent) costs() int { return max(1, len(in.keys)/max(1, in.step)) }

// key is the key of a request that has one.
func (in *intent) key() []byte { return in.keys[0] }

// use is how the request uses its keys.
func (in *intent) use() use {
	switch {
	case !in.writes():
		return reads
	case in.verb == verbAppend: // it may have to be done in another way, later
		return alone
	}
	return writes
}

// slow tells whether the request needs to see what is there before it writes, so that it is done by itself.
func (in *intent) slow() bool { return in.old || in.verb == verbGetDelete }

// maxTTLMS is as far ahead as an expiry may be, as for all other ways in.
const maxTTLMS = 100 * 365 * 24 * 3600 * 1000

// integer reads a number as Redis does: no sign but a minus, no zeros before it, nothing around it.
func integer(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 20 || b[0] == '+' || b[0] == '0' && len(b) > 1 || b[0] == '-' && (len(b) == 1 || b[1] == '0') {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}

// word tells whether an argument is a word, in whatever letters.
func word(b []byte, w string) bool {
	if len(b) != len(w) {
		return false
	}
	for i := range b {
		if c := b[i]; c != w[i] && (c < 'a' || c > 'z' || c-0x20 != w[i]) {
			return false
		}
	}
	return true
}

func parseKeys(v verb) func(*command, [][]byte, *intent, int64) string {
	return func(_ *command, args [][]byte, in *intent, _ int64) string {
		in.verb, in.keys, in.step = v, args[1:], 1
		return ""
	}
}

func parseTTL(unit int64, moment bool) func(*command, [][]byte, *intent, int64) string {
	return func(_ *command, args [][]byte, in *intent, _ int64) string {
		in.verb, in.keys, in.step, in.unit, in.moment = verbTTL, args[1:], 1, unit, moment
		return ""
	}
}

func parseMSet(c *command, args [][]byte, in *intent, _ int64) string {
	if len(args)%2 == 0 {
		return errArity(c.name)
	}
	in.verb, in.keys, in.step = verbMSet, args[1:], 2
	return ""
}

// expiry reads an expiry in seconds (unit 1,000) or milliseconds, from now on or (absolute) since the Unix epoch. It must be positive.
func expiry(b []byte, unit int64, absolute bool, now int64, in *intent) (text string) {
	n, ok := integer(b)
	if !ok {
		return errNotInteger
	}
	if n <= 0 || n > math.MaxInt64/unit {
		return "invalid"
	}
	n *= unit
	if absolute {
		if in.at = n; n > now+maxTTLMS {
			return "invalid"
		}
		return ""
	}
	if in.ttl = n; n > maxTTLMS {
		return "invalid"
	}
	return ""
}

func errExpire(name string) string { return "ERR invalid expire time in '" + name + "' command" }

func parseSet(c *command, args [][]byte, in *intent, now int64) string {
	in.verb, in.keys, in.step, in.value = verbSet, args[1:2], 1, args[2]
	var amount []byte
	var as *setExpiry
	for i := 3; i < len(args); i++ {
		a := args[i]
		switch {
		case word(a, "NX") && in.when != shard.CheckPresent:
			in.when = shard.CheckAbsent
		case word(a, "XX") && in.when != shard.CheckAbsent:
			in.when = shard.CheckPresent
		case word(a, "GET"):
			in.old = true
		case word(a, "KEEPTTL") && as == nil:
			in.keep = true
		default: // said again in the same way, the last counts
			e := findExpiry(a)
			if e == nil || as != nil && e != as || in.keep || i+1 == len(args) {
				return errSyntax
			}
			as = e
			i++
			amount = args[i]
		}
	}
	if as == nil {
		return ""
	}
	if text := expiry(amount, as.unit, as.absolute, now, in); text == "invalid" {
		return errExpire(c.name)
	} else if text != "" {
		return text
	}
	return ""
}

// setExpiry is a way to say when a key expires.
type setExpiry struct {
	word     string
	unit     int64 // milliseconds
	absolute bool
}

var setExpiries = []setExpiry{{"EX", 1000, false}, {"PX", 1, false}, {"EXAT", 1000, true}, {"PXAT", 1, true}}

func findExpiry(a []byte) *setExpiry {
	for i := range setExpiries {
		if word(a, setExpiries[i].word) {
			return &setExpiries[i]
		}
	}
	return nil
}

func parseSetNX(_ *command, args [][]byte, in *intent, _ int64) string {
	in.verb, in.keys, in.step, in.value = verbSet, args[1:2], 1, args[2]
	in.when, in.number = shard.CheckAbsent, true
	return ""
}

func parseGetSet(_ *command, args [][]byte, in *intent, _ int64) string {
	in.verb, in.keys, in.step, in.value, in.old = verbSet, args[1:2], 1, args[2], true
	return ""
}

func parseSetEX(unit int64) func(*command, [][]byte, *intent, int64) string {
	return func(c *command, args [][]byte, in *intent, now int64) string {
		in.verb, in.keys, in.step, in.value = verbSet, args[1:2], 1, args[3]
		text := expiry(args[2], unit, false, now, in)
		if text == "invalid" {
			return errExpire(c.name)
		}
		return text
	}
}

func parseAppend(_ *command, args [][]byte, in *intent, _ int64) string {
	in.verb, in.keys, in.step, in.value = verbAppend, args[1:2], 1, args[2]
	return ""
}

// parseAdd is for INCR and its like: the number is sign, or sign times the second argument.
func parseAdd(sign int64) func(*command, [][]byte, *intent, int64) string {
	return func(_ *command, args [][]byte, in *intent, _ int64) string {
		in.verb, in.keys, in.step, in.delta = verbAdd, args[1:2], 1, sign
		if len(args) == 2 {
			return ""
		}
		n, ok := integer(args[2])
		switch {
		case !ok:
			return errNotInteger
		case sign < 0 && n == math.MinInt64:
			return "ERR decrement would overflow"
		}
		in.delta = sign * n
		return ""
	}
}

func parseExpire(unit int64, absolute bool) func(*command, [][]byte, *intent, int64) string {
	return func(c *command, args [][]byte, in *intent, now int64) string {
		in.verb, in.keys, in.step = verbExpire, args[1:2], 1
		for _, a := range args[3:] {
			switch {
			case word(a, "NX"):
				in.on |= shard.WhenNone
			case word(a, "XX"):
				in.on |= shard.WhenSome
			case word(a, "GT"):
				in.on |= shard.WhenLater
			case word(a, "LT"):
				in.on |= shard.WhenEarlier
			default:
				return "ERR Unsupported option " + string(a)
			}
		}
		if in.on&shard.WhenNone != 0 && in.on != shard.WhenNone {
			return "ERR NX and XX, GT or LT options at the same time are not compatible"
		}
		if both := shard.WhenLater | shard.WhenEarlier; in.on&both == both {
			return "ERR GT and LT options at the same time are not compatible"
		}
		n, ok := integer(args[2])
		if !ok {
			return errNotInteger
		}
		if n > math.MaxInt64/unit || n < math.MinInt64/unit {
			return errExpire(c.name)
		}
		n *= unit
		if !absolute {
			if n > math.MaxInt64-now {
				return errExpire(c.name)
			}
			n += now
		}
		if n > now+maxTTLMS {
			return errExpire(c.name)
		}
		in.at = max(n, 1) // long over
		return ""
	}
}

func parsePersist(_ *command, args [][]byte, in *intent, _ int64) string {
	in.verb, in.keys, in.step, in.on = verbExpire, args[1:2], 1, shard.WhenSome
	return ""
}
