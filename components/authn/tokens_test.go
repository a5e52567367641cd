package authn

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/components/kverr"
)

// write replaces a file as tools do: by a rename.
func write(tb testing.TB, name, text string) {
	tb.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		tb.Fatal(err)
	}
}

// tokensFile opens a file with lines, in which TOKEN-x stands for the hash of token x.
func tokensFile(tb testing.TB, lines string) (t *Tokens, file string) {
	tb.Helper()
	file = filepath.Join(tb.TempDir(), "tokens")
	write(tb, file, hashed(lines))
	t, err := OpenTokens(file)
	if err != nil {
		tb.Fatal(err)
	}
	return t, file
}

func tokenOf(name string) string { return "token-of-" + strings.Repeat(name+"-", 8) }

func hashed(lines string) string {
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		lines = strings.ReplaceAll(lines, "TOKEN-"+name, HashOf(tokenOf(name)))
	}
	return lines
}

func bearerOf(name string) []string { return []string{"Bearer " + tokenOf(name)} }

func TestNewToken(t *testing.T) {
	one, other := NewToken(), NewToken()
	if one == other || !strings.HasPrefix(one, "kvs_") || len(one) != 47 {
		t.Errorf("%s, %s", one, other)
	}
	// What printf %s TOKEN | sha256sum says.
	if got := HashOf("kvs_0123456789abcdefghij"); got != "sha256:12511c742dff2260fb0f3629a2013fa73e87cbbe6b6a621e783ab45f5de9c387" {
		t.Error(got)
	}
}

func TestParseTokens(t *testing.T) {
	hash := HashOf(tokenOf("a"))
	for _, tc := range []struct{ text, want string }{
		{"# only remarks\n\n", "no token in it"},
		{"", "no token in it"},
		{"a " + hash, "want NAME"},
		{"A " + hash + " x=read", "the name is not one"},
		{"a kvs_oops-the-token-itself x=read", "line 1: the second word is not sha256:"},
		{"a " + hash[:60] + " x=read", "64 hexadecimal"},
		{"\na " + hash + " x=own", "line 2: a: a grant is KEYSPACE=read"},
		{"a " + hash + " X=read", "what cannot be a keyspace"},
		{"a " + hash + " =read", "what cannot be a keyspace"},
		{"a " + hash + " x=read x=write", "x is granted twice"},
		{"a " + hash + " *=read *=write", "*= is given twice"},
		{"a " + hash + " x=read expires=2020", "expires= wants one time"},
		{"a " + hash + " x=read expires=", "expires= wants one time"},
		{"a " + hash + " expires=2030-01-01T00:00:00Z", "grants nothing"},
		{"a " + hash + " x=read\na " + HashOf(tokenOf("b")) + " x=read", "line 2: the name a is that of line 1"},
		{"a " + hash + " x=read\nb " + hash + " x=read", "line 2: b has the hash of a"},
		{"a " + hash + " " + strings.Repeat("x", MaxTokenLine), "at most 4096"},
	} {
		_, err := ParseTokens([]byte(tc.text))
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "oops") {
			t.Errorf("%.80q: %v, want %q", tc.text, err, tc.want)
		}
	}
	entries, err := ParseTokens([]byte("# remark\r\n  a\t" + hash + "  x=read *=write server-admin expires=2030-01-02T03:04:05+01:00\r\nb " + HashOf(tokenOf("b")) + " expires=read"))
	if err != nil || len(entries) != 2 {
		t.Fatal(err)
	}
	if e := entries[0]; e.Name != "a" || !e.Expires.Equal(time.Date(2030, 1, 2, 2, 4, 5, 0, time.UTC)) || e.role("x") != Read || e.role("y") != Write || !e.server {
		t.Errorf("%+v", e)
	}
	if e := entries[1]; e.role("expires") != Read || !e.Expires.IsZero() {
		t.Errorf("a keyspace named expires: %+v", e)
	}
	var many strings.Builder
	for i := range MaxTokens + 1 {
		fmt.Fprintf(&many, "n%d %s x=read\n", i, HashOf(fmt.Sprintf("%030d", i)))
	}
	if _, err := ParseTokens([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "more than 10000") {
		t.Error(err)
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte(hashed("a TOKEN-a x=read *=admin server-admin expires=2030-01-01T00:00:00Z\n# b\n\nc TOKEN-c y=write")))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := ParseTokens(text)
		if (err == nil) != (len(entries) > 0) {
			t.Errorf("%d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			if e.table.find(&e.hash) != e || !e.mayAnywhere(AnyToken) || !e.mayAnywhere(See) {
				t.Errorf("%+v", e)
			}
		}
	})
}

