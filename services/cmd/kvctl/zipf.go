package main

import (
	"math"
	"math/rand/v2"
)

// chooser chooses keys: all alike, or by Zipf's law. It is safe for concurrent use.
type chooser struct {
	n int
	s float64 // exponent; 0 = all alike

	zeta, two, alpha, eta float64 // for 0 < s < 1
}

// newChooser chooses among n keys with an exponent that is not 1. Below 1, which rand.Zipf does not know, it is by the method of Gray and others
// ("Quickly generating billion-record synthetic databases", 1994), as in YCSB.
func newChooser(n int, s float64) *chooser {
	c := &chooser{n: n, s: s}
	if s > 0 && s < 1 {
		for i := 1; i <= n; i++ {
			c.zeta += math.Pow(float64(i), -s)
		}
		c.two = 1 + math.Pow(2, -s)
		c.alpha = 1 / (1 - s)
		c.eta = (1 - math.Pow(2/float64(n), 1-s)) / (1 - c.two/c.zeta)
	}
	return c
}

// picker returns a function that picks keys by rng.
func (c *chooser) picker(rng *rand.Rand) func() int {
	switch {
	case c.s == 0 || c.n == 1:
		return func() int { return rng.IntN(c.n) }
	case c.s > 1:
		z := rand.NewZipf(rng, c.s, 1, uint64(c.n-1))
		return func() int { return int(z.Uint64()) }
	}
	return func() int {
		u := rng.Float64()
		switch uz := u * c.zeta; {
		case uz < 1:
			return 0
		case uz < c.two:
			return 1
		}
		return min(int(float64(c.n)*math.Pow(c.eta*u-c.eta+1, c.alpha)), c.n-1)
	}
}
