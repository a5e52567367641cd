package vtcodec

import "testing"

func TestPoolGivesWhatIsAskedFor(t *testing.T) {
	for _, n := range []int{0, 1, 1023, 1024, 1025, 40_000, 1 << 20, 1<<20 + 1, 1 << 23, 1<<23 + 1} {
		for range 3 {
			b := Pool.Get(n)
			if len(*b) != n {
				t.Fatalf("asked for %d, got %d", n, len(*b))
			}
			if n > 1024 && n <= 1<<23 && cap(*b) >= 2*n {
				t.Errorf("%d bytes lie in a buffer of %d", n, cap(*b))
			}
			Pool.Put(b)
		}
	}
	foreign := make([]byte, 3000)
	Pool.Put(&foreign) // of no tier: left alone
	if b := Pool.Get(3000); cap(*b) != 4096 {
		t.Errorf("a foreign buffer of %d came back", cap(*b))
	}
}

func TestPoolAllocatesNothingWhenWarm(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Pool.Put(Pool.Get(40_000)) }); n >= 1 { // under the race detector sync.Pool drops some
		t.Errorf("%v allocations", n)
	}
}
