package frontend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"kvstore/actors/host/memhost"
	"kvstore/components/authn"
	"kvstore/components/kverr"
	"kvstore/components/ring"
	"kvstore/components/vtcodec"
	"kvstore/components/wal"
	"kvstore/components/wal/memlog"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// rig is a frontend on real shards in memory, and a client of it.
type rig struct {
	Server *Server
	Host   *memhost.Host
	Dir    *plainDirectory
	KV     kvv1.KVServiceClient
	Admin  kvv1.AdminServiceClient
	Conn   *grpc.ClientConn
}

const testTimeout = time.Minute

func testContext(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	tb.Cleanup(cancel)
	return ctx
}

// newRig starts one. wrap, when not nil, may put itself between the frontend and its shards.
func newRig(tb testing.TB, cfg Config, wrap func(Shards) Shards) *rig {
	tb.Helper()
	engine, err := memlog.New(memlog.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	store, err := wal.NewStore(engine, wal.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	host, err := memhost.New(store, memhost.Config{Address: "first"})
	if err != nil {
		tb.Fatal(err)
	}
	r := &rig{Host: host, Dir: &plainDirectory{host: host}}
	if cfg.Access == nil {
		cfg.Access = authn.Anyone
	}
	var shards Shards = host
	leave := func() {}
	if remote {
		shards, leave = overDataPlane(tb, store, host)
	}
	if wrap != nil {
		shards = wrap(shards)
	}
	if r.Server, err = New(cfg, shards, r.Dir); err != nil {
		tb.Fatal(err)
	}
	ctx := testContext(tb)
	if _, err := r.Dir.CreateKeyspace(ctx, &kvv1.Keyspace{Name: DefaultName, Shards: 4}); err != nil {
		tb.Fatal(err)
	}
	for _, ns := range []*kvv1.Namespace{
		{Name: DefaultName, Kind: kvv1.NamespaceKind_NAMESPACE_KIND_KV},
		{Name: "prompts", Kind: kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT},
	} {
		ns.Keyspace = DefaultName
		if _, err := r.Dir.CreateNamespace(ctx, ns); err != nil {
			tb.Fatal(err)
		}
	}
	lis := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(r.Server.Options()...)
	r.Server.Register(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	r.Conn, err = grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(vtcodec.Codec{})))
	if err != nil {
		tb.Fatal(err)
	}
	r.KV, r.Admin = kvv1.NewKVServiceClient(r.Conn), kvv1.NewAdminServiceClient(r.Conn)
	tb.Cleanup(func() {
		_ = r.Conn.Close()
		srv.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a test may be over before Serve began
			tb.Errorf("serve: %v", err)
		}
		leave()
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := host.Close(ctx, false); err != nil {
			tb.Errorf("close the host: %v", err)
		}
		if err := engine.Close(); err != nil {
			tb.Errorf("close the engine: %v", err)
		}
	})
	return r
}

// plainDirectory keeps keyspaces and namespaces in maps.
type plainDirectory struct {
	host *memhost.Host
	mu   sync.Mutex
	snap Snapshot // guarded by mu; what it points to is never changed
}

func (d *plainDirectory) AcceptLoss(_ context.Context, shardID string) (wal.Mark, error) {
	return wal.Mark{Shard: shardID, Epoch: 1, Seq: 2}, nil
}

func (d *plainDirectory) Revision(context.Context) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snap.Revision, nil
}

func (d *plainDirectory) Snapshot(context.Context) (*Snapshot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Snapshot{Revision: d.snap.Revision, Keyspaces: slices.Clone(d.snap.Keyspaces)}, nil
}

