package ring_test

import (
	"fmt"

	"kvstore/components/key"
	"kvstore/components/ring"
)

// The way from a key to the shard that holds it.
func Example() {
	m, err := ring.New("91f0a2c47b5d6e80", 4)
	if err != nil {
		panic(err)
	}
	slot := ring.Slot("default", key.HashTag().Partition([]byte("{user7}/cart")))
	fmt.Println(slot, m.ShardID(m.Owner(slot)))
	fmt.Println(m.Share(30_000, 0), m.Share(30_000, 1), m.Share(30_000, 2), m.Share(30_000, 3))
	// Output:
	// 1399 91f0a2c47b5d6e80-1
	// 7500 7500 7500 7500
}
