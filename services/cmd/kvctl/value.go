package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kvstore/client"
)

// maxStdin bounds what is read from standard input into memory, where its length is not known beforehand.
const maxStdin = 512 << 20

// interruptible is an input that may not say anything for long, such as a keyboard: reading ends with ctx.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

// Read reads what comes next. What comes after ctx has ended is lost.
func (i interruptible) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	buf := make([]byte, min(len(p), 64<<10)) // not p, which is the caller's again when ctx ends
	done := make(chan result, 1)
	go func() {
		n, err := i.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case got := <-done:
		return copy(p, buf[:got.n]), got.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}

// value is a value from the command line, ready to be streamed. Close it.
type value struct {
	io.Reader // an io.Seeker too, so that it can be sent again
	io.Closer
	size int64
}

// openValue opens what an argument names: "-" standard input, "@file" a file, "@@..." a text that begins with @,
// anything else the text itself.
func (s *session) openValue(arg string) (value, error) {
	switch {
	case arg == "-":
		b, err := io.ReadAll(io.LimitReader(s.stdin, maxStdin+1))
		if err != nil {
			return value{}, fmt.Errorf("read standard input: %w", err)
		}
		if len(b) > maxStdin {
			return value{}, usagef("standard input has more than %s: put it into a file, and name that with @", bytesText(maxStdin))
		}
		return bytesValue(b), nil
	case strings.HasPrefix(arg, "@@"):
		return bytesValue([]byte(arg[1:])), nil
	case strings.HasPrefix(arg, "@"):
		f, err := os.Open(arg[1:])
		if err != nil {
			return value{}, usagef("%v (a value that begins with @ names a file; write @@ for a plain @)", err)
		}
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			_ = f.Close()
			return value{}, usagef("%s is not a regular file; give its content by - instead", arg[1:])
		}
		return value{Reader: f, Closer: f, size: st.Size()}, nil
	}
	return bytesValue([]byte(arg)), nil
}

func bytesValue(b []byte) value { return value{Reader: bytes.NewReader(b), size: int64(len(b))} }

// pairs collects repeated name=value flags.
type pairs map[string]string

// String is for package flag.
func (p pairs) String() string { return "" }

// Set is for package flag.
func (p pairs) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("want name=value")
	}
	p[k] = v
	return nil
}

// size is a number of bytes as people write it: 300, 16KiB, 80MiB, 1GiB, also 16k, 80m, 1g.
type size int64

// String is for package flag.
func (z *size) String() string { return strconv.FormatInt(int64(*z), 10) }

// Set is for package flag.
func (z *size) Set(s string) error {
	n, err := parseSize(s)
	*z = size(n)
	return err
}

func parseSize(s string) (int64, error) {
	low := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s), "b"), "i")
	shift := 0
	switch {
	case strings.HasSuffix(low, "k"):
		shift = 10
	case strings.HasSuffix(low, "m"):
		shift = 20
	case strings.HasSuffix(low, "g"):
		shift = 30
	}
	if shift > 0 {
		low = low[:len(low)-1]
	}
	n, err := strconv.ParseInt(low, 10, 64)
	if err != nil || n < 0 || n > 1<<40>>shift {
		return 0, fmt.Errorf("want a size such as 300, 16KiB or 80MiB")
	}
	return n << shift, nil
}

// entryJSON is an entry as -o json shows it: the value is text when it is UTF-8, otherwise base64.
type entryJSON struct {
	Key         string            `json:"key"`
	Value       *string           `json:"value,omitempty"`
	ValueBase64 *[]byte           `json:"value_base64,omitempty"`
	Version     uint64            `json:"version"`
	Size        int64             `json:"size"`
	Created     *time.Time        `json:"created,omitempty"`
	Updated     *time.Time        `json:"updated,omitempty"`
	Expires     *time.Time        `json:"expires,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Encoding    string            `json:"encoding,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
}

func toEntryJSON(e client.Entry) entryJSON {
	out := entryJSON{
		Key: e.Key, Version: e.Version, Size: e.Size, Created: optTime(e.Created), Updated: optTime(e.Updated),
		Expires: optTime(e.Expires), ContentType: e.ContentType, Encoding: e.Encoding, Metadata: e.Metadata, Tags: e.Tags,
	}
	if e.Value != nil && int64(len(e.Value)) == e.Size {
		if text := string(e.Value); utf8.ValidString(text) {
			out.Value = &text
		} else {
			out.ValueBase64 = &e.Value
		}
	}
	return out
}

func optTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
