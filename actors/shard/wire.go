package shard

import (
	"encoding/binary"
	"errors"
	"iter"
	"math"
)

// Commands and results between processes (proto/kvstore/dataplane/v1/shard.proto), encoded and decoded by hand: straight from and into what
// machines and frontends work with, without an allocation for a put or a delete. A test holds them to the generated code.
//
// What is decoded from a command are views, so its bytes stay until the command is released; a result is copied out. Lengths of parts are
// written in four bytes whatever they are, which saves counting them before.

// ErrMalformed is what decoders return for bytes that no encoder of this release made.
var ErrMalformed = errors.New("shard: malformed, or of a newer release")

// beginPart begins a bytes field of unknown length, which endPart ends.
func beginPart(b []byte, number int) ([]byte, int) {
	b = append(binary.AppendUvarint(b, uint64(number<<3|wireBytes)), 0, 0, 0, 0)
	return b, len(b)
}

func endPart(b []byte, at int) []byte {
	n := len(b) - at
	b[at-4], b[at-3], b[at-2], b[at-1] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21)
	return b
}

func appendBoolField(b []byte, number int, v bool) []byte {
	if !v {
		return b
	}
	return append(binary.AppendUvarint(b, uint64(number<<3|wireVarint)), 1)
}

// tag is a field as decoders tell it: its number and its wire type.
func (f *field) tag() int { return f.number<<3 | f.wire }

// fields are the fields of a message in order, until it ends or good is no more. Bytes that are no message make it so.
func fields(b []byte, good *bool) iter.Seq[field] {
	return func(yield func(field) bool) {
		r := reader{b: b}
		for f, ok := r.next(); ok && *good; f, ok = r.next() {
			if !yield(f) {
				return
			}
		}
		*good = *good && !r.bad
	}
}

// AppendCommand appends a ShardCommand. OpRelocate and OpForget stay inside a host.
func AppendCommand(b []byte, c *Command) []byte {
	b = appendUintField(b, 1, uint64(c.Op))
	b = appendUintField(b, 2, uint64(c.Namespace))
	if c.ID.Client != [16]byte{} {
		b = appendBytesField(b, 3, c.ID.Client[:])
		b = appendUintField(b, 4, c.ID.Op)
		b = appendUintField(b, 5, uint64(c.ID.Index))
		b = appendUintField(b, 6, uint64(c.ID.NotAfterMS))
	}
	var at int
	switch {
	case c.Op == OpPut:
		b, at = beginPart(b, 7)
		b = endPart(c.Put.append(b), at)
	case c.Op == OpDelete:
		b, at = beginPart(b, 8)
		b = endPart(c.Delete.append(b), at)
	case c.Op == OpTxn:
		b, at = beginPart(b, 9)
		b = endPart(c.Txn.append(b), at)
	case c.Op == OpEdit:
		b, at = beginPart(b, 11)
		b = endPart(c.Edit.append(b), at)
	case c.Prompt != nil:
		b, at = beginPart(b, 10)
		b = endPart(c.Prompt.append(b), at)
	}
	return b
}

func (p *Put) append(b []byte) []byte {
	b = appendBytesField(b, 1, p.Key)
	b = appendValue(b, 2, 3, &p.Value)
	b = appendBytesField(b, 4, p.ContentType)
	b = appendBytesField(b, 5, p.Encoding)
	b = appendPairFields(b, 6, p.Metadata)
	b = appendPairFields(b, 7, p.Tags)
	b = appendUintField(b, 8, uint64(p.TTLMS))
	b = appendBoolField(b, 9, p.KeepTTL)
	b = p.If.append(b, 10)
	return appendUintField(b, 11, uint64(p.Slot))
}

// appendValue appends inline bytes or a reference.
func appendValue(b []byte, inline, ref int, v *Value) []byte {
	if v.Ref.Object == (ObjectID{}) {
		return appendBytesField(b, inline, v.Inline)
	}
	return appendRefField(b, ref, &v.Ref)
}

func (p *Precondition) append(b []byte, number int) []byte {
	if *p == (Precondition{}) {
		return b
	}
	var room [24]byte
	return appendBytesField(b, number, appendUintField(appendUintField(room[:0], 1, uint64(p.Check)), 2, p.Version))
}

