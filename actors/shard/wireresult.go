package shard

import (
	"errors"
	"math"
	"slices"

	"kvstore/components/kverr"
)

// AppendResult appends a ShardResult. Bytes of blocks are left out.
func AppendResult(b []byte, r *Result) []byte {
	var at int
	if r.Err != nil {
		b, at = beginPart(b, 1)
		b = endPart(AppendFailure(b, r.Err), at)
	}
	if r.Write != (WriteResult{}) {
		b = r.Write.append(b, 2)
	}
	b = appendUintField(b, 3, r.Revision)
	b = appendBoolField(b, 4, r.Committed)
	for i := range r.Writes {
		b = r.Writes[i].append(b, 5)
	}
	for i := range r.Failures {
		f := &r.Failures[i]
		b, at = beginPart(b, 6)
		b = appendUintField(b, 1, uint64(f.Condition+1))
		b = appendUintField(b, 2, uint64(f.Op+1))
		b = endPart(appendUintField(b, 3, f.Version), at)
	}
	for i := range r.Blocks {
		o := &r.Blocks[i]
		b, at = beginPart(b, 7)
		b = appendBoolField(b, 1, o.Present)
		b = appendBoolField(b, 2, o.Stored)
		b = appendBoolField(b, 3, o.Leased)
		b = appendBoolField(b, 4, o.Refused)
		if o.Value.Ref.Object != (ObjectID{}) {
			b = appendRefField(b, 5, &o.Value.Ref)
		}
		b = appendUintField(b, 6, uint64(o.Size))
		b = appendFixed64Field(b, 7, o.Checksum)
		b = endPart(appendUintField(b, 8, uint64(o.PinnedUntilMS)), at)
	}
	b = appendUintField(b, 8, uint64(r.LeaseExpiresMS))
	b = appendUintField(b, 9, uint64(r.Deleted))
	b = appendUintField(b, 10, uint64(r.Leased))
	b = appendBoolField(b, 11, r.More)
	b = appendBytesField(b, 12, r.Next)
	b = appendUintField(b, 13, uint64(r.Evicted))
	b = appendUintField(b, 14, uint64(r.Damaged))
	b = appendBoolField(b, 15, r.Duplicate)
	return appendUintField(b, 16, uint64(r.Number))
}

func (w *WriteResult) append(b []byte, number int) []byte {
	var room [16]byte
	p := appendBoolField(appendUintField(room[:0], 1, w.Version), 2, w.Existed)
	return append(appendLengthTag(b, number, len(p)), p...)
}

// DecodeResult decodes a ShardResult into r, which is empty. It keeps nothing of b.
func DecodeResult(b []byte, r *Result) error {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			var err error
			r.Err, err = DecodeFailure(f.bytes)
			good = err == nil
		case 2<<3 | wireBytes:
			good = r.Write.decode(f.bytes)
		case 3<<3 | wireVarint:
			r.Revision = f.value
		case 4<<3 | wireVarint:
			r.Committed = f.value != 0
		case 5<<3 | wireBytes:
			var w WriteResult
			good = w.decode(f.bytes)
			r.Writes = append(r.Writes, w)
		case 6<<3 | wireBytes:
			var t TxnFailure
			good = t.decode(f.bytes)
			r.Failures = append(r.Failures, t)
		case 7<<3 | wireBytes:
			var o BlockOutcome
			good = o.decode(f.bytes)
			r.Blocks = append(r.Blocks, o)
		case 8<<3 | wireVarint:
			r.LeaseExpiresMS = int64(f.value)
		case 9<<3 | wireVarint:
			r.Deleted = int64(f.value)
		case 10<<3 | wireVarint:
			r.Leased = int64(f.value)
		case 11<<3 | wireVarint:
			r.More = f.value != 0
		case 12<<3 | wireBytes:
			r.Next = slices.Clone(f.bytes)
		case 13<<3 | wireVarint:
			r.Evicted = int64(f.value)
		case 14<<3 | wireVarint:
			r.Damaged = int64(f.value)
		case 15<<3 | wireVarint:
			r.Duplicate = f.value != 0
		case 16<<3 | wireVarint:
			r.Number = int64(f.value)
		default: // of a newer release, which says nothing to this one that it must know
		}
	}
	if !good {
		return ErrMalformed
	}
	return nil
}

func (w *WriteResult) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			w.Version = f.value
		case 2<<3 | wireVarint:
			w.Existed = f.value != 0
		}
	}
	return good
}

func (t *TxnFailure) decode(b []byte) bool {
	t.Condition, t.Op = -1, -1
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			t.Condition, good = int(f.value)-1, f.value <= math.MaxInt32
		case 2<<3 | wireVarint:
			t.Op, good = int(f.value)-1, f.value <= math.MaxInt32
		case 3<<3 | wireVarint:
			t.Version = f.value
		}
	}
	return good
}

func (o *BlockOutcome) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			o.Present = f.value != 0
		case 2<<3 | wireVarint:
			o.Stored = f.value != 0
		case 3<<3 | wireVarint:
			o.Leased = f.value != 0
		case 4<<3 | wireVarint:
			o.Refused = f.value != 0
		case 5<<3 | wireBytes:
			good = decodeRef(f.bytes, &o.Value.Ref)
		case 6<<3 | wireVarint:
			o.Size = int64(f.value)
		case 7<<3 | wireFixed64:
			o.Checksum = f.value
		case 8<<3 | wireVarint:
			o.PinnedUntilMS = int64(f.value)
		}
	}
	return good
}

// maxCause bounds what is sent of the cause of a failure.
const maxCause = 512

// AppendFailure appends a Failure.
func AppendFailure(b []byte, e *kverr.Error) []byte {
	b = appendUintField(b, 1, uint64(e.Kind))
	b = appendBytesField(b, 2, e.Op)
	b = appendBytesField(b, 3, e.Message)
	b = appendBytesField(b, 4, e.Field)
	b = appendUintField(b, 5, uint64(e.Limit))
	b = appendUintField(b, 6, e.CurrentVersion)
	b = appendUintField(b, 7, uint64(e.RetryAfterMS))
	if e.Err != nil {
		cause := e.Err.Error()
		b = appendBytesField(b, 8, cause[:min(len(cause), maxCause)])
	}
	return b
}

// DecodeFailure decodes a Failure. It keeps nothing of b.
func DecodeFailure(b []byte) (*kverr.Error, error) {
	e := new(kverr.Error)
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			e.Kind, good = kverr.Kind(f.value), f.value <= math.MaxUint8
		case 2<<3 | wireBytes:
			e.Op = string(f.bytes)
		case 3<<3 | wireBytes:
			e.Message = string(f.bytes)
		case 4<<3 | wireBytes:
			e.Field = string(f.bytes)
		case 5<<3 | wireVarint:
			e.Limit = int64(f.value)
		case 6<<3 | wireVarint:
			e.CurrentVersion = f.value
		case 7<<3 | wireVarint:
			e.RetryAfterMS = int64(f.value)
		case 8<<3 | wireBytes:
			e.Err = errors.New(string(f.bytes))
		}
	}
	if !good {
		return nil, ErrMalformed
	}
	return e, nil
}

// AppendRefs appends references as a repeated field with a number.
func AppendRefs(b []byte, number int, refs []Ref) []byte {
	for i := range refs {
		b = appendRefField(b, number, &refs[i])
	}
	return b
}

// DecodeRef decodes a reference.
func DecodeRef(b []byte) (ref Ref, err error) {
	if !decodeRef(b, &ref) {
		return Ref{}, ErrMalformed
	}
	return ref, nil
}
