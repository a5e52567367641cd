//go:build !nofence

package redislog

import _ "embed"

// appendSource is scripts/append.lua. Under the build tag nofence it is a script that appends whatever comes from whomever, to prove that the
// tests of a cluster notice when the fence is missing (tests/chaos, make owners).
//
//go:embed scripts/append.lua
var appendSource string
