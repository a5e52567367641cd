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
	l := &promptListing{scope: &sc, scopes: req.Scope == nil, after: after, limit: limit}
	found, latest, err := p.firstPages(ctx, l)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.PromptCacheServiceListResponse{Header: p.headerOf(sc.ns, latest)}
	var last []byte
	if l.scopes {
		last, err = p.listScopes(ctx, l, found, resp)
	} else {
		last, err = p.listBlocks(ctx, l, found, resp)
	}
	if err != nil {
		return nil, err
	}
	if last != nil {
		resp.NextPageToken = appendPageToken(nil, query, last, nil)
	}
	return resp, nil
}

// promptListing is a List request, checked.
type promptListing struct {
	scope  *promptScope
	scopes bool   // scopes are listed, not the blocks of one
	after  []byte // typed key of a block or id of a scope; nil on the first page
	limit  int
}

// page is the query for what one shard has after a row.
func (l *promptListing) page(q *shard.Query, after []byte, limit int) {
	q.Op, q.Namespace = shard.QueryBlockPage, l.scope.ns.ID
	if l.scopes {
		q.Op = shard.QueryScopes
	}
	q.Prompt = &shard.BlockQuery{Scope: l.scope.id, ScopeFields: l.scope.fields, After: after, Limit: limit}
}

// firstPages asks every shard for its first rows, and returns what they found and at which revisions.
func (p *promptService) firstPages(ctx context.Context, l *promptListing) ([]shard.Query, map[*Shard]uint64, *kverr.Error) {
	shards := l.scope.ns.keyspace.Shards
	found, err := p.askEach(ctx, shards, func(_ *Shard, q *shard.Query) { l.page(q, l.after, firstStep(l.limit, len(shards))) })
	if err != nil {
		return nil, nil, err
	}
	latest := make(map[*Shard]uint64, len(shards))
	for i := range found {
		if err := found[i].Answer.Err; err != nil {
			return nil, nil, err
		}
		latest[shards[i]] = found[i].Answer.Revision
	}
	return found, latest, nil
}

// nextPage asks one shard for rows after one.
func (p *promptService) nextPage(ctx context.Context, l *promptListing, sh *Shard, after []byte, limit int) (*shard.Answer, *kverr.Error) {
	found, err := p.askEach(ctx, []*Shard{sh}, func(_ *Shard, q *shard.Query) { l.page(q, after, limit) })
	if err != nil {
		return nil, err
	}
	return &found[0].Answer, found[0].Answer.Err
}

// listedBlock is a block and its typed key, which is the same on all shards and orders them.
type listedBlock struct {
	shard.Block
	typed []byte
}

func listed(a *shard.Answer) []listedBlock {
	rows := make([]listedBlock, len(a.Blocks))
	for i := range rows {
		rows[i] = listedBlock{a.Blocks[i], a.Typed[i]}
	}
	return rows
}

