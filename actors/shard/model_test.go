package shard

import (
	"cmp"
	"maps"
	"math"
	"math/big"
	"slices"

	"kvstore/components/kverr"
)

// model is the shard's KV semantics in plain maps: slow, without records, replay or gating, and obviously right. The random check
// (check_test.go) holds the machine against it. Where the machine may choose (when it sweeps), the model says what is allowed.
type model struct {
	cfg      Config
	now      int64
	revision uint64
	entries  map[modelKey]modelEntry
	removals map[modelKey]uint64 // revision of each key's last removal
	outcomes map[modelID]*modelOutcome
	objects  map[ObjectID]int64 // known objects and their length
	dropped  map[NamespaceID]bool
	events   []modelEvent
}

type modelKey struct {
	ns  NamespaceID
	key string
}

type modelEntry struct {
	value                           string
	ref                             Ref
	contentType, encoding           string
	metadata, tags                  []Pair
	version                         uint64
	createdMS, updatedMS, expiresMS int64
}

type modelID struct {
	slot   uint16
	client [16]byte
	op     uint64
	index  uint32
}

type modelOutcome struct {
	op       Op
	notAfter int64
	revision uint64
	result   Result
}

type modelEvent struct {
	kind               EventKind
	key                modelKey
	revision, previous uint64
	created            bool
	value              string
	ref                Ref
	before             string // value that was there
	beforeRef          Ref
}

func newModel(cfg Config) *model {
	cfg.EnsureDefaults()
	return &model{
		cfg: cfg, entries: map[modelKey]modelEntry{}, removals: map[modelKey]uint64{},
		outcomes: map[modelID]*modelOutcome{}, objects: map[ObjectID]int64{},
		dropped: map[NamespaceID]bool{},
	}
}

func (d *model) clone() *model {
	c := *d
	c.entries = maps.Clone(d.entries)
	c.removals = maps.Clone(d.removals)
	c.outcomes = maps.Clone(d.outcomes)
	c.objects = maps.Clone(d.objects)
	c.dropped = maps.Clone(d.dropped)
	c.events = slices.Clip(d.events)
	return &c
}

// tick expires what is due, first things first, as many as one tick may.
func (d *model) tick(now int64) {
	d.now = max(d.now, now)
	type item struct {
		at int64
		k  modelKey
	}
	var due []item
	for k, e := range d.entries {
		if e.expiresMS != 0 && e.expiresMS <= d.now {
			due = append(due, item{e.expiresMS, k})
		}
	}
	slices.SortFunc(due, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.k.ns, b.k.ns), cmp.Compare(a.k.key, b.k.key))
	})
	for _, it := range due[:min(len(due), d.cfg.TickBudget)] {
		d.revision++
		d.remove(it.k, EventExpire)
	}
}

// expireOn expires a key that a write meets after its time, which counts as the state before the write.
func (d *model) expireOn(k modelKey) {
	if e, ok := d.entries[k]; ok && e.expiresMS != 0 && e.expiresMS <= d.now {
		d.revision++
		d.remove(k, EventExpire)
	}
}

func (d *model) remove(k modelKey, kind EventKind) {
	d.events = append(d.events, modelEvent{kind: kind, key: k, revision: d.revision, previous: d.entries[k].version,
		before: d.entries[k].value, beforeRef: d.entries[k].ref})
	d.removals[k] = d.revision
	delete(d.entries, k)
}

func (d *model) put(ns NamespaceID, p *Put) {
	k := modelKey{ns, string(p.Key)}
	old, existed := d.entries[k]
	e := modelEntry{
		value: string(p.Value.Inline), ref: p.Value.Ref, contentType: p.ContentType, encoding: p.Encoding,
		metadata: p.Metadata, tags: p.Tags, version: d.revision, createdMS: d.now, updatedMS: d.now,
	}
	if existed {
		e.createdMS = old.createdMS
	}
	if p.KeepTTL && existed {
		e.expiresMS = old.expiresMS
	} else if p.TTLMS > 0 {
		e.expiresMS = d.now + p.TTLMS
	}
	if e.ref.Object.Epoch != 0 {
		d.objects[e.ref.Object] = max(d.objects[e.ref.Object], e.ref.ObjectBytes)
	}
	d.entries[k] = e
	d.events = append(d.events, modelEvent{
		kind: EventPut, key: k, revision: d.revision, previous: old.version, created: !existed, value: e.value, ref: e.ref,
		before: old.value, beforeRef: old.ref,
	})
}

// holds is whether a precondition holds for a key.
func (d *model) holds(k modelKey, p Precondition) (ok bool, version uint64) {
	e, exists := d.entries[k]
	switch p.Check {
	case CheckVersion:
		return exists && e.version == p.Version, e.version
	case CheckAbsent:
		return !exists, e.version
	case CheckPresent:
		return exists, e.version
	}
	return true, e.version
}

