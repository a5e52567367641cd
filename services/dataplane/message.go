package dataplane

import (
	"kvstore/actors/host"
	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// Field numbers of ExchangeRequest, ExchangeResponse and their parts (proto/kvstore/dataplane/v1/shard.proto). Frames are encoded and decoded
// by hand; a test holds both to the generated code.
const (
	fieldHello  = 1
	fieldRoutes = 2
	fieldCalls  = 3
	fieldPing   = 4

	callID         = 1
	callRoute      = 2
	callTimeout    = 3
	callCommand    = 4
	callQuery      = 5
	callPutValues  = 6
	callReadPart   = 7
	callDropValues = 8
	callFollow     = 9

	fieldWelcome  = 1
	fieldOutcomes = 2
	fieldPong     = 3
	fieldClosing  = 4

	outcomeID      = 1
	outcomeFailure = 2
	outcomeResult  = 3
	outcomeAnswer  = 4
	outcomeRefs    = 5
	outcomePart    = 6
)

// maxOutcome bounds one outcome, so that every frame with it is one that clients take.
const maxOutcome = maxMessage - maxFrame - 1<<10

// decode decodes a call; what is wrong with it is its outcome.
func (j *job) decode(b []byte) {
	var way *host.Way
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		switch p.number {
		case callID:
			j.id = uint32(p.value)
		case callRoute:
			j.number = uint32(p.value)
		case callTimeout:
			j.wait = int64(p.value)
		case callCommand:
			j.kind = callCommand
			if shard.DecodeCommand(p.bytes, &j.cmd) != nil {
				j.err = shard.Malformed("command")
			}
		case callQuery:
			j.kind = callQuery
			if shard.DecodeQuery(p.bytes, &j.query) != nil {
				j.err = shard.Malformed("query")
			}
		case callPutValues:
			j.kind = callPutValues
			j.decodeValues(p.bytes)
		case callReadPart:
			j.kind = callReadPart
			j.decodePart(p.bytes)
		case callDropValues:
			j.kind = callDropValues
			if j.refs, ok = decodeRefs(p.bytes, 1); !ok {
				j.err = shard.Malformed("drop_values")
			}
		case callFollow:
			way = wayOf(p.bytes)
		}
	}
	if len(b) > 0 || j.kind == 0 {
		j.err = shard.Malformed("call")
	}
	if way != nil {
		switch j.kind {
		case callCommand:
			j.cmd.Follow = way
		case callQuery:
			j.query.Follow = way
		}
	}
}

func (j *job) decodeValues(b []byte) {
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		if p.number == 1 {
			j.values = append(j.values, p.bytes)
		}
	}
	if len(b) > 0 || len(j.values) == 0 {
		j.err = shard.Malformed("put_values")
	}
}

func (j *job) decodePart(b []byte) {
	var length uint64
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		switch p.number {
		case 1:
			var err error
			if j.ref, err = shard.DecodeRef(p.bytes); err != nil {
				j.err = shard.Malformed("read_part")
			}
		case 2:
			j.offset = int64(p.value)
		case 3:
			length = p.value
		}
	}
	switch {
	case len(b) > 0 || j.offset < 0:
		j.err = shard.Malformed("read_part")
	case length > maxInline:
		j.err = kverr.TooBig("read_part.length", int64(min(length, 1<<62)), int64(maxInline), "bytes")
	default:
		j.held = int64(length)
	}
}

func decodeRefs(b []byte, number int) (refs []shard.Ref, ok bool) {
	for {
		p, rest, ok := nextPart(b)
		if !ok {
			break
		}
		b = rest
		if int(p.number) != number {
			continue
		}
		ref, err := shard.DecodeRef(p.bytes)
		if err != nil {
			return nil, false
		}
		refs = append(refs, ref)
	}
	return refs, len(b) == 0
}

// append appends the outcome of a call, unless it has none, in at most so many bytes; what takes more is refused.
func (j *job) append(w *buffer, most int) {
	if j.kind == callDropValues && j.err == nil {
		return
	}
	w.grow(j.room())
	from := len(w.b)
	outer := w.begin(fieldOutcomes)
	w.number(outcomeID, uint64(j.id))
	switch {
	case j.err != nil:
		j.appendFailure(w, j.err)
	case j.kind == callCommand:
		at := w.begin(outcomeResult)
		w.b = shard.AppendResult(w.b, &j.cmd.Result)
		w.end(at)
	case j.kind == callQuery:
		at := w.begin(outcomeAnswer)
		w.b = shard.AppendAnswer(w.b, &j.query)
		w.end(at)
	case j.kind == callPutValues:
		at := w.begin(outcomeRefs)
		w.b = shard.AppendRefs(w.b, 1, j.refs)
		w.end(at)
	case j.kind == callReadPart:
		w.bytes(outcomePart, *j.part)
	}
	if n := len(w.b) - from; n > most {
		w.b = w.b[:from]
		outer = w.begin(fieldOutcomes)
		w.number(outcomeID, uint64(j.id))
		j.appendFailure(w, kverr.TooBig("answer", n, most, "bytes"))
	}
	w.end(outer)
}

func (j *job) appendFailure(w *buffer, err *kverr.Error) {
	at := w.begin(outcomeFailure)
	w.b = shard.AppendFailure(w.b, err)
	w.end(at)
}

// room is about how many bytes an outcome takes.
func (j *job) room() int {
	switch j.kind {
	case callCommand:
		return 128 + 64*len(j.cmd.Result.Blocks) + 32*len(j.cmd.Result.Writes)
	case callQuery:
		a := &j.query.Answer
		n := 128 + len(a.Entry.Value.Inline) + 128*len(a.Scopes) + len(a.Present)/8
		for i := range a.Entries {
			n += 96 + len(a.Entries[i].Key) + len(a.Entries[i].Value.Inline)
		}
		for i := range a.Blocks {
			n += 160 + len(a.Blocks[i].Value.Inline)
		}
		return n
	case callReadPart:
		return 32 + int(j.held)
	}
	return 128 + 64*len(j.refs)
}
