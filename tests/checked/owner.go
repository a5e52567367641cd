package checked

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"kvstore/client"
)

// state is what an owner knows of one key.
type state struct {
	present bool
	gen     uint64 // which value; see value
	size    int
	version uint64 // 0: not known (the outcome was unknown and the write turned out applied)
}

// key is a key with what it must hold. maybe is set while the outcome of a write is unknown: one of both is true.
type key struct {
	name    string
	is      state
	maybe   *state
	highest uint64 // highest version ever seen: a later one is higher or the same write
}

// owner owns its keys and is the only one to write them.
type owner struct {
	id     int
	c      *client.Client
	r      *rand.Rand
	gen    uint64
	keys   []*key
	groups [][]*key // written by transactions alone, four keys of one partition, always of one generation
	tally
}

func newOwner(id int, c *client.Client, seed uint64, t tally) *owner {
	w := &owner{id: id, c: c, r: rand.New(rand.NewPCG(seed, uint64(id))), tally: t}
	for i := range 24 {
		w.keys = append(w.keys, &key{name: fmt.Sprintf("w%02d/k%02d", id, i)})
	}
	for g := range 3 {
		var group []*key
		for i := range 4 {
			group = append(group, &key{name: fmt.Sprintf("{w%02d-g%d}/%d", id, g, i)})
		}
		w.groups = append(w.groups, group)
	}
	return w
}

// value is the content of generation gen of a key: a wrong byte anywhere shows.
func value(name string, gen uint64, size int) []byte {
	v := make([]byte, max(size, 8))
	binary.LittleEndian.PutUint64(v, gen)
	src := rand.NewPCG(gen, uint64(len(name)))
	for _, b := range []byte(name) {
		src = rand.NewPCG(src.Uint64(), uint64(b))
	}
	for i := 8; i < len(v); i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], src.Uint64())
		copy(v[i:], w[:])
	}
	return v
}

func (w *owner) next() state {
	w.gen++
	sizes := []int{8, 100, 256, 900, 1024, 1025, 5_000, 16_384}
	s := state{present: true, gen: w.gen, size: sizes[w.r.IntN(len(sizes))]}
	if w.r.IntN(200) == 0 {
		s.size = 700_000 // by PutStream
	}
	return s
}

func (w *owner) step(ctx context.Context) error {
	w.begins()
	k := w.keys[w.r.IntN(len(w.keys))]
	switch w.r.IntN(14) {
	case 0, 1, 2:
		return w.put(ctx, "put", k, nil)
	case 3:
		return w.put(ctx, "put ttl", k, &client.PutOptions{TTL: time.Hour, Tags: map[string]string{"t": "1"}})
	case 4:
		return w.putIf(ctx, k)
	case 5:
		return w.putWrong(ctx, k)
	case 6, 7:
		return w.delete(ctx, k)
	case 8:
		return w.batchPut(ctx)
	case 9:
		return w.batchDelete(ctx)
	case 10, 11:
		return w.txn(ctx, w.groups[w.r.IntN(len(w.groups))])
	case 12:
		return w.check(ctx, k)
	}
	return w.expire(ctx)
}

// wrote notes the outcome of a write of k that meant to make it s.
func (w *owner) wrote(verb string, k *key, s state, version uint64, err error) error {
	switch {
	case err == nil:
		if version != 0 && version <= k.highest {
			return fmt.Errorf("%s %s: version %d is not above %d, seen before", verb, k.name, version, k.highest)
		}
		switch {
		case s.present:
			w.changed(client.EventPut, k.name, version)
		case k.is.present:
			w.changed(client.EventDelete, k.name, version)
		}
		s.version = version
		k.is, k.maybe, k.highest = s, nil, max(k.highest, version)
		w.ack(verb)
		return nil
	case unknown(err):
		k.maybe = &s
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, k.name, err)
}

func unknown(err error) bool {
	return errors.Is(err, client.ErrOutcomeUnknown) || errors.Is(err, client.ErrExpired) || errors.Is(err, context.DeadlineExceeded)
}

// notApplied tells whether an error says that nothing was done, for no fault of the caller's: a shard was out of reach, or there was more to do than the time
// that he gave.
func notApplied(err error) bool {
	return errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOverloaded)
}

func (w *owner) put(ctx context.Context, verb string, k *key, o *client.PutOptions) error {
	if k.maybe != nil {
		return w.check(ctx, k)
	}
	s := w.next()
	res, err := w.c.Put(ctx, k.name, value(k.name, s.gen, s.size), o)
	if err == nil && res.Created == k.is.present {
		return fmt.Errorf("%s %s: created=%t, but present was %t", verb, k.name, res.Created, k.is.present)
	}
	return w.wrote(verb, k, s, res.Version, err)
}