func (d *Delete) append(b []byte) []byte {
	b = appendBytesField(b, 1, d.Key)
	b = d.If.append(b, 2)
	return appendUintField(b, 3, uint64(d.Slot))
}

func (t *Txn) append(b []byte) []byte {
	var at, inner int
	for i := range t.Conditions {
		b, at = beginPart(b, 1)
		b = appendBytesField(b, 1, t.Conditions[i].Key)
		b = endPart(t.Conditions[i].If.append(b, 2), at)
	}
	for i := range t.Ops {
		b, at = beginPart(b, 2)
		if p := t.Ops[i].Put; p != nil {
			b, inner = beginPart(b, 1)
			b = endPart(p.append(b), inner)
		} else {
			b, inner = beginPart(b, 2)
			b = endPart(t.Ops[i].Delete.append(b), inner)
		}
		b = endPart(b, at)
	}
	return appendUintField(b, 3, uint64(t.Slot))
}

func (d *Edit) append(b []byte) []byte {
	b = appendBytesField(b, 1, d.Key)
	b = appendUintField(b, 2, uint64(d.Kind))
	b = appendUintField(b, 3, uint64(d.Delta))
	b = appendBytesField(b, 4, d.Bytes)
	b = appendUintField(b, 5, uint64(d.MaxBytes))
	b = appendUintField(b, 6, uint64(d.ExpiresMS))
	b = appendUintField(b, 7, uint64(d.When))
	b = appendUintField(b, 8, uint64(d.TTLMS))
	return appendUintField(b, 9, uint64(d.Slot))
}

func (k *BlockKey) append(b []byte, number int) []byte {
	b, at := beginPart(b, number)
	b = appendBytesField(b, 1, k.ID)
	b = appendUintField(b, 2, uint64(k.Rank))
	b = appendUintField(b, 3, uint64(k.Group))
	b = appendUintField(b, 4, uint64(k.Depth))
	return endPart(appendUintField(b, 5, uint64(k.Slot)), at)
}

func (a *PromptArgs) append(b []byte) []byte {
	b = appendBytesField(b, 1, a.Scope[:])
	b = appendBytesField(b, 2, a.ScopeFields)
	for i := range a.Blocks {
		b = a.Blocks[i].append(b, 3)
	}
	for i := range a.Index {
		p := &a.Index[i]
		var at int
		b, at = beginPart(b, 4)
		b = p.Block.append(b, 1)
		b = appendBytesField(b, 2, p.Parent)
		b = appendValue(b, 3, 4, &p.Value)
		b = appendUintField(b, 5, uint64(p.Size))
		b = appendFixed64Field(b, 6, p.Checksum)
		b = endPart(appendUintField(b, 7, uint64(p.TTLMS)), at)
	}
	if a.Lease != [16]byte{} {
		b = appendBytesField(b, 5, a.Lease[:])
	}
	b = appendUintField(b, 6, uint64(a.LeaseMS))
	b = appendUintField(b, 7, uint64(a.UntilMS))
	b = appendUintField(b, 8, uint64(a.Capacity.Blocks))
	b = appendUintField(b, 9, uint64(a.Capacity.Bytes))
	b = appendBoolField(b, 10, a.AllScopes)
	for i := range a.Damaged {
		b = appendRefField(b, 11, &a.Damaged[i])
	}
	return appendBytesField(b, 12, a.After)
}

