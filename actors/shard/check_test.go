package shard

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"

	"kvstore/actors/host"
	"kvstore/components/btree"
	"kvstore/components/kverr"
)

// The random check: a million commands over 100 seeds against the model, with replays from earlier durable points, changes of
// owner and roll-backs. A failure names the seed: go test ./actors/shard -run 'TestModel/seed_17$'.
const (
	checkSeeds    = 100
	checkCommands = 10_000
)

func TestModel(t *testing.T) {
	before := debug.SetGCPercent(400) // garbage is most of the work
	t.Cleanup(func() { debug.SetGCPercent(before) })
	seeds := uint64(checkSeeds)
	if testing.Short() {
		seeds = 10 // under the race detector
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed_%d", seed), func(t *testing.T) {
			t.Parallel()
			if err := checkSeed(seed, checkCommands); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// durable is a point that a machine can be restored to.
type durable struct {
	tree *btree.Tree
	body []byte // that led to it
	time int64
	head uint64
}

type checker struct {
	rng     *rand.Rand
	cfg     Config
	m       *Machine
	model   *model
	past    []durable // the last few, oldest first; never empty
	clock   int64
	op      uint64
	recent  []Command // with identities, to be sent again
	refs    uint64
	stepped int
	absurd  bool        // the next command must be refused
	spaces  NamespaceID // highest that is used
	stale   *View       // of an earlier point, with what it listed then
	listed  string
}

const (
	checkNamespaces    = 3   // at a time
	checkNamespacesMax = 200 // in all
	checkKeys          = 40
	checkClients       = 3
)

// checkSeed runs one history; it returns the first difference.
func checkSeed(seed uint64, commands int) (err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	cfg := Config{TickBudget: 1 + rng.IntN(4), DropBudget: 1 + rng.IntN(20), HistoryChanges: 50 + rng.Int64N(2000), HistoryBytes: 1 << 30}
	if seed%4 == 0 {
		cfg.chunkChanges = 1 + rng.Int64N(20)
	}
	if seed%3 == 0 {
		cfg.HistoryBytes = 4096 + rng.Int64N(64<<10)
	}
	if seed%5 == 0 {
		cfg.MemoryBudget = 30_000 + rng.Int64N(30_000)
	}
	k := &checker{rng: rng, cfg: cfg, m: New(cfg), model: newModel(cfg), clock: 1_700_000_000_000}
	k.past = []durable{{tree: k.m.Tree().Clone()}}
	for k.stepped < commands {
		if err := k.record(); err != nil {
			return fmt.Errorf("seed %d, after %d commands: %w", seed, k.stepped, err)
		}
	}
	if err := k.end(); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", seed, err)
	}
	return nil
}

// record makes what one append would make durable: time, some commands, Ready; or rolls it back.
func (k *checker) record() error {
	var before *model
	back := k.rng.IntN(40) == 0
	if back {
		before = k.model.clone()
	}
	switch r := k.rng.IntN(400); {
	case r == 0:
		k.clock += k.rng.Int64N(20 * 60_000)
	case r < 5:
		k.clock += k.rng.Int64N(60_000)
	case r < 300:
		k.clock += k.rng.Int64N(200)
	case r == 399:
		k.clock -= k.rng.Int64N(1000) // a clock that was set back
	}
	if err := k.tick(); err != nil {
		return err
	}
	type answer struct {
		cmd  *Command
		need uint64
	}
	var answers []answer
	var replies []host.Gated[*Command]
	for i := range 1 + k.rng.IntN(12) {
		if i > 0 && k.rng.IntN(6) == 0 { // time goes on while a record gathers
			k.clock += k.rng.Int64N(50)
			if err := k.tick(); err != nil {
				return err
			}
		}
		c := k.command()
		need, err := k.step(c)
		if err != nil {
			return err
		}
		answers = append(answers, answer{c, need})
		if k.rng.IntN(8) == 0 {
			replies = k.m.Replies(replies)
		}
	}
	if back {
		return k.rollBack(before, len(answers)-len(replies))
	}
	pending := k.m.Pending()
	ready := k.m.Ready()
	if pending != len(ready.Body) {
		return fmt.Errorf("Pending said %d, the body has %d bytes", pending, len(ready.Body))
	}
	replies = append(replies, ready.Replies...)
	if len(replies) != len(answers) {
		return fmt.Errorf("%d replies to %d commands", len(replies), len(answers))
	}
	known := k.past[len(k.past)-1].head
	for i, a := range answers {
		g := replies[i]
		if g.Command != a.cmd {
			return fmt.Errorf("reply %d is not that of command %d", i, i)
		}
		if a.need > known && g.Dep < a.need {
			return fmt.Errorf("%s: the reply waits for revision %d, its outcome depends on %d", describe(a.cmd), g.Dep, a.need)
		}
		if g.Dep > ready.Head {
			return fmt.Errorf("%s: the reply waits for revision %d, the head is %d", describe(a.cmd), g.Dep, ready.Head)
		}
	}
	if (len(ready.Body) > 0) != (ready.Head != known) {
		return fmt.Errorf("body of %d bytes, head %d after %d", len(ready.Body), ready.Head, known)
	}
	if ready.Head != k.model.revision || ready.TimeMS != k.model.now {
		return fmt.Errorf("head %d at %d, the model is at %d, %d", ready.Head, ready.TimeMS, k.model.revision, k.model.now)
	}
	if len(ready.Body) > 0 {
		k.past = append(k.past, durable{k.m.Tree().Clone(), ready.Body, ready.TimeMS, ready.Head})
		if len(k.past) > 20 {
			k.past = slices.Delete(k.past, 0, 10)
		}
	}
	if k.rng.IntN(20) == 0 {
		if err := k.restore(); err != nil {
			return err
		}
	}
	if k.rng.IntN(40) == 0 {
		return k.compare()
	}
	return nil
}

func (k *checker) tick() error {
	k.m.Tick(k.clock)
	k.model.tick(k.clock)
	return k.swept()
}

// swept allows the one revision that a sweep of old outcomes takes: only when one is over.
func (k *checker) swept() error {
	switch k.m.meta.revision {
	case k.model.revision:
		return nil
	case k.model.revision + 1:
		for _, o := range k.model.outcomes {
			if o.notAfter < k.model.now {
				k.model.revision++
				return nil
			}
		}
	}
	return fmt.Errorf("Tick(%d): revision %d, the model has %d", k.clock, k.m.meta.revision, k.model.revision)
}

// step runs a command on both, and compares.
func (k *checker) step(c *Command) (need uint64, err error) {
	k.stepped++
	size, revision := k.m.tree.Bytes(), k.model.revision
	k.m.Step(c)
	if e := c.Result.Err; e != nil && e.Kind == kverr.Exhausted {
		return 0, k.exhausted(c)
	}
	var want Result
	switch {
	case k.absurd:
		k.absurd = false
		want = Result{Err: &kverr.Error{Kind: kverr.InvalidArgument}}
	case k.dead(c) && c.Result.Err != nil && c.Result.Err.Kind == kverr.Expired:
		return 0, nil // its outcome is forgotten, or was never there
	default:
		want, need = k.expect(c)
	}
	if err := sameResult(&c.Result, &want); err != nil {
		return 0, fmt.Errorf("%s: %w", describe(c), err)
	}
	if k.m.meta.revision != k.model.revision {
		return 0, fmt.Errorf("%s: revision %d, the model has %d", describe(c), k.m.meta.revision, k.model.revision)
	}
	budget := k.cfg.MemoryBudget
	if grew := c.Grows() && c.Result.Revision != 0 && !c.Result.Duplicate; grew && budget > 0 && size >= budget && k.model.revision == revision+1 {
		return 0, fmt.Errorf("%s: passed with %d bytes used of %d", describe(c), size, budget)
	}
	return need, nil
}

// expect is what the model makes of a command.
func (k *checker) expect(c *Command) (want Result, need uint64) {
	switch c.Op {
	case OpPut, OpDelete, OpTxn, OpEdit:
		return k.model.step(c)
	case OpDropNamespace:
		want = k.model.drop(c.Namespace)
	case OpRelocate:
		ns, key, _ := splitDataKey(c.Relocate.Key)
		want = k.model.relocate(modelKey{ns, string(key)}, c.Relocate)
	case OpForget:
		want = k.model.forget(c.Forget)
	}
	return want, want.Revision
}

// exhausted checks that a command was refused for good reason, and that nothing came of it but expiry.
func (k *checker) exhausted(c *Command) error {
	budget := k.cfg.MemoryBudget
	used := k.m.tree.Bytes()
	if !c.Grows() {
		budget += budget / 8
		if c.Op == OpDelete {
			if _, there := k.model.entries[modelKey{c.Namespace, string(c.Delete.Key)}]; there && c.Delete.If.Check == CheckNone {
				if e := k.model.entries[modelKey{c.Namespace, string(c.Delete.Key)}]; e.expiresMS == 0 || e.expiresMS > k.model.now {
					return fmt.Errorf("%s: refused, though it makes room", describe(c))
				}
			}
		}
	}
	if k.cfg.MemoryBudget == 0 || used < budget {
		return fmt.Errorf("%s: refused with %d bytes used of %d", describe(c), used, k.cfg.MemoryBudget)
	}
	for _, key := range touched(c) {
		k.model.expireOn(modelKey{c.Namespace, string(key)})
	}
	return nil
}

func touched(c *Command) (keys [][]byte) {
	switch c.Op {
	case OpPut:
		keys = append(keys, c.Put.Key)
	case OpDelete:
		keys = append(keys, c.Delete.Key)
	case OpEdit:
		keys = append(keys, c.Edit.Key)
	case OpTxn:
		for i := range c.Txn.Conditions {
			keys = append(keys, c.Txn.Conditions[i].Key)
		}
		for i := range c.Txn.Ops {
			key, _ := c.Txn.Ops[i].target()
			keys = append(keys, key)
		}
	}
	return keys
}

// dead tells whether the command is one whose remembered outcome may be forgotten.
func (k *checker) dead(c *Command) bool {
	return c.ID.given() && c.ID.NotAfterMS < k.model.now
}

func sameResult(got, want *Result) error {
	if (got.Err == nil) != (want.Err == nil) {
		return fmt.Errorf("result %+v, the model says %+v", *got, *want)
	}
	if got.Err != nil && (got.Err.Kind != want.Err.Kind || got.Err.CurrentVersion != want.Err.CurrentVersion) {
		return fmt.Errorf("error %+v, the model says %+v", *got.Err, *want.Err)
	}
	if got.Write != want.Write || got.Revision != want.Revision || got.Committed != want.Committed || got.Duplicate != want.Duplicate ||
		got.Deleted != want.Deleted || got.Number != want.Number || got.More != want.More ||
		!slices.Equal(got.Writes, want.Writes) || !slices.Equal(got.Failures, want.Failures) {
		return fmt.Errorf("result %+v, the model says %+v", *got, *want)
	}
	return nil
}

// rollBack throws the record away, as after an append that is known to have written nothing.
func (k *checker) rollBack(before *model, unanswered int) error {
	last := k.past[len(k.past)-1]
	k.m.Restore(last.tree.Clone())
	k.model = before
	k.model.now = k.m.now // shard time never goes back
	replies := k.m.Ready().Replies
	if len(replies) != unanswered {
		return fmt.Errorf("roll-back: %d of %d unanswered commands were answered", len(replies), unanswered)
	}
	for _, r := range replies {
		if e := r.Command.Result.Err; e == nil || e.Kind != kverr.Unavailable || r.Dep != 0 {
			return fmt.Errorf("roll-back: %s: answered with %+v, waiting for %d", describe(r.Command), r.Command.Result, r.Dep)
		}
	}
	return sameTree(k.m.Tree(), last.tree)
}

// restore brings up another machine from an earlier point and the records since, and compares the trees; sometimes the other one
// takes over.
func (k *checker) restore() error {
	at := k.rng.IntN(len(k.past))
	other := New(k.cfg)
	other.Restore(k.past[at].tree.Clone())
	for _, d := range k.past[at+1:] {
		if err := other.Replay(d.body, d.time); err != nil {
			return err
		}
	}
	if err := sameTree(other.Tree(), k.m.Tree()); err != nil {
		return fmt.Errorf("replay of %d records: %w", len(k.past)-at-1, err)
	}
	if k.rng.IntN(2) == 0 {
		k.m = other
		k.model.now = other.now // time that was not logged is forgotten
	}
	return nil
}

func sameTree(a, b *btree.Tree) error {
	for c := range a.Diff(b) {
		was, _ := b.Get(c.Key)
		return fmt.Errorf("trees differ at %x: %x, not %x (deleted %v)", c.Key, c.Value, was, c.Deleted)
	}
	if a.Bytes() != b.Bytes() || a.Len() != b.Len() {
		return fmt.Errorf("trees differ in size: %d items of %d bytes, not %d of %d", a.Len(), a.Bytes(), b.Len(), b.Bytes())
	}
	return nil
}

// compare holds everything that can be read against the model.
func (k *checker) compare() error {
	if len(k.m.body) > 0 {
		return nil // reads see durable states alone
	}
	v := NewView(k.m.Tree().Clone())
	if v.Revision() != k.model.revision {
		return fmt.Errorf("the view is at revision %d, the model at %d", v.Revision(), k.model.revision)
	}
	for _, part := range []func(View) error{k.compareEntries, k.compareLists, k.compareHistory, k.compareObjects, k.compareWake} {
		if err := part(v); err != nil {
			return err
		}
	}
	if k.stale != nil {
		if now := dump(*k.stale); now != k.listed {
			return fmt.Errorf("a view changed:\n%s\nwas\n%s", now, k.listed)
		}
	}
	if k.stale == nil || k.rng.IntN(10) == 0 {
		k.stale, k.listed = &v, dump(v)
	}
	return nil
}

// dump lists all entries of a view.
func dump(v View) string {
	var b bytes.Buffer
	for ns := range NamespaceID(checkNamespacesMax) {
		page, _, _ := v.List(ns+1, ListQuery{})
		for _, e := range page {
			fmt.Fprintf(&b, "%d %s %d %d %d %q %v\n", ns+1, e.Key, e.Version, e.UpdatedMS, e.ExpiresMS, e.Value.Inline, e.Value.Ref)
		}
	}
	return b.String()
}

func (k *checker) compareEntries(v View) error {
	var items, size [checkNamespacesMax + 1]int64
	for key, want := range k.model.entries {
		e, ok, err := v.Get(key.ns, []byte(key.key))
		if !ok || err != nil {
			return fmt.Errorf("%v is gone, the model has %+v", key, want)
		}
		got := modelEntry{
			value: string(e.Value.Inline), ref: e.Value.Ref, contentType: e.ContentType, encoding: e.Encoding,
			metadata: e.Metadata(), tags: e.Tags(), version: e.Version, createdMS: e.CreatedMS, updatedMS: e.UpdatedMS, expiresMS: e.ExpiresMS,
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%v is %+v, the model has %+v", key, got, want)
		}
		items[key.ns]++
		size[key.ns] += int64(len(key.key)) + e.Size()
	}
	for ns := range items {
		n, b := v.Usage(NamespaceID(ns))
		if n != items[ns] || b != size[ns] {
			return fmt.Errorf("usage of namespace %d is %d, %d; the model has %d, %d", ns, n, b, items[ns], size[ns])
		}
	}
	return nil
}

// compareLists pages through a random part of a namespace.
func (k *checker) compareLists(v View) error {
	ns := k.namespace()
	var q ListQuery
	if k.rng.IntN(2) == 0 {
		q.Prefix = []byte(k.key()[:1+k.rng.IntN(3)])
	}
	if k.rng.IntN(2) == 0 {
		q.Start = []byte(k.key())
	}
	if k.rng.IntN(2) == 0 {
		q.End = []byte(k.key())
	}
	var want []string
	for key := range k.model.entries {
		if s := key.key; key.ns == ns && bytes.HasPrefix([]byte(s), q.Prefix) && s >= string(q.Start) && (len(q.End) == 0 || s < string(q.End)) {
			want = append(want, s)
		}
	}
	slices.Sort(want)
	if n := v.Count(ns, q); n != int64(len(want)) {
		return fmt.Errorf("count of %+v is %d, the model has %d", q, n, len(want))
	}
	var got []string
	q.Limit = 1 + k.rng.IntN(20)
	if k.rng.IntN(2) == 0 {
		q.MaxBytes = 1 + k.rng.Int64N(200)
	}
	for more := true; more; {
		var page []Entry
		var err *kverr.Error
		if page, more, err = v.List(ns, q); err != nil {
			return err
		}
		if more && len(page) == 0 || len(page) > q.Limit {
			return fmt.Errorf("list of %+v: a page of %d, more %v", q, len(page), more)
		}
		for _, e := range page {
			got = append(got, string(e.Key))
			q.After = e.Key
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("list of %+v is %q, the model has %q", q, got, want)
	}
	return nil
}

func (k *checker) compareHistory(v View) error {
	events := k.model.events
	oldest := v.OldestRevision()
	if oldest > 0 && int64(len(events)) < k.cfg.HistoryChanges && k.cfg.HistoryBytes == 1<<30 {
		return fmt.Errorf("history up to %d is gone after %d changes, %d are to be kept", oldest, len(events), k.cfg.HistoryChanges)
	}
	if v.meta.historyBytes > k.cfg.HistoryBytes || v.meta.historyChanges > k.cfg.HistoryChanges {
		return fmt.Errorf("history has %d changes of %d bytes, over its bounds", v.meta.historyChanges, v.meta.historyBytes)
	}
	if oldest > 0 {
		if _, ok := v.Changes(oldest - 1); ok {
			return fmt.Errorf("changes after %d are there, oldest is %d", oldest-1, oldest)
		}
	}
	after := oldest + uint64(k.rng.Int64N(int64(k.model.revision-oldest)+1))
	if k.rng.IntN(2) == 0 {
		after = oldest
	}
	changes, ok := v.Changes(after)
	if !ok {
		return fmt.Errorf("changes after %d are gone, oldest is %d", after, oldest)
	}
	i, _ := slices.BinarySearchFunc(events, after+1, func(e modelEvent, r uint64) int { return cmp.Compare(e.revision, r) })
	for e := range changes {
		if i == len(events) {
			return fmt.Errorf("change %+v, the model has no more", e)
		}
		want := events[i]
		got := modelEvent{e.Kind, modelKey{e.Namespace, string(e.Key)}, e.Revision, e.Previous, e.Created, string(e.Value.Inline), e.Value.Ref, want.before, want.beforeRef}
		if got != want {
			return fmt.Errorf("change %+v, the model has %+v", got, want)
		}
		before, known := v.Before(e)
		switch inline := want.beforeRef.Object == (ObjectID{}); {
		case known && inline && string(before.Inline) != want.before:
			return fmt.Errorf("before change %+v the value was %q, the model has %q", e, before.Inline, want.before)
		case !known && e.Previous > oldest:
			return fmt.Errorf("before change %+v the value is not known, history goes back to %d", e, oldest)
		case known && e.Previous == 0:
			return fmt.Errorf("before change %+v there was a value", e)
		}
		i++
	}
	if i != len(events) {
		return fmt.Errorf("changes end before %+v", events[i])
	}
	return nil
}

func (k *checker) compareObjects(v View) error {
	live := k.model.live()
	var dead []ObjectID
	for id, o := range live {
		if o.values == 0 {
			dead = append(dead, id)
		}
	}
	slices.SortFunc(dead, func(a, b ObjectID) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Counter, b.Counter))
	})
	if got := slices.Collect(DeadObjects(v)); !slices.Equal(got, dead) {
		return fmt.Errorf("dead objects %v, the model has %v", got, dead)
	}
	const threshold = 0.5
	sparse := 0
	for o := range SparseObjects(v, threshold) {
		w := live[o.ID]
		if w.values != o.Values || w.live != o.Live || w.total != o.TotalBytes || float64(w.live) >= threshold*float64(w.total) {
			return fmt.Errorf("sparse object %+v, the model has %+v", o, w)
		}
		sparse++
		var values int64
		for r := range Residents(v, o.ID) {
			ns, key, _ := splitDataKey(r.Key)
			if e := k.model.entries[modelKey{ns, string(key)}]; e.ref != r.Ref {
				return fmt.Errorf("%+v lives in object %v, the model has %+v", r, o.ID, e.ref)
			}
			values++
		}
		if values != o.Values {
			return fmt.Errorf("object %v has %d residents, not %d", o.ID, values, o.Values)
		}
	}
	for _, w := range live {
		if w.values > 0 && float64(w.live) < threshold*float64(w.total) {
			sparse--
		}
	}
	if sparse != 0 {
		return fmt.Errorf("%d sparse objects are not found", -sparse)
	}
	return nil
}

