package gateway

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"strconv"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// change is an event of a watch in JSON.
type change struct {
	Key             string  `json:"key"`
	Value           *string `json:"value,omitempty"`
	ValueBase64     []byte  `json:"value_base64,omitempty"`
	ValueLeftOut    bool    `json:"value_left_out,omitempty"`
	Version         uint64  `json:"version"`
	PrevVersion     uint64  `json:"prev_version,omitempty"`
	PrevValue       *string `json:"prev_value,omitempty"`
	PrevValueBase64 []byte  `json:"prev_value_base64,omitempty"`
	Created         bool    `json:"created,omitempty"`
	Initial         bool    `json:"initial,omitempty"`
	Size            int64   `json:"size,omitempty"`
}

// blockChange is an event of a watch of blocks in JSON.
type blockChange struct {
	Scope   map[string]string `json:"scope,omitzero"` // none: not known any more
	ScopeID string            `json:"scope_id"`
	ID      string            `json:"id"`
	Rank    uint32            `json:"rank,omitempty"`
	Group   uint32            `json:"group,omitempty"`
	Depth   uint32            `json:"depth,omitempty"`
	Parent  string            `json:"parent,omitempty"`
	Size    int64             `json:"size"`
	Version uint64            `json:"version"`
	Created bool              `json:"created,omitempty"`
	Initial bool              `json:"initial,omitempty"`
	Why     string            `json:"why,omitempty"`
}

// Names of events, as server-sent events have them.
var (
	changeNames = map[kvv1.WatchEventType]string{
		kvv1.WatchEventType_WATCH_EVENT_TYPE_PUT: "put", kvv1.WatchEventType_WATCH_EVENT_TYPE_DELETE: "delete", kvv1.WatchEventType_WATCH_EVENT_TYPE_EXPIRE: "expire",
		kvv1.WatchEventType_WATCH_EVENT_TYPE_STORED: "stored", kvv1.WatchEventType_WATCH_EVENT_TYPE_REMOVED: "removed",
	}
	removalNames = map[kvv1.WatchRemoval]string{
		kvv1.WatchRemoval_WATCH_REMOVAL_DELETED: "deleted", kvv1.WatchRemoval_WATCH_REMOVAL_EVICTED: "evicted", kvv1.WatchRemoval_WATCH_REMOVAL_EXPIRED: "expired",
		kvv1.WatchRemoval_WATCH_REMOVAL_DAMAGED: "damaged", kvv1.WatchRemoval_WATCH_REMOVAL_CLEARED: "cleared",
	}
	controlNames = map[kvv1.WatchControl]string{
		kvv1.WatchControl_WATCH_CONTROL_STARTED: "started", kvv1.WatchControl_WATCH_CONTROL_SYNCED: "synced",
		kvv1.WatchControl_WATCH_CONTROL_PROGRESS: "progress", kvv1.WatchControl_WATCH_CONTROL_RESYNC: "resync",
	}
)

// retryMS is how long a client waits before it comes again.
const retryMS = 1000

// watch tells of changes of keys.
func (q *request) watch() error {
	req, err := q.watchRequest()
	if err != nil {
		return err
	}
	return q.tell(req)
}

// watchBlocks tells of blocks of a scope, or all, that are stored and removed.
func (q *request) watchBlocks() error {
	req := &kvv1.WatchRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	if fields := q.query.all("scope"); len(fields) > 0 {
		scope, err := scopeOf(fields)
		if err != nil {
			return err
		}
		req.Target = &kvv1.WatchRequest_Scope{Scope: scope}
	}
	if err := q.watchFrom(req); err != nil {
		return err
	}
	if err := q.g.calls.HoldsBlocks(q.ctx, req.Keyspace, req.Namespace); err != nil { // a watch without a target would be of its keys
		return err
	}
	return q.tell(req)
}

// tell tells of changes as server-sent events, each batch's last with the token as its id, so that a client that comes again with Last-Event-ID
// goes on where it was.
func (q *request) tell(req *kvv1.WatchRequest) error {
	s := &eventWriter{q: q, values: !req.KeysOnly}
	err := q.g.calls.KV.Watch(req, s)
	if err == nil || !q.began {
		return err
	}
	if s.lost || q.r.Context().Err() != nil {
		return err // nobody is there any more, or reads
	}
	// The status has left: the stream itself tells why it ends, and ends well, so that the client comes again.
	text, merr := json.Marshal(problemOf(err))
	if merr != nil {
		return err
	}
	s.event("", "end", text)
	if werr := s.flush(); werr != nil {
		return werr
	}
	q.g.calls.Note(kvv1.KVService_Watch_FullMethodName, err)
	return nil
}

func (q *request) watchRequest() (*kvv1.WatchRequest, error) {
	req := &kvv1.WatchRequest{}
	req.Keyspace, req.Namespace = q.spaceOf()
	exact, err := q.query.flag("exact")
	if err != nil {
		return nil, err
	}
	if exact {
		req.Target = &kvv1.WatchRequest_Key{Key: []byte(q.vars[0])}
	} else {
		req.Target = &kvv1.WatchRequest_Prefix{Prefix: []byte(q.vars[0])}
	}
	values, err := q.query.flag("values")
	if err != nil {
		return nil, err
	}
	req.KeysOnly = !values
	if req.PrevValue, err = q.query.flag("prev_value"); err != nil {
		return nil, err
	}
	return req, q.watchFrom(req)
}

