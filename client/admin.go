package client

import (
	"context"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// The messages of AdminService are resources and reports, and are used as the API defines them. An empty keyspace in
// them means the view's.

// Status tells how the server and its shards are.
func (c *Client) Status(ctx context.Context) (*kvstorev1.StatusResponse, error) {
	return unary(ctx, c.core, reads, "status", adminStub, kvstorev1.AdminServiceClient.Status, &kvstorev1.StatusRequest{})
}

// CreateKeyspace makes a keyspace; ErrAlreadyExists when the name is taken.
func (c *Client) CreateKeyspace(ctx context.Context, ks *kvstorev1.Keyspace) (*kvstorev1.Keyspace, error) {
	resp, err := unary(ctx, c.core, writeOnce, "create keyspace", adminStub, kvstorev1.AdminServiceClient.CreateKeyspace,
		&kvstorev1.CreateKeyspaceRequest{Keyspace: ks})
	return resp.GetKeyspace(), err
}

// GetKeyspace returns one keyspace.
func (c *Client) GetKeyspace(ctx context.Context, name string) (*kvstorev1.Keyspace, error) {
	resp, err := unary(ctx, c.core, reads, "get keyspace", adminStub, kvstorev1.AdminServiceClient.GetKeyspace,
		&kvstorev1.GetKeyspaceRequest{Name: name})
	return resp.GetKeyspace(), err
}

// ListKeyspaces returns all keyspaces by name.
func (c *Client) ListKeyspaces(ctx context.Context) ([]*kvstorev1.Keyspace, error) {
	resp, err := unary(ctx, c.core, reads, "list keyspaces", adminStub, kvstorev1.AdminServiceClient.ListKeyspaces,
		&kvstorev1.ListKeyspacesRequest{})
	return resp.GetKeyspaces(), err
}

// DeleteKeyspace removes a keyspace with all its namespaces and data; confirm repeats its name.
func (c *Client) DeleteKeyspace(ctx context.Context, name, confirm string) error {
	_, err := unary(ctx, c.core, writeOnce, "delete keyspace", adminStub, kvstorev1.AdminServiceClient.DeleteKeyspace,
		&kvstorev1.DeleteKeyspaceRequest{Name: name, Confirm: confirm})
	return err
}

// AcceptLoss lets a shard be opened although its store has lost records that were acknowledged (ErrDataLoss until then); what was lost
// is given up. confirm repeats the shard's id. It returns the last record that is known to have been there.
func (c *Client) AcceptLoss(ctx context.Context, shard, confirm string) (epoch, seq uint64, err error) {
	resp, err := unary(ctx, c.core, writeOnce, "accept a loss", adminStub, kvstorev1.AdminServiceClient.AcceptLoss,
		&kvstorev1.AcceptLossRequest{Shard: shard, Confirm: confirm})
	return resp.GetEpoch(), resp.GetSeq(), err
}

// CreateNamespace makes a namespace; ErrAlreadyExists when the name is taken. Kind and partition rule are fixed for
// good.
func (c *Client) CreateNamespace(ctx context.Context, ns *kvstorev1.Namespace) (*kvstorev1.Namespace, error) {
	if ns.GetKeyspace() == "" {
		ns.Keyspace = c.keyspace
	}
	resp, err := unary(ctx, c.core, writeOnce, "create namespace", adminStub, kvstorev1.AdminServiceClient.CreateNamespace,
		&kvstorev1.CreateNamespaceRequest{Namespace: ns})
	return resp.GetNamespace(), err
}

// GetNamespace returns one namespace of the view's keyspace.
func (c *Client) GetNamespace(ctx context.Context, name string) (*kvstorev1.Namespace, error) {
	resp, err := unary(ctx, c.core, reads, "get namespace", adminStub, kvstorev1.AdminServiceClient.GetNamespace,
		&kvstorev1.GetNamespaceRequest{Keyspace: c.keyspace, Name: name})
	return resp.GetNamespace(), err
}

// ListNamespaces returns the namespaces of the view's keyspace by name.
func (c *Client) ListNamespaces(ctx context.Context) ([]*kvstorev1.Namespace, error) {
	resp, err := unary(ctx, c.core, reads, "list namespaces", adminStub, kvstorev1.AdminServiceClient.ListNamespaces,
		&kvstorev1.ListNamespacesRequest{Keyspace: c.keyspace})
	return resp.GetNamespaces(), err
}

// UpdateNamespace changes the fields named: capacity_blocks, capacity_bytes, default_ttl_ms, ops_per_second. When ns.Version is not 0
// it must be the current one.
func (c *Client) UpdateNamespace(ctx context.Context, ns *kvstorev1.Namespace, fields ...string) (*kvstorev1.Namespace, error) {
	if ns.GetKeyspace() == "" {
		ns.Keyspace = c.keyspace
	}
	resp, err := unary(ctx, c.core, writeOnce, "update namespace", adminStub, kvstorev1.AdminServiceClient.UpdateNamespace,
		&kvstorev1.UpdateNamespaceRequest{Namespace: ns, UpdateMask: &fieldmaskpb.FieldMask{Paths: fields}})
	return resp.GetNamespace(), err
}

// DeleteNamespace removes a namespace of the view's keyspace with its data; confirm repeats its name.
func (c *Client) DeleteNamespace(ctx context.Context, name, confirm string) error {
	_, err := unary(ctx, c.core, writeOnce, "delete namespace", adminStub, kvstorev1.AdminServiceClient.DeleteNamespace,
		&kvstorev1.DeleteNamespaceRequest{Keyspace: c.keyspace, Name: name, Confirm: confirm})
	return err
}
