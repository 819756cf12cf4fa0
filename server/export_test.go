package server

// Tidy is one look of the janitor.
func (s *Server) Tidy() { s.tidy() }

// Used reports whether requests to a sandbox are under way.
func (s *Server) Used(id string) bool { return s.used(id) }

// Full reports whether there are as many WebSockets as there may be.
func (s *Server) Full() bool { return s.sockets.Load() >= int64(s.options.MaxSockets) }