func (d *plainDirectory) CreateKeyspace(ctx context.Context, ks *kvv1.Keyspace) (*kvv1.Keyspace, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.find(ks.Name) >= 0 {
		return nil, kverr.New(kverr.AlreadyExists, "", "keyspace %q exists", ks.Name)
	}
	d.snap.Revision++
	made := proto.Clone(ks).(*kvv1.Keyspace)
	if made.Shards == 0 {
		made.Shards = 4
	}
	made.Uid, made.Version = fmt.Sprintf("%016x", d.snap.Revision), d.snap.Revision
	slots, err := ring.New(made.Uid, int(made.Shards))
	if err != nil {
		return nil, err
	}
	for n := range slots.Shards() {
		if err := d.host.Create(ctx, slots.ShardID(n), nil); err != nil {
			return nil, err
		}
	}
	d.snap.Keyspaces = append(slices.Clone(d.snap.Keyspaces), KeyspaceRecord{Keyspace: made, Map: slots})
	return made, nil
}

func (d *plainDirectory) find(keyspace string) int {
	return slices.IndexFunc(d.snap.Keyspaces, func(r KeyspaceRecord) bool { return r.Keyspace.Name == keyspace })
}

func (d *plainDirectory) DeleteKeyspace(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snap.Revision++
	i := d.find(name)
	d.snap.Keyspaces = slices.Delete(slices.Clone(d.snap.Keyspaces), i, i+1)
	return nil
}

// change replaces the namespaces of a keyspace by what f makes of them.
func (d *plainDirectory) change(keyspace string, f func([]*kvv1.Namespace) ([]*kvv1.Namespace, error)) error {
	i := d.find(keyspace)
	if i < 0 {
		return kverr.New(kverr.NotFound, "", "no keyspace %q", keyspace)
	}
	spaces, err := f(slices.Clone(d.snap.Keyspaces[i].Namespaces))
	if err != nil {
		return err
	}
	slices.SortFunc(spaces, func(a, b *kvv1.Namespace) int { return strings.Compare(a.Name, b.Name) })
	d.snap.Keyspaces = slices.Clone(d.snap.Keyspaces)
	d.snap.Keyspaces[i].Namespaces = spaces
	return nil
}

func (d *plainDirectory) CreateNamespace(_ context.Context, ns *kvv1.Namespace) (*kvv1.Namespace, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	made := proto.Clone(ns).(*kvv1.Namespace)
	err := d.change(ns.Keyspace, func(all []*kvv1.Namespace) ([]*kvv1.Namespace, error) {
		if slices.ContainsFunc(all, func(o *kvv1.Namespace) bool { return o.Name == ns.Name }) {
			return nil, kverr.New(kverr.AlreadyExists, "", "namespace %q exists", ns.Name)
		}
		d.snap.Revision++
		made.Uid, made.Version = uint32(d.snap.Revision), d.snap.Revision
		return append(all, made), nil
	})
	return made, err
}

func (d *plainDirectory) UpdateNamespace(_ context.Context, ns *kvv1.Namespace, mask []string) (*kvv1.Namespace, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var now *kvv1.Namespace
	err := d.change(ns.Keyspace, func(all []*kvv1.Namespace) ([]*kvv1.Namespace, error) {
		i := slices.IndexFunc(all, func(o *kvv1.Namespace) bool { return o.Name == ns.Name })
		if ns.Version != 0 && ns.Version != all[i].Version {
			return nil, kverr.Mismatch(all[i].Version)
		}
		d.snap.Revision++
		now = proto.Clone(all[i]).(*kvv1.Namespace)
		now.Version = d.snap.Revision
		for _, path := range mask {
			field := now.ProtoReflect().Descriptor().Fields().ByTextName(path)
			now.ProtoReflect().Set(field, ns.ProtoReflect().Get(field))
		}
		all[i] = now
		return all, nil
	})
	return now, err
}

func (d *plainDirectory) DeleteNamespace(_ context.Context, keyspace, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snap.Revision++
	return d.change(keyspace, func(all []*kvv1.Namespace) ([]*kvv1.Namespace, error) {
		return slices.DeleteFunc(all, func(o *kvv1.Namespace) bool { return o.Name == name }), nil
	})
}
