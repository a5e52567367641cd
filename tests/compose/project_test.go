package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kvstore/client"
)

// root is the folder of docker-compose.yml.
const root = "../.."

const projectName = "kvstore-test"

// project is docker-compose.yml, brought up with settings of its own.
type project struct {
	*engine
	t           *testing.T
	env         string            // file of settings
	settings    map[string]string // in it
	credentials string            // folder with what a client needs; "" = not fetched
}

// newProject builds and imports all images and names the project. It is taken down at the end of the test.
func newProject(t *testing.T) *project {
	t.Helper()
	if os.Getenv("KVSTORE_COMPOSE") == "" {
		t.Skip("needs a Docker engine: make compose-test sets KVSTORE_COMPOSE and runs this")
	}
	for _, program := range []string{"docker-compose", "redis-server", "redis-cli", "daprd", "placement", "sentry", "prometheus"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v (make compose-test builds docker-compose and the parts of Dapr; redis-server and prometheus are Debian packages)", err)
		}
	}
	p := &project{engine: findEngine(t), t: t, env: filepath.Join(t.TempDir(), "env"), settings: map[string]string{
		"KVSTORE_IMAGE": "kvstore:compose-test", "KVSTORE_PORT_1": freePort(t), "KVSTORE_PORT_2": freePort(t),
		"KVSTORE_REST_PORT_1": freePort(t), "KVSTORE_REST_PORT_2": freePort(t),
		"KVSTORE_ADMIN_LISTEN": "0.0.0.0:2112", "KVSTORE_OTLP_ENDPOINT": "https://jaeger:4317", // until mutual turns them off
		"REDIS_MAXMEMORY": "640mb", "REDIS_MEMORY": "1280m", // enough for all of the trace
	}}
	p.configure(nil)
	images := strings.Fields(p.must("--profile", "*", "config", "--images"))
	slices.Sort(images)
	for _, image := range slices.Compact(images) {
		if image != p.settings["KVSTORE_IMAGE"] && !strings.HasPrefix(image, "grafana/") { // which nobody starts here
			p.provide(t, image)
		}
	}
	p.build()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.compose("--profile", "*", "ps", "--all")
			t.Log(out)
			out, _ = p.compose("--profile", "*", "logs", "--no-color", "--tail", "12")
			t.Log(out)
		}
		p.down("--volumes", "--timeout", "10")
	})
	return p
}

// down takes everything down. The engine now and then keeps an endpoint of a container that is gone, and then cannot remove the network, which is
// nothing of ours: it is told to drop it.
func (p *project) down(args ...string) {
	p.t.Helper()
	down := append([]string{"--profile", "*", "down"}, args...)
	_, err := p.compose(down...)
	if err != nil && strings.Contains(err.Error(), "has active endpoints") {
		network := projectName + "_default"
		ctx := context.WithoutCancel(p.t.Context()) // the test may have ended
		names, _ := p.docker(ctx, nil, "network", "inspect", "--format", "{{range .Containers}}{{.Name}} {{end}}", network)
		p.t.Logf("%v; it has %s", err, names)
		for _, name := range strings.Fields(names) {
			_, _ = p.docker(ctx, nil, "network", "disconnect", "--force", network, name)
		}
		_, err = p.compose(down...)
	}
	if err != nil {
		p.t.Errorf("%v", err)
	}
}

// build builds our image by the Dockerfile.
func (p *project) build() {
	p.t.Helper()
	const golang = "golang:1.26"
	p.provide(p.t, golang)
	began := time.Now()
	if out, err := p.docker(p.t.Context(), nil, "build", "--network", "none", "--tag", p.settings["KVSTORE_IMAGE"], root); err != nil {
		p.t.Fatalf("%v\n%s", err, out)
	}
	p.forget(p.t, p.settings["KVSTORE_IMAGE"])
	p.t.Logf("the Dockerfile took %v", time.Since(began).Round(time.Second))
}

