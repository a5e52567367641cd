package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Sentinels for errors.Is. The rest of what is known (current version, field, time to wait) is in the *kverr.Error that
// errors.As finds.
var (
	ErrNotFound        error = kverr.NotFound        // no such key or resource
	ErrVersionMismatch error = kverr.VersionMismatch // IfVersion or IfPresent did not hold
	ErrAlreadyExists   error = kverr.AlreadyExists   // IfAbsent did not hold, or the resource exists
	ErrInvalidArgument error = kverr.InvalidArgument // Field says which
	ErrTooLarge        error = kverr.TooLarge        // Field says what, Limit how much is allowed
	ErrCrossPartition  error = kverr.CrossPartition  // a transaction over two partitions
	ErrWrongKind       error = kverr.WrongKind       // the namespace holds something else
	ErrExhausted       error = kverr.Exhausted       // budget or quota; not applied
	ErrOverloaded      error = kverr.Overloaded      // more comes than the store can write; not applied
	ErrRateLimited     error = kverr.RateLimited     // more than this client, or the namespace, may; not applied
	ErrNoSpace         error = kverr.NoSpace         // the store is full; not applied
	ErrUnavailable     error = kverr.Unavailable     // not applied; try again later
	ErrOutcomeUnknown  error = kverr.OutcomeUnknown  // a write that may or may not have been applied
	ErrExpired         error = kverr.Expired         // a write that came after its time; an earlier try may have been applied
	ErrDataLoss        error = kverr.DataLoss        // stored data is damaged
	ErrCompacted       error = kverr.Compacted       // changes that a watch was to go on with are not kept any more

	ErrUnauthenticated  error = kverr.Unauthenticated  // no token or a bad one, or TLS that cannot work
	ErrPermissionDenied error = kverr.PermissionDenied // the token does not have the role that this needs
)

// ErrClosed is the cause of errors of calls on a closed Client.
var ErrClosed = errors.New("the client is closed")

// errLost marks a call whose stream ended before its reply came.
var errLost = &kverr.Error{Kind: kverr.OutcomeUnknown, Message: "the connection was lost before the reply came"}

func invalid(op, format string, args ...any) error {
	return &kverr.Error{Kind: kverr.InvalidArgument, Op: op, Message: fmt.Sprintf(format, args...)}
}

// fromRPC makes the *kverr.Error of an error that an RPC returned; io.EOF, the orderly end of a stream, stays as it is.
func fromRPC(err error, eff effect) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	found := kverr.FromGRPC(err)
	e := *found
	switch {
	case e.Kind == kverr.Canceled:
		e.Err = context.Canceled
	case e.Kind == kverr.DeadlineExceeded:
		e.Message, e.Err = "no answer in time", context.DeadlineExceeded // what gRPC says is about streams and balancers
	case e.Kind != kverr.OutcomeUnknown:
	case status.Code(err) != codes.Unavailable:
		e.Kind = kverr.Unknown // such as a message that gRPC found too large: repeating it changes nothing
	case eff == reads:
		e.Kind = kverr.Unavailable // nothing that could have been applied
	}
	return &e
}

// fromItem makes the error of one item's failure; nil when there is none.
func fromItem(it *kvstorev1.Error) error {
	e := kverr.FromItem(it)
	switch {
	case e == nil:
		return nil
	case e.Kind == kverr.DeadlineExceeded:
		e.Err = context.DeadlineExceeded
	}
	return e
}

// fromContext makes the error of a call whose context ended. A caller who cancels with the cause DeadlineExceeded has a deadline too.
func fromContext(ctx context.Context, write bool) error {
	e := &kverr.Error{Kind: kverr.Canceled, Message: "the caller gave up", Err: context.Cause(ctx)}
	if errors.Is(e.Err, context.DeadlineExceeded) {
		e.Kind, e.Message = kverr.DeadlineExceeded, "no answer in time"
	}
	if write {
		e.Message += "; it may or may not have been applied"
	}
	return e
}

// withOp names what was being done, unless the error says so already.
func withOp(err error, op string) error {
	if err == nil {
		return nil
	}
	var e *kverr.Error // on the heap: not before there is an error
	if !errors.As(err, &e) || e.Op != "" {
		return err
	}
	named := *e
	named.Op = op
	return &named
}
