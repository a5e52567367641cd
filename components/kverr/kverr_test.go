package kverr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// numbers are stored and sent: a line of this list is never changed or removed.
var numbers = []Kind{
	0: Unknown, 1: InvalidArgument, 2: TooLarge, 3: NotFound, 4: VersionMismatch, 5: AlreadyExists, 6: CrossPartition,
	7: WrongKind, 8: Exhausted, 9: NoSpace, 10: Unavailable, 11: OutcomeUnknown, 12: Expired, 13: DataLoss,
	14: ValueTooLarge, 15: Unauthenticated, 16: PermissionDenied, 17: DeadlineExceeded, 18: Canceled, 19: Moved,
	20: Fenced, 21: Unimplemented, 22: Compacted, 23: Overloaded, 24: RateLimited,
}

func TestNumbers(t *testing.T) {
	if len(numbers) != int(kinds) {
		t.Errorf("%d numbers are pinned, there are %d kinds: append the new ones", len(numbers), kinds)
	}
	names := map[string]Kind{}
	for i, k := range numbers {
		if int(k) != i {
			t.Errorf("%v has number %d, and %d for ever", k, k, i)
		}
		if other, ok := names[k.String()]; ok || k.String() == "" {
			t.Errorf("kinds %d and %d are both named %q", other, k, k)
		}
		names[k.String()] = k
	}
	if newer := kinds + 5; newer.String() != "UNKNOWN" || newer.Code() != codes.Unknown || newer.NotApplied() {
		t.Errorf("a kind of a newer release is %v %v", newer, newer.Code())
	}
}

