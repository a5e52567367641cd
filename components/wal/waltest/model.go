package waltest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"kvstore/components/btree"
)

// Model is a machine as a Log knows it: a tree that changes by the bodies of records. Beside the tree it keeps a plain map.
type Model struct {
	tree  *btree.Tree
	plain map[string]string
}

// Restore implements wal.Replayer.
func (m *Model) Restore(t *btree.Tree) {
	m.tree = t.Clone()
	m.plain = map[string]string{}
	for k, v := range t.Ascend(nil, nil) {
		m.plain[string(k)] = string(v)
	}
}

// Replay implements wal.Replayer: a body is a list of keys and values with their lengths, a missing value being a removal.
func (m *Model) Replay(body []byte, _ int64) error {
	for len(body) > 0 {
		key, rest, err := chunk(body)
		if err != nil {
			return err
		}
		if len(rest) > 0 && rest[0] == 0 {
			m.tree.Delete(key)
			delete(m.plain, string(key))
			body = rest[1:]
			continue
		}
		value, rest, err := chunk(rest[1:])
		if err != nil {
			return err
		}
		m.tree.Set(key, value)
		m.plain[string(key)] = string(value)
		body = rest
	}
	return nil
}

func chunk(b []byte) (data, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, fmt.Errorf("a body of the model cannot be decoded")
	}
	return b[size : size+int(n)], b[size+int(n):], nil
}

// set and remove append to a body.
func set(body []byte, key, value string) []byte {
	body = binary.AppendUvarint(body, uint64(len(key)))
	body = append(append(body, key...), 1)
	body = binary.AppendUvarint(body, uint64(len(value)))
	return append(body, value...)
}

func remove(body []byte, key string) []byte {
	body = binary.AppendUvarint(body, uint64(len(key)))
	return append(append(body, key...), 0)
}

// randomBody changes a few of n keys.
func randomBody(rng *rand.Rand, n int) []byte {
	body := []byte{}
	for range 1 + rng.IntN(5) {
		key := fmt.Sprintf("key/%d", rng.IntN(n))
		if rng.IntN(4) == 0 {
			body = remove(body, key)
		} else {
			body = set(body, key, fmt.Sprintf("%d-%s", rng.Uint64(), bytes.Repeat([]byte("v"), rng.IntN(50))))
		}
	}
	return body
}

// clone returns a model of its own with the same content.
func (m *Model) clone() *Model {
	return &Model{tree: m.tree.Clone(), plain: maps.Clone(m.plain)}
}

// differs says how two models differ, empty when they do not. Trees are compared with maps, so that neither is trusted.
func (m *Model) differs(other *Model) string {
	keys := slices.Sorted(maps.Keys(m.plain))
	for _, k := range keys {
		if v, ok := other.plain[k]; !ok || v != m.plain[k] {
			return fmt.Sprintf("%s is %q, not %q", k, v, m.plain[k])
		}
	}
	if len(other.plain) != len(m.plain) {
		return fmt.Sprintf("%d keys, not %d", len(other.plain), len(m.plain))
	}
	i := 0
	for k, v := range other.tree.Ascend(nil, nil) {
		if i == len(keys) || string(k) != keys[i] || string(v) != m.plain[keys[i]] {
			return fmt.Sprintf("item %d of the tree is %s = %q", i, k, v)
		}
		i++
	}
	if i != len(keys) {
		return fmt.Sprintf("%d items in the tree, not %d", i, len(keys))
	}
	return ""
}
