package frontend

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"kvstore/components/kverr"
	"kvstore/components/vtcodec"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Encoding of PipelineResponse by hand, straight from outcomes. A test holds it to the generated code.

// Field numbers of PipelineResponse and its parts.
const (
	responseHeader  = 1
	responseResults = 2

	resultID     = 1
	resultPut    = 2
	resultEntry  = 3
	resultDelete = 4
	resultError  = 5
)

// write sends results until the reader has ended and every operation is answered, or the server stops and no operation is
// outstanding.
func (p *pipeline) write() error {
	var ready *operation // oldest first
	stopping := p.server.stopping
	for {
		if ready == nil {
			if ready = inOrder(p.done.Swap(nil)); ready == nil {
				if p.ends.Load() && p.ops.Load() == 0 {
					return <-p.readEnd
				}
				if stopping == nil && p.ops.CompareAndSwap(0, stopped) {
					return errStopping
				}
				select {
				case <-p.wake:
				case <-stopping:
					stopping = nil
				case <-p.ctx.Done():
					return p.canceled()
				}
				continue
			}
		}
		var out frame
		var last *operation
		out.buf, last = p.encode(ready)
		ready = p.retire(ready, last)
		if err := p.stream.SendMsg(&out); err != nil {
			return err
		}
	}
}

// canceled is why the stream's context ended: the reader's reason when it had one.
func (p *pipeline) canceled() error {
	select {
	case err := <-p.readEnd:
		if err != nil {
			return err
		}
	default:
	}
	return kverr.From(p.ctx.Err())
}

// inOrder turns a list around.
func inOrder(o *operation) *operation {
	var out *operation
	for o != nil {
		next := o.next
		o.next = out
		o, out = next, o
	}
	return out
}

// encode makes a frame of the operations from first on, as many as fit; last is the last of them.
func (p *pipeline) encode(first *operation) (buf mem.Buffer, last *operation) {
	header := kvv1.ResponseHeader{ServerTimeMs: p.server.now()}
	headerLen := header.SizeVT()
	total := protowire.SizeTag(responseHeader) + protowire.SizeBytes(headerLen)
	for o := first; o != nil; o = o.next {
		if o.err != nil {
			o.item = p.server.itemOf(o.err)
		}
		o.length = o.size()
		n := protowire.SizeTag(responseResults) + protowire.SizeBytes(o.length)
		if last != nil && total+n > maxResultBytes {
			break
		}
		total += n
		last = o
	}
	pool := vtcodec.Pool
	room := pool.Get(total)
	b := (*room)[:0]
	b = protowire.AppendTag(b, responseHeader, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(headerLen))
	b = appendVT(b, headerLen, &header)
	for o := first; ; o = o.next {
		b = protowire.AppendTag(b, responseResults, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(o.length))
		b = o.append(b)
		if o == last {
			break
		}
	}
	*room = b
	return mem.NewBuffer(room, pool), last
}

// retire counts and frees the operations from first to last and returns what comes after.
func (p *pipeline) retire(first, last *operation) *operation {
	var ops, bytes, held int64
	t := tally{server: p.server, now: p.server.since()}
	for o := first; ; {
		next, end := o.next, o == last
		ops++
		t.add(o)
		if o.span != nil {
			o.unfollow()
		}
		held += o.held
		if o.frame.left--; o.frame.left == 0 {
			bytes += int64(o.frame.buf.Len())
			poison(o.frame.buf)
			o.frame.buf.Free()
		}
		o.free()
		if end {
			if held > 0 {
				p.fetches.give(held)
			}
			t.flush()
			p.size.Add(-bytes)
			p.answered(ops)
			poke(p.room)
			return next
		}
		o = next
	}
}

// itemOf is kverr.Item, without an allocation for the one error that is common.
func (s *Server) itemOf(err *kverr.Error) *kvv1.Error {
	if err == errKeyAbsent {
		return itemKeyAbsent
	}
	return s.item("Pipeline", err)
}

var itemKeyAbsent = kverr.Item(errKeyAbsent)

// size is the length of the encoded Result.
func (o *operation) size() int {
	n := protowire.SizeTag(resultID) + protowire.SizeVarint(o.req.id)
	if o.req.id == 0 {
		n = 0
	}
	return n + protowire.SizeTag(resultPut) + protowire.SizeBytes(o.outcomeSize())
}

// outcomeSize is the length of the outcome alone.
func (o *operation) outcomeSize() int {
	if o.item != nil {
		return o.item.SizeVT()
	}
	switch o.req.verb {
	case verbGet:
		return o.entry.SizeVT()
	case verbPut:
		return versionSize(o.cmd.Result.Write.Version) + flagSize(!o.cmd.Result.Write.Existed)
	default:
		return flagSize(o.cmd.Result.Write.Existed) + versionSize(o.cmd.Result.Write.Version)
	}
}

// versionSize and flagSize are lengths of fields with numbers under 16, left out when zero.
func versionSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func flagSize(f bool) int { return pick(f, 2, 0) }

// append appends the encoded Result.
func (o *operation) append(b []byte) []byte {
	b = appendVarintField(b, resultID, o.req.id)
	if o.item != nil {
		return appendMessage(b, resultError, o.item.SizeVT(), o.item)
	}
	w := &o.cmd.Result.Write
	switch o.req.verb {
	case verbGet:
		return appendMessage(b, resultEntry, o.entry.SizeVT(), &o.entry)
	case verbPut: // PutResult: version 1, created 2
		b = protowire.AppendTag(b, resultPut, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(o.outcomeSize()))
		b = appendVarintField(b, 1, w.Version)
		return appendVarintField(b, 2, protowire.EncodeBool(!w.Existed))
	default: // DeleteResult: deleted 1, revision 2
		b = protowire.AppendTag(b, resultDelete, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(o.outcomeSize()))
		b = appendVarintField(b, 1, protowire.EncodeBool(w.Existed))
		return appendVarintField(b, 2, w.Version)
	}
}

// appendVarintField appends a field unless it is zero.
func appendVarintField(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

type vtMessage interface {
	MarshalToSizedBufferVT([]byte) (int, error)
}

func appendMessage(b []byte, num protowire.Number, n int, m vtMessage) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	return appendVT(b, n, m)
}

// appendVT appends a message whose encoded length is n; b must have room for it.
func appendVT(b []byte, n int, m vtMessage) []byte {
	at := len(b)
	b = b[:at+n]
	if _, err := m.MarshalToSizedBufferVT(b[at:]); err != nil {
		panic("frontend: " + err.Error()) // only unknown extensions can fail, and we make none
	}
	return b
}
