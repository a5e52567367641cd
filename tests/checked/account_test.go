package checked

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/client"
)

// In these tests shard 0 has the keys that begin with a, shard 1 those that begin with b, and so on.
func shardOfTest(name string) int { return int(name[0] - 'a') }

// token is where a watch of two shards stands.
func token(revisions ...uint64) []byte {
	b := append([]byte{1}, make([]byte, 8)...)
	b = binary.AppendUvarint(b, 1)
	for shard, r := range revisions {
		b = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(b, uint64(shard)), 1), r)
	}
	return b
}

func put(key string, version, prev uint64) client.Event {
	v := fmt.Appendf(nil, "%s %d", key, version)
	return client.Event{Type: client.EventPut, Key: key, Value: v, Size: int64(len(v)), Version: version, PrevVersion: prev, Created: prev == 0}
}

func removal(kind client.EventType, key string, version, prev uint64) client.Event {
	return client.Event{Type: kind, Key: key, Version: version, PrevVersion: prev}
}

func is(key string, version uint64) client.Event {
	e := put(key, version, 0)
	e.Initial, e.Created = true, false
	return e
}

func but(e client.Event, change func(*client.Event)) client.Event {
	change(&e)
	return e
}

func told(token []byte, events ...client.Event) client.WatchBatch {
	return client.WatchBatch{Events: events, Token: token}
}

func synced(token []byte) client.WatchBatch  { return client.WatchBatch{Synced: true, Token: token} }
func started(token []byte) client.WatchBatch { return client.WatchBatch{Started: true, Token: token} }

const (
	del    = client.EventDelete
	expire = client.EventExpire
)

// happened is what the witness was told, change by change.
var happened = []client.WatchBatch{
	synced(token(0, 0)),
	told(token(1, 0), put("a1", 1, 0)),
	told(token(1, 1), put("b1", 1, 0)),
	told(token(2, 1), put("a1", 2, 1)),
	told(token(3, 1), put("a2", 3, 0)),
	told(token(4, 1), removal(del, "a1", 4, 2)),
	told(token(5, 1), put("a1", 5, 0)),
	told(token(5, 2), removal(expire, "b1", 2, 1)),
	told(token(6, 2), put("a2", 6, 3)),
}

// judged is what Load.Verify makes of what a watcher and the witness were told, and clients were answered.
func judged(k Kind, batches []client.WatchBatch, acks []ack) error {
	k.KeysOnly = false
	witness, a := newAccount(Kind{Name: "the witness", WatchOptions: client.WatchOptions{All: true}}), newAccount(k)
	j := newJournal(witness, shardOfTest)
	witness.Asked()
	for i := range happened {
		if err := witness.Take(&happened[i]); err != nil {
			return fmt.Errorf("the witness: %w", err)
		}
	}
	a.Asked()
	for i := range batches {
		if err := a.Take(&batches[i]); err != nil {
			return err
		}
	}
	r := a.record()
	if !j.reached(&r) {
		return fmt.Errorf("the witness is behind")
	}
	if err := j.follow(); err != nil {
		return err
	}
	if err := j.acknowledged(acks); err != nil {
		return err
	}
	return j.judge(&r, acks)
}

