package frontend

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// batch is a request of many writes on its way. Items that validation refused have their error in Result already.
type batch struct {
	ns     *Namespace
	cmds   []shard.Command
	shards []*Shard // by item
}

func newBatch(ns *Namespace, n int) *batch {
	return &batch{ns: ns, cmds: make([]shard.Command, n), shards: make([]*Shard, n)}
}

// run stores values that go apart, sends what is valid and waits.
func (b *batch) run(ctx context.Context, s *Server) *kverr.Error {
	groups := make(map[string][]*shard.Command)
	for i := range b.cmds {
		if b.cmds[i].Result.Err == nil {
			groups[b.shards[i].ID] = append(groups[b.shards[i].ID], &b.cmds[i])
		}
	}
	for id, cmds := range groups {
		puts := make([]*shard.Put, 0, len(cmds))
		for _, c := range cmds {
			if c.Op == shard.OpPut {
				puts = append(puts, &c.Put)
			}
		}
		if err := s.storeApart(ctx, id, puts); err != nil {
			kept := cmds[:0]
			for _, c := range cmds {
				if c.Op == shard.OpPut && len(c.Put.Value.Inline) > s.cfg.InlineLimit {
					c.Result.Err = err
				} else {
					kept = append(kept, c)
				}
			}
			groups[id] = kept
		}
	}
	return s.doAll(ctx, groups)
}

// storeApart stores those values of puts that are over the inline limit, in one object, and puts the references in their
// place. After an error nothing is changed.
func (s *Server) storeApart(ctx context.Context, shardID string, puts []*shard.Put) *kverr.Error {
	var big []*shard.Put
	var values [][]byte
	for _, p := range puts {
		if len(p.Value.Inline) > s.cfg.InlineLimit {
			big = append(big, p)
			values = append(values, p.Value.Inline)
		}
	}
	if len(big) == 0 {
		return nil
	}
	refs, err := s.shards.PutValues(ctx, shardID, values...)
	if err != nil {
		return kverr.From(err)
	}
	for i, p := range big {
		p.Value = shard.Value{Ref: refs[i]}
	}
	return nil
}

// header makes a header whose token names every shard that the batch changed.
func (b *batch) header(s *Server) *kvv1.ResponseHeader {
	latest := make(map[*Shard]uint64)
	for i := range b.cmds {
		if r := &b.cmds[i].Result; r.Revision > 0 {
			latest[b.shards[i]] = max(latest[b.shards[i]], r.Revision)
		}
	}
	return s.headerOf(b.ns, latest)
}

// headerOf makes a header whose token names several shards.
func (s *Server) headerOf(ns *Namespace, latest map[*Shard]uint64) *kvv1.ResponseHeader {
	return &kvv1.ResponseHeader{ServerTimeMs: s.now(), Token: tokenOf(ns, latest)}
}

func tokenOf(ns *Namespace, latest map[*Shard]uint64) []byte {
	token := appendTokenHead(make([]byte, 0, 16+22*len(latest)), ns.keyspace.uid)
	for _, sh := range ns.keyspace.Shards {
		if revision, ok := latest[sh]; ok {
			token = appendPosition(token, position{shard: sh.Number, revision: revision})
		}
	}
	return token
}

// checkBatch bounds a batch: key.MaxBatchOps operations and key.MaxBatch, or one value alone however long.
func checkBatch(field string, ops, bytes int) *kverr.Error {
	switch {
	case ops == 0:
		return kverr.Invalid(field, "is empty; a batch has 1 to %d operations", key.MaxBatchOps)
	case ops > key.MaxBatchOps:
		return kverr.TooBig(field, ops, key.MaxBatchOps, "operations")
	case ops > 1 && bytes > key.MaxBatch:
		return kverr.TooBig(field, bytes, key.MaxBatch, "bytes together")
	}
	return nil
}

// putBytes is what a put counts for limits.
func putBytes(p *kvv1.PutOp) int {
	n := len(p.GetKey()) + len(p.GetValue()) + len(p.GetContentType()) + len(p.GetEncoding())
	for name, value := range p.GetMetadata() {
		n += len(name) + len(value)
	}
	for name, value := range p.GetTags() {
		n += len(name) + len(value)
	}
	return n
}

