package frontend

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
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
	"kvstore/components/promptcache"
	"kvstore/components/ring"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Bounds of watches.
const (
	// maxCredit is how many bytes a watch may be told before its client lets it be told more.
	maxCredit = 64 << 20
	// sweeps is how often in WatchProgress silent watches are looked for.
	sweeps = 4
)

// watcher is the watches of one stream. One goroutine tells them what happens; what the client asks and the timer of progress come between.
type watcher struct {
	server   *Server
	pass     *authn.Pass
	follower fanout.Follower
	send     func(*kvv1.WatchesResponse) error
	// ended tells the client that watches are over; an error ends the stream.
	ended func(ids []uint64, err error) error

	mu    sync.Mutex
	over  bool                 // the call has returned; guarded by mu, as is all below
	all   map[uint64]*watching // by number
	named map[uint64]*watching // by what the client calls it
	given uint64               // the last number that was given out
	last  uint64               // the last name that the client has used
	timer *time.Timer          // of progress
}

// watching is one watch; watcher.mu guards all of it.
type watching struct {
	id     uint64 // what the client calls it
	number uint64 // what the follower calls it: another one when it begins anew
	ns     *Namespace
	watch  fanout.Watch
	shards []*Shard // all of the keyspace, or one
	state  bool     // the state comes first
	credit int64
	spoke  time.Time // when the client was told something

	at    []stand // by place in shards
	blank int     // shards of which at is not sure
	due   int     // shards that have not told their first, or not their state
}

// stand is how far a watch has come in a shard.
type stand struct {
	position
	sure bool // the shard has told it, or the token that the watch goes on from
	told bool // the shard has told its first
}

// newWatcher makes one without watches, for run with the same context. It must be closed.
func (s *Server) newWatcher(ctx context.Context, send func(*kvv1.WatchesResponse) error, ended func([]uint64, error) error) (*watcher, error) {
	follower, err := s.shards.Follower(ctx)
	if err != nil {
		return nil, err
	}
	w := &watcher{
		server: s, pass: authn.FromContext(ctx), follower: follower, send: send, ended: ended,
		all: make(map[uint64]*watching), named: make(map[uint64]*watching),
	}
	w.mu.Lock() // the timer may come at once
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(s.cfg.WatchProgress/sweeps, w.progress)
	return w, nil
}

