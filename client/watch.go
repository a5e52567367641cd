package client

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"strings"
	"time"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// WatchOptions choose what Watch tells. The zero value is every change of the namespace from now on, the latest of each key, or of each block when it is a
// namespace of prompts.
type WatchOptions struct {
	Key    string // this key alone
	Prefix string // only keys that begin with this; not together with Key
	Scope  Scope  // in a namespace of prompts: only blocks of this scope; nil = of all

	State bool   // tell what is there first
	Token []byte // go on after the batch that had this token; or after ListResponse.watch_token. Not together with State

	All       bool // tell every change, and end with ErrCompacted when that is not possible any more
	PrevValue bool // tell the values that changes replaced
	KeysOnly  bool // leave values out
}

// EventType is the kind of a change.
type EventType uint8

// Kinds of changes.
const (
	EventPut     EventType = iota + 1 // the key has a new value
	EventDelete                       // the key was deleted
	EventExpire                       // the key's time was over
	EventStored                       // of prompts: a block can be read
	EventRemoved                      // of prompts: a block is gone
)

// String is the name of the kind: PUT, DELETE, EXPIRE, STORED or REMOVED.
func (t EventType) String() string {
	switch t {
	case EventPut:
		return "PUT"
	case EventDelete:
		return "DELETE"
	case EventExpire:
		return "EXPIRE"
	case EventStored:
		return "STORED"
	case EventRemoved:
		return "REMOVED"
	}
	return "UNKNOWN"
}

// Event is one change of one key.
type Event struct {
	Type         EventType
	Key          string
	Value        []byte // of a PUT, unless KeysOnly or ValueLeftOut
	Version      uint64 // of the key since a PUT; the revision of a removal
	PrevVersion  uint64 // 0 = the key was not there
	Created      bool   // a PUT of a key that was not there
	Initial      bool   // not a change, but what was there
	Size         int64  // length of the value in bytes
	ValueLeftOut bool   // the value is over 1 MiB long, or was replaced before it could be read: Get brings the latest
	PrevValue    []byte // with WatchOptions.PrevValue; nil when there was none or it is not known
	// Block is set in a namespace of prompts. Key is then opaque bytes that no other block has, Size the block's length.
	Block *BlockEvent
}

// BlockEvent is the block of an EventStored or EventRemoved.
type BlockEvent struct {
	ScopeID [16]byte // names the scope
	Scope   Scope    // its fields; nil when it has been emptied since and they are not known any more
	Ref     BlockRef
	Parent  []byte // id of the one before it; empty for the first
	Why     string // of EventRemoved: DELETED, EVICTED, EXPIRED, DAMAGED or CLEARED
}

// WatchBatch is what Watch tells at a time: changes, or where it stands. Changes of one transaction and one shard are in one batch.
type WatchBatch struct {
	Started  bool // whatever is acknowledged from now on will be told; comes once, unless the state comes first
	Resync   bool // what was told is void: the state follows anew, up to Synced
	Synced   bool // what came since the begin, or since Resync, put together, is the state
	Progress bool // nothing has happened for a while
	Events   []Event
	// Token is for WatchOptions.Token: a watch from it tells what comes after this batch, from another process too. Nil while the state is
	// being told.
	Token []byte
}

// watchSilence is how long a server may say nothing, not even that nothing happens, before the watch tries another connection.
const watchSilence = 50 * time.Second

// Watch tells of changes until ctx ends or the loop is left. Changes of one key come in their order, each once; when the connection is lost
// the watch goes on where it was, by itself and for as long as it takes. Without All, changes to one key that wait together are told as the last of them,
// and a watcher who is too slow for that gets Resync and the state. After an error the watch is over: ErrCompacted, ErrNotFound when the
// namespace was dropped, and what cannot pass by itself.
//
//	for batch, err := range c.Watch(ctx, &client.WatchOptions{Prefix: "service/", State: true}) {
//		if err != nil { return err }
//		for _, e := range batch.Events {
//			fmt.Println(e.Type, e.Key)
//		}
//	}
//
// The watches of a connection share one stream. A loop that does not come back for its next batch holds up nobody but itself, and costs what 256 KiB of
// events take.
func (c *Client) Watch(ctx context.Context, o *WatchOptions) iter.Seq2[WatchBatch, error] {
	return func(yield func(WatchBatch, error) bool) {
		w, err := c.newWatch(o)
		if err != nil {
			yield(WatchBatch{}, err)
			return
		}
		for {
			more, err := w.run(ctx, yield)
			if !more {
				return
			}
			if err = w.tries.next(ctx, c.core, err); err != nil {
				yield(WatchBatch{}, withOp(err, "watch"))
				return
			}
		}
	}
}

// watch is one watch on its way.
type watch struct {
	c     *Client
	req   *kvstorev1.WatchRequest
	tries attempts
	begun bool // Started or Synced was told, and is not told again
	told  bool // some of the state was told, and not all
}

