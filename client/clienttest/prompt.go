package clienttest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// block is a stored prompt block.
type block struct {
	scope  *kvstorev1.Scope
	ref    *kvstorev1.BlockRef
	parent []byte
	data   []byte
	sum    uint64
	leases int
	pinned int64
	seq    uint64 // of its last touch
}

func scopeKey(s *kvstorev1.Scope) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.GetFields())) {
		if v := s.Fields[k]; v != "" {
			fmt.Fprintf(&b, "%q=%q ", k, v)
		}
	}
	return b.String()
}

func blockKey(s *kvstorev1.Scope, r *kvstorev1.BlockRef) string {
	return fmt.Sprintf("%s|%q.%d.%d", scopeKey(s), r.Id, r.Rank, r.Group)
}

// prompt is PromptCacheService.
type prompt struct {
	kvstorev1.UnimplementedPromptCacheServiceServer
	*Server
}

// promptSpace returns the data of a namespace that must be of kind prompt; mu is held.
func (s *Server) promptSpace(keyspace, namespace string) (*space, error) {
	ns := s.namespaces[or(keyspace, "default")+"/"+or(namespace, "default")]
	if ns == nil {
		return nil, kverr.New(kverr.NotFound, "", "no namespace %q", namespace)
	}
	if ns.Kind != kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT {
		return nil, kverr.New(kverr.WrongKind, "", "namespace %q does not hold prompt blocks", ns.Name)
	}
	return s.space(keyspace, namespace), nil
}

func (s *Server) touch(b *block) {
	s.revision++
	b.seq = s.revision
}

// Lookup is the RPC.
func (s prompt) Lookup(_ context.Context, r *kvstorev1.LookupRequest) (*kvstorev1.LookupResponse, error) {
	if err := s.Faults.runBefore("Lookup"); err != nil {
		return nil, err
	}
	resp := &kvstorev1.LookupResponse{Header: s.header(), Bitmap: make([]byte, (len(r.Blocks)+7)/8)}
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(r.Keyspace, r.Namespace)
	if err != nil {
		return nil, err
	}
	var held []*block
	for i, ref := range r.Blocks {
		b := sp.blocks[blockKey(r.Scope, ref)]
		if b == nil {
			if r.Mode != kvstorev1.LookupMode_LOOKUP_MODE_ALL {
				break
			}
			continue
		}
		s.touch(b)
		held = append(held, b)
		resp.Count++
		resp.Bitmap[i/8] |= 1 << (i % 8)
		resp.Blocks = append(resp.Blocks, &kvstorev1.BlockInfo{
			Index: uint32(i), Size: int64(len(b.data)), Checksum: b.sum, Tier: "memory", PinnedUntilMs: b.pinned,
		})
	}
	if r.LeaseMs > 0 && len(held) > 0 {
		for _, b := range held {
			b.leases++
		}
		s.revision++
		resp.Lease = fmt.Appendf(nil, "lease %d", s.revision)
		resp.LeaseExpiresMs = s.now().UnixMilli() + r.LeaseMs
		sp.leases[string(resp.Lease)] = held
	}
	return resp, nil
}