// watchFrom reads where a watch begins, and what it is told if it cannot follow.
func (q *request) watchFrom(req *kvv1.WatchRequest) error {
	switch mode := q.query.text("mode"); mode {
	case "", "latest":
	case "all":
		req.Mode = kvv1.WatchMode_WATCH_MODE_ALL
	default:
		return kverr.Invalid("mode", "is %.40q; it may be latest or all", mode)
	}
	state, err := q.query.flag("state")
	if err != nil {
		return err
	}
	// A client that comes again asks for the same address: what it has seen last wins over where it began.
	field, token := "Last-Event-ID", q.r.Header.Get("Last-Event-ID")
	if token == "" {
		field, token = "token", q.query.text("token")
		if state && token != "" {
			return kverr.Invalid("state", "is given together with token; a watch begins with one of them")
		}
	}
	switch {
	case token != "":
		from, err := parseToken(field, token)
		if err != nil {
			return err
		}
		req.From = &kvv1.WatchRequest_Token{Token: from}
	case state:
		req.From = &kvv1.WatchRequest_InitialState{InitialState: true}
	}
	return nil
}

// eventWriter takes the messages of a Watch.
type eventWriter struct {
	grpc.ServerStream
	q      *request
	values bool
	lost   bool // a piece was not taken
	buf    bytes.Buffer
}

// Context implements grpc.ServerStream.
func (s *eventWriter) Context() context.Context { return s.q.ctx }

// Send implements grpc.ServerStreamingServer.
func (s *eventWriter) Send(m *kvv1.WatchResponse) error {
	if !s.q.began {
		h := s.q.w.Header()
		h["Content-Type"] = []string{"text/event-stream"}
		h["Cache-Control"] = []string{"no-store"}
		h["X-Accel-Buffering"] = []string{"no"} // for proxies that would gather events
		s.q.begin(http.StatusOK)
		s.buf.WriteString("retry: ")
		s.buf.WriteString(strconv.Itoa(retryMS))
		s.buf.WriteString("\n\n")
	}
	id := ""
	if len(m.Token) > 0 {
		id = tokenText(m.Token)
	}
	if name, ok := controlNames[m.Control]; ok {
		s.event(id, name, []byte("{}"))
	}
	for i, e := range m.Events {
		at := ""
		if i == len(m.Events)-1 {
			at = id
		}
		if err := s.change(at, e); err != nil {
			return err
		}
		if s.buf.Len() >= maxEvents {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	if len(m.Events) == 0 && m.Control == kvv1.WatchControl_WATCH_CONTROL_UNSPECIFIED && id != "" {
		s.event(id, "progress", []byte("{}")) // nothing but a token
	}
	return s.flush()
}

// maxEvents is how many bytes of events gather before they are sent.
const maxEvents = 256 << 10

func (s *eventWriter) change(id string, e *kvv1.WatchEvent) error {
	if e.Block != nil {
		return s.blockChange(id, e)
	}
	out := change{
		Key: string(e.Key), Version: e.Version, PrevVersion: e.PrevVersion, Created: e.Created, Initial: e.Initial, Size: e.Size, ValueLeftOut: e.ValueLeftOut,
	}
	if s.values && e.Type == kvv1.WatchEventType_WATCH_EVENT_TYPE_PUT && !e.ValueLeftOut {
		out.Value, out.ValueBase64 = textOr(e.Value)
	}
	if e.PrevValue != nil {
		out.PrevValue, out.PrevValueBase64 = textOr(e.PrevValue)
	}
	text, err := json.Marshal(&out)
	if err != nil {
		return kverr.Wrap(kverr.Unknown, "encode an event", err)
	}
	s.event(id, changeNames[e.Type], text)
	return nil
}

func (s *eventWriter) blockChange(id string, e *kvv1.WatchEvent) error {
	b := e.Block
	out := blockChange{
		ScopeID: hex.EncodeToString(b.ScopeId), ID: blockText(b.Block.GetId()), Rank: b.Block.GetRank(), Group: b.Block.GetGroup(), Depth: b.Block.GetDepth(),
		Parent: blockText(b.Parent), Size: e.Size, Version: e.Version, Created: e.Created, Initial: e.Initial, Why: removalNames[b.Removal],
	}
	if b.Scope != nil {
		out.Scope = map[string]string{}
		maps.Copy(out.Scope, b.Scope.Fields)
	}
	text, err := json.Marshal(&out)
	if err != nil {
		return kverr.Wrap(kverr.Unknown, "encode an event", err)
	}
	s.event(id, changeNames[e.Type], text)
	return nil
}

// event writes one event; data is one line.
func (s *eventWriter) event(id, name string, data []byte) {
	if id != "" {
		s.buf.WriteString("id: ")
		s.buf.WriteString(id)
		s.buf.WriteByte('\n')
	}
	s.buf.WriteString("event: ")
	s.buf.WriteString(name)
	s.buf.WriteString("\ndata: ")
	s.buf.Write(data)
	s.buf.WriteString("\n\n")
}

// flush sends what has gathered. A client that does not take it in time is cut off: it comes again, and goes on where it was.
func (s *eventWriter) flush() error {
	if err := s.q.write(s.buf.Bytes()); err != nil {
		s.lost = true
		return err
	}
	s.buf.Reset()
	if s.buf.Cap() > 2*maxEvents {
		s.buf = bytes.Buffer{}
	}
	if err := s.q.control.Flush(); err != nil {
		s.lost = true
		return &kverr.Error{Kind: kverr.Canceled, Op: "send events", Err: err}
	}
	return nil
}
