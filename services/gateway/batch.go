package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"unicode/utf8"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// entry is a key with what is known about it, in JSON. A value is text where it is text, otherwise base64.
type entry struct {
	Key          string            `json:"key"`
	Value        *string           `json:"value,omitempty"`
	ValueBase64  []byte            `json:"value_base64,omitempty"`
	ValueLeftOut bool              `json:"value_left_out,omitempty"` // of a listing: it lies apart; GET it
	Version      uint64            `json:"version"`
	Size         int64             `json:"size"`
	Checksum     string            `json:"checksum,omitempty"`
	ContentType  string            `json:"content_type,omitempty"`
	Encoding     string            `json:"encoding,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	Tags         map[string]string `json:"tags,omitempty"`
	CreatedMS    int64             `json:"created_ms"`
	UpdatedMS    int64             `json:"updated_ms"`
	ExpiresMS    int64             `json:"expires_ms,omitempty"`
}

func entryOf(e *kvv1.Entry, value bool) entry {
	out := entry{
		Key: string(e.Key), Version: e.Version, Size: e.Size, ContentType: e.ContentType, Encoding: e.Encoding, Metadata: e.Metadata, Tags: e.Tags,
		CreatedMS: e.CreatedMs, UpdatedMS: e.UpdatedMs, ExpiresMS: e.ExpiresMs,
	}
	if e.Checksum != 0 {
		out.Checksum = checksumText(e.Checksum)
	}
	if value {
		out.Value, out.ValueBase64 = textOr(e.Value)
	}
	return out
}

// textOr is b as text, or as bytes where JSON would make much of it.
func textOr(b []byte) (text *string, bytes []byte) {
	if !utf8.Valid(b) {
		return nil, b
	}
	for _, c := range b {
		if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
			return nil, b
		}
	}
	s := string(b)
	return &s, nil
}

// condition is a precondition in JSON.
type condition struct {
	IfVersion *uint64 `json:"if_version,omitempty"`
	IfAbsent  bool    `json:"if_absent,omitempty"`
	IfPresent bool    `json:"if_present,omitempty"`
}

func (c *condition) precondition() (*kvv1.Precondition, error) {
	n := 0
	var p kvv1.Precondition
	if c.IfVersion != nil {
		n++
		p.Check = &kvv1.Precondition_IfVersion{IfVersion: *c.IfVersion}
	}
	if c.IfAbsent {
		n++
		p.Check = &kvv1.Precondition_IfAbsent{IfAbsent: true}
	}
	if c.IfPresent {
		n++
		p.Check = &kvv1.Precondition_IfPresent{IfPresent: true}
	}
	switch n {
	case 0:
		return nil, nil
	case 1:
		return &p, nil
	}
	return nil, kverr.Invalid("if_version", "is given together with another condition; there may be one of if_version, if_absent and if_present")
}

// putItem is a put in JSON.
type putItem struct {
	Key         string            `json:"key"`
	Value       *string           `json:"value"`
	ValueBase64 *[]byte           `json:"value_base64"`
	ContentType string            `json:"content_type"`
	Encoding    string            `json:"encoding"`
	Metadata    map[string]string `json:"metadata"`
	Tags        map[string]string `json:"tags"`
	TTLSeconds  *int64            `json:"ttl_seconds"`
	KeepTTL     bool              `json:"keep_ttl"`
	condition
}

func (p *putItem) op() (*kvv1.PutOp, error) {
	out := &kvv1.PutOp{
		Key: []byte(p.Key), ContentType: p.ContentType, Encoding: p.Encoding, Metadata: p.Metadata, Tags: p.Tags, KeepTtl: p.KeepTTL,
	}
	switch {
	case p.Value != nil && p.ValueBase64 != nil:
		return nil, kverr.Invalid("value", "is given together with value_base64; there may be one of them")
	case p.Value != nil:
		out.Value = []byte(*p.Value)
	case p.ValueBase64 != nil:
		out.Value = *p.ValueBase64
	default:
		return nil, kverr.Invalid("value", "is missing; give value, or value_base64")
	}
	var err error
	if p.TTLSeconds != nil {
		if out.TtlMs, err = milliseconds("ttl_seconds", *p.TTLSeconds); err != nil {
			return nil, err
		}
	}
	out.Precondition, err = p.precondition()
	return out, err
}

// deleteItem is a removal in JSON.
type deleteItem struct {
	Key string `json:"key"`
	condition
}

func (d *deleteItem) op() (*kvv1.DeleteOp, error) {
	cond, err := d.precondition()
	return &kvv1.DeleteOp{Key: []byte(d.Key), Precondition: cond}, err
}

// within names the part of the body that an error is about.
func within(where string, err error) error {
	e, ok := errors.AsType[*kverr.Error](err)
	if !ok || e.Field == "" {
		return err
	}
	told := *e
	told.Field = where + "." + e.Field
	return &told
}

// item names one of a list.
func item(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// itemResult is the result of one item: what it gave, or a problem.
type itemResult struct {
	*written
	*removed
	Entry *entry   `json:"entry,omitempty"`
	Error *Problem `json:"error,omitempty"`
}

type batchResults struct {
	Results []itemResult `json:"results"`
}

// itemProblem describes the error of an item.
func itemProblem(e *kvv1.Error) *Problem { return problemOf(kverr.FromItem(e)) }

// ops makes the operation of each item of a list; an error names the item.
func ops[Item, Op any](list string, items []Item, op func(*Item) (*Op, error)) ([]*Op, error) {
	out := make([]*Op, len(items))
	for i := range items {
		var err error
		if out[i], err = op(&items[i]); err != nil {
			return nil, within(item(list, i), err)
		}
	}
	return out, nil
}

// replyItems tells the result of each item: its error, or what fill says of it.
func replyItems[R interface{ GetError() *kvv1.Error }](q *request, h *kvv1.ResponseHeader, results []R, fill func(i int, r R, out *itemResult)) error {
	out := batchResults{make([]itemResult, len(results))}
	for i, r := range results {
		if e := r.GetError(); e != nil {
			out.Results[i].Error = itemProblem(e)
		} else {
			fill(i, r, &out.Results[i])
		}
	}
	setHeader(q.w.Header(), h)
	return q.reply(http.StatusOK, out)
}

func (q *request) batchPut() error {
	var body struct {
		Puts []putItem `json:"puts"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.BatchPutRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Puts, err = ops("puts", body.Puts, (*putItem).op); err != nil {
		return err
	}
	if req.Identity, err = q.identityOf(); err != nil {
		return err
	}
	resp, err := q.g.calls.KV.BatchPut(q.ctx, req)
	if err != nil {
		return err
	}
	return replyItems(q, resp.Header, resp.Results, func(_ int, r *kvv1.BatchPutResponse_Item, out *itemResult) {
		out.written = &written{r.GetResult().Version, r.GetResult().Created}
	})
}

