package resp

import (
	"io"
	"net"

	"kvstore/components/kverr"
)

// Bounds of requests. Those with a Redis name are Redis's.
const (
	firstBuffer  = 4 << 10  // a connection's first buffer
	usualBuffer  = 64 << 10 // what it grows to when requests come in bulk
	maxInline    = 64 << 10 // a request that is a line; the line that tells a length
	maxArguments = 1 << 16  // arguments of a request
	maxBulk      = 512 << 20
	maxRequest   = 16<<20 + usualBuffer // a request that is held in memory
	streamAt     = 1 << 20              // a value of SET that is longer goes straight into an object

	strangerArguments = 10 // before AUTH
	strangerBulk      = 16 << 10
)

// protocolError is a fault after which nothing that follows can be understood: it is told and the connection ends.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

var errBudget = &kverr.Error{Kind: kverr.Unavailable, RetryAfterMS: 100,
	Message: "the request does not fit what this server has for large requests now; nothing was done"}

// reader takes requests apart. What it returns are views of its buffer, which stay until keep is called.
type reader struct {
	conn     net.Conn
	buf      []byte
	begin    int    // of the request at hand
	at       int    // how far it was taken apart
	end      int    // of what was read
	left     int    // arguments that are missing; 0 = a request begins
	length   int    // of the argument at hand; -1 = not known
	spans    []span // arguments of the request at hand, from begin
	args     [][]byte
	whole    bool         // the request at hand ended with a value that was streamed
	skip     int64        // bytes of an argument that is not kept, still to come
	dropped  *kverr.Error // why the request is not kept, but for its first argument; nil = it is
	stranger bool         // who has not said yet who he is: small requests
	budget   *budget
	reserved int64 // of budget
}

type span struct{ from, to int }

// parsed is what next found.
type parsed uint8

const (
	incomplete parsed = iota
	request           // in args
	bigValue          // the third argument of a SET, of length bytes, comes next and is long
)

// buffered tells whether bytes are there that were not taken apart.
func (r *reader) buffered() bool { return r.at < r.end }

// half tells whether a request has begun and is not whole.
func (r *reader) half() bool { return r.end > r.begin || r.left > 0 }

// next takes the next request out of the buffer.
func (r *reader) next(mayStream bool) (parsed, error) {
	if r.whole {
		r.whole = false
		r.fill()
		return request, nil
	}
	if r.left == 0 {
		r.begin = r.at
		r.spans, r.length, r.dropped = r.spans[:0], -1, nil
		if r.at == r.end {
			return incomplete, nil
		}
		if r.buf[r.at] != '*' {
			return r.inline()
		}
		n, ok, err := r.number(maxArguments, "invalid multibulk length", "too big mbulk count string")
		if !ok || err != nil {
			return incomplete, err
		}
		if r.stranger && n > strangerArguments {
			return incomplete, protocolError("unauthenticated multibulk length")
		}
		if n <= 0 { // says nothing
			r.args = r.args[:0]
			return request, nil
		}
		r.left = n
	}
	for r.left > 0 {
		if what, err := r.argument(mayStream); what != request || err != nil {
			return what, err
		}
	}
	r.fill()
	return request, nil
}

// fill makes args of spans.
func (r *reader) fill() {
	r.args = r.args[:0]
	for _, s := range r.spans {
		r.args = append(r.args, r.buf[r.begin+s.from:r.begin+s.to:r.begin+s.to])
	}
}

// argument takes one argument.
func (r *reader) argument(mayStream bool) (parsed, error) {
	if r.length < 0 {
		if r.at == r.end {
			return incomplete, nil
		}
		if c := r.buf[r.at]; c != '$' {
			return incomplete, protocolError("expected '$', got '" + printable(c) + "'")
		}
		n, ok, err := r.number(maxBulk, "invalid bulk length", "too big bulk count string")
		switch {
		case err != nil || !ok:
			return incomplete, err
		case n < 0:
			return incomplete, protocolError("invalid bulk length")
		case r.stranger && n > strangerBulk:
			return incomplete, protocolError("unauthenticated bulk length")
		}
		r.length = n
		if n > streamAt && mayStream && len(r.spans) == 2 && isSet(r.buf[r.begin+r.spans[0].from:r.begin+r.spans[0].to]) {
			return bigValue, nil
		}
		if r.dropped != nil {
			r.skip = int64(n)
		}
	}
	if r.skip > 0 {
		n := min(r.skip, int64(r.end-r.at))
		r.skip -= n
		r.at += int(n)
		if r.forget(); r.skip > 0 {
			return incomplete, nil
		}
		r.length = 0
	}
	if r.end-r.at < r.length+2 {
		return incomplete, nil
	}
	from := r.at - r.begin
	r.at += r.length
	r.spans = append(r.spans, span{from, from + r.length})
	r.at += 2 // as Redis does, whatever they are
	r.left--
	r.length = -1
	return request, nil
}