// need is the revision that must be durable before an answer that looked at the key may leave.
func (d *model) need(k modelKey) uint64 {
	if e, ok := d.entries[k]; ok {
		return e.version
	}
	return d.removals[k]
}

// step answers a write. need is what its answer depends on at least.
func (d *model) step(c *Command) (res Result, need uint64) {
	id, known, res, need, done := d.identity(c)
	if done {
		return res, need
	}
	if d.dropped[c.Namespace] {
		return Result{Err: &kverr.Error{Kind: kverr.NotFound}}, d.revision
	}
	var changed bool
	switch c.Op {
	case OpPut, OpDelete:
		key, cond := c.Put.Key, c.Put.If
		if c.Op == OpDelete {
			key, cond = c.Delete.Key, c.Delete.If
		}
		k := modelKey{c.Namespace, string(key)}
		d.expireOn(k)
		need = d.need(k)
		_, existed := d.entries[k]
		if ok, version := d.holds(k, cond); !ok {
			kind := kverr.VersionMismatch
			if cond.Check == CheckAbsent {
				kind = kverr.AlreadyExists
			}
			res.Err = &kverr.Error{Kind: kind, CurrentVersion: version}
			break
		}
		if changed = c.Op == OpPut || existed; !changed {
			break
		}
		d.revision++
		if c.Op == OpPut {
			d.put(c.Namespace, &c.Put)
		} else {
			d.remove(k, EventDelete)
		}
		res.Write = WriteResult{Version: d.revision, Existed: existed}
	case OpTxn:
		res, need, changed = d.txn(c)
	case OpEdit:
		res, need, changed = d.edit(c)
	}
	if changed {
		res.Revision = d.revision
	}
	if known {
		if !changed {
			d.revision++ // what is remembered must be durable
		}
		remembered := res
		remembered.Duplicate = true
		d.outcomes[id] = &modelOutcome{op: c.Op, notAfter: c.ID.NotAfterMS, revision: d.revision, result: remembered}
	}
	if changed || known {
		need = d.revision
	}
	return res, need
}

// identity answers a write that was answered before or that must not be executed. known: its outcome is to be remembered.
func (d *model) identity(c *Command) (id modelID, known bool, res Result, need uint64, done bool) {
	if c.ID.Client == ([16]byte{}) {
		return id, false, res, 0, false
	}
	slot := c.Put.Slot
	switch c.Op {
	case OpDelete:
		slot = c.Delete.Slot
	case OpTxn:
		slot = c.Txn.Slot
	}
	id = modelID{slot, c.ID.Client, c.ID.Op, c.ID.Index}
	if o, ok := d.outcomes[id]; ok {
		if fits := o.op == c.Op || (o.result.Err != nil && o.op != OpTxn && c.Op != OpTxn); !fits {
			return id, false, Result{Err: &kverr.Error{Kind: kverr.InvalidArgument}}, 0, true
		}
		return id, false, o.result, o.revision, true
	}
	if d.now > c.ID.NotAfterMS {
		return id, false, Result{Err: &kverr.Error{Kind: kverr.Expired}}, 0, true
	}
	if c.ID.NotAfterMS > d.now+10*60*1000 {
		return id, false, Result{Err: &kverr.Error{Kind: kverr.InvalidArgument}}, 0, true
	}
	return id, true, res, 0, false
}

func (d *model) txn(c *Command) (res Result, need uint64, changed bool) {
	for i, cond := range c.Txn.Conditions {
		k := modelKey{c.Namespace, string(cond.Key)}
		d.expireOn(k)
		need = max(need, d.need(k))
		if ok, version := d.holds(k, cond.If); !ok {
			res.Failures = append(res.Failures, TxnFailure{Condition: i, Op: -1, Version: version})
		}
	}
	for i, op := range c.Txn.Ops {
		key, cond := op.target()
		k := modelKey{c.Namespace, string(key)}
		d.expireOn(k)
		need = max(need, d.need(k))
		if ok, version := d.holds(k, *cond); !ok {
			res.Failures = append(res.Failures, TxnFailure{Condition: -1, Op: i, Version: version})
		}
	}
	if len(res.Failures) > 0 {
		return res, need, false
	}
	res.Committed = true
	for _, op := range c.Txn.Ops {
		key, _ := op.target()
		_, existed := d.entries[modelKey{c.Namespace, string(key)}]
		changed = changed || existed || op.Put != nil
	}
	if changed {
		d.revision++
	}
	for _, op := range c.Txn.Ops {
		key, _ := op.target()
		k := modelKey{c.Namespace, string(key)}
		_, existed := d.entries[k]
		w := WriteResult{Existed: existed}
		switch {
		case op.Put != nil:
			d.put(c.Namespace, op.Put)
			w.Version = d.revision
		case existed:
			d.remove(k, EventDelete)
			w.Version = d.revision
		}
		res.Writes = append(res.Writes, w)
	}
	return res, need, changed
}