// Read is the RPC. Blocks go in chunks of at most 100,000 bytes.
func (s prompt) Read(r *kvstorev1.ReadRequest, stream grpc.ServerStreamingServer[kvstorev1.ReadResponse]) error {
	for i, ref := range r.Blocks {
		if err := s.Faults.runBefore("Read"); err != nil {
			return err
		}
		s.mu.Lock()
		sp, err := s.promptSpace(r.Keyspace, r.Namespace)
		var b *block
		if err == nil {
			b = sp.blocks[blockKey(r.Scope, ref)]
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if b == nil {
			err := stream.Send(&kvstorev1.ReadResponse{Index: uint32(i), End: kvstorev1.BlockStatus_BLOCK_STATUS_MISS})
			if err != nil || r.OnMiss != kvstorev1.OnMiss_ON_MISS_SKIP {
				return err
			}
			continue
		}
		m := &kvstorev1.ReadResponse{
			Index: uint32(i), Header: &kvstorev1.ReadResponse_Header{Size: int64(len(b.data)), Checksum: b.sum},
		}
		rest := b.data
		for {
			m.Chunk, rest = rest[:min(len(rest), 100_000)], rest[min(len(rest), 100_000):]
			if len(rest) == 0 {
				m.End = kvstorev1.BlockStatus_BLOCK_STATUS_OK
			}
			if err := stream.Send(m); err != nil {
				return err
			}
			if len(rest) == 0 {
				break
			}
			m = &kvstorev1.ReadResponse{Index: uint32(i)}
		}
	}
	return nil
}

// Write is the RPC.
func (s prompt) Write(stream grpc.ClientStreamingServer[kvstorev1.WriteRequest, kvstorev1.WriteResponse]) error {
	var head *kvstorev1.WriteRequest_Head
	var hdr *kvstorev1.WriteRequest_Header
	var data []byte
	resp := &kvstorev1.WriteResponse{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.Faults.runBefore("Write"); err != nil {
			return err
		}
		if head == nil {
			head = m.Head
		}
		if m.Header != nil {
			if hdr != nil {
				return kverr.Invalid("header", "opens a block while %d bytes of the one before are missing", hdr.Size-int64(len(data)))
			}
			hdr, data = m.Header, nil
		}
		data = append(data, m.Chunk...)
		if hdr == nil || int64(len(data)) < hdr.Size {
			continue
		}
		var res *kvstorev1.WriteResponse_Result
		if err := s.Faults.runBefore("item"); err != nil {
			res = &kvstorev1.WriteResponse_Result{Outcome: &kvstorev1.WriteResponse_Result_Error{Error: kverr.Item(err)}}
		} else if res, err = s.store(head, hdr, data); err != nil {
			return err
		}
		resp.Results = append(resp.Results, res)
		hdr = nil
	}
	if hdr != nil {
		return kverr.Invalid("chunk", "the last block is not complete")
	}
	if err := s.Faults.runAfter("Write"); err != nil {
		return err
	}
	resp.Header = s.header()
	return stream.SendAndClose(resp)
}

func (s *Server) store(
	head *kvstorev1.WriteRequest_Head, hdr *kvstorev1.WriteRequest_Header, data []byte,
) (*kvstorev1.WriteResponse_Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(head.GetKeyspace(), head.GetNamespace())
	if err != nil {
		return nil, err
	}
	sum := xxh3.Hash(data)
	if hdr.Checksum != 0 && hdr.Checksum != sum {
		return &kvstorev1.WriteResponse_Result{Outcome: &kvstorev1.WriteResponse_Result_Error{
			Error: kverr.Item(kverr.Invalid("checksum", "does not match the bytes")),
		}}, nil
	}
	k := blockKey(head.Scope, hdr.Block)
	old := sp.blocks[k]
	if old == nil {
		old = &block{scope: head.Scope, ref: hdr.Block, parent: hdr.Parent, data: data, sum: sum}
		sp.blocks[k] = old
		s.blockChanged(sp, k, old, kvstorev1.WatchRemoval_WATCH_REMOVAL_UNSPECIFIED)
		s.applied++
		s.touch(old)
		s.evict(sp, s.namespaces[or(head.Keyspace, "default")+"/"+or(head.Namespace, "default")].CapacityBlocks)
		return &kvstorev1.WriteResponse_Result{Outcome: &kvstorev1.WriteResponse_Result_Stored{Stored: true}}, nil
	}
	s.touch(old)
	return &kvstorev1.WriteResponse_Result{Outcome: &kvstorev1.WriteResponse_Result_Stored{}}, nil
}

// evict drops the least recently touched blocks beyond the capacity; 0 is no limit.
func (s *Server) evict(sp *space, capacity int64) {
	for capacity > 0 && int64(len(sp.blocks)) > capacity {
		var victim string
		for k, b := range sp.blocks {
			if b.leases == 0 && (victim == "" || b.seq < sp.blocks[victim].seq) {
				victim = k
			}
		}
		if victim == "" {
			return
		}
		s.blockChanged(sp, victim, sp.blocks[victim], kvstorev1.WatchRemoval_WATCH_REMOVAL_EVICTED)
		delete(sp.blocks, victim)
	}
}

// Damage flips a bit of every stored block's bytes, not of its checksum.
func (s *Server) Damage() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spaces {
		for _, b := range sp.blocks {
			b.data = slices.Clone(b.data)
			b.data[len(b.data)/2] ^= 1
		}
	}
}

