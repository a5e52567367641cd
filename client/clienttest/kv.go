package clienttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Sizes at which the server behaves as the real one.
const (
	inlineLimit = 1 << 10 // values over this are left out of List and have a checksum
	unaryLimit  = 3 << 20 // values over this come by GetStream alone
)

// space is one namespace's data.
type space struct {
	entries map[string]*kvstorev1.Entry
	blocks  map[string]*block
	leases  map[string][]*block
}

// space returns a namespace's data; mu is held.
func (s *Server) space(keyspace, namespace string) *space {
	k := or(keyspace, "default") + "/" + or(namespace, "default")
	sp := s.spaces[k]
	if sp == nil {
		sp = &space{entries: map[string]*kvstorev1.Entry{}, blocks: map[string]*block{}, leases: map[string][]*block{}}
		s.spaces[k] = sp
	}
	return sp
}

// check tells whether a precondition holds.
func check(p *kvstorev1.Precondition, e *kvstorev1.Entry) error {
	switch c := p.GetCheck().(type) {
	case *kvstorev1.Precondition_IfVersion:
		if e.GetVersion() != c.IfVersion {
			return kverr.Mismatch(e.GetVersion())
		}
	case *kvstorev1.Precondition_IfAbsent:
		if e != nil {
			return kverr.Exists(e.Version)
		}
	case *kvstorev1.Precondition_IfPresent:
		if e == nil {
			return kverr.Mismatch(0)
		}
	}
	return nil
}

// put applies a put at the current revision; mu is held.
func (s *Server) put(sp *space, op *kvstorev1.PutOp) *kvstorev1.PutResult {
	now := s.now().UnixMilli()
	old := sp.entries[string(op.Key)]
	e := &kvstorev1.Entry{
		Key: bytes.Clone(op.Key), Value: bytes.Clone(op.Value), Version: s.revision, CreatedMs: now, UpdatedMs: now,
		ContentType: op.ContentType, Encoding: op.Encoding, Metadata: op.Metadata, Tags: op.Tags, Size: int64(len(op.Value)),
	}
	if len(op.Value) > inlineLimit {
		e.Checksum = xxh3.Hash(op.Value)
	}
	if op.TtlMs > 0 {
		e.ExpiresMs = now + op.TtlMs
	}
	if old != nil {
		e.CreatedMs = old.CreatedMs
		if op.KeepTtl {
			e.ExpiresMs = old.ExpiresMs
		}
	}
	sp.entries[string(op.Key)] = e
	s.changed(sp, &kvstorev1.WatchEvent{
		Type: kvstorev1.WatchEventType_WATCH_EVENT_TYPE_PUT, Key: e.Key, Value: e.Value, Version: e.Version, PrevVersion: old.GetVersion(),
		Created: old == nil, Size: e.Size,
	})
	return &kvstorev1.PutResult{Version: e.Version, Created: old == nil}
}

func (s *Server) remove(sp *space, key []byte) *kvstorev1.DeleteResult {
	old, ok := sp.entries[string(key)]
	if !ok {
		return &kvstorev1.DeleteResult{}
	}
	delete(sp.entries, string(key))
	s.changed(sp, &kvstorev1.WatchEvent{
		Type: kvstorev1.WatchEventType_WATCH_EVENT_TYPE_DELETE, Key: old.Key, Version: s.revision, PrevVersion: old.Version,
	})
	return &kvstorev1.DeleteResult{Deleted: true, Revision: s.revision}
}

// doPut is one put with precondition and identity: a *PutResult or an error.
func (s *Server) doPut(ks, ns string, op *kvstorev1.PutOp, id *kvstorev1.WriteIdentity, i int) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.once(id, i, func() any {
		sp := s.space(ks, ns)
		if len(op.GetKey()) == 0 {
			return kverr.Invalid("key", "is empty")
		}
		if err := check(op.Precondition, sp.entries[string(op.Key)]); err != nil {
			return err
		}
		s.revision++
		s.applied++
		return s.put(sp, op)
	})
}

func (s *Server) doDelete(ks, ns string, op *kvstorev1.DeleteOp, id *kvstorev1.WriteIdentity, i int) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.once(id, i, func() any {
		sp := s.space(ks, ns)
		if err := check(op.Precondition, sp.entries[string(op.GetKey())]); err != nil {
			return err
		}
		s.revision++
		s.applied++
		return s.remove(sp, op.Key)
	})
}