// forget gives back the room of the bytes that were skipped last: they are between the arguments kept and at.
func (r *reader) forget() {
	kept := 0
	if n := len(r.spans); n > 0 {
		kept = r.spans[n-1].to
	}
	n := copy(r.buf[r.begin+kept:], r.buf[r.at:r.end])
	r.at = r.begin + kept
	r.end = r.at + n
}

// number takes a line like *3 or $5. A line that is not whole is not ok.
func (r *reader) number(most int, bad, long protocolError) (n int, ok bool, err error) {
	i := r.at + 1
	neg := false
	if i < r.end && r.buf[i] == '-' {
		neg = true
		i++
	}
	first := i
	for ; i < r.end && r.buf[i] != '\r'; i++ {
		c := r.buf[i]
		if c < '0' || c > '9' || n > most {
			// What is no number is told once the line is whole, as Redis does.
			return r.notNumber(bad, long)
		}
		n = n*10 + int(c-'0')
	}
	if i+1 >= r.end { // the line feed is awaited too
		if i-r.at > maxInline {
			return 0, false, long
		}
		return 0, false, nil
	}
	if i == first || n > most {
		return 0, false, bad
	}
	r.at = i + 2
	if neg {
		n = -n
	}
	return n, true, nil
}

func (r *reader) notNumber(bad, long protocolError) (int, bool, error) {
	for i := r.at; i < r.end; i++ {
		if r.buf[i] == '\r' {
			return 0, false, bad
		}
	}
	if r.end-r.at > maxInline {
		return 0, false, long
	}
	return 0, false, nil
}

// inline takes a request that is a line of words.
func (r *reader) inline() (parsed, error) {
	i := r.at
	for i < r.end && r.buf[i] != '\n' {
		i++
	}
	if i == r.end {
		if i-r.at > maxInline {
			return incomplete, protocolError("too big inline request")
		}
		return incomplete, nil
	}
	line := r.buf[r.at:i]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	r.at = i + 1
	args, ok := words(line, r.args[:0])
	if !ok {
		return incomplete, protocolError("unbalanced quotes in request")
	}
	r.args = args
	return request, nil
}

// keep tells that views of requests before the one at hand are used no more, and makes room for more bytes.
func (r *reader) keep() {
	if r.left == 0 {
		r.begin = r.at
	}
	if r.begin > 0 {
		n := copy(r.buf, r.buf[r.begin:r.end])
		r.at -= r.begin
		r.begin, r.end = 0, n
	}
	if r.reserved > 0 && r.left == 0 { // the large request is done
		r.budget.give(r.reserved)
		r.reserved = 0
	}
	if len(r.buf) > usualBuffer && r.reserved == 0 {
		buf := make([]byte, max(usualBuffer, r.end)) // what is behind a large request is less than firstBuffer
		copy(buf, r.buf[:r.end])
		r.buf = buf
	}
}

