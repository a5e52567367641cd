package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"kvstore/components/kverr"
)

// Problem is what tells of an error: a document as in RFC 9457, application/problem+json.
type Problem struct {
	Type           string  `json:"type"`   // urn:kvstore:error: and the reason
	Title          string  `json:"title"`  // the reason in words
	Status         int     `json:"status"` // of the response; of items of a batch, what it would be
	Detail         string  `json:"detail,omitempty"`
	Reason         string  `json:"reason"` // stable: ERRORS.md, and those of HTTP alone in DESIGN.md
	Field          string  `json:"field,omitempty"`
	Allowed        *int64  `json:"allowed,omitempty"`         // what the field may have at most
	CurrentVersion *uint64 `json:"current_version,omitempty"` // 0 = the key is absent
	RetryAfterMS   int64   `json:"retry_after_ms,omitempty"`
}

// refusal is an error of HTTP itself, which the services know nothing of.
type refusal struct {
	status int
	reason string
	detail string
	limit  int64
	header http.Header // to be sent with it
}

// Error implements error.
func (r *refusal) Error() string { return r.reason + ": " + r.detail }

// Reasons of refusals; they never change.
const (
	reasonNoSuchPath     = "NO_SUCH_PATH"
	reasonMethod         = "METHOD_NOT_ALLOWED"
	reasonMediaType      = "UNSUPPORTED_MEDIA_TYPE"
	reasonLengthRequired = "LENGTH_REQUIRED"
	reasonHeaders        = "HEADERS_TOO_LARGE"
	reasonCrossOrigin    = "CROSS_ORIGIN"
	reasonHost           = "WRONG_HOST"
	reasonTimeout        = "REQUEST_TIMEOUT"
)

func refuse(status int, reason, format string, args ...any) *refusal {
	return &refusal{status: status, reason: reason, detail: fmt.Sprintf(format, args...)}
}

// problemOf describes an error.
func problemOf(err error) *Problem {
	var ref *refusal
	if errors.As(err, &ref) {
		p := &Problem{Status: ref.status, Reason: ref.reason, Detail: ref.detail}
		if ref.limit > 0 {
			p.Allowed = &ref.limit
		}
		return p.titled()
	}
	e := kverr.From(err)
	item := kverr.Item(e)
	p := &Problem{
		Status: e.Kind.HTTPStatus(), Reason: item.Reason, Detail: item.Message, Field: item.Field, RetryAfterMS: item.RetryAfterMs,
	}
	if e.Limit > 0 {
		p.Allowed = &e.Limit
	}
	if e.Kind == kverr.VersionMismatch || e.Kind == kverr.AlreadyExists {
		p.CurrentVersion = &item.CurrentVersion
	}
	return p.titled()
}

func (p *Problem) titled() *Problem {
	p.Type, p.Title = "urn:kvstore:error:"+p.Reason, strings.ToLower(strings.ReplaceAll(p.Reason, "_", " "))
	return p
}

// write sends an error as the whole response.
func (p *Problem) write(w http.ResponseWriter, err error) {
	h := w.Header()
	clear(h) // what was meant for a success
	var ref *refusal
	if errors.As(err, &ref) {
		for name, values := range ref.header {
			h[name] = values
		}
	}
	switch {
	case p.Status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case p.RetryAfterMS > 0:
		h.Set("Retry-After", strconv.FormatInt((p.RetryAfterMS+999)/1000, 10))
	}
	text, merr := json.Marshal(p)
	if merr != nil { // cannot happen: strings and numbers
		text = []byte("{}")
	}
	text = append(text, '\n')
	setCommon(h)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(text) // whoever does not read it has gone
}

// setCommon sets what every response has: nothing that is stored may be taken for a page of ours, or be served by caches unasked.
func setCommon(h http.Header) {
	h["X-Content-Type-Options"] = noSniff
	h["Cache-Control"] = noCache
	h["Content-Security-Policy"] = noContent
}

// Values of headers that are always the same; nobody changes them.
var (
	noSniff   = []string{"nosniff"}
	noCache   = []string{"no-cache"}
	noContent = []string{"default-src 'none'; sandbox"}
)
