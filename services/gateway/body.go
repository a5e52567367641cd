package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"kvstore/components/key"
	"kvstore/components/kverr"
)

const (
	// maxJSON bounds a body of JSON: a value of 16 MiB in base64, and what comes with it.
	maxJSON = 24 << 20
	// jsonMemory is what a body of JSON takes while it is worked on: itself, what is decoded, and the answer.
	jsonMemory = 3
	// maxWhole is how long a body may be that is read whole, and how long without a Content-Length; longer ones go to the store as they come.
	maxWhole = key.MaxChunk
)

// bodyFault is why a body could not be read.
func bodyFault(err error, left int64) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refuse(http.StatusRequestTimeout, reasonTimeout, "the body did not come in time")
	}
	if left > 0 {
		return kverr.Invalid("body", "ended %d bytes before its Content-Length", left)
	}
	return kverr.Invalid("body", "could not be read")
}

// readFull fills p from the body, a MiB within the time for one.
func (q *request) readFull(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		q.extend(q.control.SetReadDeadline)
		var m int
		m, err = io.ReadFull(q.r.Body, p[n:min(len(p), n+key.MaxChunk)])
		n += m
	}
	if n == len(p) {
		_ = q.control.SetReadDeadline(time.Time{}) // net/http reads on, to see whether the client leaves
	}
	return n, err
}

// readWhole reads a body of at most limit bytes. What it takes of the memory for bodies is given back by the caller.
func (q *request) readWhole(limit int64) ([]byte, error) {
	if n := q.r.ContentLength; n >= 0 {
		if n > limit {
			return nil, kverr.TooBig("body", n, limit, "bytes")
		}
		b := make([]byte, n)
		if m, err := q.readFull(b); err != nil {
			return nil, bodyFault(err, n-int64(m))
		}
		return b, nil
	}
	var b []byte
	for {
		room := min(limit+1-int64(len(b)), key.MaxChunk)
		if room == 0 {
			return nil, kverr.TooBig("body", int64(len(b)), limit, "bytes")
		}
		at := len(b)
		b = append(b, make([]byte, min(room, max(4<<10, int64(at))))...)
		n, err := q.readFull(b[at:])
		b = b[:at+n]
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && !q.cutOff():
			_ = q.control.SetReadDeadline(time.Time{})
			return b, nil
		case err != nil:
			return nil, bodyFault(err, 0)
		}
	}
}

// cutOff tells whether a body without a length ended before its last chunk. Whoever read up to there cannot tell the end that ReadFull makes of a
// short read from the one of a broken body: the next read can.
func (q *request) cutOff() bool {
	var one [1]byte
	_, err := q.r.Body.Read(one[:])
	return !errors.Is(err, io.EOF)
}

// decode reads a body of JSON into v, strictly: what is not known, or cannot be told as it came, is refused.
func (q *request) decode(v any) (free func(), err error) {
	none := func() {}
	if err := q.wantsJSON(); err != nil {
		return none, err
	}
	size := q.r.ContentLength
	if size < 0 || size > maxJSON {
		size = maxJSON
	}
	if err := q.g.takeBody(size * jsonMemory); err != nil {
		return none, err
	}
	free = func() { q.g.giveBody(size * jsonMemory) }
	b, err := q.readWhole(maxJSON)
	if err != nil {
		return free, err
	}
	return free, decodeJSON(b, v)
}

func (q *request) wantsJSON() error {
	if given := q.r.Header.Get("Content-Type"); given != "" {
		media, args, err := mime.ParseMediaType(given)
		if charset := args["charset"]; err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return refuse(http.StatusUnsupportedMediaType, reasonMediaType, "the body is %.80q; it must be application/json", given)
		}
	}
	if encoding := q.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return refuse(http.StatusUnsupportedMediaType, reasonMediaType, "the body is encoded with %.40q; JSON is taken as it is", encoding)
	}
	return nil
}

// decodeJSON is json.Unmarshal without its leniency: unknown fields, trailing text, and text that it would change without a word.
func decodeJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return kverr.Invalid("body", "is not UTF-8; give bytes as base64")
	}
	if loneSurrogate(b) {
		return kverr.Invalid("body", `has a \ud800 to \udfff that is no pair; give bytes as base64`)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var (
		syntax  *json.SyntaxError
		kind    *json.UnmarshalTypeError
		told, _ = strings.CutPrefix(fmt.Sprint(err), "json: ")
	)
	switch {
	case err == nil:
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return kverr.Invalid("body", "goes on after its JSON")
		}
		return nil
	case errors.As(err, &syntax):
		return kverr.Invalid("body", "is not JSON, at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return kverr.Invalid(cmp.Or(kind.Field, "body"), "is a %s; it must be %s", kind.Value, kindName(kind.Type.String()))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return kverr.Invalid("body", "ends before its JSON does")
	case strings.HasPrefix(told, "unknown field"):
		return kverr.Invalid("body", "has an %.100s", told)
	}
	return kverr.Invalid("body", "cannot be taken: %.100s", told)
}

// kindName tells a Go type to people.
func kindName(name string) string {
	switch {
	case strings.Contains(name, "int"):
		return "a whole number in range"
	case strings.Contains(name, "string"):
		return "a string"
	case strings.Contains(name, "bool"):
		return "true or false"
	case strings.HasPrefix(name, "[]uint8"):
		return "base64"
	case strings.HasPrefix(name, "[]"):
		return "a list"
	}
	return "an object"
}

// loneSurrogate finds escapes of halves of characters, which encoding/json replaces.
func loneSurrogate(b []byte) bool {
	high := false // the escape before was the first half
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' || i+1 >= len(b) {
			if high {
				return true
			}
			continue
		}
		i++
		if b[i] != 'u' || i+4 >= len(b) {
			if high {
				return true
			}
			continue
		}
		n, err := strconv.ParseUint(string(b[i+1:i+5]), 16, 16)
		i += 4
		switch {
		case err == nil && n >= 0xdc00 && n <= 0xdfff:
			if !high {
				return true
			}
			high = false
		case high:
			return true
		default:
			high = err == nil && n >= 0xd800 && n <= 0xdbff
		}
	}
	return high
}

// reply sends JSON.
func (q *request) reply(status int, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return kverr.Wrap(kverr.Unknown, "encode the reply", err)
	}
	h := q.w.Header()
	h["Content-Type"] = contentJSON
	return q.send(status, b.Bytes())
}

var contentJSON = []string{"application/json"}

// send sends a body that is there as a whole.
func (q *request) send(status int, b []byte) error {
	q.w.Header()["Content-Length"] = []string{strconv.Itoa(len(b))}
	q.begin(status)
	for len(b) > 0 {
		part := b[:min(len(b), key.MaxChunk)]
		if err := q.write(part); err != nil {
			return err
		}
		b = b[len(part):]
	}
	return nil
}

// begin sends status and headers.
func (q *request) begin(status int) {
	q.began = true
	q.w.WriteHeader(status)
}

// write sends a piece of a body, which the client must take in time.
func (q *request) write(p []byte) error {
	q.extend(q.control.SetWriteDeadline)
	if _, err := q.w.Write(p); err != nil {
		return &kverr.Error{Kind: kverr.Canceled, Op: "send the response", Err: err}
	}
	return nil
}

// chunks are buffers for bodies that pass through.
var chunks = sync.Pool{New: func() any {
	b := make([]byte, key.MaxChunk)
	return &b
}}
