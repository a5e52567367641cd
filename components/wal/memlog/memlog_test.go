package memlog_test

import (
	"testing"
	"time"

	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/waltest"
)

func newHarness(t testing.TB) *waltest.Harness { return harness(t, memlog.Config{}) }

// harness holds a memory store; a restart is a clone of what is durable.
func harness(t testing.TB, cfg memlog.Config) *waltest.Harness {
	current, err := memlog.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	opened := false
	h := &waltest.Harness{
		Unsupported: "memory is not written to, so it cannot be torn or damaged",
		Open: func(testing.TB) driver.Engine {
			if opened {
				current = current.Clone()
			}
			opened = true
			return current
		},
		Beside: func(testing.TB) driver.Engine { return unclosed{current} }, // another process sees the same memory
		Crash: func(testing.TB) {
			old := current
			current = current.Clone()
			opened = false
			old.Close()
		},
	}
	t.Cleanup(func() { current.Close() })
	return h
}

// unclosed is an engine whose Close leaves the store to the other process.
type unclosed struct{ driver.Engine }

func (unclosed) Close() error { return nil }

func TestConformance(t *testing.T) { waltest.Run(t, newHarness) }

func TestLog(t *testing.T) { waltest.RunLog(t, newHarness) }

func TestLogWithLeases(t *testing.T) {
	waltest.RunLog(t, func(t testing.TB) *waltest.Harness { return harness(t, memlog.Config{Term: time.Second}) })
}
