package daprhost

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	rtv1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Times of the connection to the sidecar.
const (
	askTimeout      = time.Second            // one question to the sidecar itself
	canaryTimeout   = time.Second            // one call to our own canary, through the sidecar
	firstCanary     = 200 * time.Millisecond // while there has been none that came back: it waits for the first table
	firstBeat       = 20 * time.Millisecond  // at one that does not yet
	teardown        = 500 * time.Millisecond // how long an earlier stream may take to go
	openTimeout     = 5 * time.Second        // until daprd confirms the stream
	wedgedBeats     = 3                      // without a canary's answer, after which a sidecar that says that it is well is ended
	unplacedAfter   = 30 * time.Second       // and one that finds no placement service: some never find it again
	firstRetry      = 50 * time.Millisecond  // pause before the stream is opened again
	mostRetry       = time.Second
	idleTimeout     = 8760 * time.Hour       // Dapr puts nothing to sleep: shards do that themselves
	drainTimeout    = 200 * time.Millisecond // a table waits so long for calls under way; ours take no time, batches little
	outboxLen       = 256
	activatingRetry = 10 * time.Millisecond // when to ask again for a shard that is being opened
)

var (
	errGone   = errors.New("the sidecar ended the actor stream")
	errWedged = errors.New("the sidecar does not route calls of actors any more")
)

// keepConnected has one stream at a time, until ctx ends.
func (h *Host) keepConnected(ctx context.Context) {
	pause := firstRetry
	for {
		began := time.Now()
		err := h.session(ctx)
		if ctx.Err() != nil {
			h.tellLost(errors.New("the host is leaving"))
			return
		}
		h.tellLost(err)
		if time.Since(began) > 10*mostRetry {
			pause = firstRetry
		}
		if sleep(ctx, pause/2+rand.N(pause/2+1)) != nil {
			return
		}
		pause = min(2*pause, mostRetry)
	}
}

// types are the actor types of this host.
func (h *Host) types() []string {
	return []string{h.cfg.ActorType, dataType(h.cfg.ActorType), h.canary}
}

// session opens the stream and keeps it until it ends, or the sidecar does not route by it.
func (h *Host) session(ctx context.Context) error {
	if err := h.awaitTeardown(ctx); err != nil {
		return err
	}
	began := time.Now()
	// The stream is ended by its context, never by CloseSend: after that daprd waits for answers that nobody reads (DAPR.md 1.8).
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := h.sidecar.subscribe(ctx)
	if err != nil {
		return fmt.Errorf("open the actor stream: %w", err)
	}
	late := time.AfterFunc(openTimeout, func() { cancel(errors.New("daprd does not confirm the actor stream")) })
	defer late.Stop()
	err = stream.Send(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_InitialRequest{
		InitialRequest: &rtv1.SubscribeActorEventsRequestInitialAlpha1{
			Entities: h.types(), ActorIdleTimeout: durationpb.New(idleTimeout), DrainOngoingCallTimeout: durationpb.New(drainTimeout),
		},
	}})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		return fmt.Errorf("register the actors: %w", errors.Join(context.Cause(ctx), err))
	}
	late.Stop()

	s := &session{host: h, stream: stream, ctx: ctx, out: make(chan *rtv1.SubscribeActorEventsRequestAlpha1, outboxLen)}
	ended := make(chan struct{}, 2)
	for _, part := range []func() error{s.receive, s.send} {
		go func() {
			cancel(part())
			ended <- struct{}{}
		}()
	}
	err = h.watch(ctx, began)
	cancel(err)
	<-ended
	<-ended
	h.mu.Lock()
	clear(h.placed) // those that are open stay open; what else there is, is for Dapr to say anew
	clear(h.disputed)
	h.mu.Unlock()
	return context.Cause(ctx)
}

