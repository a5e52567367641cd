package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// simple makes a setup of a command without flags of its own.
func simple(do func(ctx context.Context, s *session, args []string) error) func(*flag.FlagSet) func(context.Context, *session, []string) error {
	return func(*flag.FlagSet) func(context.Context, *session, []string) error { return do }
}

var kinds = map[string]kvstorev1.NamespaceKind{
	"kv":     kvstorev1.NamespaceKind_NAMESPACE_KIND_KV,
	"prompt": kvstorev1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	"tree":   kvstorev1.NamespaceKind_NAMESPACE_KIND_TREE,
	"cache":  kvstorev1.NamespaceKind_NAMESPACE_KIND_CACHE,
}

func kindText(k kvstorev1.NamespaceKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "NAMESPACE_KIND_"))
}

var namespaceLsCommand = command{
	short: "list the namespaces of a keyspace",
	help: `  kvctl namespace ls --keyspace tenant1
  kvctl namespace ls -o raw            names alone`,
	setup: simple(func(ctx context.Context, s *session, _ []string) error {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		all, err := c.ListNamespaces(ctx)
		if err != nil {
			return err
		}
		return s.showNamespaces(all...)
	}),
}

var namespaceGetCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeNamespaces,
	short: "show one namespace",
	help:  `  kvctl namespace get prompts -o json`,
	setup: simple(func(ctx context.Context, s *session, args []string) error {
		c, err := s.connect(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		ns, err := c.GetNamespace(ctx, args[0])
		if err != nil {
			return err
		}
		return s.showNamespaces(ns)
	}),
}

var namespaceCreateCommand = command{
	args: "NAME", min: 1, max: 1,
	short: "make a namespace",
	help: `Kind and partition rule are fixed for good. The partition of a key decides which keys share transactions.

  kvctl namespace create orders
  kvctl namespace create prompts --kind prompt --capacity-blocks 1000000
  kvctl namespace create tree --partition elements:2      the first two elements of a/b/c
  kvctl namespace create small --partition namespace      all keys in one partition`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		kind := fs.String("kind", "kv", "what it holds: kv, prompt, or cache: kv whose failed reads RESP answers as misses")
		partition := fs.String("partition", "tag", "`rule`: tag (the {...} of a key, else all of it), elements:N, or namespace")
		lim := limitFlags(fs)
		return func(ctx context.Context, s *session, args []string) error {
			ns := &kvstorev1.Namespace{Keyspace: s.keyspace, Name: args[0]}
			var ok bool
			if ns.Kind, ok = kinds[*kind]; !ok {
				return usagef("--kind %s: want kv, cache or prompt", *kind)
			}
			var err error
			if ns.Partition, err = parsePartition(*partition); err != nil {
				return err
			}
			if _, err := lim.apply(fs, ns); err != nil {
				return err
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			made, err := c.CreateNamespace(ctx, ns)
			if err != nil {
				return err
			}
			return s.showNamespaces(made)
		}
	},
}

var namespaceUpdateCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeNamespaces,
	short: "change the limits of a namespace",
	help: `Only the flags given are changed.

  kvctl namespace update prompts --capacity-blocks 2000000
  kvctl namespace update sessions --default-ttl 24h --if-version 3
  kvctl namespace update batch --rate 5000                 operations a second of each server; the rest is RATE_LIMITED`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		lim := limitFlags(fs)
		version := fs.Uint64("if-version", 0, "only when the namespace has this `version`")
		return func(ctx context.Context, s *session, args []string) error {
			ns := &kvstorev1.Namespace{Keyspace: s.keyspace, Name: args[0], Version: *version}
			fields, err := lim.apply(fs, ns)
			if err != nil {
				return err
			}
			if len(fields) == 0 {
				return usagef("namespace update: nothing to change; give --capacity-blocks, --capacity-bytes, --default-ttl or --rate")
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			now, err := c.UpdateNamespace(ctx, ns, fields...)
			if err != nil {
				return err
			}
			return s.showNamespaces(now)
		}
	},
}

