package vtcodec_test

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that ours must agree with
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"kvstore/components/vtcodec"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

var _ encoding.CodecV2 = vtcodec.Codec{}

// TestAgreesWithGRPCCodec sends messages from each codec to the other: small and over the pooling threshold, with and
// without vtproto methods.
func TestAgreesWithGRPCCodec(t *testing.T) {
	plain := encoding.GetCodecV2("proto")
	if plain.Name() != (vtcodec.Codec{}).Name() {
		t.Fatalf("name %q, want %q", vtcodec.Codec{}.Name(), plain.Name())
	}
	put := func(n int) *kvstorev1.PutRequest {
		return &kvstorev1.PutRequest{Keyspace: "k", Put: &kvstorev1.PutOp{
			Key: []byte("a"), Value: bytes.Repeat([]byte{7}, n), TtlMs: 5, Tags: map[string]string{"x": "y"},
			Precondition: &kvstorev1.Precondition{Check: &kvstorev1.Precondition_IfVersion{IfVersion: 9}},
		}}
	}
	for _, msg := range []proto.Message{
		&kvstorev1.PutRequest{}, put(0), put(100), put(5000), put(300_000),
		&healthpb.HealthCheckRequest{Service: "kvstore.v1.KVService"},
	} {
		for _, way := range []struct {
			name     string
			from, to encoding.CodecV2
		}{{"ours to plain", vtcodec.Codec{}, plain}, {"plain to ours", plain, vtcodec.Codec{}}} {
			data, err := way.from.Marshal(msg)
			if err != nil {
				t.Fatalf("%s: marshal %T: %v", way.name, msg, err)
			}
			got := msg.ProtoReflect().New().Interface()
			if err := way.to.Unmarshal(data, got); err != nil {
				t.Fatalf("%s: unmarshal %T: %v", way.name, msg, err)
			}
			data.Free()
			if !proto.Equal(got, msg) {
				t.Errorf("%s: %T of %d bytes came back different", way.name, msg, proto.Size(msg))
			}
		}
	}
}

func TestUnmarshalOverSeveralBuffersKeepsNothing(t *testing.T) {
	want := &kvstorev1.GetRequest{Keyspace: "tenant", Get: &kvstorev1.GetOp{Key: []byte("some key")}}
	raw, err := want.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	var parts mem.BufferSlice
	for i := range raw {
		parts = append(parts, mem.SliceBuffer(raw[i:i+1]))
	}
	var got kvstorev1.GetRequest
	if err := (vtcodec.Codec{}).Unmarshal(parts, &got); err != nil {
		t.Fatal(err)
	}
	clear(raw)
	if !proto.Equal(&got, want) {
		t.Errorf("got %v, want %v", &got, want)
	}
}

func TestRefusesWhatIsNoMessage(t *testing.T) {
	if _, err := (vtcodec.Codec{}).Marshal(42); err == nil {
		t.Error("Marshal(42) succeeded")
	}
	var n int
	if err := (vtcodec.Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer{1}}, &n); err == nil {
		t.Error("Unmarshal into *int succeeded")
	}
	if err := (vtcodec.Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer{0xff}}, &kvstorev1.GetRequest{}); err == nil {
		t.Error("Unmarshal of a torn message succeeded")
	}
}

func BenchmarkPutRequest(b *testing.B) {
	msg := &kvstorev1.PutRequest{Put: &kvstorev1.PutOp{Key: []byte("key:0000000001"), Value: make([]byte, 256)}}
	for name, codec := range map[string]encoding.CodecV2{"vt": vtcodec.Codec{}, "reflect": encoding.GetCodecV2("proto")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				data, err := codec.Marshal(msg)
				if err != nil {
					b.Fatal(err)
				}
				var got kvstorev1.PutRequest
				if err := codec.Unmarshal(data, &got); err != nil {
					b.Fatal(err)
				}
				data.Free()
			}
		})
	}
}
