package resp

import (
	"strconv"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Replies as they are on the wire. Those that depend on the protocol's version take it: 2 or 3.

func appendStatus(b []byte, text string) []byte {
	return append(append(append(b, '+'), text...), '\r', '\n')
}

// appendError appends an error, whose first word is its code.
func appendError(b []byte, text string) []byte {
	b = append(b, '-')
	for i := range len(text) {
		if c := text[i]; c == '\r' || c == '\n' {
			b = append(b, ' ')
		} else {
			b = append(b, c)
		}
	}
	return append(b, '\r', '\n')
}

func appendInt(b []byte, n int64) []byte {
	if n >= 0 && n < 10 {
		return append(b, ':', byte('0'+n), '\r', '\n')
	}
	return append(strconv.AppendInt(append(b, ':'), n, 10), '\r', '\n')
}

func appendHead(b []byte, kind byte, n int) []byte {
	return append(strconv.AppendInt(append(b, kind), int64(n), 10), '\r', '\n')
}

func appendBulk[T string | []byte](b []byte, value T) []byte {
	return append(append(appendHead(b, '$', len(value)), value...), '\r', '\n')
}

func appendNull(b []byte, version int) []byte {
	if version >= 3 {
		return append(b, "_\r\n"...)
	}
	return append(b, "$-1\r\n"...)
}

func appendNullArray(b []byte, version int) []byte {
	if version >= 3 {
		return append(b, "_\r\n"...)
	}
	return append(b, "*-1\r\n"...)
}

func appendArray(b []byte, n int) []byte { return appendHead(b, '*', n) }

// appendMap begins a map of n pairs; in version 2 it is an array of twice as many.
func appendMap(b []byte, version, n int) []byte {
	if version >= 3 {
		return appendHead(b, '%', n)
	}
	return appendHead(b, '*', 2*n)
}

// appendText appends text for people: a verbatim string in version 3.
func appendText(b []byte, version int, text string) []byte {
	if version < 3 {
		return appendBulk(b, text)
	}
	b = append(appendHead(b, '=', len(text)+4), "txt:"...)
	return append(append(b, text...), '\r', '\n')
}

// Errors with Redis's words.
const (
	errSyntax      = "ERR syntax error"
	errNotInteger  = "ERR value is not an integer or out of range"
	errOverflow    = "ERR increment or decrement would overflow"
	errNoAuth      = "NOAUTH Authentication required."
	errWrongPass   = "WRONGPASS invalid username-password pair or user is disabled."
	errNoPassword  = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
	errOutOfMemory = "OOM command not allowed when used memory > 'maxmemory'."
	errExecAbort   = "EXECABORT Transaction discarded because of previous errors."
	errCrossSlot   = "CROSSSLOT Keys in request don't hash to the same slot"
	errMaxClients  = "ERR max number of clients reached"
	errBadCursor   = "ERR invalid cursor"
	errTooLong     = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
)

func errArity(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

// faultText is an error of ours in the words of Redis's protocol. The code tells clients what to do: TRYAGAIN, OOM and MISCONF mean that nothing was
// done; UNKNOWN that it is not known whether it was.
func faultText(e *kvv1.Error) string {
	text := e.Message
	if e.Field != "" {
		text = e.Field + " " + text
	}
	switch e.Reason {
	case "RESOURCE_EXHAUSTED":
		return errOutOfMemory
	case "NO_SPACE":
		return "MISCONF " + text
	case "UNAVAILABLE", "OVERLOADED", "RATE_LIMITED":
		return "TRYAGAIN " + text
	case "OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED":
		return "UNKNOWN the outcome is not known: " + text
	case "UNAUTHENTICATED":
		return errNoAuth
	case "PERMISSION_DENIED":
		return "NOPERM " + text
	case "CROSS_PARTITION":
		return errCrossSlot
	}
	return "ERR " + e.Reason + " " + text
}
