package resp

import (
	"bytes"
	"container/list"
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"sync"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
)

// maxCursors is how many scans are under way at once, of all connections; the one that was asked for longest ago goes first.
const maxCursors = 4096

const (
	scanCount = 10    // keys of a step, unless COUNT says otherwise
	maxScan   = 10000 // what COUNT may say: more is so much
)

// cursors are the places of scans. A cursor of Redis is a number of 64 bits, which a place in byte order does not fit, so it is kept here, for all
// connections: clients go on with another. Asked for again, a cursor tells the same place.
type cursors struct {
	mu    sync.Mutex
	known map[uint64]*list.Element // guarded by mu; of *place
	order list.List                // guarded by mu; used last first
}

// place is where a scan goes on.
type place struct {
	cursor    uint64
	namespace shard.NamespaceID
	keyspace  string
	shard     int
	after     []byte // key that was seen last
}

func (s *cursors) keep(p *place) uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])                             // never fails
	p.cursor = binary.LittleEndian.Uint64(b[:])>>1 | 1 // never 0, and within what signed clients read
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[uint64]*list.Element)
	}
	if len(s.known) >= maxCursors {
		last := s.order.Back()
		delete(s.known, s.order.Remove(last).(*place).cursor)
	}
	s.known[p.cursor] = s.order.PushFront(p)
	return p.cursor
}

func (s *cursors) find(cursor uint64) *place {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.known[cursor]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(*place)
}

func runScan(c *conn, b []byte, args [][]byte) []byte {
	cursor, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil {
		return appendError(b, errBadCursor)
	}
	var match []byte
	count, strings := int64(scanCount), true
	for i := 2; i < len(args); i += 2 {
		if i+1 == len(args) {
			return appendError(b, errSyntax)
		}
		switch value := args[i+1]; {
		case word(args[i], "COUNT"):
			n, ok := integer(value)
			switch {
			case !ok:
				return appendError(b, errNotInteger)
			case n < 1:
				return appendError(b, errSyntax)
			}
			count = min(n, maxScan)
		case word(args[i], "MATCH"):
			match = value
		case word(args[i], "TYPE"):
			strings = word(value, "STRING")
		default:
			return appendError(b, errSyntax)
		}
	}
	keys, next, fault := c.scan(cursor, match, int(count))
	if fault != nil {
		if fault == errCursor {
			return appendError(b, errBadCursor)
		}
		return appendError(b, c.fault(fault))
	}
	if !strings {
		keys = nil
	}
	b = appendBulk(appendArray(b, 2), strconv.FormatUint(next, 10))
	b = appendArray(b, len(keys))
	for _, k := range keys {
		b = appendBulk(b, k)
	}
	return b
}

var errCursor = &kverr.Error{Kind: kverr.InvalidArgument, Field: "cursor", Message: "is not known"}

// scan looks at up to count keys that can match, shard by shard in byte order.
func (c *conn) scan(cursor uint64, match []byte, count int) (keys [][]byte, next uint64, err *kverr.Error) {
	ns, err := c.namespace(false)
	if err != nil {
		return nil, 0, err
	}
	if err := c.s.face.Spend(c.ctx, ns, 1); err != nil {
		return nil, 0, err
	}
	at := place{namespace: ns.ID, keyspace: c.keyspace}
	if cursor != 0 {
		p := c.s.cursors.find(cursor)
		if p == nil || p.namespace != ns.ID || p.keyspace != c.keyspace {
			return nil, 0, errCursor
		}
		at = *p
	}
	prefix := literal(match)
	shards := ns.Shards()
	for looked := 0; at.shard < len(shards); {
		q := &shard.Query{Op: shard.QueryList, Namespace: ns.ID, List: &shard.ListQuery{
			Prefix: prefix, After: at.after, Limit: min(count-looked, shard.DefaultListLimit), KeysOnly: true, MaxBytes: 1 << 20,
		}}
		if err := c.ask(shards[at.shard], q); err != nil {
			return nil, 0, err
		}
		for i := range q.Answer.Entries {
			k := q.Answer.Entries[i].Key
			if at.after = k; match == nil || glob(match, k) {
				keys = append(keys, k)
			}
		}
		looked += len(q.Answer.Entries)
		if !q.Answer.More {
			at.shard, at.after = at.shard+1, nil
		}
		if looked >= count && at.shard < len(shards) {
			at.after = bytes.Clone(at.after)
			return keys, c.s.cursors.keep(&at), nil
		}
	}
	return keys, 0, nil
}

func runDBSize(c *conn, b []byte, _ [][]byte) []byte {
	n, err := c.countKeys()
	if err != nil {
		return appendError(b, c.fault(err))
	}
	return appendInt(b, n)
}

// countKeys is how many keys the namespace has.
func (c *conn) countKeys() (n int64, err *kverr.Error) {
	ns, err := c.namespace(false)
	if err != nil {
		return 0, err
	}
	if err := c.s.face.Spend(c.ctx, ns, 1); err != nil {
		return 0, err
	}
	for _, sh := range ns.Shards() {
		q := &shard.Query{Op: shard.QueryCount, Namespace: ns.ID, List: &shard.ListQuery{}}
		if err := c.ask(sh, q); err != nil {
			return 0, err
		}
		n += q.Answer.Count
	}
	return n, nil
}

// literal is what all that matches a pattern begins with.
func literal(pattern []byte) []byte {
	for i, c := range pattern {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			return pattern[:i]
		}
	}
	return pattern
}

// glob matches as Redis does: * ? [abc] [^abc] [a-c] and \ before any of them. What it costs is bounded by the product of both lengths: only the
// star met last is tried again.
func glob(pattern, s []byte) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p, i
				p++
				continue
			}
			if n, ok := one(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// one matches a byte with what a pattern begins with, n bytes of it.
func one(p []byte, c byte) (n int, ok bool) {
	switch p[0] {
	case '?':
		return 1, true
	case '\\':
		if len(p) > 1 {
			return 2, p[1] == c
		}
	case '[':
		return class(p, c)
	}
	return 1, p[0] == c
}

func class(p []byte, c byte) (n int, ok bool) {
	i := 1
	not := i < len(p) && p[i] == '^'
	if not {
		i++
	}
	for ; i < len(p); i++ {
		switch {
		case p[i] == '\\' && i+1 < len(p):
			i++
			ok = ok || p[i] == c
		case p[i] == ']':
			return i + 1, ok != not
		case i+2 < len(p) && p[i+1] == '-':
			low, high := min(p[i], p[i+2]), max(p[i], p[i+2])
			ok = ok || c >= low && c <= high
			i += 2
		default:
			ok = ok || p[i] == c
		}
	}
	return len(p), ok != not // not closed: what was there counts
}
