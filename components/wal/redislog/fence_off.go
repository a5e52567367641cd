//go:build nofence

package redislog

import _ "embed"

//go:embed scripts/unfenced.lua
var appendSource string
