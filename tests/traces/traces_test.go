package traces

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/actors/directory/keeper"
	"kvstore/actors/host"
	"kvstore/actors/host/memhost"
	"kvstore/client"
	"kvstore/components/authn"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/services/catalog"
	"kvstore/services/dataplane"
	"kvstore/services/frontend"
	"kvstore/services/node"
	"kvstore/services/telemetry"
)

// runNode runs a store in this process; what it returns stops it, after which all its spans have been sent.
func runNode(t *testing.T, traces telemetry.TraceConfig, log io.Writer) (n *node.Node, stop func()) {
	t.Helper()
	n, err := node.New(node.Config{
		Engine: node.EngineMemory, DefaultShards: 1, GRPCListen: "127.0.0.1:0", RESTListen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", RESPListen: "127.0.0.1:0",
		Traces: traces, Log: slog.New(slog.NewJSONHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	select {
	case <-n.Serving():
	case err := <-ended:
		t.Fatalf("it ended at once: %v", err)
	}
	return n, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, at string, p *sdktrace.TracerProvider) *client.Client {
	t.Helper()
	cfg := client.Config{Endpoints: []string{at}}
	if p != nil {
		cfg.TracerProvider = p
	}
	c, err := client.Dial(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneProcess has requests of all faces followed through one process, over TLS to the collector: those of a client that follows are parts of his
// traces, those of one who does not follow are left alone, and others begin traces of their own.
func TestOneProcess(t *testing.T) {
	c := newCollector(t, true)
	n, stop := runNode(t, telemetry.TraceConfig{Endpoint: c.url, Sample: 1}, io.Discard)
	ctx := within(t)

	follows := c.client(sdktrace.AlwaysSample())
	shop := dial(t, n.GRPCAddr(), follows)
	_, err := shop.Put(ctx, "secret-key", []byte("secret-value"), nil)
	must(t, err)
	_, err = shop.Get(ctx, "secret-key", nil)
	must(t, err)
	if _, err := shop.Put(ctx, "secret-key", []byte("secret-value"), &client.PutOptions{If: client.IfAbsent()}); err == nil {
		t.Fatal("it was there")
	}
	for _, err := range shop.List(ctx, &client.ListOptions{Prefix: "secret"}) {
		must(t, err)
	}
	_, err = shop.BatchPut(ctx, []client.PutItem{{Key: "secret-1", Value: []byte("secret-value")}, {Key: "secret-2", Value: []byte("secret-value")}})
	must(t, err)
	must(t, shop.Close())
	must(t, follows.Shutdown(ctx))

	silent := c.client(sdktrace.NeverSample())
	quiet := dial(t, n.GRPCAddr(), silent)
	_, err = quiet.Put(ctx, "secret-quiet", []byte("secret-value"), nil)
	must(t, err)
	must(t, quiet.Close())
	must(t, silent.Shutdown(ctx))

	conn, err := grpc.NewClient(n.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	_, err = kvv1.NewKVServiceClient(conn).Put(ctx, &kvv1.PutRequest{Put: &kvv1.PutOp{Key: []byte("secret-grpc"), Value: []byte("secret-value")}})
	must(t, err)
	must(t, conn.Close())

	const traceID = "0af7651916cd43dd8448eb211c80319c"
	for _, parent := range []string{"00-" + traceID + "-b7ad6b7169203331-01", "00-" + traceID + "-b7ad6b7169203331-00", ""} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+n.RESTAddr()+"/api/v1/keys/secret-rest", strings.NewReader("secret-value"))
		must(t, err)
		if parent != "" {
			req.Header.Set("traceparent", parent)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
			t.Fatal(resp.Status)
		}
		must(t, resp.Body.Close())
	}
	talk(t, n.RESPAddr(), "SET secret-resp secret-value\r\nGET secret-resp\r\nINCR secret-resp\r\n", "+OK\r\n$12\r\nsecret-value\r\n-ERR value is not an integer or out of range\r\n")
	http.DefaultClient.CloseIdleConnections()
	stop()

	same(t, c.paths(), []string{
		"shop:kvstore.connect", "shop:kvstore.connect > all:kvstore.v1.AdminService/Status",
		"shop:kvstore.put", "shop:kvstore.put > all:pipeline put", "shop:kvstore.put > all:pipeline put > all:shard put", "shop:kvstore.put > all:pipeline put > all:shard put > all:append",
		"shop:kvstore.put", "shop:kvstore.put > all:pipeline put", "shop:kvstore.put > all:pipeline put > all:shard put",
		"shop:kvstore.put > all:pipeline put > all:shard put > all:append", // of what failed, which is remembered
		"shop:kvstore.get", "shop:kvstore.get > all:pipeline get", "shop:kvstore.get > all:pipeline get > all:shard get",
		"shop:kvstore.list", "shop:kvstore.list > all:kvstore.v1.KVService/List", "shop:kvstore.list > all:kvstore.v1.KVService/List > all:shard list",
		"shop:kvstore.batch_put", "shop:kvstore.batch_put > all:kvstore.v1.KVService/BatchPut", "shop:kvstore.batch_put > all:kvstore.v1.KVService/BatchPut > all:shard put",
		"shop:kvstore.batch_put > all:kvstore.v1.KVService/BatchPut > all:shard put > all:append",
		"all:kvstore.v1.KVService/Put", "all:kvstore.v1.KVService/Put > all:shard put", "all:kvstore.v1.KVService/Put > all:shard put > all:append",
		"? > all:rest put_key", "? > all:rest put_key > all:shard put", "? > all:rest put_key > all:shard put > all:append",
		"all:rest put_key", "all:rest put_key > all:shard put", "all:rest put_key > all:shard put > all:append",
		"all:resp set", "all:resp set > all:shard put", "all:resp set > all:shard put > all:append",
		"all:resp get", "all:resp get > all:shard get", "all:resp incr", "all:resp incr > all:shard edit",
	})
	c.holdsNo("secret")
	var failed int
	for _, s := range c.find("pipeline put") {
		if got := value(s.Attributes, "kvstore.namespace"); got != "default" {
			t.Errorf("namespace %q", got)
		}
		if s.Status.GetMessage() == "ALREADY_EXISTS" || s.Status.GetMessage() == "VERSION_MISMATCH" {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d puts are told to have failed, want 1", failed)
	}
	for _, s := range c.find("append") {
		if got := value(s.Attributes, "kvstore.engine"); got != "memory" || number(s.Attributes, "kvstore.commit.commands") < 1 || number(s.Attributes, "kvstore.commit.bytes") < 1 {
			t.Errorf("an append is %v", s.Attributes)
		}
		if s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Error("it ended before it began")
		}
	}
}

// talk sends bytes and reads exactly an answer.
func talk(t *testing.T, at, send, want string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", at, patience)
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, send)
	must(t, err)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(bufio.NewReader(conn), got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q", got[:n], err, want)
	}
}

// place is where all shards are.
type place string

func (p place) Locate(context.Context, string) (host.Location, error) {
	return host.Location{Address: string(p)}, nil
}

// TestFrontendAndHost has requests followed from a client through a frontend and, over the data plane, a host of shards in another place: one trace.
func TestFrontendAndHost(t *testing.T) {
	c := newCollector(t, false)
	ctx := within(t)
	log := slog.New(slog.DiscardHandler)
	parts := map[string]*telemetry.Traces{}
	for _, target := range []string{"frontend", "shard"} {
		traces, err := telemetry.New(telemetry.Info{Target: target, Engine: "memory"}).OpenTraces(ctx, telemetry.TraceConfig{Endpoint: c.url}, log)
		must(t, err)
		parts[target] = traces
	}
	engine, err := memlog.New(memlog.Config{})
	must(t, err)
	store, err := wal.NewStore(engine, wal.Config{})
	must(t, err)
	shards, err := memhost.New(store, memhost.Config{Events: memhost.Events{Followed: parts["shard"].Followed()}})
	must(t, err)
	dir, err := keeper.New(shards, shards, keeper.Config{DefaultShards: 1})
	must(t, err)
	shards.RememberWith(dir)
	must(t, dir.Begin(ctx, store))

	plane := dataplane.NewServer(shards, dataplane.ServerConfig{})
	hosts := grpc.NewServer(dataplane.ServerOptions(nil)...)
	plane.Register(hosts)
	at, served := serve(t, hosts)
	way, err := dataplane.NewClient(dataplane.ClientConfig{Locator: place(at), Tracer: parts["frontend"].Tracer()})
	must(t, err)
	front, err := frontend.New(frontend.Config{Access: authn.Anyone, Tracer: parts["frontend"].Tracer()}, way, catalog.Local{Keeper: dir})
	must(t, err)
	users := grpc.NewServer(front.Options()...)
	front.Register(users)
	door, userServed := serve(t, users)

	follows := c.client(sdktrace.AlwaysSample())
	shop := dial(t, door, follows)
	_, err = shop.Put(ctx, "secret-key", []byte("secret-value"), nil)
	must(t, err)
	_, err = shop.Get(ctx, "secret-key", nil)
	must(t, err)
	for _, err := range shop.List(ctx, nil) {
		must(t, err)
	}
	must(t, shop.Close())
	must(t, follows.Shutdown(ctx))
	nobody := dial(t, door, nil) // the frontend's part is 0
	_, err = nobody.Put(ctx, "secret-key", []byte("secret-value"), nil)
	must(t, err)
	must(t, nobody.Close())

	front.Stop()
	users.Stop()
	must(t, <-userServed)
	way.Close()
	plane.Stop()
	hosts.Stop()
	must(t, <-served)
	plane.Close()
	must(t, shards.Close(ctx, false))
	must(t, engine.Close())
	for _, p := range parts {
		must(t, p.Close(ctx))
	}

	const put, get, list = "shop:kvstore.put > frontend:pipeline put", "shop:kvstore.get > frontend:pipeline get", "shop:kvstore.list > frontend:kvstore.v1.KVService/List"
	same(t, c.paths(), []string{
		"shop:kvstore.connect", "shop:kvstore.connect > frontend:kvstore.v1.AdminService/Status",
		"shop:kvstore.put", put, put + " > frontend:exchange", put + " > frontend:exchange > shard:shard put", put + " > frontend:exchange > shard:shard put > shard:append",
		"shop:kvstore.get", get, get + " > frontend:exchange", get + " > frontend:exchange > shard:shard get",
		"shop:kvstore.list", list, list + " > frontend:exchange", list + " > frontend:exchange > shard:shard list",
	})
	c.holdsNo("secret")
}

func serve(t *testing.T, srv *grpc.Server) (at string, served chan error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served = make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	return lis.Addr().String(), served
}

// TestCollectorIsAway: requests are served as ever when nobody takes the spans, and the log says so once, without a password.
func TestCollectorIsAway(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	at := lis.Addr().String()
	must(t, lis.Close())
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "200")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer hunter2")
	var log bytes.Buffer
	n, stop := runNode(t, telemetry.TraceConfig{Endpoint: "http://" + at, Sample: 1}, &log)
	c := dial(t, n.GRPCAddr(), nil)
	for range 100 {
		_, err := c.Put(within(t), "key", []byte("value"), nil)
		must(t, err)
	}
	must(t, c.Close())
	stop()
	if got := strings.Count(log.String(), "does not take spans"); got != 1 {
		t.Errorf("the log says so %d times:\n%s", got, log.String())
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log tells the password for the collector:\n%s", log.String())
	}
}
