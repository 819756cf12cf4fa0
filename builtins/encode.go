package builtins

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strings"

	"go.starlark.net/starlark"
)

// This file defines base64 and hash, which make text of bytes.

func newBase64() *namespace {
	return &namespace{name: "base64", members: starlark.StringDict{
		"encode": builtin("base64.encode", base64Encode),
		"decode": builtin("base64.decode", base64Decode),
	}}
}

func base64Encode(c *invocation) (starlark.Value, error) {
	var content data
	var url bool
	if err := c.unpack(&content, &url); err != nil {
		return nil, err
	}
	encoding := base64.StdEncoding
	if url {
		encoding = base64.URLEncoding
	}
	return starlark.String(encoding.EncodeToString(content)), nil
}

func base64Decode(c *invocation) (starlark.Value, error) {
	var text data
	var url bool
	if err := c.unpack(&text, &url); err != nil {
		return nil, err
	}
	encoding := base64.RawStdEncoding
	if url {
		encoding = base64.RawURLEncoding
	}
	content, err := encoding.DecodeString(strings.TrimRight(string(text), "=\r\n"))
	if err != nil {
		return nil, c.argumentError("parameter text: %w", err)
	}
	return starlark.Bytes(content), nil
}

func newHash() *namespace {
	members := starlark.StringDict{}
	for name, make := range map[string]func() hash.Hash{"md5": md5.New, "sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New} {
		members[name] = builtin("hash."+name, func(c *invocation) (starlark.Value, error) {
			var content data
			if err := c.unpack(&content); err != nil {
				return nil, err
			}
			h := make()
			h.Write(content)
			return starlark.String(hex.EncodeToString(h.Sum(nil))), nil
		})
	}
	return &namespace{name: "hash", members: members}
}
