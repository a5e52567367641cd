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
	keys     map[string]*bucket
	prefixes map[string]*bucket
	lengths  []int // how many prefixes there are of each length
}

// bucket is the feeds of one key or prefix.
type bucket struct{ feeds []*Feed }

// Feed is one watch of the shard.
type Feed struct {
	Watch *Watch

	cursor Cursor
	idle   bool // it has been told everything; cursor is not kept up to date meanwhile
	at     int  // place in its bucket
	bucket *bucket
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

func (h *Hub) each(do func(*bucket)) {
	for _, sp := range h.spaces {
		sp.each(do)
	}
}

func (sp *space) each(do func(*bucket)) {
	for _, in := range []map[string]*bucket{sp.keys, sp.prefixes} {
		for _, b := range in {
			do(b)
		}
	}
}

// Add adds a watch from a cursor on. It has something to ask for, if only where it stands.
func (h *Hub) Add(w *Watch, at Cursor) *Feed {
	f := &Feed{Watch: w, cursor: at}
	sp := h.spaces[w.Namespace]
	if sp == nil {
		sp = &space{keys: make(map[string]*bucket), prefixes: make(map[string]*bucket)}
		h.spaces[w.Namespace] = sp
	}
	in := sp.keys
	if w.Prefix {
		in = sp.prefixes
	}
	f.bucket = in[string(w.Key)]
	if f.bucket == nil {
		f.bucket = new(bucket)
		in[string(w.Key)] = f.bucket
		if w.Prefix {
			sp.lengthened(len(w.Key), 1)
		}
	}
	f.at = len(f.bucket.feeds)
	f.bucket.feeds = append(f.bucket.feeds, f)
	h.feeds++
	return f
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
	b := f.bucket
	if b == nil {
		return
	}
	last := len(b.feeds) - 1
	b.feeds[f.at] = b.feeds[last]
	b.feeds[f.at].at = f.at
	b.feeds[last] = nil
	b.feeds = b.feeds[:last]
	f.bucket = nil
	h.feeds--
	if last > 0 {
		return
	}
	sp := h.spaces[f.Watch.Namespace]
	if f.Watch.Prefix {
		delete(sp.prefixes, string(f.Watch.Key))
		sp.lengthened(len(f.Watch.Key), -1)
	} else {
		delete(sp.keys, string(f.Watch.Key))
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
		h.each(func(b *bucket) { b.wake(before+1, ready) })
		return
	}
	for e := range changes {
		sp := h.spaces[e.Namespace]
		if sp == nil || e.Kind == shard.EventScopeChanged {
			continue
		}
		if e.Kind == shard.EventDrop {
			sp.each(func(b *bucket) { b.wake(e.Revision, ready) })
			continue
		}
		if b := sp.keys[string(e.Key)]; b != nil {
			b.wake(e.Revision, ready)
		}
		for n, some := range sp.lengths[:min(len(sp.lengths), len(e.Key)+1)] {
			if some > 0 {
				if b := sp.prefixes[string(e.Key[:n])]; b != nil {
					b.wake(e.Revision, ready)
				}
			}
		}
	}
}

// wake tells the feeds that have nothing to ask for of a change.
func (b *bucket) wake(revision uint64, ready func(*Feed)) {
	for _, f := range b.feeds {
		if f.idle && f.cursor.Revision < revision {
			f.idle = false
			f.cursor.Revision = revision - 1 // nothing before it was his
			ready(f)
		}
	}
}

// Took notes how far a watcher has come by a step, and tells whether he has more to ask for at once. Otherwise ready is told when he has.
func (h *Hub) Took(f *Feed, b *Batch) (more bool) {
	f.cursor = b.Cursor
	f.idle = !b.Cursor.Listing && b.Cursor.Revision >= h.view.Revision()
	return !f.idle
}
