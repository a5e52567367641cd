// Command kvstored is the KVStore server.
//
//	kvstored -data-dir ./kvstore-data
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"kvstore/services/node"
)

// version is set by the linker.
var version = "dev"

func main() {
	if len(os.Args) < 2 || os.Args[1] != "healthcheck" && os.Args[1] != "pause" {
		relaxTimers() // first: it begins anew
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// envRedisPassword may hold the password of -redis-url, which other processes could see on the command line.
const envRedisPassword = "KVSTORE_REDIS_PASSWORD"

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "healthcheck":
			return healthcheck(ctx, args[1:], stdout, stderr)
		case "pause":
			return pause(ctx, args[1:], stderr)
		}
	}
	cfg, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "kvstored: %v\nRun kvstored -h for help.\n", err)
		return exitUsage
	}
	tuneCollector()
	n, err := node.New(cfg)
	if err != nil {
		fmt.Fprintf(stderr, "kvstored: %v\n", err)
		return exitError
	}
	if err := n.Run(ctx); err != nil {
		cfg.Log.Error("ended", "error", err)
		return exitError
	}
	return exitOK
}

// tuneCollector sets the garbage collector up for a heap of many small objects that live long. GOGC and GOMEMLIMIT have the last word.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(node.CollectorPercent)
	}
	if limit := node.CollectorLimit(); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
}