// DecodeCommand decodes a ShardCommand into c, which is empty but for Done. What it points to are views of b. A command that is not whole, or
// not known to this release, is ErrMalformed.
func DecodeCommand(b []byte, c *Command) error {
	good := true
	given := 0 // arguments
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			c.Op, good = Op(f.value), f.value <= math.MaxUint8
		case 2<<3 | wireVarint:
			c.Namespace, good = NamespaceID(f.value), f.value <= math.MaxUint32
		case 3<<3 | wireBytes:
			good = copyWhole(c.ID.Client[:], f.bytes)
		case 4<<3 | wireVarint:
			c.ID.Op = f.value
		case 5<<3 | wireVarint:
			c.ID.Index, good = uint32(f.value), f.value <= math.MaxUint32
		case 6<<3 | wireVarint:
			c.ID.NotAfterMS = int64(f.value)
		case 7<<3 | wireBytes:
			given |= 1 << OpPut
			good = c.Put.decode(f.bytes)
		case 8<<3 | wireBytes:
			given |= 1 << OpDelete
			good = c.Delete.decode(f.bytes)
		case 9<<3 | wireBytes:
			given |= 1 << OpTxn
			good = c.Txn == nil
			c.Txn = new(Txn)
			good = good && c.Txn.decode(f.bytes)
		case 10<<3 | wireBytes:
			given |= promptArguments
			good = c.Prompt == nil
			c.Prompt = new(PromptArgs)
			good = good && c.Prompt.decode(f.bytes)
		case 11<<3 | wireBytes:
			given |= 1 << OpEdit
			good = c.Edit == nil
			c.Edit = new(Edit)
			good = good && c.Edit.decode(f.bytes)
		default:
			good = false
		}
	}
	if !good || given != argumentsOf(c.Op) {
		return ErrMalformed
	}
	return nil
}

const promptArguments = 1 << OpLookup

// argumentsOf tells which arguments an operation that is sent between processes has; -1 for others.
func argumentsOf(op Op) int {
	switch op {
	case OpPut, OpDelete, OpTxn, OpEdit:
		return 1 << op
	case OpDropNamespace:
		return 0
	case OpLookup, OpIndex, OpRelease, OpTouch, OpPin, OpDeleteBlocks, OpClear, OpUnindex:
		return promptArguments
	}
	return -1
}

// copyWhole copies bytes that have exactly the length of their place.
func copyWhole(to, from []byte) bool { return copy(to, from) == len(from) && len(from) == len(to) }

func (p *Put) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			p.Key = f.bytes
		case 2<<3 | wireBytes:
			p.Value.Inline = f.bytes
		case 3<<3 | wireBytes:
			good = decodeRef(f.bytes, &p.Value.Ref)
		case 4<<3 | wireBytes:
			p.ContentType = view(f.bytes)
		case 5<<3 | wireBytes:
			p.Encoding = view(f.bytes)
		case 6<<3 | wireBytes, 7<<3 | wireBytes:
			var pair Pair
			pair, good = decodePair(f.bytes)
			if f.number == 6 {
				p.Metadata = append(p.Metadata, pair)
			} else {
				p.Tags = append(p.Tags, pair)
			}
		case 8<<3 | wireVarint:
			p.TTLMS = int64(f.value)
		case 9<<3 | wireVarint:
			p.KeepTTL = f.value != 0
		case 10<<3 | wireBytes:
			good = p.If.decode(f.bytes)
		case 11<<3 | wireVarint:
			p.Slot, good = uint16(f.value), f.value <= math.MaxUint16
		default:
			good = false
		}
	}
	return good && oneValue(&p.Value)
}

// oneValue tells that a value is inline or a reference, not both.
func oneValue(v *Value) bool { return len(v.Inline) == 0 || v.Ref.Object == (ObjectID{}) }

func (p *Precondition) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			p.Check, good = Check(f.value), f.value <= uint64(CheckPresent)
		case 2<<3 | wireVarint:
			p.Version = f.value
		default:
			good = false
		}
	}
	return good
}

func (d *Delete) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			d.Key = f.bytes
		case 2<<3 | wireBytes:
			good = d.If.decode(f.bytes)
		case 3<<3 | wireVarint:
			d.Slot, good = uint16(f.value), f.value <= math.MaxUint16
		default:
			good = false
		}
	}
	return good
}

func (t *Txn) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			var c Condition
			good = c.decode(f.bytes)
			t.Conditions = append(t.Conditions, c)
		case 2<<3 | wireBytes:
			var op TxnOp
			good = op.decode(f.bytes)
			t.Ops = append(t.Ops, op)
		case 3<<3 | wireVarint:
			t.Slot, good = uint16(f.value), f.value <= math.MaxUint16
		default:
			good = false
		}
	}
	return good
}

