package checked

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"kvstore/client"
	"kvstore/components/promptcache"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// PromptNamespace is where blocks are written; it has no capacity, so that nothing is ever evicted.
const PromptNamespace = "checked-prompt"

func createPromptNamespace(ctx context.Context, c *client.Client) error {
	_, err := c.CreateNamespace(ctx, &kvstorev1.Namespace{Name: PromptNamespace, Kind: kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT})
	return err
}

// ownScope is the scope of an owner's blocks.
func ownScope(id int) client.Scope { return client.Scope{"model": fmt.Sprintf("checked-%d", id)} }

// scopeName is what the names of a scope's blocks begin with here.
func scopeName(s client.Scope) string {
	form, err := promptcache.Canonical(s)
	if err != nil {
		panic(err) // scopes are ours
	}
	id := promptcache.ScopeOf(form)
	return string(id[:])
}

// blockName is what a block is called here.
func blockName(scope [16]byte, id []byte) string { return string(scope[:]) + "/" + string(id) }

// promptOwner owns a scope of blocks. A block is written once; stored[i] says what is known of block i.
type promptOwner struct {
	id     int
	p      *client.Prompt
	scope  string // scopeName
	r      *rand.Rand
	stored map[int]presence
	next   int
	tally
}

// presence is what is known of a block.
type presence uint8

const (
	absent presence = iota
	present
	either
)

func newPromptOwner(id int, c *client.Client, seed uint64, t tally) *promptOwner {
	return &promptOwner{
		id: id, p: c.In("", PromptNamespace).Prompt(ownScope(id)), scope: scopeName(ownScope(id)),
		r: rand.New(rand.NewPCG(seed, uint64(1000+id))), stored: map[int]presence{}, tally: t,
	}
}

// chain is how many blocks a chain has.
const chain = 32

func blockID(owner, i int) []byte { return fmt.Appendf(nil, "block-%d-%d", owner, i) }

func (w *promptOwner) ref(i int) client.BlockRef {
	return client.BlockRef{ID: blockID(w.id, i), Depth: uint32(i % chain)}
}

// blockParent is the id of the block before one; nil: it is the first.
func blockParent(owner, i int) []byte {
	if i%chain == 0 {
		return nil
	}
	return blockID(owner, i-1)
}

func blockSize(i int) int {
	sizes := []int{64, 1024, 4096, 16 << 10, 16 << 10, 300_000}
	return sizes[i%len(sizes)]
}

func (w *promptOwner) data(i int) []byte { return value(string(w.ref(i).ID), uint64(i), blockSize(i)) }

// checkBlock tells whether an event of a block is of one that was written, and says all of it: its scope, unless that has been emptied since, its parent, depth
// and size.
func checkBlock(e *client.Event) error {
	b := e.Block
	var owner, i int
	scope, parent, depth, size := marks, []byte(nil), uint32(0), markBytes
	if _, err := fmt.Sscanf(string(b.Ref.ID), "block-%d-%d", &owner, &i); err == nil {
		scope, parent, depth, size = ownScope(owner), blockParent(owner, i), uint32(i%chain), blockSize(i)
	} else if !strings.HasPrefix(string(b.Ref.ID), "mark-") {
		return fmt.Errorf("block %q was written by nobody", b.Ref.ID)
	}
	switch {
	case string(b.ScopeID[:]) != scopeName(scope) || b.Scope != nil && !maps.Equal(b.Scope, scope):
		return fmt.Errorf("block %q is told as one of scope %v", b.Ref.ID, b.Scope)
	case !bytes.Equal(b.Parent, parent):
		return fmt.Errorf("block %q is told with parent %q", b.Ref.ID, b.Parent)
	case b.Ref.Depth != depth || b.Ref.Rank != 0 || b.Ref.Group != 0:
		return fmt.Errorf("block %q is told with depth %d, rank %d, group %d", b.Ref.ID, b.Ref.Depth, b.Ref.Rank, b.Ref.Group)
	case e.Size != int64(size):
		return fmt.Errorf("block %q of %d bytes is told with %d", b.Ref.ID, size, e.Size)
	case (e.Type == client.EventRemoved) != (b.Why != ""):
		return fmt.Errorf("%s of block %q is told with the reason %q", e.Type, b.Ref.ID, b.Why)
	case b.Why != "" && b.Why != "DELETED" && b.Why != "CLEARED":
		return fmt.Errorf("block %q is told to be %s, and nobody did that", b.Ref.ID, b.Why)
	}
	return nil
}

