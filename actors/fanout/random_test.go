package fanout

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvstore/actors/shard"
)

var seed = flag.Uint64("seed", 0, "run one seed alone")

// TestRandom lets watchers of all kinds follow a shard whose history is short, in steps of any size, moved from hub to hub, and holds what each is
// told against what happened: under ALL every change once and in order; under LATEST, and wherever a state comes first, what the watcher has put together
// is the state of the revision that his cursor names. Nobody who has something to ask for is left asleep.
func TestRandom(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 50
	}
	for n := range seeds {
		s := uint64(n + 1)
		if *seed != 0 {
			s = *seed
		}
		if err := newWorld(s).run(400); err != nil {
			t.Fatalf("-seed %d: %v", s, err)
		}
		if *seed != 0 {
			return
		}
	}
}

// world is a shard with watchers.
type world struct {
	rng      *rand.Rand
	m        *shard.Machine
	hub      *Hub
	now      int64
	states   []map[string]string // by revision; nil: of no body's end
	changes  []shard.Event       // all there were
	watchers []*watcher
}

// watcher is someone who believes what he is told.
type watcher struct {
	feed   *Feed
	woken  bool
	known  map[string]string // what he has put together
	synced bool              // he knows a whole state
	told   []shard.Event     // since he began or was synced
	from   uint64            // revision that told begins after
	over   bool
}

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0)), now: 1000}
	w.m = shard.New(shard.Config{HistoryChanges: int64(4 + w.rng.IntN(60))})
	w.m.Tick(w.now)
	w.hub = NewHub(shard.NewView(w.m.Tree().Clone()))
	w.states = []map[string]string{{}}
	return w
}

func (w *world) run(steps int) error {
	for range steps {
		switch n := w.rng.IntN(10); {
		case n < 4:
			if err := w.commit(); err != nil {
				return err
			}
		case n < 5 && len(w.watchers) < 12:
			w.watch()
		case n < 6 && len(w.watchers) > 0:
			w.move(w.watchers[w.rng.IntN(len(w.watchers))])
		case len(w.watchers) > 0:
			if err := w.step(w.watchers[w.rng.IntN(len(w.watchers))]); err != nil {
				return err
			}
		}
	}
	for _, v := range w.watchers { // to the end
		for range 10_000 {
			if v.over || v.feed.Idle() {
				break
			}
			if err := w.step(v); err != nil {
				return err
			}
		}
		if !v.over && !v.feed.Idle() {
			return fmt.Errorf("%+v: does not come to an end", *v.feed.Watch)
		}
		if !v.over && v.synced && !maps.Equal(v.known, w.visible(v, w.hub.View().Revision())) {
			return fmt.Errorf("%+v: ends with %v, the state is %v", *v.feed.Watch, v.known, w.visible(v, w.hub.View().Revision()))
		}
	}
	return nil
}

func (w *world) key() []byte {
	return []byte([]string{"a", "a/1", "a/2", "b", "b/1", "c"}[w.rng.IntN(6)])
}

