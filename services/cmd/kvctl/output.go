package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// table prints rows under headings; columns all of numbers stand to the right. On a terminal it is no wider than that: the widest columns
// of text are cut, then lines. What cannot be printed is escaped.
func (s *session) table(head []string, rows [][]string) {
	width := make([]int, len(head))
	number := make([]bool, len(head))
	for c, h := range head {
		width[c] = utf8.RuneCountInString(h)
		number[c] = c > 0 && len(rows) > 0
		for _, r := range rows {
			r[c] = visible(r[c])
			width[c] = max(width[c], utf8.RuneCountInString(r[c]))
			number[c] = number[c] && isNumber(r[c])
		}
	}
	if s.width > 0 {
		fit(width, number, s.width)
	}
	line := func(cells []string) {
		var b strings.Builder
		for c, cell := range cells {
			if c > 0 {
				b.WriteString("  ")
			}
			cell = cut(cell, width[c])
			pad := strings.Repeat(" ", width[c]-utf8.RuneCountInString(cell))
			if number[c] {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		fmt.Fprintln(s.stdout, cut(strings.TrimRight(b.String(), " "), s.width))
	}
	line(head)
	for _, r := range rows {
		line(r)
	}
}

// leastColumn is how narrow a column of text may become.
const leastColumn = 8

// fit narrows the widest columns that are no numbers until all fit so many columns of a terminal, or nothing more can be done.
func fit(width []int, number []bool, columns int) {
	over := 2*(len(width)-1) - columns
	for _, w := range width {
		over += w
	}
	for over > 0 {
		widest, next := -1, leastColumn // the second widest
		for c, w := range width {
			switch {
			case number[c]:
			case widest < 0 || w > width[widest]:
				if widest >= 0 {
					next = max(next, width[widest])
				}
				widest = c
			default:
				next = max(next, w)
			}
		}
		if widest < 0 || width[widest] <= leastColumn {
			return
		}
		less := min(over, max(1, width[widest]-next))
		width[widest] -= less
		over -= less
	}
}

// visible is a text for one line of a terminal: nothing in it moves the cursor or changes colours.
func visible(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var b strings.Builder
	for text != "" {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1: // of no character, but 0x9b is as good as an escape
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// visibleLines is a text of several lines, each of them visible.
func visibleLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = visible(line)
	}
	return strings.Join(lines, "\n")
}

// say tells people what was done. Texts among args are made visible, so that a key cannot say something else.
func (s *session) say(format string, args ...any) {
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = visible(text)
		}
	}
	fmt.Fprintf(s.stdout, format, args...)
}

// cut shortens a text to so many columns; 0 columns is no terminal.
func cut(line string, columns int) string {
	if columns < 2 || utf8.RuneCountInString(line) <= columns {
		return line
	}
	return string([]rune(line)[:columns-1]) + "…"
}

func isNumber(s string) bool {
	return s == "-" || s != "" && strings.Trim(s, "0123456789.,%") == ""
}

// json prints v as indented JSON.
func (s *session) json(v any) error { return writeJSON(s.jsonTo(s.stdout), v) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// jsonLine prints v as one line: streams of things are JSON lines.
func (s *session) jsonLine(v any) error {
	enc := json.NewEncoder(s.jsonTo(s.stdout))
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// jsonTo is where JSON for standard output is written, whole values at a time.
func (s *session) jsonTo(w io.Writer) io.Writer {
	if s.width > 0 {
		return screen{w}
	}
	return w
}

// screen is a terminal for JSON. What JSON lets pass that is not to be printed is written as \u with its number, which means the same.
type screen struct{ io.Writer }

// Write writes whole JSON values.
func (w screen) Write(p []byte) (int, error) {
	var b []byte
	for _, r := range string(p) {
		if unicode.IsPrint(r) || r == '\n' {
			b = utf8.AppendRune(b, r)
			continue
		}
		for _, half := range utf16.Encode([]rune{r}) {
			b = fmt.Appendf(b, `\u%04x`, half)
		}
	}
	if _, err := w.Writer.Write(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

// checked remembers whether a write failed, so that what was not told is no success.
type checked struct {
	io.Writer
	err error
}

// Write writes as long as writing works.
func (c *checked) Write(p []byte) (n int, err error) {
	if c.err == nil {
		n, c.err = c.Writer.Write(p)
	}
	return n, c.err
}

// printable tells whether a value may go to a terminal as it is: text in lines.
func printable(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	text := strings.ReplaceAll(string(b), "\r\n", "\n") // a \r alone would have the rest of a line stand over its beginning
	return !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' })
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func timeMS(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return timeText(time.UnixMilli(ms))
}

// mapText is a map in order of its names.
func mapText(m map[string]string) string {
	if len(m) == 0 {
		return "-"
	}
	b, _ := json.Marshal(m) // never fails; sorted by name
	return string(b)
}
