package checked

import (
	"errors"
	"fmt"
	"maps"
	"sort"
	"sync"
	"time"

	"kvstore/client"
)

// journal is all that happened in a namespace, in order, as the witness was told: a watcher who never leaves and is never too slow. He is no better than
// others, so he is held against what clients were answered, and all others against him.
type journal struct {
	witness *Account
	shardOf func(key string) int

	changes map[string][]change // by key, in order
	first   map[string]uint64   // what was there before them
	from    map[int]uint64      // when that was, by shard
	to      map[int]uint64      // when the last of them was
	counted map[string]int      // acknowledged changes without a version, by kind and key

	mu   sync.Mutex
	acks []ack // that were not judged yet; guarded by mu
}

// ack is a change that a client was told is done.
type ack struct {
	key          string
	kind         client.EventType
	version      uint64 // 0: it was not told
	began, ended time.Time
}

func newJournal(witness *Account, shardOf func(string) int) *journal {
	return &journal{witness: witness, shardOf: shardOf, changes: map[string][]change{}, counted: map[string]int{}}
}

// done notes a change that is acknowledged now.
func (j *journal) done(kind client.EventType, key string, version uint64, began time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acks = append(j.acks, ack{key: key, kind: kind, version: version, began: began, ended: time.Now()})
}

// record is what a watcher was told since the last judgement, at one moment.
type record struct {
	kind  *Kind
	parts []part
	known map[string]seen
	whole bool
}

// record takes what was told since the last time out of an account.
func (a *Account) record() record {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := record{kind: &a.kind, known: maps.Clone(a.known), whole: a.whole}
	for _, p := range a.parts {
		if p.from != nil { // otherwise it was broken off while the state was told, or is the last
			c := *p
			c.to = maps.Clone(p.to)
			r.parts = append(r.parts, c)
		}
	}
	if len(a.parts) > 0 {
		last := a.parts[len(a.parts)-1]
		if last.from != nil { // it goes on from here
			last = &part{from: maps.Clone(last.to), to: last.to}
		}
		a.parts = []*part{last}
	}
	return r
}

// reached tells whether the witness was told all that a watcher was.
func (j *journal) reached(r *record) bool {
	j.witness.mu.Lock()
	defer j.witness.mu.Unlock()
	if len(j.witness.parts) == 0 {
		return false
	}
	to := j.witness.parts[len(j.witness.parts)-1].to
	for i := range r.parts {
		for shard, revision := range r.parts[i].to {
			if to[shard] < revision {
				return false
			}
		}
	}
	return true
}

// follow takes what the witness was told into the journal.
func (j *journal) follow() error {
	r := j.witness.record()
	if len(r.parts) != 1 || j.from != nil && r.parts[0].first != nil {
		return errors.New("the witness was told the state anew, or that changes are gone, and he was never slow")
	}
	p := &r.parts[0]
	if j.from == nil {
		j.from, j.first = p.from, p.first
	}
	for _, c := range p.log {
		j.changes[c.key] = append(j.changes[c.key], c)
	}
	j.to = p.to
	return nil
}

// at is the version of what was there under a key at a revision of its shard; 0: nothing.
func (j *journal) at(key string, revision uint64) uint64 {
	all := j.changes[key]
	n := sort.Search(len(all), func(i int) bool { return all[i].version > revision })
	switch {
	case n == 0:
		return j.first[key]
	case !all[n-1].saves:
		return 0
	}
	return all[n-1].version
}

// find is the change of a key to a version; nil: there was none.
func (j *journal) find(key string, version uint64) *change {
	all := j.changes[key]
	n := sort.Search(len(all), func(i int) bool { return all[i].version >= version })
	if n == len(all) || all[n].version != version {
		return nil
	}
	return &all[n]
}

// answered are the acknowledgements since the last time.
func (j *journal) answered() []ack {
	j.mu.Lock()
	defer j.mu.Unlock()
	acks := j.acks
	j.acks = nil
	return acks
}

// acknowledged judges what clients were answered: all of that must have happened.
func (j *journal) acknowledged(acks []ack) error {
	for i := range acks {
		a := &acks[i]
		if a.version == 0 {
			id := a.kind.String() + " " + a.key
			j.counted[id]++
			n := 0
			for _, c := range j.changes[a.key] {
				if c.kind == a.kind {
					n++
				}
			}
			if n < j.counted[id] {
				return fmt.Errorf("%s was acknowledged %d times, and told %d times", id, j.counted[id], n)
			}
			continue
		}
		if c := j.find(a.key, a.version); c == nil || c.kind != a.kind {
			return fmt.Errorf("%s %q to %d was acknowledged, and not told; told is %+v", a.kind, a.key, a.version, c)
		}
	}
	return nil
}

