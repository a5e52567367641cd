package daprhost

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/actors/host"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// DefaultActorType is the Dapr actor type of shards.
const DefaultActorType = "kvstore"

// methodLocate is the actor method that answers a LocateRequest.
const methodLocate = "Locate"

// dataType is the actor type that other methods go by. Its ids are placed where those of actorType are, as the ring hashes ids alone, but
// daprd runs one call at a time for each actor of a type, and asking where a shard is must not wait behind batches.
func dataType(actorType string) string { return actorType + "-data" }

// LocatorConfig tunes a Locator. The zero value of each field takes its default.
type LocatorConfig struct {
	// ActorType is that of the hosts. Default DefaultActorType.
	ActorType string
	// Attempt bounds one question; daprd itself has no deadline. Default 300 ms.
	Attempt time.Duration
	// Budget bounds all attempts of one call. Default 5 s.
	Budget time.Duration
}

// Locator finds out where shards are served, through a daprd, which asks the host that Dapr has placed the shard on and so has it opened
// there. It remembers nothing. It is safe for any number of goroutines.
type Locator struct {
	cfg     LocatorConfig
	sidecar *Sidecar
}

// NewLocator makes a Locator. The sidecar is best one that hosts no shards: when a host's actor stream breaks, its daprd answers nobody for a
// while.
func NewLocator(sidecar *Sidecar, cfg LocatorConfig) (*Locator, error) {
	if cfg.ActorType == "" {
		cfg.ActorType = DefaultActorType
	}
	if cfg.Attempt == 0 {
		cfg.Attempt = 300 * time.Millisecond
	}
	if cfg.Budget == 0 {
		cfg.Budget = 5 * time.Second
	}
	var faults []error
	faults = append(faults, checkActorType(cfg.ActorType))
	if cfg.Attempt < 0 || cfg.Budget < 0 {
		faults = append(faults, fmt.Errorf("LocatorConfig.Attempt is %v, Budget is %v: not negative", cfg.Attempt, cfg.Budget))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Locator{cfg: cfg, sidecar: sidecar}, nil
}

// Pauses between attempts: the first, and the longest. Each is drawn between half of it and all of it. A host that is opening the shard is asked
// more often.
const (
	firstPause  = 10 * time.Millisecond
	mostPause   = 250 * time.Millisecond
	openingMost = 80 * time.Millisecond
)

// firstAttempt bounds the first question, and later ones have twice the time, up to LocatorConfig.Attempt: the daprd of a host that has just died
// keeps whoever asks hanging, until placement has told everybody that it is gone, which takes less.
const firstAttempt = 75 * time.Millisecond

// Locate tells where a shard is served, and waits until it is. Errors are *kverr.Error: Unavailable when nobody told within the budget
// or by ctx's deadline, Canceled when ctx was, otherwise what the host said (NotFound: no such shard). With one of kind DataLoss comes where the
// host is that refuses to open the shard.
func (l *Locator) Locate(ctx context.Context, shardID string) (host.Location, error) {
	request, err := (&dataplanev1.LocateRequest{}).MarshalVT()
	if err != nil {
		return host.Location{}, kverr.Wrap(kverr.Unknown, "locate the shard", err)
	}
	budget, cancel := context.WithTimeout(ctx, l.cfg.Budget)
	defer cancel()
	pause, patience := firstPause, min(firstAttempt, l.cfg.Attempt)
	for {
		attempt, done := context.WithTimeout(budget, patience)
		data, err := l.sidecar.invoke(attempt, l.cfg.ActorType, shardID, methodLocate, request)
		done()
		var loc host.Location
		var why *kverr.Error // of this attempt; nil: try again soon
		hint := time.Duration(0)
		if err != nil {
			if why = refused(err); why != nil {
				return host.Location{}, why
			}
			why = &kverr.Error{Kind: kverr.Unavailable, Op: "locate the shard", Message: "nobody tells where the shard is", RetryAfterMS: 500, Err: err}
		} else if loc, hint, why = readAnswer(data); why == nil && loc.Address != "" {
			return loc, nil
		} else if why != nil && why.Kind != kverr.Unavailable {
			return loc, why
		}
		if why == nil {
			why = &kverr.Error{Kind: kverr.Unavailable, Op: "locate the shard", Message: "the shard is being opened", RetryAfterMS: 20}
		}
		patience = min(2*patience, l.cfg.Attempt)
		if hint > 0 {
			pause = min(max(pause, hint), openingMost)
		}
		if err := sleep(budget, pause/2+rand.N(pause/2+1)); err != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return host.Location{}, kverr.From(context.Cause(ctx))
			}
			return host.Location{}, why // also when it was the caller's deadline: nothing was done that could be unknown
		}
		pause = min(2*pause, mostPause)
	}
}

