package ring_test

import (
	"bytes"
	"testing"

	"github.com/zeebo/xxh3"

	"kvstore/components/key"
	"kvstore/components/promptcache"
	"kvstore/components/ring"
)

// TestHashIsXXH3 compares the library with values that others publish for XXH3_64bits without a seed.
func TestHashIsXXH3(t *testing.T) {
	for in, want := range map[string]uint64{
		"":    0x2d06800538d394c2,
		"a":   0xe6c632b61e964e1f,
		"abc": 0x78af5f94892f3950,
	} {
		if got := xxh3.HashString(in); got != want {
			t.Errorf("%q: %016x, want %016x", in, got, want)
		}
	}
}

// TestPromptBlocks: package promptcache places blocks as the partition key of package key does.
func TestPromptBlocks(t *testing.T) {
	scope := promptcache.ScopeID{1, 2, 3, 15: 9}
	for _, id := range [][]byte{[]byte("a"), bytes.Repeat([]byte{0xab}, 36), bytes.Repeat([]byte("z"), key.MaxBlockID)} {
		for _, rank := range []uint32{0, 1, 70_000} {
			got := promptcache.Slot("prompts", scope, id, rank, 3)
			if want := ring.Slot("prompts", key.AppendBlock(nil, scope, id, rank, 3)); got != want {
				t.Errorf("block %x of rank %d: slot %d, want %d", id, rank, got, want)
			}
		}
	}
}
