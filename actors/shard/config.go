package shard

import (
	"errors"
	"fmt"
)

// Config are the bounds of a machine. Machines that replay the same records with different bounds agree on everything but how
// much history they keep and when they forget old outcomes.
type Config struct {
	// MemoryBudget is how many bytes the tree may take before whatever makes it larger is refused with Exhausted; deletes
	// and expiry still pass. 0 = no limit.
	MemoryBudget int64
	// HistoryBytes bounds the change history; default 4 MiB.
	HistoryBytes int64
	// HistoryChanges bounds the change history; default 10,000.
	HistoryChanges int64
	// TickBudget is the most items that one Tick expires; default 512. WakeMS asks for the next Tick at once while more are due.
	TickBudget int
	// DropBudget is the most items that one OpDropNamespace removes; default 1,000.
	DropBudget int
	// Evicted, when set, is told of every block of a prompt that makes room for others, with its size; Damaged of every one that a reader found damaged and
	// that is forgotten. What is rolled back was told, too.
	Evicted func(bytes int64)
	Damaged func()

	chunkChanges int64 // most changes of a history chunk; tests have small ones
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Evicted == nil {
		c.Evicted = func(int64) {}
	}
	if c.Damaged == nil {
		c.Damaged = func() {}
	}
	if c.HistoryBytes == 0 {
		c.HistoryBytes = 4 << 20
	}
	if c.HistoryChanges == 0 {
		c.HistoryChanges = 10_000
	}
	if c.TickBudget == 0 {
		c.TickBudget = 512
	}
	if c.DropBudget == 0 {
		c.DropBudget = 1000
	}
	if c.chunkChanges == 0 {
		c.chunkChanges = maxChunkChanges
	}
}

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.MemoryBudget < 0 {
		faults = append(faults, fmt.Errorf("MemoryBudget is %d, must not be negative", c.MemoryBudget))
	}
	if c.HistoryBytes < 0 {
		faults = append(faults, fmt.Errorf("HistoryBytes is %d, must not be negative", c.HistoryBytes))
	}
	if c.HistoryChanges < 0 {
		faults = append(faults, fmt.Errorf("HistoryChanges is %d, must not be negative", c.HistoryChanges))
	}
	if c.TickBudget < 1 || c.TickBudget > 100_000 {
		faults = append(faults, fmt.Errorf("TickBudget is %d, must be 1 to 100,000", c.TickBudget))
	}
	if c.DropBudget < 1 || c.DropBudget > 100_000 {
		faults = append(faults, fmt.Errorf("DropBudget is %d, must be 1 to 100,000", c.DropBudget))
	}
	return errors.Join(faults...)
}