// TestWhatTokensAllow compares every need with every token, in its keyspace and in others.
func TestWhatTokensAllow(t *testing.T) {
	tokens, _ := tokensFile(t, `
a TOKEN-a k=read
b TOKEN-b k=write other=read
c TOKEN-c default=admin
d TOKEN-d *=write k=read
e TOKEN-e server-admin
f TOKEN-f metrics
`)
	for _, tc := range []struct {
		token, keyspace string
		yes             []Need
	}{
		{"a", "k", []Need{AnyToken, See, Read}},
		{"a", "other", []Need{AnyToken}},
		{"a", "", []Need{AnyToken}},
		{"b", "k", []Need{AnyToken, See, Read, Write}},
		{"b", "other", []Need{AnyToken, See, Read}},
		{"b", "third", []Need{AnyToken}},
		{"c", "", []Need{AnyToken, See, Read, Write, Admin}},
		{"c", "default", []Need{AnyToken, See, Read, Write, Admin}},
		{"c", "k", []Need{AnyToken}},
		{"d", "k", []Need{AnyToken, See, Read}},
		{"d", "any", []Need{AnyToken, See, Read, Write}},
		{"e", "k", []Need{AnyToken, See, ServerAdmin, Metrics}},
		{"f", "k", []Need{AnyToken, Metrics}},
	} {
		for need := range needs {
			want := false
			for _, n := range tc.yes {
				want = want || n == need
			}
			p, err := tokens.Admit(bearerOf(tc.token), need)
			if err == nil {
				err = tokens.Check(p, tc.keyspace)
			}
			if (err == nil) != want || err != nil && err.Kind != kverr.PermissionDenied {
				t.Errorf("token %s, keyspace %q, %v: %v", tc.token, tc.keyspace, need, err)
			}
			if err != nil && strings.Contains(err.Message, tc.keyspace+" ") && tc.keyspace != "" {
				t.Errorf("the refusal tells of the keyspace: %v", err)
			}
		}
	}
	if p, err := tokens.Admit(bearerOf("a"), Read); err != nil || p.Name() != "a" {
		t.Errorf("%v", err)
	} else if err := tokens.CheckFor(p, Write, "k"); err == nil || err.Kind != kverr.PermissionDenied {
		t.Errorf("more than was admitted: %v", err)
	}
}

