package shard

import (
	"fmt"
)

// The effects of KV, as they are logged (proto/kvstore/dataplane/v1/effects.proto). Encoding and decoding are by hand: they append to one
// buffer and yield views, so that neither a step nor a replay allocates per effect. A test holds them against the generated code.

// putEffect is Effect.Put.
type putEffect struct {
	namespace                 NamespaceID
	key                       []byte
	value                     Value
	created, updated, expires int64
	contentType, encoding     string
	metadata, tags            []Pair
}

func (e *putEffect) append(b []byte) []byte {
	b = appendUintField(b, 1, uint64(e.namespace))
	b = appendBytesField(b, 2, e.key)
	if e.value.Ref.Object == (ObjectID{}) {
		b = appendBytesField(b, 3, e.value.Inline)
	} else {
		b = appendRefField(b, 4, &e.value.Ref)
	}
	b = appendUintField(b, 5, uint64(e.created))
	if e.updated != e.created {
		b = appendUintField(b, 6, uint64(e.updated))
	}
	b = appendUintField(b, 7, uint64(e.expires))
	b = appendBytesField(b, 8, e.contentType)
	b = appendBytesField(b, 9, e.encoding)
	b = appendPairFields(b, 10, e.metadata)
	return appendPairFields(b, 11, e.tags)
}

func (e *putEffect) decode(payload []byte) bool {
	*e = putEffect{}
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.namespace = NamespaceID(f.value)
		case 2:
			e.key = f.bytes
		case 3:
			e.value.Inline = f.bytes
		case 4:
			if !decodeRef(f.bytes, &e.value.Ref) {
				return false
			}
		case 5:
			e.created = int64(f.value)
		case 6:
			e.updated = int64(f.value)
		case 7:
			e.expires = int64(f.value)
		case 8:
			e.contentType = view(f.bytes)
		case 9:
			e.encoding = view(f.bytes)
		case 10, 11:
			p, ok := decodePair(f.bytes)
			if !ok {
				return false
			}
			if f.number == 10 {
				e.metadata = append(e.metadata, p)
			} else {
				e.tags = append(e.tags, p)
			}
		default:
			return false
		}
	}
	if e.updated == 0 {
		e.updated = e.created
	}
	return !r.bad && e.created >= 0 && e.updated >= e.created && e.expires >= 0 && e.expires < 1<<48
}

// removeEffect is Effect.Delete and Effect.Expire.
type removeEffect struct {
	namespace NamespaceID
	key       []byte
}

func (e *removeEffect) append(b []byte) []byte {
	b = appendUintField(b, 1, uint64(e.namespace))
	return appendBytesField(b, 2, e.key)
}

func (e *removeEffect) decode(payload []byte) bool {
	*e = removeEffect{}
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.namespace = NamespaceID(f.value)
		case 2:
			e.key = f.bytes
		default:
			return false
		}
	}
	return !r.bad
}

// rememberEffect is Effect.Remember.
type rememberEffect struct {
	slot    uint16
	id      Identity // without NotAfterMS, which the outcome holds
	outcome []byte
}

func (e *rememberEffect) append(b []byte) []byte {
	b = appendUintField(b, 1, uint64(e.slot))
	b = appendBytesField(b, 2, e.id.Client[:])
	b = appendUintField(b, 3, e.id.Op)
	b = appendUintField(b, 4, uint64(e.id.Index))
	return appendBytesField(b, 5, e.outcome)
}

func (e *rememberEffect) decode(payload []byte) bool {
	*e = rememberEffect{}
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.slot = uint16(f.value)
		case 2:
			if len(f.bytes) != len(e.id.Client) {
				return false
			}
			copy(e.id.Client[:], f.bytes)
		case 3:
			e.id.Op = f.value
		case 4:
			e.id.Index = uint32(f.value)
		case 5:
			e.outcome = f.bytes
		default:
			return false
		}
	}
	return !r.bad
}

// relocateEffect is Effect.Relocate.
type relocateEffect struct {
	key      []byte
	from, to Ref
}

func (e *relocateEffect) append(b []byte) []byte {
	b = appendBytesField(b, 1, e.key)
	b = appendRefField(b, 2, &e.from)
	return appendRefField(b, 3, &e.to)
}

func (e *relocateEffect) decode(payload []byte) bool {
	*e = relocateEffect{}
	r := reader{b: payload}
	good := true
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.number {
		case 1:
			e.key = f.bytes
		case 2:
			good = good && decodeRef(f.bytes, &e.from)
		case 3:
			good = good && decodeRef(f.bytes, &e.to)
		default:
			return false
		}
	}
	return good && !r.bad && len(e.key) > 0
}

// Effect.Forget is a list of objects.

func appendForget(b []byte, objects []ObjectID) []byte {
	for _, o := range objects {
		var room [24]byte
		b = appendBytesField(b, 1, appendUintField(appendUintField(room[:0], 1, o.Epoch), 2, o.Counter))
	}
	return b
}

func decodeForget(payload []byte, each func(ObjectID)) bool {
	r := reader{b: payload}
	for f, ok := r.next(); ok; f, ok = r.next() {
		if f.number != 1 {
			return false
		}
		var o ObjectID
		s := reader{b: f.bytes}
		for g, ok := s.next(); ok; g, ok = s.next() {
			switch g.number {
			case 1:
				o.Epoch = g.value
			case 2:
				o.Counter = g.value
			}
		}
		if s.bad {
			return false
		}
		each(o)
	}
	return !r.bad
}

