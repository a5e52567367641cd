package redislog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"kvstore/components/wal/driver"
	"kvstore/components/wal/waltest"
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

// newHarness holds a redis-server. A crash is that of both: the engine's process and the server are killed, and the server starts again on
// its append-only file.
func newHarness(cfg Config) func(t testing.TB) *waltest.Harness {
	return func(t testing.TB) *waltest.Harness {
		server := testenv.NewRedis(t)
		cfg := cfg
		cfg.URL = "redis://" + server.Addr
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

func TestConformance(t *testing.T) { waltest.Run(t, newHarness(Config{})) }

func TestLog(t *testing.T) { waltest.RunLog(t, newHarness(Config{})) }
