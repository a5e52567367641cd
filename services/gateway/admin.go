package gateway

import (
	"errors"
	"net/http"
	"strings"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	_ "embed" // the document of the API

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// keyspaceJSON is a keyspace.
type keyspaceJSON struct {
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Shards    int32  `json:"shards"`
	CreatedMS int64  `json:"created_ms"`
	Version   uint64 `json:"version"`
}

func keyspaceOf(k *kvv1.Keyspace) keyspaceJSON {
	return keyspaceJSON{k.GetName(), k.GetUid(), k.GetShards(), k.GetCreatedMs(), k.GetVersion()}
}

// namespaceJSON is a namespace.
type namespaceJSON struct {
	Keyspace       string        `json:"keyspace"`
	Name           string        `json:"name"`
	UID            uint32        `json:"uid"`
	Kind           string        `json:"kind"`
	Partition      partitionJSON `json:"partition"`
	CapacityBlocks int64         `json:"capacity_blocks,omitempty"`
	CapacityBytes  int64         `json:"capacity_bytes,omitempty"`
	DefaultTTLMS   int64         `json:"default_ttl_ms,omitempty"`
	OpsPerSecond   int64         `json:"ops_per_second,omitempty"`
	CreatedMS      int64         `json:"created_ms"`
	Version        uint64        `json:"version"`
}

// partitionJSON is what decides a key's slot: one of the three.
type partitionJSON struct {
	HashTag      bool  `json:"hash_tag,omitempty"`
	PathElements int32 `json:"path_elements,omitempty"`
	Namespace    bool  `json:"namespace,omitempty"`
}

func namespaceOf(n *kvv1.Namespace) namespaceJSON {
	p := n.GetPartition()
	return namespaceJSON{
		Keyspace: n.GetKeyspace(), Name: n.GetName(), UID: n.GetUid(),
		Kind:           strings.ToLower(strings.TrimPrefix(n.GetKind().String(), "NAMESPACE_KIND_")),
		Partition:      partitionJSON{p.GetHashTag(), p.GetPathElements(), p.GetNamespace()},
		CapacityBlocks: n.GetCapacityBlocks(), CapacityBytes: n.GetCapacityBytes(), DefaultTTLMS: n.GetDefaultTtlMs(), OpsPerSecond: n.GetOpsPerSecond(),
		CreatedMS: n.GetCreatedMs(), Version: n.GetVersion(),
	}
}

func (q *request) listKeyspaces() error {
	resp, err := q.g.calls.Admin.ListKeyspaces(q.ctx, &kvv1.ListKeyspacesRequest{})
	if err != nil {
		return err
	}
	out := struct {
		Keyspaces []keyspaceJSON `json:"keyspaces"`
	}{make([]keyspaceJSON, len(resp.Keyspaces))}
	for i, k := range resp.Keyspaces {
		out.Keyspaces[i] = keyspaceOf(k)
	}
	return q.reply(http.StatusOK, out)
}

func (q *request) createKeyspace() error {
	var body struct {
		Name   string `json:"name"`
		Shards int32  `json:"shards"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	resp, err := q.g.calls.Admin.CreateKeyspace(q.ctx, &kvv1.CreateKeyspaceRequest{Keyspace: &kvv1.Keyspace{Name: body.Name, Shards: body.Shards}})
	if err != nil {
		return err
	}
	return q.reply(http.StatusCreated, keyspaceOf(resp.Keyspace))
}

func (q *request) getKeyspace() error {
	resp, err := q.g.calls.Admin.GetKeyspace(q.ctx, &kvv1.GetKeyspaceRequest{Name: q.vars[0]})
	if err != nil {
		return err
	}
	return q.reply(http.StatusOK, keyspaceOf(resp.Keyspace))
}

func (q *request) deleteKeyspace() error {
	_, err := q.g.calls.Admin.DeleteKeyspace(q.ctx, &kvv1.DeleteKeyspaceRequest{Name: q.vars[0], Confirm: q.query.text("confirm")})
	if err != nil {
		return err
	}
	return q.nothing()
}

// nothing answers what has nothing to tell.
func (q *request) nothing() error {
	q.begin(http.StatusNoContent)
	return nil
}

func (q *request) listNamespaces() error {
	resp, err := q.g.calls.Admin.ListNamespaces(q.ctx, &kvv1.ListNamespacesRequest{Keyspace: q.vars[0]})
	if err != nil {
		return err
	}
	out := struct {
		Namespaces []namespaceJSON `json:"namespaces"`
	}{make([]namespaceJSON, len(resp.Namespaces))}
	for i, n := range resp.Namespaces {
		out.Namespaces[i] = namespaceOf(n)
	}
	return q.reply(http.StatusOK, out)
}

// kinds are the kinds of namespaces by their names. Which of them are served the frontend says.
var kinds = map[string]kvv1.NamespaceKind{
	"": kvv1.NamespaceKind_NAMESPACE_KIND_UNSPECIFIED, "kv": kvv1.NamespaceKind_NAMESPACE_KIND_KV, "prompt": kvv1.NamespaceKind_NAMESPACE_KIND_PROMPT,
	"tree": kvv1.NamespaceKind_NAMESPACE_KIND_TREE, "cache": kvv1.NamespaceKind_NAMESPACE_KIND_CACHE,
}

func (q *request) createNamespace() error {
	var body struct {
		Name           string         `json:"name"`
		Kind           string         `json:"kind"`
		Partition      *partitionJSON `json:"partition"`
		CapacityBlocks int64          `json:"capacity_blocks"`
		CapacityBytes  int64          `json:"capacity_bytes"`
		DefaultTTLMS   int64          `json:"default_ttl_ms"`
		OpsPerSecond   int64          `json:"ops_per_second"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	kind, ok := kinds[body.Kind]
	if !ok {
		return kverr.Invalid("kind", "is %.40q; it may be kv, cache or prompt", body.Kind)
	}
	ns := &kvv1.Namespace{
		Keyspace: q.vars[0], Name: body.Name, Kind: kind, CapacityBlocks: body.CapacityBlocks, CapacityBytes: body.CapacityBytes, DefaultTtlMs: body.DefaultTTLMS,
		OpsPerSecond: body.OpsPerSecond,
	}
	if ns.Partition, err = body.Partition.rule(); err != nil {
		return err
	}
	resp, err := q.g.calls.Admin.CreateNamespace(q.ctx, &kvv1.CreateNamespaceRequest{Namespace: ns})
	if err != nil {
		return resourceNamed(err, "namespace.")
	}
	return q.reply(http.StatusCreated, namespaceOf(resp.Namespace))
}

// resourceNamed names fields as the body has them.
func resourceNamed(err error, outer string) error {
	e, ok := errors.AsType[*kverr.Error](err)
	if !ok || e.Field == "" {
		return err
	}
	told := *e
	told.Field = strings.TrimPrefix(e.Field, outer)
	return &told
}

// rule converts; none is the default.
func (p *partitionJSON) rule() (*kvv1.PartitionRule, error) {
	if p == nil {
		return nil, nil
	}
	var rules []*kvv1.PartitionRule
	if p.HashTag {
		rules = append(rules, &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_HashTag{HashTag: true}})
	}
	if p.PathElements != 0 {
		rules = append(rules, &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_PathElements{PathElements: p.PathElements}})
	}
	if p.Namespace {
		rules = append(rules, &kvv1.PartitionRule{Rule: &kvv1.PartitionRule_Namespace{Namespace: true}})
	}
	if len(rules) != 1 {
		return nil, kverr.Invalid("partition", "has %d rules; it must have one of hash_tag, path_elements and namespace", len(rules))
	}
	return rules[0], nil
}

