package authn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"kvstore/components/kverr"
)

// Tokens is a tokens file, as of its last good state. It is safe for concurrent use.
type Tokens struct {
	src  *source[table]
	open bool
	now  func() time.Time
}

// Anyone is for doors that want no token: everybody may do everything. Whoever uses it sees to it that only the right ones reach
// the door.
var Anyone = &Tokens{open: true}

// OpenTokens reads a tokens file. A file that is not there, damaged or empty is an error: no token file means no yes.
func OpenTokens(file string) (*Tokens, error) {
	src, err := open([]string{file}, func(contents [][]byte) (*table, error) { return parseTable(contents[0]) })
	if err != nil {
		return nil, fmt.Errorf("tokens file %s: %w", file, err)
	}
	return &Tokens{src: src, now: time.Now}, nil
}

// Open tells that no token is wanted.
func (t *Tokens) Open() bool { return t.open }

// Len is how many tokens the file has.
func (t *Tokens) Len() int {
	if t.open {
		return 0
	}
	return len(t.src.current().entries)
}

// Reload takes what the file holds now; after an error what was in force stays.
func (t *Tokens) Reload() (changed bool, err error) {
	if t.open {
		return false, nil
	}
	return t.src.reload()
}

// Watch follows the file until ctx ends.
func (t *Tokens) Watch(ctx context.Context, ev Events) {
	if !t.open {
		t.src.watch(ctx, ev, nil)
	}
}

const bearer = "bearer "

// Admit takes the values of a call's authorization header and finds whose token it is. It refuses with Unauthenticated without a valid
// token, and with PermissionDenied one that allows such a thing in no keyspace at all. It does not allocate.
func (t *Tokens) Admit(authorization []string, need Need) (*Pass, *kverr.Error) {
	if t.open {
		return nil, nil
	}
	switch {
	case len(authorization) == 0:
		return nil, errNoToken
	case len(authorization) > 1 || len(authorization[0]) < len(bearer) || !strings.EqualFold(authorization[0][:len(bearer)], bearer):
		return nil, errScheme
	}
	h, ok := hashOf(authorization[0][len(bearer):])
	if !ok {
		return nil, errBadToken
	}
	e := t.src.current().find(&h)
	if e == nil {
		return nil, errBadToken
	}
	if err := t.alive(e); err != nil {
		return nil, err
	}
	if !e.mayAnywhere(need) {
		return nil, errDenied[need]
	}
	return &e.passes[need], nil
}

// alive refuses an entry whose time is over.
func (t *Tokens) alive(e *Entry) *kverr.Error {
	if !e.Expires.IsZero() && !t.now().Before(e.Expires) {
		return errExpired
	}
	return nil
}

// Check tells whether a pass is still good, for what its call needs in a keyspace ("" = "default"; calls that need AnyToken or
// ServerAdmin name none). A nil pass, which is a call that came by no door, is refused. It does not allocate.
func (t *Tokens) Check(p *Pass, keyspace string) *kverr.Error {
	if t.open {
		return nil
	}
	if p == nil {
		return errNoToken
	}
	return t.CheckFor(p, p.need, keyspace)
}

// CheckFor is Check for a part of the call that needs something else.
func (t *Tokens) CheckFor(p *Pass, need Need, keyspace string) *kverr.Error {
	if t.open {
		return nil
	}
	if p == nil {
		return errNoToken
	}
	e := p.entry
	if now := t.src.current(); e.table != now { // the file was reloaded since
		if e = now.find(&e.hash); e == nil {
			return errBadToken
		}
	}
	if err := t.alive(e); err != nil {
		return err
	}
	if !e.may(need, keyspace) {
		return errDenied[need]
	}
	return nil
}
