// Package dataplane is the way between frontends and hosts of shards, which live in different processes: a Server on each host, and a
// Client in each frontend that satisfies frontend.Shards. Calls to all shards of a host share one stream, gather while a frame of it is
// being written, and are answered in any order; values over 256 KiB have streams of their own. DESIGN.md has the protocol, what is
// repeated and what is not, and the bounds.
//
// It does not place shards: where they are is told by a Locator, which asks Dapr. It does not open listeners, and trusts whoever gets
// through the TLS that it is given.
//
//	srv := dataplane.NewServer(host, dataplane.ServerConfig{})
//	g := grpc.NewServer(dataplane.ServerOptions(tlsConfig)...)
//	srv.Register(g)
//
//	shards, err := dataplane.NewClient(dataplane.ClientConfig{Locator: locator, TLS: tlsConfig})
//	front, err := frontend.New(frontend.Config{}, shards, directory)
package dataplane

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Limits of the protocol. Each is answered as DESIGN.md says.
const (
	// protocolVersion is what Hello says.
	protocolVersion = 1

	// maxFrame is what a frame may be to take one more call or outcome; one alone may be more.
	maxFrame = 256 << 10
	// maxMessage is the largest message: one command of the largest kind (8 MiB of a transaction, 65,536 references) with room to spare.
	maxMessage = 16 << 20
	// maxInline is how many bytes of values go over an Exchange in one call, and how long chunks are on other streams.
	maxInline = 256 << 10

	// maxCalls and maxBytes bound what a client has under way to one host, and what it keeps for shards that it looks for.
	maxCalls = 32 << 10
	maxBytes = 64 << 20
	// What a server takes of one stream before it stops reading is more than a client sends.
	maxServerCalls = 2 * maxCalls
	maxServerBytes = 2 * maxBytes
	// maxRoutes bounds the shards that one stream has names for.
	maxRoutes = 64 << 10
	// maxWorkers bounds the goroutines of a stream that wait: for disks, for shards being opened, for long scans.
	maxWorkers = 64
	// maxProvisional bounds the references of a stream that no command has named.
	maxProvisional = 64 << 10

	// Windows of HTTP/2. Fixed, so that gRPC sends no pings to measure what they should be.
	streamWindow     = 4 << 20
	connectionWindow = 16 << 20
)

// helloTimeout bounds how long a stream may say nothing before it says Hello.
const helloTimeout = 5 * time.Second

// keepaliveServer finds clients that are gone without a word.
var keepaliveServer = []grpc.ServerOption{
	grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
}
