package shard

import (
	"math"

	"kvstore/components/kverr"
)

// Queries and answers between processes; see wire.go. Entries and blocks travel as they are stored: whoever answers copies an item, and
// whoever asked takes it apart, as a view does in one process.

// AppendQuery appends a ShardQuery.
func AppendQuery(b []byte, q *Query) []byte {
	b = appendUintField(b, 1, uint64(q.Op))
	b = appendUintField(b, 2, uint64(q.Namespace))
	b = appendBytesField(b, 3, q.Key)
	var at int
	if l := q.List; l != nil {
		b, at = beginPart(b, 4)
		b = appendBytesField(b, 1, l.Prefix)
		b = appendBytesField(b, 2, l.Start)
		b = appendBytesField(b, 3, l.End)
		b = appendBytesField(b, 4, l.After)
		b = appendUintField(b, 5, uint64(l.Limit))
		b = appendUintField(b, 6, uint64(l.MaxBytes))
		b = endPart(appendBoolField(b, 7, l.KeysOnly), at)
	}
	if p := q.Prompt; p != nil {
		b, at = beginPart(b, 5)
		b = appendBytesField(b, 1, p.Scope[:])
		b = appendBytesField(b, 2, p.ScopeFields)
		for i := range p.Blocks {
			b = p.Blocks[i].append(b, 3)
		}
		b = appendBoolField(b, 4, p.StopAtMiss)
		b = appendBytesField(b, 5, p.After)
		b = endPart(appendUintField(b, 6, uint64(p.Limit)), at)
	}
	return b
}

// DecodeQuery decodes a ShardQuery into q, which is empty but for Done. What it points to are views of b. A query that is not whole, or
// not known to this release, is ErrMalformed.
func DecodeQuery(b []byte, q *Query) error {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireVarint:
			q.Op, good = QueryOp(f.value), f.value <= math.MaxUint8
		case 2<<3 | wireVarint:
			q.Namespace, good = NamespaceID(f.value), f.value <= math.MaxUint32
		case 3<<3 | wireBytes:
			q.Key = f.bytes
		case 4<<3 | wireBytes:
			good = q.List == nil
			q.List = new(ListQuery)
			good = good && q.List.decode(f.bytes)
		case 5<<3 | wireBytes:
			good = q.Prompt == nil
			q.Prompt = new(BlockQuery)
			good = good && q.Prompt.decode(f.bytes)
		default:
			good = false
		}
	}
	switch q.Op {
	case QueryGet:
	case QueryList, QueryCount:
		good = good && q.List != nil
	case QueryHas, QueryBlocks, QueryBlockPage, QueryScope, QueryScopes:
		good = good && q.Prompt != nil
	default:
		good = false
	}
	if !good {
		return ErrMalformed
	}
	return nil
}

// maxRows bounds the rows that a query asks for.
const maxRows = 1 << 20

func (l *ListQuery) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			l.Prefix = f.bytes
		case 2<<3 | wireBytes:
			l.Start = f.bytes
		case 3<<3 | wireBytes:
			l.End = f.bytes
		case 4<<3 | wireBytes:
			l.After = f.bytes
		case 5<<3 | wireVarint:
			l.Limit, good = int(f.value), f.value <= maxRows
		case 6<<3 | wireVarint:
			l.MaxBytes, good = int64(f.value), f.value <= math.MaxInt64
		case 7<<3 | wireVarint:
			l.KeysOnly = f.value != 0
		default:
			good = false
		}
	}
	return good
}

func (p *BlockQuery) decode(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			good = copyWhole(p.Scope[:], f.bytes)
		case 2<<3 | wireBytes:
			p.ScopeFields = f.bytes
		case 3<<3 | wireBytes:
			p.Blocks, good = decodeBlockKeys(p.Blocks, f.bytes)
		case 4<<3 | wireVarint:
			p.StopAtMiss = f.value != 0
		case 5<<3 | wireBytes:
			p.After = f.bytes
		case 6<<3 | wireVarint:
			p.Limit, good = int(f.value), f.value <= maxRows
		default:
			good = false
		}
	}
	return good
}

// AppendAnswer appends the ShardAnswer of a query that was answered.
func AppendAnswer(b []byte, q *Query) []byte {
	a := &q.Answer
	var at int
	if a.Err != nil {
		b, at = beginPart(b, 1)
		b = endPart(AppendFailure(b, a.Err), at)
	}
	b = appendUintField(b, 2, a.Revision)
	if a.Found && a.Err == nil {
		b, at = beginPart(b, 3)
		b = endPart(appendBytesField(b, 2, a.Entry.item), at)
	}
	for i := range a.Entries {
		e := &a.Entries[i]
		item, left := e.item, int64(0)
		if q.List.KeysOnly {
			left = int64(len(e.Value.Inline))
			item = item[:len(item)-len(e.Value.Inline)]
		}
		b, at = beginPart(b, 3)
		b = appendBytesField(b, 1, e.Key)
		b = appendBytesField(b, 2, item)
		b = endPart(appendUintField(b, 3, uint64(left)), at)
	}
	b = appendUintField(b, 4, uint64(a.Count))
	if len(a.Present) > 0 {
		bits := (len(a.Present) + 7) / 8
		b = appendLengthTag(b, 5, bits)
		from := len(b)
		for range bits {
			b = append(b, 0)
		}
		for i, there := range a.Present {
			if there {
				b[from+i/8] |= 1 << (i % 8)
			}
		}
		b = appendUintField(b, 6, uint64(len(a.Present)))
	}
	for i := range a.Blocks {
		k := &a.Blocks[i]
		if k.item == nil {
			continue // absent
		}
		b, at = beginPart(b, 7)
		if q.Op == QueryBlocks {
			b = appendUintField(b, 1, uint64(i))
		}
		b = appendBytesField(b, 2, k.item)
		if q.Op == QueryBlockPage {
			b = appendBytesField(b, 3, a.Typed[i])
		}
		b = endPart(b, at)
	}
	for i := range a.Scopes {
		s := &a.Scopes[i]
		b, at = beginPart(b, 8)
		b = appendBytesField(b, 1, s.Scope[:])
		b = appendBytesField(b, 2, s.Fields)
		b = appendUintField(b, 3, uint64(s.Blocks))
		b = endPart(appendUintField(b, 4, uint64(s.Bytes)), at)
	}
	return appendBoolField(b, 9, a.More)
}