// parse reads the flags. An error is one of usage.
func parse(args []string, stderr io.Writer) (node.Config, error) {
	cfg := node.Config{Version: version}
	f := flag.NewFlagSet("kvstored", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&cfg.Target, "target", "all", "which `parts` run in this process: "+targets())
	f.StringVar(&cfg.Cluster.DataListen, "data-listen", "", "`address` where a shard target serves frontends and other hosts (default "+node.DoorDataPlane.Loopback(0)+" for instance 0)")
	f.StringVar(&cfg.Cluster.DataAddress, "data-address", "", "`address` where others reach -data-listen, if that is another")
	f.StringVar(&cfg.Cluster.DaprGRPC, "dapr-grpc", "", "`address` of the gRPC API of this process's daprd, for targets of a cluster (default 127.0.0.1 at the port in DAPR_GRPC_PORT, or 50001); its token is taken from DAPR_API_TOKEN")
	f.BoolVar(&cfg.Cluster.DaprInvoke, "dapr-invoke", false, "let requests travel by Dapr where a host's data port cannot be reached; whoever may call actors of the Dapr namespace can then do everything")
	f.StringVar(&cfg.Engine, "engine", "", "the `kind` of store: disk (default), redis, or memory (nothing survives the process)")
	f.StringVar(&cfg.DataDir, "data-dir", "kvstore-data", "data `directory` of engine disk, made if it is not there; one process at a time has it")
	f.StringVar(&cfg.Redis.URL, "redis-url", "", "`URL` of the Redis 7 of engine redis: redis://[user@]host:port[/database], or rediss:// for TLS")
	f.StringVar(&cfg.Redis.PasswordFile, "redis-password-file", "", "`file` with the password of -redis-url; or set "+envRedisPassword)
	f.StringVar(&cfg.Redis.CAFile, "redis-ca-file", "", "`file` with the certificates that a rediss:// server is verified with (default the system's)")
	f.BoolVar(&cfg.Redis.Cluster, "redis-cluster", false, "-redis-url names a node of a Redis Cluster")
	f.StringVar(&cfg.Redis.Sentinel, "redis-sentinel", "", "-redis-url names a Sentinel; this is the `name` of the master there")
	f.StringVar(&cfg.Redis.Prefix, "redis-prefix", "", "what the `name` of every key begins with (default kvstore)")
	f.BoolVar(&cfg.Redis.Relaxed, "redis-relaxed", false, "this Redis may lose acknowledged writes (kvctl doctor says which): do not warn")
	f.IntVar(&cfg.Instance, "instance", 0, fmt.Sprintf("shifts the default ports by this `number`, 0 to %d, for several servers on one machine", node.MaxInstance))
	f.StringVar(&cfg.GRPCListen, "grpc-listen", "", "`address` of the gRPC API; port 0 takes any (default "+node.DoorGRPC.Loopback(0)+" for instance 0)")
	f.StringVar(&cfg.RESTListen, "rest-listen", "", "`address` of REST; port 0 takes any, off opens none (default "+node.DoorREST.Loopback(0)+" for instance 0)")
	f.StringVar(&cfg.AdminListen, "admin-listen", "", "`address` of /livez, /readyz and /metrics (default "+node.DoorAdmin.Loopback(0)+" for instance 0)")
	f.StringVar(&cfg.RESPListen, "resp-listen", "", "`address` for Redis's protocol, such as "+node.DoorRESP.Loopback(0)+"; port 0 takes any (default: none). Where tokens are wanted, AUTH takes the keyspace as user and a token as password")
	databases := f.String("resp-namespaces", "", "`names` with commas: the namespaces that SELECT 0, 1, ... means there (default \"default\" alone)")
	f.StringVar(&cfg.Access.TLS.Cert, "tls-cert", "", "`file` with the server's certificate (PEM): TLS 1.3 on the gRPC API, REST, RESP and the admin port; followed without a restart, as all files of doors")
	f.StringVar(&cfg.Access.TLS.Key, "tls-key", "", "`file` with its key")
	f.StringVar(&cfg.Access.TLS.ClientCA, "tls-client-ca", "", "`file` with the CAs (PEM) whose client certificates are accepted")
	f.BoolVar(&cfg.Access.TLS.RequireClient, "tls-client-required", false, "refuse clients without a certificate of -tls-client-ca; without -tokens such a certificate may do everything")
	f.StringVar(&cfg.Access.Tokens, "tokens", "", "`file` with tokens and what they may do (kvctl token new makes lines for it): every call needs one, on loopback too")
	f.StringVar(&cfg.Access.Peers.Cert, "peer-cert", "", "`file` with this process's certificate for the data plane, where both sides prove who they are")
	f.StringVar(&cfg.Access.Peers.Key, "peer-key", "", "`file` with its key")
	f.StringVar(&cfg.Access.Peers.CA, "peer-ca", "", "`file` with the CAs of our own processes")
	peers := f.String("peer-names", "", "`names` with commas, one of which a peer's certificate must have: DNS names (*. for one label) or URIs")
	f.BoolVar(&cfg.Insecure, "insecure", false, "open doors to other machines without TLS, or without a way to know who comes")
	f.StringVar(&cfg.AddressFile, "address-file", "", "`file` to write the addresses to, as JSON, once the server serves")
	f.Int64Var(&cfg.MaxValueBytes, "max-value-bytes", 16<<20, "largest value of a key in `bytes`, up to 512 MiB")
	f.Int64Var(&cfg.ClientRate, "client-rate", 0, "most `operations` a second of one client: whoever has one token or, without tokens, one address; what is more is RATE_LIMITED (0 = no limit). That of a namespace is its own: kvctl namespace update NAME --rate")
	f.IntVar(&cfg.DefaultShards, "shards", 0, "`number` of shards of the first keyspace, fixed when the store is made (default 4; 64 in a cluster)")
	f.Int64Var(&cfg.MemoryBudget, "memory-budget", 0, "`bytes` that keys and small values may take in memory; 0 = two fifths of the machine's, -1 = no limit")
	f.Int64Var(&cfg.ReserveBytes, "reserve-bytes", 0, "free `bytes` (of the disk; below the maxmemory of a Redis) at which writes stop and reads go on; 0 = 256 MiB or 1 % of the disk, a 16th of maxmemory; -1 = none")
	f.Int64Var(&cfg.SegmentBytes, "segment-bytes", 0, "length of a log segment in `bytes`; 0 = 64 MiB")
	f.Int64Var(&cfg.CheckpointBytes, "checkpoint-bytes", 0, "`bytes` of log that a shard gathers before a checkpoint; 0 = 24 MiB, in a cluster 128 MiB over the shards of the first keyspace")
	f.DurationVar(&cfg.IdleAfter, "idle-after", 0, "`time` after which a shard that nobody uses gives its memory back until it is used again; negative = never (default 30m)")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", 0, "`time` that a stop may take, half of it for calls under way, which are then cut off (default 20s)")
	f.StringVar(&cfg.Traces.Endpoint, "otlp-endpoint", "", "`URL` of an OpenTelemetry collector (OTLP over gRPC) that gets traces: https://host:port, or http:// on this machine; the environment variables OTEL_* count too (default: no traces)")
	f.BoolVar(&cfg.Traces.Plain, "otlp-insecure", false, "let traces leave this machine without TLS")
	cfg.Traces.Sample = -1
	f.Func("trace-sample", "`part` of the requests that is traced, 0 to 1, of those whose clients do not say (default 0.01)", func(text string) (err error) {
		if cfg.Traces.Sample, err = strconv.ParseFloat(text, 64); err != nil || !(cfg.Traces.Sample >= 0 && cfg.Traces.Sample <= 1) {
			return errors.New("must be a number from 0 to 1")
		}
		return nil
	})
	format := f.String("log-format", "text", "`format` of the log on stderr: text or json")
	level := f.String("log-level", "info", "least `level` that is logged: debug, info, warn or error")
	f.Usage = func() {} // an unknown flag needs one line, not all of them
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(f, stderr)
		}
		return cfg, err
	}
	if f.NArg() > 0 {
		return cfg, fmt.Errorf("%q is no flag; kvstored takes nothing else (but healthcheck and pause, as its first word)", f.Arg(0))
	}
	if *peers != "" {
		cfg.Access.Peers.Names = strings.Split(*peers, ",")
	}
	if *databases != "" {
		cfg.RESPDatabases = strings.Split(*databases, ",")
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	disk := cfg.Engine == node.EngineDisk || cfg.Engine == "" && cfg.Target == "all"
	if !disk && !given["data-dir"] {
		cfg.DataDir = ""
	}
	cfg.Redis.Password = os.Getenv(envRedisPassword)
	var err error
	if cfg.Log, err = logger(stderr, *format, *level); err != nil {
		return cfg, err
	}
	if terminal(stderr) {
		cfg.Progress = stderr
	}
	checked := cfg
	checked.EnsureDefaults()
	return cfg, checked.Validate()
}

