package redislog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Level says how bad a finding is.
type Level uint8

// Levels.
const (
	// Note: worth knowing.
	Note Level = iota
	// Risk: this server can lose what was acknowledged, or stop for want of something.
	Risk
	// Refused: the engine does not run on this server.
	Refused
)

// String returns the level's name.
func (l Level) String() string {
	switch l {
	case Refused:
		return "REFUSED"
	case Risk:
		return "RISK"
	}
	return "NOTE"
}

// Finding is one thing that Doctor found out about a server.
type Finding struct {
	Level  Level
	Server string // its address; empty when there is one
	What   string // how it is
	Means  string // what that costs, and what to do about it
}

// String is the finding in one line.
func (f Finding) String() string {
	if f.Server != "" {
		return f.Server + ": " + f.What + ": " + f.Means
	}
	return f.What + ": " + f.Means
}

// info is what INFO tells of one server, and CONFIG GET where it may be asked.
type info struct {
	server string
	fields map[string]string
}

func (i *info) number(field string) int64 {
	n, _ := strconv.ParseInt(i.fields[field], 10, 64)
	return n
}

// infos asks every master for sections of INFO.
func (e *Engine) infos(ctx context.Context, sections ...string) ([]info, error) {
	var mu sync.Mutex // guards all
	var all []info
	err := e.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		text, err := c.Info(ctx, sections...).Result()
		if err != nil {
			return err
		}
		i := info{server: c.Options().Addr, fields: map[string]string{}}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				i.fields[k] = v
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, i)
		return nil
	})
	slices.SortFunc(all, func(a, b info) int { return strings.Compare(a.server, b.server) })
	return all, err
}

// eachMaster calls fn for the server, or for each master of a cluster.
func (e *Engine) eachMaster(ctx context.Context, fn func(ctx context.Context, c *redis.Client) error) error {
	switch c := e.client.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, fn)
	case *redis.Client:
		return fn(ctx, c)
	}
	return fmt.Errorf("a client of type %T", e.client)
}

// Doctor connects to a Redis and says what it can lose; see Engine.Doctor.
func Doctor(ctx context.Context, cfg Config) ([]Finding, error) {
	cfg.EnsureDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	findings, err := e.Doctor(ctx)
	if err != nil {
		err = fmt.Errorf("redis %s: %w", cfg.Redacted(), err)
	}
	return findings, errors.Join(err, e.Close())
}

// Doctor examines the server: what it can lose, and whether the engine can run on it at all. CONFIG is asked where it may be; where it
// may not, what INFO does not tell either is a finding of its own.
func (e *Engine) Doctor(ctx context.Context) ([]Finding, error) {
	var infos []info
	err := e.read(ctx, func(ctx context.Context) (err error) {
		infos, err = e.infos(ctx)
		return err
	})
	if err != nil {
		if e.cfg.Sentinel != "" && errors.Is(err, redis.Nil) {
			err = fmt.Errorf("the Sentinel knows no master of the name %q (-redis-sentinel): %w", e.cfg.Sentinel, err)
		}
		return nil, err
	}
	var findings []Finding
	for i := range infos {
		if f := e.cfg.misplaced(infos[i].fields); f.What != "" {
			return []Finding{f}, nil
		}
		config := e.configOf(ctx, infos[i].server)
		if len(infos) > 1 {
			findings = append(findings, diagnose(infos[i].fields, config, infos[i].server)...)
		} else {
			findings = append(findings, diagnose(infos[i].fields, config, "")...)
		}
	}
	if free, reserve, err := e.measure(ctx); err == nil {
		e.space.set(free, reserve)
	}
	slices.SortStableFunc(findings, func(a, b Finding) int { return int(b.Level) - int(a.Level) })
	return findings, nil
}