// DecodeAnswer decodes the ShardAnswer of a query. What it points to are views of b, which must never change.
func DecodeAnswer(b []byte, q *Query) error {
	a := &q.Answer
	*a = Answer{}
	good := true
	var present []byte
	var lookedAt uint64
	if q.Op == QueryBlocks {
		a.Blocks = make([]Block, len(q.Prompt.Blocks))
	}
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			var err error
			a.Err, err = DecodeFailure(f.bytes)
			good = err == nil
		case 2<<3 | wireVarint:
			a.Revision = f.value
		case 3<<3 | wireBytes:
			if q.Op == QueryGet {
				a.Found, a.Entry.Key = true, q.Key
				good = a.Entry.decodeWire(f.bytes)
				break
			}
			a.Entries = append(a.Entries, Entry{})
			good = a.Entries[len(a.Entries)-1].decodeWire(f.bytes)
		case 4<<3 | wireVarint:
			a.Count = int64(f.value)
		case 5<<3 | wireBytes:
			present = f.bytes
		case 6<<3 | wireVarint:
			lookedAt = f.value
		case 7<<3 | wireBytes:
			good = a.decodeBlock(q, f.bytes)
		case 8<<3 | wireBytes:
			var s ScopeUsage
			good = s.decodeWire(f.bytes)
			a.Scopes = append(a.Scopes, s)
		case 9<<3 | wireVarint:
			a.More = f.value != 0
		}
	}
	if q.Op == QueryHas || q.Op == QueryBlocks {
		good = good && lookedAt <= uint64(len(q.Prompt.Blocks)) && uint64(len(present)) == (lookedAt+7)/8
		for i := 0; good && i < int(lookedAt); i++ {
			there := present[i/8]&(1<<(i%8)) != 0
			a.Present = append(a.Present, there)
			if q.Op == QueryBlocks && there != (a.Blocks[i].item != nil) {
				good = false
			}
		}
	}
	if !good {
		return ErrMalformed
	}
	return nil
}

func (e *Entry) decodeWire(b []byte) bool {
	var item []byte
	var left uint64
	r := reader{b: b}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.tag() {
		case 1<<3 | wireBytes:
			e.Key = f.bytes
		case 2<<3 | wireBytes:
			item = f.bytes
		case 3<<3 | wireVarint:
			left = f.value
		}
	}
	if r.bad || left > math.MaxInt64 || !e.decode(item) {
		return false
	}
	e.leftOut = int64(left)
	return left == 0 || len(e.Value.Inline) == 0
}

// decodeBlock decodes one block of an answer to its place.
func (a *Answer) decodeBlock(q *Query, b []byte) bool {
	var at uint64
	var item, typed []byte
	r := reader{b: b}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.tag() {
		case 1<<3 | wireVarint:
			at = f.value
		case 2<<3 | wireBytes:
			item = f.bytes
		case 3<<3 | wireBytes:
			typed = f.bytes
		}
	}
	if r.bad {
		return false
	}
	var k BlockKey
	var to *Block
	switch q.Op {
	case QueryBlocks:
		if at >= uint64(len(a.Blocks)) {
			return false
		}
		k, to = q.Prompt.Blocks[at], &a.Blocks[at]
	case QueryBlockPage:
		var ok bool
		if _, _, k, ok = splitBlockKey(typed); !ok {
			return false
		}
		a.Blocks, a.Typed = append(a.Blocks, Block{}), append(a.Typed, typed)
		to = &a.Blocks[len(a.Blocks)-1]
	default:
		return false
	}
	to.ID, to.Rank, to.Group = k.ID, k.Rank, k.Group
	return to.decode(item) && to.item != nil
}

func (s *ScopeUsage) decodeWire(b []byte) bool {
	good := true
	for f := range fields(b, &good) {
		switch f.tag() {
		case 1<<3 | wireBytes:
			good = copyWhole(s.Scope[:], f.bytes)
		case 2<<3 | wireBytes:
			s.Fields = f.bytes
		case 3<<3 | wireVarint:
			s.Blocks = int64(f.value)
		case 4<<3 | wireVarint:
			s.Bytes = int64(f.value)
		}
	}
	return good
}

// Malformed is the failure of a command or query that could not be decoded.
func Malformed(what string) *kverr.Error {
	return kverr.New(kverr.Unimplemented, what, "it is malformed, or of a newer release than this host")
}
