package client

import (
	"bytes"
	"testing"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// FuzzBlockReader feeds messages to the reader of one block: it never panics, never writes past the block, and releases
// nothing whose length or checksum is wrong.
func FuzzBlockReader(f *testing.F) {
	data := []byte("some bytes of a block")
	add := func(msgs ...*kvstorev1.ReadResponse) {
		var b []byte
		for _, m := range msgs {
			one, err := m.MarshalVT()
			if err != nil {
				f.Fatal(err)
			}
			b = append(append(b, byte(len(one))), one...)
		}
		f.Add(b)
	}
	ok := kvstorev1.BlockStatus_BLOCK_STATUS_OK
	head := &kvstorev1.ReadResponse_Header{Size: int64(len(data)), Checksum: xxh3.Hash(data)}
	add(&kvstorev1.ReadResponse{Index: 3, Header: head, Chunk: data, End: ok})
	add(&kvstorev1.ReadResponse{Index: 3, Header: head, Chunk: data[:5]}, &kvstorev1.ReadResponse{Index: 3, Chunk: data[5:], End: ok})
	add(&kvstorev1.ReadResponse{Index: 3, Header: head, Chunk: data[:5], End: ok})
	add(&kvstorev1.ReadResponse{Index: 3, End: kvstorev1.BlockStatus_BLOCK_STATUS_MISS})
	add(&kvstorev1.ReadResponse{Index: 2, End: ok})
	add(&kvstorev1.ReadResponse{Index: 3, Header: head, Chunk: append(data, 'x'), End: ok})
	add(&kvstorev1.ReadResponse{Index: 3, Header: head}, &kvstorev1.ReadResponse{Index: 3, Header: head})
	add(&kvstorev1.ReadResponse{Index: 3, Header: &kvstorev1.ReadResponse_Header{Size: -1}})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := blockReader{o: &ReadOptions{Buffer: func(_ int, size int64) []byte {
			if size > 1<<16 {
				return nil
			}
			return make([]byte, size)
		}}}
		r.begin(7, 3)
		var want []byte // what the generated code reads
		var wantSum uint64
		for len(in) > 0 && !r.ended {
			n := min(int(in[0]), len(in)-1)
			msg := in[1 : 1+n]
			in = in[1+n:]
			err := r.UnmarshalVT(msg)
			if err != nil && r.fault == nil {
				t.Fatalf("error %v without a fault for the caller", err)
			}
			var m, vt kvstorev1.ReadResponse
			if proto.Unmarshal(msg, &m) != nil || vt.UnmarshalVT(msg) != nil || err != nil {
				return
			}
			want = append(want, m.Chunk...)
			if m.Header != nil {
				wantSum = m.Header.Checksum
			}
		}
		if r.data != nil && (xxh3.Hash(r.data) != wantSum || !bytes.Equal(r.data, want)) {
			t.Fatalf("released %q with checksum %x, want %q with %x", r.data, r.sum, want, wantSum)
		}
	})
}
