package shard

type counters struct{}

const sweepPerOutcome = 4

func (m *Machine) stepPut(c *Command)      {}
func (m *Machine) stepDelete(c *Command)   {}
func (m *Machine) stepTxn(c *Command)      {}
func (m *Machine) stepDrop(c *Command)     {}
func (m *Machine) stepRelocate(c *Command) {}
func (m *Machine) stepForget(c *Command)   {}
func (m *Machine) expire(int)              {}
func (m *Machine) wakeExpiry() int64       { return 0 }
func (m *Machine) sweepIdle()              {}
func (m *Machine) wakeSweep() int64        { return 0 }
func (m *Machine) sweep(int, int64)        {}
func (m *Machine) sealCounters()           {}

// Replay applies one durable body.
func (m *Machine) Replay(body []byte, timeMS int64) error { return nil }