func (c *Client) newWatch(o *WatchOptions) (*watch, error) {
	if o == nil {
		o = new(WatchOptions)
	}
	req := &kvstorev1.WatchRequest{Keyspace: c.keyspace, Namespace: c.namespace, PrevValue: o.PrevValue, KeysOnly: o.KeysOnly}
	switch {
	case o.Key != "" && o.Prefix != "":
		return nil, invalid("watch", "Key and Prefix are both given")
	case o.State && len(o.Token) > 0:
		return nil, invalid("watch", "State and Token are both given")
	case o.Scope != nil && (o.Key != "" || o.Prefix != ""):
		return nil, invalid("watch", "Scope is of prompts, Key and Prefix are not")
	case o.Key != "":
		req.Target = &kvstorev1.WatchRequest_Key{Key: []byte(o.Key)}
	case o.Scope != nil:
		req.Target = &kvstorev1.WatchRequest_Scope{Scope: &kvstorev1.Scope{Fields: o.Scope}}
	case o.Prefix != "":
		req.Target = &kvstorev1.WatchRequest_Prefix{Prefix: []byte(o.Prefix)}
	}
	switch {
	case o.State:
		req.From = &kvstorev1.WatchRequest_InitialState{InitialState: true}
	case len(o.Token) > 0:
		req.From = &kvstorev1.WatchRequest_Token{Token: o.Token}
	}
	if o.All {
		req.Mode = kvstorev1.WatchMode_WATCH_MODE_ALL
	}
	return &watch{c: c, req: req, tries: forEver()}, nil
}

// forEver are attempts that only ctx ends.
func forEver() attempts { return attempts{effect: reads, deadline: time.Now().Add(1 << 62)} }

// run is one stream. More is false when the caller has left; otherwise err says why the stream ended.
func (w *watch) run(ctx context.Context, yield func(WatchBatch, error) bool) (more bool, err error) {
	if w.told { // the state was cut off: it is told anew, and may be another one
		w.told = false
		if !yield(WatchBatch{Resync: true}, nil) {
			return false, nil
		}
	}
	feed, err := w.c.pick().watches.begin(ctx, w.req)
	if err != nil {
		return true, endOf(err)
	}
	defer feed.end()
	silent := time.NewTimer(watchSilence)
	defer silent.Stop()
	for {
		resp, err := feed.next(ctx, silent.C)
		if err != nil {
			return true, endOf(err)
		}
		w.tries = forEver()
		silent.Stop() // the caller may take his time
		if !w.tell(resp, yield) {
			return false, nil
		}
		feed.took(resp)
		silent.Reset(watchSilence)
	}
}

// tell hands a response to the caller, and remembers where to go on.
func (w *watch) tell(resp received, yield func(WatchBatch, error) bool) bool {
	b := WatchBatch{Token: resp.own(resp.Token)}
	_, state := w.req.From.(*kvstorev1.WatchRequest_InitialState)
	switch resp.Control {
	case kvstorev1.WatchControl_WATCH_CONTROL_STARTED:
		b.Started = !w.begun
		w.begun = true
	case kvstorev1.WatchControl_WATCH_CONTROL_SYNCED:
		b.Synced, w.begun, w.told = true, true, false
	case kvstorev1.WatchControl_WATCH_CONTROL_PROGRESS:
		b.Progress = true
	case kvstorev1.WatchControl_WATCH_CONTROL_RESYNC:
		b.Resync, w.told = true, false
	case kvstorev1.WatchControl_WATCH_CONTROL_UNSPECIFIED:
		if state && len(resp.Events) > 0 {
			w.told = true
		}
	}
	if len(resp.Events) > 0 {
		b.Events = make([]Event, len(resp.Events))
	}
	for i, e := range resp.Events {
		b.Events[i] = fromEvent(e)
		b.Events[i].Value, b.Events[i].PrevValue = resp.own(e.Value), resp.own(e.PrevValue)
	}
	switch {
	case len(resp.Token) > 0:
		w.req.From = &kvstorev1.WatchRequest_Token{Token: resp.Token}
	case b.Resync:
		w.req.From = &kvstorev1.WatchRequest_InitialState{InitialState: true}
	}
	if !b.Started && !b.Resync && !b.Synced && !b.Progress && len(b.Events) == 0 {
		return true // begun again
	}
	return yield(b, nil)
}

func fromEvent(e *kvstorev1.WatchEvent) Event {
	ev := Event{
		Type: EventType(e.Type), Key: string(e.Key), Version: e.Version, PrevVersion: e.PrevVersion, Created: e.Created, Initial: e.Initial,
		Size: e.Size, ValueLeftOut: e.ValueLeftOut,
	}
	if b := e.Block; b != nil {
		ev.Block = &BlockEvent{
			Scope: maps.Clone(b.Scope.GetFields()), Parent: bytes.Clone(b.Parent),
			Ref: BlockRef{ID: bytes.Clone(b.Block.GetId()), Rank: b.Block.GetRank(), Group: b.Block.GetGroup(), Depth: b.Block.GetDepth()},
		}
		copy(ev.Block.ScopeID[:], b.ScopeId)
		if b.Removal != 0 {
			ev.Block.Why = strings.TrimPrefix(b.Removal.String(), "WATCH_REMOVAL_")
		}
	}
	return ev
}
