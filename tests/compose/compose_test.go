package compose

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/components/authn/ca"
	"kvstore/services/node"
	"kvstore/tests/testenv"
)

// services are all that run in the end, beside pods: our own and the others.
var (
	hosts     = []string{"shard-1", "shard-2", "shard-3"}
	frontends = []string{"frontend-1", "frontend-2"}
	others    = []string{"redis", "placement"}
)

// TestCompose is one run through the life of a cluster: each step finds what the one before has left.
func TestCompose(t *testing.T) {
	p := newProject(t)
	p.must("up", "--detach", "--no-build", "--pull", "never", "prometheus", "jaeger") // as depends_on would, were Grafana one that can run here
	p.up()
	for _, step := range []struct {
		name string
		run  func(t *testing.T, p *project)
	}{
		{"ports are on loopback and those of the table", portsOfTheTable},
		{"containers may do little", containersMayDoLittle},
		{"either frontend serves", eitherFrontendServes},
		{"strangers are refused", strangersAreRefused},
		{"credentials of others are refused", othersAreRefused},
		{"metrics and traces arrive", observed},
		{"the trace has its exact ratio", traceRatio},
		{"writes go on when a part is killed", killed},
		{"a restart keeps the data", restarted},
		{"tokens and mTLS between sidecars", mutual},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			inner := *p
			inner.t = t
			step.run(t, &inner)
		}) {
			return
		}
	}
}

// portsOfTheTable: with no settings the ports are those that everything else calls by number, and other machines reach none.
func portsOfTheTable(t *testing.T, p *project) {
	var cfg struct {
		Services map[string]struct {
			Ports []struct {
				HostIP    string `json:"host_ip"`
				Target    int
				Published string
			}
		}
	}
	if err := os.WriteFile(p.env+".none", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := *p
	plain.env += ".none"
	if err := json.Unmarshal([]byte(plain.must("--profile", "*", "config", "--format", "json")), &cfg); err != nil {
		t.Fatal(err)
	}
	published := make(map[string][]string)
	for name, s := range cfg.Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s is published on %q", name, port.HostIP)
			}
			published[name] = append(published[name], fmt.Sprint(port.Published, ":", port.Target))
		}
	}
	for i, f := range frontends {
		var want []string
		for _, d := range []node.Door{node.DoorGRPC, node.DoorREST} {
			want = append(want, fmt.Sprint(d.Port(i), ":", d.Port(0)))
		}
		if got := published[f+"-pod"]; !slices.Equal(got, want) {
			t.Errorf("%s is published as %q, want %q", f, got, want)
		}
	}
	if got := published["grafana"]; !slices.Equal(got, []string{"3000:3000"}) {
		t.Errorf("grafana is published as %q", got)
	}
	if len(published) != len(frontends)+1 {
		t.Errorf("published: %v", published)
	}
}

// containersMayDoLittle: what the file says of rights and limits is what the engine enforces.
func containersMayDoLittle(t *testing.T, p *project) {
	all := slices.Concat(hosts, frontends, others)
	for _, s := range slices.Concat(hosts, frontends) {
		all = append(all, s+"-dapr", s+"-pod")
	}
	for _, s := range all {
		c := p.inspect(s)
		h := c.HostConfig
		if !h.ReadonlyRootfs || h.Privileged || !slices.Contains(h.CapDrop, "ALL") || !slices.Contains(h.SecurityOpt, "no-new-privileges:true") ||
			h.RestartPolicy.Name != "unless-stopped" || h.Memory == 0 || h.Memory > 2<<30 {
			t.Errorf("%s: %+v", s, h)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.State.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(status), "CapEff:\t0000000000000000") || strings.Contains(string(status), "Uid:\t0\t") {
			t.Errorf("%s runs as root, or may do things that users may not:\n%s", s, status)
		}
		ours := slices.Contains(hosts, s) || slices.Contains(frontends, s)
		if (ours || s == "redis") && c.State.Health.Status != "healthy" {
			t.Errorf("%s is %q", s, c.State.Health.Status)
		}
		if test := strings.Join(c.Config.Healthcheck.Test, " "); ours && !strings.HasPrefix(test, "CMD /kvstored healthcheck") {
			t.Errorf("the health of %s is what %q tells", s, test)
		}
	}
	if want, log := "memory_budget="+fmt.Sprint(p.inspect("shard-1").HostConfig.Memory/5*2), p.must("logs", "shard-1"); !strings.Contains(log, want) {
		t.Errorf("shard-1 does not know the limit of its memory: no %s in its log\n%s", want, log)
	}
	if out, err := p.docker(t.Context(), nil, "run", "--rm", "--network", "none", p.settings["KVSTORE_IMAGE"], "healthcheck"); err == nil {
		t.Errorf("healthcheck says yes of a server that is not there: %s", out)
	}
}

