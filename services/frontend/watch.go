package frontend

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"kvstore/actors/fanout"
	"kvstore/actors/shard"
	"kvstore/components/authn"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// watching is one Watch stream. Shards tell it what happens, one after the other; the timer of progress comes between.
type watching struct {
	server *Server
	ns     *Namespace
	pass   *authn.Pass
	watch  fanout.Watch
	shards []*Shard
	number map[string]int // place in shards, by id
	send   func(*kvv1.WatchResponse) error
	cancel context.CancelCauseFunc // ends the call
	state  bool                    // the state comes first

	mu    sync.Mutex
	over  bool        // the call has returned; guarded by mu, as is all below
	at    []position  // how far it has come, by place in shards
	sure  []bool      // at is: the shard has told it, or the token that the watch goes on from
	blank int         // shards of which it is not
	known []bool      // the shard has told its first
	due   int         // shards that have not, or not their state
	timer *time.Timer // of progress
}

// Watch tells of changes until the client leaves, or a shard cannot be followed any more. What shards do by themselves, such as
// change hands, goes unnoticed.
func (k *kvService) Watch(req *kvv1.WatchRequest, stream grpc.ServerStreamingServer[kvv1.WatchResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(k.stopped, func() { cancel(errStopping) })()
	ns, err := k.namespace(ctx, req.Keyspace, req.Namespace, kvv1.NamespaceKind_NAMESPACE_KIND_KV)
	if err != nil {
		return err
	}
	if n := k.watches.Add(1); n > k.cfg.MaxWatches {
		k.watches.Add(-1)
		return kverr.Busy(kverr.Exhausted, time.Second, "this server has %d watches, its limit", k.cfg.MaxWatches)
	}
	defer k.watches.Add(-1)
	w, starts, err := k.newWatching(ns, req)
	if err != nil {
		return err
	}
	w.pass, w.send, w.cancel = authn.FromContext(ctx), stream.Send, cancel
	w.timer = time.AfterFunc(k.cfg.WatchProgress, w.progress)
	defer w.end()
	for {
		err := k.shards.Watch(ctx, &w.watch, starts, w.tell)
		if ctx.Err() != nil {
			return kverr.From(context.Cause(ctx))
		}
		if !errors.Is(err, errResync) {
			return err
		}
		starts = w.anew()
		if err := w.control(kvv1.WatchControl_WATCH_CONTROL_RESYNC); err != nil {
			return err
		}
	}
}

// errResync ends the watch of all shards when one of them has to tell its state anew: the client knows no shards, so all do.
var errResync = errors.New("the state must be told anew")

// newWatching checks a request.
func (k *kvService) newWatching(ns *Namespace, req *kvv1.WatchRequest) (*watching, []fanout.Start, *kverr.Error) {
	w := &watching{server: k.Server, ns: ns, shards: ns.keyspace.Shards}
	w.watch = fanout.Watch{Namespace: ns.ID, Before: req.PrevValue, KeysOnly: req.KeysOnly}
	switch t := req.Target.(type) {
	case *kvv1.WatchRequest_Key:
		if err := checkKey("key", t.Key); err != nil {
			return nil, nil, err
		}
		w.watch.Key = t.Key
		w.shards = []*Shard{ns.ShardOf(t.Key)}
	case *kvv1.WatchRequest_Prefix:
		if len(t.Prefix) > key.MaxKey {
			return nil, nil, kverr.TooBig("prefix", len(t.Prefix), key.MaxKey, "bytes")
		}
		w.watch.Key, w.watch.Prefix = t.Prefix, true
	default:
		w.watch.Prefix = true
	}
	if w.watch.Prefix && ns.rule.Whole() {
		w.shards = []*Shard{ns.ShardOf(w.watch.Key)}
	}
	switch req.Mode {
	case kvv1.WatchMode_WATCH_MODE_UNSPECIFIED, kvv1.WatchMode_WATCH_MODE_LATEST:
	case kvv1.WatchMode_WATCH_MODE_ALL:
		w.watch.Mode = fanout.All
	default:
		return nil, nil, kverr.Invalid("mode", "is %d, which this server does not know", req.Mode)
	}
	w.number = make(map[string]int, len(w.shards))
	for i, sh := range w.shards {
		w.number[sh.ID] = i
	}
	var from map[int]position
	switch f := req.From.(type) {
	case *kvv1.WatchRequest_InitialState:
		if !f.InitialState {
			return nil, nil, kverr.Invalid("initial_state", "is false; only true is accepted")
		}
		return w, w.anew(), nil
	case *kvv1.WatchRequest_Token:
		var err error
		if from, err = parseToken(f.Token, ns.keyspace.uid); err != nil {
			return nil, nil, kverr.Invalid("token", "%v", err)
		}
	}
	starts := make([]fanout.Start, len(w.shards))
	w.forget()
	for i, sh := range w.shards {
		starts[i] = fanout.Start{Shard: sh.ID, Now: true}
		if p, ok := from[sh.Number]; ok {
			starts[i] = fanout.Start{Shard: sh.ID, From: fanout.Cursor{Revision: p.revision}}
			// What others tell while this one cannot be reached is told once, though the client may come back before it is reached.
			w.at[i], w.sure[i] = p, true
			w.blank--
		}
	}
	return w, starts, nil
}

// forget begins with nothing known of any shard. Mutex held, or nobody else has it.
func (w *watching) forget() {
	n := len(w.shards)
	w.at, w.sure, w.blank, w.known, w.due = make([]position, n), make([]bool, n), n, make([]bool, n), n
}

// anew begins with the state, of all shards.
func (w *watching) anew() []fanout.Start {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget()
	w.state = true
	starts := make([]fanout.Start, len(w.shards))
	for i, sh := range w.shards {
		starts[i] = fanout.Start{Shard: sh.ID, From: fanout.Anew()}
	}
	return starts
}

// tell takes what a shard tells.
func (w *watching) tell(told *fanout.Told) error {
	if told.Resync {
		return errResync
	}
	if err := w.server.cfg.Access.Check(w.pass, w.ns.keyspace.Name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.number[told.Shard]
	w.at[i] = position{shard: w.shards[i].Number, epoch: told.Epoch, revision: told.Cursor.Revision}
	first := !w.known[i] && !told.Cursor.Listing
	if first {
		w.known[i] = true
		w.due--
		if !w.sure[i] {
			w.sure[i] = true
			w.blank--
		}
	}
	if len(told.Events) > 0 {
		resp := &kvv1.WatchResponse{Events: make([]*kvv1.WatchEvent, len(told.Events))}
		if !first || !w.state { // the last of the state: SYNCED has the token, or who goes on from here would not be told SYNCED
			resp.Token = w.token()
		}
		events := make([]kvv1.WatchEvent, len(told.Events))
		for j := range told.Events {
			resp.Events[j] = &events[j]
			w.fill(&events[j], &told.Events[j])
		}
		if err := w.write(resp); err != nil {
			return err
		}
	}
	if !first || w.due > 0 {
		return nil
	}
	c := kvv1.WatchControl_WATCH_CONTROL_STARTED
	if w.state {
		c = kvv1.WatchControl_WATCH_CONTROL_SYNCED
	}
	return w.write(&kvv1.WatchResponse{Control: c, Token: w.token()})
}

// token says how far the watch has come, once that is known of every shard. Mutex held.
func (w *watching) token() []byte {
	if w.blank > 0 {
		return nil
	}
	b := appendTokenHead(make([]byte, 0, 16+12*len(w.at)), w.ns.keyspace.uid)
	for _, p := range w.at {
		b = appendPosition(b, p)
	}
	return b
}

var eventTypes = map[shard.EventKind]kvv1.WatchEventType{
	shard.EventPut: kvv1.WatchEventType_WATCH_EVENT_TYPE_PUT, shard.EventDelete: kvv1.WatchEventType_WATCH_EVENT_TYPE_DELETE,
	shard.EventExpire: kvv1.WatchEventType_WATCH_EVENT_TYPE_EXPIRE,
}

func (w *watching) fill(to *kvv1.WatchEvent, e *fanout.Event) {
	to.Type, to.Key, to.Version, to.PrevVersion = eventTypes[e.Kind], e.Key, e.Revision, e.Previous
	to.Created, to.Initial, to.Size, to.Value = e.Created, e.Initial, e.Size, e.Value.Inline
	to.ValueLeftOut = apart(&e.Value)
	if e.BeforeKnown && !apart(&e.Before) && !w.watch.KeysOnly {
		to.PrevValue = append(make([]byte, 0, len(e.Before.Inline)), e.Before.Inline...) // not nil: an empty value is one
	}
}

// write sends a response. Mutex held: a client that does not read holds up whatever else there is to say.
func (w *watching) write(resp *kvv1.WatchResponse) error {
	w.timer.Reset(w.server.cfg.WatchProgress)
	return w.send(resp)
}

func (w *watching) control(c kvv1.WatchControl) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(&kvv1.WatchResponse{Control: c})
}

// progress says how far the watch has come.
func (w *watching) progress() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	if err := w.server.cfg.Access.Check(w.pass, w.ns.keyspace.Name); err != nil {
		w.cancel(err)
		return
	}
	_ = w.write(&kvv1.WatchResponse{Control: kvv1.WatchControl_WATCH_CONTROL_PROGRESS, Token: w.token()}) // an error is the stream's end
}

// end is the end of the call: nothing may be sent after it.
func (w *watching) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}

// parseToken takes a session or watch token of a keyspace apart.
func parseToken(b []byte, uid uint64) (map[int]position, error) {
	const head = 9
	if len(b) < head || b[0] != tokenVersion {
		return nil, errTokenDamaged
	}
	if binary.BigEndian.Uint64(b[1:]) != uid {
		return nil, errTokenOther
	}
	var numbers []uint64
	for b = b[head:]; len(b) > 0; {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errTokenDamaged
		}
		numbers, b = append(numbers, v), b[n:]
	}
	if len(numbers)%3 != 1 || numbers[0] != mapVersion {
		return nil, errTokenDamaged
	}
	at := make(map[int]position)
	for t := range slices.Chunk(numbers[1:], 3) {
		at[int(min(t[0], math.MaxInt32))] = position{shard: int(min(t[0], math.MaxInt32)), epoch: t[1], revision: t[2]}
	}
	return at, nil
}
