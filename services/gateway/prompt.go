package gateway

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// Blocks of prompts: looking up, leasing, touching, pinning and removing many at once, and reading, writing and removing one with its bytes as the body. What else
// there is to do with them is gRPC's.

// scopeOf reads the fields of a scope from the query: scope=model=llama&scope=dtype=bf16.
func scopeOf(fields []string) (*kvv1.Scope, error) {
	out := &kvv1.Scope{Fields: make(map[string]string, len(fields))}
	for _, f := range fields {
		name, value, ok := strings.Cut(f, "=")
		if _, twice := out.Fields[name]; !ok || name == "" || twice {
			return nil, kverr.Invalid("scope", "has %.80q; each must be a field of its own, as in scope=model=llama", f)
		}
		out.Fields[name] = value
	}
	return out, nil
}

// blockID reads the id of a block: text, or bytes as in hex:00ff12, as kvctl has them.
func blockID(field, text string) ([]byte, error) {
	digits, ok := strings.CutPrefix(text, "hex:")
	if !ok {
		return []byte(text), nil
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, kverr.Invalid(field, "is %.80q; after hex: come pairs of hexadecimal digits", text)
	}
	return b, nil
}

// blockText is the inverse of blockID.
func blockText(id []byte) string {
	if text := string(id); utf8.ValidString(text) && !strings.HasPrefix(text, "hex:") {
		return text
	}
	return "hex:" + hex.EncodeToString(id)
}

// blockRef is a block's name in JSON.
type blockRef struct {
	ID    string `json:"id"`
	Rank  uint32 `json:"rank"`
	Group uint32 `json:"group"`
	Depth uint32 `json:"depth"`
}

// blockInfo describes a stored block.
type blockInfo struct {
	Index         uint32 `json:"index"`
	Size          int64  `json:"size"`
	Checksum      string `json:"checksum"`
	Tier          string `json:"tier"`
	PinnedUntilMS int64  `json:"pinned_until_ms,omitempty"`
}

// lookedUp is the answer of a lookup.
type lookedUp struct {
	Count          uint32      `json:"count"`
	Blocks         []blockInfo `json:"blocks"`
	Lease          string      `json:"lease,omitempty"`
	LeaseExpiresMS int64       `json:"lease_expires_ms,omitempty"`
}

