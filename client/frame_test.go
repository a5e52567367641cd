package client

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

func TestRequestFrame(t *testing.T) {
	want := &kvstorev1.PipelineRequest{
		Keyspace: "ks", Namespace: "ns", IdentityClient: bytes.Repeat([]byte{9}, 16), NotAfterMs: 1234567890123, Traced: true,
	}
	f := &requestFrame{keyspace: "ks", namespace: "ns", client: want.IdentityClient, notAfter: want.NotAfterMs, traced: true}
	for i := range 50 {
		op := &kvstorev1.PipelineRequest_Op{
			Id: uint64(i) << 30, IdentityOp: uint64(i), Traceparent: strings.Repeat("0", i), TimeoutMs: int64(i),
			Op: &kvstorev1.PipelineRequest_Op_Put{Put: &kvstorev1.PutOp{
				Key: fmt.Appendf(nil, "key %d", i), Value: make([]byte, i*10), Tags: map[string]string{"a": "b"},
			}},
		}
		if err := f.add(op); err != nil {
			t.Fatal(err)
		}
		want.Ops = append(want.Ops, op)
	}
	b := make([]byte, f.SizeVT())
	if n, err := f.MarshalToSizedBufferVT(b); err != nil || n != len(b) {
		t.Fatal(n, err)
	}
	var got kvstorev1.PipelineRequest
	if err := proto.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&got, want) {
		t.Errorf("got %v, want %v", &got, want)
	}
	empty := &requestFrame{}
	b = make([]byte, empty.SizeVT())
	if _, err := empty.MarshalToSizedBufferVT(b); err != nil {
		t.Error(err)
	}
}

func TestFrameFits(t *testing.T) {
	base := func() *requestFrame { return &requestFrame{keyspace: "k", namespace: "n", notAfter: 10} }
	for _, tc := range []struct {
		name  string
		frame func(*requestFrame)
		call  *call
		want  bool
	}{
		{"fresh write", nil, &call{write: true}, true},
		{"read", nil, &call{}, true},
		{"read among repetitions", func(f *requestFrame) { f.again = true }, &call{}, true},
		{"fresh write among repetitions", func(f *requestFrame) { f.again = true }, &call{write: true}, false},
		{"repetition of the same time", func(f *requestFrame) { f.again = true }, &call{write: true, notAfter: 10}, true},
		{"repetition of another time", func(f *requestFrame) { f.again = true }, &call{write: true, notAfter: 11}, false},
		{"repetition among fresh writes", nil, &call{write: true, notAfter: 10}, false},
		{"full", func(f *requestFrame) { f.ops = frameOps }, &call{}, false},
		{"long", func(f *requestFrame) { f.body = make([]byte, frameBytes) }, &call{}, false},
		{"other namespace", func(f *requestFrame) { f.namespace = "m" }, &call{}, false},
		{"other keyspace", func(f *requestFrame) { f.keyspace = "m" }, &call{}, false},
	} {
		f := base()
		if tc.frame != nil {
			tc.frame(f)
		}
		tc.call.keyspace, tc.call.namespace = "k", "n"
		if got := f.fits(tc.call); got != tc.want {
			t.Errorf("%s: fits = %v", tc.name, got)
		}
	}
}

