package redislog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest"
	"kvstore/tests/badnet"
	"kvstore/tests/testenv"
)

// process stands in for the process of an engine: its connections can be cut all at once, as its death would.
type process struct {
	mu    sync.Mutex // guards all below
	conns []net.Conn
	dead  bool
}

func (p *process) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		c.Close()
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("the process is dead")}
	}
	p.conns = append(p.conns, c)
	return c, nil
}

func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, c := range p.conns {
		c.Close()
	}
}

// newHarness holds a redis-server, reached at what reach says. A crash is that of both: the engine's process and the server are killed, and
// the server starts again on its append-only file.
func newHarness(cfg Config, reach func(t testing.TB, server string) string) func(t testing.TB) *waltest.Harness {
	return func(t testing.TB) *waltest.Harness {
		server := testenv.NewRedis(t)
		cfg := cfg
		cfg.URL = "redis://" + reach(t, server.Addr)
		var current *process
		var engine *Engine
		end := func() {
			if engine != nil {
				_ = engine.Close()
			}
			engine = nil
		}
		t.Cleanup(end)
		return &waltest.Harness{
			Open: func(t testing.TB) driver.Engine {
				end()
				current = &process{}
				cfg.dial = current.dial
				var err error
				if engine, err = Open(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				return engine
			},
			Beside: func(t testing.TB) driver.Engine {
				cfg := cfg
				cfg.dial = nil
				e, err := Open(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				return e
			},
			Crash: func(t testing.TB) {
				current.kill()
				server.Kill()
				end()
				server.Start(t)
			},
			TearTail: func(t testing.TB, shard string) {
				server.Kill()
				torn := fmt.Sprintf("*3\r\n$5\r\nRPUSH\r\n$%d\r\nkvstore:{%s}:r\r\n$500\r\ntorn", len(shard)+12, shard)
				f, err := os.OpenFile(server.Log(t), os.O_APPEND|os.O_WRONLY, 0)
				if err == nil {
					_, err = f.WriteString(torn)
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
				server.Start(t)
			},
			DamageRecord: func(t testing.TB, shard string, data []byte) {
				server.Kill()
				stored, err := os.ReadFile(server.Log(t))
				if err != nil {
					t.Fatal(err)
				}
				i := bytes.Index(stored, data)
				if i < 0 {
					t.Fatalf("record of %s not found", shard)
				}
				stored[i] ^= 0x10
				if err := os.WriteFile(server.Log(t), stored, 0o600); err != nil {
					t.Fatal(err)
				}
				server.Start(t)
			},
		}
	}
}

func directly(_ testing.TB, server string) string { return server }

func TestConformance(t *testing.T) { waltest.Run(t, newHarness(Config{}, directly)) }

func TestLog(t *testing.T) { waltest.RunLog(t, newHarness(Config{}, directly)) }

// TestBadNetwork runs both suites behind a network that delays, resets, loses requests and replies, delivers requests late, and goes
// away: none of it may be seen. KVSTORE_SEED repeats a run's choices (not its timing).
func TestBadNetwork(t *testing.T) {
	testenv.NeedRedis(t)
	seeds := []uint64{1}
	if s := os.Getenv("KVSTORE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("KVSTORE_SEED=%d", seed), func(t *testing.T) {
			var mu sync.Mutex // guards faults
			faults := map[string]int{}
			reach := func(t testing.TB, server string) string {
				p := badnet.New(t, server, badnet.Config{Seed: seed, Rate: 0.02, Latency: 400 * time.Microsecond, Away: 200 * time.Millisecond})
				t.Cleanup(func() {
					mu.Lock()
					defer mu.Unlock()
					for kind, n := range p.Faults() {
						faults[kind] += n
					}
				})
				return p.Addr()
			}
			harness := newHarness(Config{Timeout: 500 * time.Millisecond, Settle: 20 * time.Second}, reach)
			t.Cleanup(func() {
				t.Logf("faults: %v", faults)
				if len(faults) < badnet.Kinds && !t.Failed() {
					t.Errorf("only %d kinds of faults of %d happened", len(faults), badnet.Kinds)
				}
			})
			t.Run("Engine", func(t *testing.T) {
				t.Parallel()
				waltest.Run(t, harness)
			})
			t.Run("Log", func(t *testing.T) {
				t.Parallel()
				waltest.RunLog(t, harness)
			})
		})
	}
}