func (w *promptOwner) step(ctx context.Context) error {
	w.begins()
	if w.r.IntN(100) == 0 {
		return w.clear(ctx)
	}
	switch w.r.IntN(7) {
	case 0:
		return w.delete(ctx)
	case 1, 2:
		return w.read(ctx, w.some(8))
	case 3:
		return w.pin(ctx)
	case 4:
		return w.lookup(ctx, w.some(16))
	}
	return w.write(ctx)
}

// passing tells whether an error only means that the outcome is not known.
func passing(err error) bool { return unknown(err) || notApplied(err) }

func (w *promptOwner) write(ctx context.Context) error {
	var blocks []client.NewBlock
	var ids []int
	for range 1 + w.r.IntN(8) {
		i := w.next
		w.next++
		if w.next > 400 { // begin again: most are there, which is a success
			w.next = 0
		}
		ids = append(ids, i)
		blocks = append(blocks, client.NewBlock{BlockRef: w.ref(i), Parent: blockParent(w.id, i), Data: w.data(i)})
	}
	res, err := w.p.Write(ctx, blocks, nil)
	for n, i := range ids {
		itemErr := err
		if err == nil {
			itemErr = res[n].Err
		}
		switch {
		case itemErr == nil && res[n].Stored && w.stored[i] == present:
			return fmt.Errorf("block %d was stored, and is stored again", i)
		case itemErr == nil: // found there is right too: the first try of a repeated call may have stored it
			w.stored[i] = present
			if res[n].Stored {
				w.changed(client.EventStored, w.scope+"/"+string(blockID(w.id, i)), 0)
			}
			w.ack("block write")
		case passing(itemErr):
			if w.stored[i] != present {
				w.stored[i] = either
			}
		default:
			return fmt.Errorf("write of block %d: %w", i, itemErr)
		}
	}
	return nil
}

func (w *promptOwner) some(n int) (ids []int) {
	for i := range w.stored {
		if ids = append(ids, i); len(ids) == n {
			break
		}
	}
	return ids
}

func (w *promptOwner) refs(ids []int) (refs []client.BlockRef) {
	for _, i := range ids {
		refs = append(refs, w.ref(i))
	}
	return refs
}

// read requires that every block known to be there comes, and comes right.
func (w *promptOwner) read(ctx context.Context, ids []int) error {
	if len(ids) == 0 {
		return nil
	}
	for b, err := range w.p.Read(ctx, w.refs(ids), &client.ReadOptions{SkipMisses: true}) {
		if err != nil {
			if passing(err) {
				return nil
			}
			return fmt.Errorf("read: %w", err)
		}
		i := ids[b.Index]
		switch {
		case b.Miss && w.stored[i] == present:
			usage, err := w.p.Usage(ctx)
			return fmt.Errorf("block %d was acknowledged and is missing (%d evicted, %d damaged since the start; %s)", i, usage.EvictedBlocks, usage.DamagedBlocks, fmt.Sprint(err))
		case !b.Miss && w.stored[i] == absent:
			return fmt.Errorf("block %d was deleted and is there", i)
		case !b.Miss && !bytes.Equal(b.Data, w.data(i)):
			return fmt.Errorf("block %d has wrong bytes", i)
		case b.Miss:
			w.stored[i] = absent
		default:
			w.stored[i] = present
		}
	}
	return nil
}