func (k *kvService) BatchPut(ctx context.Context, req *kvv1.BatchPutRequest) (*kvv1.BatchPutResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	bytes := 0
	for _, p := range req.Puts {
		bytes += putBytes(p)
	}
	if err := checkBatch("puts", len(req.Puts), bytes); err != nil {
		return nil, err
	}
	k.owe(ctx, ns, len(req.Puts)-1)
	id, err := k.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	b := newBatch(ns, len(req.Puts))
	for i, op := range req.Puts {
		c := &b.cmds[i]
		c.Op, c.Namespace, c.ID, c.Put = shard.OpPut, ns.ID, id, putOf(op)
		c.ID.Index = uint32(i)
		if err := k.checkPutWithValue(&c.Put); err != nil {
			c.Result.Err = within(fmt.Sprintf("puts[%d]", i), err)
			continue
		}
		ns.applyDefaults(&c.Put)
		b.shards[i] = ns.place(&c.Put)
	}
	if err := b.run(ctx, k.Server); err != nil {
		return nil, err
	}
	resp := &kvv1.BatchPutResponse{Results: make([]*kvv1.BatchPutResponse_Item, len(b.cmds))}
	for i := range b.cmds {
		item := &kvv1.BatchPutResponse_Item{}
		if r := &b.cmds[i].Result; r.Err != nil {
			item.Outcome = &kvv1.BatchPutResponse_Item_Error{Error: k.item("BatchPut", r.Err)}
		} else {
			item.Outcome = &kvv1.BatchPutResponse_Item_Result{Result: &kvv1.PutResult{Version: r.Write.Version, Created: !r.Write.Existed}}
		}
		resp.Results[i] = item
	}
	resp.Header = b.header(k.Server)
	return resp, nil
}

func (k *kvService) BatchDelete(ctx context.Context, req *kvv1.BatchDeleteRequest) (*kvv1.BatchDeleteResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	bytes := 0
	for _, d := range req.Deletes {
		bytes += len(d.GetKey())
	}
	if err := checkBatch("deletes", len(req.Deletes), bytes); err != nil {
		return nil, err
	}
	k.owe(ctx, ns, len(req.Deletes)-1)
	id, err := k.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	b := newBatch(ns, len(req.Deletes))
	for i, op := range req.Deletes {
		c := &b.cmds[i]
		c.Op, c.Namespace, c.ID = shard.OpDelete, ns.ID, id
		c.Delete = shard.Delete{Key: op.GetKey(), If: precondition(op.GetPrecondition())}
		c.ID.Index = uint32(i)
		if err := checkDelete(&c.Delete); err != nil {
			c.Result.Err = within(fmt.Sprintf("deletes[%d]", i), err)
			continue
		}
		b.shards[i] = ns.placeDelete(&c.Delete)
	}
	if err := b.run(ctx, k.Server); err != nil {
		return nil, err
	}
	resp := &kvv1.BatchDeleteResponse{Results: make([]*kvv1.BatchDeleteResponse_Item, len(b.cmds))}
	for i := range b.cmds {
		item := &kvv1.BatchDeleteResponse_Item{}
		if r := &b.cmds[i].Result; r.Err != nil {
			item.Outcome = &kvv1.BatchDeleteResponse_Item_Error{Error: k.item("BatchDelete", r.Err)}
		} else {
			result := &kvv1.DeleteResult{}
			fillDelete(result, r.Write)
			item.Outcome = &kvv1.BatchDeleteResponse_Item_Result{Result: result}
		}
		resp.Results[i] = item
	}
	resp.Header = b.header(k.Server)
	return resp, nil
}

func (k *kvService) BatchGet(ctx context.Context, req *kvv1.BatchGetRequest) (*kvv1.BatchGetResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	if err := checkBatch("gets", len(req.Gets), 0); err != nil {
		return nil, err
	}
	k.owe(ctx, ns, len(req.Gets)-1)
	items, latest, err := k.lookUpAll(ctx, ns, req.Gets)
	if err != nil {
		return nil, err
	}
	room := &replyRoom{left: maxReplyBytes - len(items)*batchItemReserve}
	for i := range items {
		items[i].fill(room)
	}
	if err := k.fetchAll(ctx, ns, items, room); err != nil {
		return nil, err
	}
	resp := &kvv1.BatchGetResponse{Header: k.headerOf(ns, latest), Results: make([]*kvv1.BatchGetResponse_Item, len(items))}
	for i := range items {
		item := &kvv1.BatchGetResponse_Item{}
		if err := items[i].err; err != nil {
			item.Outcome = &kvv1.BatchGetResponse_Item_Error{Error: k.item("BatchGet", within(fmt.Sprintf("gets[%d]", i), err))}
		} else {
			item.Outcome = &kvv1.BatchGetResponse_Item_Entry{Entry: items[i].entry}
		}
		resp.Results[i] = item
	}
	return resp, nil
}

// batchItemReserve is kept free in a reply for each item: framing, and the error of one that does not fit.
const batchItemReserve = 512

