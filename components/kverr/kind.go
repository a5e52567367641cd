package kverr

import (
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
)

// Kind says what went wrong. Numbers are stored and sent: they are only ever appended. A Kind is an error itself, so that
// errors.Is(err, kverr.NotFound) can be asked.
type Kind uint8

// Kinds. What each is outside is in the table below them and, for users, in ERRORS.md.
const (
	// Unknown is a bug or an unforeseen failure.
	Unknown Kind = iota
	// InvalidArgument: the Error names field, value and what is allowed.
	InvalidArgument
	// TooLarge: a limit on size; the Error names field and limit.
	TooLarge
	// NotFound: no such key or resource.
	NotFound
	// VersionMismatch: if_version or if_present failed; with the current version.
	VersionMismatch
	// AlreadyExists: if_absent failed; with the current version.
	AlreadyExists
	// CrossPartition: a transaction over two partitions.
	CrossPartition
	// WrongKind: the namespace is of another kind.
	WrongKind
	// Exhausted: budget or quota; not applied; with the time to wait.
	Exhausted
	// NoSpace: the store is at its free-space reserve; not applied.
	NoSpace
	// Unavailable: not applied; try again.
	Unavailable
	// OutcomeUnknown: may or may not have been applied.
	OutcomeUnknown
	// Expired: the request came after its not_after and was not executed now; an earlier try of it may have been.
	Expired
	// DataLoss: stored data is damaged or gone.
	DataLoss
	// ValueTooLarge: the value does not fit a unary reply; GetStream gives it.
	ValueTooLarge
	// Unauthenticated: no credentials, or bad ones.
	Unauthenticated
	// PermissionDenied: the credentials do not allow it.
	PermissionDenied
	// DeadlineExceeded: the outcome of a write is unknown.
	DeadlineExceeded
	// Canceled by the caller: the outcome of a write is unknown.
	Canceled
	// Moved never leaves the system: ask Dapr where the shard is now. Not applied.
	Moved
	// Fenced never leaves the system: this owner is not the owner any more. Not applied: a write whose append was under way
	// when the fence fell is OutcomeUnknown.
	Fenced
	// Unimplemented: this server does not know the request.
	Unimplemented
	// Compacted: changes that a watch was to go on with are not kept any more.
	Compacted
	// Overloaded: more comes than the store can write; not applied; with the time to wait.
	Overloaded
	// RateLimited: more comes from a client, or to a namespace, than was allowed; not applied; with the time to wait.
	RateLimited

	kinds // how many there are
)

// outside is what a kind is to users.
type outside struct {
	name    string // of the kind, unique
	code    codes.Code
	http    int
	reason  string
	outcome outcome
}

// outcome tells what is known about the write that failed.
type outcome uint8

const (
	notApplied outcome = iota // it was surely not applied
	unknown                   // it may have been applied
)

