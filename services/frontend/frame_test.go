package frontend

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// decoded is one operation as both decoders must see it.
type decoded struct {
	Request request
	Put     shard.Put
	Delete  shard.Delete
}

// byHand decodes a frame as Pipeline does.
func byHand(b []byte) (frameHead, []decoded, error) {
	var h frameHead
	if err := h.parse(b); err != nil {
		return h, nil, err
	}
	ops := make([]decoded, len(h.ops))
	for i, encoded := range h.ops {
		var cmd shard.Command
		if err := parseOp(encoded, &ops[i].Request, &cmd); err != nil {
			return h, nil, err
		}
		ops[i].Put, ops[i].Delete = cmd.Put, cmd.Delete
	}
	h.ops = nil
	return h, ops, nil
}

// byGenerated decodes a frame by the generated code.
func byGenerated(b []byte) (frameHead, []decoded, error) {
	var m kvv1.PipelineRequest
	if err := m.UnmarshalVT(b); err != nil {
		return frameHead{}, nil, err
	}
	h := frameHead{keyspace: m.Keyspace, namespace: m.Namespace, client: m.IdentityClient, notAfterMS: m.NotAfterMs, traced: m.Traced}
	ops := make([]decoded, len(m.Ops))
	for i, op := range m.Ops {
		d := &ops[i]
		d.Request.id, d.Request.identityOp, d.Request.traceparent, d.Request.timeoutMS = op.Id, op.IdentityOp, []byte(op.Traceparent), op.TimeoutMs
		switch o := op.Op.(type) {
		case *kvv1.PipelineRequest_Op_Put:
			d.Request.verb, d.Put = verbPut, putOf(o.Put)
		case *kvv1.PipelineRequest_Op_Get:
			d.Request.verb, d.Request.metadataOnly = verbGet, o.Get.MetadataOnly
			d.Put.Key = o.Get.Key
		case *kvv1.PipelineRequest_Op_Delete:
			d.Request.verb = verbDelete
			d.Delete = shard.Delete{Key: o.Delete.Key, If: precondition(o.Delete.Precondition)}
		}
	}
	return h, ops, nil
}

// likeTheStandard tells whether protobuf's own decoder takes a frame, for the same as the generated one: that one does not look at the types of the fields of a
// metadata entry. What they do not take for the same may be refused.
func likeTheStandard(b []byte) bool {
	var gen, standard kvv1.PipelineRequest
	return gen.UnmarshalVT(b) == nil && proto.Unmarshal(b, &standard) == nil && proto.Equal(&gen, &standard)
}

// plain makes empty and nil the same, which protobuf does not tell apart.
func plain(h frameHead, ops []decoded) string {
	s := fmt.Sprintf("%q %q %x %d %t", h.keyspace, h.namespace, h.client, h.notAfterMS, h.traced)
	for _, d := range ops {
		s += fmt.Sprintf("\n%+v key %x value %x ct %q enc %q meta %q tags %q ttl %d keep %t if %v del %x if %v", d.Request,
			d.Put.Key, d.Put.Value.Inline, d.Put.ContentType, d.Put.Encoding, d.Put.Metadata, d.Put.Tags, d.Put.TTLMS, d.Put.KeepTTL, d.Put.If,
			d.Delete.Key, d.Delete.If)
	}
	return s
}

func randomPrecondition(r *rand.Rand) *kvv1.Precondition {
	switch r.IntN(5) {
	case 0:
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfVersion{IfVersion: r.Uint64N(9)}}
	case 1:
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfAbsent{IfAbsent: r.IntN(2) == 0}}
	case 2:
		return &kvv1.Precondition{Check: &kvv1.Precondition_IfPresent{IfPresent: r.IntN(2) == 0}}
	case 3:
		return &kvv1.Precondition{}
	}
	return nil
}

func randomMap(r *rand.Rand) map[string]string {
	m := make(map[string]string)
	for range r.IntN(4) {
		m[fmt.Sprint(r.IntN(20))] = fmt.Sprint(r.IntN(20))
	}
	return m
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, r.IntN(n))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func randomFrame(r *rand.Rand) *kvv1.PipelineRequest {
	m := &kvv1.PipelineRequest{NotAfterMs: r.Int64() >> r.IntN(64), IdentityClient: randomBytes(r, 20), Traced: r.IntN(2) == 0}
	if r.IntN(2) == 0 {
		m.Keyspace, m.Namespace = "ks", "ns"
	}
	for range r.IntN(6) {
		op := &kvv1.PipelineRequest_Op{Id: r.Uint64() >> r.IntN(64), IdentityOp: r.Uint64N(3)}
		if r.IntN(4) == 0 {
			op.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		}
		if r.IntN(3) == 0 {
			op.TimeoutMs = r.Int64() >> r.IntN(64)
		}
		switch r.IntN(4) {
		case 0:
			op.Op = &kvv1.PipelineRequest_Op_Put{Put: &kvv1.PutOp{
				Key: randomBytes(r, 40), Value: randomBytes(r, 400), ContentType: fmt.Sprint(r.IntN(2)), Encoding: fmt.Sprint(r.IntN(2)),
				Metadata: randomMap(r), Tags: randomMap(r), TtlMs: r.Int64() >> r.IntN(64), KeepTtl: r.IntN(2) == 0, Precondition: randomPrecondition(r),
			}}
		case 1:
			op.Op = &kvv1.PipelineRequest_Op_Get{Get: &kvv1.GetOp{Key: randomBytes(r, 40), MetadataOnly: r.IntN(2) == 0}}
		case 2:
			op.Op = &kvv1.PipelineRequest_Op_Delete{Delete: &kvv1.DeleteOp{Key: randomBytes(r, 40), Precondition: randomPrecondition(r)}}
		}
		m.Ops = append(m.Ops, op)
	}
	return m
}