// item is one item of a batch, with its own faults: those of method "item".
func (s *Server) item(do func() any) any {
	if err := s.Faults.runBefore("item"); err != nil {
		return err
	}
	out := do()
	if err := s.Faults.runAfter("item"); err != nil {
		return err
	}
	return out
}

func (s *Server) doGet(ks, ns string, op *kvstorev1.GetOp) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.space(ks, ns).entries[string(op.GetKey())]
	switch {
	case e == nil:
		return kverr.New(kverr.NotFound, "", "no such key")
	case op.MetadataOnly:
		return withoutValue(e)
	case len(e.Value) > unaryLimit:
		return kverr.New(kverr.ValueTooLarge, "", "use GetStream")
	}
	return e
}

func withoutValue(e *kvstorev1.Entry) *kvstorev1.Entry {
	return &kvstorev1.Entry{
		Key: e.Key, Version: e.Version, CreatedMs: e.CreatedMs, UpdatedMs: e.UpdatedMs, ExpiresMs: e.ExpiresMs,
		ContentType: e.ContentType, Encoding: e.Encoding, Metadata: e.Metadata, Tags: e.Tags, Size: e.Size, Checksum: e.Checksum,
	}
}

// kv is KVService.
type kv struct {
	kvstorev1.UnimplementedKVServiceServer
	*Server
}

func asError(v any) error {
	err, _ := v.(error)
	return err
}

// Put is the RPC.
func (s kv) Put(_ context.Context, r *kvstorev1.PutRequest) (*kvstorev1.PutResponse, error) {
	if err := s.Faults.runBefore("Put"); err != nil {
		return nil, err
	}
	out := s.doPut(r.Keyspace, r.Namespace, r.Put, r.Identity, 0)
	if err := errors.Join(s.Faults.runAfter("Put"), asError(out)); err != nil {
		return nil, kverr.From(err)
	}
	return &kvstorev1.PutResponse{Header: s.header(), Result: out.(*kvstorev1.PutResult)}, nil
}

// Get is the RPC.
func (s kv) Get(_ context.Context, r *kvstorev1.GetRequest) (*kvstorev1.GetResponse, error) {
	if err := s.Faults.runBefore("Get"); err != nil {
		return nil, err
	}
	out := s.doGet(r.Keyspace, r.Namespace, r.Get)
	if err := asError(out); err != nil {
		return nil, err
	}
	return &kvstorev1.GetResponse{Header: s.header(), Entry: out.(*kvstorev1.Entry)}, nil
}

// Delete is the RPC.
func (s kv) Delete(_ context.Context, r *kvstorev1.DeleteRequest) (*kvstorev1.DeleteResponse, error) {
	if err := s.Faults.runBefore("Delete"); err != nil {
		return nil, err
	}
	out := s.doDelete(r.Keyspace, r.Namespace, r.Delete, r.Identity, 0)
	if err := errors.Join(s.Faults.runAfter("Delete"), asError(out)); err != nil {
		return nil, kverr.From(err)
	}
	return &kvstorev1.DeleteResponse{Header: s.header(), Result: out.(*kvstorev1.DeleteResult)}, nil
}

// BatchPut is the RPC.
func (s kv) BatchPut(_ context.Context, r *kvstorev1.BatchPutRequest) (*kvstorev1.BatchPutResponse, error) {
	if err := s.Faults.runBefore("BatchPut"); err != nil {
		return nil, err
	}
	resp := &kvstorev1.BatchPutResponse{Header: s.header()}
	for i, op := range r.Puts {
		item := &kvstorev1.BatchPutResponse_Item{}
		switch out := s.item(func() any { return s.doPut(r.Keyspace, r.Namespace, op, r.Identity, i) }).(type) {
		case *kvstorev1.PutResult:
			item.Outcome = &kvstorev1.BatchPutResponse_Item_Result{Result: out}
		case error:
			item.Outcome = &kvstorev1.BatchPutResponse_Item_Error{Error: kverr.Item(out)}
		}
		resp.Results = append(resp.Results, item)
	}
	return resp, s.Faults.runAfter("BatchPut")
}

// BatchGet is the RPC.
func (s kv) BatchGet(_ context.Context, r *kvstorev1.BatchGetRequest) (*kvstorev1.BatchGetResponse, error) {
	if err := s.Faults.runBefore("BatchGet"); err != nil {
		return nil, err
	}
	resp := &kvstorev1.BatchGetResponse{Header: s.header()}
	for _, op := range r.Gets {
		item := &kvstorev1.BatchGetResponse_Item{}
		switch out := s.item(func() any { return s.doGet(r.Keyspace, r.Namespace, op) }).(type) {
		case *kvstorev1.Entry:
			item.Outcome = &kvstorev1.BatchGetResponse_Item_Entry{Entry: out}
		case error:
			item.Outcome = &kvstorev1.BatchGetResponse_Item_Error{Error: kverr.Item(out)}
		}
		resp.Results = append(resp.Results, item)
	}
	return resp, nil
}

