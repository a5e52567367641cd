package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// An export is JSON lines: a head, the entries in byte order of their keys, an end. An entry is a line as of "kvctl get -o json"; the value of
// a long one follows it, in lines of its own, so that neither side ever holds it as a whole. Whoever writes such a file by hand may leave
// head and end out.
//
//	{"export":{"format":1,"keyspace":"default","namespace":"default","prefix":"user/","watch_token":"AQAB..."}}
//	{"key":"user/42","value":"Ada","version":17,"size":3,"created":"2024-05-01T10:00:00Z","tags":{"a":"1"}}
//	{"key":"user/film","version":18,"size":3000000,"chunked":true}
//	{"chunk":"AAAB..."}
//	{"end":{"keys":2,"bytes":3000003}}

// exportFormat is the number of the format; others are refused.
const exportFormat = 1

// Limits of what is held in memory of a file.
const (
	chunkOver = 256 << 10 // values longer than this go in chunks
	chunkSize = 256 << 10
	maxLine   = 32 << 20 // of a file that somebody else has made: it may hold values in one piece
)

// exportHead says what an export is of.
type exportHead struct {
	Format    int        `json:"format"`
	Keyspace  string     `json:"keyspace"`
	Namespace string     `json:"namespace"`
	Prefix    string     `json:"prefix,omitempty"`
	Start     string     `json:"start,omitempty"`
	End       string     `json:"end,omitempty"`
	Began     *time.Time `json:"began,omitempty"`
	Watch     []byte     `json:"watch_token,omitempty"` // what changed since can be watched from here
}

// exportEnd is the last line of an export that is whole.
type exportEnd struct {
	Keys  int64 `json:"keys"`
	Bytes int64 `json:"bytes"`
}

// Lines as they are written.
type (
	headLine struct {
		Export exportHead `json:"export"`
	}
	endLine struct {
		End exportEnd `json:"end"`
	}
	chunkLine struct {
		Chunk []byte `json:"chunk"`
	}
	entryLine struct {
		entryJSON
		Chunked bool `json:"chunked,omitempty"`
	}
)

// record is a line as it is read: exactly one of Export, End, Chunk and Key is there. Version and times but for Expires tell people; they are not
// imported.
type record struct {
	Export *exportHead `json:"export"`
	End    *exportEnd  `json:"end"`
	Chunk  []byte      `json:"chunk"`
	entryJSON
	Key     *string `json:"key"`  // in place of entryJSON's
	Size    *int64  `json:"size"` // likewise
	Chunked bool    `json:"chunked"`
}

// parseRecord reads a line; the error says what is wrong with it, not where it is.
func parseRecord(line []byte) (record, error) {
	var r record
	if !utf8.Valid(line) {
		return r, errors.New("is not UTF-8: keys are, and values that are not go into value_base64")
	}
	if at := loneSurrogate(line); at >= 0 {
		return r, fmt.Errorf("has half a character at byte %d (%s)", at+1, line[at:min(len(line), at+6)])
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("is no record: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("has more than one JSON object")
	}
	n := 0
	for _, there := range []bool{r.Export != nil, r.End != nil, r.Chunk != nil, r.Key != nil} {
		if there {
			n++
		}
	}
	switch {
	case n != 1:
		return r, errors.New(`is no record: it needs "key", and a value`)
	case r.Export != nil && r.Export.Format != exportFormat:
		return r, fmt.Errorf("is of format %d; this kvctl knows %d", r.Export.Format, exportFormat)
	case r.Key != nil:
		return r, r.checkEntry()
	}
	return r, nil
}

// checkEntry finds fault with an entry.
func (r *record) checkEntry() error {
	if r.Chunked {
		if r.Value != nil || r.ValueBase64 != nil || r.Size == nil || *r.Size < 0 {
			return errors.New("chunked: it needs a size, and no value")
		}
		return nil
	}
	switch {
	case r.Value == nil && r.ValueBase64 == nil:
		return errors.New("has neither value nor value_base64")
	case r.Value != nil && r.ValueBase64 != nil:
		return errors.New("has both value and value_base64")
	case r.Size != nil && *r.Size != int64(len(r.value())):
		return fmt.Errorf("says that its value has %d bytes; it has %d", *r.Size, len(r.value()))
	}
	return nil
}

// value is the value of an entry that is not chunked.
func (r *record) value() []byte {
	if r.Value != nil {
		return []byte(*r.Value)
	}
	return *r.ValueBase64
}

// size is the length of an entry's value.
func (r *record) size() int64 {
	if r.Chunked {
		return *r.Size
	}
	return int64(len(r.value()))
}

// loneSurrogate is where a \uD800 to \uDFFF stands alone, which encoding/json would silently replace; -1 when none does.
func loneSurrogate(line []byte) int {
	half := func(at int) (low, ok bool) { // is there a \uD8xx to \uDFxx, and is it one of the second halves?
		if at+6 > len(line) || line[at] != '\\' || line[at+1] != 'u' || line[at+2]|0x20 != 'd' {
			return false, false
		}
		switch c := line[at+3] | 0x20; {
		case c == '8' || c == '9' || c == 'a' || c == 'b':
			return false, true
		case c >= 'c' && c <= 'f':
			return true, true
		}
		return false, false
	}
	for i := 0; i < len(line); i++ {
		if line[i] != '\\' {
			continue
		}
		low, ok := half(i)
		if !ok {
			i++ // what is escaped
			continue
		}
		if next, second := half(i + 6); low || !second || !next {
			return i
		}
		i += 11
	}
	return -1
}

// recordReader reads the records of a file and knows where it is.
type recordReader struct {
	r    *bufio.Reader
	line int64 // number of the line that was read last, from 1
	at   int64 // bytes read: where that line ends
	from int64 // where it begins
	torn bool  // it has no end
	buf  []byte
	kept *keptRecord
}

// keptRecord is a record that was handed back, with where the reader stood behind it.
type keptRecord struct {
	record
	line, at int64
}

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 1<<20)}
}

