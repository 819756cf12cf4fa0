package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sbx-star/sbx-star/client"
)

// This file tests what the environment says about connections (protocol.md §4.2).

func TestWebSocketTimeouts(t *testing.T) {
	env := map[string]string{
		"LANGSMITH_SANDBOX_WS_TIMEOUT_OPEN":           "1.5",
		"LANGCHAIN_SANDBOX_WS_TIMEOUT_OPEN":           "never read",
		"LANGCHAIN_SANDBOX_WS_TIMEOUT_PING_INTERVAL":  " 7 ",
		"LANGSMITH_SANDBOX_WS_TIMEOUT_PING":           "0",
		"LANGSMITH_SANDBOX_WS_TIMEOUT_CLOSE":          "-3",
		"LANGSMITH_SANDBOX_WS_TIMEOUT_CONNECT_BUDGET": "1e300",
	}
	got, err := webSocketTimeouts(func(name string) string { return env[name] })
	want := client.WebSocketTimeouts{Open: 1500 * time.Millisecond, PingInterval: 7 * time.Second, Pong: -1, Close: -1, ConnectBudget: -1}
	if got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if got, err := webSocketTimeouts(func(string) string { return "" }); got != (client.WebSocketTimeouts{}) || err != nil {
		t.Errorf("without any: %+v, %v", got, err)
	}
	for _, wrong := range []string{"soon", "5s", "NaN", "1,5"} {
		_, err := webSocketTimeouts(func(name string) string {
			if name == "LANGSMITH_SANDBOX_WS_TIMEOUT_CLOSE" {
				return wrong
			}
			return ""
		})
		if err == nil || !strings.Contains(err.Error(), "LANGSMITH_SANDBOX_WS_TIMEOUT_CLOSE is \""+wrong) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}
