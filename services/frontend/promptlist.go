package frontend

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/zeebo/xxh3"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/promptcache"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Clear removes a scope's blocks, or all, in bounded steps on all shards.
func (p *promptService) Clear(ctx context.Context, req *kvv1.ClearRequest) (*kvv1.ClearResponse, error) {
	switch {
	case req.AllScopes && req.Scope != nil:
		return nil, kverr.Invalid("scope", "must be left out with all_scopes")
	case !req.AllScopes && req.Scope == nil:
		return nil, kverr.Invalid("scope", "is missing; name a scope, or set all_scopes to clear the namespace")
	}
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.ClearResponse{}
	latest := make(map[*Shard]uint64)
	after := make([][]byte, len(sc.ns.keyspace.Shards))
	todo := slices.Clone(sc.ns.keyspace.Shards)
	for len(todo) > 0 {
		groups := make(map[string][]*shard.Command, len(todo))
		cmds := make([]*shard.Command, len(todo))
		for i, sh := range todo {
			cmds[i] = sc.command(shard.OpClear, sh)
			cmds[i].Prompt.AllScopes, cmds[i].Prompt.After = req.AllScopes, after[sh.Number]
			if req.AllScopes {
				cmds[i].Prompt.ScopeFields = nil
			}
			groups[sh.ID] = cmds[i : i+1]
		}
		if err := p.doAll(ctx, groups); err != nil {
			return nil, err
		}
		var more []*Shard
		for i, sh := range todo {
			r := &cmds[i].Result
			if r.Err != nil {
				return nil, r.Err
			}
			resp.Deleted += r.Deleted
			resp.Leased += r.Leased
			latest[sh] = max(latest[sh], r.Revision)
			if r.More {
				after[sh.Number] = r.Next
				more = append(more, sh)
			}
		}
		todo = more
	}
	resp.Header = p.headerOf(sc.ns, latest)
	return resp, nil
}

// List pages through the blocks of a scope, or through the scopes, merged over all shards.
func (p *promptService) List(ctx context.Context, req *kvv1.PromptCacheServiceListRequest) (*kvv1.PromptCacheServiceListResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	limit := int(req.PageSize)
	switch {
	case limit == 0:
		limit = defaultPageSize
	case limit < 0 || limit > key.MaxListPage:
		return nil, kverr.Invalid("page_size", "is %d, must be 0 to %d", req.PageSize, key.MaxListPage)
	}
	query := xxh3.HashSeed(sc.fields, uint64(sc.ns.ID))
	if req.Scope == nil {
		query++
	}
	var after []byte
	if len(req.PageToken) > 0 {
		last, _, terr := parsePageToken(req.PageToken, query)
		if terr != nil {
			return nil, kverr.Invalid("page_token", "%v", terr)
		}
		after = last
	}
	views, latest, err := p.views(ctx, sc.ns)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.PromptCacheServiceListResponse{Header: p.headerOf(sc.ns, latest)}
	var last []byte
	if req.Scope == nil {
		last, err = listScopes(resp, sc.ns, views, after, limit)
	} else {
		last = listBlocks(resp, &sc, views, after, limit)
	}
	if err != nil {
		return nil, err
	}
	if last != nil {
		resp.NextPageToken = appendPageToken(nil, query, last, nil)
	}
	return resp, nil
}

// listBlocks fills in a page and returns the typed key to go on after, nil at the end.
func listBlocks(resp *kvv1.PromptCacheServiceListResponse, sc *promptScope, views []shard.View, after []byte, limit int) (last []byte) {
	type named struct {
		b     shard.Block
		typed []byte
	}
	var page []named
	more := false
	for _, v := range views {
		if !v.HasScope(sc.ns.ID, sc.id, sc.fields) {
			continue
		}
		blocks, typed, left := v.Blocks(sc.ns.ID, sc.id, after, limit)
		more = more || left
		for i := range blocks {
			page = append(page, named{blocks[i], typed[i]})
		}
	}
	slices.SortFunc(page, func(a, b named) int { return bytes.Compare(a.typed, b.typed) })
	if len(page) > limit {
		page, more = page[:limit], true
	}
	for i := range page {
		b := &page[i].b
		resp.Blocks = append(resp.Blocks, &kvv1.PromptCacheServiceListResponse_Block{
			Block:  &kvv1.BlockRef{Id: b.ID, Rank: b.Rank, Group: b.Group, Depth: b.Depth},
			Parent: b.Parent, Size: b.Size, Checksum: b.Checksum,
			CreatedMs: b.CreatedMS, TouchedMs: b.TouchedMS, ExpiresMs: b.ExpiresMS, PinnedUntilMs: b.PinnedUntilMS,
		})
	}
	if !more || len(page) == 0 {
		return nil
	}
	return page[len(page)-1].typed
}

