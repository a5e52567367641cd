package kverr

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every google.rpc.ErrorInfo that the product sends.
const Domain = "kvstore"

// Names in the metadata of ErrorInfo.
const (
	MetadataCurrentVersion = "current_version" // decimal
	MetadataLimit          = "limit"           // decimal
)

// exhaustedRetryMS is told with Exhausted, Overloaded and RateLimited when nobody knew better, for they always carry a RetryInfo.
const exhaustedRetryMS = 1000

// GRPC returns err as the status that users get; nil for nil. The details are those of ERRORS.md. OutcomeUnknown becomes UNAVAILABLE
// without ErrorInfo, exactly what a broken connection gives; Moved and Fenced become Unavailable. Causes are not sent.
func GRPC(err error) *status.Status {
	if err == nil {
		return nil
	}
	return From(err).GRPCStatus()
}

// GRPCStatus is what makes grpc-go send an Error that a handler returns as GRPC tells.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Kind.Code(), valid(phrase(e.toldField(), e.told())))
	if e.Kind == OutcomeUnknown {
		return s
	}
	info := &errdetails.ErrorInfo{Domain: Domain, Reason: e.Kind.Reason()}
	details := append(make([]protoadapt.MessageV1, 0, 3), info)
	switch e.Kind {
	case VersionMismatch, AlreadyExists:
		info.Metadata = map[string]string{MetadataCurrentVersion: strconv.FormatUint(e.CurrentVersion, 10)}
	case InvalidArgument, TooLarge:
		if e.Limit != 0 {
			info.Metadata = map[string]string{MetadataLimit: strconv.FormatInt(e.Limit, 10)}
		}
		if e.Field != "" {
			details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: valid(e.Field), Description: valid(e.told()), Reason: e.Kind.Reason()},
			}})
		}
	}
	if ms := e.retryAfterMS(); ms > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(ms) * time.Millisecond)})
	}
	if with, err := s.WithDetails(details...); err == nil {
		return with
	}
	return s // cannot happen: the code is not OK, and all text is valid UTF-8
}

// retryAfterMS is when users are told to try again; 0 = not told.
func (e *Error) retryAfterMS() int64 {
	switch {
	case !e.Kind.Temporary() || e.Kind == OutcomeUnknown:
		return 0
	case (e.Kind == Exhausted || e.Kind == Overloaded || e.Kind == RateLimited) && e.RetryAfterMS == 0:
		return exhaustedRetryMS
	}
	return e.RetryAfterMS
}

// told is the message for users: never the cause, which may name paths and hosts, and what was being done inside only when
// there is nothing better, because callers know what they asked for.
func (e *Error) told() string {
	switch {
	case e.Message != "":
		return e.Message
	case e.Kind == Unknown:
		return phrase(e.Op, "internal error")
	case e.Kind == Moved || e.Kind == Fenced:
		return Unavailable.Error()
	}
	return phrase(e.Op, e.Kind.Error())
}

// toldField is the request's field as users are told it; empty for kinds that are not about what the request says.
func (e *Error) toldField() string {
	if e.Kind == InvalidArgument || e.Kind == TooLarge {
		return e.Field
	}
	return ""
}

// valid makes text fit for protobuf strings; a message may quote what the user sent.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// FromGRPC returns the error of a gRPC call as an Error; nil for nil. Without an ErrorInfo of ours, UNAVAILABLE is
// OutcomeUnknown, and codes that a proxy or gRPC itself may give after the server has done its work are Unknown: a foreign
// NOT_FOUND does not say that a key is absent.
func FromGRPC(err error) *Error { return From(err) }

// FromStatus is FromGRPC for a status; nil for OK.
func FromStatus(s *status.Status) *Error {
	if s.Code() == codes.OK {
		return nil
	}
	e := &Error{Message: s.Message()}
	var reason string
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Domain == Domain {
				reason = d.Reason
				e.CurrentVersion, _ = strconv.ParseUint(d.Metadata[MetadataCurrentVersion], 10, 64)
				e.Limit, _ = strconv.ParseInt(d.Metadata[MetadataLimit], 10, 64)
			}
		case *errdetails.RetryInfo:
			e.RetryAfterMS = d.RetryDelay.AsDuration().Milliseconds()
		case *errdetails.BadRequest:
			if len(d.FieldViolations) > 0 {
				e.Field, e.Message = d.FieldViolations[0].Field, d.FieldViolations[0].Description
			}
		}
	}
	e.Kind = kindOf(s.Code(), reason)
	return e
}

// kindOf finds the kind of a code with a reason of ours, empty when there is none. A reason of a newer release counts by its
// code.
func kindOf(code codes.Code, reason string) Kind {
	if reason == "" {
		return foreign(code)
	}
	same := Unknown
	for k, o := range table {
		switch {
		case Kind(k) == Moved || Kind(k) == Fenced || o.code != code:
		case o.reason == reason:
			return Kind(k)
		case same == Unknown:
			same = Kind(k)
		}
	}
	return same
}

// foreign is the kind of a status that is not of our making.
func foreign(code codes.Code) Kind {
	switch code {
	case codes.InvalidArgument:
		return InvalidArgument
	case codes.Unauthenticated:
		return Unauthenticated
	case codes.PermissionDenied:
		return PermissionDenied
	case codes.Unimplemented:
		return Unimplemented
	case codes.DeadlineExceeded:
		return DeadlineExceeded
	case codes.Canceled:
		return Canceled
	case codes.Unavailable:
		return OutcomeUnknown
	}
	return Unknown
}
