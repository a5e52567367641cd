package clienttest

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
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

// Compact forgets all changes up to now: watches that are behind cannot go on.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten += len(s.changes)
	s.changes = nil
}

// Watch is the RPC. Its fault is asked before every response; a token is the number of changes.
func (s kv) Watch(r *kvstorev1.WatchRequest, stream grpc.ServerStreamingServer[kvstorev1.WatchResponse]) error {
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
		return stream.Send(resp)
	}
	concerns := func(k []byte) bool {
		switch t := r.Target.(type) {
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
				if c := s.changes[at-s.forgotten]; c.space == sp && concerns(c.event.Key) {
					events = append(events, c.event)
				}
			}
		}
		if state {
			for k, e := range sp.entries {
				if concerns([]byte(k)) {
					events = append(events, &kvstorev1.WatchEvent{
						Type: kvstorev1.WatchEventType_WATCH_EVENT_TYPE_PUT, Key: e.Key, Value: e.Value, Version: e.Version, Initial: true, Size: e.Size,
					})
				}
			}
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
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