func TestWhoIsRefused(t *testing.T) {
	tokens, _ := tokensFile(t, "a TOKEN-a k=read\nb TOKEN-b k=read expires=2030-01-01T00:00:00Z")
	now := time.Date(2029, 12, 31, 23, 59, 59, 0, time.UTC)
	tokens.now = func() time.Time { return now }
	for name, header := range map[string][]string{
		"none":         nil,
		"no scheme":    {tokenOf("a")},
		"basic":        {"Basic " + tokenOf("a")},
		"empty":        {""},
		"no token":     {"Bearer "},
		"wrong":        {"Bearer " + tokenOf("c")},
		"a space more": {"Bearer  " + tokenOf("a")},
		"a part":       {"Bearer " + tokenOf("a")[:22]},
		"twice":        {"Bearer " + tokenOf("a"), "Bearer " + tokenOf("a")},
		"the hash":     {"Bearer " + HashOf(tokenOf("a"))},
		"long":         {"Bearer " + strings.Repeat("x", 1<<16)},
	} {
		if p, err := tokens.Admit(header, AnyToken); p != nil || err == nil || err.Kind != kverr.Unauthenticated {
			t.Errorf("%s: %v, %v", name, p, err)
		} else if strings.Contains(err.Error(), "token-of") {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
	}
	if _, err := tokens.Admit([]string{"bEARER " + tokenOf("a")}, Read); err != nil {
		t.Errorf("the scheme's case does not matter: %v", err)
	}
	p, err := tokens.Admit(bearerOf("b"), Read)
	if err != nil || tokens.Check(p, "k") != nil {
		t.Errorf("a second before its end: %v", err)
	}
	now = now.Add(time.Second)
	if err := tokens.Check(p, "k"); err == nil || err.Kind != kverr.Unauthenticated {
		t.Errorf("at its end a pass is %v", err)
	}
	if _, err := tokens.Admit(bearerOf("b"), Read); err == nil || err.Kind != kverr.Unauthenticated {
		t.Errorf("at its end: %v", err)
	}
	if err := tokens.Check(nil, "k"); err == nil || err.Kind != kverr.Unauthenticated {
		t.Errorf("a call that came by no door: %v", err)
	}
	if Anyone.Check(nil, "k") != nil || !Anyone.Open() || tokens.Open() {
		t.Error("doors that want no token")
	}
}

// TestReloadEndsPasses: a pass is worth what the file says now.
func TestReloadEndsPasses(t *testing.T) {
	tokens, file := tokensFile(t, "a TOKEN-a k=write\nb TOKEN-b k=write\nc TOKEN-c k=read")
	passes := map[string]*Pass{}
	for name, need := range map[string]Need{"a": Write, "b": Write, "c": Read} {
		p, err := tokens.Admit(bearerOf(name), need)
		if err != nil {
			t.Fatal(err)
		}
		passes[name] = p
	}
	write(t, file, "damaged")
	if _, err := tokens.Reload(); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("damaged: %v", err)
	}
	for name, p := range passes {
		if err := tokens.Check(p, "k"); err != nil {
			t.Errorf("after a damaged file %s is refused: %v", name, err)
		}
	}
	write(t, file, hashed("b TOKEN-b k=read\nrenamed TOKEN-c k=admin"))
	if changed, err := tokens.Reload(); err != nil || !changed || tokens.Len() != 2 {
		t.Fatal(changed, err)
	}
	for name, want := range map[string]kverr.Kind{"a": kverr.Unauthenticated, "b": kverr.PermissionDenied} {
		if err := tokens.Check(passes[name], "k"); err == nil || err.Kind != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if err := tokens.Check(passes["c"], "k"); err != nil {
		t.Errorf("c, renamed: %v", err)
	}
	if changed, err := tokens.Reload(); err != nil || changed {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
}

func TestTokensFileMustBeThere(t *testing.T) {
	if _, err := OpenTokens(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was opened")
	}
}

// TestNoAllocations: checks are on the path of every call and frame.
func TestNoAllocations(t *testing.T) {
	tokens, _ := tokensFile(t, "a TOKEN-a k=write expires=2999-01-01T00:00:00Z\nb TOKEN-b *=read")
	for name, header := range map[string][]string{"good": bearerOf("a"), "wrong": bearerOf("c"), "none": nil} {
		if n := testing.AllocsPerRun(100, func() { _, _ = tokens.Admit(header, Write) }); n != 0 {
			t.Errorf("Admit, %s: %v allocations", name, n)
		}
	}
	p, err := tokens.Admit(bearerOf("a"), Write)
	if err != nil {
		t.Fatal(err)
	}
	ctx := NewContext(t.Context(), p)
	if n := testing.AllocsPerRun(100, func() { _ = tokens.Check(FromContext(ctx), "k") }); n != 0 {
		t.Errorf("Check: %v allocations", n)
	}
}

func BenchmarkAdmit(b *testing.B) {
	var lines strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&lines, "n%d %s x=read\n", i, HashOf(fmt.Sprintf("%030d", i)))
	}
	tokens, _ := tokensFile(b, lines.String()+"a TOKEN-a k=write expires=2999-01-01T00:00:00Z")
	header := []string{"Bearer " + tokenOf("a")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.Admit(header, Write); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	tokens, _ := tokensFile(b, "a TOKEN-a k=write expires=2999-01-01T00:00:00Z")
	p, err := tokens.Admit([]string{"Bearer " + tokenOf("a")}, Write)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := tokens.Check(p, "k"); err != nil {
			b.Fatal(err)
		}
	}
}