func (k *checker) compareWake(View) error {
	var want int64
	for _, e := range k.model.entries {
		want = earliest(want, e.expiresMS)
	}
	if got := k.m.wakeExpiry(); got != want {
		return fmt.Errorf("next expiry is %d, the model has %d", got, want)
	}
	if w := k.m.WakeMS(); want != 0 && (w == 0 || w > want) {
		return fmt.Errorf("wakes at %d, the next expiry is %d", w, want)
	}
	if held, most := k.m.meta.identities, int64(len(k.model.outcomes)); held > most {
		return fmt.Errorf("%d outcomes are remembered, there were %d", held, most)
	}
	return nil
}

// end lets time go on as WakeMS asks, without commands: what expires must go, and what is remembered must be forgotten.
func (k *checker) end() error {
	if err := k.compare(); err != nil {
		return err
	}
	for ticks := 0; ; ticks++ {
		at := k.m.WakeMS()
		if at == 0 {
			break
		}
		if ticks > 20_000 {
			return fmt.Errorf("still wants to wake at %d", at)
		}
		k.clock = max(k.clock, at, k.m.now)
		if err := k.tick(); err != nil {
			return err
		}
		if ready := k.m.Ready(); len(ready.Body) == 0 {
			return fmt.Errorf("woke at %d for nothing", at)
		}
	}
	if n := k.m.meta.identities; n != 0 {
		return fmt.Errorf("%d outcomes are remembered for ever", n)
	}
	for key := range k.m.tree.Ascend([]byte{prefixIdentity}, []byte{prefixIdentity + 1}) {
		return fmt.Errorf("outcome %x is remembered for ever", key)
	}
	return k.compare()
}

func describe(c *Command) string {
	id := ""
	if c.ID.given() {
		id = fmt.Sprintf(" by %d/%d until %d", c.ID.Client[0], c.ID.Op, c.ID.NotAfterMS)
	}
	switch c.Op {
	case OpPut:
		return fmt.Sprintf("put %d %q ttl %d if %+v%s", c.Namespace, c.Put.Key, c.Put.TTLMS, c.Put.If, id)
	case OpDelete:
		return fmt.Sprintf("delete %d %q if %+v%s", c.Namespace, c.Delete.Key, c.Delete.If, id)
	case OpEdit:
		if c.Edit != nil {
			return fmt.Sprintf("edit %d %+v%s", c.Namespace, *c.Edit, id)
		}
	case OpTxn:
		if c.Txn != nil {
			return fmt.Sprintf("txn %d of %d conditions, %d ops%s", c.Namespace, len(c.Txn.Conditions), len(c.Txn.Ops), id)
		}
	}
	return fmt.Sprintf("op %d %d%s", c.Op, c.Namespace, id)
}
