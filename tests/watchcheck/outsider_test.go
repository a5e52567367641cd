package watchcheck

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"kvstore/client"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
	"kvstore/tests/checked"
)

// outsider is a watcher who speaks a protocol himself, without package client. Now and then he leaves, and goes on from his token.
type outsider struct {
	told
	kind checked.Kind
	r    *rand.Rand
	// watch is one watch, through one of the proxies. It ends with nil when he has had enough, with a *kverr.Error when the watch is over, and with another
	// error when what he was told is wrong.
	watch func(ctx context.Context, o *outsider) error
	left  int // tokens until he leaves
}

// outsiderKinds are what they ask for, by how they ask.
var outsiderKinds = struct{ sse, single []checked.Kind }{
	sse: []checked.Kind{
		{Name: "prefix, ALL, with the value before, by SSE", WatchOptions: client.WatchOptions{All: true, Prefix: "w0", PrevValue: true}},
		{Name: "all blocks, ALL, by SSE", WatchOptions: client.WatchOptions{All: true}, Blocks: true},
	},
	single: []checked.Kind{
		{Name: "namespace, ALL, keys only, by a Watch", WatchOptions: client.WatchOptions{All: true, KeysOnly: true}},
		{Name: "all blocks, LATEST, by a Watch", Blocks: true},
	},
}

// newOutsiders makes one of each kind.
func newOutsiders(t *testing.T, s *store, l *checked.Load, seed uint64) (all []*outsider) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true} // who comes again may come to another frontend
	t.Cleanup(transport.CloseIdleConnections)
	var rest []string
	for _, p := range s.rest {
		rest = append(rest, "http://"+p.Addr()+"/api/v1")
	}
	var conns []*grpc.ClientConn
	for _, p := range s.proxies {
		conn, err := grpc.NewClient("passthrough:///"+p.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second,
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		conns = append(conns, conn)
	}
	add := func(k checked.Kind, watch func(context.Context, *outsider) error) {
		all = append(all, &outsider{told: told{account: l.Outsider(k)}, kind: k, r: rand.New(rand.NewPCG(seed, uint64(2_000_000+len(all)))), watch: watch})
	}
	for _, k := range outsiderKinds.sse {
		add(k, func(ctx context.Context, o *outsider) error { return o.sse(ctx, transport, rest[o.r.IntN(len(rest))]) })
	}
	for _, k := range outsiderKinds.single {
		add(k, func(ctx context.Context, o *outsider) error { return o.single(ctx, conns[o.r.IntN(len(conns))]) })
	}
	return all
}

// run watches until ctx ends.
func (o *outsider) run(ctx context.Context) error {
	for ctx.Err() == nil {
		o.left = 1 + o.r.IntN(30)
		o.begin()
		watching, leave := context.WithCancel(ctx)
		err := o.watch(watching, o)
		leave()
		var why *kverr.Error
		switch {
		case err == nil:
			continue
		case !errors.As(err, &why):
		case ctx.Err() != nil: // it has ended for that
			continue
		case why.Kind == kverr.Compacted && o.kind.All && o.token != nil:
			o.compacted()
			continue
		case why.Kind == kverr.Unavailable, why.Kind == kverr.OutcomeUnknown:
			wait(ctx, 20*time.Millisecond)
			continue
		}
		return fmt.Errorf("watcher of %s: %w", o.kind.Name, err)
	}
	return nil
}

// enough tells whether he leaves: he has got somewhere, and that is it for now.
func (o *outsider) enough(token []byte) bool {
	if len(token) > 0 {
		o.left--
	}
	return o.left <= 0
}

// single is a watch that has its stream for itself, by gRPC.
func (o *outsider) single(ctx context.Context, conn *grpc.ClientConn) error {
	req := &kvv1.WatchRequest{KeysOnly: o.kind.KeysOnly, PrevValue: o.kind.PrevValue, From: &kvv1.WatchRequest_InitialState{InitialState: true}}
	if o.kind.Blocks {
		req.Namespace = checked.PromptNamespace
	}
	if o.kind.All {
		req.Mode = kvv1.WatchMode_WATCH_MODE_ALL
	}
	if o.token != nil {
		req.From = &kvv1.WatchRequest_Token{Token: o.token}
	}
	stream, err := kvv1.NewKVServiceClient(conn).Watch(ctx, req)
	if err != nil {
		return kverr.FromGRPC(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the watch ended, and nobody said why")
		}
		if err != nil {
			return kverr.FromGRPC(err)
		}
		for i, e := range m.Events {
			var token []byte
			if i == len(m.Events)-1 {
				token = m.Token
			}
			if err := o.change(eventOf(e), token); err != nil {
				return err
			}
		}
		if m.Control != kvv1.WatchControl_WATCH_CONTROL_UNSPECIFIED {
			if err := o.stand(strings.TrimPrefix(m.Control.String(), "WATCH_CONTROL_"), m.Token); err != nil {
				return err
			}
		} else if len(m.Events) == 0 { // nothing but a token
			if err := o.upTo(m.Token); err != nil {
				return err
			}
		}
		if o.enough(m.Token) {
			return nil
		}
	}
}

