package promptcache_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"kvstore/components/kverr"
	"kvstore/components/promptcache"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew; formats are stored, so only additions are right")

// golden is the file for other languages: byte strings are hex.
type golden struct {
	About  string        `json:"about"`
	Scopes []goldenScope `json:"scopes"`
	Chains []goldenChain `json:"chains"`
	Slots  []goldenSlot  `json:"slots"`
	Sums   []goldenSum   `json:"checksums"`
}

type goldenScope struct {
	Fields    map[string]string `json:"fields"`
	Canonical string            `json:"canonical"`
	ID        string            `json:"id"`
}

type goldenChain struct {
	Fields      map[string]string `json:"fields"`
	BlockTokens int               `json:"block_tokens"`
	Tokens      []uint32          `json:"tokens"`
	Parent      string            `json:"parent"`
	IDs         []string          `json:"ids"`
}

type goldenSlot struct {
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	ID        string `json:"id"`
	Rank      uint32 `json:"rank"`
	Group     uint32 `json:"group"`
	Slot      uint16 `json:"slot"`
}

type goldenSum struct {
	Bytes    string `json:"bytes"`
	Checksum string `json:"xxh3_64"`
}

func goldenInputs() golden {
	scopes := []map[string]string{
		{},
		{"model": "llama-3-8b"},
		{"model": "llama-3-8b", "cache_salt": ""},
		{"model": "llama-3-8b", "cache_salt": "tenant-7", "dtype": "bf16", "block_tokens": "16", "tp": "2"},
		{"a": "bc", "ab": "c"},
		{"a": "b", "abc": "d"},
		{"Modell": "größe", "模型": "七十亿"},
		{"long": strings.Repeat("x", 300)},
	}
	g := golden{About: "Vectors for the formats of components/promptcache/DESIGN.md. Byte strings are hex. Checked by golden_test.go."}
	for _, fields := range scopes {
		g.Scopes = append(g.Scopes, goldenScope{Fields: fields})
	}
	sequence := func(n int) (tokens []uint32) {
		for i := range n {
			tokens = append(tokens, uint32(i)*2_654_435_761)
		}
		return tokens
	}
	for _, c := range []struct{ scope, block, tokens int }{{0, 1, 3}, {1, 16, 15}, {1, 16, 16}, {3, 16, 50}, {3, 4, 9}} {
		g.Chains = append(g.Chains, goldenChain{Fields: scopes[c.scope], BlockTokens: c.block, Tokens: sequence(c.tokens)})
	}
	for i, id := range []string{"00", "ff", strings.Repeat("ab", 36), strings.Repeat("00ff", 64)} {
		for _, ns := range []string{"default", "prompts"} {
			g.Slots = append(g.Slots, goldenSlot{Namespace: ns, Scope: fmt.Sprint(i), ID: id, Rank: uint32(i), Group: uint32(i * 70_000)})
		}
	}
	for _, b := range []string{"", "00", strings.Repeat("5a", 1000)} {
		g.Sums = append(g.Sums, goldenSum{Bytes: b})
	}
	return g
}

func TestGolden(t *testing.T) {
	g := goldenInputs()
	for i := range g.Scopes {
		s := &g.Scopes[i]
		canonical, err := promptcache.Canonical(s.Fields)
		if err != nil {
			t.Fatal(err)
		}
		id := promptcache.ScopeOf(canonical)
		s.Canonical, s.ID = hex.EncodeToString(canonical), hex.EncodeToString(id[:])
	}
	for i := range g.Chains {
		c := &g.Chains[i]
		canonical, err := promptcache.Canonical(c.Fields)
		if err != nil {
			t.Fatal(err)
		}
		chain := promptcache.NewChain(canonical, c.BlockTokens)
		parent := chain.Parent()
		c.Parent = hex.EncodeToString(parent[:])
		c.IDs = []string{}
		for _, id := range chain.IDs(c.Tokens) {
			c.IDs = append(c.IDs, hex.EncodeToString(id))
		}
		if want := len(c.Tokens) / c.BlockTokens; len(c.IDs) != want {
			t.Errorf("%d tokens in blocks of %d: %d ids, want %d", len(c.Tokens), c.BlockTokens, len(c.IDs), want)
		}
	}
	for i := range g.Slots {
		s := &g.Slots[i]
		id, _ := hex.DecodeString(s.ID)
		scope := promptcache.ScopeOf([]byte{1, byte(i)})
		s.Scope = hex.EncodeToString(scope[:])
		s.Slot = promptcache.Slot(s.Namespace, scope, id, s.Rank, s.Group)
	}
	for i := range g.Sums {
		b, _ := hex.DecodeString(g.Sums[i].Bytes)
		g.Sums[i].Checksum = fmt.Sprintf("%016x", promptcache.Checksum(b))
	}
	got, err := json.MarshalIndent(g, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/golden.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the formats differ from testdata/golden.json, which other languages and stored scopes rely on")
	}
}

