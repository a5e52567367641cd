//go:build !plantedbugs

package shard

func planted(bug) bool { return false }