var table = [kinds]outside{
	Unknown:          {"UNKNOWN", codes.Unknown, http.StatusInternalServerError, "UNKNOWN", unknown},
	InvalidArgument:  {"INVALID_ARGUMENT", codes.InvalidArgument, http.StatusBadRequest, "INVALID_ARGUMENT", notApplied},
	TooLarge:         {"TOO_LARGE", codes.InvalidArgument, http.StatusRequestEntityTooLarge, "TOO_LARGE", notApplied},
	NotFound:         {"NOT_FOUND", codes.NotFound, http.StatusNotFound, "NOT_FOUND", notApplied},
	VersionMismatch:  {"VERSION_MISMATCH", codes.Aborted, http.StatusPreconditionFailed, "VERSION_MISMATCH", notApplied},
	AlreadyExists:    {"ALREADY_EXISTS", codes.AlreadyExists, http.StatusPreconditionFailed, "ALREADY_EXISTS", notApplied},
	CrossPartition:   {"CROSS_PARTITION", codes.FailedPrecondition, http.StatusBadRequest, "CROSS_PARTITION", notApplied},
	WrongKind:        {"WRONG_KIND", codes.FailedPrecondition, http.StatusBadRequest, "WRONG_KIND", notApplied},
	Exhausted:        {"RESOURCE_EXHAUSTED", codes.ResourceExhausted, http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", notApplied},
	NoSpace:          {"NO_SPACE", codes.ResourceExhausted, http.StatusInsufficientStorage, "NO_SPACE", notApplied},
	Unavailable:      {"UNAVAILABLE", codes.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE", notApplied},
	OutcomeUnknown:   {"OUTCOME_UNKNOWN", codes.Unavailable, http.StatusServiceUnavailable, "OUTCOME_UNKNOWN", unknown},
	Expired:          {"EXPIRED", codes.Aborted, http.StatusConflict, "OUTCOME_UNKNOWN", unknown},
	DataLoss:         {"DATA_LOSS", codes.DataLoss, http.StatusInternalServerError, "DATA_LOSS", unknown},
	ValueTooLarge:    {"VALUE_TOO_LARGE", codes.OutOfRange, http.StatusRequestedRangeNotSatisfiable, "VALUE_TOO_LARGE", notApplied},
	Unauthenticated:  {"UNAUTHENTICATED", codes.Unauthenticated, http.StatusUnauthorized, "UNAUTHENTICATED", notApplied},
	PermissionDenied: {"PERMISSION_DENIED", codes.PermissionDenied, http.StatusForbidden, "PERMISSION_DENIED", notApplied},
	DeadlineExceeded: {"DEADLINE_EXCEEDED", codes.DeadlineExceeded, http.StatusGatewayTimeout, "DEADLINE_EXCEEDED", unknown},
	Canceled:         {"CANCELLED", codes.Canceled, 499, "CANCELLED", unknown},
	Moved:            {"MOVED", codes.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE", notApplied},
	Fenced:           {"FENCED", codes.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE", notApplied},
	Unimplemented:    {"UNIMPLEMENTED", codes.Unimplemented, http.StatusNotImplemented, "UNIMPLEMENTED", notApplied},
	Compacted:        {"COMPACTED", codes.OutOfRange, http.StatusGone, "COMPACTED", notApplied},
	Overloaded:       {"OVERLOADED", codes.ResourceExhausted, http.StatusTooManyRequests, "OVERLOADED", notApplied},
	RateLimited:      {"RATE_LIMITED", codes.ResourceExhausted, http.StatusTooManyRequests, "RATE_LIMITED", notApplied},
}

// outside returns the kind's row; a number from a newer release counts as Unknown.
func (k Kind) outside() *outside {
	if k >= kinds {
		k = Unknown
	}
	return &table[k]
}

// String is the kind's own name, for logs and metrics. It differs from Reason for the kinds that users do not see.
func (k Kind) String() string { return k.outside().name }

// Error is the kind in words.
func (k Kind) Error() string {
	return strings.ToLower(strings.ReplaceAll(k.String(), "_", " "))
}

// Code is the gRPC code that users see.
func (k Kind) Code() codes.Code { return k.outside().code }

// HTTPStatus is the HTTP status that users see.
func (k Kind) HTTPStatus() int { return k.outside().http }

// Reason is the stable reason that users see: of google.rpc.ErrorInfo, item errors and problem details.
func (k Kind) Reason() string { return k.outside().reason }

// NotApplied tells that a write which failed so was surely not applied: neither now nor later. Otherwise it may have been.
func (k Kind) NotApplied() bool { return k.outside().outcome == notApplied }

// Temporary tells that the same request may succeed later, unchanged. A write that may have been applied is repeated
// safely only with its identity.
func (k Kind) Temporary() bool {
	switch k {
	case Exhausted, Overloaded, RateLimited, NoSpace, Unavailable, OutcomeUnknown, Moved, Fenced:
		return true
	}
	return false
}