// getItem is a get in JSON.
type getItem struct {
	Key          string `json:"key"`
	MetadataOnly bool   `json:"metadata_only"`
}

func (g *getItem) op() (*kvv1.GetOp, error) {
	return &kvv1.GetOp{Key: []byte(g.Key), MetadataOnly: g.MetadataOnly}, nil
}

func (q *request) batchGet() error {
	var body struct {
		Gets []getItem `json:"gets"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.BatchGetRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Gets, err = ops("gets", body.Gets, (*getItem).op); err != nil {
		return err
	}
	resp, err := q.g.calls.KV.BatchGet(q.ctx, req)
	if err != nil {
		return err
	}
	return replyItems(q, resp.Header, resp.Results, func(i int, r *kvv1.BatchGetResponse_Item, out *itemResult) {
		e := entryOf(r.GetEntry(), !req.Gets[i].MetadataOnly)
		out.Entry = &e
	})
}

func (q *request) batchDelete() error {
	var body struct {
		Deletes []deleteItem `json:"deletes"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.BatchDeleteRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Deletes, err = ops("deletes", body.Deletes, (*deleteItem).op); err != nil {
		return err
	}
	if req.Identity, err = q.identityOf(); err != nil {
		return err
	}
	resp, err := q.g.calls.KV.BatchDelete(q.ctx, req)
	if err != nil {
		return err
	}
	return replyItems(q, resp.Header, resp.Results, func(_ int, r *kvv1.BatchDeleteResponse_Item, out *itemResult) {
		out.removed = &removed{r.GetResult().Deleted, r.GetResult().Revision}
	})
}

// txnResult is what became of a transaction.
type txnResult struct {
	Committed bool          `json:"committed"`
	Revision  uint64        `json:"revision,omitempty"`
	Results   []txnOpResult `json:"results,omitempty"`
	Failures  []txnFailure  `json:"failures,omitempty"`
}

type txnOpResult struct {
	Put    *written `json:"put,omitempty"`
	Delete *removed `json:"delete,omitempty"`
}

// txnFailure is a condition that failed: one of conditions, or that of an op.
type txnFailure struct {
	Condition      *int32 `json:"condition,omitempty"`
	Op             *int32 `json:"op,omitempty"`
	Key            string `json:"key"`
	CurrentVersion uint64 `json:"current_version"`
}

func (q *request) transaction() error {
	var body struct {
		Conditions []struct {
			Key string `json:"key"`
			condition
		} `json:"conditions"`
		Ops []struct {
			Put    *putItem    `json:"put"`
			Delete *deleteItem `json:"delete"`
		} `json:"ops"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.TransactionRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	for i := range body.Conditions {
		c := &body.Conditions[i]
		cond, err := c.precondition()
		if err != nil {
			return within(item("conditions", i), err)
		}
		req.Conditions = append(req.Conditions, &kvv1.TransactionRequest_Condition{Key: []byte(c.Key), Precondition: cond})
	}
	for i := range body.Ops {
		op, out := &body.Ops[i], &kvv1.TransactionRequest_Op{}
		switch {
		case op.Put != nil && op.Delete != nil:
			return within(item("ops", i), kverr.Invalid("put", "is given together with delete; an operation is one of them"))
		case op.Put != nil:
			put, err := op.Put.op()
			if err != nil {
				return within(item("ops", i)+".put", err)
			}
			out.Op = &kvv1.TransactionRequest_Op_Put{Put: put}
		case op.Delete != nil:
			del, err := op.Delete.op()
			if err != nil {
				return within(item("ops", i)+".delete", err)
			}
			out.Op = &kvv1.TransactionRequest_Op_Delete{Delete: del}
		}
		req.Ops = append(req.Ops, out)
	}
	if req.Identity, err = q.identityOf(); err != nil {
		return err
	}
	resp, err := q.g.calls.KV.Transaction(q.ctx, req)
	if err != nil {
		return err
	}
	out := txnResult{Committed: resp.Committed, Revision: resp.Revision}
	for _, r := range resp.Results {
		var one txnOpResult
		if p := r.GetPut(); p != nil {
			one.Put = &written{p.Version, p.Created}
		} else {
			one.Delete = &removed{r.GetDelete().GetDeleted(), r.GetDelete().GetRevision()}
		}
		out.Results = append(out.Results, one)
	}
	for _, f := range resp.Failures {
		one := txnFailure{Key: string(f.Key), CurrentVersion: f.CurrentVersion}
		if f.Condition >= 0 {
			one.Condition = &f.Condition
		}
		if f.Op >= 0 {
			one.Op = &f.Op
		}
		out.Failures = append(out.Failures, one)
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, out)
}
