package kverr

import (
	"google.golang.org/grpc/codes"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Item returns err as the error of one item of a batch, a pipeline or a transaction; nil for nil. Its reason tells what
// ErrorInfo tells for a whole call. OutcomeUnknown carries the reason OUTCOME_UNKNOWN: there is no need to look like a
// broken connection.
func Item(err error) *kvstorev1.Error {
	if err == nil {
		return nil
	}
	e := From(err)
	return &kvstorev1.Error{
		Code:           int32(e.Kind.Code()),
		Reason:         e.Kind.Reason(),
		Message:        valid(e.told()),
		CurrentVersion: e.CurrentVersion,
		RetryAfterMs:   e.retryAfterMS(),
		Field:          valid(e.toldField()),
	}
}

// FromItem returns an item's error as an Error; nil for nil or OK.
func FromItem(item *kvstorev1.Error) *Error {
	if item.GetCode() == int32(codes.OK) {
		return nil
	}
	return &Error{
		Kind:           kindOf(codes.Code(item.Code), item.Reason),
		Message:        item.Message,
		Field:          item.Field,
		CurrentVersion: item.CurrentVersion,
		RetryAfterMS:   item.RetryAfterMs,
	}
}
