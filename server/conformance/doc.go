// Package conformance tests the server against protocol.md with requests and
// WebSocket messages written out as they go over the wire. No client of this
// project is used, so that what both sides have wrong together is found too.
package conformance
