package client

import (
	"context"
	"iter"
	"time"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// StoredBlock is a block as List tells of it.
type StoredBlock struct {
	BlockRef
	Parent      []byte // id of the block before it; empty for the first of a chain
	Size        int64
	Checksum    uint64
	Created     time.Time
	Touched     time.Time
	Expires     time.Time // zero = never
	PinnedUntil time.Time // zero = not pinned
}

// List walks over the blocks of the scope, ordered by id, rank and group. After an error the walk ends.
func (p *Prompt) List(ctx context.Context) iter.Seq2[StoredBlock, error] {
	return func(yield func(StoredBlock, error) bool) {
		for resp, err := range p.pages(ctx, p.scope) {
			if err != nil {
				yield(StoredBlock{}, err)
				return
			}
			for _, b := range resp.Blocks {
				r := b.GetBlock()
				if !yield(StoredBlock{
					BlockRef: BlockRef{ID: r.GetId(), Rank: r.GetRank(), Group: r.GetGroup(), Depth: r.GetDepth()},
					Parent:   b.Parent, Size: b.Size, Checksum: b.Checksum, Created: fromMS(b.CreatedMs),
					Touched: fromMS(b.TouchedMs), Expires: fromMS(b.ExpiresMs), PinnedUntil: fromMS(b.PinnedUntilMs),
				}, nil) {
					return
				}
			}
		}
	}
}

// Scopes walks over the scopes of the namespace. After an error the walk ends.
func (p *Prompt) Scopes(ctx context.Context) iter.Seq2[Scope, error] {
	return func(yield func(Scope, error) bool) {
		for resp, err := range p.pages(ctx, nil) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, s := range resp.Scopes {
				if !yield(s.Fields, nil) {
					return
				}
			}
		}
	}
}

func (p *Prompt) pages(
	ctx context.Context, scope *kvstorev1.Scope,
) iter.Seq2[*kvstorev1.PromptCacheServiceListResponse, error] {
	return func(yield func(*kvstorev1.PromptCacheServiceListResponse, error) bool) {
		req := &kvstorev1.PromptCacheServiceListRequest{
			Keyspace: p.c.keyspace, Namespace: p.c.namespace, Scope: scope, PageSize: 1000,
		}
		for {
			resp, err := unary(ctx, p.c.core, reads, "list blocks", promptStub, kvstorev1.PromptCacheServiceClient.List, req)
			if !yield(resp, err) || err != nil || len(resp.NextPageToken) == 0 {
				return
			}
			req.PageToken = resp.NextPageToken
		}
	}
}

// UsageRow is what one group of blocks takes.
type UsageRow struct {
	Scope  Scope // for the rows by salt: cache_salt alone
	Blocks int64
	Bytes  int64
}

// Usage is what prompt blocks take.
type Usage struct {
	Scopes         []UsageRow // by scope
	Salts          []UsageRow // by the scope's field cache_salt
	Total          UsageRow
	CapacityBlocks int64 // of the namespace; 0 = no limit
	CapacityBytes  int64 // of the namespace; 0 = no limit
	EvictedBlocks  int64 // since the shards were loaded
	DamagedBlocks  int64 // found damaged since the shards were loaded
}

// Usage adds up the blocks of the scope; of all scopes when the scope is empty.
func (p *Prompt) Usage(ctx context.Context) (Usage, error) {
	req := &kvstorev1.UsageRequest{Keyspace: p.c.keyspace, Namespace: p.c.namespace}
	if len(p.scope.Fields) > 0 {
		req.Scope = p.scope
	}
	resp, err := unary(ctx, p.c.core, reads, "usage", promptStub, kvstorev1.PromptCacheServiceClient.Usage, req)
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		Scopes: usageRows(resp.Scopes...), Salts: usageRows(resp.Salts...), Total: usageRow(resp.Total),
		CapacityBlocks: resp.CapacityBlocks, CapacityBytes: resp.CapacityBytes,
		EvictedBlocks: resp.EvictedBlocks, DamagedBlocks: resp.DamagedBlocks,
	}, nil
}

func usageRow(r *kvstorev1.UsageResponse_Row) UsageRow {
	return UsageRow{Scope: r.GetScope().GetFields(), Blocks: r.GetBlocks(), Bytes: r.GetBytes()}
}

func usageRows(rows ...*kvstorev1.UsageResponse_Row) (out []UsageRow) {
	for _, r := range rows {
		out = append(out, usageRow(r))
	}
	return out
}
