//go:build plantedbugs

package shard

// plantedBug is the bug that is in; 0 = none. Tests set it while no machine runs.
var plantedBug bug

func planted(b bug) bool { return b == plantedBug }