// BatchDelete is the RPC.
func (s kv) BatchDelete(_ context.Context, r *kvstorev1.BatchDeleteRequest) (*kvstorev1.BatchDeleteResponse, error) {
	resp := &kvstorev1.BatchDeleteResponse{Header: s.header()}
	for i, op := range r.Deletes {
		item := &kvstorev1.BatchDeleteResponse_Item{}
		switch out := s.item(func() any { return s.doDelete(r.Keyspace, r.Namespace, op, r.Identity, i) }).(type) {
		case *kvstorev1.DeleteResult:
			item.Outcome = &kvstorev1.BatchDeleteResponse_Item_Result{Result: out}
		case error:
			item.Outcome = &kvstorev1.BatchDeleteResponse_Item_Error{Error: kverr.Item(out)}
		}
		resp.Results = append(resp.Results, item)
	}
	return resp, nil
}

// List is the RPC; the page token is the first key of the next page.
func (s kv) List(_ context.Context, r *kvstorev1.ListRequest) (*kvstorev1.ListResponse, error) {
	if err := s.Faults.runBefore("List"); err != nil {
		return nil, err
	}
	resp := &kvstorev1.ListResponse{Header: s.header()}
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.space(r.Keyspace, r.Namespace)
	var keys []string
	for k := range sp.entries {
		if strings.HasPrefix(k, string(r.Prefix)) && k >= string(r.Start) && (len(r.End) == 0 || k < string(r.End)) &&
			k >= string(r.PageToken) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if r.CountOnly {
		resp.Count = int64(len(keys))
		return resp, nil
	}
	if r.PageSize < 0 || r.PageSize > 1000 {
		return nil, kverr.Invalid("page_size", "is %d; 0 to 1000 are allowed", r.PageSize)
	}
	size := int(r.PageSize)
	if size == 0 {
		size = 100
	}
	for i, k := range keys {
		if i == size {
			resp.NextPageToken = []byte(k)
			break
		}
		e := sp.entries[k]
		if r.KeysOnly || len(e.Value) > inlineLimit {
			e = withoutValue(e)
		}
		resp.Entries = append(resp.Entries, e)
	}
	return resp, nil
}

// Transaction is the RPC. One {hash tag} is one partition.
func (s kv) Transaction(_ context.Context, r *kvstorev1.TransactionRequest) (*kvstorev1.TransactionResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.once(r.Identity, 0, func() any { return s.transact(r) })
	if err := errors.Join(s.Faults.runAfter("Transaction"), asError(out)); err != nil {
		return nil, kverr.From(err)
	}
	return out.(*kvstorev1.TransactionResponse), nil
}

func (s *Server) transact(r *kvstorev1.TransactionRequest) any {
	sp := s.space(r.Keyspace, r.Namespace)
	resp := &kvstorev1.TransactionResponse{Header: &kvstorev1.ResponseHeader{ServerTimeMs: s.now().UnixMilli()}}
	var parts []string
	test := func(key []byte, p *kvstorev1.Precondition, cond, op int32) {
		parts = append(parts, partition(string(key)))
		if e := sp.entries[string(key)]; check(p, e) != nil {
			resp.Failures = append(resp.Failures, &kvstorev1.TransactionResponse_Failure{
				Condition: cond, Op: op, Key: key, CurrentVersion: e.GetVersion(),
			})
		}
	}
	for i, c := range r.Conditions {
		test(c.Key, c.Precondition, int32(i), -1)
	}
	for i, op := range r.Ops {
		if p := op.GetPut(); p != nil {
			test(p.Key, p.Precondition, -1, int32(i))
		} else {
			test(op.GetDelete().Key, op.GetDelete().Precondition, -1, int32(i))
		}
	}
	slices.Sort(parts)
	if len(slices.Compact(parts)) > 1 {
		return kverr.New(kverr.CrossPartition, "", "the keys lie in several partitions")
	}
	if len(resp.Failures) > 0 {
		return resp
	}
	s.revision++
	s.applied++
	resp.Committed, resp.Revision = true, s.revision
	for _, op := range r.Ops {
		res := &kvstorev1.TransactionResponse_OpResult{}
		if p := op.GetPut(); p != nil {
			res.Result = &kvstorev1.TransactionResponse_OpResult_Put{Put: s.put(sp, p)}
		} else {
			res.Result = &kvstorev1.TransactionResponse_OpResult_Delete{Delete: s.remove(sp, op.GetDelete().Key)}
		}
		resp.Results = append(resp.Results, res)
	}
	return resp
}

// partition is the partition rule hash_tag.
func partition(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	return key
}

// Pipeline is the RPC.
func (s kv) Pipeline(stream grpc.BidiStreamingServer[kvstorev1.PipelineRequest, kvstorev1.PipelineResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Faults.runBefore("Pipeline"); err != nil {
			return err
		}
		resp := &kvstorev1.PipelineResponse{Header: s.header()}
		for _, op := range r.Ops {
			s.Faults.runOps(op)
			resp.Results = append(resp.Results, s.one(r, op))
		}
		if err := s.Faults.runAfter("Pipeline"); err != nil {
			return err
		}
		for _, m := range s.Faults.runReplies(resp) {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
}

func (s *Server) one(r *kvstorev1.PipelineRequest, op *kvstorev1.PipelineRequest_Op) *kvstorev1.PipelineResponse_Result {
	var id *kvstorev1.WriteIdentity
	if op.IdentityOp != 0 {
		id = &kvstorev1.WriteIdentity{Client: r.IdentityClient, Op: op.IdentityOp, NotAfterMs: r.NotAfterMs}
	}
	var out any
	switch o := op.Op.(type) {
	case *kvstorev1.PipelineRequest_Op_Put:
		out = s.doPut(r.Keyspace, r.Namespace, o.Put, id, 0)
	case *kvstorev1.PipelineRequest_Op_Get:
		out = s.doGet(r.Keyspace, r.Namespace, o.Get)
	case *kvstorev1.PipelineRequest_Op_Delete:
		out = s.doDelete(r.Keyspace, r.Namespace, o.Delete, id, 0)
	}
	res := &kvstorev1.PipelineResponse_Result{Id: op.Id}
	switch out := out.(type) {
	case *kvstorev1.PutResult:
		res.Outcome = &kvstorev1.PipelineResponse_Result_Put{Put: out}
	case *kvstorev1.Entry:
		res.Outcome = &kvstorev1.PipelineResponse_Result_Entry{Entry: out}
	case *kvstorev1.DeleteResult:
		res.Outcome = &kvstorev1.PipelineResponse_Result_Delete{Delete: out}
	case error:
		res.Outcome = &kvstorev1.PipelineResponse_Result_Error{Error: kverr.Item(out)}
	}
	return res
}

// GetStream is the RPC.
func (s kv) GetStream(r *kvstorev1.GetStreamRequest, stream grpc.ServerStreamingServer[kvstorev1.GetStreamResponse]) error {
	if err := s.Faults.runBefore("GetStream"); err != nil {
		return err
	}
	s.mu.Lock()
	e := s.space(r.Keyspace, r.Namespace).entries[string(r.Key)]
	s.mu.Unlock()
	if e == nil {
		return kverr.New(kverr.NotFound, "", "no such key")
	}
	err := stream.Send(&kvstorev1.GetStreamResponse{
		Header: s.header(), Part: &kvstorev1.GetStreamResponse_Entry{Entry: withoutValue(e)},
	})
	for chunk := range slices.Chunk(e.Value, 100_000) {
		if err != nil {
			return err
		}
		err = stream.Send(&kvstorev1.GetStreamResponse{Part: &kvstorev1.GetStreamResponse_Chunk{Chunk: chunk}})
	}
	return err
}

// PutStream is the RPC.
func (s kv) PutStream(stream grpc.ClientStreamingServer[kvstorev1.PutStreamRequest, kvstorev1.PutStreamResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := s.Faults.runBefore("PutStream"); err != nil {
		return err
	}
	head := first.GetHead()
	var value []byte
	for int64(len(value)) <= head.GetSize() {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		value = append(value, m.GetChunk()...)
	}
	if int64(len(value)) != head.GetSize() {
		return kverr.Invalid("size", "is %d, but %d bytes came", head.GetSize(), len(value))
	}
	head.Put.Value = value
	out := s.doPut(head.Keyspace, head.Namespace, head.Put, head.Identity, 0)
	if err := errors.Join(s.Faults.runAfter("PutStream"), asError(out)); err != nil {
		return kverr.From(err)
	}
	return stream.SendAndClose(&kvstorev1.PutStreamResponse{Header: s.header(), Result: out.(*kvstorev1.PutResult)})
}
