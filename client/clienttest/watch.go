package clienttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	"kvstore/components/promptcache"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// change is one change of a space's keys.
type change struct {
	space *space
	event *kvstorev1.WatchEvent
}

// changed notes a change and tells watchers; mu is held.
func (s *Server) changed(sp *space, e *kvstorev1.WatchEvent) {
	s.changes = append(s.changes, change{sp, e})
	close(s.news)
	s.news = make(chan struct{})
}

// blockChanged notes that a block was stored, or removed and why; mu is held.
func (s *Server) blockChanged(sp *space, name string, b *block, why kvstorev1.WatchRemoval) {
	s.revision++
	s.changed(sp, blockEvent(s.revision, name, b, why))
}

func blockEvent(revision uint64, name string, b *block, why kvstorev1.WatchRemoval) *kvstorev1.WatchEvent {
	form, _ := promptcache.Canonical(b.scope.GetFields()) // the tests' scopes are good
	id := promptcache.ScopeOf(form)
	e := &kvstorev1.WatchEvent{
		Type: kvstorev1.WatchEventType_WATCH_EVENT_TYPE_STORED, Key: append(id[:], name...), Version: revision, Size: int64(len(b.data)), Created: true,
		Block: &kvstorev1.WatchBlock{ScopeId: id[:], Scope: b.scope, Block: b.ref, Parent: b.parent, Removal: why},
	}
	if why != kvstorev1.WatchRemoval_WATCH_REMOVAL_UNSPECIFIED {
		e.Type, e.Created = kvstorev1.WatchEventType_WATCH_EVENT_TYPE_REMOVED, false
	}
	return e
}

// Compact forgets all changes up to now: watches that are behind cannot go on.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten += len(s.changes)
	s.changes = nil
}

// Watch is the RPC. Its fault is asked before every response; a token is the number of changes.
func (s kv) Watch(r *kvstorev1.WatchRequest, stream grpc.ServerStreamingServer[kvstorev1.WatchResponse]) error {
	return s.watch(stream.Context(), r, stream.Send)
}

