package chaos

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"kvstore/tests/testenv"
)

// TestChaos strikes with all faults of a schedule, and after each judges everything that clients saw.
// KVSTORE_CHAOS_TENTHS is how many tenths of the full run that is: 10 is make chaos, 1 make chaos-ci.
func TestChaos(t *testing.T) {
	tenths, err := strconv.Atoi(os.Getenv("KVSTORE_CHAOS_TENTHS"))
	if err != nil {
		tenths = 1
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVSTORE_CHAOS_SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KVSTORE_CHAOS_SEED=%d", seed)
	c := newCluster(t, testenv.ClusterConfig{Args: []string{"-log-level", "debug"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(tenths)*10*time.Minute)
	defer cancel()
	began := time.Now()
	a := newArena(ctx, t, c, seed)
	blows := schedule(c, tenths, rand.New(rand.NewPCG(seed, 1)))
	r := &report{seed: seed, shards: len(a.owners.shards), tenths: tenths}
	for i, b := range blows {
		t.Logf("%v: %s", time.Now().Format("15:04:05.000"), b)
		e := a.strike(ctx, b)
		r.add(e)
		t.Logf("%d of %d: %s: %d shards moved, away for %s; the others for %s; whole after %v",
			i+1, len(blows), b, len(e.moved), spread(e.moved), spread(e.stayed), e.whole.Round(time.Millisecond))
		a.check(ctx, b.String())
	}
	if err := a.load.Rest(); err != nil {
		t.Error(err)
	}
	r.seen, r.took = a.load.Seen(), time.Since(began)
	t.Logf("\n%s", r)
	if path := os.Getenv("KVSTORE_CHAOS_REPORT"); path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(r.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
	for _, miss := range r.missed() {
		t.Error(miss)
	}
}