// next reads the next line that is not empty; io.EOF behind the last.
func (r *recordReader) next() ([]byte, error) {
	for {
		r.buf, r.from = r.buf[:0], r.at
		err := bufio.ErrBufferFull
		for errors.Is(err, bufio.ErrBufferFull) {
			var part []byte
			part, err = r.r.ReadSlice('\n')
			r.at += int64(len(part))
			if r.at-r.from <= maxLine {
				r.buf = append(r.buf, part...)
			}
		}
		r.torn = errors.Is(err, io.EOF) && r.at > r.from
		if err != nil && !r.torn {
			return nil, err // io.EOF among them
		}
		r.line++
		if r.at-r.from > maxLine {
			return nil, r.fault(fmt.Errorf("has %s, over %s: longer values go in chunks", bytesText(r.at-r.from), bytesText(maxLine)))
		}
		if line := bytes.TrimSpace(r.buf); len(line) > 0 {
			return line, nil
		}
	}
}

// record reads the next record. An error of a line names it.
func (r *recordReader) record() (record, error) {
	if k := r.kept; k != nil {
		r.kept, r.line, r.at = nil, k.line, k.at
		return k.record, nil
	}
	line, err := r.next()
	if err != nil {
		return record{}, err
	}
	rec, err := parseRecord(line)
	if err != nil {
		return record{}, r.fault(err)
	}
	return rec, nil
}

// handBack has the record that was read last be the next one again. The reader stands before it.
func (r *recordReader) handBack(rec record) {
	r.kept = &keptRecord{rec, r.line, r.at}
	r.line, r.at = r.line-1, r.from
}

// lineError is what is wrong with a line of a file.
type lineError struct {
	line int64
	err  error
}

func (e lineError) Error() string { return fmt.Sprintf("line %d %v", e.line, e.err) }
func (e lineError) Unwrap() error { return e.err }

// fault is an error of the line that was read last.
func (r *recordReader) fault(err error) error { return lineError{r.line, err} }

// chunks reads the value of a chunked entry, which the reader stands behind. When the file can be read again so can it.
type chunks struct {
	from *recordReader
	line int64 // of the entry
	size int64
	left int64 // bytes of the value that are still in the file
	data []byte
	err  error
}

func newChunks(r *recordReader, size int64) *chunks {
	return &chunks{from: r, line: r.line, size: size, left: size}
}

// Read reads the next bytes of the value.
func (c *chunks) Read(p []byte) (int, error) {
	for len(c.data) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		if c.left == 0 {
			return 0, io.EOF
		}
		c.fetch()
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// fetch reads the next line, which must be a chunk of this value. A record of another kind is the reader's again: it is the entry that is
// not whole.
func (c *chunks) fetch() {
	rec, err := c.from.record()
	switch {
	case errors.Is(err, io.EOF):
		err = lineError{c.line, fmt.Errorf("is not whole: %d bytes of its value are missing at the end", c.left)}
	case err != nil:
	case rec.Chunk == nil:
		err = lineError{c.line, fmt.Errorf("is not whole: %d bytes of its value are missing at line %d", c.left, c.from.line)}
		c.from.handBack(rec)
	case int64(len(rec.Chunk)) > c.left:
		err = c.from.fault(fmt.Errorf("has a chunk of %d bytes; %d were to follow", len(rec.Chunk), c.left))
	}
	if err != nil {
		c.err = err
		return
	}
	c.data = rec.Chunk
	c.left -= int64(len(rec.Chunk))
}

// skip reads to the end of the value.
func (c *chunks) skip() error {
	_, err := io.Copy(io.Discard, c)
	return err
}