// TestAccount: each rule that watches are held to is seen to find what breaks it, and to let pass what does not.
func TestAccount(t *testing.T) {
	all := Kind{Name: "ALL", WatchOptions: client.WatchOptions{All: true}}
	latest := Kind{Name: "LATEST"}
	now := Kind{Name: "ALL from now", WatchOptions: client.WatchOptions{All: true}, Now: true}
	early, late := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	// A right history in mode ALL: the state at (2, 1), then all changes.
	right := []client.WatchBatch{
		told(nil, is("a1", 2), is("b1", 1)), synced(token(2, 1)),
		told(token(3, 1), put("a2", 3, 0)),
		told(token(4, 1), removal(del, "a1", 4, 2)), told(token(5, 1), put("a1", 5, 0)),
		told(token(5, 2), removal(expire, "b1", 2, 1)), told(token(6, 2), put("a2", 6, 3)),
	}
	with := func(i int, b ...client.WatchBatch) []client.WatchBatch {
		return slices.Replace(slices.Clone(right), i, i+1, b...)
	}
	merged := but(put("a1", 5, 2), func(e *client.Event) { e.Created = false })
	group := func(m int, version uint64) client.Event {
		return put(fmt.Sprintf("a{w00-g0}/%d", m), version, 0)
	}
	for _, tt := range []struct {
		name    string
		kind    Kind
		batches []client.WatchBatch
		acks    []ack
		wrong   string // part of the verdict; empty: it is right
	}{
		{"all is told", all, right, nil, ""},
		{"all is told from now on", now, append([]client.WatchBatch{started(token(2, 1))}, right[2:]...), nil, ""},
		{"the latest is told", latest, []client.WatchBatch{
			told(nil, is("a1", 2), is("b1", 1)), synced(token(2, 1)), told(token(6, 1), merged, put("a2", 6, 0)), told(token(6, 2), removal(expire, "b1", 2, 1)),
		}, nil, ""},
		{"the state is told anew", latest, []client.WatchBatch{
			told(nil, is("a1", 2), is("b1", 1)), synced(token(2, 1)), {Resync: true}, told(nil, is("a2", 6), is("a1", 5)), synced(token(6, 2)),
		}, nil, ""},
		{"the watch goes on from its token: batches that only tell where it stands", all, with(3, right[3], started(token(4, 1))), nil, ""},
		{"what is acknowledged is told", all, right, []ack{{"a2", client.EventPut, 6, early, late}, {"b1", client.EventPut, 1, early, early}}, ""},

		{"ordered: an earlier version after a later one", all, with(2, told(token(3, 1), put("a1", 1, 0))), nil, "after 2"},
		{"ordered: an earlier life of a key after it was removed", all, with(4, told(token(5, 1), put("a1", 3, 0))), nil, "after 4"},
		{"ordered: a token goes back", all, with(6, told(token(5, 1), put("a2", 6, 3))), nil, "now it is at 1"},
		{"unique: a change comes twice", all, with(2, right[2], right[2]), nil, "to 3 after 3"},
		{"unique: a removal comes twice", all, with(3, right[3], right[3]), nil, "to 4 after 4"},
		{"unique: the state tells a key twice", all, with(0, told(nil, is("a1", 2), is("b1", 1), is("a1", 2))), nil, "is there twice"},
		{"complete: a change of a key is missing between two", all, with(3), nil, "something is missing"},
		{"complete: all changes of a key are missing", now, []client.WatchBatch{
			started(token(0, 0)), told(token(1, 2), put("a1", 1, 0)),
		}, nil, "was not told"},
		{"complete: the last change is missing", all, with(6, told(token(6, 2))), nil, `PUT "a2" to 6 was not told`},
		{"complete: what was acknowledged is told to nobody", all, right, []ack{{"a7", client.EventPut, 6, early, late}}, "was acknowledged, and not told"},
		{"complete: what was acknowledged is told as something else", all, right, []ack{{"b1", client.EventDelete, 2, early, late}}, "was acknowledged, and not told"},
		{"complete: a change without a version was acknowledged twice", all, right, []ack{
			{"a2", client.EventPut, 0, early, late}, {"a2", client.EventPut, 0, early, late}, {"a2", client.EventPut, 0, early, late},
		}, "acknowledged 3 times, and told 2 times"},
		{"it did not happen", all, with(6, right[6], told(token(6, 2), put("a9", 6, 0))), nil, "did not happen"},
		{"it was something else", all, with(5, told(token(5, 2), removal(del, "b1", 2, 1))), nil, "it was a EXPIRE"},
		{"of what is not asked for", Kind{Name: "prefix", WatchOptions: client.WatchOptions{All: true, Prefix: "a"}}, right, nil, `told of "b1"`},
		{"with another value", all, with(6, told(token(6, 2), but(put("a2", 6, 3), func(e *client.Event) { e.Value = []byte("a2 7") }))), nil, "with another value"},
		{"with half of a value", all, with(6, told(token(6, 2), but(put("a2", 6, 3), func(e *client.Event) { e.Size++ }))), nil, "of 5 bytes"},
		{"with a value that nobody wrote", all, with(6, told(token(6, 2), put("w00/k00", 6, 0))), nil, "nobody wrote"},
		{"with another value before", Kind{Name: "before", WatchOptions: client.WatchOptions{All: true, PrevValue: true}},
			with(6, told(token(6, 2), but(put("a2", 6, 3), func(e *client.Event) { e.PrevValue = []byte("a2 2") }))), nil, "another value before it"},
		{"with a value before for which nobody asked", all, with(6, told(token(6, 2), but(put("a2", 6, 3), func(e *client.Event) { e.PrevValue = []byte("a2 3") }))), nil, "nobody asked"},
		{"created, and it was there", all, with(6, told(token(6, 2), but(put("a2", 6, 3), func(e *client.Event) { e.Created = true }))), nil, "created is true"},
		{"half of a transaction", all, with(6, told(token(6, 2), group(0, 6), group(1, 6), group(2, 6))), nil, "half of a transaction"},

		{"final state: the latest is not told", latest, []client.WatchBatch{
			told(nil, is("a1", 2), is("b1", 1)), synced(token(2, 1)), told(token(6, 2), merged, put("a2", 3, 0), removal(expire, "b1", 2, 1)),
		}, nil, `at 6 "a2" had version 6, known is 3`},
		{"final state: a removal is not told", latest, []client.WatchBatch{
			told(nil, is("a1", 2), is("b1", 1)), synced(token(2, 1)), told(token(6, 2), merged, put("a2", 6, 0)),
		}, nil, `at 2 "b1" had version 0, known is 1`},
		{"final state: a key that came and went is told", latest, []client.WatchBatch{
			synced(token(0, 0)), told(token(0, 2), put("b1", 1, 0)),
		}, nil, `known is 1`},
		{"resumable: a change between two watches is missing", all, with(2, started(token(2, 1)), started(token(3, 1))), nil, "something is missing"},
		{"resumable: the end of one watch is told by the next one, too", all, with(4, right[4], started(token(5, 1)), right[4]), nil, "to 5 after 5"},
		{"resumable: no token", all, with(1, synced(nil)), nil, "has no token"},
		{"initial state: of two revisions", all, []client.WatchBatch{told(nil, is("a1", 1), is("a2", 3)), synced(token(3, 0))}, nil, "not that of one revision"},
		{"initial state: a key is missing", all, []client.WatchBatch{told(nil, is("a1", 2)), synced(token(2, 1))}, nil, "not that of one revision"},
		{"initial state: a key that is not there", all, []client.WatchBatch{told(nil, is("a1", 2), is("a2", 2), is("b1", 1)), synced(token(2, 1))}, nil, "not that of one revision"},
		{"initial state: from before what was acknowledged when it was asked for", all, right, []ack{{"a2", client.EventPut, 3, early, early}}, "acknowledged before the watch was asked for"},
		{"initial state: told when there is none", now, []client.WatchBatch{started(token(2, 1)), told(token(2, 1), is("a1", 2))}, nil, "no state is being told"},
		{"initial state: told anew with a hole", all, with(6, client.WatchBatch{Resync: true}, told(nil, is("a1", 5)), synced(token(6, 2))), nil, "not that of one revision"},
		{"from now: what was written after the watch had begun is not told", now, []client.WatchBatch{started(token(6, 2))}, []ack{{"a2", client.EventPut, 6, late, late}}, "written after the watch had begun"},
		{"from now: the first change is missing", now, append([]client.WatchBatch{started(token(2, 1))}, right[3:]...), nil, `PUT "a2" to 3 was not told`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := judged(tt.kind, tt.batches, tt.acks)
			switch {
			case tt.wrong == "" && err != nil:
				t.Errorf("it is right, and is judged wrong: %v", err)
			case tt.wrong != "" && err == nil:
				t.Error("nobody has found what is wrong")
			case tt.wrong != "" && !strings.Contains(err.Error(), tt.wrong):
				t.Errorf("found: %v; want: %s", err, tt.wrong)
			}
		})
	}
}

