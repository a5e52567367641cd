package dataplane

import (
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/components/vtcodec"
)

// frame is a message as its bytes: the codec neither decodes nor encodes it. Whoever receives one owns a reference to its buffer; sending
// one gives the reference away.
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

// ServerOptions are the gRPC options of a data plane's listener. Without TLS it is for loopback alone.
func ServerOptions(config *tls.Config) []grpc.ServerOption {
	return append([]grpc.ServerOption{
		grpc.Creds(credentialsOf(config)),
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.WriteBufferSize(64 << 10),
		grpc.ReadBufferSize(64 << 10),
		grpc.WaitForHandlers(true),
	}, keepaliveServer...)
}

func dialOptions(config *tls.Config) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentialsOf(config)),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithWriteBufferSize(64 << 10),
		grpc.WithReadBufferSize(64 << 10),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
	}
}

func credentialsOf(config *tls.Config) credentials.TransportCredentials {
	if config == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(config)
}

// buffer is a frame being encoded, in memory of the pool.
type buffer struct {
	room *[]byte
	b    []byte
}

// grow makes room for n more bytes. What is appended beyond that is right too, but its memory does not go back to the pool.
func (w *buffer) grow(n int) {
	if cap(w.b)-len(w.b) >= n {
		return
	}
	room := vtcodec.Pool.Get(max(2*cap(w.b), len(w.b)+n))
	b := append((*room)[:0], w.b...)
	w.free()
	w.room, w.b = room, b
}

// take gives the frame away.
func (w *buffer) take() frame {
	if w.room == nil {
		w.room = new([]byte)
	}
	*w.room = w.b
	f := frame{mem.NewBuffer(w.room, vtcodec.Pool)}
	w.room, w.b = nil, nil
	return f
}

// free gives the memory back.
func (w *buffer) free() {
	if w.room != nil {
		vtcodec.Pool.Put(w.room)
		w.room, w.b = nil, nil
	}
}

// begin begins a part of unknown length, which end ends.
func (w *buffer) begin(number protowire.Number) (at int) {
	w.b = append(protowire.AppendTag(w.b, number, protowire.BytesType), 0, 0, 0, 0)
	return len(w.b)
}

func (w *buffer) end(at int) {
	n := len(w.b) - at
	w.b[at-4], w.b[at-3], w.b[at-2], w.b[at-1] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21)
}

func (w *buffer) number(number protowire.Number, v uint64) {
	if v != 0 {
		w.b = protowire.AppendVarint(protowire.AppendTag(w.b, number, protowire.VarintType), v)
	}
}

func (w *buffer) bytes(number protowire.Number, v []byte) {
	w.b = protowire.AppendBytes(protowire.AppendTag(w.b, number, protowire.BytesType), v)
}

func (w *buffer) text(number protowire.Number, v string) {
	w.b = protowire.AppendString(protowire.AppendTag(w.b, number, protowire.BytesType), v)
}

// part is one field of a message: bytes or a number.
type part struct {
	number protowire.Number
	typ    protowire.Type
	bytes  []byte
	value  uint64
}

// nextPart takes a field off b; ok is false at the end and when b is malformed, which leaves something of it.
func nextPart(b []byte) (p part, rest []byte, ok bool) {
	if len(b) == 0 {
		return p, nil, false
	}
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return p, b, false
	}
	p.number, p.typ = num, typ
	var m int
	switch typ {
	case protowire.BytesType:
		p.bytes, m = protowire.ConsumeBytes(b[n:])
	case protowire.VarintType:
		p.value, m = protowire.ConsumeVarint(b[n:])
	default:
		m = protowire.ConsumeFieldValue(num, typ, b[n:])
	}
	if m < 0 {
		return p, b, false
	}
	return p, b[n+m:], true
}