func targets() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(node.Targets)) {
		all = append(all, name+" ("+node.Targets[name].About+")")
	}
	return strings.Join(all, ", ")
}

func logger(out io.Writer, format, level string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("-log-level is %q: it may be debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), nil
	}
	return nil, fmt.Errorf("-log-format is %q: it may be text or json", format)
}

// terminal tells whether a person may be looking.
func terminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func usage(f *flag.FlagSet, out io.Writer) {
	fmt.Fprint(out, `kvstored is a durable key-value store and prompt cache.

  kvstored                                       serve ./kvstore-data on 127.0.0.1:8085
  kvstored -data-dir /var/lib/kvstore            ... another directory
  kvstored -resp-listen 127.0.0.1:6380           ... and serve Redis's protocol: redis-cli -p 6380
  kvstored -engine memory -grpc-listen 127.0.0.1:0 -address-file addr.json
                                                 a throw-away server for tests
  kvstored -engine redis -redis-url redis://127.0.0.1:6379
                                                 store in a Redis 7 that syncs every write (appendfsync always)
  kvstored -target shard -engine redis -redis-url redis://127.0.0.1:6379 -dapr-grpc 127.0.0.1:50001
  kvstored -target frontend -dapr-grpc 127.0.0.1:50002
                                                 parts of a cluster, each beside a daprd (make up starts one)

Try it with kvctl, from another terminal:

  kvctl put greeting hello && kvctl get greeting

A signal (Ctrl-C, SIGTERM) ends it in order; kill -9 loses nothing that was acknowledged.
/livez, /readyz and /metrics on the admin port tell how it is; kvstored healthcheck asks, for containers.

On loopback it needs no credentials, unless -tokens is given. To serve other machines it needs TLS and a way to know who
comes:

  kvctl ca init && kvctl ca issue server --dns kv.example
  kvctl token new app --grant default=write >> tokens    # keep what it says on stderr: the token
  kvstored -grpc-listen 0.0.0.0:8085 -tls-cert server.crt -tls-key server.key -tokens tokens

Flags:
`)
	f.SetOutput(out)
	f.PrintDefaults()
}