// Watch tells of changes until the client leaves, or a shard cannot be followed any more. What shards do by themselves, such as
// change hands, goes unnoticed.
func (k *kvService) Watch(req *kvv1.WatchRequest, stream grpc.ServerStreamingServer[kvv1.WatchResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(k.stopped, func() { cancel(errStopping) })()
	w, err := k.newWatcher(ctx, func(m *kvv1.WatchesResponse) error { return stream.Send(m.Told) }, func(_ []uint64, err error) error {
		cancel(err) // also when it is the timer that ends it
		return err
	})
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.begin(ctx, 1, req, math.MaxInt64/2); err != nil {
		return err
	}
	return w.run(ctx)
}

// Watches is many of them.
func (k *kvService) Watches(stream grpc.BidiStreamingServer[kvv1.WatchesRequest, kvv1.WatchesResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(k.stopped, func() { cancel(errStopping) })()
	w, err := k.newWatcher(ctx, stream.Send, func(ids []uint64, err error) error {
		return stream.Send(&kvv1.WatchesResponse{WatchIds: ids, Error: k.itemOf(kverr.From(err))})
	})
	if err != nil {
		return err
	}
	defer w.close()
	go func() {
		for {
			m, err := stream.Recv()
			if err == nil {
				err = w.take(ctx, m)
			}
			if err != nil { // io.EOF too
				cancel(err)
				return
			}
		}
	}()
	err = w.run(ctx)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// run tells the watches what happens, until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	for {
		told, err := w.follower.Next()
		if err == nil {
			err = w.tell(told)
		}
		if cause := context.Cause(ctx); cause != nil {
			if errors.Is(cause, io.EOF) {
				return cause
			}
			return kverr.From(cause)
		}
		if err != nil {
			return err
		}
	}
}

// close is the end of the call: nothing may be sent after it.
func (w *watcher) close() {
	w.mu.Lock()
	w.over = true
	w.timer.Stop()
	w.server.watches.Add(-int64(len(w.all)))
	w.mu.Unlock()
	w.follower.Close()
}

var errNoWatchRequest = kverr.Invalid("ask", "is of a kind that this server does not know, or none")

// take takes a message of Watches. An error ends the stream.
func (w *watcher) take(ctx context.Context, m *kvv1.WatchesRequest) error {
	switch ask := m.Ask.(type) {
	case *kvv1.WatchesRequest_Begin_:
		b := ask.Begin
		switch {
		case b.Watch == nil:
			return kverr.Invalid("begin.watch", "is missing")
		case b.WatchId <= w.last:
			return kverr.Invalid("begin.watch_id", "is %d, not greater than %d before it", b.WatchId, w.last)
		case b.Credit < 0:
			return kverr.Invalid("begin.credit", "is %d, must be at least 0", b.Credit)
		}
		w.last = b.WatchId
		if err := w.begin(ctx, b.WatchId, b.Watch, min(b.Credit, maxCredit)); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.over {
				return nil
			}
			return w.ended([]uint64{b.WatchId}, err)
		}
	case *kvv1.WatchesRequest_Credit_:
		if ask.Credit.Bytes < 1 {
			return kverr.Invalid("credit.bytes", "is %d, must be at least 1", ask.Credit.Bytes)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if x := w.named[ask.Credit.WatchId]; x != nil {
			more := min(ask.Credit.Bytes, maxCredit-x.credit)
			x.credit += more
			w.follower.Grant(x.number, more)
		}
	case *kvv1.WatchesRequest_EndId:
		w.mu.Lock()
		defer w.mu.Unlock()
		if x := w.named[ask.EndId]; x != nil {
			w.forget(x)
		}
	default:
		return errNoWatchRequest
	}
	return nil
}

// begin begins a watch.
func (w *watcher) begin(ctx context.Context, id uint64, req *kvv1.WatchRequest, credit int64) error {
	k := w.server
	ns, refused := k.namespace(ctx, req.Keyspace, req.Namespace, append(keyKinds, kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT)...)
	if refused != nil {
		return refused
	}
	x, starts, err := newWatching(ns, req)
	if err != nil {
		return err
	}
	if n := k.watches.Add(1); n > k.cfg.MaxWatches {
		k.watches.Add(-1)
		return kverr.Busy(kverr.Exhausted, time.Second, "this server has %d watches, its limit", k.cfg.MaxWatches)
	}
	x.id, x.credit, x.spoke = id, credit, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		k.watches.Add(-1)
		return nil
	}
	w.named[id] = x
	w.add(x, starts)
	return nil
}

// add has a watch followed under a new number. Mutex held.
func (w *watcher) add(x *watching, starts []fanout.Start) {
	w.given++
	x.number = w.given
	w.all[x.number] = x
	w.follower.Add(x.number, &x.watch, x.credit, starts)
}

// forget ends a watch. Mutex held.
func (w *watcher) forget(x *watching) {
	w.follower.Remove(x.number)
	delete(w.all, x.number)
	delete(w.named, x.id)
	w.server.watches.Add(-1)
}

// finish ends a watch, and the client is told why. Mutex held.
func (w *watcher) finish(x *watching, err error) error {
	w.forget(x)
	return w.ended([]uint64{x.id}, err)
}

// resync begins a watch anew, with the state of all its shards, when one of them has to tell its own anew: the client knows no shards. Mutex held.
func (w *watcher) resync(x *watching) error {
	w.server.resyncs.Add(1)
	w.follower.Remove(x.number)
	delete(w.all, x.number)
	w.add(x, x.anew())
	x.spoke = time.Now()
	return w.send(&kvv1.WatchesResponse{WatchIds: []uint64{x.id}, Told: &kvv1.WatchResponse{Control: kvv1.WatchControl_WATCH_CONTROL_RESYNC}})
}