func TestScopeRoundTrip(t *testing.T) {
	seen := map[string]string{}
	for _, s := range goldenInputs().Scopes {
		canonical, err := promptcache.Canonical(s.Fields)
		if err != nil {
			t.Fatal(err)
		}
		fields, err := promptcache.Fields(canonical)
		if err != nil {
			t.Fatalf("%v: %v", s.Fields, err)
		}
		for name, value := range s.Fields {
			if fields[name] != value {
				t.Errorf("field %q: %q, want %q", name, fields[name], value)
			}
		}
		if before, ok := seen[string(canonical)]; ok && before != fmt.Sprint(fields) {
			t.Errorf("%v and %v have one form", before, fields)
		}
		seen[string(canonical)] = fmt.Sprint(fields)
	}
}

func TestScopeLimits(t *testing.T) {
	many := map[string]string{}
	for i := range promptcache.MaxScopeFields {
		many[fmt.Sprint("f", i)] = "x"
	}
	if _, err := promptcache.Canonical(many); err != nil {
		t.Errorf("%d fields: %v", len(many), err)
	}
	many["none"] = ""
	if _, err := promptcache.Canonical(many); err != nil {
		t.Errorf("an empty value is none, but: %v", err)
	}
	tooMany := map[string]string{"one": "more"}
	for k, v := range many {
		tooMany[k] = v
	}
	for _, c := range []struct {
		name   string
		fields map[string]string
		kind   kverr.Kind
	}{
		{"too many fields", tooMany, kverr.TooLarge},
		{"too long", map[string]string{"n": strings.Repeat("x", promptcache.MaxScopeBytes)}, kverr.TooLarge},
		{"no name", map[string]string{"": "x"}, kverr.InvalidArgument},
		{"not UTF-8", map[string]string{"n": "\xff"}, kverr.InvalidArgument},
	} {
		_, err := promptcache.Canonical(c.fields)
		var e *kverr.Error
		if !errors.As(err, &e) || e.Kind != c.kind || e.Field != "scope.fields" || e.Message == "" {
			t.Errorf("%s: %#v, want kind %d on scope.fields", c.name, err, c.kind)
		}
	}
	if _, err := promptcache.Canonical(map[string]string{"n": strings.Repeat("x", promptcache.MaxScopeBytes-1)}); err != nil {
		t.Errorf("the longest scope: %v", err)
	}
}

// FuzzFields: whatever is read as a canonical form is written the same way.
func FuzzFields(f *testing.F) {
	for _, s := range goldenInputs().Scopes {
		canonical, _ := promptcache.Canonical(s.Fields)
		f.Add(canonical)
	}
	f.Add([]byte{1, 1, 'a', 0})
	f.Add([]byte{1, 0x81, 0, 'a', 1, 'b'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := promptcache.Fields(b)
		if err != nil {
			return
		}
		again, err := promptcache.Canonical(fields)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %v and is written as %x (%v)", b, fields, again, err)
		}
	})
}

// FuzzChain: ids depend on all tokens before, and only on full blocks.
func FuzzChain(f *testing.F) {
	f.Add([]byte("some tokens to chain"), uint8(2), uint8(3))
	f.Fuzz(func(t *testing.T, raw []byte, block, flip uint8) {
		n := int(block%16) + 1
		tokens := make([]uint32, len(raw))
		for i, b := range raw {
			tokens[i] = uint32(b)
		}
		chain := promptcache.NewChain([]byte{1}, n)
		ids := chain.IDs(tokens)
		if len(ids) != len(tokens)/n {
			t.Fatalf("%d ids for %d tokens in blocks of %d", len(ids), len(tokens), n)
		}
		if len(ids) == 0 {
			return
		}
		at := int(flip) % (len(ids) * n)
		tokens[at]++
		for i, id := range chain.IDs(tokens) {
			if same := bytes.Equal(id, ids[i]); same != (i < at/n) {
				t.Fatalf("token %d changed: id %d same=%v", at, i, same)
			}
		}
	})
}