// eitherFrontendServes: what was put through one is got through the other, from outside and from a container.
func eitherFrontendServes(t *testing.T, p *project) {
	for i := range 8 {
		key, value := fmt.Sprint("either/", i), fmt.Sprint("value ", i)
		p.mustKvctl(p.frontend(1+i%2), "put", key, value)
		if got := p.mustKvctl(p.frontend(2-i%2), "get", key); got != value {
			t.Fatalf("%s is %q", key, got)
		}
	}
	if got := p.must("run", "--rm", "--no-deps", "kvctl", "get", "either/7"); got != "value 7" {
		t.Errorf("kvctl in a container: %q", got)
	}
	var status struct {
		Shards []struct{ Keyspace, State string }
	}
	if err := json.Unmarshal([]byte(p.mustKvctl(p.frontend(1)+","+p.frontend(2), "status", "-o", "json")), &status); err != nil {
		t.Fatal(err)
	}
	served := 0
	for _, s := range status.Shards {
		if s.Keyspace == "default" && s.State == "active" {
			served++
		}
	}
	if served != 64 {
		t.Errorf("%d shards of 64 are served: %+v", served, status.Shards)
	}
}

// strangersAreRefused: no token, a wrong one, plain text, another authority.
func strangersAreRefused(t *testing.T, p *project) {
	wrong := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(wrong, []byte("kvs_"+strings.Repeat("x", 43)), 0o600); err != nil {
		t.Fatal(err)
	}
	authority := filepath.Join(t.TempDir(), "other")
	p.mustKvctl(p.frontend(1), "ca", "init", "--dir", authority)
	ca, token := filepath.Join(p.credentials, "ca.crt"), filepath.Join(p.credentials, "token")
	for _, tc := range []struct {
		name string
		env  []string
		want string
	}{
		{"no token", []string{"KVSTORE_CA=" + ca}, "token"},
		{"a wrong token", []string{"KVSTORE_CA=" + ca, "KVSTORE_TOKEN_FILE=" + wrong}, "token"},
		{"plain text", nil, "TLS"},
		{"another authority", []string{"KVSTORE_CA=" + filepath.Join(authority, "ca.crt"), "KVSTORE_TOKEN_FILE=" + token}, "certificate"},
	} {
		out, err := p.run(t.Context(), nil, append(tc.env, "KVSTORE_ENDPOINT="+p.frontend(1)), filepath.Join(os.Getenv("KVSTORE_BIN"), "kvctl"), "get", "either/7", "--timeout", "3s")
		if err == nil || out != "" || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %v", tc.name, out, err)
		}
		t.Logf("%s: %v", tc.name, err)
	}
}