// configure changes settings, as .env would.
func (p *project) configure(changes map[string]string) {
	p.t.Helper()
	var text strings.Builder
	for name, value := range changes {
		p.settings[name] = value
	}
	for name, value := range p.settings {
		fmt.Fprintf(&text, "%s='%s'\n", name, value)
	}
	if err := os.WriteFile(p.env, []byte(text.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// compose runs docker-compose on the project.
func (p *project) compose(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	defer func() {
		if took := time.Since(began); took > 3*time.Second {
			p.t.Logf("docker-compose %s took %v", strings.Join(args, " "), took.Round(time.Second))
		}
	}()
	return p.run(ctx, nil, nil, "docker-compose", append([]string{
		"--project-name", projectName, "--project-directory", root, "--file", filepath.Join(root, "docker-compose.yml"), "--env-file", p.env, "--ansi", "never", "--progress", "quiet",
	}, args...)...)
}

func (p *project) must(args ...string) string {
	p.t.Helper()
	out, err := p.compose(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// up brings everything up and waits until all of it is healthy.
func (p *project) up() {
	p.t.Helper()
	p.must("up", "--detach", "--wait", "--wait-timeout", fmt.Sprint(int(patience.Seconds())), "--no-build", "--pull", "never")
	if p.credentials == "" {
		p.credentials = filepath.Join(p.t.TempDir(), "credentials")
		p.must("cp", "credentials:/credentials/client", p.credentials)
	}
}

// container is what docker inspect tells, as far as it is looked at here.
type container struct {
	ID    string
	State struct {
		Pid    int
		Health struct{ Status string }
	}
	RestartCount int
	Config       struct{ Healthcheck struct{ Test []string } }
	HostConfig   struct {
		Memory         int64
		ReadonlyRootfs bool
		Privileged     bool
		CapDrop        []string
		SecurityOpt    []string
		RestartPolicy  struct{ Name string }
		PortBindings   map[string][]struct{ HostIP, HostPort string }
	}
}

func (p *project) inspect(service string) container {
	p.t.Helper()
	id, err := p.docker(p.t.Context(), nil, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+projectName,
		"--filter", "label=com.docker.compose.service="+service, "--filter", "label=com.docker.compose.oneoff=False")
	if err != nil {
		p.t.Fatalf("%s: %v", service, err)
	}
	out, err := p.docker(p.t.Context(), nil, "inspect", strings.TrimSpace(id))
	if err != nil {
		p.t.Fatalf("%s: %v", service, err)
	}
	var all []container
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		p.t.Fatalf("%s: %d containers, %v", service, len(all), err)
	}
	return all[0]
}

// kill is kill -9 of a service's process, from outside: docker kill would be an order to stay down.
func (p *project) kill(service string) {
	p.t.Helper()
	if err := syscall.Kill(p.inspect(service).State.Pid, syscall.SIGKILL); err != nil {
		p.t.Fatalf("kill %s: %v", service, err)
	}
}

// awaitRestart waits until a service that was killed runs again, and is healthy if it can tell.
func (p *project) awaitRestart(service string, before container) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		now := p.inspect(service)
		if now.State.Pid != 0 && now.State.Pid != before.State.Pid && now.State.Health.Status == before.State.Health.Status {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s did not come back: %+v", service, now.State)
		}
		time.Sleep(100 * time.Millisecond) // of a condition outside of this process
	}
}

// frontend is the address of a frontend, 1 or 2, on this machine.
func (p *project) frontend(n int) string {
	return net.JoinHostPort("127.0.0.1", p.settings[fmt.Sprint("KVSTORE_PORT_", n)])
}

// kvctl runs kvctl outside of the containers, as a user of the machine would.
func (p *project) kvctl(ctx context.Context, endpoint string, args ...string) (string, error) {
	return p.run(ctx, nil, []string{
		"KVSTORE_ENDPOINT=" + endpoint, "KVSTORE_CA=" + filepath.Join(p.credentials, "ca.crt"), "KVSTORE_TOKEN_FILE=" + filepath.Join(p.credentials, "token"),
	}, filepath.Join(os.Getenv("KVSTORE_BIN"), "kvctl"), args...)
}

func (p *project) mustKvctl(endpoint string, args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	out, err := p.kvctl(ctx, endpoint, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// dial makes a client that knows both frontends.
func (p *project) dial() *client.Client {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{
		Endpoints: []string{p.frontend(1), p.frontend(2)}, CAFile: filepath.Join(p.credentials, "ca.crt"), TokenFile: filepath.Join(p.credentials, "token"),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
