//go:build linux

package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// This file defines peer, a command for the scripts of tunnels: servers that run
// in a sandbox, and clients that reach them through a tunnel.
//
//	peer serve KIND     listens on 127.0.0.1 and says on which port: http, count
//	                    (answers the end with what it has read), blob:N (sends N
//	                    bytes), or reset (answers anything with a reset)
//	peer http ADDRESS   keep-alive, chunked and upgraded connections
//	peer send ADDRESS TEXT  sends, ends its side, and prints the answer
//	peer read ADDRESS   prints how many bytes come, and how they end

func peer() {
	if err := runPeer(os.Args[1:]); err != nil {
		fmt.Println("peer:", err)
		os.Exit(1)
	}
}

func runPeer(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return peerServe(args[1])
	case len(args) == 2 && args[0] == "http":
		return peerHTTP(args[1])
	case len(args) >= 2 && (args[0] == "send" || args[0] == "read"):
		conn, err := net.Dial("tcp", args[1])
		if errors.Is(err, syscall.ECONNRESET) { // it was accepted, and came to nothing before it was seen to be
			fmt.Println("0 bytes, reset")
			return nil
		}
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		if args[0] == "send" {
			io.WriteString(conn, strings.Join(args[2:], " "))
			conn.(*net.TCPConn).CloseWrite()
			answer, err := io.ReadAll(conn)
			fmt.Printf("%s%s\n", answer, ending(err))
			return nil
		}
		n, err := io.Copy(io.Discard, conn)
		fmt.Printf("%d bytes, %s\n", n, ending(err))
		return nil
	}
	return fmt.Errorf("what is %q", args)
}

func ending(err error) string {
	switch {
	case err == nil:
		return "end"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return err.Error()
}

func peerServe(kind string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	if kind == "http" {
		return http.Serve(ln, peerHandler())
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			size, _ := strconv.Atoi(strings.TrimPrefix(kind, "blob:"))
			switch kind {
			case "count":
				sum := sha256.New()
				n, _ := io.Copy(sum, conn)
				fmt.Fprintf(conn, "%d bytes, %.8x, ", n, sum.Sum(nil))
			case "reset":
				conn.Read(make([]byte, 1))
				conn.(*net.TCPConn).SetLinger(0)
			default:
				conn.Write(make([]byte, size))
			}
		}()
	}
}

func peerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/where", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	mux.HandleFunc("/chunks", func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "chunk %d;", i)
			http.NewResponseController(w).Flush()
		}
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, rw)
	})
	return mux
}

func peerHTTP(address string) error {
	client := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	get := func(path string) (string, []string, error) {
		res, err := client.Get("http://" + address + path)
		if err != nil {
			return "", nil, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return string(body), res.TransferEncoding, err
	}
	first, _, err := get("/where")
	if err != nil {
		return err
	}
	second, _, err := get("/where")
	if err != nil {
		return err
	}
	fmt.Println("kept alive:", first == second)
	text, encoding, err := get("/chunks")
	if err != nil {
		return err
	}
	fmt.Println(text, encoding)

	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	for _, word := range []string{"one", "two"} {
		io.WriteString(conn, word+"\n")
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Printf("%d %s", res.StatusCode, line)
	}
	conn.(*net.TCPConn).CloseWrite()
	rest, err := io.ReadAll(r)
	fmt.Printf("%q %s\n", rest, ending(err))
	return nil
}
