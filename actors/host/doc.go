// Package host is the loop around an actor's logic (DESIGN D2): it runs one pure Machine on one wal.Log, in one order: append, then let
// outcomes go. No outcome leaves before everything that it depended on is durable, and none leaves an owner that cannot
// show that it is the owner. DESIGN.md beside this file has the order, the gate, and what happens on each failure.
//
// It does not know what machines do, which shards exist, or when they sleep: runtimes (memhost) do, and package values keeps what a
// shard stores apart from its keys.
//
//	a, err := host.Open(ctx, store, "a1b2-0", shard.New(shard.Config{}), host.Config{}, host.Hooks{}, host.OpenOptions{})
//	err = a.Do(cmd)               // cmd is released once it is durable
//	state, err := a.Durable(ctx)  // for a linearizable read
package host
