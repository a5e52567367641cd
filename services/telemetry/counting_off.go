//go:build nometrics

package telemetry

const counting = false