// putIf writes under the precondition that must hold: a second application of the same write would fail it.
func (w *owner) putIf(ctx context.Context, k *key) error {
	if k.maybe != nil || (k.is.present && k.is.version == 0) {
		return w.check(ctx, k)
	}
	p := client.IfAbsent()
	if k.is.present {
		p = client.IfVersion(k.is.version)
	}
	return w.put(ctx, "put if", k, &client.PutOptions{If: p})
}

// putWrong writes under a precondition that cannot hold.
func (w *owner) putWrong(ctx context.Context, k *key) error {
	if k.maybe != nil {
		return w.check(ctx, k)
	}
	p, want := client.IfPresent(), client.ErrVersionMismatch
	if k.is.present {
		p, want = client.IfAbsent(), client.ErrAlreadyExists
	}
	s := w.next()
	_, err := w.c.Put(ctx, k.name, value(k.name, s.gen, s.size), &client.PutOptions{If: p})
	if errors.Is(err, want) {
		w.ack("put refused")
		return nil
	}
	if err != nil && unknown(err) {
		return nil // whatever happened, it was not applied
	}
	return fmt.Errorf("put %s under a condition that does not hold: %s, want %w", k.name, fmt.Sprint(err), want) // err may be nil
}

func (w *owner) delete(ctx context.Context, k *key) error {
	if k.maybe != nil {
		return w.check(ctx, k)
	}
	res, err := w.c.Delete(ctx, k.name, nil)
	if err == nil && res.Deleted != k.is.present {
		return fmt.Errorf("delete %s: deleted=%t, but present was %t", k.name, res.Deleted, k.is.present)
	}
	return w.wrote("delete", k, state{}, res.Revision, err)
}

func (w *owner) some(n int) (ks []*key) {
	for _, i := range w.r.Perm(len(w.keys)) {
		if w.keys[i].maybe == nil && len(ks) < n {
			ks = append(ks, w.keys[i])
		}
	}
	return ks
}

func (w *owner) batchPut(ctx context.Context) error {
	ks := w.some(5)
	var items []client.PutItem
	var states []state
	for _, k := range ks {
		s := w.next()
		s.size = min(s.size, 20_000)
		states = append(states, s)
		items = append(items, client.PutItem{Key: k.name, Value: value(k.name, s.gen, s.size)})
	}
	res, err := w.c.BatchPut(ctx, items)
	for i, k := range ks {
		var version uint64
		itemErr := err
		if err == nil {
			version, itemErr = res[i].Version, res[i].Err
		}
		if err := w.wrote("batch put", k, states[i], version, itemErr); err != nil {
			return err
		}
	}
	return nil
}

func (w *owner) batchDelete(ctx context.Context) error {
	ks := w.some(2)
	var items []client.DeleteItem
	for _, k := range ks {
		items = append(items, client.DeleteItem{Key: k.name})
	}
	res, err := w.c.BatchDelete(ctx, items)
	for i, k := range ks {
		var rev uint64
		itemErr := err
		if err == nil {
			rev, itemErr = res[i].Revision, res[i].Err
			if itemErr == nil && res[i].Deleted != k.is.present {
				return fmt.Errorf("batch delete %s: deleted=%t, but present was %t", k.name, res[i].Deleted, k.is.present)
			}
		}
		if err := w.wrote("batch delete", k, state{}, rev, itemErr); err != nil {
			return err
		}
	}
	return nil
}

// txn writes all keys of a group to one new generation, or removes them all; sometimes under a condition that fails.
func (w *owner) txn(ctx context.Context, group []*key) error {
	first := group[0]
	if first.maybe != nil {
		return w.checkGroup(ctx, group)
	}
	fail := w.r.IntN(4) == 0
	t := w.c.Txn()
	switch {
	case fail && first.is.present:
		t.If(first.name, client.IfAbsent())
	case fail:
		t.If(first.name, client.IfPresent())
	case first.is.present && first.is.version != 0:
		t.If(first.name, client.IfVersion(first.is.version))
	}
	s := w.next()
	s.size = min(s.size, 5_000)
	if first.is.present && w.r.IntN(5) == 0 {
		s = state{}
	}
	for _, k := range group {
		if s.present {
			t.Put(k.name, value(k.name, s.gen, s.size), nil)
		} else {
			t.Delete(k.name, nil)
		}
	}
	res, err := t.Commit(ctx)
	if err == nil && res.Committed == fail {
		return fmt.Errorf("transaction on %s: committed=%t, but its condition must %s", first.name, res.Committed, map[bool]string{true: "fail", false: "hold"}[fail])
	}
	if fail {
		if err != nil && !unknown(err) {
			return fmt.Errorf("transaction on %s: %w", first.name, err)
		}
		if err == nil {
			w.ack("txn refused")
		}
		return nil
	}
	for _, k := range group {
		if err := w.wrote("txn", k, s, res.Revision, err); err != nil {
			return err
		}
	}
	return nil
}

