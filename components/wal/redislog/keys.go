package redislog

import (
	"encoding/hex"
	"fmt"
	"strconv"

	"kvstore/components/wal/driver"
)

// keys names the keys of one shard. All hold the shard as their hash tag, so that a cluster keeps them on one node and a script may
// touch several.
type keys struct {
	manifest string // hash: tag, data
	head     string // hash: own, fence, first
	records  string // list of elements; the n-th is record first + n
	objects  string // sorted set of names with states, all of one score
	removed  string // sorted set of names that were removed, by when: see removedFor
	chunk    string // what names of chunks begin with
}

func (e *Engine) keys(shard string) keys {
	base := e.cfg.Prefix + ":{" + shard + "}:"
	return keys{manifest: base + "m", head: base + "h", records: base + "r", objects: base + "o", removed: base + "x", chunk: base + "c:"}
}

// chunkKey names chunk n of an object.
func (k *keys) chunkKey(name string, n int64) string {
	return k.chunk + name + ":" + strconv.FormatInt(n, 10)
}

// own is how the head of a log names the epoch that may append: its counter, a colon, the writer in hex.
func own(e driver.Epoch) string {
	b := make([]byte, 0, 20+1+32)
	b = append(strconv.AppendUint(b, e.Counter, 10), ':')
	return string(hex.AppendEncode(b, e.Writer[:]))
}

// counterOf reads the counter back.
func counterOf(own string) (uint64, error) {
	for i := range len(own) {
		if own[i] == ':' {
			return strconv.ParseUint(own[:i], 10, 64)
		}
	}
	return 0, fmt.Errorf("%w: the head of a log names the epoch %q", driver.ErrCorrupt, own)
}

// maxNumber bounds epochs and seqs: scripts count in floating point.
const maxNumber = 1 << 53

func checkNumbers(numbers ...uint64) error {
	for _, n := range numbers {
		if n >= maxNumber {
			return fmt.Errorf("%w: number %d: must be below %d", driver.ErrRefused, n, uint64(maxNumber))
		}
	}
	return nil
}
