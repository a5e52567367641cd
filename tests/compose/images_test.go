package compose

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// standIn is what stands in for a public image: the same programs, and the same user, folder and environment to run them.
type standIn struct {
	changes []string // to the image's configuration, as lines of a Dockerfile
	fill    func(r *rootfs) error
}

// standIns are all, by the name of the image without its tag. Programs of Dapr come from make sidecars, redis-server from the
// distribution, Go from the machine; what they are linked against comes with them.
var standIns = map[string]standIn{
	"daprio/daprd":     daprImage("daprd"),
	"daprio/placement": daprImage("placement"),
	"daprio/sentry":    daprImage("sentry"),
	"redis": {
		changes: []string{"ENV PATH=/usr/local/bin", "WORKDIR /data"},
		fill: func(r *rootfs) error {
			return errors.Join(r.program("redis-server", "/usr/local/bin/redis-server"), r.program("redis-cli", "/usr/local/bin/redis-cli"),
				r.text("/etc/passwd", "root:x:0:0::/root:/\nredis:x:999:999::/data:/\n"), r.text("/etc/group", "root:x:0:\nredis:x:999:\n"),
				r.dir("/data", 999), r.dir("/tmp", 0))
		},
	},
	"prom/prometheus": {
		changes: []string{"ENV PATH=/bin", "WORKDIR /prometheus", "USER 65534:65534", `ENTRYPOINT ["/bin/prometheus"]`},
		fill: func(r *rootfs) error {
			return errors.Join(r.program("prometheus", "/bin/prometheus"), r.dir("/prometheus", 65534), r.dir("/tmp", 0))
		},
	},
	// No Jaeger: this program, as a collector (collector_test.go).
	"jaegertracing/jaeger": {
		changes: []string{"USER 10001:10001", `ENTRYPOINT ["/collector"]`, "ENV " + envCollector + "=1"},
		fill:    func(r *rootfs) error { return errors.Join(r.program(os.Args[0], "/collector"), r.dir("/tmp", 0)) },
	},
	"golang": {
		changes: []string{"ENV PATH=/usr/local/go/bin", "ENV GOCACHE=/cache", "ENV GOPATH=/go", "ENV GOPROXY=file:///proxy", "ENV GONOSUMDB=*", "ENV GOFLAGS=-buildvcs=false"},
		fill: func(r *rootfs) error {
			goroot, err := exec.Command("go", "env", "GOROOT").Output()
			if err != nil {
				return err
			}
			return errors.Join(r.tree(strings.TrimSpace(string(goroot)), "/usr/local/go", builds), r.modules("/proxy"), r.compiled("/cache"), r.dir("/tmp", 0))
		},
	},
}

// daprImage is one of Dapr's: a program in /, run by user 65532.
func daprImage(name string) standIn {
	return standIn{
		changes: []string{"WORKDIR /", "USER 65532:65532"},
		fill:    func(r *rootfs) error { return errors.Join(r.program(name, "/"+name), r.dir("/tmp", 0)) },
	}
}

// provide sees to it that the engine has an image: one that it has is left as it is.
func (e *engine) provide(t *testing.T, image string) {
	t.Helper()
	if _, err := e.docker(t.Context(), nil, "image", "inspect", image); err == nil {
		return
	}
	began := time.Now()
	defer func() { t.Logf("stand-in for %s: %v", image, time.Since(began).Round(time.Second)) }()
	name, _, _ := strings.Cut(image, ":")
	stand, ok := standIns[name]
	if !ok {
		t.Fatalf("image %s has no stand-in: say in images_test.go what is in it", image)
	}
	out, in := io.Pipe()
	filled := make(chan error, 1)
	go func() {
		r := &rootfs{w: tar.NewWriter(in), seen: make(map[string]bool)}
		err := errors.Join(stand.fill(r), r.w.Close())
		in.CloseWithError(err)
		filled <- err
	}()
	args := []string{"import"}
	for _, c := range stand.changes {
		args = append(args, "--change", c)
	}
	_, err := e.docker(t.Context(), out, append(args, "-", image)...)
	out.Close()
	if err := errors.Join(<-filled, err); err != nil {
		t.Fatalf("stand-in for %s: %v", image, err)
	}
	e.forget(t, image)
}

// forget removes an image at the end of the test, from an engine that is not the test's own.
func (e *engine) forget(t *testing.T, image string) {
	if e.own {
		return
	}
	t.Cleanup(func() {
		if _, err := e.docker(context.Background(), nil, "image", "rm", image); err != nil {
			t.Error(err)
		}
	})
}

