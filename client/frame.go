package client

import (
	"errors"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// Frames of the Pipeline stream, written and read without the generated structs of their operations: a frame has
// hundreds of those, and three objects for each would cost more than everything else here. FuzzReplyFrame and
// TestRequestFrame hold this file to the generated code.

// Bounds of one request frame; the server's are 1,000 operations and 4 MiB.
const (
	frameOps   = 1000
	frameBytes = 512 << 10 // none joins beyond this; one operation has at most streamOver bytes and its key
)

// Field numbers of PipelineRequest, PipelineResponse and its Result.
const (
	reqKeyspace  = 1
	reqNamespace = 2
	reqOps       = 3
	reqClient    = 4
	reqNotAfter  = 5
	reqTraced    = 6

	respHeader  = 1
	respResults = 2

	resultID     = 1
	resultPut    = 2
	resultGet    = 3
	resultDelete = 4
	resultError  = 5
)

// requestFrame is a PipelineRequest whose operations are encoded already. It is what the codec is given.
type requestFrame struct {
	keyspace  string
	namespace string
	client    []byte
	notAfter  int64 // server milliseconds, of all its writes
	traced    bool  // the client decides what is followed
	again     bool  // its writes are repetitions
	ops       int
	body      []byte // the field ops, encoded
}

// fits tells whether an operation may still join: writes of a frame share one notAfter, which a repetition must not
// move.
func (f *requestFrame) fits(c *call) bool {
	if f.ops >= frameOps || len(f.body) >= frameBytes || f.keyspace != c.keyspace || f.namespace != c.namespace {
		return false
	}
	return !c.write || f.again == (c.notAfter != 0) && (!f.again || f.notAfter == c.notAfter)
}

// add encodes op at the end.
func (f *requestFrame) add(op *kvstorev1.PipelineRequest_Op) error {
	size := op.SizeVT()
	b := protowire.AppendTag(f.body, reqOps, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	at := len(b)
	b = slices.Grow(b, size)[:at+size]
	if _, err := op.MarshalToSizedBufferVT(b[at:]); err != nil {
		return err
	}
	f.body = b
	f.ops++
	return nil
}

// SizeVT is the encoded size.
func (f *requestFrame) SizeVT() int {
	n := len(f.body) + protowire.SizeTag(reqNotAfter) + protowire.SizeVarint(uint64(f.notAfter))
	for _, l := range [...]int{len(f.keyspace), len(f.namespace), len(f.client)} {
		n += 1 + protowire.SizeBytes(l) // all tags are below 16: one byte
	}
	if f.traced {
		n += 2
	}
	return n
}

// MarshalToSizedBufferVT encodes into b, which has SizeVT bytes.
func (f *requestFrame) MarshalToSizedBufferVT(b []byte) (int, error) {
	size := len(b)
	b = b[:0]
	b = protowire.AppendTag(b, reqKeyspace, protowire.BytesType)
	b = protowire.AppendString(b, f.keyspace)
	b = protowire.AppendTag(b, reqNamespace, protowire.BytesType)
	b = protowire.AppendString(b, f.namespace)
	b = protowire.AppendTag(b, reqClient, protowire.BytesType)
	b = protowire.AppendBytes(b, f.client)
	b = protowire.AppendTag(b, reqNotAfter, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(f.notAfter))
	if f.traced {
		b = protowire.AppendTag(b, reqTraced, protowire.VarintType)
		b = append(b, 1)
	}
	b = append(b, f.body...)
	if len(b) != size {
		return 0, errors.New("pipeline frame: size is off")
	}
	return size, nil
}

// replyFrame is a PipelineResponse as the codec fills it: the results still encoded, each to be decoded into the call
// that waits for it. It is used again and again.
type replyFrame struct {
	serverMS int64
	results  []rawResult
	buf      []byte // what results point into
}

// rawResult is one result: which operation, which outcome, and that outcome's encoding.
type rawResult struct {
	id    uint64
	field protowire.Number // resultPut ... resultError; 0 when the server sent none that we know
	body  []byte
}

var errFrame = errors.New("malformed pipeline reply")

// UnmarshalVT replaces what f holds by the message in b, of which it keeps nothing.
func (f *replyFrame) UnmarshalVT(b []byte) error {
	f.buf = append(f.buf[:0], b...)
	f.results = f.results[:0]
	f.serverMS = 0
	for b := f.buf; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errFrame
		}
		b = b[n:]
		if typ != protowire.BytesType || num != respHeader && num != respResults {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errFrame
			}
			b = b[n:]
			continue
		}
		body, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errFrame
		}
		b = b[n:]
		if num == respHeader {
			ms, err := headerTime(body)
			if err != nil {
				return err
			}
			f.serverMS = ms
			continue
		}
		r, err := parseResult(body)
		if err != nil {
			return err
		}
		f.results = append(f.results, r)
	}
	return nil
}

func headerTime(b []byte) (ms int64, err error) {
	err = eachField(b, func(tag uint64, v uint64, _ []byte) {
		if tag == 1<<3|varint {
			ms = int64(v)
		}
	})
	return ms, err
}

func parseResult(b []byte) (r rawResult, err error) {
	err = eachField(b, func(tag uint64, v uint64, body []byte) {
		switch tag {
		case resultID<<3 | varint:
			r.id = v
		case resultPut<<3 | lenType, resultGet<<3 | lenType, resultDelete<<3 | lenType, resultError<<3 | lenType:
			r.field, r.body = protowire.Number(tag>>3), body
		}
	})
	return r, err
}

// Wire types, as a tag's lowest three bits have them.
const (
	varint  = uint64(protowire.VarintType)
	fixed64 = uint64(protowire.Fixed64Type)
	lenType = uint64(protowire.BytesType)
)

// eachField calls fn for the fields of a message; tag is number<<3 | wire type, v the value of varint and fixed64, body
// that of bytes, never nil for them.
func eachField(b []byte, fn func(tag uint64, v uint64, body []byte)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errFrame
		}
		b = b[n:]
		var v uint64
		var body []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			v, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			if body, n = protowire.ConsumeBytes(b); body == nil {
				body = []byte{}
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return errFrame
		}
		fn(protowire.EncodeTag(num, typ), v, body)
		b = b[n:]
	}
	return nil
}