func TestFrameDecodersAgree(t *testing.T) {
	seeds := uint64(3000)
	if testing.Short() { // as under the race detector, which has nothing to find here
		seeds = 300
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(randomFrame(r)) // a seed is one frame
		if err != nil {
			t.Fatal(err)
		}
		agree(t, b)
		for range 20 { // damaged frames
			c := append([]byte(nil), b...)
			if len(c) == 0 {
				break
			}
			switch r.IntN(3) {
			case 0:
				c = c[:r.IntN(len(c))]
			case 1:
				c[r.IntN(len(c))] ^= 1 << r.IntN(8)
			case 2: // twice: last one counts, messages merge
				c = append(c, b...)
			}
			agree(t, c)
		}
	}
}

// agree holds the decoder to protobuf-go, which finds damage inside maps, and to the generated code, which refuses fields of
// another type and cares as little for UTF-8: what both take must be taken; what is taken must be what the generated code finds.
func agree(t *testing.T, b []byte) {
	t.Helper()
	hand, handOps, handErr := byHand(b)
	gen, genOps, genErr := byGenerated(b)
	if handErr != nil {
		if genErr == nil && likeTheStandard(b) {
			t.Fatalf("%x\nby hand: %v\nthe others take it", b, handErr)
		}
		return
	}
	if genErr != nil {
		t.Fatalf("%x\ntaken by hand\ngenerated: %v", b, genErr)
	}
	if plain(hand, handOps) != plain(gen, genOps) {
		t.Fatalf("%x\nby hand: %s\ngenerated: %s", b, plain(hand, handOps), plain(gen, genOps))
	}
}

func FuzzPipelineFrame(f *testing.F) {
	for seed := range uint64(20) {
		b, _ := proto.Marshal(randomFrame(rand.New(rand.NewPCG(seed, 2))))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { agree(t, b) })
}

func TestResultEncodersAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	p := &pipeline{server: &Server{cfg: Config{}}}
	p.server.cfg.EnsureDefaults()
	for range 2000 {
		var first, last *operation
		var want []*kvv1.PipelineResponse_Result
		for range 1 + r.IntN(5) {
			o := &operation{}
			o.req.id = r.Uint64() >> r.IntN(64)
			w := &kvv1.PipelineResponse_Result{Id: o.req.id}
			switch r.IntN(5) {
			case 0:
				o.req.verb = verbPut
				o.cmd.Result.Write = shard.WriteResult{Version: r.Uint64() >> r.IntN(64), Existed: r.IntN(2) == 0}
				w.Outcome = &kvv1.PipelineResponse_Result_Put{Put: &kvv1.PutResult{Version: o.cmd.Result.Write.Version, Created: !o.cmd.Result.Write.Existed}}
			case 1:
				o.req.verb = verbDelete
				o.cmd.Result.Write = shard.WriteResult{Version: r.Uint64N(3), Existed: r.IntN(2) == 0}
				w.Outcome = &kvv1.PipelineResponse_Result_Delete{Delete: &kvv1.DeleteResult{Revision: o.cmd.Result.Write.Version, Deleted: o.cmd.Result.Write.Existed}}
			case 2:
				o.req.verb = verbGet
				o.entry.Key, o.entry.Value, o.entry.Version = randomBytes(r, 30), randomBytes(r, 300), r.Uint64()
				o.entry.Tags = randomMap(r)
				w.Outcome = &kvv1.PipelineResponse_Result_Entry{Entry: proto.Clone(&o.entry).(*kvv1.Entry)}
			case 3:
				o.req.verb, o.err = verbGet, errKeyAbsent
				w.Outcome = &kvv1.PipelineResponse_Result_Error{Error: kverr.Item(errKeyAbsent)}
			case 4:
				o.req.verb, o.err = verbPut, kverr.Mismatch(r.Uint64())
				w.Outcome = &kvv1.PipelineResponse_Result_Error{Error: kverr.Item(o.err)}
			}
			want = append(want, w)
			if last == nil {
				first = o
			} else {
				last.next = o
			}
			last = o
		}
		buf, end := p.encode(first)
		if end != last {
			t.Fatal("a few results do not fit one frame")
		}
		var got kvv1.PipelineResponse
		if err := proto.Unmarshal(buf.ReadOnlyData(), &got); err != nil {
			t.Fatal(err)
		}
		buf.Free()
		if got.Header.GetServerTimeMs() == 0 {
			t.Fatal("no server time")
		}
		if !proto.Equal(&kvv1.PipelineResponse{Results: got.Results}, &kvv1.PipelineResponse{Results: want}) {
			t.Fatalf("got %v\nwant %v", got.Results, want)
		}
	}
}

func TestCodecLeavesFramesAlone(t *testing.T) {
	var f frame
	parts := mem.BufferSlice{mem.SliceBuffer("ab"), mem.SliceBuffer("cd")}
	if err := (codec{}).Unmarshal(parts, &f); err != nil || string(f.buf.ReadOnlyData()) != "abcd" {
		t.Fatalf("%v, %q", err, f.buf.ReadOnlyData())
	}
	out, err := codec{}.Marshal(&f)
	if err != nil || string(out.Materialize()) != "abcd" {
		t.Fatalf("%v, %q", err, out.Materialize())
	}
}

func TestSortPairsKeepsTheLast(t *testing.T) {
	got := sortPairs([]shard.Pair{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}})
	if want := []shard.Pair{{Name: "a", Value: "2"}, {Name: "b", Value: "3"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}
