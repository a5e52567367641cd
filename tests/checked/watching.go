package checked

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"kvstore/client"
	partition "kvstore/components/key" // key is an owner's here
	"kvstore/components/promptcache"
	"kvstore/components/ring"
)

// watching is the watchers of a Load, and what they are held against.
type watching struct {
	load     *Load
	clients  []*client.Client // of watchers, when they have their own
	witness  *watcher         // of keys
	watchers []*watcher       // also the witnesses
	keys     *journal
	blocks   *journal
	ring     *ring.Map

	cancel context.CancelFunc // nil before they began
	all    sync.WaitGroup
	wrong  chan error // at most one of each watcher

	marked int // marks so far

	mu        sync.Mutex
	outsiders []*Account // guarded by mu
}

// marks is the scope of blocks that nobody owns; see mark.
var marks = client.Scope{"model": "checked-marks"}

const markBytes = 8

func (l *Load) newWatching(ctx context.Context) (*watching, error) {
	w := &watching{load: l}
	ks, err := l.clients[0].GetKeyspace(ctx, "default")
	if err != nil {
		return nil, err
	}
	if w.ring, err = ring.New(ks.Uid, int(ks.Shards)); err != nil {
		return nil, err
	}
	clients := l.clients
	if len(l.cfg.WatchEndpoints) > 0 {
		for i := range 4 {
			c, err := l.client(ctx, l.cfg.WatchEndpoints, i, true)
			if err != nil {
				w.close()
				return nil, err
			}
			w.clients = append(w.clients, c)
		}
		clients = w.clients
	}
	rule := partition.HashTag()
	for _, blocks := range []bool{false, true} {
		x := newWatcher(Kind{Name: "the witness", WatchOptions: client.WatchOptions{All: true}, Blocks: blocks}, l.clients[:1], l.cfg.Seed)
		x.stays = true
		w.watchers = append(w.watchers, x)
		if blocks {
			w.blocks = newJournal(x.Account, func(name string) int {
				return w.ring.Owner(promptcache.Slot(PromptNamespace, [16]byte([]byte(name)), []byte(name[17:]), 0, 0))
			})
			continue
		}
		w.witness = x
		w.keys = newJournal(x.Account, func(name string) int { return w.ring.Owner(ring.Slot("default", rule.Partition([]byte(name)))) })
	}
	kinds := l.cfg.Watchers
	if kinds == nil {
		kinds = Kinds()
	}
	for i, k := range kinds {
		w.watchers = append(w.watchers, newWatcher(k, clients, l.cfg.Seed+uint64(i)))
	}
	w.wrong = make(chan error, len(w.watchers))
	return w, nil
}

func (w *watching) close() {
	if w.cancel != nil {
		w.cancel()
		w.all.Wait()
	}
	for _, c := range w.clients {
		_ = c.Close()
	}
}

// start begins, once; when it returns the witnesses are told of everything.
func (w *watching) start(ctx context.Context) {
	if w.cancel != nil {
		return
	}
	ctx, w.cancel = context.WithCancel(ctx)
	begin := func(witnesses bool) {
		for _, x := range w.watchers {
			if x.stays == witnesses {
				w.all.Go(func() {
					if err := x.run(ctx); err != nil {
						w.wrong <- err
					}
				})
			}
		}
	}
	begin(true)
	for !w.keys.witness.synced() || !w.blocks.witness.synced() {
		if len(w.wrong) > 0 || !pause(ctx) {
			return
		}
	}
	begin(false) // nobody knows of more than the witnesses
}

// pause is between two looks at what others do; it is false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

// patience is how long watchers may take to be told what has happened.
const patience = time.Minute

// await waits until wrong has nothing to say.
func await(ctx context.Context, wrong func() string) error {
	for deadline := time.Now().Add(patience); ; {
		says := wrong()
		if says == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after a minute %s", says)
		}
		if !pause(ctx) {
			return context.Cause(ctx)
		}
	}
}

// Outsider is the account of a watcher who is not one of the Load's: another process, say. He begins after the Load does. What it takes is judged with the others' by Verify, once that
// has had it told all there is.
func (l *Load) Outsider(k Kind) *Account {
	a := newAccount(k)
	l.watch.mu.Lock()
	defer l.watch.mu.Unlock()
	l.watch.outsiders = append(l.watch.outsiders, a)
	return a
}

