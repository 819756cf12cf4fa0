package client

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"
)

// This file defines which requests are sent again, and when (protocol.md §4).

// A policy says what may be done about a request whose fate is a failure.
type policy int

const (
	// idempotent requests can be repeated after anything.
	idempotent policy = iota
	// creating requests are repeated when it is sure that they did nothing: the
	// server was not reached, or answered 429 or 503.
	creating
	// namedCreating requests are repeated after 502 and 504 too: the name that
	// the client chose makes a duplicate visible as 409.
	namedCreating
	// executing requests are repeated only when the server was not reached.
	executing
)

func (p policy) repeats(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return p != executing
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return p == idempotent || p == namedCreating
	}
	return false
}

const (
	longestBackoff = 10 * time.Second // of failures
	longestWait    = 30 * time.Second // of anything, whatever the server asks for
)

// backoff is how long to wait before attempt n+1; jitter is in [0, 1).
func backoff(n, status int, asked time.Duration, jitter float64) time.Duration {
	first, longest := 1.0, longestBackoff
	if status == http.StatusTooManyRequests {
		longest = longestWait
		if asked >= 0 {
			first = asked.Seconds()
		}
	}
	return inSeconds(min(math.Ldexp(first, n)+jitter, longest.Seconds()))
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// retryAfter reads the header of that name: seconds or an HTTP date. It is
// negative only where there is none to be read.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(value, 64); err == nil && !math.IsNaN(s) {
		return inSeconds(min(max(s, 0), unbounded.Seconds()))
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return -1
}

// sleep waits, or returns why the context ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// timedOut reports whether an error is about time rather than refusal.
func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
