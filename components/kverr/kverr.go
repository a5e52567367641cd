// Package kverr is the one error type that crosses package and process borders. A Kind is for the machine, the message
// for people; packages act on Kind, never on text. It converts to and from gRPC status (with google.rpc.ErrorInfo,
// RetryInfo and BadRequest details), to an item error of a batch, and to an HTTP status.
//
// It is not for errors that stay inside a package: those are plain sentinels beside the API that returns them.
package kverr

// Kind says what went wrong. Numbers are stored and sent: they are only ever appended.
type Kind uint8

// Kinds, with the gRPC code, the HTTP status and the ErrorInfo reason that each has outside.
const (
	Unknown           Kind = iota // UNKNOWN 500 UNKNOWN: a bug or an unforeseen failure
	InvalidArgument               // INVALID_ARGUMENT 400 INVALID_ARGUMENT: names field, value and what is allowed
	TooLarge                      // INVALID_ARGUMENT 413 TOO_LARGE: a limit on size; names field and limit
	NotFound                      // NOT_FOUND 404 NOT_FOUND: no such key or resource
	VersionMismatch               // ABORTED 412 VERSION_MISMATCH: if_version or if_present failed; with the current version
	AlreadyExists                 // ALREADY_EXISTS 412 ALREADY_EXISTS: if_absent failed; with the current version
	CrossPartition                // FAILED_PRECONDITION 400 CROSS_PARTITION: a transaction over two partitions
	WrongKind                     // FAILED_PRECONDITION 400 WRONG_KIND: the namespace is of another kind
	Exhausted                     // RESOURCE_EXHAUSTED 429 RESOURCE_EXHAUSTED: budget, quota or rate; not applied; with RetryInfo
	NoSpace                       // RESOURCE_EXHAUSTED 507 NO_SPACE: the store is at its free-space reserve; not applied
	Unavailable                   // UNAVAILABLE 503 UNAVAILABLE: not applied; try again
	OutcomeUnknown                // UNAVAILABLE 503 OUTCOME_UNKNOWN: may or may not have been applied (gRPC: no retry info)
	Expired                       // ABORTED 409 OUTCOME_UNKNOWN: came after its not_after and was not executed now; an earlier try may have been
	DataLoss                      // DATA_LOSS 500 DATA_LOSS: stored data is damaged or gone
	ValueTooLarge                 // OUT_OF_RANGE 416 VALUE_TOO_LARGE: the value does not fit a unary reply; use GetStream
	Unauthenticated               // UNAUTHENTICATED 401 UNAUTHENTICATED
	PermissionDenied              // PERMISSION_DENIED 403 PERMISSION_DENIED
	DeadlineExceeded              // DEADLINE_EXCEEDED 504 DEADLINE_EXCEEDED: outcome unknown for a write
	Canceled                      // CANCELLED 499 CANCELLED: outcome unknown for a write
	Moved                         // never leaves the system: ask Dapr where the shard is now
	Fenced                        // never leaves the system: this owner is not the owner any more
	Unimplemented                 // UNIMPLEMENTED 501 UNIMPLEMENTED
)

// Error is an error with a Kind. Fields beyond Kind and Message are set where the Kind calls for them.
type Error struct {
	Kind           Kind
	Op             string // what was being done, a short verb phrase
	Message        string // for people
	Field          string // InvalidArgument, TooLarge: the request's field
	CurrentVersion uint64 // VersionMismatch, AlreadyExists
	RetryAfterMS   int64  // Exhausted, Unavailable; 0 = not known
	Err            error  // cause; may be nil
}

func (e *Error) Error() string { panic("contract") }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