// TestAccountBlocks: the same for blocks, of which no versions are told but that of the change.
func TestAccountBlocks(t *testing.T) {
	scope := ownScope(3)
	block := func(kind client.EventType, i int, version uint64) client.Event {
		e := client.Event{Type: kind, Key: "opaque", Version: version, Created: kind == client.EventStored, Size: int64(blockSize(i)), Block: &client.BlockEvent{
			ScopeID: [16]byte([]byte(scopeName(scope))), Scope: scope, Parent: blockParent(3, i), Ref: client.BlockRef{ID: blockID(3, i), Depth: uint32(i % chain)},
		}}
		if kind == client.EventRemoved {
			e.Block.Why = "DELETED"
		}
		return e
	}
	stored, removed := client.EventStored, client.EventRemoved
	for _, tt := range []struct {
		name   string
		events []client.Event
		wrong  string
	}{
		{"stored, removed, stored", []client.Event{block(stored, 33, 5), block(removed, 33, 6), block(stored, 33, 7)}, ""},
		{"the first of a chain, its scope not known any more", []client.Event{but(block(stored, 32, 5), func(e *client.Event) { e.Block.Scope = nil })}, ""},
		{"stored twice", []client.Event{block(stored, 33, 5), block(stored, 33, 6)}, "comes twice"},
		{"removed, and was not there", []client.Event{block(removed, 33, 5)}, "something is missing"},
		{"out of order", []client.Event{block(stored, 33, 5), block(removed, 33, 4)}, "to 4 after 5"},
		{"another parent", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.Parent = blockID(3, 31) })}, "told with parent"},
		{"no parent", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.Parent = nil })}, "told with parent"},
		{"another size", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Size++ })}, "is told with"},
		{"another depth", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.Ref.Depth++ })}, "told with depth"},
		{"another scope", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.Scope = ownScope(4) })}, "one of scope"},
		{"another scope's id", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.ScopeID[0]++ })}, "one of scope"},
		{"removed without a reason", []client.Event{block(stored, 33, 5), but(block(removed, 33, 6), func(e *client.Event) { e.Block.Why = "" })}, "with the reason"},
		{"evicted, and there is room", []client.Event{block(stored, 33, 5), but(block(removed, 33, 6), func(e *client.Event) { e.Block.Why = "EVICTED" })}, "nobody did that"},
		{"nobody's", []client.Event{but(block(stored, 33, 5), func(e *client.Event) { e.Block.Ref.ID = []byte("x") })}, "written by nobody"},
	} {
		a := newAccount(Kind{Name: "blocks", WatchOptions: client.WatchOptions{All: true}, Blocks: true})
		a.Asked()
		err := a.Take(&client.WatchBatch{Synced: true, Token: token(4)})
		if err == nil {
			err = a.Take(&client.WatchBatch{Events: tt.events, Token: token(7)})
		}
		switch {
		case tt.wrong == "" && err != nil:
			t.Errorf("%s: it is right, and is judged wrong: %v", tt.name, err)
		case tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)):
			t.Errorf("%s: found %v; want: %s", tt.name, err, tt.wrong)
		}
	}
}

// TestWitness: the journal notices when it has a hole, and a watcher that does not know in the end what there is.
func TestWitness(t *testing.T) {
	a := newAccount(Kind{Name: "the witness", WatchOptions: client.WatchOptions{All: true}})
	j := newJournal(a, shardOfTest)
	a.Asked()
	for _, b := range []client.WatchBatch{synced(token(0, 0)), told(token(1, 0), put("a1", 1, 0))} {
		if err := a.Take(&b); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func(string) bool { return false }
	for name, there := range map[string]map[string]uint64{
		"has version 2": {"a1": 2}, "is not there": {}, `"a2" has version 7`: {"a1": 1, "a2": 7}, "": {"a1": 1},
	} {
		if says := a.differs(there, nobody); name == "" && says != "" || !strings.Contains(says, name) {
			t.Errorf("there is %v: %q, want %q", there, says, name)
		}
	}
	if err := j.follow(); err != nil {
		t.Fatal(err)
	}
	for _, b := range []client.WatchBatch{{Resync: true}, told(nil, is("a1", 3)), synced(token(3, 0))} {
		if err := a.Take(&b); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.follow(); err == nil {
		t.Error("a witness who was told the state anew is believed")
	}
}
