package redislog

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/components/authn/ca"
	"kvstore/components/wal/driver"
	"kvstore/tests/testenv"
)

// impatient is how long an engine of these tests tries again what a server does not take.
const impatient = 300 * time.Millisecond

// openOn opens an engine, which the test closes at its end.
func openOn(t testing.TB, cfg Config) *Engine {
	t.Helper()
	if cfg.Settle == 0 {
		cfg.Settle = impatient
	}
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// refusedOpen opens an engine that cannot be opened. Nobody waits for that as for a server that is away.
func refusedOpen(t testing.TB, cfg Config) error {
	t.Helper()
	cfg.Settle = testenv.Patience
	began := time.Now()
	e, err := Open(t.Context(), cfg)
	if err == nil {
		_ = e.Close()
		t.Fatal("it opens")
	}
	if took := time.Since(began); took > testenv.Patience/2 {
		t.Errorf("the server's refusal took %v", took)
	}
	return err
}

// owner writes the log of one shard.
type owner struct {
	t     testing.TB
	e     *Engine
	shard string
	epoch driver.Epoch
	acked []string // what was acknowledged, fences included
}

// takeOver takes a shard over; it is made if it is not there.
func takeOver(t testing.TB, e *Engine, shard string, counter uint64) *owner {
	t.Helper()
	if _, _, err := e.Manifest(t.Context(), shard); errors.Is(err, driver.ErrNotExist) {
		if _, err := e.SwapManifest(t.Context(), shard, "", []byte("manifest")); err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	o := &owner{t: t, e: e, shard: shard, epoch: driver.Epoch{Counter: counter, Writer: [16]byte{byte(counter)}}}
	fence := fmt.Sprint("fence ", counter)
	seq, err := e.Fence(t.Context(), shard, o.epoch, func(uint64, uint64) []byte { return []byte(fence) })
	if err != nil {
		t.Fatal(err)
	}
	o.acked = append(o.records()[:seq-1], fence)
	return o
}

// append appends one record.
func (o *owner) append(data string) error {
	outcome := make(chan error, 1)
	o.e.Append(o.shard, o.epoch, driver.Frame{Epoch: o.epoch.Counter, Seq: uint64(len(o.acked)) + 1, Data: []byte(data)}, func(err error) { outcome <- err })
	err := <-outcome
	if err == nil {
		o.acked = append(o.acked, data)
	}
	return err
}

// must appends records.
func (o *owner) must(all ...string) {
	o.t.Helper()
	for _, data := range all {
		if err := o.append(data); err != nil {
			o.t.Fatalf("shard %s: %v", o.shard, err)
		}
	}
}

// records reads the log.
func (o *owner) records() (all []string) {
	o.t.Helper()
	if err := o.e.Read(o.t.Context(), o.shard, 1, func(f driver.Frame) error {
		all = append(all, string(f.Data))
		return nil
	}); err != nil {
		o.t.Fatalf("read shard %s: %v", o.shard, err)
	}
	return all
}

// check holds that the log is what was acknowledged, no record more or less.
func (o *owner) check() {
	o.t.Helper()
	if got := o.records(); !slices.Equal(got, o.acked) {
		o.t.Fatalf("shard %s has %d records, %d were acknowledged", o.shard, len(got), len(o.acked))
	}
}

// TestMaxmemory: a server that is full refuses appends with ErrNoSpace, whether by the reserve or by itself; reads, trims and removals go on, and what they
// free brings writes back, without anybody opening anything again.
func TestMaxmemory(t *testing.T) {
	t.Parallel()
	for name, reserve := range map[string]int64{"at the reserve": 0, "at maxmemory": -1} {
		t.Run(name, func(t *testing.T) {
			server := testenv.NewRedis(t, "maxmemory 8mb", "maxmemory-policy noeviction")
			e := openOn(t, Config{URL: "redis://" + server.Addr, Reserve: reserve})
			o := takeOver(t, e, "s", 1)
			record := strings.Repeat("x", 32<<10)
			var err error
			for err == nil && len(o.acked) < 1000 {
				err = o.append(record)
			}
			if !errors.Is(err, driver.ErrNoSpace) || errors.Is(err, driver.ErrRefused) {
				t.Fatalf("after %d records of 32 KiB: %v, want ErrNoSpace", len(o.acked), err)
			}
			t.Logf("after %d records of 32 KiB: %v", len(o.acked), err)
			if err := e.PutObject(t.Context(), "s", "v/1", 64<<10, strings.NewReader(strings.Repeat("v", 64<<10))); !errors.Is(err, driver.ErrNoSpace) {
				t.Errorf("a value: %v, want ErrNoSpace", err)
			}
			if err := e.PutObject(t.Context(), "s", driver.CheckpointPrefix+"1", 64<<10, strings.NewReader(strings.Repeat("c", 64<<10))); reserve == 0 && err != nil {
				t.Errorf("a checkpoint, which the reserve is for: %v", err)
			}
			if free, kept := e.Space(); reserve == 0 && free >= kept+int64(len(record)) {
				t.Errorf("Space tells %d bytes free, of which %d are kept", free, kept)
			}
			o.check()
			o = takeOver(t, e, "s", 2) // whoever takes a shard over from here on may do so
			if err := o.append(record); !errors.Is(err, driver.ErrNoSpace) {
				t.Errorf("the next owner's append: %v, want ErrNoSpace", err)
			}
			if err := e.Trim(t.Context(), "s", o.epoch, uint64(len(o.acked))); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				await(t, "freed space brings writes back", func() bool { // the server frees in the background
					err := o.append(record)
					if err != nil && !errors.Is(err, driver.ErrNoSpace) {
						t.Fatal(err)
					}
					return err == nil
				})
			}
		})
	}
}

// secret is a password, which nothing may tell.
const secret = "correct-horse-battery"

// silent holds that an error does not tell the secret.
func silent(t testing.TB, err error) {
	t.Helper()
	if err != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
		t.Errorf("the error tells the password: %v", err)
	}
}

