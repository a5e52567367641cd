//go:build plantedbugs

package shard

import (
	"fmt"
	"testing"
)

// TestPlantedBugs proves that the random check finds each planted bug: go test -tags plantedbugs ./actors/shard
func TestPlantedBugs(t *testing.T) {
	for b := bug(1); b < bugsEnd; b++ {
		t.Run(fmt.Sprintf("bug_%d", b), func(t *testing.T) {
			plantedBug = b
			defer func() { plantedBug = 0 }()
			for seed := range uint64(checkSeeds) {
				if err := checkSeed(seed, checkCommands); err != nil {
					t.Logf("found: %v", err)
					return
				}
			}
			t.Errorf("bug %d is in, and %d seeds of %d commands do not find it", b, checkSeeds, checkCommands)
		})
	}
}
