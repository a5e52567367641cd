package frontend

import (
	"context"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// listing is a List request, checked.
type listing struct {
	ns       *Namespace
	bounds   shard.ListQuery
	limit    int
	keysOnly bool
	query    uint64 // hash of all that must stay the same from page to page
	watch    []byte // watch token of the first page; nil on the first page
}

func (k *kvService) List(ctx context.Context, req *kvv1.ListRequest) (*kvv1.ListResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	l, err := newListing(ns, req)
	if err != nil {
		return nil, err
	}
	pages, latest, err := k.firstSteps(ctx, l, req.CountOnly)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.ListResponse{Header: k.headerOf(ns, latest)}
	if l.watch == nil {
		l.watch = tokenOf(ns, latest)
	}
	resp.WatchToken = l.watch
	if req.CountOnly {
		for i := range pages {
			resp.Count += pages[i].Answer.Count
		}
		return resp, nil
	}
	if err := k.fillPage(ctx, l, pages, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

func newListing(ns *Namespace, req *kvv1.ListRequest) (*listing, *kverr.Error) {
	l := &listing{ns: ns, limit: int(req.PageSize), keysOnly: req.KeysOnly}
	switch {
	case len(req.Prefix) > key.MaxKey:
		return nil, kverr.TooBig("prefix", len(req.Prefix), key.MaxKey, "bytes")
	case len(req.Start) > key.MaxKey:
		return nil, kverr.TooBig("start", len(req.Start), key.MaxKey, "bytes")
	case len(req.End) > key.MaxKey:
		return nil, kverr.TooBig("end", len(req.End), key.MaxKey, "bytes")
	case req.PageSize < 0 || req.PageSize > key.MaxListPage:
		return nil, kverr.Invalid("page_size", "is %d, must be 1 to %d, or 0 for %d", req.PageSize, key.MaxListPage, defaultPageSize)
	case req.CountOnly && len(req.PageToken) > 0:
		return nil, kverr.Invalid("page_token", "is set together with count_only, which has no pages")
	case req.PageSize == 0:
		l.limit = defaultPageSize
	}
	l.bounds = shard.ListQuery{Prefix: req.Prefix, Start: req.Start, End: req.End}
	l.query = queryHash(ns, req)
	if len(req.PageToken) == 0 {
		return l, nil
	}
	last, watch, err := parsePageToken(req.PageToken, l.query)
	if err != nil {
		return nil, kverr.Invalid("page_token", "%v", err)
	}
	l.bounds.After = last
	l.watch = watch
	return l, nil
}

// queryHash covers what a page token is bound to. A namespace made anew under the same name is another one.
func queryHash(ns *Namespace, req *kvv1.ListRequest) uint64 {
	b := appendTokenHead(nil, ns.keyspace.uid)
	b = protowire.AppendVarint(b, uint64(ns.ID))
	b = protowire.AppendBytes(b, req.Prefix)
	b = protowire.AppendBytes(b, req.Start)
	b = protowire.AppendBytes(b, req.End)
	b = protowire.AppendVarint(b, protowire.EncodeBool(req.KeysOnly))
	return xxh3.Hash(b)
}

// maxStepBytes bounds what one step of one shard of several brings.
func maxStepBytes(shards int) int64 { return int64(max(64<<10, maxReplyBytes/shards)) }

// step is the query for the keys of one shard after a key.
func (l *listing) step(q *shard.Query, after []byte, limit int) {
	bounds := l.bounds
	if after != nil {
		bounds.After = after
	}
	bounds.Limit, bounds.MaxBytes, bounds.KeysOnly = limit, maxStepBytes(len(l.ns.keyspace.Shards)), l.keysOnly
	q.Op, q.Namespace, q.List = shard.QueryList, l.ns.ID, &bounds
}

// firstSteps asks every shard for its first keys, or their count, and returns what they found and at which revisions.
func (k *kvService) firstSteps(ctx context.Context, l *listing, count bool) ([]shard.Query, map[*Shard]uint64, *kverr.Error) {
	shards := l.ns.keyspace.Shards
	found, err := k.askEach(ctx, shards, func(_ *Shard, q *shard.Query) {
		l.step(q, nil, firstStep(l.limit, len(shards)))
		if count {
			q.Op = shard.QueryCount
		}
	})
	if err != nil {
		return nil, nil, err
	}
	latest := make(map[*Shard]uint64, len(shards))
	for i := range found {
		if a := &found[i].Answer; a.Err != nil && len(a.Entries) == 0 {
			return nil, nil, a.Err
		}
		latest[shards[i]] = found[i].Answer.Revision
	}
	return found, latest, nil
}

// fillPage fills in one page, merged over the shards.
func (k *kvService) fillPage(ctx context.Context, l *listing, found []shard.Query, resp *kvv1.ListResponse) *kverr.Error {
	m := &merge[shard.Entry]{key: func(e *shard.Entry) []byte { return e.Key }}
	m.more = func(sh *Shard, after []byte, limit int) ([]shard.Entry, bool, *kverr.Error) {
		step, err := k.askEach(ctx, []*Shard{sh}, func(_ *Shard, q *shard.Query) { l.step(q, after, limit) })
		if err != nil {
			return nil, false, err
		}
		a := &step[0].Answer
		if a.Err != nil && len(a.Entries) == 0 { // what comes before an entry that is lost is walked first
			return nil, false, a.Err
		}
		return a.Entries, a.More, nil
	}
	for i, sh := range l.ns.keyspace.Shards {
		a := &found[i].Answer
		m.add(sh, a.Entries, a.More, found[i].List.Limit)
	}
	room := maxReplyBytes - resp.SizeVT() - 2*key.MaxKey - len(l.watch)
	for e := m.head(); e != nil; e = m.head() {
		out := &kvv1.Entry{}
		fillEntry(out, e)
		if !l.keysOnly {
			out.Value = e.Value.Inline
		}
		n := out.SizeVT()
		n += 1 + protowire.SizeVarint(uint64(n))
		if shown := len(resp.Entries); shown == l.limit || shown > 0 && n > room {
			resp.NextPageToken = appendPageToken(nil, l.query, resp.Entries[shown-1].Key, l.watch)
			return nil
		}
		room -= n
		resp.Entries = append(resp.Entries, out)
		if err := m.advance(); err != nil {
			return err
		}
	}
	return nil
}
