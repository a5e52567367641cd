package shard

import (
	"kvstore/actors/host"
	"kvstore/components/kverr"
)

// QueryOp is what a query asks for.
type QueryOp uint8

// Queries. Values are sent between hosts: append only.
const (
	QueryNone      QueryOp = iota
	QueryGet               // the entry of Key
	QueryList              // a page of List
	QueryCount             // how many keys List selects
	QueryHas               // Prompt: which of Blocks are there
	QueryBlocks            // Prompt: those of Blocks that are there
	QueryBlockPage         // Prompt: a page of the blocks of Scope
	QueryScope             // Prompt: what Scope takes
	QueryScopes            // Prompt: a page of the scopes that have blocks
)

// queryNames are the names of queries, for who looks on.
var queryNames = [...]string{
	QueryNone: "none", QueryGet: "get", QueryList: "list", QueryCount: "count", QueryHas: "has_blocks", QueryBlocks: "get_blocks", QueryBlockPage: "list_blocks",
	QueryScope: "scope", QueryScopes: "list_scopes",
}

// String is the query's name.
func (o QueryOp) String() string {
	if int(o) < len(queryNames) {
		return queryNames[o]
	}
	return "unknown"
}

// BlockQuery are the arguments of queries about prompt blocks.
type BlockQuery struct {
	Scope       ScopeID
	ScopeFields []byte // canonical form; blocks under another form are not the scope's
	Blocks      []BlockKey
	StopAtMiss  bool   // QueryHas and QueryBlocks: nothing after the first of Blocks that is absent is looked for
	After       []byte // pages: the typed key, or the scope id, that the page before ended with
	Limit       int    // pages: most entries
}

// Query is one question to a shard. Exactly the arguments of its Op are set; it belongs to whoever answers until Done is called.
type Query struct {
	Op        QueryOp
	Namespace NamespaceID
	Key       []byte
	List      *ListQuery
	Prompt    *BlockQuery

	// UntilMS is when whoever waits for the answer stops waiting, by the clock of the process that it is in; 0 = not known. It does not travel.
	UntilMS int64

	// Answer is valid once Done is called with a nil error. What it points to is never changed.
	Answer Answer
	// Done is called exactly once, by Release; it must not block.
	Done func(q *Query, err error)
	// Follow is who follows the query, until Release; nil for almost all.
	Follow *host.Way
}

// Release calls Done, once whoever follows the query is told.
func (q *Query) Release(err error) {
	if w := q.Follow; w != nil {
		q.Follow = nil
		if err == nil && q.Answer.Err != nil {
			w.End(q.Answer.Err)
		} else {
			w.End(err)
		}
	}
	q.Done(q, err)
}

// Answer is what a query found. All of it is as of one durable state of the shard, which has Revision.
type Answer struct {
	// Err is DataLoss when something is there that cannot be decoded; of a page, what came before it is told.
	Err      *kverr.Error
	Revision uint64
	Found    bool  // QueryGet
	Entry    Entry // QueryGet
	Entries  []Entry
	Count    int64
	Present  []bool  // QueryHas and QueryBlocks, by position in Blocks; it ends with the first miss when asked to stop there
	Blocks   []Block // QueryBlocks: by position in Blocks, valid where Present; QueryBlockPage: the page
	Typed    [][]byte
	Scopes   []ScopeUsage // QueryScope: none or one
	More     bool         // pages: there is more behind
}

// Answer answers a query from the view; Done is left to the caller.
func (v View) Answer(q *Query) {
	a := &q.Answer
	a.Revision = v.Revision()
	p := q.Prompt
	switch q.Op {
	case QueryGet:
		a.Entry, a.Found, a.Err = v.Get(q.Namespace, q.Key)
	case QueryList:
		a.Entries, a.More, a.Err = v.List(q.Namespace, *q.List)
	case QueryCount:
		a.Count = v.Count(q.Namespace, *q.List)
	case QueryHas, QueryBlocks:
		v.answerBlocks(q)
	case QueryBlockPage:
		if v.HasScope(q.Namespace, p.Scope, p.ScopeFields) {
			a.Blocks, a.Typed, a.More = v.Blocks(q.Namespace, p.Scope, p.After, p.Limit)
		}
	case QueryScope:
		if u, ok := v.Scope(q.Namespace, p.Scope); ok && string(u.Fields) == string(p.ScopeFields) {
			a.Scopes = []ScopeUsage{u}
		}
	case QueryScopes:
		var after *ScopeID
		if len(p.After) == len(after) {
			after = (*ScopeID)(p.After)
		}
		a.Scopes, a.More = v.Scopes(q.Namespace, after, p.Limit)
	default:
		a.Err = kverr.New(kverr.Unimplemented, "read", "query %d is not known to this release", q.Op)
	}
}

func (v View) answerBlocks(q *Query) {
	a, p := &q.Answer, q.Prompt
	if !v.HasScope(q.Namespace, p.Scope, p.ScopeFields) {
		a.Present = make([]bool, min(len(p.Blocks), 1))
		if !p.StopAtMiss {
			a.Present = make([]bool, len(p.Blocks))
		}
		return
	}
	a.Present = make([]bool, 0, len(p.Blocks))
	if q.Op == QueryBlocks {
		a.Blocks = make([]Block, len(p.Blocks))
	}
	for i := range p.Blocks {
		b, ok := v.Block(q.Namespace, p.Scope, p.Blocks[i])
		a.Present = append(a.Present, ok)
		if !ok && p.StopAtMiss {
			return
		}
		if ok && q.Op == QueryBlocks {
			a.Blocks[i] = b
		}
	}
}
