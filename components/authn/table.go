package authn

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"kvstore/components/key"
)

// Limits of a tokens file.
const (
	MaxTokens      = 10_000 // entries
	MaxTokenLine   = 4 << 10
	MaxTokenGrants = 64 // keyspaces of one token
)

const (
	serverAdmin  = "server-admin"
	metricsGrant = "metrics"
	allKeyspaces = "*"
	expiresWord  = "expires="
)

// Entry is one token of the file, by its hash. It is immutable.
type Entry struct {
	// Name is for people and logs; unique.
	Name string
	// Expires is when it ends; zero = never.
	Expires time.Time

	hash      hash
	table     *table
	keyspaces map[string]Need // Read, Write or Admin
	all       Need            // role in the keyspaces that are not named; AnyToken = none
	most      Need            // the highest of all roles; AnyToken = none
	server    bool
	metrics   bool
	passes    [needs]Pass
}

// role is the role in a keyspace; AnyToken = none. An empty name means "default".
func (e *Entry) role(keyspace string) Need {
	if keyspace == "" {
		keyspace = "default"
	}
	if r, ok := e.keyspaces[keyspace]; ok {
		return r
	}
	return e.all
}

// may tells whether the entry has what is needed in a keyspace.
func (e *Entry) may(need Need, keyspace string) bool {
	switch need {
	case AnyToken:
		return true
	case ServerAdmin:
		return e.server
	case Metrics:
		return e.server || e.metrics
	case See:
		return e.server || e.role(keyspace) >= Read
	}
	return e.role(keyspace) >= need
}

// mayAnywhere tells whether there can be a keyspace for which may holds.
func (e *Entry) mayAnywhere(need Need) bool {
	switch need {
	case AnyToken:
		return true
	case ServerAdmin:
		return e.server
	case Metrics:
		return e.server || e.metrics
	case See:
		return e.server || e.most >= Read
	}
	return e.most >= need
}

// table is a tokens file, parsed; immutable.
type table struct {
	entries []*Entry
	byHash  map[[8]byte][]*Entry // by the first bytes of the hash
}

// find finds the entry of a hash. What the map's look-up could tell by its timing is about hashes of guesses, which say nothing of
// how near a guess is; the comparison that decides takes the same time for all.
func (t *table) find(h *hash) *Entry {
	for _, e := range t.byHash[[8]byte(h[:8])] {
		if subtle.ConstantTimeCompare(e.hash[:], h[:]) == 1 {
			return e
		}
	}
	return nil
}

// ParseTokens checks a tokens file and returns its entries, in order. Errors name the line and never quote it whole: somebody may have
// put a token where its hash belongs.
func ParseTokens(text []byte) ([]*Entry, error) {
	t, err := parseTable(text)
	if err != nil {
		return nil, err
	}
	return t.entries, nil
}

func parseTable(text []byte) (*table, error) {
	t := &table{byHash: make(map[[8]byte][]*Entry)}
	names := make(map[string]int)
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if len(line) > MaxTokenLine {
			return nil, fmt.Errorf("line %d has %d bytes; at most %d are allowed", number, len(line), MaxTokenLine)
		}
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		e, err := parseEntry(words)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if other, ok := names[e.Name]; ok {
			return nil, fmt.Errorf("line %d: the name %s is that of line %d already", number, e.Name, other)
		}
		if other := t.find(&e.hash); other != nil {
			return nil, fmt.Errorf("line %d: %s has the hash of %s: a token has one line", number, e.Name, other.Name)
		}
		if len(t.entries) == MaxTokens {
			return nil, fmt.Errorf("line %d: there are more than %d tokens", number, MaxTokens)
		}
		names[e.Name] = number
		e.table = t
		t.entries = append(t.entries, e)
		first := [8]byte(e.hash[:8])
		t.byHash[first] = append(t.byHash[first], e)
	}
	if len(t.entries) == 0 {
		return nil, errors.New("there is no token in it: nobody could come in (kvctl token new makes one)")
	}
	return t, nil
}

// parseEntry parses NAME HASH GRANT... [expires=TIME].
func parseEntry(words []string) (*Entry, error) {
	if len(words) < 3 {
		return nil, errors.New("want NAME sha256:HASH GRANT... [expires=TIME]")
	}
	e := &Entry{Name: words[0], keyspaces: make(map[string]Need)}
	if err := key.CheckName("name", e.Name); err != nil {
		return nil, errors.New("the name is not one: 1 to 64 of a-z, 0-9, '-', '_', '.'") // unquoted, see ParseTokens
	}
	digits, ok := strings.CutPrefix(words[1], hashPrefix)
	if raw, err := hex.DecodeString(digits); !ok || err != nil || len(raw) != len(e.hash) {
		return nil, errors.New("the second word is not sha256: and 64 hexadecimal digits (of the token; kvctl token new prints the line)")
	} else {
		e.hash = hash(raw)
	}
	for _, w := range words[2:] {
		if err := e.grant(w); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	if len(e.keyspaces) > MaxTokenGrants {
		return nil, fmt.Errorf("%s: it names %d keyspaces; at most %d are allowed", e.Name, len(e.keyspaces), MaxTokenGrants)
	}
	if len(e.keyspaces) == 0 && e.all == AnyToken && !e.server && !e.metrics {
		return nil, fmt.Errorf("%s: it grants nothing; want KEYSPACE=read, =write or =admin, *=..., or server-admin, or metrics", e.Name)
	}
	for n := range e.passes {
		e.passes[n] = Pass{entry: e, need: Need(n)}
	}
	return e, nil
}

// grant takes one word: server-admin, metrics, expires=TIME, *=ROLE or KEYSPACE=ROLE.
func (e *Entry) grant(word string) error {
	switch word {
	case serverAdmin:
		e.server = true
		return nil
	case metricsGrant:
		e.metrics = true
		return nil
	}
	if text, ok := strings.CutPrefix(word, expiresWord); ok && looksLikeTime(text) {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil || !e.Expires.IsZero() {
			return errors.New("expires= wants one time, as in 2027-01-31T00:00:00Z")
		}
		e.Expires = at
		return nil
	}
	keyspace, name, ok := strings.Cut(word, "=")
	role := map[string]Need{"read": Read, "write": Write, "admin": Admin}[name]
	if !ok || role == AnyToken {
		return errors.New("a grant is KEYSPACE=read, =write or =admin, *=... for all keyspaces, or " + serverAdmin + ", or " + metricsGrant)
	}
	e.most = max(e.most, role)
	if keyspace == allKeyspaces {
		if e.all != AnyToken {
			return errors.New("*= is given twice")
		}
		e.all = role
		return nil
	}
	if key.CheckName("keyspace", keyspace) != nil {
		return errors.New("a grant names what cannot be a keyspace: names have 1 to 64 of a-z, 0-9, '-', '_', '.'")
	}
	if _, ok := e.keyspaces[keyspace]; ok {
		return fmt.Errorf("keyspace %s is granted twice", keyspace)
	}
	e.keyspaces[keyspace] = role
	return nil
}

// looksLikeTime tells expires=TIME from a role in a keyspace that is named expires.
func looksLikeTime(text string) bool { return text == "" || text[0] >= '0' && text[0] <= '9' }