// awaitTeardown waits until daprd has forgotten an earlier stream: one that is opened while the last one's end is still being worked off would
// lose its types to that (DAPR.md 1.8).
func (h *Host) awaitTeardown(ctx context.Context) error {
	deadline := time.Now().Add(teardown)
	for gone := 0; ; {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		r, err := h.sidecar.runtime(asking)
		cancel()
		switch {
		case err != nil:
			return fmt.Errorf("ask the sidecar: %w", err)
		case r.GetRuntimeStatus() == rtv1.ActorRuntime_DISABLED:
			return errors.New("the sidecar runs no actors: start it with --placement-host-address")
		case r.GetRuntimeStatus() == rtv1.ActorRuntime_INITIALIZING:
			return nil
		case !h.listed(r):
			gone++ // twice: its types go a moment before the rest
		}
		if gone == 2 || !time.Now().Before(deadline) {
			return nil
		}
		if err := sleep(ctx, firstBeat); err != nil {
			return err
		}
	}
}

// listed tells whether daprd hosts our types.
func (h *Host) listed(r *rtv1.ActorRuntime) bool {
	return slices.ContainsFunc(r.GetActiveActors(), func(a *rtv1.ActiveActorsCount) bool { return a.Type == h.cfg.ActorType })
}

// watch looks after the sidecar until ctx ends or it is found wedged, which ends it.
func (h *Host) watch(ctx context.Context, began time.Time) error {
	well, placed := time.Now(), time.Now() // last time that a canary came through, and that there was a placement service
	misses := 0                            // looks in a row that found the sidecar at fault: this process may have stood still
	routes := false
	for {
		blame, err := h.look(ctx, routes)
		now := time.Now()
		if blame != blamePlacement {
			placed = now
		}
		if misses++; blame != blameSidecar {
			misses = 0
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			well = now
			if !routes {
				routes = true
				h.tellReady(now.Sub(began))
				h.nudgeActive()
			}
		case blame == blamePlacement:
			well = now
			routes = false
			h.tellLost(err)
			if now.Sub(placed) > unplacedAfter {
				h.end(fmt.Sprintf("it has not reached the placement service for %v", unplacedAfter))
				return err
			}
		case now.Sub(well) > wedgedBeats*h.cfg.Beat && misses >= wedgedBeats:
			if status.Code(err) != codes.Unavailable { // one that is not there cannot be asked to end
				h.end(fmt.Sprintf("it has not routed a call for %v: %v", wedgedBeats*h.cfg.Beat, err))
			}
			return fmt.Errorf("%w: %w", errWedged, err)
		}
		pause := h.cfg.Beat
		if !routes || err != nil {
			pause = min(max(firstBeat, now.Sub(well)/10), h.cfg.Beat)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// blame is whose fault it is that a sidecar does not route.
type blame int

const (
	blameNobody blame = iota
	blameSidecar
	blamePlacement
)

// look asks the sidecar how it is, and sends a canary: a call of an actor that only this host has, which comes back by the stream.
func (h *Host) look(ctx context.Context, routes bool) (blame, error) {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	r, err := h.sidecar.runtime(asking)
	cancel()
	switch {
	case err != nil:
		return blameSidecar, fmt.Errorf("ask the sidecar: %w", err)
	case r.GetRuntimeStatus() == rtv1.ActorRuntime_RUNNING && !r.GetHostReady():
		return blamePlacement, fmt.Errorf("the sidecar has no placement service: %s", r.GetPlacement())
	}
	patience := firstCanary
	if routes {
		patience = canaryTimeout
	}
	calling, cancel := context.WithTimeout(ctx, patience)
	_, err = h.sidecar.invoke(calling, h.canary, "canary", "Sing", nil)
	cancel()
	if err != nil {
		return blameSidecar, fmt.Errorf("the canary: %w", err)
	}
	return blameNobody, nil
}

// session is one stream.
type session struct {
	host   *Host
	stream rtv1.Dapr_SubscribeActorEventsAlpha1Client
	ctx    context.Context
	out    chan *rtv1.SubscribeActorEventsRequestAlpha1
}

// send sends answers, one at a time.
func (s *session) send() error {
	for {
		select {
		case m := <-s.out:
			if err := s.stream.Send(m); err != nil {
				return fmt.Errorf("%w: %w", errGone, err)
			}
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// answer queues an answer; a session that is over drops it.
func (s *session) answer(m *rtv1.SubscribeActorEventsRequestAlpha1) {
	select {
	case s.out <- m:
	case <-s.ctx.Done():
	}
}

// receive takes callbacks. What needs no waiting, and that is all but methods, is answered here: daprd holds its lock on all actors of a
// type while it waits for the answer to a deactivation (DAPR.md 1.9).
func (s *session) receive() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		switch r := m.ResponseType.(type) {
		case *rtv1.SubscribeActorEventsResponseAlpha1_InvokeRequest:
			s.invoked(r.InvokeRequest)
		case *rtv1.SubscribeActorEventsResponseAlpha1_DeactivateRequest:
			s.answer(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_DeactivateResponse{
				DeactivateResponse: &rtv1.SubscribeActorEventsRequestDeactivateResponseAlpha1{Id: r.DeactivateRequest.Id},
			}})
			if r.DeactivateRequest.ActorType == s.host.cfg.ActorType {
				s.host.displaced(r.DeactivateRequest.ActorId)
			}
		case *rtv1.SubscribeActorEventsResponseAlpha1_ReminderRequest: // nobody sets any
			s.answer(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_ReminderResponse{
				ReminderResponse: &rtv1.SubscribeActorEventsRequestReminderResponseAlpha1{Id: r.ReminderRequest.Id, Cancel: true},
			}})
		case *rtv1.SubscribeActorEventsResponseAlpha1_TimerRequest:
			s.answer(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_TimerResponse{
				TimerResponse: &rtv1.SubscribeActorEventsRequestReminderResponseAlpha1{Id: r.TimerRequest.Id, Cancel: true},
			}})
		}
	}
}

// invoked answers a call.
func (s *session) invoked(r *rtv1.SubscribeActorEventsResponseInvokeRequestAlpha1) {
	h := s.host
	switch {
	case r.ActorType == h.canary:
		s.reply(r.Id, nil)
	case r.ActorType == h.cfg.ActorType && r.Method == methodLocate:
		s.reply(r.Id, encode(h.locate(r.ActorId)))
	case r.ActorType == dataType(h.cfg.ActorType) && h.cfg.Methods[r.Method] != nil:
		select {
		case h.calls <- struct{}{}:
			h.background.Go(func() {
				defer func() { <-h.calls }()
				s.reply(r.Id, encode(h.call(r.ActorId, h.cfg.Methods[r.Method], r.Data)))
			})
		default:
			s.reply(r.Id, encode(callFailed(errBusy)))
		}
	default:
		s.reply(r.Id, encode(callFailed(kverr.New(kverr.Unimplemented, "call the shard", "there is no method %q of actors of type %q", r.Method, r.ActorType))))
	}
}

// reply answers a call. The status is in the payload: daprd loses the codes of failed requests, and tries them again (DAPR.md 1.6, 3.7).
func (s *session) reply(id string, payload []byte) {
	s.answer(&rtv1.SubscribeActorEventsRequestAlpha1{RequestType: &rtv1.SubscribeActorEventsRequestAlpha1_InvokeResponse{
		InvokeResponse: &rtv1.SubscribeActorEventsRequestInvokeResponseAlpha1{Id: id, Data: payload},
	}})
}

// call runs a method.
func (h *Host) call(shardID string, method Handler, payload []byte) *dataplanev1.CallResponse {
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.CallTimeout)
	defer cancel()
	answer, err := method(ctx, shardID, payload)
	if err != nil {
		return callFailed(err)
	}
	if most := h.sidecar.MaxPayload(); len(answer) > most { // daprd would end the stream of the whole host
		return callFailed(kverr.TooBig("answer", len(answer), most, "bytes"))
	}
	return &dataplanev1.CallResponse{Answer: &dataplanev1.CallResponse_Payload{Payload: answer}}
}

func callFailed(err error) *dataplanev1.CallResponse {
	return &dataplanev1.CallResponse{Answer: &dataplanev1.CallResponse_Error{Error: kverr.Item(err)}}
}

// encode encodes a message of ours, which cannot fail: the empty answer that it would be is one that nobody knows.
func encode(m interface{ MarshalVT() ([]byte, error) }) []byte {
	data, _ := m.MarshalVT()
	return data
}
