package gateway

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"kvstore/components/kverr"
	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// prefix is what every path begins with.
const prefix = "/api/v1"

// route is an operation: a method on a path.
type route struct {
	method string
	// path may hold {name}, which is one element, and at its end {name...}, which is all that follows, also nothing. Both are decoded once and never
	// cleaned: a//b and a/../b are keys like others.
	path string
	id   string // operationId
	// call is the call of the frontend whose rights it needs; "" = none. What the frontend does not do itself needs those of an operator.
	call   string
	params string // of the query, besides keyspace and namespace of operations that have a call
	stream bool   // its time is not bounded unless the caller bounds it
	watch  bool
	handle func(*request) error
}

// routes are all operations. A test holds openapi.yaml to it.
var routes = []route{
	{method: "GET", path: prefix + "/keys/{key...}", id: "getKey", call: kvv1.KVService_GetStream_FullMethodName, stream: true, handle: (*request).getKey},
	{method: "HEAD", path: prefix + "/keys/{key...}", id: "headKey", call: kvv1.KVService_Get_FullMethodName, handle: (*request).headKey},
	{method: "PUT", path: prefix + "/keys/{key...}", id: "putKey", call: kvv1.KVService_PutStream_FullMethodName, stream: true, handle: (*request).putKey},
	{method: "DELETE", path: prefix + "/keys/{key...}", id: "deleteKey", call: kvv1.KVService_Delete_FullMethodName, handle: (*request).deleteKey},
	{method: "GET", path: prefix + "/keys", id: "listKeys", call: kvv1.KVService_List_FullMethodName, params: "prefix start end limit page_token values count_only", handle: (*request).listKeys},
	{method: "POST", path: prefix + "/batch/put", id: "batchPut", call: kvv1.KVService_BatchPut_FullMethodName, handle: (*request).batchPut},
	{method: "POST", path: prefix + "/batch/get", id: "batchGet", call: kvv1.KVService_BatchGet_FullMethodName, handle: (*request).batchGet},
	{method: "POST", path: prefix + "/batch/delete", id: "batchDelete", call: kvv1.KVService_BatchDelete_FullMethodName, handle: (*request).batchDelete},
	{method: "POST", path: prefix + "/transaction", id: "transaction", call: kvv1.KVService_Transaction_FullMethodName, handle: (*request).transaction},
	{method: "GET", path: prefix + "/watch/{prefix...}", id: "watch", call: kvv1.KVService_Watch_FullMethodName, params: "exact state token mode values prev_value", stream: true, watch: true, handle: (*request).watch},

	{method: "POST", path: prefix + "/prompt/lookup", id: "promptLookup", call: kvv1.PromptCacheService_Lookup_FullMethodName, handle: (*request).promptLookup},
	{method: "POST", path: prefix + "/prompt/release", id: "promptRelease", call: kvv1.PromptCacheService_Release_FullMethodName, handle: (*request).promptRelease},
	{method: "POST", path: prefix + "/prompt/touch", id: "promptTouch", call: kvv1.PromptCacheService_Touch_FullMethodName, handle: (*request).promptTouch},
	{method: "POST", path: prefix + "/prompt/pin", id: "promptPin", call: kvv1.PromptCacheService_Pin_FullMethodName, handle: (*request).promptPin},
	{method: "POST", path: prefix + "/prompt/delete", id: "promptDelete", call: kvv1.PromptCacheService_Delete_FullMethodName, handle: (*request).promptDelete},
	{method: "GET", path: prefix + "/prompt/watch", id: "watchBlocks", call: kvv1.KVService_Watch_FullMethodName, params: "scope* state token mode", stream: true, watch: true, handle: (*request).watchBlocks},
	{method: "GET", path: prefix + "/prompt/blocks/{id...}", id: "getBlock", call: kvv1.PromptCacheService_Read_FullMethodName, params: "scope* rank group", stream: true, handle: (*request).getBlock},
	{method: "PUT", path: prefix + "/prompt/blocks/{id...}", id: "putBlock", call: kvv1.PromptCacheService_Write_FullMethodName, params: "scope* rank group depth parent", stream: true, handle: (*request).putBlock},
	{method: "DELETE", path: prefix + "/prompt/blocks/{id...}", id: "deleteBlock", call: kvv1.PromptCacheService_Delete_FullMethodName, params: "scope* rank group", handle: (*request).deleteBlock},

	{method: "GET", path: prefix + "/keyspaces", id: "listKeyspaces", call: kvv1.AdminService_ListKeyspaces_FullMethodName, handle: (*request).listKeyspaces},
	{method: "POST", path: prefix + "/keyspaces", id: "createKeyspace", call: kvv1.AdminService_CreateKeyspace_FullMethodName, handle: (*request).createKeyspace},
	{method: "GET", path: prefix + "/keyspaces/{keyspace}", id: "getKeyspace", call: kvv1.AdminService_GetKeyspace_FullMethodName, handle: (*request).getKeyspace},
	{method: "DELETE", path: prefix + "/keyspaces/{keyspace}", id: "deleteKeyspace", call: kvv1.AdminService_DeleteKeyspace_FullMethodName, params: "confirm", handle: (*request).deleteKeyspace},
	{method: "GET", path: prefix + "/keyspaces/{keyspace}/namespaces", id: "listNamespaces", call: kvv1.AdminService_ListNamespaces_FullMethodName, handle: (*request).listNamespaces},
	{method: "POST", path: prefix + "/keyspaces/{keyspace}/namespaces", id: "createNamespace", call: kvv1.AdminService_CreateNamespace_FullMethodName, handle: (*request).createNamespace},
	{method: "GET", path: prefix + "/keyspaces/{keyspace}/namespaces/{namespace}", id: "getNamespace", call: kvv1.AdminService_GetNamespace_FullMethodName, handle: (*request).getNamespace},
	{method: "PATCH", path: prefix + "/keyspaces/{keyspace}/namespaces/{namespace}", id: "updateNamespace", call: kvv1.AdminService_UpdateNamespace_FullMethodName, handle: (*request).updateNamespace},
	{method: "DELETE", path: prefix + "/keyspaces/{keyspace}/namespaces/{namespace}", id: "deleteNamespace", call: kvv1.AdminService_DeleteNamespace_FullMethodName, params: "confirm", handle: (*request).deleteNamespace},

	{method: "GET", path: prefix + "/admin/status", id: "status", call: kvv1.AdminService_Status_FullMethodName, handle: (*request).status},
	{method: "GET", path: prefix + "/admin/metrics", id: "metrics", call: kvv1.AdminService_ListKeyspaces_FullMethodName, handle: (*request).metrics},
	{method: "POST", path: prefix + "/admin/backup", id: "backup", call: kvv1.AdminService_ListKeyspaces_FullMethodName, handle: (*request).later},
	{method: "POST", path: prefix + "/admin/restore", id: "restore", call: kvv1.AdminService_ListKeyspaces_FullMethodName, handle: (*request).later},

	{method: "GET", path: prefix + "/openapi.yaml", id: "openapi", handle: (*request).openapi},
}

