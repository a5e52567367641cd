package frontend

import (
	"bytes"
	"container/heap"

	"kvstore/components/key"
	"kvstore/components/kverr"
)

// merge walks rows of several shards in the order of their keys: a heap of cursors, none at its end. Each cursor takes its shard's
// rows in steps; further ones are rare, since rows spread evenly, and each is twice as long as the one before, since they may not.
type merge[T any] struct {
	key  func(*T) []byte
	more func(sh *Shard, after []byte, limit int) (rows []T, more bool, err *kverr.Error)

	cursors []*cursor[T]
}

// cursor walks one shard.
type cursor[T any] struct {
	shard *Shard
	rows  []T  // not walked yet; never empty in a merge
	more  bool // there are rows behind them
	limit int  // of the step that rows are from
}

// firstStep is how many rows of each of several shards are asked for at once, to fill a page of a length.
func firstStep(page, shards int) int { return page/shards + 8 }

// add adds a shard with its first rows. No row comes before those of add are complete.
func (m *merge[T]) add(sh *Shard, rows []T, more bool, limit int) {
	if len(rows) > 0 {
		heap.Push(m, &cursor[T]{shard: sh, rows: rows, more: more, limit: limit})
	}
}

// head is the next row, nil at the end.
func (m *merge[T]) head() *T {
	if len(m.cursors) == 0 {
		return nil
	}
	return &m.cursors[0].rows[0]
}

// advance goes on to the next row.
func (m *merge[T]) advance() *kverr.Error {
	c := m.cursors[0]
	last := c.rows[0]
	c.rows = c.rows[1:]
	if len(c.rows) == 0 && c.more {
		c.limit = min(2*c.limit, key.MaxListPage)
		var err *kverr.Error
		if c.rows, c.more, err = m.more(c.shard, m.key(&last), c.limit); err != nil {
			return err
		}
	}
	if len(c.rows) > 0 {
		heap.Fix(m, 0)
	} else {
		heap.Pop(m)
	}
	return nil
}

func (m *merge[T]) Len() int { return len(m.cursors) }
func (m *merge[T]) Less(i, j int) bool {
	return bytes.Compare(m.key(&m.cursors[i].rows[0]), m.key(&m.cursors[j].rows[0])) < 0
}
func (m *merge[T]) Swap(i, j int) { m.cursors[i], m.cursors[j] = m.cursors[j], m.cursors[i] }

// Push adds a cursor.
func (m *merge[T]) Push(c any) { m.cursors = append(m.cursors, c.(*cursor[T])) }

// Pop takes the last cursor.
func (m *merge[T]) Pop() any {
	last := len(m.cursors) - 1
	c := m.cursors[last]
	m.cursors = m.cursors[:last]
	return c
}