// tell tells watches what they are told alike.
func (w *watcher) tell(told *fanout.Told) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return nil
	}
	var events []*kvv1.WatchEvent     // once for all
	var pending *kvv1.WatchesResponse // what the last ones are told
	var asked *Keyspace               // the last for which the client's right was asked
	flush := func() error {
		if pending == nil {
			return nil
		}
		m := pending
		pending = nil
		return w.send(m)
	}
	_, shardNumber, _ := ring.ParseShardID(told.Shard) // when a watch is over altogether there is none
	now, cost := time.Now(), told.Cost()
	for _, number := range told.Watches {
		x := w.all[number]
		if x == nil {
			continue
		}
		var err *kverr.Error
		if asked != x.ns.keyspace {
			err = w.server.cfg.Access.Check(w.pass, x.ns.keyspace.Name)
		}
		if err == nil {
			err = told.Err
		}
		switch {
		case err != nil:
			if err := flush(); err != nil {
				return err
			}
			if err := w.finish(x, err); err != nil {
				return err
			}
			continue
		case told.Resync:
			if err := w.resync(x); err != nil {
				return err
			}
			continue
		}
		asked = x.ns.keyspace
		x.credit -= cost
		first := x.advance(shardNumber, told)
		if len(told.Events) > 0 {
			if events == nil {
				events = x.events(told)
			}
			var token []byte
			if !first || !x.state { // the last of the state: SYNCED has the token, or who goes on from here would not be told SYNCED
				token = x.token()
			}
			if pending != nil && !bytes.Equal(token, pending.Told.Token) {
				if err := flush(); err != nil {
					return err
				}
			}
			if pending == nil {
				pending = &kvv1.WatchesResponse{Told: &kvv1.WatchResponse{Events: events, Token: token}}
			}
			pending.WatchIds = append(pending.WatchIds, x.id)
			x.spoke = now
		}
		if !first || x.due > 0 {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		control := kvv1.WatchControl_WATCH_CONTROL_STARTED
		if x.state {
			control = kvv1.WatchControl_WATCH_CONTROL_SYNCED
		}
		x.spoke = now
		if err := w.send(&kvv1.WatchesResponse{WatchIds: []uint64{x.id}, Told: &kvv1.WatchResponse{Control: control, Token: x.token()}}); err != nil {
			return err
		}
	}
	return flush()
}

// progress tells silent watches how far they have come.
func (w *watcher) progress() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	now := time.Now()
	same := make(map[string]*kvv1.WatchesResponse) // by token
	for _, x := range w.all {
		if now.Sub(x.spoke) < w.server.cfg.WatchProgress || x.credit <= 0 {
			continue
		}
		if err := w.server.cfg.Access.Check(w.pass, x.ns.keyspace.Name); err != nil {
			_ = w.finish(x, err) // an error is the stream's end
			continue
		}
		x.spoke = now
		token := x.token()
		m := same[string(token)]
		if m == nil {
			m = &kvv1.WatchesResponse{Told: &kvv1.WatchResponse{Control: kvv1.WatchControl_WATCH_CONTROL_PROGRESS, Token: token}}
			same[string(token)] = m
		}
		m.WatchIds = append(m.WatchIds, x.id)
	}
	for _, m := range same {
		_ = w.send(m) // an error is the stream's end
	}
	w.timer.Reset(w.server.cfg.WatchProgress / sweeps)
}

var errBlocksByScope = &kverr.Error{Kind: kverr.WrongKind, Message: "the namespace is of kind prompt: its blocks are watched by scope, or all of them, not by key"}