func appendRefField(b []byte, number int, f *Ref) []byte {
	var room [80]byte
	p := appendUintField(room[:0], 1, f.Object.Epoch)
	p = appendUintField(p, 2, f.Object.Counter)
	p = appendUintField(p, 3, uint64(f.ObjectBytes))
	p = appendUintField(p, 4, uint64(f.Offset))
	p = appendUintField(p, 5, uint64(f.Length))
	p = appendFixed64Field(p, 6, f.Checksum)
	return appendBytesField(b, number, p)
}

func decodeRef(b []byte, ref *Ref) bool {
	*ref = Ref{}
	r := reader{b: b}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.tag() {
		case 1<<3 | wireVarint:
			ref.Object.Epoch = f.value
		case 2<<3 | wireVarint:
			ref.Object.Counter = f.value
		case 3<<3 | wireVarint:
			ref.ObjectBytes = int64(f.value)
		case 4<<3 | wireVarint:
			ref.Offset = int64(f.value)
		case 5<<3 | wireVarint:
			ref.Length = int64(f.value)
		case 6<<3 | wireFixed64:
			ref.Checksum = f.value
		default:
			return false
		}
	}
	return !r.bad && ref.Object.Epoch != 0 && ref.ObjectBytes >= 0 && ref.Offset >= 0 && ref.Length >= 0
}

func appendPairFields(b []byte, number int, pairs []Pair) []byte {
	for i := range pairs {
		name, value := pairs[i].Name, pairs[i].Value
		n := fieldLen(len(name)) + fieldLen(len(value))
		b = appendLengthTag(b, number, n)
		b = appendBytesField(b, 1, name)
		b = appendBytesField(b, 2, value)
	}
	return b
}

// fieldLen is the length of a bytes field with a number under 16.
func fieldLen(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + uvarintLen(uint64(n)) + n
}

func decodePair(b []byte) (p Pair, ok bool) {
	r := reader{b: b}
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch f.tag() {
		case 1<<3 | wireBytes:
			p.Name = view(f.bytes)
		case 2<<3 | wireBytes:
			p.Value = view(f.bytes)
		default:
			return p, false
		}
	}
	return p, !r.bad
}

// Replay applies one body that was made durable. It trusts what the log's checksums covered, but whatever it is given, it
// does not panic. After an error the machine is good for nothing but Restore.
func (m *Machine) Replay(body []byte, timeMS int64) error {
	m.now = max(m.now, timeMS)
	if len(body) == 0 {
		return nil
	}
	for r := (reader{b: body}); len(r.b) > 0; {
		f, ok := r.next()
		if !ok || f.number != 1 || f.wire != wireBytes {
			return fmt.Errorf("replay: the body is not a list of effects")
		}
		if err := m.replayEffect(f.bytes); err != nil {
			return err
		}
	}
	m.seal(timeMS)
	return nil
}

func (m *Machine) replayEffect(b []byte) error {
	r := reader{b: b}
	var revision uint64
	var k kind
	var payload []byte
	for f, ok := r.next(); ok; f, ok = r.next() {
		switch {
		case f.number == 1 && f.wire == wireVarint:
			revision = f.value
		case f.wire == wireBytes && k == 0:
			k, payload = kind(f.number), f.bytes
		default:
			return fmt.Errorf("replay: effect %v of revision %d has a field %d that is not known to this release", k, revision, f.number)
		}
	}
	if r.bad {
		return fmt.Errorf("replay: an effect after revision %d is cut short", m.meta.revision)
	}
	if revision < m.meta.revision || revision > m.meta.revision+1 || revision == 0 {
		return fmt.Errorf("replay: effect %v has revision %d after %d", k, revision, m.meta.revision)
	}
	m.meta.revision = revision
	return m.apply(revision, k, payload)
}

func (m *Machine) apply(revision uint64, k kind, payload []byte) error {
	var good bool
	switch k {
	case kindPut:
		var e putEffect
		if good = e.decode(payload); good {
			if planted(bugReplayClock) {
				e.updated = m.now
			}
			m.applyPut(revision, &e)
		}
	case kindDelete, kindExpire:
		var e removeEffect
		if good = e.decode(payload); good {
			m.applyRemove(revision, k, &e)
		}
	case kindRemember:
		var e rememberEffect
		if good = e.decode(payload); good {
			m.applyRemember(&e)
		}
	case kindRelocate:
		var e relocateEffect
		if good = e.decode(payload); good {
			m.applyRelocate(&e)
		}
	case kindForget:
		good = decodeForget(payload, m.applyForget)
	case kindDrop:
		var e removeEffect // a namespace and the last key that goes
		if good = e.decode(payload); good {
			m.applyDrop(revision, &e)
		}
	case kindSweep:
		r := reader{b: payload}
		f, _ := r.next()
		if good = !r.bad && f.number == 1 && f.value <= maxSweep; good {
			m.sweepAsked += int(f.value)
		}
	default:
		if k >= kindPromptMin && k <= kindPromptMax {
			return m.applyPrompt(revision, k, payload)
		}
		return fmt.Errorf("replay: %v at revision %d is not known to this release", k, revision)
	}
	if !good {
		return fmt.Errorf("replay: %v at revision %d is damaged", k, revision)
	}
	return nil
}
