package node

import (
	"fmt"
	"testing"
)

// TestPortsDoNotMeet holds the table to its promise, and shows that MaxInstance is as high as it can be.
func TestPortsDoNotMeet(t *testing.T) {
	// What dapr init and the Dapr CLI take: placement, scheduler, Redis, Zipkin, sidecar HTTP, gRPC and metrics.
	taken := map[int]string{50005: "dapr", 50006: "dapr", 6379: "redis", 9411: "zipkin", 3500: "dapr", 50001: "dapr", 9090: "dapr"}
	meet := func(instances int) error {
		seen := map[int]string{}
		for port, by := range taken {
			seen[port] = by
		}
		for n := range instances {
			for _, d := range Doors {
				me := fmt.Sprintf("%s of instance %d", d.Name, n)
				if by, ok := seen[d.Port(n)]; ok {
					return fmt.Errorf("port %d is that of %s and of %s", d.Port(n), by, me)
				}
				seen[d.Port(n)] = me
			}
		}
		return nil
	}
	if err := meet(MaxInstance + 1); err != nil {
		t.Error(err)
	}
	if meet(MaxInstance+2) == nil {
		t.Error("MaxInstance could be higher")
	}
	if got := DoorGRPC.Loopback(2); got != "127.0.0.1:8087" {
		t.Errorf("gRPC of instance 2 is at %s", got)
	}
}