// listBlocks fills in a page and returns the typed key to go on after, nil at the end.
func (p *promptService) listBlocks(ctx context.Context, l *promptListing, found []shard.Query, resp *kvv1.PromptCacheServiceListResponse) (last []byte, _ *kverr.Error) {
	m := &merge[listedBlock]{key: func(b *listedBlock) []byte { return b.typed }}
	m.more = func(sh *Shard, after []byte, limit int) ([]listedBlock, bool, *kverr.Error) {
		a, err := p.nextPage(ctx, l, sh, after, limit)
		if err != nil {
			return nil, false, err
		}
		return listed(a), a.More, nil
	}
	for i, sh := range l.scope.ns.keyspace.Shards {
		a := &found[i].Answer
		m.add(sh, listed(a), a.More, found[i].Prompt.Limit)
	}
	for b := m.head(); b != nil; b = m.head() {
		if len(resp.Blocks) == l.limit {
			return last, nil
		}
		resp.Blocks = append(resp.Blocks, &kvv1.PromptCacheServiceListResponse_Block{
			Block:  &kvv1.BlockRef{Id: b.ID, Rank: b.Rank, Group: b.Group, Depth: b.Depth},
			Parent: b.Parent, Size: b.Size, Checksum: b.Checksum,
			CreatedMs: b.CreatedMS, TouchedMs: b.TouchedMS, ExpiresMs: b.ExpiresMS, PinnedUntilMs: b.PinnedUntilMS,
		})
		last = b.typed
		if err := m.advance(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// listScopes fills in a page and returns the scope to go on after, nil at the end. A scope has blocks on many shards and is listed once.
func (p *promptService) listScopes(ctx context.Context, l *promptListing, found []shard.Query, resp *kvv1.PromptCacheServiceListResponse) (last []byte, _ *kverr.Error) {
	if l.after != nil && len(l.after) != len(shard.ScopeID{}) {
		return nil, kverr.Invalid("page_token", "%v", errTokenDamaged)
	}
	m := &merge[shard.ScopeUsage]{key: func(u *shard.ScopeUsage) []byte { return u.Scope[:] }}
	m.more = func(sh *Shard, after []byte, limit int) ([]shard.ScopeUsage, bool, *kverr.Error) {
		a, err := p.nextPage(ctx, l, sh, after, limit)
		if err != nil {
			return nil, false, err
		}
		return a.Scopes, a.More, nil
	}
	for i, sh := range l.scope.ns.keyspace.Shards {
		a := &found[i].Answer
		m.add(sh, a.Scopes, a.More, found[i].Prompt.Limit)
	}
	size := 0
	for u := m.head(); u != nil; u = m.head() {
		if !bytes.Equal(u.Scope[:], last) {
			// Scopes are up to 4 KiB, so a page may be cut short by its bytes.
			size += len(u.Fields) + 64
			if n := len(resp.Scopes); n == l.limit || n > 0 && size > maxReplyBytes {
				return last, nil
			}
			scope, err := scopeOf(u.Fields)
			if err != nil {
				return nil, err
			}
			resp.Scopes = append(resp.Scopes, scope)
			last = bytes.Clone(u.Scope[:])
		}
		if err := m.advance(); err != nil {
			return nil, err
		}
	}
	return nil, nil
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
	// usagePage is how many scopes Usage takes from a shard at a time.
	usagePage = 1000
)

// Usage adds up what the shards' accounts say.
func (p *promptService) Usage(ctx context.Context, req *kvv1.UsageRequest) (*kvv1.UsageResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	scopes, salts := make(usage), make(usage)
	total := &kvv1.UsageResponse_Row{}
	latest, err := p.eachScope(ctx, &sc, req.Scope == nil, func(u *shard.ScopeUsage) *kverr.Error {
		scope, err := scopeOf(u.Fields)
		if err != nil {
			return err
		}
		total.Blocks += u.Blocks
		total.Bytes += u.Bytes
		scopes.add(string(u.Fields), scope, u)
		salt := &kvv1.Scope{}
		if s := scope.Fields[saltField]; s != "" {
			salt.Fields = map[string]string{saltField: s}
		}
		salts.add(scope.Fields[saltField], salt, u)
		return nil
	})
	if err != nil {
		return nil, err
	}
	resp := &kvv1.UsageResponse{
		Header: p.headerOf(sc.ns, latest), Total: total, Scopes: scopes.rows(), Salts: salts.rows(),
		CapacityBlocks: sc.ns.CapacityBlocks, CapacityBytes: sc.ns.CapacityBytes,
	}
	groups := make(map[string][]*shard.Command, len(sc.ns.keyspace.Shards))
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

// eachScope calls fn for what a scope, or each, takes on each shard.
func (p *promptService) eachScope(ctx context.Context, sc *promptScope, all bool, fn func(*shard.ScopeUsage) *kverr.Error) (map[*Shard]uint64, *kverr.Error) {
	latest := make(map[*Shard]uint64, len(sc.ns.keyspace.Shards))
	after := make([][]byte, len(sc.ns.keyspace.Shards))
	for todo := sc.ns.keyspace.Shards; len(todo) > 0; {
		found, err := p.askEach(ctx, todo, func(sh *Shard, q *shard.Query) {
			q.Op, q.Namespace = shard.QueryScope, sc.ns.ID
			if all {
				q.Op = shard.QueryScopes
			}
			q.Prompt = &shard.BlockQuery{Scope: sc.id, ScopeFields: sc.fields, After: after[sh.Number], Limit: usagePage}
		})
		if err != nil {
			return nil, err
		}
		var more []*Shard
		for i, sh := range todo {
			a := &found[i].Answer
			if a.Err != nil {
				return nil, a.Err
			}
			latest[sh] = max(latest[sh], a.Revision)
			for j := range a.Scopes {
				if err := fn(&a.Scopes[j]); err != nil {
					return nil, err
				}
				after[sh.Number] = a.Scopes[j].Scope[:]
			}
			if a.More {
				more = append(more, sh)
			}
		}
		todo = more
	}
	return latest, nil
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