// expire puts a key with a time to live that is over at once, and waits until it is gone.
func (w *owner) expire(ctx context.Context) error {
	name := fmt.Sprintf("w%02d/ttl", w.id)
	res, err := w.c.Put(ctx, name, []byte("x"), &client.PutOptions{TTL: time.Millisecond})
	if err != nil {
		if unknown(err) {
			return nil
		}
		return fmt.Errorf("put %s: %w", name, err)
	}
	w.changed(client.EventPut, name, res.Version)
	w.ack("put expiring")
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := w.c.Get(ctx, name, nil)
		if errors.Is(err, client.ErrNotFound) {
			return nil
		}
		if err != nil && !unknown(err) {
			return fmt.Errorf("get %s: %w", name, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s lived 1 ms and is there after 30 s", name)
		}
		if w.r.IntN(3) == 0 { // leave the rest to the expiry; it must come without anybody asking
			return nil
		}
	}
}

// check reads a key and compares it with what it must hold, resolving an unknown outcome.
func (w *owner) check(ctx context.Context, k *key) error {
	e, err := w.c.Get(ctx, k.name, nil)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		if unknown(err) {
			return nil
		}
		return fmt.Errorf("get %s: %w", k.name, err)
	}
	return k.settle(err == nil, e.Version, e.Value)
}

// settle holds what was read against what is known.
func (k *key) settle(present bool, version uint64, got []byte) error {
	matches := func(s state) bool {
		if s.present != present {
			return false
		}
		return !present || ((s.version == 0 || s.version == version) && bytes.Equal(got, value(k.name, s.gen, s.size)))
	}
	switch {
	case present && version < k.highest:
		return fmt.Errorf("%s: version went back from %d to %d", k.name, k.highest, version)
	case k.maybe != nil && matches(*k.maybe):
		k.is = *k.maybe
	case !matches(k.is):
		var gen uint64
		if len(got) >= 8 {
			gen = binary.LittleEndian.Uint64(got)
		}
		return fmt.Errorf("%s: found present=%t version=%d generation=%d of %d bytes; known %+v, maybe %+v", k.name, present, version, gen, len(got), k.is, k.maybe)
	}
	k.maybe = nil
	if present {
		k.is.version, k.highest = version, version
	}
	return nil
}

// checkGroup requires that all keys of a group are of one generation.
func (w *owner) checkGroup(ctx context.Context, group []*key) error {
	var names []string
	for _, k := range group {
		names = append(names, k.name)
	}
	res, err := w.c.BatchGet(ctx, names, nil)
	if err != nil {
		if unknown(err) {
			return nil
		}
		return fmt.Errorf("batch get %s: %w", names[0], err)
	}
	var version uint64
	for i, k := range group {
		present := res[i].Err == nil
		if !present && !errors.Is(res[i].Err, client.ErrNotFound) {
			return fmt.Errorf("batch get %s: %w", k.name, res[i].Err)
		}
		if i > 0 && present && res[i].Version != version {
			return fmt.Errorf("%s is at revision %d and %s at %d: a transaction is half there", names[0], version, k.name, res[i].Version)
		}
		version = res[i].Version
		if err := k.settle(present, res[i].Version, res[i].Value); err != nil {
			return err
		}
	}
	return nil
}

// verify checks every key of the owner, one by one and by listing.
func (w *owner) verify(ctx context.Context) error {
	for _, k := range w.keys {
		if err := w.check(ctx, k); err != nil {
			return err
		}
	}
	for _, g := range w.groups {
		if err := w.checkGroup(ctx, g); err != nil {
			return err
		}
	}
	known := map[string]*key{}
	for _, k := range w.keys {
		known[k.name] = k
	}
	listed := map[string]bool{}
	for e, err := range w.c.List(ctx, &client.ListOptions{Prefix: fmt.Sprintf("w%02d/k", w.id), KeysOnly: true}) {
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		k := known[e.Key]
		if k == nil || !k.is.present || k.is.version != e.Version {
			return fmt.Errorf("list shows %s at version %d; known %+v", e.Key, e.Version, k)
		}
		listed[e.Key] = true
	}
	for _, k := range w.keys {
		if k.is.present && !listed[k.name] {
			return fmt.Errorf("list misses %s", k.name)
		}
	}
	return nil
}