// othersAreRefused: a token that is good in another keyspace, and certificates of our own authority that are over, or not for the data plane.
func othersAreRefused(t *testing.T, p *project) {
	ctl, tokens := filepath.Join(os.Getenv("KVSTORE_BIN"), "kvctl"), filepath.Join(t.TempDir(), "tokens")
	p.must("cp", "credentials:/credentials/frontend/tokens", tokens)
	mine := filepath.Join(t.TempDir(), "token")
	line, err := p.run(t.Context(), nil, nil, ctl, "token", "new", "elsewhere", "--grant", "elsewhere=admin", "--out", mine)
	if err != nil {
		t.Fatal(err)
	}
	known, err := os.ReadFile(tokens)
	if err == nil {
		err = errors.Join(os.WriteFile(tokens, append(known, line+"\n"...), 0o644), os.Chmod(tokens, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	p.must("cp", tokens, "credentials:/credentials/frontend/tokens")
	env := []string{"KVSTORE_CA=" + filepath.Join(p.credentials, "ca.crt"), "KVSTORE_TOKEN_FILE=" + mine, "KVSTORE_ENDPOINT=" + p.frontend(1)}
	deadline := time.Now().Add(patience)
	for { // the server takes the file within a second; before, it does not know the token
		out, err := p.run(t.Context(), nil, env, ctl, "get", "either/7", "--timeout", "3s")
		if out != "" || err == nil {
			t.Fatalf("a token of another keyspace reads %q, %v", out, err)
		}
		if strings.Contains(err.Error(), "does not have") {
			t.Logf("a token of another keyspace: %v", err)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a token of another keyspace: %v", err)
		}
	}

	authority := filepath.Join(t.TempDir(), "authority")
	p.must("cp", "credentials:/credentials/ca", authority)
	c, err := ca.Read(filepath.Join(authority, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	data := net.JoinHostPort(p.address("shard-1-pod"), "9085")
	for _, tc := range []struct {
		name string
		leaf ca.Leaf
		want string // "": it is let in
	}{
		{"a frontend's", ca.Leaf{Name: "frontend", DNS: []string{"frontend.kvstore"}, Life: time.Hour}, ""},
		{"a frontend's that is over", ca.Leaf{Name: "frontend", DNS: []string{"frontend.kvstore"}, Life: -time.Hour}, "expired"},
		{"a stranger's", ca.Leaf{Name: "stranger", DNS: []string{"stranger.kvstore"}, Life: time.Hour}, "bad certificate"},
	} {
		pair, err := c.Issue(tc.leaf, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		err = tlsCall(data, cert)
		t.Logf("the data plane, with the certificate of %s: %v", tc.name, err)
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("the data plane, with the certificate of %s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// traceRatio: the trace, half of it through each frontend, has the ratio that it must have.
func traceRatio(t *testing.T, p *project) {
	var through []func(...string) ([]byte, error)
	for i := range frontends {
		through = append(through, func(args ...string) ([]byte, error) {
			out, err := p.kvctl(t.Context(), p.frontend(1+i), args...) // however long; go test has a limit
			return []byte(out), err
		})
	}
	testenv.ReplayThrough(t, through...)
}

// killed: a host, a sidecar, placement and a frontend are killed, one after the other, under writes: each comes back, no acknowledged
// write is lost, and there is no long gap.
func killed(t *testing.T, p *project) {
	const gap = 10 * time.Second // generous: everything is on one busy machine; tests/dapr measures
	stop := p.load()
	for _, victim := range []string{"shard-2", "shard-3-dapr", "placement", "frontend-1"} {
		before := p.inspect(victim)
		p.kill(victim)
		p.awaitRestart(victim, before)
		t.Logf("%s was killed and is back", victim)
	}
	longest, acked := stop()
	t.Logf("%d writes acknowledged; the longest wait for one was %v", acked, longest.Round(time.Millisecond))
	if longest > gap || acked == 0 {
		t.Errorf("%d writes; a write took %v", acked, longest)
	}
}

// restarted: everything is restarted, then taken down and brought up again: the data is there.
func restarted(t *testing.T, p *project) {
	want := p.mustKvctl(p.frontend(1), "ls", "-o", "json")
	p.must("restart")
	p.up()
	if got := p.mustKvctl(p.frontend(2), "ls", "-o", "json"); got != want {
		t.Errorf("after a restart there is\n%s\nwant\n%s", got, want)
	}
	p.down()
	p.up()
	if got := p.mustKvctl(p.frontend(1), "ls", "-o", "json"); got != want {
		t.Errorf("after down and up there is\n%s\nwant\n%s", got, want)
	}
}

// load writes, some callers at once, until stop is called, which reads everything back and returns the longest wait for an
// acknowledgement and how many there were.
func (p *project) load() (stop func() (longest time.Duration, acked int)) {
	p.t.Helper()
	const callers = 8
	c := p.dial()
	ctx, cancel := context.WithCancel(p.t.Context())
	var all sync.WaitGroup
	waits := make([]time.Duration, callers)
	acks := make([]int, callers)
	for w := range callers {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				began := time.Now()
				for try := 0; ; try++ {
					bounded, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
					_, err := c.Put(bounded, fmt.Sprintf("load/%d/%d", w, i), fmt.Appendf(nil, "%d of %d", i, w), nil)
					done()
					if err == nil {
						break
					}
					if time.Since(began) > patience {
						p.t.Errorf("a write is refused: %v", err)
						return
					}
				}
				waits[w] = max(waits[w], time.Since(began))
				acks[w]++
			}
		})
	}
	return func() (time.Duration, int) {
		p.t.Helper()
		cancel()
		all.Wait()
		sum := 0
		for w := range callers {
			sum += acks[w]
			for i := range acks[w] {
				bounded, done := context.WithTimeout(p.t.Context(), patience)
				e, err := c.Get(bounded, fmt.Sprintf("load/%d/%d", w, i), &client.GetOptions{})
				done()
				if want := fmt.Sprintf("%d of %d", i, w); err != nil || string(e.Value) != want {
					p.t.Fatalf("write %d of caller %d was acknowledged; it is %q, %v", i, w, e.Value, err)
				}
			}
		}
		return slices.Max(waits), sum
	}
}
