package gateway

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// openDocument parses and validates the document as one of OpenAPI 3.
func openDocument(tb testing.TB) *openapi3.T {
	tb.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(Document())
	if err != nil {
		tb.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return doc
}

// TestDocument: the document is valid, every operation is in it and the reverse, with the same id, path variables and parameters, and it
// says of each how it fails.
func TestDocument(t *testing.T) {
	doc := openDocument(t)
	told := map[string]*openapi3.Operation{}
	shared := map[string]openapi3.Parameters{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			told[method+" "+path] = op
			shared[method+" "+path] = item.Parameters
		}
	}
	ids := map[string]bool{}
	for i := range routes {
		rt := &routes[i]
		name := rt.method + " " + strings.ReplaceAll(rt.path, "...}", "}")
		op := told[name]
		if op == nil {
			t.Errorf("%s is not in openapi.yaml", name)
			continue
		}
		delete(told, name)
		if op.OperationID != rt.id || ids[rt.id] {
			t.Errorf("%s has the id %q, and the document says %q", name, rt.id, op.OperationID)
		}
		ids[rt.id] = true
		if op.Responses.Default() == nil || op.Summary == "" || len(op.Tags) != 1 {
			t.Errorf("%s does not tell what it is, or how it fails", name)
		}
		query, path := map[string]bool{}, map[string]bool{}
		for _, p := range slices.Concat(shared[name], op.Parameters) {
			switch p.Value.In {
			case "query":
				query[p.Value.Name] = true
			case "path":
				path[p.Value.Name] = true
			}
		}
		want := map[string]bool{}
		for _, p := range strings.Fields(rt.params) {
			want[strings.TrimSuffix(p, "*")] = true
		}
		if rt.spaced() {
			want["keyspace"], want["namespace"] = true, true
		}
		if !maps.Equal(query, want) {
			t.Errorf("%s takes %v, and the document says %v", name, want, query)
		}
		if n := strings.Count(rt.path, "{"); n != len(path) {
			t.Errorf("%s has %d variables in its path, and the document says %v", name, n, path)
		}
	}
	for name := range told {
		t.Errorf("openapi.yaml has %s, which nobody serves", name)
	}
}