// rootfs writes the files of an image.
type rootfs struct {
	w    *tar.Writer
	seen map[string]bool
}

// program adds a program that is on PATH, with all that it is linked against.
func (r *rootfs) program(name, as string) error {
	file, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := r.file(file, as); err != nil {
		return err
	}
	out, err := exec.Command("ldd", file).Output()
	if err != nil { // not a dynamic executable
		return nil
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				if err := r.file(word, word); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// file adds a file under a name, once.
func (r *rootfs) file(from, as string) error {
	if r.seen[as] {
		return nil
	}
	r.seen[as] = true
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: as[1:], Size: info.Size(), Mode: int64(info.Mode().Perm())}); err != nil {
		return err
	}
	_, err = io.Copy(r.w, f)
	return err
}

func (r *rootfs) text(as, text string) error {
	err := r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: as[1:], Size: int64(len(text)), Mode: 0o644})
	_, werr := io.WriteString(r.w, text)
	return errors.Join(err, werr)
}

// dir adds a folder that its owner may write to; root's everybody may.
func (r *rootfs) dir(as string, owner int) error {
	mode := int64(0o755)
	if owner == 0 {
		mode = 0o1777
	}
	return r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: as[1:] + "/", Uid: owner, Gid: owner, Mode: mode})
}

// tree adds a folder with all that is in it and is wanted, by its name in the folder.
func (r *rootfs) tree(from, as string, wanted func(name string) bool) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		switch {
		case !wanted(name) && d.IsDir():
			return filepath.SkipDir
		case !wanted(name) || !d.Type().IsRegular():
			return nil
		}
		return r.file(file, path.Join(as, name))
	})
}

// builds tells whether something in GOROOT is of use to go build without cgo; that is a third of it.
func builds(name string) bool {
	switch top, rest, _ := strings.Cut(name, "/"); top {
	case "src":
		return !strings.HasSuffix(name, "_test.go") && path.Base(name) != "testdata" && rest != "cmd"
	case "pkg":
		dir, tool := path.Split(rest)
		return !strings.HasPrefix(dir, "tool/") || strings.Count(rest, "/") < 2 || slices.Contains([]string{"asm", "compile", "link"}, tool)
	case "api", "doc", "lib", "misc", "test":
		return false
	}
	return true
}

// upper are the letters that a module proxy writes otherwise, for file systems that do not tell them from small ones.
var upper = regexp.MustCompile("[A-Z]")

// modules adds what go.mod requires, as a module proxy serves it from files.
func (r *rootfs) modules(as string) error {
	cmd := exec.Command("go", "mod", "download", "-json")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	cache, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		return err
	}
	base := filepath.Join(strings.TrimSpace(string(cache)), "cache", "download")
	add := func(file string) error {
		name, err := filepath.Rel(base, file)
		if err != nil {
			return err
		}
		return r.file(file, path.Join(as, filepath.ToSlash(name)))
	}
	added := map[string]bool{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var m struct{ Info, GoMod, Zip string }
		if err := dec.Decode(&m); err != nil {
			return err
		}
		for _, file := range []string{m.Info, m.GoMod, m.Zip} {
			if err := add(file); err != nil {
				return err
			}
			added[file] = true
		}
	}
	// Where an old module is required, the go command reads the go.mod of what that requires, too, though nothing of it is built. go.sum names them all.
	graph := exec.Command("go", "mod", "graph")
	graph.Dir = root
	if err := graph.Run(); err != nil { // which downloads them
		return fmt.Errorf("go mod graph: %w", err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(sums)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		version, isMod := strings.CutSuffix(f[1], "/go.mod")
		at := upper.ReplaceAllStringFunc(f[0], func(s string) string { return "!" + strings.ToLower(s) })
		file := filepath.Join(base, filepath.FromSlash(at), "@v", version+".mod")
		if !isMod || added[file] {
			continue
		}
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue // a sum that nothing needs any more
		}
		if err := add(file); err != nil {
			return err
		}
	}
	return nil
}

// compiled adds what the build will need, compiled: from a cache that is kept between runs, so that only the first one takes minutes. The
// Dockerfile's build finds it by its contents, or does without. What many runs left in it is not worth copying: then it begins anew.
func (r *rootfs) compiled(as string) error {
	const worth = 640 << 20 // twice what one build needs
	base, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	cache := filepath.Join(base, "kvstore-tools", "image-build-cache")
	size := int64(0)
	err = filepath.WalkDir(cache, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if size > worth {
		if err := os.RemoveAll(cache); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", os.DevNull, "./services/cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOCACHE="+cache, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return r.tree(cache, as, func(string) bool { return true })
}