// resource is a path with all its methods.
type resource struct {
	parts  []string // elements of the path; "" stands for a variable
	rest   bool     // the last takes all that follows
	routes map[string]*route
	allow  string // for the header Allow
}

// newResources gathers the methods of each path, in the order of the table.
func newResources(all []route) []resource {
	var out []resource
	at := make(map[string]int)
	for i := range all {
		rt := &all[i]
		n, ok := at[rt.path]
		if !ok {
			n = len(out)
			at[rt.path] = n
			res := resource{routes: make(map[string]*route)}
			for _, part := range strings.Split(rt.path, "/") {
				if strings.HasPrefix(part, "{") {
					res.rest = strings.HasSuffix(part, "...}")
					part = ""
				} else {
					res.rest = false
				}
				res.parts = append(res.parts, part)
			}
			out = append(out, res)
		}
		out[n].routes[rt.method] = rt
	}
	for i := range out {
		methods := []string{"OPTIONS"}
		for m, rt := range out[i].routes {
			methods = append(methods, m)
			if m == "GET" && !rt.stream {
				methods = append(methods, "HEAD")
			}
		}
		slices.Sort(methods)
		out[i].allow = strings.Join(slices.Compact(methods), ", ")
	}
	return out
}

// match compares a path, as it came, with the resource and takes its variables.
func (res *resource) match(path string, vars *[2]string) bool {
	n := 0
	for i, part := range res.parts {
		last := i == len(res.parts)-1
		if last && res.rest {
			vars[n] = path
			return true
		}
		element, rest, more := strings.Cut(path, "/")
		if more == last || part != "" && element != part {
			return false
		}
		if part == "" && i > 0 {
			if element == "" {
				return false
			}
			vars[n] = element
			n++
		} else if element != part {
			return false
		}
		path = rest
	}
	return true
}

// route finds the operation of a request; nil when it was answered already.
func (g *Gateway) route(q *request) (*route, error) {
	path := q.r.URL.EscapedPath()
	for i := range g.resources {
		res := &g.resources[i]
		if !res.match(path, &q.vars) {
			continue
		}
		for n, v := range q.vars {
			if strings.IndexByte(v, '%') < 0 {
				continue
			}
			decoded, err := url.PathUnescape(v)
			if err != nil { // cannot happen: net/http has refused it
				return nil, kverr.Invalid("path", "has a bad escape")
			}
			q.vars[n] = decoded
		}
		rt := res.routes[q.r.Method]
		switch {
		case rt != nil:
			return rt, nil
		case q.r.Method == http.MethodHead && res.routes["GET"] != nil && !res.routes["GET"].stream:
			return res.routes["GET"], nil
		case q.r.Method == http.MethodOptions:
			q.w.Header().Set("Allow", res.allow)
			q.w.WriteHeader(http.StatusNoContent)
			return nil, nil
		}
		ref := refuse(http.StatusMethodNotAllowed, reasonMethod, "%.20s is not a method of this path; there are %s", q.r.Method, res.allow)
		ref.header = http.Header{"Allow": {res.allow}}
		return nil, ref
	}
	return nil, refuse(http.StatusNotFound, reasonNoSuchPath, "there is nothing at this path; %s/openapi.yaml tells what there is", prefix)
}
