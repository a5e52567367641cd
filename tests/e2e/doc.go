// Package e2e builds kvstored, runs it as users do, and looks at it from outside: what it says at the start, what it refuses, and
// that everything acknowledged is there after kill -9. Package crash does the last of these at length and under load.
package e2e
