package frontend

import (
	"fmt"
	"unicode/utf8"

	"kvstore/actors/shard"
	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Validation happens once, at the border; inside, commands are trusted. Each function names the field relative to its
// message; within puts it into context. Strings are checked for UTF-8 here because the codec does not.

// within puts an error about a field of a message into the context of the message's own field.
func within(outer string, err *kverr.Error) *kverr.Error {
	if err == nil || err.Field == "" {
		return err
	}
	e := *err
	e.Field = outer + "." + err.Field
	return &e
}

func checkKey(field string, k []byte) *kverr.Error {
	switch {
	case len(k) == 0:
		return kverr.Invalid(field, "is empty; a key has 1 to %d bytes", key.MaxKey)
	case len(k) > key.MaxKey:
		return kverr.TooBig(field, len(k), key.MaxKey, "bytes")
	case !utf8.Valid(k):
		return kverr.Invalid(field, "%.40q is not UTF-8", k)
	}
	return nil
}

// checkPut validates everything but the length of the value, which depends on the way that it came.
func checkPut(p *shard.Put) *kverr.Error {
	if err := checkKey("key", p.Key); err != nil {
		return err
	}
	if err := checkText("content_type", p.ContentType, key.MaxContentType); err != nil {
		return err
	}
	if err := checkText("encoding", p.Encoding, key.MaxEncoding); err != nil {
		return err
	}
	if err := checkPairs("metadata", p.Metadata, maxMetadata, 0, maxMetadataBytes); err != nil {
		return err
	}
	if err := checkPairs("tags", p.Tags, key.MaxTags, key.MaxTag, 0); err != nil {
		return err
	}
	switch {
	case p.TTLMS < 0 || p.TTLMS > maxTTLMS:
		return kverr.Invalid("ttl_ms", "is %d, must be 0 (the namespace's default) to %d", p.TTLMS, maxTTLMS)
	case p.KeepTTL && p.TTLMS != 0:
		return kverr.Invalid("keep_ttl", "is set together with ttl_ms %d; only one of them may be", p.TTLMS)
	}
	return checkPrecondition(p.If)
}

func checkText(field, s string, limit int) *kverr.Error {
	if len(s) > limit {
		return kverr.TooBig(field, len(s), limit, "bytes")
	}
	if !utf8.ValidString(s) {
		return kverr.Invalid(field, "%.40q is not UTF-8", s)
	}
	return nil
}

// checkPairs checks metadata or tags: at most count pairs, each at most each bytes, together at most total; 0 = no such
// limit.
func checkPairs(field string, pairs []shard.Pair, count, each, total int) *kverr.Error {
	if len(pairs) > count {
		return kverr.TooBig(field, len(pairs), count, "entries")
	}
	sum := 0
	for _, p := range pairs {
		n := len(p.Name) + len(p.Value)
		sum += n
		switch {
		case p.Name == "":
			return kverr.Invalid(field, "has an entry without a name")
		case !utf8.ValidString(p.Name) || !utf8.ValidString(p.Value):
			return kverr.Invalid(field, "entry %.40q is not UTF-8", p.Name)
		case each > 0 && n > each:
			return kverr.TooBig(fmt.Sprintf("%s[%q]", field, p.Name), n, each, "bytes with its name")
		}
	}
	if total > 0 && sum > total {
		return kverr.TooBig(field, sum, total, "bytes together")
	}
	return nil
}

func checkPrecondition(p shard.Precondition) *kverr.Error {
	switch {
	case p.Check == shard.CheckVersion && p.Version == 0:
		return kverr.Invalid("precondition.if_version", "is 0; no key has version 0, use if_absent")
	case p.Check == checkAbsentFalse:
		return kverr.Invalid("precondition.if_absent", "is false; only true is accepted")
	case p.Check == checkPresentFalse:
		return kverr.Invalid("precondition.if_present", "is false; only true is accepted")
	}
	return nil
}

// precondition converts; faults are left to checkPrecondition.
func precondition(p *kvv1.Precondition) shard.Precondition {
	switch c := p.GetCheck().(type) {
	case *kvv1.Precondition_IfVersion:
		return shard.Precondition{Check: shard.CheckVersion, Version: c.IfVersion}
	case *kvv1.Precondition_IfAbsent:
		return shard.Precondition{Check: pick(c.IfAbsent, shard.CheckAbsent, checkAbsentFalse)}
	case *kvv1.Precondition_IfPresent:
		return shard.Precondition{Check: pick(c.IfPresent, shard.CheckPresent, checkPresentFalse)}
	}
	return shard.Precondition{}
}

// putOf converts a put; its value, key and strings are those of the message.
func putOf(op *kvv1.PutOp) shard.Put {
	return shard.Put{
		Key:         op.GetKey(),
		Value:       shard.Value{Inline: op.GetValue()},
		ContentType: op.GetContentType(),
		Encoding:    op.GetEncoding(),
		Metadata:    pairsOf(op.GetMetadata()),
		Tags:        pairsOf(op.GetTags()),
		TTLMS:       op.GetTtlMs(),
		KeepTTL:     op.GetKeepTtl(),
		If:          precondition(op.GetPrecondition()),
	}
}

func pairsOf(m map[string]string) []shard.Pair {
	if len(m) == 0 {
		return nil
	}
	pairs := make([]shard.Pair, 0, len(m))
	for name, value := range m {
		pairs = append(pairs, shard.Pair{Name: name, Value: value})
	}
	return sortPairs(pairs)
}

func mapOf(pairs []shard.Pair) map[string]string {
	if len(pairs) == 0 {
		return nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		m[p.Name] = p.Value
	}
	return m
}

// identityOf checks and converts the identity of a request; the caller sets the index of each item.
func (s *Server) identityOf(id *kvv1.WriteIdentity) (shard.Identity, *kverr.Error) {
	if id == nil {
		return shard.Identity{}, nil
	}
	return s.identity("identity.", id.Client, id.Op, id.NotAfterMs)
}

// identity checks the parts of an identity; prefix comes before the names of its fields.
func (s *Server) identity(prefix string, client []byte, op uint64, notAfterMS int64) (shard.Identity, *kverr.Error) {
	var out shard.Identity
	if len(client) != len(out.Client) {
		return out, kverr.Invalid(prefix+"client", "has %d bytes, must have %d", len(client), len(out.Client))
	}
	copy(out.Client[:], client)
	if out.Client == [16]byte{} {
		return out, kverr.Invalid(prefix+"client", "is all zeros; it must be random")
	}
	if latest := s.now() + key.MaxNotAfterAheadMS; notAfterMS <= 0 || notAfterMS > latest {
		return out, kverr.Invalid(prefix+"not_after_ms", "is %d, must be at most %d ms ahead of the server's clock (now %d)",
			notAfterMS, int64(key.MaxNotAfterAheadMS), latest-key.MaxNotAfterAheadMS)
	}
	out.Op, out.NotAfterMS = op, notAfterMS
	return out, nil
}
