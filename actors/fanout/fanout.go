// Package fanout decides what watchers of a shard are told (DESIGN D9): pure machines without clock, goroutines or I/O. A Watch says what is
// asked for, a Cursor how far its watcher has come, and Watch.Next what comes next, out of a durable state of the shard and nothing else. So a
// slow watcher costs a cursor, any host that has the shard can go on where another one stopped, and what a watcher gets does not depend on when he
// asks. A Hub knows which watchers of a shard a change concerns, and leaves all others alone. DESIGN.md has the reasons.
//
//	hub := fanout.NewHub(view)
//	feed := &fanout.Feed{Watch: &watch}
//	hub.Add(feed, cursor)
//	hub.Advance(view, func(f *fanout.Feed) { ... }) // f has something to ask for
//	batch := feed.Watch.Next(hub.View(), hub.Cursor(feed), fanout.Budget{Bytes: 64 << 10})
//	again := hub.Took(feed, batch.Cursor)
//
// It sends nothing, reads no values that lie apart from their keys, and knows no users.
package fanout

import (
	"bytes"
	"slices"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// Mode is what a watcher who cannot follow is told. Values are sent between hosts: append only.
type Mode uint8

const (
	// Latest tells, of changes to one key that wait together, the last one alone; when the history does not go back to where the watcher is, he is
	// told the state anew.
	Latest Mode = 0
	// All tells every change; when the history does not go back to where the watcher is, the watch ends.
	All Mode = 1
)

// Watch is what a watcher wants to know. It is not changed while it is in use.
type Watch struct {
	Namespace shard.NamespaceID
	// Key is the one key, or what the keys begin with when Prefix holds; an empty prefix is the whole namespace. In a namespace of prompts keys
	// are those of shard.Event: they begin with the scope.
	Key    []byte
	Prefix bool
	Mode   Mode
	// Before asks for the values that changes replaced.
	Before bool
	// KeysOnly leaves values out.
	KeysOnly bool
	// Blocks: it is a namespace of prompts.
	Blocks bool
}

// Concerns tells whether a change is what the watcher wants to know.
func (w *Watch) Concerns(ns shard.NamespaceID, key []byte) bool {
	if ns != w.Namespace {
		return false
	}
	if w.Prefix {
		return bytes.HasPrefix(key, w.Key)
	}
	return bytes.Equal(key, w.Key)
}

// Same tells whether two watches want to know the same.
func (w *Watch) Same(o *Watch) bool {
	return w == o || w.Namespace == o.Namespace && w.Prefix == o.Prefix && w.Mode == o.Mode && w.Before == o.Before && w.KeysOnly == o.KeysOnly &&
		w.Blocks == o.Blocks && bytes.Equal(w.Key, o.Key)
}

// Cursor is how far a watcher has come in a shard. While Listing, he knows the keys up to and with Boundary as they were at Revision, and
// none behind; otherwise he knows all changes up to and with Revision. Boundary nil: no key yet.
type Cursor struct {
	Revision uint64
	Listing  bool
	Boundary []byte
}

// Anew is the cursor of a watcher who knows nothing and wants to be told the state first.
func Anew() Cursor { return Cursor{Listing: true} }

// Equal tells whether two watchers have come equally far.
func (c Cursor) Equal(o Cursor) bool {
	return c.Revision == o.Revision && c.Listing == o.Listing && (c.Boundary == nil) == (o.Boundary == nil) && bytes.Equal(c.Boundary, o.Boundary)
}

// Start is a shard that a watcher follows, and from where.
type Start struct {
	Shard string
	// Now begins after all that is acknowledged when the shard is asked; otherwise From says where.
	Now  bool
	From Cursor
}

// Told is what a watcher of some shards is told of one of them. Values of up to MaxValue that lie apart from their keys have been read; a reference that
// is left in an event tells that its value is not with it, because it is longer, or because another has replaced it and it is gone.
type Told struct {
	// Watches are who is told, by their numbers in a Follower: all that want to know the same and have come equally far. It is not changed.
	Watches []uint64
	Shard   string
	// Epoch is the counter of the epoch that tells.
	Epoch uint64
	// Batch ends, with Err, the watch of this shard alone; of kind Moved it asks to go on from Cursor where the shard is served now.
	Batch
}

// Cost is what a batch takes of the credit of each of its watches, values that lay apart and were read included.
func (b *Batch) Cost() (bytes int64) {
	for i := range b.Events {
		e := &b.Events[i]
		bytes += int64(len(e.Key)+len(e.Value.Inline)+len(e.Before.Inline)) + EventOverhead
	}
	return bytes
}

// Follower follows shards for many watches at once, wherever the shards are served: each goes on where it was when a shard changes hands. Its user
// gives watches numbers, none of them twice. Next is called by one goroutine at a time, all else at any time.
type Follower interface {
	// Add begins a watch of shards. It may be told so many bytes, see Batch.Cost; one batch more than that may come.
	Add(id uint64, w *Watch, credit int64, starts []Start)
	// Grant lets a watch be told more. One that may be told nothing costs a few words, and holds up no other one.
	Grant(id uint64, bytes int64)
	// Remove ends a watch; what it was about to be told may still come.
	Remove(id uint64)
	// Next waits for what some watches are to be told. An error in what was told ends the watch, and the user removes it. Next itself fails when
	// the context ends that the follower was made with, or nothing can be followed any more.
	Next() (*Told, error)
	// Close ends all watches.
	Close()
}

// Budget bounds one step.
type Budget struct {
	// Bytes of keys and values in a batch, plus EventOverhead each. A revision is never cut, so a batch may be longer by one transaction.
	Bytes int64
	// Changes of the history that are looked at, whomever they concern. 0 = 4,096.
	Changes int
}

// MaxValue is the longest value that lies apart from its key and comes with its event, once it is read; it counts in full. Longer ones are left out:
// the reference stays.
const MaxValue = 1 << 20

// EventOverhead is what an event counts for besides its key and values.
const EventOverhead = 64

// defaultChanges bounds the time of a step: some hundred microseconds.
const defaultChanges = 4096

// Event is a change, or an entry of the state that a watcher is told first.
type Event struct {
	shard.Event
	// Size is the length of the value, wherever it is.
	Size int64
	// Initial: this is not a change, but what was there.
	Initial bool
	// BeforeKnown: Before is the value that was replaced; asked for by Watch.Before.
	BeforeKnown bool
	Before      shard.Value
	// Scope is the canonical form of a block's scope; nil when the scope has been emptied since and what emptied it was not looked at yet.
	Scope []byte
}

// Batch is what a watcher is told by one step, in this order: Resync, Events, Synced, Err.
type Batch struct {
	// Resync: what the watcher was told is void, the state follows anew. Only when the watch had begun to tell something.
	Resync bool
	Events []Event
	// Synced: he knows the whole state as of Cursor.Revision.
	Synced bool
	// Cursor is how far he has come with this batch.
	Cursor Cursor
	// More: there is more to tell now.
	More bool
	// Err ends the watch: Compacted, NotFound when the namespace is dropped.
	Err *kverr.Error
}

// Next tells what comes after a cursor, by a state of the shard. Everything in the batch is a view into the state.
func (w *Watch) Next(v shard.View, at Cursor, budget Budget) (b Batch) {
	if budget.Changes == 0 {
		budget.Changes = defaultChanges
	}
	s := step{watch: w, view: v, budget: budget, at: at}
	if at.Revision > v.Revision() {
		// The history has lost what this watcher has seen, and an operator has accepted that.
		s.lost(&b)
	} else if at.Listing && at.Boundary == nil {
		s.at.Revision = v.Revision() // he knows nothing, so nothing of the past is news
	}
	if b.Err == nil {
		s.changes(&b)
	}
	if b.Err == nil && s.at.Listing && s.at.Revision == v.Revision() && s.left() {
		s.list(&b)
	}
	if s.merged {
		s.events = slices.DeleteFunc(s.events, func(e Event) bool { return e.Kind == 0 })
	}
	if s.watch.Blocks {
		s.nameScopes()
	}
	b.Events, b.Cursor = s.events, s.at
	b.More = b.Err == nil && (b.Cursor.Listing || b.Cursor.Revision < v.Revision())
	return b
}

// step is one call of Next.
type step struct {
	watch  *Watch
	view   shard.View
	budget Budget
	at     Cursor
	events []Event
	bytes  int64
	places map[string]int           // Latest: where in events the change of a key is, plus one
	merged bool                     // some of events are void
	scopes map[shard.ScopeID][]byte // canonical forms, of those that were looked up or whose first or last block was met
}

func (s *step) left() bool { return s.bytes < s.budget.Bytes && s.budget.Changes > 0 }

// lost goes on where the history does not go back to the cursor.
func (s *step) lost(b *Batch) {
	if s.watch.Mode == All && !s.at.Listing {
		b.Err = &kverr.Error{
			Kind: kverr.Compacted, Op: "watch",
			Message: "the changes that come next are not kept any more; watch anew, with the state first",
		}
		return
	}
	b.Resync = true
	s.at = Cursor{Revision: s.view.Revision(), Listing: true}
}

// changes adds what changed since the cursor, of keys that the watcher knows.
func (s *step) changes(b *Batch) {
	if s.at.Revision == s.view.Revision() {
		return
	}
	changes, ok := s.view.Changes(s.at.Revision)
	if !ok {
		s.lost(b)
		return
	}
	reached := s.at.Revision
	for e := range changes {
		if e.Revision > reached {
			s.at.Revision = e.Revision - 1 // all of them are told
			if !s.left() {
				return
			}
			reached = e.Revision
		}
		s.budget.Changes--
		if e.Kind == shard.EventScopeChanged && s.watch.Blocks && e.Namespace == s.watch.Namespace {
			if s.scopes == nil {
				s.scopes = make(map[shard.ScopeID][]byte)
			}
			s.scopes[shard.ScopeID(e.Key)] = e.Attached
		}
		switch {
		case e.Kind == shard.EventDrop && e.Namespace == s.watch.Namespace:
			b.Err = errDropped
			return
		case e.Kind != shard.EventScopeChanged && s.known(e.Key) && s.watch.Concerns(e.Namespace, e.Key):
			s.add(e)
		}
	}
	s.at.Revision = s.view.Revision()
}

var errDropped = &kverr.Error{Kind: kverr.NotFound, Op: "watch", Message: "the namespace was dropped"}

// known tells whether a key is one of those that the watcher has been told of.
func (s *step) known(key []byte) bool {
	return !s.at.Listing || s.at.Boundary != nil && bytes.Compare(key, s.at.Boundary) <= 0
}

// add adds a change; in mode Latest it takes the place of an earlier one of the same key.
func (s *step) add(e *shard.Event) {
	out := Event{Event: *e, Size: sizeOf(&e.Value)}
	if s.watch.Before {
		out.Before, out.BeforeKnown = s.view.Before(e)
	}
	if s.watch.KeysOnly {
		out.Value, out.Before = shard.Value{}, shard.Value{}
	}
	if s.watch.Mode == Latest && !s.merge(&out) {
		return
	}
	s.events = append(s.events, out)
	s.bytes += out.size()
}

// nameScopes tells with each block's event the fields of its scope.
func (s *step) nameScopes() {
	if s.scopes == nil {
		s.scopes = make(map[shard.ScopeID][]byte)
	}
	for i := range s.events {
		e := &s.events[i]
		if len(e.Key) < len(shard.ScopeID{}) {
			continue
		}
		id := shard.ScopeID(e.Key[:len(shard.ScopeID{})])
		form, ok := s.scopes[id]
		if !ok {
			if u, there := s.view.Scope(s.watch.Namespace, id); there {
				form = u.Fields
			}
			s.scopes[id] = form
		}
		e.Scope = form
	}
}

// wasThere tells whether there was something under the key before a change.
func (e *Event) wasThere() bool {
	switch e.Kind {
	case shard.EventBlockStored:
		return !e.Created
	case shard.EventBlockRemoved:
		return true
	default:
		return e.Previous != 0
	}
}

// stores tells whether there is something under the key after a change.
func (e *Event) stores() bool { return e.Kind == shard.EventPut || e.Kind == shard.EventBlockStored }

// merge lets a change take the place of the one before it of the same key. It is false when nothing is left to tell: the key was not there
// and is not there.
func (s *step) merge(e *Event) bool {
	if s.places == nil {
		s.places = make(map[string]int)
	}
	if at := s.places[string(e.Key)]; at > 0 {
		first := &s.events[at-1]
		s.bytes -= first.size()
		e.Previous, e.Before, e.BeforeKnown = first.Previous, first.Before, first.BeforeKnown
		was := first.wasThere()
		e.Created = e.stores() && !was
		*first = Event{}
		s.merged = true
		if !was && !e.stores() {
			delete(s.places, string(e.Key))
			return false
		}
	}
	s.places[string(e.Key)] = len(s.events) + 1
	return true
}

// list adds entries of the state behind the boundary. All before it is told as of the view.
func (s *step) list(b *Batch) {
	w := s.watch
	var page []shard.Entry
	var more bool
	var err *kverr.Error
	if w.Blocks {
		s.listBlocks(b)
		return
	}
	if w.Prefix {
		room := max(1, s.budget.Bytes-s.bytes)
		q := shard.ListQuery{
			Prefix: w.Key, After: s.at.Boundary, Limit: int(min(1+room/EventOverhead, shard.DefaultListLimit)), MaxBytes: room, KeysOnly: w.KeysOnly,
		}
		page, more, err = s.view.List(w.Namespace, q)
	} else if e, ok, lost := s.view.Get(w.Namespace, w.Key); lost != nil {
		err = lost
	} else if ok {
		page = append(page, e)
	}
	for i := range page {
		e := &page[i]
		out := Event{Initial: true, Size: e.Size(), Event: shard.Event{Kind: shard.EventPut, Namespace: w.Namespace, Key: e.Key, Revision: e.Version, Value: e.Value}}
		if w.KeysOnly {
			out.Value = shard.Value{}
		}
		s.events = append(s.events, out)
		s.bytes += out.size()
		s.at.Boundary = e.Key
	}
	switch {
	case err != nil:
		b.Err = err
	case !more:
		s.at.Listing, s.at.Boundary, b.Synced = false, nil, true
	}
}

// listBlocks is list for a namespace of prompts.
func (s *step) listBlocks(b *Batch) {
	limit := int(min(1+max(1, s.budget.Bytes-s.bytes)/(2*EventOverhead), shard.DefaultListLimit))
	page, more := s.view.BlockEvents(s.watch.Namespace, s.watch.Key, s.at.Boundary, limit)
	for i := range page {
		out := Event{Initial: true, Event: page[i]}
		s.events = append(s.events, out)
		s.bytes += out.size()
		s.at.Boundary = out.Key
	}
	if !more {
		s.at.Listing, s.at.Boundary, b.Synced = false, nil, true
	}
}

func (e *Event) size() int64 {
	return int64(len(e.Key)) + weight(&e.Value) + weight(&e.Before) + EventOverhead
}

// weight is how many bytes a value adds to a batch.
func weight(v *shard.Value) int64 {
	if size := sizeOf(v); v.Ref.Object == (shard.ObjectID{}) || size <= MaxValue {
		return size
	}
	return 0
}

func sizeOf(v *shard.Value) int64 {
	if v.Ref.Object != (shard.ObjectID{}) {
		return v.Ref.Length
	}
	return int64(len(v.Inline))
}