// accounts are all but the witnesses'.
func (w *watching) accounts() (all []*Account) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.watchers {
		if !x.stays {
			all = append(all, x.Account)
		}
	}
	return append(all, w.outsiders...)
}

// Told is what watchers were told, by the names of their kinds: how many events of each type and in all, and what befell them. Nobody works meanwhile.
func (l *Load) Told() map[string]map[string]int {
	total := map[string]map[string]int{}
	for _, a := range append(l.watch.accounts(), l.watch.keys.witness, l.watch.blocks.witness) {
		a.mu.Lock()
		to := total[a.kind.Name]
		if to == nil {
			to = map[string]int{}
			total[a.kind.Name] = to
		}
		for what, n := range a.told {
			to[what] += n
		}
		a.mu.Unlock()
	}
	return total
}

// Events is how many events watchers were told so far.
func (l *Load) Events() (n int) {
	for _, told := range l.Told() {
		n += told["events"]
	}
	return n
}

// mark writes to each shard, keys and blocks, so that each tells the witnesses how far it has come.
func (w *watching) mark(ctx context.Context) error {
	w.marked++
	began := time.Now()
	var puts []client.PutItem
	var blocks []client.NewBlock
	name := func(id []byte) string { return scopeName(marks) + "/" + string(id) }
	for s := range w.ring.Shards() {
		for n := 0; ; n++ {
			if k := fmt.Sprintf("mark/%d/%d", s, n); w.keys.shardOf(k) == s {
				puts = append(puts, client.PutItem{Key: k, Value: fmt.Append(nil, w.marked)})
				break
			}
		}
		for n := 0; ; n++ {
			if id := fmt.Appendf(nil, "mark-%d-%d-%d", w.marked, s, n); w.blocks.shardOf(name(id)) == s {
				blocks = append(blocks, client.NewBlock{BlockRef: client.BlockRef{ID: id}, Data: make([]byte, markBytes)})
				break
			}
		}
	}
	c := w.load.clients[0]
	put, err := c.BatchPut(ctx, puts)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	for i := range put {
		if put[i].Err != nil {
			return fmt.Errorf("mark %s: %w", puts[i].Key, put[i].Err)
		}
		w.keys.done(client.EventPut, puts[i].Key, put[i].Version, began)
	}
	written, err := c.In("", PromptNamespace).Prompt(marks).Write(ctx, blocks, nil)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	for i := range written {
		if written[i].Err != nil {
			return fmt.Errorf("mark %s: %w", blocks[i].ID, written[i].Err)
		}
	}
	return await(ctx, func() string {
		for i := range put {
			if v := w.keys.witness.version(puts[i].Key); v < put[i].Version {
				return fmt.Sprintf("the witness knows %s at %d, it is at %d", puts[i].Key, v, put[i].Version)
			}
		}
		for i := range blocks {
			if w.blocks.witness.version(name(blocks[i].ID)) == 0 {
				return fmt.Sprintf("the witness was not told of block %s", blocks[i].ID)
			}
		}
		return ""
	})
}

// verify waits until watchers were told what there is, while nobody writes, and judges all that they were told.
func (w *watching) verify(ctx context.Context) error {
	if err := w.mark(ctx); err != nil {
		return err
	}
	for _, a := range w.accounts() {
		err := await(ctx, func() string {
			there, err := w.there(ctx, &a.kind)
			if err != nil {
				return err.Error()
			}
			return a.differs(there, w.foreign)
		})
		if err != nil {
			return fmt.Errorf("watcher of %s: %w", a.kind.Name, err)
		}
	}
	records := map[*journal][]record{}
	for _, a := range w.accounts() {
		j := w.keys
		if a.kind.Blocks {
			j = w.blocks
		}
		records[j] = append(records[j], a.record())
	}
	// Who began again meanwhile may be ahead of the witness, where nothing happened that concerns him.
	if err := w.mark(ctx); err != nil {
		return err
	}
	var errs []error
	for _, j := range []*journal{w.keys, w.blocks} {
		errs = append(errs, w.judge(j, records[j]))
	}
	return errors.Join(errs...)
}

