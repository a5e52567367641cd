package resp

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"kvstore/actors/shard"
	"kvstore/components/kverr"
	"kvstore/components/tracing"
	"kvstore/services/frontend"
)

// counted is how a request is counted, and followed, until its reply is made.
type counted struct {
	counter frontend.Counter // nil: it was counted
	began   time.Duration    // by Server.since
	kind    kverr.Kind       // of a reply that is made: why it is an error; 0 = it is none
	span    trace.Span       // nil: nobody follows
}

// newCounters asks for the counters of all commands, and of what is none.
func newCounters(m frontend.Meter) (of map[*command]frontend.Counter, unknown frontend.Counter) {
	of = make(map[*command]frontend.Counter, len(commands))
	for _, c := range commands {
		of[c] = m.Operation("resp", c.name)
	}
	return of, m.Operation("resp", "unknown")
}

// since is the server's age: a clock that never goes back.
func (s *Server) since() time.Duration { return time.Since(s.started) }

// arrive begins to count a request, and to follow it when chance has it so.
func (c *conn) arrive(cmd *command) {
	c.at = counted{counter: c.s.unknown, began: c.arrived}
	name := "resp unknown"
	if cmd != nil {
		c.at.counter = c.s.counters[cmd]
	}
	c.kind, c.failed = 0, 0
	if t := c.s.tracer; t.Wants("") {
		if cmd != nil {
			name = "resp " + cmd.name
		}
		c.at.span = t.Request("", name, append(tracing.Where(c.keyspace, c.s.cfg.Databases[c.db]), attribute.String("kvstore.face", "resp"))...)
	}
}

// carry has the request at hand counted with its reply, which is the last of the batch.
func (c *conn) carry(kind kverr.Kind) {
	q := &c.batch.requests[len(c.batch.requests)-1]
	q.counted, c.at = c.at, counted{}
	q.kind = kind
}

// count ends a request whose reply is made.
func (n *counted) count(now time.Duration, kind kverr.Kind) {
	if n.counter == nil {
		return
	}
	if kind == 0 {
		n.counter.Done(1, now-n.began)
	} else {
		n.counter.Failed(1, now-n.began, kind)
	}
	if n.span != nil {
		if kind == 0 {
			tracing.End(n.span, nil)
		} else {
			tracing.End(n.span, &kverr.Error{Kind: kind})
		}
	}
	*n = counted{}
}

// fails answers with an error, and has the request count as failed.
func (c *conn) fails(kind kverr.Kind, text string) {
	c.failed = kind
	c.out = appendError(c.out, text)
}

// outcome is the kind of the error that a reply is, which begins at a place of what nobody has flushed since; 0 when it is none. Errors that only Redis's
// protocol has are about the request.
func (c *conn) outcome(b []byte, at int) kverr.Kind {
	if at >= len(b) || b[at] != '-' {
		return 0
	}
	if c.kind != 0 {
		return c.kind
	}
	return kverr.InvalidArgument
}

// calls is the context of calls of the request at hand.
func (c *conn) calls() context.Context {
	if c.at.span != nil {
		return trace.ContextWithSpan(c.ctx, c.at.span)
	}
	return c.ctx
}

// follow has the first part for each shard of requests that are followed say so: the others share what happens to it.
func (b *batch) follow() {
	var seen map[*frontend.Shard]bool
	for i := range b.requests {
		q := &b.requests[i]
		if q.span == nil {
			continue
		}
		if q.parts > 1 {
			seen = make(map[*frontend.Shard]bool)
		}
		for _, p := range b.parts[q.first : q.first+q.parts] {
			if q.parts > 1 {
				if seen[p.shard] {
					continue
				}
				seen[p.shard] = true
			}
			if way := frontend.Follow(q.span); p.query.Op != shard.QueryNone { // free resets no more than this
				p.query.Follow = way
			} else {
				p.cmd.Follow = way
			}
		}
	}
}
