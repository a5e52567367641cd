package shard

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// command makes a random command, for the random check. Few keys, so that commands meet each other.
func (k *checker) command() *Command {
	if len(k.recent) > 0 && k.rng.IntN(8) == 0 {
		c := k.recent[k.rng.IntN(len(k.recent))]
		if k.rng.IntN(50) == 0 { // the identity of one operation on another
			c.Op = OpDelete
			c.Delete.Key = []byte(k.key())
			c.Delete.Slot = c.Put.Slot
		}
		return &c
	}
	c := &Command{Namespace: k.namespace()}
	switch r := k.rng.IntN(100); {
	case r < 50:
		c.Op = OpPut
		c.Put = k.put()
	case r < 70:
		c.Op = OpDelete
		c.Delete = Delete{Key: []byte(k.key()), If: k.condition()}
	case r < 80:
		c.Op = OpTxn
		c.Txn = k.txn()
	case r < 87:
		c.Op = OpEdit
		c.Edit = k.edit()
		return c
	case r < 93:
		k.relocation(c)
		return c
	case r < 96:
		c.Op = OpForget
		for id := range DeadObjects(NewView(k.m.tree)) {
			if k.rng.IntN(2) == 0 {
				c.Forget = append(c.Forget, id)
			}
		}
		c.Forget = append(c.Forget, ObjectID{1, k.rng.Uint64N(k.refs + 1)})
		return c
	case r < 97:
		c.Op = OpDropNamespace
		if k.spaces < checkNamespacesMax {
			k.spaces++
		}
		return c
	default:
		k.nonsense(c)
		return c
	}
	if k.rng.IntN(2) == 0 {
		k.op++
		c.ID = Identity{Client: [16]byte{byte(1 + k.rng.IntN(checkClients))}, Op: k.op, NotAfterMS: max(k.clock, k.m.now) + k.rng.Int64N(600_000)}
		switch k.rng.IntN(30) {
		case 0:
			c.ID.NotAfterMS = k.m.now - 1 - k.rng.Int64N(1000)
		case 1:
			c.ID.NotAfterMS = k.m.now + 600_001 + k.rng.Int64N(1000)
		case 2:
			c.ID.NotAfterMS = k.m.now + 600_000
		}
		if len(k.recent) < 30 {
			k.recent = append(k.recent, *c)
		} else {
			k.recent[k.rng.IntN(len(k.recent))] = *c
		}
	}
	return c
}

// namespace is one of the last, and now and then any, which may have been dropped.
func (k *checker) namespace() NamespaceID {
	k.spaces = max(k.spaces, checkNamespaces)
	if k.rng.IntN(20) == 0 {
		return NamespaceID(1 + k.rng.IntN(int(k.spaces)))
	}
	return k.spaces - NamespaceID(k.rng.IntN(checkNamespaces))
}

func (k *checker) key() string {
	n := k.rng.IntN(checkKeys)
	return fmt.Sprintf("%c%c%s", 'a'+n%3, 'a'+n/3%3, strings.Repeat("\xff", n%3)+string(rune('a'+n/9)))
}

func (k *checker) condition() Precondition {
	switch k.rng.IntN(6) {
	case 0:
		return Precondition{Check: CheckAbsent}
	case 1:
		return Precondition{Check: CheckPresent}
	case 2:
		version := k.rng.Uint64N(k.model.revision + 1)
		for _, e := range k.model.entries { // some version that is there
			if k.rng.IntN(2) == 0 {
				version = e.version
			}
			break
		}
		return Precondition{Check: CheckVersion, Version: version}
	}
	return Precondition{}
}

func (k *checker) put() Put {
	p := Put{Key: []byte(k.key()), If: k.condition(), Value: k.value()}
	switch k.rng.IntN(5) {
	case 0:
		p.TTLMS = 1 + k.rng.Int64N(3000)
	case 1:
		p.KeepTTL = true
	}
	if k.rng.IntN(4) == 0 {
		p.ContentType = "text/plain"
		p.Encoding = "zstd"
		p.Metadata = []Pair{{"a", "1"}, {"b", ""}}
	}
	if k.rng.IntN(4) == 0 {
		p.Tags = []Pair{{"color", "red"}}
	}
	return p
}

