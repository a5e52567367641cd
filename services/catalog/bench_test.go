package catalog_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host/memhost"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	"kvstore/services/catalog"
	"kvstore/services/frontend"
)

// BenchmarkRevision is what every request of a frontend costs at the directory: of its own process, and of another.
func BenchmarkRevision(b *testing.B) {
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer engine.Close()
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := memhost.New(store, memhost.Config{Address: "a"})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close(context.Background(), false)
	k, err := keeper.Open(b.Context(), store, h, h, keeper.Config{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := catalog.NewServer(k, catalog.ServerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	listener, srv := bufconn.Listen(1<<16), grpc.NewServer()
	s.Register(srv)
	go func() { _ = srv.Serve(listener) }()
	defer srv.Stop()
	client, err := catalog.NewClient(static("a"), catalog.ClientConfig{
		Dial: func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); client.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for name, d := range map[string]frontend.Directory{"local": catalog.Local{Keeper: k}, "client": client} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Revision(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