func (w *watching) judge(j *journal, records []record) error {
	for i := range records {
		if !j.reached(&records[i]) {
			return fmt.Errorf("the witness was not told what a watcher of %s was", records[i].kind.Name)
		}
	}
	acks := j.answered()
	if err := j.follow(); err != nil {
		return err
	}
	errs := []error{j.acknowledged(acks)}
	for i := range records {
		if err := j.judge(&records[i], acks); err != nil {
			errs = append(errs, fmt.Errorf("watcher of %s: %w", records[i].kind.Name, err))
		}
	}
	return errors.Join(errs...)
}

// there is what there is of what a kind of watcher asks for, by version; that of blocks is 1.
func (w *watching) there(ctx context.Context, k *Kind) (map[string]uint64, error) {
	there := map[string]uint64{}
	c := w.load.clients[0]
	if !k.Blocks {
		prefix := k.Prefix
		if k.Key != "" {
			prefix = k.Key
		}
		for e, err := range c.List(ctx, &client.ListOptions{Prefix: prefix, KeysOnly: true, PageSize: 1000}) {
			if err != nil {
				return nil, fmt.Errorf("list: %w", err)
			}
			if k.concerns(e.Key) {
				there[e.Key] = e.Version
			}
		}
		return there, nil
	}
	scopes := []client.Scope{k.Scope}
	if k.Scope == nil {
		scopes = []client.Scope{marks}
		for _, o := range w.load.prompts {
			scopes = append(scopes, ownScope(o.id))
		}
	}
	for _, s := range scopes {
		for b, err := range c.In("", PromptNamespace).Prompt(s).List(ctx) {
			if err != nil {
				return nil, fmt.Errorf("list blocks: %w", err)
			}
			there[scopeName(s)+"/"+string(b.ID)] = 1
		}
	}
	return there, nil
}

// foreign tells whether a key is written by others, also now.
func (w *watching) foreign(key string) bool {
	return w.load.cfg.Others != "" && strings.HasPrefix(key, w.load.cfg.Others)
}

// What Compact writes is more than a shard keeps of its changes (4 MiB): so much of them that what came before is gone.
const (
	burstPuts  = 12
	burstItems = 400
	burstBytes = 1000
)

// Compact has the watchers that sleep leave, writes to one shard until their changes are not kept any more, and has them come back: those of mode LATEST must
// be told the state anew, those of mode ALL that changes are gone. Others, who read meanwhile, go on; the witness must. Load may be at work.
func (l *Load) Compact(ctx context.Context) error {
	w := l.watch
	var sleepers []*watcher
	for _, x := range w.watchers {
		if x.kind.Sleeps {
			sleepers = append(sleepers, x)
		}
	}
	err := await(ctx, func() string {
		for _, x := range sleepers {
			if !x.synced() {
				return "a watcher of " + x.kind.Name + " has not begun"
			}
		}
		return ""
	})
	if err != nil {
		return err
	}
	times := make([]int, len(sleepers))
	for i, x := range sleepers {
		x.sleep()
		times[i] = x.times()
	}
	err = w.burst(ctx)
	for _, x := range sleepers {
		x.wake()
	}
	if err != nil {
		return err
	}
	return await(ctx, func() string {
		for i, x := range sleepers {
			if x.times() == times[i] {
				return fmt.Sprintf("the changes that a watcher of %s has missed are gone, and he was not told so", x.kind.Name)
			}
		}
		return ""
	})
}

// burst writes, and no faster than the witness can read.
func (w *watching) burst(ctx context.Context) error {
	for range burstPuts {
		began := time.Now()
		var items []client.PutItem
		for i := range burstItems {
			items = append(items, client.PutItem{Key: fmt.Sprintf("{burst}/%d", i), Value: value("burst", uint64(i), burstBytes)})
		}
		out, err := w.load.clients[0].BatchPut(ctx, items)
		if err != nil {
			return fmt.Errorf("burst: %w", err)
		}
		for i := range out {
			if out[i].Err != nil {
				return fmt.Errorf("burst: %s: %w", items[i].Key, out[i].Err)
			}
			w.keys.done(client.EventPut, items[i].Key, out[i].Version, began)
		}
		last := len(items) - 1
		err = await(ctx, func() string {
			if v := w.witness.version(items[last].Key); v < out[last].Version {
				return fmt.Sprintf("the witness knows %s at %d, it is at %d", items[last].Key, v, out[last].Version)
			}
			return ""
		})
		if err != nil {
			return err
		}
	}
	return nil
}
