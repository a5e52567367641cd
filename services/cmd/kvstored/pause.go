package main

import (
	"context"
	"fmt"
	"io"
)

// pause does nothing until a signal comes. In docker-compose.yml a server and its Dapr sidecar share the network of a container that
// runs this, so that either can end and start again without the other losing its network: what the pause container is to a pod.
func pause(ctx context.Context, args []string, stderr io.Writer) int {
	if len(args) > 0 {
		fmt.Fprintln(stderr, "kvstored pause takes no arguments: it does nothing until a signal comes, to keep a container's network for others")
		return exitUsage
	}
	<-ctx.Done()
	return exitOK
}
