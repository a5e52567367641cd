// Command etcdd is etcd's own server, built from its module, so that the peer runs from source at a pinned version.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