// Watches is the RPC. Its fault is asked when it begins and before every message; that of Watch before every response.
func (s kv) Watches(stream grpc.BidiStreamingServer[kvstorev1.WatchesRequest, kvstorev1.WatchesResponse]) error {
	var sending sync.Mutex
	send := func(m *kvstorev1.WatchesResponse) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(m)
	}
	type one struct {
		end    context.CancelFunc
		credit atomic.Int64
		more   chan struct{}
	}
	all := map[uint64]*one{}
	for {
		if err := s.Faults.runBefore("Watches"); err != nil {
			return err
		}
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch ask := m.Ask.(type) {
		case *kvstorev1.WatchesRequest_Begin_:
			id := ask.Begin.WatchId
			x := &one{more: make(chan struct{}, 1)}
			x.credit.Store(ask.Begin.Credit)
			var ctx context.Context
			ctx, x.end = context.WithCancel(stream.Context())
			all[id] = x
			go func() {
				err := s.watch(ctx, ask.Begin.Watch, func(told *kvstorev1.WatchResponse) error {
					for len(told.Events) > 0 && x.credit.Load() <= 0 {
						select {
						case <-x.more:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					for _, e := range told.Events {
						x.credit.Add(-int64(len(e.Key) + len(e.Value) + len(e.PrevValue) + 64))
					}
					return send(&kvstorev1.WatchesResponse{WatchIds: []uint64{id}, Told: told})
				})
				if ctx.Err() == nil {
					_ = send(&kvstorev1.WatchesResponse{WatchIds: []uint64{id}, Error: kverr.Item(kverr.From(err))})
				}
			}()
		case *kvstorev1.WatchesRequest_Credit_:
			x := all[ask.Credit.WatchId]
			x.credit.Add(ask.Credit.Bytes)
			select {
			case x.more <- struct{}{}:
			default:
			}
		case *kvstorev1.WatchesRequest_EndId:
			all[ask.EndId].end()
		}
	}
}

// watch is one watch; send takes what it is told.
func (s kv) watch(ctx context.Context, r *kvstorev1.WatchRequest, to func(*kvstorev1.WatchResponse) error) error {
	byKey := false
	switch r.Target.(type) {
	case *kvstorev1.WatchRequest_Key, *kvstorev1.WatchRequest_Prefix:
		byKey = true
	}
	s.mu.Lock()
	ns := s.namespaces[or(r.Keyspace, "default")+"/"+or(r.Namespace, "default")]
	s.mu.Unlock()
	if byKey && ns.GetKind() == kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT {
		return kverr.New(kverr.WrongKind, "", "blocks are watched by scope, not by key")
	}
	at, state := -1, false
	switch f := r.From.(type) {
	case *kvstorev1.WatchRequest_InitialState:
		state = true
	case *kvstorev1.WatchRequest_Token:
		n, used := binary.Uvarint(f.Token)
		if used <= 0 {
			return kverr.Invalid("token", "is damaged")
		}
		at = int(n)
	}
	send := func(resp *kvstorev1.WatchResponse) error {
		if err := s.Faults.runBefore("Watch"); err != nil {
			return err
		}
		return to(resp)
	}
	concerns := func(e *kvstorev1.WatchEvent) bool {
		k := e.Key
		switch t := r.Target.(type) {
		case *kvstorev1.WatchRequest_Scope:
			return scopeKey(t.Scope) == scopeKey(e.Block.GetScope())
		case *kvstorev1.WatchRequest_Key:
			return bytes.Equal(k, t.Key)
		case *kvstorev1.WatchRequest_Prefix:
			return bytes.HasPrefix(k, t.Prefix)
		}
		return true
	}
	for started := false; ; {
		s.mu.Lock()
		sp, news := s.space(r.Keyspace, r.Namespace), s.news
		var resp *kvstorev1.WatchResponse
		var events []*kvstorev1.WatchEvent
		end := s.forgotten + len(s.changes)
		switch {
		case at >= 0 && at < s.forgotten && r.Mode == kvstorev1.WatchMode_WATCH_MODE_ALL:
			s.mu.Unlock()
			return kverr.New(kverr.Compacted, "", "the changes are not kept any more")
		case at >= 0 && at < s.forgotten:
			state = true
			resp = &kvstorev1.WatchResponse{Control: kvstorev1.WatchControl_WATCH_CONTROL_RESYNC}
		case at < 0 && !state:
			at = end
		case at >= 0:
			for ; at < end && len(events) < 3; at++ {
				if c := s.changes[at-s.forgotten]; c.space == sp && concerns(c.event) {
					events = append(events, c.event)
				}
			}
		}
		if state {
			for _, e := range sp.entries {
				events = append(events, &kvstorev1.WatchEvent{
					Type: kvstorev1.WatchEventType_WATCH_EVENT_TYPE_PUT, Key: e.Key, Value: e.Value, Version: e.Version, Initial: true, Size: e.Size,
				})
			}
			for name, b := range sp.blocks {
				e := blockEvent(b.seq, name, b, kvstorev1.WatchRemoval_WATCH_REMOVAL_UNSPECIFIED)
				e.Initial = true
				events = append(events, e)
			}
			events = slices.DeleteFunc(events, func(e *kvstorev1.WatchEvent) bool { return !concerns(e) })
			slices.SortFunc(events, func(a, b *kvstorev1.WatchEvent) int { return strings.Compare(string(a.Key), string(b.Key)) })
			at = end
		}
		s.mu.Unlock()
		token := binary.AppendUvarint(nil, uint64(at))
		var say []*kvstorev1.WatchResponse
		if resp != nil {
			say = append(say, resp)
		}
		switch {
		case state:
			for _, e := range events {
				say = append(say, &kvstorev1.WatchResponse{Events: []*kvstorev1.WatchEvent{e}})
			}
			say = append(say, &kvstorev1.WatchResponse{Control: kvstorev1.WatchControl_WATCH_CONTROL_SYNCED, Token: token})
			state, started = false, true
		case len(events) > 0:
			say = append(say, &kvstorev1.WatchResponse{Events: events, Token: token})
		}
		if !started {
			started = true
			say = append(say, &kvstorev1.WatchResponse{Control: kvstorev1.WatchControl_WATCH_CONTROL_STARTED, Token: token})
		}
		for _, m := range say {
			if err := send(m); err != nil {
				return err
			}
		}
		if at < end {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
