package client

import (
	"context"
	"io"
	"time"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// streamOver is the size from which a value travels on a stream of its own, so that it does not hold up others.
const streamOver = 256 << 10

// Precondition is checked against the key as it stands when the write is applied. The zero value always holds.
type Precondition struct {
	check   check
	version uint64
}

type check uint8

const (
	always check = iota
	ifVersion
	ifAbsent
	ifPresent
)

// IfVersion holds when the key exists with exactly this version; otherwise the write fails with ErrVersionMismatch.
func IfVersion(v uint64) Precondition { return Precondition{check: ifVersion, version: v} }

// IfAbsent holds when the key does not exist; otherwise the write fails with ErrAlreadyExists.
func IfAbsent() Precondition { return Precondition{check: ifAbsent} }

// IfPresent holds when the key exists; otherwise the write fails with ErrVersionMismatch.
func IfPresent() Precondition { return Precondition{check: ifPresent} }

func (p Precondition) proto() *kvstorev1.Precondition {
	switch p.check {
	case ifVersion:
		return &kvstorev1.Precondition{Check: &kvstorev1.Precondition_IfVersion{IfVersion: p.version}}
	case ifAbsent:
		return &kvstorev1.Precondition{Check: &kvstorev1.Precondition_IfAbsent{IfAbsent: true}}
	case ifPresent:
		return &kvstorev1.Precondition{Check: &kvstorev1.Precondition_IfPresent{IfPresent: true}}
	}
	return nil
}

// PutOptions are the optional parts of a put.
type PutOptions struct {
	If          Precondition      // must hold, or nothing is written
	TTL         time.Duration     // 0 = for ever (or the namespace's default); counted in whole milliseconds, rounded up
	KeepTTL     bool              // keep the expiry that the key has; TTL must be 0
	ContentType string            // media type, kept as given; at most 256 bytes
	Encoding    string            // such as "zstd", kept as given; at most 64 bytes
	Metadata    map[string]string // kept and returned, never interpreted
	Tags        map[string]string // at most 32, each name and value together at most 256 bytes
}

// GetOptions are the optional parts of a get.
type GetOptions struct {
	MetadataOnly bool // leave the value out
}

// DeleteOptions are the optional parts of a delete.
type DeleteOptions struct {
	If Precondition // must hold, or nothing is removed
}

// PutResult tells of a write.
type PutResult struct {
	Version uint64 // the key's version from now on
	Created bool   // the key did not exist before
}

// DeleteResult tells of a removal.
type DeleteResult struct {
	Deleted  bool   // there was a key to remove
	Revision uint64 // of the removal; 0 when there was none
}

// Entry is a key with its value and everything known about it. It belongs to the caller.
type Entry struct {
	Key         string
	Value       []byte // empty where it was not asked for; never nil after Get with a value
	Version     uint64
	Created     time.Time // when the key came into being
	Updated     time.Time // when it was last written
	Expires     time.Time // zero = never
	ContentType string
	Encoding    string
	Metadata    map[string]string
	Tags        map[string]string
	Size        int64  // of the value in bytes, also when Value is left out
	Checksum    uint64 // xxh3-64 of a value stored apart from its key; otherwise 0
}

// Put stores a value under a key. It does not keep value. A value over 256 KiB goes by PutStream.
func (c *Client) Put(ctx context.Context, key string, value []byte, o *PutOptions) (PutResult, error) {
	if len(value) > streamOver {
		return c.PutStream(ctx, key, newBytesReader(value), int64(len(value)), o)
	}
	cn := c.pick()
	if cn.pipe == nil {
		resp, err := unary(ctx, c.core, writes, "put", kvStub, kvstorev1.KVServiceClient.Put, &kvstorev1.PutRequest{
			Keyspace: c.keyspace, Namespace: c.namespace, Put: o.proto(key, value), Identity: c.identity(),
		})
		return fromPut(resp.GetResult()), err
	}
	cl := c.newCall(key)
	defer cl.free()
	cl.write = true
	op := &cl.put.op
	o.fill(op)
	op.Key, op.Value = cl.key, value
	cl.op.Op = &cl.put.PipelineRequest_Op_Put
	if err := cn.pipe.do(ctx, cl); err != nil {
		return PutResult{}, withOp(err, "put")
	}
	return cl.putOut, nil
}

// Get reads a key; ErrNotFound when it is absent. A value too large for one message comes by GetStream, all of it into
// memory.
func (c *Client) Get(ctx context.Context, key string, o *GetOptions) (Entry, error) {
	e, err := c.get(ctx, key, o)
	if err == nil || kverr.KindOf(err) != kverr.ValueTooLarge {
		return e, withOp(err, "get")
	}
	r, err := c.GetStream(ctx, key)
	if err != nil {
		return Entry{}, withOp(err, "get")
	}
	defer func() { _ = r.Close() }()
	e = r.Entry
	e.Value = make([]byte, e.Size)
	if _, err := io.ReadFull(r, e.Value); err != nil {
		return Entry{}, withOp(err, "get")
	}
	return e, nil
}

func (c *Client) get(ctx context.Context, key string, o *GetOptions) (Entry, error) {
	only := o != nil && o.MetadataOnly
	cn := c.pick()
	if cn.pipe == nil {
		resp, err := unary(ctx, c.core, reads, "get", kvStub, kvstorev1.KVServiceClient.Get, &kvstorev1.GetRequest{
			Keyspace: c.keyspace, Namespace: c.namespace, Get: &kvstorev1.GetOp{Key: []byte(key), MetadataOnly: only},
		})
		if err != nil {
			return Entry{}, err
		}
		e := fromEntry(resp.Entry)
		e.present(only)
		return e, nil
	}
	cl := c.newCall(key)
	defer cl.free()
	cl.get.op.Key, cl.get.op.MetadataOnly = cl.key, only
	cl.op.Op = &cl.get.PipelineRequest_Op_Get
	if err := cn.pipe.do(ctx, cl); err != nil {
		return Entry{}, err
	}
	e := cl.getOut
	e.Key = key // without a copy of its own
	e.present(only)
	return e, nil
}

// present makes an empty value that was asked for differ from one that was not.
func (e *Entry) present(metadataOnly bool) {
	if e.Value == nil && !metadataOnly {
		e.Value = []byte{}
	}
}

// Delete removes a key. That there was none is no error.
func (c *Client) Delete(ctx context.Context, key string, o *DeleteOptions) (DeleteResult, error) {
	var pre *kvstorev1.Precondition
	if o != nil {
		pre = o.If.proto()
	}
	cn := c.pick()
	if cn.pipe == nil {
		resp, err := unary(ctx, c.core, writes, "delete", kvStub, kvstorev1.KVServiceClient.Delete, &kvstorev1.DeleteRequest{
			Keyspace: c.keyspace, Namespace: c.namespace,
			Delete: &kvstorev1.DeleteOp{Key: []byte(key), Precondition: pre}, Identity: c.identity(),
		})
		return fromDelete(resp.GetResult()), err
	}
	cl := c.newCall(key)
	defer cl.free()
	cl.write = true
	cl.del.op.Key, cl.del.op.Precondition = cl.key, pre
	cl.op.Op = &cl.del.PipelineRequest_Op_Delete
	if err := cn.pipe.do(ctx, cl); err != nil {
		return DeleteResult{}, withOp(err, "delete")
	}
	return cl.delOut, nil
}

// fill sets the optional fields of op.
func (o *PutOptions) fill(op *kvstorev1.PutOp) {
	if o == nil {
		return
	}
	op.Precondition = o.If.proto()
	op.TtlMs = toMS(o.TTL)
	op.KeepTtl = o.KeepTTL
	op.ContentType = o.ContentType
	op.Encoding = o.Encoding
	op.Metadata = o.Metadata
	op.Tags = o.Tags
}

func (o *PutOptions) proto(key string, value []byte) *kvstorev1.PutOp {
	op := &kvstorev1.PutOp{Key: []byte(key), Value: value}
	o.fill(op)
	return op
}

// toMS rounds up, so that a short time does not become "for ever".
func toMS(d time.Duration) int64 {
	if d <= 0 {
		return int64(d / time.Millisecond) // negative ones are the server's to refuse
	}
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func fromMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func fromPut(r *kvstorev1.PutResult) PutResult {
	return PutResult{Version: r.GetVersion(), Created: r.GetCreated()}
}

func fromDelete(r *kvstorev1.DeleteResult) DeleteResult {
	return DeleteResult{Deleted: r.GetDeleted(), Revision: r.GetRevision()}
}

func fromEntry(e *kvstorev1.Entry) Entry {
	return Entry{
		Key: string(e.GetKey()), Value: e.GetValue(), Version: e.GetVersion(),
		Created: fromMS(e.GetCreatedMs()), Updated: fromMS(e.GetUpdatedMs()), Expires: fromMS(e.GetExpiresMs()),
		ContentType: e.GetContentType(), Encoding: e.GetEncoding(), Metadata: e.GetMetadata(), Tags: e.GetTags(),
		Size: e.GetSize(), Checksum: e.GetChecksum(),
	}
}