// commit makes some changes durable and tells the hub, sometimes of several bodies at once.
func (w *world) commit() error {
	for range 1 + w.rng.IntN(2) {
		for range 1 + w.rng.IntN(5) {
			w.now += int64(w.rng.IntN(20))
			w.m.Tick(w.now)
			c := &shard.Command{Namespace: 1, Done: func(*shard.Command, error) {}}
			p := shard.Put{Key: w.key(), Value: shard.Value{Inline: fmt.Appendf(nil, "%d", w.rng.IntN(1000))}}
			switch w.rng.IntN(6) {
			case 0:
				c.Op, c.Delete = shard.OpDelete, shard.Delete{Key: w.key()}
			case 1:
				p.TTLMS = int64(1 + w.rng.IntN(50))
				c.Op, c.Put = shard.OpPut, p
			case 2:
				q := p
				for string(q.Key) == string(p.Key) {
					q.Key = w.key()
				}
				c.Op, c.Txn = shard.OpTxn, &shard.Txn{Ops: []shard.TxnOp{{Put: &p}, {Put: &q}}}
			default:
				c.Op, c.Put = shard.OpPut, p
				c.Namespace = shard.NamespaceID(1 + w.rng.IntN(2))
			}
			w.m.Step(c)
		}
		w.m.Ready()
	}
	v := shard.NewView(w.m.Tree().Clone())
	known := int(w.hub.View().Revision())
	changes, ok := v.Changes(uint64(known))
	for len(w.states) <= int(v.Revision()) {
		w.states = append(w.states, nil)
	}
	if !ok { // a body that is longer than the history: only the state is known
		w.changes = nil
		w.states[v.Revision()] = state(v)
	} else {
		now := maps.Clone(w.states[known])
		for e := range changes {
			w.changes = append(w.changes, *e)
			if e.Namespace == 1 {
				if e.Kind == shard.EventPut {
					now[string(e.Key)] = string(e.Value.Inline)
				} else {
					delete(now, string(e.Key))
				}
			}
			w.states[e.Revision] = maps.Clone(now)
		}
		if !maps.Equal(now, state(v)) {
			return fmt.Errorf("changes up to %d make %v, the state is %v", v.Revision(), now, state(v))
		}
		w.states[v.Revision()] = now
	}
	woken := map[*Feed]bool{}
	w.hub.Advance(v, func(f *Feed) { woken[f] = true })
	for _, x := range w.watchers {
		if !x.over && w.rng.IntN(8) == 0 && w.hub.Place(x.feed) > 0 && !w.hub.Cursor(x.feed).Equal(Cursor{Revision: v.Revision()}) {
			return fmt.Errorf("%+v is told its place, and stays at %+v", *x.feed.Watch, w.hub.Cursor(x.feed))
		}
	}
	for _, x := range w.watchers {
		if woken[x.feed] && x.woken {
			return fmt.Errorf("%+v: woken again before it has asked", *x.feed.Watch)
		}
		x.woken = x.woken || woken[x.feed]
	}
	return nil
}

// state is all of namespace 1.
func state(v shard.View) map[string]string {
	all := map[string]string{}
	page, _, _ := v.List(1, shard.ListQuery{})
	for i := range page {
		all[string(page[i].Key)] = string(page[i].Value.Inline)
	}
	return all
}

func (w *world) watch() {
	watch := &Watch{Namespace: 1, Key: w.key(), Prefix: w.rng.IntN(2) == 0, Mode: Mode(w.rng.IntN(2)), Before: w.rng.IntN(2) == 0}
	if watch.Prefix {
		watch.Key = watch.Key[:w.rng.IntN(len(watch.Key)+1)]
	}
	at := Cursor{Revision: w.hub.View().Revision()}
	x := &watcher{woken: true, known: map[string]string{}, from: at.Revision}
	if w.rng.IntN(2) == 0 {
		at = Anew()
	} else {
		x.synced = true // he knows, from elsewhere
		x.known = w.visible(&watcher{feed: &Feed{Watch: watch}}, at.Revision)
	}
	x.feed = &Feed{Watch: watch}
	w.hub.Add(x.feed, at)
	w.watchers = append(w.watchers, x)
}

// move takes a watcher to another feed, as when the shard has another owner: of an idle one the hub knows how far it has come.
func (w *world) move(x *watcher) {
	if x.over {
		return
	}
	at := w.hub.Cursor(x.feed)
	w.hub.Remove(x.feed)
	x.feed = &Feed{Watch: x.feed.Watch}
	w.hub.Add(x.feed, at)
	x.woken = true
}

// visible is what a watcher may know of the state at a revision.
func (w *world) visible(x *watcher, revision uint64) map[string]string {
	all := map[string]string{}
	for k, v := range w.states[revision] {
		if x.feed.Watch.Concerns(1, []byte(k)) {
			all[k] = v
		}
	}
	return all
}