func (k *checker) edit() *Edit {
	d := &Edit{Key: []byte(k.key()), Kind: EditKind(1 + k.rng.IntN(3))}
	switch d.Kind {
	case EditAdd:
		d.Delta = k.rng.Int64N(2000) - 1000
		if k.rng.IntN(5) == 0 {
			d.Delta = math.MinInt64 + k.rng.Int64N(2000)
		}
		if k.rng.IntN(5) == 0 {
			d.Delta = math.MaxInt64 - k.rng.Int64N(2000)
		}
	case EditAppend:
		d.Bytes = []byte(fmt.Sprint(k.rng.IntN(1000))[k.rng.IntN(2):])
		d.MaxBytes = int64(10 + k.rng.IntN(50))
	case EditExpire:
		d.When = EditWhen(k.rng.IntN(int(whenAll) + 1))
		if k.rng.IntN(2) == 0 {
			d.When = 0
		}
		if k.rng.IntN(4) != 0 {
			d.ExpiresMS = k.m.now - 100 + k.rng.Int64N(3000)
		}
	}
	if d.Kind != EditExpire && k.rng.IntN(3) == 0 {
		d.TTLMS = 1 + k.rng.Int64N(3000)
	}
	return d
}

func (k *checker) value() Value {
	if k.rng.IntN(6) == 0 {
		return Value{Inline: strconv.AppendInt(nil, k.rng.Int64N(2000)-1000, 10)}
	}
	if k.rng.IntN(4) == 0 {
		return Value{Ref: k.ref()}
	}
	return Value{Inline: []byte(fmt.Sprintf("%0*d", k.rng.IntN(40), k.rng.IntN(1000)))}
}

// ref places a new value into an object of four.
func (k *checker) ref() Ref {
	n := k.refs
	k.refs++
	return Ref{Object: ObjectID{1, 1 + n/4}, ObjectBytes: 4000, Offset: int64(n%4) * 1000, Length: 1000, Checksum: n}
}

func (k *checker) txn() *Txn {
	t := &Txn{}
	for range k.rng.IntN(3) {
		t.Conditions = append(t.Conditions, Condition{Key: []byte(k.key()), If: k.condition()})
	}
	var used []string
	for range k.rng.IntN(12) {
		key := k.key()
		if slices.Contains(used, key) {
			continue
		}
		used = append(used, key)
		cond := Precondition{}
		if k.rng.IntN(6) == 0 {
			cond = k.condition()
		}
		if k.rng.IntN(3) == 0 {
			t.Ops = append(t.Ops, TxnOp{Delete: &Delete{Key: []byte(key), If: cond}})
		} else {
			p := k.put()
			p.Key, p.If = []byte(key), cond
			t.Ops = append(t.Ops, TxnOp{Put: &p})
		}
	}
	return t
}

// relocation moves some value, or one that is no longer there.
func (k *checker) relocation(c *Command) {
	c.Op = OpRelocate
	from := k.ref()
	key := modelKey{c.Namespace, k.key()}
	v := NewView(k.m.tree)
	for o := range SparseObjects(v, 2) {
		if k.rng.IntN(3) != 0 {
			continue
		}
		for r := range Residents(v, o.ID) {
			from = r.Ref
			ns, name, _ := splitDataKey(r.Key)
			key = modelKey{ns, string(name)}
		}
		break
	}
	to := k.ref()
	to.Length, to.Checksum = from.Length, from.Checksum
	c.Relocate = &Relocate{Key: appendDataKey(nil, key.ns, []byte(key.key)), From: from, To: to}
}

// nonsense makes a command that must be refused.
func (k *checker) nonsense(c *Command) {
	switch k.rng.IntN(12) {
	case 9:
		c.Op = OpEdit
	case 10:
		c.Op, c.Edit = OpEdit, &Edit{Key: []byte(k.key()), Kind: EditExpire + 1}
	case 11:
		c.Op, c.Edit = OpEdit, k.edit()
		c.ID = Identity{Client: [16]byte{1}, Op: 1 << 40, NotAfterMS: k.m.now}
	case 0:
		c.Op = OpNone
	case 1:
		c.Op = 200
	case 2:
		c.Op = OpTxn
	case 3:
		c.Op = OpTxn
		c.Txn = &Txn{Ops: []TxnOp{{}}}
	case 4:
		p := k.put()
		c.Op = OpTxn
		c.Txn = &Txn{Ops: []TxnOp{{Put: &p}, {Delete: &Delete{Key: p.Key}}}}
	case 5:
		c.Op = OpRelocate
	case 6:
		c.Op = OpLookup
	case 7:
		c.Op = OpPut
		c.Put = k.put()
		c.Put.TTLMS = -1
	case 8:
		c.Op = OpDelete
		c.Delete = Delete{Key: []byte(k.key()), If: Precondition{Check: 77}}
	}
	k.absurd = true
}
