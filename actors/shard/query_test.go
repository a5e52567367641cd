package shard

import (
	"fmt"
	"slices"
	"testing"

	"kvstore/components/kverr"
	"kvstore/components/promptcache"
)

// TestQueries: each query finds what it is for, all as of the view's revision.
func TestQueries(t *testing.T) {
	r := newPromptRig(t, 0)
	for _, k := range []string{"a", "b", "c"} {
		r.step(&Command{Op: OpPut, Namespace: 1, Put: Put{Key: []byte(k), Value: Value{Inline: []byte("v" + k)}}})
	}
	forms := [][]byte{mustForm(t, "model", "x"), mustForm(t, "model", "y")}
	block := func(i int) BlockKey { return BlockKey{ID: fmt.Appendf(nil, "b%d", i)} }
	for _, ns := range []NamespaceID{2, 3} {
		for _, form := range forms {
			args := &PromptArgs{Scope: promptcache.ScopeOf(form), ScopeFields: form}
			for _, i := range []int{0, 1, 3} {
				args.Index = append(args.Index, BlockPut{Block: block(i), Value: Value{Inline: []byte("xyz")}, Size: 3})
			}
			r.step(&Command{Op: OpIndex, Namespace: ns, Prompt: args})
		}
	}
	r.commit()
	v := NewView(r.durable)
	ask := func(q Query) *Answer {
		t.Helper()
		v.Answer(&q)
		if q.Answer.Err != nil {
			t.Fatal(q.Answer.Err)
		}
		if q.Answer.Revision != v.Revision() {
			t.Errorf("query %d: revision %d, the view has %d", q.Op, q.Answer.Revision, v.Revision())
		}
		return &q.Answer
	}

	if a := ask(Query{Op: QueryGet, Namespace: 1, Key: []byte("b")}); !a.Found || string(a.Entry.Value.Inline) != "vb" {
		t.Errorf("get: %+v", a)
	}
	if a := ask(Query{Op: QueryGet, Namespace: 1, Key: []byte("d")}); a.Found {
		t.Errorf("get of nothing: %+v", a)
	}
	if a := ask(Query{Op: QueryList, Namespace: 1, List: &ListQuery{Limit: 2}}); len(a.Entries) != 2 || !a.More {
		t.Errorf("list: %+v", a)
	}
	if a := ask(Query{Op: QueryCount, Namespace: 1, List: &ListQuery{Start: []byte("b")}}); a.Count != 2 {
		t.Errorf("count: %+v", a)
	}

	scope := promptcache.ScopeOf(forms[0])
	blocks := func(n int) (keys []BlockKey) {
		for i := range n {
			keys = append(keys, block(i))
		}
		return keys
	}
	about := func(q BlockQuery) *BlockQuery {
		q.Scope = scope
		if q.ScopeFields == nil {
			q.ScopeFields = forms[0]
		}
		return &q
	}
	if a := ask(Query{Op: QueryHas, Namespace: 2, Prompt: about(BlockQuery{Blocks: blocks(4)})}); !slices.Equal(a.Present, []bool{true, true, false, true}) || a.Blocks != nil {
		t.Errorf("has: %+v", a)
	}
	if a := ask(Query{Op: QueryHas, Namespace: 2, Prompt: about(BlockQuery{Blocks: blocks(4), StopAtMiss: true})}); !slices.Equal(a.Present, []bool{true, true, false}) {
		t.Errorf("has up to a miss: %+v", a)
	}
	for _, stop := range []bool{false, true} {
		other := about(BlockQuery{Blocks: blocks(4), ScopeFields: forms[1], StopAtMiss: stop})
		if a := ask(Query{Op: QueryHas, Namespace: 2, Prompt: other}); slices.Contains(a.Present, true) || !stop && len(a.Present) != 4 {
			t.Errorf("has, under another form: %+v", a)
		}
	}
	if a := ask(Query{Op: QueryBlocks, Namespace: 2, Prompt: about(BlockQuery{Blocks: blocks(4)})}); len(a.Blocks) != 4 || !a.Present[3] || a.Present[2] ||
		string(a.Blocks[3].Value.Inline) != "xyz" {
		t.Errorf("blocks: %+v", a)
	}

	page := ask(Query{Op: QueryBlockPage, Namespace: 3, Prompt: about(BlockQuery{Limit: 2})})
	if len(page.Blocks) != 2 || !page.More || string(page.Blocks[1].ID) != "b1" {
		t.Errorf("page of blocks: %+v", page)
	}
	page = ask(Query{Op: QueryBlockPage, Namespace: 3, Prompt: about(BlockQuery{Limit: 2, After: page.Typed[1]})})
	if len(page.Blocks) != 1 || page.More || string(page.Blocks[0].ID) != "b3" {
		t.Errorf("page of blocks behind it: %+v", page)
	}
	// What a page goes on after comes from outside: it does not lead to another scope's blocks or another namespace's.
	for _, after := range [][]byte{{0}, {0xff}, page.Typed[0][:1]} {
		if a := ask(Query{Op: QueryBlockPage, Namespace: 3, Prompt: about(BlockQuery{Limit: 100, After: after})}); len(a.Blocks) != 3 && len(a.Blocks) != 0 {
			t.Errorf("after %x there are %d blocks", after, len(a.Blocks))
		}
	}

	if a := ask(Query{Op: QueryScope, Namespace: 2, Prompt: about(BlockQuery{})}); len(a.Scopes) != 1 || a.Scopes[0].Blocks != 3 || a.Scopes[0].Bytes != 9 {
		t.Errorf("scope: %+v", a)
	}
	if a := ask(Query{Op: QueryScope, Namespace: 2, Prompt: about(BlockQuery{ScopeFields: forms[1]})}); len(a.Scopes) != 0 {
		t.Errorf("scope under another form: %+v", a)
	}
	first := ask(Query{Op: QueryScopes, Namespace: 2, Prompt: &BlockQuery{Limit: 1}})
	if len(first.Scopes) != 1 || !first.More {
		t.Fatalf("scopes: %+v", first)
	}
	if a := ask(Query{Op: QueryScopes, Namespace: 2, Prompt: &BlockQuery{Limit: 5, After: first.Scopes[0].Scope[:]}}); len(a.Scopes) != 1 || a.More {
		t.Errorf("scopes behind it: %+v", a)
	}

	q := Query{Op: 200}
	if v.Answer(&q); q.Answer.Err == nil || q.Answer.Err.Kind != kverr.Unimplemented {
		t.Errorf("a query of a newer release: %v", q.Answer.Err)
	}
}

func mustForm(t *testing.T, name, value string) []byte {
	form, err := promptcache.Canonical(map[string]string{name: value})
	if err != nil {
		t.Fatal(err)
	}
	return form
}