// read reads once, or gives up keeping the request at hand, which makes room. Keep was called before.
func (r *reader) read() error {
	if r.end == len(r.buf) {
		if full := r.grow(); full != nil {
			r.drop(full)
			return nil // that made room
		}
	}
	n, err := r.conn.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// grow makes the buffer larger: for the argument at hand at once, otherwise twice as large. What it takes over the usual is taken from what all
// connections have for that together.
func (r *reader) grow() *kverr.Error {
	size := max(firstBuffer, 2*len(r.buf))
	if r.length >= 0 {
		size = max(size, r.at+r.length+2+firstBuffer)
	}
	if size > usualBuffer {
		if len(r.buf) < usualBuffer && r.length <= usualBuffer/2 {
			size = usualBuffer
		} else if size-usualBuffer > maxRequest {
			return kverr.TooBig("request", size-usualBuffer, maxRequest, "bytes")
		}
	}
	if more := int64(size-usualBuffer) - r.reserved; more > 0 {
		if !r.budget.take(more) {
			return errBudget
		}
		r.reserved += more
	}
	buf := make([]byte, size)
	copy(buf, r.buf[:r.end])
	r.buf = buf
	return nil
}

// drop gives up keeping the request at hand: its arguments are read and skipped.
func (r *reader) drop(why *kverr.Error) {
	r.dropped = why
	r.spans = r.spans[:min(len(r.spans), 1)]
	if r.length > 0 {
		r.skip = int64(r.length)
	}
	r.forget()
}

// take is a Read of the rest of a big value: what is in the buffer first.
func (r *reader) take(p []byte) (int, error) {
	if r.at < r.end {
		n := copy(p, r.buf[r.at:r.end])
		r.at += n
		if r.at == r.end {
			r.forget()
		}
		return n, nil
	}
	return r.conn.Read(p)
}

// streamed tells that the big value is read: an argument that is not there takes its place.
func (r *reader) streamed() {
	r.forget()
	from := r.at - r.begin
	r.spans = append(r.spans, span{from, from})
	r.length = -1
	r.left--
	r.whole = r.left == 0
}

// close gives back what was reserved.
func (r *reader) close() {
	r.budget.give(r.reserved)
	r.reserved = 0
}

// abandon leaves the buffer to whoever still looks at it.
func (r *reader) abandon() {
	rest := r.buf[r.begin:r.end]
	r.buf = append(make([]byte, 0, max(len(rest), firstBuffer)), rest...)
	r.buf = r.buf[:cap(r.buf)]
	r.at -= r.begin
	r.end -= r.begin
	r.begin = 0
}

func isSet(b []byte) bool {
	return len(b) == 3 && b[0]|0x20 == 's' && b[1]|0x20 == 'e' && b[2]|0x20 == 't'
}

// printable is a byte as Redis shows it in an error.
func printable(c byte) string { return string([]byte{c}) }

// words splits a line as Redis does: at spaces, with "quotes" (\n \r \t \b \a \xHH inside) and 'quotes' (\' inside).
func words(line []byte, out [][]byte) ([][]byte, bool) {
	for i := 0; ; {
		for i < len(line) && space(line[i]) {
			i++
		}
		if i == len(line) {
			return out, true
		}
		word := []byte{}
		for i < len(line) && !space(line[i]) {
			switch c := line[i]; c {
			case '"', '\'':
				n, quoted, ok := quotedWord(line[i:], word)
				if !ok {
					return nil, false
				}
				word = quoted
				i += n
				if i < len(line) && !space(line[i]) {
					return nil, false
				}
			default:
				word = append(word, c)
				i++
			}
		}
		out = append(out, word)
	}
}

// quotedWord takes the quoted part that b begins with, n bytes of it.
func quotedWord(b, word []byte) (n int, _ []byte, ok bool) {
	quote := b[0]
	for i := 1; i < len(b); i++ {
		c := b[i]
		switch {
		case c == quote:
			return i + 1, word, true
		case c == '\\' && quote == '\'' && i+1 < len(b) && b[i+1] == '\'':
			word = append(word, '\'')
			i++
		case c == '\\' && quote == '"' && i+3 < len(b) && b[i+1] == 'x' && hexDigit(b[i+2]) >= 0 && hexDigit(b[i+3]) >= 0:
			word = append(word, byte(hexDigit(b[i+2])<<4|hexDigit(b[i+3])))
			i += 3
		case c == '\\' && quote == '"' && i+1 < len(b):
			i++
			c = b[i]
			switch c {
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case 'a':
				c = '\a'
			}
			word = append(word, c)
		default:
			word = append(word, c)
		}
	}
	return 0, nil, false
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

func space(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' || c == 0 }

// argumentAt is an argument of the request at hand.
func (r *reader) argumentAt(i int) []byte {
	s := r.spans[i]
	return r.buf[r.begin+s.from : r.begin+s.to]
}
