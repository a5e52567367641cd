package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"kvstore/client"
)

// step is one line of a script of batch or txn.
type step struct {
	verb  string // put, del, get, if
	key   string
	value []byte
	cond  client.Precondition
}

// scriptHelp describes the format, for the help of the commands that read it.
const scriptHelp = `A script has one operation a line; # begins a comment, and "quotes" (as in Go or JSON) hold spaces:

  put KEY VALUE [if-absent | if-present | if-version N]
  del KEY [if-present | if-version N]`

// parseScript reads a script; the error names the line.
func parseScript(r io.Reader, verbs ...string) ([]step, error) {
	var steps []step
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	n := 1
	for ; sc.Scan(); n++ {
		words, err := split(sc.Text())
		if err != nil {
			return nil, usagef("line %d: %v", n, err)
		}
		if len(words) == 0 {
			continue
		}
		st, err := parseStep(words, verbs)
		if err != nil {
			return nil, usagef("line %d: %v", n, err)
		}
		steps = append(steps, st)
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, usagef("line %d: has over 16 MiB", n)
	} else if err != nil {
		return nil, fmt.Errorf("reading the script: %w", err)
	}
	return steps, nil
}

func parseStep(words, verbs []string) (step, error) {
	st := step{verb: words[0]}
	known := false
	for _, v := range verbs {
		known = known || v == st.verb
	}
	want := map[string]int{"put": 3, "del": 2, "get": 2, "if": 2}[st.verb] // words before the condition
	switch {
	case !known:
		return st, fmt.Errorf("%q: want %s", st.verb, strings.Join(verbs, ", "))
	case len(words) < want:
		return st, fmt.Errorf("%s: %d words are too few", st.verb, len(words))
	}
	st.key = words[1]
	if st.verb == "put" {
		st.value = []byte(words[2])
	}
	rest := words[want:]
	if len(rest) == 0 {
		if st.verb == "if" {
			return st, fmt.Errorf("if: a condition is missing: absent, present or version N")
		}
		return st, nil
	}
	cond := strings.TrimPrefix(rest[0], "if-")
	switch {
	case st.verb == "get":
		return st, fmt.Errorf("get has no conditions")
	case cond == "absent" && len(rest) == 1 && st.verb != "del":
		st.cond = client.IfAbsent()
	case cond == "present" && len(rest) == 1:
		st.cond = client.IfPresent()
	case cond == "version" && len(rest) == 2:
		v, err := strconv.ParseUint(rest[1], 10, 64)
		if err != nil || v == 0 {
			return st, fmt.Errorf("%q is no version", rest[1])
		}
		st.cond = client.IfVersion(v)
	default:
		return st, fmt.Errorf("cannot understand %q", strings.Join(rest, " "))
	}
	return st, nil
}

// split takes a line apart at spaces outside of quotes.
func split(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeft(line, " \t\r")
		if line == "" || line[0] == '#' {
			return words, nil
		}
		if line[0] != '"' {
			n := strings.IndexAny(line, " \t\r")
			if n < 0 {
				n = len(line)
			}
			words, line = append(words, line[:n]), line[n:]
			continue
		}
		q, err := strconv.QuotedPrefix(line)
		if err != nil {
			return nil, fmt.Errorf("a quote is not closed")
		}
		w, err := strconv.Unquote(q)
		if err != nil {
			return nil, err
		}
		if line = line[len(q):]; line != "" && !strings.ContainsRune(" \t\r", rune(line[0])) {
			return nil, fmt.Errorf("no space behind a closing quote")
		}
		words = append(words, w)
	}
}