// judge holds what a watcher was told against what happened, and against when clients were answered. The journal has all that he was told.
func (j *journal) judge(r *record, acks []ack) error {
	for i := range r.parts {
		p := &r.parts[i]
		if err := j.begins(r.kind, p, acks); err != nil {
			return err
		}
		var err error
		if r.kind.All {
			err = j.complete(r.kind, p)
		} else {
			err = j.happened(p)
		}
		if err != nil {
			return err
		}
	}
	if !r.whole || len(r.parts) == 0 {
		return nil
	}
	return j.state(r.kind, r.known, r.parts[len(r.parts)-1].to)
}

// begins judges where a part begins: with what was there at one revision of each shard, neither before what was acknowledged when it was asked for, nor after
// what was asked for when it had begun.
func (j *journal) begins(k *Kind, p *part, acks []ack) error {
	if p.first != nil {
		known := make(map[string]seen, len(p.first))
		for key, v := range p.first {
			known[key] = seen{version: v}
		}
		if err := j.state(k, known, p.from); err != nil {
			return fmt.Errorf("the state that was told first is not that of one revision: %w", err)
		}
	}
	if p.begun.IsZero() {
		return nil
	}
	for i := range acks {
		a := &acks[i]
		from, followed := p.from[j.shardOf(a.key)]
		switch {
		case a.version == 0 || !followed || !k.concerns(a.key):
		case !p.asked.IsZero() && a.ended.Before(p.asked) && a.version > from:
			return fmt.Errorf("%q at %d was acknowledged before the watch was asked for, which begins at %d", a.key, a.version, from)
		case a.began.After(p.begun) && a.version <= from:
			return fmt.Errorf("%q at %d was written after the watch had begun, at %d", a.key, a.version, from)
		}
	}
	return nil
}

// state judges what is known: it is what was there at these revisions.
func (j *journal) state(k *Kind, known map[string]seen, at map[int]uint64) error {
	check := func(key string) error {
		revision, followed := at[j.shardOf(key)]
		if !followed || !k.concerns(key) {
			return nil
		}
		if was, is := j.at(key, revision), known[key].there(); was != is {
			return fmt.Errorf("at %d %q had version %d, known is %d", revision, key, was, is)
		}
		return nil
	}
	for key := range j.first {
		if err := check(key); err != nil {
			return err
		}
	}
	for key := range j.changes {
		if err := check(key); err != nil {
			return err
		}
	}
	for key, s := range known {
		if !s.gone && j.at(key, at[j.shardOf(key)]) != s.version {
			return fmt.Errorf("%q is known at %d, and was not there", key, s.version)
		}
	}
	return nil
}

// complete judges a part of mode ALL: every change between its ends was told, and nothing else.
func (j *journal) complete(k *Kind, p *part) error {
	told := map[string][]*change{}
	for i := range p.log {
		c := &p.log[i]
		shard := j.shardOf(c.key)
		if c.version <= p.from[shard] || c.version > p.to[shard] {
			return fmt.Errorf("%s %q to %d was told between %d and %d", c.kind, c.key, c.version, p.from[shard], p.to[shard])
		}
		told[c.key] = append(told[c.key], c)
	}
	for key, all := range j.changes {
		if !k.concerns(key) {
			continue
		}
		shard := j.shardOf(key)
		from, to := p.from[shard], p.to[shard]
		mine := told[key]
		for i := sort.Search(len(all), func(i int) bool { return all[i].version > from }); i < len(all) && all[i].version <= to; i++ {
			if len(mine) == 0 || mine[0].version != all[i].version {
				return fmt.Errorf("%s %q to %d was not told, though %d to %d of shard %d was", all[i].kind, key, all[i].version, from, to, shard)
			}
			mine = mine[1:]
		}
	}
	return j.happened(p)
}

// happened judges changes one by one: each is what happened.
func (j *journal) happened(p *part) error {
	for i := range p.log {
		c := &p.log[i]
		is := j.find(c.key, c.version)
		if is == nil {
			return fmt.Errorf("%s %q to %d was told, and did not happen", c.kind, c.key, c.version)
		}
		before := j.find(c.key, c.prev)
		switch {
		case c.kind != is.kind:
			return fmt.Errorf("%s %q to %d was told, it was a %s", c.kind, c.key, c.version, is.kind)
		case c.sum != 0 && is.sum != 0 && c.sum != is.sum:
			return fmt.Errorf("%q at %d was told with another value", c.key, c.version)
		case c.before != 0 && before != nil && before.sum != 0 && c.before != before.sum:
			return fmt.Errorf("%q at %d was told with another value before it than that of %d", c.key, c.version, c.prev)
		}
	}
	return nil
}
