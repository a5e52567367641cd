package client

import (
	"context"
	"time"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Scope is what all blocks of one model set-up share: named fields such as model, revision, adapter, cache_salt, dtype,
// layout, block_tokens. Two scopes are the same when their non-empty fields are the same.
type Scope map[string]string

// BlockRef names a block inside its scope.
type BlockRef struct {
	ID    []byte // opaque, 1 to 128 bytes; engines chain it from the tokens before
	Rank  uint32 // of the worker (tensor or pipeline parallel) whose part this is
	Group uint32 // KV-cache group
	Depth uint32 // how many blocks come before it in its chain; when no reference has one, its place in the list counts
}

// Prompt stores and finds the KV-cache blocks of prompts of one scope, in the Client's namespace, which must be of kind
// prompt. It is safe for concurrent use.
type Prompt struct {
	c     *Client
	scope *kvstorev1.Scope
}

// Prompt returns the prompt-cache face of a scope.
func (c *Client) Prompt(s Scope) *Prompt {
	return &Prompt{c: c, scope: &kvstorev1.Scope{Fields: s}}
}

// LookupOptions are the optional parts of a lookup.
type LookupOptions struct {
	All   bool          // look at every block on its own, not only at the longest run of present ones from the first on
	Lease time.Duration // keep what is found from being evicted or deleted for so long, at most 30 s; 0 = no lease
}

// Found is what a lookup found.
type Found struct {
	Count   int // blocks found; without All the first Count of the list
	Blocks  []BlockInfo
	Lease   Lease     // empty when none was asked for or nothing was found
	Expires time.Time // when the lease ends, by the server's clock
}

// Lease keeps blocks until Release or its end.
type Lease []byte

// BlockInfo describes a stored block.
type BlockInfo struct {
	Index       int // in the list that was looked up
	Size        int64
	Checksum    uint64    // xxh3-64 of the bytes
	Tier        string    // "memory" or "store"
	PinnedUntil time.Time // zero = not pinned
}

// Lookup tells which blocks are stored, in one call, and touches them.
func (p *Prompt) Lookup(ctx context.Context, refs []BlockRef, o *LookupOptions) (Found, error) {
	req := &kvstorev1.LookupRequest{
		Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope, Blocks: protoRefs(refs),
		Mode: kvstorev1.LookupMode_LOOKUP_MODE_PREFIX,
	}
	if o != nil {
		if o.All {
			req.Mode = kvstorev1.LookupMode_LOOKUP_MODE_ALL
		}
		req.LeaseMs = toMS(o.Lease)
	}
	resp, err := unary(ctx, p.c.core, reads, "lookup", promptStub, kvstorev1.PromptCacheServiceClient.Lookup, req)
	if err != nil {
		return Found{}, err
	}
	f := Found{Count: int(resp.Count), Lease: resp.Lease, Expires: fromMS(resp.LeaseExpiresMs)}
	if len(resp.Blocks) > 0 {
		f.Blocks = make([]BlockInfo, len(resp.Blocks))
	}
	for i, b := range resp.Blocks {
		f.Blocks[i] = BlockInfo{
			Index: int(b.Index), Size: b.Size, Checksum: b.Checksum, Tier: b.Tier, PinnedUntil: fromMS(b.PinnedUntilMs),
		}
	}
	return f, nil
}

// Release ends a lease early. A lease that is unknown or over, or empty, is no error.
func (p *Prompt) Release(ctx context.Context, l Lease) error {
	if len(l) == 0 {
		return nil
	}
	_, err := unary(ctx, p.c.core, reads, "release", promptStub, kvstorev1.PromptCacheServiceClient.Release,
		&kvstorev1.ReleaseRequest{Keyspace: p.c.keyspace, Namespace: p.c.namespace, Lease: l})
	return err
}

// Touch marks blocks as used now and tells how many of them are stored.
func (p *Prompt) Touch(ctx context.Context, refs []BlockRef) (int, error) {
	resp, err := unary(ctx, p.c.core, writes, "touch", promptStub, kvstorev1.PromptCacheServiceClient.Touch,
		&kvstorev1.TouchRequest{Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope, Blocks: protoRefs(refs)})
	return int(resp.GetCount()), err
}

// Pin keeps blocks from being evicted for d from now (by the server's clock); 0 takes the pins away. present[i] tells
// whether refs[i] was there.
func (p *Prompt) Pin(ctx context.Context, refs []BlockRef, d time.Duration) (present []bool, err error) {
	req := &kvstorev1.PinRequest{
		Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope, Blocks: protoRefs(refs), Identity: p.c.identity(),
	}
	if d < 0 {
		return nil, kverr.Invalid("until_ms", "lies %v in the past", -d)
	}
	if d > 0 {
		req.UntilMs = p.c.clock.now().Add(d).UnixMilli()
	}
	resp, err := unary(ctx, p.c.core, writes, "pin", promptStub, kvstorev1.PromptCacheServiceClient.Pin, req)
	if err != nil {
		return nil, err
	}
	present = make([]bool, len(refs))
	for i := range present {
		present[i] = i/8 < len(resp.Bitmap) && resp.Bitmap[i/8]&(1<<(i%8)) != 0
	}
	return present, nil
}

// BlockDeletion is what became of one block of a Delete.
type BlockDeletion uint8

// What became of a block.
const (
	BlockAbsent  BlockDeletion = iota // it was not stored
	BlockDeleted                      // it was stored and is gone
	BlockLeased                       // somebody leases it; it stays
)

// Delete removes blocks, pinned ones too, except those that somebody leases. Outcome i belongs to refs[i].
func (p *Prompt) Delete(ctx context.Context, refs []BlockRef) ([]BlockDeletion, error) {
	resp, err := unary(ctx, p.c.core, writes, "delete blocks", promptStub, kvstorev1.PromptCacheServiceClient.Delete,
		&kvstorev1.PromptCacheServiceDeleteRequest{
			Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: p.scope, Blocks: protoRefs(refs), Identity: p.c.identity(),
		})
	if err == nil {
		err = sameLength("delete blocks", len(refs), len(resp.Outcomes))
	}
	if err != nil {
		return nil, err
	}
	out := make([]BlockDeletion, len(refs))
	for i, o := range resp.Outcomes {
		switch o {
		case kvstorev1.DeleteOutcome_DELETE_OUTCOME_DELETED:
			out[i] = BlockDeleted
		case kvstorev1.DeleteOutcome_DELETE_OUTCOME_LEASED:
			out[i] = BlockLeased
		}
	}
	return out, nil
}

// Clear removes all blocks of the scope, except those that somebody leases, and tells how many of each there were; after a
// try whose answer was lost, how many the repeated one met. The scope must not be empty: ClearNamespace clears all.
func (p *Prompt) Clear(ctx context.Context) (deleted, leased int64, err error) {
	return p.clear(ctx, &kvstorev1.ClearRequest{Scope: p.scope})
}

// ClearNamespace removes all blocks of the namespace, whatever their scope, except those that somebody leases.
func (p *Prompt) ClearNamespace(ctx context.Context) (deleted, leased int64, err error) {
	return p.clear(ctx, &kvstorev1.ClearRequest{AllScopes: true})
}

func (p *Prompt) clear(ctx context.Context, req *kvstorev1.ClearRequest) (deleted, leased int64, err error) {
	req.Keyspace, req.Namespace = p.c.keyspace, p.c.namespace
	resp, err := unary(ctx, p.c.core, writes, "clear", promptStub, kvstorev1.PromptCacheServiceClient.Clear, req)
	return resp.GetDeleted(), resp.GetLeased(), err
}

func protoRefs(refs []BlockRef) []*kvstorev1.BlockRef {
	all := make([]kvstorev1.BlockRef, len(refs)) // one allocation for all
	out := make([]*kvstorev1.BlockRef, len(refs))
	for i, r := range refs {
		b := &all[i]
		b.Id, b.Rank, b.Group, b.Depth = r.ID, r.Rank, r.Group, r.Depth
		out[i] = b
	}
	return out
}
