package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"kvstore/components/kverr"
	"kvstore/components/tracing"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// effect says what trying a call twice can do.
type effect uint8

const (
	reads     effect = iota // nothing
	writes                  // nothing, thanks to its identity or its nature; but without an answer its outcome is unknown
	writeOnce               // it has no identity: it is repeated only when it was certainly not applied
)

// attempts decides whether one call is tried again, and when. The zero value with effect set is ready.
type attempts struct {
	effect   effect
	tries    int
	deadline time.Time // of repetition; set at the first failure
	single   bool      // it cannot be tried again: its bytes are gone
	maybe    bool      // a try of a write may have been applied
	last     error     // of the try before
	renewed  bool      // the token was read again
}

// passes tells whether an item's error may be another one, or none, when its batch is repeated.
func passes(e *kverr.Error) bool {
	switch e.Kind {
	case kverr.OutcomeUnknown, kverr.Unavailable:
		return true
	case kverr.Exhausted, kverr.Overloaded, kverr.RateLimited:
		return e.RetryAfterMS > 0
	}
	return false
}

// again judges the error of a try. It returns how long to wait before the next, or the error to give to the caller.
func (a *attempts) again(ctx context.Context, co *core, err error) (time.Duration, error) {
	var e *kverr.Error
	if !errors.As(err, &e) {
		return 0, err
	}
	verdict := co.door.verdict()
	shut := verdict != nil && !co.door.come.Load() // no connection ever was of use
	if shut && e.Kind == kverr.DeadlineExceeded {  // what is wrong is known; that the time is up can still be asked for
		told := *verdict
		told.Err = context.DeadlineExceeded
		return 0, a.final(&told)
	}
	var wait time.Duration
	switch e.Kind {
	case kverr.OutcomeUnknown:
		a.maybe = a.effect != reads
		if a.effect == writeOnce {
			return 0, err
		}
	case kverr.Unavailable:
		wait = time.Duration(e.RetryAfterMS) * time.Millisecond
	case kverr.Exhausted, kverr.Overloaded, kverr.RateLimited:
		wait = time.Duration(e.RetryAfterMS) * time.Millisecond
		if wait == 0 {
			return 0, a.final(err)
		}
	case kverr.Unauthenticated:
		if a.renewed || !co.door.token.renew() {
			return 0, a.final(err)
		}
		a.renewed = true
		return 0, nil
	default:
		return 0, a.final(err)
	}
	if shut && verdict.Kind == kverr.Unauthenticated {
		return 0, a.final(verdict) // it is set up wrong, and waiting only hides that
	}
	if errors.Is(err, ErrClosed) {
		return 0, a.final(err)
	}
	now := time.Now()
	if a.deadline.IsZero() {
		a.deadline = now.Add(co.cfg.RetryFor)
		if d, ok := ctx.Deadline(); ok && (a.effect == reads || d.Before(a.deadline)) {
			a.deadline = d // a read is repeated for as long as its caller wants
		}
	}
	// Whoever was told the same time does not come back at the same time.
	wait = max(wait+rand.N(wait/4+1), co.backoff(a.tries))
	a.tries++
	if a.single || now.Add(wait).After(a.deadline) {
		if verdict != nil {
			err = verdict
		}
		return 0, a.final(err)
	}
	a.last = err
	return wait, nil
}

// next waits until the next try after err. An error is what the caller gets to see: there is none.
func (a *attempts) next(ctx context.Context, co *core, err error) error {
	if ctx.Err() != nil && errors.Is(err, kverr.Canceled) { // gRPC does not tell why
		err = fromContext(ctx, a.effect != reads)
	}
	wait, final := a.again(ctx, co, err)
	if final == nil && pause(ctx, wait) != nil {
		_, final = a.again(ctx, co, fromContext(ctx, a.maybe))
	}
	return final
}

// final is what the caller gets to see: a write of which an earlier try may have been applied must not look refused. Refusals
// that follow from the request alone met the earlier try too, and a failed condition is judged by whoever knows the identity:
// those stand. All others tell of this try only.
//
// When the time was up before the last try had an answer, the one before it says what is wrong.
func (a *attempts) final(err error) error {
	var e *kverr.Error
	if !errors.As(err, &e) {
		return err
	}
	var last *kverr.Error
	if e.Kind == kverr.DeadlineExceeded && errors.As(a.last, &last) {
		told := *e
		told.Message += "; the try before ended with: " + last.Error()
		return &told
	}
	if !a.maybe {
		return err
	}
	switch e.Kind {
	case kverr.Unavailable, kverr.Exhausted, kverr.Overloaded, kverr.RateLimited, kverr.NoSpace, kverr.NotFound,
		kverr.Unauthenticated, kverr.PermissionDenied, kverr.Unimplemented:
		return &kverr.Error{Kind: kverr.OutcomeUnknown, Op: e.Op,
			Message: "an earlier try may have been applied; the last said: " + e.Message, Err: err}
	}
	return err
}

// backoff is the pause after so many failed tries: doubling, bounded, jittered downwards by up to half.
func (co *core) backoff(tries int) time.Duration {
	d := co.cfg.BackoffMax
	if tries < 20 {
		d = min(d, co.cfg.BackoffMin<<tries)
	}
	return d/2 + rand.N(d/2+1)
}

// retry runs try until it succeeds or its error is final. try returns errors as fromRPC makes them.
func (co *core) retry(ctx context.Context, eff effect, op string, try func() error) error {
	a := attempts{effect: eff}
	for {
		err := try()
		if err == nil {
			return nil
		}
		if err := a.next(ctx, co, err); err != nil {
			return withOp(err, op)
		}
	}
}

// unary calls one RPC as retry does, and learns the server's time from its header.
func unary[S, Req, Resp any](
	ctx context.Context, co *core, eff effect, op string,
	stub func(*conn) S, rpc func(S, context.Context, Req, ...grpc.CallOption) (Resp, error), req Req,
) (resp Resp, err error) {
	if co.tracer != nil {
		keyspace, namespace := place(req)
		var span trace.Span
		ctx, span = co.begin(ctx, op, keyspace, namespace)
		defer func() { tracing.End(span, err) }()
	}
	err = co.retry(ctx, eff, op, func() (err error) {
		resp, err = rpc(stub(co.pick()), ctx, req)
		return fromRPC(err, eff)
	})
	if err != nil {
		var none Resp
		return none, err
	}
	if h, ok := any(resp).(interface {
		GetHeader() *kvstorev1.ResponseHeader
	}); ok {
		co.clock.learn(h.GetHeader())
	}
	return resp, nil
}

func kvStub(cn *conn) kvstorev1.KVServiceClient              { return cn.kv }
func promptStub(cn *conn) kvstorev1.PromptCacheServiceClient { return cn.prompt }
func adminStub(cn *conn) kvstorev1.AdminServiceClient        { return cn.admin }

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