// FuzzReplyFrame holds the reply decoder to the generated one: both refuse, or both read the same.
func FuzzReplyFrame(f *testing.F) {
	for _, m := range []*kvstorev1.PipelineResponse{
		{},
		{Header: &kvstorev1.ResponseHeader{ServerTimeMs: 5, Token: []byte("t")}},
		{Results: []*kvstorev1.PipelineResponse_Result{
			{Id: 1, Outcome: &kvstorev1.PipelineResponse_Result_Put{Put: &kvstorev1.PutResult{Version: 3, Created: true}}},
			{Id: 1 << 40, Outcome: &kvstorev1.PipelineResponse_Result_Put{Put: &kvstorev1.PutResult{}}},
			{Id: 2, Outcome: &kvstorev1.PipelineResponse_Result_Delete{Delete: &kvstorev1.DeleteResult{Deleted: true, Revision: 9}}},
			{Id: 3, Outcome: &kvstorev1.PipelineResponse_Result_Error{Error: &kvstorev1.Error{Code: 5, Reason: "NOT_FOUND"}}},
			{Id: 4, Outcome: &kvstorev1.PipelineResponse_Result_Entry{Entry: &kvstorev1.Entry{
				Key: []byte("k"), Value: []byte("v"), Version: 1, CreatedMs: 2, UpdatedMs: 3, ExpiresMs: 4, ContentType: "c",
				Encoding: "e", Size: 1, Checksum: 77,
			}}},
			{Id: 5, Outcome: &kvstorev1.PipelineResponse_Result_Entry{Entry: &kvstorev1.Entry{
				Metadata: map[string]string{"a": "b"}, Tags: map[string]string{"c": ""},
			}}},
			{Id: 6},
		}},
	} {
		b, err := m.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	var frame replyFrame
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = frame.UnmarshalVT(b) // must not panic, whatever comes
		var want, vt kvstorev1.PipelineResponse
		if proto.Unmarshal(b, &want) != nil || vt.UnmarshalVT(b) != nil {
			return // the second refuses known fields of a wrong type, the first takes them for unknown ones
		}
		// Canonical: parts of one outcome may come apart on the wire and be merged, which no server does and we do not.
		b, err := proto.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		if err := frame.UnmarshalVT(b); err != nil {
			t.Fatalf("%v, want %v", err, &want)
		}
		if len(frame.results) != len(want.Results) || frame.serverMS != want.Header.GetServerTimeMs() {
			t.Fatalf("%d results at %d, want %v", len(frame.results), frame.serverMS, &want)
		}
		for i, r := range frame.results {
			w := want.Results[i]
			if r.id != w.Id {
				t.Fatalf("id %d, want %d", r.id, w.Id)
			}
			checkOutcome(t, r, w)
		}
	})
}

func checkOutcome(t *testing.T, r rawResult, w *kvstorev1.PipelineResponse_Result) {
	t.Helper()
	var got, want any
	var err error
	switch o := w.Outcome.(type) {
	case nil:
		if r.field != 0 {
			t.Fatalf("an outcome (field %d) where there is none", r.field)
		}
		return
	case *kvstorev1.PipelineResponse_Result_Put:
		want = fromPut(o.Put)
		got, err = decodePut(r.body)
	case *kvstorev1.PipelineResponse_Result_Delete:
		want = fromDelete(o.Delete)
		got, err = decodeDelete(r.body)
	case *kvstorev1.PipelineResponse_Result_Entry:
		o.Entry.Key = nil // the caller knows it
		want = fromEntry(o.Entry)
		got, err = decodeEntry(r.body)
	case *kvstorev1.PipelineResponse_Result_Error:
		var e kvstorev1.Error
		err = e.UnmarshalVT(r.body)
		got, want = fromItem(&e), fromItem(o.Error)
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("outcome %+v (%v), want %+v", got, err, want)
	}
}

// TestOperationsAllocateNothing: a put costs the client no allocation of its own, a get its value.
func TestOperationsAllocateNothing(t *testing.T) {
	reply := func(r *kvstorev1.PipelineResponse_Result) []byte {
		b, err := (&kvstorev1.PipelineResponse{
			Header: &kvstorev1.ResponseHeader{ServerTimeMs: 1}, Results: []*kvstorev1.PipelineResponse_Result{r},
		}).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put := reply(&kvstorev1.PipelineResponse_Result{Id: 1, Outcome: &kvstorev1.PipelineResponse_Result_Put{
		Put: &kvstorev1.PutResult{Version: 9},
	}})
	get := reply(&kvstorev1.PipelineResponse_Result{Id: 1, Outcome: &kvstorev1.PipelineResponse_Result_Entry{
		Entry: &kvstorev1.Entry{Key: []byte("key"), Value: make([]byte, 256), Version: 9, UpdatedMs: 1, Size: 256},
	}})
	value := make([]byte, 256)
	c := &Client{core: &core{}}
	cl := c.newCall("some key")
	var f requestFrame
	var in replyFrame
	round := func(answer []byte) {
		cl.put.op.Key, cl.put.op.Value, cl.get.op.Key = cl.key, value, cl.key
		if f.body = f.body[:0]; f.add(&cl.op) != nil || in.UnmarshalVT(answer) != nil {
			t.Fatal("cannot encode or decode")
		}
		cl.finish(in.results[0])
		<-cl.done
		if cl.failure != nil {
			t.Fatal(cl.failure)
		}
	}
	cl.op.Op = &cl.put.PipelineRequest_Op_Put
	if n := testing.AllocsPerRun(100, func() { round(put) }); n > 0 {
		t.Errorf("a put allocates %v times", n)
	}
	cl.op.Op = &cl.get.PipelineRequest_Op_Get
	if n := testing.AllocsPerRun(100, func() { round(get) }); n > 1 {
		t.Errorf("a get allocates %v times, want 1: its value", n)
	}
}