var namespaceRmCommand = command{
	args: "NAME", min: 1, max: 1, complete: completeNamespaces,
	short: "remove a namespace with all its data",
	help: `Asks for the name once more, by --confirm.

  kvctl namespace rm orders --confirm orders`,
	setup: func(fs *flag.FlagSet) func(context.Context, *session, []string) error {
		confirm := fs.String("confirm", "", "the `name` once more")
		return func(ctx context.Context, s *session, args []string) error {
			if *confirm != args[0] {
				return usagef("this deletes all data of namespace %s: confirm it with --confirm %[1]s", args[0])
			}
			c, err := s.connect(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := s.limited(ctx)
			defer cancel()
			if err := c.DeleteNamespace(ctx, args[0], *confirm); err != nil {
				return err
			}
			return s.removed("namespace", args[0])
		}
	},
}

func (s *session) removed(what, name string) error {
	if s.output == "json" {
		return s.json(map[string]string{"deleted": name})
	}
	s.say("deleted %s %s\n", what, name)
	return nil
}

// limits are what a namespace may change.
type limits struct {
	blocks int64
	bytes  size
	ttl    time.Duration
	rate   int64
}

func limitFlags(fs *flag.FlagSet) *limits {
	l := new(limits)
	fs.Int64Var(&l.blocks, "capacity-blocks", 0, "kind prompt: most blocks kept; 0 = no limit")
	fs.Var(&l.bytes, "capacity-bytes", "kind prompt: most `bytes` kept, such as 64GiB; 0 = no limit")
	fs.DurationVar(&l.ttl, "default-ttl", 0, "`time` to live of writes that name none; 0 = for ever")
	fs.Int64Var(&l.rate, "rate", 0, "most operations a `second` that each server lets through; 0 = no limit")
	return l
}

// apply sets the limits whose flags were given, and names their fields.
func (l *limits) apply(fs *flag.FlagSet, ns *kvstorev1.Namespace) (fields []string, err error) {
	if l.blocks < 0 || l.ttl < 0 || l.rate < 0 {
		return nil, usagef("limits are not negative")
	}
	fs.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "capacity-blocks":
			ns.CapacityBlocks, fields = l.blocks, append(fields, "capacity_blocks")
		case "capacity-bytes":
			ns.CapacityBytes, fields = int64(l.bytes), append(fields, "capacity_bytes")
		case "default-ttl":
			ns.DefaultTtlMs, fields = l.ttl.Milliseconds(), append(fields, "default_ttl_ms")
		case "rate":
			ns.OpsPerSecond, fields = l.rate, append(fields, "ops_per_second")
		}
	})
	return fields, nil
}

func parsePartition(rule string) (*kvstorev1.PartitionRule, error) {
	switch {
	case rule == "tag":
		return &kvstorev1.PartitionRule{Rule: &kvstorev1.PartitionRule_HashTag{HashTag: true}}, nil
	case rule == "namespace":
		return &kvstorev1.PartitionRule{Rule: &kvstorev1.PartitionRule_Namespace{Namespace: true}}, nil
	case strings.HasPrefix(rule, "elements:"):
		var n int32
		if _, err := fmt.Sscanf(rule, "elements:%d", &n); err == nil && n > 0 {
			return &kvstorev1.PartitionRule{Rule: &kvstorev1.PartitionRule_PathElements{PathElements: n}}, nil
		}
	}
	return nil, usagef("--partition %s: want tag, elements:N or namespace", rule)
}

func partitionText(p *kvstorev1.PartitionRule) string {
	switch r := p.GetRule().(type) {
	case *kvstorev1.PartitionRule_PathElements:
		return fmt.Sprintf("elements:%d", r.PathElements)
	case *kvstorev1.PartitionRule_Namespace:
		return "namespace"
	}
	return "tag"
}

func (s *session) showNamespaces(all ...*kvstorev1.Namespace) error {
	var rows [][]string
	for _, ns := range all {
		switch s.output {
		case "json":
			if err := s.protoJSON(ns); err != nil {
				return err
			}
			continue
		case "raw":
			fmt.Fprintln(s.stdout, ns.Name)
			continue
		}
		limit := "-"
		if ns.CapacityBlocks > 0 {
			limit = fmt.Sprintf("%d blocks", ns.CapacityBlocks)
		}
		if ns.CapacityBytes > 0 {
			limit = strings.TrimPrefix(limit+" and "+bytesText(ns.CapacityBytes), "- and ")
		}
		ttl := "-"
		if ns.DefaultTtlMs > 0 {
			ttl = (time.Duration(ns.DefaultTtlMs) * time.Millisecond).String()
		}
		rate := "-"
		if ns.OpsPerSecond > 0 {
			rate = fmt.Sprintf("%d/s", ns.OpsPerSecond)
		}
		rows = append(rows, []string{
			ns.Name, kindText(ns.Kind), partitionText(ns.Partition), limit, ttl, rate, timeMS(ns.CreatedMs), fmt.Sprint(ns.Version),
		})
	}
	if s.output != "json" && s.output != "raw" {
		s.table([]string{"NAMESPACE", "KIND", "PARTITION", "CAPACITY", "TTL", "RATE", "CREATED", "VERSION"}, rows)
	}
	return nil
}

// protoJSON prints a message of the API as one line of JSON, with the API's field names.
func (s *session) protoJSON(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = s.jsonTo(s.stdout).Write(append(b, '\n'))
	return err
}