func (q *request) getNamespace() error {
	resp, err := q.g.calls.Admin.GetNamespace(q.ctx, &kvv1.GetNamespaceRequest{Keyspace: q.vars[0], Name: q.vars[1]})
	if err != nil {
		return err
	}
	q.w.Header().Set("Etag", etag(resp.Namespace.GetVersion()))
	return q.reply(http.StatusOK, namespaceOf(resp.Namespace))
}

// updateNamespace changes the fields that the body has.
func (q *request) updateNamespace() error {
	var body struct {
		CapacityBlocks *int64 `json:"capacity_blocks"`
		CapacityBytes  *int64 `json:"capacity_bytes"`
		DefaultTTLMS   *int64 `json:"default_ttl_ms"`
		OpsPerSecond   *int64 `json:"ops_per_second"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	ns := &kvv1.Namespace{Keyspace: q.vars[0], Name: q.vars[1]}
	cond, err := writeCondition(q.r.Header)
	if err != nil {
		return err
	}
	switch c := cond.GetCheck().(type) {
	case nil:
	case *kvv1.Precondition_IfVersion:
		ns.Version = c.IfVersion
	default:
		return kverr.Invalid("If-Match", "of a namespace must be its ETag")
	}
	mask := &fieldmaskpb.FieldMask{}
	for _, f := range []struct {
		name string
		from *int64
		to   *int64
	}{
		{"capacity_blocks", body.CapacityBlocks, &ns.CapacityBlocks}, {"capacity_bytes", body.CapacityBytes, &ns.CapacityBytes}, {"default_ttl_ms", body.DefaultTTLMS, &ns.DefaultTtlMs},
		{"ops_per_second", body.OpsPerSecond, &ns.OpsPerSecond},
	} {
		if f.from != nil {
			*f.to = *f.from
			mask.Paths = append(mask.Paths, f.name)
		}
	}
	if len(mask.Paths) == 0 {
		return kverr.Invalid("body", "changes nothing; it has the fields to change: capacity_blocks, capacity_bytes, default_ttl_ms, ops_per_second")
	}
	resp, err := q.g.calls.Admin.UpdateNamespace(q.ctx, &kvv1.UpdateNamespaceRequest{Namespace: ns, UpdateMask: mask})
	if err != nil {
		return resourceNamed(err, "namespace.")
	}
	q.w.Header().Set("Etag", etag(resp.Namespace.GetVersion()))
	return q.reply(http.StatusOK, namespaceOf(resp.Namespace))
}

func (q *request) deleteNamespace() error {
	_, err := q.g.calls.Admin.DeleteNamespace(q.ctx, &kvv1.DeleteNamespaceRequest{Keyspace: q.vars[0], Name: q.vars[1], Confirm: q.query.text("confirm")})
	if err != nil {
		return err
	}
	return q.nothing()
}

// shardJSON is how one shard is.
type shardJSON struct {
	ID              string `json:"id"`
	Keyspace        string `json:"keyspace"`
	State           string `json:"state"`
	Epoch           uint64 `json:"epoch"`
	Revision        uint64 `json:"revision"`
	Seq             uint64 `json:"seq"`
	Entries         int64  `json:"entries"`
	MemoryBytes     int64  `json:"memory_bytes"`
	LogBytes        int64  `json:"log_bytes"`
	CheckpointBytes int64  `json:"checkpoint_bytes"`
	ValueBytes      int64  `json:"value_bytes"`
	Reason          string `json:"reason,omitempty"`
}

// statusJSON is how the server is. Without the grant server-admin the first three are all there is.
type statusJSON struct {
	ServerTimeMS int64          `json:"server_time_ms"`
	Version      string         `json:"version"`
	UptimeMS     int64          `json:"uptime_ms"`
	Engine       string         `json:"engine,omitempty"`
	Shards       []shardJSON    `json:"shards,omitempty"`
	FreeBytes    int64          `json:"free_bytes,omitempty"`
	ReserveBytes int64          `json:"reserve_bytes,omitempty"`
	Directory    *directoryJSON `json:"directory,omitempty"`
}

// directoryJSON is how current a frontend's copy of the directory is.
type directoryJSON struct {
	Revision  uint64 `json:"revision"`
	Epoch     uint64 `json:"epoch"`
	Owner     string `json:"owner,omitempty"`
	Following bool   `json:"following"`
	AgeMS     int64  `json:"age_ms"`
	Reason    string `json:"reason,omitempty"`
}

func (q *request) status() error {
	resp, err := q.g.calls.Admin.Status(q.ctx, &kvv1.StatusRequest{})
	if err != nil {
		return err
	}
	out := statusJSON{
		ServerTimeMS: resp.GetHeader().GetServerTimeMs(), Version: resp.Version, UptimeMS: resp.UptimeMs, Engine: resp.Engine,
		FreeBytes: resp.FreeBytes, ReserveBytes: resp.ReserveBytes,
	}
	for _, s := range resp.Shards {
		out.Shards = append(out.Shards, shardJSON{
			s.Id, s.Keyspace, s.State, s.Epoch, s.Revision, s.Seq, s.Entries, s.MemoryBytes, s.LogBytes, s.CheckpointBytes, s.ValueBytes, s.Reason,
		})
	}
	if d := resp.Directory; d != nil {
		out.Directory = &directoryJSON{d.Revision, d.Epoch, d.Owner, d.Following, d.AgeMs, d.Reason}
	}
	return q.reply(http.StatusOK, out)
}

// metrics are the process's, in Prometheus's format, if it has some.
func (q *request) metrics() error {
	if q.g.cfg.Metrics == nil {
		return kverr.New(kverr.Unimplemented, "", "this server has no metrics yet")
	}
	q.began = true
	q.g.cfg.Metrics.ServeHTTP(q.w, q.r)
	return nil
}

// later answers what a later release will do.
func (q *request) later() error {
	return kverr.New(kverr.Unimplemented, "", "this release does not back up or restore over the API")
}

//go:embed openapi.yaml
var document []byte

// Document is the description of the API, OpenAPI 3 in YAML.
func Document() []byte { return document }

func (q *request) openapi() error {
	q.w.Header()["Content-Type"] = []string{"application/yaml"}
	return q.send(http.StatusOK, document)
}
