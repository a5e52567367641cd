package shard

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"

	"kvstore/components/promptcache"
	"kvstore/components/ring"
)

// TestPromptTrace replays the conversation trace over the machines of four shards, in the trace's own time and with leases, as
// frontends do it: look up, lease, write the misses, release. Half-way every shard gets a new owner, which keeps its hands off for a
// lease term. Unlimited, the hits are those of the trace; with a capacity at least what the issue asks.
func TestPromptTrace(t *testing.T) {
	if testing.Short() {
		t.Skip("replays 288,500 blocks several times; CI runs it without -short")
	}
	f, err := os.Open("../../tests/load/testdata/conversation_trace.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	type request struct {
		TimeMS int64    `json:"timestamp"`
		IDs    []uint32 `json:"hash_ids"`
	}
	var requests []request
	lines := bufio.NewScanner(zr)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		requests = append(requests, r)
	}
	const shards = 4
	scope, fields := testScope(0)
	for _, c := range []struct {
		capacity int64
		least    float64
	}{{0, 36.64}, {30_000, 32.0}, {10_000, 20.6}} {
		rigs := make([]*promptRig, shards)
		for i := range rigs {
			rigs[i] = newPromptRig(t, 0)
		}
		hits, total, refused := 0, 0, 0
		for n, q := range requests {
			if n == len(requests)/2 {
				for _, r := range rigs {
					r.commit()
					r.takeOver()
				}
			}
			keys := make([]BlockKey, len(q.IDs))
			owner := make([]int, len(q.IDs))
			prefix := 0
			for i, id := range q.IDs {
				keys[i] = BlockKey{ID: binary.BigEndian.AppendUint32(nil, id), Depth: uint32(i)}
				keys[i].Slot = promptcache.Slot("default", scope, keys[i].ID, 0, 0)
				owner[i] = int(keys[i].Slot) * shards / ring.Slots
				if _, ok := rigs[owner[i]].view().Block(1, scope, keys[i]); ok && prefix == i {
					prefix++
				}
			}
			hits += prefix
			total += len(q.IDs)
			for s, r := range rigs {
				r.now = max(r.now, 1_700_000_000_000+q.TimeMS)
				r.m.Tick(r.now)
				lease := [16]byte{1, byte(n), byte(n >> 8)}
				look := &Command{Op: OpLookup, Namespace: 1, Prompt: &PromptArgs{Scope: scope, ScopeFields: fields, Lease: lease, LeaseMS: 10_000}}
				write := &Command{Op: OpIndex, Namespace: 1, Prompt: &PromptArgs{Scope: scope, ScopeFields: fields, Capacity: Capacity{Blocks: c.capacity / shards}}}
				for i := range keys {
					switch {
					case owner[i] != s:
					case i < prefix:
						look.Prompt.Blocks = append(look.Prompt.Blocks, keys[i])
					default:
						write.Prompt.Index = append(write.Prompt.Index, BlockPut{Block: keys[i], Value: Value{Inline: keys[i].ID}, Size: 4, Checksum: 1})
					}
				}
				if len(look.Prompt.Blocks) > 0 {
					r.step(look)
				}
				if len(write.Prompt.Index) > 0 {
					r.step(write)
				}
				for _, o := range write.Result.Blocks {
					if o.Refused {
						refused++
					}
				}
				r.step(&Command{Op: OpRelease, Namespace: 1, Prompt: &PromptArgs{Lease: lease}})
				r.m.Ready()
				r.durable = r.m.Tree()
			}
		}
		ratio := 100 * float64(hits) / float64(total)
		t.Logf("capacity %d: %.2f %% of %d blocks hit, %d writes refused after the change of owner", c.capacity, ratio, total, refused)
		if ratio < c.least || c.capacity == 0 && hits != 105_710 {
			t.Errorf("capacity %d: %d of %d blocks hit, %.2f %%, want at least %.2f %%", c.capacity, hits, total, ratio, c.least)
		}
	}
}
