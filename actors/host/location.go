package host

// Location is where a shard is served, as far as whoever was asked knows: only the shard's log decides. A host that does not serve
// it any more answers kverr.Moved.
type Location struct {
	Address string // of the owner's data plane, host:port
	Epoch   uint64 // counter of the owner's epoch; 0 = not known
}
