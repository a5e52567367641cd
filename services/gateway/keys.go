package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"kvstore/components/key"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// spaceOf are the names of the keyspace and the namespace.
func (q *request) spaceOf() (keyspace, namespace string) {
	return q.query.text("keyspace"), q.query.text("namespace")
}

// named puts what the services call a field into the words of HTTP.
func named(err error) error {
	e, ok := errors.AsType[*kverr.Error](err)
	if !ok || e.Field == "" {
		return err
	}
	field := e.Field
	for _, message := range []string{"head.", "put.", "get.", "delete."} {
		field = strings.TrimPrefix(field, message)
	}
	base, rest, _ := strings.Cut(field, "[")
	in, ok := fieldNames[base]
	if !ok {
		in = base
	}
	if rest != "" {
		in += "[" + rest
	}
	told := *e
	told.Field = in
	return &told
}

var fieldNames = map[string]string{
	"content_type": "Content-Type", "encoding": "Content-Encoding", "metadata": headerMeta + "*", "tags": headerTag + "*",
	"ttl_ms": headerTTL, "keep_ttl": headerTTL, "precondition.if_version": "If-Match", "checksum": headerChecksum, "size": "value",
	"identity.not_after_ms": headerNotAfter, "identity.client": headerOnce,
}

// getKey sends a value, as it comes off the store.
func (q *request) getKey() error {
	keyspace, namespace := q.spaceOf()
	if conditional(q.r.Header) {
		resp, err := q.metadata()
		if err != nil {
			return err
		}
		if done, err := q.unchanged(resp.Entry); done || err != nil {
			return err
		}
	}
	err := q.g.calls.KV.GetStream(&kvv1.GetStreamRequest{Keyspace: keyspace, Namespace: namespace, Key: []byte(q.vars[0])}, &valueWriter{q: q})
	if errors.Is(err, errNotModified) { // it was written between the two
		return nil
	}
	return named(err)
}

// unchanged answers a client who has the value already.
func (q *request) unchanged(e *kvv1.Entry) (done bool, err error) {
	err = readCondition(q.r.Header, e.Version)
	if !errors.Is(err, errNotModified) {
		return false, err
	}
	q.w.Header().Set("Etag", etag(e.Version))
	q.begin(http.StatusNotModified)
	return true, nil
}

func (q *request) metadata() (*kvv1.GetResponse, error) {
	keyspace, namespace := q.spaceOf()
	resp, err := q.g.calls.KV.Get(q.ctx, &kvv1.GetRequest{
		Keyspace: keyspace, Namespace: namespace, Get: &kvv1.GetOp{Key: []byte(q.vars[0]), MetadataOnly: true},
	})
	return resp, named(err)
}

func (q *request) headKey() error {
	resp, err := q.metadata()
	if err != nil {
		return err
	}
	if done, err := q.unchanged(resp.Entry); done || err != nil {
		return err
	}
	setEntry(q.w.Header(), resp.Entry)
	setHeader(q.w.Header(), resp.Header)
	q.begin(http.StatusOK)
	return nil
}

// valueWriter takes the messages of a GetStream.
type valueWriter struct {
	grpc.ServerStream // nil: the frontend uses what is below
	q                 *request
}

// Context implements grpc.ServerStream.
func (v *valueWriter) Context() context.Context { return v.q.ctx }

// Send implements grpc.ServerStreamingServer.
func (v *valueWriter) Send(m *kvv1.GetStreamResponse) error {
	switch p := m.Part.(type) {
	case *kvv1.GetStreamResponse_Entry:
		if done, err := v.q.unchanged(p.Entry); err != nil {
			return err
		} else if done {
			return errNotModified
		}
		setEntry(v.q.w.Header(), p.Entry)
		setHeader(v.q.w.Header(), m.Header)
		v.q.begin(http.StatusOK)
	case *kvv1.GetStreamResponse_Chunk:
		return v.q.write(p.Chunk)
	}
	return nil
}

// written tells of a write.
type written struct {
	Version uint64 `json:"version"`
	Created bool   `json:"created"`
}

// removed tells of a removal.
type removed struct {
	Deleted  bool   `json:"deleted"`
	Revision uint64 `json:"revision"`
}

// putKey stores the body. A short one is read whole, a longer one, whose length must be told, goes to the store as it comes.
func (q *request) putKey() error {
	keyspace, namespace := q.spaceOf()
	put, err := q.putOf()
	if err != nil {
		return err
	}
	id, err := q.identityOf()
	if err != nil {
		return err
	}
	sum, err := checksumOf(q.r.Header)
	if err != nil {
		return err
	}
	held := min(q.r.ContentLength, maxWhole)
	if held < 0 {
		held = maxWhole
	}
	if err := q.g.takeBody(held); err != nil {
		return err
	}
	defer q.g.giveBody(held)
	if q.r.ContentLength > maxWhole {
		head := &kvv1.PutStreamRequest_Head{Keyspace: keyspace, Namespace: namespace, Put: put, Size: q.r.ContentLength, Checksum: sum, Identity: id}
		s := &bodyStream[kvv1.PutStreamRequest, kvv1.PutStreamResponse]{
			q: q, left: q.r.ContentLength, first: &kvv1.PutStreamRequest{Part: &kvv1.PutStreamRequest_Head_{Head: head}},
			fill: func(m *kvv1.PutStreamRequest, chunk []byte) { m.Part = &kvv1.PutStreamRequest_Chunk{Chunk: chunk} },
		}
		defer s.free()
		if err := q.g.calls.KV.PutStream(s); err != nil {
			return named(err)
		}
		return q.put(s.resp.Header, s.resp.Result)
	}
	if put.Value, err = q.readShort(); err != nil {
		return err
	}
	if got := xxh3.Hash(put.Value); sum != 0 && sum != got {
		return kverr.Invalid(headerChecksum, "is %s, but the bytes received have %s", checksumText(sum), checksumText(got))
	}
	resp, err := q.g.calls.KV.Put(q.ctx, &kvv1.PutRequest{Keyspace: keyspace, Namespace: namespace, Put: put, Identity: id})
	if err != nil {
		return named(err)
	}
	return q.put(resp.Header, resp.Result)
}

