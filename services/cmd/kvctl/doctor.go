package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"kvstore/components/wal/redislog"
)

var doctorCommand = command{
	local: true,
	short: "tell what a Redis can lose, before it is stored in",
	help: `Examines a Redis that kvstored -engine redis is to store in, and tells what it can lose and when. REFUSED means that
kvstored does not start on it: the exit code is 1 then. The password comes from --redis-password-file or
KVSTORE_REDIS_PASSWORD.

  kvctl doctor --redis redis://127.0.0.1:6379
  kvctl doctor --redis rediss://kv@cache.example:6380 --redis-password-file redis.pw -o json`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		var cfg redislog.Config
		fs.StringVar(&cfg.URL, "redis", "", "`URL` of the Redis, or of a node of a cluster")
		fs.StringVar(&cfg.PasswordFile, "redis-password-file", "", "`file` with its password")
		fs.StringVar(&cfg.CAFile, "redis-ca-file", "", "`file` with the certificates that a rediss:// server is verified with")
		fs.BoolVar(&cfg.Cluster, "redis-cluster", false, "it is a Redis Cluster")
		fs.StringVar(&cfg.Sentinel, "redis-sentinel", "", "--redis is a Sentinel; `name` of the master there")
		return func(ctx context.Context, s *session, _ []string) error {
			if cfg.URL == "" {
				return usagef("--redis URL is missing: which server is to be examined?")
			}
			cfg.Password = s.getenv("KVSTORE_REDIS_PASSWORD")
			checked := cfg
			checked.EnsureDefaults()
			if err := checked.Validate(); err != nil {
				return usagef("--redis: %v", err)
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			findings, err := redislog.Doctor(ctx, cfg)
			if err != nil {
				return err
			}
			return s.showFindings(findings)
		}
	},
}

// errRefused makes the exit code 1; what was found is told already.
var errRefused = errors.New("kvstored does not start on this server")

func (s *session) showFindings(findings []redislog.Finding) error {
	refused := false
	for _, f := range findings {
		refused = refused || f.Level == redislog.Refused
		if s.output == "json" {
			if err := s.jsonLine(map[string]string{"level": f.Level.String(), "server": f.Server, "what": f.What, "means": f.Means}); err != nil {
				return err
			}
			continue
		}
		s.say("%-8s %s\n", f.Level, f.String())
	}
	if refused {
		return errRefused
	}
	if len(findings) == 0 && s.output != "json" {
		fmt.Fprintln(s.stdout, "nothing to find fault with: what this server has acknowledged survives its crash")
	}
	return nil
}
