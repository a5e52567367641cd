package checked

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"kvstore/client"
)

// Kind is what a watcher asks for, and how he behaves.
type Kind struct {
	// Name is what he is called in errors and reports.
	Name string
	// WatchOptions say what he asks for; State and Token are left to him.
	client.WatchOptions
	// Now begins with what is acknowledged from now on; otherwise the state comes first.
	Now bool
	// Blocks: he watches the namespace of prompts.
	Blocks bool
	// Slow is his pause after each batch.
	Slow time.Duration
	// Sleeps has him leave before a Load.Compact, and come back when what he missed is not kept any more.
	Sleeps bool
}

// concerns tells whether a key, or a block of a scope, is what he asked for.
func (k *Kind) concerns(name string) bool {
	switch {
	case k.Scope != nil:
		return strings.HasPrefix(name, scopeName(k.Scope)+"/")
	case k.Key != "":
		return name == k.Key
	}
	return strings.HasPrefix(name, k.Prefix)
}

// Account is what a watcher was told. Take holds each batch against those before it: changes of a key come in order, each once, none is missing, and
// what comes with them fits; what was told of a shard never goes back. What all watchers of a Load were told is judged by Load.Verify, against what clients
// were answered and against each other (journal).
//
// Its methods may be called from any goroutine.
type Account struct {
	kind Kind

	mu    sync.Mutex
	known map[string]seen // guarded by mu, as is all below
	whole bool            // known is everything that is there
	parts []*part         // since the last judgement; the last goes on
	told  map[string]int  // by type of event, and what else is worth counting
}

// seen is the last that was told of a key.
type seen struct {
	version uint64
	gone    bool
}

// there is the version of what is there; 0: nothing.
func (s seen) there() uint64 {
	if s.gone {
		return 0
	}
	return s.version
}

// part is what a watcher was told without a gap: from what was there, or from some revision of each shard on, up to another.
type part struct {
	asked time.Time         // when he asked for it; zero: he did not, it was a RESYNC
	state bool              // what is there comes first
	begun time.Time         // when he was told STARTED or SYNCED; zero: not yet
	from  map[int]uint64    // revisions then, by shard; nil: not begun
	first map[string]uint64 // what was there then; nil: not told
	to    map[int]uint64    // revisions that all up to which is told
	log   []change          // since it began
}

// change is what one event said.
type change struct {
	key           string
	kind          client.EventType
	version, prev uint64
	sum, before   uint64 // of the value and of the one before; 0: not told
	saves         bool   // there is something under the key after it
}

func newAccount(k Kind) *Account {
	return &Account{kind: k, told: map[string]int{}}
}

// Asked notes that the watcher asks, not to go on from a token.
func (a *Account) Asked() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin(&part{asked: time.Now(), state: !a.kind.Now})
}

// begin begins a part that hangs together with nothing before it. Mutex held.
func (a *Account) begin(p *part) {
	a.known, a.whole = map[string]seen{}, false
	p.to = map[int]uint64{}
	a.parts = append(a.parts, p)
}

// Count counts what else is worth telling of the watcher: see Load.Told.
func (a *Account) Count(what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told[what]++
}

// times tells how often the state was told anew, or could not be gone on from.
func (a *Account) times() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.told["RESYNC"] + a.told["COMPACTED"]
}

// synced tells whether the state was told, or all from now on is.
func (a *Account) synced() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.parts) > 0 && a.parts[len(a.parts)-1].from != nil
}

// version is that of what is there under a key, as far as he was told; 0: nothing.
func (a *Account) version(key string) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.known[key].there()
}

// Take takes the next batch.
func (a *Account) Take(b *client.WatchBatch) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.Resync {
		a.told["RESYNC"]++
		a.begin(&part{state: true})
	}
	if len(a.parts) == 0 {
		return errors.New("told, and has not asked")
	}
	p := a.parts[len(a.parts)-1]
	for i := range b.Events {
		if err := a.event(p, &b.Events[i]); err != nil {
			return err
		}
	}
	if a.whole {
		if err := a.groups(b); err != nil {
			return err
		}
	}
	if b.Token == nil {
		if b.Synced || b.Started {
			return errors.New("the watch has begun, and has no token")
		}
		return nil
	}
	if err := p.advance(b.Token); err != nil {
		return err
	}
	if p.from == nil && (b.Synced || b.Started) {
		p.begun, p.from = time.Now(), maps.Clone(p.to)
		if b.Synced {
			a.whole, p.first = true, make(map[string]uint64, len(a.known))
			for k, s := range a.known {
				if !s.gone {
					p.first[k] = s.version
				}
			}
		}
	}
	return nil
}

// advance takes note of a token.
func (p *part) advance(token []byte) error {
	return positions(token, func(shard int, revision uint64) error {
		if last := p.to[shard]; revision < last {
			return fmt.Errorf("of shard %d revision %d was told, and now it is at %d", shard, last, revision)
		}
		p.to[shard] = revision
		return nil
	})
}

// positions takes a token apart: how far each shard was told. Users cannot, and need not; the format is that of services/frontend.
func positions(token []byte, each func(shard int, revision uint64) error) error {
	const head = 1 + 8 // version, keyspace
	if len(token) < head+1 || token[0] != 1 {
		return fmt.Errorf("a token is %x", token)
	}
	_, n := binary.Uvarint(token[head:]) // version of the map
	for b := token[head+n:]; len(b) > 0; {
		var triple [3]uint64
		for i := range triple {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return fmt.Errorf("a token is %x", token)
			}
			triple[i], b = v, b[n:]
		}
		if err := each(int(triple[0]), triple[2]); err != nil {
			return err
		}
	}
	return nil
}

