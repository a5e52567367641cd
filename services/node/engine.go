package node

import (
	"context"

	"kvstore/components/wal/disklog"
	"kvstore/components/wal/driver"
	"kvstore/components/wal/memlog"
	"kvstore/components/wal/redislog"
)

// store names what the engine stores in, for the log: no secret is in it.
func (c *Config) store() string {
	switch c.Engine {
	case EngineDisk:
		return c.DataDir
	case EngineRedis:
		return c.Redis.Redacted()
	}
	return ""
}

// openEngine opens the engine and tells what it found damaged, or what it can lose.
func (n *Node) openEngine(ctx context.Context) (driver.Engine, error) {
	switch n.cfg.Engine {
	case EngineMemory:
		return memlog.New(memlog.Config{})
	case EngineRedis:
		n.ready.set("connecting to " + n.cfg.store())
		cfg := n.cfg.Redis
		cfg.Reserve = n.cfg.ReserveBytes
		cfg.Warn = func(err error) { n.cfg.Log.Warn("this Redis can lose acknowledged writes, or stop", "what", err) }
		return redislog.Open(ctx, cfg)
	}
	n.ready.set("opening the data directory")
	engine, err := disklog.Open(n.cfg.DataDir, disklog.Config{
		SegmentBytes: n.cfg.SegmentBytes, Reserve: n.cfg.ReserveBytes,
		Warn: func(err error) { n.cfg.Log.Warn("disk engine", "error", err) },
	})
	if err != nil {
		return nil, err
	}
	for _, d := range engine.Damage() {
		n.cfg.Log.Error("damage found in the data directory", "error", d)
	}
	return engine, nil
}