func (q *request) promptLookup() error {
	var body struct {
		Scope   map[string]string `json:"scope"`
		Blocks  []blockRef        `json:"blocks"`
		Mode    string            `json:"mode"`
		LeaseMS int64             `json:"lease_ms"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.LookupRequest{Scope: &kvv1.Scope{Fields: body.Scope}, LeaseMs: body.LeaseMS}
	req.Keyspace, req.Namespace = q.spaceOf()
	switch body.Mode {
	case "", "prefix":
	case "all":
		req.Mode = kvv1.LookupMode_LOOKUP_MODE_ALL
	default:
		return kverr.Invalid("mode", "is %.40q; it may be prefix or all", body.Mode)
	}
	if req.Blocks, err = refsOf(body.Blocks); err != nil {
		return err
	}
	resp, err := q.g.calls.Prompt.Lookup(q.ctx, req)
	if err != nil {
		return err
	}
	out := lookedUp{Count: resp.Count, Blocks: make([]blockInfo, len(resp.Blocks)), LeaseExpiresMS: resp.LeaseExpiresMs}
	if len(resp.Lease) > 0 {
		out.Lease = tokenText(resp.Lease)
	}
	for i, b := range resp.Blocks {
		out.Blocks[i] = blockInfo{Index: b.Index, Size: b.Size, Checksum: checksumText(b.Checksum), Tier: b.Tier, PinnedUntilMS: b.PinnedUntilMs}
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, out)
}

// refsOf are blocks as the services have them.
func refsOf(blocks []blockRef) ([]*kvv1.BlockRef, error) {
	refs, out := make([]kvv1.BlockRef, len(blocks)), make([]*kvv1.BlockRef, len(blocks))
	for i := range blocks {
		b := &blocks[i]
		var err error
		if refs[i].Id, err = blockID("blocks["+strconv.Itoa(i)+"].id", b.ID); err != nil {
			return nil, err
		}
		refs[i].Rank, refs[i].Group, refs[i].Depth = b.Rank, b.Group, b.Depth
		out[i] = &refs[i]
	}
	return out, nil
}

// someBlocks is the body of a request about blocks of one scope.
type someBlocks struct {
	Scope  map[string]string `json:"scope"`
	Blocks []blockRef        `json:"blocks"`
}

func (q *request) promptTouch() error {
	var body someBlocks
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.TouchRequest{Scope: &kvv1.Scope{Fields: body.Scope}}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Blocks, err = refsOf(body.Blocks); err != nil {
		return err
	}
	resp, err := q.g.calls.Prompt.Touch(q.ctx, req)
	if err != nil {
		return err
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, struct {
		Count uint32 `json:"count"`
	}{resp.Count})
}

// pinned tells which blocks were there to be pinned, or unpinned.
type pinned struct {
	Count   uint32 `json:"count"`
	Present []bool `json:"present"`
}

func (q *request) promptPin() error {
	var body struct {
		someBlocks
		UntilMS *int64 `json:"until_ms"`
	}
	free, err := q.decode(&body)
	defer free()
	switch {
	case err != nil:
		return err
	case body.UntilMS == nil: // 0 takes pins away: it must not be a slip
		return kverr.Invalid("until_ms", "is missing; it is until when, by the server's clock in milliseconds, or 0 to unpin")
	}
	req := &kvv1.PinRequest{Scope: &kvv1.Scope{Fields: body.Scope}, UntilMs: *body.UntilMS}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Blocks, err = refsOf(body.Blocks); err != nil {
		return err
	}
	if req.Identity, err = q.identityOf(); err != nil {
		return err
	}
	resp, err := q.g.calls.Prompt.Pin(q.ctx, req)
	if err != nil {
		return named(err)
	}
	out := pinned{Count: resp.Count, Present: make([]bool, len(req.Blocks))}
	for i := range out.Present {
		out.Present[i] = resp.Bitmap[i/8]>>(i%8)&1 == 1
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, out)
}

// outcomeNames are what becomes of a block that is to be removed.
var outcomeNames = map[kvv1.DeleteOutcome]string{
	kvv1.DeleteOutcome_DELETE_OUTCOME_DELETED: "deleted", kvv1.DeleteOutcome_DELETE_OUTCOME_ABSENT: "absent", kvv1.DeleteOutcome_DELETE_OUTCOME_LEASED: "leased",
}

func (q *request) promptDelete() error {
	var body someBlocks
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	refs, err := refsOf(body.Blocks)
	if err != nil {
		return err
	}
	outcomes, err := q.deleteBlocks(&kvv1.Scope{Fields: body.Scope}, refs)
	if err != nil {
		return err
	}
	return q.reply(http.StatusOK, struct {
		Outcomes []string `json:"outcomes"`
	}{outcomes})
}

// deleteBlock removes one block. That somebody leases it is no error, as in gRPC: the answer says so.
func (q *request) deleteBlock() error {
	scope, ref, err := q.block()
	if err != nil {
		return err
	}
	outcomes, err := q.deleteBlocks(scope, []*kvv1.BlockRef{ref})
	if err != nil {
		return blockNamed(err)
	}
	return q.reply(http.StatusOK, struct {
		Outcome string `json:"outcome"`
	}{outcomes[0]})
}

// deleteBlocks removes blocks and tells what became of each.
func (q *request) deleteBlocks(scope *kvv1.Scope, refs []*kvv1.BlockRef) ([]string, error) {
	req := &kvv1.PromptCacheServiceDeleteRequest{Scope: scope, Blocks: refs}
	req.Keyspace, req.Namespace = q.spaceOf()
	var err error
	if req.Identity, err = q.identityOf(); err != nil {
		return nil, err
	}
	resp, err := q.g.calls.Prompt.Delete(q.ctx, req)
	if err != nil {
		return nil, named(err)
	}
	setHeader(q.w.Header(), resp.Header)
	outcomes := make([]string, len(resp.Outcomes))
	for i, o := range resp.Outcomes {
		outcomes[i] = outcomeNames[o]
	}
	return outcomes, nil
}

func (q *request) promptRelease() error {
	var body struct {
		Lease string `json:"lease"`
	}
	free, err := q.decode(&body)
	defer free()
	if err != nil {
		return err
	}
	req := &kvv1.ReleaseRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	if req.Lease, err = parseToken("lease", body.Lease); err != nil {
		return err
	}
	resp, err := q.g.calls.Prompt.Release(q.ctx, req)
	if err != nil {
		return err
	}
	setHeader(q.w.Header(), resp.Header)
	return q.reply(http.StatusOK, struct{}{})
}

// block is the block that path and query name.
func (q *request) block() (*kvv1.Scope, *kvv1.BlockRef, error) {
	scope, err := scopeOf(q.query.all("scope"))
	if err != nil {
		return nil, nil, err
	}
	ref := &kvv1.BlockRef{}
	if ref.Id, err = blockID("id", q.vars[0]); err != nil {
		return nil, nil, err
	}
	for _, f := range []struct {
		name string
		to   *uint32
	}{{"rank", &ref.Rank}, {"group", &ref.Group}, {"depth", &ref.Depth}} {
		n, err := q.query.number(f.name, math.MaxUint32)
		if err != nil {
			return nil, nil, err
		}
		*f.to = uint32(n)
	}
	return scope, ref, nil
}

// errMiss is the answer for a block that is not stored, or not whole.
var errMiss = &kverr.Error{Kind: kverr.NotFound, Message: "no such block"}

// getBlock sends a block, each chunk of it verified before it leaves.
func (q *request) getBlock() error {
	scope, ref, err := q.block()
	if err != nil {
		return err
	}
	req := &kvv1.ReadRequest{Scope: scope, Blocks: []*kvv1.BlockRef{ref}}
	req.Keyspace, req.Namespace = q.spaceOf()
	b := &blockWriter{q: q}
	if err := q.g.calls.Prompt.Read(req, b); err != nil {
		return blockNamed(err)
	}
	if !b.whole { // a part may have left; then the response ends before its Content-Length
		return errMiss
	}
	return nil
}

// blockWriter takes the messages of a Read of one block.
type blockWriter struct {
	grpc.ServerStream
	q     *request
	whole bool
}

// Context implements grpc.ServerStream.
func (b *blockWriter) Context() context.Context { return b.q.ctx }

// Send implements grpc.ServerStreamingServer.
func (b *blockWriter) Send(m *kvv1.ReadResponse) error {
	if m.Header != nil {
		h := b.q.w.Header()
		h["Content-Type"] = []string{"application/octet-stream"}
		h["Content-Length"] = []string{strconv.FormatInt(m.Header.Size, 10)}
		h[headerChecksum] = []string{checksumText(m.Header.Checksum)}
		b.q.begin(http.StatusOK)
	}
	b.whole = m.End == kvv1.BlockStatus_BLOCK_STATUS_OK
	if len(m.Chunk) == 0 {
		return nil
	}
	return b.q.write(m.Chunk)
}

// stored tells whether a block was stored, or was there.
type stored struct {
	Stored bool `json:"stored"`
}

// putBlock stores the body as a block. The first writer wins; a block that is there is a success.
func (q *request) putBlock() error {
	scope, ref, err := q.block()
	if err != nil {
		return err
	}
	head := &kvv1.WriteRequest_Head{Scope: scope}
	head.Keyspace, head.Namespace = q.spaceOf()
	ttl, keep, err := ttlOf(q.r.Header)
	switch {
	case err != nil:
		return err
	case keep:
		return kverr.Invalid(headerTTL, "is keep; a block is written once and has nothing to keep")
	}
	head.TtlMs = ttl
	header := &kvv1.WriteRequest_Header{Block: ref, Size: q.r.ContentLength}
	if header.Parent, err = blockID("parent", q.query.text("parent")); err != nil {
		return err
	}
	if header.Checksum, err = checksumOf(q.r.Header); err != nil {
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
	b := &bodyStream[kvv1.WriteRequest, kvv1.WriteResponse]{
		q: q, first: &kvv1.WriteRequest{Head: head, Header: header}, fill: func(m *kvv1.WriteRequest, chunk []byte) { m.Chunk = chunk },
	}
	defer b.free()
	if q.r.ContentLength > maxWhole {
		b.left = q.r.ContentLength
	} else {
		if b.first.Chunk, err = q.readShort(); err != nil {
			return err
		}
		header.Size = int64(len(b.first.Chunk))
	}
	if err := q.g.calls.Prompt.Write(b); err != nil {
		return blockNamed(err)
	}
	result := b.resp.Results[0]
	if e := result.GetError(); e != nil {
		return blockNamed(kverr.FromItem(e))
	}
	setHeader(q.w.Header(), b.resp.Header)
	status := http.StatusOK
	if result.GetStored() {
		status = http.StatusCreated
	}
	return q.reply(status, stored{result.GetStored()})
}

// blockNamed puts what Write calls a field into the words of HTTP.
func blockNamed(err error) error {
	e, ok := errors.AsType[*kverr.Error](err)
	if !ok || e.Field == "" {
		return err
	}
	told := *e
	if name, ok := map[string]string{
		"header.block.id": "id", "blocks.id": "id", "header.parent": "parent", "header.size": "block", "header.checksum": headerChecksum, "head.ttl_ms": headerTTL,
	}[e.Field]; ok {
		told.Field = name
	}
	told.Field = strings.TrimPrefix(told.Field, "head.")
	return &told
}
