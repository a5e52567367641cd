package wal

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"kvstore/components/wal/driver"
)

// valuePrefix is what names of value objects begin with.
const valuePrefix = "v/"

// sweepBatch is how many names a sweep holds at once.
const sweepBatch = 1024

// name returns the object's name at the engine.
func (id ObjectID) name() string {
	return valuePrefix + strconv.FormatUint(id.Epoch, 16) + "-" + strconv.FormatUint(id.Counter, 16)
}

// parseName returns epoch and counter of an object's name; false when it is not one that this package gives.
func parseName(prefix, name string) (id ObjectID, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return ObjectID{}, false
	}
	epoch, counter, _ := strings.Cut(rest, "-")
	var err1, err2 error
	id.Epoch, err1 = strconv.ParseUint(epoch, 16, 64)
	id.Counter, err2 = strconv.ParseUint(counter, 16, 64)
	return id, err1 == nil && err2 == nil
}

// newObject returns an id that was never used.
func (l *Log) newObject() ObjectID {
	return ObjectID{Epoch: l.epoch.Counter, Counter: l.lastObject.Add(1)}
}

// PackValues stores values one behind the other in one new object and returns its id and length and where each begins.
// The values must not change meanwhile. Errors are those of StreamValue.
func (l *Log) PackValues(ctx context.Context, values [][]byte) (id ObjectID, size int64, offsets []int64, err error) {
	offsets = make([]int64, len(values))
	for i, v := range values {
		offsets[i] = size
		size += int64(len(v))
	}
	id, err = l.StreamValue(ctx, size, &packer{values: values})
	if err != nil {
		return id, 0, nil, err
	}
	return id, size, offsets, nil
}

// packer reads values one behind the other.
type packer struct {
	values [][]byte
	off    int // into values[0]
}

func (p *packer) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) && len(p.values) > 0 {
		part := copy(b[n:], p.values[0][p.off:])
		n += part
		p.off += part
		if p.off == len(p.values[0]) {
			p.values, p.off = p.values[1:], 0
		}
	}
	if n == 0 && len(p.values) == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// StreamValue stores all of r as one new object. size is what r gives, -1 when unknown. An id beside an error is
// that of an object which may exist nevertheless: DeleteObject removes it; otherwise a later epoch's Sweep does.
func (l *Log) StreamValue(ctx context.Context, size int64, r io.Reader) (ObjectID, error) {
	if err := l.Err(); err != nil {
		return ObjectID{}, &overError{cause: err}
	}
	id := l.newObject()
	if err := l.engine.PutObject(ctx, l.shard, id.name(), size, r); err != nil {
		if OutcomeOf(err) == NotWritten {
			id = ObjectID{}
		}
		return id, fmt.Errorf("store a value of shard %s: %w", l.shard, err)
	}
	return id, nil
}

// ReadValue fills p from offset off of an object; driver.ErrNotExist when it is gone, driver.ErrCorrupt when it is too short.
// The bytes are not verified here: the reference to them holds a checksum.
func (l *Log) ReadValue(ctx context.Context, id ObjectID, off int64, p []byte) error {
	if err := l.engine.GetObject(ctx, l.shard, id.name(), off, p); err != nil {
		return fmt.Errorf("read a value of shard %s: %w", l.shard, err)
	}
	return nil
}

// DeleteObject removes a value object; an absent one is a success. See ReleasedSeq for when it may be called.
func (l *Log) DeleteObject(ctx context.Context, id ObjectID) error {
	if err := l.engine.DeleteObject(ctx, l.shard, id.name()); err != nil {
		return fmt.Errorf("delete a value object of shard %s: %w", l.shard, err)
	}
	return nil
}

// Sweep removes what earlier epochs left behind when they were cut off: checkpoint runs that the manifest does not name, and value
// objects for which live says no. Objects of this epoch are never touched, so live is asked for older ones only; it must
// know the restored state and may not turn from no to yes. It is called after Restore, beside everything else.
func (l *Log) Sweep(ctx context.Context, live func(ObjectID) bool) (SweepStats, error) {
	var stats SweepStats
	named, err := l.namedRuns(ctx)
	if err != nil {
		return stats, fmt.Errorf("sweep shard %s: %w", l.shard, err)
	}
	stats.Runs, err = l.sweep(ctx, driver.CheckpointPrefix, &stats.Bytes, func(name string) bool {
		id, ok := parseName(driver.CheckpointPrefix, name)
		return ok && id.Epoch < l.epoch.Counter && !named[name]
	})
	if err != nil {
		return stats, fmt.Errorf("sweep shard %s: %w", l.shard, err)
	}
	stats.Values, err = l.sweep(ctx, valuePrefix, &stats.Bytes, func(name string) bool {
		id, ok := parseName(valuePrefix, name)
		return ok && id.Epoch < l.epoch.Counter && id.name() == name && !live(id)
	})
	if err != nil {
		return stats, fmt.Errorf("sweep shard %s: %w", l.shard, err)
	}
	return stats, nil
}

// namedRuns returns the runs that the manifest names now. It only ever loses runs of older epochs.
func (l *Log) namedRuns(ctx context.Context) (map[string]bool, error) {
	l.manifestMu.Lock()
	defer l.manifestMu.Unlock()
	if err := l.refresh(ctx); err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, run := range l.current.manifest.Runs {
		named[run.Name] = true
	}
	return named, nil
}

// sweep deletes the objects under prefix for which orphan says yes, and counts them.
func (l *Log) sweep(ctx context.Context, prefix string, bytes *int64, orphan func(name string) bool) (count int, err error) {
	for {
		var names []string
		err := l.engine.ListObjects(ctx, l.shard, prefix, func(name string, size int64) error {
			if len(names) < sweepBatch && orphan(name) {
				names = append(names, name)
				*bytes += size
			}
			return nil
		})
		if err != nil {
			return count, err
		}
		for _, name := range names {
			// a successor sweeps and stores as it likes: whoever is not the owner any more keeps its hands off
			if err := l.Err(); err != nil {
				return count, err
			}
			if err := l.engine.DeleteObject(ctx, l.shard, name); err != nil {
				return count, err
			}
			count++
		}
		if len(names) < sweepBatch {
			return count, nil
		}
	}
}