// newWatching checks a request.
func newWatching(ns *Namespace, req *kvv1.WatchRequest) (*watching, []fanout.Start, error) {
	w := &watching{ns: ns, shards: ns.keyspace.Shards}
	w.watch = fanout.Watch{Namespace: ns.ID, Before: req.PrevValue, KeysOnly: req.KeysOnly}
	w.watch.Blocks = ns.Kind == kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT
	switch t := req.Target.(type) {
	case *kvv1.WatchRequest_Scope:
		if !w.watch.Blocks {
			return nil, nil, &kverr.Error{Kind: kverr.WrongKind, Message: "the namespace is not of kind prompt, and has no scopes"}
		}
		form, err := promptcache.Canonical(t.Scope.GetFields())
		if err != nil {
			return nil, nil, err
		}
		id := promptcache.ScopeOf(form)
		w.watch.Key, w.watch.Prefix = id[:], true
	case *kvv1.WatchRequest_Key:
		if w.watch.Blocks {
			return nil, nil, errBlocksByScope
		}
		if err := checkKey("key", t.Key); err != nil {
			return nil, nil, err
		}
		w.watch.Key = t.Key
		w.shards = ns.ShardOf(t.Key).alone()
	case *kvv1.WatchRequest_Prefix:
		if w.watch.Blocks {
			return nil, nil, errBlocksByScope
		}
		if len(t.Prefix) > key.MaxKey {
			return nil, nil, kverr.TooBig("prefix", len(t.Prefix), key.MaxKey, "bytes")
		}
		w.watch.Key, w.watch.Prefix = t.Prefix, true
	default:
		w.watch.Prefix = true
	}
	if w.watch.Prefix && ns.rule.Whole() && !w.watch.Blocks {
		w.shards = ns.ShardOf(w.watch.Key).alone()
	}
	switch req.Mode {
	case kvv1.WatchMode_WATCH_MODE_UNSPECIFIED, kvv1.WatchMode_WATCH_MODE_LATEST:
	case kvv1.WatchMode_WATCH_MODE_ALL:
		w.watch.Mode = fanout.All
	default:
		return nil, nil, kverr.Invalid("mode", "is %d, which this server does not know", req.Mode)
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
	w.blankOut()
	for i, sh := range w.shards {
		starts[i] = fanout.Start{Shard: sh.ID, Now: true}
		if p, ok := from[sh.Number]; ok {
			starts[i] = fanout.Start{Shard: sh.ID, From: fanout.Cursor{Revision: p.revision}}
			// What others tell while this one cannot be reached is told once, though the client may come back before it is reached.
			w.at[i].position, w.at[i].sure = p, true
			w.blank--
		}
	}
	return w, starts, nil
}

// blankOut begins with nothing known of any shard.
func (w *watching) blankOut() {
	n := len(w.shards)
	w.at, w.blank, w.due = make([]stand, n), n, n
}

// anew begins with the state, of all shards.
func (w *watching) anew() []fanout.Start {
	w.blankOut()
	w.state = true
	starts := make([]fanout.Start, len(w.shards))
	for i, sh := range w.shards {
		starts[i] = fanout.Start{Shard: sh.ID, From: fanout.Anew()}
	}
	return starts
}

// advance notes how far a shard, by its number, has come, and tells whether it has told its first.
func (w *watching) advance(number int, told *fanout.Told) (first bool) {
	at := &w.at[number-w.shards[0].Number]
	at.position = position{shard: number, epoch: told.Epoch, revision: told.Cursor.Revision}
	if at.told || told.Cursor.Listing {
		return false
	}
	at.told = true
	w.due--
	if !at.sure {
		at.sure = true
		w.blank--
	}
	return true
}

// events are what all watches alike are told of a batch.
func (w *watching) events(told *fanout.Told) []*kvv1.WatchEvent {
	all, events := make([]*kvv1.WatchEvent, len(told.Events)), make([]kvv1.WatchEvent, len(told.Events))
	for i := range told.Events {
		all[i] = &events[i]
		w.fill(&events[i], &told.Events[i])
	}
	return all
}

// token says how far the watch has come, once that is known of every shard.
func (w *watching) token() []byte {
	if w.blank > 0 {
		return nil
	}
	b := appendTokenHead(make([]byte, 0, 16+12*len(w.at)), w.ns.keyspace.uid)
	for _, p := range w.at {
		b = appendPosition(b, p.position)
	}
	return b
}

var eventTypes = map[shard.EventKind]kvv1.WatchEventType{
	shard.EventPut: kvv1.WatchEventType_WATCH_EVENT_TYPE_PUT, shard.EventDelete: kvv1.WatchEventType_WATCH_EVENT_TYPE_DELETE,
	shard.EventExpire:      kvv1.WatchEventType_WATCH_EVENT_TYPE_EXPIRE,
	shard.EventBlockStored: kvv1.WatchEventType_WATCH_EVENT_TYPE_STORED, shard.EventBlockRemoved: kvv1.WatchEventType_WATCH_EVENT_TYPE_REMOVED,
}

func (w *watching) fill(to *kvv1.WatchEvent, e *fanout.Event) {
	to.Type, to.Key, to.Version, to.PrevVersion = eventTypes[e.Kind], e.Key, e.Revision, e.Previous
	to.Created, to.Initial, to.Size, to.Value = e.Created, e.Initial, e.Size, e.Value.Inline
	to.ValueLeftOut = apart(&e.Value)
	if b, ok := e.Block(); ok {
		to.Size = b.Size
		to.Block = &kvv1.WatchBlock{
			ScopeId: b.Scope[:], Parent: b.Parent, Removal: kvv1.WatchRemoval(b.Reason),
			Block: &kvv1.BlockRef{Id: b.ID, Rank: b.Rank, Group: b.Group, Depth: b.Depth},
		}
		if fields, err := promptcache.Fields(e.Scope); e.Scope != nil && err == nil {
			to.Block.Scope = &kvv1.Scope{Fields: fields}
		}
	}
	if e.BeforeKnown && !apart(&e.Before) && !w.watch.KeysOnly {
		to.PrevValue = append(make([]byte, 0, len(e.Before.Inline)), e.Before.Inline...) // not nil: an empty value is one
	}
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
