package main

import (
	"context"
	"flag"
	"fmt"
	"runtime/debug"
)

var versionCommand = command{
	local: true,
	short: "print the version of kvctl",
	help:  `  kvctl version            the server's is in kvctl status`,
	setup: func(*flag.FlagSet) func(context.Context, *session, []string) error {
		return func(_ context.Context, s *session, _ []string) error {
			v, revision, goVersion := "devel", "unknown", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				goVersion = info.GoVersion
				if info.Main.Version != "" && info.Main.Version != "(devel)" {
					v = info.Main.Version
				}
				for _, kv := range info.Settings {
					if kv.Key == "vcs.revision" {
						revision = kv.Value
					}
				}
			}
			if s.output == "json" {
				return s.json(map[string]string{"version": v, "revision": revision, "go": goVersion})
			}
			fmt.Fprintf(s.stdout, "kvctl %s (revision %s, %s)\n", v, revision, goVersion)
			return nil
		}
	},
}
