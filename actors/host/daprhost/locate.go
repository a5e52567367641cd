package daprhost

import (
	"context"
	"math/rand/v2"
	"time"

	"kvstore/components/kverr"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// maxPlaced bounds the shards that are known to be placed here; further ones are opened only when they are located.
const maxPlaced = 65536

// locate answers where a shard is, without waiting, and has it opened: that Dapr calls means that it is placed here.
func (h *Host) locate(shardID string) *dataplanev1.LocateResponse {
	h.mu.Lock()
	if len(h.placed) < maxPlaced {
		h.placed[shardID] = true
	}
	h.mu.Unlock()
	a := h.Open(shardID)
	if a.Why == nil || !a.HolderPlaced {
		h.undisputed(shardID)
	}
	switch {
	case a.Epoch > 0:
		return &dataplanev1.LocateResponse{Answer: &dataplanev1.LocateResponse_Owner_{
			Owner: &dataplanev1.LocateResponse_Owner{Address: h.cfg.Shards.Address, Epoch: a.Epoch},
		}}
	case a.Why == nil, a.Why.Kind == kverr.Moved && a.Holder.Address == "": // whether it moved, and where to, is being found out
		return &dataplanev1.LocateResponse{Answer: &dataplanev1.LocateResponse_Activating_{
			Activating: &dataplanev1.LocateResponse_Activating{RetryAfterMs: activatingRetry.Milliseconds()},
		}}
	case a.Why.Kind == kverr.Moved:
		if a.HolderPlaced {
			h.dispute(shardID)
		}
		return &dataplanev1.LocateResponse{Answer: &dataplanev1.LocateResponse_Moved_{
			Moved: &dataplanev1.LocateResponse_Moved{Address: a.Holder.Address, Epoch: a.Holder.Epoch.Counter},
		}}
	}
	if a.Why.Kind == kverr.NotFound {
		h.mu.Lock()
		delete(h.placed, shardID) // nothing is kept of a shard that does not exist
		h.mu.Unlock()
	}
	return &dataplanev1.LocateResponse{Answer: &dataplanev1.LocateResponse_Error{Error: kverr.Item(a.Why)}, Asked: h.cfg.Shards.Address}
}

// Of a sidecar that was cut off from placement and does not know it (DAPR.md 3.8 b).
const (
	staleAfter = 5 * time.Second // of two hosts that are both told that a shard is theirs
	stalePause = time.Minute     // between two times that a sidecar is ended for that
)

// dispute notes that another host serves a shard that Dapr routes here, and is told, too, that it is its own. One of the two sidecars
// has an old table. If that lasts, ours is ended: if it was the other, that host will be the one that answers Moved in a while, and
// ends its own. Whoever serves goes on meanwhile.
func (h *Host) dispute(shardID string) {
	now := time.Now()
	h.mu.Lock()
	since, known := h.disputed[shardID]
	if !known {
		h.disputed[shardID] = now
	}
	stale := known && now.Sub(since) > staleAfter && (h.ended.IsZero() || now.Sub(h.ended) > stalePause)
	if stale {
		h.ended = now
	}
	h.mu.Unlock()
	if stale {
		h.background.Go(func() {
			h.end("it and another host's both say that shard " + shardID + " is theirs: one of them has an old table")
		})
	}
}

func (h *Host) undisputed(shardID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.disputed, shardID)
}

// displaced notes that Dapr places a shard on this host no more. That drops nothing (D3): it is served here until its next host asks for it,
// which a nudge brings about.
func (h *Host) displaced(shardID string) {
	h.mu.Lock()
	delete(h.placed, shardID)
	delete(h.disputed, shardID)
	h.mu.Unlock()
	h.nudgeSoon(nudge{shardID: shardID, wake: h.ForgetLoss(shardID)})
}

// nudge is a wish to have a shard located, so that it is opened where Dapr places it.
type nudge struct {
	shardID string
	wake    bool      // it sleeps, or has lost data; otherwise it is served here, and is nudged only while it is
	at      time.Time // when it is due
	tries   int
}

const (
	maxNudges    = 4096                  // waiting; beyond that they are dropped, and callers do what they would have done
	nudgeDelay   = 2 * time.Second       // so that a table that changes twice moves a shard once
	nudgePause   = 20 * time.Millisecond // between two, so that not all shards are on the move at once
	nudgeTries   = 5
	nudgeTimeout = time.Second
	remindEvery  = 10 * time.Second // of shards that are served here and placed elsewhere
)

// nudgeSoon queues a nudge. It does not block.
func (h *Host) nudgeSoon(n nudge) {
	n.at = time.Now().Add(nudgeDelay)
	select {
	case h.nudges <- n:
	default:
	}
}

// nudgeActive nudges every shard that is open here: after a time without a stream nobody knows whose they are. And those that have lost data: whoever has
// one placed on it is to tell so, though nobody else may ask for it.
func (h *Host) nudgeActive() {
	for _, id := range h.Active() {
		h.nudgeSoon(nudge{shardID: id})
	}
	for _, id := range h.Lost() {
		h.nudgeSoon(nudge{shardID: id, wake: true})
	}
}

// remind nudges shards that are served here and placed elsewhere again and again: the host that is to have one may be keeping peace, having lost it
// a while ago, and nobody else would ever ask it once that is over.
func (h *Host) remind() {
	for sleep(h.ctx, remindEvery) == nil {
		if h.Ready() != nil {
			continue // nobody would be reached
		}
		for _, id := range h.Active() {
			if !(placement{h}).Placed(id) {
				h.nudgeSoon(nudge{shardID: id})
			}
		}
	}
}

// nudge runs the nudges, in order, one at a time.
func (h *Host) nudge() {
	request := encode(&dataplanev1.LocateRequest{})
	for {
		var n nudge
		select {
		case n = <-h.nudges:
		case <-h.ctx.Done():
			return
		}
		if sleep(h.ctx, max(time.Until(n.at), nudgePause/2+rand.N(nudgePause))) != nil {
			return
		}
		if !n.wake {
			if !h.Serving(n.shardID) || (placement{h}).Placed(n.shardID) {
				continue // it is gone, or it is ours again
			}
		}
		ctx, cancel := context.WithTimeout(h.ctx, nudgeTimeout)
		_, err := h.sidecar.invoke(ctx, h.cfg.ActorType, n.shardID, methodLocate, request)
		cancel()
		if n.tries++; err != nil && n.tries < nudgeTries {
			h.nudgeSoon(n)
		}
	}
}
