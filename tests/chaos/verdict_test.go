package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kvstore/components/wal/driver"
	dataplanev1 "kvstore/proto/gen/kvstore/dataplane/v1"
)

// judge holds what all hosts said of a shard against the rule: one writer at a time, and no read of what a former one has.
func judge(all []told) error {
	var errs []error
	wrong := func(format string, args ...any) {
		if len(errs) < 5 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var writes, reads []told
	for _, o := range all {
		switch {
		case !o.done():
		case o.write:
			writes = append(writes, o)
		default:
			reads = append(reads, o)
		}
	}
	slices.SortFunc(writes, func(a, b told) int { return int(int64(a.revision) - int64(b.revision)) })
	var latest told // of those with lower revisions, the one that began last
	for i, w := range writes {
		if i > 0 && writes[i-1].revision == w.revision {
			wrong("two writers at once: hosts %d and %d both acknowledged revision %d, of %s and %s", writes[i-1].host, w.host, w.revision, writes[i-1].key, w.key)
		}
		if w.end < latest.begin {
			wrong("two writers at once: host %d acknowledged revision %d at %v, before revision %d of host %d was asked for at %v", w.host, w.revision, w.end, latest.revision, latest.host, latest.begin)
		}
		if w.begin > latest.begin {
			latest = w
		}
	}
	byEnd := slices.Clone(writes)
	slices.SortFunc(byEnd, func(a, b told) int { return int(a.end - b.end) })
	for _, r := range reads {
		for _, w := range byEnd {
			if w.end >= r.begin {
				break
			}
			if w.revision > r.revision {
				wrong("stale read: host %d answered at %v from revision %d; revision %d was acknowledged by host %d at %v", r.host, r.begin, r.revision, w.revision, w.host, w.end)
				break
			}
		}
	}
	return errors.Join(errs...)
}

// tenure is a host that wrote a shard for a while.
type tenure struct {
	host     int
	from, to time.Duration // when the first write was acknowledged, and the last one asked for
	writes   int
}

// tenures are the owners of a shard, one after the other, in the order of revisions.
func tenures(all []told) (ts []tenure) {
	writes := slices.DeleteFunc(slices.Clone(all), func(o told) bool { return !o.done() || !o.write })
	slices.SortFunc(writes, func(a, b told) int { return int(int64(a.revision) - int64(b.revision)) })
	for _, w := range writes {
		if n := len(ts); n == 0 || ts[n-1].host != w.host {
			ts = append(ts, tenure{host: w.host, from: w.end, to: w.begin})
		}
		last := &ts[len(ts)-1]
		last.to, last.writes = max(last.to, w.begin), last.writes+1
	}
	return ts
}

// chain holds the log of a shard against the rule: seqs without holes, epochs that only ascend, one writer and one fence for each, each
// record behind one of the epoch that it names. It returns the epochs, with how many records each has.
func chain(ctx context.Context, engine driver.Engine, shardID string) (epochs []stretch, err error) {
	seq, epoch := uint64(0), stretch{}
	err = engine.Read(ctx, shardID, 1, func(f driver.Frame) error {
		var r dataplanev1.Record
		if err := r.UnmarshalVT(f.Data); err != nil {
			return err
		}
		h := r.Header
		switch {
		case h.Seq != seq+1:
			return fmt.Errorf("record %d says that it is record %d", seq+1, h.Seq)
		case h.PreviousEpoch != epoch.epoch:
			return fmt.Errorf("record %d of epoch %d was written behind one of epoch %d, and is behind one of epoch %d", h.Seq, h.Epoch, h.PreviousEpoch, epoch.epoch)
		case h.Fence && h.Epoch <= epoch.epoch, !h.Fence && (h.Epoch != epoch.epoch || !bytes.Equal(h.Writer, epoch.writer)):
			return fmt.Errorf("two writers at once: record %d is of epoch %d, fence: %v, and behind one of epoch %d", h.Seq, h.Epoch, h.Fence, epoch.epoch)
		case h.Fence:
			epoch = stretch{epoch: h.Epoch, writer: h.Writer}
			epochs = append(epochs, epoch)
		}
		seq = h.Seq
		epochs[len(epochs)-1].records++
		return nil
	})
	if err != nil {
		return epochs, fmt.Errorf("log of shard %s: %w", shardID, err)
	}
	return epochs, nil
}

// stretch is the part of a log that one owner wrote.
type stretch struct {
	epoch   uint64
	writer  []byte
	records int
}

func (s stretch) String() string { return fmt.Sprintf("%d: %d", s.epoch, s.records) }
