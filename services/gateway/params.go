package gateway

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"kvstore/components/kverr"
)

// params are those of the query, checked to be known ones, each given once.
type params struct {
	values url.Values
}

// space are the parameters that every operation with a call takes.
var space = []string{"keyspace", "namespace"}

// parseParams refuses what the operation does not know: a mistyped ?namespace= must not read or write another one.
func parseParams(raw string, rt *route) (params, error) {
	if raw == "" {
		return params{}, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return params{}, kverr.Invalid("query", "cannot be decoded: %.80q", err.Error())
	}
	known := strings.Fields(rt.params)
	for name, given := range values {
		switch {
		case slices.Contains(known, name+"*"):
		case !slices.Contains(known, name) && (!rt.spaced() || !slices.Contains(space, name)):
			if rt.spaced() {
				known = append(known, space...)
			}
			there := "it takes none"
			if len(known) > 0 {
				there = "there are " + strings.ReplaceAll(strings.Join(known, ", "), "*", "")
			}
			return params{}, kverr.Invalid("query", "%.80q is not a parameter of this operation; %s", name, there)
		case len(given) > 1:
			return params{}, kverr.Invalid(name, "is given %d times", len(given))
		}
	}
	return params{values: values}, nil
}

// spaced tells whether the operation is on the keys or blocks of a namespace.
func (rt *route) spaced() bool {
	return strings.Contains(rt.call, "KVService") || strings.Contains(rt.call, "PromptCacheService")
}

func (p params) text(name string) string { return p.values.Get(name) }

func (p params) all(name string) []string { return p.values[name] }

// flag is a parameter that is true or false.
func (p params) flag(name string) (bool, error) {
	switch v := p.text(name); v {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, kverr.Invalid(name, "is %.40q; it may be true or false", v)
	}
}

// number is a parameter of 0 to limit; 0 when it is not given.
func (p params) number(name string, limit uint64) (uint64, error) {
	v := p.text(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n > limit {
		return 0, kverr.Invalid(name, "is %.40q; it must be 0 to %d", v, limit)
	}
	return n, nil
}

// bytes is a parameter of base64, as tokens are told in.
func (p params) bytes(name string) ([]byte, error) { return parseToken(name, p.text(name)) }

// tokens are told in base64url, which needs no escaping in a query.
func tokenText(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func parseToken(name, text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil, kverr.Invalid(name, "is not a token of this server")
	}
	return b, nil
}

// defaultTimeout bounds operations whose callers do not. Values, blocks and watches may take as long as they move.
const (
	defaultTimeout = time.Minute
	maxTimeout     = time.Hour
)

// timeoutOf is how long a request may take; 0 = not bounded.
func timeoutOf(h http.Header, rt *route) (time.Duration, error) {
	text := h.Get("Kv-Timeout-Ms")
	if text == "" {
		if rt.stream {
			return 0, nil
		}
		return defaultTimeout, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > maxTimeout.Milliseconds() {
		return 0, kverr.Invalid("Kv-Timeout-Ms", "is %.40q; it must be 1 to %d", text, maxTimeout.Milliseconds())
	}
	return time.Duration(n) * time.Millisecond, nil
}