// readShort reads a body of up to maxWhole bytes.
func (q *request) readShort() ([]byte, error) {
	b, err := q.readWhole(maxWhole)
	if e, ok := errors.AsType[*kverr.Error](err); ok && e.Kind == kverr.TooLarge { // it has no Content-Length, or would not be here
		ref := refuse(http.StatusLengthRequired, reasonLengthRequired, "a body of more than %d bytes must come with a Content-Length", maxWhole)
		ref.limit = maxWhole
		return nil, ref
	}
	return b, err
}

// put answers a put.
func (q *request) put(header *kvv1.ResponseHeader, result *kvv1.PutResult) error {
	h := q.w.Header()
	h["Etag"] = []string{etag(result.Version)}
	setHeader(h, header)
	status := http.StatusOK
	if result.Created {
		status = http.StatusCreated
	}
	return q.reply(status, written{result.Version, result.Created})
}

// putOf is a put as its headers describe it.
func (q *request) putOf() (*kvv1.PutOp, error) {
	h := q.r.Header
	put := &kvv1.PutOp{Key: []byte(q.vars[0]), ContentType: h.Get("Content-Type"), Encoding: strings.Join(h.Values("Content-Encoding"), ", ")}
	var err error
	if put.Metadata, err = pairsOf(h, headerMeta); err != nil {
		return nil, err
	}
	if put.Tags, err = pairsOf(h, headerTag); err != nil {
		return nil, err
	}
	if put.TtlMs, put.KeepTtl, err = ttlOf(h); err != nil {
		return nil, err
	}
	if h["Content-Range"] != nil {
		return nil, kverr.Invalid("Content-Range", "is given; a value is written whole")
	}
	put.Precondition, err = writeCondition(h)
	return put, err
}

func (q *request) deleteKey() error {
	keyspace, namespace := q.spaceOf()
	cond, err := writeCondition(q.r.Header)
	if err != nil {
		return err
	}
	id, err := q.identityOf()
	if err != nil {
		return err
	}
	resp, err := q.g.calls.KV.Delete(q.ctx, &kvv1.DeleteRequest{
		Keyspace: keyspace, Namespace: namespace, Delete: &kvv1.DeleteOp{Key: []byte(q.vars[0]), Precondition: cond}, Identity: id,
	})
	if err != nil {
		return named(err)
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, removed{resp.Result.Deleted, resp.Result.Revision})
}

// page is a page of keys.
type page struct {
	Entries       []entry `json:"entries"`
	NextPageToken string  `json:"next_page_token,omitempty"`
	WatchToken    string  `json:"watch_token"`
}

// counted is how many keys there are.
type counted struct {
	Count      int64  `json:"count"`
	WatchToken string `json:"watch_token"`
}

func (q *request) listKeys() error {
	keyspace, namespace := q.spaceOf()
	limit, err := q.query.number("limit", key.MaxListPage)
	if err != nil {
		return err
	}
	token, err := q.query.bytes("page_token")
	if err != nil {
		return err
	}
	values, err := q.query.flag("values")
	if err != nil {
		return err
	}
	count, err := q.query.flag("count_only")
	if err != nil {
		return err
	}
	resp, err := q.g.calls.KV.List(q.ctx, &kvv1.ListRequest{
		Keyspace: keyspace, Namespace: namespace, Prefix: []byte(q.query.text("prefix")), Start: []byte(q.query.text("start")), End: []byte(q.query.text("end")),
		PageSize: int32(limit), PageToken: token, KeysOnly: !values, CountOnly: count,
	})
	if err != nil {
		return err
	}
	setHeader(q.w.Header(), resp.Header)
	if count {
		return q.reply(http.StatusOK, counted{resp.Count, tokenText(resp.WatchToken)})
	}
	out := page{Entries: make([]entry, len(resp.Entries)), NextPageToken: tokenText(resp.NextPageToken), WatchToken: tokenText(resp.WatchToken)}
	for i, e := range resp.Entries {
		out.Entries[i] = entryOf(e, values && (e.Checksum == 0 || len(e.Value) > 0))
		out.Entries[i].ValueLeftOut = values && e.Checksum != 0 && len(e.Value) == 0
	}
	return q.reply(http.StatusOK, out)
}
