package frontend

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/tap"

	"kvstore/components/authn"
	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// needs is what each call needs of the token that it comes with. A call that is not here is refused (UNIMPLEMENTED), whoever registered
// it; a test walks all that are registered. Roles are of the keyspace that the request names, see Server.keyspace.
var needs = map[string]authn.Need{
	kvv1.KVService_Get_FullMethodName:         authn.Read,
	kvv1.KVService_BatchGet_FullMethodName:    authn.Read,
	kvv1.KVService_List_FullMethodName:        authn.Read,
	kvv1.KVService_GetStream_FullMethodName:   authn.Read,
	kvv1.KVService_Watch_FullMethodName:       authn.Read,
	kvv1.KVService_Watches_FullMethodName:     authn.Read,
	kvv1.KVService_Put_FullMethodName:         authn.Write,
	kvv1.KVService_Delete_FullMethodName:      authn.Write,
	kvv1.KVService_BatchPut_FullMethodName:    authn.Write,
	kvv1.KVService_BatchDelete_FullMethodName: authn.Write,
	kvv1.KVService_Transaction_FullMethodName: authn.Write,
	kvv1.KVService_PutStream_FullMethodName:   authn.Write,
	kvv1.KVService_Pipeline_FullMethodName:    authn.Read, // each frame for its keyspace; its puts and deletes need Write

	kvv1.PromptCacheService_Lookup_FullMethodName:  authn.Read,
	kvv1.PromptCacheService_Read_FullMethodName:    authn.Read,
	kvv1.PromptCacheService_List_FullMethodName:    authn.Read,
	kvv1.PromptCacheService_Usage_FullMethodName:   authn.Read,
	kvv1.PromptCacheService_Write_FullMethodName:   authn.Write,
	kvv1.PromptCacheService_Release_FullMethodName: authn.Write,
	kvv1.PromptCacheService_Touch_FullMethodName:   authn.Write,
	kvv1.PromptCacheService_Pin_FullMethodName:     authn.Write,
	kvv1.PromptCacheService_Delete_FullMethodName:  authn.Write,
	kvv1.PromptCacheService_Clear_FullMethodName:   authn.Write,

	kvv1.AdminService_CreateKeyspace_FullMethodName:  authn.ServerAdmin,
	kvv1.AdminService_DeleteKeyspace_FullMethodName:  authn.ServerAdmin,
	kvv1.AdminService_ListKeyspaces_FullMethodName:   authn.ServerAdmin,
	kvv1.AdminService_GetKeyspace_FullMethodName:     authn.See,
	kvv1.AdminService_GetNamespace_FullMethodName:    authn.See,
	kvv1.AdminService_ListNamespaces_FullMethodName:  authn.See,
	kvv1.AdminService_CreateNamespace_FullMethodName: authn.Admin,
	kvv1.AdminService_UpdateNamespace_FullMethodName: authn.Admin,
	kvv1.AdminService_DeleteNamespace_FullMethodName: authn.Admin,
	kvv1.AdminService_AcceptLoss_FullMethodName:      authn.ServerAdmin,
	kvv1.AdminService_Status_FullMethodName:          authn.AnyToken, // the clock and the version; the rest needs ServerAdmin

	healthpb.Health_Check_FullMethodName: authn.AnyToken,
	healthpb.Health_List_FullMethodName:  authn.AnyToken,
	healthpb.Health_Watch_FullMethodName: authn.AnyToken,

	reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName:      authn.AnyToken,
	reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName: authn.AnyToken,
}

var errNoSuchCall = &kverr.Error{Kind: kverr.Unimplemented, Message: "this server knows no such call"}

// Options are the options of a gRPC server that this frontend is registered with. Where tokens are wanted, they are wanted by all that
// the server answers, health and reflection too.
func (s *Server) Options() []grpc.ServerOption {
	options := ServerOptions()
	if !s.cfg.Access.Open() {
		options = append(options, grpc.InTapHandle(s.admit))
	}
	return options
}

// admit runs for every call when its headers have come and nothing else: a call without a good token costs neither a goroutine nor a
// byte of memory for its message. gRPC holds a lock of the connection meanwhile.
func (s *Server) admit(ctx context.Context, call *tap.Info) (context.Context, error) {
	need, known := needs[call.FullMethodName]
	var pass *authn.Pass
	err := errNoSuchCall // with a token or without: sidecars ask what a server knows, and which calls there are is no secret
	if known {
		pass, err = s.cfg.Access.Admit(call.Header["authorization"], need)
	}
	if err != nil {
		s.refusals.note(ctx, call.FullMethodName, err)
		return ctx, err
	}
	return authn.NewContext(ctx, pass), nil
}

// cameByDoor refuses a call that no door has let in, whatever way it took.
func (s *Server) cameByDoor(ctx context.Context) *kverr.Error {
	if s.cfg.Access.Open() || authn.FromContext(ctx) != nil {
		return nil
	}
	return s.cfg.Access.Check(nil, "")
}

// mayWrite tells whether a part of a call that was let in to read may write too.
func (s *Server) mayWrite(ctx context.Context, keyspace string) *kverr.Error {
	return s.cfg.Access.CheckFor(authn.FromContext(ctx), authn.Write, keyspace)
}

// seesServer tells whether a caller may know of what is not in his keyspaces.
func (s *Server) seesServer(ctx context.Context) bool {
	return s.cfg.Access.CheckFor(authn.FromContext(ctx), authn.ServerAdmin, "") == nil
}

// keyspace finds the keyspace of a request, for whoever may do there what the call does. It is the only way from a name to a keyspace:
// rights are compared by name before anything is looked up, so a refusal does not tell whether the keyspace exists.
func (s *Server) keyspace(ctx context.Context, name string) (*Keyspace, *kverr.Error) {
	if err := s.cfg.Access.Check(authn.FromContext(ctx), name); err != nil {
		method, _ := grpc.Method(ctx)
		s.refusals.note(ctx, method, err)
		return nil, err
	}
	c, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	ks, err := c.keyspace(name)
	if err != nil && !s.seesServer(ctx) {
		return nil, errNoKeyspace
	}
	return ks, err
}

// errNoKeyspace is for those who have a role in a keyspace that is not there, and need not know which are.
var errNoKeyspace = &kverr.Error{Kind: kverr.NotFound, Message: "the keyspace does not exist (yet, or any more)"}

// refusals counts refused calls and logs them: of strangers at most one a second, and of known callers, whom the strangers do not drown, as many; each with
// how many were left out. Never what came in place of a token.
type refusals struct {
	cfg *Config

	mu               sync.Mutex
	strangers, known turn // guarded by mu
}

// turn is when the next line may be logged.
type turn struct {
	next    time.Time
	leftOut int
}

func (r *refusals) note(ctx context.Context, method string, err *kverr.Error) {
	r.cfg.Meter.Refused(err.Kind)
	now := r.cfg.Now()
	r.mu.Lock()
	t := &r.strangers
	if err.Kind == kverr.PermissionDenied {
		t = &r.known
	}
	if now.Before(t.next) {
		t.leftOut++
		r.mu.Unlock()
		return
	}
	leftOut := t.leftOut
	*t = turn{next: now.Add(faultEvery)}
	r.mu.Unlock()
	from := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	of := ""
	if pass := authn.FromContext(ctx); pass != nil {
		of = pass.Name()
	}
	r.cfg.Log.Warn("a call was refused at the door", "from", from, "call", method[:min(len(method), 100)], "kind", err.Kind.String(),
		"why", err.Message, "token_of", of, "not_logged_before", leftOut)
}
