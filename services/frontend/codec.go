package frontend

import (
	"google.golang.org/grpc/mem"

	"kvstore/components/vtcodec"
)

// frame is a message of a Pipeline stream as its bytes: the codec neither decodes nor encodes it. Whoever receives one
// owns a reference to its buffer; sending one gives the reference away.
type frame struct{ buf mem.Buffer }

// codec is vtcodec plus frames.
type codec struct{ vtcodec.Codec }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return mem.BufferSlice{f.buf}, nil
	}
	return c.Codec.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.buf = data.MaterializeToBuffer(vtcodec.Pool)
		return nil
	}
	return c.Codec.Unmarshal(data, v)
}