// lookup requires that every block known to be there is found with its length, and none that was deleted.
func (w *promptOwner) lookup(ctx context.Context, ids []int) error {
	if len(ids) == 0 {
		return nil
	}
	f, err := w.p.Lookup(ctx, w.refs(ids), &client.LookupOptions{All: true})
	if err != nil {
		if passing(err) {
			return nil
		}
		return fmt.Errorf("lookup: %w", err)
	}
	found := map[int]bool{}
	for _, b := range f.Blocks {
		i := ids[b.Index]
		found[i] = true
		if want := int64(len(w.data(i))); b.Size != want {
			return fmt.Errorf("lookup: block %d has %d bytes, want %d", i, b.Size, want)
		}
	}
	for _, i := range ids {
		if (found[i] && w.stored[i] == absent) || (!found[i] && w.stored[i] == present) {
			return fmt.Errorf("lookup found block %d there=%t, known %d", i, found[i], w.stored[i])
		}
		w.stored[i] = absent
		if found[i] {
			w.stored[i] = present
		}
	}
	w.ack("block lookup")
	return nil
}

func (w *promptOwner) delete(ctx context.Context) error {
	ids := w.some(2)
	if len(ids) == 0 {
		return nil
	}
	res, err := w.p.Delete(ctx, w.refs(ids))
	for n, i := range ids {
		switch {
		case err != nil && passing(err):
			if w.stored[i] == present {
				w.stored[i] = either
			}
		case err != nil:
			return fmt.Errorf("delete of block %d: %w", i, err)
		case res[n] == client.BlockLeased:
			// A new owner knows no leases and deletes nothing for a while (D10).
		case res[n] == client.BlockDeleted && w.stored[i] == absent:
			return fmt.Errorf("block %d was absent, and was deleted", i)
		case res[n] == client.BlockAbsent && w.stored[i] == present:
			return fmt.Errorf("block %d was acknowledged, and its delete found nothing", i)
		default:
			w.stored[i] = absent
			if res[n] == client.BlockDeleted {
				w.changed(client.EventRemoved, w.scope+"/"+string(blockID(w.id, i)), 0)
			}
			w.ack("block delete")
		}
	}
	return nil
}

// clear removes all blocks. A repeated try that meets none is right, so the count may be too low, but never too high.
func (w *promptOwner) clear(ctx context.Context) error {
	possible := 0
	for _, p := range w.stored {
		if p != absent {
			possible++
		}
	}
	deleted, leased, err := w.p.Clear(ctx)
	if err != nil && !passing(err) {
		return fmt.Errorf("clear: %w", err)
	}
	if int(deleted+leased) > possible {
		return fmt.Errorf("clear met %d blocks, of which %d were leased; at most %d were there", deleted+leased, leased, possible)
	}
	for i, p := range w.stored {
		switch {
		case err == nil && leased == 0:
			w.stored[i] = absent
		case p == present:
			w.stored[i] = either
		}
	}
	if err == nil {
		w.ack("clear")
	}
	return nil
}

func (w *promptOwner) pin(ctx context.Context) error {
	ids := w.some(3)
	if len(ids) == 0 {
		return nil
	}
	there, err := w.p.Pin(ctx, w.refs(ids), time.Hour)
	if err != nil {
		if passing(err) {
			return nil
		}
		return fmt.Errorf("pin: %w", err)
	}
	for n, i := range ids {
		if (there[n] && w.stored[i] == absent) || (!there[n] && w.stored[i] == present) {
			return fmt.Errorf("pin found block %d there=%t, known %d", i, there[n], w.stored[i])
		}
	}
	w.ack("block pin")
	return nil
}

// verify reads every block that was ever written.
func (w *promptOwner) verify(ctx context.Context) error {
	return w.read(ctx, w.some(1<<30))
}