// Leased tells how many leases are open.
func (s *Server) Leased() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spaces {
		n += len(sp.leases)
	}
	return n
}

// Release is the RPC.
func (s prompt) Release(_ context.Context, r *kvstorev1.ReleaseRequest) (*kvstorev1.ReleaseResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.space(r.Keyspace, r.Namespace)
	for _, b := range sp.leases[string(r.Lease)] {
		b.leases--
	}
	delete(sp.leases, string(r.Lease))
	return &kvstorev1.ReleaseResponse{}, nil
}

// each calls fn for every block of refs that is stored.
func (s *Server) each(
	ks, ns string, scope *kvstorev1.Scope, refs []*kvstorev1.BlockRef, fn func(i int, sp *space, key string, b *block),
) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(ks, ns)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		k := blockKey(scope, ref)
		if b := sp.blocks[k]; b != nil {
			fn(i, sp, k, b)
		}
	}
	return nil
}

// Touch is the RPC.
func (s prompt) Touch(_ context.Context, r *kvstorev1.TouchRequest) (*kvstorev1.TouchResponse, error) {
	resp := &kvstorev1.TouchResponse{Header: s.header()}
	err := s.each(r.Keyspace, r.Namespace, r.Scope, r.Blocks, func(_ int, _ *space, _ string, b *block) {
		s.touch(b)
		resp.Count++
	})
	return resp, err
}

// Pin is the RPC.
func (s prompt) Pin(_ context.Context, r *kvstorev1.PinRequest) (*kvstorev1.PinResponse, error) {
	resp := &kvstorev1.PinResponse{Header: s.header(), Bitmap: make([]byte, (len(r.Blocks)+7)/8)}
	err := s.each(r.Keyspace, r.Namespace, r.Scope, r.Blocks, func(i int, _ *space, _ string, b *block) {
		b.pinned = r.UntilMs
		resp.Count++
		resp.Bitmap[i/8] |= 1 << (i % 8)
	})
	return resp, err
}

// Delete is the RPC.
func (s prompt) Delete(
	_ context.Context, r *kvstorev1.PromptCacheServiceDeleteRequest,
) (*kvstorev1.PromptCacheServiceDeleteResponse, error) {
	resp := &kvstorev1.PromptCacheServiceDeleteResponse{Header: s.header()}
	for range r.Blocks {
		resp.Outcomes = append(resp.Outcomes, kvstorev1.DeleteOutcome_DELETE_OUTCOME_ABSENT)
	}
	err := s.each(r.Keyspace, r.Namespace, r.Scope, r.Blocks, func(i int, sp *space, k string, b *block) {
		if b.leases > 0 {
			resp.Outcomes[i] = kvstorev1.DeleteOutcome_DELETE_OUTCOME_LEASED
			return
		}
		resp.Outcomes[i] = kvstorev1.DeleteOutcome_DELETE_OUTCOME_DELETED
		s.blockChanged(sp, k, b, kvstorev1.WatchRemoval_WATCH_REMOVAL_DELETED)
		delete(sp.blocks, k)
	})
	return resp, err
}