// edit changes an entry by what it is.
func (d *model) edit(c *Command) (res Result, need uint64, changed bool) {
	x := c.Edit
	k := modelKey{c.Namespace, string(x.Key)}
	d.expireOn(k)
	need = d.need(k)
	old, existed := d.entries[k]
	res.Write.Existed = existed
	next := old
	switch x.Kind {
	case EditAdd:
		sum := new(big.Int)
		if existed {
			if _, ok := sum.SetString(old.value, 10); !ok || sum.String() != old.value || !sum.IsInt64() || old.ref != (Ref{}) {
				return Result{Err: &kverr.Error{Kind: kverr.InvalidArgument}}, need, false
			}
		}
		if sum.Add(sum, big.NewInt(x.Delta)); !sum.IsInt64() {
			return Result{Err: &kverr.Error{Kind: kverr.InvalidArgument}}, need, false
		}
		next.value, res.Number = sum.String(), sum.Int64()
	case EditAppend:
		if next.value += string(x.Bytes); old.ref != (Ref{}) || int64(len(next.value)) > x.MaxBytes {
			return Result{Err: &kverr.Error{Kind: kverr.ValueTooLarge, CurrentVersion: old.version}}, need, false
		}
		res.Number = int64(len(next.value))
		if existed && len(x.Bytes) == 0 {
			return res, need, false
		}
	case EditExpire:
		const never = math.MaxInt64
		was, will := cmp.Or(old.expiresMS, never), cmp.Or(x.ExpiresMS, never)
		if !existed || x.When&WhenNone != 0 && was != never || x.When&WhenSome != 0 && was == never ||
			x.When&WhenLater != 0 && will <= was || x.When&WhenEarlier != 0 && will >= was || will == never && was == never {
			return res, need, false
		}
		res.Number, next.expiresMS = 1, x.ExpiresMS
		if will <= d.now {
			d.revision++
			d.remove(k, EventDelete)
			res.Write.Version = d.revision
			return res, d.revision, true
		}
	}
	d.revision++
	next.version, next.updatedMS = d.revision, d.now
	if !existed {
		next.createdMS = d.now
		if x.TTLMS > 0 {
			next.expiresMS = d.now + x.TTLMS
		}
	}
	d.entries[k] = next
	d.events = append(d.events, modelEvent{
		kind: EventPut, key: k, revision: d.revision, previous: old.version, created: !existed, value: next.value, ref: next.ref,
		before: old.value, beforeRef: old.ref,
	})
	res.Write.Version = d.revision
	return res, d.revision, true
}

// drop removes the first keys of a namespace, and closes it.
func (d *model) drop(ns NamespaceID) (res Result) {
	var keys []string
	for k := range d.entries {
		if k.ns == ns {
			keys = append(keys, k.key)
		}
	}
	if len(keys) == 0 && d.dropped[ns] {
		return res
	}
	slices.Sort(keys)
	n := min(len(keys), d.cfg.DropBudget)
	through := ""
	if n > 0 {
		through = keys[n-1]
	}
	d.dropped[ns] = true
	d.revision++
	for _, key := range keys[:n] {
		delete(d.entries, modelKey{ns, key})
		d.removals[modelKey{ns, key}] = d.revision
	}
	d.events = append(d.events, modelEvent{kind: EventDrop, key: modelKey{ns, through}, revision: d.revision})
	return Result{Revision: d.revision, Deleted: int64(n), More: n < len(keys)}
}

// relocate moves a value, if it still is where the copy was made from.
func (d *model) relocate(k modelKey, r *Relocate) (res Result) {
	e, ok := d.entries[k]
	if !ok || e.ref != r.From {
		return res
	}
	d.revision++
	e.ref = r.To
	d.objects[r.To.Object] = max(d.objects[r.To.Object], r.To.ObjectBytes)
	d.entries[k] = e
	return Result{Revision: d.revision}
}

// live is what entries hold of each object.
func (d *model) live() map[ObjectID]object {
	live := map[ObjectID]object{}
	for id, total := range d.objects {
		live[id] = object{total: total}
	}
	for _, e := range d.entries {
		if e.ref.Object.Epoch != 0 {
			o := live[e.ref.Object]
			o.live += e.ref.Length
			o.values++
			live[e.ref.Object] = o
		}
	}
	return live
}

// forget drops the accounts of objects that nothing holds.
func (d *model) forget(ids []ObjectID) (res Result) {
	live := d.live()
	gone := false
	for _, id := range ids {
		if o, ok := live[id]; ok && o.values == 0 {
			delete(d.objects, id)
			gone = true
		}
	}
	if gone {
		d.revision++
		res.Revision = d.revision
	}
	return res
}