// misplaced tells of a server that is not what the configuration takes it for; nothing else that it tells counts then.
func (c *Config) misplaced(info map[string]string) Finding {
	switch {
	case info["redis_mode"] == "sentinel":
		return Finding{Level: Refused, What: "it is a Sentinel", Means: "it stores nothing; give the name of the master that it watches (-redis-sentinel)"}
	case info["cluster_enabled"] == "1" && !c.Cluster:
		return Finding{Level: Refused, What: "it is a node of a Redis Cluster", Means: "it has a part of the keys alone; say that it is one (-redis-cluster)"}
	}
	return Finding{}
}

// configOf reads the parameters that matter; nil when the server does not let us.
func (e *Engine) configOf(ctx context.Context, server string) map[string]string {
	config := map[string]string{}
	err := e.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		if c.Options().Addr != server {
			return nil
		}
		for _, name := range []string{"appendfsync", "no-appendfsync-on-rewrite", "aof-load-truncated", "min-replicas-to-write", "save"} {
			got, err := c.ConfigGet(ctx, name).Result()
			if err != nil {
				return err
			}
			if v, ok := got[name]; ok {
				config[name] = v
			}
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return config
}

// diagnose judges one server by what it tells. config is nil when it may not be asked.
func diagnose(info, config map[string]string, server string) []Finding {
	var findings []Finding
	add := func(level Level, what, means string, args ...any) {
		findings = append(findings, Finding{Level: level, Server: server, What: what, Means: fmt.Sprintf(means, args...)})
	}
	number := func(field string) int64 { n, _ := strconv.ParseInt(info[field], 10, 64); return n }

	if major, _, _ := strings.Cut(info["redis_version"], "."); info["redis_version"] != "" {
		if n, err := strconv.Atoi(major); err == nil && n < 7 {
			add(Refused, "Redis "+info["redis_version"], "version 7 or newer is needed: older ones do not know script flags")
		}
	}
	if info["role"] == "slave" {
		add(Refused, "it is a replica", "it takes no writes; name the master, or a Sentinel that knows it")
	}
	switch policy := info["maxmemory_policy"]; policy {
	case "noeviction":
	case "":
		add(Risk, "maxmemory-policy is not told", "make sure that it is noeviction: any other deletes keys, and with them data, when memory is full")
	default:
		add(Refused, "maxmemory-policy is "+policy, "the server would delete data when memory is full; set maxmemory-policy noeviction")
	}
	if number("maxmemory") == 0 {
		add(Risk, "maxmemory is not set", "a full machine then ends the server; set it below what the machine has, so that writes stop with NO_SPACE instead")
	}
	switch {
	case info["aof_enabled"] == "0":
		add(Risk, "appendonly is no", "a restart of the server loses everything since its last snapshot, acknowledged or not; set appendonly yes")
	case config == nil || config["appendfsync"] == "":
		add(Risk, "appendfsync is not told", "unless it is always, a crash of the server's machine loses the last second of what was acknowledged, or more")
	case config["appendfsync"] != "always":
		add(Risk, "appendfsync is "+config["appendfsync"], "a crash of the server's machine loses the last second of what was acknowledged, or more; set appendfsync always")
	}
	if info["aof_enabled"] == "1" && config["no-appendfsync-on-rewrite"] == "yes" {
		add(Risk, "no-appendfsync-on-rewrite is yes", "while the log is rewritten nothing is synced; set it to no")
	}
	if info["aof_last_write_status"] == "err" {
		add(Risk, "the last write of the append-only file failed", "the server refuses writes until one succeeds; look at its disk")
	}
	if replicas := number("connected_slaves"); replicas > 0 || info["cluster_enabled"] == "1" {
		add(Risk, fmt.Sprintf("replication is asynchronous, %d replicas", replicas),
			"a failover loses what the replica had not received; it is noticed (DATA_LOSS) and not undone. WAIT and min-replicas-to-write narrow this and do not close it")
	}
	if config["aof-load-truncated"] == "yes" {
		add(Note, "aof-load-truncated is yes", "a damaged end of the append-only file is cut off at start instead of stopping it; what is lost by that is noticed as DATA_LOSS")
	}
	if config == nil {
		add(Note, "CONFIG is not permitted", "parts of this report are guesses")
	}
	return findings
}