// eventOf is an event as package client tells it.
func eventOf(e *kvv1.WatchEvent) client.Event {
	out := client.Event{
		Type: client.EventType(e.Type), Key: string(e.Key), Value: e.Value, Version: e.Version, PrevVersion: e.PrevVersion, Created: e.Created, Initial: e.Initial,
		Size: e.Size, ValueLeftOut: e.ValueLeftOut, PrevValue: e.PrevValue,
	}
	if b := e.Block; b != nil {
		out.Block = &client.BlockEvent{
			Scope: b.Scope.GetFields(), Parent: b.Parent,
			Ref: client.BlockRef{ID: b.Block.GetId(), Rank: b.Block.GetRank(), Group: b.Block.GetGroup(), Depth: b.Block.GetDepth()},
		}
		copy(out.Block.ScopeID[:], b.ScopeId)
		if b.Removal != 0 {
			out.Block.Why = strings.TrimPrefix(b.Removal.String(), "WATCH_REMOVAL_")
		}
	}
	return out
}

// sse is a watch by server-sent events. It asks for the same address each time, as a browser does, with the last id that it was told.
func (o *outsider) sse(ctx context.Context, transport *http.Transport, base string) error {
	query := url.Values{"state": {"true"}}
	path := "/watch/" + o.kind.Prefix
	if o.kind.Blocks {
		path = "/prompt/watch"
		query.Set("namespace", checked.PromptNamespace)
	} else {
		query.Set("values", fmt.Sprint(!o.kind.KeysOnly))
		query.Set("prev_value", fmt.Sprint(o.kind.PrevValue))
	}
	if o.kind.All {
		query.Set("mode", "all")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	if o.token != nil {
		req.Header.Set("Last-Event-ID", base64.RawURLEncoding.EncodeToString(o.token))
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return &kverr.Error{Kind: kverr.Unavailable, Err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return &kverr.Error{Kind: kverr.Unavailable, Err: err}
		}
		return problem(text)
	}
	in := bufio.NewReader(resp.Body)
	var id, name, data string
	for {
		line, err := in.ReadString('\n')
		if err != nil { // cut off; an event that is not whole is none
			return &kverr.Error{Kind: kverr.Unavailable, Err: err}
		}
		switch field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); field {
		case "id":
			id = value
		case "event":
			name = value
		case "data":
			data = value
		case "retry":
		case "":
			if name == "" {
				continue
			}
			token, err := base64.RawURLEncoding.DecodeString(id)
			if err != nil {
				return fmt.Errorf("the id %q: %w", id, err)
			}
			switch name {
			case "end":
				return problem([]byte(data))
			case "put", "delete", "expire", "stored", "removed":
				var e client.Event
				if e, err = eventOfJSON(name, data); err == nil {
					err = o.change(e, token)
				}
			default:
				err = o.stand(strings.ToUpper(name), token)
			}
			if err != nil {
				return fmt.Errorf("%s %.300s: %w", name, data, err)
			}
			if o.enough(token) {
				return nil
			}
			id, name, data = "", "", ""
		default:
			return fmt.Errorf("told the line %.300q", line)
		}
	}
}

// problem is the error that a problem document tells; it is no *kverr.Error if that is none that a watch ends with.
func problem(text []byte) error {
	var p struct{ Reason, Detail string }
	if err := json.Unmarshal(text, &p); err != nil {
		return fmt.Errorf("%w in %.300q", err, text)
	}
	for _, k := range []kverr.Kind{kverr.Unavailable, kverr.OutcomeUnknown, kverr.Compacted} {
		if k.Reason() == p.Reason {
			return &kverr.Error{Kind: k, Message: p.Detail}
		}
	}
	return fmt.Errorf("refused: %s", text)
}

// eventOfJSON is an event as package client tells it.
func eventOfJSON(name, data string) (client.Event, error) {
	var in struct {
		Key             string
		Value           *string
		ValueBase64     []byte `json:"value_base64"`
		ValueLeftOut    bool   `json:"value_left_out"`
		Version         uint64
		PrevVersion     uint64  `json:"prev_version"`
		PrevValue       *string `json:"prev_value"`
		PrevValueBase64 []byte  `json:"prev_value_base64"`
		Created         bool
		Initial         bool
		Size            int64

		Scope   client.Scope
		ScopeID string `json:"scope_id"`
		ID      string
		Rank    uint32
		Group   uint32
		Depth   uint32
		Parent  string
		Why     string
	}
	if err := json.Unmarshal([]byte(data), &in); err != nil {
		return client.Event{}, err
	}
	either := func(text *string, bytes []byte) []byte {
		if text != nil {
			return []byte(*text)
		}
		return bytes
	}
	out := client.Event{
		Type: types[strings.ToUpper(name)], Key: in.Key, Value: either(in.Value, in.ValueBase64), Version: in.Version, PrevVersion: in.PrevVersion,
		Created: in.Created, Initial: in.Initial, Size: in.Size, ValueLeftOut: in.ValueLeftOut, PrevValue: either(in.PrevValue, in.PrevValueBase64),
	}
	if in.ScopeID != "" {
		scope, err := hex.DecodeString(in.ScopeID)
		if err != nil || len(scope) != 16 {
			return client.Event{}, fmt.Errorf("the scope %q", in.ScopeID)
		}
		out.Block = &client.BlockEvent{
			ScopeID: [16]byte(scope), Scope: in.Scope, Ref: client.BlockRef{ID: []byte(in.ID), Rank: in.Rank, Group: in.Group, Depth: in.Depth},
			Parent: []byte(in.Parent), Why: strings.ToUpper(in.Why),
		}
	}
	return out, nil
}