// Clear is the RPC.
func (s prompt) Clear(_ context.Context, r *kvstorev1.ClearRequest) (*kvstorev1.ClearResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(r.Keyspace, r.Namespace)
	if err != nil {
		return nil, err
	}
	resp := &kvstorev1.ClearResponse{}
	for k, b := range sp.blocks {
		switch {
		case !r.AllScopes && scopeKey(b.scope) != scopeKey(r.Scope):
		case b.leases > 0:
			resp.Leased++
		default:
			s.blockChanged(sp, k, b, kvstorev1.WatchRemoval_WATCH_REMOVAL_CLEARED)
			delete(sp.blocks, k)
			resp.Deleted++
		}
	}
	return resp, nil
}

// List is the RPC; the page token is the key of the last item of the page before.
func (s prompt) List(
	_ context.Context, r *kvstorev1.PromptCacheServiceListRequest,
) (*kvstorev1.PromptCacheServiceListResponse, error) {
	if err := s.Faults.runBefore("List"); err != nil {
		return nil, err
	}
	resp := &kvstorev1.PromptCacheServiceListResponse{Header: s.header()}
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(r.Keyspace, r.Namespace)
	if err != nil {
		return nil, err
	}
	found := map[string]*block{}
	for k, b := range sp.blocks {
		switch {
		case r.Scope == nil:
			found[scopeKey(b.scope)] = b
		case scopeKey(b.scope) == scopeKey(r.Scope):
			found[k] = b
		}
	}
	n := 0
	for _, k := range slices.Sorted(maps.Keys(found)) {
		if k <= string(r.PageToken) && len(r.PageToken) > 0 {
			continue
		}
		if n == cmp.Or(int(r.PageSize), 100) {
			return resp, nil
		}
		n++
		resp.NextPageToken = []byte(k)
		if b := found[k]; r.Scope == nil {
			resp.Scopes = append(resp.Scopes, b.scope)
		} else {
			resp.Blocks = append(resp.Blocks, &kvstorev1.PromptCacheServiceListResponse_Block{
				Block: b.ref, Parent: b.parent, Size: int64(len(b.data)), Checksum: b.sum, PinnedUntilMs: b.pinned,
			})
		}
	}
	resp.NextPageToken = nil
	return resp, nil
}

// Usage is the RPC.
func (s prompt) Usage(_ context.Context, r *kvstorev1.UsageRequest) (*kvstorev1.UsageResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp, err := s.promptSpace(r.Keyspace, r.Namespace)
	if err != nil {
		return nil, err
	}
	ns := s.namespaces[or(r.Keyspace, "default")+"/"+or(r.Namespace, "default")]
	resp := &kvstorev1.UsageResponse{Total: &kvstorev1.UsageResponse_Row{}, CapacityBlocks: ns.CapacityBlocks}
	rows := map[string]*kvstorev1.UsageResponse_Row{}
	for _, b := range sp.blocks {
		k := scopeKey(b.scope)
		if r.Scope != nil && k != scopeKey(r.Scope) {
			continue
		}
		if rows[k] == nil {
			rows[k] = &kvstorev1.UsageResponse_Row{Scope: b.scope}
		}
		for _, row := range []*kvstorev1.UsageResponse_Row{rows[k], resp.Total} {
			row.Blocks++
			row.Bytes += int64(len(b.data))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		resp.Scopes = append(resp.Scopes, rows[k])
	}
	return resp, nil
}

// Swap gives every stored block the bytes and checksum of another: well formed, and wrong.
func (s *Server) Swap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spaces {
		keys := slices.Sorted(maps.Keys(sp.blocks))
		for i := 0; i+1 < len(keys); i += 2 {
			a, b := sp.blocks[keys[i]], sp.blocks[keys[i+1]]
			a.data, b.data, a.sum, b.sum = b.data, a.data, b.sum, a.sum
		}
	}
}
