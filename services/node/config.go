package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"kvstore/actors/directory/keeper"
	"kvstore/components/key"
	"kvstore/components/wal/redislog"
	"kvstore/services/telemetry"
)

// Engines that a node can run on.
const (
	EngineDisk   = "disk"   // a data directory on this machine
	EngineMemory = "memory" // nothing survives the process: for tests and trials
	EngineRedis  = "redis"  // a Redis server, or a cluster of them
)

// Off turns a door off that may be.
const Off = "off"

// Config says how a node runs.
type Config struct {
	// Target is which parts run: one of Targets. Default "all".
	Target string
	// Cluster is what the targets of a cluster need.
	Cluster Cluster
	// Engine is where shards are stored: "disk" (default), "redis" or "memory".
	Engine string
	// Redis is the server of engine "redis"; its URL is required for it. Its Reserve is ReserveBytes.
	Redis redislog.Config
	// DataDir is the data directory of engine "disk". Required for it; made if it is not there.
	DataDir string
	// Instance shifts the default ports, so that several nodes run on one machine: 0 to MaxInstance.
	Instance int
	// GRPCListen, RESTListen and AdminListen are host:port of the doors; port 0 takes any. Default: on the loopback interface, at the port of
	// the instance. RESTListen may be Off.
	GRPCListen, RESTListen, AdminListen string
	// RESPListen is host:port of the door for Redis's protocol; port 0 takes any. Empty: there is none.
	RESPListen string
	// RESPDatabases are the namespaces that SELECT 0, 1, ... means there. Default: "default" alone.
	RESPDatabases []string
	// Traces says where traces go. Zero: nowhere.
	Traces telemetry.TraceConfig
	// Access is how the doors know who comes. Zero: everybody who reaches them may do everything, so they stay on loopback.
	Access Access
	// Insecure lets doors be opened to other machines without TLS, or without a way to know who comes. Each start logs it.
	Insecure bool
	// AddressFile, when set, is written once the node serves, with its addresses as JSON, and removed when it stops.
	AddressFile string
	// MaxValueBytes is the largest value of a key; default 16 MiB, at most 512 MiB.
	MaxValueBytes int64
	// ClientRate is how many operations a second one client may make: whoever has one token, or, without tokens, one address. 0 = any number.
	ClientRate int64
	// DefaultShards is how many shards the first keyspace gets, and every one made without a number. Default 4; 64 in a cluster.
	DefaultShards int
	// MemoryBudget is how many bytes the states of all shards may take; at it writes get RESOURCE_EXHAUSTED and deletes pass.
	// 0 = two fifths of what the machine (or its cgroup) has; negative = no limit.
	MemoryBudget int64
	// SegmentBytes is the length of a log segment of engine "disk"; 0 = its default.
	SegmentBytes int64
	// ReserveBytes is the free space (of the disk, or below the maxmemory of a Redis) at which writes stop; 0 = the engine's default, negative =
	// none.
	ReserveBytes int64
	// CheckpointBytes is how much log a shard gathers before a checkpoint; 0 = the default of package host.
	CheckpointBytes int64
	// IdleAfter is how long nobody uses a shard before it sleeps: it is checkpointed and its memory is given back, and its next use
	// brings it back first. Default 30 minutes; negative = never.
	IdleAfter time.Duration
	// DrainTimeout bounds a stop: calls under way, then checkpoints. Default 20 s. What is not done by then is cut off; nothing
	// acknowledged is lost by that, but the next start replays more.
	DrainTimeout time.Duration
	// Version is what Status tells. Default "dev".
	Version string
	// Log gets what happens. Default: nowhere.
	Log *slog.Logger
	// Progress, when set, gets a line that tells people how far recovery is, written over itself: a terminal.
	Progress io.Writer
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Target == "" {
		c.Target = "all"
	}
	t := Targets[c.Target]
	if c.Engine == "" && t.stores {
		c.Engine = EngineDisk
	}
	if c.GRPCListen == "" {
		c.GRPCListen = DoorGRPC.Loopback(c.Instance)
	}
	if c.RESTListen == "" {
		c.RESTListen = DoorREST.Loopback(c.Instance)
	}
	if c.AdminListen == "" {
		c.AdminListen = DoorAdmin.Loopback(c.Instance)
	}
	if c.MaxValueBytes == 0 {
		c.MaxValueBytes = key.MaxValue
	}
	if c.DefaultShards == 0 {
		c.DefaultShards = keeper.DefaultShards
		if t.cluster {
			c.DefaultShards = keeper.DefaultShardsCluster
		}
	}
	if t.cluster {
		c.Cluster.ensureDefaults(c.Instance)
	}
	if c.IdleAfter == 0 {
		c.IdleAfter = 30 * time.Minute
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 20 * time.Second
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Validate lists every fault, by the name of its flag.
func (c *Config) Validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	t, known := Targets[c.Target]
	check(known, "-target is %q: it may be %s", c.Target, strings.Join(slices.Sorted(maps.Keys(Targets)), ", "))
	switch {
	case known && !t.stores:
		check(c.Engine == "", "-engine is %q: target %s stores nothing", c.Engine, c.Target)
	case t.cluster:
		check(c.Engine == EngineRedis, "-engine is %q: target %s needs one that hosts share, which is redis", c.Engine, c.Target)
	default:
		check(slices.Contains([]string{EngineDisk, EngineMemory, EngineRedis}, c.Engine), "-engine is %q: it may be disk, redis or memory", c.Engine)
	}
	if t.cluster {
		c.Cluster.validate(c, t, check)
	} else {
		check(c.Cluster == Cluster{}, "flags of -data-listen, -data-address, -dapr-grpc and -dapr-invoke are for targets of a cluster, and -target is %s", c.Target)
	}
	check(c.Engine != EngineDisk || c.DataDir != "", "-data-dir is empty: engine disk needs a directory")
	check(c.Engine == EngineDisk || c.DataDir == "", "-data-dir is %q: engine %s keeps nothing there", c.DataDir, c.Engine)
	switch {
	case c.Engine == EngineRedis && c.Redis.URL == "":
		check(false, "-redis-url is empty: engine redis needs redis://host:port")
	case c.Engine == EngineRedis:
		redis := c.Redis
		redis.EnsureDefaults()
		err := redis.Validate()
		check(err == nil, "-redis-url and the flags beside it: %w", err)
	default:
		check(c.Redis.URL == "", "-redis-url is set and -engine is %s: say -engine redis", c.Engine)
	}
	check(c.Instance >= 0 && c.Instance <= MaxInstance, "-instance is %d: 0 to %d", c.Instance, MaxInstance)
	check(c.RESPListen == "" || !known || t.users, "-resp-listen is %q: target %s serves no users", c.RESPListen, c.Target)
	check(c.RESPListen != "" || len(c.RESPDatabases) == 0, "-resp-namespaces is given without -resp-listen")
	for _, name := range c.RESPDatabases {
		check(name != "" && len(name) <= key.MaxName, "-resp-namespaces has %q: a name has 1 to %d bytes", name, key.MaxName)
	}
	for _, l := range []struct {
		door Door
		addr string
	}{{DoorGRPC, c.GRPCListen}, {DoorREST, c.RESTListen}, {DoorAdmin, c.AdminListen}, {DoorRESP, c.RESPListen}} {
		if l.door == DoorREST && l.addr == Off || l.door == DoorRESP && l.addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			check(false, "-%s-listen is %q: it must be host:port", l.door.Name, l.addr)
			continue
		}
		missing := c.Access.missing(l.door)
		check(c.Insecure || missing == "" || loopback(l.addr), "-%s-listen is %q, which other machines can reach, and there is not: %s. "+
			"Give it, or listen on 127.0.0.1, or say -insecure if the network is closed to everyone who may not read and write everything",
			l.door.Name, l.addr, missing)
	}
	c.Access.validate(check)
	traces := c.Traces
	err := traces.Resolve()
	check(err == nil, "%w", err)
	check(c.MaxValueBytes >= 1<<10 && c.MaxValueBytes <= key.MaxValueConfig, "-max-value-bytes is %d: 1024 to %d", c.MaxValueBytes, int64(key.MaxValueConfig))
	check(c.ClientRate >= 0 && c.ClientRate <= key.MaxRate, "-client-rate is %d: 0 to %d", c.ClientRate, int64(key.MaxRate))
	check(c.DefaultShards >= 1 && c.DefaultShards <= key.MaxShardsInKeyspace, "-shards is %d: 1 to %d", c.DefaultShards, key.MaxShardsInKeyspace)
	check(c.SegmentBytes >= 0, "-segment-bytes is %d: not negative", c.SegmentBytes)
	check(c.CheckpointBytes >= 0, "-checkpoint-bytes is %d: not negative", c.CheckpointBytes)
	check(c.DrainTimeout > 0, "-drain-timeout is %v: more than 0", c.DrainTimeout)
	return errors.Join(faults...)
}
