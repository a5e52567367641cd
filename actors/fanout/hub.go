package fanout

import "kvstore/actors/shard"

// Hub knows who watches a shard in one epoch of it, and whom a change concerns. A feed that has nothing to ask for costs a change nothing unless the
// change is its. One goroutine at a time.
type Hub struct {
	view   shard.View
	spaces map[shard.NamespaceID]*space
	feeds  int
}

// space is the feeds of one namespace.
type space struct {
	keys     map[string]*Feed // the first of each key; the others hang on it
	prefixes map[string]*Feed // and of each prefix
	lengths  []int            // how many prefixes there are of each length
}

// Feed is one watch of the shard. There may be very many that are idle, so it is part of what its user has of the watch, and nothing else is kept of it.
type Feed struct {
	Watch *Watch
	User  any // what the hub's user knows it by

	cursor     Cursor
	in         bool  // it is in the hub
	idle       bool  // it has been told everything; cursor is not kept up to date meanwhile
	next, prev *Feed // of the same key or prefix, as they came; before the first is the last
}

// NewHub makes a hub that knows a durable state of the shard.
func NewHub(v shard.View) *Hub {
	return &Hub{view: v, spaces: make(map[shard.NamespaceID]*space)}
}

// View is the state that was told last. Steps of feeds go by it.
func (h *Hub) View() shard.View { return h.view }

// Feeds is how many there are.
func (h *Hub) Feeds() int { return h.feeds }

// Cursor is how far the watcher of a feed has come.
func (h *Hub) Cursor(f *Feed) Cursor {
	at := f.cursor
	if f.idle {
		at.Revision = h.view.Revision() // nothing since then was his
	}
	return at
}

// Idle tells that the watcher has been told everything up to the hub's view.
func (f *Feed) Idle() bool { return f.idle }

// Place takes note that the watcher of a feed that has nothing to ask for is told his place, the hub's view, and returns how many revisions ago he was told
// last; 0 when there is no need. Whoever is never told of his place could not go on from it when the history has gone past it.
func (h *Hub) Place(f *Feed) (behind uint64) {
	if !f.idle {
		return 0
	}
	behind = h.view.Revision() - f.cursor.Revision
	f.cursor.Revision = h.view.Revision()
	return behind
}

// In tells whether the feed is in its hub.
func (f *Feed) In() bool { return f.in }

// Each calls do with each feed, in no order.
func (h *Hub) Each(do func(*Feed)) {
	for _, sp := range h.spaces {
		sp.each(do)
	}
}

func (sp *space) each(do func(*Feed)) {
	for _, of := range []map[string]*Feed{sp.keys, sp.prefixes} {
		for _, first := range of {
			for f := first; f != nil; f = f.next {
				do(f)
			}
		}
	}
}

// of is where the first feeds of such watches are.
func (sp *space) of(w *Watch) map[string]*Feed {
	if w.Prefix {
		return sp.prefixes
	}
	return sp.keys
}

// Add adds a feed, which is in no hub and has its Watch, from a cursor on. It has something to ask for, if only where it stands.
func (h *Hub) Add(f *Feed, at Cursor) {
	w := f.Watch
	f.cursor, f.idle, f.in = at, false, true
	sp := h.spaces[w.Namespace]
	if sp == nil {
		sp = &space{keys: make(map[string]*Feed), prefixes: make(map[string]*Feed)}
		h.spaces[w.Namespace] = sp
	}
	h.feeds++
	of := sp.of(w)
	if first := of[string(w.Key)]; first != nil {
		f.prev, first.prev = first.prev, f
		f.prev.next = f
		return
	}
	of[string(w.Key)], f.prev = f, f
	if w.Prefix {
		sp.lengthened(len(w.Key), 1)
	}
}

// lengthened notes that there is one prefix more, or less, of a length.
func (sp *space) lengthened(n, by int) {
	for len(sp.lengths) <= n {
		sp.lengths = append(sp.lengths, 0)
	}
	sp.lengths[n] += by
	for len(sp.lengths) > 0 && sp.lengths[len(sp.lengths)-1] == 0 {
		sp.lengths = sp.lengths[:len(sp.lengths)-1]
	}
}

// Remove takes a feed out.
func (h *Hub) Remove(f *Feed) {
	if !f.in {
		return
	}
	h.feeds--
	sp := h.spaces[f.Watch.Namespace]
	of := sp.of(f.Watch)
	first, prev, next := of[string(f.Watch.Key)], f.prev, f.next
	f.in, f.prev, f.next = false, nil, nil
	switch {
	case f != first && next == nil:
		prev.next, first.prev = nil, prev
		return
	case f != first:
		prev.next, next.prev = next, prev
		return
	case next != nil:
		of[string(f.Watch.Key)], next.prev = next, prev
		return
	}
	delete(of, string(f.Watch.Key))
	if f.Watch.Prefix {
		sp.lengthened(len(f.Watch.Key), -1)
	}
	if len(sp.keys)+len(sp.prefixes) == 0 {
		delete(h.spaces, f.Watch.Namespace)
	}
}

// Advance takes the next durable state. Each feed that had nothing to ask for and has now is told to ready, once.
func (h *Hub) Advance(v shard.View, ready func(*Feed)) {
	before := h.view.Revision()
	h.view = v
	if v.Revision() == before || h.feeds == 0 {
		return
	}
	changes, ok := v.Changes(before)
	if !ok { // more than the history holds, at once
		h.Each(func(f *Feed) { f.wake(before+1, ready) })
		return
	}
	for e := range changes {
		sp := h.spaces[e.Namespace]
		if sp == nil || e.Kind == shard.EventScopeChanged {
			continue
		}
		if e.Kind == shard.EventDrop {
			sp.each(func(f *Feed) { f.wake(e.Revision, ready) })
			continue
		}
		sp.keys[string(e.Key)].wakeAll(e.Revision, ready)
		for n, some := range sp.lengths[:min(len(sp.lengths), len(e.Key)+1)] {
			if some > 0 {
				sp.prefixes[string(e.Key[:n])].wakeAll(e.Revision, ready)
			}
		}
	}
}

// wakeAll tells a feed, and those that hang on it, of a change; nil is none.
func (f *Feed) wakeAll(revision uint64, ready func(*Feed)) {
	for ; f != nil; f = f.next {
		f.wake(revision, ready)
	}
}

// wake tells a feed that has nothing to ask for of a change.
func (f *Feed) wake(revision uint64, ready func(*Feed)) {
	if f.idle && f.cursor.Revision < revision {
		f.idle = false
		f.cursor.Revision = revision - 1 // nothing before it was his
		ready(f)
	}
}

// Took notes how far a watcher has come by a step, and tells whether he has more to ask for at once. Otherwise ready is told when he has.
func (h *Hub) Took(f *Feed, b *Batch) (more bool) {
	f.cursor = b.Cursor
	f.idle = !b.Cursor.Listing && b.Cursor.Revision >= h.view.Revision()
	return !f.idle
}
