// Package vtcodec is the gRPC codec of both ends: protobuf by the generated vtproto methods instead of reflection, in
// buffers of a pool. On the wire it is plain protobuf under the name "proto", so that either end may use another
// implementation. Messages without vtproto methods (health, reflection) take the usual way.
//
//	grpc.NewServer(grpc.ForceServerCodecV2(vtcodec.Codec{}))
//	grpc.NewClient(target, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{})))
//
// It differs from gRPC's own codec in two ways. Unmarshal adds to the message that it is given, as proto.Merge does:
// hand it an empty one (generated stubs do) or one whose UnmarshalVT resets itself. And strings are not checked for
// UTF-8: whoever stores a string from outside checks it.
package vtcodec

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Codec is a stateless encoding.CodecV2.
type Codec struct{}

// marshaler is what protoc-gen-go-vtproto generates with the features marshal and size.
type marshaler interface {
	SizeVT() int
	MarshalToSizedBufferVT(b []byte) (int, error)
}

// unmarshaler is what it generates with the feature unmarshal. The method must keep nothing of b.
type unmarshaler interface {
	UnmarshalVT(b []byte) error
}

// Name is the content subtype, that of plain protobuf.
func (Codec) Name() string { return "proto" }

// Marshal encodes v, which has the vtproto methods or is a proto.Message. It keeps nothing of v.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(marshaler)
	if !ok {
		return marshalReflect(v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		b := make([]byte, size)
		if _, err := m.MarshalToSizedBufferVT(b); err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	b := Pool.Get(size)
	if _, err := m.MarshalToSizedBufferVT((*b)[:size]); err != nil {
		Pool.Put(b)
		return nil, fmt.Errorf("marshal %T: %w", v, err)
	}
	return mem.BufferSlice{mem.NewBuffer(b, Pool)}, nil
}

// Unmarshal decodes data into v, which has UnmarshalVT or is a proto.Message. It keeps nothing of data.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := data.MaterializeToBuffer(Pool)
	defer buf.Free()
	switch m := v.(type) {
	case unmarshaler:
		return m.UnmarshalVT(buf.ReadOnlyData())
	case proto.Message:
		return proto.Unmarshal(buf.ReadOnlyData(), m)
	}
	return fmt.Errorf("unmarshal: %T is no protobuf message", v)
}

func marshalReflect(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal: %T is no protobuf message", v)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}
