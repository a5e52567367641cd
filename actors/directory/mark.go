package directory

import (
	"kvstore/components/btree"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	"kvstore/components/wal"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// Mark is what the directory remembers of a shard's log, so that a store which has lost acknowledged records is not served (DESIGN D6).
//
// An owner reports now and then the highest record that it knows to be durable (OpRemember); the mark only ever rises, ordered by epoch and
// then by seq. Whoever opens the shard next reads the mark first and holds what it finds against it:
//
//   - There is no manifest and Missing() is true: the store has lost the shard.
//   - The record before the fence has epoch e and seq s, and Behind(e, s) is true: the log has lost records.
//
// Either is DATA_LOSS, and nothing may be written, until an operator accepts the loss (OpAcceptLoss). Then the shard is opened under an epoch
// above Mark.Epoch, whatever the manifest says: names and numbers of the epochs that were lost are not used twice, and the first
// report of the new epoch ends the acceptance, while a late report of an old owner does not.
type Mark = wal.Mark

// MarkOf reads what a durable state remembers of a shard. One that the directory does not know has a zero mark.
func MarkOf(t *btree.Tree, shardID string) Mark {
	mark := Mark{Shard: shardID}
	var p dataplanev1.DirectoryMark
	if get(t, markKey(shardID), &p) {
		mark.Epoch, mark.Seq, mark.Accepted = p.Epoch, p.Seq, p.Accepted
	}
	return mark
}

// MarksOf reads what a durable state remembers of some shards, in their order. It costs one walk over the keyspaces.
func MarksOf(t *btree.Tree, shardIDs ...string) []Mark {
	made := make(map[string]int) // uid of each keyspace that is ready, and its number of shards
	for _, item := range t.Ascend([]byte{prefixKeyspace}, []byte{prefixKeyspace + 1}) {
		var ks dataplanev1.DirectoryKeyspace
		if ks.UnmarshalVT(item) == nil && ks.Ready {
			made[ks.Uid] = shardsOf(&ks)
		}
	}
	marks := make([]Mark, len(shardIDs))
	for i, id := range shardIDs {
		marks[i] = MarkOf(t, id)
		if uid, n, err := ring.ParseShardID(id); err == nil {
			marks[i].Made = n < made[uid]
		}
	}
	return marks
}

func markKey(shardID string) []byte { return append([]byte{prefixMark}, shardID...) }

// remember raises marks. Those of shards that are not known, because their keyspace is gone, are passed over: a host may report a
// shard that was removed a moment ago.
func (m *Machine) remember(marks []Mark) *kverr.Error {
	if len(marks) > MaxMarks {
		return kverr.TooBig("marks", len(marks), MaxMarks, "marks")
	}
	var raised []*dataplanev1.DirectoryMark
	for _, mark := range marks {
		if mark.Epoch == 0 || mark.Seq == 0 {
			return kverr.Invalid("marks", "has record %d of epoch %d of shard %.80q; both count from 1", mark.Seq, mark.Epoch, mark.Shard)
		}
		if m.keyspaceOf(mark.Shard) == nil {
			continue
		}
		old := MarkOf(m.tree, mark.Shard)
		if mark.Epoch < old.Epoch || mark.Epoch == old.Epoch && mark.Seq <= old.Seq {
			continue
		}
		raised = append(raised, &dataplanev1.DirectoryMark{
			Shard: mark.Shard, Epoch: mark.Epoch, Seq: mark.Seq, Accepted: old.Accepted && mark.Epoch == old.Epoch,
		})
	}
	if len(raised) > 0 {
		m.revision++
		m.emit(putMarks(raised...))
	}
	return nil
}

func putMarks(marks ...*dataplanev1.DirectoryMark) *dataplanev1.DirectoryEffect {
	return &dataplanev1.DirectoryEffect{Kind: &dataplanev1.DirectoryEffect_PutMarks{PutMarks: &dataplanev1.DirectoryMarks{Marks: marks}}}
}

// keyspaceOf returns the keyspace that a shard belongs to, nil when there is none.
func (m *Machine) keyspaceOf(shardID string) *dataplanev1.DirectoryKeyspace {
	uid, n, err := ring.ParseShardID(shardID)
	if err != nil {
		return nil
	}
	ks := m.keyspace(m.names[uid])
	if ks == nil || n >= shardsOf(ks) {
		return nil
	}
	return ks
}

// acceptLoss lets a shard be opened although its store is behind what was remembered, or does not know it any more: then it is made
// anew, empty.
func (m *Machine) acceptLoss(marks []Mark) *kverr.Error {
	if len(marks) != 1 {
		return kverr.Invalid("marks", "has %d; a loss is accepted of one shard", len(marks))
	}
	id := marks[0].Shard
	ks := m.keyspaceOf(id)
	if ks == nil {
		return missing("shard", id)
	}
	if m.chores >= MaxChores {
		return full("chores", MaxChores)
	}
	mark := MarkOf(m.tree, id)
	m.revision++
	m.emit(putMarks(&dataplanev1.DirectoryMark{Shard: id, Epoch: mark.Epoch, Seq: mark.Seq, Accepted: true}))
	_, n, _ := ring.ParseShardID(id)
	m.addChore(&dataplanev1.DirectoryChore{
		Kind: dataplanev1.DirectoryChore_KIND_RECREATE_SHARD, KeyspaceUid: ks.Uid, Keyspace: ks.Name, Shards: 1, Number: int32(n),
	})
	return nil
}
