package frontend

import (
	"bytes"
	"container/heap"
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
	ns, err := k.namespace(ctx, req.Keyspace, req.Namespace, kvv1.NamespaceKind_NAMESPACE_KIND_KV)
	if err != nil {
		return nil, err
	}
	l, err := newListing(ns, req)
	if err != nil {
		return nil, err
	}
	views, latest, err := k.views(ctx, ns)
	if err != nil {
		return nil, err
	}
	resp := &kvv1.ListResponse{Header: k.headerOf(ns, latest)}
	if l.watch == nil {
		l.watch = tokenOf(ns, latest)
	}
	resp.WatchToken = l.watch
	if req.CountOnly {
		for _, v := range views {
			if ctx.Err() != nil {
				return nil, gaveUp(ctx)
			}
			resp.Count += v.Count(ns.ID, l.bounds)
		}
		return resp, nil
	}
	if err := l.page(views, resp); err != nil {
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

// views takes the last durable view of every shard of a keyspace, and its revision.
func (s *Server) views(ctx context.Context, ns *Namespace) ([]shard.View, map[*Shard]uint64, *kverr.Error) {
	views := make([]shard.View, len(ns.keyspace.Shards))
	latest := make(map[*Shard]uint64, len(views))
	for i, sh := range ns.keyspace.Shards {
		v, err := s.shards.View(ctx, sh.ID)
		if err != nil {
			return nil, nil, kverr.From(err)
		}
		views[i], latest[sh] = v, v.Revision()
	}
	return views, latest, nil
}

// page fills in one page, merged over the shards.
func (l *listing) page(views []shard.View, resp *kvv1.ListResponse) *kverr.Error {
	m, err := newMerge(views, l)
	if err != nil {
		return err
	}
	room := maxReplyBytes - resp.SizeVT() - 2*key.MaxKey - len(l.watch)
	for len(m) > 0 {
		out := &kvv1.Entry{}
		fillEntry(out, m[0].entry())
		if !l.keysOnly {
			out.Value = m[0].entry().Value.Inline
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

// merge walks several shards in the order of keys: a heap of cursors, none at its end. A key is in one shard alone.
type merge []*cursor

// cursor walks one shard in steps.
type cursor struct {
	view  shard.View
	ns    shard.NamespaceID
	query shard.ListQuery
	step  []shard.Entry // not walked yet; never empty in a merge
	more  bool          // there are entries after step
}

func (c *cursor) entry() *shard.Entry { return &c.step[0] }

// fill takes the next step; false at the end. What comes before an entry that is lost is walked first.
func (c *cursor) fill() (bool, *kverr.Error) {
	var err *kverr.Error
	if c.step, c.more, err = c.view.List(c.ns, c.query); err != nil && len(c.step) == 0 {
		return false, err
	}
	return len(c.step) > 0, nil
}

func (c *cursor) advance() (bool, *kverr.Error) {
	if len(c.step) > 1 || !c.more {
		c.step = c.step[1:]
		return len(c.step) > 0, nil
	}
	c.query.After = c.step[0].Key
	return c.fill()
}

func newMerge(views []shard.View, l *listing) (merge, *kverr.Error) {
	var m merge
	for _, v := range views {
		c := &cursor{view: v, ns: l.ns.ID, query: l.bounds}
		c.query.Limit = l.limit/len(views) + 8 // keys spread evenly, so a second step is rare
		some, err := c.fill()
		if err != nil {
			return nil, err
		}
		if some {
			m = append(m, c)
		}
	}
	heap.Init(&m)
	return m, nil
}

func (m *merge) advance() *kverr.Error {
	some, err := (*m)[0].advance()
	switch {
	case err != nil:
		return err
	case some:
		heap.Fix(m, 0)
	default:
		heap.Pop(m)
	}
	return nil
}

func (m merge) Len() int           { return len(m) }
func (m merge) Less(i, j int) bool { return bytes.Compare(m[i].entry().Key, m[j].entry().Key) < 0 }
func (m merge) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }

// Push adds a cursor.
func (m *merge) Push(c any) { *m = append(*m, c.(*cursor)) }

// Pop takes the last cursor.
func (m *merge) Pop() any {
	last := len(*m) - 1
	c := (*m)[last]
	*m = (*m)[:last]
	return c
}
