package dataplane

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// maxStarts is how many shards one message of Watch may name.
const maxStarts = 4096

// Watch follows shards for one watcher, until he leaves or the server stops.
func (s *Server) Watch(stream grpc.BidiStreamingServer[dataplanev1.WatchRequest, dataplanev1.WatchResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopped, func() { cancel(errLeft) })()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.Head == nil || len(first.Head.Key) > key.MaxKey || first.Head.Mode > uint32(fanout.All) {
		return kverr.Invalid("head", "is missing, or not of a watch; the first message has it")
	}
	starts := make(chan []fanout.Start, 1)
	go func() {
		for m := first; ; {
			if len(m.Starts) > maxStarts {
				cancel(kverr.TooBig("starts", len(m.Starts), maxStarts, "shards"))
				return
			}
			select {
			case starts <- startsOf(m.Starts):
			case <-ctx.Done():
				return
			}
			var err error
			if m, err = stream.Recv(); err != nil {
				if errors.Is(err, io.EOF) {
					err = context.Canceled
				}
				cancel(err)
				return
			}
		}
	}()
	err = s.host.Follow(ctx, watchOf(first.Head), starts, func(t *fanout.Told) error { return stream.Send(protoTold(t)) })
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return kverr.From(err)
}

func watchOf(h *dataplanev1.WatchRequest_Head) *fanout.Watch {
	return &fanout.Watch{
		Namespace: shard.NamespaceID(h.Namespace), Key: h.Key, Prefix: h.Prefix, Mode: fanout.Mode(h.Mode), Before: h.Before, KeysOnly: h.KeysOnly,
		Blocks: h.Blocks,
	}
}

func protoHead(w *fanout.Watch) *dataplanev1.WatchRequest_Head {
	return &dataplanev1.WatchRequest_Head{
		Namespace: uint32(w.Namespace), Key: w.Key, Prefix: w.Prefix, Mode: uint32(w.Mode), Before: w.Before, KeysOnly: w.KeysOnly,
		Blocks: w.Blocks,
	}
}

func startsOf(all []*dataplanev1.WatchRequest_Start) []fanout.Start {
	out := make([]fanout.Start, len(all))
	for i, s := range all {
		out[i] = fanout.Start{Shard: s.Shard, Now: s.Now, From: cursorOf(s.From)}
	}
	return out
}

func protoStart(s *fanout.Start) *dataplanev1.WatchRequest_Start {
	return &dataplanev1.WatchRequest_Start{Shard: s.Shard, Now: s.Now, From: protoCursor(s.From)}
}

func cursorOf(c *dataplanev1.WatchCursor) fanout.Cursor {
	return fanout.Cursor{Revision: c.GetRevision(), Listing: c.GetListing(), Boundary: c.GetBoundary()}
}

func protoCursor(c fanout.Cursor) *dataplanev1.WatchCursor {
	return &dataplanev1.WatchCursor{Revision: c.Revision, Listing: c.Listing, Boundary: c.Boundary}
}

func protoTold(t *fanout.Told) *dataplanev1.WatchResponse {
	m := &dataplanev1.WatchResponse{
		Shard: t.Shard, Epoch: t.Epoch, Resync: t.Resync, Synced: t.Synced, Cursor: protoCursor(t.Cursor), More: t.More,
		Events: make([]*dataplanev1.WatchResponse_Event, len(t.Events)),
	}
	events := make([]dataplanev1.WatchResponse_Event, len(t.Events))
	for i := range t.Events {
		e, to := &t.Events[i], &events[i]
		m.Events[i] = to
		to.Kind, to.Key, to.Revision, to.Previous, to.Created, to.Initial = uint32(e.Kind), e.Key, e.Revision, e.Previous, e.Created, e.Initial
		to.Size, to.Value, to.Attached, to.Scope = e.Size, e.Value.Inline, e.Attached, e.Scope
		if e.Value.Ref.Object != (shard.ObjectID{}) {
			to.Ref = protoRef(e.Value.Ref)
		}
		if e.BeforeKnown && e.Before.Ref.Object == (shard.ObjectID{}) {
			to.Before = append(make([]byte, 0, len(e.Before.Inline)), e.Before.Inline...) // not nil: an empty value is one
		}
	}
	if t.Err != nil {
		m.Failure = failureOf(t.Err)
	}
	return m
}

func toldOf(m *dataplanev1.WatchResponse) *fanout.Told {
	t := &fanout.Told{Shard: m.Shard, Epoch: m.Epoch}
	t.Resync, t.Synced, t.Cursor, t.More = m.Resync, m.Synced, cursorOf(m.Cursor), m.More
	t.Events = make([]fanout.Event, len(m.Events))
	for i, e := range m.Events {
		to := &t.Events[i]
		to.Kind, to.Key, to.Revision, to.Previous, to.Created, to.Initial = shard.EventKind(e.Kind), e.Key, e.Revision, e.Previous, e.Created, e.Initial
		to.Size, to.Value.Inline, to.Attached, to.Scope = e.Size, e.Value, e.Attached, e.Scope
		if e.Ref != nil {
			to.Value.Ref = refOf(e.Ref)
		}
		to.BeforeKnown, to.Before.Inline = e.Before != nil, e.Before
	}
	if m.Failure != nil {
		t.Err = failureFrom(m.Failure)
	}
	return t
}