// readAnswer takes a LocateResponse apart: a location, or when to ask again (0: not told), or an error.
func readAnswer(data []byte) (host.Location, time.Duration, *kverr.Error) {
	var r dataplanev1.LocateResponse
	if err := r.UnmarshalVT(data); err != nil {
		return host.Location{}, 0, kverr.Wrap(kverr.Unknown, "locate the shard", err)
	}
	switch a := r.Answer.(type) {
	case *dataplanev1.LocateResponse_Owner_:
		return host.Location{Address: a.Owner.Address, Epoch: a.Owner.Epoch}, 0, nil
	case *dataplanev1.LocateResponse_Moved_:
		return host.Location{Address: a.Moved.Address, Epoch: a.Moved.Epoch}, 0, nil
	case *dataplanev1.LocateResponse_Activating_:
		return host.Location{}, time.Duration(a.Activating.RetryAfterMs) * time.Millisecond, nil
	case *dataplanev1.LocateResponse_Error:
		why := kverr.FromItem(a.Error)
		if why.Kind == kverr.DataLoss {
			return host.Location{Address: r.Asked}, 0, why
		}
		return host.Location{}, 0, why
	}
	return host.Location{}, 0, nil
}

// refused tells whether an error of a call is final: nothing about where the shard is will change it. nil: worth another try.
func refused(err error) *kverr.Error {
	switch code := status.Code(err); code {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented, codes.ResourceExhausted:
		return &kverr.Error{Kind: kverr.Unavailable, Op: "call the sidecar", Message: "the sidecar refuses the call: " + code.String(), Err: err}
	}
	return nil
}

// Invoke runs a method of a shard's host through daprd, for callers that cannot reach its data plane. The payload may be up to
// Sidecar.MaxPayload. The call is made once here, but daprd tries again by itself, so the method may run more than once: what the
// payload asks for carries an identity. Errors are *kverr.Error; OutcomeUnknown when the call may have run. A ctx without a deadline gets
// LocatorConfig.Budget.
func (l *Locator) Invoke(ctx context.Context, shardID, method string, payload []byte) ([]byte, error) {
	if most := l.sidecar.MaxPayload(); len(payload) > most {
		return nil, kverr.TooBig("payload", len(payload), most, "bytes")
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Budget)
	defer cancel()
	data, err := l.sidecar.invoke(ctx, dataType(l.cfg.ActorType), shardID, method, payload)
	if err != nil {
		if why := refused(err); why != nil {
			return nil, why
		}
		return nil, &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "call the shard", Message: "the call got no answer", Err: err}
	}
	var r dataplanev1.CallResponse
	if err := r.UnmarshalVT(data); err != nil {
		return nil, &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "call the shard", Message: "the answer cannot be read", Err: err}
	}
	switch a := r.Answer.(type) {
	case *dataplanev1.CallResponse_Payload:
		return a.Payload, nil
	case *dataplanev1.CallResponse_Error:
		return nil, kverr.FromItem(a.Error)
	}
	return nil, &kverr.Error{Kind: kverr.OutcomeUnknown, Op: "call the shard", Message: "the answer is of a kind that this release does not know"}
}

// sleep waits, or tells why it did not.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
