package node

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// machineMemory is how many bytes of memory the process may hope for: that of the machine or, if less, of its cgroup. 0 = not
// known.
func machineMemory() int64 {
	total := int64(0)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		total = memTotal(text)
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} { // cgroups 2 and 1, as a container sees its own
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && limit > 0 && (total == 0 || limit < total) {
			total = limit
		}
	}
	return total
}

// memTotal reads the line "MemTotal: 1234 kB".
func memTotal(meminfo []byte) int64 {
	for line := range bytes.Lines(meminfo) {
		f := bytes.Fields(line)
		if len(f) == 3 && string(f[0]) == "MemTotal:" && string(f[2]) == "kB" {
			if kb, err := strconv.ParseInt(string(f[1]), 10, 64); err == nil {
				return kb << 10
			}
		}
	}
	return 0
}

// CollectorPercent is what kvstored sets GOGC to when the environment does not. A collection marks every key, so with Go's 100 it
// was 40 % of the processor time of puts among 2 million keys; with 200 a heap takes up to three times what is alive, while
// CollectorLimit allows it.
const CollectorPercent = 200

// CollectorLimit is what kvstored sets GOMEMLIMIT to when the environment does not: 17/20 of the memory that the process may hope
// for. Near it the collector works more, so that states at their budget, which is two fifths, leave the machine its memory. 0 =
// none, the machine does not tell how much it has.
func CollectorLimit() int64 { return machineMemory() / 20 * 17 }

// memoryBudget is Config.MemoryBudget made good: the garbage collector needs about as much again as what is alive (CollectorLimit), so
// the states get two fifths.
func memoryBudget(configured, machine int64) int64 {
	switch {
	case configured < 0:
		return 0
	case configured > 0:
		return configured
	}
	return machine / 5 * 2
}