// TestAccess: users and passwords as Redis's access lists have them.
func TestAccess(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	server.Must(t, "ACL", "SETUSER", "app", "on", ">"+secret, "~kvstore:*", "+@all")
	server.Must(t, "ACL", "SETUSER", "reader", "on", ">"+secret, "~kvstore:*", "+@read", "+@connection", "+info", "+config|get")
	server.Must(t, "ACL", "SETUSER", "elsewhere", "on", ">"+secret, "~other:*", "+@all")
	at := func(user string) string { return "redis://" + user + "@" + server.Addr }

	file := filepath.Join(t.TempDir(), "password")
	give := func(password string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	give(secret)
	for name, cfg := range map[string]Config{
		"in the URL": {URL: at("app:" + secret)}, "beside it": {URL: at("other:wrong"), Username: "app", Password: secret}, "in a file": {URL: at("app"), PasswordFile: file},
	} {
		o := takeOver(t, openOn(t, cfg), strings.ReplaceAll(strings.ToLower(name), " ", "-"), 1)
		o.must("one")
		o.check()
	}

	for _, tc := range []struct {
		name, want string
		cfg        Config
	}{
		{"a wrong password", "WRONGPASS", Config{URL: at("app:x" + secret)}},
		{"a user that is not there", "WRONGPASS", Config{URL: at("nobody:" + secret)}},
	} {
		err := refusedOpen(t, tc.cfg)
		silent(t, err)
		if !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), server.Addr) {
			t.Errorf("%s: %v, want ErrRefused that says %s", tc.name, err, tc.want)
		}
	}
	for _, user := range []string{"reader", "elsewhere"} { // they may look, and that is all
		e := openOn(t, Config{URL: at(user + ":" + secret), Settle: testenv.Patience})
		_, err := e.SwapManifest(t.Context(), "s", "", []byte("manifest"))
		silent(t, err)
		if !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("%s: %v, want ErrRefused that says NOPERM", user, err)
		}
		outcome := make(chan error, 1)
		e.Append("in-the-url", driver.Epoch{Counter: 1, Writer: [16]byte{1}}, driver.Frame{Epoch: 1, Seq: 3, Data: []byte("no")}, func(err error) { outcome <- err })
		if err := <-outcome; !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("%s: append: %v, want ErrRefused that says NOPERM", user, err)
		}
	}

	// The password changes while the engine runs: the server ends all connections of the user, new ones take the new one from the file.
	o := takeOver(t, openOn(t, Config{URL: at("app"), PasswordFile: file, Settle: 20 * time.Second}), "rotated", 1)
	o.must("before")
	give(secret + "-2")
	server.Must(t, "ACL", "SETUSER", "app", "resetpass", ">"+secret+"-2")
	server.Must(t, "CLIENT", "KILL", "USER", "app")
	o.must("after")
	o.check()

	server.Must(t, "ACL", "SETUSER", "default", "off")
	if err := refusedOpen(t, Config{URL: "redis://" + server.Addr}); !errors.Is(err, driver.ErrRefused) || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without a password: %v, want ErrRefused that says NOAUTH", err)
	}
}

