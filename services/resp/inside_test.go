package resp

// Away is how many requests count against maxAway, for tests from outside.
func (s *Server) Away() int64 { return s.away.Load() }
