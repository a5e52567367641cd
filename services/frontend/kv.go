package frontend

import (
	"context"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// kvService is the KVService. Unary Get and Put are hot: each answers with one allocation for everything in its reply.
type kvService struct {
	kvv1.UnimplementedKVServiceServer
	*Server
}

type getReply struct {
	resp   kvv1.GetResponse
	header kvv1.ResponseHeader
	entry  kvv1.Entry
	token  [maxTokenBytes]byte
}

func (k *kvService) Get(ctx context.Context, req *kvv1.GetRequest) (*kvv1.GetResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	if err := checkKey("get.key", req.GetGet().GetKey()); err != nil {
		return nil, err
	}
	sh := ns.ShardOf(req.Get.Key)
	alloc := allocReply
	if req.Get.MetadataOnly {
		alloc = nil
	}
	f, value, err := k.find(ctx, ns, sh, req.Get.Key, alloc)
	if err != nil {
		return nil, err
	}
	if !f.ok {
		return nil, statusKeyAbsent
	}
	r := &getReply{}
	fillEntry(&r.entry, &f.entry)
	if !req.Get.MetadataOnly {
		r.entry.Value = value
	}
	k.fillHeader(&r.header, r.token[:0], sh, f.revision)
	r.resp.Header, r.resp.Entry = &r.header, &r.entry
	return &r.resp, nil
}

// allocReply makes room for a value in a unary reply; nil when it is too long for one.
func allocReply(n int) []byte {
	if n > maxReplyBytes-maxEntryOverhead {
		return nil
	}
	return make([]byte, n)
}

// maxEntryOverhead is more than an entry takes beside its value.
const maxEntryOverhead = key.MaxKey + key.MaxContentType + key.MaxEncoding + maxMetadataBytes + key.MaxTags*key.MaxTag + 2<<10

// fillEntry fills in all but the value.
func fillEntry(out *kvv1.Entry, e *shard.Entry) {
	out.Key = e.Key
	out.Version = e.Version
	out.CreatedMs, out.UpdatedMs, out.ExpiresMs = e.CreatedMS, e.UpdatedMS, e.ExpiresMS
	out.ContentType, out.Encoding = e.ContentType, e.Encoding
	out.Metadata, out.Tags = mapOf(e.Metadata()), mapOf(e.Tags())
	out.Size = e.Size()
	out.Checksum = 0
	if apart(&e.Value) {
		out.Checksum = e.Value.Ref.Checksum
	}
}

type putReply struct {
	resp   kvv1.PutResponse
	header kvv1.ResponseHeader
	result kvv1.PutResult
	token  [maxTokenBytes]byte
}

func (k *kvService) Put(ctx context.Context, req *kvv1.PutRequest) (*kvv1.PutResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	id, err := k.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	put := putOf(req.Put)
	if err := within("put", k.checkPutWithValue(&put)); err != nil {
		return nil, err
	}
	result, revision, sh, err := k.put(ctx, ns, put, id)
	if err != nil {
		return nil, err
	}
	r := &putReply{}
	r.result.Version, r.result.Created = result.Version, !result.Existed
	k.fillHeader(&r.header, r.token[:0], sh, revision)
	r.resp.Header, r.resp.Result = &r.header, &r.result
	return &r.resp, nil
}

// put applies one validated put. A value over the inline limit is stored first.
func (k *kvService) put(ctx context.Context, ns *Namespace, put shard.Put, id shard.Identity) (shard.WriteResult, uint64, *Shard, *kverr.Error) {
	ns.applyDefaults(&put)
	sh := ns.place(&put)
	if len(put.Value.Inline) > k.cfg.InlineLimit {
		refs, err := k.shards.PutValues(ctx, sh.ID, put.Value.Inline)
		if err != nil {
			return shard.WriteResult{}, 0, sh, kverr.From(err)
		}
		put.Value = shard.Value{Ref: refs[0]}
	}
	c := newCall()
	c.cmd.Op, c.cmd.Namespace, c.cmd.ID, c.cmd.Put = shard.OpPut, ns.ID, id, put
	if err := k.do(ctx, sh.ID, c); err != nil {
		return shard.WriteResult{}, 0, sh, err
	}
	result, revision, err := c.cmd.Result.Write, c.cmd.Result.Revision, c.cmd.Result.Err
	c.free()
	return result, revision, sh, err
}

// checkPutWithValue validates a put that came in one message.
func (s *Server) checkPutWithValue(p *shard.Put) *kverr.Error {
	if n, limit := int64(len(p.Value.Inline)), min(s.cfg.MaxValueBytes, maxUnaryValue); n > limit {
		err := kverr.TooBig("value", n, limit, "bytes")
		if limit < s.cfg.MaxValueBytes {
			err.Message += " (PutStream takes more)"
		}
		return err
	}
	return checkPut(p)
}

type deleteReply struct {
	resp   kvv1.DeleteResponse
	header kvv1.ResponseHeader
	result kvv1.DeleteResult
	token  [maxTokenBytes]byte
}

func (k *kvService) Delete(ctx context.Context, req *kvv1.DeleteRequest) (*kvv1.DeleteResponse, error) {
	ns, err := k.keyNamespace(ctx, req.Keyspace, req.Namespace)
	if err != nil {
		return nil, err
	}
	id, err := k.identityOf(req.Identity)
	if err != nil {
		return nil, err
	}
	del := shard.Delete{Key: req.GetDelete().GetKey(), If: precondition(req.GetDelete().GetPrecondition())}
	if err := within("delete", checkDelete(&del)); err != nil {
		return nil, err
	}
	sh := ns.placeDelete(&del)
	c := newCall()
	c.cmd.Op, c.cmd.Namespace, c.cmd.ID, c.cmd.Delete = shard.OpDelete, ns.ID, id, del
	if err := k.do(ctx, sh.ID, c); err != nil {
		return nil, err
	}
	result, revision, err := c.cmd.Result.Write, c.cmd.Result.Revision, c.cmd.Result.Err
	c.free()
	if err != nil {
		return nil, err
	}
	r := &deleteReply{}
	fillDelete(&r.result, result)
	k.fillHeader(&r.header, r.token[:0], sh, revision)
	r.resp.Header, r.resp.Result = &r.header, &r.result
	return &r.resp, nil
}

func checkDelete(d *shard.Delete) *kverr.Error {
	if err := checkKey("key", d.Key); err != nil {
		return err
	}
	return checkPrecondition(d.If)
}

func fillDelete(out *kvv1.DeleteResult, w shard.WriteResult) {
	out.Deleted = w.Existed
	out.Revision = w.Version
}

// fillHeader fills in a header whose token names one shard.
func (s *Server) fillHeader(h *kvv1.ResponseHeader, token []byte, sh *Shard, revision uint64) {
	h.ServerTimeMs = s.now()
	h.Token = appendPosition(appendTokenHead(token, sh.keyspace.uid), position{shard: sh.Number, revision: revision})
}