// TestTableForUsers holds ERRORS.md and the code together.
func TestTableForUsers(t *testing.T) {
	text, err := os.ReadFile("ERRORS.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 8 && strings.HasPrefix(cells[1], " `") {
			got = append(got, strings.Join([]string{cells[1], cells[2], cells[3], cells[4]}, "|"))
		}
	}
	var want []string
	for k := range kinds {
		if k == Moved || k == Fenced {
			continue
		}
		applied := "unknown"
		if k.NotApplied() {
			applied = "not applied"
		}
		want = append(want, fmt.Sprintf(" `%s` | `%s` | %d | %s ", k.Reason(), code.Code(k.Code()), k.HTTPStatus(), applied))
	}
	if !slices.Equal(got, want) {
		t.Errorf("ERRORS.md has\n%s\nthe code has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// full is an Error with every field set.
func full(k Kind) *Error {
	return &Error{
		Kind: k, Op: "put", Message: "is 7; at most 5 are allowed", Field: "tags", Limit: 5,
		CurrentVersion: 1 << 63, RetryAfterMS: 1500, Err: io.ErrUnexpectedEOF,
	}
}

// overTheWire is a status as the other side gets it.
func overTheWire(t *testing.T, s *status.Status) error {
	t.Helper()
	b, err := proto.Marshal(s.Proto())
	if err != nil {
		t.Fatal(err)
	}
	p := status.New(codes.OK, "").Proto()
	if err := proto.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	return status.FromProto(p).Err()
}

// TestRoundTripGRPC sends every kind, bare and with all fields, directly and wrapped.
func TestRoundTripGRPC(t *testing.T) {
	for k := range kinds {
		for _, e := range []*Error{{Kind: k}, full(k)} {
			for _, err := range []error{e, fmt.Errorf("outer: %w", e)} {
				got := FromGRPC(overTheWire(t, GRPC(err)))
				want := k
				if k == Moved || k == Fenced {
					want = Unavailable
				}
				if got.Kind != want || KindOf(got) != want || !errors.Is(got, want) {
					t.Errorf("%v came back as %v", k, got.Kind)
				}
				if got.Kind.NotApplied() != k.NotApplied() {
					t.Errorf("%v: not applied: %v, came back as %v", k, k.NotApplied(), got.Kind.NotApplied())
				}
				wantVersion := uint64(0)
				if k == VersionMismatch || k == AlreadyExists {
					wantVersion = e.CurrentVersion
				}
				if got.CurrentVersion != wantVersion {
					t.Errorf("%v: version %d came back as %d", k, e.CurrentVersion, got.CurrentVersion)
				}
				wantField, wantLimit := "", int64(0)
				if k == InvalidArgument || k == TooLarge {
					wantField, wantLimit = e.Field, e.Limit
				}
				if got.Field != wantField || got.Limit != wantLimit {
					t.Errorf("%v: field %q limit %d came back as %q %d", k, e.Field, e.Limit, got.Field, got.Limit)
				}
				if wantRetry := e.retryAfterMS(); got.RetryAfterMS != wantRetry {
					t.Errorf("%v: retry after %d came back as %d", k, wantRetry, got.RetryAfterMS)
				}
				if strings.Contains(got.Error(), io.ErrUnexpectedEOF.Error()) {
					t.Errorf("%v tells its cause to users: %v", k, got)
				}
				if !strings.Contains(got.Error(), e.Message) {
					t.Errorf("%v: %q lost the message", k, got)
				}
			}
		}
	}
}

func TestRoundTripItem(t *testing.T) {
	for k := range kinds {
		for _, e := range []*Error{{Kind: k}, full(k)} {
			got := FromItem(Item(e))
			want := k
			if k == Moved || k == Fenced {
				want = Unavailable
			}
			wantField := ""
			if k == InvalidArgument || k == TooLarge {
				wantField = e.Field
			}
			if got.Kind != want || got.CurrentVersion != e.CurrentVersion || got.Field != wantField || got.RetryAfterMS != e.retryAfterMS() {
				t.Errorf("%+v came back as %+v", e, got)
			}
			if strings.Contains(got.Message, io.ErrUnexpectedEOF.Error()) {
				t.Errorf("%v tells its cause to users: %q", k, got.Message)
			}
		}
	}
	if Item(nil) != nil || FromItem(nil) != nil {
		t.Error("success became an error")
	}
}

// TestUnavailable: with our ErrorInfo it was not applied, without it nobody knows.
func TestUnavailable(t *testing.T) {
	infos := func(err error) (n int) {
		for _, d := range GRPC(err).Details() {
			if _, ok := d.(*errdetails.ErrorInfo); ok {
				n++
			}
		}
		return n
	}
	for k := range kinds {
		want := 1
		if k == OutcomeUnknown {
			want = 0
		}
		if n := infos(full(k)); n != want {
			t.Errorf("%v has %d ErrorInfo, want %d", k, n, want)
		}
	}
	other, err := status.New(codes.Unavailable, "").WithDetails(&errdetails.ErrorInfo{Domain: "proxy.example", Reason: "UNAVAILABLE"})
	if err != nil {
		t.Fatal(err)
	}
	newer, err := status.New(codes.Unavailable, "").WithDetails(&errdetails.ErrorInfo{Domain: Domain, Reason: "OF_NEXT_YEAR"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		err  error
		want Kind
	}{
		{"broken connection", status.Error(codes.Unavailable, "transport is closing"), OutcomeUnknown},
		{"another's ErrorInfo", other.Err(), OutcomeUnknown},
		{"a newer reason of ours", newer.Err(), Unavailable},
		{"deadline", status.Error(codes.DeadlineExceeded, ""), DeadlineExceeded},
		{"foreign not found", status.Error(codes.NotFound, ""), Unknown},
		{"reply too large", status.Error(codes.ResourceExhausted, "received message larger than max"), Unknown},
		{"no such method", status.Error(codes.Unimplemented, ""), Unimplemented},
		{"wrapped", fmt.Errorf("call: %w", status.Error(codes.Unavailable, "")), OutcomeUnknown},
		{"not a status", io.EOF, Unknown},
	} {
		if got := FromGRPC(tc.err); got.Kind != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got.Kind, tc.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Kind
	}{
		{Wrap(DataLoss, "read", io.EOF), DataLoss},
		{fmt.Errorf("outer: %w", Mismatch(3)), VersionMismatch},
		{Wrap(Unavailable, "append", Wrap(NoSpace, "write", io.EOF)), Unavailable},
		{fmt.Errorf("a kind alone: %w", NotFound), NotFound},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), DeadlineExceeded},
		{context.Canceled, Canceled},
		{errors.Join(io.EOF, Exists(1)), AlreadyExists},
		{io.EOF, Unknown},
		{nil, Unknown},
	} {
		if got := KindOf(tc.err); got != tc.want {
			t.Errorf("KindOf(%v) = %v, want %v", tc.err, got, tc.want)
		}
	}
	if err := Wrap(DataLoss, "read", io.EOF); !errors.Is(err, io.EOF) || !errors.Is(err, DataLoss) || errors.Is(err, NotFound) {
		t.Error("errors.Is does not see kind and cause")
	}
	if From(nil) != nil || GRPC(nil) != nil || FromGRPC(nil) != nil {
		t.Error("success became an error")
	}
}

func TestText(t *testing.T) {
	for _, tc := range []struct {
		err  *Error
		want string
	}{
		{&Error{Kind: NotFound}, "not found"},
		{Wrap(DataLoss, "read value", io.EOF), "read value: data loss: EOF"},
		{Invalid("ttl_ms", "is %d; it must be positive", -1), "ttl_ms: is -1; it must be positive"},
		{TooBig("value", 20, 10, "bytes"), "value: has 20 bytes; at most 10 are allowed"},
		{New(WrongKind, "put", "namespace %q is of kind %s", "n", "prompt"), `put: namespace "n" is of kind prompt`},
		{Mismatch(0), "the key does not exist"},
		{Mismatch(7), "the key has version 7"},
		{Exists(7), "the key exists with version 7"},
		{Busy(Exhausted, time.Second, "memory budget of %d bytes is used up", 5), "memory budget of 5 bytes is used up"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	for _, tc := range []struct {
		err  *Error
		want string
	}{
		{&Error{Kind: AlreadyExists, Op: "write", Field: "precondition", Message: "the key exists with version 1"}, "the key exists with version 1"},
		{&Error{Kind: NoSpace, Op: "append", Message: "the store is full", Err: io.EOF}, "the store is full"},
		{&Error{Kind: DataLoss, Op: "read scope", Err: io.EOF}, "read scope: data loss"},
		{&Error{Kind: TooLarge, Op: "step", Field: "put.key", Message: "has 1025 bytes"}, "put.key: has 1025 bytes"},
	} {
		if got := GRPC(tc.err).Message(); got != tc.want {
			t.Errorf("a user of a call is told %q, want %q", got, tc.want)
		}
		if got := FromItem(Item(tc.err)).Error(); got != tc.want {
			t.Errorf("a user of an item is told %q, want %q", got, tc.want)
		}
	}
	if s := GRPC(io.EOF); s.Message() != "internal error" {
		t.Errorf("users see %q", s.Message())
	}
	bad := &Error{Kind: Unavailable, Message: "key \xff\xfe"}
	if got := FromGRPC(overTheWire(t, GRPC(bad))); got.Kind != Unavailable {
		t.Errorf("text that is not UTF-8 turned %v into %v", bad.Kind, got.Kind)
	}
	if ms := FromGRPC(GRPC(&Error{Kind: Exhausted}).Err()).RetryAfterMS; ms != exhaustedRetryMS {
		t.Errorf("RESOURCE_EXHAUSTED without a RetryInfo: %s ms", strconv.FormatInt(ms, 10))
	}
	if got, ok := status.FromError(fmt.Errorf("handler: %w", Mismatch(7))); !ok || got.Code() != codes.Aborted || len(got.Details()) != 1 {
		t.Errorf("a handler that returns an Error sends %v", got)
	}
}