func (w *world) step(x *watcher) error {
	if x.over {
		return nil
	}
	if !x.woken {
		// Nobody has told him of anything: then there is nothing.
		b := x.feed.Watch.Next(w.hub.View(), w.hub.Cursor(x.feed), Budget{Bytes: 1 << 20})
		if len(b.Events) > 0 && !b.Resync {
			return fmt.Errorf("%+v at %+v sleeps, but there is %v to tell", *x.feed.Watch, w.hub.Cursor(x.feed), b.Events)
		}
		return nil
	}
	b := x.feed.Watch.Next(w.hub.View(), w.hub.Cursor(x.feed), Budget{Bytes: int64(1 + w.rng.IntN(400)), Changes: 1 + w.rng.IntN(20)})
	if x.over = b.Err != nil; x.over {
		w.hub.Remove(x.feed)
		return nil
	}
	if err := w.believe(x, &b); err != nil {
		return fmt.Errorf("%+v from %+v to %+v: %w", *x.feed.Watch, w.hub.Cursor(x.feed), b.Cursor, err)
	}
	if more := w.hub.Took(x.feed, &b); more != b.More {
		return fmt.Errorf("more is %v for the hub and %v in the batch", more, b.More)
	}
	x.woken = b.More
	return nil
}

func (w *world) believe(x *watcher, b *Batch) error {
	if b.Resync {
		x.known, x.synced, x.told = map[string]string{}, false, nil
	}
	listing := w.hub.Cursor(x.feed).Listing
	for _, e := range b.Events {
		if !x.feed.Watch.Concerns(e.Namespace, e.Key) {
			return fmt.Errorf("told of %q", e.Key)
		}
		before, was := x.known[string(e.Key)]
		if e.BeforeKnown && (!was || before != string(e.Before.Inline)) {
			return fmt.Errorf("%q at %d had %q before, is told %q", e.Key, e.Revision, before, e.Before.Inline)
		}
		switch {
		case e.Initial && was:
			return fmt.Errorf("%q comes twice", e.Key)
		case e.Kind == shard.EventPut && !e.Initial && e.Created == was:
			return fmt.Errorf("%q at %d: created is %v, was there %v", e.Key, e.Revision, e.Created, was)
		case e.Kind == shard.EventPut:
			x.known[string(e.Key)] = string(e.Value.Inline)
		case !was:
			return fmt.Errorf("%q was removed at %d, and was not there", e.Key, e.Revision)
		default:
			delete(x.known, string(e.Key))
		}
		x.told = append(x.told, e.Event)
	}
	if b.Synced {
		x.synced = true
	}
	want := w.states[b.Cursor.Revision]
	if want == nil { // in the middle of a body whose changes are not known
		return nil
	}
	visible := w.visible(x, b.Cursor.Revision)
	maps.DeleteFunc(visible, func(k, _ string) bool { return b.Cursor.Listing && strings.Compare(k, string(b.Cursor.Boundary)) > 0 })
	if !maps.Equal(visible, x.known) {
		return fmt.Errorf("knows %v, the state is %v", x.known, visible)
	}
	if x.synced && !listing && !b.Synced && x.feed.Watch.Mode == All && !b.Resync {
		return w.complete(x, b)
	}
	x.told, x.from = nil, b.Cursor.Revision
	return nil
}

// complete holds what a watcher was told by one batch against all changes that there were.
func (w *world) complete(x *watcher, b *Batch) error {
	var want []shard.Event
	for _, e := range w.changes {
		if e.Revision > x.from && e.Revision <= b.Cursor.Revision && x.feed.Watch.Concerns(e.Namespace, e.Key) {
			want = append(want, e)
		}
	}
	same := slices.EqualFunc(want, x.told, func(a, b shard.Event) bool {
		return a.Kind == b.Kind && a.Revision == b.Revision && string(a.Key) == string(b.Key) && string(a.Value.Inline) == string(b.Value.Inline)
	})
	if !same {
		return fmt.Errorf("told %v after %d, there was %v", x.told, x.from, want)
	}
	x.told, x.from = nil, b.Cursor.Revision
	return nil
}