func listScopes(resp *kvv1.PromptCacheServiceListResponse, ns *Namespace, views []shard.View, after []byte, limit int) (last []byte, err *kverr.Error) {
	var from *shard.ScopeID
	if after != nil {
		if len(after) != len(from) {
			return nil, kverr.Invalid("page_token", "%v", errTokenDamaged)
		}
		from = (*shard.ScopeID)(after)
	}
	forms := make(map[shard.ScopeID][]byte)
	more := false
	for _, v := range views {
		scopes, left := v.Scopes(ns.ID, from, limit)
		more = more || left
		for i := range scopes {
			forms[scopes[i].Scope] = scopes[i].Fields
		}
	}
	ids := make([]shard.ScopeID, 0, len(forms))
	for id := range forms {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b shard.ScopeID) int { return bytes.Compare(a[:], b[:]) })
	if len(ids) > limit {
		ids, more = ids[:limit], true
	}
	size := 0
	for i, id := range ids {
		// Scopes are up to 4 KiB, so a page may be cut short by its bytes.
		if size += len(forms[id]) + 64; size > maxReplyBytes && i > 0 {
			return ids[i-1][:], nil
		}
		scope, err := scopeOf(forms[id])
		if err != nil {
			return nil, err
		}
		resp.Scopes = append(resp.Scopes, scope)
	}
	if !more || len(ids) == 0 {
		return nil, nil
	}
	return ids[len(ids)-1][:], nil
}

func scopeOf(form []byte) (*kvv1.Scope, *kverr.Error) {
	fields, err := promptcache.Fields(form)
	if err != nil {
		return nil, kverr.Wrap(kverr.DataLoss, "read scope", err)
	}
	return &kvv1.Scope{Fields: fields}, nil
}

const (
	// saltField is the scope field that Usage adds up by.
	saltField = "cache_salt"
	// maxUsageBytes bounds the rows of scopes and the rows of salts of a Usage reply, each; the largest come first.
	maxUsageBytes = maxReplyBytes / 2
	// usagePage is how many scopes Usage takes from a view at a time.
	usagePage = 1000
)

// Usage adds up what the shards' accounts say.
func (p *promptService) Usage(ctx context.Context, req *kvv1.UsageRequest) (*kvv1.UsageResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	views, latest, err := p.views(ctx, sc.ns)
	if err != nil {
		return nil, err
	}
	scopes, salts := make(usage), make(usage)
	total := &kvv1.UsageResponse_Row{}
	for _, v := range views {
		var after *shard.ScopeID
		for more := true; more; {
			var page []shard.ScopeUsage
			if req.Scope != nil {
				more = false
				if u, ok := v.Scope(sc.ns.ID, sc.id); ok && bytes.Equal(u.Fields, sc.fields) {
					page = append(page, u)
				}
			} else {
				page, more = v.Scopes(sc.ns.ID, after, usagePage)
			}
			for i := range page {
				u := &page[i]
				scope, err := scopeOf(u.Fields)
				if err != nil {
					return nil, err
				}
				total.Blocks += u.Blocks
				total.Bytes += u.Bytes
				scopes.add(string(u.Fields), scope, u)
				salt := &kvv1.Scope{}
				if s := scope.Fields[saltField]; s != "" {
					salt.Fields = map[string]string{saltField: s}
				}
				salts.add(scope.Fields[saltField], salt, u)
				after = &u.Scope
			}
		}
	}
	resp := &kvv1.UsageResponse{
		Header: p.headerOf(sc.ns, latest), Total: total, Scopes: scopes.rows(), Salts: salts.rows(),
		CapacityBlocks: sc.ns.CapacityBlocks, CapacityBytes: sc.ns.CapacityBytes,
	}
	groups := make(map[string][]*shard.Command, len(views))
	var counts []*shard.Command
	for _, sh := range sc.ns.keyspace.Shards {
		c := sc.command(shard.OpTouch, sh) // without blocks: the counters alone
		groups[sh.ID] = []*shard.Command{c}
		counts = append(counts, c)
	}
	if err := p.doAll(ctx, groups); err != nil {
		return nil, err
	}
	for _, c := range counts {
		if c.Result.Err != nil {
			return nil, c.Result.Err
		}
		resp.EvictedBlocks += c.Result.Evicted
		resp.DamagedBlocks += c.Result.Damaged
	}
	return resp, nil
}

// usage is rows by what they are about.
type usage map[string]*kvv1.UsageResponse_Row

func (u usage) add(name string, scope *kvv1.Scope, s *shard.ScopeUsage) {
	r := u[name]
	if r == nil {
		r = &kvv1.UsageResponse_Row{Scope: scope}
		u[name] = r
	}
	r.Blocks += s.Blocks
	r.Bytes += s.Bytes
}

// rows are the rows, largest first, as far as they fit.
func (u usage) rows() []*kvv1.UsageResponse_Row {
	names := make([]string, 0, len(u))
	for name := range u {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(u[b].Bytes, u[a].Bytes), cmp.Compare(u[b].Blocks, u[a].Blocks), cmp.Compare(a, b))
	})
	rows, size := make([]*kvv1.UsageResponse_Row, 0, len(names)), 0
	for _, name := range names {
		if size += u[name].SizeVT() + 8; size > maxUsageBytes {
			break
		}
		rows = append(rows, u[name])
	}
	return rows
}
