//go:build !nometrics

package telemetry

// counting tells whether anything is counted. Builds with the tag nometrics count nothing on the paths of requests: benchmarks measure by them what counting
// costs (peerbench -only eyes). They are for nothing else.
const counting = true