func (d *Edit) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			d.Key = f.bytes
		case 2<<3 | wireVarint:
			d.Kind, good = EditKind(f.value), f.value <= uint64(EditExpire)
		case 3<<3 | wireVarint:
			d.Delta = int64(f.value)
		case 4<<3 | wireBytes:
			d.Bytes = f.bytes
		case 5<<3 | wireVarint:
			d.MaxBytes = int64(f.value)
		case 6<<3 | wireVarint:
			d.ExpiresMS = int64(f.value)
		case 7<<3 | wireVarint:
			d.When, good = EditWhen(f.value), f.value <= uint64(whenAll)
		case 8<<3 | wireVarint:
			d.TTLMS = int64(f.value)
		case 9<<3 | wireVarint:
			d.Slot, good = uint16(f.value), f.value <= math.MaxUint16
		default:
			good = false
		}
	}
	return good
}

func (c *Condition) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			c.Key = f.bytes
		case 2<<3 | wireBytes:
			good = c.If.decode(f.bytes)
		default:
			good = false
		}
	}
	return good
}

func (o *TxnOp) decode(b []byte) bool {
	r := reader{b: b}
	f, ok := r.next()
	if !ok || len(r.b) > 0 {
		return false
	}
	switch f.tag() {
	case 1<<3 | wireBytes:
		o.Put = new(Put)
		return o.Put.decode(f.bytes)
	case 2<<3 | wireBytes:
		o.Delete = new(Delete)
		return o.Delete.decode(f.bytes)
	}
	return false
}

func (k *BlockKey) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		if f.wire == wireVarint && f.value > math.MaxUint32 {
			return false
		}
		switch f.tag() {
		case 1<<3 | wireBytes:
			k.ID = f.bytes
		case 2<<3 | wireVarint:
			k.Rank = uint32(f.value)
		case 3<<3 | wireVarint:
			k.Group = uint32(f.value)
		case 4<<3 | wireVarint:
			k.Depth = uint32(f.value)
		case 5<<3 | wireVarint:
			k.Slot, good = uint16(f.value), f.value <= math.MaxUint16
		default:
			good = false
		}
	}
	return good
}

func decodeBlockKeys(keys []BlockKey, b []byte) ([]BlockKey, bool) {
	keys = append(keys, BlockKey{})
	return keys, keys[len(keys)-1].decode(b)
}

func (a *PromptArgs) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			good = copyWhole(a.Scope[:], f.bytes)
		case 2<<3 | wireBytes:
			a.ScopeFields = f.bytes
		case 3<<3 | wireBytes:
			a.Blocks, good = decodeBlockKeys(a.Blocks, f.bytes)
		case 4<<3 | wireBytes:
			a.Index = append(a.Index, BlockPut{})
			good = a.Index[len(a.Index)-1].decode(f.bytes)
		case 5<<3 | wireBytes:
			good = copyWhole(a.Lease[:], f.bytes)
		case 6<<3 | wireVarint:
			a.LeaseMS = int64(f.value)
		case 7<<3 | wireVarint:
			a.UntilMS = int64(f.value)
		case 8<<3 | wireVarint:
			a.Capacity.Blocks = int64(f.value)
		case 9<<3 | wireVarint:
			a.Capacity.Bytes = int64(f.value)
		case 10<<3 | wireVarint:
			a.AllScopes = f.value != 0
		case 11<<3 | wireBytes:
			a.Damaged = append(a.Damaged, Ref{})
			good = decodeRef(f.bytes, &a.Damaged[len(a.Damaged)-1])
		case 12<<3 | wireBytes:
			a.After = f.bytes
		default:
			good = false
		}
	}
	return good && (len(a.Damaged) == 0 || len(a.Damaged) == len(a.Blocks))
}

func (p *BlockPut) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			good = p.Block.decode(f.bytes)
		case 2<<3 | wireBytes:
			p.Parent = f.bytes
		case 3<<3 | wireBytes:
			p.Value.Inline = f.bytes
		case 4<<3 | wireBytes:
			good = decodeRef(f.bytes, &p.Value.Ref)
		case 5<<3 | wireVarint:
			p.Size = int64(f.value)
		case 6<<3 | wireFixed64:
			p.Checksum = f.value
		case 7<<3 | wireVarint:
			p.TTLMS = int64(f.value)
		default:
			good = false
		}
	}
	return good && oneValue(&p.Value)
}
