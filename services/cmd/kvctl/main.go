// Command kvctl is KVStore on the command line: keys and values, transactions, namespaces, the prompt cache, status, and
// measurements. "kvctl help" tells how; what it says is tested.
//
// It is a client like any other: it starts no server and opens no data directory.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C is not waited for
	code := run(ctx, system{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv,
		width: terminalWidth(os.Stdout), errWidth: terminalWidth(os.Stderr),
	}, os.Args[1:])
	stop()
	os.Exit(code)
}
