// Package kverr is the one error type that crosses package and process borders. A Kind is for the machine, the message
// for people; packages act on Kind, never on text. It converts to and from gRPC status (with google.rpc.ErrorInfo,
// RetryInfo and BadRequest details), to and from an item error of a batch, and to an HTTP status. ERRORS.md is what users
// read about it.
//
//	if v > limit {
//		return kverr.TooBig("value", v, limit, "bytes")
//	}
//	...
//	if errors.Is(err, kverr.NotFound) { ... }
//	switch kverr.KindOf(err) { ... }
//
// It is not for errors that stay inside a package: those are plain sentinels beside the API that returns them.
package kverr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is an error with a Kind. Fields beyond Kind and Message are set where the Kind calls for them. An Error is not
// changed once it has been returned.
type Error struct {
	Kind           Kind
	Op             string // what was being done, a short verb phrase
	Message        string // for people; sent to users
	Field          string // InvalidArgument, TooLarge: the request's field
	Limit          int64  // TooLarge: what Field may be at most, in the unit that Message tells; 0 = not given
	CurrentVersion uint64 // VersionMismatch, AlreadyExists
	RetryAfterMS   int64  // Exhausted, Overloaded, RateLimited, Unavailable; 0 = not known
	Err            error  // cause; may be nil; for logs, never sent to users
}

// New returns an Error of a kind, with a message for people.
func New(kind Kind, op, format string, args ...any) *Error {
	return &Error{Kind: kind, Op: op, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns an Error of a kind with its cause. The cause is for logs: users see the kind and op alone.
func Wrap(kind Kind, op string, cause error) *Error {
	return &Error{Kind: kind, Op: op, Err: cause}
}

// Invalid says what is wrong with a field of the request: the value that it has and what is allowed, as in
// Invalid("ttl_ms", "is %d; it must be positive", ttl).
func Invalid(field, format string, args ...any) *Error {
	return &Error{Kind: InvalidArgument, Field: field, Message: fmt.Sprintf(format, args...)}
}

// TooBig says that a field has more than its limit, both in units such as "bytes".
func TooBig[N int | int64](field string, got, limit N, units string) *Error {
	return &Error{
		Kind: TooLarge, Field: field, Limit: int64(limit),
		Message: fmt.Sprintf("has %d %s; at most %d are allowed", got, units, limit),
	}
}

// Mismatch says that a condition on a key's version or presence failed: the key has the version current now, or is absent (0).
func Mismatch(current uint64) *Error {
	if current == 0 {
		return &Error{Kind: VersionMismatch, Message: "the key does not exist"}
	}
	return &Error{Kind: VersionMismatch, CurrentVersion: current, Message: fmt.Sprintf("the key has version %d", current)}
}

// Exists says that the key, which was to be absent, has the version current.
func Exists(current uint64) *Error {
	return &Error{Kind: AlreadyExists, CurrentVersion: current, Message: fmt.Sprintf("the key exists with version %d", current)}
}

// Busy says that nothing was done, and when to try again: kind is Exhausted, NoSpace or Unavailable.
func Busy(kind Kind, after time.Duration, format string, args ...any) *Error {
	return &Error{Kind: kind, RetryAfterMS: max(1, after.Milliseconds()), Message: fmt.Sprintf(format, args...)}
}

// Error is "op: field: message: cause", without the parts that are not there; the kind stands in for a missing message.
func (e *Error) Error() string {
	text := e.Message
	if text == "" {
		text = e.Kind.Error()
	}
	text = phrase(e.Op, e.Field, text)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// phrase joins the parts that are not empty with colons.
func phrase(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, kverr.NotFound) hold for an Error of that Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// From returns err as an Error: the outermost one that it wraps, or else one of the kind that a Kind, a context's error or a
// gRPC status in it tells, Unknown at last. From(nil) is nil: do not return it as an error unasked.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if k, ok := errors.AsType[Kind](err); ok {
		return &Error{Kind: k, Err: err}
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) && s.GRPCStatus().Code() != codes.OK {
		return FromStatus(s.GRPCStatus())
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: DeadlineExceeded, Err: err}
	case errors.Is(err, context.Canceled):
		return &Error{Kind: Canceled, Err: err}
	}
	return &Error{Kind: Unknown, Err: err}
}

// KindOf returns the Kind of any error, as From finds it. There is no kind of success: for nil it is Unknown, so ask first.
func KindOf(err error) Kind {
	if e := From(err); e != nil {
		return e.Kind
	}
	return Unknown
}