// nameOf is what a key, or a block, is called here.
func nameOf(e *client.Event) string {
	if e.Block != nil {
		return blockName(e.Block.ScopeID, e.Block.Ref.ID)
	}
	return e.Key
}

// event holds a change against what is known of its key. Mutex held.
func (a *Account) event(p *part, e *client.Event) error {
	kind := e.Type.String()
	a.told[kind]++
	a.told["events"]++
	name := nameOf(e)
	if !a.kind.concerns(name) {
		return fmt.Errorf("told of %q", name)
	}
	c := change{key: name, kind: e.Type, version: e.Version, prev: e.PrevVersion, saves: e.Type == client.EventPut || e.Type == client.EventStored}
	last, sure := a.known[name]
	sure = sure || p.state || a.whole // otherwise it may be there
	there := last.there() != 0
	switch {
	case e.Version == 0:
		return fmt.Errorf("%s %q has no version", kind, name)
	case e.Initial && (!p.state || p.from != nil):
		return fmt.Errorf("%q at %d is told as what was there, and no state is being told", name, e.Version)
	case e.Initial && there:
		return fmt.Errorf("%q is there twice, with versions %d and %d", name, last.version, e.Version)
	case e.Initial && !c.saves:
		return fmt.Errorf("%s %q at %d is told as what was there", kind, name, e.Version)
	case e.Version <= last.version && !e.Initial:
		return fmt.Errorf("%s %q to %d after %d", kind, name, e.Version, last.version)
	case e.Initial, !sure:
	case e.Block != nil && (e.Created != (c.saves && !there) || !c.saves && !there || c.saves && there && a.kind.All):
		return fmt.Errorf("%s %q to %d: created is %v, known was version %d: something is missing, or comes twice", kind, name, e.Version, e.Created, last.there())
	case e.Block != nil:
	case e.PrevVersion != last.there():
		return fmt.Errorf("%s %q to %d: version %d was before it, known is %d: something is missing, or comes twice", kind, name, e.Version, e.PrevVersion, last.there())
	case !c.saves && !there:
		return fmt.Errorf("%s %q to %d: nothing was there", kind, name, e.Version)
	}
	if !e.Initial && e.Block == nil && e.Created != (c.saves && e.PrevVersion == 0) {
		return fmt.Errorf("%s %q to %d: created is %v, version %d was before it", kind, name, e.Version, e.Created, e.PrevVersion)
	}
	if err := a.content(&c, e); err != nil {
		return err
	}
	a.known[name] = seen{version: e.Version, gone: !c.saves}
	if p.from != nil {
		p.log = append(p.log, c)
	}
	return nil
}

// content checks what comes with a change. Mutex held.
func (a *Account) content(c *change, e *client.Event) error {
	if e.Block != nil {
		return checkBlock(e)
	}
	if c.saves && !a.kind.KeysOnly && !e.ValueLeftOut {
		if int64(len(e.Value)) != e.Size {
			return fmt.Errorf("%q at %d comes with %d of %d bytes", e.Key, e.Version, len(e.Value), e.Size)
		}
		if err := checkValue(e.Key, e.Value); err != nil {
			return fmt.Errorf("%q at %d: %w", e.Key, e.Version, err)
		}
		c.sum = xxh3.Hash(e.Value)
	}
	if e.PrevValue != nil {
		if !a.kind.PrevValue {
			return fmt.Errorf("%q at %d comes with the value before, for which nobody asked", e.Key, e.Version)
		}
		a.told["values before"]++
		c.before = xxh3.Hash(e.PrevValue)
	}
	return nil
}

// checkValue tells whether a value is one that an owner wrote to the key, if it is an owner's.
func checkValue(key string, got []byte) error {
	if len(key) < 4 || key[0] != 'w' && key[:2] != "{w" || strings.HasSuffix(key, "/ttl") {
		return nil
	}
	if len(got) < 8 || !bytes.Equal(got, value(key, binary.LittleEndian.Uint64(got), len(got))) {
		return fmt.Errorf("nobody wrote the %d bytes that it comes with", len(got))
	}
	return nil
}

// groups are written by transactions alone: after each batch all keys of one have the same version, or none is there. Mutex held.
func (a *Account) groups(b *client.WatchBatch) error {
	for i := range b.Events {
		key := b.Events[i].Key
		group, _, ok := strings.Cut(key, "}/")
		if !ok || !strings.Contains(group, "-g") || a.kind.Key != "" {
			continue
		}
		for m := range 4 {
			if other := fmt.Sprintf("%s}/%d", group, m); a.known[other].there() != a.known[key].there() {
				return fmt.Errorf("half of a transaction: %q has version %d, %q has %d", key, a.known[key].there(), other, a.known[other].there())
			}
		}
	}
	return nil
}

// differs tells how what is known is not what is there.
func (a *Account) differs(there map[string]uint64, foreign func(string) bool) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.whole && !a.kind.Now {
		return "the state has not been told"
	}
	for k, v := range there {
		s, told := a.known[k]
		same := s.there() == v || a.kind.Blocks && s.there() != 0 // lists tell no versions of blocks
		if !same && (told || a.whole) && a.kind.concerns(k) && !foreign(k) {
			return fmt.Sprintf("%q has version %d, known is %d", k, v, s.there())
		}
	}
	for k, s := range a.known {
		if there[k] == 0 && !s.gone && !foreign(k) {
			return fmt.Sprintf("%q is not there, known is %d", k, s.version)
		}
	}
	return ""
}
