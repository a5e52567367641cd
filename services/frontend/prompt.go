package frontend

import (
	"context"
	"crypto/rand"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	"kvstore/components/promptcache"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// promptService is PromptCacheService. What a call finds comes from the shards' durable states, by one query for each shard; uses,
// leases and writes go to the shards as commands, one for each shard that the call touches.
type promptService struct {
	kvv1.UnimplementedPromptCacheServiceServer
	*Server
}

// promptScope is where a call's blocks live: its namespace and scope, checked.
type promptScope struct {
	ns     *Namespace
	id     shard.ScopeID
	fields []byte // canonical form
}

func (s *Server) promptNamespace(ctx context.Context, keyspace, namespace string) (*Namespace, *kverr.Error) {
	return s.namespace(ctx, keyspace, namespace, kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT)
}

func (s *Server) promptScope(ctx context.Context, keyspace, namespace string, scope *kvv1.Scope) (promptScope, *kverr.Error) {
	ns, err := s.promptNamespace(ctx, keyspace, namespace)
	if err != nil {
		return promptScope{}, err
	}
	fields, cerr := promptcache.Canonical(scope.GetFields())
	if cerr != nil {
		return promptScope{}, kverr.From(cerr)
	}
	return promptScope{ns: ns, id: promptcache.ScopeOf(fields), fields: fields}, nil
}

// owner is the shard that has a block; it fills in the slot.
func (sc *promptScope) owner(k *shard.BlockKey) *Shard {
	k.Slot = promptcache.Slot(sc.ns.Name, sc.id, k.ID, k.Rank, k.Group)
	return sc.ns.keyspace.owner(k.Slot)
}

// command is a prompt command for a shard, with that shard's part of the capacity.
func (sc *promptScope) command(op shard.Op, sh *Shard) *shard.Command {
	return &shard.Command{Op: op, Namespace: sc.ns.ID, Prompt: &shard.PromptArgs{
		Scope: sc.id, ScopeFields: sc.fields,
		Capacity: shard.Capacity{Blocks: share(sc.ns.CapacityBlocks, sh), Bytes: share(sc.ns.CapacityBytes, sh)},
	}}
}

// share is a shard's part of a capacity; 0 = no limit.
func share(capacity int64, sh *Shard) int64 {
	if capacity == 0 {
		return 0
	}
	return max(1, sh.keyspace.Map.Share(capacity, sh.Number))
}

// checkRefs checks a list of references and turns it into block keys.
func checkRefs(refs []*kvv1.BlockRef) ([]shard.BlockKey, *kverr.Error) {
	if len(refs) > key.MaxLookup {
		return nil, kverr.TooBig("blocks", len(refs), key.MaxLookup, "references")
	}
	keys := make([]shard.BlockKey, len(refs))
	depths := false
	for i, r := range refs {
		var err *kverr.Error
		if keys[i], err = checkRef("blocks.id", r); err != nil {
			return nil, err
		}
		depths = depths || keys[i].Depth != 0
	}
	if !depths {
		for i := range keys {
			keys[i].Depth = uint32(i)
		}
	}
	return keys, nil
}

func checkRef(field string, r *kvv1.BlockRef) (shard.BlockKey, *kverr.Error) {
	id := r.GetId()
	switch {
	case len(id) == 0:
		return shard.BlockKey{}, kverr.Invalid(field, "is empty; a block's id has 1 to %d bytes", key.MaxBlockID)
	case len(id) > key.MaxBlockID:
		return shard.BlockKey{}, kverr.TooBig(field, len(id), key.MaxBlockID, "bytes")
	}
	return shard.BlockKey{ID: id, Rank: r.GetRank(), Group: r.GetGroup(), Depth: r.GetDepth()}, nil
}

// asked is one query for each shard that may have some of the blocks of a list, and where each block's answer is.
type asked struct {
	queries []shard.Query // by number of the shard; those without blocks are not asked
	where   []spot        // by position in the list
}

type spot struct{ shard, at int }

// ask asks the owners of blocks for them, each once.
func (s *Server) ask(ctx context.Context, sc *promptScope, op shard.QueryOp, keys []shard.BlockKey, stopAtMiss bool) (*asked, *kverr.Error) {
	shards := sc.ns.keyspace.Shards
	a := &asked{queries: make([]shard.Query, len(shards)), where: make([]spot, len(keys))}
	counts := make([]int, len(shards))
	for i := range keys {
		n := sc.owner(&keys[i]).Number
		a.where[i] = spot{n, counts[n]}
		counts[n]++
	}
	blocks := make([]shard.BlockKey, len(keys)) // by shard, in the order of the list
	var questions []question
	for n, from := 0, 0; n < len(shards); n++ {
		if counts[n] == 0 {
			continue
		}
		q := &a.queries[n]
		q.Op, q.Namespace = op, sc.ns.ID
		q.Prompt = &shard.BlockQuery{Scope: sc.id, ScopeFields: sc.fields, Blocks: blocks[from : from+counts[n]], StopAtMiss: stopAtMiss}
		questions = append(questions, question{shards[n], []*shard.Query{q}})
		from += counts[n]
	}
	for i, w := range a.where {
		a.queries[w.shard].Prompt.Blocks[w.at] = keys[i]
	}
	return a, s.readAll(ctx, questions)
}

// find is the answer for the block at a position of the list; the block is nil unless the query was for blocks.
func (a *asked) find(i int) (b *shard.Block, there bool, err *kverr.Error) {
	w := a.where[i]
	answer := &a.queries[w.shard].Answer
	if answer.Err != nil || w.at >= len(answer.Present) || !answer.Present[w.at] {
		return nil, false, answer.Err
	}
	if answer.Blocks != nil {
		b = &answer.Blocks[w.at]
	}
	return b, true, nil
}

// findOne asks for one block.
func (s *Server) findOne(ctx context.Context, sc *promptScope, k *shard.BlockKey) (b *shard.Block, there bool, err *kverr.Error) {
	a, err := s.ask(ctx, sc, shard.QueryBlocks, []shard.BlockKey{*k}, false)
	if err != nil {
		return nil, false, err
	}
	return a.find(0)
}

// grouped is one command for each shard, and where each block's outcome is.
type grouped struct {
	scope *promptScope
	byNum []*shard.Command
	where []place // by position in the request
}

type place struct {
	cmd *shard.Command
	at  int
}

// group makes one command for each shard that owns some of the blocks. Commands of one request have one identity apart from its
// index, which is the position of a command's first block in the request: no two parts are taken for each other, and a repeated
// request has the same parts.
func (sc *promptScope) group(op shard.Op, keys []shard.BlockKey, prepare func(*shard.Command)) *grouped {
	g := &grouped{scope: sc, byNum: make([]*shard.Command, len(sc.ns.keyspace.Shards)), where: make([]place, len(keys))}
	for i := range keys {
		sh := sc.owner(&keys[i])
		c := g.byNum[sh.Number]
		if c == nil {
			c = sc.command(op, sh)
			if prepare != nil {
				prepare(c)
			}
			c.ID.Index = uint32(i)
			g.byNum[sh.Number] = c
		}
		g.where[i] = place{c, len(c.Prompt.Blocks)}
		c.Prompt.Blocks = append(c.Prompt.Blocks, keys[i])
	}
	return g
}

// run sends the commands and waits for all; the first error of any is returned.
func (g *grouped) run(ctx context.Context, s *Server) *kverr.Error {
	groups := make(map[string][]*shard.Command, len(g.byNum))
	for n, c := range g.byNum {
		if c != nil {
			groups[g.scope.ns.keyspace.Shards[n].ID] = []*shard.Command{c}
		}
	}
	if err := s.doAll(ctx, groups); err != nil {
		return err
	}
	for _, c := range g.byNum {
		if c != nil && c.Result.Err != nil {
			return c.Result.Err
		}
	}
	return nil
}

// outcome is what became of a block of the request.
func (g *grouped) outcome(i int) *shard.BlockOutcome {
	p := g.where[i]
	return &p.cmd.Result.Blocks[p.at]
}

func (g *grouped) header(s *Server) *kvv1.ResponseHeader {
	latest := make(map[*Shard]uint64)
	for n, c := range g.byNum {
		if c != nil && c.Result.Revision > 0 {
			latest[g.scope.ns.keyspace.Shards[n]] = c.Result.Revision
		}
	}
	return s.headerOf(g.scope.ns, latest)
}

// Lookup asks for blocks, which costs no command, and then tells the owners of what was found: they note the uses, lease, and have
// the last word on what is there.
func (p *promptService) Lookup(ctx context.Context, req *kvv1.LookupRequest) (*kvv1.LookupResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	keys, err := checkRefs(req.Blocks)
	if err != nil {
		return nil, err
	}
	all := req.Mode == kvv1.LookupMode_LOOKUP_MODE_ALL
	switch {
	case !all && req.Mode != kvv1.LookupMode_LOOKUP_MODE_UNSPECIFIED && req.Mode != kvv1.LookupMode_LOOKUP_MODE_PREFIX:
		return nil, kverr.Invalid("mode", "%d is not a mode; there are PREFIX and ALL", req.Mode)
	case req.LeaseMs < 0 || req.LeaseMs > shard.MaxLeaseMS:
		return nil, kverr.Invalid("lease_ms", "is %d, must be 0 to %d", req.LeaseMs, shard.MaxLeaseMS)
	}
	found, err := p.present(ctx, &sc, keys, all)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.LookupResponse{Bitmap: make([]byte, (len(keys)+7)/8)}
	if len(found) == 0 {
		p.lookups.add(0, len(keys))
		resp.Header = p.headerOf(sc.ns, nil)
		return resp, nil
	}
	wanted := make([]shard.BlockKey, len(found))
	for n, i := range found {
		wanted[n] = keys[i]
	}
	var lease [16]byte
	if req.LeaseMs > 0 {
		_, _ = rand.Read(lease[:]) // never fails
	}
	g := sc.group(shard.OpLookup, wanted, func(c *shard.Command) { c.Prompt.Lease, c.Prompt.LeaseMS = lease, req.LeaseMs })
	if err := g.run(ctx, p.Server); err != nil {
		return nil, err
	}
	infos := make([]kvv1.BlockInfo, len(found))
	resp.Blocks = make([]*kvv1.BlockInfo, 0, len(found))
	for n, i := range found {
		o := g.outcome(n)
		if !o.Present {
			if !all {
				break
			}
			continue
		}
		resp.Bitmap[i/8] |= 1 << (i % 8)
		infos[n].Index, infos[n].Size, infos[n].Checksum, infos[n].PinnedUntilMs = uint32(i), o.Size, o.Checksum, o.PinnedUntilMS
		infos[n].Tier = tierMemory
		if apart(&o.Value) {
			infos[n].Tier = tierStore
		}
		resp.Blocks = append(resp.Blocks, &infos[n])
	}
	resp.Count = uint32(len(resp.Blocks))
	p.lookups.add(len(resp.Blocks), len(keys)-len(resp.Blocks))
	if req.LeaseMs > 0 && resp.Count > 0 {
		resp.Lease, resp.LeaseExpiresMs = g.lease(lease)
	}
	resp.Header = g.header(p.Server)
	return resp, nil
}

// lookupStep is how many references a Lookup for a prefix asks for at once: those after the first miss are asked for in vain,
// though each shard stops at its own first miss.
const lookupStep = 4096

// present tells which blocks are there, by their positions: all of them, or the longest run from the first on.
func (p *promptService) present(ctx context.Context, sc *promptScope, keys []shard.BlockKey, all bool) ([]int, *kverr.Error) {
	found := make([]int, 0, len(keys))
	step := lookupStep
	if all {
		step = max(len(keys), 1)
	}
	for from := 0; from < len(keys); from += step {
		part := keys[from:min(from+step, len(keys))]
		a, err := p.ask(ctx, sc, shard.QueryHas, part, !all)
		if err != nil {
			return nil, err
		}
		for i := range part {
			_, ok, err := a.find(i)
			switch {
			case err != nil:
				return nil, err
			case ok:
				found = append(found, from+i)
			case !all:
				return found, nil
			}
		}
	}
	return found, nil
}

// Tiers of BlockInfo.
const (
	tierMemory = "memory"
	tierStore  = "store"
)

// Touch marks blocks as used.
func (p *promptService) Touch(ctx context.Context, req *kvv1.TouchRequest) (*kvv1.TouchResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	keys, err := checkRefs(req.Blocks)
	if err != nil {
		return nil, err
	}
	g := sc.group(shard.OpTouch, keys, nil)
	if err := g.run(ctx, p.Server); err != nil {
		return nil, err
	}
	resp := &kvv1.TouchResponse{Header: g.header(p.Server)}
	for i := range keys {
		if g.outcome(i).Present {
			resp.Count++
		}
	}
	return resp, nil
}

// Pin pins blocks until a time.
func (p *promptService) Pin(ctx context.Context, req *kvv1.PinRequest) (*kvv1.PinResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	keys, err := checkRefs(req.Blocks)
	if err != nil {
		return nil, err
	}
	if latest := p.now() + maxTTLMS; req.UntilMs < 0 || req.UntilMs > latest {
		return nil, kverr.Invalid("until_ms", "is %d, must be 0 to %d (server time in milliseconds)", req.UntilMs, latest)
	}
	id, err := p.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	g := sc.group(shard.OpPin, keys, func(c *shard.Command) { c.ID, c.Prompt.UntilMS = id, req.UntilMs })
	if err := g.run(ctx, p.Server); err != nil {
		return nil, err
	}
	resp := &kvv1.PinResponse{Header: g.header(p.Server), Bitmap: make([]byte, (len(keys)+7)/8)}
	for i := range keys {
		if g.outcome(i).Present {
			resp.Count++
			resp.Bitmap[i/8] |= 1 << (i % 8)
		}
	}
	return resp, nil
}

// Delete removes blocks, except leased ones.
func (p *promptService) Delete(ctx context.Context, req *kvv1.PromptCacheServiceDeleteRequest) (*kvv1.PromptCacheServiceDeleteResponse, error) {
	sc, err := p.promptScope(ctx, req.Keyspace, req.Namespace, req.Scope)
	if err != nil {
		return nil, err
	}
	keys, err := checkRefs(req.Blocks)
	if err != nil {
		return nil, err
	}
	id, err := p.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	g := sc.group(shard.OpDeleteBlocks, keys, func(c *shard.Command) { c.ID = id })
	if err := g.run(ctx, p.Server); err != nil {
		return nil, err
	}
	resp := &kvv1.PromptCacheServiceDeleteResponse{Header: g.header(p.Server), Outcomes: make([]kvv1.DeleteOutcome, len(keys))}
	for i := range keys {
		switch o := g.outcome(i); {
		case o.Leased:
			resp.Outcomes[i] = kvv1.DeleteOutcome_DELETE_OUTCOME_LEASED
		case o.Present:
			resp.Outcomes[i] = kvv1.DeleteOutcome_DELETE_OUTCOME_DELETED
		default:
			resp.Outcomes[i] = kvv1.DeleteOutcome_DELETE_OUTCOME_ABSENT
		}
	}
	return resp, nil
}
