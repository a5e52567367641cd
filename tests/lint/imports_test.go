// Package lint holds rules about the tree itself as tests: which way imports point, what the product may depend on, what a
// package must say of itself. Style is golangci-lint's.
package lint

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath   string
	Dir          string
	Module       *struct{ Path string }
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
	Deps         []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Module,Imports,TestImports,XTestImports,GoFiles,Deps"}, args...)...)
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return pkgs
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// layer orders the top-level folders: a package may import its own layer and lower ones (DESIGN section 3).
func layer(rel string) (int, bool) {
	order := []struct {
		prefix string
		n      int
	}{
		{"proto/gen", 0}, {"components", 1}, {"actors", 2}, {"services/cmd", 4}, {"services", 3}, {"client", 2}, {"tests", 5},
	}
	for _, o := range order {
		if rel == o.prefix || strings.HasPrefix(rel, o.prefix+"/") {
			return o.n, true
		}
	}
	return 0, false
}

// clientMay is what the client may import of the product: generated code and packages that start nothing and keep nothing.
var clientMay = []string{
	"proto/gen/", "components/authn", "components/kverr", "components/key", "components/ring", "components/promptcache", "components/tracing", "components/vtcodec",
}

// cmdClientMay: kvctl is a client; it starts no server part.
func TestImportDirection(t *testing.T) {
	pkgs := list(t, "./...")
	mod := pkgs[0].Module.Path
	for _, p := range pkgs {
		rel := strings.TrimPrefix(p.ImportPath, mod+"/")
		from, ok := layer(rel)
		if !ok {
			t.Errorf("%s: a new top-level folder; give it a layer in this test", rel)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, mod+"/") {
				continue
			}
			to := strings.TrimPrefix(imp, mod+"/")
			n, _ := layer(to)
			switch {
			case n > from:
				t.Errorf("%s imports %s: imports point proto/gen <- components <- actors <- services <- services/cmd", rel, to)
			case strings.HasPrefix(to, "client") && !strings.HasPrefix(rel, "client") && !strings.HasPrefix(rel, "services/cmd") && !strings.HasPrefix(rel, "tests"):
				t.Errorf("%s imports %s: the product does not call itself through its client", rel, to)
			case strings.HasPrefix(rel, "client") && !strings.HasPrefix(to, "client") &&
				!slices.ContainsFunc(clientMay, func(s string) bool { return strings.HasPrefix(to+"/", s+"/") || strings.HasPrefix(to, s) }):
				t.Errorf("%s imports %s: the client needs generated code and pure components alone", rel, to)
			case strings.HasPrefix(rel, "services/cmd/kvctl") && (strings.HasPrefix(to, "actors/") || to == "services/node"):
				t.Errorf("%s imports %s: kvctl is a client", rel, to)
			}
		}
	}
}

// machines are pure: no clock, goroutine primitive, I/O or randomness (D2).
func TestMachinesArePure(t *testing.T) {
	banned := []string{"os", "net", "io/fs", "sync", "sync/atomic", "math/rand", "math/rand/v2", "crypto/rand", "context", "log", "log/slog", "time", "syscall", "golang.org/x/sys/unix"}
	for _, p := range list(t, "./actors/shard/...", "./actors/directory", "./actors/fanout", "./components/btree", "./components/key", "./components/ring", "./components/promptcache") {
		for _, imp := range p.Imports {
			if slices.Contains(banned, imp) {
				t.Errorf("%s imports %s: it is pure", p.ImportPath, imp)
			}
		}
	}
}

// TestDapr: one runtime of actors, the pub/sub driver and the Dapr-facing component know Dapr, and of its module they use its
// protocol alone (D5).
func TestDapr(t *testing.T) {
	may := []string{"actors/host/daprhost", "components/bus/daprbus", "components/dapr"}
	for _, p := range list(t, "./...") {
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			rel := strings.TrimPrefix(p.ImportPath, p.Module.Path+"/")
			switch {
			case !strings.HasPrefix(imp, "github.com/dapr/"):
			case !strings.HasPrefix(imp, "github.com/dapr/dapr/pkg/proto/"):
				t.Errorf("%s imports %s: of Dapr, its protocol alone", rel, imp)
			case !strings.HasPrefix(rel, "tests/") && !slices.ContainsFunc(may, func(m string) bool { return strings.HasPrefix(rel+"/", m+"/") }):
				t.Errorf("%s imports %s: %s know Dapr", rel, imp, strings.Join(may, ", "))
			}
		}
	}
}

// TestDependencies compares the modules that the product links with a checked-in list: a new one shows up in review.
func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./services/...", "./client/...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	self := list(t, "./client")[0].Module.Path
	got := strings.Fields(string(out))
	slices.Sort(got)
	got = slices.DeleteFunc(slices.Compact(got), func(m string) bool { return m == self })
	data, err := os.ReadFile("godeps.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(line, "#") {
			want = append(want, f[0])
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("module %s is linked but not in tests/lint/godeps.txt: add it with its reason", g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("tests/lint/godeps.txt lists %s, which nothing links any more", w)
		}
	}
	for _, g := range got {
		if strings.Contains(g, "components-contrib") {
			t.Errorf("%s must not be linked", g)
		}
	}
}

// TestPackageComments: every package says what it is.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.Contains(p.ImportPath, "/proto/gen/") || len(p.GoFiles) == 0 {
			continue
		}
		found := false
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			found = found || file.Doc != nil
		}
		if !found {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestNoDrawers: packages and files are named for what they hold.
func TestNoDrawers(t *testing.T) {
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout, so the list of files is not known: %v", err)
	}
	for f := range strings.Lines(string(out)) {
		for _, el := range strings.Split(strings.TrimSuffix(strings.TrimSpace(f), ".go"), "/") {
			if slices.Contains([]string{"util", "utils", "common", "helpers", "misc", "manager"}, el) {
				t.Errorf("%s: name the topic", strings.TrimSpace(f))
			}
		}
	}
}
