package node

import (
	"net"
	"strconv"
)

// Door is a kind of listener and where it is found: instance n of a machine listens at First + n*Step.
type Door struct {
	Name  string
	First int
	Step  int
}

// The doors of a process. Everything that names a port is checked against this table (tests, compose files, docs). Nothing in it
// collides with what `dapr init` takes, nor one instance with another.
var (
	DoorGRPC      = Door{"grpc", 8085, 1}  // public API
	DoorREST      = Door{"rest", 8080, 10} // the same as REST
	DoorAdmin     = Door{"admin", 2112, 1} // /livez, /readyz, profiles
	DoorDataPlane = Door{"data", 9085, 1}  // frontends to hosts, and hosts to each other
	DoorRESP      = Door{"resp", 6380, 1}  // Redis's protocol; open only when -resp-listen says where
	DoorProbe     = Door{"probe", 8185, 1} // reserved: health for load balancers
)

// Doors are all of them.
var Doors = []Door{DoorGRPC, DoorREST, DoorAdmin, DoorDataPlane, DoorRESP, DoorProbe}

// MaxInstance is the highest instance number: with more, ports of different doors would meet.
const MaxInstance = 4

// Port is the door's port for an instance.
func (d Door) Port(instance int) int { return d.First + instance*d.Step }

// Loopback is the door's address on the loopback interface.
func (d Door) Loopback(instance int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.Port(instance)))
}