// TestTLS: a server of rediss:// is verified; one that is not who it should be gets nothing, and that is told at once.
func TestTLS(t *testing.T) {
	t.Parallel()
	testenv.NeedRedis(t)
	dir := t.TempDir()
	authority := func(name string) *ca.CA {
		t.Helper()
		c, err := ca.New(name, time.Hour, time.Now())
		if err == nil {
			err = c.Write(filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ours, other := authority("ours"), authority("other")
	serve := func(name string, by *ca.CA, leaf ca.Leaf) (tls, plain string) {
		t.Helper()
		pair, err := by.Issue(leaf, time.Now())
		if err == nil {
			err = pair.Write(filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		tls = testenv.FreeAddr(t)
		_, port, _ := net.SplitHostPort(tls)
		server := testenv.NewRedis(t, "tls-port "+port, "tls-cert-file "+filepath.Join(dir, name+".crt"), "tls-key-file "+filepath.Join(dir, name+".key"),
			"tls-ca-cert-file "+filepath.Join(dir, "ours.crt"), "tls-auth-clients no", "tls-protocols TLSv1.3")
		server.Must(t, "ACL", "SETUSER", "app", "on", ">"+secret, "~kvstore:*", "+@all")
		return tls, server.Addr
	}
	local := []net.IP{net.IPv4(127, 0, 0, 1)}
	good, speaksPlain := serve("good", ours, ca.Leaf{Name: "redis", IPs: local, Life: time.Hour})
	url := func(at string) string { return "rediss://app:" + secret + "@" + at }
	trust := filepath.Join(dir, "ours.crt")

	o := takeOver(t, openOn(t, Config{URL: url(good), CAFile: trust}), "s", 1)
	o.must("one", strings.Repeat("x", 3<<20))
	o.check()

	stranger, _ := serve("stranger", other, ca.Leaf{Name: "redis", IPs: local, Life: time.Hour})
	elsewhere, _ := serve("elsewhere", ours, ca.Leaf{Name: "redis", DNS: []string{"redis.example"}, Life: time.Hour})
	expired, _ := serve("expired", ours, ca.Leaf{Name: "redis", IPs: local, Life: -time.Hour})
	for _, tc := range []struct {
		name, want string
		cfg        Config
	}{
		{"a certificate of another authority", "unknown authority", Config{URL: url(stranger), CAFile: trust}},
		{"an authority that the machine does not know", "unknown authority", Config{URL: url(good)}},
		{"a certificate of another server", "certificate", Config{URL: url(elsewhere), CAFile: trust}},
		{"a certificate that is over", "expired", Config{URL: url(expired), CAFile: trust}},
	} {
		err := refusedOpen(t, tc.cfg)
		silent(t, err)
		if !errors.Is(err, driver.ErrRefused) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tc.want)) {
			t.Errorf("%s: %v, want ErrRefused that says %q", tc.name, err, tc.want)
		}
	}
	for _, tc := range []struct{ name, url string }{{"TLS to a server of plain text", url(speaksPlain)}, {"plain text to a server of TLS", "redis://" + good}} {
		e, err := Open(t.Context(), Config{URL: tc.url, CAFile: "", Settle: impatient, Timeout: impatient})
		if err == nil {
			_ = e.Close()
			t.Errorf("%s: it opens", tc.name)
		}
		silent(t, err)
		t.Logf("%s: %v", tc.name, err)
	}
}