// maxFetches is how many values that lie apart a batch reads at once.
const maxFetches = 8

// batchGet is one get of a batch.
type batchGet struct {
	op    *kvv1.GetOp
	shard *Shard
	query shard.Query
	entry *kvv1.Entry
	taken int // bytes of the reply that entry and value take
	err   *kverr.Error
}

// lookUpAll asks for the entries of all gets, each shard once, and tells the newest revisions seen.
func (k *kvService) lookUpAll(ctx context.Context, ns *Namespace, gets []*kvv1.GetOp) ([]batchGet, map[*Shard]uint64, *kverr.Error) {
	items := make([]batchGet, len(gets))
	byShard := make(map[*Shard][]*shard.Query)
	for i, op := range gets {
		g := &items[i]
		g.op = op
		if g.err = checkKey("key", op.GetKey()); g.err != nil {
			continue
		}
		g.shard = ns.ShardOf(op.Key)
		g.query.Op, g.query.Namespace, g.query.Key = shard.QueryGet, ns.ID, op.Key
		byShard[g.shard] = append(byShard[g.shard], &g.query)
	}
	questions := make([]question, 0, len(byShard))
	for sh, queries := range byShard {
		questions = append(questions, question{sh, queries})
	}
	if err := k.readAll(ctx, questions); err != nil {
		return nil, nil, err
	}
	latest := make(map[*Shard]uint64, len(byShard))
	for i := range items {
		g := &items[i]
		if g.err == nil {
			g.err = g.query.Answer.Err
		}
		if g.err == nil {
			latest[g.shard] = max(latest[g.shard], g.query.Answer.Revision)
		}
	}
	return items, latest, nil
}

// fill makes the entry of a get that was answered, without a value that lies apart, and takes room for both.
func (g *batchGet) fill(room *replyRoom) {
	a := &g.query.Answer
	switch {
	case g.err != nil:
		return
	case !a.Found:
		g.err = errKeyAbsent
		return
	}
	g.entry = &kvv1.Entry{}
	fillEntry(g.entry, &a.Entry)
	value := 0
	if !g.op.MetadataOnly {
		g.entry.Value = a.Entry.Value.Inline
		if apart(&a.Entry.Value) {
			value = int(min(a.Entry.Value.Ref.Length, maxReplyBytes)) + protowire.SizeVarint(maxReplyBytes) + 1
		}
	}
	n := g.entry.SizeVT() + value
	g.taken = n + protowire.SizeVarint(uint64(n))
	if !room.take(g.taken) {
		g.err, g.entry = errUseGetStream, nil
	}
}

// fetchAll reads the values that lie apart, some at a time.
func (k *kvService) fetchAll(ctx context.Context, ns *Namespace, items []batchGet, room *replyRoom) *kverr.Error {
	next := make(chan *batchGet)
	var workers sync.WaitGroup
	started := 0
	for i := range items {
		g := &items[i]
		if g.err != nil || g.op.MetadataOnly || !apart(&g.query.Answer.Entry.Value) {
			continue
		}
		if started < maxFetches {
			started++
			workers.Go(func() {
				for g := range next {
					k.fetchOne(ctx, ns, g, room)
				}
			})
		}
		next <- g
	}
	close(next)
	workers.Wait()
	if ctx.Err() != nil {
		return gaveUp(ctx)
	}
	return nil
}

// fetchOne reads the value of one get.
func (k *kvService) fetchOne(ctx context.Context, ns *Namespace, g *batchGet, room *replyRoom) {
	if ctx.Err() != nil {
		return
	}
	held := int(g.query.Answer.Entry.Value.Ref.Length)
	alloc := func(n int) []byte {
		if n > held { // it was rewritten, and is longer now
			if !room.take(n - held) {
				return nil
			}
			g.taken += n - held
			held = n
		}
		return make([]byte, n)
	}
	a := &g.query.Answer
	f, value, err := k.fetch(ctx, ns, g.shard, g.op.Key, found{entry: a.Entry, ok: true, revision: a.Revision}, alloc)
	switch {
	case err != nil:
		g.err = err
	case !f.ok:
		g.err = errKeyAbsent
	default:
		fillEntry(g.entry, &f.entry)
		g.entry.Value = value
		if n := g.entry.SizeVT(); n > g.taken && !room.take(n-g.taken) {
			g.err = errUseGetStream
		}
	}
}

// replyRoom is what a reply may still take.
type replyRoom struct {
	mu   sync.Mutex
	left int // guarded by mu
}

func (r *replyRoom) take(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n > r.left {
		return false
	}
	r.left -= n
	return true
}
