package ring_test

import (
	"testing"

	"github.com/zeebo/xxh3"
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
